"""The recipe of mixed-integer programs: exact bounds of piecewise linear networks (Tjeng et al. 2019)."""

from __future__ import annotations

import math
import sys
import threading
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from absdom import registry
from absdom.domain import Answer, Encoded, Question, Recipe
from absdom.encoding import Encoding, Style
from absdom.registry import register_recipe
from absdom.solvers.lp.backend import SOLVERS, open_program
from absdom.solvers.milp.solver import solve, solver_name
from absdom.solvers.milp.tighten import tighten
from absdom.solvers.milp.tree import Tree
from absdom.solvers.workers import cores, run_all
from absdom.types import Clock

QUICK = 24  # programs of a tree before bounds are tightened and solvers are asked
INSIDE = 1e-6  # by which a point that counts may miss the input set, relative
LARGEST = sys.float_info.max  # the bound where no point is left: what follows computes with it
SOLVER_SHARE = 0.3  # of the time that is left, for a mixed-integer solver beside the trees


@dataclass(frozen=True)
class MixedInteger(Encoded):
    """Exact bounds by a search over the pieces of piecewise linear ops, each leaf closed by a safe linear bound.

    pre: the recipe of the bounds that encodings are built from. solver: "auto" (HiGHS, or scipy where that is
    missing), "highs", "scipy", "cbc" or any solver of PuLP, which looks for the lowest points and makes the claims;
    auto asks it only about what the search did not end soon. segments: pieces for smooth ops, which stay relaxed
    within each: then the answer is sound, and not exact. tighten: bounds of inner layers by linear programs first.
    gap: how far the bound may stay below the claim, relative to 1 + |claim|. seconds: for each group of rows.
    tolerance: how far solvers may miss rows (None: their default).
    """

    pre: Recipe | None = None
    solver: str = "auto"
    segments: int = 8
    tighten: bool = True
    gap: float = 5e-5
    budget: float = 4000.0
    seconds: float = math.inf
    tolerance: float | None = None
    name: ClassVar[str] = "milp"

    def __post_init__(self):
        solver_name(self.solver)

    @property
    def style(self) -> Style:
        return Style(integers=True, segments=self.segments)

    def solve(self, question: Question) -> Answer:
        return _Search(self, question).answer()


class _Row:
    """One group of rows: its trees so far, the best that is proved, and the lowest point."""

    def __init__(self, question: Question, number: int):
        self.rows = np.flatnonzero(question.group == number)
        self.C, self.d = question.C[self.rows].toarray(), question.d[self.rows]
        self.goal = None if question.goal is None else float(question.goal[number])
        self.lower, self.claimed = -math.inf, math.nan
        self.value, self.point = math.inf, None
        self.tree: Tree | None = None
        self.closed = False

    def program(self, encoding: Encoding):
        """(encoding, objective): one row's, or a conjunction's."""
        if len(self.rows) == 1:
            return encoding, encoding.objective(self.C[0], self.d[0])
        return encoding.with_maximum(self.C, self.d)

    def value_of(self, variables: np.ndarray, target: np.ndarray) -> float:
        used = np.where(target < 0, 0, target)
        return float((self.C @ np.where(target < 0, 0.0, variables[used]) + self.d).max())

    @property
    def refuted(self) -> bool:
        return self.goal is not None and self.value <= self.goal

    @property
    def open(self) -> bool:
        return not self.closed and not self.refuted


