"""Branch and bound on the phases of ReLU-like neurons: for networks with many inputs. Leaves are rows of tensors.

The bounds of the root are proved once, in charged float64. A leaf takes them over, with the ends of its split neurons
moved to 0; its rows are swept back with slopes and split multipliers (beta) that gradient ascent improves in float32.
What float32 calls closed is swept once more in charged float64 with the same knobs: that alone closes it.
Sources: Wang et al. 2021 (beta-CROWN); Bunel et al. 2020 (scores).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from absdom.arithmetic import PROOF, SEARCH
from absdom.constraints import Constraints, SplitConstraint
from absdom.domain import KnobStart, NodeBounds, Recipe
from absdom.errors import Deadline
from absdom.ir.op import Elementwise
from absdom.plan import memory, run, sweeps
from absdom.problem import Problem
from absdom.rows import Rows
from absdom.sets import InputBatch
from absdom.solvers.ascent import ascend
from absdom.solvers.bab.leaf_lp import close_leaf
from absdom.types import Clock
from absdom.verdict import Witness

STEPS = 10  # of ascent per leaf
ROOT_STEPS = 40
SLOPE_RATE = 0.1
SPLIT_RATE = 0.25  # times the typical size of a row at the node
LARGEST_BATCH = 512


def splittable(problem: Problem) -> bool:
    """Is there a neuron whose phase can be fixed?"""
    graph = problem.engine.graph
    return any(isinstance(n.op, Elementwise) and n.op.splittable for n in graph.nodes)


@dataclass(eq=False)
class Leaves:
    """N open leaves over U unstable neurons: clause, phase (-1, 0, 1), slopes, multipliers, next neuron, value."""

    clause: torch.Tensor  # "N"
    phase: torch.Tensor  # int8 "N U"
    slope: torch.Tensor  # float16 "N U"
    beta: torch.Tensor  # float16 "N U"
    score: torch.Tensor  # float16 "N U": how much a split of each neuron promises; 0 where it is split
    value: torch.Tensor  # float32 "N"

    def __len__(self) -> int:
        return len(self.clause)

    def take(self, index) -> Leaves:
        return Leaves(*(getattr(self, f)[index] for f in self.__dataclass_fields__))

    def join(self, other: Leaves) -> Leaves:
        return Leaves(*(torch.cat([getattr(self, f), getattr(other, f)]) for f in self.__dataclass_fields__))


class ReluSplit:
    """The search over one box of the property."""

    def __init__(self, problem: Problem, recipe: Recipe, box: int, confirm: Callable, clock: Clock, progress=None):
        self.problem, self.box, self.confirm, self.clock, self.progress = problem, box, confirm, clock, progress
        self.spec = problem.property.spec
        self.recipe = recipe
        self.bounded = 0
        self.witness: Witness | None = None
        self.search = problem.engine.context(recipe, SEARCH)
        self.proof = problem.engine.context(recipe, PROOF)
        self.graph, self.device = self.search.graph, self.search.arithmetic.device
        inputs = problem.property.inputs.select([box])
        self.batch = {c: InputBatch.of(inputs, c.arithmetic) for c in (self.search, self.proof)}
        with torch.no_grad():
            proved = run.propagate(self.proof, self.batch[self.proof], clock)
        self.root = {self.proof: proved, self.search: {i: _cast(b) for i, b in proved.items()}}
        self._index_neurons()

    def _index_neurons(self) -> None:
        """Per splittable node: its input node and the flat positions of its unstable neurons; `start`: place in "U"."""
        self.readers, start = [], 0
        for i in self.proof.schedule.final.nodes[::-1]:
            op = self.graph.nodes[i].op
            if isinstance(op, Elementwise) and op.splittable:
                source = self.graph.nodes[i].inputs[0]
                b = self.root[self.proof][source]
                position = torch.nonzero(~op.is_exact(b.lower, b.upper).flatten()).flatten()
                self.readers.append((i, source, position, start))
                start += len(position)
        self.neurons = start

    def run(self) -> tuple[np.ndarray, float]:
        """(clauses of this box that were refuted, least value of an open leaf)."""
        clauses = np.flatnonzero((self.spec.box == self.box) & ~self.problem.closed)
        count = len(clauses)
        blank = torch.zeros(count, self.neurons, device=self.device)
        roots = Leaves(
            torch.as_tensor(clauses, device=self.device), blank.to(torch.int8),
            self._adaptive().expand(count, -1).half(), blank.half(), blank.half(),
            torch.full((count,), -torch.inf, device=self.device),
        )  # fmt: skip
        size = self._batch_size()
        leaves = roots.take(slice(0, 0))
        for part in range(0, count, size):
            if self.clock.passed():
                leaves = leaves.join(roots.take(slice(part, None)))
                break
            leaves = leaves.join(self._bound(roots.take(slice(part, part + size)), ROOT_STEPS))
        stuck = leaves.take(slice(0, 0))  # every neuron is fixed, and not even the leaf's LP proves it
        while len(leaves) and self.witness is None and not self.clock.passed():
            order = leaves.value.argsort(stable=True)
            chosen, rest = leaves.take(order[: max(1, size // 2)]), leaves.take(order[max(1, size // 2) :])
            fixed = (chosen.score > 0).sum(1) == 0
            for k in torch.nonzero(fixed).flatten().tolist():
                leaf = chosen.take(slice(k, k + 1))
                if not close_leaf(self, leaf):
                    stuck = stuck.join(leaf)
            chosen = chosen.take(~fixed)
            leaves = rest if len(chosen) == 0 else rest.join(self._bound(self._split(chosen, size), STEPS))
            if self.progress is not None:
                self.progress(self.bounded, len(leaves), float(leaves.value.min()) if len(leaves) else np.inf)
        leaves = leaves.join(stuck)
        closed = np.setdiff1d(clauses, leaves.clause.cpu().numpy()) if self.witness is None else clauses[:0]
        return closed, float(leaves.value.min()) if len(leaves) else np.inf

    def _adaptive(self) -> torch.Tensor:
        parts = []
        for i, source, position, _ in self.readers:
            b = self.root[self.search][source]
            parts.append(self.graph.nodes[i].op.initial(b.lower, b.upper)["slope"].flatten()[position])
        return torch.cat(parts)[None] if parts else torch.zeros(1, 0, device=self.device)

    def _batch_size(self) -> int:
        nodes = self.search.schedule.final.nodes
        rows = memory.chunk_rows(self.graph, nodes, 4, self.search.arithmetic.device, memory.CHUNK_BYTES)
        per_leaf = max(1, int(np.bincount(self.spec.clause).max()))
        by_bytes = memory.CHUNK_BYTES // memory.box_bytes(self.graph, 8)
        return int(np.clip(min(rows // (2 * per_leaf), by_bytes), 2, LARGEST_BATCH))

    def _split(self, leaves: Leaves, size: int) -> Leaves:
        """Fix the phase of each leaf's most promising neurons, so many that the children fill a batch."""
        depth = 1
        while len(leaves) * 2 ** (depth + 1) <= size and bool(((leaves.score > 0).sum(1) > depth).all()):
            depth += 1
        for _ in range(depth):
            pick = leaves.score.argmax(1)
            rows = torch.arange(len(leaves), device=self.device)
            halves = []
            for phase in (-1, 1):
                half = leaves.take(rows)
                half.phase[rows, pick] = phase
                half.score[rows, pick] = 0
                halves.append(half)
            leaves = halves[0].join(halves[1])
        return leaves

    def bounds(self, context, phase: torch.Tensor) -> dict[int, NodeBounds]:
        """The root's bounds with the ends of split neurons at 0: "N *n" at the inputs of readers, "1 *n" elsewhere."""
        bounds = dict(self.root[context])
        for _, source, position, start in self.readers:
            base, part = bounds[source], phase[:, start : start + len(position)]
            lower = base.lower.reshape(len(base.lower), -1).expand(len(phase), -1).clone()
            upper = base.upper.reshape(len(base.upper), -1).expand(len(phase), -1).clone()
            low, high = lower[:, position], upper[:, position]
            lower[:, position] = torch.where(part > 0, low.clamp(min=0), low)
            upper[:, position] = torch.where(part < 0, high.clamp(max=0), high)
            shape = (len(phase), *base.lower.shape[1:])
            bounds[source] = replace(base, lower=lower.reshape(shape), upper=upper.reshape(shape))
        return bounds

    def knobs(self, context, leaves: Leaves, slope, beta, bounds):
        """Slopes and multipliers "N U" as knobs per node, and as (constraint, multiplier "N *n") pairs."""
        dtype = context.arithmetic.dtype
        knobs, items = {}, []
        for i, source, position, start in self.readers:
            shape = bounds[source].lower.shape
            here = slice(start, start + len(position))
            full = torch.zeros(len(leaves), shape[1:].numel(), dtype=dtype, device=self.device)
            knobs[i] = {"slope": full.index_copy(1, position, slope[:, here]).reshape(shape)}
            signs = full.index_copy(1, position, -leaves.phase[:, here].to(dtype)).reshape(shape)
            force = full.index_copy(1, position, beta[:, here]).reshape(shape)
            items.append((SplitConstraint(source, signs), force))
        return knobs, items

    def _sweep(self, context, leaves: Leaves, slope, beta, bounds, trace=None) -> torch.Tensor:
        """Per leaf the best lower bound over the rows of its clause; knobs "N U" in the context's arithmetic."""
        dtype = context.arithmetic.dtype
        knobs, items = self.knobs(context, leaves, slope, beta, bounds)
        row, leaf = self.rows(leaves)
        C = context.arithmetic.tensor(self.spec.C[row].toarray())
        d = context.arithmetic.tensor(self.spec.d[row])
        at = torch.as_tensor(leaf, device=self.device)
        plain = len(row) == len(leaves)
        rows = Rows.dense_rows(C, len(leaves), None if plain else at)
        items = [(constraint, force if plain else force[at]) for constraint, force in items]
        value = run.row_bounds(
            context, self.batch[context], bounds, rows, d, None,
            constraints=Constraints.of(*items), knobs=knobs, trace=trace,
        )  # fmt: skip
        strict = torch.as_tensor(self.spec.strict[row], device=self.device)
        value = torch.where(strict & (value == 0), torch.finfo(dtype).tiny, value)
        return value if plain else value.new_full((len(leaves),), -torch.inf).scatter_reduce(0, at, value, "amax")

    def rows(self, leaves: Leaves) -> tuple[np.ndarray, np.ndarray]:
        """(row of the spec, leaf) of every row to sweep."""
        clause = leaves.clause.cpu().numpy()
        first = np.searchsorted(self.spec.clause, clause)
        count = np.searchsorted(self.spec.clause, clause, side="right") - first
        leaf = np.repeat(np.arange(len(leaves)), count)
        return np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[leaf], leaf

    def _bound(self, leaves: Leaves, steps: int) -> Leaves:
        """Improve, close, score; the leaves that stay open."""
        self.bounded += len(leaves)
        bounds = self.bounds(self.search, leaves.phase)

        def value(knobs):
            return self._sweep(self.search, leaves, knobs["slope"], knobs["beta"], bounds)

        if self.neurons:
            starts = {
                "slope": KnobStart(leaves.slope.float(), rate=SLOPE_RATE),
                "beta": KnobStart(leaves.beta.float(), high=torch.inf, rate=SPLIT_RATE * self._size(leaves)),
            }
            leaves.value, knobs = ascend(value, starts, steps, self.clock)
            leaves.slope, leaves.beta = knobs["slope"].half(), knobs["beta"].half()
        with torch.no_grad():
            trace: dict = {}
            slope, beta = leaves.slope.float(), leaves.beta.float()
            found = self._sweep(self.search, leaves, slope, beta, bounds, trace)
            leaves.value = torch.maximum(found, leaves.value)
            self._score(leaves, bounds, trace)
            self._try_points(leaves, trace)
            shut = torch.nonzero(leaves.value > 0).flatten()
            if len(shut) == 0 or self.witness is not None:
                return leaves
            part = leaves.take(shut)
            proved = self._sweep(
                self.proof, part, part.slope.double(), part.beta.double(), self.bounds(self.proof, part.phase)
            )
            keep = torch.ones(len(leaves), dtype=torch.bool, device=self.device)
            keep[shut[proved > 0]] = False
            # Float32 was too hopeful there: the leaf stays open, on the value that was proved.
            leaves.value[shut] = proved.float().clamp(max=0)
            return leaves.take(keep)

    def _size(self, leaves: Leaves) -> float:
        """The typical size of a row's coefficients: what multipliers are measured in."""
        row, _ = self.rows(leaves)
        return float(np.abs(self.spec.C[row].data).mean()) if len(row) else 1.0

    def _score(self, leaves: Leaves, bounds, trace) -> None:
        """What the two lines of each open neuron cost the row: |nu-| x intercept, and part of nu+ x the lower gap."""
        leaf = torch.as_tensor(self.rows(leaves)[1], device=self.device)
        score = torch.zeros(len(leaves), self.neurons, device=self.device)
        for i, source, position, start in self.readers:
            if i not in trace:
                continue
            here = slice(start, start + len(position))
            nu = trace[i].dense().reshape(len(leaf), -1)[:, position]
            b = bounds[source]
            low, high = (t.reshape(len(t), -1)[:, position][leaf] for t in (b.lower, b.upper))
            slope = leaves.slope[:, here].float()[leaf]
            top = -low * high / (high - low).clamp(min=1e-30)
            gap = torch.minimum(-slope * low, (1 - slope) * high)
            gain = nu.clamp(max=0).abs() * top + 0.3 * nu.clamp(min=0) * gap
            gain = torch.where((leaves.phase[:, here][leaf] == 0) & (low < 0) & (high > 0), gain.clamp(min=1e-20), 0.0)
            index = leaf[:, None].expand_as(gain)
            score[:, here] = score[:, here].scatter_reduce(0, index, gain, "amax")
        scale = score.amax(1, keepdim=True).clamp(min=1e-30) if self.neurons else 1.0
        # Half precision: as shares of the best, with a floor that keeps every open neuron eligible.
        leaves.score = torch.where(score > 0, (score / scale).clamp(min=1e-6), 0.0).half()

    def _try_points(self, leaves: Leaves, trace) -> None:
        """Evaluate where each leaf's plane is lowest; hand counterexamples to the judge."""
        batch = self.batch[self.search]
        slopes = sweeps.input_slopes(self.graph, trace, trace[self.search.schedule.target])
        row, leaf = self.rows(leaves)
        points = batch.select(torch.zeros(len(slopes), dtype=torch.long, device=slopes.device))
        points = points.lowest(slopes[:, None])[:, 0]
        y = run.evaluate(self.search, points).double().cpu().numpy()
        own = np.asarray(self.spec.C[row].multiply(y).sum(1)).ravel() + self.spec.d[row]
        candidates = np.flatnonzero(own <= 0)
        for i in candidates[np.argsort(own[candidates])][:8]:
            atoms = np.flatnonzero(self.spec.clause == self.spec.clause[row[i]])
            if (self.spec.C[atoms] @ y[i] + self.spec.d[atoms] <= 0).all():
                self.witness = self.confirm(self.box, points[i].double().cpu().numpy())
                if self.witness is not None:
                    return


def _cast(bounds: NodeBounds) -> NodeBounds:
    """Proved bounds as float32, for the search: nearest, not outward, because float32 closes nothing."""
    return NodeBounds(bounds.lower.float(), bounds.upper.float(), None, bounds.provenance)


def relu_split(problem: Problem, recipe: Recipe, confirm: Callable, clock: Clock, progress=None):
    """(problem, witness or None, leaves, least open value), box by box."""
    closed, leaves, least = problem.closed.copy(), 0, np.inf
    for box in np.unique(problem.property.spec.box[problem.open]):
        if clock.passed():
            break
        try:
            search = ReluSplit(problem, recipe, int(box), confirm, clock, progress)
        except Deadline:
            break
        done, value = search.run()
        leaves, least = leaves + search.bounded, min(least, value)
        closed[done] = True
        if search.witness is not None:
            return problem, search.witness, leaves, least
    return replace(problem, closed=closed), None, leaves, least
