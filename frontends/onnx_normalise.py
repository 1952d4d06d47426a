"""ONNX normalisation layers, and the logarithms of softmax, in absdom ops."""

from __future__ import annotations

from math import prod

import numpy as np

from absdom import ops
from absdom.errors import ModelError
from absdom.frontends.onnx_ops import axes_to_reduce, keep_or_drop, single, translates
from absdom.frontends.onnx_values import Call, Translation


def scale_and_shift(t: Translation, x: int, factor: int | None, shift: int | None) -> int:
    if factor is not None:
        x = t.add(ops.Mul(), x, factor)
    return x if shift is None else t.add(ops.Add(), x, shift)


def weights(t: Translation, call: Call, shape=None) -> tuple[int | None, int | None]:
    """Inputs 1 and 2, of the given shape; None where they are absent."""
    nodes = [t.node(call, i) if call.has(i) else None for i in (1, 2)]
    for position, node in enumerate(nodes, 1):
        if node is not None and shape is not None and t.builder.type(node).numel != prod(shape):
            raise ModelError(
                f"{t.where}: input {position} of {call.source} has shape {t.builder.type(node).shape}, not {shape}"
            )
    return tuple(node if node is None or shape is None else t.reshape(node, shape) for node in nodes)


@translates("LayerNormalization", "RMSNormalization")
def layer_norm(t: Translation, call: Call):
    x, rank = t.node(call, 0), len(t.shape(call, 0))
    axes = tuple(range(t.axis(call, call.get("axis", -1), rank), rank))
    op, epsilon = ops.Standardise if call.op == "LayerNormalization" else ops.RmsNorm, call.get("epsilon", single(1e-5))
    out = scale_and_shift(t, t.add(op(axes, epsilon), x), *weights(t, call))
    if t.builder.type(out).shape != t.shape(call, 0):
        raise ModelError(f"{t.where}: the weights of {call.source} are larger than its input")
    if not (call.has_output(1) or call.has_output(2)):
        return out
    mean = t.add(ops.ReduceMean(axes), x)
    variance = t.add(ops.ReduceMean(axes), t.add(ops.Power(2.0), t.add(ops.Sub(), x, mean)))
    epsilon = t.param(np.array([epsilon]), f"{call.name}.epsilon")
    return out, mean, t.add(ops.Power(-0.5), t.add(ops.Add(), variance, epsilon))


@translates("InstanceNormalization")
def instance_norm(t: Translation, call: Call):
    x, shape = t.node(call, 0), t.shape(call, 0)
    if len(shape) < 3:
        raise ModelError(f"{t.where}: {call.source} has an input of shape {shape}: no spatial axes")
    op = ops.Standardise(tuple(range(2, len(shape))), call.get("epsilon", single(1e-5)))
    return scale_and_shift(t, t.add(op, x), *weights(t, call, (shape[1], *[1] * (len(shape) - 2))))


@translates("GroupNormalization")
def group_norm(t: Translation, call: Call):
    """Up to opset 20 there is one weight per group, from 21 on one per channel."""
    x, shape, groups = t.node(call, 0), t.shape(call, 0), call.get("num_groups")
    if len(shape) < 2 or not groups or shape[1] % groups:
        raise ModelError(f"{t.where}: {call.source} cannot part the channels of {shape} into {groups} groups")
    out = t.reshape(x, (shape[0], groups, prod(shape[1:]) // groups))
    out = t.add(ops.Standardise((2,), call.get("epsilon", single(1e-5))), out)
    if t.opset < 21:
        return t.reshape(scale_and_shift(t, out, *weights(t, call, (groups, 1))), shape)
    return scale_and_shift(t, t.reshape(out, shape), *weights(t, call, (shape[1], *[1] * (len(shape) - 2))))


@translates("MeanVarianceNormalization")
def mean_variance(t: Translation, call: Call):
    """(x - mean) / (standard deviation + 1e-9), as ONNX's function body has it."""
    x, rank = t.node(call, 0), len(t.shape(call, 0))
    axes = tuple(sorted({t.axis(call, a, rank) for a in call.get("axes") or (0, 2, 3)}))
    return t.add(ops.Standardise(axes, shift=single(1e-9)), x)


@translates("LpNormalization")
def lp_normalization(t: Translation, call: Call):
    x, rank, p = t.node(call, 0), len(t.shape(call, 0)), call.get("p", 2)
    axis = t.axis(call, call.get("axis", -1), rank)
    if p == 2:
        return t.add(ops.RmsNorm((axis,), total=True), x)
    if p != 1:
        raise ModelError(f"{t.where}: {call.source} has p={p}; ONNX allows 1 and 2")
    return t.add(ops.Div(), x, t.add(ops.ReduceSum((axis,)), t.add(ops.Abs(), x)))


@translates("ReduceLogSumExp")
def reduce_log_sum_exp(t: Translation, call: Call):
    x, axes = t.node(call, 0), axes_to_reduce(t, call)
    for axis in axes:
        x = t.add(ops.LogSumExp(axis), x)
    return keep_or_drop(t, call, x, axes)
