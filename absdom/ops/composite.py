"""Ops that are names for compositions: the pass `decompose` writes them out, so no domain needs a rule for them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import prod

import torch

from absdom.ir.op import Composite
from absdom.ops import affine, functions, multivariate, shape
from absdom.registry import register_op


def window_counts(size, kernel, strides, dilations, before, after, ceil: bool):
    """Number of windows per axis; with `ceil`, one more that starts inside the input or its left padding."""
    counts = []
    for n, k, s, d, p, q in zip(size, kernel, strides, dilations, before, after, strict=True):
        room = n + p + q - d * (k - 1) - 1
        count = (-(-room // s) if ceil else room // s) + 1
        if ceil and (count - 1) * s >= n + p:
            count -= 1
        counts.append(count)
    return tuple(counts)


@dataclass(frozen=True)
class Pool(Composite):
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    ceil: bool = False

    def _counts(self, size):
        return window_counts(size, self.kernel, self.strides, self.dilations, self.before, self.after, self.ceil)

    def infer(self, x):
        if x.rank != len(self.kernel) + 2:
            raise ValueError(f"a pooling over {len(self.kernel)} axes does not fit {x}")
        counts = self._counts(x.shape[2:])
        if min(counts) < 1:
            raise ValueError(f"the window {self.kernel} is larger than the padded input {x}")
        if self.has_empty_window(x.shape[2:]):
            raise ValueError(f"a window of the pooling over {x} lies wholly in the padding")
        return x.with_shape((*x.shape[:2], *counts))

    def has_empty_window(self, size) -> bool:
        """Does some window see padding only? Then there is no maximum, and nothing to average."""
        axes = zip(size, self._counts(size), self.kernel, self.strides, self.dilations, self.before, strict=True)
        return any(
            not any(0 <= o * s - p + d * i < n for i in range(k)) for n, count, k, s, d, p in axes for o in range(count)
        )

    def _taps(self, size):
        """Per output site, the list of input coordinates inside the image, and their number with padding."""
        for site in itertools.product(*map(range, self._counts(size))):
            per_axis, padded = [], 1
            for o, n, k, s, d, p, q in zip(
                site, size, self.kernel, self.strides, self.dilations, self.before, self.after, strict=True
            ):
                places = [o * s - p + d * i for i in range(k)]
                per_axis.append([i for i in places if 0 <= i < n])
                padded *= sum(-p <= i < n + q for i in places)
            yield list(itertools.product(*per_axis)), padded


@register_op
@dataclass(frozen=True)
class MaxPool(Pool):
    """Gather the windows, then the maximum over an axis. A tap in the padding repeats another tap of its window."""

    def _windows(self, size):
        strides = [prod(size[i + 1 :]) for i in range(len(size))]
        rows = []
        for taps, _ in self._taps(size):
            flat = [sum(a * b for a, b in zip(tap, strides, strict=True)) for tap in taps]
            rows.append(flat + [flat[0]] * (prod(self.kernel) - len(flat)))
        index = torch.tensor(rows)
        return index.flatten(), index

    def decompose(self, builder, x):
        t = builder.type(x)
        flat, index = self._windows(t.shape[2:])
        out = builder.add(shape.Reshape((*t.shape[:2], prod(t.shape[2:]))), x)
        out = builder.add(shape.Take(2, tuple(flat.tolist())), out)
        out = builder.add(shape.Reshape((*t.shape[:2], *index.shape)), out)
        out = builder.add(multivariate.ReduceMax(3), out)
        return builder.add(shape.Reshape(self.infer(t).shape), out)


@register_op
@dataclass(frozen=True)
class AveragePool(Pool):
    """Sum over windows (a depthwise convolution with ones), divided by the exact counts."""

    count_padding: bool = False

    def decompose(self, builder, x):
        t = builder.type(x)
        size, counts = t.shape[2:], self._counts(t.shape[2:])
        # With `ceil`, windows reach past the padding: zeros there change no sum.
        after = tuple(
            (o - 1) * s + d * (k - 1) + 1 - n - p
            for n, o, k, s, d, p in zip(
                size, counts, self.kernel, self.strides, self.dilations, self.before, strict=True
            )
        )
        kept = tuple(min(n, n + a) for n, a in zip(size, after, strict=True))
        for axis, (n, m) in enumerate(zip(size, kept, strict=True)):
            if m < n:  # rows that no window reaches
                x = builder.add(shape.Slice(axis + 2, 0, m), x)
        after = tuple(max(a, 0) for a in after)
        channels = t.shape[1]
        ones = builder.param(torch.ones(channels, 1, *self.kernel, dtype=torch.float32), "ones")
        conv = affine.Conv(self.strides, self.dilations, channels, self.before, after)
        numbers = [padded if self.count_padding else len(taps) for taps, padded in self._taps(size)]
        divisor = builder.param(torch.tensor(numbers, dtype=torch.float32).reshape(1, 1, *counts), "counts")
        return builder.add(affine.Div(), builder.add(conv, x, ones), divisor)


@register_op
@dataclass(frozen=True)
class ReduceMean(Composite):
    """Sum over axes (which stay as size 1), divided by their exact number of elements."""

    axes: tuple[int, ...]

    def infer(self, x):
        return affine.ReduceSum(self.axes).infer(x)

    def decompose(self, builder, x):
        count = prod(builder.type(x).shape[a] for a in self.axes)
        divisor = builder.param(torch.tensor([float(count)]), "count")
        return builder.add(affine.Div(), builder.add(affine.ReduceSum(self.axes), x), divisor)


@register_op
@dataclass(frozen=True)
class BatchNorm(Composite):
    """(x - mean) / sqrt(var + epsilon) * gamma + beta per channel; inputs x, gamma, beta, mean, var.

    The factor gamma / sqrt(var + epsilon) is computed in the prologue, where its rounding is tracked.
    """

    epsilon: float = 1e-5

    def infer(self, x, *stats):
        if any(s.shape != (x.shape[1],) for s in stats):
            raise ValueError(f"statistics of {stats[0]} do not fit the channels of {x}")
        return x

    def decompose(self, builder, x, gamma, beta, mean, var):
        t = builder.type(x)
        per_channel = shape.Reshape((t.shape[1], *[1] * (t.rank - 2)))
        epsilon = builder.param(torch.tensor([self.epsilon], dtype=torch.float64), "epsilon")
        deviation = builder.add(functions.Sqrt(), builder.add(affine.Add(), var, epsilon))
        factor = builder.add(affine.Div(), gamma, deviation)
        shift = builder.add(affine.Sub(), beta, builder.add(affine.Mul(), mean, factor))
        scaled = builder.add(affine.Mul(), x, builder.add(per_channel, factor))
        return builder.add(affine.Add(), scaled, builder.add(per_channel, shift))
