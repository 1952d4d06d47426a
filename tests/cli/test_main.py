"""The commands against an API that answers what the test says: exit codes, streams, files."""

from __future__ import annotations

import json
import math
import sys
import time
import types

import numpy as np
import pytest

from absdom.cli.main import main
from absdom.errors import ModelError
from absdom.verdict import EXIT_CODE, Result, StageReport, Witness

WITNESS = Witness(np.array([0.5, -1.25], np.float32), np.array([3.0], np.float32), (0,), "a judge 1.0")


def result(verdict: str, **changes) -> Result:
    values = {
        "verdict": verdict, "guarantee": "REAL", "seconds": 1.5, "method": "crown",
        "stages": (StageReport("interval", 0.25, 3, 1, "a note"),), "leaves": 7, "best_bound": -math.inf,
        "clauses": 2, "clauses_open": 1, "witness": WITNESS if verdict == "sat" else None,
        "provenance": {"seed": 3, "sha256": {"model": "ab"}},
    }  # fmt: skip
    return Result(**{**values, **changes})


@pytest.fixture
def api(monkeypatch):
    """A stand-in for absdom.api; its `verify` records the arguments and returns or raises `answer`."""
    fake = types.ModuleType("absdom.api")
    fake.answer = result("unsat")
    fake.calls = []

    def verify(model, prop, **options):
        fake.calls.append((model, prop, options))
        options["progress"]("stage interval")
        if isinstance(fake.answer, BaseException):
            raise fake.answer
        return fake.answer

    fake.verify = verify
    monkeypatch.setitem(sys.modules, "absdom.api", fake)
    return fake


@pytest.mark.parametrize("verdict", ["unsat", "sat", "unknown", "timeout"])
def test_first_line_and_exit_code(api, capsys, verdict):
    api.answer = result(verdict)
    assert main(["verify", "m.onnx", "p.vnnlib"]) == EXIT_CODE[verdict]
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == verdict
    assert "stage interval" in err and "stage interval" not in out


def test_options_reach_the_api(api):
    main(["verify", "m", "p", "--timeout", "2.5", "--method", "ibp", "--device", "cpu", "--no-attack", "--seed", "9"])
    ((model, prop, options),) = api.calls
    del options["progress"]
    assert 0 <= time.monotonic() - options.pop("started") < 60
    assert (model, prop) == ("m", "p")
    assert options == {"timeout": 2.5, "method": "ibp", "device": "cpu", "attack": False, "seed": 9}
    main(["verify", "m", "p"])
    options = api.calls[1][2]
    assert options["timeout"] == math.inf and options["attack"] is True and options["method"] == "auto"


def test_json_on_stdout_follows_the_verdict(api, capsys):
    api.answer = result("sat")
    assert main(["verify", "m", "p", "--json", "-"]) == 1
    first, rest = capsys.readouterr().out.split("\n", 1)
    report = json.loads(rest, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert first == report["verdict"] == "sat"
    assert report["best_bound"] is None  # -inf has no JSON
    assert report["witness"]["x"] == [0.5, -1.25] and report["seed"] == 3


def test_files(api, tmp_path, capsys):
    api.answer = result("sat")
    report, witness = tmp_path / "r.json", tmp_path / "w.txt"
    report.write_text("old")
    assert main(["verify", "m", "p", "--json", str(report), "--counterexample", str(witness)]) == 1
    assert json.loads(report.read_text())["leaves"] == 7
    assert witness.read_text() == "((X_0 0.5)\n (X_1 -1.25)\n (Y_0 3.0))\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.json", "w.txt"]
    assert "property VIOLATED" in capsys.readouterr().out


def test_no_counterexample_file_without_a_witness(api, tmp_path):
    assert main(["verify", "m", "p", "--counterexample", str(tmp_path / "w.txt")]) == 0
    assert list(tmp_path.iterdir()) == []


def one_error_line(capsys) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("stage ")]
    assert len(lines) == 1 and lines[0].startswith("absdom: error: "), err
    return lines[0].removeprefix("absdom: error: ")


