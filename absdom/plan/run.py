"""The run loop: forward stages, select points, sweeps. Eager, short, and easy to step through in a debugger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch

from absdom import registry
from absdom.arithmetic import PROOF, Arithmetic
from absdom.domain import Encoded, Forward, NodeBounds, Place, no_nan
from absdom.errors import Deadline
from absdom.ir.graph import Graph
from absdom.ir.op import At, Input, Param
from absdom.plan.context import Context
from absdom.plan.first_layer import over_balls
from absdom.plan.plan import Schedule, Tighten
from absdom.plan.programs import Found, solve
from absdom.plan.sweeps import NEVER, concretize, sweep
from absdom.rows import Rows
from absdom.sets import InputBatch
from absdom.types import Clock


def prepare(schedule: Schedule, arithmetic: Arithmetic, params: Mapping[str, torch.Tensor] | None = None) -> Context:
    """Evaluate the prologue. Charged runs evaluate it in intervals and keep the radius as each value's error.

    Where programs over encodings take part, the arithmetic is charged float64, whatever was asked for.
    """
    graph = schedule.graph
    if schedule.solves:
        arithmetic = replace(PROOF, device=arithmetic.device)
    params = graph.params if params is None else params
    values, errors, boxes = {}, {}, {}
    for i in schedule.prologue:
        node = graph.nodes[i]
        if isinstance(node.op, Param):
            values[i] = params[node.op.label].to(device=arithmetic.device, dtype=arithmetic.dtype)[None]
            boxes[i] = NodeBounds(values[i], values[i])
        elif arithmetic.charged:
            types, none = tuple(graph.nodes[j].type for j in node.inputs), (None,) * len(node.inputs)
            at, inputs = At(types, node.type, (True,) * len(types), none), tuple(boxes[j] for j in node.inputs)
            place = Place(node.op, at, inputs, None, {}, arithmetic, none, {})
            boxes[i] = transform(schedule.base, place, list(inputs))
            values[i] = (boxes[i].lower + boxes[i].upper) / 2
            error = torch.maximum(boxes[i].upper - values[i], values[i] - boxes[i].lower)
            errors[i] = error * (1 + 4 * arithmetic.unit) + arithmetic.tiny
        else:
            values[i] = node.op.eval(*(values[j] for j in node.inputs))
    return Context(schedule, arithmetic, values, errors)


def evaluate(context: Context, x: torch.Tensor) -> torch.Tensor:
    """The network itself: flat inputs "B n" -> the target's values "B *out"."""
    out = node_values(context, x, context.schedule.final.nodes[::-1])[context.schedule.target]
    return out.expand(x.shape[0], *out.shape[1:])


def node_values(context: Context, x: torch.Tensor, nodes: Iterable[int]) -> dict[int, torch.Tensor]:
    """The values "B *n" of `nodes` (in order, with all that they read) at flat inputs "B n"."""
    values = dict(context.values)
    values.update(split_inputs(context.graph, x))
    for i in nodes:
        if i not in values:
            values[i] = context.graph.nodes[i].op.eval(*(values[j] for j in context.graph.nodes[i].inputs))
    return values


