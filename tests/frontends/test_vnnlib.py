"""The VNN-LIB front end: meaning against a naive evaluator in rationals, errors with their places, and real files."""

from __future__ import annotations

import csv
import gzip
import random
import re
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from absdom.errors import PropertyError
from absdom.frontends import vnnlib_dnf
from absdom.frontends.vnnlib import read_vnnlib
from absdom.registry import service

BENCHMARKS = Path(__file__).parents[3] / "shared" / "vnncomp"


def declarations(inputs: int, outputs: int) -> str:
    names = [f"X_{i}" for i in range(inputs)] + [f"Y_{j}" for j in range(outputs)]
    return "".join(f"(declare-const {name} Real)\n" for name in names)


def unit_box(inputs: int) -> str:
    return "".join(f"(assert (>= X_{i} -1))\n(assert (<= X_{i} 1.0))\n" for i in range(inputs))


def read(body: str, inputs: int = 2, outputs: int = 2, box: bool = True, **options):
    text = declarations(inputs, outputs) + (unit_box(inputs) if box else "") + body
    return read_vnnlib(data=text.encode(), name="p.vnnlib", **options)


def failure(text: str, **options) -> str:
    with pytest.raises(PropertyError) as caught:
        read_vnnlib(data=text.encode(), name="p.vnnlib", **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def same(a, b) -> None:
    """Equal in all their arrays."""
    assert a.on_inputs == b.on_inputs
    np.testing.assert_array_equal(a.inputs.lower, b.inputs.lower)
    np.testing.assert_array_equal(a.inputs.upper, b.inputs.upper)
    assert a.spec.C.shape == b.spec.C.shape
    assert (a.spec.C != b.spec.C).nnz == 0
    for field in ("d", "strict", "clause", "box"):
        np.testing.assert_array_equal(getattr(a.spec, field), getattr(b.spec, field))


# -- meaning: random formulas against an evaluator of the formula itself

COMPARE = {
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "=": lambda a, b: a == b,
    "==": lambda a, b: a == b,
}


def evaluate(tree, values: dict[str, Fraction]):
    """The truth or the value of a formula given as nested tuples."""
    if isinstance(tree, str):
        return values[tree] if tree in values else Fraction(tree)
    head, items = tree[0], [evaluate(item, values) for item in tree[1:]]
    if head == "and":
        return all(items)
    if head == "or":
        return any(items)
    if head in COMPARE:
        return all(COMPARE[head](a, b) for a, b in zip(items, items[1:]))
    if head == "+":
        return sum(items)
    if head == "-":
        return -items[0] if len(items) == 1 else items[0] - sum(items[1:])
    product = Fraction(1)
    for item in items:
        product *= item
    return product


def write(tree, rng: random.Random) -> str:
    """The formula as text, with white space and comments where they may stand."""
    if isinstance(tree, str):
        return tree
    gap = rng.choice([" ", " ", " ", "\n", "  ", "\t", " ; (a comment (\n"])
    return (
        "(" + rng.choice(["", "", " "]) + gap.join(write(item, rng) for item in tree) + rng.choice(["", "", "\n"]) + ")"
    )


def number(rng: random.Random) -> str:
    quarters = rng.randint(-6, 6)
    return rng.choice([f"{quarters / 4}", f"{quarters * 25}e-2", f"{quarters * 0.025:+.3f}E+1", f"{quarters}"])


def term(rng: random.Random, names: list[str], depth: int):
    if depth == 0 or rng.random() < 0.3:
        return rng.choice([*names, number(rng)])
    head = rng.choice("+-*")
    if head == "*":
        factors = [number(rng) for _ in range(rng.randint(0, 2))]
        factors.insert(rng.randint(0, len(factors)), term(rng, names, depth - 1))
        return ("*", *factors)
    return (head, *(term(rng, names, depth - 1) for _ in range(rng.randint(1, 3))))


def formula(rng: random.Random, names: list[str], depth: int):
    if depth == 0 or rng.random() < 0.25:
        head = rng.choice(["<=", ">=", "<=", ">=", "<", ">", "=", "=="])
        if rng.random() < 0.6:
            return (head, rng.choice(names), rng.choice([number(rng), rng.choice(names)]))
        return (head, *(term(rng, names, 2) for _ in range(rng.choice([2, 2, 2, 3]))))
    return (rng.choice(["and", "or"]), *(formula(rng, names, depth - 1) for _ in range(rng.randint(1, 3))))


@pytest.mark.parametrize("seed", range(12))
def test_random_formulas_mean_what_they_say(seed):
    rng = random.Random(seed)
    points = 0
    for _ in range(40):
        names = ["X_0", "X_1", "Y_0", "Y_1", "Y_2"]
        trees = [formula(rng, names, rng.randint(0, 3)) for _ in range(rng.randint(1, 3))]
        text = declarations(2, 3) + unit_box(2) + "".join(f"(assert {write(tree, rng)})\n" for tree in trees)
        try:
            prop = read_vnnlib(data=text.encode())
        except PropertyError as error:
            # Only bounds outside of any `or` that exclude each other are an error, and then nothing may satisfy all.
            assert "is above the upper bound" in str(error)
            prop = None
        if prop is not None:
            assert prop.inputs.size == 2 and prop.outputs == 3
            assert (np.diff(prop.spec.clause) >= 0).all()
            assert set(prop.spec.clause.tolist()) == set(range(prop.spec.clauses))
        for _ in range(40):
            x, y = (np.array([rng.randint(-5, 5) / 4 for _ in range(k)]) for k in (2, 3))
            values = {f"X_{i}": Fraction(v) for i, v in enumerate(x.tolist())}
            values |= {f"Y_{j}": Fraction(v) for j, v in enumerate(y.tolist())}
            expected = all(-1 <= v <= 1 for v in x) and all(evaluate(tree, values) for tree in trees)
            found = False
            if prop is not None and prop.spec.clauses:
                # Quarters: float64 is exact here.
                rows = prop.spec.C @ prop.vector(x, y) + prop.spec.d
                holds = np.where(prop.spec.strict, rows < 0, rows <= 0)
                inside = (prop.inputs.lower <= x).all(1) & (x <= prop.inputs.upper).all(1)
                clauses = [
                    q
                    for q in range(prop.spec.clauses)
                    if inside[prop.spec.box[q]] and holds[prop.spec.clause == q].all()
                ]
                found = bool(clauses)
                assert sorted(prop.is_counterexample(x, y)) == clauses
            assert found == expected, f"{text}\n{x} {y}"
            points += expected
    assert points > 50  # enough points lie inside for the comparison to say something


@pytest.mark.parametrize("seed", range(6))
def test_bulk_and_single_steps_agree(seed):
    """Comments keep the bulk expressions from matching: the same property then takes the way through the stack."""
    rng = random.Random(seed)
    groups, plain = [], ["X_0", "X_1", "Y_0", "Y_1"]
    for _ in range(rng.randint(1, 30)):
        atoms = [
            f"({rng.choice(['<=', '>=', '<', '>'])} {rng.choice(plain)} {number(rng)})"
            for _ in range(rng.randint(1, 4))
        ]
        atoms += [f"(<= {rng.choice(plain[2:])} {rng.choice(plain)})"] * rng.randint(0, 1)
        groups.append(f"(and {' '.join(atoms)})" if rng.random() < 0.8 else atoms[0])
    body = unit_box(2) + f"(assert (or {' '.join(groups)}))\n(assert (<= Y_1 3))"
    slow = re.sub(r"\((<|>)", r"(;\n\1", body)
    same(read(body, box=False), read(slow, box=False))


# -- single facts


def test_rows_have_the_documented_sign():
    prop = read("(assert (<= Y_0 (+ Y_1 3)))(assert (>= Y_0 0.1))(assert (> Y_1 Y_0))")
    np.testing.assert_array_equal(prop.spec.C.toarray(), [[1, -1], [-1, 0], [1, -1]])
    np.testing.assert_array_equal(prop.spec.d, [-3, 0.1, 0])
    assert prop.spec.strict.tolist() == [False, False, True]
    assert prop.spec.clause.tolist() == [0, 0, 0] and prop.spec.box.tolist() == [0]
    assert not prop.on_inputs


def test_conjuncts_beside_a_disjunction_stay():
    prop = read("(assert (and (<= Y_0 5) (or (<= Y_1 1) (>= Y_1 2)) (<= X_0 0.5)))")
    assert prop.spec.clauses == 2
    assert prop.spec.d.tolist() == [-5, -1, -5, 2]
    assert prop.inputs.upper.tolist() == [[0.5, 1.0]] and prop.spec.box.tolist() == [0, 0]
    assert prop.is_counterexample(np.zeros(2), np.array([6.0, 0.0])) == ()
    assert prop.is_counterexample(np.zeros(2), np.array([5.0, 0.0])) == (0,)


def test_ors_multiply_in_order():
    prop = read("(assert (or (<= Y_0 1) (<= Y_0 2)))(assert (or (<= Y_1 3) (and (<= Y_1 4) (<= Y_1 5))))")
    assert prop.spec.clause.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert prop.spec.d.tolist() == [-1, -3, -1, -4, -5, -2, -3, -2, -4, -5]


def test_equal_boxes_are_shared_and_distinct_ones_kept():
    body = "(assert (or (and (<= X_0 0) (<= Y_0 1)) (and (>= X_0 0.5) (<= Y_0 2)) (and (<= X_0 -0.0) (<= Y_0 3))))"
    prop = read(body)
    assert prop.spec.box.tolist() == [0, 1, 0]
    assert prop.inputs.lower.tolist() == [[-1, -1], [0.5, -1]] and prop.inputs.upper.tolist() == [[0, 1], [1, 1]]


def test_single_input_atoms_bound_from_either_side():
    prop = read("(assert (>= 1 (* 4 X_0)))(assert (<= (- 1) (+ X_1 X_1)))(assert (>= Y_0 0))")
    assert prop.inputs.lower.tolist() == [[-1, -0.5]] and prop.inputs.upper.tolist() == [[0.25, 1]]
    assert not prop.on_inputs and prop.spec.rows == 1


def test_decimals_are_rounded_once():
    prop = read("(assert (<= (* 3 X_0) 0.3))(assert (<= Y_0 (+ 0.1 0.2)))(assert (<= Y_1 (/ 1 3)))")
    assert prop.inputs.upper[0, 0] == 0.1
    assert prop.spec.d.tolist() == [-0.3, -1 / 3]


def test_strict_input_atom_closes_the_box_and_stays_as_a_row():
    prop = read("(assert (< X_0 0.5))(assert (<= Y_0 0))")
    assert prop.inputs.upper[0, 0] == 0.5 and prop.on_inputs
    assert prop.spec.strict.tolist() == [True, False]
    assert prop.spec.C.toarray()[0].tolist() == [0, 0, 1, 0]
    assert prop.is_counterexample(np.array([0.5, 0]), np.zeros(2)) == ()
    assert prop.is_counterexample(np.array([np.nextafter(0.5, 0), 0]), np.zeros(2)) == (0,)


def test_mixed_atoms_are_rows_on_outputs_then_inputs():
    prop = read("(assert (<= (+ Y_1 (* 2 X_0)) (- X_1 7)))")
    assert prop.on_inputs and prop.outputs == 2
    assert prop.spec.C.toarray().tolist() == [[0, 1, 2, -1]] and prop.spec.d.tolist() == [7]


def test_a_clause_without_rows_holds_everywhere_in_its_box():
    prop = read("(assert (or (<= X_0 0) (and (>= X_0 0.5) (<= Y_0 0))))")
    assert prop.spec.C[0].nnz == 0 and prop.spec.d.tolist() == [-1, 0]
    assert not prop.spec.refuted(prop.spec.d)[0]
    assert prop.is_counterexample(np.array([-0.5, 0]), np.array([9.0, 9.0])) == (0,)
    assert prop.is_counterexample(np.array([0.25, 0]), np.array([-9.0, 9.0])) == ()
    assert read("").spec.d.tolist() == [-1]


@pytest.mark.parametrize(
    "body",
    ["(assert (or (>= X_0 2) (<= X_1 -2)))", "(assert (<= 1 0))", "(assert (or (< Y_0 Y_0) (and (<= Y_0 1) (= 1 2))))"],
)
def test_when_nothing_is_possible_there_are_no_clauses(body):
    prop = read(body)
    assert prop.spec.clauses == prop.spec.rows == 0 and prop.spec.C.shape == (0, 2)
    assert prop.inputs.lower.tolist() == [[-1, -1]] and prop.outputs == 2
    assert prop.spec.refuted(np.zeros(0)).shape == (0,)
    assert prop.is_counterexample(np.zeros(2), np.zeros(2)) == ()


def test_empty_disjuncts_are_dropped_and_the_rest_renumbered():
    prop = read("(assert (or (and (>= X_0 2) (<= Y_0 1)) (and (<= X_0 0) (<= Y_0 2)) (and (<= 1 0) (<= Y_0 3))))")
    assert prop.spec.clause.tolist() == [0] and prop.spec.d.tolist() == [-2] and len(prop.inputs) == 1


def test_conflicting_bounds_inside_a_disjunction_of_one_are_no_error():
    assert read("(assert (or (and (<= X_0 0) (>= X_0 1))))").spec.clauses == 0


def test_deep_nesting_is_no_recursion():
    depth = 20000
    assert read("(assert " + "(and " * depth + "(<= Y_0 1)" + ")" * depth + ")").spec.rows == 1
    prop = read("(assert (<= " + "(+ 1 " * depth + "Y_0" + ")" * depth + " 0))")
    assert prop.spec.d.tolist() == [depth]


def test_other_commands_and_forms():
    text = (
        '; a comment (\n(set-logic QF_LRA) (set-info :source "a (b")(declare-fun X_0 () Real)'
        "(declare-const Y_0 Real);end\n"
        "(assert (<= -1 X_0 1.)) (assert(>= Y_0 .5))(check-sat)"
    )
    prop = read_vnnlib(data=text.replace("\n", "\r\n").encode())
    assert (
        prop.inputs.lower.tolist() == [[-1]] and prop.inputs.upper.tolist() == [[1]] and prop.spec.d.tolist() == [0.5]
    )


def test_gzip_is_recognised_by_content(tmp_path):
    text = (declarations(1, 1) + unit_box(1) + "(assert (<= Y_0 1))").encode()
    (tmp_path / "a.vnnlib").write_bytes(gzip.compress(text))
    (tmp_path / "b.vnnlib.gz").write_bytes(text)
    for name in ("a.vnnlib", "b.vnnlib.gz"):
        same(service("vnnlib")(tmp_path / name), read_vnnlib(data=text))
    (tmp_path / "c.gz").write_bytes(gzip.compress(text)[:-12])
    with pytest.raises(PropertyError, match="gzip file is damaged"):
        read_vnnlib(tmp_path / "c.gz")
    with pytest.raises(PropertyError, match=r"missing\.vnnlib: cannot be read: No such file"):
        read_vnnlib(tmp_path / "missing.vnnlib")


# -- errors

HEAD = declarations(2, 2)  # four lines; what follows starts on line 5
BOX = unit_box(2)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["empty"]),
        (" ; only a comment\n", ["empty"]),
        ("; c\n(vnnlib-version <2.0>)\n", ["no network is declared"]),
        (HEAD + "(assert (<= X_0 1)\n(assert (>= X_0 0))", [":5:1:", "not closed before the next command", ":6:1"]),
        (HEAD + BOX + "\n  (assert (or (<= Y_0 1)", [":10:3:", "never closed"]),
        (HEAD + "(assert (<= X_0 1)))\n", [":5:20:", "closes nothing"]),
        (HEAD + BOX + "(assert (<= Y_2 1))", [":9:13:", "'Y_2' is not declared"]),
        (HEAD + BOX + "(assert (<= (+ Y_0 Z) 1))", [":9:20:", "'Z' is not declared"]),
        (HEAD + BOX + "(assert (or (and (<= Y_0 1))\n (and (<= Y_0 Y_9))))", [":10:15:", "'Y_9' is not declared"]),
        ("(assert (<= X_0 1))" + HEAD, [":1:13:", "'X_0' is not declared"]),
        (HEAD + "(assert (<= X_0 nan))", [":5:17:", "'nan' is not a finite decimal"]),
        (HEAD + "(assert (<= X_0 -inf))", [":5:17:", "'-inf' is not a finite decimal"]),
        (HEAD + "(assert (<= X_0 1.2.3))", [":5:17:", "'1.2.3' is not a finite decimal"]),
        (HEAD + "(assert (<= X_0 1_0))", [":5:17:", "'1_0' is not a finite decimal"]),
        (HEAD + "(assert (<= X_0 0))\n(assert (<= X_1 1e999))", [":6:9:", "'1e999' is too large"]),
        (HEAD + "(assert (<= (* 1e200 1e200 Y_0) 1))", [":5:9:", "too large for float64"]),
        (HEAD + "(assert (<= (+ 1e999999999 1) Y_0))", [":5:16:", "too large for float64"]),
        (HEAD + "(assert (not (<= X_0 1)))", [":5:9:", "'not' is not supported", "and, or, <="]),
        (HEAD + "(assert (<= (sin X_0) 1))", [":5:13:", "'sin' is not supported"]),
        (HEAD + "(push 1)", [":5:1:", "'push' is not supported", "declare-const"]),
        (HEAD + "(assert (<= (* X_0 Y_0) 1))", [":5:13:", "not linear"]),
        (HEAD + "(assert (<= (/ Y_0 (- 1 1)) 1))", [":5:13:", "division by zero"]),
        (HEAD + "(assert (<= X_0))", [":5:9:", "two operands"]),
        (HEAD + "(assert (<= X_0 (<= Y_0 1)))", [":5:17:", "where a number is expected"]),
        (HEAD + "(assert (or X_0))", [":5:13:", "where a formula is expected"]),
        (HEAD + "(assert (or))", [":5:9:", "without a formula"]),
        (HEAD + "(assert)", [":5:1:", "takes one formula"]),
        (HEAD + "(assert (<= X_0 1) (<= X_1 1))", [":5:1:", "takes one formula"]),
        (HEAD + "5", [":5:1:", "where a command is expected"]),
        (HEAD + "(declare-const Y_1 Real)", [":5:1:", "declared twice", ":4:1"]),
        (HEAD + "(declare-const Y_4 Real)", [":5:1:", "Y_4 is declared", "Y_2 is not"]),
        (HEAD + "(declare-const Z_0 Real)", [":5:1:", "'Z_0' is not one of"]),
        (HEAD + "(declare-const X_2 Int)", [":5:1:", "'Int'", "only Real"]),
        (HEAD + "(declare-const X_2)", [":5:1:", "no declaration"]),
        (
            HEAD + "(assert (<= X_0 1))(assert (>= X_0 -1))(assert (>= X_1 -1))",
            ["X_1 has no upper bound", "needs both"],
        ),
        (HEAD + "(assert (<= Y_0 1))", ["X_0 has no lower and no upper bound", "2 inputs lack one"]),
        (
            HEAD + "(assert (and (<= X_0 1) (>= X_0 0) (>= X_1 0)))(assert (or (and (<= X_1 1)) (and (<= Y_0 1))))",
            ["X_1 has no upper bound"],
        ),
        (
            HEAD + "(assert (and (<= X_0 1) (>= X_0 0)))(assert (or (and (<= X_1 1) (>= X_1 0)) (and (<= X_1 1))))",
            ["X_1 has no lower bound in disjunct 2"],
        ),
        (HEAD + BOX + "(assert (<= Y_0 1))\n(assert (>= X_1 1.5))", [":10:9:", "X_1", "1.5 is above", "1.0", ":8:9"]),
        ("(declare-const X_0 Real)", ["no output is declared"]),
        ("(declare-const Y_0 Real)", ["no input is declared"]),
        (HEAD + '(assert (<= X_0 "é"))', [":5:17:", "not a finite decimal"]),
    ],
)
def test_errors_say_what_and_where(text, parts):
    message = failure(text)
    assert message.startswith("p.vnnlib")
    for part in parts:
        assert part in message


