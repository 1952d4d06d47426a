"""Attacks inside losses: they stay in their sets, find what there is to find, and touch nothing but the points."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from itertools import product
from math import inf

import pytest
import torch
from torch import nn

from absdom.errors import UsageError
from absdom.sets import InputBatch
from absdom.train import FGSM, PGD
from absdom.train.task import Classification, Task

NORMS = (inf, 2.0, 1.0)
CLIPS = ((0.0, 1.0), None)
ATTACKS = {
    "pgd": PGD(),
    "restarts": PGD(4, 0.5, restarts=3),
    "last": PGD(4, best=False),
    "corner": PGD(1, 10.0),
    "point": PGD(3, start="point"),
    "noise": PGD(0),
    "decay": PGD(8, 0.5, decay=(4, 7)),
    "fgsm": FGSM(),
}


def network(inputs=6, hidden=20, outputs=3, dtype=torch.float64) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs)).to(dtype)


def batch(size=9, inputs=6, outputs=3, dtype=torch.float64):
    x = torch.rand(size, inputs, dtype=dtype)
    x[0], x[1] = 0, 1  # in the corners of the range
    return x, torch.randint(outputs, (size,))


def losses(net, task: Task, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return task.loss(task.margins(net(x)))


def outside(task: Task, x: torch.Tensor, norm: float, eps: float, clip) -> float:
    """By how much points leave their set, by the definition of the set."""
    far = (x - task.x).flatten(1).norm(norm, dim=1) - eps
    ranges = [] if clip is None else [(clip[0] - x).max(), (x - clip[1]).max()]
    return max(v.max().item() for v in (far, *ranges))


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("eps", (0.0, 0.3))
def test_points_stay_in_the_sets(name, norm, clip, eps):
    torch.manual_seed(0)
    for dtype, slack in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        net, (x, y) = network(dtype=dtype), batch(dtype=dtype)
        task = Classification(norm, clip).task(x, y, eps, 3)
        found = ATTACKS[name](net, task)
        assert found.shape == x.shape and found.dtype == dtype and not found.requires_grad
        assert outside(task, found, norm, eps, clip) <= slack
        if norm == inf:  # boxes are never left, not by a rounding
            assert (task.sets.lower <= found).all() and (found <= task.sets.upper).all()


def test_boxes_with_fixed_inputs_and_points_outside_the_range():
    torch.manual_seed(0)
    net, (x, y) = network(), batch()
    lower, upper = x - 0.2, x + 0.2
    lower[:, :3] = upper[:, :3] = x[:, :3]
    task = replace(Classification().task(x, y, 0.2, 3), sets=InputBatch(lower, upper))
    for attack in ATTACKS.values():
        found = attack(net, task)
        assert torch.equal(found[:, :3], x[:, :3]) and (found[:, 3:] != x[:, 3:]).any()
        assert (lower <= found).all() and (found <= upper).all()
    task = Classification().task(x + 3, y, 0.2, 3)  # the range ends at 1
    assert all(torch.equal(a(net, task), torch.ones_like(x)) for a in ATTACKS.values())


def test_images_keep_their_shape():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    x, y = torch.rand(5, 1, 4, 4), torch.randint(3, (5,))
    for norm in NORMS:
        task = Classification(norm).task(x, y, 0.2, 3)
        found = PGD(3)(net, task)
        assert found.shape == x.shape
        assert (losses(net, task, found) >= losses(net, task, x) - 0.1).all()


@pytest.mark.parametrize("norm, dual", ((inf, 1), (2.0, 2), (1.0, inf)))
def test_linear_functions_are_solved(norm, dual):
    """The least of w x over a ball is w x0 - eps |w| in the dual norm; each step goes along the steepest way."""
    torch.manual_seed(0)
    w = torch.randn(3, 6, dtype=torch.float64)
    x, y = batch(outputs=3)
    task = Classification(norm, None).task(x, y, 0.3, 3)
    for target in range(3):
        found = PGD(8, 0.25, start="point")(lambda x: x @ w.T, task, lambda outputs, k=target: -outputs[:, k])
        wanted = x @ w[target] - 0.3 * w[target].norm(dual)
        torch.testing.assert_close(found @ w[target], wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_as_high_as_exhaustive_search(norm):
    torch.manual_seed(1)
    net = network(inputs=2, hidden=12)
    net[0].weight.data *= 3
    net[2].weight.data *= 4
    x, y = torch.rand(6, 2, dtype=torch.float64), torch.randint(3, (6,))
    eps, clip = 0.4, (0.0, 1.0)
    task = Classification(norm, clip).task(x, y, eps, 3)
    ticks = torch.linspace(-eps, eps, 81, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(ticks, ticks, indexing="ij"), -1).reshape(-1, 2)
    best = []
    for i in range(len(x)):
        points = (x[i] + grid)[grid.norm(norm, dim=1) <= eps + 1e-12].clamp(*clip)  # a clamped point is nearer
        one = replace(task, C=task.C[i : i + 1].expand(len(points), -1, -1))
        best.append(losses(net, one, points).max())
    found = losses(net, task, PGD(30, 0.25, restarts=12, decay=(18, 25))(net, task))
    share = 1e-3 if norm == inf else 0.01  # where a ball meets the range, steps are projected onto one after the other
    assert (found >= (1 - share) * torch.stack(best)).all()


def test_conjunctive_clauses_are_attacked_by_their_greatest_row():
    """One clause of two rows: it fails where both are negative."""
    torch.manual_seed(0)
    net = network(inputs=2, hidden=12, outputs=2)
    x = torch.rand(8, 2, dtype=torch.float64)
    C = torch.eye(2, dtype=torch.float64).expand(8, -1, -1)
    sets = InputBatch(x - 0.5, x + 0.5)
    task = Task(x, sets, C, torch.full((8, 2), 0.1, dtype=torch.float64), torch.tensor([0, 0]), 0.5)
    ticks = torch.linspace(-0.5, 0.5, 81, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(ticks, ticks, indexing="ij"), -1).reshape(-1, 2)
    with torch.no_grad():
        values = (net((x[:, None] + grid).reshape(-1, 2)) + 0.1).amax(1).reshape(8, -1).amin(1)
        found = (net(PGD(30, restarts=6, decay=(15, 22))(net, task)) + 0.1).amax(1)
    assert (found <= values + 1e-3).all()


def test_more_restarts_are_never_weaker():
    torch.manual_seed(0)
    net, (x, y) = network(hidden=40), batch(32)
    net[2].weight.data *= 5
    for norm, start, best in product(NORMS, ("uniform", "point"), (True, False)):
        task = Classification(norm).task(x, y, 0.3, 3)
        found = []
        for restarts in (1, 2, 5):
            torch.manual_seed(7)
            found.append(losses(net, task, PGD(3, restarts=restarts, start=start, best=best)(net, task)))
        assert (found[0] <= found[1]).all() and (found[1] <= found[2]).all()
        assert (found[0] < found[2]).any()


def test_the_best_iterate_is_kept():
    torch.manual_seed(0)
    net, (x, y) = network(hidden=40), batch(16)
    net[2].weight.data *= 5
    task = Classification().task(x, y, 0.3, 3)
    seen = []

    def evaluate(x):
        seen.append(losses(net, task, x.detach()))
        return net(x)

    found = PGD(6, 1.5, restarts=2)(evaluate, task)
    seen = torch.stack(seen)
    assert len(seen) == 2 * 7  # a pass per step, and one behind the last
    assert torch.equal(losses(net, task, found), seen.amax(0))
    assert (seen[6] < seen[:7].amax(0)).any()  # the last iterate is not always the best
    seen = []
    last = PGD(6, 1.5, best=False)(evaluate, task)
    assert len(seen) == 6  # nobody asks how good the last one is
    assert (losses(net, task, last) < torch.stack(seen).amax(0)).any()
    flat = PGD(3, start="point")(lambda x: x.new_zeros(len(x), 3) + 0 * x.sum(), task)
    assert torch.equal(flat, x)  # of equals the first


def test_steps_and_their_decay():
    """Along a line: steps of half the half-width, from the third on a tenth of it, from the fourth a hundredth."""
    x = torch.zeros(1, 1, dtype=torch.float64)
    task = Task(x, InputBatch(x - 2, x + 6), torch.ones(1, 1, 1, dtype=torch.float64), eps=1)
    seen = []

    def evaluate(x):
        seen.append(x.item())
        return -x

    found = PGD(4, 0.5, start="point", decay=(2, 3))(evaluate, task)
    assert seen == pytest.approx([0, 2, 4, 4.2, 4.22]) and found.item() == seen[-1]


def test_fgsm_is_one_step_from_a_uniform_start():
    torch.manual_seed(0)
    net, (x, y) = network(), batch()
    task = Classification().task(x, y, 0.1, 3)
    torch.manual_seed(3)
    found = FGSM()(net, task)
    torch.manual_seed(3)
    lower, upper = task.sets.lower, task.sets.upper
    start = (lower + torch.rand_like(x) * (upper - lower)).requires_grad_()
    loss = torch.nn.functional.cross_entropy(net(start), y)
    (gradient,) = torch.autograd.grad(loss, start)
    wanted = torch.clamp(start + 1.25 * (upper - lower) / 2 * gradient.sign(), lower, upper)
    torch.testing.assert_close(found, wanted.detach(), rtol=0, atol=1e-12)
    assert FGSM(2.0) == PGD(steps=1, step=2.0, best=False)


def test_uniform_starts_fill_the_sets():
    torch.manual_seed(0)
    x, y = torch.full((4000, 2), 0.5, dtype=torch.float64), torch.zeros(4000, dtype=torch.int64)
    for norm in NORMS:
        task = Classification(norm).task(x, y, 0.4, 3)
        away = (PGD(0)(network(2), task) - x).norm(norm, dim=1) / 0.4
        assert away.min() < 0.1 and away.max() > 0.97 and 0.3 < away.mean() < 0.8


def test_an_objective_of_the_callers():
    """Targeted margins: the score of class 2 over class 0 grows, whatever the labels."""
    torch.manual_seed(0)
    net, (x, y) = network(), batch(20)
    task = Classification().task(x, y, 0.3, 3)

    def gap(outputs):
        return outputs[:, 2] - outputs[:, 0]

    with torch.no_grad():
        before, after = gap(net(x)), gap(net(PGD(10, start="point")(net, task, gap)))
    assert (after > before).all()


@pytest.mark.parametrize("graph", (True, False))
def test_nothing_but_the_points_is_touched(graph):
    torch.manual_seed(0)
    net, (x, y) = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double().eval(), batch()
    net(x).sum().backward()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    gradients = [p.grad.clone() for p in net.parameters()]
    held = x.clone()
    with torch.set_grad_enabled(graph):  # also where the caller evaluates
        lower = (x - 0.1).requires_grad_()  # boxes of a layer inside have gradients of their own
        task = Classification().task(x, y, 0.1, 3).with_sets(InputBatch(lower, lower + 0.2))
        found = PGD(3, restarts=2)(net, task)
    assert not found.requires_grad and lower.grad is None and torch.equal(x, held)
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert (losses(net, task, found) > losses(net, task, x)).any()


def test_no_gradient_and_no_number_keep_the_point_inside():
    x, y = torch.rand(4, 6, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    task = Classification().task(x, y, 0.1, 3)
    constant = torch.zeros(4, 3, dtype=torch.float64)
    for evaluate in (lambda x: constant, lambda x: constant * x[:, :3] * inf, lambda x: constant / 0 * x[:, :3]):
        for attack in ATTACKS.values():
            found = attack(evaluate, task)
            assert (task.sets.lower <= found).all() and (found <= task.sets.upper).all()


def test_options_are_values_and_are_checked():
    assert PGD(5) == PGD(steps=5) and hash(PGD()) == hash(PGD())
    with pytest.raises(FrozenInstanceError):
        PGD().steps = 3
    with pytest.raises(UsageError, match="'middle'.*uniform, point"):
        PGD(start="middle")
    for wrong in ({"steps": -1}, {"step": 0}, {"restarts": 0}):
        with pytest.raises(UsageError, match="steps of size"):
            PGD(**wrong)
