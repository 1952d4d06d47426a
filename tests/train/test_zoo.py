"""The networks of the zoo: their published numbers of parameters and ReLUs, their names, and what they refuse."""

from __future__ import annotations

from math import prod

import pytest
import torch

from absdom.api import load
from absdom.errors import UsageError
from absdom.train.zoo import ZOO, Normalise, cnn7, mlp, wong_small

MNIST, CIFAR, TINY = (1, 28, 28), (3, 32, 32), (3, 64, 64)
CNN7 = [(64, 3, 1, 1), (64, 3, 1, 1), (128, 3, 2, 1), (128, 3, 1, 1), (128, 3, 1, 1)]
SMALL, MEDIUM = [(16, 4, 2, 0), (32, 4, 1, 0)], [(32, 3, 1, 0), (32, 4, 2, 0), (64, 3, 1, 0), (64, 4, 2, 0)]

EXACT = [  # name, options, shape, classes, parameters and ReLUs as published (the networks' authors' files)
    ("wong_small", {}, MNIST, 10, 166406, 4804),
    ("wong_small", {}, CIFAR, 10, 214918, 6244),
    ("wong_large", {}, MNIST, 10, 1974762, 48064),
    ("wong_large", {}, CIFAR, 10, 2466858, 62464),
    ("wong_resnet", {}, MNIST, 10, 3254562, 82536),
    ("wong_resnet", {}, CIFAR, 10, 4214850, 107496),
    ("cnn3", {}, MNIST, 10, 24330, 4704),
    ("cnn3", {}, CIFAR, 10, 29930, 6144),
    ("resnet_small", {}, CIFAR, 10, 112006, None),
]
LAYERS = [  # name, options, shape, classes, convolutions (filters, kernel, stride, padding), hidden, millions, ReLUs
    ("cnn5", {}, MNIST, 10, [(16, 3, 1, 1), (16, 4, 2, 1), (32, 4, 2, 1)], [512], 0.82, 17760),
    ("cnn5", {}, CIFAR, 10, [(16, 3, 1, 1), (16, 4, 2, 1), (32, 4, 2, 1)], [512], 1.07, 23040),
    ("dm_large", {}, MNIST, 10, CNN7, [512], 13.26, 176128),
    ("cnn7", {"bn": False}, CIFAR, 10, CNN7, [512], 17.19, 229888),
    ("cnn7", {"bn": True}, CIFAR, 10, CNN7, [512], 17.19, 229888),
    ("cnn7", {"bn": False, "last_stride": 2}, TINY, 200, [*CNN7[:4], (128, 3, 2, 1)], [512], 17.29, 819712),
    ("gowal_small", {}, MNIST, 10, SMALL, [100], 0.33, 6004),
    ("gowal_small", {}, CIFAR, 10, SMALL, [100], 0.47, 8308),
    ("gowal_medium", {}, MNIST, 10, MEDIUM, [512, 512], 0.89, 34688),
    ("gowal_medium", {}, CIFAR, 10, MEDIUM, [512, 512], 1.19, 46912),
    ("wong_wide", {"k": 4}, MNIST, 10, [(16, 4, 2, 1), (32, 4, 2, 1)], [512], None, None),
    ("wong_deep", {"k": 2}, MNIST, 10, [(8, 3, 1, 1), (8, 4, 2, 1), (16, 3, 1, 1), (16, 4, 2, 1)], [100], None, None),
    ("conv_med", {"widths": (2, 3)}, MNIST, 10, [(32, 5, 2, 2), (96, 4, 2, 1)], [100], None, None),
    ("conv_med_big", {}, CIFAR, 10, [(32, 3, 1, 1), (32, 4, 2, 1), (128, 4, 2, 1)], [250], None, None),
    ("mlp", {"hidden": (500,)}, (561,), 6, [], [500], None, 500),
]


def counts(network: torch.nn.Module, shape) -> tuple[int, int]:
    """Parameters, and values of an item that go through a ReLU."""
    found = []
    hooks = [
        m.register_forward_hook(lambda m, x, y: found.append(y.numel()))
        for m in network.modules()
        if isinstance(m, torch.nn.ReLU)
    ]
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return sum(p.numel() for p in network.parameters()), sum(found)


def by_hand(shape, classes: int, convs, hidden, bn: bool) -> int:
    """The parameters of these layers, with biases, and two per channel for each batch norm."""
    total, shape = 0, tuple(shape)
    for filters, kernel, stride, padding in convs:
        total += filters * (shape[0] * kernel**2 + 1) + 2 * bn * filters
        shape = (filters, *((n + 2 * padding - kernel) // stride + 1 for n in shape[1:]))
    inputs = prod(shape)
    for size in hidden:
        total += size * (inputs + 1) + 2 * bn * size
        inputs = size
    return total + classes * (inputs + 1)


@pytest.mark.parametrize("name, options, shape, classes, parameters, relus", EXACT)
def test_sizes_as_published(name, options, shape, classes, parameters, relus):
    found = counts(ZOO[name](shape, classes, **options), shape)
    assert found[0] == parameters and found[1] == (relus or found[1])


@pytest.mark.parametrize("name, options, shape, classes, convs, hidden, millions, relus", LAYERS)
def test_sizes_by_the_layers(name, options, shape, classes, convs, hidden, millions, relus):
    found = counts(ZOO[name](shape, classes, **options), shape)
    assert found[0] == by_hand(shape, classes, convs, hidden, options.get("bn", False))
    assert millions is None or abs(found[0] / 1e6 - millions) <= 0.0051
    assert found[1] == (relus or found[1])


def test_every_network_is_tested():
    assert {row[0] for row in (*EXACT, *LAYERS)} == set(ZOO)


def test_normalisation_is_the_first_layer():
    torch.manual_seed(0)
    network = wong_small((3, 16, 16), 4, mean=[0.1, 0.2, 0.3], std=0.5)
    x = torch.rand(2, 3, 16, 16)
    moved = torch.stack([(x[:, c] - (0.1, 0.2, 0.3)[c]) / 0.5 for c in range(3)], 1)
    assert torch.allclose(network[1:](moved), network(x), atol=1e-6)
    assert not [name for name, _ in network.named_parameters() if "normalise" in name]
    plain = Normalise(2.0, 4.0, (5,))
    assert torch.equal(plain(torch.full((1, 5), 10.0)), torch.full((1, 5), 2.0))


def test_layers_have_names_that_graphs_know():
    network = cnn7((1, 8, 8), 3, width=2, mean=0.5, std=0.5)
    names = [name for name, _ in network.named_children()]
    assert names[:5] == ["normalise", "conv1", "norm1", "relu1", "conv2"] and len(names) == 21
    assert names.index("flatten") == 16 and names[-4:] == ["fc1", "norm6", "relu6", "fc2"]
    graph = load(network.eval(), torch.zeros(1, 1, 8, 8))
    assert {"relu1", "relu4", "flatten", "fc2"} <= set(graph.names)


def test_what_does_not_fit_is_refused():
    for build, words in (
        (lambda: wong_small((784,), 10), "images"),
        (lambda: wong_small((1, 2, 2), 10), "too small"),
        (lambda: wong_small((1, 28, 28), 0), "classes 0"),
        (lambda: mlp((0,), 3), "shape"),
        (lambda: mlp((4,), 3, mean=[1.0, 2.0, 3.0]), "mean"),
        (lambda: mlp((4,), 3, std=0.0), "std"),
        (lambda: ZOO["wong_resnet"]((1, 30, 30), 10), "halves"),
    ):
        with pytest.raises(UsageError, match=words):
            build()
