"""QuantizeLinear and DequantizeLinear as rounding, clipping, sums and products; and Hardmax."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx

from absdom import ops
from absdom.errors import ModelError
from absdom.frontends.onnx_logic import is_equal
from absdom.frontends.onnx_ops import translates
from absdom.frontends.onnx_shapes import cut
from absdom.frontends.onnx_values import Call, Problem, Translation


def per_axis(t: Translation, call: Call, position: int) -> int:
    """A scale or a zero point as something that broadcasts to the input: a number, or one per element or block of an
    axis."""
    node, shape, own = t.node(call, position), t.shape(call, 0), t.shape(call, position)
    if prod(own) == 1:
        return t.reshape(node, (1,) * len(shape))
    axis, block = t.axis(call, call.get("axis", 1), len(shape)), call.get("block_size", 0)
    if block > 0 and own == tuple(-(-s // block) if a == axis else s for a, s in enumerate(shape)):
        return cut(t, node, axis, (i // block for i in range(shape[axis])))
    if own != (shape[axis],):
        raise ModelError(f"{t.where}: {call.source} has a scale or zero point of shape {own} for an input {shape}")
    return t.reshape(node, _spread(own[0], axis, len(shape)))


def _spread(size: int, axis: int, rank: int) -> tuple[int, ...]:
    return tuple(size if a == axis else 1 for a in range(rank))


@translates("QuantizeLinear")
def quantize(t: Translation, call: Call):
    """clip(round(x / scale) + zero point), halves to the even number."""
    if call.has(2):
        target = t.dtype(call, 2)
    else:
        number = call.get("output_dtype") or onnx.TensorProto.UINT8
        if number not in onnx.TensorProto.DataType.values():
            raise Problem(f"output_dtype={number} is unknown")
        target = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(number))
    if target.kind not in "iu":
        raise Problem(f"to {target}: integers are supported")
    scale = t.value(call, 1).array
    if scale is not None and not scale.all():
        raise Problem("it divides by a scale that is zero somewhere")
    low, high = int(np.iinfo(target).min), int(np.iinfo(target).max)
    out = t.add(ops.Round(), t.add(ops.Div(), t.node(call, 0), per_axis(t, call, 1)))
    if call.has(2):
        out = t.add(ops.Add(), out, per_axis(t, call, 2))
    return t.add(ops.Clip(float(low), float(high)), out)


@translates("DequantizeLinear")
def dequantize(t: Translation, call: Call):
    """(x - zero point) scale"""
    x = t.node(call, 0)
    if call.has(2):
        x = t.add(ops.Sub(), x, per_axis(t, call, 2))
    return t.add(ops.Mul(), x, per_axis(t, call, 1))


@translates("Hardmax")
def hardmax(t: Translation, call: Call):
    """1 at the first maximum, 0 elsewhere."""
    x, shape = t.node(call, 0), t.shape(call, 0)
    axis = t.axis(call, call.get("axis", -1 if t.opset >= 13 else 1), len(shape))
    flat = x
    if t.opset < 13:  # all axes from this one on are one
        flat, axis = t.reshape(x, (prod(shape[:axis]), prod(shape[axis:]))), 1
    inner = t.builder.type(flat).shape
    places = np.arange(inner[axis]).reshape(_spread(inner[axis], axis, len(inner)))
    first = t.add(ops.ArgMax(axis), flat)
    return t.reshape(is_equal(t, t.param(places, f"{call.name}.places"), first, exact=True), shape)
