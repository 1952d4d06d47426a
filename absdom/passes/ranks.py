"""A ranking does not see a softmax: which score is largest is the same before and behind it.

So the comparisons of an ArgMax bound differences of the scores themselves. Over the reals nothing changes; in floats
two scores may become equal behind a softmax that were not equal before it.
"""

from __future__ import annotations

import torch

from absdom.ir.graph import Builder, Graph, rebuild
from absdom.ops import indexing, selection, shape, softmax

RANKINGS = (selection.ArgMax, indexing.TopIndices)


def skip_softmax(graph: Graph) -> Graph:
    """Let each ArgMax whose scores all come from one softmax, through moves only, read what the softmax reads."""

    def change(builder: Builder, node, inputs):
        if not isinstance(node.op, RANKINGS):
            return None
        path, start = [], inputs[0]
        while len(builder.node(start).inputs) == 1 and isinstance(builder.node(start).op, shape.Move):
            path.append(builder.node(start))
            start = builder.node(start).inputs[0]
        behind = builder.node(start)
        if not isinstance(behind.op, softmax.Softmax) or not _one_group(behind, path, node.op.axis):
            return None
        out = behind.inputs[0]
        for move in reversed(path):
            out = builder.add(move.op, out, source=move.source)
        return builder.add(node.op, out, source=node.source)

    return rebuild(graph, change)


def _one_group(softmax_node, path, axis: int) -> bool:
    """Do the elements along `axis`, behind the moves, belong to one softmax each?"""
    sizes = softmax_node.type.shape
    groups = torch.arange(softmax_node.type.numel, dtype=torch.float64).reshape(1, *sizes)
    groups = groups.narrow(softmax_node.op.axis + 1, 0, min(sizes[softmax_node.op.axis], 1)).expand(1, *sizes)
    for move in reversed(path):
        if isinstance(move.op, shape.Pad):
            return False
        groups = move.op.eval(groups)
    return bool((groups == groups.narrow(axis + 1, 0, 1)).all())
