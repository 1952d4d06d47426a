"""ONNX ops that place, repeat, gather and scatter elements at constant places, written as moves."""

from __future__ import annotations

from math import prod

import numpy as np

from absdom import ops
from absdom.errors import ModelError
from absdom.frontends.onnx_ops import checks, translates
from absdom.frontends.onnx_shapes import cut
from absdom.frontends.onnx_values import LARGEST, Call, Problem, Translation


def check_size(t: Translation, call: Call, shape) -> None:
    """No small file may ask for a huge tensor."""
    if prod(shape) > LARGEST:
        raise ModelError(f"{t.where}: {call.source} makes a tensor of shape {tuple(shape)}: too large")


def pick(t: Translation, sources: list[int], places: np.ndarray) -> int:
    """out[i] = all sources flat and side by side [places[i]], for places of any shape; -1 is a zero."""
    flat = [t.reshape(s, (prod(t.builder.type(s).shape),)) for s in sources]
    size = sum(t.builder.type(s).shape[0] for s in flat)
    if (places < 0).any():
        flat.append(t.param(np.zeros(1, dtype=t.builder.type(flat[0]).dtype), "zero"))
        places = np.where(places < 0, size, places)
    joined = flat[0] if len(flat) == 1 else t.add(ops.Concat(0), *flat)
    return t.reshape(cut(t, joined, 0, (int(i) for i in places.reshape(-1))), places.shape)


def places_of(shape) -> np.ndarray:
    """The flat place of each element."""
    return np.arange(prod(shape)).reshape(shape)


def inside(t: Translation, call: Call, indices: np.ndarray, size, what: str) -> np.ndarray:
    """Indices with negative ones counted from the end; `size` broadcasts to them."""
    if ((indices < -np.asarray(size)) | (indices >= size)).any():
        raise ModelError(f"{t.where}: an index of {call.source} lies outside {what}")
    return np.where(indices < 0, indices + size, indices)


@translates("Tile")
def tile(t: Translation, call: Call):
    x, shape = t.node(call, 0), t.shape(call, 0)
    repeats = t.integers(call, 1, "repeats")
    if len(repeats) != len(shape) or min(repeats, default=1) < 0:
        raise ModelError(f"{t.where}: {call.source} has repeats {repeats} for an input of shape {shape}")
    check_size(t, call, [s * r for s, r in zip(shape, repeats, strict=True)])
    for axis, (size, count) in enumerate(zip(shape, repeats, strict=True)):
        if count != 1:
            x = cut(t, x, axis, tuple(range(size)) * count)
    return x


@translates("Trilu")
def trilu(t: Translation, call: Call):
    x, shape = t.node(call, 0), t.shape(call, 0)
    if len(shape) < 2:
        raise ModelError(f"{t.where}: {call.source} has an input of shape {shape}: no matrix")
    k = t.integer(call, 1, "diagonal") if call.has(1) else 0
    keep = np.triu if call.get("upper", 1) else np.tril
    return pick(t, [x], np.where(keep(np.ones(shape), k) > 0, places_of(shape), -1))


@checks("DepthToSpace", "SpaceToDepth")
def check_mode(call: Call) -> None:
    if call.get("mode", "DCR") not in ("DCR", "CRD"):
        raise Problem(f"mode={call.get('mode')!r} is unknown")


