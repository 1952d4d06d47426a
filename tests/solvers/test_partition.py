"""Partition: cells cover their sets, bounds hold and get tighter, and one part is the inner recipe."""

import functools
from fractions import Fraction
from itertools import pairwise
from math import inf

import numpy as np
import pytest
from nets import exact_minimum, relu_net

import absdom
from absdom import api
from absdom.arithmetic import PROOF, SEARCH
from absdom.errors import UsageError
from absdom.input_set import Ball, InputSet
from absdom.plan.recipes import parse_recipe
from absdom.problem import Problem, bound_rows
from absdom.property import Property, Spec, make_property
from absdom.solvers.partition import AXES, grid, pieces, shrink

rng = np.random.default_rng


def bounds(graph, prop, method, arithmetic=PROOF) -> np.ndarray:
    problem = Problem.of(graph, prop)
    return bound_rows(problem.engine, parse_recipe(method), arithmetic, prop, np.arange(prop.spec.rows))


def two_boxes(seed: int, inputs: int = 3, outputs: int = 3) -> Property:
    """Boxes of different widths with clauses of one and of two rows, not in the order of the boxes."""
    random = rng(seed)
    lower = random.uniform(-1, 0, (2, inputs))
    upper = lower + random.uniform(0.2, 1.5, (2, inputs))
    rows = [(random.standard_normal(outputs), random.standard_normal(), bool(k % 2)) for k in range(4)]
    return make_property(lower, upper, [(1, rows[:2]), (0, rows[2:3]), (1, rows[3:])])


def on_ball(sets: InputSet, outputs: int, random) -> Property:
    """One row for each set."""
    import scipy.sparse as sp

    count = len(sets)
    spec = Spec(
        sp.csr_matrix(random.standard_normal((count, outputs))), np.zeros(count), np.zeros(count, dtype=bool),
        np.arange(count), np.arange(count),
    )  # fmt: skip
    return Property(sets, spec)


@functools.cache
def with_minima(seed: int):
    """A network, a property, and the exact minimum of each of its rows."""
    graph, layers = relu_net((3, 3, 3, 3), seed)
    prop = two_boxes(seed)
    least = [
        exact_minimum(layers, prop.spec.C[r].toarray()[0], prop.spec.d[r], prop.inputs.lower[b], prop.inputs.upper[b])
        for r, b in enumerate(prop.spec.row_box())
    ]
    return graph, prop, np.array(least)


@functools.cache
def hard_row():
    """A network, a row, and its exact minimum over [-1, 1]^2, which crown misses by far."""
    graph, layers = relu_net((2, 4, 3, 2), 28)
    c = np.array([1.0, -1.0])
    return graph, c, exact_minimum(layers, c, 0.0, -np.ones(2), np.ones(2))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("seed", range(3))
def test_bounds_lie_below_the_exact_minimum(seed, axis):
    graph, prop, least = with_minima(seed)
    for method in ("crown", "ibp"):
        found = bounds(graph, prop, f"partition({method}, parts=12, axis={axis})")
        assert (found <= least + 1e-9).all() and (least - found < 2.0).all()


@pytest.mark.parametrize("axis", AXES)
def test_intervals_get_tighter_with_every_cut_of_the_same_axes(axis):
    """A grid that refines another is at least as tight in a monotone domain; 64 parts lie between 1 and the truth."""
    graph, layers = relu_net((2, 6, 6, 3), 7)
    prop = two_boxes(3, inputs=2)
    whole = bounds(graph, prop, "ibp")
    parts = bounds(graph, prop, f"partition(ibp, parts=64, axis={axis})")
    assert (parts >= whole).all() and (parts > whole + 0.1).sum() >= 3
    coarse, fine = (bounds(graph, prop, f"partition(ibp, parts={k}, axis=uniform)") for k in (4, 16))
    assert (fine >= coarse - 1e-12).all() and (fine > coarse + 1e-6).any()


