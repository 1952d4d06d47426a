"""The dual bounds of Wong and Kolter, built forwards: an implementation of its own in numpy against the zonotope domain
and against rows that go backwards, to 1e-12 in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from absdom import ops
from absdom.arithmetic import Arithmetic
from absdom.ir.graph import Builder, Graph
from absdom.passes import lower
from absdom.plan import run
from absdom.plan.planner import make_schedule
from absdom.plan.recipes import parse_recipe
from absdom.sets import InputBatch
from absdom.types import TensorType

FLOAT64 = Arithmetic(torch.float64)
EXACT = 1e-12


def positive(a):
    return np.maximum(a, 0)


def slopes(l, u):
    """The diagonal of D: 0, 1 or u / (u - l)."""
    return np.where(u <= 0, 0.0, np.where(l >= 0, 1.0, u / np.where(u > l, u - l, 1)))


def through(low, high, weights, bias):
    """Interval bounds behind a layer."""
    centre, radius = (low + high) / 2 @ weights + bias, (high - low) / 2 @ np.abs(weights)
    return centre - radius, centre + radius


def meet(found, other, binds: list):
    """The best of two bounds; whether the second one was needed is noted."""
    (l, u), (low, high) = found, other
    binds.append(bool((low > l + 1e-9).any() or (high < u - 1e-9).any()))
    return np.maximum(l, low), np.minimum(u, high)


def algorithm_one(x, eps, layers, met: bool) -> tuple[list, bool]:
    """Wong and Kolter 2018, Algorithm 1: bounds in front of each ReLU and of the output, over an l_inf ball.

    V "n0 n_i"; nu[j] one row per unstable neuron of layer j. `met`: each bound met with that of intervals.
    """
    (weights, bias), binds = layers[0], []
    V, psi, nu = weights, [bias], []
    centre, radius = x @ V + bias, eps * np.abs(V).sum(0)
    out = [(centre - radius, centre + radius)]
    for weights, bias in layers[1:]:
        l, u = out[-1]
        D, unstable = slopes(l, u), (l < 0) & (u > 0)
        nu = [(low, (rows * D) @ weights) for low, rows in nu]
        nu.append((l[unstable], np.diag(D)[unstable] @ weights))
        psi = [(g * D) @ weights for g in psi] + [bias]
        V = (V * D) @ weights
        centre, radius = x @ V + sum(psi), eps * np.abs(V).sum(0)
        found = (
            centre - radius + sum(low @ positive(-rows) for low, rows in nu),
            centre + radius - sum(low @ positive(rows) for low, rows in nu),
        )
        other = through(positive(l), positive(u), weights, bias)
        best = meet(found, other, binds)
        out.append(best if met else found)
    return out, any(binds)


def algorithm_two(x, eps, count, edges) -> dict:
    """AutoDual (Wong, Schmidt, Metzen and Kolter 2018, Algorithm 2) on nodes 0 .. count - 1, node 0 the input.

    edges: (a, b) -> (W "n_a n_b", bias) for affine ones, None for a ReLU. M[j] is |z_j| x |z_i|.
    """
    known, M, operators = {}, {0: {0: np.eye(len(x))}}, {}
    for i in range(1, count):
        incoming = [a for a, b in edges if b == i]
        for a in incoming:
            edge = edges[a, i]
            operators[a, i] = np.diag(slopes(*known[a])) if edge is None else edge[0]
        size = operators[incoming[0], i].shape[1]
        M[i] = {i: np.eye(size)}
        for j in range(i):
            parts = [M[p][j] @ operators[p, i] for p in incoming if j in M[p]]
            if parts:
                M[i][j] = sum(parts)
        first = M[i].get(0, np.zeros((len(x), size)))
        ends = []
        for sign in (-1, 1):
            total = x @ first + sign * eps * np.abs(first).sum(0)
            for (a, b), edge in edges.items():
                if b <= i and b in M[i]:
                    nu = sign * M[i][b]
                    if edge is None:
                        l, u = known[a]
                        l = np.where((l < 0) & (u > 0), l, 0)
                        h = -l @ positive(operators[a, b] @ nu)
                    else:
                        h = edge[1] @ nu
                    total = total + sign * h
            ends.append(total)
        known[i] = tuple(ends)
    return known


def chain(layers) -> Graph:
    builder = Builder()
    value = builder.input("x", TensorType((1, len(layers[0][0])), "float64"))
    for k, (weights, bias) in enumerate(layers):
        value = dense(builder, builder.add(ops.Relu(), value) if k else value, weights, bias)
    return lower(builder.finish([value]))


def dense(builder, value, weights, bias):
    value = builder.add(ops.MatMul(), value, builder.param(torch.from_numpy(weights), "w"))
    return builder.add(ops.Add(), value, builder.param(torch.from_numpy(bias), "b"))


def random_layers(random, sizes):
    return [
        (random.standard_normal((n, m)) / np.sqrt(n), random.standard_normal(m) * 0.3)
        for n, m in zip(sizes[:-1], sizes[1:], strict=True)
    ]


def of_run(graph: Graph, x, eps, method: str) -> list[tuple]:
    """Bounds in front of each ReLU and of the output."""
    context = run.prepare(make_schedule(graph, parse_recipe(method)), FLOAT64)
    centre = torch.from_numpy(x)[None]
    batch = InputBatch(centre - eps, centre + eps)
    with torch.no_grad():
        bounds = run.propagate(context, batch)
        bounds[context.schedule.target] = run.node_bounds(context, batch)
    nodes = [node.inputs[0] for node in graph.nodes if isinstance(node.op, ops.Relu)]
    found = (bounds[i] for i in (*nodes, context.schedule.target))
    return [(b.lower.flatten().numpy(), b.upper.flatten().numpy()) for b in found]


def differ(found, wanted) -> float:
    return max(np.abs(a - b).max() for f, w in zip(found, wanted, strict=True) for a, b in zip(f, w, strict=True))


def free_cases(eps: float, sizes, wanted: int):
    """Random networks with unstable neurons in every layer on which intervals add nothing to Algorithm 1."""
    found = 0
    for seed in range(1000):
        random = np.random.default_rng(seed)
        layers, x = random_layers(random, sizes), random.standard_normal(sizes[0])
        bounds, binds = algorithm_one(x, eps, layers, met=False)
        if not binds and all(((l < 0) & (u > 0)).any() for l, u in bounds[:-1]):
            yield layers, x, bounds
            found += 1
            if found == wanted:
                return
    raise AssertionError("too few networks on which intervals add nothing")


@pytest.mark.parametrize("sizes", [(4, 12, 3), (5, 16, 12, 4), (6, 12, 12, 10, 3)], ids=str)
def test_algorithm_one_is_the_zonotope_and_the_backward_dual(sizes):
    for layers, x, wanted in free_cases(0.05, sizes, 5):
        graph = chain(layers)
        assert differ(of_run(graph, x, 0.05, "zonotope"), wanted) < EXACT
        for method in ("linear(pre=zonotope, slope=parallel)", "cap"):
            found = of_run(graph, x, 0.05, method)
            assert differ(found[-1:], wanted[-1:]) < EXACT, method


@pytest.mark.parametrize("seed", range(6))
def test_algorithm_one_met_with_intervals_is_the_zonotope_of_a_run(seed):
    """A run meets every bound with intervals; the same meet inside Algorithm 1 gives the same numbers."""
    random = np.random.default_rng(seed)
    layers, x, binding = random_layers(random, (6, 14, 14, 14, 5)), random.standard_normal(6), 0
    for eps in (0.0, 0.02, 0.1, 0.5, 2.0):
        wanted, binds = algorithm_one(x, eps, layers, met=True)
        binding += binds
        assert differ(of_run(chain(layers), x, eps, "zonotope"), wanted) < EXACT * (1 + eps)
    assert binding, "intervals were never of use: the case tests nothing"


def residual(random):
    """A skip around the second layer, and one from the input to the output: the edges, and the graph."""
    first, second, third, across = (
        *random_layers(random, (5, 10, 10, 4)),
        (random.standard_normal((5, 4)) * 0.3, np.zeros(4)),
    )
    edges = {
        (0, 1): first, (1, 2): None, (2, 3): second, (2, 4): same(10), (3, 4): same(10),
        (4, 5): None, (5, 6): third, (0, 7): across, (6, 8): same(4), (7, 8): same(4),
    }  # fmt: skip
    builder = Builder()
    x = builder.input("x", TensorType((1, 5), "float64"))
    z = builder.add(ops.Relu(), dense(builder, x, *first))
    z = builder.add(ops.Add(), z, dense(builder, z, *second))
    z = dense(builder, builder.add(ops.Relu(), z), *third)
    z = builder.add(ops.Add(), z, dense(builder, x, *across))
    return edges, lower(builder.finish([z]))


def same(size):
    return np.eye(size), np.zeros(size)


def met_with_intervals(x, eps, known, edges) -> list[bool]:
    """Per node from 1 on: are intervals, of bounds met in the same way, tighter somewhere?"""
    best, binds = {0: (x - eps, x + eps)}, []
    for i in known:
        low = high = 0
        for (a, b), edge in edges.items():
            if b == i:
                part = [positive(t) for t in best[a]] if edge is None else through(*best[a], *edge)
                low, high = low + part[0], high + part[1]
        best[i] = meet(known[i], (low, high), binds)
    return binds


def test_algorithm_two_on_a_residual_network():
    shown = unstable = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        edges, graph = residual(random)
        x, eps = random.standard_normal(5), 0.04
        known = algorithm_two(x, eps, 9, edges)
        wanted = [known[i] for i in (1, 4, 8)]
        if any(met_with_intervals(x, eps, known, edges)[i - 1] for i in (1, 4, 8)):
            continue  # a run has better bounds there, from intervals
        shown += 1
        unstable += all(((l < 0) & (u > 0)).any() for l, u in wanted[:-1])
        assert differ(of_run(graph, x, eps, "zonotope"), wanted) < EXACT
        for method in ("linear(pre=zonotope, slope=parallel)", "cap"):
            assert differ(of_run(graph, x, eps, method)[-1:], wanted[-1:]) < EXACT, method
    assert shown >= 5 and unstable >= 3, (shown, unstable)
