"""Expressive losses and SABR: closed forms on two layers, limits, what is sound and what says that it is not."""

from __future__ import annotations

from math import inf

import pytest
import torch
from torch import nn

from absdom.api import recipe_of
from absdom.domain import total_failure
from absdom.errors import UsageError
from absdom.set_parts import HalfSpacesBatch
from absdom.sets import InputBatch
from absdom.train import CCIBP, MTLIBP, PGD, SABR, Adversarial, ExpIBP
from absdom.train.batch_norm import ATTACKED, CLEAN, RUNNING
from absdom.train.bounds import IBP, Certified
from absdom.train.live import Live
from absdom.train.sabr import small_sets
from absdom.train.shrunk import Shrunk
from absdom.train.task import Classification, Specification, Task

SHIFT = torch.tensor([0.05, -0.08, 0.02, 0.1], dtype=torch.float64)
EXPRESSIVE = (MTLIBP, CCIBP, ExpIBP)
EPS = 0.1


def shifted(evaluate, task: Task, objective=None) -> torch.Tensor:
    """An attack whose points are known."""
    return task.x + SHIFT


def two_layers(hidden: int = 7, norm: bool = False) -> nn.Sequential:
    middle = [nn.BatchNorm1d(hidden)] if norm else []
    net = nn.Sequential(nn.Linear(4, hidden), *middle, nn.ReLU(), nn.Linear(hidden, 3)).double()
    nn.init.normal_(net[0].weight)
    nn.init.normal_(net[-1].weight)
    if norm:
        nn.init.uniform_(net[1].weight, 0.5, 2)
        nn.init.normal_(net[1].bias)
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2)
    return net


def batch(size: int = 6):
    return 0.2 + 0.6 * torch.rand(size, 4, dtype=torch.float64), torch.randint(3, (size,))


def affine(net, x, statistics):
    z = x @ net[0].weight.T + net[0].bias
    if statistics is not None:
        scale = net[1].weight / (statistics[1] + net[1].eps) ** 0.5
        z = scale * (z - statistics[0]) + net[1].bias
    return z


def difference_rows(y):
    """Rows e_y - e_j, j != y, in order."""
    rows = [[torch.eye(3)[k] - torch.eye(3)[j] for j in range(3) if j != k] for k in y.tolist()]
    return torch.stack([torch.stack(r) for r in rows]).double()


def margins_at(net, x, y, statistics=None):
    outputs = affine(net, x, statistics).clamp(min=0) @ net[-1].weight.T + net[-1].bias
    return (difference_rows(y) @ outputs[:, :, None])[:, :, 0]


def lower_margins(net, lower, upper, y, statistics=None, shrink=1.0):
    """Gowal et al.'s bounds on two layers, the label's rows merged into the last one."""
    centre, radius = affine(net, (lower + upper) / 2, statistics), (upper - lower) / 2 @ net[0].weight.T.abs()
    if statistics is not None:
        radius = radius * net[1].weight.abs() / (statistics[1] + net[1].eps) ** 0.5
    low, high = centre - radius, centre + radius
    factor = torch.where((low < 0) & (high > 0), torch.full_like(low, shrink), 1.0)
    low, high = low.clamp(min=0), factor * high.clamp(min=0)
    W, b = difference_rows(y) @ net[-1].weight, difference_rows(y) @ net[-1].bias
    return (W.clamp(min=0) @ low[:, :, None] + W.clamp(max=0) @ high[:, :, None])[:, :, 0] + b


def loss_of(margins):
    return (1 + (-margins).exp().sum(1)).log()


def combined(kind, attacked, bounds, alpha):
    if kind is MTLIBP:
        return alpha * loss_of(bounds).mean() + (1 - alpha) * loss_of(attacked).mean()
    if kind is CCIBP:
        return loss_of(alpha * bounds + (1 - alpha) * attacked).mean()
    return loss_of(bounds).mean() ** alpha * loss_of(attacked).mean() ** (1 - alpha)


def gradients(total, net):
    return torch.autograd.grad(total, list(net.parameters()), retain_graph=True)


