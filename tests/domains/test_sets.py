"""Ellipsoids and polytopes as input sets: against an exact LP, closed forms, rationals, and in whole verifications."""

from __future__ import annotations

from fractions import Fraction
from math import inf

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

import absdom
from absdom import InputSet, PropertyError
from absdom.arithmetic import PROOF, SEARCH, Arithmetic
from absdom.input_set import Ball, HalfSpaces
from absdom.passes import lower
from absdom.plan import run
from absdom.plan.planner import make_schedule
from absdom.plan.recipes import parse_recipe
from absdom.rows import Rows
from absdom.sets import InputBatch

FLOAT64 = Arithmetic(torch.float64)


def polytopes(random, n: int, boxes: int, rows: int) -> InputSet:
    """Polytopes around points of their boxes, some of them hardly cut, some thin; with a flat dimension."""
    lower = random.uniform(-1, 0, (boxes, n)).round(2)
    upper = lower + random.choice([0.0, 0.5, 2.0], (boxes, n))
    inside = lower + random.uniform(0, 1, (boxes, n)) * (upper - lower)
    normals = random.standard_normal((boxes, rows, n)) * random.choice([0, 1, 1, 100], (boxes, rows, n))
    room = random.choice([1e-3, 0.2, 1.0], (boxes, rows))
    return InputSet.polytope(normals, (normals @ inside[:, :, None])[:, :, 0] + room, lower, upper)


def definite(random, n: int) -> np.ndarray:
    root = random.standard_normal((n, n))
    return root @ root.T / n + 0.1 * np.eye(n)