def test_sizes_are_compared_with_the_network():
    text = HEAD + BOX + "(assert (<= Y_0 1))"
    assert read_vnnlib(data=text.encode(), inputs=2, outputs=2).inputs.size == 2
    assert "declares 2 inputs, but the network has 5" in failure(text, inputs=5, outputs=2)
    assert "declares 2 outputs, but the network has 1" in failure(text, inputs=2, outputs=1)


def test_a_product_that_explodes_is_refused(monkeypatch):
    monkeypatch.setattr(vnnlib_dnf, "MOST_DISJUNCTS", 1000)
    factor = "(or (<= Y_0 1) (<= Y_0 2) (<= Y_0 3) (<= Y_0 4))"
    assert read(f"(assert (and {factor * 4}))").spec.clauses == 256
    with pytest.raises(PropertyError, match="1,024 disjuncts"):
        read(f"(assert (and {factor * 5}))")
    with pytest.raises(PropertyError, match=r"p\.vnnlib:9:13: .*1,024 disjuncts"):
        read(f"(assert (or (and {factor * 5}) (<= Y_0 1)))")


# -- real files and large ones


def rows_of(part: str) -> list[dict[str, str]]:
    table = BENCHMARKS / part / "instances.csv"
    if not table.is_file():
        pytest.skip(f"no benchmark data at {table}")
    with table.open() as file:
        return list({row["vnnlib"]: row for row in csv.DictReader(file)}.values())


