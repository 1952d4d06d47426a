"""Verdicts against exhaustive enumeration, canaries with the attack off, deadlines, and the ladder's monotony."""

import time

import numpy as np
import pytest
import torch
from nets import exact_minimum, relu_net

from absdom import api
from absdom.arithmetic import PROOF
from absdom.pipeline import Options, verify_problem
from absdom.plan import run
from absdom.problem import Problem
from absdom.property import make_property
from absdom.types import Clock


def one_row(layers, lower, upper, offset):
    """Property whose only clause is `y_0 - y_1 <= t` for a threshold at `offset` below the exact minimum."""
    c = np.zeros(len(layers[-1][1]))
    c[0], c[1] = 1.0, -1.0
    least = exact_minimum(layers, c, 0.0, lower, upper)
    return make_property(lower, upper, [(0, [(c, offset - least, False)])])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("offset", [0.02, -0.02])
def test_input_split_agrees_with_enumeration(seed, offset):
    graph, layers = relu_net((3, 4, 4, 2), seed)
    prop = one_row(layers, -np.ones(3), np.ones(3), offset)
    result = api.verify(graph, prop, timeout=60, attack=False, device="cpu")
    # offset > 0: the row is positive everywhere. offset < 0: a counterexample exists (and the search may find it).
    assert result.verdict == ("unsat" if offset > 0 else "sat")


@pytest.mark.parametrize("margin, verdict", [(1e-3, "sat"), (-1e-3, "unsat")])
def test_boxes_too_narrow_to_cut_beside_one_that_is_cut(margin, verdict):
    """Leaves without a float64 number inside stay open, unless they are refuted; others go on being cut."""
    graph, layers = relu_net((3, 4, 4, 2), 1)
    c, wide = np.array([1.0, -1.0]), np.ones(3)
    point = np.array([1.0, -2.0, 3.0])
    thin = np.nextafter(point, np.inf)
    least = exact_minimum(layers, c, 0.0, -wide, wide)
    at_point = exact_minimum(layers, c, 0.0, point, point)
    refuted = (0, [(c, 0.02 - least, False)])
    for upper in (point, thin, np.where([True, False, False], thin, point)):
        boxes = np.stack([-wide, point]), np.stack([wide, upper])
        prop = make_property(*boxes, [refuted, (1, [(c, -at_point - margin, False)])])
        assert api.verify(graph, prop, timeout=60, attack=False, device="cpu").verdict == verdict


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_a_box_as_wide_as_float64_beside_one_that_is_cut():
    graph, layers = relu_net((3, 4, 4, 2), 1)
    c, wide, far = np.array([1.0, -1.0]), np.ones(3), np.full(3, 1.7e308)
    least = exact_minimum(layers, c, 0.0, -wide, wide)
    clauses = [(0, [(c, 0.02 - least, False)]), (1, [(c, -10.0 - least, False)])]  # the other box holds the first
    prop = make_property(np.stack([-wide, -far]), np.stack([wide, far]), clauses)
    assert api.verify(graph, prop, timeout=2, attack=False, device="cpu").verdict != "unsat"


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("offset", [0.05, -0.05])
def test_relu_split_agrees_with_enumeration(seed, offset, monkeypatch):
    import absdom.solvers.bab as bab

    monkeypatch.setattr(bab, "FEW_INPUTS", 0)
    graph, layers = relu_net((3, 4, 4, 2), seed)
    prop = one_row(layers, -np.ones(3), np.ones(3), offset)
    result = api.verify(graph, prop, timeout=20, attack=False, device="cpu")
    wrong = "sat" if offset > 0 else "unsat"
    assert result.verdict != wrong
    if offset > 0:
        assert result.verdict == "unsat"


@pytest.mark.parametrize("split", ["input", "relu"])
@pytest.mark.parametrize("residual", [False, True])
def test_canaries(split, residual, monkeypatch):
    """Thresholds just above sampled minima: a counterexample exists, so no method may ever say unsat."""
    import absdom.solvers.bab as bab

    if split == "relu":
        monkeypatch.setattr(bab, "FEW_INPUTS", 0)
    for seed in range(6):
        graph, _ = relu_net((4, 8, 8, 2), 100 + seed, residual)
        points = np.random.default_rng(seed).uniform(-1, 1, (4000, 4))
        problem = Problem.of(graph, make_property(-np.ones(4), np.ones(4), [(0, [([1.0, 0.0], 0.0, False)])]))
        judge = api.GraphJudge(problem.engine.graph)
        least = min(judge.run(p)[0] for p in points[:300].astype(np.float32))
        prop = make_property(-np.ones(4), np.ones(4), [(0, [([1.0, 0.0], -float(least) - 1e-4, False)])])
        for method in ("auto", "ibp", "crown", "crown-ibp", "cap"):
            result = api.verify(graph, prop, timeout=3, method=method, attack=False, device="cpu")
            assert result.verdict != "unsat", (seed, method)


