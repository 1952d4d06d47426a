"""Semidefinite programs: what is lifted, what is proved of it, and the order of relaxations, against exact arithmetic."""

from __future__ import annotations

import sys
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from exact_oracle import PRECISION
from exact_phases import phases
from nets import relu_net
from program_answers import Asked
from test_programs import as_variables, network_values
from tiny_networks import KINDS, tiny

from absdom import ops
from absdom.domain import Encoded
from absdom.encoding import Style
from absdom.errors import BudgetError, UsageError
from absdom.input_set import Ball, InputSet
from absdom.ir.graph import Builder as GraphBuilder
from absdom.plan import run
from absdom.plan.programs import encoder_within_budget
from absdom.plan.recipes import parse_recipe
from absdom.sets import InputBatch
from absdom.solvers.sdp import cliques, conic, products
from absdom.solvers.sdp.lift import lift
from absdom.solvers.sdp.recipe import SemidefiniteProgram, split
from absdom.solvers.sdp.safe import Multipliers, diagonal, lagrangian, proved, safe_bound
from absdom.types import Clock, TensorType

BENT = tuple(k for k in KINDS if k.__name__ in ("relu", "one_layer", "residual", "leaky", "absolute"))
FORMS = Style(quadratics=True)
NEVER = Clock()


def lifted_of(net, recipe: str = "lp(pre=crown)", **options):
    encoding = Asked(net.graph, net.lower, net.upper, recipe).encoding(FORMS)
    return encoding, lift(encoding, encoding.objective(net.c), **options)


# What is lifted


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_every_point_of_a_network_satisfies_its_lifted_program(kind, by_layer):
    """Rows, forms, products and the objective, up to their own slack, in numbers of 300 bits."""
    for seed in (3,):
        net, random = tiny(seed, (kind,), full=True), np.random.default_rng(seed)
        asked = Asked(net.graph, net.lower, net.upper, "lp(pre=crown)")
        encoding = asked.encoding(FORMS)
        lifted = products.with_equalities(lift(encoding, encoding.objective(net.c), by_layer))
        pairs = random.integers(0, lifted.rows.shape[0] + 2 * lifted.order - 2, (2, 10))
        lifted = products.with_products(lifted, *pairs)
        for _ in range(3):
            share = random.integers(0, 65, len(net.lower))
            x = [Fraction(a) + (Fraction(b) - Fraction(a)) * int(t) / 64
                 for a, b, t in zip(net.lower, net.upper, share, strict=True)]  # fmt: skip
            with mpmath.workprec(PRECISION):
                v = as_variables(encoding, network_values(asked, x))
                assert_lifted(lifted, encoding, v, net)


def assert_lifted(lifted, encoding, v, net) -> None:
    tiny_amount = mpmath.mpf(2) ** -(PRECISION - 40)
    # A free column is centre + radius w; what it is in w is read off the columns themselves.
    u = [mpmath.mpf(1)] * lifted.order
    own = lifted.values.tocsc()
    for j in range(1, lifted.order):
        k = next(k for k in own[:, [j]].indices if set(lifted.values[[k]].indices) <= {0, j})
        u[j] = (v[k] - mpmath.mpf(lifted.values[k, 0])) / mpmath.mpf(lifted.values[k, j])
        assert abs(u[j]) <= 1 + tiny_amount, net.name

    def at(matrix):
        return [
            sum((mpmath.mpf(a) * u[j] for j, a in zip(r.indices, r.data, strict=True)), mpmath.mpf(0)) for r in matrix
        ]

    def holds(values, slack, equality):
        for value, s, same in zip(values, slack, equality, strict=True):
            assert value <= mpmath.mpf(s) + tiny_amount and (not same or -value <= mpmath.mpf(s) + tiny_amount), (
                net.name
            )

    found = at(lifted.values)
    assert all(abs(a - b) <= mpmath.mpf(e) + tiny_amount for a, b, e in zip(found, v, lifted.value_error, strict=True))
    holds(at(lifted.rows), lifted.row_slack, lifted.row_equality)
    total = [mpmath.mpf(0)] * lifted.form_count
    for q, a, b in zip(lifted.form, at(lifted.left), at(lifted.right), strict=True):
        total[q] += a * b
    holds(total, lifted.form_slack, lifted.form_equality)
    objective = encoding.objective(net.c)
    true = sum(mpmath.mpf(a) * b for a, b in zip(objective.slope, v, strict=True))
    cost = sum(mpmath.mpf(a) * b for a, b in zip(lifted.cost, u, strict=True))
    assert abs(true - cost) <= mpmath.mpf(lifted.cost_slack) + tiny_amount, net.name


