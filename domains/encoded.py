"""How each kind of op becomes rows of an Encoding: equalities, lines and planes, binaries, quadratic forms.

Affine ops give equalities whose rounding is the node's `noise`. Lines and planes are those of the linear domain, at
several values of their free slopes, so that a linear program knows at least what any choice of slopes knows. Exact
forms come from the facts `pieces`, `extremum` and `quadratic` of an op.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch

from absdom import registry
from absdom.domain import Encoded, EncodingRule
from absdom.domains.interval import with_parameters
from absdom.domains.linear import Linear
from absdom.encoding import Choice, Size, gamma
from absdom.ir.op import Affine, Elementwise, Multivariate
from absdom.ops.shape import Move, lead
from absdom.registry import register_rule
from absdom.rows import Rows

CHUNK = 2**24  # elements of the dense rows that are read at once


def numbers(t: torch.Tensor) -> np.ndarray:
    return t.detach().double().cpu().numpy().ravel()


def one_hots(shape, positions: np.ndarray, sign: float, width: int):
    """The rows sign * e_position of a node, a chunk at a time: (offset, Rows)."""
    size = max(1, CHUNK // max(1, width))
    for start in range(0, len(positions), size):
        part = torch.as_tensor(positions[start : start + size])
        yield start, Rows.one_hot(part, torch.full((len(part),), sign, dtype=torch.float64), shape, 1)


def sparse(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, element, value) of what is not zero."""
    data = rows.dense().reshape(rows.count, -1)
    row, element = torch.nonzero(data, as_tuple=True)
    return row.cpu().numpy(), element.cpu().numpy(), numbers(data[row, element])


class AffineRows(EncodingRule):
    """z = W x + b, within the node's noise. An element that is one of another node's, unchanged, is its column."""

    def needs(self, place, wanted):
        at, mask = place.at, wanted.double()
        at = at._replace(params=tuple(None if p is None else p.abs() for p in at.params))
        return tuple(place.op.transpose(mask, at, i).abs() > 0 if v else None for i, v in enumerate(at.varying))

    def count(self, place, wanted, style):
        if isinstance(place.op, Move) and all(place.at.varying):
            return Size()
        at = place.at._replace(params=tuple(None if p is None else (p != 0).double() for p in place.at.params))
        ones = [torch.ones((1, *t.shape), dtype=torch.float64) if v else None for t, v in zip(at.inputs, at.varying)]
        taps = place.op.absolute(at, ones)
        count = int(wanted.sum())
        return Size(columns=count, rows=count, entries=int((taps * wanted).sum()) + count)

    def add(self, place, builder, columns, wanted, node):
        op, at, own = place.op, place.at, place.output
        positions = np.flatnonzero(wanted)
        rows, columns_of, values = [], [], []
        for i, varying in enumerate(at.varying):
            if not varying:
                continue
            for start, hot in one_hots(at.output.shape, positions, 1.0, at.inputs[i].numel):
                row, element, value = sparse(hot.pull(op, at, i))
                rows.append(row + start)
                columns_of.append(columns[i][element])
                values.append(value)
        row, column, value = (np.concatenate(t) for t in (rows, columns_of, values))
        offset = op.offset(at)
        offset = np.zeros(len(wanted)) if offset is None else numbers(offset.expand(1, *at.output.shape))
        noise = np.zeros(len(wanted)) if own.noise is None else numbers(own.noise.expand(1, *at.output.shape))
        taps = np.bincount(row, minlength=len(positions))
        same = (taps == 1) & (offset[positions] == 0)
        same[row[value != 1.0]] = False
        same &= not any(e is not None for e in place.errors)
        out = np.full(len(wanted), -1)
        entry = np.flatnonzero(same[row])
        out[positions[row[entry]]] = column[entry]
        fresh = positions[~same]
        out[fresh] = builder.columns(numbers(own.lower)[fresh], numbers(own.upper)[fresh], node)
        number = np.cumsum(~same) - 1
        kept = ~same[row]
        row, column, value = number[row[kept]], column[kept], value[kept]
        builder.add_rows(
            np.concatenate([np.arange(len(fresh)), row]),
            np.concatenate([out[fresh], column]),
            np.concatenate([np.ones(len(fresh)), -value]),
            offset[fresh], offset[fresh], noise[fresh] + np.abs(offset[fresh]) * gamma(2),
        )  # fmt: skip
        return out


def settings(names, initial: dict) -> list[dict]:
    """Values of the free slopes at which lines are taken: the adaptive choice, and the corners of their range."""
    found = [initial]
    for corner in product((0.0, 1.0), repeat=min(len(names), 2)):
        ends = [*corner] + [corner[-1]] * (len(names) - len(corner)) if corner else []
        found.append({n: torch.full_like(initial[n], end) for n, end in zip(names, ends)})
    return found if names else [initial]


