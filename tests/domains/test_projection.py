"""Random projections: the tail bound, the estimates against exact norms, what they may and may not close."""

from __future__ import annotations

from math import exp, inf

import numpy as np
import pytest
import torch
from exact_oracle import real_outputs
from forward_states import dense, final_state

from absdom import api, ops, testing
from absdom.arithmetic import PROOF, SEARCH
from absdom.domain import total_failure
from absdom.domains.projection import Draws, Projected, overestimate
from absdom.errors import UsageError
from absdom.plan import run
from absdom.plan.planner import make_schedule
from absdom.plan.recipes import parse_recipe
from absdom.problem import Problem, bound_rows
from absdom.property import InputSet, make_property
from absdom.rows import Rows
from absdom.sets import InputBatch
from absdom.types import TensorType

CASES = {case.name: case for case in testing.standard_cases()}
GEOMETRIC = Projected(projections=20, estimator="geometric")
DIFFERENTIATED = ("Relu", "Sigmoid", "Product", "Softmax")


def exact_width(state) -> torch.Tensor:
    """The norm that a state's draws estimate, from unit vectors in place of random ones: "B *n"."""
    kept, used = state.run.noise, [0]
    order = {state}
    for s in list(order):
        pending = [s]
        while pending:
            for source in pending.pop().sources:
                if source is not None and source not in order:
                    order.add(source)
                    pending.append(source)
    total = sum(s.radius[0].numel() for s in order if s.radius is not None)

    def units(radius, ball, generator):
        n = radius[0].numel()
        out = radius.new_zeros((len(radius), total, n))
        out[:, used[0] : used[0] + n] = torch.diag_embed(radius.reshape(len(radius), n))
        used[0] += n
        return out.reshape(len(radius), total, *radius.shape[1:])

    state.run.noise = units
    try:
        return state.replay(None).vectors.abs().sum(1)
    finally:
        state.run.noise = kept


def boxes_around(centre, radius):
    return InputBatch(centre - radius, centre + radius)


def test_the_tail_bound_is_that_of_the_dissertation():
    """delta = 0.262: epsilon = 0.306, 0.227, 0.166, 0.121 at 50, 100, 200, 400 projections."""
    for count, epsilon in ((50, 0.306), (100, 0.227), (200, 0.166), (400, 0.121)):
        assert abs(1 - exp(-overestimate(count, 0.262)) - epsilon) < 1e-3


@pytest.mark.parametrize("doubt", [0.3, 0.05, 0.003])
def test_geometric_means_fail_as_seldom_as_they_say(doubt):
    generator = torch.Generator().manual_seed(1)
    count, trials = 20, 40_000
    draws = torch.empty((trials, count), dtype=torch.float64).cauchy_(generator=generator).abs()
    found = draws.log().mean(1) + overestimate(count, doubt)
    share = (found < 0).double().mean().item()
    assert 0 < share <= doubt  # Chernoff's bound is not far off


def test_draws_from_torchs_generator():
    """Without a seed each run draws anew, and a state of the default generator repeats it."""
    case = CASES["Relu"]
    sets = InputBatch(*(torch.as_tensor(end) for end in (case.lower, case.upper)))
    context = run.prepare(make_schedule(case.graph, Projected(projections=3, seed=None)), SEARCH)

    def width():
        bounds = run.propagate(context, InputBatch(*(end.to(SEARCH.dtype) for end in sets[:2])), final=(final := {}))
        assert bounds
        (state,) = final.values()
        return state.drawn()[0].vectors

    torch.manual_seed(1)
    first, second = width(), width()
    torch.manual_seed(1)
    assert torch.equal(width(), first) and not torch.equal(first, second)
    assert parse_recipe("projected(seed=None)") == Projected(seed=None)