def test_what_equalities_define_is_substituted():
    """Free are the inputs and the outputs of unstable neurons; by layer, a form knows two adjacent layers only."""
    for seed in range(12):
        net = tiny(seed, BENT)
        encoding, whole = lifted_of(net)
        moving = int((net.lower < net.upper).sum())
        assert whole.order == 1 + moving + encoding.quadratics.count, net.name
        assert not whole.row_equality.any()
        layered = lift(encoding, encoding.objective(net.c), by_layer=True)
        for left, right in zip(layered.left, layered.right, strict=True):
            used = np.concatenate([left.indices, right.indices])
            assert len(set(layered.block[used[used > 0] - 1])) <= (4 if "residual" in net.name else 3), net.name


# What is proved


def is_semidefinite(matrix: list[list[Fraction]]) -> bool:
    """By elimination in rationals."""
    matrix = [row[:] for row in matrix]
    while matrix:
        pivot, n = matrix[0][0], len(matrix)
        if pivot < 0 or (pivot == 0 and any(matrix[0])):
            return False
        matrix = [
            [matrix[i][j] - (matrix[i][0] * matrix[0][j] / pivot if pivot else 0) for j in range(1, n)]
            for i in range(1, n)
        ]
    return True


@pytest.mark.parametrize("seed", range(12))
def test_a_proof_by_factorisation_holds_in_rationals(seed):
    """-sum D - (what was lost), spread over the diagonal, makes the exact matrix semidefinite; also where it hardly is."""
    random, n = np.random.default_rng(seed), 7
    factor = random.standard_normal((n, (n, 3, 1)[seed % 3])) * 10.0 ** random.uniform(-6, 6, (n, 1))
    M = factor @ factor.T
    M = (M + M.T) / 2
    squares = np.abs(random.standard_normal(n - 1)) * (seed % 2)
    if seed >= 6:
        M -= np.diag(random.random(n) * np.abs(M).max())
    D = diagonal(M, squares)
    bound = proved(M, D)
    assert np.isfinite(bound) and (D[1:] >= 0).all()
    lost = (sum(-Fraction(float(t)) for t in D) - Fraction(bound)) / n
    assert lost > 0
    exact = [[Fraction(float(M[i, j])) + (i == j) * (Fraction(float(D[i])) + lost) for j in range(n)] for i in range(n)]
    assert is_semidefinite(exact)
    assert proved(M - np.diag(np.full(n, 2 * np.abs(M).max() + D.max())), D) == -np.inf


@pytest.mark.parametrize("n", [8, 40, 100])
def test_a_factor_that_overflows_proves_nothing(n):
    """Some LAPACKs run to their end over NaN: here a 2 by 2 minor has the determinant -1e400."""
    for seed in range(30):
        random, M = np.random.default_rng(seed), 1e10 * np.eye(n)
        i, j = np.sort(random.choice(np.arange(1, n), 2, replace=False))
        M[i, i], M[i, j], M[j, i] = 1e-300, 1e200, 1e200
        for k in random.integers(1, n, 3):
            M[i, k] = M[k, i] = M[i, k] if k in (i, j) else 1.0
        assert proved(M, np.zeros(n)) == -np.inf


@pytest.mark.parametrize("seed", range(6))
def test_the_lagrangian_in_rationals(seed):
    """What was rounded while it was summed is less than its charge, at the corners of the box too."""
    net, random = tiny(seed, BENT, full=True), np.random.default_rng(seed)
    _, lifted = lifted_of(net)
    rows, forms = np.abs(random.standard_normal(lifted.rows.shape[0])), random.standard_normal(lifted.form_count)
    M, charge = lagrangian(lifted, rows, forms)
    paid = np.abs(rows) @ lifted.row_slack + np.abs(forms) @ lifted.form_slack + lifted.cost_slack
    M = [[Fraction(float(t)) for t in row] for row in M]
    for _ in range(10):
        u = [Fraction(1)] + [Fraction(int(t)) for t in random.choice([-1, 1], lifted.order - 1)]

        def at(matrix, u=u):
            return [sum((Fraction(float(a)) * u[j] for j, a in zip(r.indices, r.data, strict=True)), Fraction(0))
                    for r in matrix]  # fmt: skip

        true = sum(Fraction(float(c)) * t for c, t in zip(lifted.cost, u, strict=True))
        true += sum(Fraction(float(y)) * r for y, r in zip(rows, at(lifted.rows), strict=True))
        both = zip(lifted.form, at(lifted.left), at(lifted.right), strict=True)
        true += sum(Fraction(float(forms[q])) * a * b for q, a, b in both)
        held = sum(M[i][j] * u[i] * u[j] for i in range(len(u)) for j in range(len(u)))
        assert true >= held - Fraction(charge) + Fraction(float(paid))


