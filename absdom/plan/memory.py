"""What steps cost: floating-point operations and bytes, predicted from shapes, so that work comes in chunks."""

from __future__ import annotations

from math import prod

from absdom.ir.graph import Graph
from absdom.ops import affine
from absdom.passes import liveness

CHUNK_BYTES = 384 * 2**20  # the tensors of one chunk of rows
CACHE_BYTES = 16 * 2**20  # on a CPU a chunk that stays near the caches is faster (OVAL21: by up to 1.5 times)
CHUNK_SECONDS = 0.5  # so that deadlines hold
ASSUMED_FLOPS = {"cpu": 2e10, "cuda": 1e13}  # only scales chunks; never a verdict


def flops(graph: Graph, i: int) -> int:
    """Operations of one application of node i or of its transpose to one row."""
    node = graph.nodes[i]
    match node.op:
        case affine.Linear():
            return 2 * node.type.numel * graph.nodes[node.inputs[1]].type.shape[-2]
        case affine.LinearLeft():
            return 2 * node.type.numel * graph.nodes[node.inputs[0]].type.shape[-1]
        case affine.Conv():
            return 2 * node.type.numel * prod(graph.nodes[node.inputs[1]].type.shape[1:])
    return 6 * node.type.numel


def row_bytes(graph: Graph, nodes: tuple[int, ...], itemsize: int) -> int:
    """Peak bytes that one row holds in a sweep over `nodes` (start first), temporaries included."""
    return liveness.sweep_peak(graph, nodes) * itemsize


def chunk_rows(graph: Graph, nodes: tuple[int, ...], itemsize: int, device: str, budget: int | None = None) -> int:
    """How many rows to sweep at once, in `budget` bytes (default: what suits the device)."""
    if budget is None:
        budget = CHUNK_BYTES if device.startswith("cuda") else CACHE_BYTES
    by_bytes = budget // max(1, row_bytes(graph, nodes, itemsize))
    work = sum(flops(graph, i) for i in nodes) * (itemsize / 4)
    rate = ASSUMED_FLOPS["cuda" if device.startswith("cuda") else "cpu"]
    by_time = int(CHUNK_SECONDS * rate / max(1, work))
    return max(1, min(by_bytes, by_time))


def box_bytes(graph: Graph, itemsize: int) -> int:
    """Bytes that the bounds of all varying nodes take for one box (with noise and lines)."""
    return 8 * itemsize * sum(n.type.numel for n, v in zip(graph.nodes, graph.varying, strict=True) if v)
