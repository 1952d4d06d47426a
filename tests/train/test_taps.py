"""TAPS and STAPS against closed forms, by hand on networks of two layers, and what they prove."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from absdom.errors import UsageError
from absdom.sets import InputBatch
from absdom.train.attacks import PGD
from absdom.train.bounds import IBP
from absdom.train.sabr import SABR
from absdom.train.taps import STAPS, TAPS, linked
from absdom.train.task import Classification, Specification, Task

EPS = 0.1
CORNER = PGD(steps=1, step=2.0, start="point", best=False)


def network(*sizes: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).double()


def batch(size: int = 5, inputs: int = 4, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return 0.2 + 0.6 * torch.rand(size, inputs, dtype=torch.float64), torch.randint(0, classes, (size,))


def hidden_box(net, x, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """By hand: bounds of the first linear layer's values (layer 0), or of the ReLUs behind it (layer 1)."""
    centre, radius = net[0](x), EPS * net[0].weight.abs().sum(1)
    low, high = centre - radius, centre + radius
    return (low, high) if layer == 0 else (low.clamp(min=0), high.clamp(min=0))


def differences(net, y) -> tuple[torch.Tensor, torch.Tensor]:
    """By hand: weights "B R n" and offsets "B R" of score of the label minus the others' (3 classes)."""
    others = torch.tensor([[1, 2], [0, 2], [0, 1]])[y]
    W, b = net[-1].weight, net[-1].bias
    return W[y][:, None] - W[others], b[y][:, None] - b[others]


def robust(margins: torch.Tensor) -> torch.Tensor:
    return torch.log1p((-margins).exp().sum(1)).mean()


def interval_loss(net, x, y) -> torch.Tensor:
    (low, high), (W, b) = hidden_box(net, x, 1), differences(net, y)
    return robust((W.clamp(min=0) * low[:, None] + W.clamp(max=0) * high[:, None]).sum(2) + b)


def gradients(total, net) -> list[torch.Tensor]:
    return torch.autograd.grad(total, list(net.parameters()), retain_graph=True, allow_unused=True)


def agree(one, other):
    for a, b in zip(one, other, strict=True):
        assert torch.allclose(a, b, atol=1e-11), (a - b).abs().max()


def test_with_an_affine_rest_the_corner_is_exact_and_the_loss_is_the_square_of_ibps():
    """There the attack finds what intervals say, and gradients reach the ends that the corner touches."""
    net, (x, y) = network(4, 7, 3), batch()
    out = TAPS(net, Classification(), eps=EPS, layer="1", weight=3.0, attack=CORNER)(x, y)
    R = interval_loss(net, x, y)
    assert torch.allclose(out.total, R**2, atol=1e-12)
    agree(gradients(out.total, net), [(1 + 3.0) * R * g for g in gradients(R, net)])
    assert list(out.terms) == ["bound"]


@pytest.mark.parametrize("reach", [0.5, 0.2, 1.0])
def test_a_nonlinear_rest_at_given_points(reach):
    """The attack gives z = l + t (u - l), t different per class: value and gradients by hand."""
    net, (x, y) = network(4, 7, 3), batch()
    t = torch.rand(5, 2, 7, dtype=torch.float64)

    def attack(evaluate, task):
        low, high = task.sets.lower.reshape(5, 2, 7), task.sets.upper.reshape(5, 2, 7)
        return (low + t * (high - low)).reshape(task.x.shape)

    options = {"layer": "0", "weight": 5.0, "attack": attack, "reach": reach, "kappa": 0.25}
    out = TAPS(net, Classification(), eps=EPS, **options)(x, y)

    low, high = hidden_box(net, x, 0)
    to_high, to_low = ((t - (1 - reach)) / reach).clamp(0, 1), ((reach - t) / reach).clamp(0, 1)
    z = (low[:, None] + t * (high - low)[:, None]).detach()
    z = z + to_low * (low - low.detach())[:, None] + to_high * (high - high.detach())[:, None]
    W, b = differences(net, y)
    pgd, ibp = robust((W * z.clamp(min=0)).sum(2) + b), interval_loss(net, x, y)
    clean = nn.functional.cross_entropy(net(x), y)
    assert torch.allclose(out.total, 0.25 * clean + 0.75 * pgd * ibp, atol=1e-12)
    assert torch.allclose(out.terms["clean"], 0.25 * clean)
    parts = (gradients(value, net) for value in (clean, pgd, ibp))
    by_hand = [0.25 * c + 0.75 * (5.0 * ibp * p + pgd * i) for c, p, i in zip(*parts, strict=True)]
    agree(gradients(out.total, net), [g.detach() for g in by_hand])


