"""Programs from the command line: sizes that are told, budgets, limits, files for other solvers, and bad input."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

import absdom
from absdom import api, registry
from absdom.arithmetic import PROOF
from absdom.certification import certify
from absdom.cli.main import main
from absdom.domain import Answer, Encoded, Question, Recipe
from absdom.encoding import Style
from absdom.errors import BudgetError, UsageError
from absdom.input_set import InputSet
from absdom.plan.recipes import parse_recipe
from absdom.plan.report import Report
from absdom.problem import Problem, _predictions, bound_rows, predicted_programs
from absdom.sets import InputBatch
from absdom.types import Program, Size, largest

KEYS = {"method", "at", "variables", "rows", "entries", "binaries", "quadratic_forms", "matrices", "megabytes"}


def refused(capfd, arguments: list[str], *words: str) -> None:
    """One error line, nothing on stdout."""
    code = main(arguments)
    out, err = capfd.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("absdom: error: ")]
    assert code == 2 and out == "" and len(errors) == 1 and "--debug" not in errors[0], out + err
    missing = [word for word in words if word not in errors[0]]
    assert not missing, f"{missing} not in: {errors[0]}"


def sizes_told(err: str, method: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith(f"{method}: ") and "variables" in line]


# -- sizes


def test_verify_tells_the_size_before_and_after(small, capfd, tmp_path):
    report = tmp_path / "r.json"
    assert main(["verify", small.model, small.holds, "--method", "lp(pre=ibp)", "--json", str(report)]) in (0, 3)
    out, err = capfd.readouterr()
    (told,) = sizes_told(err, "lp")
    assert told in out.splitlines() and " MB, at the outputs" in told
    (program,) = json.loads(report.read_text())["programs"]
    assert set(program) == KEYS and program["method"] == "lp" and program["at"] == "the outputs"
    assert program["variables"] > 6 and program["rows"] > 0 and program["binaries"] == 0


def test_bound_lists_every_place_and_prints_the_largest(small, capfd, tmp_path):
    report = tmp_path / "r.json"
    assert main(["bound", small.model, small.holds, "--method", "lp(pre=lp)", "--json", str(report)]) == 0
    out, err = capfd.readouterr()
    told = sizes_told(err, "lp")
    places = {line.rsplit(", at ", 1)[1] for line in told}
    assert len(places) == 2 and "the outputs" in places  # the first layer needs no program on a box
    programs = json.loads(report.read_text())["programs"]
    assert {p["at"] for p in programs} == places and len(sizes_told(out, "lp")) == 1
    assert main(["bound", small.model, small.holds, "--method", "crown", "--json", "-"]) == 0
    assert json.loads(capfd.readouterr().out)["programs"] == []


def test_the_size_is_told_before_anything_is_built(small, monkeypatch):
    told = []

    def encode(self, style):
        assert told, "built before it was told of"
        raise KeyboardInterrupt

    monkeypatch.setattr("absdom.plan.encode.Encoder.encode", encode)
    with pytest.raises(KeyboardInterrupt):
        api.bound(small.model, small.holds, method="lp", progress=told.append)


def test_one_line_for_thousands_of_programs():
    told = []
    report = Report(told.append)
    for k in range(1000):
        report.program("lp", "%3", Size(columns=10 + k % 7, megabytes=1.0 + 0.01 * (k % 7)))
    assert len(told) == 1
    report.program("lp", "%3", Size(columns=30, megabytes=3.0))
    report.program("lp", "%5", Size(columns=20, megabytes=2.0))
    report("what goes on, within the first seconds")
    assert len(told) == 3 and [p.size.columns for p in report.programs] == [30, 20]
    assert [p.place for p in largest(report.programs)] == ["%3"]
    assert "7 matrices of order up to 9" in str(Size(blocks=(9, 3, 3, 3, 3, 3, 3)))
    assert "2 matrices of order 9, 3" in str(Size(blocks=(9, 3)))
    assert Program("lp", "%3", Size()).to_json()["at"] == "%3"


def test_bounds_in_python_report_too(small):
    told = []
    bounds = absdom.compile(absdom.load(small.model), "lp").bounds(
        InputSet.box(-np.ones(6), np.ones(6)), progress=told.append
    )
    assert len(told) == 1 and bounds.lower.shape == (1, 1, 3) and bounds.lower.dtype == torch.float64


def test_the_plan_and_the_prediction_bound_the_size(small, capfd):
    assert main(["plan", small.model, small.holds, "--method", "lp(pre=lp)"]) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if "program" in line and "at most" in line]
    assert len(lines) == 2 and all(" rows, " in line for line in lines)
    task = api.read_task(small.model, small.holds)
    problem, recipe = Problem.of(task.graph, task.property), parse_recipe("lp(pre=lp)")
    most = {found.node: found.size for found in predicted_programs(problem, recipe)}
    bound_rows(problem.engine, recipe, PROOF, problem.property, np.arange(problem.property.spec.rows))
    assert len(most) == len(problem.engine.report.programs) == 2
    for program, size in zip(problem.engine.report.programs, most.values(), strict=True):
        assert program.size.columns <= size.columns and program.size.rows <= size.rows
    dear, cheap = (s for _, s in _predictions(problem, {"lp": recipe, "crown": parse_recipe("crown")}))
    assert dear > cheap > 0


# -- budgets


def test_over_budget_is_one_line_and_leaves_no_file(small, capfd, tmp_path):
    method, report = "lp(pre=ibp, budget=0.001)", tmp_path / "r.json"
    words = ["variables", "above its budget of 0.001 MB", "lp(budget="]
    for command in (
        ["verify", small.model, small.holds, "--method", method, "--no-attack", "--json", str(report)],
        ["bound", small.model, small.holds, "--method", method, "--json", str(report)],
        ["export", small.model, small.holds, "--method", method, "--out", str(tmp_path / "p.lp")],
    ):
        refused(capfd, command, *words)
    data = tmp_path / "d.npz"
    np.savez(data, x=np.full((4, 6), 0.5, dtype=np.float32), y=[0, 1, 2, 0])
    for jobs in ("1", "2"):
        out = ["--out", str(tmp_path / "items.jsonl"), "--attack", "none", "--jobs", jobs, "--json", str(report)]
        refused(capfd, ["certify", small.model, str(data), "--eps", "0.5", "--method", method, *out], *words)
    refused(capfd, ["distance", small.model, str(data), "--method", method], *words)
    assert [path.name for path in tmp_path.iterdir()] == ["d.npz"]


def test_a_campaign_goes_on_behind_an_instance_over_budget(small, capfd, tmp_path):
    file, out = tmp_path / "i.csv", tmp_path / "out.csv"
    easy = tmp_path / "easy.vnnlib"
    easy.write_text(Path(small.holds).read_text() + "(assert (>= Y_0 1e6))\n")  # no program is needed
    file.write_text(f"{small.model},{small.holds},60\n{small.model},{easy},60\n")
    options = ["--out", str(out), "--method", "lp(pre=ibp, budget=0.0001)"]
    assert main(["campaign", str(file), *options]) == 0
    rows = {row["vnnlib"]: row for row in csv.DictReader(out.open())}
    assert rows[small.holds]["verdict"] == "error" and "budget" in rows[small.holds]["note"]
    assert rows[str(easy)]["verdict"] == "unsat" and rows[str(easy)]["method"] == options[-1]
    capfd.readouterr()
    refused(capfd, ["campaign", str(file), "--out", str(out), "--method", "crown"], str(out), "method", "--out")
    refused(capfd, ["campaign", str(file), "--method", "magic"], "magic")


# -- certify


@pytest.fixture(scope="module")
def items(small) -> SimpleNamespace:
    x = np.round(np.random.default_rng(3).uniform(0, 1, (8, 6)), 3).astype(np.float32)
    layers = small.maker.make_network(small.model)
    y = np.array([small.maker.evaluate(layers, point.astype(np.float64)).argmax() for point in x])
    return SimpleNamespace(x=x, y=y, data={"x": x, "y": y})


@dataclass(frozen=True, eq=False)
class Corner(Encoded):
    """A program that knows no bound and offers one point, as a solver's incumbent on its way or with its answer."""

    point: np.ndarray
    early: bool
    said: list = field(default_factory=list)
    pre: Recipe = field(default_factory=registry.recipes()["interval"])
    name: ClassVar[str] = "corner"

    @property
    def style(self) -> Style:
        return Style()

    def solve(self, question: Question) -> Answer:
        count, known = question.groups, None if self.early else self.point
        self.said.append(question.found(self.point) if self.early else None)
        points = np.tile(np.full(len(self.point), np.nan) if known is None else known, (count, 1))
        return Answer(np.full(count, -np.inf), np.full(count, np.nan), points)


