"""Fast interval training: initialisation, regularisers by hand, penalties of weights and noise on them."""

from __future__ import annotations

from math import pi, sqrt

import pytest
import torch
from torch import nn

from absdom.errors import UsageError
from absdom.train.bounds import IBP
from absdom.train.fast_ibp import FastIBP, FastRegulariser, fast_init_
from absdom.train.noise import WeightNoise
from absdom.train.one_step import OneStep
from absdom.train.regularisers import L1
from absdom.train.task import Classification


class Normalise(nn.Module):
    def forward(self, x):
        return (x - 0.4) / 0.25


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return torch.relu(self.inner(x) + self.skip(x))


def residual_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 40, 3), nn.BatchNorm2d(40), nn.ReLU(), Block(40), nn.Conv2d(40, 30, 2, groups=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(270, 50), nn.ReLU(), nn.Linear(50, 3),
    )  # fmt: skip


def test_initialisation():
    """N(0, 2 pi / fan_in^2); half of it behind a residual sum; last layer, biases and norms untouched."""
    net = residual_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fast_init_(net, torch.zeros(1, 2, 6, 6))
    after = net.state_dict()
    scales = {"0": (18, 1), "3.inner": (360, 1), "3.skip": (40, 1), "4": (80, 0.5), "7": (270, 1)}
    for name, value in after.items():
        layer, kind = name.rsplit(".", 1)
        if kind == "weight" and layer in scales:
            inputs, share = scales[layer]
            std = value.std() / (sqrt(2 * pi) / inputs * share)
            assert abs(std - 1) < 4 / sqrt(2 * value.numel()), name
        else:
            assert torch.equal(value, before[name]), name


def test_the_initialisation_keeps_the_radius_of_boxes():
    torch.manual_seed(0)
    net = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(400, 400), nn.ReLU())), nn.Linear(400, 3))
    fast_init_(net, torch.zeros(1, 400))
    low, high = torch.full((1, 400), -0.1), torch.full((1, 400), 0.1)
    for layer in net[:-1]:
        if isinstance(layer, nn.ReLU):
            low, high = low.relu(), high.relu()
        else:
            centre, radius = (low + high) / 2, (high - low) / 2
            centre, radius = layer(centre), radius @ layer.weight.abs().T
            assert abs(radius.mean() - 0.2) < 0.03  # behind the ReLU half of it
            low, high = centre - radius, centre + radius


def test_a_layer_behind_a_sum_that_is_moved_only():
    """Flattened: still a sum's activation. Behind a batch norm or a pooling: no longer."""
    for between, share in ((nn.Identity(), 0.5), (nn.BatchNorm2d(4), 1.0), (nn.AvgPool2d(2), 1.0)):
        torch.manual_seed(0)
        size = 16 if isinstance(between, nn.AvgPool2d) else 64
        net = nn.Sequential(nn.Conv2d(1, 4, 1), Block(4), between, nn.Flatten(), nn.Linear(size, 64), nn.Linear(64, 2))
        fast_init_(net, torch.zeros(1, 1, 4, 4))
        assert abs(net[4].weight.std() * size / sqrt(2 * pi) - share) < 0.1


def small(seed=0):
    torch.manual_seed(seed)
    layers = Normalise(), nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)
    return nn.Sequential(*layers).double()


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand((5, 4), generator=generator, dtype=torch.float64)
    return x, torch.tensor([0, 2, 1, 1, 0])


def by_hand(net, x, eps, tolerance):
    """L_t + L_r, in plain tensors and Python."""
    low, high = ((t - 0.4) / 0.25 for t in ((x - eps).clamp(0, 1), (x + eps).clamp(0, 1)))
    start, tight, balance = ((high - low) / 2).mean(), 0.0, 0.0
    for k in (1, 3):
        centre, radius = net[k]((low + high) / 2), (high - low) / 2 @ net[k].weight.abs().T
        low, high = centre - radius, centre + radius
        tight += torch.relu(tolerance - start / radius.mean()) / tolerance
        on, off = low > 0, high < 0
        spread = (centre - centre.mean()) ** 2
        part = 0.0
        for a in ((centre * on).mean() / -(centre * off).mean(), (spread * on).sum() / (spread * off).sum()):
            part = part + torch.relu(tolerance - torch.minimum(a, 1 / a)) / tolerance
        if torch.isfinite(part):
            balance = balance + part
        low, high = low.relu(), high.relu()
    return (tight + balance) / 2