@pytest.mark.parametrize("part", ["smoke", "dev", "peers"])
def test_competition_files(part):
    for row in rows_of(part):
        sizes = {key: int(row[key]) for key in ("inputs", "outputs") if row.get(key)}
        prop = read_vnnlib(BENCHMARKS / part / row["vnnlib"], **sizes)
        assert prop.spec.clauses and not prop.on_inputs
        multi = re.fullmatch(r"multi-box\((\d+)\)", row.get("input_kind", ""))
        disjuncts = re.search(r"n=(\d+)", row.get("output_kind", ""))
        if multi is None:
            if sizes:
                assert len(prop.inputs) == 1
                assert prop.spec.clauses == (int(disjuncts[1]) if disjuncts else 1), row["vnnlib"]
        else:
            # The table counts a box per disjunct, and of the longest file only a part; equal boxes are shared here.
            with gzip.open(BENCHMARKS / part / row["vnnlib"]) as file:
                groups = file.read().count(b"(and")
            if "acasxu" in row["vnnlib"]:
                assert (len(prop.inputs), prop.spec.clauses) == (2, 8)
            else:
                assert prop.spec.clauses == groups and len(prop.inputs) in (groups, groups // 2)


def write_disjuncts(path: Path, disjuncts: int, inputs: int) -> None:
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        file.write(declarations(inputs, 1) + "(assert (or\n")
        for k in range(disjuncts):
            centre = rng.random(inputs).tolist()
            atoms = " ".join(f"(>= X_{i} {v!r}) (<= X_{i} {v + 7e-8!r})" for i, v in enumerate(centre))
            file.write(f"(and {atoms} ({'<=' if k % 2 else '>='} Y_0 {k * 0.37!r}))\n")
        file.write("))\n")


CHILD = """
import resource, sys
from absdom.frontends.vnnlib import read_vnnlib
prop = read_vnnlib(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, len(prop.inputs), prop.spec.clauses)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("disjuncts", "inputs"), [(120_000, 14), (5_600, 308)])
def test_a_hundred_megabytes(tmp_path, disjuncts, inputs):
    path = tmp_path / "large.vnnlib"
    write_disjuncts(path, disjuncts, inputs)
    assert 95e6 < path.stat().st_size < 130e6
    start = time.monotonic()
    child = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=True)
    seconds = time.monotonic() - start
    megabytes, boxes, clauses = map(int, child.stdout.split())
    print(f"{path.stat().st_size / 1e6:.0f} MB: {seconds:.1f} s, {megabytes} MB resident")
    assert boxes == clauses == disjuncts
    assert seconds < 30 and megabytes < 1000


def test_what_is_not_whole_is_not_read_as_a_whole_number():
    """Whole bounds are taken as exact, so rounding must not make one."""
    text = "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)(assert (<= Y_0 0))\n"
    text += "(assert (<= X_0 1.0))(assert (>= X_0 0.99999999999999999999))\n"
    text += "(assert (<= X_1 (+ 2.0 1e-30)))(assert (>= X_1 -1e-400))\n"
    inputs = read_vnnlib(data=text.encode()).inputs
    assert inputs.upper[0, 0] == 1.0 and inputs.lower[0, 0] == np.nextafter(1.0, 0)
    assert inputs.upper[0, 1] == np.nextafter(2.0, 3) and inputs.lower[0, 1] == np.nextafter(0.0, -1)
