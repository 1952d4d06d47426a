"""A lifted program's relaxation in cvxpy: one positive semidefinite matrix of products per clique.

min <cost, X_0> over X with X_00 = 1, rows X_0 <= 0, <left_k right_k', X> summed per form <= 0 or = 0, X_jj <= 1, and X
positive semidefinite on every clique (Raghunathan, Steinhardt and Liang 2018; Batten et al. 2021 for the cliques).
The matrix's entries are one vector, so that cliques agree where they overlap without any equality.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from absdom.errors import UsageError
from absdom.solvers.sdp.lift import Lifted
from absdom.solvers.sdp.safe import Multipliers

SEMIDEFINITE = ("CLARABEL", "COPT", "CVXOPT", "MOSEK", "SCS", "SDPA")  # cvxpy's solvers with this cone
INTERIOR_ORDER = 40  # up to here an interior-point solver is faster than a first-order one


class Solution(NamedTuple):
    """status: "optimal", "infeasible", "stopped" or "failed". value: the solver's claim; moments: X per clique."""

    status: str
    value: float
    multipliers: Multipliers
    moments: list[np.ndarray] | None


def is_interior(orders: Sequence[int], solver: str) -> bool:
    """Is an interior-point solver asked for, or (auto) is the program small enough for one?"""
    return solver not in ("auto", "scs") or (solver == "auto" and sum(k * k for k in orders) <= INTERIOR_ORDER**2)


def solver_for(orders: Sequence[int], solver: str) -> str:
    """The name in cvxpy of the solver asked for; "auto": Clarabel for small cliques, SCS for others."""
    try:
        import cvxpy
    except ImportError:
        raise UsageError(
            "the method sdp needs the package cvxpy, which is not installed: pip install 'absdom[solvers]'"
        ) from None
    if solver == "auto":
        interior = is_interior(orders, solver) and "CLARABEL" in cvxpy.installed_solvers()
        solver = "clarabel" if interior else "scs"
    name = solver.upper()
    able = [s for s in cvxpy.installed_solvers() if s in SEMIDEFINITE]
    if name not in able:
        extra = f"'absdom[{'mosek' if name == 'MOSEK' else 'solvers'}]'"
        raise UsageError(
            f"sdp(solver={solver!r}): cvxpy finds no such solver that takes semidefinite programs, only "
            f"{', '.join(sorted(s.lower() for s in able))}: pip install {extra}, or choose another"
        )
    return name


