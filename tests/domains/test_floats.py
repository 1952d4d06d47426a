"""Rounding: networks whose weights cancel. Uncharged bounds claim what is false over the reals; charged ones never do."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from absdom import ops, testing
from absdom.arithmetic import PROOF, SEARCH, Arithmetic
from absdom.ir.graph import Builder
from absdom.passes import lower
from absdom.plan.recipes import parse_recipe
from absdom.problem import Problem, bound_rows
from absdom.property import make_property
from absdom.types import TensorType

FLOAT64 = Arithmetic(torch.float64)
NETWORKS = 200


def cancelling(seed: int, dtype: str):
    """Two layers whose exact minimum over the box is below zero by less than one rounding; and that exact minimum.

    The hidden units are positive on the box, so that the network is affine there: y = w2 (W1 x + b1) + b2, all in
    rationals. w2 cancels the rows of W1 up to rounding, and b2 is the negated value of it, one ulp lower.
    """
    random = np.random.default_rng(seed)
    real = np.float32 if dtype == "float32" else np.float64
    n, m = 4, 8
    half = random.uniform(-1, 1, (n, m)).astype(real)
    w1 = np.concatenate([half, half * real(1 + 3 * np.finfo(real).eps) + real(1e-3)], 1)
    b1 = np.full(2 * m, 8, dtype=real) + random.uniform(0, 1, 2 * m).astype(real)
    scale = (random.uniform(0.5, 2, m) * 10.0 ** random.integers(0, 3, m)).astype(real)
    w2 = np.concatenate([scale, -scale]).astype(real)
    low = random.uniform(-1, 1, n).astype(real)
    high = low if seed % 2 else np.nextafter(low, real(2))

    def at(x):
        hidden = [sum(Fraction(float(w1[i, j])) * Fraction(float(x[i])) for i in range(n)) + Fraction(float(b1[j]))
                  for j in range(2 * m)]  # fmt: skip
        assert min(hidden) > 0
        return sum(Fraction(float(w)) * h for w, h in zip(w2, hidden, strict=True))

    slope = [sum(Fraction(float(w1[i, j])) * Fraction(float(w2[j])) for j in range(2 * m)) for i in range(n)]
    least = at([l if s >= 0 else h for l, h, s in zip(low, high, slope, strict=True)])
    b2 = real(-float(least))
    while Fraction(float(b2)) + least > 0:
        b2 = np.nextafter(b2, real(-np.inf))
    builder = Builder()
    x = builder.input("x", TensorType((1, n), dtype))
    hidden = builder.add(ops.MatMul(), x, builder.param(torch.from_numpy(w1), "w1"))
    hidden = builder.add(ops.Relu(), builder.add(ops.Add(), hidden, builder.param(torch.from_numpy(b1), "b1")))
    out = builder.add(ops.MatMul(), hidden, builder.param(torch.from_numpy(w2)[:, None], "w2"))
    out = builder.add(ops.Add(), out, builder.param(torch.tensor([b2]), "b2"))
    return builder.finish([out]), np.float64(low), np.float64(high), Fraction(float(b2)) + least


@pytest.mark.parametrize("dtype, uncharged", [("float32", SEARCH), ("float64", FLOAT64)])
def test_charged_bounds_never_close_what_cancellation_opens(dtype, uncharged):
    wrong = {"interval": 0, "crown": 0}
    for seed in range(NETWORKS):
        graph, low, high, least = cancelling(seed, dtype)
        assert least <= 0
        graph = lower(graph)
        box = [torch.from_numpy(t[None]) for t in (low, high)]
        for method in wrong:
            wrong[method] += bool((testing.bounds_of(graph, *box, method, uncharged).lower > 0).any())
            bound = testing.bounds_of(graph, *box, method, PROOF)
            assert Fraction(bound.lower.item()) <= least, (seed, method)
            assert Fraction(bound.lower.item()) > least - Fraction(1e-2 if dtype == "float32" else 1e-6), (
                "charged beyond use"
            )
    assert max(wrong.values()) >= NETWORKS // 20, f"no network of these misleads an uncharged bound: {wrong}"


def test_no_clause_of_a_cancelling_network_is_refuted_by_proofs():
    strict_closed = 0
    for seed in range(40):
        graph, low, high, least = cancelling(seed, "float64")
        prop = make_property(
            low, high, [(0, [(np.array([1.0]), 0.0, False)])]
        )  # counterexample: y <= 0, which there is
        problem = Problem.of(graph, prop)
        for method in ("interval", "crown", "cap"):
            found = bound_rows(problem.engine, parse_recipe(method), PROOF, prop, np.arange(1))
            assert not prop.spec.refuted(found).any()
            strict_closed += prop.spec.refuted(
                bound_rows(problem.engine, parse_recipe(method), FLOAT64, prop, np.arange(1))
            ).any()
    assert strict_closed, "uncharged bounds refute none of these: the test shows nothing"


@pytest.mark.parametrize("variance", [1e-30, 1e-12, 0.0, 3.0])
def test_the_prologue_of_batch_norm_is_charged(variance):
    """gamma / sqrt(var + epsilon) rounds; with a tiny variance the factor is huge and its error is too."""
    import mpmath

    random = np.random.default_rng(5)
    builder = Builder()
    x = builder.input("x", TensorType((1, 3), "float64"))
    stats = [random.standard_normal(3) for _ in range(3)]
    params = [builder.param(torch.from_numpy(t), n) for t, n in zip(stats, ("gamma", "beta", "mean"), strict=True)]
    params.append(builder.param(torch.full((3,), variance, dtype=torch.float64), "var"))
    graph = builder.finish([builder.add(ops.BatchNorm(1e-30), x, *params)])
    point = torch.from_numpy(random.standard_normal((20, 3)))
    for method in ("interval", "crown", "cap"):
        found = testing.bounds_of(lower(graph), point, point, method, PROOF)
        with mpmath.workprec(300):
            for b in range(20):
                for j in range(3):
                    gamma, beta, mean = (mpmath.mpf(t[j]) for t in stats)
                    factor = gamma / mpmath.sqrt(mpmath.mpf(variance) + mpmath.mpf(1e-30))
                    y = (mpmath.mpf(point[b, j].item()) - mean) * factor + beta
                    assert mpmath.mpf(found.lower[b, 0, j].item()) <= y <= mpmath.mpf(found.upper[b, 0, j].item())
        width = (found.upper - found.lower).max().item()
        assert width <= 1e-11 * float(found.upper.abs().max()), "charged beyond use"


def test_whole_bounds_are_exact_and_others_are_read_outward():
    from absdom.property import InputSet
    from absdom.sets import InputBatch

    numbers = np.array([0.0, 1.0, -3.0, 0.1, 2.0**60])
    batch = InputBatch.of(InputSet.box(numbers, numbers), PROOF)
    same = [True, True, True, False, False]
    assert (batch.lower[0].numpy() == numbers).tolist() == same and (batch.upper[0].numpy() == numbers).tolist() == same
    assert (batch.lower[0].numpy() <= numbers).all() and (batch.upper[0].numpy() >= numbers).all()
