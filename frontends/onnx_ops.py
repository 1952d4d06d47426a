"""ONNX ops that compute, written as absdom ops. A handler gives the graph nodes of its outputs, or raises Problem."""

from __future__ import annotations

from math import inf, prod

import numpy as np

from absdom import ops
from absdom.errors import ModelError, UsageError
from absdom.frontends.onnx_values import Call, Problem, Translation

HANDLERS: dict = {}
CHECKS: dict = {}


def translates(*names: str, replace: bool = False):
    """Decorator: the function writes these ONNX ops as absdom ops. An op of another domain has its name in front:
    "com.example.Mine". What is written already is only written anew with `replace`."""

    def decorate(handler):
        for name in names:
            if name in HANDLERS and not replace:
                files = " and in ".join(h.__code__.co_filename for h in (HANDLERS[name], handler))
                raise UsageError(
                    f"the ONNX op {name} is translated twice, in {files}: say replace=True if that is meant"
                )
            HANDLERS[name] = handler
        return handler

    return decorate


def checks(*names: str):
    """Decorator: the function raises Problem for attributes of these ops that are not supported."""
    return lambda check: CHECKS.update(dict.fromkeys(names, check)) or check


def single(value: float) -> float:
    """Defaults of ONNX attributes are float32 numbers."""
    return float(np.float32(value))


@translates("Add", "Sub", "Mul", "Div")
def binary(t: Translation, call: Call):
    divisor = t.value(call, 1).array
    if call.op == "Div" and divisor is not None and not divisor.all():
        raise Problem("it divides by a constant that is zero somewhere")
    made = {"Add": ops.Add, "Sub": ops.Sub, "Mul": ops.Mul, "Div": ops.Div}[call.op]()
    out = t.add(made, t.node(call, 0), t.node(call, 1))
    if call.op == "Div" and t.dtype(call, 0).kind in "iu":
        return t.add(ops.Truncate(), out)
    return out


@translates("Neg", "Relu", "Abs", "Sigmoid", "Tanh", "Sign")
def unary(t: Translation, call: Call):
    return t.add(getattr(ops, call.op)(), t.node(call, 0))


@translates("LeakyRelu")
def leaky_relu(t: Translation, call: Call):
    return t.add(ops.LeakyRelu(call.get("alpha", single(0.01))), t.node(call, 0))


@translates("Clip")
def clip(t: Translation, call: Call):
    low, high = -inf, inf
    if t.opset < 11:
        low, high = call.get("min", -inf), call.get("max", inf)
    else:
        if call.has(1):
            low = t.number(call, 1, "minimum")
        if call.has(2):
            high = t.number(call, 2, "maximum")
    if np.isnan(low) or np.isnan(high):
        raise ModelError(f"{t.where}: a bound of {call.source} is NaN")
    largest = float(np.finfo(np.float32).max)
    low, high = (-inf if low <= -largest else low), (inf if high >= largest else high)
    x = t.node(call, 0)
    # ONNX takes the maximum last: below a crossed minimum everything is the maximum.
    return x if (low, high) == (-inf, inf) else t.add(ops.Clip(min(low, high), high), x)


@translates("Softmax", "LogSoftmax")
def softmax(t: Translation, call: Call):
    x, shape, op = t.node(call, 0), t.shape(call, 0), getattr(ops, call.op)
    axis = t.axis(call, call.get("axis", -1 if t.opset >= 13 else 1), len(shape))
    if t.opset >= 13 or axis == len(shape) - 1:
        return t.add(op(axis), x)
    # Up to opset 12 it runs over all axes from this one on.
    flat = t.reshape(x, (prod(shape[:axis]), prod(shape[axis:])))
    return t.reshape(t.add(op(1), flat), shape)


