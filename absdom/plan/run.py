"""The run loop: forward stages, select points, sweeps. Eager, short, and easy to step through in a debugger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from absdom import registry
from absdom.arithmetic import Arithmetic
from absdom.domain import AffineDual, Constraints, Dual, InputBatch, NodeBounds, Place, SplitConstraint, no_nan
from absdom.errors import Deadline, GraphError
from absdom.ir.graph import Graph
from absdom.ir.op import Affine, At, Input, Param
from absdom.plan import memory
from absdom.plan.plan import Schedule, Sweep, Tighten
from absdom.rows import Rows
from absdom.types import Clock

NEVER = Clock()
AFFINE = AffineDual()


@dataclass(eq=False)
class Context:
    """A schedule made ready for one arithmetic: the prologue's values "1 *n", and each op's place in the graph.

    With frozen weights it is made once and used for every batch of boxes; with live weights, once per step.
    """

    schedule: Schedule
    arithmetic: Arithmetic
    values: dict[int, torch.Tensor]
    errors: dict[int, torch.Tensor]
    _at: dict[int, At] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        return self.schedule.graph

    def at(self, i: int) -> At:
        if i not in self._at:
            node = self.graph.nodes[i]
            types = tuple(self.graph.nodes[j].type for j in node.inputs)
            varying = tuple(self.graph.varying[j] for j in node.inputs)
            params = tuple(None if v else self.values[j] for j, v in zip(node.inputs, varying, strict=True))
            self._at[i] = At(types, node.type, varying, params)
        return self._at[i]

    def error_of(self, i: int) -> tuple:
        return tuple(self.errors.get(j) for j in self.graph.nodes[i].inputs)


def prepare(schedule: Schedule, arithmetic: Arithmetic, params: Mapping[str, torch.Tensor] | None = None) -> Context:
    """Evaluate the prologue. Charged runs evaluate it in intervals and keep the radius as each value's error."""
    graph = schedule.graph
    params = graph.params if params is None else params
    values, errors, boxes = {}, {}, {}
    for i in schedule.prologue:
        node = graph.nodes[i]
        if isinstance(node.op, Param):
            values[i] = params[node.op.label].to(device=arithmetic.device, dtype=arithmetic.dtype)[None]
            boxes[i] = NodeBounds(values[i], values[i])
        elif arithmetic.charged:
            types = tuple(graph.nodes[j].type for j in node.inputs)
            at = At(types, node.type, (True,) * len(types), (None,) * len(types))
            rule, _ = registry.find_rule(type(schedule.forwards[0]), type(node.op))
            boxes[i] = rule(node.op, at, [boxes[j] for j in node.inputs], (None,) * len(types), arithmetic)
            values[i] = (boxes[i].lower + boxes[i].upper) / 2
            error = torch.maximum(boxes[i].upper - values[i], values[i] - boxes[i].lower)
            errors[i] = error * (1 + 4 * arithmetic.unit) + arithmetic.tiny
        else:
            values[i] = node.op.eval(*(values[j] for j in node.inputs))
    return Context(schedule, arithmetic, values, errors)


def evaluate(context: Context, x: torch.Tensor) -> torch.Tensor:
    """The network itself: flat inputs "B n" -> the target's values "B *out"."""
    values = dict(context.values)
    graph = context.graph
    for node, part in split_inputs(graph, x):
        values[node] = part
    for i in context.schedule.final.nodes[::-1]:
        if i not in values:
            values[i] = graph.nodes[i].op.eval(*(values[j] for j in graph.nodes[i].inputs))
    out = values[context.schedule.target]
    return out.expand(x.shape[0], *out.shape[1:])


