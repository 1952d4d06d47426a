"""Random networks: what they really give at sampled and attacked points lies inside the bounds of every recipe."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from exact_oracle import real_outputs
from random_graphs import BOXES, random_boxes, random_graph

from absdom import ops, testing
from absdom.arithmetic import PROOF
from absdom.passes import lower

METHODS = (
    "interval",
    "crown",
    "crown-ibp",
    "cap",
    "linear(slope=flat)",
    "cap & crown-ibp",
    "linear(pre=cap & interval)",
)
SCALES = (1.0, 1.0, 1.0, 1e6, 1e-6)


def case_of(seed: int) -> tuple:
    graph = random_graph(seed, SCALES[seed % len(SCALES)])
    n = sum(graph.nodes[i].type.numel for i in graph.inputs)
    kind = BOXES[(seed // len(SCALES)) % len(BOXES)]
    return graph, testing.Case(f"seed {seed}, {kind} boxes", lower(graph), *random_boxes(seed, n, kind))


@pytest.mark.parametrize("seed", range(90))
def test_real_outputs_lie_inside_charged_bounds_with_zero_tolerance(seed):
    graph, case = case_of(seed)
    points = testing.sample(case.graph, case.lower, case.upper, count=2, steps=4, seed=seed)
    bounds = {m: testing.bounds_of(case.graph, case.lower, case.upper, m, PROOF) for m in METHODS}
    search = {m: testing.bounds_of(case.graph, case.lower, case.upper, m, testing.SEARCH) for m in METHODS}
    slack = 1e-4 * testing.scale_of(case)
    useful = 0
    for b in range(len(points)):
        for point in points[b]:
            y = real_outputs(graph, point)[0]
            for method in METHODS:
                low, high = bounds[method].lower[b].flatten(), bounds[method].upper[b].flatten()
                for j, value in enumerate(y):
                    inside = mpmath.mpf(low[j].item()) <= value <= mpmath.mpf(high[j].item())
                    assert inside, (case.name, method, b, j, value, low[j].item(), high[j].item())
                low, high = search[method].lower[b].flatten().double(), search[method].upper[b].flatten().double()
                near = torch.tensor([float(v) for v in y], dtype=torch.float64)
                assert ((low - slack <= near) & (near <= high + slack)).all(), (case.name, method, "float32")
            useful += int(torch.isfinite(bounds["crown"].lower).all())
    assert useful or SCALES[seed % len(SCALES)] != 1.0, "a bound is infinite or NaN on an ordinary network"


@pytest.mark.parametrize("seed", range(12))
def test_laws_on_random_networks(seed):
    _, case = case_of(seed * 5 + seed % 3)  # ordinary scales
    for method in ("crown", "cap & crown-ibp"):
        testing.check_batch(case, method)
        testing.check_not_looser_than_interval(case, method)
        testing.check_exact_on_points(case.on_points(), method)


@pytest.mark.parametrize("seed", range(40))
def test_transposes_are_adjoint_in_random_networks(seed):
    testing.check_adjoint(random_graph(seed), seed=seed)


# Ops that grow without bound or are not defined everywhere, and choices among scores: tested one by one in test_ops.
ONE_BY_ONE = {
    "ArgMax", "ConvTranspose", "Equal", "Exp", "Log", "LogSoftmax", "LogSumExp", "Lookup", "Maximum", "ReduceMin",
    "Rescale", "RmsNorm", "Scatter", "Select", "Standardise", "Tan", "TopIndices", "TopValues", "Where", "Window",
}  # fmt: skip


def test_random_networks_hold_every_other_op():
    seen = {type(n.op).__name__ for s in range(150) for g in (random_graph(s), lower(random_graph(s))) for n in g.nodes}
    assert set(ops.__all__) - ONE_BY_ONE <= seen


def test_the_oracle_agrees_with_float64_evaluation():
    for seed in range(10):
        graph, case = case_of(seed * 5)
        x = (case.lower + case.upper)[0] / 2
        real = np.array([float(v) for v in real_outputs(graph, x)[0]])
        low = testing.bounds_of(case.graph, x[None], x[None], "interval", testing.FLOAT64).lower[0].flatten().numpy()
        np.testing.assert_allclose(low, real, rtol=1e-9, atol=1e-9 * testing.scale_of(case))
