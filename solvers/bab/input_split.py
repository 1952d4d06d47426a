"""Branch and bound on the input box: for networks with few inputs. Leaves are boxes, all in arrays.

Each leaf is bounded from its own box alone, first in float32 (which steers) and, where that says closed, again in
charged float64 (which closes). Children share the face they are cut at, so that they cover their parent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from absdom.arithmetic import PROOF, SEARCH
from absdom.domain import InputBatch, Recipe
from absdom.plan import memory, run
from absdom.plan.plan import Tighten
from absdom.problem import Problem
from absdom.property import InputSet
from absdom.rows import Rows
from absdom.solvers.bab.leaves import ClauseTable, per_slot
from absdom.types import Clock
from absdom.verdict import Witness

FLOPS_PER_ROUND = 4e9
LARGEST_BATCH = 2048


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
        self.search = problem.engine.context(recipe, SEARCH)
        self.proof = problem.engine.context(recipe, PROOF)
        self.bounded = 0
        self.witness: Witness | None = None

    def run(self) -> tuple[Problem, Witness | None, int, float]:
        """(problem, witness, leaves bounded, least open bound)."""
        leaves = self._roots()
        batch = self._batch_size()
        finished = len(leaves) == 0
        while not finished and self.witness is None and not self.clock.passed():
            order = np.argsort(leaves.value, kind="stable")
            chosen, rest = order[:batch], order[batch:]
            children = self._split(leaves.take(chosen), batch)
            if len(children) == 0:  # nothing left to cut: boxes of width zero that stay open
                break
            leaves = leaves.take(rest).join(self._bound(children))
            finished = len(leaves) == 0
            if self.progress is not None:
                self.progress(self.bounded, len(leaves), float(leaves.value.min(initial=0.0)))
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
        widest = (upper - lower).argmax(1)
        return Leaves(lower, upper, boxes, open_, widest, np.full(len(boxes), -np.inf))

    def _batch_size(self) -> int:
        graph = self.search.graph
        per_box = sum(
            2 * graph.nodes[s.sweep.start].type.numel * sum(memory.flops(graph, i) for i in s.sweep.nodes)
            for s in self.search.schedule.stages
            if isinstance(s, Tighten)
        )
        by_bytes = memory.CHUNK_BYTES // memory.box_bytes(graph, 8)
        return int(np.clip(FLOPS_PER_ROUND / max(per_box, 1), 8, min(LARGEST_BATCH, by_bytes)))

    def _split(self, leaves: Leaves, batch: int) -> Leaves:
        """Cut every leaf in two along its input; few leaves are cut several times, to fill the batch."""
        while True:
            rows = np.arange(len(leaves))
            low, high = leaves.lower[rows, leaves.cut], leaves.upper[rows, leaves.cut]
            middle = low + (high - low) / 2
            can = (low < middle) & (middle < high)
            leaves, middle = leaves.take(can), middle[can]
            rows = np.arange(len(leaves))
            left, right = leaves.take(rows), leaves.take(rows)
            left.upper[rows, leaves.cut] = middle
            right.lower[rows, leaves.cut] = middle
            children = left.join(right)
            if len(children) == 0 or 2 * len(children) > batch:
                return children
            # Again, along the input that is now widest relative to the root's box.
            root = self.inputs.upper[children.box] - self.inputs.lower[children.box]
            share = (children.upper - children.lower) / np.where(root > 0, root, np.inf)
            leaves = replace(children, cut=share.argmax(1))

    def _sets(self, leaves: Leaves) -> InputSet:
        return replace(self.inputs.select(leaves.box), lower=leaves.lower, upper=leaves.upper)

    def _bound(self, leaves: Leaves) -> Leaves:
        """Bound the leaves, close what can be closed, choose the next cuts; give back those that stay open."""
        leaf, slot, row = self.table.rows(leaves.box, leaves.open)
        value, slopes, points = self._values(self.search, leaves, leaf, row, trace=True)
        self.bounded += len(leaves)
        best = per_slot(leaf, slot, value, leaves.open.shape)
        shut = ((best > 0) | ~leaves.open).all(1)
        if shut.any():
            self._prove(leaves, np.flatnonzero(shut))
        leaves.value = np.where(leaves.open, best, np.inf).min(1)
        self._choose_cuts(leaves, leaf, slot, value, slopes, best)
        self._try_points(leaves, leaf, slot, row, points)
        return leaves.take(leaves.open.any(1))

    def _values(self, context, leaves, leaf, row, trace=False):
        arithmetic = context.arithmetic
        with torch.no_grad():
            batch = InputBatch.of(self._sets(leaves), arithmetic)
            bounds = run.propagate(context, batch)
            C = arithmetic.tensor(self.spec.C[row].toarray())
            rows = Rows.dense_rows(C, len(leaves), torch.as_tensor(leaf, device=C.device))
            d = arithmetic.tensor(self.spec.d[row])
            if not trace:
                return run.row_bounds(context, batch, bounds, rows, d, {}).double().cpu().numpy()
            seen: dict = {}
            value = run.row_bounds(context, batch, bounds, rows, d, {}, trace=seen)
            graph = context.graph
            parts = [
                seen[i].dense().flatten(1) if i in seen else C.new_zeros((len(row), graph.nodes[i].type.numel))
                for i in graph.inputs
            ]
            slopes = torch.cat(parts, 1)
            at = rows.box if rows.box is not None else torch.zeros(len(row), dtype=torch.long, device=C.device)
            points = torch.where(slopes > 0, batch.lower[at], batch.upper[at])
            return value.double().cpu().numpy(), slopes.double().cpu().numpy(), points

    def _prove(self, leaves: Leaves, index: np.ndarray) -> None:
        """Bound these leaves again in charged float64; slots that it refutes are closed."""
        part = leaves.take(index)
        leaf, slot, row = self.table.rows(part.box, part.open)
        value = self._values(self.proof, part, leaf, row)
        refuted = (value > 0) | ((value >= 0) & self.spec.strict[row])
        kept = leaves.open[index]
        kept[leaf[refuted], slot[refuted]] = False
        leaves.open[index] = kept

    def _choose_cuts(self, leaves, leaf, slot, value, slopes, best) -> None:
        """Along the input whose slope x width is largest in the rows that hold a leaf's worst clause open."""
        shown = np.where(leaves.open, best, np.inf)
        worst = shown.argmin(1)
        decisive = (slot == worst[leaf]) & (value >= best[leaf, slot])
        width = leaves.upper - leaves.lower
        score = np.zeros_like(width)
        np.maximum.at(score, leaf[decisive], np.abs(slopes[decisive]) * width[leaf[decisive]])
        # A share of the plain width keeps every input from being starved.
        root = self.inputs.upper[leaves.box] - self.inputs.lower[leaves.box]
        scale = score.max(1, keepdims=True, initial=0.0)
        score = score + 0.02 * scale * width / np.where(root > 0, root, np.inf) + 1e-30 * width
        leaves.cut = score.argmax(1)

    def _try_points(self, leaves, leaf, slot, row, points) -> None:
        """Evaluate where each row's linear bound is worst; hand counterexamples to the judge."""
        with torch.no_grad():
            y = run.evaluate(self.search, points)
        everything = np.flatnonzero(leaves.open[leaf, slot])
        if len(everything) == 0:
            return
        # A point belongs to one (leaf, row); it has to satisfy all rows of that row's clause.
        clause = self.spec.clause[row]
        atoms = self.table.count[clause]
        values = y.double().cpu().numpy()
        own = np.asarray(self.spec.C[row].multiply(values).sum(1)).ravel() + self.spec.d[row]
        candidates = everything[own[everything] <= 0]
        for i in candidates[np.argsort(own[candidates])][:64]:
            rows = slice(self.table.first[clause[i]], self.table.first[clause[i]] + atoms[i])
            if (self.spec.C[rows] @ values[i] + self.spec.d[rows] > 0).any():
                continue
            box = int(leaves.box[leaf[i]])
            self.witness = self.confirm(box, points[i].double().cpu().numpy())
            if self.witness is not None:
                return
