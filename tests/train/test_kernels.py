"""Operations with gradients of their own: against the plain ones, and against differences, twice."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from absdom import kernels
from absdom.ops.piecewise import Relu
from absdom.train.live import Live
from absdom.train.task import ball_sets

CASES = {
    "halves": kernels.halves,
    "ends": kernels.ends,
    "relu_chord": kernels.relu_chord,
    "contract": lambda lower, upper: kernels.contract(torch.stack([lower, 2 * upper], 1), upper),
    "contract of one row": lambda lower, upper: kernels.contract(lower.unsqueeze(1), upper),
    "relax": lambda lower, upper: kernels.relax(torch.stack([upper - 0.5, lower], 1), lower, upper),
    "relax for all boxes": lambda lower, upper: kernels.relax(upper.unsqueeze(0) - 0.4, lower[:1], upper[:1]),
    "relax_relu": lambda lower, upper: kernels.relax_relu(torch.stack([upper - 0.5, lower], 1), lower, upper),
    "relax_relu of one row": lambda lower, upper: kernels.relax_relu((upper - 0.5).unsqueeze(1), lower, upper),
    "relax_relu for all boxes": lambda lower, upper: kernels.relax_relu(upper.unsqueeze(0) - 0.4, lower[:1], upper[:1]),
}  # fmt: skip


def box():
    torch.manual_seed(0)
    lower = torch.randn(5, 7, dtype=torch.float64) - 0.3
    return lower.requires_grad_(), (lower.detach() + 0.1 + 2 * torch.rand_like(lower)).requires_grad_()


@pytest.mark.parametrize("name", CASES)
def test_gradients(name):
    assert torch.autograd.gradcheck(CASES[name], box())
    assert torch.autograd.gradgradcheck(CASES[name], box())


def test_values():
    lower, upper = (t.detach() for t in box())
    centre, radius = kernels.halves(lower, upper)
    assert torch.allclose(centre, (lower + upper) / 2) and torch.allclose(radius, (upper - lower) / 2)
    assert torch.allclose(torch.stack(kernels.ends(centre, radius)), torch.stack([lower, upper]))
    rows = torch.randn(5, 3, 7, dtype=torch.float64)
    assert torch.allclose(kernels.contract(rows, upper), (rows * upper[:, None]).sum(2))
    relaxed = rows.clamp(min=0) * lower[:, None] + rows.clamp(max=0) * upper[:, None]
    assert torch.allclose(kernels.relax(rows, lower, upper), relaxed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_chord_of_relu_lies_above_it_over_the_reals(dtype):
    """At both ends, in exact arithmetic, for ends of all magnitudes."""
    torch.manual_seed(1)
    numbers = torch.randn(400, dtype=dtype) * 10.0 ** torch.randint(-40 if dtype == torch.float32 else -300, 30, (400,))
    ends = torch.cat([numbers, torch.tensor([0.0, -0.0, 1.0, -1.0, torch.finfo(dtype).tiny], dtype=dtype)])
    lower, upper = torch.minimum(ends, ends.flip(0)), torch.maximum(ends, ends.flip(0))
    slope, bias = kernels.relu_chord(lower, upper)
    for low, high, s, b in zip(*(t.tolist() for t in (lower, upper, slope, bias)), strict=True):
        low, high, s, b = map(Fraction, (low, high, s, b))
        assert s * low + b >= max(low, 0) and s * high + b >= max(high, 0)
        if high <= 0 or low >= 0:
            assert b == 0 and s == (1 if high > 0 else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_chord_of_relu_lies_above_it_where_the_width_overflows(dtype):
    most = torch.finfo(dtype).max
    for low, high in ((-most, most), (-most, most * 1e-6), (-most * 0.75, most / 2), (-1.0, most), (-most, 1e-30)):
        s, b = (
            float(t) for t in kernels.relu_chord(torch.tensor([low], dtype=dtype), torch.tensor([high], dtype=dtype))
        )
        assert 0 <= s <= 1 and b >= 0
        if b < torch.inf:  # else it claims nothing
            low, high, s, b = map(Fraction, (*torch.tensor([low, high], dtype=dtype).tolist(), s, b))
            assert s * low + b >= 0 and s * high + b >= high
    ends = torch.tensor([[-1.0, torch.inf], [-torch.inf, 1.0], [-torch.inf, torch.inf]], dtype=dtype)
    slope, bias = kernels.relu_chord(*ends.T)
    assert slope[0] == 1 and bias[0] >= 1 and not (bias[1:] < torch.inf).any()


def test_rows_behind_relu_are_those_of_its_adaptive_lines():
    lower, upper = box()
    rows = torch.randn(5, 3, 7, dtype=torch.float64)
    rows[:, 0, :3] = 0
    rows.requires_grad_()
    lines = Relu().lines(lower, upper, Relu().initial(lower, upper))
    out = kernels.relax(rows, lines.lower_slope, lines.upper_slope)
    constant = -(torch.relu(-rows) * lines.upper_bias.unsqueeze(1)).sum(2)
    found = kernels.relax_relu(rows, lower, upper)
    assert torch.allclose(found[0], out) and torch.allclose(found[1], constant, atol=1e-13)
    weights = torch.randn_like(out), torch.randn_like(constant)
    expected, gradients = (torch.autograd.grad(f, (rows, lower, upper), weights) for f in ((out, constant), found))
    assert all(torch.allclose(a, b, atol=1e-13) for a, b in zip(expected, gradients, strict=True))
    ends = torch.tensor([[-2.0, -1.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 2.0]]).T
    out, constant = kernels.relax_relu(torch.tensor([[[1.0] * 5, [-1.0] * 5]]), *ends.unsqueeze(1))
    assert out.abs().tolist() == [[[0, 0, 0, 1, 1]] * 2] and constant.abs().max() < 1e-15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_behind_relu_where_the_width_overflows(dtype):
    most = torch.finfo(dtype).max
    for low, high in ((-most, most), (-most, most * 1e-6), (-1.0, most), (-torch.inf, 1.0), (-1.0, torch.inf)):
        ends = torch.tensor([[low, high]], dtype=dtype)
        slope, constant = kernels.relax_relu(-torch.ones(1, 1, 1, dtype=dtype), ends[:, :1], ends[:, 1:])
        slope, bias = -float(slope), -float(constant)
        if slope + bias < torch.inf:  # else it claims nothing
            slack = 4 * torch.finfo(dtype).eps * bias
            assert slope * low + bias >= -slack and slope * high - high + bias >= -slack


def test_bounds_without_guards_are_those_with_them():
    """With the same gradients, for one row per box and for more."""
    torch.manual_seed(2)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3, 2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(27, 8), torch.nn.ReLU(),
        torch.nn.Linear(8, 4),
    ).double()  # fmt: skip
    x = torch.rand(5, 1, 7, 7, dtype=torch.float64)
    live, sets = Live(net, x[:1]), ball_sets(x, 0.2, float("inf"), None)
    for recipe, count in (("crown-ibp", 1), ("crown-ibp", 3), ("crown", 3)):
        C = torch.randn(5, count, 4, dtype=torch.float64)
        values, gradients = [], []
        for guarded in (True, False):
            live._guarded = guarded
            values.append(live.propagate(recipe, sets).dual_rows(C))
            gradients.append(torch.autograd.grad(values[-1].sin().sum(), list(net.parameters())))
        assert torch.allclose(*values) and all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


def test_under_transforms():
    lower, upper = (t.detach() for t in box())
    rows = torch.randn(5, 2, 7, dtype=torch.float64)
    for dims in ((0, 0, 0), (0, None, None), (None, 0, None), (None, None, 0)):
        arguments = [t.unsqueeze(1) if d == 0 else t[:1] for t, d in zip((rows, lower, upper), dims, strict=True)]
        mapped = torch.func.vmap(kernels.relax_relu, dims)(*arguments)
        alone = [kernels.relax_relu(*(t[i] if d == 0 else t for t, d in zip(arguments, dims))) for i in range(5)]
        assert all(torch.allclose(m, torch.stack(a)) for m, a in zip(mapped, zip(*alone)))
    gradients = torch.func.grad(lambda *ends: kernels.relax_relu(rows, *ends)[1].sum(), (0, 1))(lower, upper)
    ends = lower.clone().requires_grad_(), upper.clone().requires_grad_()
    expected = torch.autograd.grad(kernels.relax_relu(rows, *ends)[1].sum(), ends)
    assert all(torch.allclose(a, b) for a, b in zip(gradients, expected))
    torch.func.jacrev(lambda low: kernels.relax_relu(rows, low, upper)[0].sum(0))(lower)
    mapped = torch.func.vmap(kernels.relu_chord)(lower, upper)
    assert torch.equal(mapped[0], kernels.relu_chord(lower, upper)[0])
    jacobian = torch.func.jacrev(lambda low: kernels.halves(low, upper)[0].sum())(lower)
    assert torch.allclose(jacobian, torch.full_like(lower, 0.5))
