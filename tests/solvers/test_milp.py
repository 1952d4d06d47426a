"""Mixed-integer programs: exact on piecewise linear networks, sound whatever solvers do."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
from nets import exact_minimum, relu_net
from programs import Asked

from absdom import ops, registry
from absdom.encoding import Style
from absdom.errors import UsageError
from absdom.ir.graph import Builder
from absdom.solvers.milp import solver as solvers
from absdom.solvers.milp.tighten import tighten
from absdom.solvers.milp.tree import Tree
from absdom.solvers.workers import run_all
from absdom.types import Clock, TensorType

ROW = np.array([[1.0, -1.0]])
LOW, HIGH = -np.ones(3), np.ones(3)


def milp(**options):
    return registry.recipes()["milp"](**options)


def least(seed, sizes=(3, 4, 3, 2), row=ROW[0], low=LOW, high=HIGH):
    graph, layers = relu_net(sizes, seed)
    return graph, exact_minimum(layers, row, 0.0, low, high)


@pytest.mark.parametrize("seed", range(8))
def test_the_bound_is_the_least_value(seed):
    graph, exact = least(seed)
    asked = Asked(graph, LOW, HIGH, ROW)
    found = asked.answer()
    assert exact - 1e-4 * (1 + abs(exact)) <= found.lower[0] <= exact + 1e-9
    assert abs(found.claimed[0] - exact) <= 1e-4  # the gap
    assert (ROW[0] @ asked.values(found.points)[0]) == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_solvers_agree(seed):
    graph, exact = least(seed + 20)
    encoding, objective = Asked(graph, LOW, HIGH, ROW).encoding(Style(integers=True))
    assert encoding.complete
    for name in ("highs", "scipy", "cbc"):
        found = solvers.solve(encoding, objective, name)
        assert found.status == "optimal"
        assert found.value == pytest.approx(exact, abs=2e-5), name


@pytest.mark.parametrize("name", ["highs", "scipy", "cbc"])
def test_a_named_solver_makes_the_claims(name):
    graph, exact = least(31)
    found = Asked(graph, LOW, HIGH, ROW, recipe=milp(solver=name)).answer()
    assert found.claimed[0] == pytest.approx(exact, abs=2e-5)
    assert found.claimed[0] - 1e-4 * (1 + abs(exact)) <= found.lower[0] <= exact + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_goals_are_proved_or_refuted_by_a_point(seed):
    graph, exact = least(seed + 40)
    rows = np.repeat(ROW, 2, 0)
    asked = Asked(graph, LOW, HIGH, rows)
    found = asked.answer(goal=[exact - 1e-3, exact + 1e-3])
    assert found.lower[0] > exact - 1e-3
    assert found.lower[1] <= exact + 1e-9
    assert ROW[0] @ asked.values(found.points[1:])[0] <= exact + 1e-3
    asked_points = []
    asked.answer(goal=[exact + 1e-3, exact + 1e-3], found=lambda box, x: asked_points.append(x) or True)
    assert len(asked_points) == 1  # nothing is asked after a counterexample


@pytest.mark.parametrize("seed", range(3))
def test_a_conjunction_is_bounded_by_its_largest_row(seed):
    graph, _ = relu_net((2, 4, 3, 2), seed)
    rows = np.array([[1.0, 0.0], [0.0, 1.0]])
    asked = Asked(graph, LOW[:2], HIGH[:2], rows)
    found = asked.answer(group=np.zeros(2, dtype=np.int64))
    points = np.random.default_rng(0).uniform(-1, 1, (20000, 2))
    sampled = asked.values(points).max(1).min()
    assert found.lower[0] <= sampled
    assert found.lower[0] >= sampled - 0.05
    assert found.lower[0] > asked.answer().lower.max() - 1e-9
    assert asked.values(found.points)[0].max() == pytest.approx(found.claimed[0], abs=1e-6)


def test_each_box_has_its_own_answer():
    graph, layers = relu_net((3, 4, 3, 2), 7)
    low, high = np.stack([LOW, LOW * 0.1, LOW * 0 + 0.3]), np.stack([HIGH, HIGH * 0.4, HIGH * 0 + 0.3])
    found = Asked(graph, low, high, np.repeat(ROW[None], 3, 0), np.zeros((3, 1))).answer()
    for k in range(3):  # the last box is one point
        exact = exact_minimum(layers, ROW[0], 0.0, low[k], high[k])
        assert exact - 1e-4 <= found.lower[k] <= exact + 1e-9


def test_a_row_of_zeros_is_its_constant():
    found = Asked(least(3)[0], LOW, HIGH, [[0.0, 0.0]], [[0.5]]).answer()
    assert 0.5 - 1e-12 <= found.lower[0] <= 0.5


@pytest.mark.parametrize("op", [ops.LeakyRelu(0.2), ops.Abs(), ops.Clip(-0.3, 0.4)])
def test_other_pieces(op):
    random, builder = np.random.default_rng(3), Builder()
    import torch

    x = builder.input("x", TensorType((1, 2), "float64"))
    for k, (n, m) in enumerate([(2, 4), (4, 3), (3, 2)]):
        x = builder.add(ops.MatMul(), x, builder.param(torch.from_numpy(random.standard_normal((n, m))), f"w{k}"))
        x = builder.add(op, x) if k < 2 else x
    asked = Asked(builder.finish([x]), LOW[:2], HIGH[:2], ROW)
    found = asked.answer()
    axis = np.linspace(-1, 1, 201)
    values = asked.values(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)) @ ROW[0]
    assert found.lower[0] <= values.min() <= found.lower[0] + 0.1
    assert ROW[0] @ asked.values(found.points)[0] == pytest.approx(found.lower[0], abs=1e-3)


def test_smooth_ops_are_bounded_soundly():
    random, builder = np.random.default_rng(4), Builder()
    import torch

    x = builder.input("x", TensorType((1, 2), "float64"))
    for k, (n, m) in enumerate([(2, 3), (3, 2)]):
        x = builder.add(ops.MatMul(), x, builder.param(torch.from_numpy(random.standard_normal((n, m))), f"w{k}"))
        x = builder.add(ops.Tanh(), x) if k < 1 else x
    graph, bounds = builder.finish([x]), []
    for segments in (0, 6):
        asked = Asked(graph, LOW[:2], HIGH[:2], ROW, recipe=milp(segments=segments))
        bounds.append(asked.answer().lower[0])
        assert not asked.encoding(asked.recipe.style)[0].complete
    values = asked.values(np.random.default_rng(0).uniform(-1, 1, (5000, 2))) @ ROW[0]
    assert bounds[0] <= bounds[1] + 1e-6 <= values.min() + 1e-6
    assert Asked(graph, LOW[:2], HIGH[:2], ROW, recipe=milp()).answer(goal=[values.min() - 1.0]).lower[0] > -np.inf


@pytest.mark.parametrize("seed", range(3))
def test_stopped_early_and_sloppy_bounds_stay_below(seed):
    graph, exact = least(seed + 60)
    assert Asked(graph, LOW, HIGH, ROW).answer(seconds=0.0).lower[0] == -np.inf
    encoding, objective = Asked(graph, LOW, HIGH, ROW).encoding(Style(integers=True))
    for programs in (0, 1, 3, 7):
        tree = Tree(encoding, objective)
        tree.run(Clock(), leaves=programs)
        assert tree.lower <= exact + 1e-9
    tree.run(Clock(), threads=2)  # goes on where it stopped
    assert tree.done and exact - 1e-4 * (1 + abs(exact)) <= tree.lower <= exact + 1e-9
    for solver in ("auto", "highs"):
        found = Asked(graph, LOW, HIGH, ROW, recipe=milp(solver=solver, tolerance=1e-2)).answer()
        assert found.lower[0] <= exact + 1e-9


def test_the_first_child_without_points_is_closed():
    """x in [1, 2]: with |x| on its negative piece nothing is left, which a ray proves."""
    encoding, objective = Asked(least(5)[0], LOW, HIGH, ROW).encoding(Style(integers=True))
    tree = Tree(encoding, objective)
    lower = encoding.lower.copy()
    choice = encoding.choices[0]
    lower[choice.source[0]] = choice.ends[0] + 1e-3
    lower[choice.binaries[0]], upper = 0.0, encoding.upper.copy()
    upper[choice.binaries[0]] = 0.0  # the binary says: at most ends[0]
    from absdom.solvers.lp.backend import open_program

    found = open_program(encoding).minimise(objective, lower, upper)
    assert found.status == "infeasible"
    assert tree._safe(found, lower, upper) == np.inf


@pytest.mark.parametrize("seed", range(4))
def test_tightening_keeps_every_point_and_the_least_value(seed):
    graph, exact = least(seed + 80, sizes=(3, 4, 4, 2))
    asked = Asked(graph, LOW, HIGH, ROW, recipe=milp())
    seen = {}

    class Spy(type(asked.recipe)):
        def solve(self, question):
            seen["question"] = question
            return super().solve(question)

    asked.recipe = Spy(**vars(asked.recipe))
    asked.answer(seconds=1e9)
    before = seen["question"]
    after = tighten(before, asked.recipe.style, "auto", Clock(), 2)
    old, new = before.encode(asked.recipe.style), after.encode(asked.recipe.style)
    assert new.integer.sum() <= old.integer.sum()
    points = np.random.default_rng(0).uniform(-1, 1, (300, 3))
    variables = after.evaluate(points, new)
    act = (new.matrix @ variables.T).T
    assert (act >= new.low - 1e-9).all() and (act <= new.high + 1e-9).all()
    tree = Tree(new, new.objective(ROW[0]))
    tree.run(Clock())
    assert exact - 1e-4 * (1 + abs(exact)) <= tree.lower <= exact + 1e-9


def test_a_solver_that_does_not_end_is_killed():
    started = time.monotonic()
    (event,) = run_all(time.sleep, [(60,)], limit=0.5, grace=0.2)
    assert event.status == "stopped"
    assert time.monotonic() - started < 20


def test_solvers_that_are_not_there(monkeypatch):
    with pytest.raises(UsageError, match="solver 'fastest': there is no such"):
        milp(solver="fastest")
    with pytest.raises(UsageError, match="MOSEK"):
        milp(solver="MOSEK")
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(UsageError, match=r"highspy.*absdom\[solvers\]"):
        milp(solver="highs")
    graph, exact = least(1)
    assert Asked(graph, LOW, HIGH, ROW).answer().lower[0] == pytest.approx(exact, abs=1e-4)  # scipy alone
    monkeypatch.setitem(sys.modules, "pulp", None)
    with pytest.raises(UsageError, match=r"pulp.*absdom\[solvers\]"):
        milp(solver="cbc")
