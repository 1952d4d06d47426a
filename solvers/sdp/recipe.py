"""The recipe of semidefinite programs (Raghunathan, Steinhardt and Liang 2018), with the rows of the linear program."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from absdom import registry
from absdom.domain import Answer, Encoded, Question, Recipe
from absdom.encoding import Encoding, Objective, Size, Style
from absdom.errors import UsageError
from absdom.registry import register_recipe
from absdom.solvers.sdp import cliques, conic, products
from absdom.solvers.sdp.lift import Lifted, lift
from absdom.solvers.sdp.safe import safe_bound
from absdom.types import Clock

ONE_ORDER = 100  # matrices up to this order are not worth splitting


@dataclass(frozen=True)
class SemidefiniteProgram(Encoded):
    """Bounds by one semidefinite program per row, made safe from its dual solution.

    pre: the recipe of the bounds that lines are built from; None: this recipe, layer by layer. products: how many
    rounds of violated products of rows are added. cliques: "one" matrix, chordal "layers" or "variables", or "auto".
    solver, tolerance: any conic solver of cvxpy; "auto": Clarabel for small matrices, SCS otherwise.
    """

    pre: Recipe | None = None
    products: int = 1
    cliques: str = "auto"
    solver: str = "auto"
    tolerance: float | None = None
    budget: float = 4000.0
    name: ClassVar[str] = "sdp"

    def __post_init__(self):
        if self.cliques not in ("auto", *cliques.KINDS):
            raise UsageError(f"sdp(cliques={self.cliques}): not one of auto, {', '.join(cliques.KINDS)}")
        if self.products < 0:
            raise UsageError(f"sdp(products={self.products}): the rounds of products are at least 0")
        if self.tolerance is not None and not 0 < self.tolerance < math.inf:
            raise UsageError(f"sdp(tolerance={self.tolerance}): a tolerance is positive")
        if self.solver != "auto":
            conic.solver_for((), self.solver)

    @property
    def style(self) -> Style:
        return Style(quadratics=True)

    def size(self, predicted: Size) -> Size:
        return predicted_size(predicted, self.cliques, self.solver)

    def solve(self, question: Question) -> Answer:
        conic.solver_for((), self.solver)
        encoding = question.encode(self.style)
        answer = Answer.empty(question.groups, len(encoding.inputs))
        for g in range(question.groups):
            if question.clock.passed():
                break
            rows = np.flatnonzero(question.group == g)
            whole, objective = encoding.least(question.C[rows].toarray(), question.d[rows])
            goal = np.inf if question.goal is None else question.goal[g]
            limit = question.clock.left() / (question.groups - g)
            lower, claimed, point = self.bound(whole, objective, goal, Clock(limit))
            answer.lower[g], answer.claimed[g] = lower, claimed
            if point is not None:
                answer.points[g] = point
                if not lower > goal and question.found(point):
                    break
        return answer

    def bound(
        self, encoding: Encoding, objective: Objective, goal: float, clock: Clock
    ) -> tuple[float, float, np.ndarray | None]:
        """(safe lower bound, the solver's claim, the inputs "n" of its mean point), by rounds of cuts."""
        lifted, parts = split(encoding, objective, self.cliques)
        cut, pairs = lifted, []
        lower, claimed, point = -np.inf, np.nan, None
        if not lifted.is_bounded:
            return lower, claimed, point
        for round_ in range(self.products + 1):
            found = conic.minimise(cut, parts, self.solver, self.tolerance, clock.left())
            bound = safe_bound(cut, found.multipliers)
            if found.status == "infeasible":
                bound = max(bound, safe_bound(cut, found.multipliers.scaled(1e6)))
            if bound > lower or round_ == 0:
                lower, claimed = bound, found.value
            if found.moments is None:
                break
            columns = lifted.columns(first_moments(lifted, parts, found.moments))
            point = np.clip(columns, encoding.lower, encoding.upper)[encoding.inputs]
            if round_ == self.products or lower > goal or clock.passed():
                break
            pairs.append(products.violated(cut, parts, found.moments, products.PER_VARIABLE * lifted.order, 1e-4))
            if not len(pairs[-1][0]):
                break
            cut = products.with_products(lifted, *(np.concatenate(t) for t in zip(*pairs, strict=True)))
        return lower, claimed, point


def split(encoding: Encoding, objective: Objective, kind: str) -> tuple[Lifted, list[np.ndarray]]:
    """The lifted program and its cliques; "auto": one matrix, unless it is large and splitting makes it cheaper."""
    whole = lift(encoding, objective)
    parts = cliques.cliques(whole, "one")
    if kind == "one" or (kind == "auto" and whole.order <= ONE_ORDER):
        return whole, parts
    other = products.with_equalities(lift(encoding, objective, by_layer=True))
    finer = cliques.cliques(other, "layers" if kind == "auto" else kind)
    if kind == "auto" and cliques.work(finer) > cliques.work(parts) / 2:
        return whole, parts
    return other, finer


def predicted_size(predicted: Size, kind: str, solver: str) -> Size:
    """The orders of the matrices, and what is needed for them, from the variables of each layer."""
    own = [a for a, _ in predicted.layers]
    one = [2 + sum(own)]  # the one, and a column for the maximum of several rows
    both = [a + b for a, b in predicted.layers]
    chain = [2 + a + b for a, b in pairwise(both)] or one
    if kind == "layers" or (
        kind == "auto" and one[0] > ONE_ORDER and sum(k**3 for k in chain) < sum(k**3 for k in one) / 2
    ):
        blocks = chain
    else:
        blocks = one
    squares = sum(k * k for k in blocks)
    # cvxpy's and the solver's copies of the entries; the matrices of the proof; a factor of all entries at once.
    bytes_ = 1500 * squares + 12 * predicted.entries * 60 + 60 * (2 + sum(both)) ** 2
    if conic.is_interior(blocks, solver):
        bytes_ += 14 * squares**2
    return predicted._replace(blocks=tuple(blocks), megabytes=bytes_ / 2**20)


def first_moments(lifted: Lifted, parts: list[np.ndarray], moments: list[np.ndarray]) -> np.ndarray:
    w = np.zeros(lifted.order)
    for part, moment in zip(parts, moments, strict=True):
        w[part] = moment[0]
    return w[1:]


@register_recipe("sdp")
def sdp(
    pre: Recipe | None = None, products: int = 1, cliques: str = "auto", solver: str = "auto",
    tolerance: float | None = None, budget: float = 4000.0,
) -> Recipe:  # fmt: skip
    pre = registry.recipes()["crown"]() if pre is None else pre
    return SemidefiniteProgram(pre, products, cliques, solver, tolerance, budget)
