"""VNN-LIB 2: the meaning of queries against an evaluator in rationals, version 1.0 read as 2.0, errors with places."""

from __future__ import annotations

import gzip
import random
import re
import time
from fractions import Fraction

import numpy as np
import pytest

from absdom.errors import PropertyError
from absdom.frontends.vnnlib import read_vnnlib

NETWORK = """(vnnlib-version <2.0>)
; two inputs, one value inside the network, two outputs
(declare-network f
  (declare-input A float32 [1,2])
  (declare-input b float32 [])
  (declare-hidden H float32 [2] "relu:0")
  (declare-output Y float32 [2, 1])
  (declare-output z float32 []))
"""
INPUTS = ["A[0,0]", "A[0,1]", "b"]
OUTPUTS = ["Y[0,0]", "Y[1,0]", "z", "H[0]", "H[1]"]  # as they lie in the vector: hidden values last
BOX = "".join(f"(assert (and (>= {x} -1.0) (<= {x} 1.0)))\n" for x in INPUTS)


def read(body: str, network: str = NETWORK + BOX):
    return read_vnnlib(data=(network + body).encode(), name="q.vnnlib")


def failure(text: str) -> str:
    with pytest.raises(PropertyError) as caught:
        read_vnnlib(data=text.encode(), name="q.vnnlib")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(a, b) -> None:
    """Equal in all their arrays."""
    assert a.on_inputs == b.on_inputs and a.products == b.products
    np.testing.assert_array_equal(a.inputs.lower, b.inputs.lower)
    np.testing.assert_array_equal(a.inputs.upper, b.inputs.upper)
    assert a.spec.C.shape == b.spec.C.shape and (a.spec.C != b.spec.C).nnz == 0
    for field in ("d", "strict", "clause", "box"):
        np.testing.assert_array_equal(getattr(a.spec, field), getattr(b.spec, field))


# -- meaning

COMPARE = {
    "<=": lambda a, b: a <= b, ">=": lambda a, b: a >= b, "<": lambda a, b: a < b, ">": lambda a, b: a > b,
    "=": lambda a, b: a == b, "==": lambda a, b: a == b, "!=": lambda a, b: a != b,
}  # fmt: skip


def evaluate(tree, values: dict[str, Fraction]):
    """The truth or the value of a formula given as nested tuples."""
    if isinstance(tree, str):
        return values[tree] if tree in values else Fraction(tree)
    head, items = tree[0], [evaluate(item, values) for item in tree[1:]]
    if head in ("and", "or"):
        return all(items) if head == "and" else any(items)
    if head == "not":
        return not items[0]
    if head in COMPARE:
        return COMPARE[head](*items)
    if head == "+":
        return sum(items)
    if head == "-":
        return -items[0] if len(items) == 1 else items[0] - sum(items[1:])
    product = Fraction(1)
    for item in items:
        product *= item
    return product


def write(tree, rng: random.Random) -> str:
    if isinstance(tree, str):
        return tree.replace(",", rng.choice([",", ",", " , "]))
    gap = rng.choice([" ", " ", " ", "\n", "\t", " ; (a comment (\n"])
    return "(" + gap.join(write(item, rng) for item in tree) + rng.choice(["", "", "\n"]) + ")"


def number(rng: random.Random) -> str:
    quarters = rng.randint(-6, 6)
    return rng.choice([f"{quarters / 4}", f"{quarters * 25}e-2", f"{quarters}"])


def term(rng: random.Random, depth: int):
    if depth == 0 or rng.random() < 0.3:
        return rng.choice([*INPUTS, *OUTPUTS, number(rng)])
    return (rng.choice("+-**"), *(term(rng, depth - 1) for _ in range(rng.randint(1, 3))))


def formula(rng: random.Random, depth: int):
    if depth == 0 or rng.random() < 0.2:
        head = rng.choice(["<=", ">=", "<", ">", "==", "!=", "="])
        if rng.random() < 0.5:
            return head, rng.choice([*INPUTS, *OUTPUTS]), rng.choice([number(rng), rng.choice(OUTPUTS)])
        return head, term(rng, 2), term(rng, 1)
    if rng.random() < 0.25:
        return "not", formula(rng, depth - 1)
    return rng.choice(["and", "or"]), *(formula(rng, depth - 1) for _ in range(rng.randint(1, 3)))


