"""What the generators of one box can take: decided before the run, so that batches of boxes fit in memory."""

from __future__ import annotations

from absdom.ir.graph import Graph
from absdom.ir.op import Elementwise, Input, Multivariate

TEMPORARIES = 2  # tensors of the size of the largest that an op makes on the way


def peak_bytes(graph: Graph, itemsize: int, generators: bool) -> int:
    """The most bytes that states hold at once, if every element of every nonlinear op needs a generator.

    A state is held until its last reader is done. Without the recipe's budget: boxes of a batch keep generators of
    different symbols, so that the budget bounds the bytes of a box that runs alone.
    """
    order = [i for i, varying in enumerate(graph.varying) if varying]
    made: dict[int, frozenset[int]] = {}  # per node: the nodes whose symbols it carries
    size: dict[int, int] = {}
    last = {j: i for i in order for j in graph.nodes[i].inputs}
    live = peak = 0
    for i in order:
        node = graph.nodes[i]
        reads = {j for j in node.inputs if graph.varying[j]}
        made[i] = frozenset().union(*(made[j] for j in reads))
        if isinstance(node.op, Input) or generators and isinstance(node.op, (Elementwise, Multivariate)):
            made[i] |= {i}
        size[i] = itemsize * node.type.numel * sum(graph.nodes[j].type.numel for j in made[i])
        live += size[i]
        peak = max(peak, live + TEMPORARIES * max([size[i], *(size[j] for j in reads)]))
        live -= sum(size[j] for j in reads if last[j] == i)
    return peak
