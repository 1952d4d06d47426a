"""If, Loop and Scan that are written out, against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import agree, model, names_of, node

from absdom import testing
from absdom.errors import ModelError, UnsupportedOp
from absdom.frontends.onnx import load_onnx
from absdom.problem import attach_vector


def graph(name: str, nodes, inputs: dict, outputs: dict, constants: dict | None = None) -> onnx.GraphProto:
    """A body; `inputs` and `outputs` map names to element types."""
    shape = {"k": (), "going": ()}
    infos = [[helper.make_tensor_value_info(n, t, shape.get(n)) for n, t in side.items()] for side in (inputs, outputs)]
    stored = [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()]
    return helper.make_graph(nodes, name, *infos, stored)


FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def conditional(axes: int, cond: str = "shape") -> bytes:
    """y = relu(x w) for a matrix x, else -x; both branches read x from around them, one has a weight of its own."""
    weight = np.array([[1.0, -2.0], [0.5, 3.0]], dtype=np.float32)
    steep = graph("a", [node("MatMul", "x w", "p"), node("Relu", "p", "r")], {}, {"r": FLOAT}, {"w": weight})
    minus = graph("b", [node("Neg", "x", "r")], {}, {"r": FLOAT})
    nodes = [
        node("Shape", "x", "s"), node("Size", "s", "rank"), node("Equal", "rank two", "c"),
        node("ReduceSum", "x", "total", keepdims=0), node("Greater", "total zero", "varying"),
        node("If", "c" if cond == "shape" else "varying", "y", "choice", then_branch=steep, else_branch=minus),
    ]  # fmt: skip
    shape = [3, 2] if axes == 2 else [2]
    return model(nodes, {"x": shape}, "y", {"two": np.array(2), "zero": np.array(0.0)})


def test_the_branch_that_is_taken():
    assert "Relu" in names_of(agree(conditional(2)))
    assert "Neg" in names_of(agree(conditional(1)))


def test_a_branch_that_the_input_chooses_is_refused():
    with pytest.raises(UnsupportedOp, match="its condition depends on the network's input"):
        load_onnx(data=conditional(2, "input"))


def test_what_a_branch_cannot_do_is_named():
    bad = graph("a", [node("Det", "x", "r")], {}, {"r": FLOAT})
    call = node("If", "c", "y", "choice", then_branch=bad, else_branch=bad)
    with pytest.raises(UnsupportedOp, match="If .inside of it: Det.: 'choice'"):
        load_onnx(data=model(call, {"x": [2, 2]}, "y", {"c": np.array(True)}))


def looping(count: int, stop: int = 100) -> bytes:
    """h = relu(h w + b k) for k = 0, 1 ... while k < stop; all h are collected."""
    body = graph(
        "body",
        [
            node("Cast", "k", "kf", to=FLOAT), node("Mul", "b kf", "bk"), node("MatMul", "h w", "p"),
            node("Add", "p bk", "q"), node("Relu", "q", "next"), node("Identity", "next", "seen"),
            node("Less", "k last", "on"),
        ],
        {"k": INT, "going": BOOL, "h": FLOAT}, {"on": BOOL, "next": FLOAT, "seen": FLOAT}, {"last": np.array(stop)},
    )  # fmt: skip
    generator = np.random.default_rng(1)
    constants = {"n": np.array(count), "w": generator.normal(size=(3, 3)), "b": generator.normal(size=(1, 3))}
    return model(node("Loop", "n - x", "y all", "rounds", body=body), {"x": [1, 3]}, "y all", constants)


def test_loops():
    three = agree(looping(3))
    assert names_of(three).count("Relu") == 3
    assert names_of(agree(looping(9, stop=1))).count("Relu") == 2, "the condition ends it"
    assert testing.check_adjoint(attach_vector(three, False)) > 0


def test_loops_that_are_too_long_or_empty():
    with pytest.raises(UnsupportedOp, match="too many"):
        load_onnx(data=looping(10**6))
    with pytest.raises(UnsupportedOp, match="no round at all"):
        load_onnx(data=looping(0))


def scanning(opset: int = 13, **attributes) -> bytes:
    """Running sums of products of two lists, one of them constant."""
    body = graph(
        "body", [node("Mul", "item weight", "m"), node("Add", "sum m", "sum2"), node("Identity", "sum2", "out")],
        {"sum": FLOAT, "item": FLOAT, "weight": FLOAT}, {"sum2": FLOAT, "out": FLOAT},
    )  # fmt: skip
    constants = {"start": np.zeros(2), "weights": np.random.default_rng(0).normal(size=(3, 2))}
    call = node("Scan", "start x weights", "last y", "scan", body=body, num_scan_inputs=2, **attributes)
    shape = [2, 3] if attributes.get("scan_input_axes") else [3, 2]
    return model(call, {"x": shape}, "last y", constants, opset)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"scan_input_directions": [1, 0], "scan_output_directions": [1]},
        {"scan_input_axes": [1, 0], "scan_output_axes": [1]},
    ],
)
def test_scans(attributes):
    agree(scanning(**attributes))


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ModelError, match="different lengths"):
        load_onnx(data=scanning(scan_input_axes=[0, 0]))