class ElementwiseRows(EncodingRule):
    """Lines below and above, at several slopes; pieces with binaries, or a quadratic form, where asked for."""

    def _masks(self, place):
        """(constant, exact) elements: f takes one value there, f is affine there."""
        bounds = place.inputs[0]
        low, high = place.op.image(bounds.lower, bounds.upper)
        return low == high, place.op.is_exact(bounds.lower, bounds.upper)

    def needs(self, place, wanted):
        constant, _ = self._masks(place)
        return (wanted & ~constant,)

    def count(self, place, wanted, style):
        constant, exact = self._masks(place)
        bent = int((wanted & ~constant & ~exact).sum())
        straight = int((wanted & ~constant & exact).sum())
        lines = 2 * len(settings(place.op.knobs, place.op.initial(place.inputs[0].lower, place.inputs[0].upper)))
        total = Size(int(wanted.sum()), lines * bent + 2 * straight, 2 * lines * bent + 4 * straight)
        if style.integers:
            total = total + Size(rows=4 * bent, entries=12 * bent, binaries=bent, columns=bent)
        if style.quadratics:
            total = total + Size(quadratics=bent)
        return total

    def add(self, place, builder, columns, wanted, node):
        op, own, bounds, source = place.op, place.output, place.inputs[0], columns[0]
        constant, exact = (numbers(t).astype(bool) for t in self._masks(place))
        initial = op.initial(bounds.lower, bounds.upper)
        variants = [[numbers(t) for t in op.lines(bounds.lower, bounds.upper, k)] for k in settings(op.knobs, initial)]
        low_slope, low_bias, up_slope, up_bias = variants[0]
        same = wanted & exact & ~constant & (low_slope == 1) & (up_slope == 1) & (low_bias == 0) & (up_bias == 0)
        fresh = wanted & ~same
        out = builder.columns_where(fresh, numbers(own.lower), numbers(own.upper), node)
        out[same] = source[same]
        bent = np.flatnonzero(fresh & ~constant & ~exact)
        straight = np.flatnonzero(fresh & ~constant & exact)
        seen: list[np.ndarray] = []
        for k, (low_slope, low_bias, up_slope, up_bias) in enumerate(variants):
            where = bent if k else np.concatenate([straight, bent])
            for slope, bias, side in ((low_slope, low_bias, 1.0), (up_slope, up_bias, -1.0)):
                line = np.stack([np.full_like(slope, side), slope, bias])
                new = where[~np.any([(line == old)[:, where].all(0) for old in seen], axis=0)] if seen else where
                new = new[np.isfinite(slope[new]) & np.isfinite(bias[new])]
                seen.append(line)
                add_lines(builder, out[new], source[new], slope[new], bias[new], side)
        if builder.style.integers and len(bent):
            add_pieces(builder, op, numbers(bounds.lower), numbers(bounds.upper), bent, source, out, node)
        if builder.style.quadratics and len(bent):
            add_forms(builder, op, bounds, bent, source, out, variants)
        return out


def add_lines(builder, value, source, slope, bias, side: float) -> None:
    """value >= slope source + bias (side 1) or <= (side -1)."""
    k = np.arange(len(value))
    infinite = np.full(len(value), np.inf)
    low, high = (bias, infinite) if side > 0 else (-infinite, bias)
    used = np.flatnonzero(slope != 0)
    builder.add_rows(
        np.concatenate([k, used]), np.concatenate([value, source[used]]),
        np.concatenate([np.ones(len(k)), -slope[used]]), low, high,
    )  # fmt: skip


def add_pieces(builder, op, lower, upper, bent, source, out, node) -> None:
    """Binaries that say on which piece each element is; elements of smooth ops stay relaxed."""
    for k in bent:
        pieces = op.pieces(float(lower[k]), float(upper[k]))
        if len(pieces) == 2 and _meet(*pieces):
            _two_pieces(builder, pieces, float(lower[k]), source[k], out[k], node)
        else:
            builder.complete = False


def _meet(first, second) -> bool:
    middle, left, left_bias = first
    return left * middle + left_bias == second[1] * middle + second[2]


