"""The property language: what has to hold for every input of a set, written in Python, as a `Property`.

    net = network("net.onnx")
    x, y = inputs(net), outputs(net)                    # y = net(x) is the same
    prop = forall(box(lower, upper), implies(x[0] <= 0.5, 2 * y[0] - y[1] < 1) & (argmax(y) != 3))

A property is violated at the points of the set where the formula does not hold: its clauses are the negation of the
formula, multiplied out. Atoms over a single input tighten the box of their clause, as in VNN-LIB. Arithmetic on
numbers is exact; a number that float64 does not hold is rounded once, to the nearest, as where VNN-LIB is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import inf, lcm
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

from absdom.errors import PropertyError
from absdom.frontends.property_formulas import Atom, Clause, Formula, all_of, any_of, implies, violations
from absdom.frontends.property_terms import (
    Term,
    Variables,
    Vector,
    argmax,
    argmin,
    check_label,
    common_network,
    maximum,
    minimum,
)
from absdom.frontends.vnnlib_atoms import apart
from absdom.ir.graph import Graph
from absdom.property import InputSet, Property, Spec
from absdom.registry import register_service, service


@dataclass(frozen=True, eq=False)
class Network:
    """A network with its flat sizes. `path`: the file it was read from, if there is one."""

    graph: Graph
    path: str | Path | None = None

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of inputs and outputs; several tensors lie side by side."""
        nodes = self.graph.nodes
        return tuple(sum(nodes[i].type.numel for i in part) for part in (self.graph.inputs, self.graph.outputs))

    def same(self, other: Network) -> bool:
        return self.graph is other.graph or (self.path is not None and str(self.path) == str(other.path))

    def __call__(self, x: Vector) -> Vector:
        """The outputs for the symbolic inputs of this network."""
        terms = x.terms if isinstance(x, Vector) else None
        if not isinstance(terms, Variables) or terms.side or not terms.network.same(self):
            raise PropertyError(
                "net(x) takes x = inputs(net), whole and unchanged; what is done to inputs first has to be part of the "
                "network"
            )
        return outputs(self)


def network(model, example=None) -> Network:
    """The network of an ONNX file (path), a torch module with an example input, a Graph or a compiled one."""
    if isinstance(model, Network):
        return model
    if isinstance(model, Graph) or isinstance(getattr(model, "graph", None), Graph):
        return Network(model if isinstance(model, Graph) else model.graph)
    if isinstance(model, torch.nn.Module):
        if example is None:
            raise PropertyError("a torch module needs an example input: write net = network(module, example)")
        return Network(service("torch")(model, example))
    if isinstance(model, (str, Path)):
        return Network(service("onnx")(model), model)
    raise PropertyError(f"a {type(model).__name__} is no network: give a path, a torch module or a Graph")


def inputs(net, example=None) -> Vector:
    """The inputs of a network, flat: x[i] is X_i of VNN-LIB."""
    net = network(net, example)
    return Vector(Variables(net, 0, net.sizes[0]))


def outputs(net, example=None) -> Vector:
    """The outputs of a network, flat: y[j] is Y_j of VNN-LIB."""
    net = network(net, example)
    return Vector(Variables(net, 1, net.sizes[1]))


# -- input sets


def _numbers(value, name: str) -> np.ndarray:
    """An array of finite float64 numbers, in its shape."""
    held = np.asarray(value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value)
    if held.dtype.kind not in "iuf":
        raise PropertyError(f"{name} is no array of numbers (its type is {held.dtype})")
    held = held.astype(np.float64)
    if not np.isfinite(held).all():
        place = int(np.flatnonzero(~np.isfinite(held))[0])
        found = held.ravel()[place]
        raise PropertyError(f"{name}[{place}] is {found}: every input needs finite bounds")
    return held


