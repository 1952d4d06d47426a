"""The laws of encodings: the functions that our own tests and the tests of a plug-in's author run.

    from absdom import testing_encodings
    testing_encodings.check_encoding(graph, InputSet.box(lower, upper))   # every point of the network satisfies it
    testing_encodings.check_exact(graph, InputSet.box(lower, upper))      # with its whole numbers, nothing else does

Each raises LawBroken with the law and the numbers. Points are known up to charged intervals, so that nothing but the
rounding of the comparison itself is allowed for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp

from absdom.arithmetic import PROOF
from absdom.domain import NodeBounds
from absdom.encoding import Encoding, Style, gamma
from absdom.ir.graph import Graph
from absdom.passes import lower as lower_graph
from absdom.plan import run
from absdom.plan.encode import Encoder, fill
from absdom.plan.planner import make_schedule
from absdom.plan.recipes import parse_recipe
from absdom.property import InputSet
from absdom.sets import InputBatch
from absdom.testing_rules import LawBroken

STYLES = (Style(), Style(integers=True), Style(integers=True, segments=4), Style(quadratics=True))


def encoders(graph: Graph, inputs: InputSet, recipe="crown", wanted: torch.Tensor | None = None) -> list[Encoder]:
    """The network's output over each box, over bounds by a recipe; `wanted` "1 *out": the elements asked for."""
    graph = lower_graph(graph)
    context = run.prepare(make_schedule(graph, parse_recipe(recipe) if isinstance(recipe, str) else recipe), PROOF)
    batch, plan = InputBatch.of(inputs, PROOF), context.schedule.final
    with torch.no_grad():
        bounds = run.propagate(context, batch)
    every = torch.ones((1, *graph.nodes[plan.start].type.shape), dtype=torch.bool)
    one = (torch.tensor([b]) for b in range(len(batch.lower)))
    return [
        Encoder(context, plan, batch.select(b), {i: t.select(b) for i, t in bounds.items()},
                every if wanted is None else wanted)
        for b in one
    ]  # fmt: skip


def points_of(encoder: Encoder, inputs: InputSet, box: int, count: int = 12, seed: int = 0) -> np.ndarray:
    """Points "k n" of a set: its centre, corners and inner points moved into it, and others next to those."""
    batch, generator = encoder.batch, torch.Generator().manual_seed(seed)
    share = torch.rand((1, count, batch.lower.shape[1]), generator=generator, dtype=torch.float64)
    share[:, : count // 2] = share[:, : count // 2].round()
    share[:, 0], share[:, 1 % count], share[:, 2 % count] = 0.5, 0.0, 1.0
    points = batch.project(batch.lower[:, None] + share * (batch.upper - batch.lower)[:, None])[0]
    if batch.parts:
        points = torch.cat([points, points + 1e-9 * (points[:1] - points), (points + points[:1]) / 2])
    points = points.numpy().clip(inputs.lower[box], inputs.upper[box])
    return points[[inputs.contains(x, box) for x in points]]


def check_encoding(
    graph: Graph, inputs: InputSet, *, styles: Sequence[Style] = STYLES, recipe="crown",
    wanted: torch.Tensor | None = None, points: np.ndarray | None = None, seed: int = 0,
) -> int:  # fmt: skip
    """Every point of the network satisfies its encoding, and no encoding is larger than it was said to be.

    `points` "k n": further inputs, compared where they lie in a set. Gives back how many points were compared.
    """
    compared = 0
    for box, encoder in enumerate(encoders(graph, inputs, recipe, wanted)):
        chosen = points_of(encoder, inputs, box, seed=seed)
        if points is not None:
            chosen = np.concatenate([chosen, [x for x in points if inputs.contains(x, box)]])
        real = _enclose(encoder, chosen)
        for style in styles:
            encoding = encoder.encode(style)
            check_size(encoder, style)
            compared += _check_points(encoder, encoding, style, chosen, real)
    return compared


def _enclose(encoder: Encoder, points: np.ndarray) -> dict[int, NodeBounds]:
    """What each node is over the reals at float64 points "k n"."""
    context = run.prepare(make_schedule(encoder.graph, parse_recipe("interval")), PROOF)
    with torch.no_grad():
        return run.propagate(context, InputBatch(torch.from_numpy(points), torch.from_numpy(points)))


def check_size(encoder: Encoder, style: Style) -> None:
    """The encoding is no larger than what was predicted of it."""
    predicted, size = encoder.predict(style), encoder.encode(style).size
    for name in ("columns", "rows", "entries", "binaries", "quadratics"):
        if getattr(size, name) > getattr(predicted, name):
            raise LawBroken(f"{style}: {getattr(size, name)} {name}, and {getattr(predicted, name)} were predicted")


def _check_points(encoder: Encoder, encoding: Encoding, style: Style, points: np.ndarray, real) -> int:
    v, error = _variables(encoder, encoding, points, real)
    fine = np.isfinite(v).all(1) & np.isfinite(error).all(1)
    points, v, error = points[fine], v[fine], error[fine]
    binary = v[:, encoding.integer]
    _demand_within(encoding, style, points, "a binary", binary, 0.0, 1.0, 0.0 * binary)
    _demand_within(encoding, style, points, "a variable", v, encoding.lower, encoding.upper, error)
    A, size = encoding.matrix, abs(encoding.matrix)
    rounding = gamma(np.diff(A.indptr) + 2) * (np.abs(v) @ size.T)
    doubt = (error @ size.T) * (1 + 2.0**-40) + rounding + encoding.slack
    _demand_within(encoding, style, points, "a row", v @ A.T, encoding.low, encoding.high, doubt)
    _check_forms(encoding, style, points, v, error)
    return len(points)


def _check_forms(encoding: Encoding, style: Style, points, v: np.ndarray, error: np.ndarray) -> None:
    q = encoding.quadratics
    if not q.count:
        return

    def summed(terms: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(q.form, row, minlength=q.count) for row in terms])

    a, b, da, db = v[:, q.first], v[:, q.second], error[:, q.first], error[:, q.second]
    value = summed(q.value * a * b) + v @ q.linear.T + q.constant
    size = summed(np.abs(q.value * a * b)) + np.abs(v) @ abs(q.linear).T + np.abs(q.constant)
    doubt = summed(np.abs(q.value) * (np.abs(a) * db + da * np.abs(b) + da * db)) + error @ abs(q.linear).T
    terms = np.bincount(q.form, minlength=q.count) + np.diff(q.linear.indptr)
    doubt = doubt * (1 + 2.0**-40) + size * gamma(terms + 4) + q.slack
    low = np.where(q.equality, 0.0, -np.inf)
    _demand_within(encoding, style, points, "a quadratic form", value, low, 0.0, doubt)


