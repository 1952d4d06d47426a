"""The least value of a tiny piecewise linear network over a box, in rational numbers: every cell in which it is affine.

The box is cut wherever a unit changes its piece (ReLU, leaky, abs, clip, sign) or its largest element (maxima, pools),
so that the cells are those of all phase patterns that occur. A cell is held as its vertices (the double description
method, Motzkin et al. 1953), and an affine function is least at one of them. No solver, no relaxation, no tolerance,
and no code that is shared with absdom's ops or encodings. Meant for two or three inputs that move.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from exact_oracle import inside, sites

from absdom import ops
from absdom.ir.op import Input, Param

ZERO = Fraction(0)


def rational(values) -> np.ndarray:
    """Floats as an array of fractions."""
    values = np.asarray(values, dtype=np.float64)
    out = np.empty(values.size, dtype=object)
    out[:] = [Fraction(float(v)) for v in values.ravel()]
    return out.reshape(values.shape)


@dataclass
class Cell:
    """A polytope of inputs on which the network is affine so far.

    values: node -> its values at the vertices "V *n"; tight: per vertex the facets it lies on, as bits of a number.
    """

    values: dict[int, np.ndarray]
    tight: list[int]

    def cut(self, height: np.ndarray, facet: int) -> list[Cell]:
        """The parts where an affine function, given at the vertices, is <= 0 and >= 0; only those that are not flat."""
        below, above = (np.flatnonzero([side(h) for h in height]) for side in (lambda h: h < 0, lambda h: h > 0))
        if not len(below) or not len(above):
            return [self]
        edges = [(i, j) for i in below for j in above if self._is_edge(i, j)]
        share = np.array([height[j] / (height[j] - height[i]) for i, j in edges], dtype=object)
        first, second = np.array(edges, dtype=np.int64).reshape(-1, 2).T  # none where the cut runs through vertices
        fresh = {}
        for node, v in self.values.items():
            weight = share.reshape(-1, *[1] * (v.ndim - 1))
            fresh[node] = weight * v[first] + (1 - weight) * v[second]
        bits = [(self.tight[i] & self.tight[j]) | facet for i, j in edges]
        on = [t | facet if height[k] == 0 else t for k, t in enumerate(self.tight)]
        out = []
        for far in (above, below):
            kept = np.setdiff1d(np.arange(len(height)), far)
            joined = {node: np.concatenate([v[kept], fresh[node]]) for node, v in self.values.items()}
            out.append(Cell(joined, [on[k] for k in kept] + bits))
        return out

    def _is_edge(self, i: int, j: int) -> bool:
        shared = self.tight[i] & self.tight[j]
        return not any(shared & t == shared for k, t in enumerate(self.tight) if k not in (i, j))


@dataclass
class Phases:
    """All cells of a network over a box; `outputs` "V m" of each cell, flat, and `inputs` "V n"."""

    inputs: list[np.ndarray]
    outputs: list[np.ndarray]

    @property
    def count(self) -> int:
        return len(self.outputs)

    def least(self, c, d=0.0) -> tuple[Fraction, np.ndarray]:
        """(the least c.y + d over the box, an input where it is taken)."""
        c, d = rational(c), Fraction(float(d))
        return min(
            ((y @ c + d, x) for ys, xs in zip(self.outputs, self.inputs, strict=True) for y, x in zip(ys, xs)),
            key=lambda found: found[0],
        )


def phases(graph, lower, upper) -> Phases:
    """The cells of a graph with one output over the box [lower, upper] "n"."""
    cells, facets = [_box(graph, rational(lower), rational(upper))], itertools.count(2 * len(lower))
    params = {i: rational(graph.params[n.op.label]) for i, n in enumerate(graph.nodes) if isinstance(n.op, Param)}
    last = {j: i for i, node in enumerate(graph.nodes) for j in node.inputs} | {
        i: len(graph.nodes) for i in graph.inputs
    }
    for i, node in enumerate(graph.nodes):
        if isinstance(node.op, (Input, Param)):
            continue
        for group in _bends(node.op, [graph.nodes[j].type.shape for j in node.inputs]):
            cells = [part for cell in cells for part in _pieces(cell, node.inputs, params, group, facets)]
        for cell in cells:
            given = [cell.values[j] if j in cell.values else params[j][None] for j in node.inputs]
            cell.values[i] = _apply(node.op, given)
            for j in node.inputs:
                if last[j] == i:
                    cell.values.pop(j, None)
    outputs, inputs = (
        [c.values[j].reshape(len(c.tight), -1) for c in cells] for j in (graph.outputs[0], graph.inputs[0])
    )
    return Phases(inputs, outputs)


def _box(graph, lower, upper) -> Cell:
    ends = [((low, 1 << 2 * k), (high, 2 << 2 * k)) if low < high else ((low, 3 << 2 * k),)
            for k, (low, high) in enumerate(zip(lower, upper, strict=True))]  # fmt: skip
    corners = list(itertools.product(*ends))
    points = np.array([[value for value, _ in corner] for corner in corners], dtype=object)
    i = graph.inputs[0]
    return Cell({i: points.reshape(-1, *graph.nodes[i].type.shape)}, [sum(bit for _, bit in c) for c in corners])


def _bends(op, shapes):
    """What decides the piece of each element: [(input, place)] with a threshold, or the candidates of a maximum."""
    places = list(np.ndindex(*shapes[0]))
    match op:
        case ops.Relu() | ops.LeakyRelu() | ops.Abs() | ops.Sign():
            return [([(0, p)], ZERO) for p in places]
        case ops.Clip(low, high):
            return [([(0, p)], Fraction(end)) for p in places for end in (low, high) if abs(end) < np.inf]
        case ops.MaxPool():
            windows = [
                [t for _, t in taps if inside(t, shapes[0][2:])] for _, taps in sites(op, shapes[0][2:], op.kernel)
            ]
            lead = itertools.product(*map(range, shapes[0][:2]))
            return [([(0, (*head, *t)) for t in window], None) for head in lead for window in windows]
        case ops.ReduceMax(axis):
            rest = [p for p in places if p[axis] == 0]
            return [([(0, (*p[:axis], k, *p[axis + 1 :])) for k in range(shapes[0][axis])], None) for p in rest]
        case ops.Maximum():
            both = np.broadcast_shapes(*shapes)
            spread = [np.broadcast_to(_numbers(s), both) for s in shapes]
            return [([(k, np.unravel_index(s[p], shapes[k])) for k, s in enumerate(spread)], None)
                    for p in np.ndindex(*both)]  # fmt: skip
    return []


def _numbers(shape) -> np.ndarray:
    return np.arange(int(np.prod(shape))).reshape(shape)


def _pieces(cell: Cell, inputs, params, group, facets) -> list[Cell]:
    candidates, threshold = group

    def height(part: Cell, k: int) -> np.ndarray:
        position, place = candidates[k]
        node = inputs[position]
        return part.values[node][(slice(None), *place)] if node in part.values else params[node][place]

    if threshold is not None:
        return cell.cut(height(cell, 0) - threshold, 1 << next(facets))
    leading = [(cell, 0)]
    for k in range(1, len(candidates)):
        found = []
        for part, leader in leading:
            for piece in part.cut(height(part, leader) - height(part, k), 1 << next(facets)):
                ahead = np.sum(height(piece, leader) - height(piece, k)) >= 0
                found.append((piece, leader if ahead else k))
        leading = found
    return [part for part, _ in leading]


def _apply(op, v):
    """The op at the vertices, which stand in front: arrays "V *n" of fractions."""
    x = v[0]
    match op:
        case ops.Add():
            return x + v[1]
        case ops.Sub():
            return x - v[1]
        case ops.Neg():
            return -x
        case ops.Mul():
            return x * v[1]
        case ops.MatMul():
            return x @ v[1]
        case ops.Conv():
            return _convolve(op, *v)
        case ops.Reshape(shape):
            return x.reshape(-1, *shape)
        case ops.Concat(axis):
            return np.concatenate(v, axis + 1)
        case ops.Slice(axis, start, stop, step):
            return x[(slice(None),) * (axis + 1) + (slice(start, stop, step),)]
        case ops.Relu():
            return np.maximum(x, ZERO)
        case ops.LeakyRelu(alpha):
            return np.where(x > 0, x, x * Fraction(alpha))
        case ops.Abs():
            return np.abs(x)
        case ops.Clip(low, high):
            low, high = (Fraction(end) if abs(end) < np.inf else None for end in (low, high))
            x = x if low is None else np.maximum(x, low)
            return x if high is None else np.minimum(x, high)
        case ops.Sign():  # the value inside the cell, also at the vertices where it jumps
            return np.broadcast_to(np.sign(x.sum(0)), x.shape)
        case ops.MaxPool():
            return _max_pool(op, x)
        case ops.ReduceMax(axis):
            return x.max(axis + 1, keepdims=True)
        case ops.Maximum():
            return np.maximum(*v)
    raise ValueError(f"the oracle does not know {op}")


def _convolve(op, x, w, b=None):
    w, size = w[0], x.shape[3:]
    every = list(sites(op, size, w.shape[2:]))
    out = np.full((*x.shape[:2], w.shape[0], *(m + 1 for m in every[-1][0])), ZERO, dtype=object)
    for site, taps in every:
        for tap, place in taps:
            if inside(place, size):
                out[(..., *site)] += x[(..., *place)] @ w[(..., *tap)].T
    return out if b is None else out + b.reshape(1, 1, -1, *[1] * len(size))


def _max_pool(op, x):
    size = x.shape[3:]
    every = list(sites(op, size, op.kernel))
    out = np.full((*x.shape[:3], *(m + 1 for m in every[-1][0])), ZERO, dtype=object)
    for site, taps in every:
        out[(..., *site)] = np.max([x[(..., *place)] for _, place in taps if inside(place, size)], axis=0)
    return out
