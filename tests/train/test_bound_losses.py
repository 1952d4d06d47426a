"""Losses of bounds: closed forms by hand, gradients, soundness against attacks, and what schedules move."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from math import inf

import pytest
import torch
from torch import nn

from absdom.errors import UsageError
from absdom.train.attacks import PGD
from absdom.train.bounds import IBP, Certified
from absdom.train.cap import CAP
from absdom.train.diffai import Abstract, Attacked, Between, Clean, Coin, DiffAI, LinMix
from absdom.train.expressive import MTLIBP
from absdom.train.fast_ibp import FastIBP
from absdom.train.live import Live
from absdom.train.one_step import OneStep
from absdom.train.taps import TAPS
from absdom.train.task import Classification, Specification, Task, ball_sets


@pytest.fixture(autouse=True, scope="module")
def double():
    """Everything here in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


LOSSES = {
    "ibp": lambda net, spec, eps: IBP(net, spec, eps=eps),
    "fast": lambda net, spec, eps: FastIBP(net, spec, eps=eps, eps_max=0.4),
    "cap": lambda net, spec, eps: CAP(net, spec, eps=eps),
    "one step": lambda net, spec, eps: OneStep(net, spec, eps=eps),
    "hybrid": lambda net, spec, eps: DiffAI(net, spec, eps=eps),
    "switch": lambda net, spec, eps: DiffAI(net, spec, eps=eps, recipe="hybrid-zonotope(slope=adaptive)"),
    "box": lambda net, spec, eps: DiffAI(net, spec, eps=eps, recipe="hybrid-zonotope(slope=flat)"),
    "corner": lambda net, spec, eps: DiffAI(net, spec, eps=eps, recipe="ibp", corner=True),
    "mixture": lambda net, spec, eps: DiffAI(
        net, spec, eps=eps, goal=LinMix(Attacked(PGD(2)), Abstract("zonotope"), weight=0.7)
    ),
}


class Residual(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return torch.relu(x + self.inner(x))


class Normalise(nn.Module):
    def forward(self, x):
        return (x - 0.4) / 0.3


def mlp(seed=0, sizes=(3, 6, 5, 3)):
    torch.manual_seed(seed)
    layers = []
    for a, b in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def conv_net(seed=0, norm=False):
    torch.manual_seed(seed)
    layers = [Normalise(), nn.Conv2d(1, 3, 3, stride=2, padding=1)]
    layers += [nn.BatchNorm2d(3)] if norm else []
    block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 1))
    return nn.Sequential(
        *layers, nn.ReLU(), Residual(block), nn.Flatten(), nn.Linear(27, 6), nn.ReLU(), nn.Linear(6, 3)
    )


@cache
def capture(kind):
    net = {"mlp": mlp, "conv": conv_net, "norm": lambda: conv_net(norm=True)}[kind]()
    return Live(net, batch(net)[0][:1])


def captured(kind, seed):
    """A network that is captured once, with the weights of a seed."""
    torch.manual_seed(seed)
    live = capture(kind)
    for layer in live.module.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return live


def batch(net, seed=1, size=4):
    shape = (1, 5, 5) if isinstance(net[0], Normalise) else (net[0].in_features,)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((size, *shape), generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (size,), generator=generator)


def cross_entropy(margins):
    """log(1 + sum exp(-m)), from "B R"."""
    return torch.log(1 + torch.exp(-margins).sum(1)).mean()


