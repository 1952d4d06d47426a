"""Illegal graphs are refused, each with its reason; the builder refuses misfits when they are added."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from random_graphs import random_graph

from absdom import ops
from absdom.errors import GraphError
from absdom.ir.check import check
from absdom.ir.graph import Builder, Graph
from absdom.passes import lower
from absdom.types import TensorType


def small() -> Graph:
    builder = Builder()
    x = builder.input("x", TensorType((1, 2)))
    hidden = builder.add(ops.MatMul(), x, builder.param(torch.randn(2, 3), "w"))
    return builder.finish([builder.add(ops.Relu(), hidden)])


def changed(graph: Graph, i: int, **what) -> Graph:
    nodes = list(graph.nodes)
    nodes[i] = replace(nodes[i], **what)
    return replace(graph, nodes=tuple(nodes))


@pytest.mark.parametrize("seed", range(40))
def test_random_networks_are_legal(seed):
    graph = check(random_graph(seed))
    check(lower(graph), specialised=True)


@pytest.mark.parametrize(
    "break_it, reason",
    [
        (lambda g: changed(g, 2, inputs=(0, 3)), "come before"),
        (lambda g: changed(g, 2, inputs=(0, 2)), "come before"),
        (lambda g: changed(g, 2, inputs=(-1, 1)), "come before"),
        (lambda g: changed(g, 3, type=TensorType((1, 4))), "its inputs give"),
        (lambda g: changed(g, 1, type=TensorType((3, 2))), "its tensor has shape"),
        (lambda g: replace(g, params={}), "no tensor is stored"),
        (lambda g: replace(g, inputs=()), "no input of the graph"),
        (lambda g: replace(g, outputs=()), "no legal outputs"),
        (lambda g: replace(g, outputs=(9,)), "no legal outputs"),
        (lambda g: changed(g, 2, inputs=(1, 0)), "cannot multiply"),
    ],
)
def test_illegal_graphs_are_refused(break_it, reason):
    check(small())
    with pytest.raises(GraphError, match=reason):
        check(break_it(small()))


def test_unspecialised_ops_are_refused_after_lowering():
    with pytest.raises(GraphError, match="has no fixed kind"):
        check(small(), specialised=True)
    builder = Builder()
    x = builder.input("x", TensorType((1, 2)))
    with pytest.raises(GraphError, match="is a composition"):
        check(builder.finish([builder.add(ops.ReduceMean((1,)), x)]), specialised=True)


@pytest.mark.parametrize(
    "op, shapes",
    [
        (ops.Add(), [(2, 3), (2, 4)]), (ops.MatMul(), [(2, 3), (2, 3)]), (ops.MatMul(), [(3,), (3, 2)]), (ops.Reshape((5,)), [(2, 3)]),
        (ops.Permute((0, 0)), [(2, 3)]), (ops.Slice(0, 1, 5), [(2, 3)]), (ops.Take(1, (3,)), [(2, 3)]), (ops.Pad((0, -1), (0, 0)), [(2, 3)]),
        (ops.Expand((2, 4)), [(2, 3)]), (ops.Concat(0), [(2, 3), (2, 4)]), (ops.Conv((1,), (1,), 1, (0,), (0,)), [(1, 2, 3), (1, 2, 4)]),
        (ops.Conv((1,), (1,), 2, (0,), (0,)), [(1, 4, 3), (3, 2, 1)]), (ops.MaxPool((4,), (1,), (1,), (0,), (0,)), [(1, 1, 3)]),
    ],
)  # fmt: skip
def test_the_builder_refuses_what_does_not_fit(op, shapes):
    builder = Builder()
    with pytest.raises(GraphError):
        builder.add(op, *(builder.input(f"x{k}", TensorType(s)) for k, s in enumerate(shapes)))


def test_every_input_is_kept_and_what_is_not_read_is_dropped():
    builder = Builder()
    x, y = (builder.input(n, TensorType((1, 2))) for n in "xy")
    builder.add(ops.Relu(), y)
    graph = lower(builder.finish([builder.add(ops.Relu(), x)]))
    assert len(graph.inputs) == 2 and len(graph.nodes) == 3
