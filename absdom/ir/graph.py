"""The graph: SSA nodes in topological order, one output per node, weights as live Param leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import networkx as nx

from absdom.errors import GraphError
from absdom.ir.op import Input, Op, Param
from absdom.types import Source, TensorType


@dataclass(frozen=True)
class Node:
    op: Op
    inputs: tuple[int, ...]
    type: TensorType
    source: Source = Source()


@dataclass(frozen=True, eq=False)
class Graph:
    """nodes[i] reads only nodes before it. `params` maps a Param's label to its tensor "*n" (live, may need grad)."""

    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    params: Mapping[str, object] = field(default_factory=dict, repr=False)
    names: Mapping[str, int] = field(default_factory=dict, repr=False)  # value names of the file -> node

    @cached_property
    def varying(self) -> tuple[bool, ...]:
        """Per node: does it depend on a network input? The others are the prologue."""
        found: list[bool] = []
        for node in self.nodes:
            found.append(isinstance(node.op, Input) or any(found[i] for i in node.inputs))
        return tuple(found)

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """Per node: the nodes that read it, one entry per use."""
        users: list[list[int]] = [[] for _ in self.nodes]
        for i, node in enumerate(self.nodes):
            for j in node.inputs:
                users[j].append(i)
        return tuple(tuple(u) for u in users)

    def digraph(self) -> nx.DiGraph:
        graph = nx.DiGraph()
        graph.add_nodes_from(range(len(self.nodes)))
        graph.add_edges_from((j, i) for i, node in enumerate(self.nodes) for j in node.inputs)
        return graph

    def ancestors(self, targets) -> set[int]:
        """The nodes that `targets` depend on, themselves included."""
        graph = self.digraph()
        return set(targets).union(*(nx.ancestors(graph, t) for t in targets))

    def varying_inputs(self, i: int) -> tuple[int, ...]:
        """Positions of node i's inputs that vary."""
        return tuple(k for k, j in enumerate(self.nodes[i].inputs) if self.varying[j])

    def with_params(self, params: Mapping[str, object]) -> Graph:
        """The same graph over other weights (training replaces them every step)."""
        missing = set(self.params) - set(params)
        if missing:
            raise GraphError(f"no tensor was given for the parameters {sorted(missing)}")
        return replace(self, params=dict(params))

    def find(self, name: str) -> int:
        """The node that holds the value called `name` in the source file."""
        if name not in self.names:
            raise GraphError(f"no value is called {name!r}; there are: {', '.join(sorted(self.names))}")
        return self.names[name]


class Builder:
    """Adds nodes one by one, infers their types, and finishes as a Graph."""

    def __init__(self):
        self._nodes: list[Node] = []
        self._inputs: list[int] = []
        self._params: dict[str, object] = {}
        self._names: dict[str, int] = {}

    def type(self, i: int) -> TensorType:
        return self._nodes[i].type

    def node(self, i: int) -> Node:
        return self._nodes[i]

    def tensor(self, i: int):
        """The tensor of a Param leaf; None for other nodes."""
        op = self._nodes[i].op
        return self._params[op.label] if isinstance(op, Param) else None

    def input(self, label: str, type: TensorType, source: Source = Source()) -> int:
        self._inputs.append(self._append(Node(Input(label), (), type, source)))
        return self._inputs[-1]

    def param(self, tensor, label: str, source: Source = Source()) -> int:
        """Add a weight; a label that is taken by another tensor gets a number behind it."""
        base, number = label or "constant", 0
        label = base
        while label in self._params and self._params[label] is not tensor:
            number += 1
            label = f"{base}.{number}"
        self._params[label] = tensor
        type = TensorType(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        return self._append(Node(Param(label), (), type, source))

    def add(self, op: Op, *inputs: int, source: Source = Source()) -> int:
        try:
            type = op.infer(*(self.type(i) for i in inputs))
        except ValueError as error:
            raise GraphError(f"{source if source.name or source.op else op.name}: {error}") from None
        return self._append(Node(op, inputs, type, source))

    def copy(self, node: Node, inputs: tuple[int, ...], params: Mapping[str, object]) -> int:
        """Add a node of another graph as it is."""
        match node.op:
            case Input(label):
                return self.input(label, node.type, node.source)
            case Param(label):
                return self.param(params[label], label, node.source)
        return self._append(replace(node, inputs=inputs))

    def name(self, name: str, i: int) -> None:
        self._names[name] = i

    def _append(self, node: Node) -> int:
        self._nodes.append(node)
        return len(self._nodes) - 1

    def finish(self, outputs) -> Graph:
        return Graph(tuple(self._nodes), tuple(self._inputs), tuple(outputs), self._params, self._names)


def rebuild(graph: Graph, change) -> Graph:
    """A new graph by `change(builder, node, inputs) -> index` on every live node, in order; dead nodes are dropped.

    `change` gives None to keep a node as it is. All inputs of the network are kept, read or not.
    """
    live = graph.ancestors([*graph.outputs, *graph.inputs])
    builder, new = Builder(), {}
    for i, node in enumerate(graph.nodes):
        if i in live:
            inputs = tuple(new[j] for j in node.inputs)
            made = change(builder, node, inputs)
            new[i] = builder.copy(node, inputs, graph.params) if made is None else made
    for name, i in graph.names.items():
        if i in new:
            builder.name(name, new[i])
    return _without_dead(builder.finish(new[i] for i in graph.outputs))


def _without_dead(graph: Graph) -> Graph:
    live = sorted(graph.ancestors([*graph.outputs, *graph.inputs]))
    if len(live) == len(graph.nodes):
        return graph
    new = {old: i for i, old in enumerate(live)}
    nodes = tuple(replace(graph.nodes[i], inputs=tuple(new[j] for j in graph.nodes[i].inputs)) for i in live)
    labels = {n.op.label for n in nodes if isinstance(n.op, Param)}
    return Graph(
        nodes,
        tuple(new[i] for i in graph.inputs),
        tuple(new[i] for i in graph.outputs),
        {k: v for k, v in graph.params.items() if k in labels},
        {k: new[i] for k, i in graph.names.items() if i in new},
    )
