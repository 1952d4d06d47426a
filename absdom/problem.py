"""A verification problem as a value, and the bounding of its rows. Stages close clauses and shrink bounds only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch

from absdom import registry
from absdom.arithmetic import PROOF, SEARCH, Arithmetic
from absdom.domain import Encoded, Meet, Recipe, Strategy, total_failure
from absdom.encoding import Encoding, Objective
from absdom.errors import Deadline, PropertyError, UnsupportedOp
from absdom.ir.graph import Builder, Graph
from absdom.ops.affine import Add, Mul
from absdom.ops.functions import Power
from absdom.ops.shape import Concat, Reshape, Take
from absdom.passes import lower
from absdom.plan import cost, memory, run, sweeps
from absdom.plan.context import Context
from absdom.plan.planner import make_schedule
from absdom.plan.programs import Found, encoder_within_budget, solve
from absdom.plan.report import Report
from absdom.plan.sweeps import NEVER
from absdom.property import Property
from absdom.rows import Rows
from absdom.sets import InputBatch
from absdom.types import Clock

LADDER = ("alpha-crown", "crown", "zonotope", "crown-ibp", "ibp")  # what `auto` chooses from: precise to cheap


def attach_vector(graph: Graph, on_inputs: bool, products: Sequence[tuple[int, ...]] = ()) -> Graph:
    """The graph with one output, the vector of a property: all outputs flat, side by side; behind them the products of
    elements of outputs and inputs (places there), and the inputs, if rows mention them."""
    builder = Builder()
    new = {i: builder.copy(node, node.inputs, graph.params) for i, node in enumerate(graph.nodes)}
    outputs, inputs = (
        [builder.add(Reshape((builder.type(new[i]).numel,)), new[i]) for i in group]
        for group in (graph.outputs, graph.inputs if on_inputs or products else ())
    )
    parts = list(outputs)
    if products:
        parts.append(_products(builder, _side_by_side(builder, [*outputs, *inputs]), products))
    vector = _side_by_side(builder, [*parts, *(inputs if on_inputs else ())])
    if not builder.finish([vector]).varying[vector]:  # outputs that are constants: bounds start at an input
        first = new[graph.inputs[0]]
        first = builder.add(Take(0, (0,)), builder.add(Reshape((builder.type(first).numel,)), first))
        zero = builder.param(torch.zeros(1, dtype=getattr(torch, builder.type(first).dtype)), "zero")
        vector = builder.add(Add(), vector, builder.add(Mul(), first, zero))
    for name, i in graph.names.items():
        builder.name(name, new[i])
    return lower(builder.finish([vector]))


def _side_by_side(builder: Builder, parts: list[int]) -> int:
    return parts[0] if len(parts) == 1 else builder.add(Concat(0), *parts)


def product_groups(products: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]]:
    """Products (each the places of its factors) by their exponents, such as (2, 1) of a a b: number and factors."""
    groups: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
    for k, product in enumerate(products):
        factors, exponents = zip(*Counter(product).most_common(), strict=True)
        groups.setdefault(exponents, []).append((k, factors))
    return groups


def _products(builder: Builder, values: int, products: Sequence[tuple[int, ...]]) -> int:
    """The products of elements of the flat node `values`, "P". Those with equal exponents, such as all a a b, share
    their ops; a repeated factor becomes a Power, whose bounds know that both factors are one."""
    parts, order = [], []
    for exponents, members in product_groups(products).items():
        chain = None
        for f, exponent in enumerate(exponents):
            part = builder.add(Take(0, tuple(factors[f] for _, factors in members)), values)
            part = part if exponent == 1 else builder.add(Power(float(exponent)), part)
            chain = part if chain is None else builder.add(Mul(), chain, part)
        parts.append(chain)
        order += [k for k, _ in members]
    found = _side_by_side(builder, parts)
    if order == sorted(order):
        return found
    return builder.add(Take(0, tuple(sorted(range(len(order)), key=order.__getitem__))), found)


@dataclass(eq=False)
class Engine:
    """A lowered graph with the contexts made for it so far: recipe and arithmetic -> context."""

    graph: Graph
    device: str = "cpu"
    doubt: float = 0.0  # a bound on the probability that any bound of a random recipe was wrong so far
    report: Report = field(default_factory=Report)
    _contexts: dict = field(default_factory=dict)

    def context(self, recipe: Recipe, arithmetic: Arithmetic) -> Context:
        arithmetic = replace(arithmetic, device=self.device)
        key = (recipe, arithmetic)
        if key not in self._contexts:
            context = run.prepare(make_schedule(self.graph, recipe), arithmetic)
            self._contexts[key] = replace(context, report=self.report)
        return self._contexts[key]

    def evaluator(self, arithmetic: Arithmetic) -> Context:
        """A context that only evaluates the network."""
        return self.context(registry.recipes()["interval"](), arithmetic)


@dataclass(frozen=True, eq=False)
class Problem:
    """What is still to be shown. `lower` "Q": per clause the best proved lower bound (over its rows, the largest)."""

    engine: Engine
    property: Property
    lower: np.ndarray
    closed: np.ndarray  # bool "Q": refuted by checked float64 arithmetic
    search_lower: np.ndarray  # float32 estimates "R" of the rows: they steer, and close nothing
    hints: tuple[tuple[int, np.ndarray], ...] = ()  # (box, flat input) worth attacking

    @staticmethod
    def of(graph: Graph, prop: Property, device: str = "cpu") -> Problem:
        if prop.interface is not None:
            prop.interface.check(*([graph.nodes[i].type for i in group] for group in (graph.inputs, graph.outputs)))
        inputs = sum(graph.nodes[i].type.numel for i in graph.inputs)
        outputs = sum(graph.nodes[i].type.numel for i in graph.outputs)
        if (prop.inputs.size, prop.outputs) != (inputs, outputs):
            raise PropertyError(
                f"the property speaks of {prop.inputs.size} inputs and {prop.outputs} outputs, "
                f"the network has {inputs} and {outputs}"
            )
        return Problem.on(Engine(attach_vector(graph, prop.on_inputs, prop.products), device), prop)

    @staticmethod
    def on(engine: Engine, prop: Property) -> Problem:
        """A problem about the vector of an engine that is there already."""
        clauses, rows = prop.spec.clauses, prop.spec.rows
        return Problem(engine, prop, np.full(clauses, -np.inf), np.zeros(clauses, dtype=bool), np.full(rows, -np.inf))

    @property
    def open(self) -> np.ndarray:
        """The clauses that are not refuted yet."""
        return np.flatnonzero(~self.closed)

    @property
    def solved(self) -> bool:
        return bool(self.closed.all())

    def learn(self, rows: np.ndarray, proved: np.ndarray) -> Problem:
        """Take in proved lower bounds of these rows."""
        spec = self.property.spec
        values = np.full(spec.rows, -np.inf)
        values[rows] = np.where(np.isnan(proved), -np.inf, proved)
        best = self.lower.copy()
        np.maximum.at(best, spec.clause, values)
        return replace(self, lower=best, closed=self.closed | spec.refuted(values))

    def learn_clauses(self, clauses: np.ndarray, proved: np.ndarray) -> Problem:
        """Take in proved lower bounds of the largest row of these clauses."""
        spec = self.property.spec
        proved = np.where(np.isnan(proved), -np.inf, proved)
        lower, closed = self.lower.copy(), self.closed.copy()
        lower[clauses] = np.maximum(lower[clauses], proved)
        all_strict = np.ones(spec.clauses, dtype=bool)
        np.logical_and.at(all_strict, spec.clause, spec.strict)
        # At zero the rows that are not strict may all be zero, which is a counterexample.
        closed[clauses] |= (proved > 0) | ((proved >= 0) & all_strict[clauses])
        return replace(self, lower=lower, closed=closed)


def spec_rows(prop: Property, rows: np.ndarray, boxes: np.ndarray, arithmetic: Arithmetic) -> tuple[Rows, torch.Tensor]:
    """Rows of the property (sorted by box) as dense Rows over the batch of `boxes` (sorted), and their d."""
    C = arithmetic.tensor(prop.spec.C[rows].toarray())
    index = np.searchsorted(boxes, prop.spec.row_box()[rows])
    counts = np.bincount(index, minlength=len(boxes))
    rectangular = len(boxes) == 1 or (counts == counts[0]).all()
    box = None if rectangular else torch.as_tensor(index, device=C.device)
    return Rows.dense_rows(C, len(boxes), box), arithmetic.tensor(prop.spec.d[rows])


def box_chunks(context: Context, boxes: np.ndarray) -> Iterable[np.ndarray]:
    """The boxes in chunks whose bounds and states fit in memory."""
    itemsize = context.arithmetic.dtype.itemsize
    needed = memory.box_bytes(context.graph, itemsize)
    needed += sum(domain.box_bytes(context.graph, itemsize) for domain in context.schedule.reach)
    size = max(1, min(4096, memory.CHUNK_BYTES // needed))
    return (boxes[i : i + size] for i in range(0, len(boxes), size))


@dataclass(frozen=True, eq=False)
class Ask:
    """What a Strategy asks: bounds of rows of properties on one network, in one arithmetic, until the clock ends it."""

    engine: Engine
    arithmetic: Arithmetic
    clock: Clock
    decide: bool

    def __call__(self, recipe: Recipe, prop: Property, rows: np.ndarray) -> np.ndarray:
        return bound_rows(self.engine, recipe, self.arithmetic, prop, rows, self.clock, decide=self.decide)


def bound_rows(
    engine: Engine,
    recipe: Recipe,
    arithmetic: Arithmetic,
    prop: Property,
    rows: np.ndarray,
    clock: Clock = NEVER,
    corners: dict | None = None,
    decide: bool = False,
    found: Found | None = None,
) -> np.ndarray:
    """Lower bounds "R" (numpy float64) of these rows of the property; NaN for those the deadline did not allow.

    `corners`, if given, receives per row the corner of its box where the row's plane is lowest, or the point where a
    program found the row lowest, flat "n". `decide`: a bound need not become better than positive. found(box, point
    "n") is asked about points where programs found rows at 0 or below; where it says True, the rest is not bounded.
    """
    ask = Ask(engine, arithmetic, clock, decide)
    match recipe:
        case Strategy():
            return recipe.bound(ask, prop, np.asarray(rows))
        case Meet(parts) if asks_others(recipe):
            plain = tuple(part for part in parts if not isinstance(part, Strategy))
            values = [part.bound(ask, prop, np.asarray(rows)) for part in parts if isinstance(part, Strategy)]
            if plain:
                together = plain[0] if len(plain) == 1 else Meet(plain)
                values.append(bound_rows(engine, together, arithmetic, prop, rows, clock, corners, decide, found))
            return np.fmax.reduce(values)
    context = engine.context(recipe, arithmetic)
    out = np.full(prop.spec.rows, np.nan)
    row_box = prop.spec.row_box()
    rows = np.asarray(rows)
    rows = rows[np.argsort(row_box[rows], kind="stable")]
    all_boxes = np.unique(row_box[rows])
    failure = total_failure(recipe)
    with torch.no_grad():
        try:
            for boxes in box_chunks(context, all_boxes):
                here = rows[(row_box[rows] >= boxes[0]) & (row_box[rows] <= boxes[-1])]
                batch = InputBatch.of(prop.inputs.select(boxes), context.arithmetic)
                if arithmetic.charged:
                    engine.doubt += failure * len(boxes)
                states: dict = {}
                bounds = run.propagate(context, batch, clock, states)
                nu, d = spec_rows(prop, here, boxes, context.arithmetic)
                relaxations: dict = {}
                goal, points = -d if decide else None, {}
                value = run.row_bounds(
                    context, batch, bounds, nu, d, relaxations, clock, states=states, points=points, goal=goal,
                    found=found and (lambda b, point, boxes=boxes: found(int(boxes[b]), point)),
                )  # fmt: skip
                out[here] = value.double().cpu().numpy()
                if corners is not None:
                    corners.update((int(here[k]), point) for k, point in points.items())
                if corners is not None and context.schedule.duals and not context.schedule.encoded:
                    _add_corners(corners, context, batch, bounds, nu, here, relaxations)
        except Deadline:
            pass
    return out


def _add_corners(corners: dict, context, batch, bounds, nu: Rows, rows: np.ndarray, relaxations) -> None:
    """One more sweep of the first rows, in one chunk, to see their planes at the inputs."""
    plan = context.schedule.final
    count = min(
        nu.count, memory.chunk_rows(context.graph, plan.nodes, 4, context.arithmetic.device, memory.CHUNK_BYTES)
    )
    first, seen = nu.slice(0, count), {}
    sweeps.sweep(context, plan, context.schedule.duals[0], batch, bounds, first, relaxations, trace=seen)
    slopes = sweeps.input_slopes(context.graph, seen, first)
    sets = batch.select(first.per_row(torch.arange(first.boxes, device=slopes.device)))
    points = sets.lowest(slopes[:, None])[:, 0]
    corners.update(zip(rows[:count].tolist(), points.double().cpu().numpy(), strict=True))


def recipe_stage(problem: Problem, recipe: Recipe, clock: Clock, found: Found) -> Problem:
    """Bound the open rows in float32; what closes there is bounded again in charged float64, which alone closes.

    Programs over encodings are solved once, in charged float64, for all rows of a clause together. found(box, point
    "n") is asked about points where they found a clause at 0 or below; where it says True, the stage ends.
    """
    spec = problem.property.spec
    estimates = np.isinf(total_failure(recipe))  # they close nothing
    if solves(problem.engine, recipe) and not estimates:
        return _program_stage(problem, recipe, clock, found)
    rows = np.flatnonzero(np.isin(spec.clause, problem.open))
    corners: dict = {}
    search = bound_rows(problem.engine, recipe, SEARCH, problem.property, rows, clock, corners, True, found)
    if estimates:
        return problem
    problem = replace(problem, search_lower=np.fmax(problem.search_lower, search))
    slack = np.where(np.isfinite(search), 1e-4 * (1 + np.abs(search)), 0)
    promising = spec.refuted(np.where(np.isnan(search), -np.inf, search + slack))
    rows = rows[promising[spec.clause[rows]]]
    if len(rows):
        proved = bound_rows(problem.engine, recipe, PROOF, problem.property, rows, clock, decide=True)
        problem = problem.learn(rows, proved[rows])
    # An attack starts where the planes of open clauses are lowest.
    box = spec.row_box()
    hints = [(int(box[r]), x) for r, x in corners.items() if not problem.closed[spec.clause[r]]]
    return replace(problem, hints=(*problem.hints, *hints))


def solves(engine: Engine, recipe: Recipe) -> bool:
    """Do programs over encodings take part in the recipe?"""
    return not asks_others(recipe) and engine.context(recipe, PROOF).schedule.solves


def asks_others(recipe: Recipe) -> bool:
    """Is the recipe a strategy, or a meet with one?"""
    parts = recipe.parts if isinstance(recipe, Meet) else (recipe,)
    return any(isinstance(part, Strategy) for part in parts)


def _program_stage(problem: Problem, recipe: Recipe, clock: Clock, found: Found) -> Problem:
    """Close clauses box by box: by the rows' other bounds first, then by a program over each clause left open."""
    context, prop = problem.engine.context(recipe, PROOF), problem.property
    spec = prop.spec
    quick = replace(context, schedule=replace(context.schedule, encoded=()))
    with torch.no_grad():
        for box in np.unique(spec.box[problem.open]):
            try:
                batch = InputBatch.of(prop.inputs.select([box]), context.arithmetic)
                problem.engine.doubt += total_failure(recipe)
                bounds = run.propagate(context, batch, clock, states := {})
                rows = np.flatnonzero(spec.row_box() == box)
                rows = rows[np.isin(spec.clause[rows], problem.open)]
                nu, d = spec_rows(prop, rows, np.array([box]), context.arithmetic)
                lower = run.row_bounds(quick, batch, bounds, nu, d, {}, clock, states=states)
                problem = problem.learn(rows, lower.double().cpu().numpy())
                for program in context.schedule.encoded:
                    problem, ended = _close_by_program(problem, context, program, batch, bounds, int(box), clock, found)
                    if ended:
                        return problem
            except Deadline:
                break
    return problem


