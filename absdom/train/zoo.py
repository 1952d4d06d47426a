"""Networks of the literature on certified training, by name.

All take the shape of one item (C, H, W) and the number of classes, and as `mean` and `std` (numbers, or one per
channel) a normalisation as their first layer, so that radii stay in the units of the data. Layers have names (conv1,
norm1, relu1, ..., flatten, fc1, ...), which options of losses refer to. Parameters start as torch makes them, unless
said otherwise.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import prod, sqrt

import torch
from torch import nn

from absdom.errors import UsageError

Shape = Sequence[int]
Numbers = float | Sequence[float]


def input_shape(item: Shape) -> tuple[int, ...]:
    """The shape that networks take such items in: C, H, W for images, which may be [H, W] or have channels last."""
    item = tuple(item)
    if len(item) == 2:
        return (1, *item)
    if len(item) == 3 and item[2] in (1, 3) and item[0] not in (1, 3):
        return (item[2], *item[:2])
    return item


class Normalise(nn.Module):
    """(x - mean) / std, per channel: the first axis of an item."""

    def __init__(self, mean: Numbers, std: Numbers, shape: Shape):
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            numbers = torch.tensor(value, dtype=torch.get_default_dtype()).reshape(-1)
            if len(numbers) not in (1, shape[0]) or not numbers.isfinite().all():
                raise UsageError(f"{name} {value}: give one number, or one for each of {shape[0]} channels")
            self.register_buffer(name, numbers.reshape(-1, *[1] * (len(shape) - 1)))
        if not (self.std > 0).all():
            raise UsageError(f"std {std}: standard deviations are positive")

    def forward(self, x):
        return (x - self.mean) / self.std


class Residual(nn.Module):
    """relu(conv2(relu(conv1(x))) + skip(x)); no skip convolution: the identity."""

    def __init__(self, conv1: nn.Conv2d, conv2: nn.Conv2d, skip: nn.Conv2d | None):
        super().__init__()
        self.conv1, self.relu1, self.conv2 = conv1, nn.ReLU(), conv2
        self.skip, self.relu2 = nn.Identity() if skip is None else skip, nn.ReLU()

    def forward(self, x):
        return self.relu2(self.conv2(self.relu1(self.conv1(x))) + self.skip(x))


class Layers:
    """Collects the layers of a sequential network, with their names and the shape of what they give."""

    def __init__(self, shape: Shape, mean: Numbers | None, std: Numbers | None):
        if not shape or any(type(n) is not int or n < 1 for n in shape):
            raise UsageError(f"shape {list(shape)}: an item's shape is whole numbers above 0, such as 1, 28, 28")
        self.shape, self.found, self._counts = tuple(shape), OrderedDict(), {}
        if mean is not None or std is not None:
            self._add("normalise", Normalise(0.0 if mean is None else mean, 1.0 if std is None else std, shape))

    def _add(self, name: str, layer: nn.Module) -> None:
        self.found[name] = layer

    def _next(self, kind: str) -> str:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return f"{kind}{self._counts[kind]}"

    def conv(self, filters: int, kernel: int, stride: int, padding: int, bn: bool = False) -> Layers:
        """A convolution, batch norm if wished, and a ReLU."""
        if len(self.shape) != 3:
            raise UsageError(f"shape {list(self.shape)}: a convolutional network takes images, C, H, W")
        size = tuple((n + 2 * padding - kernel) // stride + 1 for n in self.shape[1:])
        if min(size) < 1:
            raise UsageError(f"images of {list(self.shape)} at {self._next('conv')}: too small for this network")
        self._add(self._next("conv"), nn.Conv2d(self.shape[0], filters, kernel, stride, padding))
        self.shape = (filters, *size)
        return self._activate(nn.BatchNorm2d(filters) if bn else None)

    def residual(self, filters: int, block: Callable[[int, int], Residual], halves: bool) -> Layers:
        self._add(self._next("block"), block(self.shape[0], filters))
        size = (-(-n // 2) if halves else n for n in self.shape[1:])
        self.shape = (filters, *size)
        return self

    def hidden(self, sizes: Sequence[int], bn: bool = False) -> Layers:
        """Fully connected layers with ReLUs."""
        self._flatten()
        for size in sizes:
            self._add(self._next("fc"), nn.Linear(self.shape[0], size))
            self.shape = (size,)
            self._activate(nn.BatchNorm1d(size) if bn else None)
        return self

    def classes(self, count: int) -> nn.Sequential:
        """The last layer; gives the network."""
        self._flatten()
        if type(count) is not int or count < 1:
            raise UsageError(f"classes {count}: a network has one output or more")
        self._add(self._next("fc"), nn.Linear(self.shape[0], count))
        return nn.Sequential(self.found)

    def _flatten(self) -> None:
        if "flatten" not in self.found:
            self._add("flatten", nn.Flatten())
            self.shape = (prod(self.shape),)

    def _activate(self, norm: nn.Module | None) -> Layers:
        if norm is not None:
            self._add(self._next("norm"), norm)
        self._add(self._next("relu"), nn.ReLU())
        return self


def mlp(shape: Shape, classes: int, *, hidden: Sequence[int] = (100, 100), mean=None, std=None) -> nn.Sequential:
    """Fully connected, with hidden layers of these sizes."""
    return Layers(shape, mean, std).hidden(hidden).classes(classes)


def wong_small(shape: Shape, classes: int, *, mean=None, std=None) -> nn.Sequential:
    """The small network of Wong et al. (2018): two convolutions, 100 units."""
    layers = Layers(shape, mean, std).conv(16, 4, 2, 1).conv(32, 4, 2, 1)
    return layers.hidden([100]).classes(classes)


def wong_large(shape: Shape, classes: int, *, mean=None, std=None) -> nn.Sequential:
    """The large network of Wong et al. (2018): four convolutions, twice 512 units; CIFAR's "shallow" of Lee et al."""
    layers = Layers(shape, mean, std).conv(32, 3, 1, 1).conv(32, 4, 2, 1).conv(64, 3, 1, 1).conv(64, 4, 2, 1)
    return layers.hidden([512, 512]).classes(classes)