def test_many_projections_give_the_exact_bounds():
    """20,001 of them: CAP's bounds (the zonotope's, generator by generator) to 6 percent; on l2 balls too."""
    graph, _ = dense((6, 12, 12, 3), 2)
    centre = torch.rand((2, 6), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ball = InputBatch.of(InputSet.ball(centre.numpy(), 0.2, 2, None), testing.FLOAT64)
    for sets in (boxes_around(centre, 0.1), ball):
        widths = []
        for recipe in (Projected(20_001), parse_recipe("cap & interval")):
            context = run.prepare(make_schedule(graph, recipe), testing.FLOAT64)
            with torch.no_grad():
                found = run.node_bounds(context, sets)
            widths.append(found.upper - found.lower)
        torch.testing.assert_close(widths[0], widths[1], rtol=0.06, atol=0)


def test_geometric_bounds_are_never_below_the_exact_ones():
    """1,000 seeds, 24 norms in each, at failure probability 1e-6; at 0.9 the same network shows failures."""
    graph, _ = dense((4, 10, 8, 3), 0)
    centre = torch.rand((8, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sets = boxes_around(centre, 0.1)
    for failure, trials in ((1e-6, 1000), (0.9, 100)):
        below = 0
        for seed in range(trials):
            recipe = Projected(20, "geometric", failure, seed)
            state, _ = final_state(graph, sets, testing.FLOAT64, recipe)
            state.run.estimates = 0  # as if this were the first estimate: the largest share of the failure probability
            found = recipe.concretize(state, testing.FLOAT64)
            below += bool(((found.upper - found.lower) / 2 < exact_width(state)).any())
        assert (below == 0) == (failure == 1e-6)


@pytest.mark.parametrize("name", CASES)
def test_every_op_keeps_the_laws(name):
    testing.check_sound(CASES[name].half_flat(), GEOMETRIC)
    median = Projected(projections=6)
    testing.check_batch(CASES[name], median)
    testing.check_exact_on_points(CASES[name].on_points(), median)
    if name in DIFFERENTIATED:
        testing.check_gradients(CASES[name], median)
        testing.check_gradients(CASES[name], GEOMETRIC)


def test_rounding_is_charged_at_points():
    """At points no draw has any length: what is left is the charge, and it has to hold."""
    graph, _ = dense((5, 30, 30, 2), 4)
    points = torch.randn((8, 5), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 100
    real = [real_outputs(graph, point)[0] for point in points]
    state, _ = final_state(graph, InputBatch(points, points), PROOF, GEOMETRIC)
    found = GEOMETRIC.concretize(state, PROOF)
    assert ((found.upper - found.lower) < 1e-8).all()
    for low, high, y in zip(found.lower[:, 0].tolist(), found.upper[:, 0].tolist(), real, strict=True):
        assert all(l <= v <= h for l, v, h in zip(low, y, high, strict=True))


def test_a_seed_repeats_a_run_and_another_does_not():
    graph, _ = dense((4, 10, 10, 2))
    low, high = torch.full((2, 4), 0.5).double(), torch.full((2, 4), 0.52).double()
    for estimator in ("median", "geometric"):
        found = [
            testing.bounds_of(graph, low, high, Projected(60, estimator, seed=seed), SEARCH).upper for seed in (3, 3, 4)
        ]
        assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_draws_of_an_estimate_are_its_own():
    """With `geometric`, estimates share no draws: later slopes depend on what earlier ones gave."""
    graph, _ = dense((4, 10, 10, 2))
    sets = boxes_around(torch.zeros((1, 4)).double(), 0.3)
    state, _ = final_state(graph, sets, testing.FLOAT64, GEOMETRIC)
    first, second = (state.drawn() for _ in range(2))
    assert second[1] == first[1] + 1 and not torch.equal(first[0].vectors, second[0].vectors)
    state, _ = final_state(graph, sets, testing.FLOAT64, Projected())
    assert state.drawn()[0] is state.drawn()[0] and not state.sources


def first_seed(sets, arithmetic, recipe=GEOMETRIC) -> int:
    graph, _ = dense((4, 10, 2))
    return final_state(graph, sets, arithmetic, recipe)[0].run.generator(1).initial_seed()


def test_proofs_draw_anew_for_other_boxes_and_repeat_for_the_same():
    """A strategy may choose boxes by what earlier ones gave; searches share draws, so that batches agree."""

    def drawn(radius, arithmetic):
        return first_seed(boxes_around(torch.zeros((1, 4)).double(), radius), arithmetic)

    assert drawn(0.5, PROOF) == drawn(0.5, PROOF) != drawn(0.25, PROOF)
    assert drawn(0.5, testing.FLOAT64) == drawn(0.25, testing.FLOAT64) != drawn(0.5, PROOF)


def test_proofs_of_other_parts_in_one_box_and_of_other_recipes_draw_anew():
    """A search for a radius asks about balls that the same box cuts off; recipes in a meet read each other's bounds."""
    balls = [InputBatch.of(InputSet.ball(np.full((1, 4), 0.5), np.full(1, r), 2.0), PROOF) for r in (3.0, 4.0)]
    assert torch.equal(balls[0].lower, balls[1].lower) and torch.equal(balls[0].upper, balls[1].upper)
    assert first_seed(balls[0], PROOF) == first_seed(balls[0], PROOF) != first_seed(balls[1], PROOF)
    other = Projected(projections=30, estimator="geometric")
    assert first_seed(balls[0], PROOF) != first_seed(balls[0], PROOF, other)


def test_rows_of_boxes_in_groups_and_ragged():
    graph, _ = dense((4, 10, 3))
    sets = boxes_around(torch.rand((3, 4), generator=torch.Generator().manual_seed(0)).double(), 0.2)
    recipe = Projected(9)
    state, _ = final_state(graph, sets, PROOF, recipe)
    nu = torch.randn((6, 1, 3), generator=torch.Generator().manual_seed(1)).double()
    grouped = recipe.bound_rows(state, Rows.dense_rows(nu, 3), PROOF)
    ragged = recipe.bound_rows(state, Rows.dense_rows(nu, 3, torch.arange(3).repeat_interleave(2)), PROOF)
    torch.testing.assert_close(grouped, ragged)  # by medians, which do not ask how many there are
    single = Rows.dense_rows(torch.eye(3).double().reshape(3, 1, 3).repeat(3, 1, 1), 3)
    found = recipe.concretize(state, PROOF)
    torch.testing.assert_close(
        recipe.bound_rows(state, single, PROOF).reshape(3, 1, 3), found.lower, rtol=1e-9, atol=1e-9
    )


def easy_property(graph, shift):
    """The first output stays below its largest value over [0, 1]^4, by intervals, plus `shift`: true for shift > 0."""
    low, high = np.zeros((1, 4)), np.ones((1, 4))
    top = testing.bounds_of(graph, torch.zeros((1, 4)).double(), torch.ones((1, 4)).double(), "interval", PROOF).upper
    return make_property(low, high, [(0, [(np.array([-1.0, 0.0]), float(top[0, 0, 0]) + shift, False)])])


def test_medians_close_nothing_and_geometric_means_name_their_doubt():
    graph, _ = dense((4, 6, 2))
    prop = easy_property(graph, 5.0)
    for method in ("projected", "projected(projections=10, seed=5)", "linear(pre=projected)"):
        result = api.verify(graph, prop, method=method, attack=False, device="cpu", timeout=20)
        assert result.verdict == "unknown", method
    recipe = parse_recipe("projected(estimator=geometric, failure=1e-7)")
    assert total_failure(recipe) == 1e-7 and total_failure(parse_recipe("linear(pre=projected) & interval")) == inf
    result = api.verify(graph, prop, method=recipe, attack=False, device="cpu", timeout=20)
    assert result.verdict == "unsat" and "1e-07" in result.guarantee


def test_only_proofs_add_to_the_doubt_and_each_of_their_sets():
    graph, _ = dense((4, 6, 2))
    for method, doubt in (
        ("projected", inf), ("projected(estimator=geometric, failure=0.01)", 0.01),
        ("partition(linear(pre=projected(estimator=geometric, failure=0.01)), parts=4)", 0.04),
    ):  # fmt: skip
        problem = Problem.of(graph, easy_property(graph, 5.0))
        for arithmetic, wanted in ((SEARCH, 0.0), (PROOF, doubt)):
            bound_rows(problem.engine, parse_recipe(method), arithmetic, problem.property, np.arange(1))
            assert problem.engine.doubt == pytest.approx(wanted), (method, arithmetic)


def test_medians_never_say_unsat_on_a_property_with_a_counterexample():
    """Canary: few projections often give estimates that would prove what is false."""
    graph, _ = dense((4, 12, 12, 2), 1)
    values = run.evaluate(
        run.prepare(make_schedule(graph, parse_recipe("interval")), testing.FLOAT64),
        torch.rand((4000, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    )
    top = float(values[:, 0, 0].max())
    prop = make_property(np.zeros((1, 4)), np.ones((1, 4)), [(0, [(np.array([-1.0, 0.0]), top, False)])])
    problem = Problem.of(graph, prop)
    for seed in range(6):
        recipe = Projected(1, seed=seed)
        assert api.verify(graph, prop, method=recipe, attack=False, device="cpu", timeout=20).verdict != "unsat"
        sure = Projected(30, "geometric", seed=seed)
        assert not bound_rows(problem.engine, sure, PROOF, prop, np.arange(1))[0] > 0


@pytest.mark.parametrize("method", ["projected", "linear(pre=projected)", "crown & projected"])
def test_bounds_over_the_reals_are_not_asked_of_estimates(method):
    graph = testing.one_op(ops.Relu(), TensorType((1, 3), "float64"))
    prop = make_property(-np.ones(3), np.ones(3), [(0, [(np.ones(3), 1.0, False)])])
    assert len(api.bound(graph, prop, method=method).rows) == 1
    with pytest.raises(UsageError, match="estimates"):
        api.bound(graph, prop, method=method, proof=True)
    with pytest.raises(UsageError, match="estimates"):
        api.compile(graph, method).bounds(prop, arithmetic=PROOF)


def test_the_largest_of_several_estimates():
    sizes = torch.rand((1, 12, 5), generator=torch.Generator().manual_seed(0)).double()
    one = [Projected(4, "median").scale(part, 0.1, SEARCH) for part in sizes.split(4, 1)]
    torch.testing.assert_close(Projected(4, largest_of=3).scale(sizes, 0.1, SEARCH), torch.stack(one).amax(0))
    factor = Projected(4, "geometric", largest_of=3).scale(sizes, 1e-3, SEARCH)
    means = [part.log().mean(1).exp() for part in sizes.split(4, 1)]
    torch.testing.assert_close(factor, torch.stack(means).amax(0) * exp(overestimate(4, 0.1)))


def test_nothing_known_stays_nothing_known():
    """An infinite input reaches a bounded function: estimates go on from its image."""
    graph, _ = dense((3, 5, 5, 2), 0, ops.Sigmoid())
    low, high = torch.tensor([[-inf, 0, 0.0]]).double(), torch.tensor([[inf, 1, 1.0]]).double()
    for recipe in (GEOMETRIC, Projected(9)):
        found = testing.bounds_of(graph, low, high, recipe, PROOF)
        assert torch.isfinite(found.lower).all() and torch.isfinite(found.upper).all()


@pytest.mark.parametrize(
    "text, word",
    [
        ("projected(projections=0)", "projections"), ("projected(estimator=mean)", "estimator"),
        ("projected(failure=0)", "failure"), ("projected(failure=1.5)", "failure"), ("projected(seed=-1)", "seed"),
        ("projected(projections=2.5)", "projections"), ("projected(largest_of=0)", "largest_of"),
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense(text, word):
    with pytest.raises(UsageError, match=word):
        parse_recipe(text)


def test_draws_without_errors_in_search():
    graph, _ = dense((3, 4, 2))
    state, _ = final_state(graph, boxes_around(torch.zeros((1, 3)).double(), 1.0), testing.FLOAT64, GEOMETRIC)
    assert isinstance(state.drawn()[0], Draws) and state.drawn()[0].error is None