@pytest.mark.parametrize("early", [True, False])
def test_points_of_programs_are_replayed(small, items, early):
    """What the attack would find, found by a program: the item is attacked, and the judge has the last word."""
    options = {"eps": 1.0, "clip": None, "jobs": 1}
    attacked = certify(small.model, items.data, method="crown", **options)
    number = next(item.number for item in attacked.items if item.outcomes == ("attacked",))
    task = {"x": items.x[[number]], "y": items.y[[number]]}
    net = small.maker.make_network(small.model)
    points = items.x[number] + np.random.default_rng(0).uniform(-0.9, 0.9, (4000, 6))
    label = items.y[number]
    wrong = [c for c in points if small.maker.evaluate(net, c).argmax() != label]
    right = [c for c in points if small.maker.evaluate(net, c).argmax() == label]
    assert wrong and right
    for point, outcome in ((wrong[0], "attacked"), (right[0], "open")):
        recipe = Corner(point, early)
        found = certify(small.model, task, method=recipe, attack=False, **options)
        assert found.items[0].outcomes == (outcome,) and recipe.said == [outcome == "attacked" if early else None]
        assert found.attacked_error == (1.0 if outcome == "attacked" else 0.0)


def test_programs_certify_more_than_their_bounds_alone(small, items, capfd, tmp_path):
    file = tmp_path / "d.npz"
    np.savez(file, **items.data)
    found = {}
    for method in ("crown", "lp"):
        assert main(["certify", small.model, str(file), "--eps", "0.08", "--method", method, "--json", "-"]) == 0
        out, err = capfd.readouterr()
        found[method] = json.loads(out)
    assert found["lp"]["certified_error"] <= found["crown"]["certified_error"]
    assert found["crown"]["programs"] == [] and found["crown"]["out_of_time"] == 0
    told = sizes_told(err, "lp")
    assert bool(told) == bool(found["lp"]["programs"]) and len(told) <= 4


