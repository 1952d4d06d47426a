"""DFT and STFT: matrices of cosines and sines that are known to 45 digits."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache
from math import prod

import numpy as np

from absdom import ops
from absdom.errors import ModelError
from absdom.frontends.onnx_ops import translates
from absdom.frontends.onnx_resize import exact_param
from absdom.frontends.onnx_shapes import cut
from absdom.frontends.onnx_structure import check_size
from absdom.frontends.onnx_values import Call, Problem, Translation

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494")
DIGITS = 45
MOST_COEFFICIENTS = 2**18


@cache
def turn(m: int, n: int) -> tuple[Fraction, Fraction]:
    """(cos, sin) of 2 pi m / n, by their Taylor series, rounded to 45 digits."""
    with localcontext() as context:
        context.prec = DIGITS + 15
        angle = 2 * PI * ((m % n) - (n if 2 * (m % n) > n else 0)) / n
        term, k, sums = Decimal(1), 0, [Decimal(0), Decimal(0)]
        while abs(term) > Decimal(10) ** -(DIGITS + 5) or k < 4:
            sums[k % 2] += term if k % 4 < 2 else -term
            k += 1
            term = term * angle / k
        place = Decimal(10) ** -DIGITS
        return Fraction(sums[0].quantize(place)), Fraction(sums[1].quantize(place))


def fourier_matrix(n: int, parts: int, length: int, inverse: bool, onesided: bool) -> list[list[Fraction]]:
    """Rows (frequency, real and imaginary), columns (place, one part or two); `length` is that of the transform.

    Inverse and onesided: real values from the first half of a spectrum that is its own mirror image, one row each.
    """
    rows, scale = [], Fraction(1, length if inverse else 1)
    if inverse and onesided:
        for j in range(length):
            row = []
            for k in range(n):
                cos, sin = turn(j * k, length)
                twice = 0 if k > length // 2 else 1 if k == 0 or 2 * k == length else 2
                row += [twice * scale * cos, -twice * scale * sin][:parts]
            rows.append(row)
        return rows
    for k in range(length // 2 + 1 if onesided else length):
        real, imaginary = [], []
        for j in range(n):
            cos, sin = turn(j * k, length) if j < length else (Fraction(0), Fraction(0))
            sin = -sin if not inverse else sin
            real += [scale * cos, -scale * sin][:parts]
            imaginary += [scale * sin, scale * cos][:parts]
        rows += [real, imaginary]
    return rows


def transform(t: Translation, call: Call, x: int, axis: int, length: int, inverse: bool, onesided: bool) -> int:
    """The transform along one axis of a tensor whose last axis holds real and imaginary parts, or real ones only."""
    shape = t.builder.type(x).shape
    rank, n, parts = len(shape), shape[axis], shape[-1]
    if axis == rank - 1 or parts not in (1, 2) or length < 1:
        raise ModelError(f"{t.where}: {call.source} transforms axis {axis} of {shape} to length {length}")
    bins = length // 2 + 1 if onesided and not inverse else length
    out_parts = 1 if inverse and onesided else 2
    if bins * out_parts * n * parts > MOST_COEFFICIENTS:
        raise Problem(f"a transform with {bins * out_parts * n * parts} coefficients is too large")
    order = (*(a for a in range(rank) if a not in (axis, rank - 1)), axis, rank - 1)
    outer = tuple(shape[a] for a in order[:-2])
    check_size(t, call, (*outer, bins, out_parts))
    flat = t.reshape(t.add(ops.Permute(order), x), (prod(outer), n * parts))
    rows = fourier_matrix(n, parts, length, inverse, onesided)
    matrix = exact_param(t, [list(column) for column in zip(*rows, strict=True)], f"{call.name}.waves")
    out = t.reshape(t.add(ops.MatMul(), flat, matrix), (*outer, bins, out_parts))
    return t.add(ops.Permute(tuple(order.index(a) for a in range(rank))), out)


@translates("DFT")
def dft(t: Translation, call: Call):
    shape = t.shape(call, 0)
    if t.opset < 20:
        axis = call.get("axis", 1)
    else:
        axis = t.integer(call, 2, "axis") if call.has(2) else -2
    axis = t.axis(call, axis, len(shape))
    inverse, onesided = bool(call.get("inverse", 0)), bool(call.get("onesided", 0))
    if call.has(1):
        length = t.integer(call, 1, "dft_length")
    else:
        length = 2 * (shape[axis] - 1) if inverse and onesided else shape[axis]
    return transform(t, call, t.node(call, 0), axis, length, inverse, onesided)


@translates("STFT")
def stft(t: Translation, call: Call):
    """The transforms of frames "B L parts" -> "B frames bins 2", each of which is multiplied by the window before."""
    x, shape = t.node(call, 0), t.shape(call, 0)
    step = t.integer(call, 1, "frame_step")
    window = t.constant(call, 2, "window").reshape(-1) if call.has(2) else None
    length = t.integer(call, 3, "frame_length") if call.has(3) else len(window) if window is not None else 0
    if len(shape) != 3 or step < 1 or not 1 <= length <= shape[1] or (window is not None and len(window) != length):
        raise ModelError(f"{t.where}: {call.source} has frames of {length} every {step} for a signal of {shape}")
    count = (shape[1] - length) // step + 1
    check_size(t, call, (shape[0], count, length, shape[2]))
    places = (np.arange(count)[:, None] * step + np.arange(length)).reshape(-1)
    frames = t.reshape(cut(t, x, 1, (int(p) for p in places)), (shape[0], count, length, shape[2]))
    if window is not None:
        frames = t.add(ops.Mul(), frames, t.reshape(t.node(call, 2), (length, 1)))
    return transform(t, call, frames, 2, length, False, bool(call.get("onesided", 1)))
