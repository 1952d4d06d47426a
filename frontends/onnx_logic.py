"""ONNX ops that compare, decide, choose and rank, written as absdom ops.

Inside a graph every value is a real number: true is 1, false is 0, whole numbers are themselves. What the file calls a
value is kept in `Value.dtype`. Comparisons of whole numbers become continuous functions that agree with them there.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx

from absdom import ops
from absdom.errors import ModelError
from absdom.frontends.onnx_ops import axes_to_reduce, checks, keep_or_drop, translates
from absdom.frontends.onnx_shapes import cut
from absdom.frontends.onnx_values import LARGEST, Call, Problem, Translation


def number(t: Translation, value: float) -> int:
    return t.param(np.array(value, dtype=np.float32), "number")


def whole(t: Translation, call: Call, *positions: int) -> bool:
    """Are these inputs integers or booleans?"""
    return all(t.dtype(call, p).kind in "iub" for p in positions)


def negate(t: Translation, x: int) -> int:
    return t.add(ops.Sub(), number(t, 1.0), x)


def together(t: Translation, values: list[int]) -> int:
    """Values as the rows of one tensor, broadcast to one shape."""
    shape = np.broadcast_shapes(*(t.builder.type(v).shape for v in values))
    full = [v if t.builder.type(v).shape == shape else t.add(ops.Expand(shape), v) for v in values]
    return t.add(ops.Concat(0), *(t.reshape(v, (1, *shape)) for v in full))


def all_of(t: Translation, values: list[int]) -> int:
    least = t.add(ops.ReduceMin(0), together(t, values))
    return t.reshape(least, t.builder.type(least).shape[1:])


def is_equal(t: Translation, a: int, b: int, exact: bool) -> int:
    """1 where a = b; `exact`: both are whole numbers, so that 1 - |a - b|, cut off at 0, is the same."""
    if not exact:
        return t.add(ops.Equal(), a, b)
    return t.add(ops.Relu(), negate(t, t.add(ops.Abs(), t.add(ops.Sub(), a, b))))


@translates("Floor", "Ceil", "Round")
def rounding(t: Translation, call: Call):
    return t.add(getattr(ops, call.op)(), t.node(call, 0))


@translates("Less", "LessOrEqual", "Greater", "GreaterOrEqual")
def compare(t: Translation, call: Call):
    a, b = t.node(call, 0), t.node(call, 1)
    difference = t.add(ops.Sub(), a, b) if call.op.startswith("Greater") else t.add(ops.Sub(), b, a)
    closed = call.op.endswith("OrEqual")
    if not whole(t, call, 0, 1):
        return t.add(ops.Step(closed), difference)
    if closed:
        difference = t.add(ops.Add(), difference, number(t, 1.0))
    return t.add(ops.Clip(0.0, 1.0), difference)


@translates("Equal")
def equal(t: Translation, call: Call):
    return is_equal(t, t.node(call, 0), t.node(call, 1), whole(t, call, 0, 1))


@translates("Not")
def not_(t: Translation, call: Call):
    return negate(t, t.node(call, 0))


@translates("And", "Or", "Xor")
def logic(t: Translation, call: Call):
    a, b = t.node(call, 0), t.node(call, 1)
    if call.op == "And":
        return all_of(t, [a, b])
    if call.op == "Or":
        return negate(t, all_of(t, [negate(t, a), negate(t, b)]))
    return t.add(ops.Abs(), t.add(ops.Sub(), a, b))


@translates("IsNaN", "IsInf")
def is_special(t: Translation, call: Call):
    """A network whose values are finite real numbers."""
    return t.param(np.zeros(t.shape(call, 0), dtype=np.float32), f"{call.name}.false")


def convert(t: Translation, x: int, source: np.dtype, target: np.dtype, what: str) -> int:
    """A value of one element type as another."""
    if target.kind == "f":
        if target.itemsize < 4:
            raise Problem(f"{what}: half precision is not supported")
        return x
    if source.kind == "b":
        return x
    if target.kind == "b":
        return negate(t, is_equal(t, x, number(t, 0.0), exact=source.kind in "iu"))
    if target.kind not in "iu" or target.itemsize < 4:
        raise Problem(f"{what} of a value that depends on the network's input")
    return t.add(ops.Truncate(), x) if source.kind == "f" else x


@checks("Cast")
def check_cast(call: Call) -> None:
    to = call.get("to")
    if to == onnx.TensorProto.FLOAT16 or to == onnx.TensorProto.BFLOAT16:
        raise Problem(f"to={onnx.TensorProto.DataType.Name(to)}: half precision is not supported")


@translates("Cast")
def cast(t: Translation, call: Call):
    """Between float32 and float64 nothing changes over the reals; to an integer it cuts off towards zero."""
    to = call.get("to")
    known = onnx.TensorProto.DataType.values()
    what = f"to={onnx.TensorProto.DataType.Name(to) if to in known else to}"
    try:
        target = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(to))
    except (KeyError, ValueError, TypeError):
        raise Problem(f"{what} is no type of numbers") from None
    return convert(t, t.node(call, 0), t.dtype(call, 0), target, what)


@translates("CastLike")
def cast_like(t: Translation, call: Call):
    target = t.dtype(call, 1)
    return convert(t, t.node(call, 0), t.dtype(call, 0), target, f"to {target}")


@checks("Mod")
def check_mod(call: Call) -> None:
    if call.get("fmod", 0) not in (0, 1):
        raise Problem(f"fmod={call.get('fmod')} is unknown")


@translates("Mod")
def mod(t: Translation, call: Call):
    """a - c round(a / c), where the quotient is rounded down or (fmod: the sign of a) towards zero."""
    divisor = t.constant(call, 1, "divisor")
    if not divisor.all():
        raise Problem("it divides by a constant that is zero somewhere")
    x, c = t.node(call, 0), t.node(call, 1)
    rounded = t.add((ops.Truncate if call.get("fmod", 0) else ops.Floor)(), t.add(ops.Div(), x, c))
    return t.add(ops.Sub(), x, t.add(ops.Mul(), rounded, c))


@translates("Max", "Min")
def extreme(t: Translation, call: Call):
    """Over any number of operands that broadcast. One constant number against what varies is a Clip."""
    positions = [i for i in range(len(call.inputs)) if call.has(i)]
    shape = t.broadcast(call, *(t.shape(call, i) for i in positions))
    out = None
    for i in sorted(positions, key=lambda i: not t.value(call, i).varies):
        array = t.value(call, i).array
        if out is not None and array is not None and array.size and (array == array.flat[0]).all():
            end = float(array.flat[0])
            out = t.add(ops.Clip(low=end) if call.op == "Max" else ops.Clip(high=end), out)
            continue
        x = t.node(call, i)
        x = t.add(ops.Neg(), x) if call.op == "Min" and out is not None else x
        if out is not None and call.op == "Min":
            x = t.add(ops.Neg(), t.add(ops.Maximum(), t.add(ops.Neg(), out), x))
        out = x if out is None or call.op == "Min" else t.add(ops.Maximum(), out, x)
    return out if t.builder.type(out).shape == shape else t.add(ops.Expand(shape), out)


@translates("ReduceMax", "ReduceMin")
def reduce_extreme(t: Translation, call: Call):
    x, axes = t.node(call, 0), axes_to_reduce(t, call)
    if not axes:
        return x
    shape = t.shape(call, 0)
    if not prod(shape):
        raise Problem("it reduces an empty tensor")
    rest = tuple(i for i in range(len(shape)) if i not in axes)
    if rest + axes != tuple(range(len(shape))):
        x = t.add(ops.Permute(rest + axes), x)
    x = t.reshape(x, (*(shape[i] for i in rest), prod(shape[i] for i in axes)))
    out = t.add((ops.ReduceMax if call.op == "ReduceMax" else ops.ReduceMin)(len(rest)), x)
    return keep_or_drop(t, call, t.reshape(out, (1 if i in axes else s for i, s in enumerate(shape))), axes)


@translates("ArgMax", "ArgMin")
def arg_extreme(t: Translation, call: Call):
    x, axis = t.node(call, 0), t.axis(call, call.get("axis", 0), len(t.shape(call, 0)))
    if call.op == "ArgMin":
        x = t.add(ops.Neg(), x)
    return keep_or_drop(t, call, t.add(ops.ArgMax(axis, bool(call.get("select_last_index", 0))), x), (axis,))


@translates("TopK")
def top(t: Translation, call: Call):
    x, shape = t.node(call, 0), t.shape(call, 0)
    axis, largest = t.axis(call, call.get("axis", -1), len(shape)), bool(call.get("largest", 1))
    k = t.integer(call, 1, "k") if t.opset >= 10 else call.get("k")
    if not call.get("sorted", 1):
        raise Problem("sorted=0 leaves the order of its results open")
    if k is None or not 0 <= k <= shape[axis]:
        raise ModelError(f"{t.where}: {call.source} asks for {k} elements of axis {axis} of {shape}")
    makers = (ops.TopValues, ops.TopIndices)
    return tuple(t.add(op(axis, k, largest), x) if call.has_output(i) else -1 for i, op in enumerate(makers))


def is_place(t: Translation, x: int) -> bool:
    """Is the value behind moves a place that an ArgMax or a TopK found, and so never negative?"""
    while isinstance(t.builder.node(x).op, (ops.Reshape, ops.Permute, ops.Slice, ops.Take)):
        x = t.builder.node(x).inputs[0]
    return isinstance(t.builder.node(x).op, (ops.ArgMax, ops.TopIndices))


@translates("OneHot")
def one_hot(t: Translation, call: Call):
    """off + (on - off) [index = place], along a new axis; an index below 0 counts from the end."""
    indices, depth = t.node(call, 0), t.integer(call, 1, "depth")
    off, on = (float(v) for v in t.constant(call, 2, "value").reshape(-1))
    if not whole(t, call, 0):
        indices = t.add(ops.Truncate(), indices)
    shape = t.builder.type(indices).shape
    axis = t.axis(call, call.get("axis", -1), len(shape) + 1)
    if not 0 < depth * prod(shape) <= LARGEST:
        raise ModelError(f"{t.where}: {call.source} makes {depth * prod(shape)} elements: none, or too many")
    ranked = is_place(t, indices)
    indices = t.reshape(indices, (*shape[:axis], 1, *shape[axis:]))
    places = np.arange(depth).reshape(-1, *[1] * (len(shape) - axis))
    out = is_equal(t, indices, t.param(places, f"{call.name}.places"), exact=True)
    if not ranked:
        out = t.add(ops.Add(), out, is_equal(t, indices, t.param(places - depth, f"{call.name}.places"), exact=True))
    if on - off != 1.0:
        out = t.add(ops.Mul(), out, number(t, on - off))
    return out if off == 0.0 else t.add(ops.Add(), out, number(t, off))


@translates("Where")
def where(t: Translation, call: Call):
    return t.add(ops.Where(), *(t.node(call, i) for i in range(3)))


@translates("Gather")
def gather(t: Translation, call: Call):
    shape = t.shape(call, 0)
    axis = t.axis(call, call.get("axis", 0), len(shape))
    size = shape[axis]
    if t.value(call, 1).varies:
        return t.add(ops.Lookup(axis), t.node(call, 0), t.node(call, 1))
    indices = t.value(call, 1).array
    flat = [int(i) for i in indices.reshape(-1)]
    if any(not -size <= i < size for i in flat):
        raise ModelError(f"{t.where}: an index of {call.source} lies outside axis {axis} of {shape}")
    out = cut(t, t.node(call, 0), axis, tuple(i % size for i in flat))
    return t.reshape(out, (*shape[:axis], *indices.shape, *shape[axis + 1 :]))
