"""The examples run, and say what they promise."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(root, name: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(root / "examples" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=root)


def test_01_verify(root, tmp_path):
    done = run(root, "01_verify.py", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "property holds" in done.stdout and "property VIOLATED" in done.stdout and "(X_0 " in done.stdout
    assert (tmp_path / "counterexample.txt").read_text().startswith("((X_0 ")


def test_every_example_is_tested(root):
    names = {path.stem for path in (root / "examples").glob("*.py")}
    assert {f"test_{name}" for name in names} <= set(globals()), "give each example a test here"


def test_02_bounds(root):
    pytest.importorskip("torch")
    done = run(root, "02_bounds.py")
    assert done.returncode == 0, done.stdout + done.stderr


def test_03_properties(root):
    done = run(root, "03_properties.py")
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = [line.rsplit(": ", 1)[1] for line in done.stdout.splitlines() if line.endswith(("unsat", "sat"))]
    assert verdicts == ["unsat", "unsat", "sat", "unsat", "unsat", "unsat"], done.stdout
    assert "(declare-const X_0 Real)" in done.stdout


def test_04_own_op(root, tmp_path):
    """In all domains by the laws, and in `verify` from the command line, in fewer than 40 lines."""
    onnx = pytest.importorskip("onnx")
    import numpy as np

    plugin = root / "examples" / "04_own_op.py"
    assert len(plugin.read_text().splitlines()) < 40
    laws = (
        "from absdom import registry, testing\n"
        "from absdom.types import TensorType\n"
        f"registry.load_plugin({str(plugin)!r})\n"
        "op = registry.ops()['MyHardSwish']()\n"
        "testing.check_op(op, TensorType((1, 6), 'float64'), low=-5.0, high=5.0, gradients=True)\n"
    )  # in a process of its own: what is registered stays
    done = subprocess.run([sys.executable, "-c", laws], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr

    weights = np.array([[1.0, -1.0], [2.0, 1.0]], dtype=np.float32)
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["z"]),
        onnx.helper.make_node("HardSwish", ["z"], ["y"]),
    ]
    inputs, outputs = ([onnx.helper.make_tensor_value_info(name, 1, [1, 2])] for name in "xy")
    stored = [onnx.numpy_helper.from_array(weights, "w")]
    graph = onnx.helper.make_graph(nodes, "net", inputs, outputs, stored)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "net.onnx")
    for bound, code in (("-0.376", 0), ("-0.37", 1)):  # the least value is -0.375
        text = "".join(f"(declare-const {n} Real)" for n in ("X_0", "X_1", "Y_0", "Y_1"))
        text += "".join(f"(assert (>= {n} -1))(assert (<= {n} 1))" for n in ("X_0", "X_1"))
        (tmp_path / "p.vnnlib").write_text(f"{text}(assert (<= Y_0 {bound}))")
        command = [sys.executable, "-m", "absdom", "verify", str(tmp_path / "net.onnx"), str(tmp_path / "p.vnnlib")]
        done = subprocess.run([*command, "--plugin", str(plugin)], capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stdout + done.stderr
