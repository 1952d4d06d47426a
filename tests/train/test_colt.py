"""COLT against closed forms, by hand on a network of two layers; the points of relaxations; its stages."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from absdom.errors import UsageError
from absdom.rows import Rows
from absdom.train.attacks import PGD
from absdom.train.colt import COLT, COLTStages, RelaxedPoints
from absdom.train.live import Live
from absdom.train.regularisers import L1
from absdom.train.task import Classification, ball_sets

EPS = 0.1
POINT = PGD(steps=3, step=0.7, start="point")


def network(*sizes: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).double()


def batch(size: int = 5, inputs: int = 4, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return 0.2 + 0.6 * torch.rand(size, inputs, dtype=torch.float64), torch.randint(0, classes, (size,))


def bounds_by_hand(net, x) -> tuple[torch.Tensor, torch.Tensor]:
    centre, radius = net[0](x), EPS * net[0].weight.abs().sum(1)
    return centre - radius, centre + radius


def relaxed_by_hand(net, x, errors: torch.Tensor) -> torch.Tensor:
    """The ReLUs' values for errors of the 4 inputs, then of the 7 ReLUs."""
    low, high = bounds_by_hand(net, x)
    unstable = (low < 0) & (high > 0)
    assert unstable.any() and not unstable.all()
    slope = torch.where(unstable, high / (high - low), (low >= 0).double())
    half = torch.where(unstable, -slope * low / 2, 0.0)
    return slope * net[0](x + EPS * errors[:, :4]) + half + half * errors[:, 4:]


def test_a_stage_by_hand_and_frozen_layers_get_no_gradient():
    net, (x, y) = network(4, 7, 3), batch()
    errors = 2 * torch.rand(5, 11, dtype=torch.float64) - 1
    loss = COLT(net, Classification(), eps=EPS, layers=["1"], stage=1, attack=lambda evaluate, task: errors)
    out = loss(x, y)
    z = relaxed_by_hand(net, x, errors).detach()
    by_hand = nn.functional.cross_entropy(net[2](z), y)
    assert torch.allclose(out.total, by_hand, atol=1e-12)
    found = torch.autograd.grad(out.total, list(net[2].parameters()))
    for a, b in zip(found, torch.autograd.grad(by_hand, list(net[2].parameters())), strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]

    regularised = COLT(net, Classification(), eps=EPS, layers=["1"], stage=1, regularisers=[L1(1e-3)])
    net.zero_grad()
    regularised(x, y).total.backward()
    assert net[0].weight.grad is None and net[0].bias.grad is None and net[2].weight.grad is not None


def test_the_first_stage_is_adversarial_training_and_then_mixes():
    net, (x, y) = network(4, 7, 3), batch()
    clean = nn.functional.cross_entropy(net(x), y)
    loss = COLT(net, Classification(), eps=EPS, layers=["1"], attack=POINT)
    out = loss(x, y)
    attacked = nn.functional.cross_entropy(net(POINT(net, out.task)), y)
    assert torch.allclose(out.total, attacked, atol=1e-12) and attacked > clean and out.margins is None
    loss.kappa = 0.25
    assert torch.allclose(loss(x, y).total, 0.25 * attacked + 0.75 * clean, atol=1e-12)
    assert all(p.requires_grad for p in net.parameters())
    loss.kappa = 0.0
    assert torch.allclose(loss(x, y).total, clean)

    loss.kappa, loss.stability = 0.5, 0.02
    low, high = bounds_by_hand(net, x)
    unstable = ((-low).clamp(min=0) * high.clamp(min=0)).sum() / 5
    out = loss(x, y)
    assert torch.allclose(out.terms["stability"], 0.5 * 0.02 * unstable, atol=1e-12)
    assert torch.allclose(out.total, 0.5 * attacked + 0.5 * clean + 0.01 * unstable, atol=1e-12)
    (found,) = torch.autograd.grad(out.total - 0.5 * attacked - 0.5 * clean, net[0].weight)
    (by_hand,) = torch.autograd.grad(0.01 * unstable, net[0].weight)
    assert torch.allclose(found, by_hand, atol=1e-12)


def test_a_mixed_stage_attacks_the_layer_before_too():
    net, (x, y) = network(4, 7, 6, 3), batch()
    loss = COLT(net, Classification(), eps=EPS, layers=["1", "3"], stage=2, kappa=0.3, attack=POINT)
    out = loss(x, y)
    loss.kappa = 1.0
    last = loss(x, y).total
    loss.kappa, loss.stage = 1.0, 1
    before = loss(x, y).total
    assert torch.allclose(out.total, 0.3 * last + 0.7 * before, atol=1e-12)
    assert [p.requires_grad for p in net.parameters()] == [False] * 4 + [True] * 2