def assert_equal(out, total, net):
    torch.testing.assert_close(out.total, total, rtol=0, atol=1e-12)
    torch.testing.assert_close(sum(out.terms.values()), total.detach(), rtol=0, atol=1e-12)
    for mine, wanted in zip(gradients(out.total, net), gradients(total, net), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kappa", (0.0, 0.3))
@pytest.mark.parametrize("kind", EXPRESSIVE)
def test_expressive_losses_by_hand(kind, kappa):
    torch.manual_seed(0)
    net, (x, y) = two_layers(), batch()
    out = kind(net, Classification(), eps=EPS, alpha=0.4, attack=shifted, kappa=kappa)(x, y)
    bounds = lower_margins(net, x - EPS, x + EPS, y)
    total = (1 - kappa) * combined(kind, margins_at(net, x + SHIFT, y), bounds, 0.4)
    total = total + kappa * loss_of(margins_at(net, x, y)).mean()
    assert_equal(out, total, net)
    torch.testing.assert_close(out.margins, bounds.detach(), rtol=0, atol=1e-12)
    assert ("clean" in out.terms) == (kappa > 0)


@pytest.mark.parametrize("kind", EXPRESSIVE)
def test_limits_order_and_growth(kind):
    """alpha 0 is the loss at the attacked points, 1 that of the bounds; in between it grows, and stays between."""
    torch.manual_seed(0)
    net, (x, y) = two_layers(), batch()
    loss = kind(net, Classification(), eps=EPS, alpha=0.0, attack=shifted)
    low = Adversarial(net, Classification(), eps=EPS, attack=shifted)(x, y)
    high = IBP(net, Classification(), eps=EPS)(x, y)
    assert_equal(loss(x, y), low.total, net)
    values = []
    for loss.alpha in (0.0, 0.25, 0.5, 0.75, 1.0):  # as a schedule moves it
        values.append(loss(x, y).total.item())
    assert values == sorted(values) and values[0] < values[-1]
    assert_equal(loss(x, y), high.total, net)
    assert loss.state_dict() == {"eps": EPS, "kappa": 0.0, "alpha": 1.0}


def test_exponents_of_nothing():
    """Losses that are zero in these numbers have a total and gradients that are numbers."""
    net = nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.copy_(torch.tensor([200.0, 0.0, 0.0]))
    x, y = torch.rand(3, 4), torch.zeros(3, dtype=torch.int64)
    out = ExpIBP(net, Classification(), eps=EPS, alpha=0.5)(x, y)
    out.total.backward()
    assert out.total == 0 or out.total < 1e-30
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("kind", EXPRESSIVE)
def test_the_attack_has_its_own_radius(kind):
    torch.manual_seed(0)
    net, (x, y) = two_layers(), batch()
    seen = []

    def attack(evaluate, task):
        seen.append(task)
        return task.x

    out = kind(net, Classification(), eps=EPS, alpha=0.5, attack=attack, attack_radius=2.1)(x, y)
    assert seen[0].eps == pytest.approx(0.21)
    torch.testing.assert_close(seen[0].sets.lower, (x - 0.21).clamp(0, 1))
    assert out.task.eps == EPS
    torch.testing.assert_close(out.margins, lower_margins(net, x - EPS, x + EPS, y).detach())


@pytest.mark.parametrize("policy", (CLEAN, ATTACKED, RUNNING))
@pytest.mark.parametrize("kind", EXPRESSIVE)
def test_batch_norm_policies_by_hand(kind, policy):
    torch.manual_seed(0)
    net, (x, y) = two_layers(norm=True), batch()
    running = (net[1].running_mean.clone(), net[1].running_var.clone())
    source = {"clean": x, "attacked": x + SHIFT}.get(policy.source)
    hidden = None if source is None else source @ net[0].weight.T + net[0].bias
    statistics = running if hidden is None else (hidden.mean(0), hidden.var(0, unbiased=False))
    out = kind(net, Classification(), eps=EPS, alpha=0.4, attack=shifted, kappa=0.25, batch_norm=policy)(x, y)
    bounds = lower_margins(net, x - EPS, x + EPS, y, statistics)
    total = 0.75 * combined(kind, margins_at(net, x + SHIFT, y, statistics), bounds, 0.4)
    assert_equal(out, total + 0.25 * loss_of(margins_at(net, x, y, statistics)).mean(), net)


@pytest.mark.parametrize("norm", (inf, 2.0, 1.0))
@pytest.mark.parametrize("recipe", ("ibp", "crown-ibp"))
def test_bounds_are_above_every_attack(norm, recipe):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)).double()
    x, y = batch(12)
    spec = Classification(norm)
    loss = MTLIBP(net, spec, eps=0.2, alpha=0.5, recipe=recipe, attack=PGD(10, restarts=3))
    out = loss(x, y)
    task = out.task
    assert out.terms["attacked"] <= out.terms["bound"] + 1e-9
    for steps in (0, 1, 10):
        for _ in range(4):
            points = PGD(steps)(net, task)
            with torch.no_grad():
                reached = task.margins(net(points))
            assert (out.margins <= reached + 1e-9).all()
            assert (task.loss(out.margins) >= task.loss(reached) - 1e-9).all()