def test_crown_gets_near_the_exact_minimum():
    graph, c, least = hard_row()
    prop = make_property(-np.ones(2), np.ones(2), [(0, [(c, 0.0, False)])])
    gaps = [least - bounds(graph, prop, f"partition(crown, parts={k})")[0] for k in (1, 16, 256)]
    assert gaps[0] > gaps[1] > gaps[2] >= 0 and gaps[2] < 0.05 * gaps[0]


@pytest.mark.parametrize("arithmetic", [PROOF, SEARCH], ids=["charged", "float32"])
@pytest.mark.parametrize("inner", ["ibp", "crown", "crown-ibp & ibp", "alpha-crown(steps=2)"])
@pytest.mark.parametrize("axis", AXES)
def test_one_part_is_the_inner_recipe(inner, axis, arithmetic):
    graph, _ = relu_net((3, 5, 5, 3), 1)
    balls = InputSet.ball(rng(0).uniform(0, 1, (3, 3)), [0.1, 0.7, 0.0], 2)
    for prop in (two_boxes(0), on_ball(balls, 3, rng(1))):
        plain = bounds(graph, prop, inner, arithmetic)
        assert (bounds(graph, prop, f"partition({inner}, parts=1, axis={axis})", arithmetic) == plain).all()


def test_rows_that_are_not_asked_for_stay_unknown():
    graph, _ = relu_net((3, 4, 3), 2)
    prop = two_boxes(5)
    problem = Problem.of(graph, prop)
    every = bounds(graph, prop, "partition(crown, parts=8)")
    some = bound_rows(problem.engine, parse_recipe("partition(crown, parts=8)"), PROOF, prop, np.array([3, 0]))
    assert np.isnan(some[[1, 2]]).all() and np.allclose(some[[0, 3]], every[[0, 3]], rtol=1e-12)


def test_how_axes_are_cut():
    assert pieces(np.array([[1.0, 1.0]]), 16).tolist() == [[4, 4]]
    assert pieces(np.array([[1.0, 1.0, 1.0]]), 16).tolist() == [[4, 2, 2]]
    assert pieces(np.array([[8.0, 1.0], [0.0, 0.0], [0.0, 2.0]]), 6).tolist() == [[6, 1], [1, 1], [1, 6]]
    assert pieces(np.array([[5.0, 0.0, 3.0, 4.0]]), 1).tolist() == [[1, 1, 1, 1]]
    many = pieces(rng(0).uniform(0, 1, (5, 50)), 64)
    assert (many.prod(1) <= 64).all() and (many.prod(1) > 32).all()


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_cells_cover_their_boxes_exactly(at_once):
    random = rng(0)
    lower = np.array([[-1.0, 0.1, 2.0], [1e-300, -3.0, 0.3], [-1e308, 1.0, 0.0]])
    upper = np.array([[0.3, 0.1, 5.0], [2e-300, 4.0, np.nextafter(0.3, 1)], [1e308, 1.0, 1e-323]])
    count = np.array([[3, 1, 5], [7, 2, 3], [3, 1, 4]])
    sets, seen = InputSet.box(lower, upper), [[], [], []]
    for owner, cells in grid(sets, count, at_once):
        assert len(cells) <= at_once
        for b, low, high in zip(owner, cells.lower, cells.upper, strict=True):
            seen[b].append((low, high))
    for b in range(3):
        assert len(seen[b]) == count[b].prod()
        for axis in range(3):
            faces = sorted({(low[axis], high[axis]) for low, high in seen[b]})
            assert faces[0][0] == lower[b, axis] and faces[-1][1] == upper[b, axis]
            assert all(left[1] >= right[0] for left, right in pairwise(faces))  # no gap, not even of one float
        for share in random.random((200, 3)):  # every combination of pieces is there
            x = np.clip(lower[b] * (1 - share) + upper[b] * share, lower[b], upper[b])
            assert any((low <= x).all() and (x <= high).all() for low, high in seen[b])


