"""l_p balls met with the pixel box: support functions against exact optima, and membership in rationals."""

from __future__ import annotations

from fractions import Fraction
from math import inf

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from absdom import ops, testing
from absdom.arithmetic import PROOF, Arithmetic
from absdom.ir.graph import Builder
from absdom.passes import lower
from absdom.plan import run
from absdom.plan.planner import make_schedule
from absdom.plan.recipes import parse_recipe
from absdom.property import InputSet
from absdom.rows import Rows
from absdom.sets import InputBatch
from absdom.types import TensorType

FLOAT64 = Arithmetic(torch.float64)


def optimum(nu, centre, radius, norm, low, high) -> float:
    """min nu.x over the set, by a solver of its own."""
    n = len(nu)
    low, high = np.maximum(low, centre - radius), np.minimum(high, centre + radius)
    if radius == 0:
        return float(nu @ centre)
    if norm == 1:  # x = c + p - q, sum(p + q) <= radius
        found = linprog(
            np.concatenate([nu, -nu]), A_ub=np.concatenate([np.ones((1, 2 * n)), np.block([[np.eye(n), -np.eye(n)], [-np.eye(n), np.eye(n)]])]),
            b_ub=np.concatenate([[radius], high - centre, centre - low]), bounds=(0, None),
        )  # fmt: skip
        return float(nu @ centre + found.fun)
    if norm == 2:  # bisection on the multiplier of the ball, in closed form per coordinate

        def point(m):
            return np.clip(centre - nu / (2 * m), low, high)

        left, right = 1e-12, 1e12
        for _ in range(300):
            middle = np.sqrt(left * right)
            left, right = (middle, right) if np.linalg.norm(point(middle) - centre) > radius else (left, middle)
        return float(nu @ point(right))
    return float(np.minimum(nu * low, nu * high).sum())


@pytest.mark.parametrize("clip", [(0.0, 1.0), None], ids=["clipped", "whole"])
@pytest.mark.parametrize("norm", [1, 2, inf])
def test_support_is_below_the_optimum_and_near_it(norm, clip):
    random = np.random.default_rng(0)
    for trial in range(60):
        n, boxes = int(random.integers(1, 6)), int(random.integers(1, 4))
        centre = random.uniform(0, 1, (boxes, n)).round(2)
        radius = random.choice([0.0, 1e-3, 0.1, 0.5, 2.0], boxes)
        inputs = InputSet.ball(centre, radius, norm, clip)
        nu = random.standard_normal((2 * boxes, n)) * random.choice([0, 1, 1, 1e3], (2 * boxes, n))
        rows = Rows.dense_rows(torch.from_numpy(nu), boxes)
        ragged = Rows.dense_rows(torch.from_numpy(nu), boxes, torch.arange(boxes).repeat_interleave(2))
        for arithmetic in (PROOF, FLOAT64):
            batch = InputBatch.of(inputs, arithmetic)
            found = batch.support(rows, arithmetic).numpy()
            np.testing.assert_allclose(batch.support(ragged, arithmetic).numpy(), found, rtol=1e-9, atol=1e-9)
            for r in range(2 * boxes):
                b = r // 2
                low, high = (
                    (np.full(n, -inf), np.full(n, inf)) if clip is None else (np.full(n, clip[0]), np.full(n, clip[1]))
                )
                best = optimum(nu[r], centre[b], radius[b], norm, low, high)
                size = 1 + np.abs(nu[r]).sum()
                assert found[r] <= best + 1e-9 * size, (trial, norm, arithmetic)  # the solver's own rounding
                assert found[r] >= best - 1e-5 * size, (trial, norm, "loose")
                # A point of the set, in rationals, is never below the charged bound.
                if arithmetic.charged:
                    step = random.uniform(-1, 1, n)
                    step *= radius[b] / max(
                        np.abs(step).sum() if norm == 1 else np.linalg.norm(step) if norm == 2 else 1, 1
                    )
                    x = np.clip(centre[b] + step * 0.999, inputs.lower[b], inputs.upper[b])
                    if inputs.contains(x, b):
                        real = sum(Fraction(float(a)) * Fraction(float(v)) for a, v in zip(nu[r], x, strict=True))
                        assert Fraction(float(found[r])) <= real


def test_the_optimum_of_the_2_ball_agrees_with_a_general_solver():
    random = np.random.default_rng(1)
    for _ in range(5):
        nu, centre, radius = random.standard_normal(3), random.uniform(0, 1, 3), 0.4
        found = minimize(
            lambda x: nu @ x, centre, method="SLSQP", bounds=[(0, 1)] * 3,  # noqa: B023
            constraints={"type": "ineq", "fun": lambda x: radius**2 - ((x - centre) ** 2).sum()},  # noqa: B023
        )  # fmt: skip
        assert abs(found.fun - optimum(nu, centre, radius, 2, np.zeros(3), np.ones(3))) < 1e-5


