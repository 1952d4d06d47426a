"""The recipe of linear programs: the triangle relaxation (Ehlers 2017; Wong and Kolter 2018, equation 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
from scipy.optimize import linprog

from absdom import registry
from absdom.domain import Answer, Encoded, Question, Recipe
from absdom.encoding import Encoding, Objective, Style
from absdom.registry import register_recipe


@dataclass(frozen=True)
class LinearProgram(Encoded):
    """Bounds by one linear program per row, made safe from its dual solution.

    pre: the recipe of the bounds that lines are built from; None: this recipe, layer by layer.
    """

    pre: Recipe | None = None
    budget: float = 4000.0
    name: ClassVar[str] = "lp"

    @property
    def style(self) -> Style:
        return Style()

    def solve(self, question: Question) -> Answer:
        encoding = question.encode(self.style)
        lower, claimed = np.full(question.groups, -np.inf), np.full(question.groups, np.nan)
        points = np.full((question.groups, len(encoding.inputs)), np.nan)
        for g in range(question.groups):
            if question.clock.passed():
                break
            rows = np.flatnonzero(question.group == g)
            C, d = question.C[rows].toarray(), question.d[rows]
            if len(rows) == 1:
                whole, objective = encoding, encoding.objective(C[0], d[0])
            else:
                whole, objective = encoding.with_maximum(C, d)
            value, multipliers, x = minimise(whole, objective)
            claimed[g] = value
            lower[g] = whole.safe_bound(objective, multipliers)
            if x is not None:
                points[g] = x[encoding.inputs]
        return Answer(lower, claimed, points)


def minimise(encoding: Encoding, objective: Objective):
    """(claimed value, multipliers of the rows, point or None)."""
    A, low, high = encoding.matrix, encoding.low, encoding.high
    up, down = np.flatnonzero(np.isfinite(high) & (high != low)), np.flatnonzero(np.isfinite(low) & (high != low))
    same = np.flatnonzero(low == high)
    found = linprog(
        objective.slope, sp.vstack([A[up], -A[down]]), np.concatenate([high[up], -low[down]]), A[same], low[same],
        np.stack([encoding.lower, encoding.upper], 1), method="highs",
    )  # fmt: skip
    y = np.zeros(A.shape[0])
    if found.status != 0:
        return np.nan, y, None
    y[same] = found.eqlin.marginals
    y[up] += found.ineqlin.marginals[: len(up)]
    y[down] -= found.ineqlin.marginals[len(up) :]
    return found.fun + objective.constant, y, found.x


@register_recipe("lp")
def lp(pre: Recipe | None = None, budget: float = 4000.0) -> Recipe:
    return LinearProgram(registry.recipes()["crown"]() if pre is None else pre, budget)