@pytest.mark.parametrize("seed", range(8))
def test_random_formulas_mean_what_they_say(seed):
    rng = random.Random(seed)
    points = products = 0
    for _ in range(25):
        trees = [formula(rng, rng.randint(0, 3)) for _ in range(rng.randint(1, 2))]
        text = "".join(f"(assert {write(tree, rng)})\n" for tree in trees)
        try:
            prop = read(text)
        except PropertyError as error:
            assert "is above the upper bound" in str(error)
            prop = None
        if prop is not None:
            assert (prop.inputs.size, prop.outputs) == (3, 5)
            products += len(prop.products)
        for _ in range(30):
            x, y = (np.array([rng.randint(-4, 4) / 4 for _ in range(k)]) for k in (3, 5))
            values = dict(zip([*INPUTS, *OUTPUTS], map(Fraction, [*x.tolist(), *y.tolist()])))
            expected = all(evaluate(tree, values) for tree in trees)
            found = () if prop is None else prop.is_counterexample(x, y)
            assert bool(found) == expected, f"{text}\n{x} {y}"
            if prop is not None and prop.spec.clauses:  # the rows say the same, in float64: it is exact on quarters
                rows = prop.spec.C @ prop.vector(x, y) + prop.spec.d
                holds = np.where(prop.spec.strict, rows < 0, rows <= 0)
                inside = (prop.inputs.lower <= x).all(1) & (x <= prop.inputs.upper).all(1)
                clauses = [
                    q
                    for q in range(prop.spec.clauses)
                    if inside[prop.spec.box[q]] and holds[prop.spec.clause == q].all()
                ]
                assert clauses == sorted(found)
            points += expected
    assert points > 100 and products > 5


@pytest.mark.parametrize("seed", range(4))
def test_bulk_and_single_steps_agree(seed):
    """Comments keep the bulk expressions from matching: the same query then takes the way through the stack."""
    rng = random.Random(seed)
    groups = []
    for _ in range(rng.randint(1, 30)):
        names = [rng.choice([*INPUTS, *OUTPUTS]) for _ in range(rng.randint(1, 4))]
        atoms = [f"({rng.choice(['<=', '>=', '<', '>'])} {name} {number(rng)})" for name in names]
        atoms += [f"(<= {rng.choice(OUTPUTS)} {rng.choice(OUTPUTS)})"] * rng.randint(0, 1)
        groups.append(f"(and {' '.join(atoms)})" if rng.random() < 0.8 else atoms[0])
    body = BOX + f"(assert (or {' '.join(groups)}))\n(assert (<= z 3))"
    same(read(body, NETWORK), read(re.sub(r"\((<|>)", r"(;\n\1", body), NETWORK))


def as_version_2(text: str, inputs: int, outputs: int) -> str:
    """Text of version 1.0 as a query of version 2.0."""
    text = re.sub(r"\(declare-const \w+ Real\)\s*", "", text)
    text = re.sub(r"\b([XY])_(\d+)", r"\1[0,\2]", text)
    head = f"(declare-network N (declare-input X real [1,{inputs}]) (declare-output Y real [1,{outputs}]))\n"
    return "(vnnlib-version <2.0>)\n" + head + text


@pytest.mark.parametrize(
    "body",
    [
        "(assert (<= Y_0 Y_1))",
        "(assert (or (and (<= X_0 0.5) (>= Y_0 1.0)) (and (>= X_0 -0.25) (> Y_1 2e-1) (<= Y_0 Y_1))))(assert (< X_1 0.1))",
        "(assert (<= (+ (* 2.0 Y_0) (- Y_1) X_0) 0.75))(assert (or (== Y_0 0.5) (>= (* 0.1 X_1) Y_1)))",
    ],
)
def test_version_1_read_as_version_2_is_the_same_property(body):
    names = ["X_0", "X_1", "Y_0", "Y_1"]
    text = "".join(f"(declare-const {name} Real)\n" for name in names)
    text += "".join(f"(assert (>= X_{i} -1.5))\n(assert (<= X_{i} 1.0))\n" for i in (0, 1)) + body
    new = read_vnnlib(data=as_version_2(text, 2, 2).encode())
    same(read_vnnlib(data=text.encode()), new)
    assert new.interface.network == "N" and [v.dtype for v in new.interface.variables] == ["real", "real"]


