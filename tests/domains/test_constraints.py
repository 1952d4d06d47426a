"""Constraints with multipliers: for any multipliers >= 0 the sweep stays below every point that keeps the constraint."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from absdom import ops, testing
from absdom.arithmetic import PROOF, Arithmetic
from absdom.constraints import Constraints, LinearConstraint, SplitConstraint
from absdom.errors import GraphError
from absdom.ir.graph import Builder
from absdom.ir.op import Input
from absdom.passes import lower
from absdom.plan import run, sweeps
from absdom.plan.planner import make_schedule, sweep_from
from absdom.plan.recipes import parse_recipe
from absdom.rows import Rows
from absdom.sets import InputBatch
from absdom.types import TensorType

FLOAT64 = Arithmetic(torch.float64)
BOXES, POINTS = 2, 1000


def network():
    """x -> relu -> (residual) -> relu -> 2 outputs, lowered; and the nodes before the activations."""
    random = np.random.default_rng(4)
    builder = Builder()

    def weights(*shape):
        return builder.param(torch.from_numpy(random.standard_normal(shape)), "w")

    x = builder.input("x", TensorType((1, 3), "float64"))
    first = builder.add(ops.MatMul(), x, weights(3, 4))
    one = builder.add(ops.Relu(), first)
    second = builder.add(ops.Add(), builder.add(ops.MatMul(), one, weights(4, 4)), first)
    two = builder.add(ops.Tanh(), builder.add(ops.Relu(), second))
    out = builder.add(ops.MatMul(), two, weights(4, 2))
    for name, node in (("x", x), ("first", first), ("second", second), ("out", out)):
        builder.name(name, node)
    return lower(builder.finish([out]))


def values(context, x):
    """Every node's value at points "K n", in float64."""
    graph, found = context.graph, dict(context.values)
    found.update(run.split_inputs(graph, x))
    for i in context.schedule.final.nodes[::-1]:
        if not isinstance(graph.nodes[i].op, Input):
            found[i] = graph.nodes[i].op.eval(*(found[j] for j in graph.nodes[i].inputs))
    return found


