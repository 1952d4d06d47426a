"""`absdom survey`, and bounds within a budget."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from absdom.cli.main import main


@pytest.fixture(params=["Reciprocal", "Div"])
def quotient(tmp_path, request):
    """(model, property): y = 1 / x on [-1, 1], which no bound can hold."""
    turn = helper.make_node(request.param, ["one", "x"][request.param == "Reciprocal" :], ["y"], name="turn")
    nodes = [helper.make_node("Constant", [], ["one"], value_float=1.0), turn]
    inputs, outputs = ([helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1])] for n in "xy")
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, tmp_path / "turn.onnx")
    text = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 -1))(assert (<= X_0 1))(assert (<= Y_0 -9))"
    (tmp_path / "turn.vnnlib").write_text(text)
    return str(tmp_path / "turn.onnx"), str(tmp_path / "turn.vnnlib")


def test_a_survey_lists_what_fails_and_goes_on(small, quotient, tmp_path, capsys):
    listed = tmp_path / "instances.csv"
    rows = [(small.model, small.holds), quotient, ("missing.onnx", small.holds), (small.model, small.fails)]
    listed.write_text("\n".join(f"{model},{prop},10" for model, prop in rows))
    assert main(["survey", str(listed), "--json", str(tmp_path / "out.json"), "--points", "5"]) == 1
    out, err = capsys.readouterr()
    assert "4 instances of 3 models" in out and "2 exceptions" in out
    assert "crown: 2 instances have finite bounds, 0 of them by a cheaper method" in out
    assert "turn" in out and "may leave its domain" in out and "no such file" in out
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["exceptions"] == 2
    good, bad, missing, last = found["instances"]
    assert good["reached"] == last["reached"] == "bounded by crown" and good["methods"]["ibp"]["ran"] == "ibp"
    assert bad["reached"] == "agrees with onnxruntime" and missing["reached"] == "nothing"
    assert len(err.splitlines()) == 4


def test_a_survey_without_exceptions_ends_with_0(small, tmp_path, capsys):
    (tmp_path / "instances.csv").write_text(f"{small.model},{small.holds},10\n{small.model},{small.fails},10\n")
    assert main(["survey", str(tmp_path / "instances.csv"), "--limit", "1", "--methods", "ibp"]) == 0
    out = capsys.readouterr().out
    assert "1 instances of 1 models" in out and "crown" not in out


def test_bounds_within_a_budget(small, capsys):
    assert main(["bound", small.model, small.holds, "--method", "crown"]) == 0
    out, err = capsys.readouterr()
    assert "method crown," in out and not err
    assert main(["bound", small.model, small.holds, "--method", "crown", "--budget", "1e-12"]) == 0
    out, err = capsys.readouterr()
    assert "method ibp," in out
    assert "crown would cost" in err and "above the budget of 1e-12 s: ibp instead" in err


def test_the_budget_counts_what_crown_ibp_saves(small):
    from absdom import api
    from absdom.problem import within_budget

    problem, _ = api.make_problem(api.read_task(small.model, small.holds))
    crown, cheaper = api.recipe_of("crown"), api.recipe_of("crown-ibp")
    costs = np.logspace(-12, 0, 200)
    names = [within_budget(problem, "crown", crown, budget)[0] for budget in costs]
    assert names == sorted(names, key=["ibp", "crown-ibp", "crown"].index) and set(names) == {
        "ibp",
        "crown-ibp",
        "crown",
    }
    assert within_budget(problem, "crown", crown, costs[names.index("crown-ibp")])[1] == cheaper


def test_a_function_outside_its_domain_is_a_clear_error(quotient, capsys):
    assert main(["bound", *quotient, "--method", "ibp"]) == 2
    out, err = capsys.readouterr()
    assert not out
    for part in ("'turn'", "[-1, 1]", "split the input set"):
        assert part in err
    assert main(["verify", *quotient, "--no-attack", "--method", "crown"]) == 3
    assert "may leave its domain" in capsys.readouterr().out


def test_the_smoke_instances_load_agree_and_have_bounds(vnncomp, capsys):
    assert main(["survey", str(vnncomp / "smoke" / "instances.csv"), "--budget", "2"]) == 0
    assert "0 exceptions" in capsys.readouterr().out


@pytest.mark.slow
def test_all_public_instances_load_agree_and_have_bounds(vnncomp, capsys):
    """The networks of cctsdb_yolo divide by the area of a box that they predict: no method bounds it away from 0."""
    for part in ("dev", "peers"):
        main(["survey", str(vnncomp / part / "instances.csv"), "--budget", "5"])
        listed = [line for line in capsys.readouterr().out.splitlines() if "got as far as" in line]
        assert all("cctsdb_yolo" in line and "may leave its domain" in line for line in listed)