@pytest.mark.parametrize("kind", ["random", "huge", "tiny", "nan", "infinite", "one", "zero"])
def test_any_multipliers_prove_nothing_wrong(kind):
    for seed in range(6):
        net, random = tiny(seed, full=seed % 2 == 1), np.random.default_rng(seed)
        least, _ = phases(net.graph, net.lower, net.upper).least(net.c)
        _, lifted = lifted_of(net, by_layer=seed % 3 == 0)
        for _ in range(2):
            parts = []
            for size in (lifted.rows.shape[0], lifted.form_count, lifted.order - 1):
                y, spots = random.standard_normal(size), random.random(size) < 0.3
                parts.append(
                    {
                        "random": y * 10.0 ** random.uniform(-4, 4, size), "huge": y * 1e300, "tiny": y * 1e-310,
                        "nan": np.where(spots, np.nan, y), "infinite": np.where(spots, np.inf * np.sign(y), y),
                        "one": spots * 1e9 * (np.cumsum(spots) == 1), "zero": 0 * y,
                    }[kind]
                )  # fmt: skip
            for polish in (False, True):
                assert safe_bound(lifted, Multipliers(*parts), polish) <= least, net.name


# The relaxation


def bounds(net, c, kind: str, rounds: int, **options) -> tuple[float, float]:
    encoding = Asked(net.graph, net.lower, net.upper, "lp(pre=crown)").encoding(FORMS)
    recipe = SemidefiniteProgram(None, rounds, kind, **options)
    return recipe.bound(encoding, encoding.objective(c), np.inf, NEVER)[:2]


@pytest.mark.parametrize("seed", range(5))
def test_order_from_lp_over_rounds_of_products_to_exact(seed):
    net = tiny(2000 + seed, BENT, full=True)
    exact, _ = phases(net.graph, net.lower, net.upper).least(net.c)
    lp = Asked(net.graph, net.lower, net.upper, "lp(pre=crown)").program(net.c).claimed[0]
    slack, last = 1e-5 * (1 + abs(float(exact))), lp
    for rounds in (0, 1, 2):
        lower, claimed = bounds(net, net.c, "one", rounds)
        assert lower <= exact, net.name
        assert last <= claimed + slack and claimed - slack <= float(exact), (net.name, rounds, lp)
        assert lower >= claimed - 1e-4 * (1 + abs(claimed)), (net.name, rounds)
        last = max(last, claimed)


@pytest.mark.parametrize("kind", ["layers", "variables"])
def test_cliques_lose_nothing_that_forms_say(kind):
    """Without products a chordal completion is as tight as one matrix over the same variables."""
    for seed in range(3):
        net = tiny(seed, BENT, full=True)
        encoding = Asked(net.graph, net.lower, net.upper, "lp(pre=crown)").encoding(FORMS)
        exact, _ = phases(net.graph, net.lower, net.upper).least(net.c)
        lifted, parts = split(encoding, encoding.objective(net.c), kind)
        found = [conic.minimise(lifted, p) for p in (parts, cliques.cliques(lifted, "one"))]
        assert abs(found[0].value - found[1].value) <= 1e-5 * (1 + abs(found[0].value)), net.name
        assert max(safe_bound(lifted, f.multipliers) for f in found) <= exact, net.name
        assert all(len(p) <= lifted.order for p in parts) and all(p[0] == 0 for p in parts)


def test_cliques_are_two_adjacent_layers():
    graph, _ = relu_net((4, 8, 8, 8, 8, 1), 3)
    encoding = Asked(graph, -np.ones(4), np.ones(4), "lp(pre=crown)").encoding(FORMS)
    whole, one = split(encoding, encoding.objective(np.ones(1)), "one")
    layered, parts = split(encoding, encoding.objective(np.ones(1)), "layers")
    assert len(parts) >= 3 and max(len(p) for p in parts) < 2 * len(one[0]) / 3
    assert {int(j) for p in parts for j in p} == set(range(layered.order))
    assert cliques.work(parts) < cliques.work(one)


@pytest.mark.parametrize("solver", ["scs", "clarabel"])
def test_sloppy_or_stopped_solvers_prove_nothing_wrong(solver):
    for seed in range(4):
        net = tiny(seed, BENT, full=True)
        exact, _ = phases(net.graph, net.lower, net.upper).least(net.c)
        encoding, lifted = lifted_of(net)
        part = [np.arange(lifted.order)]
        fine = conic.minimise(lifted, part, "clarabel")
        sloppy = conic.minimise(lifted, part, solver, tolerance=1e-2)
        stopped = conic.minimise(lifted, part, solver, tolerance=1e-9, limit=1e-9)
        found = [safe_bound(lifted, s.multipliers) for s in (fine, sloppy, stopped)]
        assert max(found) <= exact, net.name
        assert found[1] >= fine.value - 0.1 * (1 + abs(fine.value)), net.name  # of use all the same
        assert np.isfinite(found[2]), net.name


