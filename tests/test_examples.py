"""The examples run, and say what they promise."""

from __future__ import annotations

import ast
import subprocess
import sys

import numpy as np
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


def small_network(path):
    """y = (v . hardtanh(W x + b), 0) as an ONNX file: two inputs, eight hidden values; y_0 is at least about -2.17."""
    onnx = pytest.importorskip("onnx")
    import numpy as np

    random = np.random.default_rng(0)
    stored = {"w": random.standard_normal((2, 8)), "b": 0.3 * random.standard_normal(8)}
    stored |= {"v": random.standard_normal((8, 1)) * [1, 0], "low": np.array(-1.0), "high": np.array(1.0)}
    make = onnx.helper.make_node
    nodes = [make("Gemm", ["x", "w", "b"], ["z"]), make("Clip", ["z", "low", "high"], ["h"])]
    nodes.append(make("MatMul", ["h", "v"], ["y"]))
    ends = [[onnx.helper.make_tensor_value_info(name, 1, [1, size])] for name, size in (("x", 2), ("y", 2))]
    tensors = [onnx.numpy_helper.from_array(t.round(2).astype(np.float32), name) for name, t in stored.items()]
    graph = onnx.helper.make_graph(nodes, "net", *ends, tensors)
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)


def property_below(path, bound: float):
    """x in [-1, 1]^2, and y <= bound is the counterexample."""
    text = "".join(f"(declare-const {n} Real)" for n in ("X_0", "X_1", "Y_0", "Y_1"))
    text += "".join(f"(assert (>= {n} -1))(assert (<= {n} 1))" for n in ("X_0", "X_1"))
    path.write_text(f"{text}(assert (<= Y_0 {bound}))")


def plugin_at_work(plugin, laws: str, method: str, folder) -> list[str]:
    """In a process of its own: the laws, then `verify` of a property that holds and of one that does not, `bound`, and
    `certify` of three points. Gives back what the commands print, after their exit codes are checked.
    """
    import numpy as np

    small_network(folder / "net.onnx")
    np.savez(folder / "data.npz", x=np.array([[0.5, -0.5], [0.0, 0.0], [-0.9, 0.9]], dtype=np.float32), y=[1, 1, 0])
    property_below(folder / "holds.vnnlib", -3.2)  # intervals alone give -3.85
    property_below(folder / "fails.vnnlib", -2.0)
    options = ["--plugin", str(plugin), "--method", method]
    model = str(folder / "net.onnx")
    commands = [["verify", model, str(folder / f"{name}.vnnlib"), *options] for name in ("holds", "fails")]
    commands.append(["bound", model, str(folder / "holds.vnnlib"), *options])
    commands.append(["certify", model, str(folder / "data.npz"), "--eps", "0.01", "--clip", "none", *options])
    script = (
        "from absdom import registry, testing\nfrom absdom.cli.main import main\n"
        f"registry.load_plugin({str(plugin)!r})\n{laws}\n"
        f"for command in {commands!r}:\n    print('=====')\n    print('exit code', main(command))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = done.stdout.split("=====\n")[1:]
    codes = [int(text.rsplit("exit code ", 1)[1]) for text in printed]
    assert codes == [0, 1, 0, 0], done.stdout + done.stderr
    return printed


def test_05_own_domain(root, tmp_path):
    plugin = root / "examples" / "05_own_domain.py"
    assert len(plugin.read_text().splitlines()) < 150
    laws = (
        "cases = {c.name: c for c in testing.standard_cases()}\n"
        "names = 'Conv', 'Concat', 'Tanh', 'MaxPool'\n"
        "testing.check_domain('ball-image', [cases[n] for n in names])\n"
        "testing.check_gradients(cases['Relu'], 'ball-image')\n"
    )
    holds, fails, bound, certified = plugin_at_work(plugin, laws, "ball-image", tmp_path)
    assert holds.startswith("unsat") and fails.startswith("sat") and "certified error" in certified
    assert float(bound.splitlines()[1].split()[2]) > 0.05  # crown has 0.03, intervals have -0.65


def test_06_own_layer_dual(root, tmp_path):
    plugin = root / "examples" / "06_own_layer_dual.py"
    assert len(plugin.read_text().splitlines()) < 40
    laws = (
        "from absdom.ops import Clip\n"
        "forms = 'hardtanh', 'hardtanh(slope=parallel)'\n"
        "testing.check_op(Clip(-1.0, 1.0), low=-3.0, high=2.5, recipes=forms, gradients=True)\n"
        "cases = {c.name: c for c in testing.standard_cases()}\n"
        "testing.check_domain('hardtanh', [cases[n] for n in ('Clip', 'Softmax')])\n"
    )
    holds, fails, *_ = plugin_at_work(plugin, laws, "hardtanh(slope=parallel)", tmp_path)
    assert holds.startswith("unsat") and fails.startswith("sat")


def test_07_own_program(root, tmp_path):
    """Through the command line; each further binary decided only helps, up to the exact program."""
    plugin = root / "examples" / "07_own_program.py"
    assert len(plugin.read_text().splitlines()) < 55
    laws = (
        "from absdom import api\n"
        f"files = {str(tmp_path / 'net.onnx')!r}, {str(tmp_path / 'holds.vnnlib')!r}\n"
        "methods = 'lp', 'cases(count=0)', 'cases(count=3)', 'cases(count=8)', 'milp'\n"
        "values = [api.bound(*files, method=m).rows[0][2] for m in methods]\n"
        "assert abs(values[0] - values[1]) < 1e-3 and all(b >= a - 1e-4 for a, b in zip(values, values[1:])), values\n"
    )
    holds, fails, bound, certified = plugin_at_work(plugin, laws, "cases(count=6)", tmp_path)
    assert holds.startswith("unsat") and fails.startswith("sat") and "certified error" in certified
    assert "binaries" in bound


def test_09_train_controller(root, tmp_path):
    """The network that only imitates violates the property, the trained one is proved, both as files."""
    done = run(root, "09_train_controller.py", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "plain.onnx, safety.vnnlib: sat" in done.stdout and "certified.onnx, safety.vnnlib: unsat" in done.stdout
    assert float(done.stdout.split("plain training: distance from the expert ")[1].split()[0]) < 0.05
    assert float(done.stdout.split("certified training: distance from the expert ")[1].split()[0]) < 0.2


def test_08_train_and_certify(root, digits):
    """Its network is the one that other tests take."""
    tree = ast.parse((root / "examples" / "08_train_and_certify.py").read_text())
    code = [node for node in tree.body[1:] if not isinstance(node, (ast.Import, ast.ImportFrom))]
    assert sum(node.end_lineno - node.lineno + 1 for node in code) <= 20
    stages = ["clean", "pgd", "ibp", "crown", "alpha-crown", "complete"]
    rows = [line.split() for line in digits.printed.splitlines() if line.split()[0] in stages and "%" not in line]
    assert [row[0] for row in rows] == stages and rows[-1][-2] == "0", digits.printed
    asked, certified, refuted = (np.array([int(row[k]) for row in rows]) for k in (1, 2, 3))
    assert asked[0] == 397 == certified.sum() + refuted.sum() and certified.sum() > 300, digits.printed