def wong_wide(shape: Shape, classes: int, *, k: int = 1, mean=None, std=None) -> nn.Sequential:
    """Wide(k) of Wong et al. (2018), table 5: the small network with widths in proportion to k."""
    layers = Layers(shape, mean, std).conv(4 * k, 4, 2, 1).conv(8 * k, 4, 2, 1)
    return layers.hidden([128 * k]).classes(classes)


def wong_deep(shape: Shape, classes: int, *, k: int = 1, mean=None, std=None) -> nn.Sequential:
    """Deep(k) of Wong et al. (2018), table 5: k convolutions of 8 and k of 16 filters, the last of each kind halves."""
    layers = Layers(shape, mean, std)
    for filters in (8, 16):
        for _ in range(k - 1):
            layers.conv(filters, 3, 1, 1)
        layers.conv(filters, 4, 2, 1)
    return layers.hidden([100]).classes(classes)


def wong_resnet(shape: Shape, classes: int, *, mean=None, std=None) -> nn.Sequential:
    """The residual network of Wong et al. (2018): four blocks, 1000 units; convolutions start as He et al. (2015)."""

    def block(inputs: int, filters: int) -> Residual:
        if filters == inputs:
            first, skip = nn.Conv2d(inputs, filters, 3, 1, 1), nn.Conv2d(inputs, filters, 1)
        else:
            first, skip = nn.Conv2d(inputs, filters, 4, 2, 1), nn.Conv2d(inputs, filters, 2, 2)
        return Residual(first, nn.Conv2d(filters, filters, 3, 1, 1), skip)

    if len(shape) == 3 and any(n % 4 for n in shape[1:]):
        raise UsageError(f"images of {list(shape)}: this network halves them twice, give sizes that 4 divides")
    layers = Layers(shape, mean, std).conv(16, 3, 1, 1)
    for filters, halves in ((16, False), (16, False), (32, True), (64, True)):
        layers.residual(filters, block, halves)
    network = layers.hidden([1000]).classes(classes)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, 0.0, sqrt(2 / (prod(layer.kernel_size) * layer.out_channels)))
            nn.init.zeros_(layer.bias)
    return network


