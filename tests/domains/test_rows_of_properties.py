"""bound_rows on the awkward properties: two boxes, conjunctions, ragged clauses, rows over inputs, strict rows; orders."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from exact_oracle import real_outputs
from random_graphs import random_graph

from absdom import ops, testing
from absdom.arithmetic import PROOF, SEARCH, Arithmetic
from absdom.ir.graph import Builder
from absdom.passes import lower
from absdom.plan import sweeps
from absdom.plan.recipes import parse_recipe
from absdom.problem import Problem, bound_rows
from absdom.property import make_property
from absdom.types import TensorType

FLOAT64 = Arithmetic(torch.float64)
METHODS = ("interval", "crown", "crown-ibp", "cap", "crown & interval")


def awkward(seed: int, inputs: int, outputs: int, on_inputs: bool):
    """Four boxes (one a point, one without clauses); clauses of 1 to 3 rows, in no order of boxes."""
    random = np.random.default_rng(seed)
    low = random.uniform(-1, 0.5, (4, inputs))
    high = low + random.uniform(0, 1, (4, inputs))
    high[1] = low[1]
    width = outputs + (inputs if on_inputs else 0)
    clauses = []
    for box in (2, 0, 1, 0, 2, 2):
        rows = [(random.standard_normal(width) * random.choice([0, 1, 1], width), random.standard_normal(), bool(random.integers(2)))
                for _ in range(int(random.integers(1, 4)))]  # fmt: skip
        clauses.append((box, rows))
    return make_property(low, high, clauses, on_inputs)


@pytest.mark.parametrize("on_inputs", [False, True], ids=["outputs", "inputs too"])
@pytest.mark.parametrize("seed", range(8))
def test_bounds_of_rows_hold_in_exact_arithmetic(seed, on_inputs):
    graph = random_graph(seed * 5)
    n = sum(graph.nodes[i].type.numel for i in graph.inputs)
    prop = awkward(seed, n, 2, on_inputs)
    problem = Problem.of(graph, prop)
    every = np.arange(prop.spec.rows)
    proved = {m: bound_rows(problem.engine, parse_recipe(m), PROOF, prop, every) for m in METHODS}
    searched = {m: bound_rows(problem.engine, parse_recipe(m), SEARCH, prop, every) for m in METHODS}
    random = np.random.default_rng(seed)
    C, row_box = prop.spec.C.toarray(), prop.spec.row_box()
    for b in range(4):
        for _ in range(4):
            share = random.uniform(0, 1, n) if random.random() < 0.5 else random.integers(0, 2, n)
            x = np.clip(
                prop.inputs.lower[b] + share * (prop.inputs.upper[b] - prop.inputs.lower[b]),
                prop.inputs.lower[b],
                prop.inputs.upper[b],
            )
            y = real_outputs(graph, x)[0]
            v = [*y, *x] if on_inputs else list(y)
            v = [Fraction(*t.as_integer_ratio()) if isinstance(t, float) else rational(t) for t in v]
            for r in np.flatnonzero(row_box == b):
                real = sum(Fraction(float(c)) * t for c, t in zip(C[r], v, strict=True)) + Fraction(
                    float(prop.spec.d[r])
                )
                for m in METHODS:
                    assert Fraction(float(proved[m][r])) <= real, (m, b, r)
                    assert searched[m][r] <= float(real) + 1e-4 * (1 + abs(float(real))) * 10, (m, b, r)
    # Rows asked for in parts and in another order get the same bounds; the others stay unknown.
    some = random.permutation(prop.spec.rows)[: prop.spec.rows // 2 + 1]
    part = bound_rows(problem.engine, parse_recipe("crown"), PROOF, prop, some)
    np.testing.assert_allclose(part[some], proved["crown"][some], rtol=1e-9, atol=1e-9)
    assert np.isnan(np.delete(part, some)).all()


def rational(number) -> Fraction:
    """An mpmath number as a fraction."""
    sign, mantissa, exponent, _ = number._mpf_
    return (-1) ** sign * Fraction(int(mantissa)) * Fraction(2) ** int(exponent)


def test_strict_rows_are_refuted_at_zero_and_others_are_not():
    builder = Builder()
    x = builder.input("x", TensorType((1, 1), "float64"))
    graph = builder.finish([builder.add(ops.Relu(), x)])
    row = np.array([1.0])
    prop = make_property([[-2.0]], [[-1.0]], [(0, [(row, 0.0, True)]), (0, [(row, 0.0, False)])])
    found = bound_rows(Problem.of(graph, prop).engine, parse_recipe("interval"), FLOAT64, prop, np.arange(2))
    assert found.tolist() == [0.0, 0.0]
    assert prop.spec.refuted(found).tolist() == [True, False]  # y < 0 cannot be; y <= 0 is
    assert prop.satisfied(np.array([-1.5]), np.array([0.0]), 0) == (1,)


# Orders that hold (ARCHITECTURE, section 7)


def chain(seed: int, activation):
    """Dense layers with an activation between any two: no two affine layers in a row, no residual branch."""
    random = np.random.default_rng(seed)
    builder = Builder()
    value = builder.input("x", TensorType((1, 4), "float64"))
    for size, following in ((4, 5), (5, 5), (5, 3)):
        value = builder.add(
            ops.MatMul(), value, builder.param(torch.from_numpy(random.standard_normal((size, following))), "w")
        )
        value = builder.add(ops.Add(), value, builder.param(torch.from_numpy(random.standard_normal(following)), "b"))
        if following != 3:
            value = builder.add(activation, value)
    return testing.make_case(f"chain {seed}", builder.finish([value]), -1.0, 1.0, seed)


@pytest.mark.parametrize("activation", [ops.Relu(), ops.Sigmoid(), ops.Clip(-0.5, 0.5), ops.LeakyRelu(-0.3)], ids=str)
def test_interval_is_linear_with_flat_lines_over_interval_bounds(activation):
    for seed in range(5):
        case = chain(seed, activation)
        plain = testing.bounds_of(case.graph, case.lower, case.upper, "interval", FLOAT64)
        flat = testing.bounds_of(case.graph, case.lower, case.upper, "linear(slope=flat, pre=interval)", FLOAT64)
        rows_only = flat_sweep(case)
        for found in (flat.lower, rows_only):
            torch.testing.assert_close(found, plain.lower, rtol=1e-9, atol=1e-9)


def flat_sweep(case):
    """The sweep of the flat recipe alone, without the meet with the forward interval."""
    from absdom.plan import run
    from absdom.plan.planner import make_schedule
    from absdom.rows import Rows
    from absdom.sets import InputBatch

    context = run.prepare(make_schedule(case.graph, parse_recipe("linear(slope=flat, pre=interval)")), FLOAT64)
    batch = InputBatch(case.lower, case.upper)
    bounds = run.propagate(context, batch)
    shape = context.graph.nodes[context.schedule.target].type.shape
    data = torch.eye(shape[1], dtype=torch.float64).reshape(shape[1], *shape).repeat(len(case.lower), *[1] * len(shape))
    rows = Rows.dense_rows(data, len(case.lower))
    found = sweeps.sweep(context, context.schedule.final, context.schedule.duals[0], batch, bounds, rows)
    return found.reshape(len(case.lower), *shape)


@pytest.mark.parametrize("seed", range(10))
def test_linear_with_flat_lines_is_no_looser_than_interval_on_any_network(seed):
    graph = lower(random_graph(seed * 5 + 1))
    case = testing.make_case("random", graph, -1.0, 1.0, seed)
    for method in ("linear(slope=flat, pre=interval)", "crown & interval", "cap & interval"):
        testing.check_not_looser_than_interval(case, method)
