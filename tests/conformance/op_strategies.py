"""Strategies for ops whose shapes or attributes no signature tells: convolutions, products, windows, moves."""

from __future__ import annotations

from math import inf, prod

import torch
from op_cases import Draws, Varying, strategy

from absdom import ops


def the(name: str):
    return getattr(ops, name)


# Activations with attributes


@strategy("LeakyRelu")
def leaky_relu(d: Draws, name):
    return ops.LeakyRelu(d.pick([0.01, 0.5, 1.7, -0.3, 0.0, 1.0])), [Varying(d.sizes(1, 4))]


@strategy("Clip")
def clip(d: Draws, name):
    ends = [(-0.5, 0.7), (-inf, 0.3), (-0.2, inf), (0.0, 6.0), (1.0, 1.0), (-1e6, 1e6), (0.5, 0.5 + 1e-9)]
    return ops.Clip(*d.pick(ends)), [Varying(d.sizes(1, 4))]


@strategy("Elu")
def elu(d: Draws, name):
    return ops.Elu(d.pick([1.0, 0.3, 2.5, -0.4])), [Varying(d.sizes(1, 4))]


@strategy("Power")
def power(d: Draws, name):
    op = ops.Power(d.pick([2.0, 3.0, -1.0, -2.0, 4.0, 5.0, -3.0, 0.5, -0.5, 1.5, 2.5, 0.1]))
    side = d.pick([(0.0, inf), (-inf, 0.0), op.domain]) if op.exponent % 1 == 0 else op.domain
    return op, [Varying(d.sizes(1, 4), side)]


# Sums, scalings, products


def pair_of_shapes(d: Draws):
    """Two shapes that broadcast, either one the smaller."""
    shape = d.sizes(1, 4)
    other = tuple(1 if d.integer(0, 3) == 3 else s for s in shape)[d.integer(0, len(shape) - 1) :]
    shape = tuple(1 if d.integer(0, 5) == 5 else s for s in shape)
    return (shape, other) if d.yes() else (other, shape)


def operands(d: Draws, vary: str, shapes) -> list:
    return [Varying(s) if v == "v" else d.weights(*s) for s, v in zip(shapes, vary, strict=True)]


@strategy("Add", "Sub", "Mul")
def two_of_any_kind(d: Draws, name):
    return the(name)(), operands(d, d.pick(["vv", "vp", "pv"]), pair_of_shapes(d))


@strategy("Scale")
def scale(d: Draws, name):
    return ops.Scale(), operands(d, "vp", pair_of_shapes(d))


@strategy("Div", "Quotient", "Divide")
def quotient(d: Draws, name):
    vary = {"Div": d.pick(["vv", "vp", "pv"]), "Quotient": d.pick(["vv", "pv"]), "Divide": "vp"}[name]
    shapes = pair_of_shapes(d)
    above = Varying(shapes[0]) if vary[0] == "v" else d.weights(*shapes[0])
    side = d.pick([(0.0, inf), (-inf, 0.0), (-inf, inf)])  # around zero nothing is known, and nothing may be claimed
    below = Varying(shapes[1], side) if vary[1] == "v" else d.positive(*shapes[1]) * d.pick([1, -1])
    return the(name)(), [above, below]


@strategy("MatMul", "Linear", "LinearLeft", "MatrixProduct")
def matrix_product(d: Draws, name):
    n, k, m = (d.integer(1, 3) for _ in range(3))
    left, right = d.pick([((), ()), ((2,), ()), ((), (2,)), ((2,), (2,)), ((1,), (3,)), ((2, 1), (2,))])
    vary = {"MatMul": d.pick(["vv", "vp", "pv"]), "Linear": "vp", "LinearLeft": "pv", "MatrixProduct": "vv"}[name]
    made = operands(d, vary, ((*left, n, k), (*right, k, m)))
    if name == "Linear" and d.yes():
        batch = torch.broadcast_shapes(left, right)
        made.append(d.weights(*d.pick([(m,), (n, m), (1,), (*batch, 1, m)])))
    return the(name)(), made


# Reductions


@strategy("Softmax", "LogSoftmax", "LogSumExp", "ReduceMax")
def over_one_axis(d: Draws, name):
    shape = d.sizes(1, 4)
    return the(name)(d.integer(0, len(shape) - 1)), [Varying(shape)]


@strategy("Rescale")
def rescale(d: Draws, name):
    op = ops.Rescale(d.integer(1, 5), d.pick([1e-5, 0.0, 1e-12, 1.0]), d.pick([0.0, 1e-9]))
    return op, operands(d, d.pick(["vv", "vp", "pv"]), pair_of_shapes(d))


