"""Binaries that say on which piece of its function each element is: exact for lines, polygons around smooth functions.

Two lines that meet need one binary (big-M rows, as tight as the bounds: Tjeng et al. 2019). All else is the convex hull
of a union: z and y are sums of what each piece has of them, which is 0 but for the piece that holds (Balas 1979).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from absdom.arithmetic import numbers
from absdom.domains.encoded.lines import Line, add_lines, distinct_lines
from absdom.encoding import Choice, Size


class Pieces(NamedTuple):
    """The affine pieces of elements, side by side: `owner` "P" is the number of the element, in order."""

    owner: np.ndarray
    start: np.ndarray
    end: np.ndarray
    slope: np.ndarray
    bias: np.ndarray

    def of(self, chosen: np.ndarray) -> tuple[Pieces, np.ndarray]:
        """The pieces of the `chosen` elements, numbered anew, and which elements these are."""
        number = np.cumsum(chosen) - 1
        kept = chosen[self.owner]
        return Pieces(number[self.owner[kept]], *(t[kept] for t in self[1:])), np.flatnonzero(chosen)

    def groups(self, count: int) -> list[np.ndarray]:
        """The positions of the pieces of each element."""
        return np.split(np.arange(len(self.owner)), np.cumsum(np.bincount(self.owner, minlength=count))[:-1])


class Kinds(NamedTuple):
    """How elements "m" are encoded, as masks: by one line, by two that meet, by a union of lines, or of segments.

    Elements of which too little is known are neither.
    """

    pieces: Pieces
    single: np.ndarray
    double: np.ndarray
    union: np.ndarray
    smooth: np.ndarray


def kinds_of(op, lower: np.ndarray, upper: np.ndarray) -> Kinds:
    """The pieces of elements with these bounds."""
    finite = np.isfinite(lower) & np.isfinite(upper)
    found = [op.pieces(float(a), float(b)) if f else () for a, b, f in zip(lower, upper, finite, strict=True)]
    count = np.array([len(p) for p in found], dtype=np.int64)
    flat = np.array([piece for p in found for piece in p], dtype=np.float64).reshape(-1, 3)
    owner = np.repeat(np.arange(len(found)), count)
    first = owner != np.concatenate([[-1], owner])[:-1]
    pieces = Pieces(owner, np.where(first, lower[owner], np.roll(flat[:, 0], 1)), *flat.T)
    exact = np.bincount(owner, ~np.isfinite(flat).all(1), minlength=len(found)) == 0
    begins, ends = (pieces.slope * at + pieces.bias for at in (pieces.start, pieces.end))
    apart = np.bincount(owner, ~first & (begins != np.roll(ends, 1)), minlength=len(found)) > 0
    double = exact & (count == 2) & ~apart
    return Kinds(pieces, exact & (count == 1), double, exact & (count > 1) & ~double, finite & (count == 0))


def predicted(op, kinds: Kinds, lower: np.ndarray, upper: np.ndarray, segments: int) -> Size:
    """At least what `add_pieces` adds."""
    one, two, some = (int(t.sum()) for t in kinds[1:4])
    parts = int(kinds.union[kinds.pieces.owner].sum())
    total = Size(two + 2 * parts, one + 4 * two + 2 * parts + 3 * some, 2 * one + 10 * two + 8 * parts + 2 * some, two)
    total = total + Size(binaries=parts)
    rest = kinds.smooth
    if segments > 1 and rest.any():
        ends = _segments(op, lower[rest], upper[rest], segments)
        lines = sum(int(line.new.sum()) for line in distinct_lines(op, *map(_tensor, ends)))
        parts = segments * int(rest.sum())
        size = Size(3 * parts, 4 * parts + lines + 3 * int(rest.sum()), 11 * parts + 3 * lines + 2 * int(rest.sum()))
        total = total + size + Size(binaries=parts)
    return total


def add_pieces(builder, op, lower, upper, source, value, lines: list[Line], node) -> None:
    """Pieces of elements with columns `source` -> `value` "m" and bounds of the source; `lines` are those they have."""
    kinds, segments = kinds_of(op, lower, upper), builder.style.segments if lines else 0
    pieces, chosen = kinds.pieces.of(kinds.single)
    add_lines(builder, value[chosen], source[chosen], pieces.slope, pieces.bias, 0.0)
    if kinds.double.any():
        pieces, chosen = kinds.pieces.of(kinds.double)
        held = [line.at(chosen) for line in lines]
        _two_pieces(builder, pieces, source[chosen], value[chosen], held, node)
    if kinds.union.any():
        pieces, chosen = kinds.pieces.of(kinds.union)
        _union_of_lines(builder, pieces, source[chosen], value[chosen], node)
    rest = kinds.smooth
    builder.complete &= bool((kinds.single | kinds.double | kinds.union).all())
    if segments > 1 and rest.any():
        _union_of_polygons(builder, op, lower[rest], upper[rest], source[rest], value[rest], node)


def _two_pieces(builder, pieces: Pieces, source, value, lines: list[Line], node: int) -> None:
    """Binary 1 is the second piece. Convex: y <= left z + b + above a, y <= right z + b' + below (1 - a), y >= both."""
    lower, (left, right), (left_bias, right_bias) = pieces.start[::2], _pair(pieces.slope), _pair(pieces.bias)
    middle, end = _pair(pieces.end)
    binary = builder.binaries(len(lower), node)
    convex = np.where(left <= right, 1.0, -1.0)

    # What one piece's line misses at the far end of the other one, rounded up.
    def gap(at):
        parts = np.stack([right * at, -left * at, right_bias, -left_bias])
        return np.abs(parts.sum(0)) + 2.0**-50 * np.abs(parts).sum(0) + 2.0**-1000

    above, below, k = gap(end), gap(lower), np.arange(len(lower))
    for slope, bias, step, side, slack in (
        (left, left_bias, -convex * above, left_bias, np.zeros(len(k))),
        (right, right_bias, convex * below, right_bias + convex * below, 2.0**-50 * (np.abs(right_bias) + below)),
    ):
        free = np.full(len(k), np.inf)
        builder.add_rows(
            np.tile(k, 3), np.concatenate([value, source, binary]), np.concatenate([np.ones(len(k)), -slope, step]),
            np.where(convex > 0, -free, side), np.where(convex > 0, side, free), slack,
        )  # fmt: skip
        missing = np.ones(len(k), dtype=bool)
        for line in lines:
            near = np.abs(line.bias - bias) <= 2.0**-40 * (1 + np.abs(bias))
            missing &= ~((line.side == convex) & (line.slope == slope) & near)
        for sign in (1.0, -1.0):
            new = missing & (convex == sign)
            add_lines(builder, value[new], source[new], slope[new], bias[new], sign)
    for j in range(len(k)):
        builder.choose(
            Choice(
                "pieces", binary[j : j + 1], int(value[j]), source[j : j + 1], pieces.end[2 * j : 2 * j + 2],
                lines=np.stack([pieces.slope[2 * j : 2 * j + 2], pieces.bias[2 * j : 2 * j + 2]], 1),
            )
        )  # fmt: skip


