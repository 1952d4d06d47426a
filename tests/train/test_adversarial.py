"""Empirical losses: their closed forms, TRADES' attack, batch norms, and the guard against catastrophic overfitting."""

from __future__ import annotations

from math import inf

import pytest
import torch
from torch import nn

from absdom.errors import UsageError
from absdom.sets import InputBatch
from absdom.train import FGSM, PGD, TRADES, Adversarial, CollapseGuard, Trainer, TrainingData
from absdom.train.adversarial import divergence, log_softmax
from absdom.train.batch_norm import ATTACKED, CLEAN, RUNNING
from absdom.train.task import Classification, Specification, Task

SHIFT = torch.tensor([0.05, -0.08, 0.02, 0.1], dtype=torch.float64)


def shifted(evaluate, task: Task, objective=None) -> torch.Tensor:
    """An attack whose points are known."""
    return task.x + SHIFT


def two_layers(hidden: int = 7, norm: bool = False) -> nn.Sequential:
    middle = [nn.BatchNorm1d(hidden)] if norm else []
    net = nn.Sequential(nn.Linear(4, hidden), *middle, nn.ReLU(), nn.Linear(hidden, 3)).double()
    if norm:
        nn.init.uniform_(net[1].weight, 0.5, 2)
        nn.init.normal_(net[1].bias)
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2)
    return net


def batch(size: int = 6):
    return torch.rand(size, 4, dtype=torch.float64), torch.randint(3, (size,))


def by_hand(net, x, statistics=None):
    """Outputs by plain arithmetic; statistics: (mean, variance) of the batch norm in between."""
    parts = list(net)
    z = x @ parts[0].weight.T + parts[0].bias
    if statistics is not None:
        mean, variance = statistics
        z = parts[1].weight * (z - mean) / (variance + parts[1].eps) ** 0.5 + parts[1].bias
    return z.clamp(min=0) @ parts[-1].weight.T + parts[-1].bias


def cross_entropy(outputs, y):
    exponents = outputs.exp()
    return (exponents.sum(1) / exponents[torch.arange(len(y)), y]).log()


def gradients(total, net):
    return torch.autograd.grad(total, list(net.parameters()), retain_graph=True)