def resnet_small(shape: Shape, classes: int, *, width: int = 8, mean=None, std=None) -> nn.Sequential:
    """ResNet-2B of the verification competitions: a convolution and two blocks without batch norm, 100 units."""

    def block(inputs: int, filters: int) -> Residual:
        stride = 1 if filters == inputs else 2
        first = nn.Conv2d(inputs, filters, 3, stride, 1)
        skip = None if stride == 1 else nn.Conv2d(inputs, filters, 1, stride)
        return Residual(first, nn.Conv2d(filters, filters, 3, 1, 1), skip)

    layers = Layers(shape, mean, std).conv(width, 3, 2, 1)
    layers.residual(2 * width, block, True).residual(2 * width, block, False)
    return layers.hidden([100]).classes(classes)


def gowal_small(shape: Shape, classes: int, *, mean=None, std=None) -> nn.Sequential:
    """Small of Gowal et al. (2018), without padding."""
    return Layers(shape, mean, std).conv(16, 4, 2, 0).conv(32, 4, 1, 0).hidden([100]).classes(classes)


def gowal_medium(shape: Shape, classes: int, *, mean=None, std=None) -> nn.Sequential:
    """Medium of Gowal et al. (2018), without padding."""
    layers = Layers(shape, mean, std).conv(32, 3, 1, 0).conv(32, 4, 2, 0).conv(64, 3, 1, 0).conv(64, 4, 2, 0)
    return layers.hidden([512, 512]).classes(classes)


def cnn3(shape: Shape, classes: int, *, bn: bool = False, mean=None, std=None) -> nn.Sequential:
    """CNN3 of CTBench: two convolutions and the last layer."""
    return Layers(shape, mean, std).conv(16, 5, 2, 2, bn).conv(32, 4, 2, 1, bn).classes(classes)


def cnn5(shape: Shape, classes: int, *, bn: bool = False, mean=None, std=None) -> nn.Sequential:
    """CNN5 of CTBench: three convolutions, 512 units."""
    layers = Layers(shape, mean, std).conv(16, 3, 1, 1, bn).conv(16, 4, 2, 1, bn).conv(32, 4, 2, 1, bn)
    return layers.hidden([512], bn).classes(classes)


def conv_med(
    shape: Shape, classes: int, *, widths: tuple[int, int] = (1, 1), hidden: int = 100, mean=None, std=None
) -> nn.Sequential:
    """ConvMed of COLT (Balunovic and Vechev 2020): two convolutions of 16 and 32 filters times `widths`, then one
    fully connected layer."""
    first, second = widths
    layers = Layers(shape, mean, std).conv(16 * first, 5, 2, 2).conv(32 * second, 4, 2, 1)
    return layers.hidden([hidden]).classes(classes)


def conv_med_big(shape: Shape, classes: int, *, mean=None, std=None) -> nn.Sequential:
    """ConvMedBig of COLT (Balunovic and Vechev 2020): three convolutions, 250 units."""
    layers = Layers(shape, mean, std).conv(32, 3, 1, 1).conv(32, 4, 2, 1).conv(128, 4, 2, 1)
    return layers.hidden([250]).classes(classes)


def cnn7(
    shape: Shape, classes: int, *, bn: bool = True, last_stride: int = 1, width: int = 64, mean=None, std=None
) -> nn.Sequential:
    """CNN7 (Large of Gowal et al. 2018, there without batch norm): five convolutions, 512 units.

    bn: batch norm behind every layer but the last (Shi et al. 2021). last_stride: of the fifth convolution, 2 for
    TinyImageNet. width: filters of the first convolution.
    """
    layers = Layers(shape, mean, std).conv(width, 3, 1, 1, bn).conv(width, 3, 1, 1, bn)
    layers.conv(2 * width, 3, 2, 1, bn).conv(2 * width, 3, 1, 1, bn).conv(2 * width, 3, last_stride, 1, bn)
    return layers.hidden([512], bn).classes(classes)


def dm_large(shape: Shape, classes: int, *, mean=None, std=None) -> nn.Sequential:
    """Large of Gowal et al. (2018): CNN7 without batch norm."""
    return cnn7(shape, classes, bn=False, mean=mean, std=std)


ZOO: dict[str, Callable[..., nn.Sequential]] = {
    f.__name__: f
    for f in (
        mlp, wong_small, wong_large, wong_wide, wong_deep, wong_resnet, resnet_small, gowal_small, gowal_medium, cnn3,
        cnn5, cnn7, dm_large, conv_med, conv_med_big,
    )
}  # fmt: skip
