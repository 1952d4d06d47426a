"""ONNX reductions, norms and sums of several inputs as compositions of absdom ops."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from absdom import ops
from absdom.errors import ModelError
from absdom.frontends.onnx_ops import axes_to_reduce, keep_or_drop, single, translates
from absdom.frontends.onnx_resize import along
from absdom.frontends.onnx_values import Call, Problem, Translation

LARGEST_PRODUCT = 64  # factors


def norm(t: Translation, call: Call, x: int, p: float, total: Callable[[int], int]) -> int:
    """(sum of |x|^p)^(1/p), where `total` sums a node."""
    if p == 1:
        return total(t.add(ops.Abs(), x))
    if p == 2:
        return t.add(ops.Sqrt(), total(t.add(ops.Power(2.0), x)))
    if not p > 1:
        raise Problem(f"p={p}: norms with p >= 1 are supported")
    powers = t.add(ops.Power(float(p)), t.add(ops.Abs(), x))
    return t.add(ops.Power(1 / p), total(powers))


@translates("ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum")
def reduce_norm(t: Translation, call: Call):
    x, axes = t.node(call, 0), axes_to_reduce(t, call)
    if call.op in ("ReduceSumSquare", "ReduceL2"):
        x = t.add(ops.Power(2.0), x)
    elif call.op == "ReduceL1":
        x = t.add(ops.Abs(), x)
    out = t.add(ops.ReduceSum(axes), x) if axes else x
    if call.op in ("ReduceL2", "ReduceLogSum"):
        out = t.add(ops.Sqrt() if call.op == "ReduceL2" else ops.Log(), out)
    return keep_or_drop(t, call, out, axes)


@translates("ReduceProd")
def reduce_product(t: Translation, call: Call):
    """Halves are multiplied with each other until one element is left."""
    x, shape, axes = t.node(call, 0), t.shape(call, 0), axes_to_reduce(t, call)
    count = prod(shape[a] for a in axes)
    if not axes:
        return x
    if not 1 <= count <= LARGEST_PRODUCT:
        raise Problem(f"a product of {count} factors; up to {LARGEST_PRODUCT} are supported")
    kept = [a for a in range(len(shape)) if a not in axes]
    x = t.add(ops.Permute((*kept, *axes)), x)
    x = t.reshape(x, (prod(shape[a] for a in kept), count))
    while count > 1:
        half = count // 2
        parts = [t.add(ops.Slice(1, start, start + half), x) for start in (0, half)]
        rest = [t.add(ops.Slice(1, 2 * half, count), x)] if count % 2 else []
        x = t.add(ops.Mul(), *parts)
        x = t.add(ops.Concat(1), x, *rest) if rest else x
        count -= half
    return keep_or_drop(t, call, t.reshape(x, (1 if a in axes else s for a, s in enumerate(shape))), axes)


@translates("CumSum")
def cumulative_sum(t: Translation, call: Call):
    """A triangle of ones along the axis."""
    x, shape = t.node(call, 0), t.shape(call, 0)
    axis = t.axis(call, t.integer(call, 1, "axis"), len(shape))
    n, shift = shape[axis], int(bool(call.get("exclusive", 0)))
    matrix = np.triu(np.ones((n, n)), shift) if call.get("reverse", 0) else np.tril(np.ones((n, n)), -shift)
    return along(t, x, axis, t.param(matrix.astype(np.float32), f"{call.name}.ones"))


@translates("CumProd")
def cumulative_product(t: Translation, call: Call):
    x, shape = t.node(call, 0), t.shape(call, 0)
    axis = t.axis(call, t.integer(call, 1, "axis"), len(shape))
    if shape[axis] > LARGEST_PRODUCT:
        raise Problem(f"a product of {shape[axis]} factors; up to {LARGEST_PRODUCT} are supported")
    backwards, exclusive = call.get("reverse", 0), call.get("exclusive", 0)
    one = t.param(np.ones([1 if a == axis else s for a, s in enumerate(shape)], np.float32), f"{call.name}.one")
    slices = [t.add(ops.Slice(axis, i, i + 1), x) for i in range(shape[axis])]
    slices = slices[::-1] if backwards else slices
    parts = [one if exclusive else slices[0]]
    for factor in slices[:-1] if exclusive else slices[1:]:
        parts.append(factor if parts[-1] == one else t.add(ops.Mul(), parts[-1], factor))
    return t.add(ops.Concat(axis), *(parts[::-1] if backwards else parts))


@translates("Sum", "Mean")
def variadic(t: Translation, call: Call):
    if not call.inputs:
        raise ModelError(f"{t.where}: {call.source} has no inputs")
    total = t.node(call, 0)
    for i in range(1, len(call.inputs)):
        total = t.add(ops.Add(), total, t.node(call, i))
    if call.op == "Sum" or len(call.inputs) == 1:
        return total
    count = np.array([len(call.inputs)], dtype=t.builder.type(total).dtype)
    shape = t.builder.type(total).shape
    return t.reshape(t.add(ops.Div(), total, t.param(count, f"{call.name}.count")), shape)


@translates("LRN")
def local_response(t: Translation, call: Call):
    """x / (bias + alpha / size * sum of x^2 over `size` channels around its own)^beta."""
    x, channels = t.node(call, 0), t.shape(call, 0)[1]
    size, bias, alpha = call.get("size", 1), call.get("bias", 1.0), call.get("alpha", single(1e-4))
    if not bias > 0 or alpha < 0:
        raise Problem(f"bias={bias}, alpha={alpha}: a divisor that may be zero is not supported")
    below, above = (size - 1) // 2, size - 1 - (size - 1) // 2
    band = np.tril(np.triu(np.ones((channels, channels), dtype=np.float32), -below), above)
    squares = along(t, t.add(ops.Power(2.0), x), 1, t.param(band, f"{call.name}.window"))
    values = {"alpha": alpha, "size": size, "bias": bias}
    alpha, size, bias = (t.param(np.array([v], dtype=np.float32), f"{call.name}.{k}") for k, v in values.items())
    mean = t.add(ops.Div(), t.add(ops.Mul(), squares, alpha), size)
    return t.add(ops.Mul(), x, t.add(ops.Power(-float(call.get("beta", 0.75))), t.add(ops.Add(), mean, bias)))
