"""Every ONNX op of the front end against onnxruntime, at several opsets."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_models import agree, model, names_of, node

from absdom.errors import UnsupportedOp
from absdom.frontends.onnx import load_onnx

RNG = np.random.default_rng(5)
W34, W45 = RNG.normal(size=(3, 4)), RNG.normal(size=(4, 5))
X = {"x": [2, 3, 4]}


def one(op: str, shape, constants: dict | None = None, opset: int = 13, inputs: str = "", **attributes):
    """Agreement of a model of one node whose first input is x."""
    data = model(node(op, f"x {inputs}", "y", "n", **attributes), {"x": shape}, "y", constants, opset)
    return agree(data)


@pytest.mark.parametrize("opset", [7, 11, 13, 22])
@pytest.mark.parametrize("op", ["Relu", "Abs", "Neg", "Sigmoid", "Tanh", "Sign", "LeakyRelu", "Identity"])
def test_unary(op, opset):
    one(op, [2, 3], opset=max(opset, 9) if op == "Sign" else opset)


def test_leaky_relu_slope():
    one("LeakyRelu", [4], alpha=0.3)
    one("LeakyRelu", [4], alpha=1.5)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("shape", [[4], [3, 1], [2, 3, 4], [1, 1, 1, 1], []])
def test_binary_with_constant_on_either_side(op, shape):
    c = np.random.default_rng(1).uniform(1, 2, shape)
    agree(model(node(op, "x c", "y"), X, "y", {"c": c}))
    if op != "Div":
        agree(model(node(op, "c x", "y"), X, "y", {"c": c}))


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul"])
def test_binary_of_two_varying(op):
    agree(model(node(op, "x z", "y"), {"x": [2, 3], "z": [3]}, "y"))
    agree(model(node(op, "x x", "y"), {"x": [2, 3]}, "y"))


def test_quotient_of_two_varying():
    nodes = [node("Sigmoid", "x", "s"), node("Add", "s c", "p"), node("Div", "x p", "y")]
    agree(model(nodes, X, "y", {"c": [1.0]}))


@pytest.mark.parametrize("opset", [7, 9, 11, 13])
@pytest.mark.parametrize("a_flip", [0, 1])
@pytest.mark.parametrize("b_flip", [0, 1])
@pytest.mark.parametrize("scales", [{}, {"alpha": 0.5, "beta": 3.0}, {"beta": 0.0}])
def test_gemm(opset, a_flip, b_flip, scales):
    shape = [3, 2] if a_flip else [2, 3]
    b = W34.T if b_flip else W34
    for c in (np.ones(()), RNG.normal(size=4), RNG.normal(size=(2, 1)), RNG.normal(size=(2, 4))):
        call = node("Gemm", "x b c", "y", transA=a_flip, transB=b_flip, **scales)
        agree(model(call, {"x": shape}, "y", {"b": b, "c": c}, opset))
    if opset >= 11:
        agree(model(node("Gemm", "x b", "y", transA=a_flip, transB=b_flip), {"x": shape}, "y", {"b": b}, opset))
    agree(model(node("Gemm", "x b c", "y", transB=b_flip), {"x": [2, 3], "b": b.shape, "c": [4]}, "y", opset=opset))


@pytest.mark.parametrize(
    ("left", "right"),
    [([3], [3]), ([3], [3, 4]), ([2, 3], [3]), ([2, 3], [3, 4]), ([5, 2, 3], [3, 4]), ([2, 3], [5, 3, 4]),
     ([3], [5, 3, 2]), ([5, 1, 2, 3], [2, 3, 4])],
)  # fmt: skip
def test_matmul(left, right):
    agree(model(node("MatMul", "x w", "y"), {"x": left}, "y", {"w": RNG.normal(size=right)}))
    agree(model(node("MatMul", "w x", "y"), {"x": right}, "y", {"w": RNG.normal(size=left)}))
    agree(model(node("MatMul", "x z", "y"), {"x": left, "z": right}, "y"))


@pytest.mark.parametrize("limits", [(-0.5, 0.7), (None, 0.7), (-0.5, None), (None, None), (1.0, -1.0)])
def test_clip(limits):
    attributes = {k: v for k, v in zip(("min", "max"), limits, strict=True) if v is not None}
    if limits != (1.0, -1.0):  # onnxruntime refuses crossed attributes
        one("Clip", [9], opset=7, **attributes)
    constants = {k: np.array(v) for k, v in attributes.items()}
    inputs = f"{'min' if 'min' in constants else '-'} {'max' if 'max' in constants else ''}"
    for opset in (11, 12, 13):
        one("Clip", [9], constants, opset, inputs)


def test_clip_with_infinite_bounds_is_the_identity():
    graph = one("Clip", [3], {"low": np.array(-np.inf), "high": np.array(np.inf)}, 13, "low high")
    assert names_of(graph) == ["Input"]


@pytest.mark.parametrize("opset", [7, 11, 12, 13, 22])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1, -2])
def test_softmax(opset, axis):
    if opset < 11 and axis is not None and axis < 0:
        pytest.skip("negative axes came with opset 11")
    one("Softmax", [2, 3, 4], opset=opset, **({} if axis is None else {"axis": axis}))


def shape_for(rng, rank, low, high):
    return [int(rng.integers(1, 3)), int(rng.integers(1, 3)) * 2, *(int(i) for i in rng.integers(low, high, rank))]


def some_windows(rng, rank, dilated=True):
    """Attributes of a random window: padding always smaller than the kernel."""
    kernel = [int(i) for i in rng.integers(1, 4, rank)]
    out = {"kernel_shape": kernel, "strides": [int(i) for i in rng.integers(1, 4, rank)]}
    if dilated:
        out["dilations"] = [int(i) for i in rng.integers(1, 3, rank)]
    mode = rng.choice(["NOTSET", "pads", "SAME_UPPER", "SAME_LOWER", "VALID"])
    if mode.startswith("SAME"):  # onnxruntime refuses strides above the kernel here
        out["strides"] = [min(s, k) for s, k in zip(out["strides"], kernel, strict=True)]
    if mode == "pads":
        out["pads"] = [int(rng.integers(0, kernel[i % rank])) for i in range(2 * rank)]
    elif mode != "NOTSET" or rng.integers(2):
        out["auto_pad"] = str(mode)
    return out


@pytest.mark.parametrize("seed", range(60))
def test_conv(seed):
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 4))
    shape = shape_for(rng, rank, 5, 9)
    groups = int(rng.choice([1, 2, shape[1]]))
    attributes = some_windows(rng, rank) | {"group": groups}
    if attributes.get("auto_pad", "").startswith("SAME"):
        attributes["dilations"] = [1] * rank
    filters = groups * int(rng.integers(1, 3))
    constants = {"w": rng.normal(size=(filters, shape[1] // groups, *attributes["kernel_shape"]))}
    if rng.integers(2):
        del attributes["kernel_shape"]
    if rng.integers(2):
        constants["b"] = rng.normal(size=filters)
    one("Conv", shape, constants, int(rng.choice([7, 11, 22])), " ".join(constants), **attributes)


@pytest.mark.parametrize("seed", range(80))
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pool(op, seed):
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 4))
    shape = shape_for(rng, rank, 5, 8)
    opset = int(rng.choice([7, 10, 12, 19, 22]))
    dilated = opset >= (10 if op == "MaxPool" else 19)
    attributes = some_windows(rng, rank, dilated)
    if attributes.get("auto_pad", "").startswith("SAME"):
        attributes.pop("dilations", None)
    if opset >= 10:
        attributes["ceil_mode"] = int(rng.integers(2))
    if op == "AveragePool":
        attributes["count_include_pad"] = int(rng.integers(2))
    data = model(node(op, "x", "y", **attributes), {"x": shape}, "y", opset=opset)
    try:
        load_onnx(data=data)
    except UnsupportedOp as error:
        assert "padding" in str(error)
        pytest.skip("a window lies wholly in the padding")
    agree(data)


def test_global_average_pool():
    for shape in ([2, 3, 4], [1, 3, 4, 5], [1, 2, 3, 2, 2]):
        one("GlobalAveragePool", shape)


@pytest.mark.parametrize("opset", [7, 9, 14, 15, 22])
@pytest.mark.parametrize("shape", [[2, 3], [2, 3, 4], [1, 3, 4, 5]])
def test_batch_normalization(opset, shape):
    rng = np.random.default_rng(2)
    stats = {k: rng.normal(size=3) for k in ("gamma", "beta", "mean")} | {"var": rng.uniform(0.1, 2, 3)}
    one("BatchNormalization", shape, stats, opset, "gamma beta mean var")
    one("BatchNormalization", shape, stats, opset, "gamma beta mean var", epsilon=0.1)


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean"])
@pytest.mark.parametrize("axes", [None, [0], [1, 2], [-1], [-2, 0], [2, 1, 0]])
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions(op, axes, keep):
    since = 13 if op == "ReduceSum" else 18
    for opset in (7, 11, 12, 13, 18, 22):
        if opset < 11 and axes is not None and min(axes) < 0:
            continue
        if axes is None or opset >= since:
            constants = {} if axes is None else {"axes": axes}
            one(op, [2, 3, 4], constants, opset, "axes" if axes else "", keepdims=keep)
        else:
            one(op, [2, 3, 4], {}, opset, axes=axes, keepdims=keep)


def test_reduction_without_axes_can_be_nothing():
    graph = one("ReduceSum", [2, 3], {}, 13, noop_with_empty_axes=1)
    assert names_of(graph) == ["Input"]
    one("ReduceSum", [], {}, 13)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -3])
def test_flatten(axis):
    one("Flatten", [2, 3, 4], opset=11 if axis < 0 else 9, axis=axis)


@pytest.mark.parametrize("shape", [[0, -1], [4, 3, 2], [-1], [0, 0, 4], [2, 1, -1, 4], [24, 1]])
def test_reshape(shape):
    for opset in (7, 13, 14):
        one("Reshape", [2, 3, 4], {"s": shape}, opset, "s")
    if 0 not in shape:
        one("Reshape", [2, 3, 4], {"s": shape}, 14, "s", allowzero=1)


def test_transpose():
    one("Transpose", [2, 3, 4])
    one("Transpose", [2, 3, 4], perm=[1, 2, 0])
    assert names_of(one("Transpose", [2, 3], perm=[0, 1])) == ["Input"]


@pytest.mark.parametrize("opset", [7, 11, 13, 22])
def test_squeeze_and_unsqueeze(opset):
    def both(op, shape, axes):
        if opset >= 13:
            one(op, shape, {"axes": axes}, opset, "axes")
        else:
            one(op, shape, {}, opset, axes=axes)

    both("Squeeze", [1, 3, 1, 2], [0])
    both("Squeeze", [1, 3, 1, 2], [2, 0])
    both("Unsqueeze", [3, 2], [0, 3])
    both("Unsqueeze", [3, 2], [1])
    if opset >= 11:
        both("Squeeze", [1, 3, 1, 2], [-2])
        both("Unsqueeze", [3, 2], [-1, 0])
    one("Squeeze", [1, 3, 1, 2], opset=opset)


def test_concat():
    constants = {"c": W34, "none": np.zeros((0, 4))}
    for axis in (0, -2):
        graph = agree(model(node("Concat", "x c none z", "y", axis=axis), {"x": [2, 4], "z": [1, 4]}, "y", constants))
    assert names_of(graph).count("Concat") == 1
    agree(model(node("Concat", "x x", "y", axis=1), {"x": [2, 4]}, "y"))
    assert names_of(agree(model(node("Concat", "x", "y", axis=1), {"x": [2, 4]}, "y"))) == ["Input"]


def test_split():
    size = {"x": [2, 7]}
    agree(model(node("Split", "x", "a b c", axis=1, split=[1, 4, 2]), size, "a b c", opset=11))
    agree(model(node("Split", "x", "a b", axis=0), size, "a b", opset=7))
    agree(model(node("Split", "x s", "a b c", axis=-1), size, "c a", {"s": [1, 4, 2]}, 13))
    agree(model(node("Split", "x", "a b c", axis=1, num_outputs=3), size, "a b c", opset=18))
    agree(model(node("Split", "x", "a b", num_outputs=2), size, "b", opset=22))


@pytest.mark.parametrize("seed", range(60))
def test_slice(seed):
    rng = np.random.default_rng(seed)
    shape = [4, 5, 6]
    axes = [int(a) for a in rng.permutation(3)[: rng.integers(1, 4)]]
    starts, ends, steps = [], [], []
    while len(starts) < len(axes):
        start, end = (int(i) for i in rng.integers(-8, 9, 2))
        step = int(rng.choice([1, 1, 2, 3, -1, -2]))
        big = int(rng.integers(6))
        end = [2**63 - 1, -(2**63) + 1][step < 0] if big == 0 else end
        if len(range(shape[axes[len(starts)]])[start:end:step]):
            starts, ends, steps = [*starts, start], [*ends, end], [*steps, step]
    if seed % 3 == 0:
        keep = [i for i in range(len(axes)) if len(range(shape[axes[i]])[starts[i] : ends[i]])]
        starts, ends, axes = ([v[i] for i in keep] for v in (starts, ends, axes))
        one("Slice", shape, {}, 9, starts=starts or [0], ends=ends or [2], axes=axes or [0])
    else:
        axes = [a - 3 if seed % 2 else a for a in axes]
        values = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
        one("Slice", shape, values, int(rng.choice([10, 11, 13])), "starts ends axes steps")


def test_slice_without_axes():
    one("Slice", [4, 5], {"s": [1, -2], "e": [3, 9]}, 13, "s e")
    one("Slice", [4, 5], {"s": np.array([1], dtype=np.int32), "e": np.array([3], dtype=np.int32)}, 13, "s e")
    assert names_of(one("Slice", [4, 5], {"s": [0, 0], "e": [4, 99]}, 13, "s e")) == ["Input"]


@pytest.mark.parametrize("indices", [1, -1, [2], [0, 0, 2], [[0, 1], [2, -3]], [[[1]]], [1, 2], [0, 2]])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather(indices, axis):
    one("Gather", [3, 4, 3], {"i": np.array(indices)}, 13, "i", axis=axis)
    one("Gather", [3, 4, 3], {"i": np.array(indices, dtype=np.int32)}, 11, "i", axis=axis)


@pytest.mark.parametrize("seed", range(60))
def test_pad(seed):
    rng = np.random.default_rng(seed)
    mode = str(rng.choice(["constant", "constant", "reflect", "edge"]))
    low = -1 if mode == "constant" and seed % 4 == 0 else 0
    pads = [int(i) for i in rng.integers(low, 3, 6)]
    fill = float(rng.choice([0.0, 1.5]))
    opset = int(rng.choice([7, 11, 13, 18, 22]))
    if opset < 11:
        one("Pad", [3, 4, 5], {}, opset, pads=pads, mode=mode, value=fill)
    elif opset < 18 or seed % 2:
        one("Pad", [3, 4, 5], {"p": pads, "v": np.array(fill)}, opset, "p v" if fill else "p", mode=mode)
    else:
        one("Pad", [3, 4, 5], {"p": pads[:4], "v": np.array(fill), "a": [2, -3]}, opset, "p v a", mode=mode)


def test_expand():
    for shape in ([2, 3, 4], [3, 1], [5, 1, 3, 4], [1]):
        one("Expand", [3, 4], {"s": shape}, 13, "s")
    one("Expand", [3, 1], {"s": [2, 1, 4]}, 13, "s")


@pytest.mark.parametrize("opset", [7, 10, 12, 13, 22])
def test_dropout_does_nothing(opset):
    constants = {"r": np.array(0.5), "t": np.array(False)} if opset >= 12 else {}
    assert names_of(one("Dropout", [2, 3], constants, opset, "r t" if constants else "")) == ["Input"]


def test_cast_between_floats_does_nothing():
    nodes = [
        node("Cast", "x", "d", to=11), node("Cast", "c", "e", to=11), node("Mul", "d e", "m"),
        node("Cast", "m", "y", to=1),
    ]  # fmt: skip
    graph = agree(model(nodes, {"x": [2]}, "y", {"c": np.array([2.0, 3.0])}))
    assert names_of(graph) == ["Input", "Param", "Mul"]


def test_double_precision():
    nodes = [node("Gemm", "x w b", "h", alpha=0.3), node("Relu", "h", "r"), node("ReduceMean", "r", "y")]
    graph = agree(model(nodes, {"x": [2, 3]}, "y", {"w": W34, "b": np.ones(4)}, dtype=np.float64), tolerance=1e-12)
    assert graph.nodes[graph.inputs[0]].type.dtype == "float64"
    assert str(graph.params["w"].dtype) == "torch.float64"