def rows_of(nu: np.ndarray, boxes: int, ragged: bool) -> Rows:
    box = torch.arange(boxes).repeat_interleave(len(nu) // boxes) if ragged else None
    return Rows.dense_rows(torch.from_numpy(nu), boxes, box)


def exact(nu: np.ndarray, x: np.ndarray) -> Fraction:
    return sum(Fraction(float(a)) * Fraction(float(b)) for a, b in zip(nu, x, strict=True))


def sampled(inputs: InputSet, batch: InputBatch, nu: np.ndarray, box: int, random) -> list[np.ndarray]:
    """Points that are in the set by exact arithmetic: lowest points of a row, random ones, all drawn into it."""
    directions = torch.from_numpy(np.stack([nu, *random.standard_normal((6, len(nu)))]))
    points = batch.select(torch.tensor([box])).lowest(directions[None])[0].numpy()
    points = np.concatenate([points, points.mean(0, keepdims=True), (points[:1] + points) / 2])
    points = np.clip(points, inputs.lower[box], inputs.upper[box])
    found = [x for x in (*points, inputs.round_into(points[0], box).astype(np.float64)) if inputs.contains(x, box)]
    assert found or (inputs.lower[box] == inputs.upper[box]).any(), "no point of the set to compare with"
    return found


@pytest.mark.parametrize("ragged", [False, True])
def test_the_support_of_polytopes_is_below_the_linear_program_and_near_it(ragged):
    random = np.random.default_rng(0)
    loose = []
    for _ in range(8):
        n, boxes, rows = (int(random.integers(1, high)) for high in (9, 4, 6))
        inputs = polytopes(random, n, boxes, rows)
        nu = random.standard_normal((2 * boxes, n)) * random.choice([0, 1, 1, 1e3], (2 * boxes, n))
        for arithmetic in (PROOF, FLOAT64):
            batch = InputBatch.of(inputs, arithmetic)
            found = batch.support(rows_of(nu, boxes, ragged), arithmetic).numpy()
            for r, value in enumerate(found):
                b = r // 2
                part = inputs.parts[0]
                box = np.stack([inputs.lower[b], inputs.upper[b]], 1)
                best = linprog(nu[r], part.normals[b], part.offsets[b], bounds=box).fun
                size = 1e-9 + np.abs(nu[r]).sum()
                assert value <= best + 1e-7 * size
                least = np.minimum(nu[r] * inputs.lower[b], nu[r] * inputs.upper[b]).sum()
                assert value >= least - 1e-9 * size
                loose.append((best - value) / size)
                if arithmetic.charged:
                    assert all(
                        Fraction(float(value)) <= exact(nu[r], x) for x in sampled(inputs, batch, nu[r], b, random)
                    )
    assert np.quantile(loose, 0.8) < 5e-4 and max(loose) < 0.05, (np.quantile(loose, 0.9), max(loose))


def test_one_half_space_is_exact():
    random = np.random.default_rng(1)
    for _ in range(30):
        inputs = polytopes(random, 6, 2, 1)
        nu = random.standard_normal((2, 6))
        found = InputBatch.of(inputs, FLOAT64).support(rows_of(nu, 2, False), FLOAT64)
        for b in range(2):
            part, box = inputs.parts[0], np.stack([inputs.lower[b], inputs.upper[b]], 1)
            best = linprog(nu[b], part.normals[b], part.offsets[b], bounds=box).fun
            assert abs(found[b] - best) < 1e-7


def test_padded_half_spaces_change_nothing():
    random = np.random.default_rng(2)
    inputs = polytopes(random, 5, 3, 2)
    part = inputs.parts[0]
    padded = HalfSpaces(np.pad(part.normals, ((0, 0), (0, 2), (0, 0))), np.pad(part.offsets, ((0, 0), (0, 2))))
    nu = rows_of(random.standard_normal((6, 5)), 3, False)
    values = [
        InputBatch.of(sets, FLOAT64).support(nu, FLOAT64)
        for sets in (inputs, InputSet(inputs.lower, inputs.upper, (padded,)))
    ]
    torch.testing.assert_close(*values, rtol=1e-9, atol=1e-9)
    assert InputSet(inputs.lower, inputs.upper, (padded,)).contains(inputs.lower[0], 0) == inputs.contains(
        inputs.lower[0], 0
    )


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("kind", ["half axes", "matrix"])
def test_the_support_of_whole_ellipsoids_is_the_closed_form(kind, ragged):
    random = np.random.default_rng(3)
    for _ in range(20):
        n, boxes = int(random.integers(1, 7)), int(random.integers(1, 4))
        centre = random.uniform(-1, 1, (boxes, n))
        if kind == "matrix":
            shapes = np.stack([definite(random, n) * random.choice([1e-4, 1, 1e4]) for _ in range(boxes)])
            inputs, inverse = InputSet.mahalanobis(centre, shapes), np.linalg.inv(shapes)
        else:
            axes = random.choice([0, 1e-3, 0.5, 3], (boxes, n))
            inputs, inverse = InputSet.ellipsoid(centre, axes), np.stack([np.diag(a**2) for a in axes])
        nu = random.standard_normal((2 * boxes, n)) * random.choice([0, 1, 1e3], (2 * boxes, n))
        for arithmetic in (PROOF, FLOAT64, SEARCH):
            batch = InputBatch.of(inputs, arithmetic)
            rows = rows_of(nu.astype(np.float32 if arithmetic is SEARCH else np.float64), boxes, ragged)
            found = batch.support(rows, arithmetic).numpy()
            for r, value in enumerate(found):
                b = r // 2
                best = nu[r] @ centre[b] - np.sqrt(nu[r] @ inverse[b] @ nu[r])
                size = 1e-9 + np.abs(nu[r]) @ (np.abs(centre[b]) + np.sqrt(np.diagonal(inverse[b])))
                assert abs(value - best) <= (1e-5 if arithmetic is SEARCH else 1e-9) * size
                if arithmetic.charged:
                    assert value <= best + 1e-15 * size
                    assert all(
                        Fraction(float(value)) <= exact(nu[r], x) for x in sampled(inputs, batch, nu[r], b, random)
                    )


@pytest.mark.parametrize("norm", [1, 2])
def test_sub_boxes_keep_the_ball_also_where_they_lack_its_centre(norm):
    """Against the best of many multipliers, and against sampled points."""
    random = np.random.default_rng(4)
    for _ in range(40):
        n = int(random.integers(2, 5))
        centre, axes = random.uniform(-1, 1, (1, n)), random.choice([0.3, 1, 2], (1, n))
        whole = InputSet(*(centre + s * axes for s in (-1, 1)), (Ball(centre, axes, norm),))
        cut = np.sort(random.uniform(-1, 1, (2, 1, n)), 0)
        lower, upper = centre + cut[0] * axes, centre + cut[1] * axes
        inputs = InputSet(lower, upper, whole.parts)
        nu = random.standard_normal((1, n))
        s, low, high = nu[0] * axes[0], cut[0, 0], cut[1, 0]
        grid = np.concatenate([[0], np.geomspace(1e-4, 1e2, 4000)])[:, None]
        nearest = np.clip(0, low, high)
        u = np.clip(-s / (2 * np.maximum(grid, 1e-30)), low, high)
        if norm == 1:
            u = np.where(np.abs(s) > grid, np.where(s > 0, low, high), nearest)
        best = (nu[0] @ centre[0] + (s * u + grid * np.abs(u) ** norm).sum(1) - grid[:, 0]).max()
        empty = (np.abs(nearest) ** norm).sum() > 1
        for arithmetic in (PROOF, FLOAT64):
            batch = InputBatch.of(inputs, arithmetic)
            found = float(batch.support(rows_of(nu, 1, False), arithmetic))
            assert bool(batch.empty(arithmetic)) == empty
            if not empty:
                assert abs(found - best) < 1e-3 * (1 + abs(best)), (found, best)
                point = batch.lowest(torch.from_numpy(nu)[None])[0, 0].numpy()
                assert nu[0] @ point <= found + 1e-3 and nu[0] @ point >= found - 1e-9


def test_gradients_of_support_functions():
    random = np.random.default_rng(5)
    centre = random.uniform(-1, 1, (2, 4))
    sets = [
        InputSet.ellipsoid(centre, random.uniform(0.2, 1, (2, 4))),
        InputSet.ball(centre, 0.7, 1, (-1, 1)),
        InputSet.ball(centre, 0.7, 2, (-1, 1)),
        InputSet.mahalanobis(centre, np.stack([definite(random, 4) for _ in range(2)])),
    ]
    for inputs in sets:
        batch = InputBatch.of(inputs, FLOAT64)
        nu = torch.from_numpy(random.standard_normal((4, 4))).requires_grad_()
        torch.autograd.gradcheck(lambda t: batch.support(Rows.dense_rows(t, 2), FLOAT64), nu, atol=2e-3)  # noqa: B023
    batch = InputBatch.of(sets[0], FLOAT64)
    zero = torch.zeros((2, 4), dtype=torch.float64, requires_grad=True)
    batch.support(Rows.dense_rows(zero, 2), FLOAT64).sum().backward()
    assert zero.grad.isfinite().all()


def test_membership_of_ellipsoids_is_decided_in_rationals():
    inputs = InputSet.ellipsoid(np.zeros(2), [3.0, 0.1])
    for x in ([1.8, 0.08], [3.0, 0.0], [0.0, 0.1], [1.5, 0.0866025403784439]):
        real = Fraction(float(x[0])) ** 2 / 9 + (Fraction(float(x[1])) / Fraction(0.1)) ** 2 <= 1
        assert inputs.contains(np.array(x), 0) == real, x
    assert not InputSet.ellipsoid(np.zeros(2), [1.0, 0.0]).contains(np.array([0.0, 1e-300]), 0)
    assert not inputs.contains(np.array([3.0, 1e-200]), 0)
    matrix = InputSet.mahalanobis(np.zeros(2), [[1.0, 0.5], [0.5, 1.0]])
    assert matrix.contains(np.array([1.0, 0.0]), 0) and matrix.contains(np.array([1.0, -1.0]), 0)
    assert not matrix.contains(np.array([1.0, 1e-200]), 0), "outside by 1e-200"
    half = InputSet.polytope([[1.0, 1.0]], [1.0], [0, 0], [1, 1])
    assert half.contains(np.array([0.5, 0.5]), 0) and half.contains(np.array([1.0, 0.0]), 0)
    assert not half.contains(np.array([1.0, 1e-200]), 0)
    third = InputSet.polytope([[3.0, 1.0]], [1.0], [0, 0], [1, 1])
    assert third.contains(np.array([1 / 3, 0.0]), 0) == (3 * Fraction(1 / 3) <= 1)


@pytest.mark.parametrize("n", [1, 4, 60])
def test_points_at_the_rim_are_rounded_into_the_set(n):
    random = np.random.default_rng(6)
    centre = random.uniform(0, 1, n)
    normals = random.standard_normal((3, n))
    kinds = {
        "ellipsoid": InputSet.ellipsoid(centre, random.uniform(0.01, 1, n)),
        "matrix": InputSet.mahalanobis(centre, definite(random, n) * 10),
        "polytope": InputSet.polytope(normals, normals @ centre + 0.1, centre - 1, centre + 1),
        "both": InputSet(centre[None] - 1, centre[None] + 1, (
            Ball(centre[None], np.array([[0.5]]), 2), HalfSpaces(normals[None], (normals @ centre + 0.1)[None])
        )),
    }  # fmt: skip
    for name, inputs in kinds.items():
        batch = InputBatch.of(inputs, SEARCH)
        directions = torch.from_numpy(random.standard_normal((1, 20, n))).float()
        for point in batch.lowest(directions)[0].double().numpy():
            x = inputs.round_into(point, 0)
            assert x.dtype == np.float32 and inputs.contains(x, 0), name
            assert np.abs(x - point).max() < 1e-3, (name, "moved further than rounding asks")


def test_hulls_hold_the_set():
    random = np.random.default_rng(7)
    for n in (1, 3, 12):
        matrix = definite(random, n) * 10.0 ** random.integers(-3, 3)
        inputs = InputSet.mahalanobis(np.zeros(n), matrix)
        widths = np.sqrt(np.diagonal(np.linalg.inv(matrix)))
        assert (inputs.upper[0] >= widths * (1 - 1e-12)).all() and (inputs.upper[0] <= widths * (1 + 1e-9)).all()


def test_intersections_without_a_point_are_noticed():
    box = np.array([[0.9, 0.9]]), np.array([[1.0, 1.0]])
    parts = {
        "ball": InputSet.ball(np.zeros(2), 1.0, 2, None),
        "diamond": InputSet.ball(np.zeros(2), 1.0, 1, None),
        "matrix": InputSet.mahalanobis(np.zeros(2), [[1.0, 0.2], [0.2, 1.0]]),
        "half-space": InputSet.polytope([[1.0, 1.0]], [1.0], [-1, -1], [1, 1]),
        "two half-spaces": InputSet.polytope([[1.0, 1.0], [-1.0, -1.0]], [1.85, -1.95], [-1, -1], [1, 1]),
        "flat": InputSet.ellipsoid(np.zeros(2), [0.0, 3.0]),
    }
    for name, inputs in parts.items():
        for arithmetic in (PROOF, SEARCH):
            assert not InputBatch.of(inputs, arithmetic).empty(arithmetic) or name == "two half-spaces", name
            assert InputBatch.of(InputSet(*box, inputs.parts), arithmetic).empty(arithmetic), name


def test_a_set_with_two_parts_takes_the_better_bound():
    ball, half = Ball(np.zeros((1, 2)), np.ones((1, 1)), 2), HalfSpaces(np.array([[[1.0, 0.0]]]), np.array([[0.5]]))
    one = np.ones((1, 2))
    nu = rows_of(np.array([[-1.0, 0.0], [0.0, -1.0]]), 1, False)
    found = InputBatch.of(InputSet(-2 * one, 2 * one, (ball, half)), FLOAT64).support(nu, FLOAT64)
    torch.testing.assert_close(found, torch.tensor([-0.5, -1.0], dtype=torch.float64))


def small_network(seed: int = 0, n: int = 2):
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(n, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)]
    return absdom.network(torch.nn.Sequential(*layers), torch.zeros(1, n))


