"""Tangents to the convex quadratic forms of an input set, as rows of linear programs (Kelley 1960)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from absdom.encoding import TINY, Encoding, Objective, gamma
from absdom.solvers.lp.backend import Program, Solution

VIOLATION = 1e-7  # forms are about 1 at the centre


class Form:
    """One form q(v) = v' P v + a v + b <= slack over its columns, P symmetric and positive semidefinite."""

    def __init__(self, encoding: Encoding, number: int):
        forms = encoding.quadratics
        here, linear = forms.form == number, forms.linear[number]
        self.columns = np.unique(np.concatenate([forms.first[here], forms.second[here], linear.indices]))
        n = len(self.columns)
        first, second = (np.searchsorted(self.columns, t[here]) for t in (forms.first, forms.second))
        self.matrix = sp.csr_matrix((forms.value[here], (first, second)), shape=(n, n))
        self.double = (self.matrix + self.matrix.T).tocsr()
        self.linear = linear.toarray().ravel()[self.columns]
        self.constant, self.slack = float(forms.constant[number]), float(forms.slack[number])
        self.diagonal = self.double.nnz == np.count_nonzero(self.double.diagonal())
        self.bend = self._bend()

    def _bend(self) -> float:
        """v' P v >= -bend |v|^2: a Cholesky factorisation that ends proves it (Demmel 1989; Rump 2006)."""
        if self.diagonal:
            return 0.0 if (self.double.diagonal() >= 0).all() else np.inf
        dense = self.double.toarray() / 2
        try:
            factor = np.linalg.cholesky(dense)
        except np.linalg.LinAlgError:
            return np.inf
        if not np.isfinite(factor).all():  # LAPACK goes on over NaN
            return np.inf
        return 2 * float((np.trace(dense) + len(dense) * np.abs(dense).max()) * gamma(len(dense) + 2)) + TINY

    def value(self, v: np.ndarray) -> float:
        return float(v @ (self.matrix @ v) + self.linear @ v + self.constant)

    def lowest(self, slope: np.ndarray) -> np.ndarray | None:
        """About the point of the set q <= 0 where <slope, v> is least; None: not found."""
        if self.diagonal:
            diagonal = self.double.diagonal()
            centre, step = -self.linear / diagonal, slope / diagonal
        else:
            centre, step = np.linalg.solve(self.double.toarray(), np.stack([-self.linear, slope], 1)).T
        steep, depth = float(slope @ step) / 2, -self.value(centre)
        if not (steep > 0 and depth > 0):
            return None
        return centre - np.sqrt(depth / steep) * step

    def boundary(self, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
        """Where the way between two points leaves the set; `outside` where that is not known."""
        step = outside - inside
        a, c = float(step @ (self.matrix @ step)), self.value(inside)
        b = float(step @ (self.double @ inside) + step @ self.linear)
        if not (c < 0 < a):
            return outside
        return inside + min((-b + np.sqrt(b * b - 4 * a * c)) / (2 * a), 1.0) * step

    def tangent(self, v: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, float, float]:
        """(slope, high, slack) of a row that holds on the set: q(w) >= q(v) + q'(v) (w - v), whatever v is.

        reach: how large the columns can be; the rounding of the slope and of the right side is in the slack.
        """
        slope, size = self.double @ v + self.linear, abs(self.double) @ np.abs(v) + np.abs(self.linear)
        high = float(v @ (self.matrix @ v)) - self.constant
        weight = float(np.abs(v) @ (abs(self.matrix) @ np.abs(v))) + abs(self.constant)
        charge = float((size @ reach + weight) * gamma(2 * len(v) + 8))
        if self.bend > 0:
            charge += self.bend * float(((np.abs(v) + reach) ** 2).sum()) * 1.001
        return slope, high, self.slack + charge


def with_tangents(program: Program, objective: Objective, solution: Solution) -> Encoding | None:
    """The encoding with tangents that cut off the solution's point, where it violates convex forms; None: it does not.

    A tangent at the point of the set that the Lagrangian without tangents likes best is the one whose bound is known
    to be that of the set itself; one between the set and the solution cuts off the solution.
    """
    encoding, found = program.encoding, []
    forms = encoding.quadratics
    for number in np.flatnonzero(forms.convex):
        form = Form(encoding, number)
        v = solution.point[form.columns]
        if form.value(v) <= VIOLATION + form.slack or not np.isfinite(form.bend):
            continue
        lower, upper = encoding.lower[form.columns], encoding.upper[form.columns]
        before = slice(0, program.rows)
        slope = (objective.slope - encoding.matrix[before].T @ solution.multipliers[before])[form.columns]
        points = [form.boundary((lower + upper) / 2, v)]
        liked = form.lowest(slope)
        if liked is not None:
            points.append(liked)
        reach = np.maximum(np.abs(lower), np.abs(upper))
        found += [(form.columns, *form.tangent(point, reach)) for point in points if np.isfinite(point).all()]
    if not found:
        return None
    rows = np.repeat(np.arange(len(found)), [len(columns) for columns, *_ in found])
    columns, values = (np.concatenate([f[k] for f in found]) for k in (0, 1))
    more = sp.csr_matrix((values, (rows, columns)), shape=(len(found), encoding.matrix.shape[1]))
    return replace(
        encoding,
        matrix=sp.vstack([encoding.matrix, more]).tocsr(),
        low=np.concatenate([encoding.low, np.full(len(found), -np.inf)]),
        high=np.concatenate([encoding.high, [f[2] for f in found]]),
        slack=np.concatenate([encoding.slack, [f[3] for f in found]]),
    )