class Hand:
    """A network with one hidden layer over unclipped boxes, in plain tensors."""

    def __init__(self, seed=3):
        self.net = mlp(seed, (3, 6, 3))
        self.spec = Classification(clip=None)
        self.x, self.y = batch(self.net)
        self.W, self.b, self.V, self.c = (p.detach().clone() for p in self.net.parameters())
        self.eps = 0.15
        centre = self.x @ self.W.T + self.b
        radius = self.eps * self.W.abs().sum(1)
        self.l, self.u = centre - radius, centre + radius
        assert ((self.l < 0) & (self.u > 0)).any() and (self.l > 0).any() and (self.u < 0).any()
        others = torch.tensor([[j for j in range(3) if j != label] for label in self.y.tolist()])
        eye = torch.eye(3)
        C = self.C = eye[self.y][:, None] - eye[others]
        self.M, self.offset = C @ self.V, C @ self.c  # "B R n", "B R"

    def interval(self):
        """Lower bounds of the rows."""
        low, high = self.l.clamp(min=0)[:, None], self.u.clamp(min=0)[:, None]
        return (self.M.clamp(min=0) * low + self.M.clamp(max=0) * high).sum(2) + self.offset

    def chord(self):
        unstable = (self.l < 0) & (self.u > 0)
        return torch.where(unstable, self.u / (self.u - self.l), (self.l >= 0).double())

    def dual(self, lower_slope):
        """Rows back through lines: slope "B n" below, the chord above."""
        upper = self.chord()
        bias = torch.where((self.l < 0) & (self.u > 0), -upper * self.l, torch.zeros_like(upper))
        plus, minus = self.M.clamp(min=0), self.M.clamp(max=0)
        nu = plus * lower_slope[:, None] + minus * upper[:, None]
        first = nu @ self.W
        centre = (first @ self.x[:, :, None])[:, :, 0] + nu @ self.b
        return centre - self.eps * first.abs().sum(2) + (minus * bias[:, None]).sum(2) + self.offset

    def zonotope(self, slope):
        """A hybrid zonotope with parallel lines of this slope; its box part passes |V|, then |C|."""
        unstable = (self.l < 0) & (self.u > 0)
        high = torch.maximum(-slope * self.l, (1 - slope) * self.u)
        half = torch.where(unstable, high / 2, torch.zeros_like(high))
        centre = slope * (self.x @ self.W.T + self.b) + half
        generators = slope[:, None] * self.eps * self.W.T  # "B K n"
        rows = (self.M * centre[:, None]).sum(2) - (self.C.abs() @ (half @ self.V.abs().T)[:, :, None])[:, :, 0]
        return rows - (self.M @ generators.mT).abs().sum(2) + self.offset


def test_interval_loss_by_hand():
    hand = Hand()
    out = IBP(hand.net, hand.spec, eps=hand.eps)(hand.x, hand.y)
    assert torch.allclose(out.margins, hand.interval(), atol=1e-12)
    assert torch.allclose(out.total, cross_entropy(hand.interval()), atol=1e-12)


def test_cap_by_hand():
    """J of Wong and Kolter (2018), met with the interval bounds."""
    hand = Hand()
    out = CAP(hand.net, hand.spec, eps=hand.eps)(hand.x, hand.y)
    dual = hand.dual(hand.chord())
    expected = torch.maximum(dual, hand.interval())
    assert (dual > hand.interval() + 1e-6).any()
    assert torch.allclose(out.margins, expected, atol=1e-12)
    assert torch.allclose(out.total, cross_entropy(expected), atol=1e-12)


@pytest.mark.parametrize("eta", [2.0, 0.3])
def test_one_step_by_hand(eta):
    """Equation 7 of Lee et al. (2021): one signed step from uniform slopes."""
    hand = Hand()
    torch.manual_seed(5)
    out = OneStep(hand.net, hand.spec, eps=hand.eps, eta=eta)(hand.x, hand.y)
    torch.manual_seed(5)
    first = torch.rand(4, 6).requires_grad_()
    unstable, stable = (hand.l < 0) & (hand.u > 0), (hand.l >= 0).double()
    (gradient,) = torch.autograd.grad(cross_entropy(hand.dual(torch.where(unstable, first, stable))), first)
    slope = torch.where(unstable, (first.detach() - eta * gradient.sign()).clamp(0, 1), stable)
    assert torch.allclose(out.margins, hand.dual(slope), atol=1e-12)
    assert torch.allclose(out.total, cross_entropy(hand.dual(slope)), atol=1e-12)
    worse = cross_entropy(hand.dual(torch.where(unstable, first.detach(), stable)))
    assert out.total <= worse + 1e-12


@pytest.mark.parametrize("variant", ["parallel", "adaptive", "flat"])
def test_hybrid_zonotopes_by_hand(variant):
    """Mirman et al. (2018): Switch keeps the symbols iff u > -l, Box never."""
    hand = Hand()
    stable = (hand.l >= 0).double()
    unstable = (hand.l < 0) & (hand.u > 0)
    slope = {
        "parallel": hand.chord(),
        "adaptive": torch.where(unstable, (hand.u > -hand.l).double(), stable),
        "flat": stable,
    }[variant]
    loss = DiffAI(hand.net, hand.spec, eps=hand.eps, recipe=f"hybrid-zonotope(slope={variant})")
    expected = torch.maximum(hand.zonotope(slope), hand.interval())
    assert torch.allclose(loss(hand.x, hand.y).margins, expected, atol=1e-12)


