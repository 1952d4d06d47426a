"""Sweeps: rows go back from a node to the inputs, and their bound is summed up. Eager, and easy to step through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from absdom import registry
from absdom.arithmetic import Arithmetic
from absdom.constraints import Constraints, SplitConstraint
from absdom.domain import AffineDual, Dual, KnobStart, LayerDual, NodeBounds, Tuned, rules_of
from absdom.errors import Deadline, GraphError
from absdom.ir.graph import Graph
from absdom.ir.op import Affine, Input
from absdom.plan import memory
from absdom.plan.context import Context
from absdom.plan.plan import Sweep
from absdom.rows import Rows
from absdom.sets import InputBatch
from absdom.types import Clock

NEVER = Clock()
AFFINE = AffineDual()


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
    goal: torch.Tensor | None = None,
) -> torch.Tensor:
    """Lower bounds "R" of <row, z> at the plan's start over each row's box, in chunks of bounded size.

    Recipe None: rows pass affine ops only and end at the intervals of the others. `relaxations` caches what depends on
    bounds only. `trace`, if given, receives the rows at each node. `goal` "R": values above it are of no more use.
    """
    relaxations = {} if relaxations is None else relaxations
    for constraint, _ in constraints.items:
        outside = set(constraint.terms) - set(plan.nodes)
        if outside and not isinstance(constraint, SplitConstraint):  # its constant would count without its terms
            raise GraphError(
                f"a constraint names the nodes {sorted(outside)}, which a sweep from node {plan.start} does not pass: "
                "start the sweep at the latest node named"
            )
    tuned = isinstance(recipe, Tuned) and trace is None and not constraints.items
    owner = None if recipe is None else rules_of(recipe)
    itemsize, device = context.arithmetic.dtype.itemsize, context.arithmetic.device
    passed = plan.nodes if owner is not None else _affine_front(context.graph, plan)
    size = (memory.taped_rows if tuned else memory.chunk_rows)(context.graph, passed, itemsize, device)
    whole = (context, plan, owner, batch, bounds)
    if not tuned and (rows.count <= size or constraints.items or trace is not None):
        return _sweep_chunk(*whole, rows, relaxations, constraints, knobs or {}, trace)
    parts = []
    for start in range(0, rows.count, size):
        if clock.passed():
            raise Deadline("the deadline passed during a backward sweep")
        part = rows if rows.count <= size else rows.slice(start, start + size)
        if tuned:
            aim = None if goal is None else goal[start : start + size]
            parts.append(_tuned_chunk(context, plan, recipe, batch, bounds, part, aim, clock))
        else:
            parts.append(_sweep_chunk(*whole, part, relaxations, constraints, knobs or {}, None))
    return torch.cat(parts)


def _affine_front(graph: Graph, plan: Sweep) -> tuple[int, ...]:
    """The nodes that rows pass when they stop at the first ops that are not affine, and those where they stop."""
    reached = {plan.start}
    for i in plan.nodes:
        if i in reached and isinstance(graph.nodes[i].op, Affine):
            reached.update(graph.nodes[i].inputs)
    return tuple(i for i in plan.nodes if i in reached)


def _tuned_chunk(context, plan, recipe: Tuned, batch, bounds, rows: Rows, goal, clock) -> torch.Tensor:
    """A sweep with the knobs that `recipe` finds: searched uncharged, swept once more if the run is charged."""
    alone = rows.box is None and rows.boxes == rows.count  # each row has a box of its own, in this order
    if recipe.share == "rows" and not alone:
        box = rows.per_row(torch.arange(rows.boxes, device=batch.lower.device))
        batch, bounds = batch.select(box), {i: bounds[i].select(box) for i in plan.nodes}
        rows, alone = replace(rows, boxes=rows.count, box=None), True
    group = None if alone else rows.per_row(torch.arange(rows.boxes, device=batch.lower.device))
    search = context.uncharged()
    plain, still = {i: bounds[i].detach() for i in plan.nodes}, rows.detach()
    starts = knob_starts(search, plan, recipe.of, plain)

    def bound(knobs: Mapping[tuple[int, str], torch.Tensor], context=search, bounds=plain, rows=still) -> torch.Tensor:
        found: dict[int, dict[str, torch.Tensor]] = {}
        for (i, name), value in knobs.items():
            found.setdefault(i, {})[name] = value
        return _sweep_chunk(context, plan, recipe.of, batch, bounds, rows, {}, Constraints(), found, None)

    def of_groups(knobs) -> torch.Tensor:
        value = bound(knobs)
        return value if group is None else value.new_zeros(rows.boxes).index_add(0, group, value)

    aim = goal if group is None else None
    return bound(recipe.tune(of_groups, starts, aim, clock), context, bounds, rows)


def knob_starts(context: Context, plan: Sweep, recipe: Dual, bounds) -> dict[tuple[int, str], KnobStart]:
    """The free parameters of all relaxations that a sweep of `recipe` passes, by node and name."""
    return {
        (i, name): start
        for i in plan.nodes
        if not isinstance(context.graph.nodes[i].op, Input)
        for name, start in _dual(recipe, context.graph.nodes[i].op).knobs(context.place(i, bounds), recipe).items()
    }


def _dual(recipe: Dual | None, op) -> LayerDual:
    return AFFINE if recipe is None else registry.find_rule(type(recipe), type(op))[0]


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
        place = context.place(i, bounds, knobs.get(i, {}))
        if recipe is None and not isinstance(place.op, Affine):
            terms.append(concretize(nu, bounds[i], arithmetic))
            continue
        dual = _dual(recipe, place.op)
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
    if at_inputs or batch.parts or not terms:  # rows that all ended at intervals in a box need no support function
        terms.append(_support(graph, batch, at_inputs, rows, arithmetic))
    total = sum(terms[1:], terms[0])
    if arithmetic.charged:
        total = total - sum(t.abs() for t in terms) * arithmetic.gamma(len(terms)) - arithmetic.tiny
    return total


def concretize(nu: Rows, bounds: NodeBounds, arithmetic: Arithmetic) -> torch.Tensor:
    """A lower bound of <nu, z> over the node's own interval."""
    if not arithmetic.charged:
        return nu.lowest(bounds.lower, bounds.upper)
    value = nu.dot_signed(bounds.lower, bounds.upper)
    return value - nu.abs_dot(bounds.magnitude()) * arithmetic.gamma(bounds.lower[0].numel())


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
    recipe = rules_of(context.schedule.duals[0])
    pending: dict[int, Rows] = {plan.start: rows._with(rows.dense().abs())}
    for i in plan.nodes:
        nu = pending.get(i)
        if nu is None or isinstance(graph.nodes[i].op, Input):
            continue
        place = context.place(i, bounds)
        if isinstance(place.op, Affine):
            at = place.at._replace(params=tuple(None if p is None else p.abs() for p in place.at.params))
            place = place._replace(at=at, output=replace(place.output, noise=None))
            parts = tuple(nu._with(nu.pull(place.op, at, k).dense().abs()) for k, v in enumerate(at.varying) if v)
        else:
            dual = _dual(recipe, place.op)
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