def test_two_boxes_conjunctive_clause_and_strict_rows():
    graph, _ = relu_net((2, 3, 2), 3)
    low, high = np.array([[-1.0, -1.0], [0.5, 0.5]]), np.array([[0.0, 0.0], [0.5, 0.5]])
    y = api.GraphJudge(Problem.of(graph, make_property(low, high, [(0, [([1.0, 0.0], 0.0, False)])])).engine.graph)
    here = y.run(np.array([0.5, 0.5], dtype=np.float32)).astype(float)
    impossible = [([1.0, 0.0], 100.0, False), ([0.0, 1.0], -100.0, False)]  # the first atom never holds
    possible = [([1.0, 0.0], -here[0] - 1e-3, False), ([0.0, 1.0], -here[1] - 1e-3, True)]
    holds = make_property(low, high, [(0, impossible), (1, impossible)])
    assert api.verify(graph, holds, timeout=20, device="cpu").verdict == "unsat"
    broken = make_property(low, high, [(0, impossible), (1, possible)])
    result = api.verify(graph, broken, timeout=20, device="cpu")
    assert result.verdict == "sat"
    assert result.witness.clauses == (1,)
    assert np.array_equal(result.witness.x, np.array([0.5, 0.5], dtype=np.float32))


def test_rows_on_inputs():
    """y_0 - y_0(x) style rows that mix inputs and outputs: y = x + 1 has no point with y <= x, one with y <= x + 1."""
    graph, _ = identity_plus_one()
    never = make_property([-1.0], [1.0], [(0, [([1.0, -1.0], 0.0, False)])], on_inputs=True)
    assert api.verify(graph, never, timeout=10, device="cpu").verdict == "unsat"
    always = make_property([-1.0], [1.0], [(0, [([1.0, -1.0], -1.5, False)])], on_inputs=True)
    assert api.verify(graph, always, timeout=10, device="cpu").verdict == "sat"


def identity_plus_one():
    from absdom import ops
    from absdom.ir.graph import Builder
    from absdom.types import TensorType

    builder = Builder()
    x = builder.input("x", TensorType((1,)))
    y = builder.add(ops.Add(), x, builder.param(torch.ones(1), "one"))
    return builder.finish([y]), None


def test_a_witness_of_an_interval_without_float32_is_the_point_itself():
    graph, _ = identity_plus_one()
    prop = make_property([0.1], [0.1], [(0, [([1.0], -1.2, False)])])  # y <= 1.2 holds at 0.1
    result = api.verify(graph, prop, timeout=10, device="cpu")
    assert result.verdict == "sat"
    assert result.witness.moved == 1
    # y = 0.1f + 1 in float32 lies above 1.1, in the reals y <= 1.1 holds: no witness may be claimed from one of them.
    edge = make_property([0.1], [0.1], [(0, [([-1.0], 1.1 + 1e-9, False)])])  # y >= 1.1 + 1e-9
    assert float(np.float32(0.1) + np.float32(1)) > 1.1 + 1e-9
    assert api.verify(graph, edge, timeout=10, device="cpu").verdict != "sat"


def test_deadline_is_kept():
    graph, layers = relu_net((12, 40, 40, 40, 2), 5)
    prop = make_property(-3 * np.ones(12), 3 * np.ones(12), [(0, [([1.0, -1.0], 4.0, False)])])
    started = time.monotonic()
    result = api.verify(graph, prop, timeout=2.0, device="cpu", attack=False)
    assert result.verdict in ("timeout", "unsat", "sat")
    assert time.monotonic() - started < 5


def test_a_longer_ladder_never_answers_worse():
    rank = {"unsat": 2, "sat": 2, "unknown": 1, "timeout": 0}
    for seed in range(5):
        graph, layers = relu_net((3, 5, 5, 2), 40 + seed)
        prop = one_row(layers, -0.3 * np.ones(3), 0.3 * np.ones(3), 0.01)
        short = api.verify(graph, prop, timeout=30, method="ibp", attack=False, device="cpu")
        long = api.verify(graph, prop, timeout=30, method="auto", attack=False, device="cpu")
        assert rank[long.verdict] >= rank[short.verdict]


