"""Partition: input sets in parts, each bounded for itself; a row's bound is the least over its box's parts.

Where the bounds of a recipe get better the smaller the set is, this trades time for precision (Rubies-Royo et al. 2019;
Everett et al. 2020).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from absdom import registry
from absdom.arithmetic import SEARCH
from absdom.domain import Dual, Recipe, Strategy, rules_of
from absdom.errors import Deadline, UsageError
from absdom.input_set import Ball, InputSet
from absdom.plan import memory, run, sweeps
from absdom.problem import box_chunks, spec_rows
from absdom.property import Property, Spec
from absdom.registry import register_recipe
from absdom.sets import InputBatch

AXES = ("widest", "uniform", "dual")
NUMBERS = 2**22  # bounds and coefficients of the parts that are asked for at once


@register_recipe("partition")
@dataclass(frozen=True)
class Partition(Strategy):
    """`of` on at most `parts` parts of each box: a grid, whose axes are cut into equal pieces one after the other.

    axis: which is cut into one more piece each time: the one whose pieces are `widest`; the one with the fewest pieces
    (`uniform`: as even as the number allows); the one whose pieces are widest when weighted with the slopes of the
    rows' planes (`dual`). Other parts of a set, such as a ball, stay met with each part.
    """

    of: Recipe
    parts: int = 16
    axis: str = "widest"
    name: ClassVar[str] = "partition"

    def __post_init__(self):
        if self.parts < 1:
            raise UsageError(f"parts is a whole number of 1 or above, not {self.parts}")
        if self.axis not in AXES:
            raise UsageError(f"axis {self.axis!r} is not one of {', '.join(AXES)}")

    def cost(self, cost_of, boxes: int, rows: int) -> float:
        return cost_of(self.of, boxes * self.parts, rows * self.parts)

    def bound(self, ask, prop: Property, rows: np.ndarray) -> np.ndarray:
        out = np.full(prop.spec.rows, np.nan)
        row_box = prop.spec.row_box()
        rows = np.asarray(rows)[np.argsort(row_box[rows], kind="stable")]
        boxes, first, rows_of = np.unique(row_box[rows], return_index=True, return_counts=True)
        out[rows] = np.inf
        sets = prop.inputs.select(boxes)
        counts = pieces(self._weights(ask, prop, rows, boxes), self.parts)
        for owner, inside in grid(sets, counts, NUMBERS // (sets.size + int(rows_of.max()) * prop.spec.C.shape[1])):
            # Row k of the part asks about row `asked[k]` of the property, in part `part[k]`.
            part = np.repeat(np.arange(len(owner)), rows_of[owner])
            rank = np.arange(len(part)) - np.repeat(np.cumsum(rows_of[owner]) - rows_of[owner], rows_of[owner])
            asked = rows[first[owner[part]] + rank]
            spec = Spec(prop.spec.C[asked], prop.spec.d[asked], prop.spec.strict[asked], np.arange(len(asked)), part)
            found = ask(self.of, replace(prop, inputs=inside, spec=spec, names=()), np.arange(len(asked)))
            with np.errstate(invalid="ignore"):  # NaN, unknown, stays so
                np.minimum.at(out, asked, found)
        empty = rows[np.isposinf(out[rows])]  # sets of which no part holds a point: no bound comes from that alone
        if len(empty):
            out[empty] = ask(self.of, prop, empty)[empty]
        return out

    def _weights(self, ask, prop: Property, rows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """What decides between axes, "B n", before they are cut; zero where a box has no width."""
        width = prop.inputs.upper[boxes] - prop.inputs.lower[boxes]
        if self.axis == "widest":
            return width
        if self.axis == "uniform":
            return (width > 0).astype(np.float64)
        slopes = self._steepness(ask, prop, rows, boxes)
        return np.where((slopes > 0).any(1, keepdims=True), slopes * width, width)

    def _steepness(self, ask, prop: Property, rows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """The slopes of the rows' planes over the whole boxes, |nu_1| summed over a box's rows, "B n": those of `of`,
        or of crown-ibp where `of` has none. Zero where a deadline ends the search for them."""
        dual = rules_of(self.of) if isinstance(self.of, Dual) else registry.recipes()["crown-ibp"]()
        context = ask.engine.context(dual, SEARCH)
        graph, plan, device = context.graph, context.schedule.final, context.arithmetic.device
        row_box = np.searchsorted(boxes, prop.spec.row_box()[rows])
        out = np.zeros((len(boxes), prop.inputs.size))
        try:
            with torch.no_grad():
                for chunk in box_chunks(context, boxes):
                    mine = np.isin(boxes[row_box], chunk)
                    batch = InputBatch.of(prop.inputs.select(chunk), context.arithmetic)
                    bounds = run.propagate(context, batch, ask.clock)
                    nu, _ = spec_rows(prop, rows[mine], chunk, context.arithmetic)
                    size, relaxations = memory.chunk_rows(graph, plan.nodes, 4, device), {}
                    for start in range(0, nu.count, size):
                        part, seen = nu.slice(start, start + size), {}
                        sweeps.sweep(context, plan, dual, batch, bounds, part, relaxations, trace=seen)
                        slopes = sweeps.input_slopes(graph, seen, part).abs().nan_to_num(0.0, 0.0)
                        np.add.at(out, row_box[mine][start : start + size], slopes.double().cpu().numpy())
        except Deadline:
            pass
        return out


def pieces(size: np.ndarray, most: int) -> np.ndarray:
    """Into how many pieces each axis is cut, "B n": always one more for the axis whose pieces, size / count, are
    largest, as long as there are at most `most` parts. The first of equals; axes of size 0 stay whole."""
    count = np.ones(size.shape, dtype=np.int64)
    every = np.arange(len(size))
    while True:
        parts = count.prod(1, keepdims=True)
        fits = (size > 0) & (parts // count * (count + 1) <= most)
        if not fits.any():
            return count
        axis = np.where(fits, size / count, -1).argmax(1)
        count[every, axis] += fits[every, axis]


def grid(sets: InputSet, count: np.ndarray, at_once: int) -> Iterator[tuple[np.ndarray, InputSet]]:
    """The cells of sets "B" cut into `count` "B n" pieces per axis, at most `at_once` (and one at least) at a time, as
    (their sets, the cells). Cells of one box share the faces that they are cut at; a cell without a point may lack."""
    cells = count.prod(1)
    ends = np.cumsum(cells)
    axes = np.argsort(-count, axis=1, kind="stable")[:, : int((count > 1).sum(1).max())]  # those cut come first
    for start in range(0, int(ends[-1]), max(1, at_once)):
        index = np.arange(start, min(start + max(1, at_once), int(ends[-1])))
        owner = np.searchsorted(ends, index, side="right")
        rest = index - (ends - cells)[owner]
        every, whole = np.arange(len(owner)), sets.select(owner)
        lower, upper = whole.lower.copy(), whole.upper.copy()
        for axis in axes[owner].T:
            pieces_here = count[owner, axis]
            rest, digit = np.divmod(rest, pieces_here)
            low, high = whole.lower[every, axis], whole.upper[every, axis]
            lower[every, axis] = _face(low, high, digit, pieces_here)
            upper[every, axis] = _face(low, high, digit + 1, pieces_here)
        empty = np.zeros(len(owner), dtype=bool)
        for ball in (part for part in whole.parts if isinstance(part, Ball)):
            lower, upper, outside = shrink(ball, lower, upper)
            empty |= outside
        kept = ~empty | (cells[owner] == 1)
        if kept.any():
            yield owner[kept], replace(whole, lower=lower, upper=upper).select(kept)


def _face(low: np.ndarray, high: np.ndarray, k: np.ndarray, pieces: np.ndarray) -> np.ndarray:
    """The face in front of piece k: for all k the same function, and one that never falls, so that pieces cover."""
    with np.errstate(over="ignore"):
        inside = low + 2 * ((high / 2 - low / 2) * (k / pieces))
    return np.where(k == pieces, high, np.clip(inside, low, high))


def shrink(ball: Ball, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes "B n" cut down to where the ball lets their inputs be, and bool "B": those that surely miss the ball.

    With all in units of the radius, an input moves by at most (1 - sum over the others of gap^p)^(1/p), gap being the
    least that an input of the box lies away from the centre. Everything is rounded so that the boxes stay too large,
    also when they are read one unit outward, as in charged runs.
    """
    power, slack = ball.norm, (lower.shape[1] + 16) * 2.0**-52
    radius = np.maximum(ball.radius, 1e-290)
    gap = np.maximum(np.nextafter(lower, -np.inf) - ball.centre, ball.centre - np.nextafter(upper, np.inf))
    with np.errstate(over="ignore"):
        used = np.clip(gap / radius * (1 - slack), 0, 2) ** power
    total = used.sum(1, keepdims=True)
    room = np.clip(1 + slack - (total * (1 - slack) - used), 0, None)
    reach = radius * room ** (1 / power) * (1 + slack)
    low = np.maximum(lower, np.nextafter(ball.centre - reach, -np.inf))
    high = np.minimum(upper, np.nextafter(ball.centre + reach, np.inf))
    empty = (total[:, 0] * (1 - slack) > 1 + slack) | (low > high).any(1)
    return np.where(empty[:, None], lower, low), np.where(empty[:, None], upper, high), empty
