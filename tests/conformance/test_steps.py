"""Step functions against exact arithmetic: at jumps, beside them, at huge and infinite ends; and how tight the lines are."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations_with_replacement
from math import ceil, floor, inf, nextafter

import numpy as np
import pytest
import torch

from absdom import ops, testing
from absdom.types import TensorType

STEPS = {
    ops.Floor(): floor,
    ops.Ceil(): ceil,
    ops.Round(): round,
    ops.Truncate(): int,
    ops.Step(False): lambda x: int(x > 0),
    ops.Step(True): lambda x: int(x >= 0),
    ops.Sign(): lambda x: (x > 0) - (x < 0),
}
UNIT = [op for op in STEPS if isinstance(op, (ops.Floor, ops.Ceil, ops.Round, ops.Truncate))]
HUGE = 2.0**53


def beside(x: float, dtype) -> list[float]:
    """x and the numbers of the type right below and above it."""
    if dtype is torch.float64:
        return [nextafter(x, -inf), x, nextafter(x, inf)]
    return [float(np.nextafter(np.float32(x), np.float32(end))) for end in (-inf, x, inf)]


def places(dtype) -> list[float]:
    jumps = [-3.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 2.5, 4.0]
    far = [-HUGE - 2, -(2.0**24), -1e30, 2.0**23 + 0.5, HUGE, 1e30, 4097.3]
    found = [p for j in jumps for p in beside(j, dtype)] + [-2.3, 0.3, 3.4] + far
    return sorted({float(torch.tensor(p, dtype=dtype)) for p in found})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("op", STEPS, ids=str)
def test_images_and_lines_hold_at_every_place(op, dtype):
    ends = places(dtype)
    pairs = list(combinations_with_replacement(range(len(ends)), 2))
    lower, upper = (torch.tensor([ends[p[k]] for p in pairs], dtype=dtype) for k in (0, 1))
    low, high = op.image(lower, upper)
    values = [STEPS[op](Fraction(x)) for x in ends]
    generator = torch.Generator().manual_seed(0)
    knob_sets = [op.initial(lower, upper)]
    knob_sets += [{k: torch.rand(lower.shape, generator=generator, dtype=dtype) for k in op.knobs} for _ in range(2)]
    knob_sets += [{k: torch.full_like(lower, end) for k in op.knobs} for end in (0.0, 1.0)]
    for i, (a, b) in enumerate(pairs):
        assert (low[i].item(), high[i].item()) == (values[a], values[b]), (op, ends[a], ends[b])
    for knobs in knob_sets:
        lines = torch.stack(op.lines(lower, upper, knobs)).double()
        assert lines.isfinite().all()
        for i, (a, b) in enumerate(pairs):
            s, c, t, d = (Fraction(v) for v in lines[:, i].tolist())
            for x, y in zip(ends[a : b + 1], values[a : b + 1], strict=True):
                assert s * Fraction(x) + c <= y <= t * Fraction(x) + d, (op, ends[a], ends[b], x)


@pytest.mark.parametrize("op", STEPS, ids=str)
def test_infinite_ends_claim_no_more_than_they_know(op):
    lower = torch.tensor([-inf, -inf, 2.5, 0.0, inf, -inf], dtype=torch.float64)
    upper = torch.tensor([inf, 0.0, inf, inf, inf, -2.5], dtype=torch.float64)
    lines = op.lines(lower, upper, op.initial(lower, upper))
    assert not torch.stack(lines).isnan().any()
    flat = {"lower": torch.ones_like(lower), "upper": torch.ones_like(lower)}
    for line in (lines, op.lines(lower, upper, flat)):
        assert (line.lower_slope == 0).all() and (line.upper_slope == 0).all()
        assert torch.equal(line.lower_bias, op.image(lower, upper)[0])
        assert torch.equal(line.upper_bias, op.image(lower, upper)[1])


def hull_at(x: np.ndarray, y: np.ndarray, middle: float) -> float:
    """The least concave function above the points, at `middle`."""
    left, right = x <= middle, x >= middle
    best = -inf
    for a, b in zip(x[left], y[left], strict=True):
        slope = np.divide(middle - a, x[right] - a, out=np.zeros(right.sum()), where=x[right] > a)
        best = max(best, float((b + (y[right] - b) * slope).max()))
    return best


@pytest.mark.parametrize("op", STEPS, ids=str)
def test_the_area_between_the_lines_is_within_a_twentieth_of_the_least(op):
    """The least area of a line above f over an interval is its length times the concave hull at the midpoint."""
    random = np.random.default_rng(11)
    width = np.concatenate([random.uniform(0.05, 3, 150), random.uniform(3, 12, 30)])
    lower = torch.from_numpy(random.uniform(-4, 3, 180))
    upper = lower + torch.from_numpy(width)
    lines = op.lines(lower, upper, op.initial(lower, upper))
    middle = (lower + upper) / 2
    gap = (lines.upper_slope - lines.lower_slope) * middle + lines.upper_bias - lines.lower_bias
    for i in range(len(lower)):
        l, u = lower[i].item(), upper[i].item()
        jumps = [j / 2 for j in range(-20, 40) if l <= j / 2 <= u]
        x = np.array([l, u, *(p for j in jumps for p in (j, max(j - 1e-9, l), min(j + 1e-9, u)))])
        y = np.array([float(STEPS[op](Fraction(p))) for p in x])
        least = hull_at(x, y, middle[i].item()) + hull_at(x, -y, middle[i].item())
        assert gap[i] <= 1.05 * least + 1e-6, (op, l, u, gap[i].item(), least)


@pytest.mark.parametrize("op", UNIT, ids=str)
def test_many_steps_get_lines_of_slope_one(op):
    lower, upper = torch.tensor([0.2, -100.7], dtype=torch.float64), torch.tensor([100.7, -0.2], dtype=torch.float64)
    lines = op.lines(lower, upper, op.initial(lower, upper))
    assert (lines.lower_slope == 1).all() and (lines.upper_slope == 1).all()
    assert (lines.upper_bias - lines.lower_bias <= 1 + 1e-9).all()


def test_split_points_lie_at_jumps_inside():
    for op in STEPS:
        lower, upper = torch.tensor([-2.2, 0.3, 7.1]), torch.tensor([1.4, 0.4, 9.8])
        points = op.split_points(lower, upper)
        for k in range(3):
            if op.is_exact(lower, upper)[k]:
                assert points[k].isnan()
            else:
                x = float(points[k])
                assert lower[k] <= x <= upper[k]
                assert STEPS[op](Fraction(x - 1e-6)) != STEPS[op](Fraction(x + 1e-6))


@pytest.mark.parametrize("op", STEPS, ids=str)
def test_attacks_see_a_slope_and_values_stay_exact(op):
    x = torch.linspace(-0.9, 0.9, 7, dtype=torch.float32).reshape(1, 7).requires_grad_()
    y = op.eval(x)
    assert torch.equal(y.detach(), op.eval(x.detach()))
    gradient = torch.autograd.grad(y.sum(), x)[0]
    assert (gradient > 0).all()
    far = torch.full((1, 1), 1234567.75, requires_grad=True)
    assert op.eval(far).item() == STEPS[op](Fraction(1234567.75))


def test_bounds_do_not_pass_the_straight_through_gradient():
    x = TensorType((1, 4), "float64")
    testing.check_op(ops.Floor(), x, low=-2.0, high=3.0, recipes=("crown", "cap"), gradients=True)
    testing.check_op(ops.Truncate(), x, low=-2.0, high=3.0, recipes=("crown",), gradients=True)
