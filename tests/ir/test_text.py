"""The text form prints and parses back: random networks, infinite attributes, odd names."""

from __future__ import annotations

import pytest
import torch
from random_graphs import random_graph

from absdom import ops
from absdom.errors import GraphError
from absdom.ir.check import check
from absdom.ir.graph import Builder
from absdom.ir.text import parse_graph, print_graph
from absdom.passes import lower
from absdom.types import Source, TensorType


@pytest.mark.parametrize("seed", range(60))
def test_random_networks_survive_the_round_trip(seed):
    for graph in (random_graph(seed), lower(random_graph(seed))):
        text = print_graph(graph)
        back = check(parse_graph(text, graph.params))
        assert (back.nodes, back.inputs, back.outputs) == (graph.nodes, graph.inputs, graph.outputs)
        assert print_graph(back) == text


@pytest.mark.parametrize("name", ["fc1", "a b", "it's", "layer/1:0", 'quo"te', "back\\slash", "# hash", ""])
@pytest.mark.parametrize("kind", ["Gemm", "", "aten.conv2d"])
def test_sources_survive(name, kind):
    builder = Builder()
    x = builder.input("x", TensorType((1, 2)), Source(name, kind))
    graph = builder.finish([builder.add(ops.Clip(low=-1.0), x, source=Source(name, kind))])
    assert parse_graph(print_graph(graph)).nodes == graph.nodes


def test_infinite_attributes_survive():
    builder = Builder()
    x = builder.input("x", TensorType(()))
    graph = builder.finish([builder.add(ops.Clip(), builder.add(ops.Clip(high=2.5e-7), x))])
    assert parse_graph(print_graph(graph)).nodes == graph.nodes


@pytest.mark.parametrize(
    "text, reason",
    [
        ("%0 = Nothing() : float32[1]\nreturn %0", "no op 'Nothing'"),
        ("%1 = Input(label='x') : float32[1]\nreturn %1", "cannot be read"),
        ("rubbish", "cannot be read"),
        ("%0 = Input(label=__import__('os')) : float32[1]\nreturn %0", "attributes"),
        ("%0 = Input(label='x') : float32[1]\n%1 = Clip(low=1+) %0 : float32[1]\nreturn %1", "attributes"),
        ("%0 = Input(label='x') : float32[1]\n%1 = Clip(wrong=1.0) %0 : float32[1]\nreturn %1", "Clip"),
    ],
)
def test_bad_text_is_an_error_with_its_line(text, reason):
    with pytest.raises(GraphError, match=reason):
        parse_graph(text)


def test_names_and_live_weights():
    builder = Builder()
    x = builder.input("x", TensorType((1, 2)))
    weight = torch.randn(2, 3)
    out = builder.add(ops.MatMul(), x, builder.param(weight, "w"))
    builder.name("logits", out)
    graph = builder.finish([out])
    assert graph.find("logits") == out
    with pytest.raises(GraphError, match="logits"):
        graph.find("loggits")
    other = graph.with_params({"w": weight * 2})
    assert torch.equal(other.params["w"], weight * 2) and torch.equal(graph.params["w"], weight)
    with pytest.raises(GraphError, match="w"):
        graph.with_params({})