@translates("DepthToSpace", "SpaceToDepth")
def blocks(t: Translation, call: Call):
    x, shape = t.node(call, 0), t.shape(call, 0)
    size, depth_first = call.get("blocksize", 1), call.get("mode", "DCR") == "DCR"
    if len(shape) != 4 or size < 1:
        raise ModelError(f"{t.where}: {call.source} has blocksize {size} and an input of shape {shape}")
    n, c, h, w = shape
    if (c % size**2) if call.op == "DepthToSpace" else (h % size or w % size):
        raise ModelError(f"{t.where}: blocks of {size} x {size} do not fit the input {shape} of {call.source}")
    if call.op == "DepthToSpace":
        c = c // size**2
        split = (n, size, size, c, h, w) if depth_first else (n, c, size, size, h, w)
        order = (0, 3, 4, 1, 5, 2) if depth_first else (0, 1, 4, 2, 5, 3)
        out = (n, c, h * size, w * size)
    else:
        split = (n, c, h // size, size, w // size, size)
        order = (0, 3, 5, 1, 2, 4) if depth_first else (0, 1, 3, 5, 2, 4)
        out = (n, c * size**2, h // size, w // size)
    return t.reshape(t.add(ops.Permute(order), t.reshape(x, split)), out)


@translates("GatherND")
def gather_nd(t: Translation, call: Call):
    x, shape = t.node(call, 0), t.shape(call, 0)
    indices, batch = t.constant(call, 1, "index"), call.get("batch_dims", 0)
    depth = indices.shape[-1] if indices.ndim else 0
    if not 0 <= batch < indices.ndim or shape[:batch] != indices.shape[:batch] or not 1 <= depth <= len(shape) - batch:
        raise ModelError(f"{t.where}: the indices {indices.shape} of {call.source} do not fit its input {shape}")
    index = inside(t, call, indices, np.array(shape[batch : batch + depth]), f"its input {shape}")
    grid = np.indices(indices.shape[:-1], sparse=True)[:batch]
    return pick(t, [x], places_of(shape)[(*grid, *np.moveaxis(index, -1, 0))])


def element_index(t: Translation, call: Call, shape, indices: np.ndarray):
    """What GatherElements reads and ScatterElements writes: `indices` along the axis, its own place along others."""
    axis = t.axis(call, call.get("axis", 0), len(shape))
    if indices.ndim != len(shape) or any(
        i > s for a, (i, s) in enumerate(zip(indices.shape, shape, strict=True)) if a != axis
    ):
        raise ModelError(f"{t.where}: the indices {indices.shape} of {call.source} do not fit its input {shape}")
    index = list(np.indices(indices.shape))
    index[axis] = inside(t, call, indices, shape[axis], f"axis {axis} of {shape}")
    return tuple(index)


@translates("GatherElements")
def gather_elements(t: Translation, call: Call):
    x, shape = t.node(call, 0), t.shape(call, 0)
    return pick(t, [x], places_of(shape)[element_index(t, call, shape, t.constant(call, 1, "index"))])


@checks("Scatter", "ScatterElements", "ScatterND")
def check_reduction(call: Call) -> None:
    if call.get("reduction", "none") not in ("none", "add", "mul", "max", "min"):
        raise Problem(f"reduction={call.get('reduction')!r} is unknown")


@translates("Scatter", "ScatterElements", "ScatterND")
def scatter(t: Translation, call: Call):
    """Where indices are constants, each element of the result has known sources among the data and the updates."""
    if call.op == "ScatterND" and t.value(call, 1).varies and call.get("reduction", "none") == "none":
        return t.add(ops.Scatter(), *(t.node(call, i) for i in range(3)))
    shape, indices, updates = t.shape(call, 0), t.constant(call, 1, "index"), t.shape(call, 2)
    if call.op == "ScatterND":
        depth = indices.shape[-1] if indices.ndim else 0
        if not 1 <= depth <= len(shape) or updates != (*indices.shape[:-1], *shape[depth:]):
            raise ModelError(f"{t.where}: indices {indices.shape} and updates {updates} of {call.source} do not fit")
        index = tuple(np.moveaxis(inside(t, call, indices, np.array(shape[:depth]), f"its input {shape}"), -1, 0))
    else:
        if updates != indices.shape:
            raise ModelError(f"{t.where}: indices {indices.shape} and updates {updates} of {call.source} do not fit")
        index = element_index(t, call, shape, indices)
    target = places_of(shape)[index].reshape(-1)
    data, update = t.node(call, 0), t.node(call, 2)
    return place(t, data, update, target, call.get("reduction", "none"))


def place(t: Translation, data: int, update: int, target: np.ndarray, reduction: str) -> int:
    """`data` with the flat elements of `update` put at, or joined with, its flat places `target`."""
    shape = t.builder.type(data).shape
    sources = places_of(shape).reshape(-1)
    if reduction == "none":  # the last one wins
        sources[target] = prod(shape) + np.arange(len(target))
        return pick(t, [data, update], sources.reshape(shape))
    rounds: list[np.ndarray] = []  # round k: the k-th update of each element
    seen = np.zeros(len(sources), dtype=int)
    for i, place in enumerate(target):
        if seen[place] == len(rounds):
            rounds.append(np.full(len(sources), -1))
        rounds[seen[place]][place] = i
        seen[place] += 1
    for source in rounds:
        places = source.reshape(shape)
        if reduction == "add":
            data = t.add(ops.Add(), data, pick(t, [update], places))
            continue
        # What has no update keeps its value: only the others take part.
        touched = np.flatnonzero(source >= 0)
        both = pick(t, [data], touched), pick(t, [update], source[touched])
        joined = t.add(ops.Mul(), *both) if reduction == "mul" else larger(t, *both, 1 if reduction == "max" else -1)
        kept = places_of(shape).reshape(-1)
        kept[touched] = prod(shape) + np.arange(len(touched))
        data = pick(t, [data, joined], kept.reshape(shape))
    return data


def larger(t: Translation, a: int, b: int, sign: int) -> int:
    """The larger value elementwise (sign 1), or the smaller one (sign -1)."""
    if sign > 0:
        return t.add(ops.Maximum(), a, b)
    return t.add(ops.Neg(), t.add(ops.Maximum(), t.add(ops.Neg(), a), t.add(ops.Neg(), b)))


@checks("MaxUnpool")
def check_unpool(call: Call) -> None:
    if any(p for p in call.get("pads", ())):
        raise Problem(f"pads {tuple(call.get('pads'))} are not supported")


@translates("MaxUnpool")
def max_unpool(t: Translation, call: Call):
    """Puts each element at its constant index in a tensor of zeros."""
    x, shape, indices = t.node(call, 0), t.shape(call, 0), t.constant(call, 1, "index")
    kernel = tuple(call.get("kernel_shape") or ())
    strides = tuple(call.get("strides") or (1,) * len(kernel))
    if len(kernel) != len(shape) - 2 or len(strides) != len(kernel) or indices.shape != shape:
        raise ModelError(f"{t.where}: {call.source} has kernel {kernel}, input {shape} and indices {indices.shape}")
    size = [(n - 1) * s + k for n, s, k in zip(shape[2:], strides, kernel, strict=True)]
    natural = (*shape[:2], *size)  # the indices count in this shape, a larger output_shape pads it behind
    wanted = t.integers(call, 2, "output_shape") if call.has(2) else natural
    check_size(t, call, wanted)
    if len(wanted) != len(natural) or min(natural) < 1:
        raise ModelError(f"{t.where}: {call.source} has output_shape {wanted} for an input of shape {shape}")
    target = inside(t, call, indices.reshape(-1), prod(natural), f"its output {natural}")
    sources = np.full(wanted, -1)
    sources.reshape(-1)[places_in(t, call, target, natural, wanted)] = np.arange(len(target))
    return pick(t, [x], sources)


def places_in(t: Translation, call: Call, flat: np.ndarray, small, large) -> np.ndarray:
    """Flat places in `small` as flat places in `large`, which holds it."""
    if any(a > b for a, b in zip(small, large, strict=True)):
        raise ModelError(f"{t.where}: output_shape {large} of {call.source} is smaller than {small}")
    return np.ravel_multi_index(np.unravel_index(flat, small), large)


@translates("Compress")
def compress(t: Translation, call: Call):
    x, shape = t.node(call, 0), t.shape(call, 0)
    if call.get("axis") is None:
        x, shape, axis = t.reshape(x, (prod(shape),)), (prod(shape),), 0
    else:
        axis = t.axis(call, call.get("axis"), len(shape))
    places = np.flatnonzero(t.constant(call, 1, "condition").reshape(-1))
    if len(places) and places[-1] >= shape[axis]:
        raise ModelError(f"{t.where}: the condition of {call.source} is longer than axis {axis} of {shape}")
    return cut(t, x, axis, (int(i) for i in places))


@translates("ReverseSequence")
def reverse_sequence(t: Translation, call: Call):
    x, shape = t.node(call, 0), t.shape(call, 0)
    batch, time = (
        t.axis(call, call.get(name, default), len(shape)) for name, default in (("batch_axis", 1), ("time_axis", 0))
    )
    lengths = t.constant(call, 1, "sequence_lens").reshape(-1)
    if batch == time or len(lengths) != shape[batch] or ((lengths < 0) | (lengths > shape[time])).any():
        raise ModelError(f"{t.where}: {call.source} has sequence_lens {lengths.tolist()} for an input of shape {shape}")
    index = list(np.indices(shape))
    reach = lengths[index[batch]]
    index[time] = np.where(index[time] < reach, reach - 1 - index[time], index[time])
    return pick(t, [x], places_of(shape)[tuple(index)])


@translates("TensorScatter")
def tensor_scatter(t: Translation, call: Call):
    """Writes the update into the cache at a constant start per batch, along one axis, which may wrap around."""
    shape, update = t.shape(call, 0), t.shape(call, 1)
    axis = t.axis(call, call.get("axis", -2), len(shape))
    starts = t.integers(call, 2, "write_indices") if call.has(2) else (0,) * shape[0]
    fits = len(starts) == shape[0] and len(update) == len(shape)
    if not fits or any(u != s for a, (u, s) in enumerate(zip(update, shape, strict=True)) if a != axis):
        raise ModelError(
            f"{t.where}: {call.source} has an update {update} and {len(starts)} starts for a cache {shape}"
        )
    index = list(np.indices(update))
    index[axis] = index[axis] + np.array(starts)[index[0]]
    if call.get("mode", "linear") == "circular":
        index[axis] %= shape[axis]
    if any(a.size and (a.min() < 0 or a.max() >= n) for a, n in zip(index, shape, strict=True)):
        raise ModelError(f"{t.where}: the update {update} of {call.source} reaches past the cache {shape}")
    return place(t, t.node(call, 0), t.node(call, 1), places_of(shape)[tuple(index)].reshape(-1), "none")


@translates("CenterCropPad")
def center_crop_pad(t: Translation, call: Call):
    x, shape = t.node(call, 0), list(t.shape(call, 0))
    wanted = t.integers(call, 1, "shape")
    axes = [t.axis(call, a, len(shape)) for a in call.get("axes") or range(len(shape))]
    if len(axes) != len(wanted) or min(wanted, default=0) < 0:
        raise ModelError(f"{t.where}: {call.source} has shape {wanted} for axes {axes}")
    before, after = [0] * len(shape), [0] * len(shape)
    for axis, size in zip(axes, wanted, strict=True):
        start = (shape[axis] - size) // 2 if shape[axis] > size else 0
        x = cut(t, x, axis, range(start, start + min(size, shape[axis])))
        room = max(size - shape[axis], 0)
        before[axis], after[axis] = room // 2, room - room // 2
        shape[axis] = size
    check_size(t, call, shape)
    return t.add(ops.Pad(tuple(before), tuple(after)), x) if any(before + after) else x