@strategy("RmsNorm", "Standardise")
def norm(d: Draws, name):
    shape = d.sizes(1, 3)
    axes = tuple(a for a in range(len(shape)) if d.yes()) or (d.integer(0, len(shape) - 1),)
    attributes = [axes, d.pick([1e-5, 0.0, 1e-12, 1.0]), d.pick([0.0, 1e-9])]
    if name == "Standardise" and attributes[1:] == [0.0, 0.0]:
        attributes[1] = 1e-3  # a constant has no direction: there the value jumps, and centring rounds across it
    return the(name)(*attributes, *([d.yes()] if name == "RmsNorm" else [])), [Varying(shape)]


# Windows


def windows(d: Draws, spatial: int, size):
    """(kernel, strides, dilations, before, after) that fit; strides may exceed the kernel, pads may differ."""
    while True:
        kernel, strides = (tuple(d.integer(1, 3) for _ in range(spatial)) for _ in range(2))
        dilations = tuple(d.integer(1, 2) for _ in range(spatial))
        before, after = (tuple(d.integer(0, 2) for _ in range(spatial)) for _ in range(2))
        room = [n + b + a - e * (k - 1) for n, b, a, e, k in zip(size, before, after, dilations, kernel, strict=True)]
        if min(room) >= 1:
            return kernel, strides, dilations, before, after


def image_size(d: Draws, spatial: int):
    return tuple(d.integer(1, (8, 4, 3)[spatial - 1]) for _ in range(spatial))


@strategy("Conv")
def convolution(d: Draws, name):
    spatial = d.pick([2, 1, 3])
    size = image_size(d, spatial)
    kernel, strides, dilations, before, after = windows(d, spatial, size)
    groups = d.pick([1, 2, 3] if spatial < 3 else [1])
    channels, filters = d.integer(1, 2 if groups == 1 else 1), groups * d.integer(1, 2)
    x = Varying((d.pick([1, 1, 2]), channels * groups, *size))
    weights = d.weights(filters, channels, *kernel, scale=(channels * prod(kernel)) ** -0.5)
    bias = [d.weights(filters)] if d.yes() else []
    return ops.Conv(strides, dilations, groups, before, after), [x, weights, *bias]


@strategy("ConvTranspose")
def transposed_convolution(d: Draws, name):
    spatial = d.pick([2, 1, 3])
    size = tuple(d.integer(1, (4, 3, 2)[spatial - 1]) for _ in range(spatial))
    kernel, strides = (tuple(d.integer(1, 3) for _ in range(spatial)) for _ in range(2))
    dilations = tuple(d.integer(1, 2) for _ in range(spatial))
    full = [(n - 1) * s + e * (k - 1) + 1 for n, s, e, k in zip(size, strides, dilations, kernel, strict=True)]
    # What is kept may start before the result, or end behind it.
    before = tuple(d.integer(-1, min(2, f - 1)) for f in full)
    kept = tuple(d.integer(1, min(f + 1, (9, 5, 3)[spatial - 1])) for f in full)
    groups = d.pick([1, 2, 3] if spatial < 3 else [1])
    channels, filters = groups * d.integer(1, 2), d.integer(1, 2)
    weights = d.weights(channels, filters, *kernel, scale=channels**-0.5)
    bias = [d.weights(filters * groups)] if d.yes() else []
    op = ops.ConvTranspose(strides, dilations, groups, before, kept)
    return op, [Varying((d.pick([1, 1, 2]), channels, *size)), weights, *bias]


@strategy("MaxPool", "AveragePool")
def pool(d: Draws, name):
    spatial = d.pick([2, 1, 3])
    size = image_size(d, spatial)
    kernel, strides, dilations, before, after = windows(d, spatial, size)
    # No window may miss the image: pads below the kernel, and no dilation that jumps over the image.
    kernel = tuple(min(k, n) for k, n in zip(kernel, size, strict=True))
    before, after = (tuple(min(p, k - 1) for p, k in zip(pads, kernel, strict=True)) for pads in (before, after))
    dilations = tuple(1 if p + q or (k - 1) * e >= n else e
                      for n, k, e, p, q in zip(size, kernel, dilations, before, after, strict=True))  # fmt: skip
    more = {"count_padding": d.yes()} if name == "AveragePool" else {}
    op = the(name)(kernel, strides, dilations, before, after, ceil=d.yes(), **more)
    return op, [Varying((1, d.integer(1, 2), *size))]


