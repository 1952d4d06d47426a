"""CROWN-IBP and its loss fusion against closed forms on a two-layer network, and against attacks."""

from __future__ import annotations

from math import inf

import pytest
import torch
from torch import nn

from absdom.sets import InputBatch
from absdom.train.bounds import IBP
from absdom.train.crown_ibp import CrownIBP
from absdom.train.schedules import Follow, Ramp
from absdom.train.task import Classification, Specification, Task

EPS = 0.2
X = torch.tensor([[0.4, 0.7], [0.6, 0.2], [0.5, 0.5]], dtype=torch.float64)
Y = torch.tensor([0, 2, 1])


def two_layers() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 3)).double()


class Conjunctions(Specification):
    """Three rows in two clauses, with constants."""

    def check(self, x, y, outputs):
        pass

    def task(self, x, y, eps, outputs):
        C = torch.tensor([[1.0, -1, 0], [0, 1, -1], [-1, 0, 2]], dtype=x.dtype).expand(len(x), 3, 3)
        d = torch.tensor([0.3, 0.1, -0.2], dtype=x.dtype).expand(len(x), 3)
        sets = InputBatch(x.flatten(1) - eps, x.flatten(1) + eps)
        return Task(x, sets, C, d, torch.tensor([0, 0, 1]), eps)


def by_hand(net: nn.Sequential, x: torch.Tensor, label: int):
    """(interval lower and upper, linear lower bounds as a function of rows) of the margins of one item: l_inf, clipped
    to [0, 1]."""
    (W, b), (V, c) = ((m.weight, m.bias) for m in (net[0], net[2]))
    low, high = (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1)
    l = W.clamp(min=0) @ low + W.clamp(max=0) @ high + b
    u = W.clamp(min=0) @ high + W.clamp(max=0) @ low + b
    C = torch.eye(3, dtype=x.dtype)[label] - torch.eye(3, dtype=x.dtype)[[j for j in range(3) if j != label]]
    A, k = C @ V, C @ c
    lower = A.clamp(min=0) @ l.relu() + A.clamp(max=0) @ u.relu() + k
    upper = A.clamp(min=0) @ u.relu() + A.clamp(max=0) @ l.relu() + k

    def linear(weights: torch.Tensor) -> torch.Tensor:
        """A lower bound of sum_j weights_j margin_j."""
        row, total = weights @ A, weights @ k
        at_z = []
        for a, p, q in zip(row, l, u):
            if p >= 0:
                at_z.append(a)
            elif q <= 0:
                at_z.append(0 * a)
            elif a >= 0:
                at_z.append(a if q > -p else 0 * a)
            else:
                at_z.append(a * q / (q - p))
                total = total - a * p * q / (q - p)
        at_z = torch.stack(at_z)
        at_x = at_z @ W
        return total + at_z @ b + at_x.clamp(min=0) @ low + at_x.clamp(max=0) @ high

    return lower, upper, linear


def test_margins_are_those_worked_out_by_hand():
    net, beta = two_layers(), 0.3
    out = CrownIBP(net, Classification(), eps=EPS, beta=beta)(X, Y)
    for i, (x, y) in enumerate(zip(X, Y)):
        lower, _, linear = by_hand(net, x, int(y))
        dual = torch.stack([linear(e) for e in torch.eye(2, dtype=X.dtype)])
        expected = (1 - beta) * lower + beta * dual
        assert torch.allclose(out.margins[i], expected, atol=1e-9)
    losses = torch.log1p(torch.exp(-out.margins).sum(1))
    assert torch.allclose(out.total, losses.mean(), atol=1e-12)


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_the_fused_loss_is_that_worked_out_by_hand(share):
    net = two_layers()
    out = CrownIBP(net, Classification(), eps=EPS, beta=share, fused=True)(X, Y)
    losses = []
    for x, y in zip(X, Y):
        lower, upper, linear = by_hand(net, x, int(y))
        first, last = -upper, -lower  # the ends of the gaps
        slopes = (last.exp() - first.exp()) / (last - first)
        crown = (first.exp() - slopes * first).sum() - linear(slopes)
        losses.append(torch.log(1 + share * crown + (1 - share) * last.exp().sum()))
    assert torch.allclose(out.total, torch.stack(losses).mean(), atol=1e-9)