def test_the_worst_corner_by_hand():
    hand = Hand()
    low, high = hand.l.clamp(min=0), hand.u.clamp(min=0)
    plus, minus = hand.V.clamp(min=0), hand.V.clamp(max=0)
    low, high = low @ plus.T + high @ minus.T + hand.c, high @ plus.T + low @ minus.T + hand.c
    picked = torch.nn.functional.one_hot(hand.y, 3).bool()
    expected = torch.nn.functional.cross_entropy(torch.where(picked, low, high), hand.y)
    out = DiffAI(hand.net, hand.spec, eps=hand.eps, recipe="ibp", corner=True)(hand.x, hand.y)
    assert torch.allclose(out.total, expected, atol=1e-12)
    assert out.total >= IBP(hand.net, hand.spec, eps=hand.eps)(hand.x, hand.y).total


def difference(total, parameters, directions, step=1e-6):
    """The derivative along `directions`, by finite differences."""
    found = []
    with torch.no_grad():
        for sign in (1, -2):
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=sign * step)
            found.append(float(total()))
        for p, d in zip(parameters, directions, strict=True):
            p.add_(d, alpha=step)
    return (found[0] - found[1]) / (2 * step)


@pytest.mark.parametrize("kind", ["mlp", "norm"])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name, kind):
    """Those of finite differences along random directions; draws and attacks repeated."""
    live = captured(kind, seed=4)
    x, y = batch(live.module)
    loss = LOSSES[name](live, Classification(), 0.03)
    if name == "mixture":  # the attacked points move with the weights, and are taken as given
        loss.goal.first.attack = lambda evaluate, task: task.x + 0.01

    def total():
        torch.manual_seed(0)
        return loss(x, y).total

    parameters = list(live.module.parameters())
    gradients = torch.autograd.grad(total(), parameters)
    assert all(g.abs().sum() > 0 for g in gradients[:1])
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        expected = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        assert abs(difference(total, parameters, directions) - expected) < 1e-6 * (1 + expected.abs())


@dataclass(frozen=True)
class TwoClauses(Specification):
    """The first clause needs one of two rows, the second its only one."""

    def check(self, x, y, outputs):
        pass

    def task(self, x, y, eps, outputs):
        C = torch.tensor([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0], [1.0, 1.0, 0.5]]).expand(len(x), 3, 3)
        d = torch.tensor([0.1, 0.0, 0.3]).expand(len(x), 3)
        return Task(x, ball_sets(x, eps, inf, None), C, d, torch.tensor([0, 0, 1]), eps)


SPECS = {
    "boxes": Classification(),
    "l2": Classification(norm=2.0),
    "l1": Classification(norm=1.0, clip=None),
    "clauses": TwoClauses(),
}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", LOSSES)
def test_sound_against_attacks(name, spec):
    """In training and, as a test does, without gradients: below all that attacks find; exact on points."""
    cases = [("mlp", 0, 0.3), ("norm", 2, 0.04), ("mlp", 3, 0.0), ("conv", 1, 0.1), ("norm", 4, 0.0)]
    for kind, seed, eps in cases if spec == "boxes" else cases[:3]:
        live = captured(kind, seed)
        x, y = batch(live.module, seed)
        x[0, ..., 0] = 0.0  # on the rim of the range
        loss = LOSSES[name](live, SPECS[spec], eps)
        out = loss(x, y)
        with torch.no_grad():
            again = loss(x, y)
            evaluate = partial(live.evaluate, statistics=live.forward(x, batch=kind == "norm")[1])
            for steps in (0, 6):
                margins = out.task.margins(evaluate(PGD(steps, 0.4)(evaluate, out.task)))
                for lower in (out.margins, again.margins):
                    assert (lower <= margins + 1e-9).all(), kind
                    assert (out.task.loss(lower) >= out.task.loss(margins) - 1e-9).all()
        if eps == 0:
            assert torch.allclose(out.margins, margins, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "fast"])
def test_the_loss_of_a_point_is_the_cross_entropy(name):
    live = captured("conv", 1)
    x, y = batch(live.module)
    total = LOSSES[name](live, Classification(), 0.0)(x, y).total
    assert torch.allclose(total, nn.functional.cross_entropy(live.module(x), y), atol=1e-10)