def _close_by_program(
    problem: Problem, context: Context, program, batch, bounds, box: int, clock: Clock, found: Found
) -> tuple[Problem, bool]:
    """The problem after a program for each open clause of a box; has `found` said that nothing else is of use?"""
    spec = problem.property.spec
    clauses = problem.open[spec.box[problem.open] == box]
    rows = np.flatnonzero(np.isin(spec.clause, clauses))
    if not len(rows):
        return problem, False
    nu, d = spec_rows(problem.property, rows, np.array([box]), context.arithmetic)
    group, goal = np.searchsorted(clauses, spec.clause[rows]), np.zeros(len(clauses))
    answer = solve(
        context, program, context.schedule.final, batch, bounds, nu, d.cpu().numpy(), clock, group=group, goal=goal,
        found=lambda _, point: found(box, point),
    )  # fmt: skip
    slack = np.zeros(len(clauses))
    np.maximum.at(slack, group, run.misread(nu, d, bounds[context.schedule.target], context.arithmetic).cpu().numpy())
    lower = answer.lower - slack - np.abs(answer.lower) * context.arithmetic.gamma(2)
    points = [(box, x) for x, low in zip(answer.points, lower) if low <= 0 and not np.isnan(x).any()]
    problem = replace(problem.learn_clauses(clauses, lower), hints=(*problem.hints, *points))
    return problem, any(found(*hint) for hint in points)