def test_an_absdom_error_is_one_line_and_leaves_no_file(api, tmp_path, capsys):
    api.answer = ModelError("net.onnx: two lines\n  of text")
    assert main(["verify", "m", "p", "--json", str(tmp_path / "r.json")]) == 2
    assert one_error_line(capsys) == "net.onnx: two lines; of text"
    assert list(tmp_path.iterdir()) == []


def test_an_unexpected_error_names_its_type(api, capsys):
    api.answer = ZeroDivisionError("division by zero")
    assert main(["verify", "m", "p"]) == 2
    assert one_error_line(capsys) == "ZeroDivisionError: division by zero (run with --debug for the traceback)"


def test_debug_shows_the_traceback(api, capsys):
    api.answer = ZeroDivisionError("division by zero")
    assert main(["verify", "m", "p", "--debug"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback (most recent call last)" in err and "absdom: error: ZeroDivisionError" in err


def test_interrupt(api, capsys):
    api.answer = KeyboardInterrupt()
    assert main(["verify", "m", "p"]) == 130
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["COMMAND"]),
        (["prove"], ["invalid choice", "'prove'", "verify"]),
        (["verify", "m"], ["PROPERTY"]),
        (["verify", "m", "p", "--timeout", "0"], ["--timeout", "'0'", "above 0"]),
        (["verify", "m", "p", "--timeout", "-3"], ["--timeout"]),
        (["verify", "m", "p", "--timeout", "nan"], ["--timeout", "'nan'"]),
        (["verify", "m", "p", "--timeout", "soon"], ["--timeout", "'soon'"]),
        (["verify", "m", "p", "--time", "3"], ["--time"]),
        (["verify", "m", "p", "--device", "tpu"], ["--device", "'tpu'", "auto", "cpu", "cuda"]),
        (["verify", "m", "p", "--seed", "-1"], ["--seed"]),
        (["verify", "m", "p", "--json", "no/such/folder/r.json"], ["--json", "does not exist"]),
        (["verify", "m", "p", "--plugin", "no-such-plugin.py"], ["no-such-plugin.py", "no such file"]),
        (["bound", "m", "p"], ["--method"]),
        (["campaign", "c.csv", "--jobs", "0"], ["--jobs"]),
        (["campaign", "c.csv", "--limit", "x"], ["--limit"]),
        (["campaign", "no-such.csv"], ["no-such.csv", "No such file"]),
    ],
)
def test_bad_arguments(api, capsys, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    message = one_error_line(capsys)
    assert all(word in message for word in words), message
    assert api.calls == [] and list(tmp_path.iterdir()) == []


def test_a_plugin_runs_first_and_its_failure_is_one_line(api, capsys, tmp_path):
    good, bad = tmp_path / "good_plugin.py", tmp_path / "bad_plugin.py"
    good.write_text("import sys\nsys.modules['absdom.api'].seen = True\n")
    bad.write_text("1 / 0\n")
    assert main(["verify", "m", "p", "--plugin", str(good)]) == 0
    assert api.seen is True
    capsys.readouterr()
    assert main(["verify", "m", "p", "--plugin", str(bad)]) == 2
    assert "bad_plugin.py: ZeroDivisionError: division by zero" in one_error_line(capsys)


def test_bound_prints_rows_or_json(api, capsys, tmp_path):
    rows = [(0, 0, 0.5), (0, 1, -2.0), (1, 2, math.nan)]
    listed = [dict(zip(("clause", "row", "lower"), row)) for row in rows]
    report = types.SimpleNamespace(rows=rows, seconds=0.5, peak_mb=12.0, method="crown", programs=())
    report.to_json = lambda: {"rows": listed, "seconds": 0.5, "peak_mb": 12.0}
    api.bound = lambda model, prop, method, device, budget, progress: report
    assert main(["bound", "m", "p", "--method", "crown"]) == 0
    out = capsys.readouterr().out
    assert "12.0 MB" in out and "method crown" in out
    assert main(["bound", "m", "p", "--method", "crown", "--json", "-"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert read["rows"][1] == {"clause": 0, "row": 1, "lower": -2.0} and read["rows"][2]["lower"] is None
    assert main(["bound", "m", "p", "--method", "crown", "--json", str(tmp_path / "b.json")]) == 0
    assert json.loads((tmp_path / "b.json").read_text()) == read