def sets_in_the_plane():
    centre = np.array([0.2, -0.1])
    return {
        "ball": absdom.ball(centre, 0.8, 2),
        "diamond": absdom.ball(centre, 0.8, 1),
        "ellipsoid": absdom.ellipsoid(centre, [1.0, 0.3]),
        "clipped": absdom.ellipsoid(centre, [1.0, 0.3], clip=(-0.5, 0.6)),
        "mahalanobis": absdom.ellipsoid(centre, covariance=[[1.0, 0.6], [0.6, 0.5]], radius=0.7),
        "polytope": absdom.polytope([[1.0, 1.0], [-1.0, 2.0]], [0.3, 0.5], [-1, -1], [1, 1]),
        "thin polytope": absdom.polytope([[1.0, 1.0], [-1.0, -1.0]], [0.3, -0.2999], [-1, -1], [1, 1]),
    }


@pytest.mark.parametrize("name", sets_in_the_plane())
def test_verdicts_on_either_side_of_the_least_value(name):
    where = sets_in_the_plane()[name]
    net = small_network()
    # The least output over the set, from a fine grid of points that are in it.
    axes = [np.linspace(where.lower[0, i], where.upper[0, i], 81) for i in range(2)]
    grid = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
    keep = np.array([where.contains(x, 0) for x in grid]) if name != "thin polytope" else None
    if keep is None:
        first = np.linspace(-0.7, 1, 401)
        grid = np.stack([first, 0.29995 - first], 1)
        keep = np.array([where.contains(x, 0) for x in grid])
    with torch.no_grad():
        values = absdom.compile(net.graph, "interval").bounds(InputSet.box(grid[keep], grid[keep])).lower
    least = float(values.min())
    y = absdom.outputs(net)
    proved = absdom.verify(net.graph, absdom.forall(where, y[0] >= least - 0.02), timeout=60)
    assert proved.verdict == "unsat"
    found = absdom.verify(net.graph, absdom.forall(where, y[0] >= least + 0.005), timeout=60)
    assert found.verdict == "sat"
    assert where.contains(found.witness.x, 0), "in rationals"