@pytest.mark.parametrize("norm", [1, 2, inf])
def test_balls_through_a_convolution(norm):
    random = np.random.default_rng(2)
    builder = Builder()
    x = builder.input("x", TensorType((1, 1, 4, 4), "float64"))
    weights = builder.param(torch.from_numpy(random.standard_normal((2, 1, 3, 3))), "w")
    hidden = builder.add(ops.Relu(), builder.add(ops.Conv((1, 2), (1, 1), 1, (1, 0), (0, 1)), x, weights))
    flat = builder.add(ops.Reshape((1, builder.type(hidden).numel)), hidden)
    out = builder.param(torch.from_numpy(random.standard_normal((builder.type(hidden).numel, 3))), "v")
    graph = lower(builder.finish([builder.add(ops.MatMul(), flat, out)]))
    centre = random.uniform(0, 1, (3, 16))
    inputs = InputSet.ball(centre, [0.05, 0.3, 0.0], norm)
    for method in ("interval", "crown", "cap", "crown-ibp"):
        context = run.prepare(make_schedule(graph, parse_recipe(method)), PROOF)
        with torch.no_grad():
            found = run.node_bounds(context, InputBatch.of(inputs, PROOF))
        for b in range(3):
            points = []
            for _ in range(30):
                step = random.standard_normal(16) * (random.uniform(0, 1, 16) < random.uniform(0.1, 1))
                size = {1: np.abs(step).sum(), 2: np.linalg.norm(step), inf: np.abs(step).max()}[norm]
                point = np.clip(centre[b] + step * (0.9999 * inputs_radius(inputs, b, centre) / max(size, 1e-9)), 0, 1)
                if inputs.contains(point, b):
                    points.append(point)
            assert points
            real = testing.enclose(graph, torch.from_numpy(np.stack(points)))
            assert (found.lower[b] <= real.upper).all() and (found.upper[b] >= real.lower).all(), (method, b)


def inputs_radius(inputs, b, centre):
    return float(inputs.parts[0].radius[b, 0]) if inputs.parts else float((inputs.upper - centre)[b].max())


@pytest.mark.parametrize("norm", [1, 2])
def test_membership_is_decided_in_rationals(norm):
    # 0.1 + 0.2 > 0.3 over the reals with these floats; in float64 arithmetic the distance rounds to the radius.
    inputs = InputSet.ball(np.zeros((1, 2)), 1.0, norm, None)
    on = np.array([0.6, 0.8]) if norm == 2 else np.array([0.25, 0.75])
    exact = sum(abs(Fraction(float(t))) ** norm for t in on)
    assert inputs.contains(on, 0) == (exact <= 1)
    assert inputs.contains(np.array([0.5, 0.5]), 0)
    assert not inputs.contains(np.array([1.0, 1e-200]), 0), "outside by 1e-200"
    assert inputs.contains(np.array([1.0, 0.0]), 0)


def test_round_into_gives_float32_points_of_the_box():
    random = np.random.default_rng(3)
    low = random.standard_normal((1, 400)) * 10.0 ** random.integers(-6, 6, (1, 400))
    width = np.abs(low) * 10.0 ** random.uniform(-9, 0, (1, 400))
    inputs = InputSet.box(low, low + width)
    none = inputs.without_float32(0)
    assert none.any() and not none.all()
    for point in (low[0], low[0] + width[0], low[0] + width[0] / 3, low[0] - 1, low[0] + 1e9):
        x = inputs.round_into(point, 0)
        assert x.dtype == np.float32
        inside = (x.astype(np.float64) >= inputs.lower[0]) & (x.astype(np.float64) <= inputs.upper[0])
        assert (inside == ~none).all()
        # The float32 number nearest to the clipped point, where that one lies inside.
        clipped = np.clip(point, inputs.lower[0], inputs.upper[0])
        near = clipped.astype(np.float32)
        fits = (near >= inputs.lower[0]) & (near <= inputs.upper[0])
        assert (x == near)[fits].all()


@pytest.mark.parametrize("clip", [(0.0, 1.0), None], ids=["clipped", "whole"])
@pytest.mark.parametrize("norm", [1, 2, inf])
def test_lowest_gives_a_point_of_the_set_where_the_row_is_least(norm, clip):
    random = np.random.default_rng(5)
    for trial in range(60):
        n, boxes = int(random.integers(1, 6)), int(random.integers(1, 4))
        centre = random.uniform(0, 1, (boxes, n)).round(2)
        radius = random.choice([0.0, 1e-3, 0.1, 0.5, 2.0], boxes)
        nu = random.standard_normal((boxes, 2, n)) * random.choice([0, 1, 1, 1e3], (boxes, 2, n))
        batch = InputBatch.of(InputSet.ball(centre, radius, norm, clip), FLOAT64)
        found = batch.lowest(torch.from_numpy(nu)).numpy()
        low, high = (-inf, inf) if clip is None else clip
        for b in range(boxes):
            for row, x in zip(nu[b], found[b], strict=True):
                best = optimum(row, centre[b], radius[b], norm, np.full(n, low), np.full(n, high))
                assert abs(row @ x - best) <= 1e-6 * (1 + np.abs(row).sum()), (trial, row, x)
                size = np.linalg.norm(x - centre[b], norm)
                assert size <= radius[b] * (1 + 1e-12) + 1e-15 and (low <= x).all() and (x <= high).all()


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("radius", [1e-3, 0.1, 3.0])
def test_points_at_the_rim_of_a_ball_are_rounded_into_it(norm, radius):
    random = np.random.default_rng(6)
    for n in (1, 5, 200):
        centre = random.uniform(0, 1, n)
        inputs = InputSet.ball(centre, radius, norm, None)
        for _ in range(20):
            step = random.standard_normal(n)
            point = centre + step * (radius / np.linalg.norm(step, norm))
            x = inputs.round_into(point, 0)
            assert x.dtype == np.float32 and inputs.contains(x, 0)
            assert np.linalg.norm(x - point, norm) <= 1e-6 * (radius + norm * n), "moved further than rounding asks"
