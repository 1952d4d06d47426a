"""Small ONNX models for tests, and the comparison of their graphs with onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from graph_evaluate import evaluate
from onnx import helper, numpy_helper

from absdom.frontends.onnx import load_onnx
from absdom.ir.check import check
from absdom.ir.graph import Graph
from absdom.passes import lower


def node(op: str, inputs: str, outputs: str, name: str = "", **attributes) -> onnx.NodeProto:
    """Names are separated by spaces; '-' is an input that is absent."""
    names = ["" if i == "-" else i for i in inputs.split()]
    return helper.make_node(op, names, outputs.split(), name=name, **attributes)


def model(nodes, inputs: dict, outputs: str, constants: dict | None = None, opset: int = 13, dtype=np.float32) -> bytes:
    """The bytes of a model; `inputs` maps names to shapes (a string is an open axis), `constants` to arrays or lists.

    Floats in `constants` become `dtype`, lists of integers int64.
    """
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    stored = []
    for name, value in (constants or {}).items():
        array = np.asarray(value)
        if array.dtype.kind == "f":
            array = array.astype(dtype)
        stored.append(numpy_helper.from_array(array, name))
    graph = helper.make_graph(
        [nodes] if isinstance(nodes, onnx.NodeProto) else nodes,
        "test",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs.split()],
        stored,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=min(10, 3 + opset))
    return proto.SerializeToString()


def run(data: bytes, points: np.ndarray, shapes) -> list[list[np.ndarray]]:
    """onnxruntime's outputs per point, by its own means (no Judge)."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(float)": np.float32, "tensor(double)": np.float64}
    found = []
    for point in points:
        feed, start = {}, 0
        for info, shape in zip(session.get_inputs(), shapes, strict=True):
            size = int(np.prod(shape))
            feed[info.name] = point[start : start + size].reshape(shape).astype(kinds[info.type])
            start += size
        found.append(session.run(None, feed))
    return found


def agree(data: bytes, points: int = 3, scale: float = 2.0, tolerance: float = 2e-6) -> Graph:
    """Load, lower and evaluate the model; shapes and values have to be onnxruntime's. Gives back the loaded graph."""
    graph = check(load_onnx(data=data))
    shapes = [graph.nodes[i].type.shape for i in graph.inputs]
    size = sum(int(np.prod(s)) for s in shapes)
    x = np.random.default_rng(size).normal(0, scale, (points, size)).astype(np.float32)
    expected = run(data, x, shapes)
    assert [graph.nodes[i].type.shape for i in graph.outputs] == [y.shape for y in expected[0]]
    flat = np.stack([np.concatenate([y.ravel() for y in one]) for one in expected]).astype(np.float64)
    found = evaluate(lower(graph), x)
    bound = tolerance * max(np.abs(flat).max(initial=0), 1e-30)
    assert np.abs(found - flat).max(initial=0) <= bound, f"{found}\n{flat}"
    return graph


def names_of(graph: Graph) -> list[str]:
    return [n.op.name for n in graph.nodes]
