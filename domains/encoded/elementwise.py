"""Elementwise ops: lines below and above, at several slopes; pieces with binaries, or a quadratic form, where asked."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from absdom.arithmetic import numbers
from absdom.domain import EncodingRule
from absdom.domains.encoded.common import own_dual
from absdom.domains.encoded.lines import Line, add_lines, distinct_lines
from absdom.domains.encoded.pieces import add_pieces, kinds_of, predicted
from absdom.domains.encoded.planes import add_planes, plane_rows
from absdom.encoding import TINY, Size, gamma
from absdom.ir.op import Elementwise


class Parts(NamedTuple):
    """The elements "n" of a place by what they need: masks."""

    lines: list[Line]
    same: np.ndarray  # the element is the input's
    equal: np.ndarray  # f is one line
    straight: np.ndarray  # so it is, but for the rounding of its lines
    bent: np.ndarray


class ElementwiseRows(EncodingRule):
    """Constant elements need nothing; an op whose rule in the linear domain is its own is taken from that rule."""

    def needs(self, place, wanted):
        return (wanted & (place.output.lower != place.output.upper),)

    def _parts(self, place, wanted: np.ndarray) -> Parts:
        bounds, own = place.inputs[0], place.output
        rest = wanted & numbers(own.lower != own.upper).astype(bool)
        exact = rest & numbers(place.op.is_exact(bounds.lower, bounds.upper)).astype(bool)
        lines = distinct_lines(place.op, bounds.lower, bounds.upper)
        low, up = lines[:2]
        equal = exact & (low.slope == up.slope) & (low.bias == up.bias) & low.new
        same = equal & (low.slope == 1) & (low.bias == 0)
        return Parts(lines, same, equal & ~same, exact & ~equal, rest & ~exact)

    def count(self, place, wanted, style):
        wanted, op, segments = numbers(wanted).astype(bool), place.op, style.segments
        if own_dual(type(op), Elementwise) is not None:
            rows, segments = plane_rows(place), 0
            count = int(wanted.sum())
            total, bent = Size(count, rows * count, 2 * rows * count, layers=((count, 0),)), wanted
        else:
            lines, same, equal, straight, bent = self._parts(place, wanted)
            rows = int(equal.sum()) + sum(int((line.new & straight).sum()) for line in lines[:2])
            rows += sum(int((line.new & bent).sum()) for line in lines)
            layer = int((bent | straight).sum()), int((same | equal).sum())
            total = Size(int((wanted & ~same).sum()), rows, 2 * rows, layers=(layer,))
        if style.integers and bent.any():
            lower, upper = (numbers(t)[bent] for t in (place.inputs[0].lower, place.inputs[0].upper))
            total = total + predicted(op, kinds_of(op, lower, upper), lower, upper, segments)
        return total + Size(quadratics=int(bent.sum())) if style.quadratics else total

    def add(self, place, builder, columns, wanted, node):
        op, own, bounds, source = place.op, place.output, place.inputs[0], columns[0]
        low, high = numbers(own.lower), numbers(own.upper)
        if own_dual(type(op), Elementwise) is not None:
            out, lines = builder.columns_where(wanted, low, high, node), []
            rest = wanted & (low != high)
            add_planes(place, builder, columns, rest, out)
        else:
            lines, same, equal, straight, rest = self._parts(place, wanted)
            out = builder.columns_where(wanted & ~same, low, high, node)
            out[same] = source[same]
            add_lines(builder, out[equal], source[equal], lines[0].slope[equal], lines[0].bias[equal], 0.0)
            for k, line in enumerate(lines):
                where = np.flatnonzero(line.new & (rest if k > 1 else rest | straight))
                add_lines(builder, out[where], source[where], line.slope[where], line.bias[where], line.side)
        bent = np.flatnonzero(rest)
        if builder.style.integers and len(bent):
            ends = numbers(bounds.lower)[bent], numbers(bounds.upper)[bent]
            add_pieces(builder, op, *ends, source[bent], out[bent], [line.at(bent) for line in lines], node)
        if builder.style.quadratics and len(bent):
            add_forms(builder, place, bent, source[bent], out[bent], lines)
        return out


def add_forms(builder, place, bent: np.ndarray, source, value, lines: list[Line]) -> None:
    """The quadratic form of the op, or else the product of the distances from a line below and one above."""
    bounds, own = place.inputs[0], place.output
    found = place.op.quadratic(bounds.lower, bounds.upper)
    equality = found is not None
    size, reach = numbers(bounds.magnitude())[bent], numbers(own.magnitude())[bent]
    if equality:
        parts = [numbers(t.expand_as(bounds.lower))[bent] for t in found]
    elif lines:
        known = (lines[0].new & lines[1].new)[bent]
        bent, source, value, size, reach = (t[known] for t in (bent, source, value, size, reach))
        a, b, c, d = (t[bent] for line in lines[:2] for t in (line.slope, line.bias))
        parts = [np.ones(len(bent)), -(a + c), a * c, -(b + d), a * d + b * c, b * d]
    else:
        return
    with np.errstate(invalid="ignore", over="ignore"):
        yy, yz, zz, ly, lz, one = parts
        weight = np.abs(yy) * reach**2 + 2 * np.abs(yz) * reach * size + 2 * np.abs(zz) * size**2
        weight = weight + 2 * np.abs(ly) * reach + 4 * np.abs(lz) * size + np.abs(one)
        if not equality:
            # Cancellation in the sums of coefficients.
            weight = weight + (np.abs(a) + np.abs(c)) * reach * size + (np.abs(b) + np.abs(d)) * reach
            weight = weight + (np.abs(a * d) + np.abs(b * c)) * size
        slack = weight * gamma(4) + TINY * (1 + size + reach) ** 2
    fine = np.isfinite(np.stack([*parts, slack])).all(0)
    yy, yz, zz, ly, lz, one, slack, y, z = (t[fine] for t in (*parts, slack, value, source))
    form = np.arange(len(y))
    builder.add_forms(
        (np.tile(form, 3), np.concatenate([y, y, z]), np.concatenate([y, z, z]), np.concatenate([yy, yz, zz])),
        (np.tile(form, 2), np.concatenate([y, z]), np.concatenate([ly, lz])), one, equality, slack,
    )  # fmt: skip