@pytest.mark.parametrize("eps", [0.0, 0.02, 0.15])
@pytest.mark.parametrize("seed", range(3))
def test_regulariser_by_hand(seed, eps):
    """Value and gradients; at eps = 0 with boxes of 1e-6."""
    net, (x, y) = small(seed), data()
    loss = FastIBP(net, Classification(), eps=eps, eps_max=0.2, strength=0.4, tolerance=0.6)
    out = loss(x, y)
    expected = 0.4 * (1 - eps / 0.2) * by_hand(net, x, eps or 1e-6, 0.6)
    assert torch.allclose(out.terms["fast"], expected, rtol=1e-6)
    plain = IBP(net, Classification(), eps=eps)(x, y).total
    assert torch.allclose(out.total, plain + expected, rtol=1e-7)
    parameters = list(net.parameters())
    found = torch.autograd.grad(out.total - plain, parameters, allow_unused=True, materialize_grads=True)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True, materialize_grads=True)
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)


def test_a_layer_without_inactive_neurons_is_left_out_with_finite_gradients():
    net, (x, y) = small(), data()
    with torch.no_grad():
        net[1].bias += 50
    loss = FastIBP(net, Classification(), eps=0.05, eps_max=0.2)
    out = loss(x, y)
    assert torch.allclose(out.terms["fast"], 0.5 * 0.75 * by_hand(net, x, 0.05, 0.5))
    out.total.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_regulariser_ends_with_the_ramp_and_loss_is_the_cross_entropy_at_points():
    net, (x, y) = small(), data()
    done = FastIBP(net, Classification(), eps=0.2, eps_max=0.2)(x, y)
    assert done.terms["fast"] == 0
    points = FastIBP(net, Classification(), eps=0.0, eps_max=0.2)(x, y)
    assert torch.allclose(points.terms["bound"], nn.functional.cross_entropy(net(x), y), atol=1e-12)
    with pytest.raises(UsageError, match="eps_max"):
        FastRegulariser(eps_max=0.0)
    with pytest.raises(UsageError, match="no ReLU"):
        FastIBP(nn.Sequential(nn.Linear(4, 3)).double(), Classification(), eps=0.1, eps_max=0.2)(x, y)


def test_state_of_regularisers():
    net = small()
    spec = Classification()
    one, other = (IBP(net, spec, eps=0.1, regularisers=[L1(s), FastRegulariser(s, eps_max=1.0)]) for s in (0.1, 0.2))
    other.load_state_dict(one.state_dict())
    assert other.state_dict() == one.state_dict() == {
        "eps": 0.1, "kappa": 0.0, "l1.strength": 0.1, "fast.strength": 0.1,
    }  # fmt: skip


def test_penalty_of_weights():
    """Fully connected and convolutional weights; no biases, no norms."""
    net = residual_net().double()
    x, y = torch.rand(3, 2, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 2])
    out = IBP(net, Classification(), eps=0.0, regularisers=[L1(0.01)])(x, y)
    kinds = (nn.Linear, nn.Conv2d)
    expected = 0.01 * sum(m.weight.abs().sum() for m in net.modules() if isinstance(m, kinds))
    assert torch.allclose(out.terms["l1"], expected)


@pytest.mark.parametrize("kind", [IBP, OneStep])
def test_noise_on_weights(kind):
    """Value and gradients are those at weights + d; the weights stay as they are, to the last bit; tests are exact."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).double()
    x, y = torch.rand(6, 1, 3, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    before = [p.detach().clone() for p in net.parameters()]
    loss = kind(net, Classification(), eps=0.05, noise=WeightNoise(0.1))
    loss.live(x)
    torch.manual_seed(7)
    out = loss(x, y)
    out.total.backward()
    assert out.margins is None
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))
    assert all(isinstance(p, nn.Parameter) for p in net.parameters())

    torch.manual_seed(7)
    shifts = [0.1 * b.std(correction=0) * torch.randn_like(b) for b in before]
    with torch.no_grad():
        for p, d in zip(net.parameters(), shifts, strict=True):
            p.add_(d)
    found = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    plain = kind(loss.live(x), Classification(), eps=0.05)(x, y)
    plain.total.backward()
    assert torch.allclose(out.total, plain.total, atol=1e-12)
    for p, gradient in zip(net.parameters(), found, strict=True):
        assert torch.allclose(p.grad, gradient, atol=1e-12)

    with torch.no_grad():
        for p, b in zip(net.parameters(), before, strict=True):
            p.copy_(b)
        assert loss(x, y).margins is not None
    with pytest.raises(UsageError, match="noise"):
        WeightNoise(-1.0)


def test_noise_is_taken_back_when_a_loss_fails():
    net, (x, y) = small(), data()
    loss = IBP(net, Classification(), eps=0.1, noise=WeightNoise(0.1))

    def fail(step):
        raise RuntimeError("within")

    loss.terms = fail
    before = list(net.parameters())
    with pytest.raises(RuntimeError, match="within"):
        loss(x, y)
    assert all(a is b for a, b in zip(before, net.parameters(), strict=True))
