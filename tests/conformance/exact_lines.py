"""The exact least and largest outputs of a piecewise linear network over a segment of inputs.

Along x = first + t (last - first) each value is piecewise linear in t. Where the input of a ReLU, or the difference of
two elements of a maximum, changes sign between two neighbouring t, there is a break; breaks are added, earliest node
first, until none is left. Numbers have 300 bits; the ops are those of `exact_oracle`, written apart from absdom's.
"""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
from exact_oracle import PRECISION, apply, exact

from absdom import ops
from absdom.ir.op import Input, Param
from absdom.passes import lower as lower_graph

ZERO = mpmath.mpf(10) ** -60  # what a break computed with 300 bits may miss by, and more


def exact_ends(graph, first, last) -> tuple[np.ndarray, np.ndarray]:
    """(least, largest) value of each flat output over the segment between the flat points `first` and `last`."""
    graph = lower_graph(graph)
    with mpmath.workprec(PRECISION):
        first, last = exact(np.asarray(first, dtype=float).ravel()), exact(np.asarray(last, dtype=float).ravel())
        at = {t: values(graph, first + (last - first) * t) for t in (mpmath.mpf(0), mpmath.mpf(1))}
        while True:
            new = next((b for i, node in enumerate(graph.nodes) if (b := breaks(graph, node, at))), None)
            if not new:
                break
            at |= {t: values(graph, first + (last - first) * t) for t in new}
        outputs = np.stack([np.concatenate([v[i].ravel() for i in graph.outputs]) for v in at.values()])
        return outputs.min(0), outputs.max(0)


def values(graph, flat) -> list[np.ndarray]:
    found, start = [], 0
    for node in graph.nodes:
        match node.op:
            case Input():
                found.append(flat[start : start + node.type.numel].reshape(node.type.shape))
                start += node.type.numel
            case Param(label):
                found.append(exact(graph.params[label]))
            case _:
                found.append(apply(node.op, [found[j] for j in node.inputs]))
    return found


def breaks(graph, node, at) -> list:
    """The t at which this node bends between neighbouring t of `at`."""
    match node.op:
        case ops.Relu() | ops.LeakyRelu() | ops.Abs():
            shape = lambda v: [v[node.inputs[0]].ravel()]  # noqa: E731
        case ops.Clip(low, high):
            ends = [mpmath.mpf(e) for e in (low, high) if abs(e) < np.inf]
            shape = lambda v: [v[node.inputs[0]].ravel() - e for e in ends]  # noqa: E731
        case ops.ReduceMax(axis):

            def shape(v):
                x = np.moveaxis(v[node.inputs[0]], axis, 0)
                return [(x[a] - x[b]).ravel() for a, b in itertools.combinations(range(len(x)), 2)]
        case _:
            return []
    order = sorted(at)
    found = set()
    for s, t in itertools.pairwise(order):
        for left, right in zip(shape(at[s]), shape(at[t]), strict=True):
            for p, q in zip(left, right, strict=True):
                if p * q < 0 and min(abs(p), abs(q)) > ZERO:
                    found.add(s + (t - s) * p / (p - q))
    return [t for t in found if min(abs(t - s) for s in order) > ZERO]
