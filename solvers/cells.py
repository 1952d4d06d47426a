"""Inputs that a network reads only through step functions (a cast to an integer, say): all happens in whole cells.

Between two neighbouring jumps nothing changes with such an input: one point per cell tells all. Gradients tell nothing
there, and random points miss small cells.
"""

from __future__ import annotations

from itertools import product
from math import prod

import torch

from absdom.ir.graph import Graph
from absdom.ir.op import Input
from absdom.ops.discrete import StepFunction
from absdom.ops.shape import Move
from absdom.plan import run
from absdom.sets import InputBatch

CELLS = 2**13  # points that are tried per box
AT_ONCE = 2**20  # numbers of points that are evaluated together


def stepped_inputs(graph: Graph) -> torch.Tensor:
    """Mask "n" of the flat inputs that are read by step functions, behind moves, and by nothing else."""
    count = sum(graph.nodes[i].type.numel for i in graph.inputs)
    stepped, other = torch.zeros(count + 1, dtype=torch.bool), torch.zeros(count + 1, dtype=torch.bool)
    places = torch.arange(1, count + 1, dtype=torch.float64)[None]  # 0: none of the inputs
    known = dict(run.split_inputs(graph, places))
    for i, node in enumerate(graph.nodes):
        if isinstance(node.op, Input) or not any(j in known for j in node.inputs):
            continue
        if isinstance(node.op, Move):
            types = [graph.nodes[j].type.shape for j in node.inputs]
            parts = [
                known.get(j, torch.zeros((1, *t), dtype=torch.float64)) for j, t in zip(node.inputs, types, strict=True)
            ]
            known[i] = node.op.eval(*parts)
            continue
        mask = stepped if isinstance(node.op, StepFunction) else other
        for j in node.inputs:
            if j in known:
                mask[known[j].long().flatten()] = True
    return (stepped & ~other)[1:]


def cells(graph: Graph, batch: InputBatch):
    """Points "k n", one box after the other and not too many at once, as (box, points): each cell of the inputs that
    vary in steps once, the others at the centre. Nothing for a box without such inputs, or with too many cells."""
    stepped = stepped_inputs(graph).to(batch.lower.device)
    if not stepped.any():
        return
    for b, (lower, upper) in enumerate(zip(batch.lower, batch.upper, strict=True)):
        moving = torch.nonzero(stepped & (upper > lower)).flatten()
        if len(moving) == 0 or not bool((upper - lower)[moving].isfinite().all()):
            continue
        # Whole numbers and what lies between two of them: the cells of every step function that absdom has.
        halves = (
            [(2 * lower[i]).ceil().long().item() for i in moving],
            [(2 * upper[i]).floor().long().item() for i in moving],
        )
        axes = [[h / 2 for h in range(low, high + 1)] for low, high in zip(*halves, strict=True)]
        if prod(len(a) for a in axes) > CELLS:
            axes = [[v for v in a if v == int(v)] for a in axes]
        if not 0 < prod(len(a) for a in axes) <= CELLS:
            continue
        centre = lower / 2 + upper / 2
        table = torch.tensor(list(product(*axes)), dtype=lower.dtype, device=lower.device)
        for part in table.split(max(1, AT_ONCE // len(lower))):
            points = centre.repeat(len(part), 1)
            points[:, moving] = part
            yield b, points