class BothBelow(Specification):
    """Not (y0 < .1 and y1 < .2), and not (y2 < 0): a clause of two rows and one of one row, on boxes."""

    d = torch.tensor([-0.1, -0.2, 0.0], dtype=torch.float64)

    def check(self, x, y, outputs):
        pass

    def task(self, x, y, eps, outputs):
        C = torch.eye(3, dtype=x.dtype).expand(len(x), -1, -1)
        return Task(x, InputBatch(x - eps, x + eps), C, self.d.expand(len(x), -1), torch.tensor([0, 0, 1]), eps)


@pytest.mark.parametrize("kind", EXPRESSIVE)
def test_other_specifications(kind):
    torch.manual_seed(0)
    net, (x, y) = two_layers(), batch()

    def clauses(rows):
        return torch.stack([rows[:, :2].amax(1), rows[:, 2]], 1)

    def hidden(points):
        return points @ net[0].weight.T + net[0].bias

    radius = EPS * net[0].weight.abs().sum(1)
    low, high = (hidden(x) - radius).clamp(min=0), (hidden(x) + radius).clamp(min=0)
    W = net[2].weight
    bounds = low @ W.clamp(min=0).T + high @ W.clamp(max=0).T + net[2].bias + BothBelow.d
    attacked = hidden(x + SHIFT).clamp(min=0) @ W.T + net[2].bias + BothBelow.d
    if kind is CCIBP:  # the rows are combined, not the clauses
        total = loss_of(clauses(0.4 * bounds + 0.6 * attacked)).mean()
    else:
        total = combined(kind, clauses(attacked), clauses(bounds), 0.4)
    assert_equal(kind(net, BothBelow(), eps=EPS, alpha=0.4, attack=shifted)(x, y), total, net)


@pytest.mark.parametrize("kind", (*EXPRESSIVE, SABR))
def test_gradients(kind):
    torch.manual_seed(0)
    net, (x, y) = two_layers(hidden=4), batch(3)
    options = {"ratio": 0.4, "shrink": 0.8} if kind is SABR else {"alpha": 0.4}
    loss = kind(net, Classification(), eps=EPS, attack=shifted, kappa=0.2, **options)
    assert torch.autograd.gradcheck(lambda *_: loss(x, y).total, tuple(net.parameters()))


@pytest.mark.parametrize("shrink", (1.0, 0.8))
def test_sabr_by_hand(shrink):
    torch.manual_seed(0)
    net, (x, y) = two_layers(), batch()
    x[0], x[1] = 0.03, 0.99  # their boxes are cut by the range
    lower, upper = (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1)

    def attack(evaluate, task):
        return torch.maximum(torch.minimum(x + SHIFT, upper), lower)

    half = 0.4 * (upper - lower) / 2
    centre = torch.maximum(torch.minimum(attack(None, None), upper - half), lower + half)
    bounds = lower_margins(net, centre - half, centre + half, y, shrink=shrink)
    out = SABR(net, Classification(), eps=EPS, ratio=0.4, attack=attack, shrink=shrink, kappa=0.1)(x, y)
    assert_equal(out, 0.9 * loss_of(bounds).mean() + 0.1 * loss_of(margins_at(net, x, y)).mean(), net)
    assert out.margins is None  # they are no bounds over the full boxes


def test_sabr_limits():
    torch.manual_seed(0)
    net, (x, y) = two_layers(), batch()
    loss = SABR(net, Classification(), eps=EPS, ratio=1.0, attack=shifted)
    assert_equal(loss(x, y), IBP(net, Classification(), eps=EPS)(x, y).total, net)
    values = []
    for loss.ratio in (0.0, 0.3, 0.6, 1.0):
        values.append(loss(x, y).total.item())
    assert values == sorted(values) and values[0] < values[-1]
    loss.ratio = 0.0
    assert_equal(loss(x, y), Adversarial(net, Classification(), eps=EPS, attack=shifted)(x, y).total, net)
    assert loss.state_dict() == {"eps": EPS, "kappa": 0.0, "ratio": 0.0}


