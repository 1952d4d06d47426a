"""Branch and bound on the input box: for networks with few inputs. Leaves are boxes, all in arrays.

Each leaf is bounded from its own box alone, in charged float64: with few inputs the networks are small, and every
leaf's plane g.x + h <= c.f(x) + d can then be used to shrink the leaf to where g.x + h <= 0 is possible, before it is
cut (a counterexample satisfies it for every row of its clause). Children share the face they are cut at, so that
they cover what is left of their parent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from absdom.arithmetic import PROOF
from absdom.domain import Recipe
from absdom.errors import Deadline
from absdom.plan import memory, run, sweeps
from absdom.plan.plan import Tighten
from absdom.problem import Problem
from absdom.property import InputSet
from absdom.rows import Rows
from absdom.sets import InputBatch
from absdom.solvers.bab.leaves import ClauseTable, per_slot
from absdom.types import Clock
from absdom.verdict import Witness

FLOPS_PER_ROUND = 4e9
LARGEST_BATCH = 2048
PLANE_WEIGHT = 0.3  # against steepness, when an input to cut is chosen


@dataclass(eq=False)
class Leaves:
    """N open leaves: their box, the property's box they lie in, open slots, the cut to make next, and a priority."""

    lower: np.ndarray  # float64 "N n"
    upper: np.ndarray
    box: np.ndarray  # int "N"
    open: np.ndarray  # bool "N slots"
    cut: np.ndarray  # int "N": the input to cut
    value: np.ndarray  # float "N": least bound over open slots, a float32 estimate

    def __len__(self) -> int:
        return len(self.box)

    def take(self, index) -> Leaves:
        return Leaves(*(getattr(self, f)[index] for f in self.__dataclass_fields__))

    def join(self, other: Leaves) -> Leaves:
        return Leaves(*(np.concatenate([getattr(self, f), getattr(other, f)]) for f in self.__dataclass_fields__))


