"""The laws on one generated case: every recipe in charged float64 with zero tolerance, and what bounds must not be."""

from __future__ import annotations

import dataclasses
from math import inf, isfinite, pi, prod

import mpmath
import torch
from exact_oracle import real_outputs
from op_cases import KINDS, TAME, OpCase

from absdom import testing
from absdom.arithmetic import PROOF
from absdom.domain import NodeBounds, no_nan
from absdom.domains.interval import with_parameters
from absdom.ir.op import Elementwise
from absdom.passes import lower as lower_graph
from absdom.plan import run, sweeps
from absdom.plan.planner import make_schedule
from absdom.plan.recipes import parse_recipe
from absdom.rows import Rows
from absdom.sets import InputBatch

ORDINARY = ("normal", "point", "symmetric")  # boxes on which float32 has to be near


def check_laws(case: OpCase, thorough: bool = False) -> int:
    """Raises testing.LawBroken, or gives back the number of (op, box) pairs that kept the laws."""
    graph = lower_graph(case.graph)
    testing.check_adjoint(graph, seed=case.seed)
    tame = torch.tensor([k in TAME for k in KINDS])
    ordinary = torch.tensor([k in ORDINARY for k in KINDS])
    for group in (tame, ~tame):
        check_group(case, testing.Case(repr(case), graph, case.lower[group], case.upper[group]), special_points(case))
        check_knobs(testing.Case(repr(case), graph, case.lower[group], case.upper[group]), case.seed)
    part = testing.Case(repr(case), graph, case.lower[tame], case.upper[tame])
    check_exact(part.on_points())
    testing.check_not_looser_than_interval(part, "crown")
    testing.check_not_looser_than_interval(part, "cap")
    check_layouts(part, case.seed)
    check_finite_gradients(part)
    check_float32(testing.Case(repr(case), graph, case.lower[ordinary], case.upper[ordinary]), case.seed)
    if thorough:
        # Batches are multiplied in another order than single boxes. Where a root near 0 is divided by, that rounding
        # grows a billion times: both bounds hold, and they differ.
        if max(getattr(case.op, "epsilon", 1), getattr(case.op, "shift", 1)) >= 1e-6:
            testing.check_batch(part, "crown")
        testing.check_sound(part.half_flat(), "cap & crown-ibp", seed=case.seed)
    return len(KINDS)


def check_exact(case: testing.Case) -> None:
    """Bounds over points are the values there, where there are values (not 0 / 0)."""
    context = run.prepare(make_schedule(case.graph, parse_recipe("interval")), testing.FLOAT64)
    known = run.evaluate(context, case.lower).detach().reshape(len(case.lower), -1).isfinite().all(1)
    if known.any():
        testing.check_exact_on_points(
            testing.Case(case.name, case.graph, case.lower[known], case.upper[known]), "cap & crown-ibp"
        )


def special_points(case: OpCase) -> list[float]:
    """Where functions bend, jump or turn: the usual places, and the op's own numbers."""
    own = [v for v in (getattr(case.op, f.name) for f in dataclasses.fields(case.op)) if isinstance(v, float)]
    return [0.0, 0.5, -0.5, 1.0, -1.0, pi / 2, -pi / 2, *(v for v in own if isfinite(v))]


def points_of(case: testing.Case, special: list[float], seed: int) -> torch.Tensor:
    """Corners, random points, ends of gradient walks, and the special points as far as they lie in the boxes: "B k n"."""
    points = testing.sample(case.graph, case.lower, case.upper, steps=4, seed=seed)
    n = case.lower.shape[1]
    more = torch.tensor(special, dtype=torch.float64)[None, :, None].expand(len(points), -1, n)
    one = points[:, :1].expand(-1, len(special), -1)  # special in one dimension, a corner in the others
    alone = torch.where(torch.arange(n) == torch.arange(len(special))[:, None] % n, more, one)
    inside = (torch.minimum(torch.maximum(t, case.lower[:, None]), case.upper[:, None]) for t in (more, alone))
    return torch.cat([points, *inside], 1)