def test_axes_without_width_are_never_cut():
    graph, _ = relu_net((4, 5, 2), 3)
    lower = np.array([[0.0, 0.5, -0.25, 1.0], [0.2, 0.2, 0.2, 0.2]])
    upper = np.array([[0.0, 0.7, -0.25, 1.0], [0.2, 0.2, 0.2, 0.2]])
    for weights in (upper - lower, (upper > lower).astype(float)):
        assert pieces(weights, 8).tolist() == [[1, 8, 1, 1], [1, 1, 1, 1]]
    prop = make_property(
        lower, upper, [(0, [(np.array([1.0, 0]), 0.0, False)]), (1, [(np.array([0, 1.0]), 0.0, True)])]
    )
    for axis in AXES:
        found = bounds(graph, prop, f"partition(crown, parts=8, axis={axis})")
        assert found[1] == bounds(graph, prop, "crown")[1] and np.isfinite(found).all()


@pytest.mark.parametrize("norm", [1, 2])
def test_cells_of_a_ball_keep_all_its_points(norm):
    """Points of the ball, membership decided in rationals, each lie in a cell; cells outside are dropped."""
    random = rng(norm)
    dropped = 0
    for trial in range(60):
        n = int(random.integers(1, 4))
        centre = random.uniform(-1, 2, (1, n)).round(2)
        radius = float(random.choice([1e-8, 0.3, 1.0]))
        sets = InputSet.ball(centre, radius, norm, None if trial % 3 else (-1e9, 1e9))
        count = random.integers(1, 9, (1, n))
        cells = [
            (low, high) for _, part in grid(sets, count, 7) for low, high in zip(part.lower, part.upper, strict=True)
        ]
        dropped += int(count.prod()) - len(cells)
        for _ in range(60):
            step = random.standard_normal(n)
            if random.random() < 0.3:
                step = np.where(random.random(n) < 0.5, 0, step)
            step *= radius / max(np.linalg.norm(step, norm), 1e-300) * random.choice([1.0, 1.0, random.random()])
            x = centre[0] + step
            if not sets.contains(x, 0):
                continue
            assert any((low <= x).all() and (x <= high).all() for low, high in cells), (trial, x)
    assert dropped > 20


def test_a_cell_is_dropped_only_if_it_surely_misses_the_ball():
    ball = Ball(np.zeros((3, 2)), np.ones((3, 1)), 2)
    corner = np.sqrt(0.5)
    least = np.array([[corner] * 2, [np.nextafter(corner, 0)] * 2, [corner * (1 + 1e-13)] * 2])
    low, high, empty = shrink(ball, least, np.ones((3, 2)))
    inside = [sum(Fraction(float(t)) ** 2 for t in row) <= 1 for row in least]
    assert inside == [False, True, False] and empty.tolist() == [False, False, True]
    assert (high[:2] - low[:2] < 1e-6).all() and (low[:2] <= corner).all() and (high[:2] >= corner).all()
    # Half-axes along the inputs, one of them zero.
    flat = Ball(np.array([[0.5, 0.25]]), np.array([[0.5, 0.0]]), 2)
    low, high, empty = shrink(flat, np.array([[0.5, 0.0]]), np.array([[2.0, 1.0]]))
    assert not empty[0] and high[0, 0] == pytest.approx(1.0) and low[0, 1] == pytest.approx(0.25) == high[0, 1]
    assert shrink(flat, np.array([[0.5, 0.3]]), np.array([[2.0, 1.0]]))[2][0]


@pytest.mark.parametrize("norm", [1, 2, inf])
@pytest.mark.parametrize("axis", AXES)
def test_balls_by_sampling(norm, axis):
    graph, layers = relu_net((2, 6, 6, 3), 4)
    random = rng(7)
    sets = InputSet.ball(random.uniform(0, 1, (4, 2)), [0.05, 0.2, 0.5, 0.0], norm, (0.0, 1.0))
    prop = on_ball(sets, 3, random)
    whole, parts = (bounds(graph, prop, m) for m in ("ibp", f"partition(ibp, parts=49, axis={axis})"))
    assert (parts >= whole - 1e-12).all() and (parts[:3] > whole[:3] + 1e-4).all()
    points = random.uniform(sets.lower[:, None], sets.upper[:, None], (4, 2000, 2))
    for b in range(4):
        inside = np.array([x for x in points[b] if sets.contains(x, b)])
        value = inside
        for k, (w, bias) in enumerate(layers):
            value = value @ w + bias
            value = np.maximum(value, 0) if k < len(layers) - 1 else value
        assert parts[b] <= (value @ prop.spec.C[b].toarray()[0]).min() + 1e-9


