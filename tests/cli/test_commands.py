"""The commands end to end on a small network."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from absdom.cli.main import main


def test_verify_a_property_that_holds(small, capfd):
    assert main(["verify", small.model, small.holds, "--timeout", "60", "--json", "-"]) == 0
    first, rest = capfd.readouterr().out.split("\n", 1)
    report = json.loads(rest)
    assert first == report["verdict"] == "unsat"
    assert report["guarantee"] == "REAL" and report["witness"] is None and report["best_bound"] > 0
    assert report["clauses"] == 2 and report["clauses_open"] == 0


def test_verify_a_property_that_fails(small, capfd, tmp_path):
    witness, report = tmp_path / "w.txt", tmp_path / "r.json"
    files = ["--counterexample", str(witness), "--json", str(report)]
    assert main(["verify", small.model, small.fails, "--timeout", "60", *files]) == 1
    assert capfd.readouterr().out.startswith("sat\n")
    point = json.loads(report.read_text())["witness"]
    x, y = np.array(point["x"]), np.array(point["y"])
    text = witness.read_text().replace("(", " ").replace(")", " ").split()
    assert text[::2] == [f"X_{i}" for i in range(6)] + [f"Y_{i}" for i in range(3)]
    assert np.array_equal(np.array(text[1::2], dtype=np.float32), np.concatenate([x, y]).astype(np.float32))
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(small.model, providers=["CPUExecutionProvider"])
    replayed = session.run(None, {"x": x.astype(np.float32)[None]})[0].ravel()
    assert replayed.argmax() != 2 and np.allclose(replayed, y, rtol=0, atol=0)


def test_with_the_attack_off_it_is_never_proved(small, capfd):
    assert main(["verify", small.model, small.fails, "--timeout", "5", "--no-attack"]) in (1, 3, 4)
    assert capfd.readouterr().out.split("\n", 1)[0] in ("sat", "unknown", "timeout")


def test_a_seed_repeats_a_run(small, capfd):
    reports = []
    for _ in range(2):
        main(["verify", small.model, small.fails, "--seed", "5", "--json", "-"])
        reports.append(json.loads(capfd.readouterr().out.split("\n", 1)[1]))
    assert reports[0]["witness"]["x"] == reports[1]["witness"]["x"] and reports[0]["seed"] == 5


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown", "cap"])
def test_bound(small, capfd, method):
    assert main(["bound", small.model, small.holds, "--method", method, "--json", "-"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert len(report["rows"]) == 2 and set(report["rows"][0]) == {"clause", "row", "lower"}
    assert report["seconds"] > 0
    # Rows are y_label - y_other: no sample lies below its bound.
    rng = np.random.default_rng(0)
    centre = np.round(np.random.default_rng(1).uniform(-1, 1, 6), 3)
    x = centre + rng.uniform(-1, 1, (2000, 6)) * small.maker.RADII["holds"]
    layers = small.maker.make_network(small.model)
    y = small.maker.evaluate([(w.astype(np.float64), b.astype(np.float64)) for w, b in layers], x)
    margins = (y[:, [2]] - y[:, :2]).min(0)
    assert all(row["lower"] <= margin for row, margin in zip(report["rows"], margins, strict=True))


def test_plan_coverage_info(small, capfd):
    assert main(["plan", small.model, small.holds]) == 0
    assert capfd.readouterr().out.strip()
    assert main(["coverage"]) == 0
    table = capfd.readouterr().out
    assert "Relu" in table and "Conv" in table and "Interval" in table.replace("interval", "Interval")
    assert main(["info", small.model]) == 0
    text = capfd.readouterr().out
    assert "Relu" in text and str(6 * 24 + 24 + 24 * 24 + 24 + 24 * 3 + 3) in text.replace(",", "")


def test_info_lists_unsupported_ops(tmp_path, capfd):
    nodes = [helper.make_node("Sinh", ["x"], ["a"], name="bad"), helper.make_node("Relu", ["a"], ["y"], name="good")]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [1, 2])], [value("y", TensorProto.FLOAT, [1, 2])]
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    assert main(["info", str(path)]) == 0
    out = capfd.readouterr().out
    assert "Sinh" in out and "'bad'" in out and "unsupported" in out


def test_campaign(small, tmp_path, capfd):
    instances = tmp_path / "instances.csv"
    instances.write_text(
        "onnx,vnnlib,timeout,consensus\n"
        f"{small.model},{small.holds},60,unsat\n{small.model},{small.fails},60,sat\n{small.model},nothing.vnnlib,60,\n"
    )
    out = tmp_path / "results.csv"
    assert main(["campaign", str(instances), "--out", str(out), "--jobs", "2"]) == 0
    assert capfd.readouterr().out.splitlines()[1].split()[1:9] == ["3", "2", "1", "1", "0", "0", "1", "0"]
    with out.open(newline="") as file:
        rows = {row["vnnlib"]: row for row in csv.DictReader(file)}
    assert rows["nothing.vnnlib"]["verdict"] == "error" and "nothing.vnnlib" in rows["nothing.vnnlib"]["note"]
    instances.write_text(f"onnx,vnnlib,timeout,consensus\n{small.model},{small.holds},60,sat\n")
    assert main(["campaign", str(instances), "--out", str(out)]) == 1


def test_the_installed_command(small, tmp_path):
    """As a process of its own: the first line of stdout, the exit code, and both streams in their places."""
    done = subprocess.run(
        [sys.executable, "-m", "absdom", "verify", small.model, small.holds],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("unsat\nproperty holds")
    assert list(tmp_path.iterdir()) == []
