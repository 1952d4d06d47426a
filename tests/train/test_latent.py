"""Networks cut at a layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from absdom.errors import UsageError
from absdom.sets import InputBatch
from absdom.train.latent import task_per_clause
from absdom.train.live import Live
from absdom.train.task import Task


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.relu(self.stem(x))
        return self.head(h + self.block(h))


def test_the_rest_behind_a_cut_gives_the_modules_outputs():
    torch.manual_seed(0)
    front = [nn.Conv2d(1, 3, 3, 2, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5)]
    net = nn.Sequential(*front, nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)).double()
    x = torch.rand(6, 1, 4, 4, dtype=torch.float64)
    live = Live(net, x[:1])
    outputs, statistics = live.forward(x, batch=True)
    context = live.context("ibp", x, statistics)
    for k, layer in enumerate(net.children()):
        with torch.no_grad():  # in training mode, with the statistics of the batch
            z = net.train()[: k + 1](x)
        cut = live.cut(str(k), statistics)
        shape = context.graph.nodes[cut.node].type.shape
        assert torch.allclose(cut.evaluate(context, z.reshape(-1, *shape)), outputs, atol=1e-12), layer
    names = {name for name, _ in net[:3].named_parameters()}
    assert names <= set(live.cut("2", statistics).parameters)
    assert not any(label.startswith(("4.", "5.", "7.")) for label in live.cut("2", statistics).parameters)


def test_a_cut_is_made_once_per_graph():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    live, x = Live(net, torch.zeros(1, 2)), torch.rand(4, 2)
    _, statistics = live.forward(x, batch=True)
    assert live.cut("2") is live.cut("2")
    assert live.cut("2", statistics) is live.cut("2", statistics)
    assert live.cut("2") is not live.cut("2", statistics)


def test_layers_that_do_not_separate_and_unknown_ones_are_refused():
    live = Live(Residual(), torch.zeros(1, 3))
    with pytest.raises(UsageError, match=r"cannot be cut at 'block.0'.*goes around that layer"):
        live.cut("block.0")
    with pytest.raises(UsageError, match=r"no layer is called 'blok'.*there are: .*block"):
        live.cut("blok")
    for name in ("stem", "add", "head"):
        live.cut(name)
    z = torch.rand(5, 1, 4)
    context = live.context("ibp", z)
    assert torch.allclose(live.cut("add").evaluate(context, z), live.module.head(z)[:, 0])


def test_a_task_per_clause_asks_about_each_clause_alone():
    torch.manual_seed(0)
    C, d = torch.rand(2, 5, 3), torch.rand(2, 5)
    clause = torch.tensor([0, 1, 1, 0, 0])
    sets = InputBatch(torch.zeros(2, 4), torch.ones(2, 4))
    task = Task(torch.zeros(2, 4), sets, C, d, clause)
    lower, upper = -torch.rand(2, 1, 6), torch.rand(2, 1, 6)
    split = task_per_clause(task, lower, upper)
    assert len(split) == 4 and split.x.shape == (4, 1, 6)
    y = torch.rand(2, 3)
    alone = split.clauses(split.margins(y.repeat_interleave(2, 0)))
    assert torch.allclose(alone.reshape(2, 2), task.clauses(task.margins(y)))
    assert torch.equal(split.sets.lower.reshape(2, 2, 6)[:, 1], lower[:, 0])

    plain = task_per_clause(Task(torch.zeros(2, 4), sets, C), lower, upper)
    assert plain.C.shape == (10, 1, 3) and plain.clause is None and plain.d is None
    values = plain.margins(y.repeat_interleave(5, 0)).reshape(2, 5)
    assert torch.allclose(values, torch.einsum("brk,bk->br", C, y))
