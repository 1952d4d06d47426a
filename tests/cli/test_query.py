"""The command line of the VNN-LIB standard: `verify QUERY --network NAME=MODEL` and `supports`."""

from __future__ import annotations

import csv
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from absdom import __version__
from absdom.cli.main import main
from absdom.cli.query import CAPABILITIES

QUERY = """(vnnlib-version <2.0>)
(declare-network net (declare-input A float32 [1,2]) (declare-hidden H float32 [1,2] "mid") (declare-output Y float32 [1,2]))
(assert (and (>= A[0,0] 0.0) (<= A[0,0] 2.0)))
(assert (and (>= A[0,1] 0.0) (<= A[0,1] 2.0)))
(assert (>= (* Y[0,0] H[0,1]) {level}))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the network mid = relu(x), y = mid + mid, and queries about it."""
    folder = tmp_path_factory.mktemp("query")
    nodes = [helper.make_node("Relu", ["x"], ["mid"]), helper.make_node("Add", ["mid", "mid"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "m.onnx")
    (folder / "holds.vnnlib").write_text(QUERY.format(level=8.5))
    (folder / "fails.vnnlib").write_text(QUERY.format(level=7.5))
    (folder / "old.vnnlib").write_text(
        "".join(f"(declare-const {name} Real)" for name in ("X_0", "X_1", "Y_0", "Y_1"))
        + "".join(f"(assert (<= X_{i} 1))(assert (>= X_{i} 0))" for i in (0, 1))
        + "(assert (>= Y_0 2.5))"
    )
    return folder


def network(files, name="net") -> list[str]:
    return ["--network", f"{name}={files / 'm.onnx'}"]


def test_unsat_is_one_word_on_stdout(files, capfd):
    assert main(["verify", str(files / "holds.vnnlib"), *network(files), "--timeout", "60"]) == 0
    out, err = capfd.readouterr()
    assert out == "unsat\n" and "property holds" in err


def test_sat_is_followed_by_the_assignment(files, capfd, tmp_path):
    path = tmp_path / "witness.txt"
    command = ["verify", *network(files), "--timeout", "60", str(files / "fails.vnnlib"), "--counterexample", str(path)]
    assert main(command) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "sat" and lines[1::3] == ["A float32 [1,2]", "H float32 [1,2]", "Y float32 [1,2]"]
    a, h, y = (np.array(lines[i : i + 2], dtype=np.float32) for i in (2, 5, 8))
    np.testing.assert_array_equal([h, y], [a, 2 * a])  # exact in float32
    assert float(y[0]) * float(h[1]) >= 7.5 and len(lines) == 10
    assert path.read_text().splitlines() == lines[1:]


def test_the_assignment_as_tensors(files, capfd, tmp_path):
    command = ["verify", str(files / "fails.vnnlib"), *network(files), "--serialise-assignments", str(tmp_path / "out")]
    assert main(command) == 0
    assert capfd.readouterr().out == "sat\n"
    found = {
        p.stem: numpy_helper.to_array(TensorProto.FromString(p.read_bytes())) for p in (tmp_path / "out").iterdir()
    }
    assert set(found) == {"A", "H", "Y"} and all(v.shape == (1, 2) and v.dtype == np.float32 for v in found.values())
    np.testing.assert_array_equal(found["Y"], 2 * found["A"])


def test_out_of_time_is_timed_out(files, capfd):
    assert main(["verify", str(files / "fails.vnnlib"), *network(files), "--timeout", "1e-6"]) == 0
    assert capfd.readouterr().out == "timed-out\n"


def test_a_property_of_version_1_needs_no_name(files, capfd):
    assert main(["verify", str(files / "old.vnnlib"), *network(files, "any")]) == 0
    assert capfd.readouterr().out == "unsat\n"


def test_both_ways_of_naming_the_files_agree(files, capfd):
    assert main(["verify", str(files / "m.onnx"), str(files / "fails.vnnlib")]) == 1
    assert capfd.readouterr().out.startswith("sat\nproperty VIOLATED")
    assert main(["verify", str(files / "m.onnx"), str(files / "holds.vnnlib")]) == 0
    assert capfd.readouterr().out.startswith("unsat\nproperty holds")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fails.vnnlib"], ["PROPERTY"]),
        (["fails.vnnlib", "--network", "net"], ["--network net", "NAME=MODEL"]),
        (["fails.vnnlib", "--network", "=m.onnx"], ["NAME=MODEL"]),
        (["fails.vnnlib", "--network", "f=m.onnx"], ["declares the network 'net'", "'f'"]),
        (["fails.vnnlib", "--network", "net=m.onnx", "--network", "g=m.onnx"], ["2 times", "one network"]),
        (["m.onnx", "fails.vnnlib", "--network", "net=m.onnx"], ["m.onnx is the query", "fails.vnnlib"]),
        (["fails.vnnlib", "--network", "net=no.onnx"], ["no.onnx", "no such file"]),
        (["fails.vnnlib", "--network", "net=m.onnx", "--json", "-"], ["--json"]),
        (["fails.vnnlib", "--network", "net=m.onnx", "--ball", "x.npz"], ["--ball"]),
        (["m.onnx", "fails.vnnlib", "--serialise-assignments", "out"], ["goes with --network"]),
        (["bad.vnnlib", "--network", "net=m.onnx"], ["bad.vnnlib:3:34:", "index 2 lies outside axis 1"]),
    ],
)
def test_errors(files, capfd, monkeypatch, arguments, words):
    monkeypatch.chdir(files)
    (files / "bad.vnnlib").write_text(QUERY.format(level=1).replace("(<= A[0,0]", "(<= A[0,2]"))
    assert main(["verify", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("absdom: error: ") and err.count("\n") == 1
    assert all(word in err for word in words), err


def test_bound_plan_and_campaign_take_queries(files, capfd, tmp_path):
    model, query = str(files / "m.onnx"), str(files / "holds.vnnlib")
    assert main(["bound", model, query, "--method", "crown"]) == 0
    assert "1 rows" in capfd.readouterr().out
    assert main(["plan", model, query]) == 0
    assert "Product" in capfd.readouterr().out
    (tmp_path / "instances.csv").write_text(f"{model},{query},60\n")
    assert main(["campaign", str(tmp_path / "instances.csv"), "--out", str(tmp_path / "results.csv")]) == 0
    with open(tmp_path / "results.csv", newline="") as file:
        assert [row["verdict"] for row in csv.DictReader(file)] == ["unsat"]


SHAPES = {
    "onnx-opset-versions": r"\d+\n\d+\n",
    "vnnlib-versions": r"\d+\.\d+\n\d+\.\d+\n",
    "onnx-element-types": r"real\n",
    "onnx-operators": r"(\w+\n)+",
    "optimised-disjunctive-reasoning": r"true\n|false\n",
    "serialise-assignments": r"true\n|false\n",
}


@pytest.mark.parametrize("name", [*CAPABILITIES, "multiple-inputs-output-theories"])
def test_supports(capfd, name):
    assert main(["supports", f"--{name}"]) == 0
    out = capfd.readouterr().out
    assert re.fullmatch(SHAPES.get(name, r"([A-Z]+\n)+"), out)
    if name == "onnx-operators":
        assert {"Conv", "Gemm", "Relu", "MaxPool"} <= set(out.split())


def test_supports_needs_one_capability(capfd):
    assert main(["supports"]) == 2
    assert main(["supports", "--everything"]) == 2
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(("option", "text"), [("--name", "absdom\n"), ("--version", f"{__version__}\n")])
def test_name_and_version(capfd, option, text):
    with pytest.raises(SystemExit) as done:
        main([option])
    assert done.value.code == 0 and capfd.readouterr().out == text
