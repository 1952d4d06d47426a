"""Planes of products, quotients, softmax and norms against exact values: any knobs, any box, float32 and float64."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from exact_oracle import PRECISION, apply, exact

from absdom import ops, testing
from absdom.arithmetic import PROOF
from absdom.ir.graph import Builder
from absdom.ir.op import Block
from absdom.ops import products
from absdom.passes import lower
from absdom.rows import Rows
from absdom.types import TensorType

TYPES = (torch.float32, torch.float64)
# (op, shapes of its operands, whether its last operand stays away from 0)
CASES = [
    (ops.Product(), [(3,), (3,)], False),
    (ops.Product(), [(2, 1), (3,)], False),
    (ops.Quotient(), [(3,), (3,)], True),
    (ops.MatrixProduct(), [(2, 3), (3, 2)], False),
    (ops.MatrixProduct(), [(2, 1, 2), (2, 1)], False),
    (ops.Softmax(0), [(4,)], False),
    (ops.Softmax(1), [(2, 3, 2)], False),
    (ops.Softmax(1), [(2, 1)], False),
    (ops.LogSoftmax(0), [(3, 2)], False),
    (ops.LogSoftmax(0), [(1,)], False),
    (ops.LogSumExp(1), [(2, 3)], False),
    (ops.LogSumExp(0), [(1,)], False),
    (ops.Rescale(4, 1e-5), [(3,), (3,)], False),
    (ops.Rescale(4, 1e-5), [(2, 3), (2, 1)], True),
    (ops.Rescale(3, 0.0, 1e-9), [(3,), (1,)], False),
    (ops.Rescale(1), [(3,), (3,)], False),
]
NAMES = [f"{op} {shapes}" for op, shapes, _ in CASES]


def box(random, shape, dtype, apart: bool):
    """(lower, upper) "1 *shape": of one size or of many, wide, narrow, with flat dimensions, logits up to 1e4."""
    scale = 10.0 ** random.choice([-20, -6, -3, -1, 0, 0, 0, 1, 2, 4], size=random.choice([1, np.prod(shape)]))
    width = 10.0 ** random.choice([-30, -12, -6, -2, -1, 0, 1, 4], size=random.choice([1, np.prod(shape)]))
    width = np.where(random.random(np.prod(shape)) < 0.2, 0, width * random.random(np.prod(shape)))
    centre = random.uniform(-1, 1, np.prod(shape)) * scale
    ends = torch.from_numpy(np.sort(np.stack([centre - width, centre + width]), 0)).to(dtype)
    if apart:
        ends = ((ends.abs() + 1e-3) * random.choice([-1, 1])).sort(0).values
    return ends[0].reshape(1, *shape), ends[1].reshape(1, *shape)


def boxes(random, shapes, dtype, apart):
    made = [box(random, s, dtype, apart and i == len(shapes) - 1) for i, s in enumerate(shapes)]
    return [low for low, _ in made], [high for _, high in made]


def points_of(lowers, uppers, random):
    """Points of a box: all lower ends, all upper ends, two corners, two inner ones."""
    for k in range(6):
        point = []
        for low, high in zip(lowers, uppers, strict=True):
            share = np.full(low.shape, float(k)) if k < 2 else random.random(low.shape)
            share = torch.from_numpy(share.round() if k < 4 else share).to(low.dtype)
            point.append(torch.minimum(torch.maximum(low + share * (high - low), low), high)[0])
        yield point


def knobs_of(op, lowers, uppers, random):
    return {
        name: torch.full_like(t, random.choice([0.0, 1.0, 0.5, random.random()]))
        for name, t in op.initial(lowers, uppers).items()
    }


def value_of(op, plane, point, shape):
    """A plane at a point in exact arithmetic, flat."""
    total = exact(plane.bias[0].expand(shape)).ravel()
    for coefficients, z in zip(plane.coefficients, point, strict=True):
        if coefficients is None:
            continue
        if isinstance(coefficients, Block):
            count = int(np.prod(shape))
            every = torch.eye(count, dtype=plane.bias.dtype).reshape(1, count, *shape)
            part = exact(coefficients.transpose(every)[0].flatten(1)) @ z.ravel()
        else:
            part = exact(coefficients[0]) * z
            if isinstance(op, ops.LogSumExp):
                part = part.sum(op.axis, keepdims=True)
        total = total + np.broadcast_to(np.reshape(part, shape) if np.size(part) == len(total) else part, shape).ravel()
    return total


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("op", "shapes", "apart"), CASES, ids=NAMES)
def test_planes_and_images_hold_exactly(op, shapes, apart, dtype):
    random = np.random.default_rng(5)
    with mpmath.workprec(PRECISION):
        for _ in range(16):
            lowers, uppers = boxes(random, shapes, dtype, apart)
            low, high = op.image(lowers, uppers)
            chosen = [op.planes(lowers, uppers)]
            if op.knobs:
                chosen.append(op.planes(lowers, uppers, knobs_of(op, lowers, uppers, random)))
            for point in points_of(lowers, uppers, random):
                z = [exact(t) for t in point]
                y = np.asarray(apply(rounded(op, dtype), z), dtype=object).ravel()
                where = (lowers, uppers, point)
                assert (exact(low[0]).ravel() <= y).all() and (y <= exact(high[0]).ravel()).all(), where
                for below, above in chosen:
                    assert (value_of(op, below, z, low.shape[1:]) <= y).all(), where
                    assert (value_of(op, above, z, low.shape[1:]) >= y).all(), where


def rounded(op, dtype):
    """The constants of an op enter float32 tensors rounded: the function with rounded constants is what is bounded."""
    if not isinstance(op, ops.Rescale):
        return op
    return ops.Rescale(op.count, *(torch.tensor(t, dtype=dtype).item() for t in (op.epsilon, op.shift)))


@pytest.mark.parametrize(("op", "shapes", "apart"), CASES, ids=NAMES)
def test_at_the_centre_planes_are_no_looser_than_constants(op, shapes, apart):
    random, better = np.random.default_rng(6), 0
    for _ in range(16):
        lowers, uppers = boxes(random, shapes, torch.float64, apart)
        low, high = op.image(lowers, uppers)
        centre = [(a / 2 + b / 2)[0] for a, b in zip(lowers, uppers, strict=True)]
        below, above = op.planes(lowers, uppers)
        with mpmath.workprec(PRECISION):
            ends = [value_of(op, p, [exact(t) for t in centre], low.shape[1:]).astype(float) for p in (below, above)]
        constants = [t[0].flatten().numpy() for t in (low, high)]
        slack = 1e-12 * np.maximum(np.abs(constants[0]), np.abs(constants[1])) + 1e-300
        assert (ends[0] >= constants[0] - slack).all() and (ends[1] <= constants[1] + slack).all(), (lowers, uppers)
        better += (ends[1] - ends[0] < 0.9 * (constants[1] - constants[0])).sum()
    assert better or low.numel() == 1 or min(low.shape[1:]) == 1, "the planes are nowhere better than constants"


@pytest.mark.parametrize(("op", "shapes", "apart"), CASES, ids=NAMES)
def test_gradients_of_planes_are_finite(op, shapes, apart):
    random = np.random.default_rng(7)
    for _ in range(10):
        lowers, uppers = boxes(random, shapes, torch.float64, apart)
        inputs = [t.clone().requires_grad_() for t in (*lowers, *uppers)]
        half = len(lowers)
        knobs = {n: torch.full_like(t, 0.4) for n, t in op.initial(lowers, uppers).items()}
        knobs = {n: t.requires_grad_() for n, t in knobs.items()}
        total = inputs[0].sum()  # planes that are constants have no gradient
        ends = inputs[:half], inputs[half:]
        for plane in op.planes(*ends, knobs) if op.knobs else op.planes(*ends):
            for c in plane.coefficients:
                tensors = c.tensors().values() if isinstance(c, Block) else [c] if c is not None else []
                total = total + sum(t.sum() for t in tensors)
            total = total + plane.bias.sum()
        for gradient in torch.autograd.grad(total, [*inputs, *knobs.values()], allow_unused=True):
            assert gradient is None or gradient.isfinite().all(), (lowers, uppers)


@pytest.mark.parametrize("op", [op for op, shapes, _ in CASES if len(shapes) == 1], ids=str)
def test_infinite_ends_give_no_plane(op):
    """Where an end is unknown the planes are constants, and neither they nor their gradients hold a NaN."""
    shape = next(shapes[0] for other, shapes, _ in CASES if other is op)
    low, high = torch.full((2, *shape), -1.0), torch.ones((2, *shape))
    low[0].view(-1)[0] = -torch.inf
    low.requires_grad_()
    for plane in op.planes([low], [high]):
        (c,) = plane.coefficients
        tensors = c.tensors().values() if isinstance(c, Block) else [c] if c is not None else []
        assert all(t.isfinite().all() for t in tensors)
        assert plane.bias.isfinite()[1].all() and not plane.bias.isnan().any()
        for t in tensors:
            if t.requires_grad:
                assert not torch.autograd.grad(t.sum(), low, retain_graph=True, allow_unused=True)[0].isnan().any()


@pytest.mark.parametrize(("op", "shapes"), [(c[0], c[1]) for c in CASES if isinstance(c[0], ops.MatrixProduct)])
def test_ragged_rows_pass_planes_as_grouped_rows_do(op, shapes, monkeypatch):
    random, made = np.random.default_rng(8), [[], []]
    for _ in range(3):
        for side, ends in zip(made, boxes(random, shapes, torch.float64, False), strict=True):
            side.append(ends)
    lowers, uppers = ([torch.cat(t) for t in zip(*side, strict=True)] for side in made)
    below, above = op.planes(lowers, uppers)
    pairs = list(zip(below.coefficients, above.coefficients, strict=True))
    nu = torch.randn((12, *below.bias.shape[1:]), dtype=torch.float64)
    grouped = Rows.dense_rows(nu, 3).spread_blocks(pairs)
    monkeypatch.setattr("absdom.rows.GATHERED", 40)  # several rounds of gathering
    ragged = Rows.dense_rows(nu, 3, torch.arange(3).repeat_interleave(4)).spread_blocks(pairs)
    for one, two in zip(grouped, ragged, strict=True):
        torch.testing.assert_close(one.dense(), two.dense(), rtol=1e-13, atol=0)


def test_a_large_matrix_product_keeps_its_coefficients_small(monkeypatch):
    monkeypatch.setattr(products, "PRODUCTS", 4)
    lowers, uppers = boxes(np.random.default_rng(9), [(2, 4, 3), (2, 3, 5)], torch.float64, False)
    for plane in ops.MatrixProduct().planes(lowers, uppers):
        assert [c.value.numel() for c in plane.coefficients] == [2 * 3 * 5, 2 * 4 * 3]
    case = {c.name: c for c in testing.standard_cases()}["MatrixProduct"]
    testing.check_case(case, "crown", gradients=True)


def network(*parts):
    """x "1 4" -> one layer each of the given sizes, joined by the last function."""
    builder = Builder()
    generator = torch.Generator().manual_seed(3)
    x = builder.input("x", TensorType((1, 4), "float64"))
    *shapes, join = parts
    made = []
    for shape in shapes:
        w = torch.randn((4, int(np.prod(shape))), generator=generator, dtype=torch.float64)
        made.append(builder.add(ops.Reshape(shape), builder.add(ops.MatMul(), x, builder.param(w, "w"))))
    return lower(builder.finish([join(builder, *made)]))


def width(graph, method="crown", radius=0.3):
    centre = torch.linspace(-0.5, 0.7, 4, dtype=torch.float64)[None]
    found = testing.bounds_of(graph, centre - radius, centre + radius, method, PROOF)
    return (found.upper - found.lower).sum().item(), found


def test_softmax_beats_its_parts():
    def whole(b, x):
        return b.add(ops.Softmax(1), x)

    def parts(b, x):
        e = b.add(ops.Exp(), x)
        return b.add(ops.Div(), e, b.add(ops.ReduceSum((1,)), e))

    for radius, share in ((0.01, 1.0), (0.1, 0.9), (0.3, 0.8), (1.0, 0.8)):
        one, other = (width(network((2, 3), f), radius=radius)[0] for f in (whole, parts))
        assert one < share * other, (radius, one, other)


def test_a_matrix_product_of_planes_beats_intervals():
    def attention(b, x, y):
        return b.add(ops.MatMul(), x, y)

    graph = network((2, 3), (3, 2), attention)
    assert width(graph, radius=0.03)[0] < 0.7 * width(graph, "interval", radius=0.03)[0]


def test_standardised_values_stay_in_range_where_their_parts_explode():
    """Boxes that hold a constant vector: the variance may be 0, and 1 / sqrt(epsilon) alone would be 1000."""
    graph = network((1, 6), lambda b, x: b.add(ops.Standardise((1,), 1e-6), x))
    for method in ("interval", "crown"):
        found = width(graph, method, radius=5.0)[1]
        assert found.upper.max() <= 6**0.5 + 1e-9 and found.lower.min() >= -(6**0.5) - 1e-9
    small = width(graph, radius=1e-3)[0]
    assert small < 0.3 * width(graph, "interval", radius=1e-3)[0]


def test_a_product_of_a_value_with_itself_is_a_square():
    square = network((1, 3), lambda b, x: b.add(ops.Mul(), x, x))
    product = network((1, 3), (1, 3), lambda b, x, y: b.add(ops.Mul(), x, y))
    assert ops.Power(2.0) in [n.op for n in square.nodes] and ops.Product() in [n.op for n in product.nodes]
    assert width(square, "interval", 2.0)[1].lower.min() >= -1e-9 > width(product, "interval", 2.0)[1].lower.min()


def test_a_quotient_beats_the_product_with_a_reciprocal():
    def apart(b, y):
        return b.add(ops.Add(), b.add(ops.Sigmoid(), y), b.param(torch.tensor([0.2], dtype=torch.float64), "shift"))

    def quotient(b, x, y):
        return b.add(ops.Div(), x, apart(b, y))

    def by_parts(b, x, y):
        return b.add(ops.Mul(), x, b.add(ops.Power(-1.0), apart(b, y)))

    for radius in (0.1, 0.3):
        one, other = (width(network((1, 3), (1, 3), f), radius=radius)[0] for f in (quotient, by_parts))
        assert one < 0.99 * other, (radius, one, other)


def test_squares_below_the_normal_numbers_are_hardly_known():
    """x^2 / 3 of such x has an error of per cents in float32; the result is -sqrt(3) all the same."""
    x = -torch.logspace(-24, -15, 400, dtype=torch.float64).float()[None]
    v = torch.zeros(1, 1)
    low, high = ops.Rescale(3).image([x, v], [x, v])
    assert (low.double() <= -(3**0.5)).all() and (high.double() >= -(3**0.5)).all()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("mask", [-3e38, -1e30, -2e4])
def test_masked_logits_take_nothing_from_the_others(mask, dtype):
    low, high = (torch.tensor([t], dtype=dtype) for t in ([-1.0, 0.2, 0.5], [0.5, 0.9, 0.8]))
    hidden = torch.full((1, 1), mask, dtype=dtype)
    ends, op = [[torch.cat([t, hidden], 1)] for t in (low, high)], ops.Softmax(0)
    near = 4e4 * torch.finfo(dtype).eps
    for with_mask, without in zip(op.image(*ends), op.image([low], [high]), strict=True):
        assert (with_mask[:, :3] - without).abs().max() < near and 0 <= with_mask[0, 3] < 1e-30
    for with_mask, without in zip(op.planes(*ends), op.planes([low], [high]), strict=True):
        block = with_mask.coefficients[0].value[0]
        assert (block[:3, :3] - without.coefficients[0].value[0]).abs().max() < near
        assert not block[3].any() and not block[:, 3].any()
        assert (with_mask.bias[0, :3] - without.bias[0]).abs().max() < near
    alone = [[torch.cat([t[:, :1], hidden, hidden], 1)] for t in (low, high)]  # all but one are hidden
    assert all(not p.coefficients[0].value.any() for p in op.planes(*alone))
    assert op.image(*alone)[0][0, 0] > 1 - near