class Entries:
    """The entries (i, j), i <= j, of the matrix of products that some clique holds, but for (0, 0), as one vector."""

    def __init__(self, order: int, parts: list[np.ndarray]):
        self.order, self.parts = order, parts
        keys = [(p[:, None] * order + p[None])[np.triu_indices(len(p))] for p in parts]
        self.keys = np.setdiff1d(np.concatenate(keys), [0])

    def positions(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        key = np.minimum(first, second) * self.order + np.maximum(first, second)
        found = np.searchsorted(self.keys, key)
        held = (found < len(self.keys)) & (self.keys[np.minimum(found, len(self.keys) - 1)] == key)
        if not (held | (key == 0)).all():
            raise ValueError("a form has a product that no clique holds")
        return np.where(key == 0, len(self.keys), found)

    def functionals(self, row, first, second, value, count: int) -> tuple[sp.csr_matrix, np.ndarray]:
        """(matrix "count E", constant "count") of the sums of value X_first,second per row."""
        shape = (count, len(self.keys) + 1)
        whole = sp.csr_matrix((value, (row, self.positions(first, second))), shape=shape).tocsc()
        return whole[:, :-1].tocsr(), whole[:, -1].toarray().ravel()

    def clique(self, part: np.ndarray) -> tuple[sp.csr_matrix, np.ndarray]:
        """The matrix of one clique, flat."""
        k = len(part)
        first, second = np.repeat(part, k), np.tile(part, k)
        return self.functionals(np.arange(k * k), first, second, np.ones(k * k), k * k)


def form_products(lifted: Lifted):
    """(form, first, second, value): the products of all forms, entry by entry."""
    left, right = lifted.left, lifted.right
    widths, counts = np.diff(right.indptr), np.diff(left.indptr)
    k = np.repeat(np.arange(left.shape[0]), counts)
    repeats = widths[k]
    row = np.repeat(k, repeats)
    inner = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    at = right.indptr[row] + inner
    value = np.repeat(left.data, repeats) * right.data[at]
    return lifted.form[row], np.repeat(left.indices, repeats), right.indices[at], value


def minimise(
    lifted: Lifted, parts: list[np.ndarray], solver: str = "auto", tolerance: float | None = None, limit: float = np.inf
) -> Solution:
    """Solve the relaxation with one of cvxpy's solvers, for at most `limit` seconds."""
    import cvxpy

    name = solver_for([len(p) for p in parts], solver)
    entries = Entries(lifted.order, parts)
    if not len(entries.keys):  # the box is a point
        nothing = Multipliers(np.zeros(lifted.rows.shape[0]), np.zeros(lifted.form_count), np.zeros(0))
        return Solution("optimal", float(lifted.cost[0]), nothing, [np.ones((1, 1)) for _ in parts])
    x = cvxpy.Variable(len(entries.keys))
    slope, first = lifted.cost[1:], np.zeros(lifted.order - 1, dtype=np.int64)
    scale = max(float(np.abs(slope).max(initial=0.0)), 2.0**-200)
    cost, _ = entries.functionals(first, first, 1 + np.arange(len(slope)), slope / scale, 1)
    constraints, places = [], []
    for kind, (matrix, constant, same) in enumerate(_systems(lifted, entries)):
        for chosen, equality in ((np.flatnonzero(same), True), (np.flatnonzero(~same), False)):
            if len(chosen):
                value = matrix[chosen] @ x + constant[chosen]
                constraints.append(value == 0 if equality else value <= 0)
                places.append((kind, chosen))
    for part in parts:
        matrix, constant = entries.clique(part)
        constraints.append(cvxpy.reshape(matrix @ x + constant, (len(part), len(part)), order="C") >> 0)
    found = _solve(cvxpy.Problem(cvxpy.Minimize((cost @ x)[0]), constraints), name, _options(name, tolerance, limit))
    y = [np.zeros(lifted.rows.shape[0]), np.zeros(lifted.form_count), np.zeros(len(slope))]
    for (kind, chosen), constraint in zip(places, constraints, strict=False):
        dual = found.dual_vars.get(constraint.id)
        if dual is not None:
            y[kind][chosen] = np.ravel(dual)
    status = _status(found.status)
    point = found.primal_vars.get(x.id) if found.primal_vars else None
    moments = None
    if point is not None and np.isfinite(point).all():
        moments = [_matrix(entries, part, point) for part in parts]
    value = found.opt_val if status in ("optimal", "stopped") and found.opt_val is not None else np.nan
    return Solution(status, float(value) * scale + lifted.cost[0], Multipliers(*(scale * t for t in y)), moments)


def _systems(lifted: Lifted, entries: Entries):
    """(matrix, constant, equality) over the entries: of the rows, of the forms and of the squares."""
    rows, inner = lifted.rows.tocoo(), np.arange(1, lifted.order)
    none, free = np.zeros_like(rows.row), np.zeros(len(inner), dtype=bool)
    yield *entries.functionals(rows.row, none, rows.col, rows.data, rows.shape[0]), lifted.row_equality
    yield *entries.functionals(*form_products(lifted), lifted.form_count), lifted.form_equality
    squares, _ = entries.functionals(inner - 1, inner, inner, np.ones(len(inner)), len(inner))
    yield squares, -np.ones(len(inner)), free


def _matrix(entries: Entries, part: np.ndarray, point: np.ndarray) -> np.ndarray:
    matrix, constant = entries.clique(part)
    return (matrix @ point + constant).reshape(len(part), len(part))


def _solve(problem, name: str, options: dict):
    """cvxpy's solution with the multipliers of any status: `Problem.solve` gives none where a solver gave up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data, chain, inverse = problem.get_problem_data(name, solver_opts=options)
        raw = chain.solve_via_data(problem, data, solver_opts=options)
        return chain.invert(raw, inverse)


def _options(name: str, tolerance: float | None, limit: float) -> dict:
    """The names that solvers have for the same two things; others run with their defaults."""
    limit = max(limit, 0.01)
    options: dict = {}
    if name == "SCS":
        tolerance = 1e-5 if tolerance is None else tolerance
        options = {"eps_abs": tolerance, "eps_rel": tolerance, "max_iters": 100_000}
        options |= {"time_limit_secs": limit} if np.isfinite(limit) else {}
    elif name == "CLARABEL":
        options = {"accept_unknown": True}
        if tolerance is not None:
            options |= {"tol_gap_abs": tolerance, "tol_gap_rel": tolerance, "tol_feas": tolerance}
        options |= {"time_limit": limit} if np.isfinite(limit) else {}
    return options


def _status(status: str) -> str:
    if status == "optimal":
        return "optimal"
    if status in ("optimal_inaccurate", "user_limit"):
        return "stopped"
    return "infeasible" if status.startswith("infeasible") else "failed"
