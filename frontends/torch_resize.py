"""ATen calls that interpolate: one exact matrix per axis. Coordinates and weights are fractions, never rounded."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import torch

from absdom import ops
from absdom.frontends.resampling import halves, kernel
from absdom.frontends.torch_reduce import along
from absdom.frontends.torch_values import Index, Translation, Unsupported, handles

CUBIC = Fraction(-3, 4)  # torch's parameter of Keys' kernel


def weights(n: int, m: int, scale: Fraction, corners: bool, cubic: bool) -> list[list[Fraction]]:
    """Rows of the matrix "m n" that resizes one axis; what lies outside counts as the border."""
    rows = []
    for i in range(m):
        if corners:
            place = Fraction(i * (n - 1), m - 1) if m > 1 else Fraction(0)
        else:
            place = (i + Fraction(1, 2)) / scale - Fraction(1, 2)
            place = place if cubic else max(place, Fraction(0))
        row = [Fraction(0)] * n
        for tap in range(floor(place) - 1, floor(place) + 3):
            row[min(max(tap, 0), n - 1)] += kernel(tap - place, 3 if cubic else 1, CUBIC)
        rows.append(row)
    return rows


def matrix(t: Translation, rows: list[list[Fraction]]) -> Index:
    """A Param where float64 holds the fractions, else a sum of two, whose rounding the engine tracks."""
    high, low = halves(rows)
    node = t.param(torch.from_numpy(high), "weights")
    return node if low is None else t.add(ops.Add(), node, t.param(torch.from_numpy(low), "weights.rest"))


@handles("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d")
def interpolate(t: Translation, x, size, corners, *scales):
    """Called as (x, size, corners, scales) with a size or a list of scales, or as (x, size, corners, s, s, ..)."""
    count = len(t.shape(x)) - 2
    scales = list(scales[0]) if scales and isinstance(scales[0], (list, tuple)) else list(scales)
    scales = scales if len(scales) == count else [None] * count
    cubic = "bicubic" in t.node.target.name()
    node = t.index(x)
    for k, given in enumerate(scales):
        n, m = t.shape(node)[k + 2], t.node.meta["val"].shape[k + 2]
        scale = Fraction(m, n) if given is None else Fraction(float(given))
        if n == m and scale == 1:
            continue
        node = along(t, node, k + 2, matrix(t, weights(n, m, scale, bool(corners), cubic)))
    return node


@handles("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
def antialiased(t: Translation, *_, **__):
    raise Unsupported("antialias=True")