def test_competition_files_mean_the_same_as_version_2(vnncomp):
    """A real file of each benchmark of the smallest set, rewritten."""
    seen = set()
    for path in sorted((vnncomp / "smoke").rglob("*.vnnlib*")):
        if path.parent in seen or path.stat().st_size > 400_000:
            continue
        seen.add(path.parent)
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        old = read_vnnlib(data=text.encode())
        same(old, read_vnnlib(data=as_version_2(text, old.inputs.size, old.outputs).encode()))
    assert seen


# -- single facts


def test_products_are_columns_that_share():
    prop = read("(assert (<= (* Y[0,0] A[0,1] 2.0) (* A[0,1] Y[0,0] b)))(assert (> (* z z) 0.5))")
    assert prop.products == ((0, 6), (0, 6, 7), (2, 2)) and not prop.on_inputs
    np.testing.assert_array_equal(prop.spec.C.toarray()[:, 5:], [[2, -1, 0], [0, 0, -1]])
    assert prop.spec.strict.tolist() == [False, True]
    x, y = np.array([0.5, -2.0, 3.0]), np.array([0.25, 0.0, 3.0, 0.0, 0.0])
    np.testing.assert_array_equal(prop.vector(x, y)[5:], [-0.5, -1.5, 9.0])


def test_a_product_is_checked_without_rounding():
    tiny = 2.0**-30
    x, y = np.zeros(3), np.array([1 + tiny, 1 - tiny, 0.0, 0.0, 0.0])  # the product is 1 - 2^-60, and 1 in float64
    assert read("(assert (< (* Y[0,0] Y[1,0]) 1.0))").is_counterexample(x, y) == (0,)
    assert read("(assert (>= (* Y[0,0] Y[1,0]) 1.0))").is_counterexample(x, y) == ()
    huge = np.array([1e300, 1e300, 0.0, 0.0, 0.0])
    assert read("(assert (> (* Y[0,0] Y[1,0]) 1.0))").is_counterexample(x, huge) == (0,)


def test_terms_that_cancel_leave_no_product():
    prop = read("(assert (<= (* b b) 0.5))(assert (<= (- (* (+ z 1.0) (- z 1.0)) (* z z)) (* A[0,0] 2.0)))")
    assert prop.products == ((7, 7),) and prop.spec.C.shape == (1, 6)
    assert prop.inputs.lower[0, 0] == -0.5  # (z + 1)(z - 1) - z z = -1


def test_unequal_is_two_strict_clauses():
    prop = read("(assert (!= Y[0,0] 0.5))")
    assert prop.spec.strict.tolist() == [True, True] and prop.spec.clause.tolist() == [0, 1]
    assert prop.spec.C.toarray()[:, 0].tolist() == [1, -1] and prop.spec.d.tolist() == [-0.5, 0.5]
    inputs = read("(assert (not (== b 0.5)))").inputs
    assert sorted(zip(inputs.lower[:, 2].tolist(), inputs.upper[:, 2].tolist())) == [(-1, 0.5), (0.5, 1)]


def test_the_interface_is_what_was_declared():
    interface = read("(assert (<= z 0.0))").interface
    assert interface.network == "f" and interface.hidden == ("relu:0",)
    assert [str(v) for v in interface.variables] == [
        "A float32 [1,2]", "b float32 []", "H float32 [2]", "Y float32 [2,1]", "z float32 []",
    ]  # fmt: skip


def test_a_file_is_known_by_its_header_and_may_be_gzipped(tmp_path):
    path = tmp_path / "odd name.txt"
    path.write_bytes(gzip.compress((NETWORK.replace("2.0", " 2.1 ") + BOX + "(assert (<= z 0.0))").encode()))
    same(read_vnnlib(path), read("(assert (<= z 0.0))"))


def test_an_initialized_input_is_no_input():
    text = NETWORK.replace("2.0", "2.1").replace(
        "(declare-hidden", "(declare-input W float32 [3] initialized)\n(declare-hidden"
    )
    same(read("(assert (<= z 0.0))", text + BOX), read("(assert (<= z 0.0))"))
    assert "a constant of the model" in failure(text + BOX + "(assert (<= W[0] 0.0))")


