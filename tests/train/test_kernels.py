"""Operations with gradients of their own: against the plain ones, and against differences, twice."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from absdom import kernels

CASES = {
    "halves": kernels.halves,
    "ends": kernels.ends,
    "relu_chord": kernels.relu_chord,
    "contract": lambda lower, upper: kernels.contract(torch.stack([lower, 2 * upper], 1), upper),
    "contract of one row": lambda lower, upper: kernels.contract(lower.unsqueeze(1), upper),
    "relax": lambda lower, upper: kernels.relax(torch.stack([upper - 0.5, lower], 1), lower, upper),
    "relax for all boxes": lambda lower, upper: kernels.relax(upper.unsqueeze(0) - 0.4, lower[:1], upper[:1]),
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


def test_under_transforms():
    lower, upper = (t.detach() for t in box())
    mapped = torch.func.vmap(kernels.relu_chord)(lower, upper)
    assert torch.equal(mapped[0], kernels.relu_chord(lower, upper)[0])
    jacobian = torch.func.jacrev(lambda low: kernels.halves(low, upper)[0].sum())(lower)
    assert torch.allclose(jacobian, torch.full_like(lower, 0.5))