def _two_pieces(builder, pieces, lower: float, source: int, value: int, node: int) -> None:
    """Big-M rows for two pieces that meet, as tight as the bounds (Tjeng et al. 2019): binary 1 is the second piece."""
    (middle, left, left_bias), (end, right, right_bias) = pieces
    binary = builder.binaries(1, node)
    convex = 1.0 if left <= right else -1.0

    # What one piece's line misses at the far end of the other one, rounded up.
    def gap(at: float) -> float:
        parts = (right * at, -left * at, right_bias, -left_bias)
        return abs(sum(parts)) + 2.0**-50 * sum(map(abs, parts)) + 2.0**-1000

    above, below = gap(end), gap(lower)
    # convex: y <= left z + b + above a, y <= right z + b' + below (1 - a), and y >= both (rows of the lines).
    rows, columns = [0, 0, 0, 1, 1, 1], [value, source, binary[0]] * 2
    values = [1.0, -left, -convex * above, 1.0, -right, convex * below]
    sides = np.array([left_bias, right_bias + convex * below])
    free = np.full(2, np.inf)
    low, high = (-free, sides) if convex > 0 else (sides, free)
    builder.add_rows(rows, columns, values, low, high, np.array([0.0, 2.0**-50 * (abs(right_bias) + below)]))
    builder.choose(Choice("pieces", binary, int(value), np.array([source]), np.array([middle, end])))


def add_forms(builder, op, bounds, bent, source, out, variants) -> None:
    """The quadratic form of the op, or else the product of the distances from a line below and one above."""
    z, y, form = source[bent], out[bent], np.arange(len(bent))
    found = op.quadratic(bounds.lower, bounds.upper)
    equality = found is not None
    if equality:
        parts = [np.broadcast_to(numbers(t), (len(source),))[bent] for t in found]
    else:
        a, b, c, d = (t[bent] for t in variants[0])
        parts = [np.ones(len(bent)), -(a + c), a * c, -(b + d), a * d + b * c, b * d]
    yy, yz, zz, ly, lz, one = parts
    size = np.maximum(np.abs(numbers(bounds.lower)), np.abs(numbers(bounds.upper)))[bent]
    low, high = op.image(bounds.lower, bounds.upper)
    reach = np.maximum(np.abs(numbers(low)), np.abs(numbers(high)))[bent]
    weight = np.abs(yy) * reach**2 + 2 * np.abs(yz) * reach * size + 2 * np.abs(zz) * size**2
    weight = weight + 2 * np.abs(ly) * reach + 4 * np.abs(lz) * size + np.abs(one)
    if not equality:
        # Cancellation in the sums of coefficients.
        weight = weight + (np.abs(a) + np.abs(c)) * reach * size + (np.abs(b) + np.abs(d)) * reach
        weight = weight + (np.abs(a * d) + np.abs(b * c)) * size
    builder.add_forms(
        (np.tile(form, 3), np.concatenate([y, y, z]), np.concatenate([y, z, z]), np.concatenate([yy, yz, zz])),
        (np.tile(form, 2), np.concatenate([y, z]), np.concatenate([ly, lz])),
        one, equality, weight * gamma(4),
    )  # fmt: skip


