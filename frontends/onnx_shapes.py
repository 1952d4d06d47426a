"""ONNX ops that move elements and compute nothing, written as absdom ops."""

from __future__ import annotations

from math import prod

import numpy as np

from absdom import ops
from absdom.errors import ModelError
from absdom.frontends.onnx_ops import checks, translates
from absdom.frontends.onnx_values import Call, Problem, Translation


@translates("Identity")
def identity(t: Translation, call: Call):
    return t.node(call, 0)


@translates("Dropout")
def dropout(t: Translation, call: Call):
    if call.has(2) and t.constant(call, 2, "training_mode").any():
        raise Problem("training_mode is set")
    if not call.has_output(1):
        return t.node(call, 0)
    return t.node(call, 0), t.param(np.ones(t.shape(call, 0), dtype=np.float32), f"{call.name}.mask")


@translates("Flatten")
def flatten(t: Translation, call: Call):
    x, shape = t.node(call, 0), t.shape(call, 0)
    axis = call.get("axis", 1)
    axis = axis if axis == len(shape) else t.axis(call, axis, len(shape))
    return t.reshape(x, (prod(shape[:axis]), prod(shape[axis:])))


@translates("Reshape")
def reshape(t: Translation, call: Call):
    x, shape = t.node(call, 0), t.shape(call, 0)
    wanted = list(t.integers(call, 1, "shape"))
    if not call.get("allowzero", 0):
        if any(s == 0 and i >= len(shape) for i, s in enumerate(wanted)):
            raise ModelError(f"{t.where}: {call.source} copies an axis that {shape} does not have")
        wanted = [shape[i] if s == 0 else s for i, s in enumerate(wanted)]
    if wanted.count(-1) == 1:
        known = -prod(wanted)
        wanted[wanted.index(-1)] = prod(shape) // known if known else 0
    if any(s < 0 for s in wanted) or prod(wanted) != prod(shape):
        raise ModelError(
            f"{t.where}: {call.source} cannot reshape {shape} to {t.integers(call, 1, 'shape')} (an open batch axis "
            f"counts as 1)"
        )
    return t.reshape(x, wanted)


@translates("Transpose")
def transpose(t: Translation, call: Call):
    rank = len(t.shape(call, 0))
    axes = tuple(call.get("perm") or reversed(range(rank)))
    x = t.node(call, 0)
    return x if axes == tuple(range(rank)) else t.add(ops.Permute(axes), x)


def axes_of(t: Translation, call: Call) -> tuple[int, ...] | None:
    if call.has(1):
        return t.integers(call, 1, "axes")
    return None if call.get("axes") is None else tuple(call.get("axes"))


@translates("Squeeze")
def squeeze(t: Translation, call: Call):
    x, shape = t.node(call, 0), t.shape(call, 0)
    axes = axes_of(t, call)
    if axes is None:
        return t.reshape(x, (s for s in shape if s != 1))
    axes = {t.axis(call, a, len(shape)) for a in axes}
    if any(shape[a] != 1 for a in axes):
        raise ModelError(f"{t.where}: {call.source} squeezes axes {sorted(axes)} of {shape}, and not all have size 1")
    return t.reshape(x, (s for i, s in enumerate(shape) if i not in axes))


@translates("Unsqueeze")
def unsqueeze(t: Translation, call: Call):
    x, shape = t.node(call, 0), list(t.shape(call, 0))
    axes = axes_of(t, call) or ()
    rank = len(shape) + len(axes)
    for axis in sorted(t.axis(call, a, rank) for a in axes):
        shape.insert(axis, 1)
    return t.reshape(x, shape)


@translates("Concat")
def concat(t: Translation, call: Call):
    axis = t.axis(call, call.get("axis", 0), len(t.shape(call, 0)))
    positions = [i for i in range(len(call.inputs)) if t.shape(call, i)[axis : axis + 1] != (0,)] or [0]
    inputs = [t.node(call, i) for i in positions]
    return inputs[0] if len(inputs) == 1 else t.add(ops.Concat(axis), *inputs)


