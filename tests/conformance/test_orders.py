"""Which method is never looser than which, on 50 random networks; and on real instances (`-m slow`).

With frozen intermediate bounds: zero slopes = interval <= CAP, CROWN <= alpha-CROWN <= LP <= what sampling finds. A meet is never
looser than its parts. (Plain DeepZ, CROWN-IBP and CAP over intervals may be looser than interval: that is why meets exist.)
"""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from nets import relu_net
from program_answers import Asked
from scipy.optimize import linprog

from absdom import api, testing
from absdom.arithmetic import SEARCH
from absdom.passes import lower as lower_graph
from absdom.plan import run, sweeps
from absdom.plan.planner import make_schedule
from absdom.plan.recipes import parse_recipe
from absdom.problem import bound_rows
from absdom.rows import Rows
from absdom.sets import InputBatch

FROZEN = {  # over interval bounds, all of them
    "flat": "linear(pre=interval, slope=flat)", "cap": "linear(pre=interval, slope=parallel)", "crown": "crown-ibp",
    "alpha": "ascent(crown-ibp)",
}  # fmt: skip
MEETS = (
    ("interval", "zonotope & interval"), ("interval", "forward & interval"), ("interval", "hybrid-zonotope & interval"),
    ("interval", "interval & linear(pre=interval, slope=flat)"), ("crown", "crown & zonotope"), ("cap", "cap & crown"),
)  # fmt: skip


def random_case(seed: int):
    """A ReLU network of two or three hidden layers, and one box."""
    random = np.random.default_rng(seed)
    sizes = (int(random.integers(2, 5)), *random.integers(4, 9, size=int(random.integers(2, 4))).tolist(), 2)
    graph, layers = relu_net(sizes, seed)
    centre, radius = random.standard_normal(sizes[0]), random.uniform(0.05, 0.8)
    case = testing.Case(
        f"net {seed}", lower_graph(graph), *(torch.from_numpy(centre + s * radius)[None] for s in (-1, 1))
    )
    return case, layers


def swept(case, recipe: str) -> tuple[np.ndarray, dict]:
    """The sweep's own lower bounds of +-y, met with nothing, and the bounds that its lines were built from."""
    context = run.prepare(make_schedule(case.graph, parse_recipe(recipe)), testing.FLOAT64)
    batch = InputBatch(case.lower, case.upper)
    bounds = run.propagate(context, batch)
    eye = torch.eye(2, dtype=torch.float64)
    rows = Rows.dense_rows(torch.cat([eye, -eye]).reshape(4, *bounds[context.schedule.target].lower.shape[1:]), 1)
    found = sweeps.sweep(context, context.schedule.final, context.schedule.duals[0], batch, bounds, rows)
    return found.detach().numpy(), bounds


def triangle_lp(layers, lower, upper, c) -> float:
    """min c.y over the triangle relaxation, pre-activations bounded by interval arithmetic (Ehlers 2017)."""
    sizes = [len(lower), *(len(b) for _, b in layers)]
    count = sum(sizes) + sum(sizes[1:-1])
    equal, right, less, most = [], [], [], []
    limits = list(zip(lower, upper, strict=True))
    at, low, high = 0, lower, upper
    for k, (w, b) in enumerate(layers):
        n, m = w.shape
        z = at + n  # pre-activations stand behind the layer's inputs
        for j in range(m):
            row = np.zeros(count)
            row[at : at + n], row[z + j] = w[:, j], -1
            equal.append(row)
            right.append(-b[j])
        centre, radius = (low + high) / 2, (high - low) / 2
        low, high = centre @ w + b - radius @ abs(w), centre @ w + b + radius @ abs(w)
        limits += list(zip(low, high, strict=True))
        if k == len(layers) - 1:
            break
        y = z + m
        for j in range(m):
            lo, hi = low[j], high[j]
            row = np.zeros(count)
            if lo >= 0 or hi <= 0:
                row[y + j], row[z + j] = 1, -float(lo >= 0)
                equal.append(row)
                right.append(0.0)
                continue
            for a, d, rhs in ((1.0, -1.0, 0.0), (-hi / (hi - lo), 1.0, -hi * lo / (hi - lo))):
                row = np.zeros(count)
                row[z + j], row[y + j] = a, d
                less.append(row)
                most.append(rhs)
        low, high = low.clip(0), high.clip(0)
        limits += list(zip(low, high, strict=True))
        at = y
    objective = np.zeros(count)
    objective[-len(c) :] = c
    found = linprog(objective, np.array(less) if less else None, most or None, np.array(equal), right, bounds=limits)
    assert found.status == 0, found.message
    return found.fun


@pytest.mark.parametrize("seed", range(50))
def test_with_frozen_intermediate_bounds(seed):
    case, layers = random_case(seed)
    found = {name: swept(case, recipe)[0] for name, recipe in FROZEN.items()}
    interval = testing.bounds_of(case.graph, case.lower, case.upper, "interval", testing.FLOAT64)
    interval = torch.cat([interval.lower.flatten(), -interval.upper.flatten()]).numpy()
    scale = 1e-9 * (1 + np.abs(interval).max())
    np.testing.assert_allclose(found["flat"], interval, rtol=0, atol=scale)
    assert (found["alpha"] >= found["crown"] - scale).all()
    lower, upper = case.lower[0].numpy(), case.upper[0].numpy()
    lp = np.array([triangle_lp(layers, lower, upper, c) for c in np.concatenate([np.eye(2), -np.eye(2)])])
    for name, values in found.items():
        assert (values <= lp + 1e-6 * (1 + np.abs(lp))).all(), name
    ours = Asked(case.graph, lower, upper, "lp(pre=interval)").program(np.concatenate([np.eye(2), -np.eye(2)]))
    np.testing.assert_allclose(ours.lower, lp, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ours.lower, ours.claimed, rtol=1e-7, atol=1e-7)
    points = testing.sample(case.graph, case.lower, case.upper, count=64)[0]
    context = run.prepare(make_schedule(case.graph, parse_recipe("interval")), testing.FLOAT64)
    outputs = run.evaluate(context, points).reshape(len(points), 2).numpy()
    assert (lp <= np.concatenate([outputs, -outputs], 1).min(0) + 1e-6).all()


