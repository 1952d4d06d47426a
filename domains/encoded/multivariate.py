"""Functions of several elements: planes; for maxima and minima each candidate, and products as quadratic forms."""

from __future__ import annotations

import numpy as np
import torch

from absdom.arithmetic import numbers
from absdom.domain import EncodingRule
from absdom.domains.encoded.common import one_hots, own_dual, sparse
from absdom.domains.encoded.planes import add_planes, plane_rows
from absdom.domains.interval import with_parameters
from absdom.encoding import Choice, Size, gamma
from absdom.ir.op import Block, Multivariate
from absdom.ops.shape import lead
from absdom.rows import Rows


class MultivariateRows(EncodingRule):
    """The planes of the linear domain; for maxima and minima also each candidate, exactly where binaries are asked."""

    def needs(self, place, wanted):
        if not place.op.extremum:
            return super().needs(place, wanted)
        hot = Rows.dense_rows(wanted.double(), 1)
        return tuple((members(hot, place, i).dense() != 0) if v else None for i, v in enumerate(place.at.varying))

    def count(self, place, wanted, style):
        wanted, op, width = wanted.flatten().cpu().numpy(), place.op, _width(place)
        count, entries = int(wanted.sum()), int(width[wanted].sum())
        rows = plane_rows(place)
        total = Size(count, rows * count, rows * (count + entries), layers=((count, 0),))
        if op.extremum:
            constants = sum(t.numel for t, v in zip(place.at.inputs, place.at.varying, strict=True) if not v)
            total = total + Size(columns=constants, rows=entries, entries=2 * entries)
            if style.integers:
                total = total + Size(entries, entries + count, 4 * entries, entries)
            else:
                total = total + Size(rows=entries + count, entries=3 * entries + count)
        if style.quadratics and (found := op.bilinear(place.at)) is not None:
            total = total + Size(entries=len(found[0]) + count, quadratics=count)
        return total

    def add(self, place, builder, columns, wanted, node):
        own, op = place.output, place.op
        out = builder.columns_where(wanted, numbers(own.lower), numbers(own.upper), node)
        add_planes(place, builder, columns, wanted, out)
        if op.extremum:
            bounds = with_parameters(place.inputs, place.at, place.errors)
            columns = tuple(
                builder.columns(numbers(b.lower), numbers(b.upper), node) if c is None else c
                for c, b in zip(columns, bounds, strict=True)
            )
            add_candidates(place, builder, columns, wanted, out, bounds, node)
        else:
            builder.complete = False
        if builder.style.quadratics and (found := op.bilinear(place.at)) is not None:
            add_products(place, builder, columns, wanted, out, [t.cpu().numpy() for t in found])
        return out


def _width(place) -> np.ndarray:
    """Per element of the output at least as many as the entries of a plane, "out"."""
    at, varying = place.at, [i for i, v in enumerate(place.at.varying) if v]
    widest = np.full(at.output.numel, float(sum(at.inputs[i].numel for i in range(len(at.inputs)))))
    if own_dual(type(place.op), Multivariate) is not None:
        return widest
    bounds = with_parameters(place.inputs, at, place.errors)
    below, above = place.op.planes([b.lower for b in bounds], [b.upper for b in bounds])
    if place.op.extremum:
        parts = [torch.ones((1, *at.inputs[i].shape), dtype=torch.float64) for i in range(len(at.inputs))]
        parts = [lead(p, at.output.rank) for p in parts]
        return numbers(place.op.gather(parts).expand(1, *at.output.shape))
    count = np.zeros(at.output.numel)
    for one, two in zip(below.coefficients, above.coefficients, strict=True):
        if isinstance(one, Block):
            count = count + np.minimum(one.terms, widest)
        elif one is not None:
            shape = torch.broadcast_shapes(one.shape, two.shape)
            count = count + numbers(place.op.gather([one.new_ones(shape)]).expand(1, *at.output.shape))
    return np.minimum(count, widest) if varying else count


def members(rows: Rows, place, index: int) -> Rows:
    """How often each element of an input takes part in the elements that the rows name."""
    ones = torch.ones((1, *place.at.inputs[index].shape), dtype=torch.float64)
    ones = lead(ones, place.at.output.rank)
    return rows.spread(place.op, place.at, index, ones, ones)


