"""Replace compositions (pooling, batch norm, means) by the ops that they are made of."""

from __future__ import annotations

from absdom.ir.graph import Builder, Graph, rebuild
from absdom.ir.op import Composite


def decompose(graph: Graph) -> Graph:
    def change(builder: Builder, node, inputs):
        if not isinstance(node.op, Composite):
            return None
        return node.op.decompose(SourcedBuilder(builder, node.source), *inputs)

    out = rebuild(graph, change)
    return decompose(out) if any(isinstance(n.op, Composite) for n in out.nodes) else out


class SourcedBuilder:
    """A builder that gives every node the source of the op it is made for."""

    def __init__(self, builder: Builder, source):
        self._builder, self._source = builder, source
        self.type = builder.type

    def add(self, op, *inputs):
        return self._builder.add(op, *inputs, source=self._source)

    def param(self, tensor, label):
        return self._builder.param(tensor, f"{self._source.name}.{label}" if self._source.name else label, self._source)
