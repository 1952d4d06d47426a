"""Linear programs: solvers that agree, warm starts, rays, tangents to balls, and bounds that hold when solvers fail."""

from __future__ import annotations

import builtins
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from nets import exact_minimum, relu_net

from absdom.arithmetic import PROOF
from absdom.datasets import rows_property
from absdom.encoding import Builder, Objective, Style
from absdom.errors import UsageError
from absdom.input_set import Ball, Ellipsoid, InputSet
from absdom.plan import run
from absdom.plan.programs import solve
from absdom.plan.recipes import parse_recipe
from absdom.problem import Problem, bound_rows, spec_rows
from absdom.property import Property
from absdom.sets import InputBatch
from absdom.solvers.lp import recipe as lp_recipe
from absdom.solvers.lp.backend import HighsProgram, ScipyProgram, open_program
from absdom.solvers.lp.bounds import bound_groups, safe
from absdom.types import Clock

SOLVERS = ("highs", "scipy")


def encoding_of(seed: int, empty: bool = False):
    """A random encoding with a point in it, or (`empty`) with none."""
    random, builder = np.random.default_rng(seed), Builder(Style())
    lower, upper = -2 * random.random(20), 2 * random.random(20)
    columns = builder.columns(lower, upper, 0)
    matrix = np.where(random.random((15, 20)) < 0.4, random.standard_normal((15, 20)), 0)
    at = matrix @ random.uniform(lower, upper)
    low = np.where(random.random(15) < 0.6, at - 0.3 * random.random(15), -np.inf)
    high = np.where(random.random(15) < 0.6, at + 0.3 * random.random(15), np.inf)
    equal = random.random(15) < 0.2
    low[equal] = high[equal] = at[equal]
    if empty:
        low[0] = high[0] = 100.0
    row, column = np.nonzero(matrix)
    builder.add_rows(row, columns[column], matrix[row, column], low, high)
    return builder.finish(columns, columns, {}), random


@pytest.mark.parametrize("seed", range(25))
def test_solvers_agree_and_a_warm_start_changes_nothing(seed):
    encoding, random = encoding_of(seed)
    programs = [open_program(encoding, solver) for solver in SOLVERS]
    middle = (encoding.lower + encoding.upper) / 2
    for k in range(6):
        objective = encoding.objective(random.standard_normal(20), 0.5)
        lower, upper = (middle - 0.9, middle + 0.9) if k % 2 else (None, None)
        found = [p.minimise(objective, lower, upper) for p in programs]
        found.append(open_program(encoding).minimise(objective, lower, upper))
        assert len({s.status for s in found}) == 1
        if found[0].status == "infeasible":
            continue
        values = [s.value for s in found]
        np.testing.assert_allclose(values, values[0], rtol=1e-6, atol=1e-6)
        for s in found:
            bound = encoding.safe_bound(objective, s.multipliers, lower, upper)
            assert s.value - 1e-6 <= bound <= s.value + 1e-7


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("seed", range(8))
def test_rays_prove_that_a_leaf_is_empty(seed, solver):
    encoding, random = encoding_of(seed, empty=True)
    objective = encoding.objective(random.standard_normal(20))
    found = open_program(encoding, solver).minimise(objective)
    assert found.status == "infeasible"
    assert encoding.safe_bound(Objective(np.zeros(20)), found.multipliers) == pytest.approx(1)
    bounds = [encoding.safe_bound(objective, m * found.multipliers) for m in (0, 10, 100, 1000)]
    assert np.diff(bounds) == pytest.approx([10, 90, 900], rel=0.5) and bounds[-1] > 900
    top = np.maximum(objective.slope * encoding.lower, objective.slope * encoding.upper).sum()
    assert safe(encoding, objective, found) > top


@pytest.mark.parametrize("solver", SOLVERS)
def test_columns_that_cut_everything_off(solver):
    encoding, random = encoding_of(3)
    objective = encoding.objective(random.standard_normal(20))
    program = open_program(encoding, solver)
    assert program.minimise(objective).status == "optimal"
    corner = np.where(encoding.matrix[0].toarray().ravel() > 0, encoding.upper, encoding.lower) + 3
    assert program.minimise(objective, corner, corner).status == "infeasible"
    assert program.minimise(objective).status == "optimal"