def clause_program(problem: Problem, recipe: Encoded, clause: int) -> tuple[Encoding, Objective]:
    """The program of a recipe whose minimum is the least value, over the clause's box, of the clause's largest row."""
    context, spec = problem.engine.context(recipe, PROOF), problem.property.spec
    rows, box = np.flatnonzero(spec.clause == clause), spec.box[[clause]]
    with torch.no_grad():
        batch = InputBatch.of(problem.property.inputs.select(box), context.arithmetic)
        bounds = run.propagate(context, batch)
        nu, d = spec_rows(problem.property, rows, box, context.arithmetic)
        C = nu.dense().reshape(len(rows), -1)
        encoder = encoder_within_budget(context, recipe, context.schedule.final, batch, bounds, C)
        return encoder.encode(recipe.style).least(C.cpu().numpy(), d.cpu().numpy())


def interval_bounds(problem: Problem, arithmetic: Arithmetic = SEARCH) -> tuple[InputBatch, dict]:
    """The first few boxes, and interval bounds of all nodes over them."""
    context = problem.engine.evaluator(arithmetic)
    sample = np.arange(min(cost.SAMPLE, len(problem.property.inputs)))
    with torch.no_grad():
        batch = InputBatch.of(problem.property.inputs.select(sample), context.arithmetic)
        return batch, run.propagate(context, batch)