def check_group(generated: OpCase, case: testing.Case, special: list[float]) -> None:
    """Soundness of every recipe on these boxes."""
    points = points_of(case, special, generated.seed)
    boxes, count, n = points.shape
    real = testing.enclose(case.graph, points.reshape(-1, n))
    low, high = (t.reshape(boxes, count, -1) for t in (real.lower, real.upper))
    value = None
    if generated.layout != "dense":  # the op reads exact inputs, so that float64 is near the reals
        context = run.prepare(make_schedule(case.graph, parse_recipe("interval")), testing.FLOAT64)
        value = run.evaluate(context, points.reshape(-1, n)).detach().reshape(boxes, count, -1)
    exact = exact_values(case, points[:, 1:4])
    for recipe in testing.RECIPES:
        found = testing.bounds_of(case.graph, case.lower, case.upper, recipe, PROOF)
        lower, upper = (t.reshape(boxes, 1, -1) for t in (found.lower, found.upper))
        demand(case, recipe, "a bound is NaN", lower.isnan() | upper.isnan(), points, low, high, found)
        demand(case, recipe, "the bounds cross", lower > upper, points, low, high, found)
        demand(case, recipe, "the lower bound is passed", lower > high, points, low, high, found)
        demand(case, recipe, "the upper bound is passed", upper < low, points, low, high, found)
        if value is not None:
            slack = 1e-9 * torch.maximum(value.abs(), scale_per_box(case)[:, None, None])
            wrong = (value < lower - slack) | (value > upper + slack)
            demand(case, recipe, "the float64 value lies outside", wrong, points, value, value, found)
        demand_exact(case, recipe, exact, found)


def exact_values(case: testing.Case, points: torch.Tensor) -> list:
    """(box, point, outputs to 300 bits) for the ops that the oracle knows, where there is a value."""
    found = []
    for b, group in enumerate(points):
        for x in group:
            try:
                found.append((b, x, real_outputs(case.graph, x)[0]))
            except ZeroDivisionError:
                continue
            except ValueError as error:
                if "does not know" not in str(error):
                    raise
                return []
    return found


def demand_exact(case, recipe, exact: list, found) -> None:
    lower, upper = (t.reshape(len(case.lower), -1).tolist() for t in (found.lower, found.upper))
    for b, x, outputs in exact:
        for j, y in enumerate(outputs):
            if mpmath.isfinite(y) and not mpmath.mpf(lower[b][j]) <= y <= mpmath.mpf(upper[b][j]):
                raise testing.LawBroken(
                    f"an exact value is passed: {case.name}, {recipe}, output {j}: bounds [{lower[b][j]!r}, {upper[b][j]!r}] "
                    f"over the box {case.lower[b].tolist()} .. {case.upper[b].tolist()}; at {x.tolist()} it is {mpmath.nstr(y, 25)}"
                )


def demand(case, recipe, what, bad, points, low, high, found) -> None:
    if bad.any():
        b, k, j = bad.nonzero()[0].tolist()
        k = k if bad.shape[1] > 1 else 0
        raise testing.LawBroken(
            f"{what}: {case.name}, {recipe}, output {j}: bounds [{found.lower.reshape(len(case.lower), -1)[b, j].item()!r}, "
            f"{found.upper.reshape(len(case.lower), -1)[b, j].item()!r}] over the box {case.lower[b].tolist()} .. {case.upper[b].tolist()}; "
            f"at {points[b, k].tolist()} the output lies in [{low[b, k, j].item()!r}, {high[b, k, j].item()!r}]"
        )


def check_knobs(case: testing.Case, seed: int) -> None:
    """Any knobs in [0, 1] give valid bounds, not only those that the ops choose."""
    generator = torch.Generator().manual_seed(seed)
    context = run.prepare(make_schedule(case.graph, parse_recipe("crown")), PROOF)
    batch, plan = InputBatch(case.lower, case.upper), context.schedule.final
    bounds, knobs = run.propagate(context, batch), {}
    for i in plan.nodes:
        op = case.graph.nodes[i].op
        if getattr(op, "knobs", ()):
            ends = with_parameters(*states_of(context, bounds, i))
            low, high = [e.lower for e in ends], [e.upper for e in ends]
            chosen = op.initial(low[0], high[0]) if isinstance(op, Elementwise) else op.initial(low, high)
            knobs[i] = {
                k: torch.rand(t.shape, generator=generator, dtype=t.dtype) * 1.4 - 0.2 for k, t in chosen.items()
            }
            knobs[i] = {k: t.clamp(0, 1) for k, t in knobs[i].items()}
    if not knobs:
        return
    points = testing.sample(case.graph, case.lower, case.upper, count=6, steps=0, seed=seed)
    boxes, count, n = points.shape
    real = testing.enclose(case.graph, points.reshape(-1, n))
    low, high = (t.reshape(boxes, count, -1) for t in (real.lower, real.upper))
    shape = case.graph.nodes[context.schedule.target].type.shape
    numel = low.shape[2]
    position, sign = torch.arange(numel).repeat(boxes), torch.ones(numel * boxes, dtype=torch.float64)
    ends = []
    for way in (1, -1):
        rows = Rows.one_hot(position, way * sign, shape, boxes)
        found = sweeps.sweep(context, plan, context.schedule.duals[0], batch, bounds, rows, {}, knobs=knobs)
        ends.append(way * found.reshape(boxes, 1, numel))
    found = NodeBounds(ends[0], ends[1])
    demand(case, "crown with random knobs", "the lower bound is passed", ends[0] > high, points, low, high, found)
    demand(case, "crown with random knobs", "the upper bound is passed", ends[1] < low, points, low, high, found)


