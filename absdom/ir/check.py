"""Legality of a graph, checked after every pass."""

from __future__ import annotations

from absdom.errors import GraphError
from absdom.ir.graph import Graph
from absdom.ir.op import Affine, Composite, Elementwise, Input, Multivariate, Param

KINDS = (Affine, Elementwise, Multivariate)


def check(graph: Graph, specialised: bool = False) -> Graph:
    """Raise GraphError unless the graph is legal; give it back. `specialised`: every op must be of a fixed kind."""
    for i, node in enumerate(graph.nodes):
        where = f"node {i} ({node.op.name}, from {node.source})"
        if any(not 0 <= j < i for j in node.inputs):
            raise GraphError(f"{where} reads nodes {node.inputs}: not all of them come before it")
        if isinstance(node.op, (Input, Param)):
            _check_leaf(graph, i, where)
            continue
        try:
            inferred = node.op.infer(*(graph.nodes[j].type for j in node.inputs))
        except ValueError as error:
            raise GraphError(f"{where}: {error}") from None
        if inferred.shape != node.type.shape:
            raise GraphError(f"{where} has type {node.type}, but its inputs give {inferred}")
        if specialised and not isinstance(node.op, KINDS):
            what = "is a composition" if isinstance(node.op, Composite) else "has no fixed kind"
            raise GraphError(f"{where} {what} after the passes that should have replaced it")
    for name, group in (("input", graph.inputs), ("output", graph.outputs)):
        if not group or any(not 0 <= i < len(graph.nodes) for i in group):
            raise GraphError(f"the graph has no legal {name}s: {group}")
    return graph


def _check_leaf(graph: Graph, i: int, where: str) -> None:
    node = graph.nodes[i]
    if isinstance(node.op, Input):
        if i not in graph.inputs:
            raise GraphError(f"{where} is no input of the graph")
        return
    tensor = graph.params.get(node.op.label)
    if tensor is None:
        raise GraphError(f"{where}: no tensor is stored under {node.op.label!r}")
    if tuple(tensor.shape) != node.type.shape:
        raise GraphError(f"{where} has type {node.type}, its tensor has shape {tuple(tensor.shape)}")