def add_candidates(place, builder, columns, wanted, out, bounds, node) -> None:
    """A maximum is at least each of its candidates, and is the one that a binary names. (A minimum: the other way.)"""
    at, sign, order = place.at, float(place.op.extremum), np.flatnonzero(wanted)
    found = []
    for i, b in enumerate(bounds):
        ends = sign * np.stack([numbers(b.lower), numbers(b.upper)])
        for start, hot in one_hots(at.output.shape, order, 1.0, at.inputs[i].numel):
            row, element, _ = sparse(members(hot, place, i))
            found.append((row + start, columns[i][element], *np.sort(ends, 0)[:, element]))
    owner, name, low, high = (np.concatenate(t) for t in zip(*found, strict=True))
    _, first = np.unique(np.stack([owner, name]), axis=1, return_index=True)  # elements may share a column
    owner, name, low, high = (t[first] for t in (owner, name, low, high))
    floor = np.full(len(order), -np.inf)
    np.maximum.at(floor, owner, low)
    kept = high >= floor[owner]  # of the others none is ever the largest
    rank = np.lexsort((high[kept], owner[kept]))
    owner, name, low, high = (t[kept][rank] for t in (owner, name, low, high))
    count, value = np.bincount(owner, minlength=len(order)), out[order]
    _difference(builder, value, name, owner, count > 1, (0.0, np.inf) if sign > 0 else (-np.inf, 0.0))
    _difference(builder, value, name, owner, count == 1, (0.0, 0.0))
    # sign y <= sign x_i + gap_i (1 - a_i), with gap_i = (largest other upper bound) - l_i, rounded up.
    last = np.cumsum(count) - 1
    top = np.where(np.arange(len(owner)) == last[owner], high[np.maximum(last - 1, 0)][owner], high[last][owner])
    gap = np.maximum(top - low, 0.0) * (1 + 2.0**-50) + 2.0**-1000
    unknown = np.bincount(owner, ~np.isfinite(gap), minlength=len(order)) > 0
    several = (count > 1) & ~unknown
    builder.complete &= not (unknown & (count > 1)).any()
    used = several[owner]
    owner, name, gap = owner[used], name[used], gap[used]
    if not builder.style.integers:
        _without_binaries(builder, sign, value, name, owner, gap, several, numbers(place.output.magnitude())[order])
        return
    binary, k = builder.binaries(len(owner), node), np.arange(len(owner))
    builder.add_rows(
        np.tile(k, 3), np.concatenate([value[owner], name, binary]),
        np.concatenate([np.full(len(k), sign), np.full(len(k), -sign), gap]), np.full(len(k), -np.inf), gap,
    )  # fmt: skip
    number, one = np.cumsum(several) - 1, np.ones(int(several.sum()))
    builder.add_rows(number[owner], binary, np.ones(len(k)), one, one)
    for j, part in zip(np.flatnonzero(several), np.split(k, np.cumsum(count[several])[:-1])):
        builder.choose(Choice("largest" if sign > 0 else "least", binary[part], int(value[j]), name[part]))


def _without_binaries(builder, sign, value, name, owner, gap, several, reach) -> None:
    """What is left of those rows when a_i >= 0 is projected out: sign (y - x_i) <= gap_i, the parallel plane of the
    linear domain among them, and sum_i sign (y - x_i) / gap_i <= candidates - 1. (`reach`: how large y can be.)"""
    k, free = np.arange(len(owner)), np.full(len(owner), -np.inf)
    ones = np.full(len(k), sign)
    builder.add_rows(
        np.tile(k, 2), np.concatenate([value[owner], name]), np.concatenate([ones, -ones]), free, gap
    )  # fmt: skip
    least = np.full(len(value), np.inf)
    np.minimum.at(least, owner, gap)
    # Any weights w do: the largest candidate's term is 0, the others' are at most w_i gap_i, here about `least`.
    weight = least[owner] / gap
    total, count = np.bincount(owner, weight, len(value))[several], np.bincount(owner, minlength=len(value))[several]
    top = (count - 1) * least[several] * (1 + 2.0**-50)
    number, own = np.cumsum(several) - 1, np.arange(len(total))
    builder.add_rows(
        np.concatenate([own, number[owner]]), np.concatenate([value[several], name]),
        np.concatenate([sign * total, -sign * weight]), np.full(len(own), -np.inf), top,
        total * reach[several] * gamma(count),
    )  # fmt: skip


def _difference(builder, value, name, owner, chosen: np.ndarray, sides: tuple[float, float]) -> None:
    """value - name within the sides, for all candidates of the chosen elements."""
    kept = chosen[owner]
    k, (low, high) = np.arange(int(kept.sum())), sides
    builder.add_rows(
        np.tile(k, 2), np.concatenate([value[owner[kept]], name[kept]]),
        np.concatenate([np.ones(len(k)), -np.ones(len(k))]), np.full(len(k), low), np.full(len(k), high),
    )  # fmt: skip


def add_products(place, builder, columns, wanted, out, found: list[np.ndarray]) -> None:
    """y = the sum of its products, exactly."""
    element, first, second = found
    fine = wanted & np.isfinite(numbers(place.output.magnitude()))
    for operand, bounds in ((first, place.inputs[0]), (second, place.inputs[1])):
        known = np.isfinite(numbers(bounds.magnitude()))[operand]
        fine[element[~known]] = False
    used, number, own = fine[element], np.cumsum(fine) - 1, out[fine]
    form = np.arange(len(own))
    builder.add_forms(
        (number[element[used]], columns[0][first[used]], columns[1][second[used]], np.ones(int(used.sum()))),
        (form, own, -np.ones(len(own))), np.zeros(len(own)), True,
    )  # fmt: skip
