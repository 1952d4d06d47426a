"""Small networks in the shapes that verifiers got wrong, as graphs (float64 weights, by seed) and as ONNX bytes (float32)."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from onnx_models import model, node

from absdom import ops
from absdom.ir.graph import Builder, Graph
from absdom.types import TensorType


class Net:
    """A builder that remembers the current value."""

    def __init__(self, seed: int, *shape: int):
        self.random = np.random.default_rng(seed)
        self.builder = Builder()
        self.input = self.value = self.builder.input("x", TensorType(shape, "float64"))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.builder.type(self.value).shape

    def weights(self, *shape: int, scale: float | None = None) -> int:
        scale = prod(shape[1:]) ** -0.5 if scale is None else scale
        return self.builder.param(torch.from_numpy(self.random.standard_normal(shape) * scale), "w")

    def add(self, op, *more: int) -> int:
        self.value = self.builder.add(op, self.value, *more)
        return self.value

    def conv(self, filters, kernel, strides=(1, 1), dilations=(1, 1), groups=1, before=(0, 0), after=(0, 0)) -> int:
        weights = self.weights(filters, self.shape[1] // groups, *kernel)
        return self.add(ops.Conv(strides, dilations, groups, before, after), weights, self.weights(filters, scale=0.3))

    def dense(self, size: int) -> int:
        self.add(ops.Reshape((1, prod(self.shape))))
        self.add(ops.MatMul(), self.weights(self.shape[1], size, scale=self.shape[1] ** -0.5))
        return self.add(ops.Add(), self.weights(size, scale=0.3))

    def relu(self) -> int:
        return self.add(ops.Relu())

    def finish(self) -> Graph:
        return self.builder.finish([self.value])


def dilated_grouped_convolutions(seed: int) -> Graph:
    net = Net(seed, 1, 2, 6, 5)
    net.conv(2, (2, 3), dilations=(2, 2), before=(1, 0), after=(0, 2))
    net.relu()
    net.conv(4, (3, 2), strides=(2, 1), dilations=(1, 2), groups=2, before=(2, 1), after=(1, 1))
    net.relu()
    net.conv(4, (2, 2), strides=(3, 2), dilations=(1, 1), groups=4, before=(0, 1), after=(1, 0))
    net.relu()
    net.dense(3)
    return net.finish()


def convolutions_without_activation(seed: int) -> Graph:
    """x -> reshape -> three convolutions -> ReLU -> MatMul; and x once more, added to the output."""
    net = Net(seed, 1, 12)
    net.add(ops.Reshape((1, 1, 3, 4)))
    for filters, kernel, pad in ((2, (2, 2), (1, 1)), (3, (3, 1), (1, 0)), (2, (1, 3), (0, 1))):
        net.conv(filters, kernel, before=pad, after=pad)
    net.relu()
    net.dense(2)
    side = net.builder.add(ops.MatMul(), net.input, net.weights(12, 2, scale=0.3))
    net.add(ops.Add(), side)
    return net.finish()


def stacked_max_pools(seed: int) -> Graph:
    net = Net(seed, 1, 1, 4, 4)
    net.conv(2, (2, 2))
    net.add(ops.MaxPool((2, 2), (1, 1), (1, 1), (0, 0), (0, 0)))
    net.conv(1, (2, 2), before=(1, 0), after=(0, 1))
    net.add(ops.MaxPool((2, 2), (1, 1), (1, 1), (1, 0), (0, 1)))
    net.dense(2)
    return net.finish()


def average_pools(seed: int) -> Graph:
    net = Net(seed, 1, 1, 5, 4)
    net.conv(2, (2, 2), before=(1, 1), after=(0, 1))
    net.relu()
    net.add(ops.AveragePool((2, 3), (2, 1), (1, 1), (1, 1), (0, 1), count_padding=bool(seed % 2)))
    net.relu()
    net.add(ops.AveragePool((2, 2), (2, 2), (1, 1), (0, 0), (0, 0), ceil=True))
    net.dense(2)
    return net.finish()


def linear_branches(seed: int) -> Graph:
    """Residual sums of branches with and without activations; values read three times; a branch that cancels."""
    net = Net(seed, 1, 4)
    first = net.dense(4)
    one = net.relu()
    net.dense(4)
    two = net.add(ops.Add(), first)
    net.relu()
    net.add(ops.Add(), one)
    net.add(ops.Sub(), net.builder.add(ops.MatMul(), two, net.weights(4, 4, scale=0.5)))
    net.relu()
    net.add(ops.Add(), net.builder.add(ops.MatMul(), net.input, net.weights(4, 4, scale=0.5)))
    net.add(ops.Add(), net.builder.add(ops.Sub(), two, two))
    net.dense(2)
    return net.finish()


def joined_branches(seed: int) -> Graph:
    """Concat and Add of branches over one input: what they share has to cancel, and only that."""
    net = Net(seed, 1, 3)
    left = net.dense(3)
    net.value = net.input
    net.dense(3)
    right = net.relu()
    net.value = left
    net.add(ops.Concat(1), right, left)
    net.add(ops.Slice(1, 1, 9, 2))
    joined = net.value
    net.relu()
    net.add(ops.Add(), joined)
    net.add(ops.Concat(1), net.builder.add(ops.Neg(), joined))
    net.dense(2)
    return net.finish()


GRAPHS = (
    dilated_grouped_convolutions, convolutions_without_activation, stacked_max_pools, average_pools, linear_branches,
    joined_branches,
)  # fmt: skip


# ONNX


def _arrays(seed: int, **shapes) -> dict:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(s) * max(prod(s[1:]), 1) ** -0.5 for name, s in shapes.items()}


def onnx_dilated_grouped(seed: int) -> bytes:
    constants = _arrays(seed, w1=(4, 2, 2, 3), b1=(4,), w2=(4, 2, 3, 2), w3=(4, 1, 2, 2), v=(16, 3)) | {
        "shape": [1, -1]
    }
    nodes = [
        node("Conv", "x w1 b1", "a", dilations=[2, 2], pads=[1, 0, 0, 2]),
        node("Relu", "a", "b"),
        node("Conv", "b w2", "c", dilations=[1, 2], group=2, pads=[2, 1, 1, 1], strides=[2, 1]),
        node("Relu", "c", "d"),
        node("Conv", "d w3", "e", group=4, pads=[0, 1, 1, 0], strides=[2, 2]),
        node("Relu", "e", "f"),
        node("Reshape", "f shape", "g"),
        node("MatMul", "g v", "y"),
    ]
    return model(nodes, {"x": [1, 2, 7, 6]}, "y", constants)


def onnx_convolutions_without_activation(seed: int) -> bytes:
    constants = _arrays(seed, w1=(2, 1, 2, 2), w2=(3, 2, 3, 1), w3=(2, 3, 1, 3), v=(40, 2), u=(12, 2), bias=(2,))
    constants |= {"image": [1, 1, 3, 4], "flat": [1, 40]}
    nodes = [
        node("Reshape", "x image", "a"),
        node("Conv", "a w1", "b", pads=[1, 1, 1, 1]),
        node("Conv", "b w2", "c", pads=[1, 0, 1, 0]),
        node("Conv", "c w3", "d", pads=[0, 1, 0, 1]),
        node("Relu", "d", "e"),
        node("Reshape", "e flat", "f"),
        node("MatMul", "f v", "g"),
        node("Add", "bias g", "h"),
        node("MatMul", "x u", "i"),
        node("Add", "i h", "y"),
    ]
    return model(nodes, {"x": [1, 12]}, "y", constants)


def onnx_stacked_max_pools(seed: int) -> bytes:
    constants = _arrays(seed, w=(2, 1, 2, 2), u=(2, 2, 2, 2), bias=(2,), v=(8, 2), last=(2,))
    nodes = [
        node("Conv", "x w", "a"),
        node("MaxPool", "a", "b", kernel_shape=[2, 2], strides=[1, 1]),
        node("Conv", "b u bias", "c", pads=[1, 0, 0, 1]),
        node("MaxPool", "c", "d", kernel_shape=[3, 2], strides=[1, 1], pads=[1, 0, 0, 0]),
        node("Flatten", "d", "e"),
        node("Gemm", "e v last", "y"),
    ]
    return model(nodes, {"x": [1, 1, 5, 5]}, "y", constants)


def onnx_residual(seed: int) -> bytes:
    constants = _arrays(seed, w1=(4, 4), b1=(4,), w2=(4, 4), w3=(4, 4), v=(4, 2))
    nodes = [
        node("Gemm", "x w1 b1", "a", transB=1),
        node("Relu", "a", "b"),
        node("MatMul", "b w2", "c"),
        node("Add", "c a", "d"),
        node("Relu", "d", "e"),
        node("MatMul", "d w3", "f"),
        node("Sub", "e f", "g"),
        node("Add", "g b", "h"),
        node("Relu", "h", "i"),
        node("Add", "x i", "j"),
        node("MatMul", "j v", "y"),
    ]
    return model(nodes, {"x": [1, 4]}, "y", constants)


def onnx_normalised(seed: int) -> bytes:
    """(x - mean) / deviation in front of everything, and an average pool behind a batch norm."""
    random = np.random.default_rng(seed)
    constants = _arrays(seed, w=(2, 1, 2, 2), v=(8, 2), gamma=(2,), beta=(2,), mean=(2,))
    constants |= {"shift": np.full((1, 1, 1, 1), 1.7), "deviation": np.full((1, 1, 1, 1), 0.23)}
    constants["variance"] = random.uniform(0.1, 2, 2)
    nodes = [
        node("Sub", "x shift", "a"),
        node("Div", "a deviation", "b"),
        node("Conv", "b w", "c", pads=[0, 1, 0, 0]),
        node("BatchNormalization", "c gamma beta mean variance", "d"),
        node("Relu", "d", "e"),
        node("AveragePool", "e", "f", kernel_shape=[2, 3], strides=[1, 1], pads=[0, 1, 0, 0]),
        node("Flatten", "f", "g"),
        node("MatMul", "g v", "y"),
    ]
    return model(nodes, {"x": [1, 1, 4, 3]}, "y", constants)


MODELS = (
    onnx_dilated_grouped, onnx_convolutions_without_activation, onnx_stacked_max_pools, onnx_residual, onnx_normalised,
)  # fmt: skip
