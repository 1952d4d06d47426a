"""The one piece of state in the package: what is registered, and from which file.

Ops register under their class name. Rules register per (domain, op or kind of op): a *cell*. A second registration
of a cell is an error that names both files. Plug-ins come through entry points or `load_plugin(path)`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import sys
from pathlib import Path

from absdom.errors import UsageError

GROUPS = ("absdom.ops", "absdom.frontends", "absdom.domains", "absdom.solvers")

_ops: dict[str, type] = {}
_rules: dict[tuple[type, type], object] = {}
_recipes: dict[str, object] = {}
_services: dict[str, object] = {}
_loaded: set[str] = set()


def _file(thing) -> str:
    try:
        return (
            inspect.getsourcefile(thing if inspect.isfunction(thing) or inspect.isclass(thing) else type(thing)) or "?"
        )
    except TypeError:
        return "?"


def _insert(table: dict, key, value, what: str):
    old = table.get(key)
    if old is not None and old is not value:
        raise UsageError(f"{what} is registered twice: in {_file(old)} and in {_file(value)}; remove one of them")
    table[key] = value
    return value


def register_op(cls: type) -> type:
    """Class decorator: makes an op known to the text form and to the coverage table."""
    return _insert(_ops, cls.__name__, cls, f"the op {cls.__name__}")


def register_rule(domain: type, op: type):
    """Decorator of the rule of `domain` for `op`: a class of op, or one of the kinds of op."""

    def decorate(rule):
        return _insert(_rules, (domain, op), rule, f"the rule of {domain.__name__} for {op.__name__}")

    return decorate


def register_recipe(name: str):
    """Decorator of a recipe (a domain class, or a function that returns one) under its name on the command line."""
    return lambda recipe: _insert(_recipes, name, recipe, f"the method {name!r}")


def register_service(name: str):
    """Decorator of a front end or a solver stage, found by name: `onnx`, `vnnlib`, `attack`, `bab` ..."""
    return lambda service: _insert(_services, name, service, f"the service {name!r}")


def load() -> None:
    """Import all that is installed under our entry-point groups, once."""
    if GROUPS[0] in _loaded:  # the metadata of all installed packages take tens of milliseconds to read
        return
    for group in GROUPS:
        for entry in importlib.metadata.entry_points(group=group):
            key = f"{group}:{entry.value}"
            if key not in _loaded:
                _loaded.add(key)
                entry.load()
    _loaded.add(GROUPS[0])


def load_plugin(path: str) -> None:
    """Run a plug-in file given on the command line; what it registers is known from then on."""
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"plug-in {path}: no such file")
    load()  # what a plug-in replaces has to be there first
    key = str(file.resolve())
    if key in _loaded:
        return
    name = f"absdom_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    _loaded.add(key)


def ops() -> dict[str, type]:
    load()
    return dict(_ops)


def recipes() -> dict[str, object]:
    load()
    return dict(_recipes)


def service(name: str):
    load()
    if name not in _services:
        raise UsageError(f"nothing is installed under the name {name!r}; there are: {', '.join(sorted(_services))}")
    return _services[name]


def find_rule(domain: type, op: type):
    """The rule for (domain, op) and how it was found: `exact`, `kind`, or (None, `none`)."""
    for owner in domain.__mro__:
        for base in op.__mro__:
            rule = _rules.get((owner, base))
            if rule is not None:
                return rule, "exact" if base is op else "kind"
    return None, "none"


def treats(domain: type, op: type) -> bool:
    """Can the domain handle the op, by a rule or (forward domains) from bounds alone?"""
    return find_rule(domain, op)[0] is not None or getattr(domain, "has_fallback", bool)()


def rule_file(domain: type, op: type) -> str:
    rule, _ = find_rule(domain, op)
    return "" if rule is None else _file(rule)
