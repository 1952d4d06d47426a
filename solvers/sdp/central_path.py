"""The dual of a lifted program by primal-dual steps along the central path, in torch, for many objectives at once.

Maximise -sum D over multipliers v = (D, rows, forms) with Z = M_0 + sum_k v_k F_k positive semidefinite; D is the
matrix's diagonal, its first part (the corner) of any sign. Its own dual has moments X and slacks s >= 0 of the
multipliers that have a sign: <F_k, X> + s_k = -g_k, g the gain of v. Each F_k is a product p q' made symmetric, so
that the equations of a step need no more than the products of few functionals with two matrices (the direction of
Helmberg, Rendl, Vanderbei and Wolkowicz, SIAM J. Optim. 6, 1996, with Mehrotra's corrector, from an infeasible start).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from absdom.solvers.sdp.lift import Lifted

BACK, SHORTER, TRIES = 0.9, 0.8, 60  # how much of the way to the boundary is taken, and how it is found
FEASIBLE = 1e-6  # how far Z may be from M(v), relative to the cost, for v to give a bound
START = 0.1  # of the largest coefficient of the cost: Z and v to begin with, of which X and s are 1


class State(NamedTuple):
    """Multipliers v "R m" with their bounds "R" (-inf: not feasible yet), moments X "R N N", and gaps "R" (inf: not
    known)."""

    v: torch.Tensor
    bound: torch.Tensor
    moments: torch.Tensor
    gap: torch.Tensor


class Dual:
    """A lifted program with other `costs` "R N", N = 1+n; v "m" holds D, rows and forms, in this order."""

    def __init__(self, lifted: Lifted, costs: np.ndarray, device: str = "cpu"):
        def tensor(x):
            return torch.as_tensor(x, device=device)

        self.order, self.rows, self.forms = lifted.order, lifted.rows.shape[0], lifted.form_count
        self.cost = tensor(np.array(costs, dtype=np.float64))
        # The constant moves nothing but the bound, and a large one would hide the rest of the cost.
        self.constant = self.cost[:, 0].clone()
        self.cost[:, 0] = 0
        self.form = tensor(lifted.form)
        corner = (np.ones(self.rows), np.zeros(self.rows, dtype=int), np.arange(self.rows + 1))
        corner = sp.csr_matrix(corner, shape=(self.rows, self.order))
        # The sides q and p of rows and of products "W N".
        self.wide = tensor(sp.vstack([lifted.rows, lifted.right]).toarray())
        self.narrow = _sparse(sp.vstack([corner, lifted.left]), device)
        self.turned = _sparse(lifted.left.T, device)
        self.single = np.array_equal(lifted.form, np.arange(self.forms))
        signs = [np.arange(self.order) > 0, ~lifted.row_equality, ~lifted.form_equality]
        self.positive = tensor(np.concatenate(signs))
        self.degree = self.order + int(self.positive.sum())
        self.gain = torch.zeros(len(self.positive), dtype=torch.float64, device=device)
        self.gain[: self.order] = -1

    def matrix(self, v: torch.Tensor) -> torch.Tensor:
        """M(v) "R N N", without the constants of the costs."""
        return self._combined(v, self.cost)

    def change(self, v: torch.Tensor) -> torch.Tensor:
        """sum_k v_k F_k."""
        return self._combined(v, torch.zeros_like(self.cost))

    def _combined(self, v: torch.Tensor, cost: torch.Tensor) -> torch.Tensor:
        D, rows, forms = v.split((self.order, self.rows, self.forms), 1)
        M = _times(self.turned, forms[:, self.form, None] * self.wide[self.rows :])
        M = (M + M.mT) / 2
        linear = (cost + rows @ self.wide[: self.rows]) / 2
        M[:, 0] += linear
        M[:, :, 0] += linear
        M.diagonal(dim1=1, dim2=2).add_(D)
        return M

    def _sides(self, X: torch.Tensor):
        """(p'X "R W N", p'Xp, p'Xq, q'Xq "R W W")."""
        right = X @ self.wide.T
        left = _times(self.narrow, X)
        pp, pq, qq = _times(self.narrow, left.mT), _times(self.narrow, right), self.wide @ right
        return left, right, pp, pq, qq

    def _by_form(self, x: torch.Tensor) -> torch.Tensor:
        """Sums over the products of each form, along axis 1."""
        if self.single:
            return x
        first = self.order + self.rows
        sums = x.new_zeros((len(x), self.forms, *x.shape[2:]))
        return torch.cat([x[:, :first], sums.index_add(1, self.form, x[:, first:])], 1)

    def met(self, A: torch.Tensor) -> torch.Tensor:
        """<F_k, A> "R m" for symmetric A "R N N"."""
        sides = (_times(self.narrow, A) * self.wide).sum(2)
        return self._by_form(torch.cat([A.diagonal(dim1=1, dim2=2), sides], 1))

    def equations(self, X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
        """<F_k, X F_l Y>, made symmetric, "R m m"."""
        N = self.order
        left_x, right_x, pp_x, pq_x, qq_x = self._sides(X)
        left_y, right_y, pp_y, pq_y, qq_y = self._sides(Y)
        H = X.new_empty((len(X), N + len(self.wide), N + len(self.wide)))
        H[:, :N, :N] = X * Y
        H[:, N:, :N] = (left_x * right_y.mT).add_(left_y * right_x.mT).mul_(0.5)
        H[:, :N, N:] = H[:, N:, :N].mT
        cross = pq_x.mul_(pq_y.mT)
        H[:, N:, N:] = cross.add_(cross.mT.clone()).add_(pp_x.mul_(qq_y)).add_(pp_y.mul_(qq_x)).mul_(0.25)
        return self._by_form(self._by_form(H).mT)


def _sparse(matrix: sp.spmatrix, device: str) -> torch.Tensor:
    m = matrix.tocoo()
    where = torch.as_tensor(np.stack([m.row, m.col]).astype(np.int64))
    matrix = torch.sparse_coo_tensor(where, torch.as_tensor(m.data), m.shape, check_invariants=True)
    return matrix.coalesce().to(device)


def _times(matrix: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """matrix "A N" sparse, dense "R N C": "R A C"."""
    R, N, C = dense.shape
    if R == 1:
        return torch.sparse.mm(matrix, dense[0])[None]
    return torch.sparse.mm(matrix, dense.movedim(0, 1).reshape(N, R * C)).unflatten(1, (R, C)).movedim(1, 0)


def _inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(tuple(range(1, a.ndim)))


def _symmetric(A: torch.Tensor) -> torch.Tensor:
    return (A + A.mT) / 2


def _factor(H: torch.Tensor):
    """A solver with positive semidefinite H "R m m", by a ridge on its scaled form where there is need; H is lost."""
    scale = H.diagonal(dim1=1, dim2=2).clamp(min=1e-300).rsqrt()
    H.mul_(scale[:, :, None]).mul_(scale[:, None])
    failed = torch.ones(len(H), dtype=torch.bool, device=H.device)
    for ridge in 10.0 ** torch.arange(-13, 0):
        H.diagonal(dim1=1, dim2=2).add_(ridge * failed[:, None])
        L, info = torch.linalg.cholesky_ex(H)
        failed = info != 0
        if not bool(failed.any()):
            break
    return lambda rhs: torch.cholesky_solve((rhs * scale)[..., None], L)[..., 0] * scale


def _length(M: torch.Tensor, dM: torch.Tensor, x: torch.Tensor, dx: torch.Tensor) -> torch.Tensor:
    """A step "R" of at most 1 along which M stays definite and x positive, a share of the longest; 0: none found."""
    whole = x.new_ones((len(x), 1))
    length = torch.cat([whole, torch.where(dx < 0, -x / dx, torch.inf)], 1).amin(1)
    length = torch.where(dM.isfinite().all((1, 2)) & dx.isfinite().all(1), length, 0.0)
    for _ in range(TRIES):
        fine = _definite(_moved(M, length, dM))
        if bool(fine.all()):
            break
        length = torch.where(fine, length, length * SHORTER)
    length = torch.where(fine, length, 0.0)
    return torch.where(length < 1, BACK * length, length)


def _moved(x: torch.Tensor, length: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """x + length step, "R ..."; x itself where the length is 0, whatever the step."""
    length = length.reshape(-1, *[1] * (x.ndim - 1))
    return torch.where(length > 0, x + length * step, x)


def _definite(M: torch.Tensor) -> torch.Tensor:
    L, info = torch.linalg.cholesky_ex(M)
    return (info == 0) & L.diagonal(dim1=1, dim2=2).isfinite().all(1)


class _Point(NamedTuple):
    """An iterate: the dual's v and Z, the primal's X and s (s and v count where a multiplier has a sign)."""

    v: torch.Tensor
    Z: torch.Tensor
    X: torch.Tensor
    s: torch.Tensor

    def moved(self, step: _Point, dual: torch.Tensor, primal: torch.Tensor) -> _Point:
        lengths = (dual, dual, primal, primal)
        return _Point(*(_moved(x, length, dx) for x, length, dx in zip(self, lengths, step, strict=True)))

    def gap(self, positive: torch.Tensor) -> torch.Tensor:
        return _inner(self.X, self.Z) + _inner(self.s[:, positive], self.v[:, positive])


def follow(dual: Dual, steps: int) -> Iterator[State]:
    """Iterates, the first one before any step; the caller stops when it has seen enough.

    Rows go their own ways: one for which no step is found stays where it is."""
    positive, size = dual.positive, dual.cost.abs().amax(1) + 1e-100
    eye = torch.eye(dual.order, dtype=torch.float64, device=dual.cost.device).repeat(len(size), 1, 1)
    sign = positive.to(torch.float64).repeat(len(size), 1)
    at = _Point(START * size[:, None] * sign, START * size[:, None, None] * eye, eye, sign)
    for k in range(steps + 1):
        missing = dual.matrix(at.v) - at.Z
        feasible = missing.abs().amax((1, 2)) <= FEASIBLE * size
        bound, gap = dual.constant + at.v @ dual.gain, at.gap(positive)
        yield State(at.v, torch.where(feasible, bound, -torch.inf), at.X, torch.where(feasible, gap, torch.inf))
        if k == steps:
            return
        L, _ = torch.linalg.cholesky_ex(at.Z)
        step = _Step(dual, at, missing, torch.cholesky_inverse(L), gap)
        primal, back = step.lengths(ahead := step.towards(torch.zeros_like(gap)))
        # Mehrotra's choice: the better the step straight ahead, the less of centring.
        share = (at.moved(ahead, back, primal).gap(positive) / gap).clamp(1e-6, 1.0)
        share = torch.where(torch.minimum(primal, back) > 0.6, share**3, share)
        chosen = step.towards(share * gap / dual.degree, ahead)
        primal, back = step.lengths(chosen)
        if not bool((primal + back > 0).any()):  # a row that stands still does so for good; the others go on
            return
        at = at.moved(chosen, back, primal)


class _Step:
    """The linear equations at one iterate, factorised once."""

    def __init__(self, dual: Dual, at: _Point, missing: torch.Tensor, Y: torch.Tensor, gap: torch.Tensor):
        self.dual, self.at, self.missing, self.Y = dual, at, missing, Y
        self.positive = dual.positive
        self.inverse = torch.where(self.positive, 1 / torch.where(self.positive, at.v, 1.0), 0.0)
        H = dual.equations(at.X, Y)
        H.diagonal(dim1=1, dim2=2).add_(at.s * self.inverse)
        self.solve = _factor(H)
        self.met_inverse = dual.met(Y) + self.inverse
        self.met_missing = dual.met(_symmetric(at.X @ missing @ Y))

    def towards(self, mu: torch.Tensor, ahead: _Point | None = None) -> _Point:
        """The direction to X Z = mu, s v = mu; with a corrector for what the step `ahead` leaves out."""
        at, dual = self.at, self.dual
        right = dual.gain + mu[:, None] * self.met_inverse - self.met_missing
        twice, slack = 0.0, 0.0
        if ahead is not None:
            twice = _symmetric(ahead.X @ ahead.Z @ self.Y)
            slack = ahead.s * ahead.v * self.inverse
            right = right - dual.met(twice) - slack
        dv = self.solve(right)
        dZ = dual.change(dv) + self.missing
        dX = mu[:, None, None] * self.Y - at.X - _symmetric(at.X @ dZ @ self.Y) - twice
        ds = torch.where(self.positive, mu[:, None] * self.inverse - at.s - at.s * self.inverse * dv - slack, 0.0)
        return _Point(dv, dZ, dX, ds)

    def lengths(self, step: _Point) -> tuple[torch.Tensor, torch.Tensor]:
        """(primal, dual) steps "R"."""
        at, sign = self.at, self.positive
        return (
            _length(at.X, step.X, at.s[:, sign], step.s[:, sign]),
            _length(at.Z, step.Z, at.v[:, sign], step.v[:, sign]),
        )
