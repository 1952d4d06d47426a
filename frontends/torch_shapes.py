"""ATen calls that move elements and compute nothing, written as absdom ops."""

from __future__ import annotations

from math import prod

import torch

from absdom import ops
from absdom.frontends.torch_layers import per_axis
from absdom.frontends.torch_ops import choose
from absdom.frontends.torch_reduce import drop
from absdom.frontends.torch_source import target_name
from absdom.frontends.torch_values import Index, Translation, Unsupported, handles

WHOLE = 2**62  # torch writes an open end of a slice as a huge number


@handles("detach", "clone", "contiguous", "alias", "lift_fresh", "lift_fresh_copy", "positive", "resolve_conj")
def identity(t: Translation, x, *_, **__):
    return t.index(x)


@handles("to", "_to_copy", "type_as")
def cast(t: Translation, x, *_, **__):
    """Over the reals a cast between float32 and float64 changes nothing; to whole numbers it cuts off towards zero."""
    before, after = t.node.args[0].meta["val"].dtype, t.node.meta["val"].dtype
    if after == torch.bool and before != torch.bool:
        return t.add(ops.Sub(), 1.0, t.add(ops.Equal(), x, 0.0))
    return t.add(ops.Truncate(), x) if before.is_floating_point and not after.is_floating_point else t.index(x)


@handles("view", "reshape", "_unsafe_view", "view_copy", "view_as", "reshape_as", "flatten", "unflatten", "squeeze",
         "unsqueeze", "squeeze_copy", "unsqueeze_copy", "ravel")  # fmt: skip
def view(t: Translation, x, *_, **__):
    """Only the shape changes, and torch has worked it out."""
    return t.reshape(x, t.node.meta["val"].shape)


@handles("permute", "permute_copy")
def permute(t: Translation, x, axes):
    return t.permute(x, (t.axis(x, a) for a in axes))


@handles("transpose", "swapaxes", "swapdims", "transpose_copy")
def transpose(t: Translation, x, first, second):
    axes = list(range(len(t.shape(x))))
    first, second = t.axis(x, first), t.axis(x, second)
    axes[first], axes[second] = second, first
    return t.permute(x, axes)


@handles("t", "numpy_T", "t_copy")
def turned(t: Translation, x):
    return t.permute(x, reversed(range(len(t.shape(x)))))


@handles("mT", "adjoint", "mH")
def matrix_turned(t: Translation, x):
    return transpose(t, x, -1, -2)


@handles("movedim", "moveaxis")
def movedim(t: Translation, x, source, target):
    rank = len(t.shape(x))
    source, target = ([t.axis(x, a) for a in per_axis(v, 1)] for v in (source, target))
    rest = iter(a for a in range(rank) if a not in source)
    return t.permute(x, [source[target.index(a)] if a in target else next(rest) for a in range(rank)])


@handles("cat", "concat", "concatenate")
def cat(t: Translation, tensors, dim=0):
    parts = [x for x in tensors if prod(t.shape(x))] or list(tensors[:1])
    return t.index(parts[0]) if len(parts) == 1 else t.add(ops.Concat(t.axis(parts[0], dim)), *parts)


@handles("stack")
def stack(t: Translation, tensors, dim=0):
    shape = list(t.shape(tensors[0]))
    axis = dim % (len(shape) + 1)
    shape.insert(axis, 1)
    parts = [t.reshape(x, shape) for x in tensors]
    return parts[0] if len(parts) == 1 else t.add(ops.Concat(axis), *parts)


# Parts of one axis.


@handles("slice", "slice_copy")
def slice_(t: Translation, x, dim=0, start=None, end=None, step=1):
    axis = t.axis(x, dim)
    end = None if end is None or end >= WHOLE else end
    return t.take(x, axis, range(t.shape(x)[axis])[start:end:step])


@handles("narrow", "narrow_copy")
def narrow(t: Translation, x, dim, start, length):
    axis = t.axis(x, dim)
    start = int(t.constant(start)) % max(t.shape(x)[axis], 1) if start != t.shape(x)[axis] else start
    return t.take(x, axis, range(start, start + length))


@handles("select", "select_copy")
def select(t: Translation, x, dim, position):
    axis = t.axis(x, dim)
    return drop(t, t.take(x, axis, [position % t.shape(x)[axis]]), (axis,), False)


def parts(t: Translation, x, axis: int, sizes) -> tuple[Index, ...]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(t.take(x, axis, range(start, start + n)) for start, n in zip(starts, sizes, strict=True))


