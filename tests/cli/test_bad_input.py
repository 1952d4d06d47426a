"""Input that a user can get wrong: exit code 2, one clear line, nothing on stdout, no file, no traceback."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from absdom.cli.main import main


def check(capfd, arguments: list[str], *words: str) -> str:
    """Run, and look for one error line with these words (any case); returns it."""
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("absdom: error: ")]
    assert len(lines) == 1, err
    assert "--debug" not in lines[0], f"an unexpected exception, not an error of absdom: {lines[0]}"
    missing = [word for word in words if word.lower() not in lines[0].lower()]
    assert not missing, f"{missing} not in: {lines[0]}"
    return lines[0]


def one_layer(path: Path, nodes, weights: dict[str, np.ndarray]) -> str:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


@pytest.fixture
def write(tmp_path):
    """Writes a property and returns its path. `body` replaces the default asserts."""

    def go(body: str, inputs: int = 6, outputs: int = 3, bounds: str | None = None) -> str:
        declared = [f"(declare-const X_{i} Real)" for i in range(inputs)]
        declared += [f"(declare-const Y_{i} Real)" for i in range(outputs)]
        if bounds is None:
            bounds = "\n".join(f"(assert (>= X_{i} -1))\n(assert (<= X_{i} 1))" for i in range(inputs))
        path = tmp_path / "p.vnnlib"
        path.write_text("\n".join([*declared, bounds, body]) + "\n")
        return str(path)

    return go


GOAL = "(assert (>= Y_0 100))"
FIVE_BOUNDS = "".join(f"(assert (>= X_{i} -1))\n(assert (<= X_{i} 1))\n" for i in range(5))


@pytest.mark.parametrize("keep", [0, 1, 40, 0.5, 0.99])
def test_truncated_onnx(small, tmp_path, capfd, keep):
    whole = Path(small.model).read_bytes()
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    check(capfd, ["verify", str(cut), small.holds], "cut.onnx")


def test_truncated_gzip(small, tmp_path, capfd):
    cut = tmp_path / "cut.onnx.gz"
    cut.write_bytes(gzip.compress(Path(small.model).read_bytes())[:-200])
    check(capfd, ["verify", str(cut), small.holds], "cut.onnx.gz")
    cut.write_bytes(b"not gzip at all")
    check(capfd, ["verify", str(cut), small.holds], "cut.onnx.gz")


def test_text_instead_of_onnx(small, tmp_path, capfd):
    file = tmp_path / "text.onnx"
    file.write_text("this is no network\n" * 20)
    check(capfd, ["verify", str(file), small.holds], "text.onnx")


def test_unknown_ops_are_all_named(tmp_path, write, capfd):
    nodes = [
        helper.make_node("Det", ["x"], ["a"], name="first_bad"),
        helper.make_node("Unique", ["a"], ["b"], name="second_bad"),
        helper.make_node("Relu", ["b"], ["y"], name="good"),
    ]
    model = one_layer(tmp_path / "ops.onnx", nodes, {})
    line = check(capfd, ["verify", model, write(GOAL, 2, 2)], "Det", "first_bad", "Unique", "second_bad")
    assert "'good'" not in line


def test_weights_with_nan(tmp_path, write, capfd):
    weights = {"W": np.array([[1, np.nan], [0, 1]], np.float32)}
    model = one_layer(tmp_path / "nan.onnx", [helper.make_node("MatMul", ["x", "W"], ["y"], name="product")], weights)
    check(capfd, ["verify", model, write(GOAL, 2, 2)], "NaN")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("(assert (or (>= Y_0 100) (<= Y_1 2))", ["p.vnnlib:22:1:", "'('"]),
        ("(assert (>= Y_0 100)))", ["p.vnnlib:22:22:", "')'"]),
        ("(assert (>= Y_7 100))", ["p.vnnlib:22:", "Y_7", "declared"]),
        ("(assert (>= Z 100))", ["Z", "declared"]),
        ("(assert (>= Y_0 nan))", ["nan"]),
        ("(assert (> = Y_0 1))", ["p.vnnlib:22:12:"]),
        ("(assert (xor (>= Y_0 1) (>= Y_1 1)))", ["xor"]),
    ],
)
def test_properties_that_do_not_parse(small, write, capfd, body, words):
    check(capfd, ["verify", small.model, write(body)], *words)


def test_a_missing_input_bound(small, write, capfd):
    check(capfd, ["verify", small.model, write(GOAL, bounds=FIVE_BOUNDS)], "X_5", "bound")
    check(capfd, ["verify", small.model, write(GOAL, bounds=FIVE_BOUNDS + "(assert (<= X_5 1))")], "X_5", "bound")


def test_lower_above_upper(small, write, capfd):
    check(
        capfd,
        ["verify", small.model, write(GOAL, bounds=FIVE_BOUNDS + "(assert (>= X_5 2))(assert (<= X_5 1))")],
        "X_5",
    )


@pytest.mark.parametrize("value", ["nan", "NaN", "inf", "1e999"])
def test_bounds_that_are_no_numbers(small, write, capfd, value):
    check(
        capfd,
        ["verify", small.model, write(GOAL, bounds=FIVE_BOUNDS + f"(assert (>= X_5 0))(assert (<= X_5 {value}))")],
    )


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 3), (7, 3), (6, 2), (6, 4)])
def test_a_property_of_another_network(small, write, capfd, inputs, outputs):
    words = [str(inputs), "6"] if inputs != 6 else [str(outputs), "3"]
    check(capfd, ["verify", small.model, write(f"(assert (>= Y_{outputs - 1} 100))", inputs, outputs)], *words)


def test_an_empty_property(small, tmp_path, capfd):
    empty = tmp_path / "empty.vnnlib"
    empty.write_text("; nothing\n")
    check(capfd, ["verify", small.model, str(empty)])


def test_files_that_are_not_there(small, tmp_path, capfd):
    check(capfd, ["verify", str(tmp_path / "no.onnx"), small.holds], "no.onnx", "no such file")
    check(capfd, ["verify", small.model, str(tmp_path / "no.vnnlib")], "no.vnnlib", "no such file")
    check(capfd, ["verify", str(tmp_path), small.holds], str(tmp_path))
    check(capfd, ["info", str(tmp_path / "no.onnx")], "no.onnx", "no such file")


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "ten"])
def test_timeouts(small, capfd, timeout):
    check(capfd, ["verify", small.model, small.holds, f"--timeout={timeout}"], "--timeout", timeout, "above 0")


@pytest.mark.parametrize("command", ["verify", "bound", "plan"])
@pytest.mark.parametrize(
    "method", ["magic", "linear(pre=magic)", "linear(", "linear(colour=1)", "__import__('os')", ""]
)
def test_methods(small, capfd, command, method):
    words = {"magic": ["magic", "crown", "ibp"], "linear(pre=magic)": ["magic"]}.get(method, [])
    check(capfd, [command, small.model, small.holds, "--method", method], *words)


def test_devices(small, capfd):
    check(capfd, ["verify", small.model, small.holds, "--device", "tpu"], "tpu", "cpu", "cuda")
    import torch

    if not torch.cuda.is_available():
        check(capfd, ["verify", small.model, small.holds, "--device", "cuda"], "cuda")
        check(capfd, ["bound", small.model, small.holds, "--method", "crown", "--device", "cuda"], "cuda")