def split_inputs(graph: Graph, flat: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """A flat "B n" tensor as one "B *n" tensor per input node, in the graph's order."""
    sizes = [graph.nodes[i].type.numel for i in graph.inputs]
    parts = flat.split(sizes, dim=1)
    return [(i, p.reshape(-1, *graph.nodes[i].type.shape)) for i, p in zip(graph.inputs, parts, strict=True)]


def propagate(
    context: Context, batch: InputBatch, clock: Clock = NEVER, final: dict[Forward, object] | None = None
) -> dict[int, NodeBounds]:
    """Bounds of every varying node over the boxes of `batch`, each relying only on earlier ones of this run.

    `final`, if given, receives the target's state in each forward domain but the interval one.
    """
    schedule, graph = context.schedule, context.graph
    bounds: dict[int, NodeBounds] = {}
    states: dict[tuple[Forward, int], object] = {}
    types = [graph.nodes[i].type for i in graph.inputs]
    for domain in schedule.reach:
        lifted = zip(graph.inputs, domain.lift(batch, types, context.arithmetic), strict=True)
        states.update({(domain, i): state for i, state in lifted})
    relaxations: dict = {}
    step = 0
    for stage in schedule.stages:
        if isinstance(stage, Tighten):
            start = stage.sweep.start
            states[schedule.base, start] = bounds[start] = tighten(context, stage, batch, bounds, relaxations, clock)
            continue
        for i in stage.nodes:
            if clock.passed():
                raise Deadline("the deadline passed while bounds were propagated")
            known = bounds.get(i)
            for domain, nodes in schedule.reach.items():
                if i not in nodes:
                    continue
                if not isinstance(graph.nodes[i].op, Input):
                    inputs = [states.get((domain, j)) for j in graph.nodes[i].inputs]
                    states[domain, i] = transform(domain, context.place(i, bounds), inputs)
                found = domain.concretize(states[domain, i], context.arithmetic)
                if domain != schedule.base:
                    if found is not bounds[i]:  # a domain that knows no more gives back what it was asked about
                        bounds[i] = bounds[i].meet(found, domain.name)
                else:
                    bounds[i] = found.without_nan() if context.arithmetic.guarded else found
            if known is not None:
                bounds[i] = bounds[i].meet(known, known.provenance)
            states[schedule.base, i] = bounds[i]
            for key in [key for key in states if schedule.last_use.get(key[1]) == step]:
                del states[key]
            step += 1
    if final is not None:
        final.update({d: s for (d, i), s in states.items() if i == schedule.target and d != schedule.base})
    return bounds


def transform(domain: Forward, place: Place, states: list):
    """The state behind an op: by a rule of the domain, or made anew from what is known of the op's output."""
    rule, _ = registry.find_rule(type(domain), type(place.op))
    return domain.from_bounds(place.output, place) if rule is None else rule(place, states)


def tighten(context, stage: Tighten, batch, bounds, relaxations, clock) -> NodeBounds:
    """Select, then sweep: rows +e_i and -e_i for the neurons that some reader cannot treat exactly."""
    start = stage.sweep.start
    own = bounds[start]
    if not stage.needed(batch.parts):
        return own
    if stage.exact_on_boxes and (whole := over_balls(context, start, batch, clock, propagate)) is not None:
        own = own.meet(whole, "balls")
        if not batch.ball.clipped:
            return own
        bounds = {**bounds, start: own}
    box, position = select(context, stage, bounds)
    if len(position) == 0:
        return own
    boxes, numel = batch.lower.shape[0], own.lower[0].numel()
    rows_box, rows_position, spare = _grouped(box, position, boxes)
    sign = torch.ones(len(rows_position), dtype=own.lower.dtype, device=own.lower.device)
    place = None if rows_box is None else torch.cat([rows_box, rows_box])
    if rows_box is None:  # box-major: lower and upper rows of one box side by side
        per_box = len(rows_position) // boxes
        flat = torch.arange(boxes, device=box.device).repeat_interleave(per_box) * numel + rows_position
        both = rows_position.reshape(boxes, 1, per_box).expand(boxes, 2, per_box).flatten()
        signs = torch.stack([sign, -sign]).reshape(2, boxes, per_box).transpose(0, 1).flatten()
    else:
        flat, both, signs = rows_box * numel + rows_position, rows_position.repeat(2), torch.cat([sign, -sign])
    rows = Rows.one_hot(both, signs, context.graph.nodes[start].type.shape, boxes, place)
    for recipe in (*stage.duals, *stage.encoded):
        if isinstance(recipe, Encoded):
            known = {**bounds, start: own}
            found = solve(context, recipe, stage.sweep, batch, known, rows, np.zeros(rows.count), clock)
            value = torch.from_numpy(found.lower).to(own.lower)
        else:
            value = sweep(context, stage.sweep, recipe, batch, bounds, rows, relaxations, clock=clock)
        value = value.reshape(boxes, 2, -1).transpose(0, 1).flatten() if rows_box is None else value
        ends = value.reshape(2, -1)
        if spare is not None:  # a neuron's gradient comes through one of its rows
            ends = torch.where(spare, ends.detach(), ends)
        lower = own.lower.flatten().scatter(0, flat, ends[0]).reshape(own.lower.shape)
        upper = own.upper.flatten().scatter(0, flat, -ends[1]).reshape(own.upper.shape)
        own = own.meet(NodeBounds(lower, upper), recipe.name)
    return own


def _grouped(
    box: torch.Tensor, position: torch.Tensor, boxes: int
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
    """Selected neurons in groups of equal size per box (box None), where filling up costs little; else as they are.

    A group is filled up with repeats of its own first neuron: broadcasting over boxes is far cheaper than gathering.
    The last part says which ones are repeats; None: there are none.
    """
    count = torch.bincount(box, minlength=boxes)
    size = int(count.max())
    if boxes == 1 or size * boxes > 2 * len(position) + 64:
        return box, position, None
    slot = torch.arange(len(position), device=box.device) - (count.cumsum(0) - count)[box]
    table = position.new_full((boxes, size), -1)
    table[box, slot] = position
    spare = table < 0
    filled = torch.where(spare, table[:, :1].clamp(min=0), table)
    spare[:, 0] = False  # of a box without any, the first one stands for itself
    return None, filled.flatten(), spare.flatten()


def select(context: Context, stage: Tighten, bounds) -> tuple[torch.Tensor, torch.Tensor]:
    """(box, position) of the neurons to tighten: a Select point, where shapes depend on data."""
    graph = context.graph
    wanted = torch.zeros_like(bounds[stage.sweep.start].lower)
    for reader, position, path in stage.readers:
        read = bounds[graph.nodes[reader].inputs[position]]
        op = graph.nodes[reader].op
        mask = (~op.is_exact(read.lower, read.upper)).to(wanted.dtype)
        for move in reversed(path):
            mask = graph.nodes[move].op.transpose(mask, context.at(move), 0)
        wanted = wanted + mask
    box, position = torch.nonzero(wanted.reshape(len(wanted), -1), as_tuple=True)
    return box, position


def node_bounds(context: Context, batch: InputBatch) -> NodeBounds:
    """Bounds of every element of the schedule's target: the forward bounds met with a sweep of +-e_i for all i."""
    bounds = propagate(context, batch)
    schedule, own = context.schedule, bounds[context.schedule.target]
    boxes, numel = own.lower.shape[0], own.lower[0].numel()
    position = torch.arange(numel, device=own.lower.device).repeat(boxes)
    box = torch.arange(boxes, device=own.lower.device).repeat_interleave(numel)
    sign = torch.ones(len(position), dtype=own.lower.dtype, device=own.lower.device)
    for recipe in (*schedule.duals, *schedule.encoded):
        ends = []
        for s in (1, -1):
            rows = Rows.one_hot(position, s * sign, own.lower.shape[1:], boxes, box)
            if isinstance(recipe, Encoded):
                found = solve(context, recipe, schedule.final, batch, bounds, rows, np.zeros(rows.count), NEVER)
                ends.append(torch.from_numpy(found.lower).to(own.lower))
            else:
                ends.append(sweep(context, schedule.final, recipe, batch, bounds, rows))
        found = NodeBounds(ends[0].reshape(own.lower.shape), -ends[1].reshape(own.lower.shape))
        own = own.meet(found, recipe.name)
    return own


def row_bounds(
    context: Context,
    batch: InputBatch,
    bounds,
    rows: Rows,
    d: torch.Tensor,
    relaxations=None,
    clock: Clock = NEVER,
    states: Mapping[Forward, object] | None = None,
    points: dict[int, np.ndarray] | None = None,
    found: Found | None = None,
    **more,
) -> torch.Tensor:
    """Lower bounds "R" of c.v + d at the target: the best of the intervals, of the forward domains' `states` at the
    target, and of each final dual.

    The intervals are those in front of the last affine ops, which are merged into the rows (Gowal et al. 2018).

    With a `trace` (and one dual) the value is that of the traced plane alone. `points`, if given, receives per row the
    flat input where a program found the row lowest; `found` is asked about such points, as by `solve`.
    """
    schedule, arithmetic = context.schedule, context.arithmetic
    target = bounds[schedule.target]
    best = sweep(context, schedule.final, None, batch, bounds, rows, relaxations, clock=clock)
    if arithmetic.guarded:
        best = no_nan(best, -torch.inf)
    for domain, state in (states or {}).items():
        value = domain.bound_rows(state, rows, arithmetic)
        value = concretize(rows, target, arithmetic) if value is None else value
        best = torch.maximum(best, no_nan(value, -torch.inf))
    for recipe in schedule.duals:
        value = sweep(context, schedule.final, recipe, batch, bounds, rows, relaxations, clock=clock, **more)
        best = value if more.get("trace") is not None else torch.maximum(best, no_nan(value, -torch.inf))
    for recipe in schedule.encoded:
        lower = _by_program(context, recipe, batch, bounds, rows, d, best, clock, points, found, more.get("goal"))
        best = torch.maximum(best, lower)
    if arithmetic.charged:
        best = best - misread(rows, d, target, arithmetic) - best.abs() * arithmetic.gamma(2)  # the sum rounds
    return best + d


def misread(rows: Rows, d: torch.Tensor, target: NodeBounds, arithmetic: Arithmetic) -> torch.Tensor:
    """How much of c.v + d can have been lost where the coefficients and d were read and rounded: "R"."""
    size = target.magnitude()
    endless = size.isinf()
    known = rows.abs_dot(size.masked_fill(endless, 0)) + d.abs()
    lost = rows.abs_dot(endless.to(size.dtype)) > 0  # elsewhere 0 times infinity is 0
    return (known * arithmetic.gamma(2)).masked_fill(lost, torch.inf)


def _by_program(context, recipe, batch, bounds, rows: Rows, d, best, clock, points, found, goal) -> torch.Tensor:
    """Bounds "R" by a program, of the rows that are not yet at their goal; -inf for the others."""
    left = torch.ones_like(best, dtype=torch.bool) if goal is None else ~(best > goal)
    chosen, out = torch.nonzero(left)[:, 0], torch.full_like(best, -torch.inf)
    if not len(chosen):
        return out
    chosen = chosen[(best + d)[chosen].argsort(stable=True)]  # a counterexample is most likely where least is known
    box = rows.per_row(torch.arange(rows.boxes, device=best.device))[chosen]
    open_rows = Rows.dense_rows(rows.dense()[chosen], rows.boxes, box)
    answer = solve(
        context, recipe, context.schedule.final, batch, bounds, open_rows, np.zeros(len(chosen)), clock,
        goal=None if goal is None else goal[chosen].cpu().numpy(), found=found,
    )  # fmt: skip
    if points is not None:
        points.update((r, p) for r, p in zip(chosen.tolist(), answer.points) if not np.isnan(p).any())
    out[chosen] = torch.from_numpy(answer.lower).to(best)
    return out