def check_layouts(case: testing.Case, seed: int) -> None:
    """Rows give one answer however they are kept: one-hot or dense, box by box or ragged and in any order."""
    context = run.prepare(make_schedule(case.graph, parse_recipe("crown")), testing.FLOAT64)
    batch = InputBatch(case.lower, case.upper)
    with torch.no_grad():
        bounds = run.propagate(context, batch)
    shape, boxes = case.graph.nodes[context.schedule.target].type.shape, len(case.lower)
    numel = prod(shape)
    position, box = torch.arange(numel).repeat(boxes), torch.arange(boxes).repeat_interleave(numel)
    sign = torch.where(torch.arange(numel * boxes) % 2 == 0, 1.0, -1.0).double()
    order = torch.randperm(numel * boxes, generator=torch.Generator().manual_seed(seed))
    hot = Rows.one_hot(position, sign, shape, boxes)
    ragged = Rows.one_hot(position[order], sign[order], shape, boxes, box[order])
    found = []
    for rows, places in (
        (hot, slice(None)),
        (Rows.dense_rows(hot.dense(), boxes), slice(None)),
        (ragged, order.argsort()),
        (Rows.dense_rows(ragged.dense(), boxes, box[order]), order.argsort()),
    ):
        value = sweeps.sweep(context, context.schedule.final, context.schedule.duals[0], batch, bounds, rows, {})
        found.append(no_nan(value, -inf)[places])
    slack = 1e-9 * scale_per_box(case).repeat_interleave(numel)
    for other, name in zip(found[1:], ("dense", "ragged one-hot", "ragged dense"), strict=True):
        same = (other == found[0]) | ((other - found[0]).abs() <= slack)
        if not same.all():
            raise testing.LawBroken(f"{name} rows give {other.tolist()}, one-hot rows {found[0].tolist()}: {case.name}")


def states_of(context, bounds, i: int) -> tuple:
    node = context.graph.nodes[i]
    states = [bounds[j] if context.graph.varying[j] else None for j in node.inputs]
    return states, context.at(i), context.error_of(i)


def scale_per_box(case: testing.Case) -> torch.Tensor:
    """The largest magnitude of any node (and weight) per box, "B"; infinite where nothing is known."""
    context = run.prepare(make_schedule(case.graph, parse_recipe("interval")), testing.FLOAT64)
    with torch.no_grad():
        bounds = run.propagate(context, InputBatch(case.lower, case.upper))
    largest = torch.stack([b.magnitude().reshape(len(case.lower), -1).amax(1) for b in bounds.values()]).amax(0)
    weights = [float(t.abs().max()) for t in case.graph.params.values() if t.numel()]
    return largest.clamp(min=max([1.0, *weights]))


def check_float32(case: testing.Case, seed: int) -> None:
    """Uncharged float32 bounds are near sound ones: what steers a search must not be nonsense."""
    points = testing.sample(case.graph, case.lower, case.upper, count=4, steps=3, seed=seed)
    boxes, count, n = points.shape
    real = testing.enclose(case.graph, points.reshape(-1, n))
    low, high = (t.reshape(boxes, count, -1) for t in (real.lower, real.upper))
    slack = 1e-4 * scale_per_box(case)[:, None, None]
    for recipe in ("interval", "cap & crown-ibp"):
        found = testing.bounds_of(case.graph, case.lower, case.upper, recipe, testing.SEARCH)
        lower, upper = (t.double().reshape(boxes, 1, -1) for t in (found.lower, found.upper))
        demand(case, f"{recipe} in float32", "a bound is NaN", lower.isnan() | upper.isnan(), points, low, high, found)
        wrong = (lower - slack > high) | (upper + slack < low)
        demand(case, f"{recipe} in float32", "far from sound", wrong, points, low, high, found)


def check_finite_gradients(case: testing.Case) -> None:
    """Training goes through bounds: no NaN may come back, from degenerate boxes either."""
    ends = [t.clone().requires_grad_() for t in (case.lower, case.upper)]
    for recipe in ("crown-ibp", "cap"):
        context = run.prepare(make_schedule(case.graph, parse_recipe(recipe)), testing.FLOAT64)
        found = run.node_bounds(context, InputBatch(*ends))
        known = [t[t.isfinite()].sum() for t in (found.lower, found.upper)]
        total = known[0] + known[1]
        if total.requires_grad:
            for gradient in torch.autograd.grad(total, ends, allow_unused=True):
                if gradient is not None and gradient.isnan().any():
                    b, i = gradient.isnan().nonzero()[0].tolist()
                    box = f"{case.lower[b].tolist()} .. {case.upper[b].tolist()}"
                    raise testing.LawBroken(f"a gradient is NaN: {case.name}, {recipe}, input {i} of the box {box}")
