"""Structural and affine ONNX ops against onnxruntime, over many attributes."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
import torch
from graph_evaluate import evaluate
from onnx_models import agree, model, names_of, node

from absdom import testing
from absdom.arithmetic import PROOF
from absdom.errors import ModelError, UnsupportedOp
from absdom.frontends.onnx import Judge, load_onnx
from absdom.passes import lower

RNG = np.random.default_rng(5)


def ints(*values) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def floats(*shape) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def affine(data: bytes) -> None:
    """The graph agrees, and the transposes of its affine ops are adjoints."""
    assert testing.check_adjoint(agree(data)) > 0


def refused(data: bytes, words: str, error=UnsupportedOp) -> None:
    with pytest.raises(error, match=words):
        load_onnx(data=data)


# Moves


@pytest.mark.parametrize(
    ("op", "shape", "constants", "attributes", "opset"),
    [
        ("Tile", [1, 2, 3], [ints(2, 1, 3)], {}, 13),
        ("Trilu", [2, 3, 4], [ints(-1)], {}, 14),
        ("Trilu", [4, 3], [ints(1)], {"upper": 0}, 14),
        ("Trilu", [3, 3], [], {}, 14),
        ("DepthToSpace", [2, 8, 2, 3], [], {"blocksize": 2}, 13),
        ("DepthToSpace", [1, 18, 2, 1], [], {"blocksize": 3, "mode": "CRD"}, 13),
        ("SpaceToDepth", [1, 2, 4, 6], [], {"blocksize": 2}, 13),
        ("CumSum", [2, 3, 2], [np.array(1)], {}, 14),
        ("CumSum", [2, 4], [np.array(-1)], {"exclusive": 1, "reverse": 1}, 14),
        ("CumSum", [2, 4], [np.array(0)], {"exclusive": 1}, 14),
        ("GatherND", [2, 3, 4], [ints([0, 2], [1, -1])], {}, 13),
        ("GatherND", [2, 3, 4], [ints([[2], [0]], [[1], [1]])], {"batch_dims": 1}, 13),
        ("GatherElements", [2, 3], [ints([0, -1, 0], [2, 1, 1])], {"axis": 1}, 13),
        ("GatherElements", [3, 3], [ints([2, 1])], {"axis": 0}, 13),
        ("CenterCropPad", [3, 5, 4], [ints(4, 3)], {"axes": [0, 1]}, 18),
        ("Pad", [2, 3], [ints(1, 2, 0, 1)], {"mode": "wrap"}, 19),
        ("ReduceSumSquare", [2, 3, 2], [ints(0, -1)], {}, 18),
        ("ReduceL1", [2, 3, 2], [], {"axes": [1], "keepdims": 0}, 13),
        ("ReduceL2", [2, 3, 2], [], {}, 13),
        ("ReduceProd", [2, 3, 2], [], {"axes": [0, 1]}, 13),
        ("GlobalMaxPool", [2, 3, 2, 2], [], {}, 13),
        ("GlobalLpPool", [2, 3, 2, 2], [], {"p": 3}, 13),
        ("LpPool", [1, 2, 5, 4], [], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 0, 1]}, 11),
        ("LpPool", [1, 2, 6], [], {"kernel_shape": [2], "p": 1, "auto_pad": "SAME_UPPER"}, 11),
        ("LpNormalization", [2, 3], [], {"axis": 0, "p": 1}, 13),
        ("MeanVarianceNormalization", [2, 3, 2, 2], [], {}, 13),
    ],
)
def test_one_op(op, shape, constants, attributes, opset):
    names = [f"c{i}" for i in range(len(constants))]
    call = node(op, " ".join(["x", *names]), "y", **attributes)
    agree(model(call, {"x": shape}, "y", dict(zip(names, constants, strict=True)), opset))


def test_space_to_depth_undoes_depth_to_space():
    nodes = [
        node("DepthToSpace", "x", "a", blocksize=2, mode="DCR"),
        node("SpaceToDepth", "a", "b", blocksize=2),
        node("Sub", "b x", "y"),
    ]
    graph = load_onnx(data=model(nodes, {"x": [1, 8, 2, 3]}, "y"))
    found = testing.bounds_of(lower(graph), *[torch.randn(1, 48).double()] * 2, "crown", PROOF)
    assert found.upper.abs().max() < 1e-12


@pytest.mark.parametrize("vary", ["x", "u", "x u"])
@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize("op", ["ScatterND", "ScatterElements"])
def test_scatter(op, reduction, vary):
    if op == "ScatterND":
        shapes, index = (
            {"x": [3, 2], "u": [4, 2]},
            ints([2], [0], [2], [2]) if reduction != "none" else ints([2], [0], [1], [-1]),
        )
        shapes["u"], index = ([4, 2], index) if reduction != "none" else ([3, 2], index[:3])
        attributes = {}
    else:
        shapes = {"x": [3, 3], "u": [2, 3]}
        index = ints([0, 1, 2], [0, 2, -1]) if reduction != "none" else ints([0, 1, 2], [1, 2, 0])
        attributes = {"axis": 0}
    inputs = {k: s for k, s in shapes.items() if k in vary}
    constants = {k: floats(*s) for k, s in shapes.items() if k not in vary} | {"i": index}
    graph = agree(model(node(op, "x i u", "y", reduction=reduction, **attributes), inputs, "y", constants, opset=18))
    if reduction in ("none", "add"):  # jointly affine in data and updates
        assert set(names_of(graph)) <= {"Input", "Param", "Reshape", "Concat", "Take", "Slice", "Add"}


def test_max_unpool():
    indices = np.array([[[[0, 3], [9, 11]]]])
    data = model(
        node("MaxUnpool", "x i", "y", kernel_shape=[2, 2], strides=[2, 2]), {"x": [1, 1, 2, 2]}, "y", {"i": indices}
    )
    agree(data)


# Rare functions


@pytest.mark.parametrize(
    ("op", "low", "high", "opset", "attributes"),
    [
        ("Sinh", -3, 3, 9, {}), ("Cosh", -3, 3, 9, {}), ("Asinh", -40, 40, 9, {}), ("Acosh", 1.01, 9, 9, {}),
        ("Atanh", -0.95, 0.95, 9, {}), ("Asin", -0.95, 0.95, 9, {}), ("Acos", -0.95, 0.95, 9, {}),
        ("Shrink", -2, 2, 9, {"lambd": 0.7, "bias": 0.7}), ("Shrink", -2, 2, 9, {"lambd": 0.5, "bias": 1.5}),
        ("Shrink", -2, 2, 9, {}),
    ],
)  # fmt: skip
def test_functions_that_are_compositions(op, low, high, opset, attributes):
    data = model(node(op, "x", "y", **attributes), {"x": [1, 40]}, "y", opset=opset)
    graph, points = lower(load_onnx(data=data)), np.linspace(low, high, 40, dtype=np.float32)[None]
    expected = Judge(data=data).run(points)
    np.testing.assert_allclose(evaluate(graph, points), expected, rtol=2e-6, atol=1e-6)
    centre = torch.from_numpy(points).double()
    width = 0.02 * (high - low)
    case = testing.Case(op, graph, (centre - width).clamp(low, high), (centre + width).clamp(low, high))
    for recipe in ("interval", "crown"):
        testing.check_sound(case, recipe)


# Convolutions


def transposed_models():
    generator = np.random.default_rng(1)
    for rank, groups, seed in itertools.product((1, 2, 3), (1, 2), range(4)):
        kernel, strides = generator.integers(1, 4, rank), generator.integers(1, 4, rank)
        attributes = {
            "strides": strides.tolist(),
            "dilations": generator.integers(1, 3, rank).tolist(),
            "group": groups,
        }
        size = generator.integers(2, 4, rank)
        match seed:
            case 0:
                pads = [int(generator.integers(0, k + 1)) // 2 for k in (*kernel, *kernel)]
                extra = [int(generator.integers(0, s)) for s in strides]
                attributes |= {"pads": pads, "output_padding": extra}
            case 1:
                natural = (size - 1) * strides + np.array(attributes["dilations"]) * (kernel - 1) + 1
                attributes["output_shape"] = [int(n) - int(n > 2) for n in natural]
            case 2:
                attributes |= {"auto_pad": ["SAME_UPPER", "SAME_LOWER"][groups - 1], "dilations": [1] * rank}
                kernel = kernel + strides - 1
        yield pytest.param([1, 2 * groups, *size], [2 * groups, 2, *kernel], attributes, id=f"{rank}d-{groups}-{seed}")


@pytest.mark.parametrize(("shape", "weights", "attributes"), transposed_models())
def test_transposed_convolution(shape, weights, attributes):
    shape, weights = [int(s) for s in shape], [int(s) for s in weights]
    constants = {"w": floats(*weights), "b": floats(weights[1] * attributes["group"])}
    affine(model(node("ConvTranspose", "x w b", "y", **attributes), {"x": shape}, "y", constants))


def test_transposed_convolution_is_the_adjoint_of_the_convolution():
    w = floats(2, 3, 3, 2)
    where = {"strides": [2, 1], "pads": [1, 0, 1, 1]}
    there = load_onnx(data=model(node("Conv", "x w", "y", **where), {"x": [1, 3, 5, 4]}, "y", {"w": w}))
    back = load_onnx(data=model(node("ConvTranspose", "x w", "y", **where), {"x": [1, 2, 3, 4]}, "y", {"w": w}))
    x, y = RNG.normal(size=60), RNG.normal(size=24)
    np.testing.assert_allclose(evaluate(there, x)[0] @ y, x @ evaluate(back, y)[0])


@pytest.mark.parametrize("attributes", [{}, {"strides": [2, 1], "pads": [0, 1, 1, 0]}, {"dilations": [1, 2]}])
def test_col2im(attributes):
    places = {(): 3 * 3, ("dilations",): 3 * 2, ("pads", "strides"): 2 * 4}[tuple(sorted(attributes))]
    constants = {"image": ints(4, 4), "block": ints(2, 2)}
    affine(model(node("Col2Im", "x image block", "y", **attributes), {"x": [1, 8, places]}, "y", constants, opset=18))


def test_a_window_in_the_padding_is_refused_with_its_reason():
    for op in ("MaxPool", "AveragePool"):
        refused(
            model(node(op, "x", "y", kernel_shape=[2], pads=[0, 2]), {"x": [1, 1, 3]}, "y"), "wholly in the padding"
        )


# Several inputs


@pytest.mark.parametrize("op", ["Sum", "Mean"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_variadic_sums(op, count):
    names = [f"x{i}" for i in range(count)]
    shapes = [[2, 3], [3], [2, 1]]
    data = model(node(op, " ".join(names), "y"), dict(zip(names, shapes, strict=False)), "y")
    agree(data) if count == 1 else affine(data)


def test_batch_normalization_of_each_element():
    """spatial=0, which onnxruntime does not run: the statistics have the shape of an image."""
    stats = [floats(2, 3), floats(2, 3), floats(2, 3), np.abs(floats(2, 3)) + 0.1]
    constants = dict(zip("sbmv", stats, strict=True))
    call = node("BatchNormalization", "x s b m v", "y", spatial=0, epsilon=0.5)
    x = RNG.normal(size=6)
    scale, bias, mean, var = (a.astype(np.float64).ravel() for a in stats)
    graph = load_onnx(data=model(call, {"x": [1, 2, 3]}, "y", constants, opset=8))
    found = evaluate(lower(graph), x)[0]
    np.testing.assert_allclose(found, (x - mean) / np.sqrt(var + 0.5) * scale + bias, rtol=1e-6)


def test_cast_like():
    nodes = [node("CastLike", "x d", "a"), node("CastLike", "c x", "k"), node("Mul", "a k", "y")]
    data = model(nodes, {"x": [3]}, "y z", {"d": np.zeros(1), "c": ints(2)}, opset=15)
    refused(data, "neither stored", ModelError)
    agree(model(nodes, {"x": [3]}, "y", {"d": np.zeros(1), "c": ints(2)}, opset=15))


def test_outputs_that_are_whole_numbers():
    proto = onnx.load_from_string(model([node("Shape", "x", "s"), node("Neg", "x", "y")], {"x": [2, 3]}, "y s"))
    proto.graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    agree(proto.SerializeToString())


def test_huge_results_are_refused():
    for op, constants in (("Tile", [ints(2**20, 2**20)]), ("Expand", [ints(2**20, 2**20)])):
        if op == "Tile":
            refused(model(node(op, "x c", "y"), {"x": [2, 2]}, "y", {"c": constants[0]}), "too large", ModelError)
    data = model(
        node("Resize", "x - - s", "y", mode="linear"), {"x": [1, 1, 2, 2]}, "y", {"s": ints(1, 1, 2**20, 2**20)}
    )
    refused(data, "too large", ModelError)
