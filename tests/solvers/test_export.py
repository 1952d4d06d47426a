"""Programs written as .lp and .mps are the ones that are solved here."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from nets import exact_minimum, relu_net
from programs import Asked

from absdom import registry
from absdom.encoding import Style
from absdom.errors import UsageError
from absdom.solvers.milp.export import column_names, to_pulp


@pytest.fixture(scope="module")
def program():
    graph, layers = relu_net((3, 4, 3, 2), 2)
    low, high = -np.ones(3), np.ones(3)
    encoding, objective = Asked(graph, low, high, [[1.0, -1.0]], [[0.75]]).encoding(Style(integers=True))
    return encoding, objective, exact_minimum(layers, np.array([1.0, -1.0]), 0.75, low, high)


@pytest.mark.parametrize("ending", ["lp", "mps"])
def test_files_read_back_have_the_same_optimum(program, ending, tmp_path):
    highspy = pytest.importorskip("highspy")
    encoding, objective, exact = program
    path = tmp_path / f"net.{ending}"
    registry.service("export-program")(encoding, objective, path)
    model = highspy.Highs()
    model.setOptionValue("output_flag", False)
    model.readModel(str(path))
    model.run()
    assert model.getInfo().objective_function_value == pytest.approx(exact, abs=1e-5)
    assert model.getNumCol() == len(encoding.lower) + 1  # and the constant's


def test_names_tell_where_a_column_comes_from(program):
    encoding, objective, _ = program
    names = column_names(encoding)
    assert len(set(names)) == len(names)
    assert names[:3] == ["x0", "x1", "x2"]
    assert all(n.startswith("b") for n, whole in zip(names, encoding.integer, strict=True) if whole)
    problem, variables = to_pulp(encoding, objective)
    assert [v.name for v in variables] == names
    assert problem.isMIP()


def test_what_cannot_be_written(program, tmp_path, monkeypatch):
    encoding, objective, _ = program
    export = registry.service("export-program")
    with pytest.raises(UsageError, match=r"\.lp or \.mps"):
        export(encoding, objective, tmp_path / "net.txt")
    monkeypatch.setitem(sys.modules, "pulp", None)
    with pytest.raises(UsageError, match=r"absdom\[solvers\]"):
        export(encoding, objective, tmp_path / "net.lp")
