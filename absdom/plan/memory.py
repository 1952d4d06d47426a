"""What steps cost: floating-point operations and bytes, predicted from shapes, so that work comes in chunks."""

from __future__ import annotations

from math import prod

from absdom.ir.graph import Graph
from absdom.ops import affine, products, softmax, transposed
from absdom.passes import liveness

CHUNK_BYTES = 384 * 2**20  # the tensors of one chunk of rows
CACHE_BYTES = 16 * 2**20  # on a CPU a chunk that stays near the caches is faster (OVAL21: by up to 1.5 times)
ELEMENT = 24  # what an elementwise step counts per element: it waits for memory, not for arithmetic
TAPE = 12  # tensors per element that a taped step holds: rows, bounds, lines, knobs and what gradients keep
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
        case transposed.ConvTranspose():
            reads = node.inputs[:2]
            return 2 * graph.nodes[reads[0]].type.numel * prod(graph.nodes[reads[1]].type.shape[1:])
        case products.MatrixProduct() | softmax.Softmax() | softmax.LogSoftmax():
            return 2 * plane_elements(graph, i)
    return ELEMENT * node.type.numel


def plane_elements(graph: Graph, i: int) -> int:
    """Coefficients of node i's planes over one box, where they are more than a few per element; else 0."""
    node = graph.nodes[i]
    match node.op:
        case products.MatrixProduct():
            return 4 * min(node.type.numel * graph.nodes[node.inputs[0]].type.shape[-1], products.PRODUCTS)
        case softmax.Softmax(axis) | softmax.LogSoftmax(axis):
            return 2 * node.type.numel * node.type.shape[axis]
    return 0


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


def taped_rows(graph: Graph, nodes: tuple[int, ...], itemsize: int, device: str) -> int:
    """How many rows to sweep at once where each has its own bounds and knobs, and gradients need every step."""
    elements = sum(graph.nodes[i].type.numel for i in nodes)
    budget = CHUNK_BYTES if device.startswith("cuda") else 4 * CACHE_BYTES
    return max(1, min(budget // (TAPE * itemsize * elements), chunk_rows(graph, nodes, itemsize, device, budget)))


def box_bytes(graph: Graph, itemsize: int) -> int:
    """Bytes that the bounds of all varying nodes take for one box (with noise and lines)."""
    varying = [i for i, v in enumerate(graph.varying) if v]
    return itemsize * sum(8 * graph.nodes[i].type.numel + plane_elements(graph, i) for i in varying)