def box(lower, upper) -> InputSet:
    """All x with lower <= x <= upper; arrays of the inputs' shape, one of them may be a number."""
    lower, upper = _numbers(lower, "lower"), _numbers(upper, "upper")
    if not lower.ndim and not upper.ndim:
        raise PropertyError(
            "box takes an array for lower or for upper: two numbers do not say how many inputs there are"
        )
    if lower.ndim and upper.ndim and lower.size != upper.size:
        raise PropertyError(f"lower has {lower.size} numbers, upper has {upper.size}")
    size = max(lower.size, upper.size)
    return InputSet.box(np.broadcast_to(lower.ravel(), size) + 0.0, np.broadcast_to(upper.ravel(), size) + 0.0)


def ball(x, eps: float, norm: float = inf, clip: tuple | None = None) -> InputSet:
    """All points within `eps` of x in the norm (1, 2 or inf), met with the range `clip` = (low, high) of the inputs.

    low, high: numbers, or arrays that broadcast to the shape of x.
    """
    x, eps = _numbers(x, "x"), _numbers(eps, "eps")
    if eps.ndim or eps < 0:
        raise PropertyError(f"eps is one number of 0 or above, not {eps.tolist()}")
    if norm not in (1, 2, inf):
        raise PropertyError(f"the norm {norm!r} is not one of 1, 2, inf")
    return InputSet.ball(x.ravel(), float(eps), norm, _range(clip, x))


def ellipsoid(x, half_axes=None, *, covariance=None, radius: float = 1.0, clip: tuple | None = None) -> InputSet:
    """All points of an ellipsoid around x, met with the range `clip` of the inputs (as in `ball`).

    `half_axes`, of the shape of x: sum of ((point - x) / half_axes)^2 <= radius^2; an input with half-axis 0 is fixed.
    `covariance` "n n" instead: the Mahalanobis ball, points whose distance from x in it is at most `radius`. (The set
    that is verified is that of the float64 matrix covariance^-1 / radius^2.)
    """
    x, radius = _numbers(x, "x"), _numbers(radius, "radius")
    if radius.ndim or radius < 0:
        raise PropertyError(f"radius is one number of 0 or above, not {radius.tolist()}")
    if (half_axes is None) == (covariance is None):
        raise PropertyError("ellipsoid takes half_axes or covariance: one of them")
    clip = _range(clip, x)
    if half_axes is not None:
        axes = _numbers(half_axes, "half_axes")
        if axes.ndim and axes.size != x.size:
            raise PropertyError(f"half_axes has {axes.size} numbers, x has {x.size}")
        return InputSet.ellipsoid(x.ravel(), np.broadcast_to(axes.ravel(), x.size) * radius, clip)
    matrix = _numbers(covariance, "covariance")
    if matrix.shape != (x.size, x.size) or radius == 0:
        raise PropertyError(
            f"a covariance of {x.size} inputs is a matrix ({x.size}, {x.size}), not {matrix.shape}, and goes with a "
            f"radius above 0"
        )
    try:
        return InputSet.mahalanobis(x.ravel(), np.linalg.inv(matrix) / radius**2, clip)
    except np.linalg.LinAlgError:
        raise PropertyError("the covariance is singular") from None


def polytope(normals, offsets, lower, upper) -> InputSet:
    """All x with normals @ x <= offsets and lower <= x <= upper: normals "m n", offsets "m", bounds as in `box`."""
    where = box(lower, upper)
    normals, offsets = _numbers(normals, "normals"), _numbers(offsets, "offsets")
    if normals.ndim != 2 or offsets.ndim != 1:
        raise PropertyError(f"normals and offsets are a matrix and a vector, not {normals.shape} and {offsets.shape}")
    return InputSet.polytope(normals, offsets, where.lower, where.upper)


