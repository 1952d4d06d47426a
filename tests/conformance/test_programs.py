"""Programs against exact enumeration in rational numbers: the encodings, MILP's minimum, and every safe bound.

A safe bound is never above the true minimum, with no tolerance at all: the oracle is exact.
"""

from __future__ import annotations

import inspect
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from exact_oracle import PRECISION, real_values
from exact_phases import phases, rational
from nets import exact_minimum, relu_net
from program_answers import Asked, needs
from tiny_networks import KINDS, largest, tiny

from absdom import registry
from absdom.encoding import Objective, Style
from absdom.types import Clock

EXACT = Style(integers=True)
CLAIM = 1e-6  # how far a solver's claim of an exact minimum may be off, relative to 1 + its size
GAP = 1e-4  # how far a safe bound may lie below the claim, likewise


@pytest.mark.parametrize("seed", range(4))
def test_the_oracle_is_enumeration_by_linear_programs(seed):
    graph, layers = relu_net((3, 4, 4, 2), seed)
    c, lower, upper = np.array([1.0, -1.0]), -np.ones(3), np.ones(3)
    least, point = phases(graph, lower, upper).least(c)
    assert float(least) == pytest.approx(exact_minimum(layers, c, 0.0, lower, upper), abs=1e-9)
    at_point, _ = phases(graph, point.ravel(), point.ravel()).least(c)
    assert float(at_point) == pytest.approx(float(least), abs=1e-9)  # the point is rounded to float64 here


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_the_oracle_lies_below_all_samples(kind):
    for seed in range(3):
        net = tiny(seed, (kind,))
        found = phases(net.graph, net.lower, net.upper)
        least, point = found.least(net.c)
        share = np.random.default_rng(seed).integers(0, 65, (40, len(net.lower))) / 64
        values = [phases(net.graph, x, x).least(net.c)[0] for x in net.lower + share * (net.upper - net.lower)]
        assert least <= min(values)
        assert all(Fraction(low) <= x <= Fraction(high) for low, x, high in zip(net.lower, point.ravel(), net.upper))


def agrees(seed: int, recipe: str) -> None:
    """The claim is the exact minimum, the safe bound lies below that and near the claim, the point attains it."""
    net = tiny(seed)
    least, _ = phases(net.graph, net.lower, net.upper).least(net.c)
    answer = Asked(net.graph, net.lower, net.upper, recipe).program(net.c)
    size = 1 + abs(float(least))
    assert abs(answer.claimed[0] - float(least)) <= CLAIM * size, net.name
    assert answer.lower[0] <= least, net.name
    assert answer.lower[0] >= answer.claimed[0] - GAP * size, net.name
    x = np.clip(answer.points[0], net.lower, net.upper)
    assert np.abs(x - answer.points[0]).max() <= CLAIM, net.name
    assert float(phases(net.graph, x, x).least(net.c)[0]) <= float(least) + 10 * CLAIM * size, net.name


@pytest.mark.parametrize("part", range(10))
def test_milp_is_exact(part):
    needs("milp")
    for seed in range(20 * part, 20 * part + 20):
        agrees(seed, "milp(pre=crown, gap=1e-7)")


@pytest.mark.nightly
def test_milp_is_exact_on_two_thousand():
    needs("milp")
    for seed in range(2000):
        agrees(seed, "milp(pre=crown, gap=1e-7)")


def test_milp_is_exact_over_intervals_too():
    """Loose bounds mean large big-M constants, and more binaries."""
    needs("milp")
    for seed in range(500, 510):
        agrees(seed, "milp(pre=interval, gap=1e-7)")