class InputSplit:
    """The loop's state. `run` gives back the problem with what it could close."""

    def __init__(self, problem: Problem, recipe: Recipe, confirm: Callable, clock: Clock, progress=None):
        self.problem, self.confirm, self.clock, self.progress = problem, confirm, clock, progress
        self.spec, self.inputs = problem.property.spec, problem.property.inputs
        self.table = ClauseTable.of(self.spec, len(self.inputs))
        self.recipe = recipe
        self.context = problem.engine.context(recipe, PROOF)
        self.bounded = 0
        self.witness: Witness | None = None

    def run(self) -> tuple[Problem, Witness | None, int, float]:
        """(problem, witness, leaves bounded, least open bound)."""
        leaves = self._roots()
        batch = self._batch_size()
        stuck = leaves.take(slice(0, 0))  # no float64 number lies inside any of their intervals, and they stay open
        while len(leaves) and self.witness is None and not self.clock.passed():
            order = np.argsort(leaves.value, kind="stable")
            chosen, rest = order[:batch], order[batch:]
            children = self._split(leaves.take(chosen), batch)
            try:
                still_open = self._bound(children)
            except Deadline:
                break
            _, can = _cuts(still_open)
            leaves, stuck = leaves.take(rest).join(still_open.take(can)), stuck.join(still_open.take(~can))
            if self.progress is not None:
                self.progress(self.bounded, len(leaves), float(leaves.value.min(initial=0.0)))
        leaves = leaves.join(stuck)
        closed = self.problem.closed.copy()
        still = self.table.clause[leaves.box][leaves.open]
        done = np.setdiff1d(self.problem.open, still)
        if self.witness is None:
            closed[done] = True
        return replace(self.problem, closed=closed), self.witness, self.bounded, float(leaves.value.min(initial=np.inf))

    def _roots(self) -> Leaves:
        boxes = np.unique(self.spec.box[self.problem.open])
        lower, upper = self.inputs.lower[boxes], self.inputs.upper[boxes]
        open_ = self.table.open_mask(self.problem.open)[boxes]
        widest = (upper / 2 - lower / 2).argmax(1)
        return Leaves(lower, upper, boxes, open_, widest, np.full(len(boxes), -np.inf))

    def _batch_size(self) -> int:
        graph = self.context.graph
        per_box = sum(
            2 * graph.nodes[s.sweep.start].type.numel * sum(memory.flops(graph, i) for i in s.sweep.nodes)
            for s in self.context.schedule.stages
            if isinstance(s, Tighten) and s.needed(self.inputs.parts)
        )
        by_bytes = memory.CHUNK_BYTES // memory.box_bytes(graph, 8)
        return int(np.clip(FLOPS_PER_ROUND / max(per_box, 1), 2, min(LARGEST_BATCH, by_bytes)))

    def _split(self, leaves: Leaves, batch: int) -> Leaves:
        """Cut every leaf in two along an input; few leaves are cut several times, to fill the batch. Those that cannot
        be cut stay whole among the others: a leaf that got lost would count as refuted."""
        whole = leaves.take(slice(0, 0))
        while True:
            cut, can = _cuts(leaves)
            whole, leaves = whole.join(leaves.take(~can)), replace(leaves, cut=cut).take(can)
            rows = np.arange(len(leaves))
            middle = _middle(leaves.lower[rows, leaves.cut], leaves.upper[rows, leaves.cut])
            left, right = leaves.take(rows), leaves.take(rows)
            left.upper[rows, leaves.cut] = middle
            right.lower[rows, leaves.cut] = middle
            children = left.join(right)
            if len(children) == 0 or 2 * len(children) > batch:
                return children.join(whole)
            # Again, along the input that is now widest relative to the root's box.
            root = self.inputs.upper[children.box] / 2 - self.inputs.lower[children.box] / 2
            share = (children.upper / 2 - children.lower / 2) / np.where(root > 0, root, np.inf)
            leaves = replace(children, cut=share.argmax(1))

    def _sets(self, leaves: Leaves) -> InputSet:
        return replace(self.inputs.select(leaves.box), lower=leaves.lower, upper=leaves.upper)

    def _bound(self, leaves: Leaves) -> Leaves:
        """Bound the leaves, close what is refuted, shrink the rest, choose their cuts; give back the open ones."""
        leaves = self._with_points(leaves)
        if len(leaves) == 0:
            return leaves
        leaf, slot, row = self.table.rows(leaves.box, leaves.open)
        value, slopes, steep, points = self._planes(leaves, leaf, row)
        self.bounded += len(leaves)
        refuted = (value > 0) | ((value >= 0) & self.spec.strict[row])
        leaves.open[leaf[refuted], slot[refuted]] = False
        best = per_slot(leaf, slot, value, leaves.open.shape)
        leaves.value = np.where(leaves.open, best, np.inf).min(1)
        live = leaves.open[leaf, slot]
        self._try_points(leaves, leaf[live], row[live], points[live])
        self._choose_cuts(leaves, leaf[live], slot[live], value[live], slopes[live], steep[live], best)
        self._shrink(leaves, leaf[live], slot[live], value[live], slopes[live])
        return leaves.take(leaves.open.any(1))

    def _with_points(self, leaves: Leaves) -> Leaves:
        """Without the leaves whose boxes the other parts of the set surely miss."""
        if not self.inputs.parts:
            return leaves
        with torch.no_grad():
            empty = InputBatch.of(self._sets(leaves), self.context.arithmetic).empty(self.context.arithmetic)
        return leaves.take(~empty.cpu().numpy())

    def _planes(self, leaves: Leaves, leaf, row):
        """Per row: its plane's proved lower bound over the leaf, the plane's slopes g "R n", how steep the row can be
        along each input "R n", and the point where the plane is lowest "R n"."""
        context, arithmetic = self.context, self.context.arithmetic
        with torch.no_grad():
            batch = InputBatch.of(self._sets(leaves), arithmetic)
            bounds = run.propagate(context, batch, self.clock)
            C = arithmetic.tensor(self.spec.C[row].toarray())
            rows = Rows.dense_rows(C, len(leaves), torch.as_tensor(leaf, device=C.device))
            seen, relaxations = {}, {}
            d = arithmetic.tensor(self.spec.d[row])
            value = run.row_bounds(context, batch, bounds, rows, d, relaxations, self.clock, trace=seen)
            steep = sweeps.sensitivity(context, bounds, rows, relaxations).cpu().numpy()
            slopes = sweeps.input_slopes(context.graph, seen, rows)
            points = batch.select(torch.as_tensor(leaf, device=C.device)).lowest(slopes[:, None])[:, 0]
        return value.cpu().numpy(), slopes.cpu().numpy(), steep, points.cpu().numpy()

    def _shrink(self, leaves: Leaves, leaf, slot, value, slopes) -> None:
        """Keep of each leaf the hull, over its open clauses, of where all rows of the clause can be <= 0.

        With m_j = min of g_j x_j on the leaf and v = h + sum m_j the row's bound, a point with g.x + h <= 0 has
        g_i x_i <= m_i - v. The slack pays for every rounding here; v was charged before.
        """
        if self.inputs.parts:
            return  # v was taken over what the parts leave of the box
        low, high = leaves.lower[leaf], leaves.upper[leaf]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            least = np.minimum(slopes * low, slopes * high)
            reach = np.abs(slopes) * np.maximum(np.abs(low), np.abs(high))
            slack = 1e-12 * (np.abs(value)[:, None] + reach.sum(1, keepdims=True))
            limit = (least - value[:, None] + slack) / slopes
            limit = limit + np.abs(limit) * 1e-15
            floor = (least - value[:, None] + slack) / slopes
            floor = floor - np.abs(floor) * 1e-15
        new_high = np.where((slopes > 0) & (limit < high), limit, high)
        new_low = np.where((slopes < 0) & (floor > low), floor, low)
        shape = (*leaves.open.shape, low.shape[1])
        clause_low = np.full(shape, -np.inf)
        clause_high = np.full(shape, np.inf)
        np.maximum.at(clause_low, (leaf, slot), new_low)
        np.minimum.at(clause_high, (leaf, slot), new_high)
        empty = (clause_low > clause_high).any(2) & leaves.open
        leaves.open[empty] = False
        shown = leaves.open[:, :, None]
        keep = leaves.open.any(1)
        leaves.lower[keep] = np.maximum(leaves.lower, np.where(shown, clause_low, np.inf).min(1))[keep]
        leaves.upper[keep] = np.minimum(leaves.upper, np.where(shown, clause_high, -np.inf).max(1))[keep]

    def _choose_cuts(self, leaves, leaf, slot, value, slopes, steep, best) -> None:
        """Along the input with the largest width x steepness in the row that decides a leaf's worst clause."""
        worst = np.where(leaves.open, best, np.inf).argmin(1)
        decisive = (slot == worst[leaf]) & (value >= best[leaf, slot])
        width = leaves.upper - leaves.lower
        score = np.zeros_like(width)
        # The plane's slopes say where the bound moves, the steepness where it is loose: both, as shares of a row.
        for slope, weight in ((np.abs(slopes), PLANE_WEIGHT), (steep, 1.0)):
            change = slope[decisive] * width[leaf[decisive]]
            change = change / np.maximum(change.sum(1, keepdims=True), 1e-300)
            np.add.at(score, leaf[decisive], weight * change)
        leaves.cut = (score + 1e-30 * width).argmax(1)

    def _try_points(self, leaves, leaf, row, points) -> None:
        """Evaluate where each row's plane is lowest; hand what looks like a counterexample to the judge."""
        if len(row) == 0:
            return
        with torch.no_grad():
            y = run.evaluate(self.context, self.context.arithmetic.tensor(points)).cpu().numpy()
        own = np.asarray(self.spec.C[row].multiply(y).sum(1)).ravel() + self.spec.d[row]
        candidates = np.flatnonzero(own <= 0)
        for i in candidates[np.argsort(own[candidates])][:64]:
            clause = self.spec.clause[row[i]]
            atoms = slice(self.table.first[clause], self.table.first[clause] + self.table.count[clause])
            if (self.spec.C[atoms] @ y[i] + self.spec.d[atoms] > 0).any():
                continue
            self.witness = self.confirm(int(leaves.box[leaf[i]]), points[i])
            if self.witness is not None:
                return


def _middle(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low / 2 + high / 2  # the width may overflow


def _cuts(leaves: Leaves) -> tuple[np.ndarray, np.ndarray]:
    """(the input to cut "N", bool "N": is there one?): the leaf's own choice, or the widest where that is too narrow to
    have a float64 number inside."""
    rows, cut = np.arange(len(leaves)), leaves.cut.copy()
    low, high = leaves.lower[rows, cut], leaves.upper[rows, cut]
    middle = _middle(low, high)
    can = (low < middle) & (middle < high)
    other = np.flatnonzero(~can)
    low, high = leaves.lower[other], leaves.upper[other]
    middle = _middle(low, high)
    inside = (low < middle) & (middle < high)
    cut[other] = np.where(inside, high / 2 - low / 2, -1).argmax(1)
    can[other] = inside.any(1)
    return cut, can