def test_the_share_falls_with_eps_and_nothing_is_swept_without_it():
    net = two_layers()
    loss = CrownIBP(net, Classification(), eps=0.0, fused=True)
    ramp = Ramp(loss, "eps", 0.0, EPS, 0, 4, smooth=False)
    follow, shares = Follow(loss, "beta", 0.8, 0.0, ramp), []
    for _ in range(4):
        shares.append(loss.beta)
        ramp.step(), follow.step()
    assert shares == pytest.approx([0.8, 0.6, 0.4, 0.2]) and loss.beta == 0 and loss.eps == EPS
    assert set(loss.state_dict()) == {"eps", "kappa", "beta"}
    intervals = IBP(net, Classification(), eps=EPS)(X, Y)
    assert torch.allclose(loss(X, Y).total, intervals.total, atol=1e-12)
    assert torch.allclose(CrownIBP(net, Classification(), eps=EPS, beta=0.0)(X, Y).total, intervals.total, atol=1e-12)


def deeper(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(27, 12), nn.LeakyReLU(), nn.Linear(12, 3)
    ).double()  # fmt: skip


@pytest.mark.parametrize("spec", [Classification(), Classification(norm=2), Conjunctions()], ids=["inf", "2", "rows"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_bound_is_at_least_the_loss_anywhere(spec, fused, beta):
    """Zero tolerance but for rounding: random points, and signed steps uphill."""
    for seed in range(2):
        net = deeper(seed)
        x, y = torch.rand(3, 1, 6, 6, dtype=torch.float64), torch.randint(0, 3, (3,))
        eps = 0.4 if getattr(spec, "norm", inf) == 2 else 0.08
        loss = CrownIBP(net, spec, eps=eps, beta=beta, fused=fused)
        bound, task = single(loss, x, y)
        low, high = task.sets.lower.reshape(x.shape), task.sets.upper.reshape(x.shape)
        z = (low + (high - low) * torch.rand_like(x)).requires_grad_()
        for _ in range(6):
            inside = task.sets.project(z.flatten(1)[:, None])[:, 0].reshape(x.shape)
            values = task.loss(task.margins(net(inside)))
            assert (bound >= values.detach() - 1e-9).all()
            (gradient,) = torch.autograd.grad(values.sum(), z)
            z = torch.maximum(torch.minimum(z + eps / 4 * gradient.sign(), high), low).detach().requires_grad_()


def single(loss: CrownIBP, x: torch.Tensor, y: torch.Tensor):
    """The bound of each item by itself "B", and the task."""
    values = torch.stack([loss(x[i : i + 1], y[i : i + 1]).total for i in range(len(x))])
    return values.detach(), loss(x, y).task


def test_fusion_at_a_point_is_exact_and_elsewhere_near_the_other():
    net = deeper(1)
    x, y = torch.rand(5, 1, 6, 6, dtype=torch.float64), torch.randint(0, 3, (5,))
    plain = nn.functional.cross_entropy(net(x), y)
    assert torch.allclose(CrownIBP(net, Classification(), eps=0.0, fused=True)(x, y).total, plain, atol=1e-9)
    unfused = CrownIBP(net, Classification(), eps=0.02)(x, y).total
    fused = CrownIBP(net, Classification(), eps=0.02, fused=True)(x, y).total
    intervals = IBP(net, Classification(), eps=0.02)(x, y).total
    assert plain < fused < intervals and plain < unfused < intervals
    assert torch.allclose(fused, unfused, rtol=0.05)


def test_fusion_of_scores_far_apart_does_not_overflow():
    net = deeper(2).float()
    with torch.no_grad():
        net[5].weight *= 1e4
    out = CrownIBP(net, Classification(), eps=0.1, fused=True)(torch.rand(4, 1, 6, 6), torch.tensor([0, 1, 2, 0]))
    assert out.total.isfinite() and out.total > 100


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("spec", [Classification(), Conjunctions()], ids=["classes", "rows"])
def test_gradients_are_those_of_differences(fused, spec):
    net = two_layers()
    loss = CrownIBP(net, spec, eps=EPS, kappa=0.3, beta=0.6, fused=fused)
    loss(X, Y).total.backward()
    for p in net.parameters():
        flat = p.data.view(-1)
        for i in range(len(flat)):
            before, ends = float(flat[i]), []
            for change in (1e-6, -1e-6):
                flat[i] = before + change
                ends.append(float(loss(X, Y).total.detach()))
            flat[i] = before
            assert float(p.grad.view(-1)[i]) == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-6)
