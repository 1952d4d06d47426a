"""Normalisation layers and logarithms of softmax against onnxruntime, in the forms of several opsets."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_models import agree, model, node

from absdom.errors import ModelError
from absdom.frontends.onnx import load_onnx

RNG = np.random.default_rng(11)


def weights(*shape):
    return RNG.uniform(0.5, 1.5, shape)


def one(op: str, shape, constants: dict | None = None, opset: int = 17, outputs: str = "y", **attributes):
    names = " ".join(["x", *(constants or {})])
    return agree(model(node(op, names, outputs, "n", **attributes), {"x": shape}, "y", constants, opset))


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_softmax_before_opset_13_runs_over_all_axes_from_one_on(op, axis, opset):
    one(op, [2, 3, 2], opset=opset, axis=axis)
    one(op, [2, 3, 2], opset=opset)


@pytest.mark.parametrize("axis", [-1, 1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm(axis, bias):
    size = [4] if axis != 1 else [3, 4]
    constants = {"scale": weights(*size)} | ({"bias": weights(*size)} if bias else {})
    one("LayerNormalization", [2, 3, 4], constants, axis=axis, epsilon=1e-3)


def test_the_statistics_of_a_layer_norm():
    constants = {"scale": weights(4)}
    one("LayerNormalization", [2, 4], constants, outputs="y mean deviation")
    nodes = [
        node("LayerNormalization", "x scale", "y mean deviation", "n"),
        node("Mul", "y deviation", "a"),
        node("Add", "a mean", "z"),
    ]
    agree(model(nodes, {"x": [2, 4]}, "z", constants, 17))


@pytest.mark.parametrize("shape", [[1, 2, 5], [2, 3, 2, 2]])
def test_instance_norm(shape):
    one("InstanceNormalization", shape, {"scale": weights(shape[1]), "bias": weights(shape[1])}, 13, epsilon=1e-2)


@pytest.mark.parametrize("opset", [18, 21])
def test_the_weights_of_a_group_norm_are_per_group_or_per_channel(opset):
    count = 2 if opset < 21 else 4
    constants = {"scale": weights(count), "bias": weights(count)}
    one("GroupNormalization", [2, 4, 3], constants, opset, num_groups=2)
    one("GroupNormalization", [1, 4, 2, 2], constants, opset, num_groups=2, epsilon=0.1)


def test_norms_without_weights():
    one("MeanVarianceNormalization", [2, 3, 2, 2], opset=13)
    one("MeanVarianceNormalization", [2, 3, 2, 2], opset=13, axes=[1, 3])
    for p in (1, 2):
        one("LpNormalization", [2, 3], opset=13, axis=0, p=p)


@pytest.mark.parametrize("axes", [[1], [0, 2], [-1, 1]])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_log_sum_exp(axes, keepdims):
    one("ReduceLogSumExp", [2, 3, 2], opset=13, axes=axes, keepdims=keepdims)


@pytest.mark.parametrize(
    ("op", "shape", "constants", "attributes", "text"),
    [
        ("GroupNormalization", [1, 4, 2], {"scale": weights(4), "bias": weights(4)}, {"num_groups": 3}, "3 groups"),
        ("GroupNormalization", [1, 4, 2], {"scale": weights(3), "bias": weights(4)}, {"num_groups": 2}, "input 1"),
        ("InstanceNormalization", [1, 4], {"scale": weights(4), "bias": weights(4)}, {}, "no spatial axes"),
        ("LayerNormalization", [1, 4], {"scale": weights(3, 4)}, {}, "larger than its input"),
        ("LpNormalization", [1, 4], {}, {"p": 3}, "p=3"),
    ],
)
def test_what_does_not_fit_is_named(op, shape, constants, attributes, text):
    names = " ".join(["x", *constants])
    data = model(node(op, names, "y", "norm1", **attributes), {"x": shape}, "y", constants, 21)
    with pytest.raises(ModelError, match=text) as caught:
        load_onnx(data=data)
    assert "norm1" in str(caught.value)
