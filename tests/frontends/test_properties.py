"""The property language: its meaning against plain evaluation of formulas, its text, its errors, and verdicts with it."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import absdom
from absdom import (
    PropertyError,
    all_of,
    any_of,
    argmax,
    argmin,
    ball,
    box,
    forall,
    implies,
    inputs,
    maximum,
    minimum,
    network,
    outputs,
    robust,
)
from absdom.registry import service

INPUTS, OUTPUTS = 2, 3


def linear(n: int = INPUTS, m: int = OUTPUTS):
    return network(torch.nn.Linear(n, m), torch.zeros(1, n))


NET = linear()
X, Y = inputs(NET), NET(inputs(NET))
UNIT = box([-1] * INPUTS, [1] * INPUTS)


# -- meaning
#
# A formula is drawn as a tree of tuples; `written` makes it in the language, `sure` evaluates it at a point: True if it
# holds however ties of argmax are broken.

numbers = st.integers(-6, 6).map(lambda k: k / 4)
points = st.lists(numbers, min_size=INPUTS + OUTPUTS, max_size=INPUTS + OUTPUTS)
SIGNS = {
    "<=": lambda a, b: a <= b,
    "<": lambda a, b: a < b,
    ">=": lambda a, b: a >= b,
    ">": lambda a, b: a > b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}
coefficients = st.sampled_from([0, 0, 1, -1, 0.5, 2, Fraction(1, 3)])
terms = st.tuples(st.lists(coefficients, min_size=INPUTS + OUTPUTS, max_size=INPUTS + OUTPUTS), numbers)
sides = st.one_of(
    terms.map(lambda t: ("term", t)),
    st.tuples(
        st.sampled_from(["max", "min"]), st.lists(terms, min_size=1, max_size=3), st.sampled_from([1, -2]), numbers
    ),
)
literals = st.one_of(
    st.tuples(st.just("compare"), st.sampled_from(list(SIGNS)), sides, sides),
    st.tuples(st.just("single"), st.sampled_from(list(SIGNS)), st.integers(0, INPUTS - 1), numbers),
    st.tuples(st.just("vector"), st.sampled_from(list(SIGNS)), st.lists(numbers, min_size=OUTPUTS, max_size=OUTPUTS)),
    st.tuples(st.just("wins"), st.sampled_from(["argmax", "argmin"]), st.integers(0, OUTPUTS - 1), st.booleans()),
)
formulas = st.recursive(
    literals,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["and", "or", "implies"]), inner, inner), st.tuples(st.just("not"), inner)
    ),
    max_leaves=5,
)


def written(tree):
    kind, *rest = tree
    if kind == "term":
        weights, constant = rest[0]
        return sum(w * v for w, v in zip(weights, [*X, *Y])) + constant
    if kind in ("max", "min"):
        parts, factor, shift = rest
        extreme = maximum if kind == "max" else minimum
        return factor * extreme(*[written(("term", t)) for t in parts]) + shift
    if kind == "compare":
        return SIGNS[rest[0]](written(rest[1]), written(rest[2]))
    if kind == "single":
        return SIGNS[rest[0]](X[rest[1]], rest[2])
    if kind == "vector":
        return SIGNS[rest[0]](Y, np.array(rest[1]))
    if kind == "wins":
        winner = (argmax if rest[0] == "argmax" else argmin)(Y)
        return winner == rest[1] if rest[2] else winner != rest[1]
    if kind == "not":
        return ~written(rest[0])
    left, right = map(written, rest)
    return {"and": lambda: left & right, "or": lambda: left | right, "implies": lambda: implies(left, right)}[kind]()


def value(tree, point):
    kind, *rest = tree
    if kind == "term":
        weights, constant = rest[0]
        return sum(Fraction(w) * Fraction(v) for w, v in zip(weights, point)) + Fraction(constant)
    parts, factor, shift = rest
    return factor * (max if kind == "max" else min)(value(("term", t), point) for t in parts) + Fraction(shift)


def sure(tree, point, negated: bool = False) -> bool:
    """Does the tree (its negation, if `negated`) hold at the point, however ties are broken?"""
    kind, *rest = tree
    if kind == "not":
        return sure(rest[0], point, not negated)
    if kind in ("and", "or", "implies"):
        found = [sure(rest[0], point, negated != (kind == "implies")), sure(rest[1], point, negated)]
        return all(found) if (kind == "and") != negated else any(found)
    y = point[INPUTS:]
    if kind == "wins":
        scores = y if rest[0] == "argmax" else [-v for v in y]
        others = scores[: rest[1]] + scores[rest[1] + 1 :]
        return scores[rest[1]] > max(others) if rest[2] != negated else scores[rest[1]] < max(others)
    if kind == "compare":
        holds = SIGNS[rest[0]](value(rest[1], point), value(rest[2], point))
    elif kind == "single":
        holds = SIGNS[rest[0]](point[rest[1]], rest[2])
    else:
        each = [SIGNS[rest[0]](a, b) for a, b in zip(y, rest[1])]
        holds = any(each) if rest[0] == "!=" else all(each)
    return holds != negated


@settings(max_examples=300, deadline=None)
@given(formulas, st.lists(points, min_size=8, max_size=8))
def test_a_point_violates_where_the_formula_does_not_hold(tree, some_points):
    prop = forall(UNIT, written(tree))
    for point in some_points:
        x, y = np.array(point[:INPUTS]), np.array(point[INPUTS:])
        inside = bool((abs(x) <= 1).all())
        assert bool(prop.is_counterexample(x, y)) == (inside and not sure(tree, point)), point


def test_every_set_of_a_batch_is_asked():
    sets = absdom.InputSet.box([[0, 0], [2, 2]], [[1, 1], [3, 3]])
    prop = forall(sets, implies(X[0] <= 2.5, Y[0] < 1))
    y = np.array([1.0, 0, 0])
    assert prop.is_counterexample(np.array([0.5, 0.5]), y) and prop.is_counterexample(np.array([2.5, 2]), y)
    assert not prop.is_counterexample(np.array([2.75, 2]), y) and not prop.is_counterexample(np.array([1.5, 1]), y)


def test_a_number_without_float64_is_rounded_once_and_thirds_are_kept():
    # In float64, 13 times a third is more than 13 thirds.
    prop = forall(UNIT, Y[0] / 3 <= Y[1] + Fraction(13, 3))
    x = np.zeros(2)
    assert prop.is_counterexample(x, np.array([np.nextafter(13, 14), 0, 0]))
    assert not prop.is_counterexample(x, np.array([13.0, 0, 0]))
    prop = forall(UNIT, 0.1 + Y[0] <= 0.7)
    assert prop.spec.C.toarray().tolist() == [[-1, 0, 0]]
    assert prop.spec.d.tolist() == [float(Fraction(0.7) - Fraction(0.1))]


def test_a_bound_that_is_not_whole_is_not_rounded_to_a_whole_number():
    """Whole bounds count as exact in proofs, all others as rounded."""
    near = 1 - Fraction(1, 10**20)
    prop = forall(UNIT, implies(X[0] >= near, Y[0] <= 0))
    assert prop.inputs.lower[0, 0] == np.nextafter(1.0, 0)
    assert forall(UNIT, implies(X[0] >= Fraction(1), Y[0] <= 0)).inputs.lower[0, 0] == 1.0


def test_one_input_tightens_the_box_of_its_clause():
    prop = forall(UNIT, implies((X[0] >= 0.25) & (2 * X[1] < 1), Y[0] <= 0))
    assert prop.inputs.lower.tolist() == [[0.25, -1]] and prop.inputs.upper.tolist() == [[1, 0.5]]
    assert prop.is_counterexample(np.array([0.25, 0]), np.ones(3))
    assert not prop.is_counterexample(np.array([0.25, 0.5]), np.ones(3)), "2 x[1] < 1 is strict"


def test_balls_keep_their_shape_under_a_premise():
    prop = forall(ball([0, 0], 1, norm=2), implies(X[0] >= 0.5, Y[0] < 0))
    inside, cut, outside = np.array([0.5, 0.5]), np.array([0.25, 0.5]), np.array([0.8, 0.8])
    assert [bool(prop.is_counterexample(x, np.zeros(3))) for x in (inside, cut, outside)] == [True, False, False]


# -- text


def same(a, b) -> bool:
    """The same boxes, rows and clauses, number for number."""
    pairs = [(a.inputs.lower, b.inputs.lower), (a.inputs.upper, b.inputs.upper)]
    pairs += [(a.spec.C.toarray(), b.spec.C.toarray())]
    pairs += [(getattr(a.spec, k), getattr(b.spec, k)) for k in ("d", "strict", "clause", "box")]
    return a.on_inputs == b.on_inputs and all(np.array_equal(p, q) for p, q in pairs)


def read(text: str):
    return service("vnnlib")(data=text.encode())


@settings(max_examples=150, deadline=None)
@given(formulas)
def test_the_text_reads_back(tree):
    prop = forall(UNIT, written(tree))
    assert same(read(prop.to_vnnlib()), prop)


floats = st.floats(allow_nan=False, allow_infinity=False, width=64)


@settings(max_examples=100, deadline=None)
@given(st.lists(floats, min_size=4, max_size=4), st.lists(floats, min_size=4, max_size=4), st.booleans())
def test_every_float64_reads_back(ends, numbers, strict):
    a, b, c, d = numbers
    left, right = a * Y[0] + b * Y[1] + c * X[0], d
    where = box(np.minimum(ends[:2], ends[2:]), np.maximum(ends[:2], ends[2:]))
    formula = all_of(left < right if strict else left <= right, Y[2] > d, implies(X[1] < d, Y[0] >= Y[2]))
    try:
        prop = forall(where, formula)
    except PropertyError as error:
        assert "too large" in str(error)
        return
    assert same(read(prop.to_vnnlib()), prop)


def test_a_property_of_a_file_reads_back(small):
    prop = service("vnnlib")(small.holds)
    assert same(read(prop.to_vnnlib()), prop)


def test_what_text_cannot_hold():
    with pytest.raises(PropertyError, match="boxes and half-spaces.*l2 ball"):
        forall(ball([0, 0], 1, norm=2), Y[0] <= 0).to_vnnlib()
    third = absdom.make_property([[0, 0]], [[1, 1]], [(0, [([0, 3, 0], -1.0, False)])], on_inputs=True)
    with pytest.raises(PropertyError, match="row 0 bounds X_0"):
        third.to_vnnlib()


# -- verdicts


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    x = torch.full((1, 4), 0.5)
    scores = module(x).ravel()
    return SimpleNamespace(module=module, x=x, label=int(scores.argmax()), least=int(scores.argmin()))


@pytest.mark.parametrize("norm", [1, 2, np.inf])
def test_robust_torch_modules(classifier, norm):
    module, x = classifier.module, classifier.x
    near = robust(module, x, 0.01, classifier.label, norm)
    assert absdom.verify(module, near, example=x, device="cpu", timeout=30).verdict == "unsat"
    far = robust(module, x, 2.0, classifier.label, norm, clip=(-2, 2))
    result = absdom.verify(network(module, x), far, device="cpu", timeout=30)
    assert result.verdict == "sat"
    step = [Fraction(float(v)) - Fraction(1, 2) for v in result.witness.x]
    sizes = {1: sum(map(abs, step)), 2: sum(s * s for s in step), np.inf: max(map(abs, step))}
    assert sizes[norm] <= {1: 2, 2: 4, np.inf: Fraction(np.nextafter(2.0, 3.0))}[norm]
    y = module(torch.from_numpy(result.witness.x)[None]).ravel()
    assert int(y.argmax()) != classifier.label


@pytest.mark.parametrize("norm", [1, 2])
def test_counterexamples_at_the_rim_of_a_ball_are_found(norm):
    """Of a linear network the radius at which the label changes is known: margin over the dual norm of the slopes."""
    torch.manual_seed(norm)
    module = torch.nn.Linear(40, 2)
    centre = torch.rand(40, dtype=torch.float64).numpy()
    weight, bias = (p.detach().double().numpy() for p in (module.weight, module.bias))
    scores = weight @ centre + bias
    label = int(scores.argmax())
    slopes = weight[label] - weight[1 - label]
    radius = abs(scores[0] - scores[1]) / (np.abs(slopes).max() if norm == 1 else np.linalg.norm(slopes))
    net = network(module, torch.zeros(1, 40))
    for factor, verdict in ((0.9999, "unsat"), (1.0001, "sat")):
        prop = robust(net, centre, radius * factor, label, norm, clip=None)
        result = absdom.verify(net, prop, device="cpu", timeout=20)
        assert result.verdict == verdict
    assert prop.is_counterexample(result.witness.x, result.witness.y) == result.witness.clauses


def test_robust_onnx_files(small):
    centre = np.round(np.random.default_rng(1).uniform(-1, 1, 6), 3)
    label = int(small.maker.evaluate(small.maker.make_network(small.model), centre).argmax())
    for radius, verdict in ((small.maker.RADII["holds"], "unsat"), (small.maker.RADII["fails"], "sat")):
        result = absdom.verify(small.model, robust(small.model, centre, radius, label, clip=None), device="cpu")
        assert result.verdict == verdict
    net = network(small.model)
    result = absdom.verify(net, robust(net, centre, small.maker.RADII["fails"], label, clip=None), device="cpu")
    assert result.witness.judge.startswith("onnxruntime") and len(result.provenance["model_sha256"]) == 64


def test_formulas_are_decided(classifier):
    net = network(classifier.module, classifier.x)
    x, y = inputs(net), outputs(net)
    where = ball(classifier.x, 0.01)
    best, least = y[classifier.label], y[classifier.least]

    def verdict(formula):
        return absdom.verify(net, forall(where, formula), device="cpu", timeout=30).verdict

    assert verdict((best == maximum(y)) & (least == y.min()) & (abs(best) <= 100)) == "unsat"
    assert verdict((argmax(y) != classifier.least) & (argmin(y) == classifier.least)) == "unsat"
    assert verdict(any_of(argmax(y) == k for k in range(3) if k != classifier.label)) == "sat"
    assert verdict(x[0] <= 0.75) == "unsat" and verdict(x[0] < 0.5) == "sat"
    assert verdict(implies(x[0] > 0.75, y[0] >= 1000)) == "unsat"
    assert verdict(np.ones(3) @ y - y.sum() == 0) == "unsat"


def test_a_compiled_network_takes_its_properties(classifier):
    compiled = absdom.compile(absdom.load(classifier.module, classifier.x))
    prop = robust(compiled, classifier.x, 0.01, classifier.label)
    bounds = compiled.bounds(prop)
    y = classifier.module(classifier.x).detach()
    assert bool(((bounds.lower <= y) & (y <= bounds.upper)).all())
    assert absdom.verify(compiled, prop, device="cpu", timeout=30).verdict == "unsat"


# -- errors

OTHER = linear()
ERRORS = {
    "python and": (lambda: (Y[0] <= 1) and (Y[1] <= 1), "a & b instead of"),
    "chained": (lambda: 0 <= Y[0] <= 1, r"\(0 <= t\) & \(t <= 1\)"),
    "if": (lambda: 1 if X[0] else 2, "no truth value"),
    "builtin max": (lambda: max(Y), "maximum"),
    "no brackets": (lambda: Y[0] <= 1 & Y[1], "write \\(a <= b\\) & \\(c <= d\\)"),
    "& on a number": (lambda: (Y[0] <= 1) & 1, "int stands where a formula is expected"),
    "not a value": (lambda: ~Y[0], "negates formulas"),
    "formulas compared": (lambda: (Y[0] <= 1) == (Y[1] <= 1), "implies"),
    "product": (lambda: X[0] * Y[0], "not linear"),
    "vector product": (lambda: Y * Y, "not linear"),
    "power": (lambda: Y[0] ** 2, "not linear"),
    "quotient": (lambda: 1 / Y[0], "not linear"),
    "division by zero": (lambda: Y[0] / 0, "division by zero"),
    "NaN": (lambda: Y[0] <= np.nan, "not finite"),
    "text": (lambda: Y[0] <= "1", "'1' stands where a number"),
    "lengths": (lambda: X <= Y, "vectors of 3 and of 2|vectors of 2 and of 3"),
    "matrix": (lambda: np.eye(2) @ Y, "@ takes 3 numbers"),
    "index": (lambda: Y[3], "3 components: 0 ... 2"),
    "tensor index": (lambda: Y[0, 1], "flat"),
    "label": (lambda: argmax(Y) == 3, "label 3 is not one of 0 ... 2"),
    "label kind": (lambda: argmax(Y) == 1.0, "whole number, not float"),
    "order of labels": (lambda: argmax(Y) <= 1, "== or != and a label"),
    "one score": (lambda: argmax(Y[:1]), "two scores or more"),
    "two extremes": (lambda: maximum(Y) - minimum(Y) <= 1, "to the other side"),
    "nothing": (lambda: maximum(), "maximum of nothing"),
    "two networks": (lambda: outputs(OTHER)[0] <= Y[0], "two networks"),
    "moved inputs": (lambda: NET(2 * X), "whole and unchanged"),
    "no network": (lambda: inputs(3), "int is no network"),
    "no example": (lambda: inputs(torch.nn.Linear(2, 3)), "example"),
    "set first": (lambda: forall(Y[0] <= 1, UNIT), "takes a set first"),
    "no formula": (lambda: forall(UNIT, Y[0]), "takes a formula"),
    "no variable": (lambda: forall(UNIT, all_of()), "no input and no output"),
    "size of the set": (lambda: forall(box([0], [1]), Y[0] <= 1), "1 inputs, the network takes 2"),
    "unbounded": (lambda: box([0, -np.inf], [1, 1]), r"lower\[1\] is -inf: every input needs finite bounds"),
    "two numbers": (lambda: box(0, 1), "how many inputs"),
    "sizes of bounds": (lambda: box([0, 0], [1, 1, 1]), "2 numbers, upper has 3"),
    "crossed": (lambda: box([0, 2], [1, 1]), "X_1: the lower bound 2.0 is above"),
    "radius": (lambda: ball([0, 0], -1), "eps is one number of 0 or above"),
    "infinite radius": (lambda: ball([0, 0], np.inf), "eps.* is inf"),
    "norm": (lambda: ball([0, 0], 1, norm=3), "norm 3 is not one of 1, 2, inf"),
    "clip": (lambda: ball([0, 2], 1, clip=(0, 1)), r"x\[1\] is 2, outside clip"),
    "robust label": (lambda: robust(NET, [0, 0], 0.1, 5), "label 5"),
    "robust size": (lambda: robust(NET, [0, 0, 0], 0.1, 1), "3 numbers, the network takes 2"),
    "too many": (lambda: forall(UNIT, any_of(all_of(Y[0] <= k + j for k in range(9)) for j in range(9))), "split"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_to_write(name):
    act, message = ERRORS[name]
    with pytest.raises(PropertyError, match=message):
        act()