class MultivariateRows(EncodingRule):
    """The planes of the linear domain; for maxima and minima also each candidate, exactly where binaries are asked."""

    def needs(self, place, wanted):
        if not place.op.extremum:
            return super().needs(place, wanted)
        hot = Rows.dense_rows(wanted.double(), 1)
        return tuple((members(hot, place, i).dense() != 0) if v else None for i, v in enumerate(place.at.varying))

    def count(self, place, wanted, style):
        width = sum(t.numel for t, v in zip(place.at.inputs, place.at.varying, strict=True) if v)
        count = int(wanted.sum())
        if place.op.extremum:
            share = max(1, width // max(1, place.at.output.numel))
            extra = Size(columns=share * count, rows=share * count, entries=3 * share * count, binaries=share * count)
            return Size(count, (4 + share) * count, 6 * (share + 1) * count) + (extra if style.integers else Size())
        variants = 2 * len(settings(place.op.knobs, {n: torch.zeros(1) for n in place.op.knobs}))
        return Size(count, variants * count, variants * count * (1 + min(width, 4096)))

    def add(self, place, builder, columns, wanted, node):
        own = place.output
        out = builder.columns_where(wanted, numbers(own.lower), numbers(own.upper), node)
        bounds = with_parameters(place.inputs, place.at, place.errors)
        columns = tuple(
            builder.columns(numbers(b.lower), numbers(b.upper), node) if c is None else c
            for c, b in zip(columns, bounds, strict=True)
        )
        add_planes(place, builder, columns, wanted, out)
        if place.op.extremum:
            add_candidates(place, builder, columns, wanted, out, bounds, node)
        elif builder.style.integers:
            builder.complete = False
        return out


def members(rows: Rows, place, index: int) -> Rows:
    """How often each element of an input takes part in the elements that the rows name."""
    ones = torch.ones((1, *place.at.inputs[index].shape), dtype=torch.float64)
    ones = lead(ones, place.at.output.rank)
    return rows.spread(place.op, place.at, index, ones, ones)


def add_planes(place, builder, columns, wanted, out) -> None:
    """Rows from the linear domain's own rule, by pulling +-e_k: rounding is in their constants."""
    op, at = place.op, place.at
    dual, _ = registry.find_rule(Linear, type(op))
    if dual is None:
        return
    positions, recipe = np.flatnonzero(wanted), Linear()
    kept = [columns[i] for i, v in enumerate(at.varying) if v]
    reach = [numbers(b.magnitude()) for b in place.inputs if b is not None]
    starts = {name: start.value for name, start in dual.knobs(place, recipe).items()}
    for knobs in settings(tuple(starts), starts):
        here = place._replace(knobs=knobs)
        relaxation = dual.relax(here, recipe)
        for sign in (1.0, -1.0):
            for start, hot in one_hots(at.output.shape, positions, sign, sum(len(c) for c in kept)):
                parts, term = dual.pull(hot, here, relaxation)
                term = np.zeros(hot.count) if term is None else numbers(term)
                count = np.arange(hot.count)
                rows, cols, values, slack = (
                    [count],
                    [out[positions[start : start + hot.count]]],
                    [sign * np.ones(len(count))],
                    0,
                )
                for part, column, size in zip(parts, kept, reach, strict=True):
                    if part is not None:
                        row, element, value = sparse(part)
                        rows.append(row)
                        cols.append(column[element])
                        values.append(-value)
                        # Elements may share a column; their coefficients are then summed.
                        slack = slack + np.bincount(row, np.abs(value) * size[element], minlength=hot.count) * gamma(4)
                rows, cols, values = (np.concatenate(t) for t in (rows, cols, values))
                fine = np.isfinite(term)
                number = np.cumsum(fine) - 1
                used = fine[rows] & np.isfinite(values)
                builder.add_rows(
                    number[rows[used]], cols[used], values[used], term[fine], np.full(fine.sum(), np.inf),
                    (slack + np.zeros(len(term)))[fine],
                )  # fmt: skip


def add_candidates(place, builder, columns, wanted, out, bounds, node) -> None:
    """A maximum is at least each of its candidates, and is the one that a binary names. (A minimum: the other way.)"""
    at, sign = place.at, float(place.op.extremum)
    lows = [numbers(b.lower) for b in bounds]
    highs = [numbers(b.upper) for b in bounds]
    found: dict[int, list[tuple[int, float, float]]] = {int(k): [] for k in np.flatnonzero(wanted)}
    order = np.fromiter(found, dtype=np.int64)
    for i in range(len(at.inputs)):
        for start, hot in one_hots(at.output.shape, order, 1.0, at.inputs[i].numel):
            for row, element, _ in zip(*sparse(members(hot, place, i)), strict=True):
                ends = sorted((sign * lows[i][element], sign * highs[i][element]))
                found[int(order[start + row])].append((int(columns[i][element]), *ends))
    for k, everyone in found.items():
        floor = max(low for _, low, _ in everyone)
        candidates = [c for c in everyone if c[2] >= floor]
        names = np.array([c[0] for c in candidates])
        count = np.arange(len(names))
        both = np.concatenate([np.full(len(names), out[k]), names])
        ones = np.concatenate([np.ones(len(names)), -np.ones(len(names))])
        free, zero = np.full(len(names), np.inf), np.zeros(len(names))
        twice = np.concatenate([count, count])
        builder.add_rows(twice, both, ones, *((zero, free) if sign > 0 else (-free, zero)))
        if len(candidates) == 1:
            builder.add_rows(twice, both, ones, zero, zero)
            continue
        if not builder.style.integers:
            continue
        binaries = builder.binaries(len(names), node)
        # sign y <= sign x_i + gap_i (1 - a_i), with gap_i = (largest other upper bound) - l_i, rounded up.
        tops = np.array([max(h for j, (_, _, h) in enumerate(candidates) if j != i) for i in count])
        gap = np.maximum(tops - np.array([low for _, low, _ in candidates]), 0.0)
        gap = gap * (1 + 2.0**-50) + 2.0**-1000
        values = np.concatenate([ones * sign, gap])
        builder.add_rows(np.concatenate([twice, count]), np.concatenate([both, binaries]), values, -free, gap)
        builder.add_rows(np.zeros(len(names), dtype=np.int64), binaries, np.ones(len(names)), np.ones(1), np.ones(1))
        kind = "largest" if sign > 0 else "least"
        builder.choose(Choice(kind, binaries, int(out[k]), names))


register_rule(Encoded, Affine)(AffineRows())
register_rule(Encoded, Elementwise)(ElementwiseRows())
register_rule(Encoded, Multivariate)(MultivariateRows())