def test_names_may_hold_keywords():
    text = """(vnnlib-version <2.0>)(declare-network or1 (declare-input hand real [1]) (declare-output asserted real [2]))
    (assert (>= hand[0] 0.0))(assert (and (<= hand[0] 1.0) (>= hand[0] -1)))
    (assert (or (and (<= asserted[0] 0.5) (<= hand[0] 0.5)) (and (<= asserted[1] asserted[0]))))"""
    prop = read_vnnlib(data=text.encode())
    assert prop.spec.clauses == 2 and set(prop.inputs.upper.ravel()) == {0.5, 1.0} and (prop.inputs.lower == 0).all()


def test_large_files_are_read_in_bulk():
    n = 150_000
    text = f"(vnnlib-version <2.0>)(declare-network f (declare-input X float32 [1,3,{n // 3}]) (declare-output Y float32 [1]))"
    places = [f"X[0,{i // (n // 3)},{i % (n // 3)}]" for i in range(n)]
    text += "".join(f"(assert (and (>= {p} -0.25) (<= {p} 0.125)))\n" for p in places) + "(assert (<= Y[0] 0.0))"
    started = time.perf_counter()
    prop = read_vnnlib(data=text.encode())
    assert time.perf_counter() - started < 8  # one list at a time takes longer
    assert prop.inputs.size == n and (prop.inputs.lower == -0.25).all() and (prop.inputs.upper == 0.125).all()


# -- errors

ONE = "(vnnlib-version <2.0>)\n(declare-network f\n  (declare-input X float32 [1,2])\n  (declare-output Y float32 [2])\n)\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("(vnnlib-version 2.0)", [":1:1:", "this is no version"]),
        ("; c\n (vnnlib-version <2.2>)", [":2:2:", "VNN-LIB 2.2 is not known"]),
        ("(vnnlib-version <3.0>)", ["VNN-LIB 3.0 is not known"]),
        ("(vnnlib-version <2.0>)", ["no network is declared"]),
        ("(vnnlib-version <2.0>)\n(assert (<= X[0] 1.0))", [":2:1:", "behind the declaration"]),
        (ONE, ["nothing is asserted"]),
        (ONE + "(declare-network g (declare-input U float32 [1]) (declare-output V float32 [1]))", [":6:1:", "one network"]),
        (ONE.replace("f\n", "f (equal-to g)\n", 1), [":2:21:", "equal-to", "one network is supported"]),
        (ONE.replace("f\n", "f (isomorphic-to g)\n", 1), ["isomorphic-to", "one network is supported"]),
        (ONE.replace("declare-input", "declare-const"), [":3:4:", "'declare-const'"]),
        (ONE.replace("X float32", "X int8"), [":3:20:", "element type 'int8'", "real, float32, float64"]),
        (ONE.replace("X float32", "X real"), [":4:4:", "either all tensors are declared as real"]),
        (ONE.replace("[1,2]", "[1,0]"), [":3:28:", "whole numbers above 0"]),
        (ONE.replace("[1,2]", "[1,N]"), ["whole numbers above 0"]),
        (ONE.replace("[1,2]", "1,2"), ["is no shape"]),
        (ONE.replace("[1,2]", "[99999999,99999999]"), ["too large"]),
        (ONE.replace("X float32", "1X float32"), [":3:18:", "no name of a tensor"]),
        (ONE.replace("Y float32", "X float32"), [":4:19:", "'X' is declared twice"]),
        (ONE.replace("declare-input", "declare-output"), ["declares no input"]),
        (ONE.replace("(declare-input X float32 [1,2])", "").replace("[2])", "[2]) (declare-input X float32 [1,2])"), ["inputs are declared first"]),
        (ONE.replace("(declare-output", "(declare-hidden H float32 [1])\n(declare-output"), [":4:32:", "in quotes"]),
        (ONE.replace("[1,2])", '[1,2] "x")'), ["by their order"]),
        (ONE.rstrip()[:-1], [":2:1:", "never closed"]),
        (ONE + "(assert (<= X[0,0] 1.0)", [":6:1:", "never closed"]),
        (ONE + "(assert (<= Z[0] 1.0))", [":6:13:", "'Z' is not declared"]),
        (ONE + "(assert (<= X[0] 1.0))", [":6:13:", "takes 2 indices, not 1"]),
        (ONE + "(assert (<= X 1.0))", [":6:13:", "takes 2 indices, as in X[0,0]"]),
        (ONE + "(assert (<= X[0,2] 1.0))", [":6:13:", "index 2 lies outside axis 1, which has 2"]),
        (ONE + "(assert (<= Y[0] (+ 1.0 Y[2])))", [":6:25:", "index 2 lies outside axis 0"]),
        (ONE + "(assert (<= 1.0 Y[-1]))", [":6:17:", "takes 1 indices"]),
        (ONE + "(assert (<= Y[0] Y[1] 1.0))", [":6:9:", "two operands"]),
        (ONE + "(assert (not (<= Y[0] 1.0) (<= Y[1] 1.0)))", [":6:9:", "'not' takes one formula, not 2"]),
        (ONE + "(assert (<= not 1.0))", [":6:13:", "'not' is not declared"]),
        (ONE + "(assert (+ Y[0] 1.0))", [":6:9:", "is a number"]),
        (ONE + "(assert (<= Y[0] (not (<= Y[1] 1.0))))", [":6:18:", "is a formula"]),
        (ONE + "(assert (<= Y[0] 1.0.0))", [":6:18:", "not a finite decimal"]),
        (ONE + "(assert (=> Y[0] 1.0))", [":6:9:", "'=>' is not supported", "!="]),
        (ONE + "(assert (<= Y[0] 1.0))(declare-network g)", ["before the assertions"]),
        (ONE + "(check-sat)", ["'check-sat' is not supported"]),
        (ONE + "(assert (<= X[0,0] 1.0))(assert (<= Y[0] 1.0))", ["input X[0,0] has no lower bound"]),
        (ONE + "(assert (<= X[0,1] 1.0))\n(assert (>= X[0,1] 1.5))", [":7:9:", "input X[0,1]", "above", ":6:9"]),
        (ONE.replace("[2]", "[]") + "(assert (<= Y[0] 1.0))", ["Y takes no index"]),
    ],
)  # fmt: skip
def test_errors_say_what_and_where(text, parts):
    message = failure(text)
    assert message.startswith("q.vnnlib:")
    for part in parts:
        assert part in message