def _range(clip: tuple | None, x: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The ends "n" of the range `clip`, which x lies in."""
    if clip is None:
        return None
    try:
        clip = tuple(np.broadcast_to(_numbers(end, "clip"), x.shape).ravel() for end in clip)
    except ValueError as error:
        raise PropertyError(f"clip does not fit x of shape {x.shape}: {error}") from None
    if len(clip) != 2:
        raise PropertyError(f"clip is a pair (low, high), not {len(clip)} values")
    outside = (x.ravel() < clip[0]) | (x.ravel() > clip[1])
    if outside.any():
        i = int(np.argmax(outside))
        raise PropertyError(
            f"x[{i}] is {x.ravel()[i]:g}, outside clip ({clip[0][i]:g}, {clip[1][i]:g}): give the range of the "
            f"inputs as clip=(low, high), or clip=None"
        )
    return clip


# -- properties


def robust(net, x, eps: float, label: int, norm: float = inf, clip: tuple | None = (0.0, 1.0)) -> Property:
    """`label` has the largest score for every input within `eps` of x: argmax(net(.)) == label on ball(x, eps).

    A torch module takes x in the shape it is called with, batch axis included. Ties violate (see `argmax`).
    """
    if isinstance(net, torch.nn.Module):
        kind = next((p.dtype for p in net.parameters()), torch.get_default_dtype())
        net = network(net, torch.as_tensor(x).detach().to("cpu", kind))
    net = network(net)
    y = outputs(net)
    check_label(label, len(y), "argmax")
    size = int(np.size(x) if not isinstance(x, torch.Tensor) else x.numel())
    if size != net.sizes[0]:
        raise PropertyError(f"x has {size} numbers, the network takes {net.sizes[0]}")
    return forall(ball(x, eps, norm, clip), argmax(y) == label)


def forall(where: InputSet, formula: Formula) -> Property:
    """The property that the formula holds at every input of the set (of every set of the batch)."""
    if not isinstance(where, InputSet):
        raise PropertyError(f"forall takes a set first, such as box(...) or ball(...), not {type(where).__name__}")
    if not isinstance(formula, Formula):
        raise PropertyError(f"forall takes a formula, such as argmax(net(x)) == 3, not {type(formula).__name__}")
    net = common_network(*_terms(formula))
    if net is None:
        raise PropertyError("the formula speaks of no input and no output of a network")
    n, m = net.sizes
    if where.size != n:
        raise PropertyError(f"the set has {where.size} inputs, the network takes {n}")
    return _Builder(where, n, m).build(violations(formula))


def _terms(formula: Formula) -> Iterable[Term]:
    if isinstance(formula, Atom):
        yield formula.term
    for part in getattr(formula, "parts", ()) or (getattr(formula, "sure", None),):
        if part is not None:
            yield from _terms(part)


Row = tuple[dict[int, float], float, bool]  # coefficients by code, constant, strict


class _Builder:
    """Clauses of exact atoms to boxes and rows; n inputs, m outputs."""

    def __init__(self, where: InputSet, n: int, m: int):
        self.where, self.n, self.m = where, n, m
        self.known: dict = {}  # numbers of boxes by their content, and by what they are made from
        self.chosen: list[tuple[int, np.ndarray, np.ndarray]] = []  # set, lower, upper of each box of the property

    def build(self, clauses: list[Clause]) -> Property:
        read = [found for found in map(self._read, clauses) if found is not None]
        boxes, rows = [], []
        for set_number in range(len(self.where)):
            for limits, clause_rows in read:
                number = self._box(set_number, limits)
                if number is not None:
                    rows += [(len(boxes), row) for row in clause_rows]
                    boxes.append(number)
        if boxes:
            sets = self.where.select(np.array([b for b, _, _ in self.chosen]))
            lower, upper = (np.stack([c[k] for c in self.chosen]) for k in (1, 2))
            where = replace(sets, lower=lower, upper=upper)
        else:
            where = self.where.select(np.array([0]))  # nothing can violate; the set says where the question lay
        spec, on_inputs = self._spec(rows, boxes)
        return Property(where, spec, on_inputs)

    def _read(self, clause: Clause) -> tuple[list[tuple[int, bool, float]], list[Row]] | None:
        """Bounds (input, upper end or not, value) and rows of a clause; None if one of its atoms never holds."""
        limits, rows, seen = [], [], set()
        for atom in clause:
            form = {code: c for code, c in atom.term.coefficients.items() if c}
            constant = atom.term.constant
            if not form:
                if constant > 0 or (atom.strict and constant == 0):
                    return None
                continue
            code, c = next(iter(form.items()))
            if len(form) == 1 and not code % 2:
                end = -constant / c
                value, sign = apart(end, _float(end)) + 0.0, 1.0 if c > 0 else -1.0
                limits.append((code // 2, c > 0, value))
                if not atom.strict:
                    continue
                # The box is closed: a row keeps the strict end.
                row = {code: sign}, -sign * value + 0.0, True
            else:
                row = (*_floats(form, constant), atom.strict)
            key = (tuple(sorted(row[0].items())), *row[1:])
            if key not in seen:
                seen.add(key)
                rows.append(row)
        return limits, rows or [({}, -1.0, False)]  # no row: all of the box violates

    def _box(self, number: int, limits) -> int | None:
        """The number of set `number` with these bounds; None if nothing is left of its box."""
        made_from = number, tuple(limits)
        if made_from not in self.known:
            self.known[made_from] = self._new_box(number, limits)
        return self.known[made_from]

    def _new_box(self, number: int, limits) -> int | None:
        lower, upper = self.where.lower[number] + 0.0, self.where.upper[number] + 0.0
        for i, above, value in limits:
            if above:
                upper[i] = min(upper[i], value)
            else:
                lower[i] = max(lower[i], value)
        if (lower > upper).any():
            return None
        key = (number if self.where.parts else None, lower.tobytes(), upper.tobytes())
        if key not in self.known:
            self.known[key] = len(self.chosen)
            self.chosen.append((number, lower, upper))
        return self.known[key]

    def _spec(self, rows: list[tuple[int, Row]], boxes: list[int]) -> tuple[Spec, bool]:
        entries = [(r, code, c) for r, (_, row) in enumerate(rows) for code, c in row[0].items()]
        on_inputs = any(code % 2 == 0 for _, code, _ in entries)
        columns = [code // 2 + (0 if code % 2 else self.m) for _, code, _ in entries]
        shape = (len(rows), self.m + (self.n if on_inputs else 0))
        matrix = sp.csr_matrix(
            ([c for *_, c in entries], ([r for r, *_ in entries], columns)), shape=shape, dtype=np.float64
        )
        return Spec(
            matrix,
            np.array([row[1] for _, row in rows], dtype=np.float64),
            np.array([row[2] for _, row in rows], dtype=bool),
            np.array([q for q, _ in rows], dtype=np.int64),
            np.array(boxes, dtype=np.int64),
        ), on_inputs


def _float(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        raise PropertyError(f"a number of the formula is too large for float64: about {value.numerator:.3e}") from None


def _floats(form: Mapping[int, Fraction], constant: Fraction) -> tuple[dict[int, float], float]:
    """The row as float64 numbers: as it stands, or without its fractions (thirds, say) if only that is exact."""
    values = [*form.values(), constant]
    odd = lcm(*(v.denominator // (v.denominator & -v.denominator) for v in values))
    found = [_float(v) for v in values]
    if odd > 1 and all(Fraction(_float(v * odd)) == v * odd for v in values):
        found = [_float(v * odd) for v in values]
    return dict(zip(form, found)), found[-1] + 0.0


@register_service("properties")
def language() -> Mapping[str, Callable]:
    """The names of the language, as `absdom` exports them."""
    public = (
        network, inputs, outputs, box, ball, ellipsoid, polytope, forall, robust, argmax, argmin, maximum, minimum,
        implies, all_of, any_of,
    )  # fmt: skip
    return {f.__name__: f for f in public}