class _Search:
    """Relaxation, falsifier, trees, tightening, solver and trees again: each stage for the rows still open."""

    def __init__(self, recipe: MixedInteger, question: Question):
        self.recipe, self.question = recipe, question
        self.linear = recipe.solver if recipe.solver in SOLVERS else "auto"
        self.rows = [_Row(question, g) for g in range(question.groups)]
        self.clock = question.clock
        self.lock = threading.Lock()
        self.ended = self.told = False

    def answer(self) -> Answer:
        soon = (self._asked,) if self.recipe.solver != "auto" else ()
        for stage in (self._relaxed, self._attacked, *soon, self._quick, self._tightened, self._searched):
            if self.ended or self.clock.passed() or not self._open():
                break
            stage()
        n = len(self.question.encode(Style()).inputs)
        points = [np.full(n, np.nan) if row.point is None else row.point for row in self.rows]
        return Answer(
            np.array([row.lower for row in self.rows]),
            np.array([row.claimed for row in self.rows]),
            np.array(points).reshape(len(self.rows), n),
        )

    def _open(self) -> list[_Row]:
        return [row for row in self.rows if row.open]

    def _offer(self, row: _Row, inputs: np.ndarray, encoding: Encoding) -> float:
        """The value of a row at an input of the network, which is kept if it is the lowest."""
        variables = self.question.evaluate(inputs[None], encoding)[0]
        value = row.value_of(variables, encoding.target)
        # Outside the input set, where solvers and projections may end, values say nothing, but a point may lie nearby.
        inside = encoding.admits(variables, INSIDE)
        with self.lock:
            if value < row.value:
                if inside:
                    row.value, row.point = value, inputs
                if row.goal is not None and value <= row.goal:
                    self.ended |= self.question.found(inputs)
        # What is outside quadratic forms alone is inside for the trees, which know of none.
        return value if inside or encoding.admits(variables, INSIDE, curved=False) else math.inf

    def _learn(self, row: _Row, lower: float) -> None:
        row.lower = max(row.lower, min(lower, LARGEST))
        row.closed |= row.goal is not None and row.lower > row.goal

    def _relaxed(self) -> None:
        """Rows whose relaxation is above their goal need no search."""
        encoding = self.question.encode(Style())
        shared = open_program(encoding, self.linear, self.recipe.tolerance)
        for row in self._open():
            if self.ended or self.clock.passed():
                return
            whole, objective = row.program(encoding)
            alone = whole is not encoding
            program = open_program(whole, self.linear, self.recipe.tolerance) if alone else shared
            found = program.minimise(objective, limit=self.clock.left())
            self._learn(row, whole.safe_bound(objective, found.multipliers))
            row.claimed = found.value if row.closed else row.claimed
            if found.point is not None and row.open:
                self._offer(row, np.clip(found.point, whole.lower, whole.upper)[whole.inputs], encoding)

    def _attacked(self) -> None:
        """The falsifier's best points."""
        if self.question.attack is None:
            return
        encoding = self.question.encode(Style())
        for row in self._open():
            for c, d in zip(row.C, row.d, strict=True):
                if self.ended or self.clock.passed():
                    return
                self._offer(row, self.question.attack(c, float(d)), encoding)

    def _grow(self, row: _Row) -> Tree:
        """A tree over the encoding as it is known now, with the best value so far."""
        encoding = self.question.encode(self.recipe.style)
        if not encoding.complete and not self.told:
            self.told = True
            self.question.report(
                "milp: incomplete, ops or the input set are relaxed: the bound is sound and may be too low"
            )
        whole, objective = row.program(encoding)
        tree = Tree(
            whole, objective, row.goal, self.recipe.gap, lambda x: self._offer(row, x, encoding), self.question.report,
            self.linear, self.recipe.tolerance,
        )  # fmt: skip
        tree.value = row.value
        return tree

    def _run(self, row: _Row, threads: int, clock: Clock, leaves: float = math.inf) -> None:
        row.tree.run(clock, threads, leaves)
        self._learn(row, row.tree.lower)
        row.closed |= row.tree.done
        row.claimed = row.tree.value if row.closed and math.isnan(row.claimed) else row.claimed

    def _quick(self) -> None:
        for row in self._open():
            if self.ended or self.clock.passed():
                return
            row.tree = self._grow(row)
            self._run(row, 1, self._row_clock(), QUICK)

    def _row_clock(self) -> Clock:
        return Clock(min(self.clock.left(), self.recipe.seconds))

    def _tightened(self) -> None:
        """Narrower bounds of inner layers, and trees anew where they decide any choice."""
        if not self.recipe.tighten:
            return
        before = self.question.encode(self.recipe.style)
        share = Clock(min(0.3 * self.clock.left(), self.recipe.seconds))
        self.question = tighten(self.question, self.recipe.style, self.linear, share, cores())
        after = self.question.encode(self.recipe.style)
        self.question.report(f"binaries: {before.integer.sum():,} -> {after.integer.sum():,}")
        for row in self._open():
            row.tree = self._grow(row)

    def _searched(self) -> None:
        """The trees, to their end or the deadline, with a solver beside them that looks for low points."""
        left, over = self._open(), threading.Event()
        beside = threading.Thread(target=self._asked, args=(over,), daemon=True)
        if self.recipe.solver == "auto":
            beside.start()
        try:
            for row in left:
                if self.ended or self.clock.passed():
                    break
                if row.open:
                    self._run(row, cores(), self._row_clock())
                closed = sum(not r.open for r in self.rows)
                self.question.report(f"{closed} of {len(self.rows)} rows done, the last with bound {row.lower:.6g}")
        finally:
            over.set()
            if beside.ident is not None:
                beside.join()

    def _asked(self, over: threading.Event | None = None) -> None:
        """A mixed-integer solver in processes of its own: low points, and claims; `over`: beside trees, until set."""
        encoding, left = self.question.encode(self.recipe.style), self._open()
        limit = min(SOLVER_SHARE * self.clock.left() / (1 if over else len(left)), self.recipe.seconds)
        jobs = []
        for row in left:
            whole, objective = row.program(encoding)
            start = None if row.point is None else self.question.evaluate(row.point[None], encoding)[0]
            if start is not None and whole is not encoding:
                start = np.append(start, row.value)
            recipe = self.recipe
            jobs.append((whole, objective, recipe.solver, limit, recipe.gap / 2, row.goal, start, recipe.tolerance))
        known = over or threading.Event()
        for event in run_all(solve, jobs, limit, 1 if over else cores(), stop=lambda: known.is_set() or self.ended):
            row = left[event.job]
            if event.status == "failed":
                self.question.report(f"the solver {self.recipe.solver} gave no answer: {event.value}")
            if event.status != "done" or event.value.point is None:
                continue
            row.claimed = event.value.value if over is None else row.claimed
            inputs = np.clip(event.value.point, jobs[event.job][0].lower, jobs[event.job][0].upper)[encoding.inputs]
            if row.tree is None:
                self._offer(row, inputs, encoding)
            else:
                row.tree.offer(inputs)


@register_recipe("milp")
def milp(
    pre: Recipe | None = None, solver: str = "auto", segments: int = 8, tighten: bool = True, gap: float = 5e-5,
    budget: float = 4000.0, seconds: float = math.inf, tolerance: float | None = None,
) -> Recipe:  # fmt: skip
    pre = registry.recipes()["crown"]() if pre is None else pre
    return MixedInteger(pre, solver, segments, tighten, gap, budget, seconds, tolerance)