def test_a_set_without_a_point_is_not_proved_by_that():
    """The ball lies outside the pixel box: no cell is left, and the bounds are those of the whole."""
    graph, _ = relu_net((2, 4, 3), 0)
    sets = InputSet(np.zeros((1, 2)), np.ones((1, 2)), (Ball(np.array([[2.0, 2.0]]), np.array([[1.1]]), 2),))
    prop = on_ball(sets, 3, rng(0))
    assert bounds(graph, prop, "partition(ibp, parts=16)") == bounds(graph, prop, "ibp")


def test_verify_closes_what_the_whole_box_does_not():
    graph, c, least = hard_row()
    prop = make_property(-np.ones(2), np.ones(2), [(0, [(c, 0.1 - least, False)])])
    verdicts = [
        api.verify(graph, prop, method=m, attack=False, device="cpu").verdict
        for m in ("crown", "partition(crown, parts=64)", "partition(crown, parts=64, axis=dual) & ibp")
    ]
    assert verdicts == ["unknown", "unsat", "unsat"]
    never = make_property(-np.ones(2), np.ones(2), [(0, [(c, -1e-6 - least, False)])])
    assert (
        api.verify(graph, never, method="partition(crown, parts=256)", attack=False, device="cpu").verdict == "unknown"
    )


def test_many_parts_come_in_groups(monkeypatch):
    import absdom.solvers.partition as module

    graph, _ = relu_net((3, 5, 5, 3), 6)
    prop = two_boxes(9)
    whole = bounds(graph, prop, "partition(crown, parts=100)")
    monkeypatch.setattr(module, "NUMBERS", 50)
    assert np.allclose(bounds(graph, prop, "partition(crown, parts=100)"), whole, rtol=1e-9, atol=1e-12)


def test_a_deadline_leaves_rows_unknown():
    graph, _ = relu_net((3, 5, 3), 6)
    prop = two_boxes(9)
    from absdom.types import Clock

    problem, passed = Problem.of(graph, prop), Clock(0.0)
    for axis in AXES:
        recipe = parse_recipe(f"partition(crown, axis={axis})")
        assert np.isnan(bound_rows(problem.engine, recipe, PROOF, prop, np.arange(4), passed)).all()


def test_a_partition_within_a_partition():
    graph, _ = relu_net((2, 5, 3), 8)
    prop = two_boxes(4, inputs=2)
    nested = bounds(graph, prop, "partition(partition(ibp, parts=4, axis=uniform), parts=4, axis=uniform)")
    assert np.allclose(nested, bounds(graph, prop, "partition(ibp, parts=16, axis=uniform)"), rtol=1e-9)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("partition(crown, parts=0)", r"column 24: parts is a whole number of 1 or above, not 0"),
        ("partition(crown, parts=2.5)", r"column 24: parts is a whole number, not 2.5"),
        ("partition(crown, axis=longest)", r"column 23: axis 'longest' is not one of widest, uniform, dual"),
        ("partition(parts=4)", r"column 1: 'partition' needs 'of'; it takes: of, parts, axis"),
    ],
)
def test_bad_arguments(method, message):
    with pytest.raises(UsageError, match=message):
        parse_recipe(method)


def test_bounds_of_a_layer_have_no_parts():
    graph, _ = relu_net((3, 4, 2), 0)
    with pytest.raises(UsageError, match="asks other recipes about whole properties"):
        absdom.compile(graph, "partition(crown)").bounds(InputSet.box(np.zeros(3), np.ones(3)))