def assert_equal(out, total, net):
    torch.testing.assert_close(out.total, total, rtol=0, atol=1e-12)
    torch.testing.assert_close(sum(out.terms.values()), total.detach(), rtol=0, atol=1e-12)
    for mine, wanted in zip(gradients(out.total, net), gradients(total, net), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kappa", (0.0, 0.3, 1.0))
def test_adversarial_by_hand(kappa):
    torch.manual_seed(0)
    net, (x, y) = two_layers(), batch()
    out = Adversarial(net, Classification(), eps=0.1, attack=shifted, kappa=kappa)(x, y)
    attacked, clean = cross_entropy(by_hand(net, x + SHIFT), y), cross_entropy(by_hand(net, x), y)
    assert_equal(out, (1 - kappa) * attacked.mean() + kappa * clean.mean(), net)
    assert set(out.terms) == {"attacked"} - ({"attacked"} if kappa == 1 else set()) | ({"clean"} if kappa else set())
    assert out.margins is None


def test_trades_by_hand():
    torch.manual_seed(0)
    net, (x, y) = two_layers(), batch()
    out = TRADES(net, Classification(), eps=0.1, beta=4.0, attack=shifted)(x, y)
    clean, attacked = by_hand(net, x), by_hand(net, x + SHIFT)
    p, q = (z.exp() / z.exp().sum(1, keepdim=True) for z in (clean, attacked))
    total = cross_entropy(clean, y).mean() + 4 * (p * (p / q).log()).sum(1).mean()
    assert_equal(out, total, net)
    assert set(out.terms) == {"clean", "divergence"} and out.margins is None


def test_the_attack_of_trades_climbs_the_divergence():
    torch.manual_seed(0)
    net, (x, y) = two_layers(hidden=30), batch(40)
    net[-1].weight.data *= 4

    def mean_divergence(attack):
        torch.manual_seed(1)
        loss = TRADES(net, Classification(), eps=0.2, beta=1.0, attack=attack)
        return loss(x, y).terms["divergence"]

    values = [mean_divergence(PGD(steps)) for steps in (0, 1, 10)]
    assert 0 < values[0] < values[1] < values[2]
    # Not the same as climbing the loss: labels play no part in where the points go.
    points = []
    for labels in (y, (y + 1) % 3):
        torch.manual_seed(1)
        loss = TRADES(net, Classification(), eps=0.2, attack=lambda *a: points.append(PGD(5)(*a)) or points[-1])
        loss(x, labels)
    torch.testing.assert_close(points[0], points[1])
    with pytest.raises(UsageError, match="flat"):
        TRADES(net, Classification(), eps=0.1, attack=PGD(start="point"))


class BothBelow(Specification):
    """Not (y0 < .1 and y1 < .2), and not (y2 < 0): a clause of two rows and one of one row, on boxes."""

    def check(self, x, y, outputs):
        pass

    def task(self, x, y, eps, outputs):
        d = torch.tensor([-0.1, -0.2, 0.0], dtype=x.dtype)
        C = torch.eye(3, dtype=x.dtype).expand(len(x), -1, -1)
        return Task(x, InputBatch(x - eps, x + eps), C, d.expand(len(x), -1), torch.tensor([0, 0, 1]), eps)


def test_other_specifications():
    torch.manual_seed(0)
    net, (x, y) = two_layers(), batch()
    z = {}
    for name, points in (("clean", x), ("attacked", x + SHIFT)):
        rows = by_hand(net, points) - torch.tensor([0.1, 0.2, 0.0], dtype=x.dtype)
        z[name] = torch.stack([rows[:, :2].amax(1), rows[:, 2]], 1)
    losses = {name: (1 + (-m).exp().sum(1)).log() for name, m in z.items()}
    assert_equal(Adversarial(net, BothBelow(), eps=0.1, attack=shifted)(x, y), losses["attacked"].mean(), net)
    p, q = (torch.cat([torch.ones(len(x), 1), (-m).exp()], 1) for m in (z["clean"], z["attacked"]))
    p, q = (e / e.sum(1, keepdim=True) for e in (p, q))
    total = losses["clean"].mean() + 6 * (p * (p / q).log()).sum(1).mean()
    assert_equal(TRADES(net, BothBelow(), eps=0.1, attack=shifted)(x, y), total, net)


@pytest.mark.parametrize("kind", (Adversarial, TRADES))
def test_gradients(kind):
    torch.manual_seed(0)
    net, (x, y) = two_layers(hidden=4), batch(3)
    loss = kind(net, Classification(), eps=0.1, attack=shifted)
    assert torch.autograd.gradcheck(lambda *_: loss(x, y).total, tuple(net.parameters()))


@pytest.mark.parametrize("norm", (inf, 2.0, 1.0))
def test_attacked_losses_are_above_clean_ones(norm):
    torch.manual_seed(0)
    net, (x, y) = two_layers(hidden=30), batch(40)
    loss = Adversarial(net, Classification(norm), eps=0.3, attack=PGD(5, start="point"), kappa=0.5)
    out = loss(x, y)
    assert out.terms["attacked"] > out.terms["clean"]


@pytest.mark.parametrize("policy", (CLEAN, ATTACKED, RUNNING))
def test_batch_norm_policies_by_hand(policy):
    torch.manual_seed(0)
    net, (x, y) = two_layers(norm=True), batch()
    before = (net[1].running_mean.clone(), net[1].running_var.clone())
    source = {"clean": x, "attacked": x + SHIFT}.get(policy.source)
    hidden = None if source is None else source @ net[0].weight.T + net[0].bias
    statistics = before if hidden is None else (hidden.mean(0), hidden.var(0, unbiased=False))
    attacked = cross_entropy(by_hand(net, x + SHIFT, statistics), y).mean()
    clean = cross_entropy(by_hand(net, x, statistics), y).mean()
    seen = {}

    def attack(evaluate, task):
        seen["outputs"] = evaluate(task.x)
        return shifted(evaluate, task)

    out = Adversarial(net, Classification(), eps=0.1, attack=attack, kappa=0.25, batch_norm=policy)(x, y)
    assert_equal(out, 0.75 * attacked + 0.25 * clean, net)
    under = before if policy.source != "clean" else tuple(v.detach() for v in statistics)
    torch.testing.assert_close(seen["outputs"], by_hand(net, x, under))  # what the attack sees
    if hidden is None:
        assert torch.equal(net[1].running_mean, before[0])
    else:  # one pass moved them, not the steps of an attack
        torch.testing.assert_close(net[1].running_mean, 0.9 * before[0] + 0.1 * hidden.mean(0))
    out = TRADES(net, Classification(), eps=0.1, attack=shifted, batch_norm=policy)(x, y)
    assert out.total.isfinite() and out.terms["divergence"] > 0


def test_divergence_of_classes():
    torch.manual_seed(0)
    x, y = batch()
    task = Classification().task(x, y, 0.1, 5)
    one, two = torch.randn(2, 6, 5, dtype=torch.float64)
    wanted = torch.nn.functional.kl_div(two.log_softmax(1), one.log_softmax(1), log_target=True, reduction="none")
    torch.testing.assert_close(divergence(log_softmax(task, one), log_softmax(task, two)), wanted.sum(1))


class Recorder:
    """What the guard asks of a trainer."""

    def __init__(self, loss):
        self.loss, self.reasons = loss, []

    def stop(self, reason):
        self.reasons.append(reason)


def test_the_guard_sees_a_collapse():
    """A network that a single step from anywhere does not fool, and two do: its margin is least half way."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():  # y0 - y1 = |10 x| - .3 if |x| < .05, and 1 outside of .1
        net[0].weight.copy_(torch.tensor([[10.0], [-10.0], [0.0]]))
        net[0].bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
        net[2].weight.copy_(torch.tensor([[1.0, 1.0, -0.3], [0.0, 0.0, 0.0]]))
        net[2].bias.zero_()
    x, y = torch.full((64, 1), 0.06, dtype=torch.float64), torch.zeros(64, dtype=torch.int64)
    loss = Adversarial(net, Classification(clip=None), eps=0.1)
    out, trainer, record = loss(x, y), Recorder(loss), {}
    guard = CollapseGuard(attack=PGD(20, 0.1, start="point"), against=PGD(1, 10.0, start="point", best=False))
    guard.epoch_end(trainer, record)  # an epoch without a batch
    assert record == {} and not trainer.reasons
    guard.before_step(trainer, x, y, out)
    guard.epoch_end(trainer, record)
    assert record["guard"] == {"attack": 0.0, "against": 1.0}
    assert len(trainer.reasons) == 1 and "catastrophic overfitting" in trainer.reasons[0]
    assert guard.state_dict() == {}


def test_the_guard_lets_a_sound_training_pass():
    torch.manual_seed(0)
    net, (x, y) = two_layers(norm=True), batch(64)
    net.train()
    y = (x[:, 0] > 0.5).long()
    loss = Adversarial(net, Classification(), eps=0.05, attack=FGSM())
    optimiser = torch.optim.Adam(net.parameters(), 0.03)
    guard, trainer = CollapseGuard(), Recorder(loss)
    records = []
    for _ in range(4):
        for _ in range(10):
            out = loss(x, y)
            optimiser.zero_grad()
            out.total.backward()
            guard.before_step(trainer, x, y, out)
            optimiser.step()
        before = {k: v.clone() for k, v in net.state_dict().items()}
        records.append({})
        guard.epoch_end(trainer, records[-1])
        assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not trainer.reasons
    assert all(r["guard"]["attack"] <= r["guard"]["against"] + 0.1 for r in records)
    assert records[-1]["guard"]["attack"] > 0.6


def test_state_is_what_schedules_move():
    net = two_layers()
    assert Adversarial(net, Classification(), eps=0.1, kappa=0.2).state_dict() == {"eps": 0.1, "kappa": 0.2}
    loss = TRADES(net, Classification(), eps=0.1)
    loss.load_state_dict({"eps": 0.2, "beta": 3.0})
    assert (loss.eps, loss.beta) == (0.2, 3.0)


def test_the_guard_stops_a_trainer():
    torch.manual_seed(0)
    net, (x, y) = two_layers(norm=True), batch(48)
    loss = Adversarial(net, Classification(), eps=0.05, attack=FGSM())
    optimiser = torch.optim.SGD(net.parameters(), 0.01)
    guard = CollapseGuard(gap=-1.0)  # everything is a collapse
    records = Trainer(loss, optimiser, TrainingData(x, y, 16), epochs=5, hooks=[guard]).run()
    assert len(records) == 1 and set(records[0]["guard"]) == {"attack", "against"}
    assert "catastrophic overfitting" in records[0]["stopped"]
