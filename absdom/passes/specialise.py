"""Fix the kind of every op from which of its operands vary: Mul -> scale or product, MatMul -> linear or bilinear.

An op whose operands are one and the same value may be another op: x * x is a square, whose bounds are far tighter.
"""

from __future__ import annotations

from absdom.ir.graph import Builder, Graph, rebuild
from absdom.ir.op import Input, Param


def specialise(graph: Graph) -> Graph:
    """In the prologue, where nothing varies, each op becomes what it is when everything varies."""
    varies: dict[int, bool] = {}
    order = iter(sorted(graph.ancestors([*graph.outputs, *graph.inputs])))

    def change(builder: Builder, node, inputs):
        i = next(order)
        if isinstance(node.op, (Input, Param)):
            made = builder.copy(node, inputs, graph.params)
        else:
            mask = tuple(varies[j] for j in inputs)
            op, positions = node.op.specialise(mask if any(mask) else (True,) * len(mask))
            equal = node.op.of_equal() if len(inputs) > 1 and len(set(inputs)) == 1 else None
            if equal is not None:
                op, positions = equal, (0,)
            made = builder.add(op, *(inputs[p] for p in positions), source=node.source)
        varies[made] = graph.varying[i]
        return made

    return rebuild(graph, change)