def test_no_method_claims_more_than_the_points_of_the_set_allow():
    random = np.random.default_rng(8)
    net = small_network(1, 3)
    centre = random.uniform(-1, 1, (3, 3))
    sets = [
        InputSet.ellipsoid(centre, random.uniform(0.1, 1, (3, 3))),
        InputSet.mahalanobis(centre, np.stack([definite(random, 3) * 4 for _ in range(3)])),
        polytopes(random, 3, 3, 2),
    ]
    for inputs in sets:
        batch = InputBatch.of(inputs, FLOAT64)
        points = batch.lowest(torch.from_numpy(random.standard_normal((3, 200, 3)))).numpy()
        for method in ("interval", "crown", "cap", "crown-ibp"):
            found = absdom.compile(net.graph, method).bounds(inputs, arithmetic=PROOF)
            for b in range(3):
                inside = np.stack([x for x in points[b] if inputs.contains(x, b)])
                real = absdom.compile(net.graph, "interval").bounds(InputSet.box(inside, inside), arithmetic=PROOF)
                assert (real.upper >= found.lower[b]).all() and (real.lower <= found.upper[b]).all()


def test_polytopes_as_vnnlib_text():
    net = small_network()
    y = absdom.outputs(net)
    where = absdom.polytope([[1.0, 1.0], [-1.0, 2.0]], [0.3, 0.5], [-1, -1], [1, 1])
    prop = absdom.forall(where, y[0] >= 0.1)
    text = prop.to_vnnlib()
    assert text.count("X_0") > 4 and "(<= (+ X_0 X_1) 0.3)" in text
    with pytest.raises(PropertyError, match="half-spaces"):
        absdom.forall(absdom.ellipsoid([0.0, 0.0], [1.0, 2.0]), y[0] >= 0.1).to_vnnlib()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: absdom.ellipsoid([0.0, 0.0]), "half_axes or covariance"),
        (lambda: absdom.ellipsoid([0.0, 0.0], [1.0, -1.0]), "negative"),
        (lambda: absdom.ellipsoid([0.0, 0.0], [1.0, 1.0, 1.0]), "half_axes has 3 numbers, x has 2"),
        (lambda: absdom.ellipsoid([0.0, 0.0], covariance=[[1.0, 1.0], [1.0, 1.0]]), "singular|definite"),
        (lambda: absdom.ellipsoid([0.0, 0.0], covariance=[[1.0, 2.0], [2.0, 1.0]]), "definite"),
        (lambda: absdom.ellipsoid([0.0, 0.0], covariance=[1.0, 2.0]), "covariance of 2 inputs"),
        (lambda: absdom.ellipsoid([0.0, 0.0], covariance=[[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (lambda: absdom.ellipsoid([0.0, 0.0], 1.0, radius=-1.0), "radius"),
        (lambda: absdom.ellipsoid([0.0, 2.0], 1.0, clip=(0, 1)), "outside clip"),
        (lambda: absdom.polytope([[1.0, 1.0, 1.0]], [1.0], [0, 0], [1, 1]), "do not fit"),
        (lambda: absdom.polytope([[1.0, 1.0]], [1.0, 2.0], [0, 0], [1, 1]), "do not fit"),
        (lambda: absdom.polytope([[1.0, inf]], [1.0], [0, 0], [1, 1]), "inf"),
        (lambda: absdom.polytope([1.0, 1.0], [1.0], [0, 0], [1, 1]), "a matrix and a vector"),
    ],
)
def test_clear_errors(make, message):
    with pytest.raises(PropertyError, match=message):
        make()


def test_the_first_layer_over_balls_is_exact():
    """<w, c> + b -+ radius x dual norm, behind a normalisation of the inputs; clipped balls: not above that."""
    random = np.random.default_rng(9)
    torch.manual_seed(2)

    mean, deviation = torch.tensor([0.3, 0.4])[:, None, None], torch.tensor([0.2, 0.5])[:, None, None]

    class Normalised(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Conv2d(2, 3, 2, stride=2), torch.nn.Linear(12, 2)

        def layer(self, x):
            return self.first((x - mean) / deviation).flatten(1)

        def forward(self, x):
            return self.last(torch.relu(self.layer(x)))

    module = Normalised().double()
    net = absdom.network(module, torch.zeros(1, 2, 4, 4, dtype=torch.float64))
    centre, radius = random.uniform(0, 1, (3, 32)), np.array([0.3, 0.0, 2.0])

    def layer(x):
        return module.layer(x.reshape(-1, 2, 4, 4))

    matrix = torch.autograd.functional.jacobian(lambda t: layer(t)[0], torch.zeros(1, 32, dtype=torch.float64))[:, 0]
    graph = lower(net.graph)
    conv = next(i for i, node in enumerate(graph.nodes) if node.op.name == "Conv")
    for norm, dual in ((1, inf), (2, 2)):
        for clip in (None, (0.0, 1.0)):
            for arithmetic in (PROOF, FLOAT64, SEARCH):
                context = run.prepare(make_schedule(graph, parse_recipe("crown")), arithmetic)
                with torch.no_grad():
                    batch = InputBatch.of(InputSet.ball(centre, radius, norm, clip), arithmetic)
                    found = run.propagate(context, batch)[conv]
                    middle = layer(torch.from_numpy(centre))
                    reach = torch.from_numpy(radius)[:, None] * torch.linalg.vector_norm(matrix, dual, 1)
                low, high = found.lower.flatten(1), found.upper.flatten(1)
                margin = 1e-4 if arithmetic is SEARCH else 1e-6
                assert (low >= middle - reach - margin).all() and (high <= middle + reach + margin).all()
                if clip is None:
                    slack = margin if arithmetic is SEARCH else 1e-12
                    assert (low <= middle - reach + slack).all() and (high >= middle + reach - slack).all()


def test_live_weights_get_their_gradients_through_the_first_layer():
    torch.manual_seed(3)
    net = small_network(3)
    compiled = absdom.compile(net.graph, "crown")
    inputs = InputSet.ball(np.zeros((2, 2)), [0.4, 0.7], 2, None)
    label = next(k for k, v in compiled.graph.params.items() if v.dim() == 2)
    weights = {k: v.detach().double() for k, v in compiled.graph.params.items()}

    def lowest(weight):
        return compiled.bounds(inputs, arithmetic=FLOAT64, params={**weights, label: weight}).lower

    torch.autograd.gradcheck(lowest, weights[label].clone().requires_grad_(), atol=1e-5)