def problem(seed: int, inputs: InputSet | None = None, sizes=(3, 3, 3, 2)):
    """(problem about rows +-y, layers, C) of a random network."""
    graph, layers = relu_net(sizes, seed)
    if inputs is None:
        inputs = InputSet(np.full((1, sizes[0]), -1.0), np.full((1, sizes[0]), 1.0))
    C = np.concatenate([np.eye(sizes[-1]), -np.eye(sizes[-1])])
    return Problem.of(graph, rows_about(inputs, C)), layers, C


@cache
def least_of(seed: int) -> np.ndarray:
    """The exact minima of the rows of `problem(seed)`."""
    _, layers, C = problem(seed)
    return np.array([exact_minimum(layers, c, 0.0, -np.ones(3), np.ones(3)) for c in C])


def rows_about(inputs: InputSet, C: np.ndarray) -> Property:
    return rows_property(inputs, C[None], np.zeros((1, len(C))))


def bounds(problem: Problem, recipe, **options) -> np.ndarray:
    recipe = parse_recipe(recipe) if isinstance(recipe, str) else recipe
    rows = np.arange(problem.property.spec.rows)
    return bound_rows(problem.engine, recipe, PROOF, problem.property, rows, **options)


@pytest.mark.parametrize("recipe", ["lp(pre={'*': interval})", "lp", "lp(solver=scipy)", "lp(tolerance=0.01)"])
def test_below_the_minimum_and_not_looser_than_crown(recipe):
    for seed in range(3):
        asked = problem(seed)[0]
        found = bounds(asked, recipe)
        assert (found <= least_of(seed) + 1e-9).all()
        if recipe == "lp":
            assert (found >= bounds(asked, "alpha-crown") - 1e-7).all()


def test_per_neuron_tightening_of_layers():
    for seed in range(3):
        asked, least = problem(seed)[0], least_of(seed)
        crown, layer, every = (bounds(asked, r) for r in ("lp", "lp(pre={'w1': lp, '*': crown})", "lp(pre={'*': lp})"))
        assert (crown <= every + 1e-7).all() and (crown <= layer + 1e-7).all()
        assert (every <= least + 1e-9).all() and (layer <= least + 1e-9).all()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("limit", [0.0, 1e-6])
def test_stopped_solvers_prove_what_the_columns_do(solver, limit):
    encoding, random = encoding_of(1)
    objective = encoding.objective(random.standard_normal(20))
    program = open_program(encoding, solver)
    stopped, least = program.minimise(objective, limit=limit), program.minimise(objective).value
    assert safe(encoding, objective, stopped) <= least + 1e-7
    assert limit > 0 or (stopped.status, stopped.point) == ("stopped", None)


def test_too_few_steps_of_a_solver(monkeypatch):
    pytest.importorskip("highspy")
    encoding, random = encoding_of(2)
    objective = encoding.objective(random.standard_normal(20))
    least = open_program(encoding).minimise(objective).value
    monkeypatch.setattr("absdom.solvers.lp.backend.LARGE", 0)
    said = set()
    for steps in range(12):
        program = HighsProgram(encoding, None)
        program.model.setOptionValue("presolve", "off")
        program.model.setOptionValue("ipm_iteration_limit", steps)
        found = program.minimise(objective)
        said.add(found.status)
        assert -np.inf < safe(encoding, objective, found) <= least + 1e-7
    assert "stopped" in said


def test_large_programs_start_with_interior_points(monkeypatch):
    pytest.importorskip("highspy")
    monkeypatch.setattr("absdom.solvers.lp.backend.LARGE", 10)
    monkeypatch.setattr("absdom.solvers.lp.backend.STEPS", 3)  # too few: each solve falls back to interior points
    for seed in range(5):
        encoding, random = encoding_of(seed)
        large, plain = open_program(encoding, "highs"), open_program(encoding, "scipy")
        for _ in range(3):
            objective = encoding.objective(random.standard_normal(20))
            one, other = large.minimise(objective), plain.minimise(objective)
            assert one.status == "optimal" and one.value == pytest.approx(other.value, abs=1e-6)
            assert encoding.safe_bound(objective, one.multipliers) == pytest.approx(one.value, abs=1e-6)
    encoding, random = encoding_of(0, empty=True)
    assert open_program(encoding, "highs").minimise(encoding.objective(np.ones(20))).status == "infeasible"


def test_processes_give_what_one_gives(monkeypatch):
    asked, _, _ = problem(0)
    alone = bounds(asked, "lp")
    monkeypatch.setattr(lp_recipe, "ALONE", 0)
    monkeypatch.setattr(lp_recipe, "cores", lambda: 2)
    np.testing.assert_allclose(bounds(asked, "lp"), alone, rtol=1e-7, atol=1e-7)


