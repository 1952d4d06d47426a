"""The torch front end: agreement with the module, live weights, and gradients through bounds."""

import pytest
import torch
from torch import nn

import absdom
from absdom import api
from absdom.arithmetic import Arithmetic
from absdom.passes import lower
from absdom.plan import run
from absdom.plan.planner import make_schedule
from absdom.plan.recipes import parse_recipe
from absdom.sets import InputBatch

DOUBLE = Arithmetic(torch.float64)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding="same", dilation=2)
        self.skip = nn.Conv2d(1, 4, 1)
        self.head = nn.Linear(4 * 3 * 3, 3)

    def forward(self, x):
        y = self.second(torch.relu(self.norm(self.first(x)))) + self.skip(x)
        return self.head(nn.functional.max_pool2d(torch.relu(y), 2).flatten(1))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


def sequential(*layers):
    return nn.Sequential(*layers)


MODULES = {
    "mlp": lambda: (sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), (1, 5)),
    "residual": lambda: (Residual(), (1, 1, 6, 6)),
    "shared": lambda: (Shared(), (1, 4)),
    "conv1d": lambda: (sequential(nn.Conv1d(2, 4, 3, stride=2, groups=2), nn.LeakyReLU(0.2), nn.Flatten()), (1, 2, 9)),
    "conv3d": lambda: (sequential(nn.Conv3d(1, 2, 2, padding=1), nn.Hardtanh(), nn.Flatten()), (1, 1, 3, 3, 3)),
    "pools": lambda: (
        sequential(nn.AvgPool2d(2, padding=1), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (1, 3, 6, 6)
    ),
    "soft": lambda: (sequential(nn.Linear(3, 4), nn.ReLU6(), nn.Dropout(0.5), nn.Softmax(-1)), (1, 3)),
}  # fmt: skip


def build(name):
    torch.manual_seed(3)
    module, shape = MODULES[name]()
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    return module.double().eval(), torch.rand(shape, dtype=torch.float64)


def values(graph, x, params=None):
    graph = lower(graph)
    context = run.prepare(make_schedule(graph, parse_recipe("ibp")), DOUBLE, params)
    return run.evaluate(context, x.reshape(len(x), -1))


@pytest.mark.parametrize("name", MODULES)
def test_agrees_with_the_module(name):
    module, example = build(name)
    graph = absdom.load(module, example)
    for _ in range(3):
        x = torch.rand_like(example)
        torch.testing.assert_close(values(graph, x)[0].reshape(-1), module(x).reshape(-1), rtol=1e-12, atol=1e-12)


def test_weights_are_the_modules_own():
    module, example = build("mlp")
    graph = absdom.load(module, example)
    assert graph.params["0.weight"] is module[0].weight
    before = values(graph, example)
    with torch.no_grad():
        module[0].weight.mul_(2)
    assert not torch.allclose(values(graph, example), before)
    torch.testing.assert_close(values(graph, example)[0], module(example), rtol=1e-12, atol=1e-12)


def batch(x, radius):
    flat = x.reshape(1, -1)
    return InputBatch(flat - radius, flat + radius)


@pytest.mark.parametrize("method", ["ibp", "crown", "crown-ibp", "cap"])
@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_gradcheck_through_a_bound(method, name):
    module, example = build(name)
    compiled = absdom.compile(absdom.load(module, example), method)
    names = [n for n in compiled.graph.params if n in dict(module.named_parameters())]
    weights = [compiled.graph.params[n].detach().clone().requires_grad_(True) for n in names]
    if name == "residual":  # the numeric Jacobian of a few weights is enough
        names, weights = names[-2:], weights[-2:]

    def bound(radius, *weights):
        found = compiled.bounds(
            batch(example, radius), arithmetic=DOUBLE, params=dict(zip(names, weights, strict=True))
        )
        return found.lower, found.upper

    radius = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bound, (radius, *weights), eps=1e-7, atol=1e-5, fast_mode=name != "mlp")


def test_an_optimiser_step_tightens_the_bound():
    module, example = build("mlp")
    compiled = absdom.compile(absdom.load(module, example), "crown-ibp")
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05)
    widths = []
    for _ in range(5):
        found = compiled.bounds(batch(example, 0.2), arithmetic=DOUBLE)
        width = (found.upper - found.lower).sum()
        widths.append(width.item())
        optimiser.zero_grad()
        width.backward()
        optimiser.step()
    assert widths[-1] < widths[0]
    fresh = absdom.compile(absdom.load(module, example), "crown-ibp").bounds(batch(example, 0.2), arithmetic=DOUBLE)
    again = compiled.bounds(batch(example, 0.2), arithmetic=DOUBLE)
    torch.testing.assert_close(fresh.lower, again.lower, rtol=0, atol=0)


def test_bounds_of_a_layer_by_its_name():
    module, example = build("residual")
    compiled = absdom.compile(absdom.load(module, example), "crown")
    found = compiled.bounds(batch(example, 0.1), "first", arithmetic=DOUBLE)
    value = module.first(example)
    assert ((found.lower[0] <= value) & (value <= found.upper[0])).all()


def test_verify_a_module_through_its_graph():
    from absdom.property import make_property

    torch.manual_seed(0)
    graph = absdom.load(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(1, 2))
    prop = make_property([-1.0, -1.0], [1.0, 1.0], [(0, [([1.0, 0.0], 50.0, False)])])
    assert api.verify(graph, prop, timeout=20, device="cpu").verdict == "unsat"


def test_traces_without_reading_data():
    """One forward run and one sweep trace on fake tensors: no .item(), no shape that depends on data."""
    from torch.fx.experimental.proxy_tensor import make_fx

    from absdom.rows import Rows

    module, example = build("mlp")
    graph = lower(absdom.load(module, example))
    schedule = make_schedule(graph, parse_recipe("crown-ibp"))

    def pass_(low, high, C, d, *weights):
        context = run.prepare(schedule, DOUBLE, dict(zip(graph.params, weights, strict=True)))
        inputs = InputBatch(low, high)
        bounds = run.propagate(context, inputs)
        return run.row_bounds(context, inputs, bounds, Rows.dense_rows(C, low.shape[0], None), d, {})

    flat = torch.rand(2, 5, dtype=torch.float64)
    C = torch.rand(4, *graph.nodes[graph.outputs[0]].type.shape, dtype=torch.float64)
    arguments = (flat, flat + 0.1, C, torch.zeros(4, dtype=torch.float64), *(w.detach() for w in graph.params.values()))
    with torch.no_grad():
        traced = make_fx(pass_, tracing_mode="fake")(*arguments)
        torch.testing.assert_close(traced(*arguments), pass_(*arguments))