def test_types_do_not_mix_in_one_comparison():
    text = ONE.replace("[1,2])", "[1,2])\n  (declare-input W float64 [1])")
    read = "".join(f"(assert (and (<= {x} 1.0) (>= {x} 0.0)))" for x in ("X[0,0]", "X[0,1]", "W[0]"))
    assert read_vnnlib(data=(text + read + "(assert (<= Y[0] (* X[0,0] 2.0)))").encode()).inputs.size == 3
    message = failure(text + read + "\n(assert (<= Y[0] (* X[0,0] W[0])))")
    assert ":8:9:" in message and "float32, float64" in message


def test_products_that_explode_are_an_error():
    many = " ".join(f"X[{i}]" for i in range(400))
    text = "(vnnlib-version <2.0>)(declare-network f (declare-input X real [400]) (declare-output Y real [1]))"
    assert "more than 100,000" in failure(text + f"(assert (<= (* (+ {many}) (+ {many})) 1.0))")
    assert "64 variables" in failure(text + f"(assert (<= (* {'X[0] ' * 65}) 1.0))")


@pytest.mark.parametrize("seed", [0, 21, 53])
def test_damaged_text_gives_a_property_or_an_error(seed):
    rng = random.Random(seed)
    body = (
        "(assert (or (and (<= Y[0,0] 0.5) (!= b 0.25)) (not (>= (* z H[1]) (- A[0,0] 1.5)))))\n(assert (< H[0] Y[1,0]))"
    )
    text, pieces = (
        NETWORK + BOX + body,
        ["(", ")", "[", "]", ",", "<", "!=", "not ", "0", "-", ".", '"', ";", "\n", "A", "é"],
    )
    read_any = 0
    for _ in range(150):
        damaged = text
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(damaged))
            damaged = damaged[:place] + rng.choice([*pieces, ""]) + damaged[place + rng.randint(0, 2) :]
        try:
            read_vnnlib(data=damaged.encode(), name="q.vnnlib")
            read_any += 1
        except PropertyError as error:
            assert str(error).startswith("q.vnnlib")
    assert 0 < read_any < 150
