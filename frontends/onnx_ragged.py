"""Values whose size depends on the network's input: slices whose start is computed, and what is made of their shape.

x[s : s + k] has k elements or fewer: at the end of x, or where s or s + k is negative, some are missing. Such a value
is kept at its full size, and `Extents` says which of its axes may be shorter, and by which slice. `Sizes` is the same
for the shape vector of such a value. What is missing is only ever an index of a ScatterND or its update: there, indices
of missing elements are moved out of the tensor, where nothing is written. Every other use is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from absdom import ops
from absdom.frontends.onnx_file import array as decoded
from absdom.frontends.onnx_shapes import axes_of
from absdom.frontends.onnx_values import LARGEST, Call, Problem, Translation, Value

REFUSED = "the size of its input depends on the network's input"


@dataclass(frozen=True)
class Extent:
    """The size of x[s : s + most] for x of `size` elements, where s is the value of a node plus `shift`."""

    node: int
    shift: int
    size: int
    most: int


Dimension = int | Extent


@dataclass(frozen=True)
class Extents:
    """The dimensions of a tensor."""

    axes: tuple[Dimension, ...]


@dataclass(frozen=True)
class Sizes:
    """The entries of a shape vector."""

    entries: tuple[Dimension, ...]


def most(dimensions) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else d.most for d in dimensions)


RULES: dict = {}


def rule(op: str):
    return lambda function: RULES.update({op: function}) or function


def concerns(t: Translation, call: Call) -> bool:
    inputs = [t.values[name] for name in call.inputs if name]
    moving = call.op == "Slice" and len(inputs) > 2 and inputs[1].varies and inputs[2].varies
    return moving or any(v.ragged is not None for v in inputs)


def translate(t: Translation, call: Call) -> None:
    if call.op not in RULES:
        raise Problem(REFUSED)
    made = RULES[call.op](t, call)
    made.element = made.element or t.dtype(call, 0)
    t.values[call.outputs[0]] = made


def extents(value: Value, t: Translation) -> tuple[Dimension, ...]:
    if isinstance(value.ragged, Extents):
        return value.ragged.axes
    if value.ragged is not None:
        raise Problem(REFUSED)
    return value.array.shape if value.array is not None else t.builder.type(value.node).shape


def entries(value: Value) -> tuple[Dimension, ...]:
    """The entries of a constant shape, or of one that depends on the input."""
    if isinstance(value.ragged, Sizes):
        return value.ragged.entries
    if value.ragged is not None or value.array is None or value.array.ndim != 1:
        raise Problem(REFUSED)
    return tuple(int(i) for i in value.array)


def tensor(name: str, axes, node: int | None = None, array: np.ndarray | None = None) -> Value:
    if any(isinstance(a, Extent) for a in axes):
        return Value(name, node, array, ragged=Extents(tuple(axes)))
    return Value(name, node, array)


def vector(name: str, dimensions) -> Value:
    array = np.array(most(dimensions), dtype=np.int64)
    moving = any(isinstance(d, Extent) for d in dimensions)
    return Value(name, array=array, ragged=Sizes(dimensions) if moving else None)


def full(t: Translation, value: Value) -> int | None:
    """The node of a value at its full size; None where its elements are not known."""
    if value.node is not None:
        return value.node
    return None if value.array is None else t.param(value.array, value.name, value.suspect)


def anchor(t: Translation, node: int) -> tuple[int, int]:
    """(base, shift): the number in `node` is that in `base` plus a constant."""
    shift = 0
    while True:
        made = t.builder.node(node)
        if isinstance(made.op, ops.Reshape):
            node = made.inputs[0]
            continue
        if isinstance(made.op, ops.Add):
            parts = [(i, t.builder.tensor(j)) for i, j in zip(made.inputs, made.inputs[::-1], strict=True)]
            constant = next(((i, c) for i, c in parts if c is not None and c.numel() == 1), None)
            if constant is not None and float(constant[1]).is_integer():
                node, shift = constant[0], shift + int(constant[1])
                continue
        return node, shift


@rule("Slice")
def slice_(t: Translation, call: Call) -> Value:
    data = t.value(call, 0)
    axes = list(extents(data, t))
    starts, ends = t.value(call, 1), t.value(call, 2)
    if not (starts.varies and ends.varies) or starts.node is None or ends.node is None:
        raise Problem(REFUSED)
    wanted = t.integers(call, 3, "axes") if call.has(3) else (0,)
    steps = t.integers(call, 4, "steps") if call.has(4) else (1,)
    base, shift = anchor(t, starts.node)
    other, end = anchor(t, ends.node)
    if t.builder.type(starts.node).numel != 1 or len(wanted) != 1 or steps != (1,) or base != other or end <= shift:
        raise Problem("its starts and ends depend on the network's input, and not by one start and a constant length")
    axis = t.axis(call, wanted[0], len(axes))
    size = axes[axis]
    if not isinstance(size, int):
        raise Problem(REFUSED)
    axes[axis] = Extent(base, shift, size, end - shift)
    node = full(t, data) if len(axes) == 1 else None
    if node is not None:
        # What stands for missing elements is never used; near the others it widens no bounds.
        fill = float(data.array.max(initial=0)) if data.array is not None else 0.0
        node = t.add(ops.Window(end - shift, fill), node, starts.node)
    return tensor(call.outputs[0], axes, node)


@rule("Shape")
def shape(t: Translation, call: Call) -> Value:
    value = t.value(call, 0)
    if isinstance(value.ragged, Sizes):
        return Value(call.outputs[0], array=np.array([len(value.ragged.entries)], dtype=np.int64))
    return vector(call.outputs[0], extents(value, t)[call.get("start", 0) : call.get("end")])


@rule("ConstantOfShape")
def constant_of_shape(t: Translation, call: Call) -> Value:
    axes = entries(t.value(call, 0))
    value = call.get("value")
    fill = np.zeros(1, dtype=np.float32) if value is None else decoded(value, call.outputs[0], t.where)
    made = tensor(call.outputs[0], axes, array=np.broadcast_to(fill, most(axes)))
    made.element = made.array.dtype
    return made


@rule("Equal")
def equal(t: Translation, call: Call) -> Value:
    """No size is negative."""
    first, second = t.value(call, 0), t.value(call, 1)
    plain = second if isinstance(first.ragged, Sizes) else first
    if plain.ragged is not None or plain.array is None or (plain.array >= 0).any():
        raise Problem(REFUSED)
    shape = np.broadcast_shapes(first.array.shape, second.array.shape)
    return Value(call.outputs[0], array=np.zeros(shape, dtype=bool))


@rule("Where")
def where(t: Translation, call: Call) -> Value:
    condition = t.value(call, 0)
    if condition.array is None or condition.ragged is not None or condition.array.ndim != 1:
        raise Problem(REFUSED)
    first, second = entries(t.value(call, 1)), entries(t.value(call, 2))
    if not len(condition.array) == len(first) == len(second):
        raise Problem(REFUSED)
    chosen = zip(condition.array, first, second, strict=True)
    return vector(call.outputs[0], tuple(a if c else b for c, a, b in chosen))


def broadcast(first, second) -> tuple[Dimension, ...]:
    """The dimensions that two shapes broadcast to; a size that may be smaller only meets 1 and itself."""
    rank = max(len(first), len(second))
    out = []
    for a, b in zip((1,) * (rank - len(first)) + first, (1,) * (rank - len(second)) + second, strict=True):
        if a != b and 1 not in (a, b):
            raise Problem(REFUSED)
        out.append(b if a == 1 else a)
    return tuple(out)


def spread(t: Translation, value: Value, axes, name: str) -> Value:
    """A value broadcast to `axes`."""
    if value.array is not None:
        return tensor(name, axes, array=np.broadcast_to(value.array, most(axes)))
    if value.node is None:
        return tensor(name, axes)
    same = t.builder.type(value.node).shape == most(axes)
    return tensor(name, axes, value.node if same else t.add(ops.Expand(most(axes)), value.node))


@rule("Expand")
def expand(t: Translation, call: Call) -> Value:
    value = t.value(call, 0)
    axes = broadcast(extents(value, t), entries(t.value(call, 1)))
    if np.prod(most(axes), dtype=float) > LARGEST:
        raise Problem("it makes too many elements")
    return spread(t, value, axes, call.outputs[0])


@rule("Add")
def add(t: Translation, call: Call) -> Value:
    first, second = t.value(call, 0), t.value(call, 1)
    axes = broadcast(extents(first, t), extents(second, t))
    nodes = full(t, first), full(t, second)
    return tensor(call.outputs[0], axes, None if None in nodes else t.add(ops.Add(), *nodes))


def as_shape(t: Translation, value: Value, axes, name: str) -> Value:
    array = None if value.array is None else value.array.reshape(most(axes))
    node = None if value.node is None else t.reshape(value.node, most(axes))
    return tensor(name, axes, node, array)


@rule("Unsqueeze")
def unsqueeze(t: Translation, call: Call) -> Value:
    value = t.value(call, 0)
    axes, added = list(extents(value, t)), axes_of(t, call) or ()
    for axis in sorted(t.axis(call, a, len(axes) + len(added)) for a in added):
        axes.insert(axis, 1)
    return as_shape(t, value, axes, call.outputs[0])


@rule("Reshape")
def reshape(t: Translation, call: Call) -> Value:
    """To the shape that it has, or with axes of size 1 put in or left out."""
    value, wanted = t.value(call, 0), entries(t.value(call, 1))
    axes = extents(value, t)
    long = tuple(a for a in axes if a != 1)
    if tuple(w for w in wanted if w != 1) not in (long, (-1,)) or (-1 in wanted and len(long) != 1):
        raise Problem(REFUSED)
    return as_shape(t, value, tuple(long[0] if w == -1 else w for w in wanted), call.outputs[0])


@rule("Concat")
def concat(t: Translation, call: Call) -> Value:
    values = [t.value(call, i) for i in range(len(call.inputs))]
    if any(isinstance(v.ragged, Sizes) for v in values):
        return vector(call.outputs[0], sum((entries(v) for v in values), ()))
    shapes = [extents(v, t) for v in values]
    axis = t.axis(call, call.get("axis", 0), len(shapes[0]))
    rest = {(*s[:axis], *s[axis + 1 :]) for s in shapes}
    if len(rest) != 1 or not all(isinstance(s[axis], int) for s in shapes):
        raise Problem(REFUSED)
    axes = (*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :])
    nodes = [full(t, v) for v in values]
    return tensor(call.outputs[0], axes, None if None in nodes else t.add(ops.Concat(axis), *nodes))


@rule("ScatterND")
def scatter_nd(t: Translation, call: Call) -> Value:
    data, indices, updates = (t.value(call, i) for i in range(3))
    axes, written = extents(indices, t), extents(updates, t)
    if data.ragged is not None or not axes or not isinstance(axes[-1], int) or call.get("reduction", "none") != "none":
        raise Problem(REFUSED)
    target = t.shape(call, 0)
    index, update = full(t, indices), full(t, updates)
    if written != (*axes[:-1], *target[axes[-1] :]) or index is None or update is None:
        raise Problem(REFUSED)
    outside = 2.0 * max(target) + 2  # added to any legal index, beyond every axis
    for axis, extent in enumerate(axes):
        if isinstance(extent, Extent):
            zeros = t.param(np.zeros(extent.size, dtype=np.float32), f"{call.name}.places")
            start = t.reshape(extent.node, (1,))
            if extent.shift:
                start = t.add(ops.Add(), start, t.param(np.array([float(extent.shift)]), f"{call.name}.shift"))
            missing = t.add(ops.Window(extent.most, outside), zeros, start)
            missing = t.reshape(missing, (extent.most, *[1] * (len(axes) - axis - 1)))
            index = t.add(ops.Add(), index, missing)
    return Value(call.outputs[0], t.add(ops.Scatter(), t.emit(data), index, update))