def test_items_that_run_out_of_time_are_open_and_counted(small, items, capfd, tmp_path):
    file, out = tmp_path / "d.npz", tmp_path / "items.jsonl"
    np.savez(file, **items.data)
    for method in ("crown", "lp"):
        found = certify(small.model, items.data, method=method, eps=0.02, attack=False, timeout_per_image=1e-9, jobs=2)
        assert found.out_of_time == 8 and all(item.outcomes == ("open",) for item in found.items)
        plenty = certify(small.model, items.data, method=method, eps=0.02, attack=False, timeout_per_image=60)
        assert plenty.out_of_time == 0 and (~plenty.flagged).any()
    command = ["certify", small.model, str(file), "--eps", "0.02", "--method", "lp", "--out", str(out)]
    assert main([*command, "--timeout-per-image", "1e-9"]) == 0
    assert "8 items ran out of their time" in capfd.readouterr().out
    assert sum(json.loads(line)["out_of_time"] for line in out.read_text().splitlines()[1:]) == 8
    refused(capfd, command, "timeout_per_image", "another run")
    refused(capfd, [*command, "--timeout-per-image", "0"], "--timeout-per-image", "above 0")
    with pytest.raises(UsageError, match="timeout per image -1"):
        certify(small.model, items.data, method="lp", eps=0.02, timeout_per_image=-1)