def test_the_links_gradient_by_hand():
    low = torch.tensor([[0.0, 0.0, 2.0]], dtype=torch.float64, requires_grad=True)
    high = torch.tensor([[1.0, 1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    z = torch.tensor([[[1.0, 0.25, 2.0], [0.75, 0.5, 2.0]]], dtype=torch.float64, requires_grad=True)
    out = linked(low, high, z)
    assert torch.equal(out, z)
    weight = torch.tensor([[[1.0, 10.0, 100.0], [1000.0, 1e4, 1e5]]], dtype=torch.float64)
    to_low, to_high, to_z = torch.autograd.grad((out * weight).sum(), (low, high, z), allow_unused=True)
    # c = .5: at 1 and .75 of the width the upper end gets 1 and .5; at .25 the lower one .5; in the middle none
    assert torch.allclose(to_high, torch.tensor([[1.0 + 500.0, 0.0, 50.0 + 5e4]], dtype=torch.float64))
    assert torch.allclose(to_low, torch.tensor([[0.0, 5.0, 50.0 + 5e4]], dtype=torch.float64))
    assert to_z is None


def test_differences_where_the_loss_is_its_own_gradient():
    """With weight 1, corners and an affine rest the gradient is that of R^2, which differences approximate."""
    net, (x, y) = network(3, 4, 3, seed=3), batch(2, 3)
    loss = TAPS(net, Classification(), eps=EPS, layer="1", weight=1.0, attack=CORNER)
    found = gradients(loss(x, y).total, net)
    with torch.no_grad():
        for parameter, gradient in zip(net.parameters(), found, strict=True):
            for entry, g in zip(parameter.view(-1), gradient.view(-1), strict=True):
                ends = []
                for step in (1e-6, -2e-6, 1e-6):
                    entry += step
                    ends.append(loss(x, y).total)
                assert torch.allclose((ends[0] - ends[1]) / 2e-6, g, atol=1e-7)


def test_points_lie_in_their_boxes_and_bounds_are_below_what_attacks_find():
    net, (x, y) = network(4, 9, 8, 3), batch(12)
    seen = []

    def attack(evaluate, task):
        z = PGD(steps=6, step=0.4, restarts=2)(evaluate, task)
        assert (z.flatten(1) >= task.sets.lower).all() and (z.flatten(1) <= task.sets.upper).all()
        seen.append(task.margins(evaluate(z)).reshape(12, 2))
        return z

    loss = TAPS(net, Classification(), eps=EPS, layer="1", attack=attack)
    out = loss(x, y)
    assert (out.margins <= seen[0] + 1e-9).all()
    x_attacked = PGD(20, restarts=3)(net, out.task)
    assert (out.margins <= out.task.margins(net(x_attacked)) + 1e-9).all()
    assert torch.allclose(out.margins, IBP(net, Classification(), eps=EPS)(x, y).margins)


def test_only_intervals_while_the_radius_grows_and_no_gradient_of_the_attack_with_weight_0():
    net, (x, y) = network(4, 7, 6, 3), batch()
    loss = TAPS(net, Classification(), eps=0.05, eps_max=EPS, layer="1", weight=0.0, attack=CORNER)
    ibp = IBP(net, Classification(), eps=0.05)
    assert torch.equal(loss(x, y).total, ibp(x, y).total)
    loss.eps = ibp.eps = EPS
    out, R = loss(x, y), ibp(x, y).total
    factor = (out.total / R).detach()
    assert 0 < factor < R  # an attack is no worse than intervals
    agree(gradients(out.total, net), [factor * g for g in gradients(R, net)])


def test_at_the_output_it_is_ibp_squared_and_at_the_input_an_attack_per_class():
    net, (x, y) = network(4, 7, 3), batch()
    bounds = net[0](x)
    radius = EPS * net[0].weight.abs().sum(1)
    low, high = (bounds - radius).clamp(min=0), (bounds + radius).clamp(min=0)
    W, b = net[-1].weight, net[-1].bias
    low, high = (torch.nn.functional.linear((low + high) / 2, W, b) + s * (high - low) / 2 @ W.abs().T for s in (-1, 1))
    others = torch.tensor([[1, 2], [0, 2], [0, 1]])[y]
    pgd = robust(low.gather(1, y[:, None]) - high.gather(1, others))  # without elision
    out = TAPS(net, Classification(), eps=EPS, layer="2", attack=CORNER)(x, y)
    assert torch.allclose(out.total, pgd * interval_loss(net, x, y), atol=1e-12)

    out = TAPS(net, Classification(), eps=EPS, layer="input", attack=lambda f, task: task.x)(x, y)
    assert torch.allclose(out.total, nn.functional.cross_entropy(net(x), y) * interval_loss(net, x, y), atol=1e-12)


def test_small_sets_of_the_full_size_give_taps_and_smaller_ones_by_hand():
    net, (x, y) = network(4, 7, 3), batch()
    taps = TAPS(net, Classification(), eps=EPS, layer="0", attack=CORNER)(x, y)
    staps = STAPS(net, Classification(), eps=EPS, layer="0", attack=CORNER, ratio=1.0)(x, y)
    assert torch.allclose(taps.total, staps.total, atol=1e-12) and staps.margins is None
    agree(gradients(taps.total, net), gradients(staps.total, net))

    def top(evaluate, task):
        return task.sets.upper

    half = STAPS(net, Classification(), eps=EPS, layer="1", attack=CORNER, ratio=0.5, search=top)
    inner = TAPS(net, Classification(clip=None), eps=EPS / 2, layer="1", attack=CORNER)(x + EPS / 2, y)
    assert torch.allclose(half(x, y).total, inner.total, atol=1e-12)
    half.eps_max = 1.0
    sabr = SABR(net, Classification(), eps=EPS, ratio=0.5, attack=top)
    assert torch.equal(half(x, y).total, sabr(x, y).total)
    assert half.state_dict() == {"eps": EPS, "kappa": 0.0, "ratio": 0.5}


class TwoWays(Specification):
    """Per item: (row 0 or row 1 is positive) and row 2 is."""

    def task(self, x, y, eps, outputs):
        C = torch.eye(3, dtype=x.dtype).expand(len(x), 3, 3)
        return Task(x, InputBatch(x - eps, x + eps), C, x.new_full((len(x), 3), 0.1), torch.tensor([0, 0, 1]), eps)

    def check(self, x, y, outputs):
        pass


def test_clauses_of_several_rows_are_attacked_as_wholes():
    net, (x, y) = network(4, 7, 3), batch()
    tried = []

    def attack(evaluate, task):
        z = CORNER(evaluate, task)
        tried.append(task.clauses(task.margins(evaluate(z))).reshape(5, 2))
        return z

    out = TAPS(net, TwoWays(), eps=EPS, layer="1", attack=attack)(x, y)
    bound = out.task.clauses(out.margins)
    assert torch.allclose(out.total, robust(tried[0]) * robust(bound), atol=1e-12)
    assert (bound <= tried[0] + 1e-9).all()


def test_batch_norms_use_the_statistics_of_the_clean_pass():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    x, y = batch(8)
    out = TAPS(net, Classification(), eps=EPS, layer="2", attack=CORNER)(x, y)
    with torch.no_grad():
        z = net[0](x)
        scale = net[1].weight / (z.var(0, unbiased=False) + net[1].eps).sqrt()
        folded = copy.deepcopy(nn.Sequential(net[0], net[2], net[3]))
        folded[0].weight.mul_(scale[:, None])
        folded[0].bias.copy_((net[0].bias - z.mean(0)) * scale + net[1].bias)
    assert torch.allclose(out.total, interval_loss(folded, x, y) ** 2, atol=1e-12)


def test_errors():
    net, (x, y) = network(4, 7, 3), batch()
    with pytest.raises(UsageError, match="no layer is called 'hidden'"):
        TAPS(net, Classification(), eps=0.0, eps_max=EPS, layer="hidden")(x, y)  # at once, not at the end of the ramp
    with pytest.raises(UsageError, match="reach 0"):
        TAPS(net, Classification(), eps=EPS, layer="1", reach=0.0)


def test_training_makes_certificates():
    torch.manual_seed(0)
    x = torch.rand(256, 2)
    y = ((x[:, 0] > 0.5) ^ (x[:, 1] > 0.5)).long()
    x = x + 0.2 * (x - 0.5).sign()  # a gap of .4 between the quadrants
    net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    spec = Classification(clip=None)
    test = IBP(net, spec, eps=EPS)
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    loss = TAPS(net, spec, eps=0.0, eps_max=EPS, layer="1", attack=PGD(3, 0.5))

    def certified() -> float:
        with torch.no_grad():
            out = test(x, y)
        return float(out.task.holds(out.margins).float().mean())

    before = certified()
    for k in range(200):
        loss.eps = EPS * min(1, k / 100)
        optimiser.zero_grad()
        loss(x, y).total.backward()
        optimiser.step()
    assert before < 0.5 and certified() > 0.95