@translates("Split")
def split(t: Translation, call: Call):
    x, shape = t.node(call, 0), t.shape(call, 0)
    axis = t.axis(call, call.get("axis", 0), len(shape))
    count = len(call.outputs)
    sizes = t.integers(call, 1, "split") if call.has(1) else tuple(call.get("split") or ())
    if not sizes:
        if call.get("num_outputs", count) != count or (t.opset < 18 and shape[axis] % count):
            raise ModelError(f"{t.where}: {call.source} cannot split {shape} into {count} equal parts on axis {axis}")
        size = -(-shape[axis] // count)
        sizes = (*[size] * (count - 1), shape[axis] - size * (count - 1))
    if len(sizes) != count or sum(sizes) != shape[axis] or min(sizes) < 0:
        raise ModelError(f"{t.where}: {call.source} cannot split {shape} into {sizes} on axis {axis}")
    starts = [sum(sizes[:i]) for i in range(count)]
    return tuple(
        cut(t, x, axis, range(start, start + size)) if name else -1
        for name, start, size in zip(call.outputs, starts, sizes, strict=True)
    )


def cut(t: Translation, x: int, axis: int, places) -> int:
    """The elements at `places` along an axis: nothing, a Slice, or a Take."""
    places = tuple(places)
    size = t.builder.type(x).shape[axis]
    if places == tuple(range(size)):
        return x
    if not places:
        return t.add(ops.Slice(axis, 0, 0), x)
    step = places[1] - places[0] if len(places) > 1 else 1
    if step > 0 and places == tuple(range(places[0], places[-1] + 1, step)):
        return t.add(ops.Slice(axis, places[0], places[-1] + 1, step), x)
    return t.add(ops.Take(axis, places), x)


@translates("Slice")
def slice_(t: Translation, call: Call):
    x, shape = t.node(call, 0), t.shape(call, 0)
    if t.opset < 10:
        starts, ends, axes = call.get("starts", ()), call.get("ends", ()), call.get("axes")
        steps = None
    else:
        starts, ends = t.integers(call, 1, "starts"), t.integers(call, 2, "ends")
        axes = t.integers(call, 3, "axes") if call.has(3) else None
        steps = t.integers(call, 4, "steps") if call.has(4) else None
    axes = tuple(range(len(starts))) if axes is None else tuple(axes)
    steps = (1,) * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise ModelError(f"{t.where}: {call.source} has starts, ends, axes and steps of different lengths")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step == 0:
            raise ModelError(f"{t.where}: {call.source} has a step of 0")
        axis = t.axis(call, axis, len(shape))
        # ONNX counts and clamps as Python does, going backwards too.
        x = cut(t, x, axis, range(*slice(start, end, step).indices(shape[axis])))
    return x


@checks("Pad")
def check_pad(call: Call) -> None:
    if call.get("mode", "constant") not in ("constant", "reflect", "edge", "wrap"):
        raise Problem(f"mode={call.get('mode')!r} is not supported")


@translates("Pad")
def pad(t: Translation, call: Call):
    x, shape = t.node(call, 0), t.shape(call, 0)
    rank = len(shape)
    if t.opset < 11:
        pads, fill, axes = tuple(call.get("pads", ())), call.get("value", 0.0), tuple(range(rank))
    else:
        pads = t.integers(call, 1, "pads")
        fill = float(t.number(call, 2, "constant_value")) if call.has(2) else 0.0
        axes = t.integers(call, 3, "axes") if call.has(3) else tuple(range(rank))
    axes = [t.axis(call, a, rank) for a in axes]
    if len(pads) != 2 * len(axes):
        raise ModelError(f"{t.where}: {call.source} has {len(pads)} pads for {len(axes)} axes")
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[i + len(axes)]
    mode = call.get("mode", "constant")
    if mode != "constant":
        return _mirror(t, call, x, shape, before, after, mode)
    for axis, size in enumerate(shape):
        kept = range(max(-before[axis], 0), size - max(-after[axis], 0))
        if not kept and size:
            raise Problem(f"pads {pads} crop away all of axis {axis}")
        x = cut(t, x, axis, kept)
    before, after = (tuple(max(p, 0) for p in side) for side in (before, after))
    if not any(before + after):
        return x
    inner = t.builder.type(x)
    out = t.add(ops.Pad(before, after), x)
    if fill == 0.0:
        return out
    if not np.isfinite(fill):
        raise Problem(f"the padding value {fill} is not finite")
    border = np.pad(
        np.zeros(inner.shape, dtype=inner.dtype), list(zip(before, after, strict=True)), constant_values=fill
    )
    return t.add(ops.Add(), out, t.param(border, f"{call.name}.border"))


def _mirror(t: Translation, call: Call, x: int, shape, before, after, mode: str) -> int:
    for axis, size in enumerate(shape):
        if min(before[axis], after[axis]) < 0:
            raise Problem(f"negative pads with mode={mode!r}")
        if mode == "reflect" and max(before[axis], after[axis]) >= size:
            raise ModelError(f"{t.where}: {call.source} reflects more elements than axis {axis} of {shape} has")
        places = np.pad(np.arange(size), (before[axis], after[axis]), mode=mode)
        x = cut(t, x, axis, tuple(int(i) for i in places))
    return x


@translates("Expand")
def expand(t: Translation, call: Call):
    x, shape = t.node(call, 0), t.shape(call, 0)
    wanted = t.integers(call, 1, "shape")
    try:
        out = np.broadcast_shapes(shape, wanted)
    except ValueError:
        raise ModelError(f"{t.where}: {call.source} cannot expand {shape} to {wanted}") from None
    return x if out == shape else t.add(ops.Expand(tuple(out)), x)