def _variables(encoder: Encoder, encoding: Encoding, points: np.ndarray, real) -> tuple[np.ndarray, np.ndarray]:
    """The variables at points, and by how much each may differ from that over the reals."""
    v = encoder.values(points, encoding)
    ends = [fill({i: getattr(b, side) for i, b in real.items()}, len(points), encoding) for side in ("lower", "upper")]
    error = np.maximum(np.abs(v - ends[0]), np.abs(v - ends[1]))
    error[:, encoding.integer] = 0.0
    for choice in encoding.choices:
        for part, column in zip(choice.parts, (choice.source[0], choice.value)):
            error[:, part] = error[:, [column]]
    known = np.zeros(len(encoding.lower), dtype=bool)
    for columns in encoding.columns_of.values():
        known[columns[columns >= 0]] = True
    for t in encoding.distances:
        known[t.value] = True
        error[:, t.value] = np.abs(v[:, t.value]) * gamma(4)
    for choice in encoding.choices:
        known[choice.binaries] = True
        known[choice.parts.ravel()] = True
    # What is left are parameters that are known up to an error.
    error[:, ~known] = ((encoding.upper - encoding.lower) / 2)[~known]
    return v, error


def _demand_within(encoding, style, points, what, value, low, high, allowed) -> None:
    with np.errstate(invalid="ignore"):
        bad = (value < low - allowed) | (value > high + allowed) | np.isnan(value)
    if bad.any():
        p, k = (int(t) for t in np.argwhere(bad)[0])
        low, high, allowed = (np.broadcast_to(t, value.shape)[p, k] for t in (low, high, allowed))
        where = ""
        if what == "a row":
            row = encoding.matrix[k]
            where = f" over columns {row.indices.tolist()} of nodes {encoding.node[row.indices].tolist()}"
        elif what == "a variable":
            where = f" of node {encoding.node[k]}"
        raise LawBroken(
            f"a point of the network is not in its encoding ({style}): at {points[p].tolist()} {what} ({k}){where} has "
            f"the value {value[p, k]!r}, outside [{low!r}, {high!r}] by more than {allowed!r}"
        )


def check_exact(
    graph: Graph, inputs: InputSet, *, recipe="crown", count: int = 3, seed: int = 0, tolerance: float = 1e-7
) -> None:
    """At a fixed input, an encoding with binaries of a piecewise linear network holds the network's output alone."""
    for box, encoder in enumerate(encoders(graph, inputs, recipe)):
        encoding = encoder.encode(Style(integers=True))
        if not encoding.complete:
            raise LawBroken("the encoding with binaries does not call itself complete")
        points = points_of(encoder, inputs, box, 4 + 2 * count, seed)[-count:]
        for point, v in zip(points, encoder.evaluate(points, encoding), strict=True):
            for column in np.unique(encoding.target):
                for sign in (1.0, -1.0):
                    found = _least(encoding, sign * (np.arange(len(v)) == column), point)
                    if found is None or abs(sign * found - v[column]) > tolerance * (1 + abs(v[column])):
                        raise LawBroken(
                            f"at the input {point.tolist()} the output is {v[column]!r}, and the encoding reaches "
                            f"{'nothing' if found is None else sign * found!r}"
                        )


def _least(encoding: Encoding, cost: np.ndarray, point: np.ndarray) -> float | None:
    lower, upper = encoding.lower.copy(), encoding.upper.copy()
    lower[encoding.inputs] = upper[encoding.inputs] = point
    rows = LinearConstraint(encoding.matrix, encoding.low - encoding.slack, encoding.high + encoding.slack)
    found = milp(cost, integrality=encoding.integer.astype(int), bounds=Bounds(lower, upper), constraints=rows)
    return found.fun if found.status == 0 else None
