"""Which values are still needed: the peak of a backward sweep."""

from __future__ import annotations

from absdom.ir.graph import Graph


def sweep_peak(graph: Graph, nodes: tuple[int, ...]) -> int:
    """The most elements that the rows of a sweep over `nodes` (start first) hold at once, with two temporaries."""
    inside, live, peak = set(nodes), {nodes[0]: graph.nodes[nodes[0]].type.numel}, 0
    for i in nodes:
        size = live.pop(i, 0)
        for j in graph.nodes[i].inputs:
            if j in inside:
                live[j] = graph.nodes[j].type.numel
        peak = max(peak, size + sum(live.values()) + 2 * max([size, *live.values()]))
    return peak