@pytest.mark.parametrize("seed", range(0, 50, 5))
def test_meets_are_no_looser_than_their_parts(seed):
    case, _ = random_case(seed)
    for part, meet in MEETS:
        one, both = (testing.bounds_of(case.graph, case.lower, case.upper, m, testing.FLOAT64) for m in (part, meet))
        slack = 1e-9 * (1 + one.magnitude().max())
        assert (both.lower >= one.lower - slack).all() and (both.upper <= one.upper + slack).all(), meet


def test_crown_is_that_of_an_independent_implementation():
    """CROWN with intermediate bounds by CROWN, each met with the interval step from the tightened layer before."""
    for seed in range(10):
        case, layers = random_case(seed)
        found, _ = swept(case, "crown")
        lower, upper = case.lower[0].numpy(), case.upper[0].numpy()
        np.testing.assert_allclose(found, reference_crown(layers, lower, upper), rtol=1e-9, atol=1e-9)


def reference_crown(layers, lower, upper) -> np.ndarray:
    bounds = []  # of pre-activations

    def back(a, k):
        constant = np.zeros(len(a))
        for i in range(k, -1, -1):
            w, b = layers[i]
            constant, a = constant + a @ b, a @ w.T
            if i == 0:
                break
            low, high = bounds[i - 1]
            unstable = (low < 0) & (high > 0)
            slope = np.where(unstable, high / np.where(unstable, high - low, 1), low >= 0)
            adaptive = np.where(unstable, high > -low, low >= 0)
            constant = constant + a.clip(max=0) @ np.where(unstable, -slope * low, 0)
            a = a.clip(min=0) * adaptive + a.clip(max=0) * slope
        return constant + a.clip(min=0) @ lower + a.clip(max=0) @ upper

    low, high = lower, upper
    for k, (w, b) in enumerate(layers[:-1]):
        centre, radius = (low + high) / 2, (high - low) / 2
        low, high = centre @ w + b - radius @ abs(w), centre @ w + b + radius @ abs(w)
        eye = np.eye(len(b))
        if k > 0:
            chosen = (low < 0) & (high > 0)
            low = np.where(chosen, np.maximum(low, back(eye, k)), low)
            high = np.where(chosen, np.minimum(high, -back(-eye, k)), high)
        bounds.append((low, high))
        low, high = low.clip(0), high.clip(0)
    eye = np.eye(len(layers[-1][1]))
    return back(np.concatenate([eye, -eye]), len(layers) - 1)


REAL = 20  # instances
METHODS = ("interval", "zonotope & interval", "crown-ibp", "cap", "crown", "alpha-crown")


@pytest.mark.slow
def test_on_real_instances(vnncomp):
    """Every bound lies below the best attacked value; the orders that hold, hold."""
    with open(vnncomp / "dev" / "instances.csv", newline="") as file:
        rows = [
            r for r in csv.DictReader(file) if r["onnx"].startswith(("acasxu", "mnist_fc", "reach_prob", "collins_rul"))
        ]
    step = max(1, len(rows) // REAL)
    done = 0
    for row in rows[::step][:REAL]:
        task = api.read_task(vnncomp / "dev" / row["onnx"], vnncomp / "dev" / row["vnnlib"])
        problem, _ = api.make_problem(task)
        every = np.arange(task.property.spec.rows)
        found = {m: bound_rows(problem.engine, parse_recipe(m), SEARCH, task.property, every) for m in METHODS}
        least = attacked(problem, every)
        scale = 1e-3 * (1 + np.abs(found["crown"]))
        for method, values in found.items():
            assert (values <= least + 1e-4 * (1 + np.abs(least))).all(), (row["onnx"], method)
        for one, two in (
            ("interval", "zonotope & interval"),
            ("interval", "crown"),
            ("crown-ibp", "crown"),
            ("crown", "alpha-crown"),
        ):
            if (one, two) != ("crown-ibp", "crown"):  # adaptive slopes may lose by tighter bounds
                assert (found[two] >= found[one] - scale).all(), (row["onnx"], one, two)
        done += 1
    assert done == REAL


def attacked(problem, every) -> np.ndarray:
    """The least value of each row over corners, random points and gradient walks of its box."""
    prop, context = problem.property, problem.engine.evaluator(SEARCH)
    box, least = prop.spec.row_box(), np.full(len(every), np.inf)
    for b in np.unique(box):
        low, high = (torch.from_numpy(t[b]).float() for t in (prop.inputs.lower, prop.inputs.upper))
        here = np.flatnonzero(box == b)
        C, d = torch.from_numpy(prop.spec.C[here].toarray()).float(), torch.from_numpy(prop.spec.d[here]).float()
        x = low + torch.rand(64, len(low), generator=torch.Generator().manual_seed(0)) * (high - low)
        for k in range(20):
            x = x.detach().requires_grad_()
            value = run.evaluate(context, x).flatten(1) @ C.T + d
            least[here] = np.minimum(least[here], value.detach().amin(0).numpy())
            row = k % len(here)
            step = torch.autograd.grad(value[:, row].sum(), x)[0].sign() * (high - low) * 0.2
            x = torch.minimum(torch.maximum(x.detach() - step, low), high)
    return least