@pytest.mark.parametrize("recipe", ["lp", "sdp", "sdp-fo"])
def test_safe_bounds_lie_below_the_exact_minimum(recipe):
    needs(recipe)
    for seed in range(30 if recipe == "lp" else 6):
        net = tiny(seed, full=seed % 2 == 1)
        least, _ = phases(net.graph, net.lower, net.upper).least(net.c)
        answer = Asked(net.graph, net.lower, net.upper, f"{recipe}(pre=crown)").program(net.c)
        assert answer.lower[0] <= least, net.name
        if recipe == "lp":
            assert answer.lower[0] >= answer.claimed[0] - GAP * (1 + abs(float(least))), net.name


@pytest.mark.parametrize("recipe", ["lp", "milp", "sdp", "sdp-fo"])
def test_the_largest_of_several_rows(recipe):
    """A conjunction: how low the largest of its rows can be, all of one program."""
    needs(recipe)
    for seed in range(800, 810 if recipe in ("lp", "milp") else 803):
        net = tiny(seed)
        random = np.random.default_rng(seed)
        C, d = np.round(random.standard_normal((3, 2)) * 8) / 8, np.round(random.standard_normal(3) * 4) / 8
        least, _ = phases(largest(net.graph, C, d), net.lower, net.upper).least([1.0])
        text = "milp(pre=crown, gap=1e-7)" if recipe == "milp" else f"{recipe}(pre=crown)"
        answer = Asked(net.graph, net.lower, net.upper, text).program(C, d, group=[0, 0, 0])
        size = 1 + abs(float(least))
        assert answer.lower[0] <= least, net.name
        if recipe == "milp":
            assert abs(answer.claimed[0] - float(least)) <= CLAIM * size, net.name
            assert answer.lower[0] >= answer.claimed[0] - GAP * size, net.name


# Encodings


def network_values(asked: Asked, x) -> dict[int, np.ndarray]:
    """The values of all nodes of the lowered graph at a rational point, in numbers of 300 bits."""
    with mpmath.workprec(PRECISION):
        flat = np.array([mpmath.mpf(t.numerator) / t.denominator for t in x], dtype=object)
        return real_values(asked.context.graph, flat)


def as_variables(encoding, values) -> np.ndarray:
    """The variables of a point of the network: values of nodes, and choices as those have them."""
    out = np.array([mpmath.mpf(0)] * len(encoding.lower), dtype=object)
    for i, columns in encoding.columns_of.items():
        out[columns[columns >= 0]] = values[i].ravel()[columns >= 0]
    for choice in encoding.choices:
        if choice.kind == "pieces":
            piece = int(np.sum([out[choice.source[0]] > end for end in choice.ends[:-1]]))
        else:
            order = out[choice.source] * (1 if choice.kind == "largest" else -1)
            piece = int(np.argmax(order))
        holds = np.arange(len(choice.binaries)) == piece
        out[choice.binaries] = holds if len(holds) > 1 else piece
        if choice.parts.size:
            for part, value in zip(choice.parts, (choice.source[0], choice.value), strict=False):
                out[part] = holds * out[value]
    return out


