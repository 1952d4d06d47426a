"""A network cut at a layer: what lies behind it, as a function of the layer's values."""

from __future__ import annotations

import torch

from absdom.errors import UsageError
from absdom.ir.graph import Graph
from absdom.ir.op import Input
from absdom.plan.context import Context


def behind(graph: Graph, node: int) -> tuple[int, ...]:
    """The nodes from `node` (excluded) to the output that its values decide, in order.

    Raises UsageError where the output also reads what does not go through `node`.
    """
    reached, needed = set(), [graph.outputs[0]]
    while needed:
        i = needed.pop()
        if i == node or i in reached or not graph.varying[i]:
            continue
        if isinstance(graph.nodes[i].op, Input):
            name = graph.nodes[node].source.name
            raise UsageError(f"the network cannot be cut at {name!r}: a path to its output goes around that layer")
        reached.add(i)
        needed.extend(graph.nodes[i].inputs)
    return tuple(sorted(reached))


def evaluate_behind(context: Context, node: int, z: torch.Tensor) -> torch.Tensor:
    """The outputs "B K" where the layer `node` has the values z "B *n"."""
    values = {**context.values, node: z}
    for i in behind(context.graph, node):
        values[i] = context.graph.nodes[i].op.eval(*(values[j] for j in context.graph.nodes[i].inputs))
    return values[context.graph.outputs[0]].reshape(len(z), -1)
