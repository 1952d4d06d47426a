"""Unrolled recurrent layers, samples of a grid, quantisation and functions, against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_evaluate import evaluate
from onnx import helper
from onnx_models import agree, model, names_of, node

from absdom import testing
from absdom.arithmetic import PROOF
from absdom.errors import ModelError, UnsupportedOp
from absdom.frontends.onnx import load_onnx
from absdom.passes import lower

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
STEPS, BATCH, SIZE, HIDDEN = 3, 2, 2, 3


def layer(op: str, outputs: str = "y last", opset: int = 14, given: str = "BhcP", lengths=None, **attributes) -> bytes:
    """One layer over x; `given`: which of bias, first h, first c and peepholes are there."""
    generator = np.random.default_rng(3)
    sides, gates = 2 if attributes.get("direction") == "bidirectional" else 1, GATES[op]
    first = (BATCH, sides, HIDDEN) if attributes.get("layout") else (sides, BATCH, HIDDEN)
    shapes = {
        "W": (sides, gates * HIDDEN, SIZE), "R": (sides, gates * HIDDEN, HIDDEN), "B": (sides, 2 * gates * HIDDEN),
        "h": first, "c": first, "P": (sides, 3 * HIDDEN),
    }  # fmt: skip
    wanted = [k for k in shapes if k in "WR" or k in given and (op == "LSTM" or k not in "cP")]
    constants = {k: generator.normal(size=shapes[k]) / 2 for k in wanted}
    if lengths is not None:
        constants["lengths"] = np.array(lengths, dtype=np.int32)
    order = ["W", "R", "B", "lengths", "h", "c", "P"] if op == "LSTM" else ["W", "R", "B", "lengths", "h"]
    inputs = " ".join(["x", *(k if k in constants else "-" for k in order)])
    shape = [BATCH, STEPS, SIZE] if attributes.get("layout") else [STEPS, BATCH, SIZE]
    return model(node(op, inputs, outputs, hidden_size=HIDDEN, **attributes), {"x": shape}, outputs, constants, opset)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", GATES)
def test_directions(op, direction):
    agree(layer(op, direction=direction))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("op", GATES)
def test_sequences_of_different_lengths(op, direction):
    agree(layer(op, direction=direction, lengths=[1, 3]))


@pytest.mark.parametrize("op", GATES)
def test_what_may_be_absent(op):
    agree(layer(op, given=""))
    agree(layer(op, given="B", lengths=[STEPS] * BATCH))


def test_both_states_of_an_lstm_and_a_gru_that_resets_late():
    agree(layer("LSTM", outputs="y hn cn"))
    agree(layer("GRU", linear_before_reset=1))


def test_other_activations_and_clipping():
    agree(layer("RNN", activations=["Relu"], clip=0.5))
    agree(layer("LSTM", activations=["Sigmoid", "Softsign", "Tanh"], given="B"))


def test_bounds_of_a_recurrent_layer_hold():
    case = testing.make_case(
        "LSTM", load_onnx(data=layer("LSTM", outputs="y", given="B", direction="reverse")), -0.4, 0.5, boxes=1
    )
    for recipe in ("interval", "crown"):
        testing.check_sound(case, recipe)


def test_recurrent_layers_that_are_refused():
    with pytest.raises(UnsupportedOp, match="activation 'Affine'"):
        load_onnx(data=layer("RNN", activations=["Affine"]))
    with pytest.raises(UnsupportedOp, match="input_forget"):
        load_onnx(data=layer("LSTM", input_forget=1))


# Samples of a grid


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_grid_sample(mode, padding, corners):
    grid = np.random.default_rng(1).uniform(-1.6, 1.6, (2, 3, 4, 2)).astype(np.float32)
    call = node("GridSample", "x g", "y", mode=mode, padding_mode=padding, align_corners=corners)
    graph = agree(model(call, {"x": [2, 2, 4, 5]}, "y", {"g": grid}, 20), tolerance=2e-5)
    assert testing.check_adjoint(graph) > 0


def test_grid_sample_in_space():
    grid = np.random.default_rng(2).uniform(-1.2, 1.2, (1, 2, 2, 2, 3)).astype(np.float32)
    agree(model(node("GridSample", "x g", "y"), {"x": [1, 2, 3, 2, 4]}, "y", {"g": grid}, 20), tolerance=1e-5)


# Fourier transforms


@pytest.mark.parametrize("length", [None, 4, 7])
@pytest.mark.parametrize(("parts", "inverse", "onesided"), [(1, 0, 0), (2, 0, 0), (1, 0, 1), (2, 1, 0), (2, 1, 1)])
def test_discrete_fourier_transform(parts, inverse, onesided, length):
    """numpy says what it is: transforms, inverses, cut off or filled up with zeros, of either half."""
    call = node("DFT", "x n axis" if length else "x - axis", "y", inverse=inverse, onesided=onesided)
    constants = {"axis": np.array(1)} | ({"n": np.array(length)} if length else {})
    graph = load_onnx(data=model(call, {"x": [2, 5, 3, parts]}, "y", constants, 20))
    x = np.random.default_rng(0).normal(size=(2, 5, 3, parts))
    signal = x[..., 0] + (1j * x[..., 1] if parts == 2 else 0)
    if inverse:
        expected = np.fft.irfft(signal, length or 8, axis=1) if onesided else np.fft.ifft(signal, length, axis=1)
    else:
        expected = np.fft.rfft(signal, length, axis=1) if onesided else np.fft.fft(signal, length, axis=1)
    if inverse and onesided:
        expected = expected[..., None]
    else:
        expected = np.stack([expected.real, expected.imag], -1)
    assert graph.nodes[graph.outputs[0]].type.shape == expected.shape
    np.testing.assert_allclose(evaluate(graph, x.ravel())[0], expected.ravel(), atol=1e-13)
    assert testing.check_adjoint(graph) > 0


@pytest.mark.parametrize("onesided", [0, 1])
def test_short_time_fourier_transform(onesided):
    constants = {"step": np.array(3), "window": np.hanning(6)}
    agree(model(node("STFT", "x step window", "y", onesided=onesided), {"x": [2, 14, 1]}, "y", constants, 17))


# Quantisation


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_quantised_and_back(kind):
    zero = np.array([3, 0, 1], dtype=kind)
    nodes = [node("QuantizeLinear", "x s z", "q", axis=1), node("DequantizeLinear", "q s z", "y", axis=1)]
    graph = agree(model(nodes, {"x": [2, 3, 2]}, "y", {"s": np.array([0.25, 0.5, 0.01]), "z": zero}), scale=5.0)
    assert {"Round", "Clip"} <= set(names_of(graph))
    testing.check_sound(testing.make_case("QDQ", lower(graph), -1.0, 1.5), "crown")


def test_quantised_weights_keep_their_exact_product():
    """0.1 in float32 times 3 is no float32 number: the charged bounds hold the real product."""
    weights = np.array([[3], [-7]], dtype=np.int8)
    nodes = [node("DequantizeLinear", "w s", "d"), node("MatMul", "x d", "y")]
    graph = lower(load_onnx(data=model(nodes, {"x": [1, 2]}, "y", {"w": weights, "s": np.array(0.1)})))
    point = testing.torch.tensor([[1.0, 0.0]], dtype=testing.torch.float64)
    found = testing.bounds_of(graph, point, point, "crown", PROOF)
    assert float(found.lower) <= 3 * float(np.float32(0.1)) <= float(found.upper)


@pytest.mark.parametrize(("shape", "axis", "opset"), [([2, 4], -1, 13), ([2, 3, 2], 1, 13), ([2, 3, 2], 1, 11)])
def test_hardmax(shape, axis, opset):
    agree(model(node("Hardmax", "x", "y", axis=axis), {"x": shape}, "y", opset=opset))


def test_local_response_normalisation():
    for size in (1, 3, 5):
        agree(model(node("LRN", "x", "y", size=size, alpha=0.3, beta=0.5, bias=1.5), {"x": [1, 4, 2, 2]}, "y"))


# Functions


def test_functions_of_the_model_itself():
    """y = relu(a x) with a as an attribute's constant, called twice."""
    body = [
        helper.make_node("Mul", ["v", "k"], ["scaled"]),
        helper.make_node("Relu", ["scaled"], ["out"]),
    ]
    function = helper.make_function("mine", "Steep", ["v", "k"], ["out"], body, [helper.make_opsetid("", 13)])
    calls = [
        helper.make_node("Steep", ["x", "k"], ["h"], domain="mine", name="one"),
        helper.make_node("Steep", ["h", "k"], ["y"], domain="mine", name="two"),
    ]
    proto = onnx.load_from_string(model(calls, {"x": [3]}, "y", {"k": np.array(-2.0)}))
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    graph = agree(proto.SerializeToString())
    assert names_of(graph).count("Relu") == 2


def test_operators_that_the_standard_defines_by_others():
    call = node("NegativeLogLikelihoodLoss", "x t", "y", reduction="sum")
    data = model(call, {"x": [2, 3]}, "y", {"t": np.array([2, 0])})
    graph = agree(data)
    assert testing.check_adjoint(graph) > 0


def test_functions_that_call_each_other_are_refused():
    def function(name: str, inner: str):
        body = [helper.make_node(inner, ["v"], ["out"], domain="mine")]
        return helper.make_function("mine", name, ["v"], ["out"], body, [helper.make_opsetid("mine", 1)])

    proto = onnx.load_from_string(model(helper.make_node("A", ["x"], ["y"], domain="mine"), {"x": [3]}, "y"))
    proto.functions.extend([function("A", "B"), function("B", "A")])
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    with pytest.raises((ModelError, UnsupportedOp)):
        load_onnx(data=proto.SerializeToString())
