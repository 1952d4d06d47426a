"""absdom: a verifier compiler for neural networks.

A network and a property go in; a proof, a counterexample or a bound comes out. The names below are loaded on first
use (PEP 562), so that `import absdom`, the command line's help and checkers load no torch.

`absdom.plan` and `absdom.coverage` are modules; the functions that print them are `absdom.api.plan` and
`absdom.api.coverage`.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOME = {
    "absdom.api": ("batch_statistics", "bound", "compile", "info", "load", "verify"),
    "absdom.certification": ("certify",),
    "absdom.errors": ("AbsdomError", "GraphError", "ModelError", "PropertyError", "UnsupportedOp", "UsageError"),
    "absdom.ir.graph": ("Graph",),
    "absdom.input_set": ("InputSet",),
    "absdom.property": ("Property", "Spec", "make_property"),
    "absdom.radii": ("distance",),
    "absdom.verdict": ("Result", "Witness"),
}
_LAZY = {name: module for module, names in _HOME.items() for name in names}
# The property language comes from a front end, found through the registry.
_LANGUAGE = (
    "all_of", "any_of", "argmax", "argmin", "ball", "box", "ellipsoid", "forall", "implies", "inputs", "maximum",
    "minimum", "network", "outputs", "polytope", "robust",
)  # fmt: skip
_LAZY |= dict.fromkeys(_LANGUAGE, "absdom.registry")

__all__ = ["__version__", *sorted(_LAZY)]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'absdom' has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name])
    value = module.service("properties")()[name] if name in _LANGUAGE else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