@handles("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_chunk", "unsafe_split", "split_copy",
         "split_with_sizes_copy", "unsafe_split_with_sizes")  # fmt: skip
def split(t: Translation, x, _, dim=0):
    """Torch has worked out the sizes of the parts."""
    axis = t.axis(x, dim)
    return parts(t, x, axis, [part.shape[axis] for part in t.node.meta["val"]])


@handles("unbind", "unbind_copy")
def unbind(t: Translation, x, dim=0):
    return tuple(select(t, x, dim, i) for i in range(t.shape(x)[t.axis(x, dim)]))


@handles("index_select")
def index_select(t: Translation, x, dim, index):
    axis = t.axis(x, dim)
    return t.take(x, axis, t.constant(index, "its index").reshape(-1).tolist())


@handles("flip")
def flip(t: Translation, x, axes):
    out = t.index(x)
    for axis in t.axes(x, axes):
        out = t.take(out, axis, reversed(range(t.shape(x)[axis])))
    return out


@handles("roll")
def roll(t: Translation, x, shifts, dims=()):
    shape, out = t.shape(x), t.index(x)
    if not dims:
        out, dims = t.reshape(out, (prod(shape),)), [0]
    for shift, axis in zip(per_axis(shifts, 1), per_axis(dims, 1), strict=True):
        axis, size = axis % len(t.shape(out)), t.shape(out)[axis]
        out = t.take(out, axis, [(i - shift) % size for i in range(size)])
    return t.reshape(out, shape)


# Copies.


@handles("expand", "expand_as", "broadcast_to", "expand_copy")
def expand(t: Translation, x, *_, **__):
    shape = tuple(t.node.meta["val"].shape)
    return t.index(x) if t.shape(x) == shape else t.add(ops.Expand(shape), x)


@handles("repeat", "tile")
def repeat(t: Translation, x, repeats):
    shape = t.shape(x)
    rank = max(len(shape), len(repeats))
    out = t.reshape(x, (*[1] * (rank - len(shape)), *shape))
    for axis, count in enumerate((*[1] * (rank - len(repeats)), *repeats)):
        size = t.shape(out)[axis]
        if count != 1 and size == 1:
            out = t.add(ops.Expand(tuple(count if a == axis else n for a, n in enumerate(t.shape(out)))), out)
        elif count != 1:
            out = t.take(out, axis, [*range(size)] * count)
    return out


@handles("repeat_interleave")
def repeat_interleave(t: Translation, x, repeats=None, dim=None, *, output_size=None):
    counts = t.constant(repeats, "its number of repeats")
    out = t.index(x) if dim is not None else t.reshape(x, (prod(t.shape(x)),))
    axis = t.axis(out, 0 if dim is None else dim)
    size = t.shape(out)[axis]
    return t.take(out, axis, torch.arange(size).repeat_interleave(counts.expand(size)).tolist())


# Padding.


@handles("constant_pad_nd")
def constant_pad(t: Translation, x, pads, value=0.0):
    return pad(t, x, pads, "constant", value)