def test_batch_norms_use_the_statistics_of_the_clean_pass():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3)).double()
    x, y = batch(8)
    errors = 2 * torch.rand(8, 11, dtype=torch.float64) - 1

    def loss(module, layer):
        stage = {"layers": [layer], "stage": 1, "attack": lambda evaluate, task: errors}
        return COLT(module, Classification(), eps=EPS, **stage)(x, y).total

    found = loss(net, "2")
    with torch.no_grad():
        z = net[0](x)
        scale = net[1].weight / (z.var(0, unbiased=False) + net[1].eps).sqrt()
        folded = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), net[3]).double()
        folded[0].weight.copy_(net[0].weight * scale[:, None])
        folded[0].bias.copy_((net[0].bias - z.mean(0)) * scale + net[1].bias)
    assert torch.allclose(found, loss(folded, "1"), atol=1e-12)
    assert [p.requires_grad for p in net.parameters()] == [False] * 4 + [True] * 2


def test_the_last_stage_gives_sound_margins():
    net, (x, y) = network(4, 9, 8, 3), batch(20)
    loss = COLT(net, Classification(), eps=EPS, layers=["1", "3"], stage=2)
    out = loss(x, y)
    tried = PGD(20, restarts=3)(net, out.task)
    for _ in range(20):
        point = torch.lerp(out.task.sets.lower, out.task.sets.upper, torch.rand_like(x))
        assert (out.margins <= out.task.margins(net(point)) + 1e-9).all()
    assert (out.margins <= out.task.margins(net(tried)) + 1e-9).all()
    assert out.task.loss(out.margins).mean() >= out.total.detach() - 1e-9  # bounds are below the attack's points
    loss.recipe = "projected"  # estimates prove nothing
    assert loss(x, y).margins is None
    loss.stage, loss.recipe = 1, "zonotope"
    assert loss(x, y).margins is None


class Mixed(nn.Module):
    """Two branches that meet, a product, a pool, a smooth function."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.left = nn.Conv2d(1, 4, 3, 1, 1), nn.MaxPool2d(2), nn.Linear(36, 6)
        self.right, self.smooth, self.head = nn.Linear(36, 6), nn.Tanh(), nn.Linear(6, 3)

    def forward(self, x):
        h = self.pool(torch.relu(self.conv(x))).flatten(1)
        left, right = torch.relu(self.left(h)), torch.sigmoid(self.right(h))
        return self.head(self.smooth(left * right + left))


def test_points_lie_in_the_zonotope_and_reach_its_rim():
    """Along any direction errors with the right signs attain what the zonotope's generators say."""
    torch.manual_seed(0)
    net = Mixed().double()
    x = torch.rand(3, 1, 6, 6, dtype=torch.float64)
    live, sets = Live(net, x[:1]), ball_sets(x, 0.03, torch.inf, (0.0, 1.0))
    for layer in ("conv", "relu", "flatten", "add", "smooth"):
        cut = live.cut(layer)
        run = live.propagate("zonotope", sets, node=cut.node)
        points = RelaxedPoints(run, cut)
        shape = run.context.graph.nodes[cut.node].type.shape
        directions = torch.randn(3, *shape, dtype=torch.float64)
        rows = Rows.dense_rows(directions, 3)
        (state,) = run.states.values()
        (domain,) = run.states
        bound = domain.bound_rows(state, rows, run.context.arithmetic)
        errors = torch.zeros(3, sum(points.sizes), dtype=torch.float64, requires_grad=True)
        for e in (errors, 2 * torch.rand_like(errors) - 1, torch.randn_like(errors).sign()):
            assert ((directions * points(e)).flatten(1).sum(1) >= bound - 1e-9).all()
        (slopes,) = torch.autograd.grad((directions * points(errors)).sum(), errors)
        rim = (directions * points(-slopes.sign())).flatten(1).sum(1)
        assert torch.allclose(rim, bound, atol=1e-9), layer


def test_true_values_are_points_of_the_relaxation():
    """Errors that undo the relaxation exist within [-1, 1]: no value of the network is left out."""
    net, (x, _) = network(4, 7, 3), batch()
    live = Live(net, x[:1])
    sets = ball_sets(x, EPS, torch.inf, None)
    points = RelaxedPoints(live.propagate("ibp", sets), live.cut("1"))
    inputs = 2 * torch.rand(5, 4, dtype=torch.float64) - 1
    middle = points(torch.cat([inputs, torch.zeros(5, 7, dtype=torch.float64)], 1))[:, 0]
    half = points(torch.cat([inputs, torch.ones(5, 7, dtype=torch.float64)], 1))[:, 0] - middle
    true = net[1](net[0](x + EPS * inputs))
    assert ((true - middle).abs() <= half + 1e-12).all()


