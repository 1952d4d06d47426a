"""A plain interpreter of graphs, for tests: one loop over the nodes, no plan."""

from __future__ import annotations

import numpy as np
import torch

from absdom.ir.graph import Graph
from absdom.ir.op import Input, Param


def evaluate(graph: Graph, points: np.ndarray, dtype: torch.dtype = torch.float64) -> np.ndarray:
    """Flat outputs "K m" of flat inputs "K n", several inputs and outputs laid side by side in order."""
    flat = torch.as_tensor(np.atleast_2d(points)).to(dtype)
    values: list[torch.Tensor] = []
    start = 0
    for node in graph.nodes:
        if isinstance(node.op, Input):
            size = node.type.numel
            values.append(flat[:, start : start + size].reshape(len(flat), *node.type.shape))
            start += size
        elif isinstance(node.op, Param):
            values.append(graph.params[node.op.label].to(dtype)[None])
        else:
            values.append(node.op.eval(*(values[i] for i in node.inputs)))
        assert tuple(values[-1].shape[1:]) == node.type.shape, node
    outputs = [values[i].reshape(values[i].shape[0], -1).expand(len(flat), -1) for i in graph.outputs]
    return torch.cat(outputs, dim=1).numpy()
