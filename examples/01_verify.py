"""Make a small network and two properties, and decide both with the command line.

Run: python examples/01_verify.py [FOLDER]     (the files stay in FOLDER if it is given)

The network classifies 6 numbers into 3 classes. The property says that the class of one input does not change when
every number moves by at most a radius. For the small radius that holds; for the large one there is a counterexample.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZES = (6, 24, 24, 3)
RADII = {"holds": 0.2, "fails": 1.0}


def make_network(path: Path, sizes=SIZES, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Write a fully connected ReLU network with random weights; returns its weights and biases, layer by layer."""
    rng = np.random.default_rng(seed)
    layers, nodes, tensors, value = [], [], [], "x"
    for i, (inputs, outputs) in enumerate(zip(sizes, sizes[1:])):
        weight = (rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)
        bias = (0.1 * rng.standard_normal(outputs)).astype(np.float32)
        layers.append((weight, bias))
        tensors += [numpy_helper.from_array(weight, f"W{i}"), numpy_helper.from_array(bias, f"b{i}")]
        last = i == len(sizes) - 2
        nodes.append(helper.make_node("Gemm", [value, f"W{i}", f"b{i}"], ["y" if last else f"z{i}"], name=f"layer{i}"))
        if not last:
            nodes.append(helper.make_node("Relu", [f"z{i}"], [f"h{i}"], name=f"relu{i}"))
        value = f"h{i}"
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, sizes[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, sizes[-1]])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return layers


def evaluate(layers, x: np.ndarray) -> np.ndarray:
    for weight, bias in layers[:-1]:
        x = np.maximum(x @ weight + bias, 0)
    weight, bias = layers[-1]
    return x @ weight + bias


def write_property(path: Path, centre: np.ndarray, radius: float, label: int, classes: int) -> None:
    """VNN-LIB 1.0, which describes the counterexamples: an input of the box whose label is not the largest output."""
    lines = [f"(declare-const X_{i} Real)" for i in range(len(centre))]
    lines += [f"(declare-const Y_{i} Real)" for i in range(classes)]
    for i, value in enumerate(centre):
        lines += [f"(assert (>= X_{i} {value - radius:.6f}))", f"(assert (<= X_{i} {value + radius:.6f}))"]
    others = " ".join(f"(and (>= Y_{i} Y_{label}))" for i in range(classes) if i != label)
    path.write_text("\n".join([*lines, f"(assert (or {others}))"]) + "\n")


def make_files(folder: Path) -> tuple[Path, dict[str, Path]]:
    """network.onnx, holds.vnnlib and fails.vnnlib in `folder`."""
    model = folder / "network.onnx"
    layers = make_network(model)
    centre = np.round(np.random.default_rng(1).uniform(-1, 1, SIZES[0]), 3)
    label = int(evaluate(layers, centre).argmax())
    properties = {name: folder / f"{name}.vnnlib" for name in RADII}
    for name, path in properties.items():
        write_property(path, centre, RADII[name], label, SIZES[-1])
    return model, properties


def main(folder: Path) -> int:
    model, properties = make_files(folder)
    expected = {"holds": ("unsat", 0), "fails": ("sat", 1)}
    as_expected = True
    for name, path in properties.items():
        options = ["--timeout", "60", "--counterexample", str(folder / "counterexample.txt")]
        print(f"$ absdom verify {model.name} {path.name} --timeout 60", flush=True)
        command = [sys.executable, "-m", "absdom", "verify", str(model), str(path), *options]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        print(done.stdout, flush=True)
        first = done.stdout.split("\n", 1)[0]
        as_expected &= (first, done.returncode) == expected[name]
    if not as_expected:
        print("This is not what was expected: unsat, then sat.", file=sys.stderr)
        return 1
    print("Both as expected: the first property holds, the second does not.")
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        raise SystemExit(main(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory() as scratch:
        raise SystemExit(main(Path(scratch)))