def test_errors():
    net, (x, y) = network(4, 7, 6, 3), batch()

    def run(**options):
        spec = options.pop("spec", Classification())
        return COLT(net, spec, eps=EPS, **{"layers": ["1", "3"], "stage": 1} | options)(x, y)

    for options, message in (
        ({"layers": ["3", "1"]}, "'1' does not lie behind '3'"),
        ({"layers": ["1", "hidden"]}, "no layer is called 'hidden'"),
        ({"layers": []}, "the names of the layers"),
        ({"layers": "13"}, "the names of the layers"),
        ({"stage": 3}, "stage 3: .* it is 0 to 2"),
        ({"spec": Classification(norm=2.0)}, "take a specification with norm inf"),
    ):
        with pytest.raises(UsageError, match=message):
            run(**options)
    live = Live(net, x[:1])
    for domain in ("ibp", "crown"):
        with pytest.raises(UsageError, match="follows no points"):
            RelaxedPoints(live.propagate("ibp", ball_sets(x, EPS, torch.inf, None)), live.cut("1"), domain)


def test_the_stages_move_what_was_published():
    net, (x, y) = network(4, 7, 6, 3), batch()
    loss = COLT(net, Classification(), eps=0.0, layers=["1", "3"])
    optimiser = torch.optim.SGD(net.parameters(), lr=0.04, momentum=0.9)
    options = {"eps": 0.1, "length": 10, "mix": 4, "halve": 2}
    stages = COLTStages(loss, optimiser, **options)
    seen = []
    for k in range(30):
        if k == 13:
            saved = stages.state_dict()
        seen.append((loss.stage, loss.kappa, loss.eps, loss.stability, optimiser.param_groups[0]["lr"]))
        optimiser.zero_grad()
        loss(x, y).total.backward()
        optimiser.step()
        momenta = len(optimiser.state)
        stages.step()
        assert not stages.finished or k == 29
        if k in (9, 19):
            assert momenta and not optimiser.state
    assert [s for s, *_ in seen] == [0] * 10 + [1] * 10 + [2] * 10
    assert [k for _, k, *_ in seen[10:16]] == [0, 0.25, 0.5, 0.75, 1, 1]
    radii = torch.tensor([e for _, _, e, *_ in seen[::10]])
    assert torch.allclose(radii, torch.tensor([0.105 * 1.21, 0.105 * 1.1, 0.105]))
    assert torch.allclose(torch.tensor([s[3] for s in seen[::10]]), torch.tensor([0.005, 0.0075, 0.01125]))
    rates = torch.tensor([s[4] for s in seen[10:20]])
    assert torch.allclose(rates, 0.03 * torch.tensor([1, 1, 1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]))
    assert [p.requires_grad for p in net.parameters()] == [False] * 4 + [True] * 2

    again = COLT(net, Classification(), eps=0.0, layers=["1", "3"])
    other = torch.optim.SGD(net.parameters(), lr=0.04, momentum=0.9)
    resumed = COLTStages(again, other, **options)
    resumed.load_state_dict(saved)
    assert (again.stage, again.kappa, again.eps, again.stability, other.param_groups[0]["lr"]) == seen[13]
    with pytest.raises(UsageError, match="mix"):
        COLTStages(again, other, **(options | {"mix": 5})).load_state_dict(saved)
    with pytest.raises(UsageError, match="0 < mix <= length"):
        COLTStages(again, other, **(options | {"mix": 11}))


def test_training_through_the_stages_makes_certificates():
    torch.manual_seed(0)
    x = torch.rand(64, 2)
    y = ((x[:, 0] > 0.5) ^ (x[:, 1] > 0.5)).long()
    x = x + 0.2 * (x - 0.5).sign()
    net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    spec = Classification(clip=None)
    loss = COLT(net, spec, eps=EPS, layers=["1", "3"], attack=PGD(4, 0.5))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    stages = COLTStages(loss, optimiser, eps=EPS, length=67, mix=20, halve=20)
    live = Live(net, x[:1])
    task = spec.task(x, y, EPS, 2)

    def certified() -> float:
        with torch.no_grad():
            return float(task.holds(live.propagate("zonotope", task.sets).lower_bounds(task.C)).float().mean())

    before = certified()
    while not stages.finished:
        optimiser.zero_grad()
        loss(x, y).total.backward()
        optimiser.step()
        stages.step()
    assert before < 0.5 and certified() > 0.95