def test_degenerate_boxes():
    """Items outside of the range become points of it; sets of other items keep their width."""
    live = captured("mlp", 1)
    x, y = batch(live.module)
    x[1] = 1.5
    for name, make in LOSSES.items():
        out = make(live, Classification(), 0.1)(x, y)
        assert out.total.isfinite()
        exact = out.task.margins(live.module(x.clamp(0, 1)))
        assert torch.allclose(out.margins[1], exact[1], atol=1e-9), name
        assert (out.margins[0] < exact[0]).all()


@pytest.mark.parametrize("norm", [inf, 2.0])
def test_projections_estimate_the_exact_loss(norm):
    """Many draws come near the exact bounds; few give no margins; draws are torch's; no schedule is kept per draw."""
    net = Live(mlp(2), torch.zeros(1, 3))
    x, y = batch(net.module)
    spec = Classification(norm=norm, clip=None)
    loss = CAP(net, spec, eps=0.1, projections=4001)
    exact = CAP(net, spec, eps=0.1)(x, y).total
    out = loss(x, y)
    assert out.margins is None
    assert abs(out.total - exact) < 0.05 * exact
    few = CAP(net, spec, eps=0.1, projections=5)
    torch.manual_seed(1)
    first, second = few(x, y).total, few(x, y).total
    assert first != second
    torch.manual_seed(1)
    assert torch.equal(few(x, y).total, first)
    assert len(net._schedules) == 3  # of many draws, of few, and exact
    first.backward()
    assert all(p.grad.isfinite().all() for p in net.module.parameters())
    with pytest.raises(UsageError, match="projections"):
        CAP(net, spec, eps=0.1, projections=0)


def test_estimates_are_no_margins():
    net = captured("mlp", 0)
    x, y = batch(net.module)
    assert Certified(net, Classification(), eps=0.1, recipe="projected(projections=9)")(x, y).margins is None
    assert DiffAI(net, Classification(), eps=0.1, recipe="projected(projections=9)")(x, y).margins is None
    for other in (partial(MTLIBP, alpha=0.5), partial(TAPS, layer="1", attack=PGD(2))):
        assert other(net, Classification(), eps=0.1)(x, y).margins is not None
        assert other(net, Classification(), eps=0.1, recipe="projected(projections=9)")(x, y).margins is None


def test_mixtures():
    net = captured("mlp", 1)
    x, y = batch(net.module)
    spec = Classification()
    attack = PGD(3)
    box, clean = Abstract("ibp"), Clean()

    def total(goal):
        torch.manual_seed(0)
        with torch.no_grad():
            return DiffAI(net, spec, eps=0.1, goal=goal)(x, y)

    half = total(LinMix(clean, box, 0.25))
    expected = 0.75 * total(clean).total + 0.25 * total(box).total
    assert torch.allclose(half.total, expected) and half.terms.keys() == {"clean", "bound"}
    assert torch.allclose(total(LinMix(clean, clean, 0.3)).total, total(clean).total)
    assert total(LinMix(clean, box, 0.0)).margins is None
    between = total(Between(attack, "ibp"))
    assert between.margins is None
    assert total(Attacked(attack)).total - 1e-12 <= between.total <= total(box).total + 1e-12
    found = {round(float(total(Coin(clean, box, w)).total), 12) for w in (0.0, 1.0)}
    assert found == {round(float(total(g).total), 12) for g in (clean, box)}
    with pytest.raises(UsageError, match="weight"):
        LinMix(clean, box, 1.5)


def test_state_round_trip():
    net, spec = mlp(), Classification()

    def made():
        fast = FastIBP(net, spec, eps=0.1, eps_max=0.2, kappa=0.3)
        mixed = DiffAI(net, spec, eps=0.1, goal=LinMix(Clean(), Coin(Clean(), Abstract("ibp"), 0.4), 0.2))
        return fast, mixed, CAP(net, spec, eps=0.1, kappa=0.5), OneStep(net, spec, eps=0.1)

    for moved, fresh in zip(made(), made(), strict=True):
        moved.eps = 0.17
        state = moved.state_dict()
        if isinstance(moved, DiffAI):
            moved.goal.weight, moved.goal.second.weight = 0.6, 0.7
            state = moved.state_dict()
            fresh.load_state_dict(state)
            assert (fresh.goal.weight, fresh.goal.second.weight) == (0.6, 0.7)
        fresh.load_state_dict(state)
        assert fresh.state_dict() == state and fresh.eps == 0.17
