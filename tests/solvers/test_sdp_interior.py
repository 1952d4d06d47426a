"""The recipe `sdp-fo`: each iterate is a bound, and the last one is the semidefinite program's."""

from __future__ import annotations

import numpy as np
import pytest
from nets import exact_minimum, relu_net
from programs import Asked

from absdom import registry
from absdom.encoding import Style
from absdom.errors import UsageError
from absdom.solvers.sdp.central_path import Dual, follow
from absdom.solvers.sdp.interior import CentralPath
from absdom.solvers.sdp.lift import lift


def ask(seed: int, sizes=(3, 5, 2), residual: bool = False, boxes: int = 1, rows: int = 1, **options):
    """(the question, its layers, boxes and rows) of a random network."""
    graph, layers = relu_net(sizes, seed, residual)
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(boxes, sizes[0]))
    lower, upper = centre - 0.7, centre + 0.7
    C, d = rng.normal(size=(boxes, rows, sizes[-1])), rng.normal(size=(boxes, rows))
    asked = Asked(graph, lower, upper, C, d, registry.recipes()["sdp-fo"](**options))
    return asked, layers, lower, upper, C, d


def other(asked: Asked, method: str, **options) -> Asked:
    """The same question to another recipe, over the same intermediate bounds."""
    asked.recipe = registry.recipes()[method](**options)
    return asked


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("steps", [0, 1, 5, 100])
def test_every_iterate_is_a_bound(seed, steps):
    asked, layers, lower, upper, C, d = ask(seed, steps=steps, rows=2)
    found = asked.answer()
    for k in range(2):
        exact = exact_minimum(layers, C[0, k], d[0, k], lower[0], upper[0])
        assert np.isfinite(found.lower[k])
        assert found.lower[k] <= exact + 1e-9
        if steps == 100:
            assert found.lower[k] == pytest.approx(found.claimed[k], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_a_conic_solver(seed):
    asked, *_ = ask(seed, sizes=(3, 4, 4, 2) if seed % 2 else (4, 7, 2), residual=seed == 3, tolerance=1e-6)
    mine = asked.answer()
    conic = other(asked, "sdp", products=0, solver="CLARABEL", cliques="one").answer()
    assert mine.lower[0] == pytest.approx(conic.claimed[0], rel=1e-3, abs=1e-3)
    linear = other(asked, "lp").answer()
    assert mine.lower[0] >= linear.lower[0] - 1e-4 * (1 + abs(linear.lower[0]))


def test_sampled_outputs_of_residual_networks():
    for seed in range(4):
        asked, _, lower, upper, C, d = ask(seed, sizes=(3, 4, 4, 4, 2), residual=True)
        found = asked.answer()
        points = np.random.default_rng(0).uniform(lower[0], upper[0], (2000, 3))
        assert found.lower[0] <= (asked.values(points) @ C[0, 0]).min() + d[0, 0]
        assert (np.abs(found.points[0] - (lower[0] + upper[0]) / 2) <= 0.7 + 1e-9).all()


def test_two_boxes_are_bounded_apart():
    asked, layers, lower, upper, C, d = ask(1, boxes=2, rows=2)
    found = asked.answer()
    for b in range(2):
        for k in range(2):
            exact = exact_minimum(layers, C[b, k], d[b, k], lower[b], upper[b])
            assert exact - 1.0 <= found.lower[2 * b + k] <= exact + 1e-9


def test_a_conjunction_is_no_looser_than_its_rows():
    for seed in range(4):
        asked, _, lower, upper, C, d = ask(seed, rows=3)
        apart, together = asked.answer(), asked.answer(group=np.zeros(3, dtype=int))
        points = np.random.default_rng(0).uniform(lower[0], upper[0], (5000, 3))
        values = asked.values(points) @ C[0].T + d[0]
        assert together.lower[0] <= values.max(1).min()
        assert together.lower[0] >= apart.lower.max() - 1e-3 * (1 + abs(apart.lower).max())


def test_stops_above_the_goal():
    asked, *_ = ask(2)
    best = asked.answer().lower[0]
    found = asked.answer(goal=[best - 1.0])
    assert best - 1.0 < found.lower[0] <= best + 1e-6
    assert found.claimed[0] < best - 1e-6


def test_a_deadline_leaves_what_there_is():
    asked, *_ = ask(0, sizes=(20, 60, 2))
    assert asked.answer(seconds=0.0).lower[0] == -np.inf
    short, long = asked.answer(seconds=1e-3 + 0.05), asked.answer()
    assert short.lower[0] <= long.lower[0] + 1e-3


def test_rows_side_by_side_are_as_rows_alone():
    asked, *_ = ask(5, sizes=(6, 12, 4), rows=3)
    solver = asked.recipe
    together = asked.answer().lower
    apart = [asked.answer(goal=np.where(np.arange(3) == k, np.inf, -np.inf)).lower[k] for k in range(3)]
    assert solver is asked.recipe and np.allclose(together, apart, rtol=1e-3, atol=1e-3)


def test_a_row_that_stands_still_leaves_the_others_their_steps():
    """One of the costs is no number, and one so large that its products overflow."""
    asked, *_ = ask(5, sizes=(6, 12, 4))
    program = lift(*asked.encoding(Style(quadratics=True)))
    *_, alone = follow(Dual(program, program.cost[None]), 40)
    costs = np.stack([np.full_like(program.cost, np.nan), program.cost, 1e300 * program.cost])
    *_, together = follow(Dual(program, costs), 40)
    assert together.bound[0] == -np.inf and together.moments[1:].isfinite().all()
    assert float(together.bound[1]) == pytest.approx(float(alone.bound[0]), rel=1e-8)


def test_a_large_constant_hides_nothing():
    """Steps to a given relative distance come as near with it as without."""
    asked, *_ = ask(5, sizes=(6, 12, 4), rows=1, tolerance=1e-12)
    program = lift(*asked.encoding(Style(quadratics=True)))
    costs = np.stack([program.cost, program.cost])
    costs[1, 0] += 2.0**30
    *_, last = follow(Dual(program, costs), 40)
    assert float(last.bound[1]) - 2.0**30 == pytest.approx(float(last.bound[0]), abs=1e-5)


def test_rows_are_taken_side_by_side_as_far_as_the_budget_goes(monkeypatch):
    asked, *_ = ask(5, sizes=(6, 12, 4), rows=12, budget=3.0)
    sizes, bound = [], CentralPath._bound

    def counted(self, programs, *rest):
        sizes.append(len(programs))
        bound(self, programs, *rest)

    monkeypatch.setattr(CentralPath, "_bound", counted)
    few = asked.answer().lower
    assert sum(sizes) == 12 and len(sizes) > 1
    assert np.allclose(few, other(asked, "sdp-fo").answer().lower, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{"steps": -1}, {"tolerance": 0.0}, {"device": "tpu"}])
def test_bad_options(options):
    with pytest.raises(UsageError, match="sdp-fo"):
        registry.recipes()["sdp-fo"](**options)


@pytest.mark.gpu
def test_on_a_gpu():
    asked, *_ = ask(4, sizes=(8, 30, 3), rows=4, device="cuda")
    cuda = asked.answer().lower
    cpu = other(asked, "sdp-fo", device="cpu").answer().lower
    assert np.allclose(cuda, cpu, rtol=1e-3, atol=1e-3)
