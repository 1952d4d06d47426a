"""Tiny piecewise linear networks over boxes with two or three inputs that move, by seed: small enough to enumerate."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from small_networks import Net

from absdom import ops
from absdom.ir.graph import Builder, Graph


class Tiny(NamedTuple):
    """A network with two outputs, a box "n", and a row c.y over it."""

    name: str
    graph: Graph
    lower: np.ndarray
    upper: np.ndarray
    c: np.ndarray


class Short(Net):
    """A Net whose weights have few digits: rational arithmetic over it stays fast, and ties happen."""

    def weights(self, *shape: int, scale: float | None = None) -> int:
        scale = float(np.prod(shape[1:])) ** -0.5 if scale is None else scale
        return self.builder.param(torch.from_numpy(np.round(self.random.standard_normal(shape) * scale * 16) / 16), "w")


def relu(net: Net) -> None:
    net.dense(4)
    net.relu()
    net.dense(4)
    net.relu()


def one_layer(net: Net) -> None:
    net.dense(8)
    net.relu()


def leaky(net: Net) -> None:
    net.dense(4)
    net.add(ops.LeakyRelu((0.125, 0.01, -0.5, 1.5)[int(net.random.integers(4))]))
    net.dense(3)
    net.add(ops.LeakyRelu(0.1))


def absolute(net: Net) -> None:
    net.dense(3)
    net.add(ops.Abs())
    net.dense(3)
    net.add(ops.Abs())


def clip(net: Net) -> None:
    net.dense(3)
    net.add(ops.Clip(*((-0.25, 0.5), (0.0, 1.0), (0.0, np.inf), (-np.inf, 0.25))[int(net.random.integers(4))]))
    net.dense(2)
    net.add(ops.Clip(-0.5, 0.5))


def residual(net: Net) -> None:
    first = net.dense(3)
    net.relu()
    net.dense(3)
    net.add(ops.Add(), first)
    net.relu()
    net.add(ops.Sub(), first)


def convolution(net: Net) -> None:
    net.dense(6)
    net.add(ops.Reshape((1, 1, 2, 3)))
    net.conv(2, (2, 2), before=(0, 0), after=(0, 0))
    net.relu()
    net.conv(2, (1, 2), before=(0, 0), after=(0, 1))
    net.relu()


def max_pool(net: Net) -> None:
    net.dense(6)
    net.add(ops.Reshape((1, 1, 2, 3)))
    net.add(ops.MaxPool((2, 2), (1, 1), (1, 1), (0, 0), (0, 0)))
    net.dense(3)
    net.relu()


def padded_pool(net: Net) -> None:
    net.dense(4)
    net.relu()
    net.add(ops.Reshape((1, 1, 2, 2)))
    net.add(ops.MaxPool((2, 2), (2, 1), (1, 1), (0, 1), (0, 0)))


def maxima(net: Net) -> None:
    first = net.dense(3)
    net.value = net.input
    net.dense(3)
    net.add(ops.Maximum(), first)
    net.dense(4)
    net.add(ops.Reshape((2, 2)))
    net.add(ops.ReduceMax(1))


KINDS = (relu, one_layer, leaky, absolute, clip, residual, convolution, max_pool, padded_pool, maxima)


def tiny(seed: int, kinds=KINDS, full: bool = False) -> Tiny:
    """Network `seed`, of each kind in turn; `full`: weights with all their 53 bits."""
    random = np.random.default_rng(seed)
    kind = kinds[seed % len(kinds)]
    n = int(random.integers(2, 4))
    net = (Net if full else Short)(seed, 1, n)
    kind(net)
    net.dense(2)
    centre, radius = np.round(random.standard_normal(n) * 4) / 8, random.choice([0.25, 0.5, 1.0], n)
    if n == 3 and random.random() < 0.3:
        radius[int(random.integers(n))] = 0.0
    c = np.round(random.standard_normal(2) * 8) / 8
    return Tiny(f"{kind.__name__}-{seed}", net.finish(), centre - radius, centre + radius, c)


def largest(graph: Graph, C: np.ndarray, d: np.ndarray) -> Graph:
    """The graph of max_k (C_k.y + d_k): C "K m", d "K"."""
    builder = Builder()
    new = {i: builder.copy(node, node.inputs, graph.params) for i, node in enumerate(graph.nodes)}
    y = builder.add(ops.MatMul(), new[graph.outputs[0]], builder.param(torch.from_numpy(C.T.copy()), "C"))
    rows = builder.add(ops.Add(), y, builder.param(torch.from_numpy(d), "d"))
    return builder.finish([builder.add(ops.ReduceMax(1), rows)])
