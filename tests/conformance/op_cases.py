"""Generated (op, shapes, attributes, parameters, boxes) for every registered op, keyed by the name of its class.

An op without a strategy of its own is generated from its signature alone: attributes by their names and types, operands
by what `infer` accepts, intervals inside `domain` (open ends; absent: all reals). So an op that is added tomorrow is
tested tomorrow. Shapes and attributes come from hypothesis and shrink; numbers come from a seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, prod

import numpy as np
import torch
from hypothesis import strategies as st

from absdom import ops, registry
from absdom.ir.graph import Builder, Graph
from absdom.ir.op import Input, Op, Param
from absdom.types import TensorType

REALS = (-inf, inf)
TAME = ("normal", "point", "ulp", "tiny", "symmetric", "mixed")
WILD = ("wide", "far", "far ulp")
KINDS = (*TAME, *WILD)


@dataclass(frozen=True)
class Varying:
    """An operand that depends on the input; its intervals lie inside `domain`."""

    shape: tuple[int, ...]
    domain: tuple[float, float] = REALS


@dataclass(frozen=True, eq=False)
class OpCase:
    """A network around one op, and one box per kind, "K n" each."""

    op: Op
    operands: tuple
    layout: str
    seed: int
    graph: Graph
    lower: torch.Tensor
    upper: torch.Tensor

    def __repr__(self) -> str:
        shown = [f"varying{o.shape}" if isinstance(o, Varying) else f"parameter{tuple(o.shape)}" for o in self.operands]
        return f"{self.op} on {', '.join(shown)}, {self.layout}, seed {self.seed}"


class Draws:
    """Choices that hypothesis makes and shrinks; tensors from one drawn seed."""

    def __init__(self, draw):
        self._draw = draw
        self.seed = draw(st.integers(0, 2**31 - 1))
        self.random = np.random.default_rng(self.seed)

    def integer(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def pick(self, items):
        return self._draw(st.sampled_from(list(items)))

    def yes(self) -> bool:
        return self._draw(st.booleans())

    def sizes(self, low: int, high: int, largest: int = 3) -> tuple[int, ...]:
        return tuple(self.integer(1, largest) for _ in range(self.integer(low, high)))

    def weights(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.from_numpy(self.random.standard_normal(shape) * scale)

    def positive(self, *shape: int, low: float = 0.3, high: float = 2.0) -> torch.Tensor:
        return torch.from_numpy(self.random.uniform(low, high, shape))


STRATEGIES: dict[str, Callable[[Draws], tuple]] = {}


def strategy(*names: str):
    """Decorator of `function(draws, name) -> (op, operands)` for the ops with these class names."""

    def decorate(function):
        for name in names:
            STRATEGIES[name] = function
        return function

    return decorate


def generated_ops() -> dict[str, type]:
    """The ops that come with absdom, by name (those that other tests register are theirs to test)."""
    return {
        name: cls
        for name, cls in sorted(registry.ops().items())
        if cls.__module__.startswith("absdom.") and not issubclass(cls, (Input, Param))
    }


@st.composite
def op_cases(draw, name: str) -> OpCase:
    draws = Draws(draw)
    if name in STRATEGIES:
        op, operands = STRATEGIES[name](draws, name)
    else:
        op, operands = from_signature(draws, generated_ops()[name])
    return network(draws, op, tuple(operands))


# Ops known by their signature only


def from_signature(d: Draws, cls: type) -> tuple:
    """(op, operands): attributes by name and type; as many operands as `infer` wants, broadcasting where it may."""
    first = d.sizes(2, 4)
    op = cls(**{f.name: attribute(d, f, first) for f in dataclasses.fields(cls) if wants_value(d, f)})
    domain = getattr(op, "domain", REALS)
    second = d.pick([first, first[1:], tuple(1 for _ in first)])
    for shapes in ((first,), (first, second), (first, first, first)):
        try:
            op.infer(*(TensorType(s, "float64") for s in shapes))
        except (ValueError, TypeError, IndexError):
            continue
        return op, [Varying(s, domain) for s in shapes]
    raise NotImplementedError(f"{cls.__name__} needs a strategy in tests/conformance/op_strategies.py")


def wants_value(d: Draws, field) -> bool:
    return field.default is dataclasses.MISSING or d.yes()


def attribute(d: Draws, field, shape):
    kind = str(field.type)
    if field.name == "axis":
        return d.integer(0, len(shape) - 1)
    if field.name == "axes":
        return tuple(a for a in range(len(shape)) if d.yes()) or (0,)
    if field.name == "epsilon":
        return d.pick([1e-5, 1e-3, 0.5])
    if kind == "bool":
        return d.yes()
    if kind == "float":
        return d.pick([1.0, 0.5, 1.3, 0.1])
    if field.default is not dataclasses.MISSING:
        return field.default
    raise NotImplementedError(
        f"no value is known for the attribute {field.name}: {kind}; write a strategy in op_strategies.py"
    )


# Networks around one op


def network(d: Draws, op: Op, operands: tuple) -> OpCase:
    """The op on the inputs themselves ("bare"), on one input read twice ("shared") or behind a dense layer ("dense")."""
    builder = Builder()
    varying = [o for o in operands if isinstance(o, Varying)]
    same = len(varying) > 1 and len(set(varying)) == 1
    layout = d.pick(["bare", "dense", "shared"] if same else ["bare", "dense"])
    domains, reads = [], []
    if layout == "dense":
        size = d.integer(1, 4)
        x = builder.input("x", TensorType((1, size), "float64"))
        domains = [REALS] * size
    for k, operand in enumerate(operands):
        if not isinstance(operand, Varying):
            reads.append(builder.param(operand, f"p{k}"))
        elif layout == "dense":
            reads.append(dense(d, builder, x, operand))
        elif layout == "shared" and domains:
            reads.append(reads[operands.index(operand)])
        else:
            reads.append(builder.input(f"x{k}", TensorType(operand.shape, "float64")))
            domains += [operand.domain] * prod(operand.shape)
    out = builder.add(op, *reads)
    if d.yes():
        numel = builder.type(out).numel
        flat = builder.add(ops.Reshape((1, numel)), out)
        out = builder.add(ops.MatMul(), flat, builder.param(d.weights(numel, d.integer(1, 2)), "last"))
    lower, upper = zip(*(box(d.random, kind, domains) for kind in KINDS), strict=True)
    return OpCase(op, operands, layout, d.seed, builder.finish([out]), torch.stack(lower), torch.stack(upper))


def dense(d: Draws, builder: Builder, x: int, operand: Varying) -> int:
    n, numel = builder.type(x).numel, prod(operand.shape)
    value = builder.add(ops.MatMul(), x, builder.param(d.weights(n, numel, scale=n**-0.5), "w"))
    value = builder.add(ops.Reshape(operand.shape), value)
    if operand.domain == REALS:
        return value
    return builder.add(ops.Clip(*inner(operand.domain)), value)


def inner(domain: tuple[float, float]) -> tuple[float, float]:
    """A closed interval inside an open domain."""
    low, high = domain
    margin = 0.02 * min(high - low, 5.0)
    return low + margin, high - margin


def box(random, kind: str, domains: list) -> tuple[torch.Tensor, torch.Tensor]:
    """One box "n", n >= 0, with the ends of each interval inside its domain."""
    n = len(domains)
    centre = random.standard_normal(n) * random.choice([0.3, 1.0, 3.0])
    radius = random.uniform(0, 1, n) * random.choice([0.05, 0.5, 1.5])
    if kind in ("point", "ulp", "far ulp"):
        radius = np.zeros(n)
    elif kind == "tiny":
        radius = np.full(n, 3.5e-8)
    elif kind == "symmetric":
        centre = np.zeros(n)
    elif kind == "mixed":
        radius = radius * random.choice([0.0, 0.0, 1e-9, 1.0, 20.0], n)
    elif kind == "wide":
        radius = random.uniform(0, 1e3, n)
    if kind.startswith("far"):
        centre = centre + 1e6 * random.choice([-1.0, 1.0], n)
    first, last = (fit(t, domains) for t in (centre - radius, centre + radius))
    lower, upper = np.minimum(first, last), np.maximum(first, last)
    if kind.endswith("ulp"):
        upper = np.nextafter(upper, inf)
    return torch.from_numpy(lower), torch.from_numpy(upper)


def fit(x: np.ndarray, domains: list) -> np.ndarray:
    """Move reals into their domains: folded at a single end, squeezed between two."""
    out = x.copy()
    for i, domain in enumerate(domains):
        low, high = inner(domain)
        if low > -inf and high < inf:
            out[i] = low + (high - low) * (0.5 + np.arctan(x[i]) / np.pi)
        elif low > -inf:
            out[i] = low + abs(x[i])
        elif high < inf:
            out[i] = high - abs(x[i])
    return out