# -- verify


def test_a_counterexample_of_a_program_is_a_witness(small, capfd):
    """Without the attack: the inputs at which a program found the clause lowest are replayed."""
    assert main(["verify", small.model, small.fails, "--method", "lp", "--no-attack", "--json", "-"]) == 1
    out, _ = capfd.readouterr()
    report = json.loads(out.split("\n", 1)[1])
    assert out.startswith("sat\n") and report["witness"]["judge"].startswith("onnxruntime")
    assert [stage["name"] for stage in report["stages"]] == ["lp"]


def test_a_witness_counts_although_the_time_is_over(small, monkeypatch):
    """The program that found it took all the time there was."""
    from absdom.types import Clock

    recipe = parse_recipe("lp")
    solve = type(recipe).solve

    def late(self, question):
        answer = solve(self, question)
        monkeypatch.setattr(Clock, "left", lambda self: -1.0)
        return answer

    monkeypatch.setattr(type(recipe), "solve", late)
    result = absdom.verify(small.model, small.fails, method="lp", attack=False, timeout=60)
    assert result.verdict == "sat" and result.witness is not None


# -- export


@pytest.mark.parametrize("suffix", [".lp", ".mps"])
def test_export_writes_what_the_recipe_would_solve(small, capfd, tmp_path, suffix):
    """The file, read by a solver of its own, has the minimum that encode's parts have."""
    highspy = pytest.importorskip("highspy")
    file = tmp_path / f"p{suffix}"
    for clause in (0, 1):
        command = ["export", small.model, small.fails, "--method", "lp", "--clause", str(clause), "--out", str(file)]
        assert main(command) == 0
        out, err = capfd.readouterr()
        assert out.startswith(f"{file}: ") and "variables" in out and "highs" in out and sizes_told(err, "lp")
        encoding, objective = api.encode(small.model, small.fails, method="lp", clause=clause)
        assert encoding.size.columns and f"{encoding.size}" in out
        model = highspy.Highs()
        model.setOptionValue("output_flag", False)
        assert model.readModel(str(file)) == highspy.HighsStatus.kOk
        model.run()
        least = model.getInfo().objective_function_value
        rows = absdom.bound(small.model, small.fails, method="lp", proof=True).rows
        if sum(c == clause for c, *_ in rows) == 1:
            (bound,) = (lower for c, _, lower in rows if c == clause)
            assert least == pytest.approx(bound, abs=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name]


def test_export_of_exact_programs(small, capfd, tmp_path):
    assert main(["export", small.model, small.fails, "-o", str(tmp_path / "p.lp")]) == 0
    out = capfd.readouterr().out
    assert "binaries" in out and "the clause's own minimum" in out
    encoding, _ = api.encode(small.model, small.fails)
    assert encoding.complete and encoding.integer.any()


def test_encode_says_what_is_wrong(small):
    for options, words in (
        ({"clause": 7}, "clause 7: the property has 2"),
        ({"box": 3}, "box 3: the property has 1"),
        ({"method": "crown"}, "makes no program"),
        ({"method": "lp & crown"}, "makes no program"),
    ):
        with pytest.raises(UsageError, match=words):
            api.encode(small.model, small.fails, **options)
    encoding, objective = api.encode(small.model, small.fails, method="lp", box=0)
    other, same = api.encode(small.model, small.fails, method="lp", clause=0)
    assert (encoding.matrix != other.matrix).nnz == 0 and (objective.slope == same.slope).all()