def assert_satisfied(encoding, v, name) -> None:
    """Every row, bound and quadratic form holds at v, up to its own slack and what 300 bits can round."""
    with mpmath.workprec(PRECISION):
        rounding = mpmath.mpf(2) ** -(PRECISION - 40)
        size = 1 + max(abs(t) for t in v)
        for t, low, high in zip(v, encoding.lower, encoding.upper, strict=True):
            assert mpmath.mpf(low) - rounding * size <= t <= mpmath.mpf(high) + rounding * size, name
        m = encoding.matrix
        for k, (low, high, slack) in enumerate(zip(encoding.low, encoding.high, encoding.slack, strict=True)):
            span = slice(m.indptr[k], m.indptr[k + 1])
            total = sum(mpmath.mpf(a) * v[j] for a, j in zip(m.data[span], m.indices[span], strict=True))
            spare = mpmath.mpf(slack) + rounding * size * (1 + np.abs(m.data[span]).max(initial=0.0))
            assert low - spare <= total <= high + spare, (name, k, low, high, slack, float(total))
        q = encoding.quadratics
        totals = [mpmath.mpf(t) for t in q.constant]
        for form, i, j, a in zip(q.form, q.first, q.second, q.value, strict=True):
            totals[form] += mpmath.mpf(a) * v[i] * v[j]
        linear = q.linear.tocoo()
        for form, j, a in zip(linear.row, linear.col, linear.data, strict=True):
            totals[form] += mpmath.mpf(a) * v[j]
        for total, equality, slack in zip(totals, q.equality, q.slack, strict=True):
            spare = mpmath.mpf(slack) + rounding * size**2 * 1e3
            assert total <= spare and (total >= -spare or not equality), (name, float(total), slack)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_every_point_of_a_network_satisfies_its_encoding(kind):
    """At random points, and at the kinks themselves: exactly, with weights of all their bits."""
    for seed in range(2):
        net = tiny(seed, (kind,), full=True)
        asked = Asked(net.graph, net.lower, net.upper, "lp(pre=crown)")
        random = np.random.default_rng(seed)
        kinks = [x for xs in phases(net.graph, net.lower, net.upper).inputs for x in xs.reshape(len(xs), -1)]
        share = random.random((4, len(net.lower)))
        points = [rational(x) for x in net.lower + share * (net.upper - net.lower)]
        points = [np.clip(x, rational(net.lower), rational(net.upper)) for x in points]
        points += [kinks[k] for k in random.choice(len(kinks), min(6, len(kinks)), replace=False)]
        for style in (Style(), EXACT, Style(quadratics=True)):
            encoding = asked.encoding(style)
            for x in points:
                with mpmath.workprec(PRECISION):
                    assert_satisfied(encoding, as_variables(encoding, network_values(asked, x)), (net.name, style))


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_encodings_with_binaries_are_complete(kind):
    for seed in range(3):
        net = tiny(seed, (kind,))
        assert Asked(net.graph, net.lower, net.upper, "lp(pre=interval)").encoding(EXACT).complete, net.name


# The safe bound


def lagrangian(encoding, objective: Objective, y: np.ndarray) -> Fraction:
    """min over the box of <c, v> + constant - <y, A v - side> - |y| slack, exactly: the bound that y proves."""
    slope, m = rational(objective.slope), encoding.matrix.tocoo()
    total = Fraction(objective.constant) - Fraction(objective.slack)
    y = [Fraction(float(t)) for t in y]
    for i, j, a in zip(m.row, m.col, m.data, strict=True):
        slope[j] -= Fraction(float(a)) * y[i]
    for t, low, high, slack in zip(y, encoding.low, encoding.high, encoding.slack, strict=True):
        if t:
            total += t * Fraction(float(low if t > 0 else high)) - abs(t) * Fraction(float(slack))
    ends = zip(slope, rational(encoding.lower), rational(encoding.upper), strict=True)
    return total + sum(min(s * low, s * high) for s, low, high in ends)


@pytest.mark.parametrize("seed", range(12))
def test_safe_bounds_are_the_lagrangian_in_rationals(seed):
    """For any multipliers: never above the exact value of what they prove, and hardly below."""
    net, random = tiny(seed, full=True), np.random.default_rng(seed)
    encoding = Asked(net.graph, net.lower, net.upper, "lp(pre=crown)").encoding(EXACT)
    least, _ = phases(net.graph, net.lower, net.upper).least(net.c)
    if seed % 3 == 0:
        encoding, objective = encoding.with_maximum(np.stack([net.c, net.c]), np.zeros(2))
    else:
        objective = encoding.objective(net.c)
    sided = np.isfinite(encoding.low), np.isfinite(encoding.high)
    for scale in (0.0, 1e-3, 1.0, 1e3, 1e12):
        y = random.standard_normal(len(encoding.low)) * scale * (random.random(len(encoding.low)) < 0.7)
        held = np.where(y > 0, np.where(sided[0], y, 0.0), np.where(sided[1], y, 0.0))
        found, true = encoding.safe_bound(objective, y), lagrangian(encoding, objective, held)
        assert found <= true and found <= least
        assert found >= float(true) - 1e-11 * (1 + scale) * (1 + abs(float(true)) + np.abs(encoding.matrix.data).sum())


