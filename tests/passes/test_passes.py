"""Each pass keeps what the network computes, and does what its name says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_graphs import random_boxes, random_graph

from absdom import ops
from absdom.ir.check import check
from absdom.ir.graph import Builder, Graph
from absdom.ir.op import Affine, Composite, Elementwise, Input, Multivariate, Param
from absdom.passes import lower
from absdom.passes.decompose import decompose
from absdom.passes.fold import fold
from absdom.passes.fuse import fuse
from absdom.passes.liveness import sweep_peak
from absdom.passes.specialise import specialise
from absdom.plan.planner import sweep_from
from absdom.types import TensorType

PASSES = {"fold": fold, "fuse": fuse, "specialise": specialise, "decompose": decompose, "lower": lower}
EXACT = ("fold",)  # the same operations, to the bit


def evaluate(graph: Graph, x: torch.Tensor) -> torch.Tensor:
    """The outputs at flat points "B n", node by node."""
    values, start = {}, 0
    for i, node in enumerate(graph.nodes):
        if isinstance(node.op, Input):
            values[i] = x[:, start : start + node.type.numel].reshape(-1, *node.type.shape)
            start += node.type.numel
        elif isinstance(node.op, Param):
            values[i] = graph.params[node.op.label].double()[None]
        else:
            values[i] = node.op.eval(*(values[j] for j in node.inputs))
    return torch.cat([values[i].expand(len(x), *graph.nodes[i].type.shape).flatten(1) for i in graph.outputs], 1)


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("seed", range(40))
def test_passes_keep_values_and_legality(seed, name):
    graph = decompose(random_graph(seed))
    after = check(PASSES[name](graph))
    x = random_boxes(seed, sum(graph.nodes[i].type.numel for i in graph.inputs), "normal", 6)[0]
    before, now = evaluate(graph, x), evaluate(after, x)
    if name in EXACT:
        assert torch.equal(before, now)
    else:
        torch.testing.assert_close(now, before, rtol=1e-12, atol=1e-12 * float(1 + before.abs().max()))


@pytest.mark.parametrize("seed", range(40))
def test_lowered_graphs_have_ops_of_fixed_kinds_and_lowering_again_changes_nothing(seed):
    graph = lower(random_graph(seed))
    assert all(isinstance(n.op, (Input, Param, Affine, Elementwise, Multivariate)) for n in graph.nodes)
    assert lower(graph).nodes == graph.nodes


def ops_of(graph) -> list[str]:
    return [n.op.name for n in graph.nodes if not isinstance(n.op, (Input, Param))]


def test_fold_drops_identities_and_joins_duplicates():
    builder = Builder()
    x = builder.input("x", TensorType((1, 2, 3)))
    y = x
    for op in (
        ops.Reshape((1, 2, 3)), ops.Permute((0, 1, 2)), ops.Slice(2, 0, 3), ops.Take(1, (0, 1)), ops.Pad((0, 0, 0), (0, 0, 0)),
        ops.Expand((2, 1)), ops.Concat(1), ops.Reshape((6,)), ops.Reshape((3, 2)), ops.Reshape((1, 2, 3)),
    ):  # fmt: skip
        y = builder.add(op, y)
    twice = builder.add(ops.Add(), builder.add(ops.Relu(), y), builder.add(ops.Relu(), x))
    graph = fold(builder.finish([twice]))
    assert ops_of(graph) == ["Relu", "Add"]
    assert graph.nodes[-1].inputs == (1, 1)


@pytest.mark.parametrize(
    "op", [ops.Permute((0, 2, 1)), ops.Take(1, (1, 0)), ops.Slice(1, 0, 1), ops.Pad((0, 0, 1), (0, 0, 0))], ids=str
)
def test_fold_keeps_what_moves_elements(op):
    builder = Builder()
    x = builder.input("x", TensorType((1, 2, 2)))
    assert ops_of(fold(builder.finish([builder.add(op, x)]))) == [op.name]


def test_fold_keeps_ops_that_differ_in_an_attribute():
    builder = Builder()
    x = builder.input("x", TensorType((1, 2)))
    both = builder.add(ops.Add(), builder.add(ops.LeakyRelu(0.1), x), builder.add(ops.LeakyRelu(0.2), x))
    assert len(ops_of(fold(builder.finish([both])))) == 3


def test_fuse_makes_a_linear_op_only_where_that_is_exact():
    def graph(shape_of_bias, shared=False):
        builder = Builder()
        x = builder.input("x", TensorType((1, 2)))
        product = builder.add(ops.MatMul(), x, builder.param(torch.randn(2, 3), "w"))
        out = builder.add(ops.Add(), builder.param(torch.randn(shape_of_bias), "b"), product)
        return builder.finish([builder.add(ops.Add(), out, builder.add(ops.Neg(), product)) if shared else out])

    assert ops_of(fuse(graph((3,)))) == ["Linear"]
    assert ops_of(fuse(graph((1,)))) == ["Linear"]
    assert ops_of(fuse(graph((2, 3)))) == ["MatMul", "Add"], "the bias enlarges the product"
    assert "Linear" not in ops_of(fuse(graph((3,), shared=True))), "another node reads the product"


@pytest.mark.parametrize(
    "op, varying, expected",
    [
        (ops.Mul(), "xx", ops.Product), (ops.Mul(), "xp", ops.Scale), (ops.Mul(), "px", ops.Scale),
        (ops.Div(), "xx", ops.Quotient), (ops.Div(), "xp", ops.Divide), (ops.Div(), "px", ops.Quotient),
        (ops.MatMul(), "xx", ops.MatrixProduct), (ops.MatMul(), "xp", ops.Linear), (ops.MatMul(), "px", ops.LinearLeft),
        (ops.Add(), "xp", ops.Add), (ops.Sub(), "px", ops.Sub),
    ],
)  # fmt: skip
def test_specialise_fixes_the_kind_from_what_varies(op, varying, expected):
    builder = Builder()
    nodes = [
        builder.input(f"x{k}", TensorType((2, 2), "float64"))
        if v == "x"
        else builder.param(torch.rand(2, 2).double() + 1, "p")
        for k, v in enumerate(varying)
    ]
    graph = builder.finish([builder.add(op, *nodes)])
    after = specialise(graph)
    assert isinstance(after.nodes[-1].op, expected)
    x = torch.rand(3, 4 * varying.count("x"), dtype=torch.float64) + 0.5
    assert torch.equal(evaluate(graph, x), evaluate(after, x))


def test_nothing_that_depends_on_parameters_only_is_computed_by_a_pass():
    builder = Builder()
    x = builder.input("x", TensorType((1, 2)))
    weight = torch.randn(2, 2, requires_grad=True)
    doubled = builder.add(ops.Add(), builder.param(weight, "w"), builder.param(torch.ones(2, 2), "one"))
    graph = lower(builder.finish([builder.add(ops.MatMul(), x, doubled)]))
    assert graph.params["w"] is weight
    assert ops_of(graph) == ["Add", "Linear"]


@pytest.mark.parametrize("ceil", [False, True])
def test_pools_are_what_torch_says(ceil):
    random = np.random.default_rng(1)
    for _ in range(30):
        kernel, strides = (tuple(random.integers(1, 4, 2).tolist()) for _ in range(2))
        pads = tuple(int(random.integers(0, k // 2 + 1)) for k in kernel)
        x = torch.from_numpy(random.standard_normal((1, 2, 6, 5)))
        average = torch.nn.functional.avg_pool2d(x, kernel, strides, pads, ceil, count_include_pad=True)
        outside = torch.nn.functional.avg_pool2d(x, kernel, strides, pads, ceil, count_include_pad=False)
        highest = torch.nn.functional.max_pool2d(x, kernel, strides, pads, 1, ceil)
        one = (1, 1)
        for op, wanted in (
            (ops.AveragePool(kernel, strides, one, pads, pads, ceil, True), average),
            (ops.AveragePool(kernel, strides, one, pads, pads, ceil, False), outside),
            (ops.MaxPool(kernel, strides, one, pads, pads, ceil), highest),
        ):
            builder = Builder()
            graph = decompose(
                builder.finish([builder.add(op, builder.input("x", TensorType((1, 2, 6, 5), "float64")))])
            )
            assert not any(isinstance(n.op, Composite) for n in graph.nodes)
            got = evaluate(graph, x.reshape(1, -1))
            torch.testing.assert_close(got, wanted.reshape(1, -1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_the_peak_of_a_sweep_by_brute_force(seed):
    """Live rows at node i: those that a swept node has reached, and whose own node is not swept yet."""
    graph = lower(random_graph(seed))
    nodes = sweep_from(graph, graph.outputs[0]).nodes
    numel = [n.type.numel for n in graph.nodes]
    peak = 0
    for step, i in enumerate(nodes):
        swept = nodes[: step + 1]
        live = {j for k in swept for j in graph.nodes[k].inputs if j in nodes} - set(swept)
        held = [numel[i], *(numel[j] for j in live)]
        peak = max(peak, sum(held) + 2 * max(held))
    assert sweep_peak(graph, nodes) == peak