def predicted_programs(problem: Problem, recipe: Recipe) -> list[cost.Programs]:
    """The programs that a recipe will ask for, and how large they will be at most: by interval bounds."""
    context = problem.engine.context(recipe, PROOF)
    if not context.schedule.solves:
        return []
    with torch.no_grad():
        return list(cost.predicted_programs(context, *interval_bounds(problem, PROOF), problem.property.spec.rows))


class Choice(NamedTuple):
    """A method within a budget: its name and recipe, what there is to say of the choice, and the seconds predicted for
    each method that was looked at."""

    method: str
    recipe: Recipe
    note: str
    seconds: dict[str, float]


def within_budget(problem: Problem, method: str, recipe: Recipe, budget: float) -> Choice:
    """`recipe`, or else the first cheaper one of which at most `budget` seconds are predicted, or else the cheapest.

    Cheaper than a recipe that tightens intermediate bounds by sweeps is the linear domain over interval bounds
    (CROWN-IBP), and cheaper than that are intervals.
    """
    candidates = {method: recipe} | {name: registry.recipes()[name]() for name in ("crown-ibp", "ibp")}
    seconds = {}
    for name, found in _predictions(problem, candidates):
        seconds[name] = found
        if found <= budget:
            break
    chosen = name if found <= budget else min(seconds, key=seconds.get)
    note = (
        f"{method} would cost {seconds[method]:.3g} s by prediction, above the budget of {budget:g} s: {chosen} instead"
    )
    return Choice(chosen, candidates[chosen], "" if chosen == method else note, seconds)


