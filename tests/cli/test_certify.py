"""`absdom certify`: the report, records that a later run goes on from, and errors."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from absdom.cli.main import main

COUNT = 12


@pytest.fixture(scope="module")
def task(small, tmp_path_factory):
    """The network of the first example, random points with its labels (one of them changed) in an .npz file."""
    x = np.round(np.random.default_rng(3).uniform(0, 1, (COUNT, 6)), 3).astype(np.float32)
    layers = small.maker.make_network(small.model)
    y = np.array([small.maker.evaluate(layers, point.astype(np.float64)).argmax() for point in x])
    y[2] = (y[2] + 1) % 3
    data = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(data, x=x.reshape(COUNT, 2, 3), y=y)
    return SimpleNamespace(model=small.model, data=str(data), x=x, y=y)


def certify(task, *options: str, data: str | None = None, models: tuple[str, ...] = ()) -> int:
    files = [*(models or (task.model,)), data or task.data]
    return main(["certify", *files, "--device", "cpu", "--jobs", "1", *options])


BALLS = ("--method", "crown", "--eps", "0.05")


def test_the_report(task, capfd, tmp_path):
    file = tmp_path / "report.json"
    assert certify(task, *BALLS, "--json", str(file)) == 0
    out, err = capfd.readouterr()
    assert err == "" and "certified error" in out and f"{COUNT} items" in out
    report = json.loads(file.read_text())
    assert report["n"] == COUNT and report["eps"] == 0.05 and report["norm"] == "inf" and report["clip"] == [0, 1]
    assert report["clean_error"] == pytest.approx(1 / COUNT) and report["guarantee"] == "REAL"
    assert report["clean_error"] <= report["attacked_error"] <= report["certified_error"] < 1
    assert sum(report["cascade"][0][k] for k in ("certified", "attacked", "open", "differs")) == COUNT
    assert len(report["data_sha256"]) == 64 and report["seconds_per_image"] > 0


def test_auto_takes_what_the_budget_allows(task, capfd):
    found = {}
    for budget in ("1e-6", "1h"):
        assert certify(task, "--method", "auto", "--budget", budget, "--eps", "0.05", "--json", "-") == 0
        out, err = capfd.readouterr()
        found[budget] = json.loads(out)["certified_error"], err
    assert "auto: ibp" in found["1e-6"][1] and "auto: alpha-crown" in found["1h"][1]
    assert found["1h"][0] <= found["1e-6"][0]


def test_what_rests_on_random_numbers_says_so(task, capfd):
    """The probability is that of all items together, in the JSON and in the text."""
    options = (
        "--method",
        "projected(projections=40, estimator=geometric, failure=1e-4)",
        "--eps",
        "1e-5",
        "--attack",
        "none",
    )
    assert certify(task, *options, "--json", "-") == 0
    report = json.loads(capfd.readouterr().out)
    assert report["failure_probability"] == pytest.approx(COUNT * 1e-4)
    assert report["guarantee"] == "REAL, wrong with probability at most 0.0012" and "projections=40" in report["method"]
    assert certify(task, *options) == 0
    assert report["guarantee"] in capfd.readouterr().out
    assert main(["distance", task.model, task.data, "--device", "cpu", "--limit", "1", *options[:2], *options[4:]]) == 0
    assert "projections=40" in (out := capfd.readouterr().out) and "REAL, wrong with probability at most" in out


def test_json_on_stdout_and_parts_of_the_data(task, capfd):
    options = ("--json", "-", "--attack", "none", "--clip", "none", "--norm", "2", "--offset", "2", "--limit", "3")
    assert certify(task, *BALLS, *options) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["n"] == 3 and report["offset"] == 2 and report["attacked_error"] is None
    assert report["clip"] == "none" and report["norm"] == "2" and report["clean_error"] == pytest.approx(1 / 3)


def test_cascade_and_boxes(task, capfd, tmp_path):
    boxes = tmp_path / "boxes.npz"
    np.savez(boxes, lower=task.x - 0.05, upper=task.x + 0.05, y=task.y)
    options = ("--method", "crown", "--json", "-")
    assert certify(task, *options, data=str(boxes), models=(task.model, task.model)) == 0
    report = json.loads(capfd.readouterr().out)
    first, second = report["cascade"]
    assert "eps" not in report and first["asked"] == COUNT and second["asked"] == COUNT - first["certified"]
    assert second["certified"] == 0


def test_a_run_goes_on_from_its_records(task, capfd, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert certify(task, *BALLS, "--out", str(whole)) == 0
    assert certify(task, *BALLS, "--out", str(out), "--limit", "5") == 0
    capfd.readouterr()
    out.write_bytes(out.read_bytes()[:-7])  # as a kill leaves it
    assert certify(task, *BALLS, "--out", str(out), "--json", "-") == 0
    report = json.loads(capfd.readouterr().out)
    assert report["fresh"] == COUNT - 4 and report["n"] == COUNT
    lines = [[json.loads(line) for line in file.read_text().splitlines()] for file in (whole, out)]
    assert lines[0][0] == lines[1][0] and len(lines[1]) == COUNT + 1
    for one, two in zip(*(sorted(part[1:], key=lambda record: record["number"]) for part in lines), strict=True):
        assert one["number"] == two["number"] and one["outcomes"] == two["outcomes"]
        assert one["bound"] == pytest.approx(two["bound"], abs=1e-9)
    assert certify(task, *BALLS, "--out", str(out)) == 0
    assert "for 0 items" in capfd.readouterr().out


def refused(capfd, code: int, *words: str) -> None:
    out, err = capfd.readouterr()
    assert code == 2 and out == "" and len(err.splitlines()) == 1, out + err
    assert err.startswith("absdom: error: ") and "--debug" not in err
    assert all(word in err for word in words), err


def test_records_of_another_run(task, capfd, tmp_path):
    out = tmp_path / "out.jsonl"
    assert certify(task, *BALLS, "--out", str(out)) == 0
    capfd.readouterr()
    before = out.read_bytes()
    code = certify(task, "--method", "crown", "--eps", "0.06", "--out", str(out))
    refused(capfd, code, str(out), "another run", "eps was 0.05 and is now 0.06")
    code = certify(task, *BALLS, "--out", str(out), models=(task.model, task.model))
    refused(capfd, code, "models_sha256")
    assert out.read_bytes() == before
    for text in ("other text\n", "no line", '{"format": "other"}\n', before.decode().splitlines()[0] + "\n[]\n"):
        out.write_text(text)
        refused(capfd, certify(task, *BALLS, "--out", str(out)), str(out), "no records of certify")
        assert out.read_text() == text


@pytest.mark.parametrize(
    "change",
    [{"seconds": "1"}, {"outcomes": []}, {"outcomes": ["yes"]}, {"clean": 1}, {"label": 0.5}, {"bound": "x"},
     {"number": None}, {"doubt": None}, {"more": 1}],
)  # fmt: skip
def test_records_with_odd_values(task, capfd, tmp_path, change):
    out = tmp_path / "out.jsonl"
    assert certify(task, *BALLS, "--limit", "1", "--out", str(out)) == 0
    capfd.readouterr()
    head, item = out.read_text().splitlines()
    text = f"{head}\n{json.dumps(json.loads(item) | change)}\n"
    out.write_text(text)
    refused(capfd, certify(task, *BALLS, "--out", str(out)), str(out), "no records of certify")
    assert out.read_text() == text


def test_records_and_report_in_one_file(task, capfd, tmp_path):
    file = tmp_path / "both"
    code = certify(task, *BALLS, "--out", str(file), "--json", f"{tmp_path}/../{tmp_path.name}/both")
    refused(capfd, code, "--json", "--out", "the same file")
    assert not file.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--eps", "-1", "--method", "crown"), ("--eps", "negative")),
        (("--eps", "nan", "--method", "crown"), ("--eps", "finite")),
        (("--eps", "0.1"), ("--method",)),
        (("--method", "crown"), ("give eps",)),
        (("--method", "crown", "--norm", "2"), ("--norm goes with --eps",)),
        ((*BALLS, "--norm", "3"), ("--norm", "inf")),
        ((*BALLS, "--clip", "1"), ("--clip takes LOW HIGH or none",)),
        ((*BALLS, "--clip", "1", "0"), ("clip 1 0 is not a range",)),
        ((*BALLS, "--clip", "0.4", "0.6"), ("outside the range 0.4 to 0.6",)),
        ((*BALLS, "--limit", "0"), ("--limit", "above 0")),
        ((*BALLS, "--offset", "12"), ("offset 12 is behind the end", "12 items")),
        ((*BALLS, "--offset", "-1"), ("--offset",)),
        ((*BALLS, "--attack", "fgsm"), ("--attack", "pgd")),
        ((*BALLS, "--method", "linear("), ("method 'linear('",)),
        ((*BALLS, "--method", "magic"), ("magic",)),
        ((*BALLS, "--json", "/nowhere/x.json"), ("--json", "does not exist")),
        ((*BALLS, "--out", "/nowhere/x.jsonl"), ("--out", "does not exist")),
        ((*BALLS, "--plugin", "none.py"), ("plug-in none.py", "no such file")),
    ],
)
def test_options(task, capfd, options, words):
    refused(capfd, certify(task, *options), *words)


def test_files(task, capfd, tmp_path):
    out = tmp_path / "out.jsonl"

    def trial(*words: str, **arrays) -> None:
        path = tmp_path / "a.npz"
        np.savez(path, **arrays)
        refused(capfd, certify(task, *BALLS, "--out", str(out), data=str(path)), str(path), *words)
        assert not out.exists()

    x, y = task.x, task.y
    trial("neither points", "'image'", image=x)
    trial("neither labels", "'x'", x=x)
    trial("[12, 5]", "[1, 6]", x=x[:, :5], y=y)
    trial("'x' 12, 'y' 11", x=x, y=y[1:])
    trial("label 3 in item 1", x=x[:2], y=[0, 3])
    trial("whole numbers", x=x[:2], y=[0, 0.5])
    trial("no .npz file", x=np.array([None] * 6), y=y)
    refused(capfd, certify(task, *BALLS, data="none.npz"), "none.npz", "No such file")
    refused(capfd, certify(task, *BALLS, models=("none.onnx",)), "none.onnx")
    text = Path(tmp_path / "text.npz")
    text.write_text("no archive")
    refused(capfd, certify(task, *BALLS, data=str(text)), "text.npz", "no .npz file")


PLUGIN = """
from absdom import registry

@registry.register_recipe("crown-of-a-plug-in")
def mine():
    return registry.recipes()["crown"]()
"""


def test_plugins_and_workers(task, capfd, tmp_path):
    plugin = tmp_path / "certify_plugin.py"
    plugin.write_text(PLUGIN)
    options = ("--eps", "0.05", "--json", "-")
    assert certify(task, *options, "--method", "crown") == 0
    expected = json.loads(capfd.readouterr().out)
    more = ("--method", "crown-of-a-plug-in", "--plugin", str(plugin), "--jobs", "2")
    assert certify(task, *options, *more) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["cascade"] == expected["cascade"] and len(report["plugins_sha256"]) == 1
