"""A captured module: what is read anew at each call, and what calls leave behind."""

from __future__ import annotations

import copy
import gc
import weakref
from math import inf

import pytest
import torch
from torch import nn

from absdom.sets import InputBatch
from absdom.train.attacks import PGD
from absdom.train.batch_norm import RUNNING
from absdom.train.bounds import IBP, Certified
from absdom.train.cap import CAP
from absdom.train.crown_ibp import CrownIBP
from absdom.train.live import Live
from absdom.train.sabr import SABR
from absdom.train.taps import TAPS
from absdom.train.task import Classification, ball_sets


def network(seed=0, norm=False):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(3, 6),
        nn.BatchNorm1d(6) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Linear(6, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )


def batch(dtype=torch.float64):
    torch.manual_seed(1)
    return torch.rand(6, 3, dtype=dtype), torch.tensor([0, 1, 2, 0, 1, 2])


def point_bounds(live, x):
    run = live.propagate("ibp", ball_sets(x, 0.0, inf, None))
    return run.bounds[run.context.schedule.target].lower.flatten(1)


def test_a_module_may_be_moved_after_it_was_captured():
    """Its buffers are other tensors then."""
    net = network(norm=True)
    live = Live(net, torch.rand(1, 3))
    net.double().eval()
    net[1].running_mean.normal_(), net[1].running_var.uniform_(0.5, 2)
    net[0].weight = nn.Parameter(torch.randn(6, 3, dtype=torch.float64))
    x, y = batch()
    torch.testing.assert_close(point_bounds(live, x), net(x))
    IBP(live, Classification(), eps=0.1, batch_norm=RUNNING)(x, y).total.backward()
    assert net[0].weight.grad is not None


def test_shifted_weights_are_read_by_bounds_and_by_the_module_alike():
    net = network().double()
    live, (x, _) = Live(net, batch()[0][:1]), batch()
    before = net(x)
    with live.shifted({net[0].weight: torch.ones_like(net[0].weight)}):
        within = net(x)
        torch.testing.assert_close(point_bounds(live, x), within)
    assert not torch.allclose(within, before)
    torch.testing.assert_close(point_bounds(live, x), before)


LOSSES = {
    "ibp": lambda net, spec: IBP(net, spec, eps=0.1, kappa=0.3),
    "crown": lambda net, spec: Certified(net, spec, eps=0.1, recipe="crown"),
    "fused": lambda net, spec: CrownIBP(net, spec, eps=0.1, fused=True),
    "projected": lambda net, spec: CAP(net, spec, eps=0.1, projections=5),
    "sabr": lambda net, spec: SABR(net, spec, eps=0.1, ratio=0.5, attack=PGD(2), shrink=0.8),
    "taps": lambda net, spec: TAPS(net, spec, eps=0.1, layer="2", attack=PGD(2)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_calls_stand_alone(name):
    """Two calls before one backward pass, one after an optimiser's step: as if each were the first. Nothing grows."""
    x, y = batch()
    spec, used = Classification(), network(norm=True).double()
    loss = LOSSES[name](used, spec)

    def alone(live, number):
        torch.manual_seed(number)
        total = LOSSES[name](live, spec)(x, y).total
        return total.detach(), torch.autograd.grad(total, list(live.module.parameters()))

    for _ in range(2):
        live = Live(copy.deepcopy(used), x[:1])
        expected = [alone(live, number) for number in (1, 2)]
        outs = []
        for number in (1, 2):
            torch.manual_seed(number)
            outs.append(loss(x, y))
        sum(out.total for out in outs).backward()
        for out, (total, _) in zip(outs, expected, strict=True):
            torch.testing.assert_close(out.total, total)
        for p, *of_calls in zip(used.parameters(), *(g for _, g in expected), strict=True):
            torch.testing.assert_close(p.grad, sum(of_calls))
            p.data -= 0.1 * p.grad
            p.grad = None
    live = loss.live(x)
    count, last = len(live._schedules), weakref.ref(loss(x, y).total)
    loss(x, y)
    gc.collect()
    assert len(live._schedules) == count and last() is None


def test_evaluation_without_gradients_does_not_poison_a_step():
    x, y = batch()
    live = Live(network(norm=True).double(), x[:1])
    for name in LOSSES:
        loss = LOSSES[name](live, Classification(norm=2))
        with torch.no_grad():
            loss(x, y)
        with torch.inference_mode():
            loss(x, y)
        torch.manual_seed(0)
        gradients = torch.autograd.grad(loss(x, y).total, list(live.module.parameters()))
        assert all(g.isfinite().all() for g in gradients), name


@pytest.mark.parametrize("widths", [(0.0, 0.0, 0.001, 0.5, 0.0, 0.02), (0.2, 0.3, 0.2, 0.5, 0.3, 0.3)])
@pytest.mark.parametrize("recipe", ["crown", "cap"])
def test_gradients_where_boxes_have_different_numbers_of_unstable_neurons(recipe, widths):
    """Rows of such neurons are ragged where one box has most of them; else groups are filled up with repeats."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 60), nn.LeakyReLU(0.1), nn.Linear(60, 50), nn.ReLU(), nn.Linear(50, 3)).double()
    (x, _), width = batch(), torch.tensor(widths, dtype=torch.float64)[:, None]
    live, sets, C = Live(net, x[:1]), InputBatch(x - width, x + width), torch.randn(6, 2, 3, dtype=torch.float64)

    def total():
        run = live.propagate(recipe, sets)
        counts.extend(((b.lower < 0) & (b.upper > 0)).flatten(1).sum(1) for b in run.bounds.values())
        return run.lower_bounds(C).sum()

    counts: list[torch.Tensor] = []
    gradients = torch.autograd.grad(total(), list(net.parameters()))
    assert any(len(set(count.tolist())) > 2 for count in counts)
    directions = [torch.randn_like(p) for p in net.parameters()]
    ends = []
    with torch.no_grad():
        for step in (1e-7, -2e-7):
            for p, d in zip(net.parameters(), directions, strict=True):
                p += step * d
            ends.append(total())
    expected = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    torch.testing.assert_close((ends[0] - ends[1]) / 2e-7, expected, rtol=1e-4, atol=1e-5)