def test_where_sweeps_would_take_too_long_intervals_are_asked_first(monkeypatch):
    import absdom.pipeline as pipeline
    from absdom.problem import within_budget

    graph, layers = relu_net((3, 5, 5, 2), 41)
    prop = one_row(layers, -np.ones(3), np.ones(3), 0.02)
    plain = api.verify(graph, prop, timeout=30, attack=False, device="cpu")
    assert "crown-ibp" not in [stage.name for stage in plain.stages]
    budgets = np.logspace(-12, 0, 100)
    problem = Problem.of(graph, prop)
    chosen = [within_budget(problem, "linear", api.recipe_of("crown"), b)[0] for b in budgets]
    monkeypatch.setattr(pipeline, "SHARE", budgets[chosen.index("crown-ibp")] / 30)
    careful = api.verify(graph, prop, timeout=30, attack=False, device="cpu")
    names = [stage.name for stage in careful.stages]
    assert names[names.index("crown-ibp") + 1] == "linear"
    assert careful.verdict == plain.verdict == "unsat"


def test_same_seed_same_result():
    graph, _ = relu_net((3, 6, 6, 2), 9)
    prop = make_property(-np.ones(3), np.ones(3), [(0, [([1.0, -1.0], 0.3, False)])])
    runs = [api.verify(graph, prop, timeout=30, seed=4, device="cpu") for _ in range(2)]
    assert runs[0].verdict == runs[1].verdict
    assert runs[0].leaves == runs[1].leaves


def test_an_l2_ball_is_verified_and_attacked():
    from absdom.property import InputSet, Property

    graph, _ = identity_plus_one()
    base = make_property([-1.0], [1.0], [(0, [([1.0], -0.6, False)])])  # y <= 0.6, that is x <= -0.4
    for radius, verdict in ((0.3, "unsat"), (0.5, "sat")):
        ball = Property(InputSet.ball(np.zeros(1), radius, norm=2, clip=None), base.spec)
        assert api.verify(graph, ball, timeout=10, device="cpu").verdict == verdict


@pytest.mark.parametrize("norm", [1, 2])
def test_balls_split_on_the_input_keep_their_minimum(norm):
    """The ball's minimum lies above the box's: what shrinks leaves must not mistake one for the other."""
    from absdom.property import InputSet, Property

    random = np.random.default_rng(norm)
    for seed in range(4):
        graph, _ = relu_net((3, 6, 6, 2), 60 + seed)
        base = make_property(-np.ones(3), np.ones(3), [(0, [([1.0, 0.0], 0.0, False)])])
        points = random.standard_normal((40000, 3))
        size = np.abs(points).sum(1) if norm == 1 else np.linalg.norm(points, axis=1)
        points = 0.7 * points / size[:, None] * random.uniform(0, 1, (len(points), 1)) ** 0.2
        problem = Problem.of(graph, base)
        values = run.evaluate(problem.engine.evaluator(PROOF), torch.from_numpy(points))[:, 0]
        least = float(values.min())
        for offset, impossible in ((1e-3, "unsat"), (-0.1, "sat")):
            spec = make_property(-np.ones(3), np.ones(3), [(0, [([1.0, 0.0], -least - offset, False)])]).spec
            ball = Property(InputSet.ball(np.zeros(3), 0.7, norm=norm, clip=None), spec)
            result = api.verify(graph, ball, timeout=10, attack=False, device="cpu")
            assert result.verdict != impossible, (seed, offset)


def test_stages_see_the_clock():
    graph, _ = relu_net((3, 5, 2), 1)
    prop = make_property(-np.ones(3), np.ones(3), [(0, [([1.0, 0.0], 0.0, False)])])
    problem, judge = api.make_problem(api.read_task(graph, prop))
    result = verify_problem(problem, judge, Clock(1e-9), Options())
    assert result.verdict == "timeout"


@pytest.mark.gpu
def test_gpu_agrees():
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    for seed in range(4):
        graph, layers = relu_net((20, 30, 30, 2), seed)
        prop = make_property(-0.1 * np.ones(20), 0.1 * np.ones(20), [(0, [([1.0, -1.0], 0.4, False)])])
        for method in ("ibp", "crown", "crown-ibp", "cap"):
            here = api.bound(graph, prop, method=method, device="cpu").rows[0][2]
            there = api.bound(graph, prop, method=method, device="cuda").rows[0][2]
            assert abs(here - there) <= 1e-5 * max(1, abs(here))
        assert (
            api.verify(graph, prop, timeout=30, device="cpu").verdict
            == api.verify(graph, prop, timeout=30, device="cuda").verdict
        )