@translates("MatMul")
def matmul(t: Translation, call: Call):
    a, b = t.node(call, 0), t.node(call, 1)
    left, right = t.shape(call, 0), t.shape(call, 1)
    if not left or not right:
        raise ModelError(f"{t.where}: {call.source} multiplies a number without axes")
    if len(left) == 1:
        a = t.reshape(a, (1, *left))
    if len(right) == 1:
        b = t.reshape(b, (*right, 1))
    out = t.add(ops.MatMul(), a, b)
    shape = list(t.builder.type(out).shape)
    if len(right) == 1:
        shape.pop()
    if len(left) == 1:
        shape.pop(-1 if len(right) == 1 else -2)
    return t.reshape(out, shape)


@translates("Gemm")
def gemm(t: Translation, call: Call):
    matrices = []
    for position, flag in enumerate(("transA", "transB")):
        if len(t.shape(call, position)) != 2:
            raise ModelError(f"{t.where}: input {position} of {call.source} is no matrix: {t.shape(call, position)}")
        value = t.value(call, position)
        if not call.get(flag, 0):
            matrices.append(t.emit(value))
        elif value.settled:
            matrices.append(t.param(value.array.T, value.name, value.suspect))
        else:
            matrices.append(t.add(ops.Permute((1, 0)), t.emit(value)))
    out = t.add(ops.MatMul(), *matrices)
    dtype = t.builder.type(out).dtype
    if call.get("alpha", 1.0) != 1.0:
        out = t.add(ops.Mul(), out, t.param(np.array(call.get("alpha"), dtype=dtype), f"{call.name}.alpha"))
    if not call.has(2) or call.get("beta", 1.0) == 0.0:
        return out
    bias = t.node(call, 2)
    if call.get("beta", 1.0) != 1.0:
        bias = t.add(ops.Mul(), bias, t.param(np.array(call.get("beta"), dtype=dtype), f"{call.name}.beta"))
    total = t.add(ops.Add(), out, bias)
    if t.builder.type(total) != t.builder.type(out):
        raise ModelError(f"{t.where}: input C of {call.source} is larger than the product")
    return total


@checks("Conv", "MaxPool", "AveragePool")
def check_windows(call: Call) -> None:
    mode = call.get("auto_pad", "NOTSET")
    if mode not in ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"):
        raise Problem(f"auto_pad={mode!r} is unknown")
    if call.op == "MaxPool" and call.has_output(1):
        raise Problem("its output Indices is used")
    if call.op == "MaxPool" and call.get("storage_order", 0):
        raise Problem("storage_order=1 is not supported")
    if any(p < 0 for p in call.get("pads", ())):
        raise Problem(f"negative pads {tuple(call.get('pads'))} are not supported")