@pytest.mark.parametrize("kind", ["nan", "infinite", "huge", "tiny", "negated"])
def test_safe_bounds_of_multipliers_that_are_rubbish(kind):
    for seed in range(10):
        net, random = tiny(seed), np.random.default_rng(seed)
        encoding = Asked(net.graph, net.lower, net.upper, "lp(pre=crown)").encoding(Style())
        least, _ = phases(net.graph, net.lower, net.upper).least(net.c)
        y = random.standard_normal(len(encoding.low))
        spots = random.random(len(y)) < 0.3
        match kind:
            case "nan":
                y[spots] = np.nan
            case "infinite":
                y[spots] = np.inf * np.sign(y[spots])
            case "huge":
                y *= 1e300
            case "tiny":
                y *= 1e-310
            case "negated":
                y = -y
        assert encoding.safe_bound(encoding.objective(net.c), y) <= least, net.name


@pytest.mark.parametrize("seed", range(3))
def test_narrower_columns_of_a_leaf(seed):
    """With a binary fixed, the safe bound is that of the half of the box where the piece holds."""
    net, torch_seed = tiny(seed * len(KINDS), full=True), torch.Generator().manual_seed(seed)
    asked = Asked(net.graph, net.lower, net.upper, "lp(pre=crown)")
    encoding = asked.encoding(EXACT)
    binaries = np.flatnonzero(encoding.integer)
    cells = phases(net.graph, net.lower, net.upper)
    for b in binaries:
        for side in (0.0, 1.0):
            lower, upper = encoding.lower.copy(), encoding.upper.copy()
            lower[b] = upper[b] = side
            y = torch.randn(len(encoding.low), generator=torch_seed, dtype=torch.float64).numpy()
            bound = encoding.safe_bound(encoding.objective(net.c), y, lower, upper)
            with mpmath.workprec(PRECISION):
                for ys, xs in zip(cells.outputs, cells.inputs, strict=True):
                    middle = xs.reshape(len(xs), -1).sum(0) / len(xs)
                    v = as_variables(encoding, network_values(asked, middle))
                    if v[b] == side:
                        assert bound <= float((ys @ rational(net.c)).sum() / len(ys)) + 1e-9


# Solvers


@pytest.mark.parametrize("solver", ["highs", "scipy", "cbc"])
def test_mixed_integer_solvers_agree(solver):
    """Each solver's own claim is the exact minimum; CBC runs through PuLP."""
    needs("milp")
    pytest.importorskip({"highs": "highspy", "cbc": "pulp"}.get(solver, "scipy"))
    for seed in range(300, 302):
        agrees(seed, f"milp(pre=crown, gap=1e-7, solver={solver})")


@pytest.mark.parametrize("recipe", ["lp", "milp", "sdp", "sdp-fo"])
@pytest.mark.parametrize("options", [{"tolerance": 1e-2}, {"tolerance": 0.3}, {"clock": 0.0}, {"clock": 0.01}])
def test_sloppy_solvers_and_solvers_that_are_stopped(recipe, options):
    """Below the true minimum always."""
    needs(recipe)
    options = dict(options)
    clock = options.pop("clock", np.inf)
    if not options.keys() <= inspect.signature(registry.recipes()[recipe]).parameters.keys():
        pytest.skip(f"{recipe} takes no tolerance")
    for seed in range(400, 406 if recipe in ("lp", "milp") else 402):
        net = tiny(seed)
        least, _ = phases(net.graph, net.lower, net.upper).least(net.c)
        asked = Asked(net.graph, net.lower, net.upper, f"{recipe}(pre=crown)", **options)
        assert asked.program(net.c, clock=Clock(clock)).lower[0] <= least, net.name