def most_precise(problem: Problem, budget: float) -> Choice:
    """The first of LADDER of which at most `budget` seconds are predicted, or else the cheapest of it.

    A method that lacks a rule for an op of the network is left out.
    """
    known = registry.recipes()
    candidates = {}
    for name in (n for n in LADDER if n in known):
        try:
            problem.engine.context(known[name](), SEARCH)
        except UnsupportedOp:
            continue
        candidates[name] = known[name]()
    seconds = dict(_predictions(problem, candidates))
    fitting = [name for name, found in seconds.items() if found <= budget]
    chosen = fitting[0] if fitting else min(seconds, key=seconds.get)
    listed = ", ".join(f"{name} {found:.3g} s" for name, found in seconds.items())
    note = f"auto: {chosen}, for a budget of {budget:g} s (predicted: {listed})"
    return Choice(chosen, candidates[chosen], note, seconds)


def _predictions(problem: Problem, candidates: Mapping[str, Recipe]) -> Iterable[tuple[str, float]]:
    """Predicted seconds of bounding all rows, method by method."""
    sample, bounds = interval_bounds(problem)
    engine, prop = problem.engine, problem.property

    def operations(recipe: Recipe, boxes: float, rows: float) -> float:
        match recipe:
            case Strategy():
                return recipe.cost(operations, boxes, rows)
            case Meet(parts) if asks_others(recipe):
                return sum(operations(part, boxes, rows) for part in parts)
        context = engine.context(recipe, SEARCH)
        if not context.schedule.solves:
            return cost.predicted_flops(context, sample, bounds, boxes, rows)
        return cost.predicted_flops(context, *interval_bounds(problem, PROOF), boxes, rows)

    for name, recipe in candidates.items():
        yield name, cost.predicted_seconds(operations(recipe, len(prop.inputs), prop.spec.rows), engine.device)


def undefined_places(problem: Problem) -> list[str]:
    """The nodes that may divide by zero, or leave the domain of their function otherwise, in the first boxes."""
    _, bounds = interval_bounds(problem)
    graph, constants = problem.engine.graph, problem.engine.evaluator(SEARCH).values
    found = []
    for i in sorted(bounds):
        node = graph.nodes[i]
        ends = [(bounds[j].lower, bounds[j].upper) if j in bounds else (constants[j],) * 2 for j in node.inputs]
        mask = node.op.undefined([low for low, _ in ends], [high for _, high in ends])
        if mask is None or not mask.any():
            continue
        place = tuple(int(t) for t in mask.nonzero()[0])
        low, high = (end[place].item() for end in ends[-1])  # the operand that decides: a denominator comes last
        found.append(f"{node.source} may leave its domain: its operand is known to lie in [{low:.6g}, {high:.6g}]")
    return found