def windows(t: Translation, call: Call, size, kernel) -> tuple[tuple[int, ...], ...]:
    """Strides, dilations and the padding before and after, one number per spatial axis each."""
    rank = len(kernel)
    strides = tuple(call.get("strides") or (1,) * rank)
    dilations = tuple(call.get("dilations") or (1,) * rank)
    pads = tuple(call.get("pads") or (0,) * 2 * rank)
    if not rank == len(size) == len(strides) == len(dilations) == len(pads) // 2 or len(pads) % 2:
        raise ModelError(
            f"{t.where}: {call.source} has {len(size)} spatial axes, but kernel {tuple(kernel)}, strides {strides}, "
            f"dilations {dilations} and pads {pads}"
        )
    if min((*strides, *dilations, *kernel), default=1) < 1:
        raise ModelError(f"{t.where}: {call.source} has a kernel, stride or dilation below 1")
    mode = call.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return strides, dilations, pads[:rank], pads[rank:]
    if mode == "VALID":
        return strides, dilations, (0,) * rank, (0,) * rank
    if max(dilations) > 1:
        raise Problem(f"auto_pad={mode} with dilations {dilations}: the padding that it means is not agreed upon")
    totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(size, kernel, strides, strict=True)]
    small, big = tuple(p // 2 for p in totals), tuple(p - p // 2 for p in totals)
    return (strides, dilations, small, big) if mode == "SAME_UPPER" else (strides, dilations, big, small)


@translates("Conv")
def conv(t: Translation, call: Call):
    if t.value(call, 1).varies or (call.has(2) and t.value(call, 2).varies):
        raise Problem("its weights depend on the network's input")
    shape, weights = t.shape(call, 0), t.shape(call, 1)
    if not 3 <= len(shape) <= 5:
        raise Problem(f"it has {len(shape) - 2} spatial axes; 1 to 3 are supported")
    if call.get("kernel_shape") and tuple(call.get("kernel_shape")) != weights[2:]:
        raise ModelError(f"{t.where}: {call.source} has kernel_shape {call.get('kernel_shape')}, weights {weights}")
    strides, dilations, before, after = windows(t, call, shape[2:], weights[2:])
    inputs = [t.node(call, i) for i in range(3) if i < 2 or call.has(2)]
    return t.add(ops.Conv(strides, dilations, call.get("group", 1), before, after), *inputs)


@translates("MaxPool", "AveragePool")
def pool(t: Translation, call: Call):
    shape = t.shape(call, 0)
    kernel = tuple(call.get("kernel_shape") or ())
    if len(shape) < 3:
        raise ModelError(f"{t.where}: {call.source} has an input of shape {shape}: no spatial axes")
    strides, dilations, before, after = windows(t, call, shape[2:], kernel)
    # With SAME padding the windows fit, and there is nothing to round up.
    ceil = bool(call.get("ceil_mode", 0)) and not call.get("auto_pad", "").startswith("SAME")
    where = (kernel, strides, dilations, before, after, ceil)
    if call.op == "MaxPool":
        op = ops.MaxPool(*where)
    else:
        op = ops.AveragePool(*where, count_padding=bool(call.get("count_include_pad", 0)))
    if op.kernel and op.has_empty_window(shape[2:]):
        raise Problem("a window lies wholly in the padding")
    return t.add(op, t.node(call, 0))


@translates("GlobalAveragePool")
def global_average_pool(t: Translation, call: Call):
    rank = len(t.shape(call, 0))
    if rank < 3:
        raise ModelError(f"{t.where}: {call.source} has an input without spatial axes")
    return t.add(ops.ReduceMean(tuple(range(2, rank))), t.node(call, 0))


def axes_to_reduce(t: Translation, call: Call) -> tuple[int, ...]:
    """The axes that a reduction runs over, in order; none where an empty list asks for nothing to be done."""
    rank = len(t.shape(call, 0))
    axes = t.integers(call, 1, "axes") if call.has(1) else tuple(call.get("axes") or ())
    if not axes:
        return () if call.get("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted({t.axis(call, a, rank) for a in axes}))


def keep_or_drop(t: Translation, call: Call, out: int, axes: tuple[int, ...]) -> int:
    """The result of a reduction, whose axes have size 1, with or without them."""
    shape = t.builder.type(out).shape
    return out if call.get("keepdims", 1) else t.reshape(out, (s for i, s in enumerate(shape) if i not in axes))


@translates("ReduceSum", "ReduceMean")
def reduce(t: Translation, call: Call):
    x, axes = t.node(call, 0), axes_to_reduce(t, call)
    if not axes:
        return x
    op = ops.ReduceSum if call.op == "ReduceSum" else ops.ReduceMean
    return keep_or_drop(t, call, t.add(op(axes), x), axes)


@checks("BatchNormalization")
def check_batch_norm(call: Call) -> None:
    if call.get("training_mode", 0) or any(call.has_output(i) for i in range(1, len(call.outputs))):
        raise Problem("training mode is not supported")


@translates("BatchNormalization")
def batch_norm(t: Translation, call: Call):
    if any(t.value(call, i).varies for i in range(1, 5)):
        raise Problem("its statistics depend on the network's input")
    x, *stats = (t.node(call, i) for i in range(5))
    op, shape = ops.BatchNorm(call.get("epsilon", single(1e-5))), t.shape(call, 0)
    if call.get("spatial", 1):
        return t.add(op, x, *stats)
    # Up to opset 8: statistics of each element, not of each channel.
    flat = (t.reshape(s, (prod(shape[1:]),)) for s in stats)
    return t.reshape(t.add(op, t.reshape(x, (shape[0], prod(shape[1:]))), *flat), shape)