def test_sabr_bounds_by_any_recipe():
    torch.manual_seed(0)
    net, (x, y) = two_layers(), batch()
    for norm in (inf, 2.0, 1.0):
        loss = SABR(net, Classification(norm), eps=EPS, ratio=1.0, recipe="crown-ibp")
        whole = Certified(net, Classification(norm), eps=EPS, recipe="crown-ibp")(x, y)
        torch.testing.assert_close(loss(x, y).total, whole.total)
        loss.ratio = 0.3
        assert loss(x, y).total < whole.total


@pytest.mark.parametrize("clip", ((0.0, 1.0), None))
@pytest.mark.parametrize("norm", (inf, 2.0, 1.0))
def test_small_sets_lie_in_the_full_ones(norm, clip):
    torch.manual_seed(0)
    x, y = torch.rand(40, 6, dtype=torch.float64), torch.randint(3, (40,))
    x[0], x[1] = 0, 1
    net = nn.Linear(6, 3).double()
    for eps in (0.3, 0.0):
        task = Classification(norm, clip).task(x, y, eps, 3)
        attacked = PGD(4)(net, task)
        for ratio in (0.0, 0.2, 0.7, 1.0):
            sets = small_sets(task.sets, attacked, ratio)
            inner = task.with_sets(sets)
            for attack in (PGD(0), PGD(5, restarts=2)):
                points = attack(net, inner)
                assert ((points - x).norm(norm, dim=1) <= eps + 1e-12).all()
                assert clip is None or ((points >= 0) & (points <= 1)).all()
            assert (task.sets.lower <= sets.lower).all() and (sets.upper <= task.sets.upper).all()
            assert (sets.lower <= sets.upper).all()
            if ratio == 0:
                torch.testing.assert_close(sets.lower, attacked)
            width = (sets.upper - sets.lower) / (task.sets.upper - task.sets.lower).clamp(min=1e-9)
            if norm == inf and eps:
                torch.testing.assert_close(width, torch.full_like(width, ratio))
                held = (sets.lower - 1e-12 <= attacked) & (attacked <= sets.upper + 1e-12)
                assert held.all()  # the attacked point is in the small box
    halves = HalfSpacesBatch(torch.ones(40, 1, 6, dtype=torch.float64), torch.ones(40, 1, dtype=torch.float64))
    with pytest.raises(UsageError, match="other parts"):
        small_sets(InputBatch(x, x, (halves,)), x, 0.5)


def test_shrunk_boxes_say_that_they_are_no_bounds():
    torch.manual_seed(0)
    net, (x, y) = two_layers(), batch()
    recipe = recipe_of("ibp") & Shrunk(0.5)
    assert total_failure(recipe) == inf
    with pytest.raises(UsageError, match="shrunk"):
        recipe_of("ibp & shrunk(0.5)")
    task = Classification().task(x, y, EPS, 3)
    live = Live(net, x[:1])
    found = live.propagate(recipe, task.sets).lower_bounds(task.C)
    torch.testing.assert_close(found, lower_margins(net, x - EPS, x + EPS, y, shrink=0.5))
    assert (found > live.propagate("ibp", task.sets).lower_bounds(task.C)).any()


@pytest.mark.parametrize("policy", (CLEAN, ATTACKED, RUNNING))
def test_sabr_batch_norm_policies_by_hand(policy):
    torch.manual_seed(0)
    net, (x, y) = two_layers(norm=True), batch()
    running = (net[1].running_mean.clone(), net[1].running_var.clone())
    source = {"clean": x, "attacked": x + SHIFT}.get(policy.source)
    hidden = None if source is None else source @ net[0].weight.T + net[0].bias
    statistics = running if hidden is None else (hidden.mean(0), hidden.var(0, unbiased=False))
    out = SABR(net, Classification(), eps=EPS, ratio=0.4, attack=shifted, batch_norm=policy)(x, y)
    half = 0.4 * EPS
    centre = torch.maximum(torch.minimum(x + SHIFT, x + EPS - half), x - EPS + half)
    assert_equal(out, loss_of(lower_margins(net, centre - half, centre + half, y, statistics)).mean(), net)


def test_shares_are_checked():
    net = two_layers()
    for kind in EXPRESSIVE:
        with pytest.raises(UsageError, match="alpha 1.5"):
            kind(net, Classification(), eps=EPS, alpha=1.5)
    for wrong in ({"ratio": 1.5}, {"ratio": 0.5, "shrink": 0.0}):
        with pytest.raises(UsageError, match="shares"):
            SABR(net, Classification(), eps=EPS, **wrong)