def setting(arithmetic, method="crown"):
    graph = network()
    context = run.prepare(make_schedule(graph, parse_recipe(method)), arithmetic)
    low = torch.tensor([[-1.0, -0.5, 0.0], [0.2, -1.0, -1.0]], dtype=torch.float64)
    batch = InputBatch(low, low + torch.tensor([1.5, 1.0, 0.7], dtype=torch.float64))
    bounds = run.propagate(context, batch)
    generator = torch.Generator().manual_seed(1)
    share = torch.rand((BOXES, POINTS, 3), generator=generator, dtype=torch.float64)
    share[:, : POINTS // 5] = share[:, : POINTS // 5].round()
    points = batch.lower[:, None] + share * (batch.upper - batch.lower)[:, None]
    real = [testing.enclose(graph, points[b]) for b in range(BOXES)]
    return graph, context, batch, bounds, points, real, generator


def check(context, batch, bounds, rows, constraints, allowed, real, arithmetic):
    """No allowed point (mask "B K"; `real` encloses the outputs) lies below the bound of its rows."""
    plan = sweep_from(context.graph, context.schedule.target)
    bound = sweeps.sweep(context, plan, context.schedule.duals[0], batch, bounds, rows, constraints=constraints)
    box = rows.per_row(torch.arange(BOXES))
    for r in range(rows.count):
        b = int(box[r])
        if not allowed[b].any():
            continue
        row = rows.dense()[r]
        high = (row.clamp(min=0) * real[b].upper + row.clamp(max=0) * real[b].lower)[allowed[b]].flatten(1).sum(1)
        slack = 1e-14 * row.abs().sum() if arithmetic.charged else 1e-9  # the product with the row, done here
        assert bound[r] <= high.min() + slack, (r, bound[r], high.min())
    return bound


def some_rows(generator, ragged: bool):
    data = torch.randn((6, 1, 2), generator=generator, dtype=torch.float64)
    return Rows.dense_rows(data, BOXES, torch.tensor([0, 1, 1, 0, 1, 1]) if ragged else None)


@pytest.mark.parametrize("ragged", [False, True], ids=["rectangular", "ragged"])
@pytest.mark.parametrize("arithmetic", [PROOF, FLOAT64], ids=["charged", "float64"])
def test_split_constraints(arithmetic, ragged):
    graph, context, batch, bounds, points, real, generator = setting(arithmetic)
    tightened = 0
    for _ in range(8):
        node = graph.find(["first", "second"][int(torch.randint(2, (1,), generator=generator))])
        sign = torch.randint(-1, 2, (BOXES, 1, 4), generator=generator).double()
        rows = some_rows(generator, ragged)
        multiplier = torch.rand((6, 1, 4), generator=generator, dtype=torch.float64) * 2
        items = Constraints.of((SplitConstraint(node, sign), multiplier))
        allowed = torch.stack(
            [(sign[b] * values(context, points[b])[node] <= 0).flatten(1).all(1) for b in range(BOXES)]
        )
        bound = check(context, batch, bounds, rows, items, allowed, real, arithmetic)
        plain = check(context, batch, bounds, rows, Constraints(), torch.ones_like(allowed), real, arithmetic)
        tightened += int((bound > plain).sum())
    assert tightened, "no multiplier ever helped: the constraint may not have been read"


@pytest.mark.parametrize("ragged", [False, True], ids=["rectangular", "ragged"])
@pytest.mark.parametrize("arithmetic", [PROOF, FLOAT64], ids=["charged", "float64"])
@pytest.mark.parametrize("scoped", [False, True], ids=["all boxes", "scoped"])
def test_linear_constraints_over_inputs_and_nodes(arithmetic, ragged, scoped):
    graph, context, batch, bounds, points, real, generator = setting(arithmetic)
    nodes = {"x": 3, "first": 4, "second": 4, "out": 2}
    tightened = 0
    for _ in range(8):
        names = [n for n in nodes if torch.rand(1, generator=generator) < 0.6] or ["x"]
        terms = {graph.find(n): torch.randn((2, 1, nodes[n]), generator=generator, dtype=torch.float64) for n in names}
        rhs = torch.randn(2, generator=generator, dtype=torch.float64)
        scope = torch.tensor([1, 0]) if scoped else None
        constraint = LinearConstraint(terms, rhs, scope)
        rows = some_rows(generator, ragged)
        multiplier = torch.rand((6, 2), generator=generator, dtype=torch.float64) * 3
        allowed = []
        for b in range(BOXES):
            v = values(context, points[b])
            total = sum((t[None] * v[i][:, None]).flatten(2).sum(2) for i, t in terms.items()) + rhs
            kept = total <= 0
            if scoped:
                kept = kept | (scope[None] != b)
            allowed.append(kept.all(1))
        found = check(
            context,
            batch,
            bounds,
            rows,
            Constraints.of((constraint, multiplier)),
            torch.stack(allowed),
            real,
            arithmetic,
        )
        plain = check(
            context, batch, bounds, rows, Constraints(), torch.ones(BOXES, POINTS, dtype=torch.bool), real, arithmetic
        )
        tightened += int((found > plain).sum())
    assert tightened


def test_constraints_that_cancel_are_charged_for_what_they_sum():
    """Two constraints with opposite coefficients and huge multipliers: their sum is zero, its rounding is not."""
    graph, context, batch, bounds, points, real, generator = setting(PROOF)
    x = graph.find("x")
    coefficient = torch.tensor([[[1.0, 1.0, 1.0]], [[-1.0, -1.0, -1.0]]], dtype=torch.float64)
    constraint = LinearConstraint(
        {x: coefficient}, torch.tensor([-10.0, -10.0], dtype=torch.float64)
    )  # hold everywhere
    rows = some_rows(generator, False)
    multiplier = torch.full((6, 2), 1e17, dtype=torch.float64)
    multiplier[:, 1] -= 32.0
    allowed = torch.ones(BOXES, POINTS, dtype=torch.bool)
    bound = check(context, batch, bounds, rows, Constraints.of((constraint, multiplier)), allowed, real, PROOF)
    near = LinearConstraint({x: coefficient}, torch.tensor([10.0, -10.0], dtype=torch.float64))
    holds = torch.stack([((points[b].sum(1) <= -10) & (points[b].sum(1) >= -10)) for b in range(BOXES)])
    assert not holds.any()  # an empty set: any bound is true
    assert sweeps.sweep(
        context, sweep_from(graph, context.schedule.target), context.schedule.duals[0], batch, bounds, rows,
        constraints=Constraints.of((near, multiplier)),
    ).shape == bound.shape  # fmt: skip
    plain = sweeps.sweep(
        context, sweep_from(graph, context.schedule.target), context.schedule.duals[0], batch, bounds, rows
    )
    # The rounding of multipliers this large is worth more than 1, and is paid.
    cancel = LinearConstraint({x: coefficient}, torch.zeros(2, dtype=torch.float64))
    equal = torch.full((6, 2), 1e17, dtype=torch.float64)
    paid = sweeps.sweep(
        context, sweep_from(graph, context.schedule.target), context.schedule.duals[0], batch, bounds, rows,
        constraints=Constraints.of((cancel, equal)),
    )  # fmt: skip
    assert (paid < plain - 1).all()


def test_a_constraint_on_a_node_that_the_sweep_does_not_pass_is_an_error():
    graph, context, batch, bounds, _, _, generator = setting(FLOAT64)
    out = graph.find("out")
    constraint = LinearConstraint({out: torch.ones(1, 1, 2, dtype=torch.float64)}, torch.ones(1, dtype=torch.float64))
    rows = Rows.dense_rows(torch.ones(2, 1, 4, dtype=torch.float64), BOXES)
    with pytest.raises(GraphError, match="start the sweep at the latest node"):
        sweeps.sweep(
            context, sweep_from(graph, graph.find("second")), context.schedule.duals[0], batch, bounds, rows,
            constraints=Constraints.of((constraint, torch.ones(2, 1, dtype=torch.float64))),
        )  # fmt: skip