@strategy("BatchNorm")
def batch_norm(d: Draws, name):
    channels = d.integer(1, 3)
    shape = (d.integer(1, 2), channels, *d.sizes(0, 2))
    statistics = [d.weights(channels) for _ in range(3)] + [d.positive(channels, low=1e-6)]
    return ops.BatchNorm(d.pick([1e-5, 1e-3, 0.1])), [Varying(shape), *statistics]


# Moves


@strategy("Concat")
def concat(d: Draws, name):
    shape = d.sizes(1, 4)
    axis = d.integer(0, len(shape) - 1)
    parts = []
    for kind in d.pick(["vv", "vp", "pv", "vpv", "v"]):
        own = (*shape[:axis], d.integer(1, 3), *shape[axis + 1 :])
        parts.append(Varying(own) if kind == "v" else d.weights(*own))
    return ops.Concat(axis), parts


@strategy("Slice")
def slices(d: Draws, name):
    shape = d.sizes(1, 3, largest=5)
    axis = d.integer(0, len(shape) - 1)
    start = d.integer(0, shape[axis] - 1)
    return ops.Slice(axis, start, d.integer(start + 1, shape[axis]), d.integer(1, 3)), [Varying(shape)]


@strategy("Take")
def take(d: Draws, name):
    shape = d.sizes(1, 3)
    axis = d.integer(0, len(shape) - 1)
    return ops.Take(axis, tuple(d.integer(0, shape[axis] - 1) for _ in range(d.integer(1, 4)))), [Varying(shape)]


@strategy("Pad")
def pad(d: Draws, name):
    shape = d.sizes(1, 3)
    return ops.Pad(*(tuple(d.integer(0, 2) for _ in shape) for _ in range(2))), [Varying(shape)]


@strategy("Expand")
def expand(d: Draws, name):
    shape = tuple(1 if d.yes() else s for s in d.sizes(1, 3))
    return ops.Expand((*d.sizes(0, 1, 2), *(2 if s == 1 else s for s in shape))), [Varying(shape)]


@strategy("Permute")
def permute(d: Draws, name):
    shape = d.sizes(1, 4)
    return ops.Permute(tuple(int(a) for a in d.random.permutation(len(shape)))), [Varying(shape)]


@strategy("Reshape")
def reshape(d: Draws, name):
    shape = d.sizes(1, 4)
    n = prod(shape)
    factor = d.pick([f for f in (1, 2, 3, 4, n) if n % f == 0])
    return ops.Reshape(d.pick([(n,), (factor, n // factor), (1, n // factor, factor)])), [Varying(shape)]


# Choices: an index is any value, meant as the whole number next to it


@strategy("Maximum", "Equal")
def two_to_choose_from(d: Draws, name):
    return the(name)(), operands(d, d.pick(["vv", "vp", "pv"]), pair_of_shapes(d))


@strategy("Where", "Select")
def where(d: Draws, name):
    shapes = d.pick([((2, 3), (2, 3), (2, 3)), ((3,), (2, 3), (1, 1)), ((2, 1), (3,), (1,)), ((1,), (2, 2), (2, 2))])
    truths = torch.from_numpy(d.random.integers(0, 2, shapes[0]).astype(float))
    kinds = d.pick(["vv", "vp", "pv"]) if name == "Select" else d.pick(["vv", "vp", "pv", "pp"])
    condition = truths if name == "Select" else Varying(shapes[0])
    return the(name)(), [condition, *operands(d, kinds, shapes[1:])]


@strategy("ArgMax", "TopValues", "TopIndices")
def ranking(d: Draws, name):
    shape = d.sizes(1, 3, largest=4)
    axis = d.integer(0, len(shape) - 1)
    rest = (d.yes(),) if name == "ArgMax" else (d.integer(1, shape[axis]), d.yes())
    return the(name)(axis, *rest), [Varying(shape)]


@strategy("Lookup")
def lookup(d: Draws, name):
    shape = d.sizes(1, 3)
    return ops.Lookup(d.integer(0, len(shape) - 1)), operands(d, d.pick(["vv", "pv"]), (shape, d.sizes(1, 2)))


@strategy("Window")
def window(d: Draws, name):
    return ops.Window(d.integer(1, 3), d.pick([0.0, -2.0])), operands(
        d, d.pick(["vv", "pv"]), ((d.integer(1, 4),), (1,))
    )


@strategy("Scatter")
def scatter(d: Draws, name):
    shape = d.sizes(1, 3)
    deep, many = d.integer(1, len(shape)), d.sizes(1, 2)
    return ops.Scatter(), operands(d, d.pick(["vvv", "pvp", "vpv"]), (shape, (*many, deep), (*many, *shape[deep:])))
