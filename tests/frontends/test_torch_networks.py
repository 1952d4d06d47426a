"""Networks in the style of the usual collections: the graph agrees with the module, and bounds hold on samples."""

import copy
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch_nets import NETWORKS, assert_agrees, differences, network, ready

import absdom
from absdom.arithmetic import PROOF, Arithmetic
from absdom.errors import UsageError
from absdom.sets import InputBatch

DOUBLE = Arithmetic(torch.float64)


def box(*examples, radius):
    flat = torch.cat([x.reshape(1, -1) for x in examples], 1)
    return InputBatch(flat - radius, flat + radius)


@pytest.mark.parametrize("name", NETWORKS)
def test_agrees_with_the_module(name):
    module, example = network(name)
    assert_agrees(module, absdom.load(module, example), example)


# (network, recipe, radius): charged float64 bounds against points of the box, the module's own arithmetic allowed 1e-9.
BOUNDED = [
    ("vgg", "crown", 0.02), ("resnet", "crown-ibp", 0.02), ("densenet", "crown", 0.02), ("mobilenet_v2", "ibp", 0.02),
    ("mobilenet_v3", "crown-ibp", 0.05), ("unet", "crown-ibp", 0.05), ("vit", "crown-ibp", 0.02),
    ("windows", "crown", 0.02), ("controller", "crown", 0.3),
]  # fmt: skip


@pytest.mark.parametrize("name,recipe,radius", BOUNDED)
def test_bounds_hold_on_samples(name, recipe, radius):
    module, example = network(name)
    compiled = absdom.compile(absdom.load(module, example), recipe)
    with torch.no_grad():
        found = compiled.bounds(box(example, radius=radius), arithmetic=PROOF)
        share = torch.rand(200, *example.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        share[:100] = share[:100].round()
        outputs = torch.cat([module(x[None]) for x in example + radius * (2 * share - 1)])
    low, high = found.lower[0], found.upper[0]
    assert ((low - 1e-9 <= outputs) & (outputs <= high + 1e-9)).all()
    assert torch.isfinite(high - low).all()
    spread = outputs.amax(0) - outputs.amin(0)
    assert (high - low >= spread - 1e-9).all()


@pytest.mark.parametrize("name", ["vit", "windows", "mobilenet_v3", "unet"])
def test_float32_weights_are_read_as_they_are(name):
    """The graph of a float32 module is the function of its stored weights: that of the module made float64."""
    module, example = network(name)
    module = module.float()
    assert_agrees(copy.deepcopy(module).double(), absdom.load(module, example.float()), example, points=1)


class Pair(nn.Module):
    """Two inputs, three outputs, one layer used twice, a buffer, and an argument that is a plain number."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 3), nn.Parameter(torch.ones(()))
        self.register_buffer("offset", torch.arange(3.0), persistent=False)

    def forward(self, x, y, power=2):
        z = self.layer(self.layer(x) + y - self.offset)
        return {"policy": torch.tanh(z) * self.scale, "value": (z.sum(1), None, y**power)}


def test_several_inputs_and_outputs():
    module, x, y = ready(Pair()), torch.rand(1, 3, dtype=torch.float64), torch.rand(1, 3, dtype=torch.float64)
    graph = absdom.load(module, (x, y))
    assert [graph.nodes[i].type.shape for i in graph.inputs] == [(1, 3), (1, 3)]
    assert len(graph.outputs) == 3
    assert max(differences(module, graph, x, y).values()) < 1e-12
    with pytest.raises(UsageError, match="output.value.2"):
        absdom.compile(graph)
    found = absdom.compile(graph, "crown", "output.value.0").bounds(box(x, y, radius=0.1), arithmetic=DOUBLE)
    value = module(x, y)["value"][0]
    assert found.lower.shape == (1, 1) and found.lower[0] <= value <= found.upper[0]


def test_keyword_arguments():
    module, x, y = ready(Pair()), torch.rand(1, 3, dtype=torch.float64), torch.rand(1, 3, dtype=torch.float64)
    graph = absdom.load(module, {"x": x, "y": y, "power": 3})
    expected = module(x, y, 3)["value"][2]
    found = absdom.compile(graph, "ibp", "output.value.2").bounds(box(x, y, radius=0.0), arithmetic=DOUBLE)
    torch.testing.assert_close(found.lower[0], expected)


def test_tied_weights_go_by_one_name():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.decode = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.decode.weight = self.encode.weight

        def forward(self, x):
            return self.decode(torch.relu(self.encode(x)))

    module = ready(Tied())
    graph = absdom.load(module, torch.rand(1, 3, dtype=torch.float64))
    assert list(graph.params) == ["encode.weight"]
    assert graph.params["encode.weight"] is module.decode.weight


@pytest.mark.parametrize("name", ["vit", "mobilenet_v3"])
def test_gradients_reach_every_weight(name):
    module, example = network(name)
    found = absdom.compile(absdom.load(module, example), "ibp").bounds(box(example, radius=0.01), arithmetic=DOUBLE)
    (found.upper - found.lower).sum().backward()
    shifts = ("head.bias", f"{len(module) - 1}.bias" if isinstance(module, nn.Sequential) else "")
    for label, weight in module.named_parameters():
        if label not in shifts:  # a shift of the output moves both bounds alike
            assert weight.grad is not None and torch.isfinite(weight.grad).all(), label
    assert sum(float(w.grad.abs().sum()) > 0 for w in module.parameters() if w.grad is not None) > 8


class Frozen(nn.Module):
    """A frozen batch norm, computed from buffers; a mask and indices, which are no numbers to be trained."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.rand(3) + 0.5)
        self.register_buffer("variance", torch.rand(3) + 0.5)
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0]))
        self.register_buffer("order", torch.tensor([2, 0, 1]))

    def forward(self, x):
        factor = self.scale * (self.variance + 1e-5).rsqrt()
        return (x * factor[None])[:, self.order].masked_fill(self.mask == 0, 0.25)


def test_buffers_stay_live():
    module, example = ready(Frozen()), torch.rand(1, 3, dtype=torch.float64)
    graph = absdom.load(module, example)
    assert {"scale", "variance"} <= set(graph.params)
    with torch.no_grad():
        module.variance.mul_(3)
    assert_agrees(module, graph, example, points=1)
    module, example = network("resnet")
    graph = absdom.load(module, example)
    with torch.no_grad():
        module[0].first[1].running_var.mul_(3)
    assert_agrees(module, graph, example, points=1)


def test_rounding_of_constants_is_charged():
    """1/3 is no float64 number: bounds of x + arange(3) / 3 at a point hold the real numbers."""

    class Thirds(nn.Module):
        def forward(self, x):
            return x + torch.arange(3, dtype=torch.float64) / 3

    zero = torch.zeros(1, 3, dtype=torch.float64)
    found = absdom.compile(absdom.load(Thirds(), zero), "crown").bounds(box(zero, radius=0.0), arithmetic=PROOF)
    for k in range(1, 3):
        low, high = Fraction(found.lower[0, 0, k].item()), Fraction(found.upper[0, 0, k].item())
        assert low <= Fraction(k, 3) <= high and high - low < Fraction(1, 10**14)


def test_layers_are_named():
    module, example = network("vit")
    compiled = absdom.compile(absdom.load(module, example), "crown-ibp")
    found = compiled.bounds(box(example, radius=0.01), "encoder.layers.0", arithmetic=DOUBLE)
    assert found.lower.shape == (1, 1, 5, 8)
