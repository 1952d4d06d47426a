"""Lines, bands and images of every activation against exact values: any knobs, any interval, float32 and float64."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from exact_oracle import PRECISION, apply
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from absdom import ops, registry
from absdom.ir.op import Elementwise

FUNCTIONS = [
    ops.Relu(), ops.LeakyRelu(0.1), ops.LeakyRelu(1.7), ops.LeakyRelu(-0.3), ops.LeakyRelu(0.7), ops.Abs(), ops.Clip(-0.5, 0.7),
    ops.Clip(high=0.3), ops.Clip(low=-0.2), ops.Clip(0.0, 6.0), ops.Clip(1.0, 1.0), ops.Sigmoid(), ops.Tanh(), ops.Sign(),
    ops.Exp(), ops.Log(), ops.Sqrt(), ops.Power(2.0), ops.Power(3.0), ops.Power(-1.0), ops.Power(-2.0), ops.Power(1.5),
    ops.Power(-0.5), ops.Sin(), ops.Cos(), ops.Tan(), ops.Atan(), ops.Erf(), ops.Softplus(), ops.Softsign(), ops.Elu(),
    ops.Elu(0.3), ops.Elu(-0.5), ops.Celu(2.0), ops.Selu(), ops.Gelu(), ops.Gelu(True), ops.Gelu(divisor=1.25), ops.Silu(),
    ops.Mish(), ops.HardSwish(),
    ops.Floor(), ops.Ceil(), ops.Round(), ops.Truncate(), ops.Step(False), ops.Step(True),
]  # fmt: skip
TYPES = (torch.float32, torch.float64)


def intervals(count: int, dtype, seed: int):
    """(lower, upper) "count": straddling, one-sided, points, huge, tiny, lopsided by many orders, ends at zero."""
    random = np.random.default_rng(seed)
    exponents = random.choice([-30, -12, -6, -3, -1, 0, 0, 0, 1, 2, 3, 6, 12], (2, count))
    ends = random.uniform(-1, 1, (2, count)) * 10.0**exponents
    kind = random.integers(0, 8, count)
    ends[1] = np.where(kind == 0, ends[0], ends[1])
    ends[0] = np.where(kind == 1, 0.0, ends[0])
    ends[1] = np.where(kind == 2, ends[0] * (1 + 1e-15), ends[1])
    ends[1] = np.where(kind == 3, -ends[0], ends[1])
    ends[1] = np.where(kind == 4, ends[0] + np.abs(ends[1]) * 1e-3, ends[1])
    ends = torch.from_numpy(np.sort(ends, 0)).to(dtype)
    return ends[0], ends[1]


def inside_domain(op, lower, upper):
    low, high = getattr(op, "domain", (-np.inf, np.inf))
    return lower.clamp(low, high), upper.clamp(low, high)


def points_of(op, lower, upper, random):
    """Floats inside [lower, upper]: ends, kinks, zero, uniform ones and ones near zero."""
    inner = [lower + (upper - lower) * t for t in random.uniform(0, 1, 8)] + [
        upper * 1e-3,
        lower * 1e-3,
        0.0,
        1.0,
        -1.0,
    ]
    inner += [getattr(op, name, 0.0) for name in ("low", "high")]
    found = [lower, upper, *(min(max(float(p), lower), upper) for p in inner if np.isfinite(p))]
    return [p for p in found if p not in getattr(op, "poles", ()) and (p > 0 or not isinstance(op, ops.Log))]


def value(op, point):
    return apply(op, [np.array([mpmath.mpf(point)], dtype=object)])[0]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("op", FUNCTIONS, ids=str)
def test_lines_bands_and_images_hold_exactly(op, dtype):
    random = np.random.default_rng(3)
    lower, upper = inside_domain(op, *intervals(120, dtype, seed=1))
    knobs = {
        name: torch.from_numpy(random.choice([0.0, 1.0, 0.5, random.random()], 120)).to(dtype) for name in op.knobs
    }
    lines = op.lines(lower, upper, knobs)
    slope = torch.from_numpy(random.choice([0, 1, 0.3, -0.4, 2.0, 1e-8], 120)).to(dtype)
    slope = torch.where(torch.arange(120) % 3 == 0, op.parallel_slope(lower, upper), slope)
    band, image = op.band(lower, upper, slope), op.image(lower, upper)
    # Constants of an op enter float32 tensors rounded; the function with rounded constants is the one that is bounded.
    near = rounded(op, dtype)
    with mpmath.workprec(PRECISION):
        for k in range(len(lower)):
            l, u = lower[k].item(), upper[k].item()
            ends = [mpmath.mpf(t[k].item()) for t in (*lines, *band, *image, slope)]
            low_slope, low_bias, up_slope, up_bias, band_low, band_high, image_low, image_high, s = ends
            for p in points_of(near, l, u, random):
                y, z = value(near, p), mpmath.mpf(p)
                where = (op, dtype, l, u, p, {n: t[k].item() for n, t in knobs.items()})
                assert image_low <= y <= image_high, ("image", where, y, image_low, image_high)
                assert low_slope * z + low_bias <= y, ("lower line", where, y, low_slope, low_bias)
                assert up_slope * z + up_bias >= y, ("upper line", where, y, up_slope, up_bias)
                assert band_low <= y - s * z <= band_high, ("band", where, s, y)


def rounded(op, dtype):
    match op:
        case ops.LeakyRelu(alpha):
            return ops.LeakyRelu(torch.tensor(alpha, dtype=dtype).item())
        case ops.Clip(low, high):
            return ops.Clip(*(torch.tensor(t, dtype=dtype).item() for t in (low, high)))
        case ops.Elu(alpha):
            return ops.Elu(torch.tensor(alpha, dtype=dtype).item())
    return op


@pytest.mark.parametrize("op", FUNCTIONS, ids=str)
def test_lines_are_tight_and_exact_where_the_function_is_affine(op):
    lower, upper = inside_domain(op, *intervals(400, torch.float64, seed=2))
    for knobs in ({}, {name: torch.full_like(lower, 0.3) for name in op.knobs}):
        lines = op.lines(lower, upper, {**op.initial(lower, upper), **knobs})
        reach = torch.maximum(lower.abs(), upper.abs()) + 1
        affine = op.is_exact(lower, upper)
        for z in (lower, upper):
            y = op.eval(z)
            for slope, bias in ((lines.lower_slope, lines.lower_bias), (lines.upper_slope, lines.upper_bias)):
                size = reach + y.abs() + (slope * z).abs() + bias.abs()
                known = affine & bias.isfinite()
                assert ((slope * z + bias - y).abs() <= 1e-13 * size)[known].all()


@pytest.mark.parametrize("op", FUNCTIONS, ids=str)
def test_gradients_of_lines_are_finite(op):
    lower, upper = inside_domain(op, *intervals(200, torch.float64, seed=4))
    lower, upper = lower.requires_grad_(), upper.requires_grad_()
    knobs = {n: torch.full_like(lower, 0.4).requires_grad_() for n in op.knobs}
    total = sum(t.sum() for t in op.lines(lower, upper, knobs))
    if not total.requires_grad:
        pytest.skip("the lines are constants")
    for gradient in torch.autograd.grad(total, [lower, upper, *knobs.values()], allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


finite = st.floats(-1e9, 1e9, allow_nan=False, allow_subnormal=False)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(op=st.sampled_from(FUNCTIONS), ends=st.tuples(finite, finite), at=st.floats(0, 1), knob=st.floats(0, 1))
def test_lines_hold_on_any_interval(op, ends, at, knob):
    lower, upper = inside_domain(op, *(torch.tensor([t], dtype=torch.float64) for t in sorted(ends)))
    lines = op.lines(lower, upper, {n: torch.tensor([knob], dtype=torch.float64) for n in op.knobs})
    with mpmath.workprec(PRECISION):
        p = min(max(lower.item() + at * (upper.item() - lower.item()), lower.item()), upper.item())
        assume(p not in getattr(op, "poles", ()) and (p > 0 or not isinstance(op, ops.Log)))
        y, z = value(op, p), mpmath.mpf(p)
        a, b, c, d = (mpmath.mpf(t.item()) for t in lines)
        assert a * z + b <= y <= c * z + d


def test_every_shipped_activation_is_tested():
    shipped = {c for c in registry.ops().values() if issubclass(c, Elementwise)} & {
        getattr(ops, n) for n in ops.__all__
    }
    assert shipped == {type(f) for f in FUNCTIONS}


def test_far_out_the_sigmoid_is_positive_and_below_one():
    # exp underflows at -800; claiming sigmoid <= 0 there would refute a strict atom wrongly.
    x = torch.tensor([-800.0], dtype=torch.float64)
    low, high = ops.Sigmoid().image(x, x)
    assert low.item() >= 0 and high.item() > 0


def test_the_image_of_softmax_holds_for_large_differences():
    lower = torch.tensor([[-300.123, 77.7, 400.001]], dtype=torch.float64)
    for width in (0.0, 1e-7, 3.0):
        upper = lower + width
        low, high = ops.Softmax(0).image([lower], [upper])
        with mpmath.workprec(PRECISION):
            for ends in ((lower, upper), (upper, lower)):
                for i in range(3):
                    z = ends[0].clone()
                    z[0, i] = ends[1][0, i]
                    y = apply(ops.Softmax(0), [np.array([mpmath.mpf(v) for v in z[0].tolist()], dtype=object)])
                    for k in range(3):
                        assert mpmath.mpf(low[0, k].item()) <= y[k] <= mpmath.mpf(high[0, k].item()), (width, i, k)
