"""Which products of variables a program needs, and the cliques that its matrix of products falls into.

A matrix that is positive semidefinite on the cliques of a chordal graph can be completed to one that is so as a whole
(Grone, Johnson, Sa and Wolkowicz 1984): a program whose forms only use edges of that graph loses nothing by it.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from absdom.errors import UsageError
from absdom.solvers.sdp.lift import Lifted

KINDS = ("one", "layers", "variables")


def cliques(lifted: Lifted, kind: str) -> list[np.ndarray]:
    """Sorted positions in u of each clique, position 0 (the one) in all of them.

    kind: "one" matrix of everything; "layers": chordal completion of the graph of blocks, so that a clique is about
    two adjacent layers; "variables": chordal completion of the graph of the single variables.
    """
    n = lifted.order - 1
    if kind == "one" or n == 0:
        return [np.arange(n + 1)]
    edges = product_pattern(lifted)[1:, 1:].tocoo()
    if kind == "variables":
        groups = _chordal(n, edges.row, edges.col)
        parts = [np.array(sorted(g)) for g in groups]
    elif kind == "layers":
        groups = _chordal(int(lifted.block.max()) + 1, lifted.block[edges.row], lifted.block[edges.col])
        parts = [np.flatnonzero(np.isin(lifted.block, list(g))) for g in groups]
    else:
        raise UsageError(f"cliques {kind!r} is not one of auto, {', '.join(KINDS)}")
    return [np.concatenate([[0], 1 + part]) for part in sorted(parts, key=tuple) if len(part)]


def product_pattern(lifted: Lifted) -> sp.csr_matrix:
    """Where the forms have products, "1+n 1+n", symmetric."""
    left, right = (sp.csr_matrix((np.ones(m.nnz), m.indices, m.indptr), m.shape) for m in (lifted.left, lifted.right))
    found = left.T @ right
    return (found + found.T).tocsr()


def work(parts: list[np.ndarray]) -> float:
    """What one eigendecomposition of each clique costs, relatively."""
    return float(sum(len(p) ** 3.0 for p in parts))


def _chordal(count: int, first: np.ndarray, second: np.ndarray) -> list[frozenset]:
    """The maximal cliques of a chordal completion of a graph."""
    import networkx

    graph = networkx.Graph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from((int(a), int(b)) for a, b in zip(first, second, strict=True) if a != b)
    completed, _ = networkx.complete_to_chordal_graph(graph)
    return list(networkx.chordal_graph_cliques(completed))
