"""Safe lower bounds of groups of rows by linear programs. No torch: worker processes import this."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from absdom.encoding import Encoding, Objective
from absdom.solvers.lp.backend import Program, Solution, open_program
from absdom.solvers.lp.cuts import with_tangents

ROUNDS = 8  # of tangents to the convex forms of the input set


class Bounded(NamedTuple):
    """Of one group: its safe lower bound, the solver's claim (NaN: none) and the inputs "n" of its point, or None."""

    group: int
    lower: float
    claimed: float
    point: np.ndarray | None


def bound_groups(
    encoding: Encoding, C: sp.csr_matrix, d: np.ndarray, group: np.ndarray, solver: str, tolerance: float | None,
    limit: float,
) -> Iterator[Bounded]:  # fmt: skip
    """How low the largest row of each group can be, group by group until `limit` seconds have passed.

    C "R T", d "R", group "R" (sorted). Groups of one row share a program, which starts each solve from the last basis.
    """
    end, shared = time.monotonic() + limit, None
    for g in np.unique(group):
        if time.monotonic() >= end:
            return
        rows = np.flatnonzero(group == g)
        whole, objective = encoding.least(C[rows].toarray(), d[rows])
        if whole is encoding:
            shared = program = shared or open_program(encoding, solver, tolerance)
        else:
            program = open_program(whole, solver, tolerance)
        lower, solution = lowest(program, objective, end)
        claimed = solution.value if solution.status == "optimal" else math.nan
        point = None if solution.point is None else solution.point[encoding.inputs]
        yield Bounded(int(g), lower, claimed, point)


def lowest(program: Program, objective: Objective, end: float) -> tuple[float, Solution]:
    """The safe bound and the last solution; tangents that cut off the solver's points are added to the program."""
    best, last = -math.inf, None
    for k in range(ROUNDS + 1):
        solution = program.minimise(objective, limit=end - time.monotonic())
        bound = safe(program.encoding, objective, solution)
        if last is not None and solution.status != "optimal":
            break
        improved = bound > best + 1e-6 * (1 + abs(bound))
        best, last = max(best, bound), solution
        if solution.status != "optimal" or not improved or k == ROUNDS:
            break
        cut = with_tangents(program, objective, solution)
        if cut is None:
            break
        program.add_rows(cut)
    return best, last


def safe(encoding: Encoding, objective: Objective, solution: Solution) -> float:
    """What the multipliers prove, at least what the bounds of the columns prove alone."""
    zero = np.zeros_like(solution.multipliers)
    interval = encoding.safe_bound(objective, zero)
    if solution.status == "infeasible":  # nothing is in there: as much of the ray as puts the bound above the objective
        top = -encoding.safe_bound(Objective(-objective.slope, -objective.constant, objective.slack), zero)
        multiple = abs(top - interval) + 1 + abs(top)
        return max(interval, encoding.safe_bound(objective, multiple * solution.multipliers))
    return max(interval, encoding.safe_bound(objective, solution.multipliers))
