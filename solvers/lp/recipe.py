"""The recipe of linear programs: the triangle relaxation (Ehlers 2017; Wong and Kolter 2018, equation 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from absdom import registry
from absdom.domain import Answer, Encoded, Question, Recipe
from absdom.encoding import Encoding, Style
from absdom.errors import UsageError
from absdom.registry import register_recipe
from absdom.solvers.lp.backend import demand_solver
from absdom.solvers.lp.bounds import Bounded, bound_groups
from absdom.solvers.workers import cores, run_all

ALONE = 2e10  # rows x entries x groups below which processes cost more than they save


@dataclass(frozen=True)
class LinearProgram(Encoded):
    """Bounds by one linear program per row, made safe from its dual solution.

    pre: the recipe of the bounds that lines are built from; None: this recipe, layer by layer. solver: "highs",
    "scipy", or "auto", the first of them that is installed; tolerance: how far it may miss rows and optimality (None:
    its default).
    """

    pre: Recipe | None = None
    budget: float = 4000.0
    solver: str = "auto"
    tolerance: float | None = None
    name: ClassVar[str] = "lp"

    def __post_init__(self):
        demand_solver(self.solver)

    @property
    def style(self) -> Style:
        return Style()

    def solve(self, question: Question) -> Answer:
        encoding, goal = question.encode(self.style), question.goal
        answer = Answer.empty(question.groups, len(encoding.inputs))
        for g, bound, claim, point in self._bounds(question, encoding):
            answer.lower[g], answer.claimed[g] = bound, claim
            if point is not None:
                answer.points[g] = point
                if goal is not None and claim <= goal[g] and question.found(point):
                    break
            if question.clock.passed():
                break
        return answer

    def _bounds(self, question: Question, encoding: Encoding) -> Iterator[Bounded]:
        """Here, or in processes over the cores where there is enough to do."""
        left, groups = question.clock.left(), np.arange(question.groups)
        common = (self.solver, self.tolerance)
        count = min(cores(), question.groups)
        if count == 1 or question.groups * encoding.matrix.shape[0] * encoding.matrix.nnz < ALONE:
            yield from bound_groups(encoding, question.C, question.d, question.group, *common, left)
            return
        parts = [np.flatnonzero(np.isin(question.group, part)) for part in np.array_split(groups, count)]
        jobs = [(encoding, question.C[p], question.d[p], question.group[p], *common, left) for p in parts]
        for event in run_all(bound_groups, jobs, left, count):
            if event.status == "progress":
                yield event.value
            elif event.status == "failed":
                question.report(f"{self.name}: {event.value}; its rows stay open")


@register_recipe("lp")
def lp(
    pre: Recipe | None = None, budget: float = 4000.0, solver: str = "auto", tolerance: float | None = None
) -> Recipe:
    """Linear programs over the bounds of `pre` (crown where none is named)."""
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance > 0):
        raise UsageError(f"lp(tolerance={tolerance:g}): the tolerance is a number above 0")
    demand_solver(solver)
    return LinearProgram(registry.recipes()["crown"]() if pre is None else pre, budget, solver, tolerance)