def test_the_deadline():
    asked, _, _ = problem(0)
    found = bounds(asked, "lp", clock=Clock(0.0))
    assert np.isnan(found).all() or (found <= bounds(asked, "lp") + 1e-9).all()
    encoding, _ = encoding_of(0)
    assert not list(bound_groups(encoding, sp.eye_array(20).tocsr(), np.zeros(20), np.arange(20), "auto", None, 0.0))


def ball_sets():
    random = np.random.default_rng(5)
    centre = random.random((1, 3))
    lower, upper = np.clip(centre - 0.8, 0, 1), np.clip(centre + 0.8, 0, 1)
    root = random.standard_normal((3, 3))
    precision = (root @ root.T + np.eye(3))[None] * 2
    wide = InputSet(centre - 0.8, centre + 0.8)
    yield "ball", replace(wide, parts=(Ball(centre, np.array([[0.8]]), 2),))
    yield "ball and box", InputSet(lower, upper, (Ball(centre, np.array([[0.8]]), 2),))
    yield "half-axes", replace(wide, parts=(Ball(centre, np.array([[0.8, 0.3, 0.0]]), 2),))
    yield "ellipsoid", replace(wide, parts=(Ellipsoid(centre, precision),))


@pytest.mark.parametrize("name, inputs", list(ball_sets()), ids=lambda v: v if isinstance(v, str) else "")
def test_tangents_to_balls(name, inputs):
    for seed in range(4):
        asked, layers, C = problem(seed, inputs)
        found, hull = bounds(asked, "lp"), problem(seed, InputSet(inputs.lower, inputs.upper))[0]
        assert (found >= bounds(asked, "crown") - 1e-6).all()
        assert (found >= bounds(hull, "lp") - 1e-7).all()
        x = np.random.default_rng(seed).uniform(inputs.lower, inputs.upper, (20000, 3))
        step = x - inputs.parts[0].centre
        if name == "ellipsoid":
            inside = np.einsum("ki,ij,kj->k", step, inputs.parts[0].precision[0], step) <= 1
        elif name == "half-axes":
            x[:, 2], step[:, 2] = inputs.parts[0].centre[0, 2], 0
            inside = ((step[:, :2] / [0.8, 0.3]) ** 2).sum(1) <= 1
        else:
            inside = (step**2).sum(1) <= 0.64
        y = x[inside]
        for k, (w, b) in enumerate(layers):
            y = y @ w + b
            y = y.clip(0) if k < len(layers) - 1 else y
        assert inside.sum() > 100 and (found <= (y @ C.T).min(0) + 1e-9).all()


def test_an_affine_network_over_a_ball_is_solved():
    centre = np.array([[0.2, -0.1, 0.4]])
    inputs = InputSet(centre - 1, centre + 1, (Ball(centre, np.array([[1.0]]), 2),))
    asked, [(w, b)], C = problem(0, inputs, sizes=(3, 2))
    exact = C @ (centre[0] @ w + b) - np.linalg.norm(C @ w.T, axis=1)
    found = lp_only(asked)
    assert (found <= exact + 1e-12).all() and found == pytest.approx(exact, abs=1e-6)


def lp_only(asked: Problem) -> np.ndarray:
    """What the programs alone say, over interval bounds."""
    context = asked.engine.context(parse_recipe("lp(pre=interval)"), PROOF)
    batch = InputBatch.of(asked.property.inputs, context.arithmetic)
    with torch.no_grad():
        nu, d = spec_rows(asked.property, np.arange(asked.property.spec.rows), np.array([0]), context.arithmetic)
        known = run.propagate(context, batch)
        (program,) = context.schedule.encoded
        return solve(context, program, context.schedule.final, batch, known, nu, d.numpy(), Clock()).lower


def test_without_highspy(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "highspy":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    encoding, _ = encoding_of(0)
    assert isinstance(open_program(encoding), ScipyProgram)
    with pytest.raises(UsageError, match=r"highspy.*absdom\[solvers\]"):
        open_program(encoding, "highs")
    with pytest.raises(UsageError, match="absdom"):
        parse_recipe("lp(solver=highs)")


@pytest.mark.parametrize("text", ["lp(solver=cplex)", "lp(tolerance=0)", "lp(tolerance=-1)"])
def test_bad_options(text):
    with pytest.raises(UsageError):
        parse_recipe(text)