@handles("pad")
def pad(t: Translation, x, pads, mode="constant", value=0.0):
    shape, value = t.shape(x), 0.0 if value is None else float(value)
    if mode != "constant":
        return axis_by_axis(t, x, pads, mode)
    before, after, out = [0] * len(shape), [0] * len(shape), t.index(x)
    for k in range(len(pads) // 2):
        axis = len(shape) - 1 - k
        before[axis], after[axis] = pads[2 * k], pads[2 * k + 1]
        out = t.take(out, axis, range(max(-before[axis], 0), shape[axis] - max(-after[axis], 0)))
    inner = t.shape(out)
    before, after = (tuple(max(p, 0) for p in side) for side in (before, after))
    if not any(before + after):
        return out
    out = t.add(ops.Pad(before, after), out)
    if value == 0.0:
        return out
    border = torch.full(t.shape(out), value, dtype=torch.float64)
    border[tuple(slice(b, b + n) for b, n in zip(before, inner, strict=True))] = 0
    return t.add(ops.Add(), out, t.param(border, "border"))


# Blocks of channels and of pixels.


@handles("pixel_shuffle")
def pixel_shuffle(t: Translation, x, factor):
    *front, channels, high, wide = t.shape(x)
    channels //= factor**2
    split = t.reshape(x, (*front, channels, factor, factor, high, wide))
    k = len(front)
    out = t.permute(split, (*range(k), k, k + 3, k + 1, k + 4, k + 2))
    return t.reshape(out, (*front, channels, high * factor, wide * factor))


@handles("pixel_unshuffle")
def pixel_unshuffle(t: Translation, x, factor):
    *front, channels, high, wide = t.shape(x)
    split = t.reshape(x, (*front, channels, high // factor, factor, wide // factor, factor))
    k = len(front)
    out = t.permute(split, (*range(k), k, k + 2, k + 4, k + 1, k + 3))
    return t.reshape(out, (*front, channels * factor**2, high // factor, wide // factor))


@handles("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(t: Translation, x, groups):
    n, channels, *spatial = t.shape(x)
    split = t.reshape(x, (n, groups, channels // groups, *spatial))
    return t.reshape(t.permute(split, (0, 2, 1, *range(3, 3 + len(spatial)))), (n, channels, *spatial))


@handles("tril", "triu")
def triangle(t: Translation, x, diagonal=0):
    ones = torch.ones(t.shape(x)[-2:], dtype=torch.bool)
    return choose(t, ones.tril(diagonal) if target_name(t.node) == "tril" else ones.triu(diagonal), x, 0.0)


# Torch itself says where each element goes.


@handles("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
         "replication_pad3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
         "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d")  # fmt: skip
def axis_by_axis(t: Translation, x, *args, **kwargs):
    """A move that treats each axis alone: the call on the coordinates along an axis gives the places there."""
    shape, out = t.shape(x), t.index(x)
    dtype = t.node.args[0].meta["val"].dtype
    for axis, size in enumerate(shape):
        line = torch.arange(size, dtype=dtype).reshape([-1 if a == axis else 1 for a in range(len(shape))])
        with torch.no_grad():
            found = t.node.target(line.expand(shape).contiguous(), *args, **kwargs)
        out = t.take(out, axis, found[tuple(slice(None) if a == axis else 0 for a in range(len(shape)))].tolist())
    return out


@handles("embedding")
def embedding(t: Translation, weight, places, *_, **__):
    """Rows of a table of weights at constant places."""
    rows = t.constant(places, "its index")
    out = t.take(weight, 0, rows.reshape(-1).tolist())
    return t.reshape(out, (*rows.shape, *t.shape(weight)[1:]))


@handles("index", "_unsafe_index")
def index(t: Translation, x, indices):
    """x[..., i, ...] with constant indices; one index alone selects along its axis."""
    used = [axis for axis, i in enumerate(indices) if i is not None]
    axis = used[0]
    places = t.constant(indices[axis], "its index")
    if len(used) > 1 or places.dtype == torch.bool and places.dim() > 1:
        return moved(t)
    places = places.nonzero()[:, 0] if places.dtype == torch.bool else places
    shape = t.shape(x)
    out = t.take(x, axis, [int(p) % shape[axis] for p in places.reshape(-1)])
    return t.reshape(out, (*shape[:axis], *places.shape, *shape[axis + 1 :]))


@handles("copy", "fill")
def copy(t: Translation, x, source, *_):
    """All of x written over."""
    shape = t.shape(x)
    node = t.index(source)
    return node if t.shape(node) == shape else t.add(ops.Expand(shape), node)


@handles("gather", "take", "diagonal", "diagonal_copy", "rot90", "unfold", "unfold_copy", "im2col", "diag_embed",
         "diag", "select_scatter", "slice_scatter", "diagonal_scatter", "index_put", "_unsafe_index_put", "scatter",
         "index_copy")  # fmt: skip
def moved(t: Translation, *_, **__):
    """The same call on the places of the elements, counted from 1; what the call fills in itself is 0: a zero."""
    name, arguments = t.node.target.name(), (t.node.args, dict(t.node.kwargs))
    if name in ("aten::scatter.value", "aten::scatter.value_reduce", "aten::scatter.reduce") or (
        "index_put" in name and (t.node.args[3:] == (True,) or t.node.kwargs.get("accumulate"))
    ):
        raise Unsupported("it adds up, or writes a plain number: only moves of elements are supported")
    sources: list = []
    count = 1

    def places_of(argument: torch.fx.Node) -> torch.Tensor:
        nonlocal count
        if not argument.meta["val"].is_floating_point():
            return t.constant(argument, "an index")
        shape = t.shape(argument)
        sources.append(argument)
        first, count = count, count + prod(shape)
        return torch.arange(first, count, dtype=torch.float64).reshape(shape)

    args, kwargs = torch.fx.node.map_arg(arguments, places_of)
    with torch.no_grad():
        places = t.node.target(*args, **kwargs).long() - 1
    return t.pick(sources, places)
