"""The layers of a captured network that have weights: what initialisations and penalties of weights are about."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch

from absdom.ir.graph import Graph
from absdom.ir.op import Input, Op, Param
from absdom.ops.affine import Conv, Divide, Linear, LinearLeft, Neg, Scale, Sum
from absdom.ops.shape import Move
from absdom.ops.transposed import ConvTranspose

# Per op the position of its weights, and the inputs of one output by their shape. (For a transposed convolution that
# depends on its strides; torch's initialisations count the second axis, and so does this.)
WEIGHTS: dict[type[Op], tuple[int, Callable[[tuple[int, ...]], int]]] = {
    Linear: (1, lambda shape: shape[-2]),
    LinearLeft: (0, lambda shape: shape[-1]),
    Conv: (1, lambda shape: prod(shape[1:])),
    ConvTranspose: (1, lambda shape: prod(shape[1:])),
}


class Weighted(NamedTuple):
    """A fully connected or convolutional layer: its node, its (live) weight, and how many inputs one output sums."""

    node: int
    weight: torch.Tensor
    inputs: int


def weighted_layers(graph: Graph) -> tuple[Weighted, ...]:
    """The layers with weights, in the order of the graph; a weight that layers share comes once."""
    found: dict[int, Weighted] = {}
    for i, node in enumerate(graph.nodes):
        if graph.varying[i] and type(node.op) in WEIGHTS:
            position, count = WEIGHTS[type(node.op)]
            operand = j = node.inputs[position]
            while isinstance(graph.nodes[j].op, Move) and len(graph.nodes[j].inputs) == 1:
                j = graph.nodes[j].inputs[0]
            if isinstance(graph.nodes[j].op, Param):
                weight = graph.params[graph.nodes[j].op.label]
                found.setdefault(id(weight), Weighted(i, weight, count(graph.nodes[operand].type.shape)))
    return tuple(found.values())


def reads_sum(graph: Graph, layer: int) -> bool:
    """Does the layer read f(a + b), f one function, a and b two branches? What only moves elements does not count."""
    i, functions = _source(graph, layer), 0
    while not isinstance(graph.nodes[i].op, (Input, Sum)):
        if len(graph.varying_inputs(i)) != 1:
            return False
        functions += not isinstance(graph.nodes[i].op, Move)
        i = _source(graph, i)
    return functions == 1 and len(graph.varying_inputs(i)) == 2


def _source(graph: Graph, i: int) -> int:
    return graph.nodes[i].inputs[graph.varying_inputs(i)[0]]


def normalised_input(graph: Graph) -> int:
    """The input behind all that treats its elements one by one: a normalisation, a change of shape."""
    (i,) = graph.inputs
    while len(graph.consumers[i]) == 1:
        (j,) = graph.consumers[i]
        node = graph.nodes[j]
        alone = isinstance(node.op, (Sum, Scale, Divide, Neg, Move)) and len(graph.varying_inputs(j)) == 1
        if not alone or node.type.numel != graph.nodes[i].type.numel:
            break
        i = j
    return i
