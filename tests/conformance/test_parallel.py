"""One linear map for both sides of a function: bands hold exactly, and no slope gives a narrower one where that is claimed."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from exact_oracle import PRECISION, apply, each, exact
from op_cases import generated_ops
from test_planes import CASES as PLANES
from test_planes import TYPES, boxes, points_of, rounded

from absdom import ops
from absdom.ir.op import Block, Multivariate

# (op, shapes of its operands, whether its last operand stays away from 0)
CASES = [
    *PLANES,
    (ops.ReduceMax(0), [(4,)], False),
    (ops.ReduceMax(1), [(2, 3, 2)], False),
    (ops.ReduceMax(0), [(1, 2)], False),
    (ops.ReduceMin(1), [(2, 4)], False),
    (ops.Maximum(), [(2, 3), (3,)], False),
    (ops.Equal(), [(3,), (3,)], False),
    (ops.Where(), [(2, 1), (3,), (2, 3)], False),
    (ops.TopValues(0, 2), [(4,)], False),
]
NAMES = [f"{op} {shapes}" for op, shapes, _ in CASES]
INDEXED = {"Lookup", "Window", "Scatter", "TopIndices"}  # constants at the image, by the default; see test_ops


def real(op, z):
    """The op in exact arithmetic."""
    match op:
        case ops.ReduceMin(axis):
            return z[0].min(axis, keepdims=True)
        case ops.Maximum():
            return each(max, *np.broadcast_arrays(*z))
        case ops.Equal():
            return each(lambda a, b: mpmath.mpf(a == b), *np.broadcast_arrays(*z))
        case ops.Where():
            return z[2] + z[0] * (z[1] - z[2])
        case ops.TopValues(axis, count):
            return np.sort(z[0], axis)[::-1][:count]
    return apply(op, z)


def linear_part(op, coefficients, point, shape, dtype):
    """What the map gives at a point, in exact arithmetic, flat."""
    total, count = exact(torch.zeros(shape)).ravel(), int(np.prod(shape))
    for c, z in zip(coefficients, point, strict=True):
        if c is None:
            continue
        if isinstance(c, Block):
            every = torch.eye(count, dtype=dtype).reshape(1, count, *shape)
            part = exact(c.transpose(every)[0].flatten(1)) @ z.ravel()
        else:
            part = exact(c[0]) * z
            if hasattr(op, "axis"):
                part = part.sum(op.axis, keepdims=True)
            part = np.broadcast_to(part, shape).ravel()
        total = total + part
    return total


def test_every_multivariate_op_has_a_case():
    every = {name for name, cls in generated_ops().items() if issubclass(cls, Multivariate)}
    assert every == {op.name for op, *_ in CASES} | INDEXED


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("op", "shapes", "apart"), CASES, ids=NAMES)
def test_bands_hold_exactly(op, shapes, apart, dtype):
    random = np.random.default_rng(15)
    with mpmath.workprec(PRECISION):
        for _ in range(8):
            lowers, uppers = boxes(random, shapes, dtype, apart)
            coefficients, low, high = op.parallel(lowers, uppers)
            for point in points_of(lowers, uppers, random):
                z = [exact(t) for t in point]
                y = np.asarray(real(rounded(op, dtype), z), dtype=object).ravel()
                rest = y - linear_part(op, coefficients, z, low.shape[1:], dtype)
                assert (exact(low[0]).ravel() <= rest).all(), (lowers, uppers, point)
                assert (rest <= exact(high[0]).ravel()).all(), (lowers, uppers, point)


@pytest.mark.parametrize(("op", "shapes", "apart"), CASES, ids=NAMES)
def test_bands_are_no_wider_than_the_image_and_sometimes_narrower(op, shapes, apart):
    random, better = np.random.default_rng(16), 0
    for _ in range(16):
        lowers, uppers = boxes(random, shapes, torch.float64, apart)
        image = op.image(lowers, uppers)
        _, low, high = op.parallel(lowers, uppers)
        size = torch.maximum(image[0].abs(), image[1].abs()) + sum(t.abs().max() for t in (*lowers, *uppers))
        if isinstance(op, (ops.Product, ops.MatrixProduct)):
            size = size.square()
        assert (high - low <= image[1] - image[0] + 1e-12 * size).all() or not image[0].isfinite().all()
        better += int((high - low < 0.9 * (image[1] - image[0])).sum())
    constant = isinstance(op, (ops.Equal, ops.TopValues)) or min(low.numel(), *low.shape[1:]) == 1 and op.name in (
        "LogSoftmax", "Softmax",
    )  # fmt: skip
    assert bool(better) != constant


@pytest.mark.parametrize(("op", "shapes", "apart"), CASES, ids=NAMES)
def test_gradients_and_unknown_ends(op, shapes, apart):
    """No NaN comes out, in gradients neither; where an end is infinite so may be the band, and never the map."""
    random = np.random.default_rng(17)
    for k in range(8):
        lowers, uppers = boxes(random, shapes, torch.float64, apart)
        if k % 4 == 3:
            lowers[0].view(-1)[0] = -torch.inf
        inputs = [t.clone().requires_grad_() for t in (*lowers, *uppers)]
        coefficients, low, high = op.parallel(inputs[: len(shapes)], inputs[len(shapes) :])
        blocks = [c.tensors().values() if isinstance(c, Block) else [c] for c in coefficients if c is not None]
        tensors = [t for block in blocks for t in block]
        assert all(t.isfinite().all() for t in tensors) and not (low.isnan() | high.isnan()).any()
        if k % 4 != 3:
            total = inputs[-1].sum() + sum(t[t.isfinite()].sum() for t in (*tensors, low, high))
            for gradient in torch.autograd.grad(total, inputs, allow_unused=True):
                assert gradient is None or gradient.isfinite().all(), (lowers, uppers)


WITH_BLOCKS = [c for c in CASES if "Softmax" in c[0].name or "Matrix" in c[0].name]


@pytest.mark.parametrize(("op", "shapes", "apart"), WITH_BLOCKS)
def test_blocks_are_applied_as_they_are_transposed(op, shapes, apart):
    """<nu, A z> = <A^T nu, z>, for several boxes and several rows of each."""
    random = np.random.default_rng(18)
    made = [boxes(random, shapes, torch.float64, apart) for _ in range(2)]
    lowers, uppers = ([torch.cat(t) for t in zip(*(m[k] for m in made), strict=True)] for k in range(2))
    coefficients, low, _ = op.parallel(lowers, uppers)
    for c, end in zip(coefficients, lowers, strict=True):
        if c is None:
            continue
        nu, z = torch.randn(2, 3, *low.shape[1:]).double(), torch.randn(2, 3, *end.shape[1:]).double()
        left, right = (t.flatten(2).sum(2) for t in (nu * c.apply(z), c.transpose(nu) * z))
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(c.reach(z[:, 0].abs()) >= c.apply(z)[:, 0].abs() * (1 - 1e-12), low == low)


# Slopes of elementwise functions

BEST = [ops.Sigmoid(), ops.Tanh(), ops.Erf(), ops.Atan(), ops.Softsign(), ops.Exp(), ops.Softplus(), ops.Sqrt(),
        ops.Relu(), ops.LeakyRelu(0.1), ops.LeakyRelu(1.7), ops.Abs(), ops.Clip(-1.0, 1.0), ops.Clip(0.0, 6.0), ops.Clip(high=0.3)]  # fmt: skip


def ends_of(op, count=200, seed=19):
    ends = torch.from_numpy(np.sort(np.random.default_rng(seed).normal(size=(2, count)) * 3, 0))
    return ends.clamp(min=0.1) if isinstance(op, ops.Sqrt) else ends


@pytest.mark.parametrize("op", BEST, ids=str)
def test_no_slope_gives_a_narrower_band(op):
    lower, upper = ends_of(op)
    low, high = op.band(lower, upper, op.parallel_slope(lower, upper))
    for slope in torch.linspace(-1.2, 1.8, 61, dtype=torch.float64):
        other = op.band(lower, upper, slope.expand_as(lower))
        assert ((high - low) <= (other[1] - other[0]) * (1 + 1e-3) + 1e-9).all(), slope


@pytest.mark.parametrize("op", [ops.Gelu(), ops.Silu(), ops.Mish(), ops.HardSwish(), ops.Elu(0.3), ops.Sin()], ids=str)
def test_other_bands_are_no_wider_than_those_of_either_line(op):
    lower, upper = ends_of(op)
    lines = op.lines(lower, upper, op.initial(lower, upper))
    low, high = op.band(lower, upper, op.parallel_slope(lower, upper))
    for slope in (lines.lower_slope, lines.upper_slope):
        other = op.band(lower, upper, slope)
        assert (high - low <= other[1] - other[0]).all()