def test_polished_squares_bring_a_sloppy_answer_nearer():
    gained = []
    for seed in range(6):
        net = tiny(seed, BENT, full=True)
        _, lifted = lifted_of(net)
        sloppy = conic.minimise(lifted, [np.arange(lifted.order)], "scs", tolerance=3e-2).multipliers
        found = [safe_bound(lifted, sloppy._replace(squares=0 * sloppy.squares), polish) for polish in (False, True)]
        assert found[1] >= found[0]
        gained.append(found[1] - found[0])
    assert max(gained) > 1e-3


def test_an_l2_ball_is_a_quadratic_form():
    """Tighter than its box, and below what its points reach."""
    net = tiny(2, BENT, full=True)
    n = len(net.lower)
    ball = InputSet(-np.ones((1, n)), np.ones((1, n)), (Ball(np.zeros((1, n)), np.ones((1, 1)), 2),))
    asked = Asked(net.graph, -np.ones(n), np.ones(n), "sdp(pre=crown)")
    boxed = asked.program(net.c).lower[0]
    asked.batch = InputBatch.of(ball, asked.context.arithmetic)
    with torch.no_grad():
        asked.bounds = run.propagate(asked.context, asked.batch)
    round_ = asked.program(net.c).lower[0]
    random = np.random.default_rng(0)
    x = random.standard_normal((4000, n))
    x /= np.maximum(1, np.linalg.norm(x, axis=1, keepdims=True))
    least = (run.evaluate(asked.context, torch.from_numpy(x)).numpy().reshape(4000, -1) @ net.c).min()
    assert boxed < round_ <= least + 1e-12


# The recipe


def test_recipe_as_text_and_its_errors(monkeypatch):
    recipe = parse_recipe("sdp(pre=crown, products=2, cliques=layers, solver=scs, tolerance=0.001)")
    assert isinstance(recipe, Encoded) and recipe.products == 2 and recipe.tolerance == 1e-3
    for text in ("sdp(cliques=some)", "sdp(products=-1)", "sdp(tolerance=0)"):
        with pytest.raises(UsageError):
            parse_recipe(text)
    net = tiny(0, BENT)
    with pytest.raises(UsageError, match=r"absdom\[mosek\]|no such solver"):
        Asked(net.graph, net.lower, net.upper, "sdp(solver=no-such)").program(net.c)
    with pytest.raises(BudgetError, match="a matrix of order"):
        Asked(net.graph, net.lower, net.upper, "sdp(budget=0.001)").program(net.c)
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(UsageError, match=r"absdom\[solvers\]"):
        Asked(net.graph, net.lower, net.upper, "sdp").program(net.c)


@pytest.mark.parametrize("recipe", ["sdp(pre=crown)", "sdp-fo(pre=crown)"])
def test_a_box_of_one_point_is_its_value(recipe):
    net = tiny(1, BENT, full=True)
    asked = Asked(net.graph, net.lower, net.lower, recipe)
    true = run.evaluate(asked.context, torch.from_numpy(net.lower)[None]).numpy().ravel() @ net.c
    found = asked.program(net.c)
    assert found.lower[0] == pytest.approx(true, rel=1e-9, abs=1e-9) and (found.points[0] == net.lower).all()
    assert asked.program(np.stack([net.c, net.c - 1]), group=np.zeros(2, dtype=int)).lower[0] >= true - 1e-4


@pytest.mark.parametrize("recipe", ["sdp(pre=crown)", "sdp-fo(pre=crown)"])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_columns_without_bounds(recipe):
    """Rows that depend on one have no bound; the others keep theirs."""
    builder = GraphBuilder()
    x = builder.input("x", TensorType((1, 2), "float64"))
    large = builder.add(ops.Exp(), x)
    graph = builder.finish([builder.add(ops.Concat(1), large, builder.add(ops.Sigmoid(), large))])
    found = Asked(graph, -np.full(2, 900.0), np.full(2, 900.0), recipe).program(np.eye(4)[[0, 2]])
    assert found.lower[0] == -np.inf and np.isnan(found.claimed[0])
    assert found.lower[1] == pytest.approx(0.5, abs=1e-3)


def test_predicted_orders_are_those_built():
    for seed in range(10):
        net = tiny(seed, BENT)
        asked = Asked(net.graph, net.lower, net.upper, "sdp(pre=crown)")
        _, lifted = lifted_of(net)
        (program,) = asked.context.schedule.encoded
        ones = torch.eye(2, dtype=torch.float64)
        encoder = encoder_within_budget(
            asked.context, program, asked.context.schedule.final, asked.batch, asked.bounds, ones
        )
        (order,) = program.size(encoder.predict(program.style)).blocks
        assert lifted.order <= order <= lifted.order + 1, net.name
