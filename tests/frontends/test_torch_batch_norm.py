"""Batch norm: running statistics for verification, statistics of the batch for training."""

import pytest
import torch
from torch import nn
from torch_nets import assert_agrees, ready

import absdom
from absdom.arithmetic import Arithmetic
from absdom.errors import ModelError, UnsupportedOp, UsageError
from absdom.sets import InputBatch

DOUBLE = Arithmetic(torch.float64)


class Net(nn.Module):
    """Two norms, of which one is used twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.again = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.last, self.head = nn.BatchNorm2d(3), nn.BatchNorm1d(4), nn.Linear(3 * 16, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu(self.norm(self.again(x)))
        return self.last(self.head(x.flatten(1)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return ready(Net())


@pytest.fixture
def batch():
    return torch.rand(6, 1, 4, 4, dtype=torch.float64)


def points(x):
    """Boxes without width: bounds are values."""
    return InputBatch(x.flatten(1), x.flatten(1))


def test_a_module_in_training_mode_is_read_as_in_evaluation_mode(net, batch):
    expected = net(batch)
    net.train()
    with pytest.warns(UserWarning, match="'norm', 'last'.*running statistics"):
        graph = absdom.load(net, batch[:1])
    assert net.training and net.norm.training
    found = absdom.compile(graph, "ibp").bounds(points(batch), arithmetic=DOUBLE)
    torch.testing.assert_close(found.lower[:, 0], expected)


def test_verify_a_module_in_training_mode():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).train()
    prop = absdom.make_property([-1.0, -1.0], [1.0, 1.0], [(0, [([1.0, 0.0], 50.0, False)])])
    with pytest.warns(UserWarning, match="running statistics"):
        result = absdom.verify(module, prop, example=torch.rand(1, 2), timeout=20, device="cpu")
    assert result.verdict == "unsat"


def test_no_warning_when_the_choice_is_stated(net, batch, recwarn):
    absdom.load(net.train(), batch[:1], batch_norm="eval")
    absdom.load(net.train(), batch[:1], batch_norm="train")
    assert not [w for w in recwarn if "batch norm" in str(w.message)]


def test_statistics_of_the_batch_give_the_module_in_training_mode(net, batch):
    graph = absdom.load(net, batch[:1], batch_norm="train")
    statistics = {
        "norm.batch_mean",
        "norm.batch_var",
        "norm.batch_mean.1",
        "norm.batch_var.1",
        "last.batch_mean",
        "last.batch_var",
    }
    assert statistics <= set(graph.params)
    compiled = absdom.compile(graph, "ibp")
    torch.testing.assert_close(compiled.bounds(points(batch), arithmetic=DOUBLE).lower[:, 0], net(batch))
    net.train()
    before = net.norm.running_mean.clone()
    outputs, fed = absdom.batch_statistics(net, batch)
    assert set(fed) == statistics
    assert not torch.equal(before, net.norm.running_mean)
    found = compiled.bounds(points(batch), arithmetic=DOUBLE, params=fed)
    torch.testing.assert_close(found.lower[:, 0], outputs)
    torch.testing.assert_close(found.upper[:, 0], outputs)


def test_gradients_go_through_the_statistics(net, batch):
    """The gradient of bounds on points is that of the module in training mode, statistics included."""
    compiled = absdom.compile(absdom.load(net, batch[:1], batch_norm="train"), "crown-ibp")
    net.train()
    weight = torch.rand(6, 4, dtype=torch.float64)
    outputs, fed = absdom.batch_statistics(net, batch)
    found = compiled.bounds(points(batch), arithmetic=DOUBLE, params=fed)
    expected = torch.autograd.grad((outputs * weight).sum(), net.parameters(), retain_graph=True)
    gradient = torch.autograd.grad((found.lower[:, 0] * weight).sum(), net.parameters())
    for one, two in zip(gradient, expected, strict=True):
        torch.testing.assert_close(one, two)


def test_bounds_with_statistics_of_the_batch_hold(net, batch):
    compiled = absdom.compile(absdom.load(net, batch[:1], batch_norm="train"), "crown")
    _, fed = absdom.batch_statistics(net, batch)
    box = InputBatch(batch.flatten(1) - 0.02, batch.flatten(1) + 0.02)
    with torch.no_grad():
        found = compiled.bounds(box, arithmetic=DOUBLE, params=fed)
        for _ in range(20):
            x = box.lower + 0.04 * torch.rand_like(box.lower)
            inside = compiled.bounds(points(x), arithmetic=DOUBLE, params=fed).lower
            assert ((found.lower <= inside + 1e-9) & (inside <= found.upper + 1e-9)).all()


def test_a_norm_without_running_statistics(batch):
    module = ready(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, affine=False, track_running_stats=False)))
    with pytest.raises(UnsupportedOp, match="in layer '1'.*batch_norm='train'"):
        absdom.load(module, batch[:1])
    graph = absdom.load(module, batch[:1], batch_norm="train")
    outputs, fed = absdom.batch_statistics(module, batch)
    found = absdom.compile(graph, "ibp").bounds(points(batch), arithmetic=DOUBLE, params=fed)
    torch.testing.assert_close(found.lower[:, 0], outputs)


class Functional(nn.Module):
    def __init__(self, training):
        super().__init__()
        self.mean, self.variance = nn.Buffer(torch.ones(1)), nn.Buffer(torch.ones(1))
        self.mode = training

    def forward(self, x):
        training = self.training if self.mode is None else self.mode
        return nn.functional.batch_norm(x, self.mean, self.variance, training=training)


def test_a_call_that_always_normalises_by_the_batch(batch):
    with pytest.raises(UnsupportedOp, match="in evaluation mode too"):
        absdom.load(Functional(True).double().eval(), batch[:1])


def test_a_call_in_the_mode_of_its_module(batch):
    module = Functional(None).double()
    evaluated = Functional(False).double().eval()
    assert_agrees(evaluated, absdom.load(module.train(), batch[:1]), batch[:1])
    assert set(absdom.load(module, batch[:1], batch_norm="train").params) >= {"batch_mean", "batch_var"}


def test_instance_norm_keeps_the_statistics_of_the_instance(batch):
    module = ready(nn.Sequential(nn.Conv2d(1, 2, 1), nn.InstanceNorm2d(2)))
    assert_agrees(module, absdom.load(module, batch[:1], batch_norm="train"), batch[:1])


def test_dropout_in_training_mode_is_an_error(batch):
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.0), nn.Dropout(0.1), nn.Linear(16, 2)).double()
    with pytest.raises(ModelError, match=r"'2'.*module.eval\(\)"):
        absdom.load(module.train(), batch[:1])
    assert_agrees(module.eval(), absdom.load(module, batch[:1]), batch[:1])


def test_an_unknown_choice(net, batch):
    with pytest.raises(UsageError, match="'eval', 'train'"):
        absdom.load(net, batch[:1], batch_norm="clean")
