"""Passes: Graph -> Graph, each checked; `lower` runs them all in order."""

from __future__ import annotations

from absdom.ir.check import check
from absdom.ir.graph import Graph
from absdom.passes.decompose import decompose
from absdom.passes.fold import fold
from absdom.passes.fuse import fuse
from absdom.passes.ranks import skip_softmax
from absdom.passes.recognise import recognise
from absdom.passes.specialise import specialise


def lower(graph: Graph) -> Graph:
    """The graph that schedules are made from: every op of a fixed kind, nothing redundant."""
    check(graph)
    for step in (skip_softmax, fold, recognise, decompose, fold, fuse):
        graph = check(step(graph))
    return check(specialise(graph), specialised=True)
