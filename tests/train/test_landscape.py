"""Measures of the loss along training: their values by hand, and that measuring changes nothing."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
import torch

from absdom.errors import UsageError
from absdom.train.attacks import PGD
from absdom.train.bounds import IBP, Certified
from absdom.train.chart import Panel, draw, ticks
from absdom.train.data import TrainingData
from absdom.train.landscape import Landscape, plot, read, slope_share
from absdom.train.one_step import OneStep
from absdom.train.task import Classification
from absdom.train.trainer import Trainer

EPS = 0.1


def small_net(norm: bool = False, seed: int = 0):
    torch.manual_seed(seed)
    middle = [torch.nn.BatchNorm1d(8)] if norm else []
    return torch.nn.Sequential(torch.nn.Linear(5, 8), *middle, torch.nn.ReLU(), torch.nn.Linear(8, 3))


def data(count: int = 24):
    generator = torch.Generator().manual_seed(1)
    return TrainingData(torch.rand(count, 5, generator=generator), torch.arange(count) % 3, batch=8)


def trained(make, hooks, out=None, epochs=2, norm=False, resume=False):
    net = small_net(norm)
    optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    trainer = Trainer(make(net), optimiser, data(), epochs=epochs, hooks=hooks, out=out)
    return net, trainer.run(resume=resume)


@pytest.mark.parametrize("make, norm", [(IBP, True), (OneStep, False)])
def test_training_is_the_same_bit_by_bit(make, norm, tmp_path):
    def loss(net):
        return make(net, Classification(), eps=EPS)

    plain, records = trained(loss, [], norm=norm)
    watched, seen = trained(loss, [hook := Landscape(every=2)], tmp_path, norm=norm)
    for (name, a), b in zip(plain.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert [r["loss"] for r in records] == [r["loss"] for r in seen]
    assert [r["step"] for r in hook.records] == [0, 2, 4] == [r["step"] for r in read(tmp_path / "landscape.jsonl")]
    assert hook.records == read(tmp_path / "landscape.jsonl")
    assert "cosine of successive gradients" in (tmp_path / "landscape.svg").read_text()
    assert hook.records[0]["distance"] is None and all(r["distance"] > 0 for r in hook.records[1:])


def test_a_resumed_run_measures_the_same(tmp_path):
    def loss(net):
        return IBP(net, Classification(), eps=EPS)

    trained(loss, [Landscape(every=3)], tmp_path / "whole", epochs=4)
    trained(loss, [Landscape(every=3)], tmp_path / "pieces", epochs=2)
    trained(loss, [Landscape(every=3)], tmp_path / "pieces", epochs=4, resume=True)
    whole, pieces = (read(tmp_path / name / "landscape.jsonl") for name in ("whole", "pieces"))
    assert whole == pieces and len(whole) == 4


def test_values_by_hand():
    """One linear layer without bias on a batch of one item, two classes: the loss is log(1 + exp(-m(W)))."""
    net = torch.nn.Linear(2, 2, bias=False).double()
    x, y = torch.tensor([[0.3, 0.6]], dtype=torch.float64), torch.tensor([0])
    W = net.weight.detach().clone()

    def margin(W):  # the lower bound on the box, clip (0, 1) does not cut
        row = W[0] - W[1]
        return row @ x[0] - EPS * row.abs().sum()

    def value_and_gradient(W):
        row = W[0] - W[1]
        m, slope = margin(W), x[0] - EPS * row.sign()
        g = -torch.sigmoid(-m) * torch.stack([slope, -slope])
        return torch.log1p(torch.exp(-m)), g

    loss = IBP(net, Classification(), eps=EPS)
    hook = Landscape(lengths=(1.0, 3.0), attack=PGD(3, 1.0))
    hook._before = torch.ones(4, dtype=torch.float64)
    record, gradient = hook.measure(loss, x, y, 0.5)
    value, g = value_and_gradient(W)
    ahead = [value_and_gradient(W - t * 0.5 * g) for t in (1.0, 3.0)]
    expected = {
        "eps": EPS, "loss": value, "gradient": g.norm(),
        "variation": max(value, ahead[0][0], ahead[1][0]) - min(value, ahead[0][0], ahead[1][0]),
        "distance_along": max((h - g).norm() for _, h in ahead),
        "cosine_along": min((h * g).sum() / h.norm() / g.norm() for _, h in ahead),
        "distance": (g.flatten() - 1).norm(), "cosine": g.sum() / g.norm() / 2,
        "tightness": -margin(W), "tightness_ibp": -margin(W), "tightness_attacked": -margin(W),
    }  # fmt: skip
    for key, wanted in expected.items():
        assert abs(record[key] - float(wanted)) < 1e-9, key
    assert [abs(a - float(v)) < 1e-12 for a, (v, _) in zip(record["along"], ahead, strict=True)] == [True, True]
    assert record["slopes"] is None  # there is no activation
    torch.testing.assert_close(gradient, g.flatten(), rtol=0, atol=1e-12)
    assert torch.equal(net.weight, W) and net.weight.grad is None


@pytest.mark.parametrize(
    "recipe, expected", [("ibp", 0.0), ("cap", 1.0), ("linear(pre=interval, slope=flat)", 0.0), ("zonotope", None)]
)
def test_share_of_slopes(recipe, expected):
    net, (x, y) = small_net(), next(data().epoch(0, 0))
    record, _ = Landscape(attack=None).measure(Certified(net, Classification(), eps=EPS, recipe=recipe), x, y, 0.1)
    assert record["slopes"] == expected and record["tightness_attacked"] is None


def test_share_of_slopes_of_crown_is_that_of_longer_upper_halves():
    net, (x, y) = small_net(), next(data().epoch(0, 0))
    loss = Certified(net, Classification(), eps=EPS, recipe="crown-ibp")
    with loss.live(x).recorded() as runs:
        loss(x, y)
    W, b = net[0].weight, net[0].bias
    low, high = (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1)
    middle, radius = (low + high) / 2 @ W.T + b, (high - low) / 2 @ W.abs().T
    loose = (middle.abs() < radius).sum()
    assert loose and slope_share(runs) == int(((middle > 0) & (middle < radius)).sum()) / int(loose)
    record, _ = Landscape().measure(loss, x, y, 0.1)
    assert record["tightness_attacked"] <= record["tightness"] <= record["tightness_ibp"]


def test_the_plot_is_well_formed(tmp_path):
    hook, other = Landscape(every=1), Landscape(every=2, attack=None)
    trained(lambda net: IBP(net, Classification(), eps=EPS), [hook])
    trained(lambda net: Certified(net, Classification(), eps=EPS, recipe="crown-ibp"), [other])
    plot(tmp_path / "a.svg", {"IBP": hook.records, "CROWN-IBP <&>": other.records})
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "CROWN-IBP <&>" in texts and "cosine of successive gradients" in texts
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 10
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polygon"))) == 2
    one = Panel("t")
    one.line("a", [1, 2, 3], [1.0, float("nan"), 1.0])
    assert "nan" not in draw([one, Panel("empty")], "x")
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0] and 3 <= len(ticks(-3, 17)) <= 8


def test_what_is_refused():
    with pytest.raises(UsageError, match="at least one batch apart"):
        Landscape(every=0)
    with pytest.raises(UsageError, match="all above 0"):
        Landscape(lengths=(1.0, -1.0))
