"""Training for properties that are no classification: clauses as margins, cells of boxes, and what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import absdom
from absdom.errors import PropertyError, UsageError
from absdom.property import make_property
from absdom.train.bounds import IBP, Certified
from absdom.train.live import Live
from absdom.train.properties import PropertySpecification
from absdom.train.task import Task


def small_net(seed=0, inputs=2, outputs=2, hidden=6):
    torch.manual_seed(seed)
    layers = torch.nn.Linear(inputs, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, outputs)
    return torch.nn.Sequential(*layers).double()


def two_boxes():
    """Box 0: a clause of two rows and one of one; box 1: one clause of one row."""
    y0, y1 = np.eye(2)
    clauses = [
        (0, [(y0 - y1, 0.5, False), (-y0, 1.0, True)]),
        (0, [(y1, 2.0, False)]),
        (1, [(y0 + 2 * y1, 1.5, False)]),
    ]
    return make_property([[-1.0, 0.0], [2.0, -3.0]], [[1.0, 0.5], [4.0, -3.0]], clauses)


def by_hand(net, prop, x, box, eps):
    """The loss of interval bounds of one item, the last layer merged into the rows: plain numpy."""
    (W, b), (V, c) = ([t.detach().numpy() for t in (m.weight, m.bias)] for m in (net[0], net[2]))
    low, high = prop.inputs.lower[box], prop.inputs.upper[box]
    reach = eps * (high - low) / 2
    low, high = np.maximum(low, x - reach), np.minimum(high, x + reach)
    middle, radius = W @ (low + high) / 2 + b, np.abs(W) @ (high - low) / 2
    low, high = np.maximum(middle - radius, 0), np.maximum(middle + radius, 0)
    total = 0.0
    for q in np.flatnonzero(prop.spec.box == box):
        best = -np.inf
        for r in np.flatnonzero(prop.spec.clause == q):
            row = prop.spec.C[[r]].toarray()[0]
            nu = row @ V
            best = max(best, np.maximum(nu, 0) @ low + np.minimum(nu, 0) @ high + row @ c + prop.spec.d[r])
        total += np.exp(-best)
    return np.log1p(total)


def test_the_loss_is_its_closed_form_with_other_rows_per_box():
    net, prop = small_net(), two_boxes()
    spec = PropertySpecification(prop)
    x = torch.tensor([[0.3, 0.1], [2.5, -3.0], [-1.0, 0.5], [3.9, -3.0]], dtype=torch.float64)
    y = torch.tensor([0, 1, 0, 1])
    for eps in (0.0, 0.2, 1.0, 2.0):
        out = IBP(net, spec, eps=eps)(x, y)
        expected = np.mean([by_hand(net, prop, *item, eps) for item in zip(x.numpy(), y.tolist(), strict=True)])
        assert abs(out.total.item() - expected) < 1e-12
        assert out.margins.shape == (4, 3)


def test_filling_up_changes_nothing():
    """Items of the box with fewer rows have the loss that a property of that box alone gives."""
    net, prop = small_net(1), two_boxes()
    y1 = np.array([1.0, 2.0])
    alone = make_property(prop.inputs.lower[1:], prop.inputs.upper[1:], [(0, [(y1, 1.5, False)])])
    x, y = torch.tensor([[2.5, -3.0], [3.0, -3.0]], dtype=torch.float64), torch.tensor([1, 1])
    both = IBP(net, PropertySpecification(prop), eps=0.3)(x, y)
    single = IBP(net, PropertySpecification(alone), eps=0.3)(x, y - 1)
    torch.testing.assert_close(both.total, single.total, rtol=0, atol=1e-14)
    assert both.task.clauses(both.margins).shape == (2, 2)
    gradients = [torch.autograd.grad(out.total, net.parameters()) for out in (both, single)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


@pytest.mark.parametrize("recipe", ["ibp", "crown-ibp", "crown"])
def test_gradcheck(recipe):
    net, spec = small_net(2), PropertySpecification(two_boxes())
    live, parameters = Live(net, torch.zeros(1, 2, dtype=torch.float64)), list(net.parameters())
    x, y = torch.tensor([[0.3, 0.1], [2.5, -3.0]], dtype=torch.float64), torch.tensor([0, 1])
    loss = Certified(live, spec, eps=0.3, recipe=recipe)

    def of(*values):
        with torch.no_grad():
            for p, v in zip(parameters, values, strict=True):
                p.copy_(v)
        out = loss(x, y)
        return Straight.apply(out.total, *torch.autograd.grad(out.total, parameters), *values)

    assert torch.autograd.gradcheck(of, [p.detach().clone().requires_grad_() for p in parameters], atol=1e-6)


class Straight(torch.autograd.Function):
    """A value with given gradients for the arguments behind it."""

    @staticmethod
    def forward(ctx, value, *rest):
        ctx.save_for_backward(*rest[: len(rest) // 2])
        return value.detach().clone()

    @staticmethod
    def backward(ctx, gradient):
        known = ctx.saved_tensors
        return (None, *[None] * len(known), *[gradient * g for g in known])


def reading_inputs():
    """y_0 stays below x_0 + 2, and y_1 x_1 and x_0^2 y_0 stay in bounds."""
    net = small_net()
    given = absdom.network(net, torch.zeros(1, 2, dtype=torch.float64))
    x, y = absdom.inputs(given), absdom.outputs(given)
    prop = absdom.forall(absdom.box([-1, 0], [1, 0.5]), (y[0] <= x[0] + 2) & (absdom.maximum(y) >= x[1] - 1))
    C = sp.hstack([prop.spec.C[:, :2], sp.csr_matrix(np.ones((prop.spec.rows, 2))), prop.spec.C[:, 2:]]).tocsr()
    return prop, replace(prop, spec=replace(prop.spec, C=C), products=((1, 3), (2, 0, 2)))


@pytest.mark.parametrize("which", ["boxes", "inputs", "products", "ball"])
def test_bounds_hold_at_sampled_points(which):
    ball = absdom.property.Property(
        absdom.ball(np.zeros(2), 0.7, norm=2, clip=None), two_boxes().spec.select(np.array([0, 1]))
    )
    prop = {"boxes": two_boxes(), "inputs": reading_inputs()[0], "products": reading_inputs()[1], "ball": ball}[which]
    spec, generator = PropertySpecification(prop), torch.Generator().manual_seed(0)
    for seed in range(2):
        net = spec.attach(small_net(seed))
        x, y = spec.sample(8, generator, dtype=torch.float64)
        live = Live(net, x[:1])
        for recipe, eps in itertools.product(["ibp", "crown-ibp", "crown", "zonotope"], [0.0, 0.3, 2.0]):
            out = Certified(live, spec, eps=eps, recipe=recipe)(x, y)
            bound, sets = out.task.loss(out.margins), out.task.sets
            for _ in range(10):
                share = torch.rand(x.shape, generator=generator, dtype=x.dtype)
                point = sets.project((sets.lower + share * (sets.upper - sets.lower))[:, None])[:, 0]
                inside = torch.ones(len(x), dtype=torch.bool)
                for part in sets.parts:  # what projection left outside of a ball is not asked about
                    inside &= (point - part.centre).norm(dim=1) <= part.radius[:, 0]
                assert (out.task.loss(out.task.margins(net(point))) <= bound + 1e-9)[inside].all()
        if which in ("inputs", "products"):  # the vector is the one that the property itself reads
            values = net(x).detach().numpy()
            for point, value, own in zip(x.numpy(), values, net.module(x).detach().numpy(), strict=True):
                np.testing.assert_allclose(value, prop.vector(point, own), atol=1e-12)


def holds_everywhere(net, spec, per_axis, recipe="crown") -> torch.Tensor:
    """Bool per cell."""
    live = Live(spec.attach(net), torch.zeros(1, spec.prop.inputs.size, dtype=torch.float64))
    found = []
    for task in spec.cells(per_axis, batch=50, dtype=torch.float64):
        found.append(task.holds(live.propagate(recipe, task.sets).lower_bounds(task.C, task.d)))
    return torch.cat(found)


def test_cells_cover_the_boxes_and_decide_as_the_verifier_does():
    spec = PropertySpecification(two_boxes())
    tasks = list(spec.cells([3, 4], batch=5, dtype=torch.float32))
    assert sum(map(len, tasks)) == 12 + 3  # the second input of the second box has no width
    generator = torch.Generator().manual_seed(0)
    x, y = spec.sample(500, generator)
    low, high = (torch.cat([getattr(t.sets, end) for t in tasks]) for end in ("lower", "upper"))
    inside = ((low <= x[:, None]) & (x[:, None] <= high)).all(2)
    assert inside.any(1).all() and set(y.tolist()) == {0, 1}
    for axis in (0, 1):  # neighbours share their edges, bit by bit, and the ends are the box's
        edges = torch.cat([low[:12, axis], high[:12, axis]]).unique()
        assert len(edges) == (4, 5)[axis] and [edges[0], edges[-1]] == [-1 + axis, (1, 0.5)[axis]]
    verdicts = set()
    for seed in range(6):
        net = small_net(seed)
        held = holds_everywhere(net, spec, 8)
        verdict = absdom.verify(net, spec.prop, timeout=20, example=torch.zeros(1, 2, dtype=torch.float64)).verdict
        assert not (bool(held.all()) and verdict == "sat")  # never certified where there is a counterexample
        verdicts.add(verdict)
    assert verdicts == {"sat", "unsat"}


def test_a_loss_below_log_two_proves_the_cell():
    spec = PropertySpecification(two_boxes(), sharpness=3.0)
    x, y = spec.sample(200, torch.Generator().manual_seed(1), dtype=torch.float64)
    seen = 0
    for seed in range(5):
        out = Certified(small_net(seed), spec, eps=0.2, recipe="crown")(x, y)
        proved = out.task.loss(out.margins) < np.log(2)
        seen += int(proved.sum())
        assert out.task.holds(out.margins)[proved].all()
    assert seen


def test_training_makes_the_property_hold():
    """u = net(x) follows x_0 + x_1, but is to stay below 0.5 where both are above 0.5."""
    prop = make_property([[0.5, 0.5]], [[1.0, 1.0]], [(0, [(np.array([-1.0]), 0.5, False)])])
    spec, net = PropertySpecification(prop, sharpness=10.0), small_net(3, outputs=1)
    loss, optimiser = Certified(net, spec, eps=0.0, recipe="crown-ibp"), torch.optim.Adam(net.parameters(), 1e-2)
    torch.manual_seed(0)
    for step in range(150):
        loss.eps = min(1.0, step / 75) * 0.5
        free = torch.rand(64, 2, dtype=torch.float64) * 0.5
        out = loss(*spec.sample(32, dtype=torch.float64))
        total = out.total + (net(free)[:, 0] - free.sum(1)).square().mean()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    assert holds_everywhere(net, spec, 4).all()
    assert absdom.verify(net, prop, timeout=20, example=torch.zeros(1, 2, dtype=torch.float64)).verdict == "unsat"


def test_files_and_shapes(tmp_path):
    prop = two_boxes()
    path = tmp_path / "p.vnnlib"
    path.write_text(prop.to_vnnlib())
    spec = PropertySpecification(path, shape=(1, 2))
    x, y = spec.sample(4)
    assert x.shape == (4, 1, 2) and y.shape == (4,)
    net = torch.nn.Sequential(torch.nn.Flatten(), *small_net().float())
    assert torch.isfinite(IBP(net, spec, eps=0.1)(x, y).total)
    assert next(iter(spec.cells(2))).x.shape[1:] == (1, 2)
    assert isinstance(next(iter(spec.cells(2))), Task)


def test_what_is_refused(tmp_path):
    prop, net = two_boxes(), small_net().float()
    spec = PropertySpecification(prop)
    x, y = spec.sample(4)
    loss = IBP(net, spec, eps=0.1)
    with pytest.raises(PropertyError, match="item 2 of the batch lies outside box"):
        loss(torch.where(torch.arange(4)[:, None] == 2, x + 9, x), y)
    with pytest.raises(PropertyError, match="y names box 2: the property has boxes 0 to 1"):
        loss(x, y.clamp(min=2))
    with pytest.raises(PropertyError, match="boxes y have shape"):
        loss(x, y.float())
    with pytest.raises(PropertyError, match="items have 3 numbers, the property has 2 inputs"):
        IBP(small_net(inputs=3).float(), spec, eps=0.1)(torch.zeros(4, 3), y)
    with pytest.raises(PropertyError, match="reads 2 values, the module gives 3"):
        IBP(small_net(outputs=3).float(), spec, eps=0.1)(x, y)
    with pytest.raises(PropertyError, match="spec.attach"):
        reads = PropertySpecification(reading_inputs()[0])
        IBP(net, reads, eps=0.1)(*reads.sample(4))
    with pytest.raises(PropertyError, match="shape"):
        PropertySpecification(prop, shape=(3,))
    with pytest.raises(UsageError, match="sharpness"):
        PropertySpecification(prop, sharpness=0.0)
    with pytest.raises(UsageError, match="cells of box 0"):
        next(spec.cells(10_000))
    with pytest.raises(PropertyError, match="violated on all of box 0"):
        PropertySpecification(make_property([[0.0]], [[1.0]], [(0, [(np.zeros(1), -1.0, False)])]))
    with pytest.raises(PropertyError, match="no clause"):
        PropertySpecification(prop.with_spec(prop.spec.select(np.array([], dtype=int))))
    open_end = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 0))(assert (<= Y_0 0))"
    (tmp_path / "open.vnnlib").write_text(open_end)
    with pytest.raises(PropertyError, match="X_0 has no upper bound"):
        PropertySpecification(tmp_path / "open.vnnlib")