def test_bad_exports(small, capfd, tmp_path):
    model = [small.model, small.holds]
    refused(capfd, ["export", *model, "--out", str(tmp_path / "p.txt")], "p.txt", ".lp or .mps")
    refused(capfd, ["export", *model, "--out", str(tmp_path / "no" / "p.lp")], "no", "does not exist")
    refused(capfd, ["export", *model], "--out")
    refused(capfd, ["export", *model, "--out", str(tmp_path / "p.lp"), "--clause", "9"], "clause 9", "2")
    refused(capfd, ["export", *model, "--out", str(tmp_path / "p.lp"), "--clause", "-1"], "--clause", "-1")
    refused(capfd, ["export", *model, "--out", str(tmp_path / "p.lp"), "--method", "ibp"], "ibp", "no program")
    assert not list(tmp_path.iterdir())


# -- bad input


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("milp(solver=gurobi)", ["gurobi", "not installed", "pip install 'absdom[gurobi]'"]),
        ("milp(solver=magic)", ["magic", "cbc"]),
        ("sdp(solver=magic)", ["magic", "scs"]),
        ("sdp(products=-1)", ["products", "-1"]),
        ("lp(pre=5)", ["pre", "recipe"]),
        ("lp(pre=partition(crown))", ["Partition", "stands alone"]),
        ("lp(budget=much)", ["budget", "number"]),
        ("lp(colour=1)", ["colour", "pre", "budget"]),
        ('{"*": partition(lp)}', ["stands alone"]),
    ],
)
def test_methods(small, capfd, method, words):
    name = method.split("(")[0]
    if name.isalpha() and name not in registry.recipes():
        pytest.skip(f"there is no {name}")
    if "gurobi" in words:
        import pulp

        if "GUROBI" in pulp.listSolvers(onlyAvailable=True):
            pytest.skip("gurobi is installed")
    refused(capfd, ["bound", small.model, small.holds, "--method", method], *words)


@pytest.mark.parametrize(
    ("method", "package"), [("milp(solver=cbc)", "pulp"), ("milp(solver=highs)", "highspy"), ("sdp", "cvxpy")]
)
def test_a_package_that_is_missing_is_named_with_its_extra(small, capfd, monkeypatch, method, package):
    if method.split("(")[0] not in registry.recipes():
        pytest.skip(f"there is no {method}")
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    refused(capfd, ["bound", small.model, small.holds, "--method", method], package, "pip install 'absdom[solvers]'")


def test_export_without_pulp(small, capfd, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pulp", None)
    command = ["export", small.model, small.holds, "--method", "lp", "--out", str(tmp_path / "p.lp")]
    refused(capfd, command, "pulp", "pip install 'absdom[solvers]'")
    assert not list(tmp_path.iterdir())


def test_lp_needs_no_package_of_solvers(small, capfd, monkeypatch):
    for package in ("pulp", "highspy", "cvxpy"):
        monkeypatch.setitem(sys.modules, package, None)
    assert main(["bound", small.model, small.holds, "--method", "lp"]) == 0
    assert "least" in capfd.readouterr().out


def test_input_sets_without_ends(small, capfd, tmp_path):
    text = Path(small.holds).read_text().splitlines()
    open_end = tmp_path / "p.vnnlib"
    open_end.write_text("\n".join(line for line in text if not line.startswith("(assert (<= X_3")) + "\n")
    assert len(open_end.read_text().splitlines()) == len(text) - 1
    refused(capfd, ["verify", small.model, str(open_end), "--method", "lp"], "X_3", "bound")
    graph = absdom.load(small.model)
    batch = InputBatch.of(InputSet.box(-np.ones(6), np.ones(6)), PROOF)
    wide = batch.upper.clone()
    wide[0, 4] = torch.inf
    with pytest.raises(UsageError, match="X_4"):
        absdom.compile(graph, "lp").bounds(InputBatch(batch.lower, wide))


def test_budget_errors_are_usage_errors():
    assert issubclass(BudgetError, UsageError)