def _pair(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return t[::2], t[1::2]


def _union_of_lines(builder, pieces: Pieces, source, value, node: int) -> None:
    """start a <= z_k <= end a, z = sum z_k, sum a = 1, y = sum (slope z_k + bias a)."""
    binary, part = _parts(builder, pieces.owner, pieces.start, pieces.end, source, node)
    k = np.arange(len(value))
    builder.add_rows(
        np.concatenate([k, pieces.owner, pieces.owner]), np.concatenate([value, part, binary]),
        np.concatenate([np.ones(len(k)), -pieces.slope, -pieces.bias]), np.zeros(len(k)), np.zeros(len(k)),
    )  # fmt: skip
    for j, own in enumerate(pieces.groups(len(k))):
        lines = np.stack([pieces.slope[own], pieces.bias[own]], 1)
        builder.choose(
            Choice("pieces", binary[own], int(value[j]), source[j : j + 1], pieces.end[own], part[None, own], lines)
        )


def _parts(builder, owner, start, end, source, node) -> tuple[np.ndarray, np.ndarray]:
    """The binaries a_k, of which one is 1, and the parts of z between start a_k and end a_k that add up to it."""
    binary = builder.binaries(len(owner), node)
    part = builder.columns(np.minimum(start, 0), np.maximum(end, 0), node)
    _within(builder, part, binary, start, end)
    k = np.arange(len(source))
    zero, one = np.zeros(len(k)), np.ones(len(k))
    builder.add_rows(
        np.concatenate([k, owner]), np.concatenate([source, part]),
        np.concatenate([one, -np.ones(len(owner))]), zero, zero,
    )  # fmt: skip
    builder.add_rows(owner, binary, np.ones(len(owner)), one, one)
    return binary, part


def _within(builder, part, binary, start, end) -> None:
    for limit, side in ((start, 1.0), (end, -1.0)):
        add_lines(builder, part, binary, limit, np.zeros(len(part)), side)


def _segments(op, lower, upper, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The ends "m * count" of equal parts of the intervals, cut where the curvature changes rather than next to it."""
    share = np.arange(count + 1) / count
    cuts = lower[:, None] + (upper - lower)[:, None] * share
    cuts = np.clip(cuts, lower[:, None], upper[:, None])
    cuts[:, -1] = upper
    for point in getattr(op, "breaks", ()) if count > 1 else ():
        rows = np.flatnonzero((lower < point) & (point < upper))
        cuts[rows, 1 + np.abs(cuts[rows, 1:-1] - point).argmin(1)] = point
    cuts.sort(1)
    return cuts[:, :-1].ravel(), cuts[:, 1:].ravel()


def _tensor(t: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(t)[None]


def _union_of_polygons(builder, op, lower, upper, source, value, node: int) -> None:
    """As for lines, with y = sum y_k, where y_k lies between the lines of its segment and within its image."""
    count = builder.style.segments
    start, end = _segments(op, lower, upper, count)
    bottom, top = (numbers(t) for t in op.image(_tensor(start), _tensor(end)))
    fine = np.isfinite(np.stack([start, end, bottom, top])).all(0).reshape(-1, count).all(1)
    kept, source, value = np.repeat(fine, count), source[fine], value[fine]
    start, end, bottom, top = start[kept], end[kept], bottom[kept], top[kept]
    owner = np.repeat(np.arange(len(value)), count)
    binary, part = _parts(builder, owner, start, end, source, node)
    height = builder.columns(np.minimum(bottom, 0), np.maximum(top, 0), node)
    _within(builder, height, binary, bottom, top)
    k = np.arange(len(value))
    builder.add_rows(
        np.concatenate([k, owner]), np.concatenate([value, height]),
        np.concatenate([np.ones(len(k)), -np.ones(len(owner))]), np.zeros(len(k)), np.zeros(len(k)),
    )  # fmt: skip
    for line in distinct_lines(op, _tensor(start), _tensor(end)):
        new = np.flatnonzero(line.new)
        infinite = np.full(len(new), np.inf)
        sides = (np.zeros(len(new)), infinite) if line.side > 0 else (-infinite, np.zeros(len(new)))
        builder.add_rows(
            np.tile(np.arange(len(new)), 3), np.concatenate([height[new], part[new], binary[new]]),
            np.concatenate([np.ones(len(new)), -line.slope[new], -line.bias[new]]), *sides,
        )  # fmt: skip
    for j in range(len(k)):
        own = slice(j * count, (j + 1) * count)
        builder.choose(
            Choice(
                "pieces", binary[own], int(value[j]), source[j : j + 1], end[own], np.stack([part[own], height[own]])
            )
        )
