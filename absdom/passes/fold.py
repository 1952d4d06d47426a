"""Drop ops that change nothing and compute equal things once. Nothing here rounds: weights stay as they are.

What depends only on parameters is not computed here: it is the prologue, evaluated by each run (live weights) or
once (frozen ones), with its rounding tracked.
"""

from __future__ import annotations

from absdom.ir.graph import Builder, Graph, rebuild
from absdom.ir.op import Input, Param
from absdom.ops import shape


def fold(graph: Graph) -> Graph:
    known: dict[tuple, int] = {}

    def change(builder: Builder, node, inputs):
        if isinstance(node.op, (Input, Param)):
            return None
        if is_identity(node.op, [builder.type(i) for i in inputs], node.type):
            return inputs[0]
        if isinstance(node.op, shape.Reshape) and isinstance(builder.node(inputs[0]).op, shape.Reshape):
            first = builder.node(inputs[0]).inputs  # a reshape of a reshape
            if builder.type(first[0]).shape == node.type.shape:
                return first[0]
            inputs = first
        key = (node.op, inputs)
        if key not in known:
            known[key] = builder.add(node.op, *inputs, source=node.source)
        return known[key]

    return rebuild(graph, change)


def is_identity(op, inputs, output) -> bool:
    if not isinstance(op, shape.Move) or len(inputs) != 1 or inputs[0].shape != output.shape:
        return False
    match op:
        case shape.Permute(axes):
            return all(a == i for i, a in enumerate(axes))
        case shape.Take(_, indices):
            return all(a == i for i, a in enumerate(indices))
    return True