def split_inputs(graph: Graph, flat: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """A flat "B n" tensor as one "B *n" tensor per input node, in the graph's order."""
    sizes = [graph.nodes[i].type.numel for i in graph.inputs]
    parts = flat.split(sizes, dim=1)
    return [(i, p.reshape(-1, *graph.nodes[i].type.shape)) for i, p in zip(graph.inputs, parts, strict=True)]


def propagate(context: Context, batch: InputBatch, clock: Clock = NEVER) -> dict[int, NodeBounds]:
    """Bounds of every varying node over the boxes of `batch`, each relying only on earlier ones of this run."""
    schedule, arithmetic = context.schedule, context.arithmetic
    bounds: dict[int, NodeBounds] = {}
    states: dict[tuple[int, int], object] = {}  # (forward domain, node), domains other than the interval
    relaxations: dict = {}
    lowers, uppers = dict(split_inputs(context.graph, batch.lower)), dict(split_inputs(context.graph, batch.upper))
    for stage in schedule.stages:
        if isinstance(stage, Tighten):
            bounds[stage.sweep.start] = tighten(context, stage, batch, bounds, relaxations, clock)
            continue
        for i in stage.nodes:
            if clock.passed():
                raise Deadline("the deadline passed while bounds were propagated")
            known = bounds.get(i)
            if isinstance(context.graph.nodes[i].op, Input):
                bounds[i] = NodeBounds(lowers[i], uppers[i])
            else:
                made = _forward(context, i, 0, bounds)
                bounds[i] = replace(made, lower=no_nan(made.lower, -torch.inf), upper=no_nan(made.upper, torch.inf))
            for k, domain in enumerate(schedule.forwards[1:], 1):
                if isinstance(context.graph.nodes[i].op, Input):
                    states[k, i] = domain.lift(lowers[i], uppers[i], arithmetic)
                else:
                    states[k, i] = _forward(
                        context, i, k, {j: states.get((k, j)) for j in context.graph.nodes[i].inputs}
                    )
                found = domain.concretize(states[k, i], arithmetic)
                bounds[i] = bounds[i].meet(found.lower, found.upper, domain.name)
            if known is not None:
                bounds[i] = bounds[i].meet(known.lower, known.upper, known.provenance)
    return bounds


def _forward(context: Context, i: int, domain: int, states):
    graph, node = context.graph, context.graph.nodes[i]
    rule, _ = registry.find_rule(type(context.schedule.forwards[domain]), type(node.op))
    inputs = [states[j] if graph.varying[j] else None for j in node.inputs]
    return rule(node.op, context.at(i), inputs, context.error_of(i), context.arithmetic)


def tighten(context, stage: Tighten, batch, bounds, relaxations, clock) -> NodeBounds:
    """Select, then sweep: rows +e_i and -e_i for the neurons that some reader cannot treat exactly."""
    start = stage.sweep.start
    own = bounds[start]
    box, position = select(context, stage, bounds)
    if len(position) == 0:
        return own
    boxes, numel = batch.lower.shape[0], own.lower[0].numel()
    rows_box, rows_position = _grouped(box, position, boxes)
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
    for recipe in context.schedule.inner:
        value = sweep(context, stage.sweep, recipe, batch, bounds, rows, relaxations, clock=clock)
        value = value.reshape(boxes, 2, -1).transpose(0, 1).flatten() if rows_box is None else value
        ends = value.reshape(2, -1)
        lower = own.lower.flatten().scatter(0, flat, ends[0]).reshape(own.lower.shape)
        upper = own.upper.flatten().scatter(0, flat, -ends[1]).reshape(own.upper.shape)
        own = own.meet(lower, upper, recipe.name)
    return own


def _grouped(box: torch.Tensor, position: torch.Tensor, boxes: int) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Selected neurons in groups of equal size per box (box None), where filling up costs little; else as they are.

    A group is filled up with repeats of its own first neuron: broadcasting over boxes is far cheaper than gathering.
    """
    count = torch.bincount(box, minlength=boxes)
    size = int(count.max())
    if boxes == 1 or size * boxes > 2 * len(position) + 64:
        return box, position
    slot = torch.arange(len(position), device=box.device) - (count.cumsum(0) - count)[box]
    table = position.new_full((boxes, size), -1)
    table[box, slot] = position
    return None, torch.where(table < 0, table[:, :1].clamp(min=0), table).flatten()


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


def sweep(
    context: Context,
    plan: Sweep,
    recipe: Dual | None,
    batch: InputBatch,
    bounds: Mapping[int, NodeBounds],
    rows: Rows,
    relaxations: dict | None = None,
    constraints: Constraints = Constraints(),
    knobs: Mapping[int, Mapping[str, torch.Tensor]] | None = None,
    trace: dict | None = None,
    clock: Clock = NEVER,
) -> torch.Tensor:
    """Lower bounds "R" of <row, z> at the plan's start over each row's box, in chunks of bounded size.

    Recipe None: rows pass affine ops only and end at the intervals of the others. `relaxations` caches what depends on
    bounds only. `trace`, if given, receives the rows at each node.
    """
    relaxations = {} if relaxations is None else relaxations
    for constraint, _ in constraints.items:
        outside = set(constraint.terms) - set(plan.nodes)
        if outside and not isinstance(constraint, SplitConstraint):  # its constant would count without its terms
            raise GraphError(
                f"a constraint names the nodes {sorted(outside)}, which a sweep from node {plan.start} does not pass: "
                "start the sweep at the latest node named"
            )
    size = memory.chunk_rows(context.graph, plan.nodes, context.arithmetic.dtype.itemsize, context.arithmetic.device)
    whole = (context, plan, recipe, batch, bounds)
    if rows.count <= size or constraints.items or trace is not None:
        return _sweep_chunk(*whole, rows, relaxations, constraints, knobs or {}, trace)
    parts = []
    for start in range(0, rows.count, size):
        if clock.passed():
            raise Deadline("the deadline passed during a backward sweep")
        parts.append(_sweep_chunk(*whole, rows.slice(start, start + size), relaxations, constraints, knobs or {}, None))
    return torch.cat(parts)


def _sweep_chunk(context, plan, recipe, batch, bounds, rows, relaxations, constraints, knobs, trace):
    graph, arithmetic = context.graph, context.arithmetic
    pending: dict[int, Rows] = {plan.start: rows}
    terms: list[torch.Tensor] = []
    at_inputs: dict[int, Rows] = {}
    for i in plan.nodes:
        nu = pending.pop(i, None)
        if i in constraints.nodes:
            nu = _inject(context, i, nu, rows, constraints, bounds, terms)
        if nu is None:
            continue
        if trace is not None:
            trace[i] = nu
        if isinstance(graph.nodes[i].op, Input):
            at_inputs[i] = nu
            continue
        place = _place(context, i, bounds, knobs.get(i, {}))
        if recipe is None and not isinstance(place.op, Affine):
            terms.append(_concretize(nu, bounds[i], arithmetic))
            continue
        dual = AFFINE if recipe is None else registry.find_rule(type(recipe), type(place.op))[0]
        key = (recipe, i)
        if key not in relaxations:
            relaxations[key] = dual.relax(place, recipe)
        parts, term = dual.pull(nu, place, relaxations[key])
        if term is not None:
            terms.append(term)
        for position, part in zip(graph.varying_inputs(i), parts, strict=True):
            if part is None:
                continue
            j = graph.nodes[i].inputs[position]
            if j in pending:
                part = pending[j] + part
                if arithmetic.charged:  # each addition of rows rounds
                    terms.append(-part.abs_dot(bounds[j].magnitude()) * arithmetic.gamma(1))
            pending[j] = part
    for constraint, multiplier in constraints.items:
        constant = constraint.constant(rows, multiplier)
        if constant is not None:
            terms.append(constant)
            if arithmetic.charged:
                terms.append(-constraint.constant_size(rows, multiplier) * arithmetic.gamma(constraint.count + 4))
    terms.append(_support(graph, batch, at_inputs, rows, arithmetic))
    total = sum(terms[1:], terms[0])
    if arithmetic.charged:
        total = total - sum(t.abs() for t in terms) * arithmetic.gamma(len(terms)) - arithmetic.tiny
    return total


def _concretize(nu: Rows, bounds: NodeBounds, arithmetic: Arithmetic) -> torch.Tensor:
    """A lower bound of <nu, z> over the node's own interval."""
    value = nu.dot_signed(bounds.lower, bounds.upper)
    if arithmetic.charged:
        value = value - nu.abs_dot(bounds.magnitude()) * arithmetic.gamma(bounds.lower[0].numel())
    return value


def _place(context: Context, i: int, bounds, knobs) -> Place:
    graph = context.graph
    inputs = tuple(bounds[j] if graph.varying[j] else None for j in graph.nodes[i].inputs)
    return Place(graph.nodes[i].op, context.at(i), inputs, bounds[i], knobs, context.arithmetic, context.error_of(i))


def _inject(context, i, nu, rows, constraints, bounds, terms):
    """Add multiplier x coefficients of the constraints on node i, now that all its consumers are summed."""
    if nu is None:
        shape = context.graph.nodes[i].type.shape
        zero = torch.zeros((rows.count, *shape), dtype=context.arithmetic.dtype, device=context.arithmetic.device)
        nu = replace(rows, shape=tuple(shape), dense_data=zero, position=None, sign=None)
    for constraint, multiplier in constraints.items:
        if i in constraint.terms:
            before = nu
            nu = constraint.inject(i, nu, multiplier)
            if context.arithmetic.charged:
                # The products that are summed, not their sum: constraints may cancel.
                added = constraint.inject_size(i, before._with(before.dense().abs()), multiplier)
                weight = added.abs_dot(bounds[i].magnitude())
                terms.append(-weight * context.arithmetic.gamma(constraint.count + 4))
    return nu


def input_slopes(graph: Graph, at_inputs: Mapping[int, Rows], rows: Rows) -> torch.Tensor:
    """The rows at the network inputs, flat and side by side, "R n"; zero where none arrived."""
    parts = [
        at_inputs[i].dense().reshape(rows.count, -1)
        if i in at_inputs
        else rows.dense().new_zeros((rows.count, graph.nodes[i].type.numel))
        for i in graph.inputs
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _support(graph: Graph, batch: InputBatch, at_inputs, rows: Rows, arithmetic) -> torch.Tensor:
    flat = input_slopes(graph, at_inputs, rows)
    nu = replace(rows, shape=(flat.shape[1],), dense_data=flat, position=None, sign=None)
    return batch.support(nu, arithmetic)


def sensitivity(context: Context, bounds, rows: Rows, relaxations: Mapping) -> torch.Tensor:
    """How strongly each row can depend on each input, "R n": |W|^T through affine ops, the steeper line elsewhere.

    A heuristic for branching (the smear of Wang et al. 2018, ReluVal), taken from the final sweep's relaxations.
    """
    graph, plan = context.graph, context.schedule.final
    recipe = context.schedule.duals[0]
    pending: dict[int, Rows] = {plan.start: rows._with(rows.dense().abs())}
    for i in plan.nodes:
        nu = pending.get(i)
        if nu is None or isinstance(graph.nodes[i].op, Input):
            continue
        place = _place(context, i, bounds, {})
        if isinstance(place.op, Affine):
            at = place.at._replace(params=tuple(None if p is None else p.abs() for p in place.at.params))
            place = place._replace(at=at, output=replace(place.output, noise=None))
            parts = tuple(nu._with(nu.pull(place.op, at, k).dense().abs()) for k, v in enumerate(at.varying) if v)
        else:
            dual, _ = registry.find_rule(type(recipe), type(place.op))
            up, _ = dual.pull(nu, place, relaxations[recipe, i])
            down, _ = dual.pull(nu._with(-nu.dense()), place, relaxations[recipe, i])
            parts = tuple(
                None if a is None else a._with(torch.maximum(a.dense().abs(), b.dense().abs()))
                for a, b in zip(up, down)
            )
        for position, part in zip(graph.varying_inputs(i), parts, strict=True):
            if part is not None:
                j = graph.nodes[i].inputs[position]
                pending[j] = pending[j] + part if j in pending else part
    return input_slopes(graph, pending, rows)


def node_bounds(context: Context, batch: InputBatch) -> NodeBounds:
    """Bounds of every element of the schedule's target: the forward bounds met with a sweep of +-e_i for all i."""
    bounds = propagate(context, batch)
    schedule, own = context.schedule, bounds[context.schedule.target]
    boxes, numel = own.lower.shape[0], own.lower[0].numel()
    position = torch.arange(numel, device=own.lower.device).repeat(boxes)
    box = torch.arange(boxes, device=own.lower.device).repeat_interleave(numel)
    sign = torch.ones(len(position), dtype=own.lower.dtype, device=own.lower.device)
    for recipe in schedule.duals:
        ends = [
            sweep(context, schedule.final, recipe, batch, bounds,
                  Rows.one_hot(position, s * sign, own.lower.shape[1:], boxes, box))
            for s in (1, -1)
        ]  # fmt: skip
        own = own.meet(ends[0].reshape(own.lower.shape), -ends[1].reshape(own.lower.shape), recipe.name)
    return own


def row_bounds(
    context: Context,
    batch: InputBatch,
    bounds,
    rows: Rows,
    d: torch.Tensor,
    relaxations=None,
    clock: Clock = NEVER,
    **more,
) -> torch.Tensor:
    """Lower bounds "R" of c.v + d at the target: the best of the intervals and of each final dual.

    The intervals are those in front of the last affine ops, which are merged into the rows (Gowal et al. 2018).

    With a `trace` (and one dual) the value is that of the traced plane alone.
    """
    schedule, arithmetic = context.schedule, context.arithmetic
    target = bounds[schedule.target]
    best = no_nan(sweep(context, schedule.final, None, batch, bounds, rows, relaxations, clock=clock), -torch.inf)
    for recipe in schedule.duals:
        found = sweep(context, schedule.final, recipe, batch, bounds, rows, relaxations, clock=clock, **more)
        best = found if more.get("trace") is not None else torch.maximum(best, no_nan(found, -torch.inf))
    if arithmetic.charged:
        # The coefficients and d were rounded when they were read, and the sum rounds.
        best = (
            best - rows.abs_dot(target.magnitude()) * arithmetic.gamma(2) - (best.abs() + d.abs()) * arithmetic.gamma(2)
        )
    return best + d
