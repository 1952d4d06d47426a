"""A bound that holds over the reals, from any multipliers of a lifted program: the only way a claim is made.

For all feasible u = (1, w): cost u >= u' M u - charges, M the symmetric matrix of the Lagrangian, and for any D with
D_j >= 0 (j > 0): u' M u >= u' (M + diag D) u - sum D, as w_j^2 <= 1; D_0 may have any sign. Where a floating-point
Cholesky factorisation of B = M + diag D runs to its end, B = R'R - E with |E_ij| <= c sqrt(B_ii B_jj), c =
gamma_{n+1} / (1 - gamma_{n+1}) in any order of summation (Demmel 1989; Rump, BIT 46, 2006, theorem 2.3), so that
u' B u >= -c (sum_i sqrt B_ii)^2.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotri, dpotrs

from absdom.encoding import TINY, gamma
from absdom.solvers.sdp.lift import SURPLUS, Lifted

NEWTON_STEPS = 50
NEAR = 1.5  # the decrement of Newton's method at which a step is still nearly whole


class Multipliers(NamedTuple):
    """Any numbers. rows "m" and forms "Q" count where they are >= 0, those of equalities always; squares "n" >= 0."""

    rows: np.ndarray
    forms: np.ndarray
    squares: np.ndarray

    def scaled(self, factor: float) -> Multipliers:
        return Multipliers(*(factor * t for t in self))


def safe_bound(lifted: Lifted, multipliers: Multipliers, polish: bool = True) -> float:
    """A lower bound of the lifted program's objective. polish: move `squares` where that makes the bound better."""
    with np.errstate(all="ignore"):
        size = np.abs(lifted.cost).sum() + lifted.cost_slack
        trivial = lifted.cost[0] - np.abs(lifted.cost[1:]).sum() - lifted.cost_slack
        trivial -= size * gamma(lifted.order) + TINY
        trivial = trivial if np.isfinite(trivial) else -np.inf
        rows, forms, squares = admissible(lifted, multipliers)
        M, charge = lagrangian(lifted, rows, forms)
        if not (np.isfinite(charge) and np.isfinite(M).all()):
            return float(trivial)
        D = diagonal(M, squares, polish)
        found = -np.inf if D is None else proved(M, D) - charge
        found -= np.abs(found) * gamma(2)
    return float(max(trivial, found)) if np.isfinite(found) else float(trivial)


def admissible(lifted: Lifted, multipliers: Multipliers) -> Multipliers:
    """The multipliers as finite numbers of the signs that they need."""
    rows, forms, squares = (
        np.nan_to_num(np.asarray(t, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0) for t in multipliers
    )
    rows = np.where(lifted.row_equality, rows, np.maximum(rows, 0.0))
    forms = np.where(lifted.form_equality, forms, np.maximum(forms, 0.0))
    return Multipliers(rows, forms, np.maximum(squares, 0.0))


def lagrangian(lifted: Lifted, rows: np.ndarray, forms: np.ndarray) -> tuple[np.ndarray, float]:
    """(M, charge): cost u >= u' M u - charge for all feasible u, without the squares' terms; M "1+n 1+n"."""
    weight = forms[lifted.form]
    left, right = lifted.left.multiply(weight[:, None]).tocsr(), lifted.right
    work = float(np.diff(left.indptr) @ np.diff(right.indptr))
    if work > 0.1 * left.shape[0] * lifted.order**2:
        product = left.toarray().T @ right.toarray()
    else:
        product = (left.T @ right).toarray()
    M = (product + product.T) / 2
    linear = (lifted.cost + rows @ lifted.rows) / 2
    M[0] += linear
    M[:, 0] += linear
    reach = np.abs(weight) @ lifted.product_size + np.abs(lifted.cost).sum()
    reach += (np.abs(rows) @ abs(lifted.rows)).sum()
    count = left.shape[0] + len(rows) + 8
    charge = np.abs(rows) @ lifted.row_slack + np.abs(forms) @ lifted.form_slack + lifted.cost_slack
    # What vanished (underflow) from left is multiplied by right.
    return M, float((charge + gamma(count) * reach) * SURPLUS + TINY * (1 + abs(lifted.right).sum()))


def proved(M: np.ndarray, D: np.ndarray) -> float:
    """A lower bound of u' M u over u = (1, w), w in [-1, 1]^n; D as in the head of this file. -inf: no proof."""
    order = len(D)
    B = np.array(M, order="F")
    B[np.diag_indices(order)] += D
    ends = np.diag(B).copy()
    factor, info = dpotrf(B, lower=1, overwrite_a=1, clean=0)
    # What overflows in a row of the factor is in its diagonal too; LAPACK may run to its end over NaN.
    if info != 0 or not np.isfinite(np.diag(factor)).all() or not (ends > 0).all() or (D[1:] < 0).any():
        return -np.inf
    # A few more operations than the theorem's, for kernels that multiply by reciprocals; and underflow.
    g = gamma(order + 8)
    lost = g / (1 - g) * np.sqrt(ends).sum() ** 2 + order**2 * TINY * (1 + ends.max())
    lost += gamma(order + 2) * (np.abs(D).sum() + ends.sum())
    return float(-D.sum() - lost * SURPLUS)


def diagonal(M: np.ndarray, squares: np.ndarray, polish: bool = True) -> np.ndarray | None:
    """A diagonal D "1+n" of small sum for which M + diag D can be factorised; None where none was found."""
    order = len(M)
    scale = np.abs(M).max() + TINY
    shift, least = 0.0, 2.0**-44 * scale * order
    for _ in range(60):
        D = _with_corner(M, squares + shift, least)
        if D is not None:
            break
        shift = max(8 * shift, 2.0**-44 * scale)
    else:
        return None
    if polish:
        # Newton's method starts well inside.
        inside = max(shift, 1e-6 * scale)
        starts = [_with_corner(M, squares + t * inside, inside * order) for t in (2, 16, 128, 1024)]
        starts = sorted((t for t in starts if t is not None), key=np.sum)
        D = min([D, *(_newton(M, t) for t in starts[:1])], key=np.sum)
    best = proved(M, D)
    while not np.isfinite(best) and least < scale * order:
        D = D + least
        best, least = proved(M, D), 8 * least
    return D


def _with_corner(M: np.ndarray, kappa: np.ndarray, least: float) -> np.ndarray | None:
    """D with the squares' part kappa and the best corner for it, by Schur's complement."""
    A = np.array(M[1:, 1:], order="F")
    A[np.diag_indices(len(A))] += kappa
    factor, info = dpotrf(A, lower=1, overwrite_a=1) if len(A) else (A, 0)
    if info != 0:
        return None
    border = M[1:, 0]
    solution = dpotrs(factor, border, lower=1)[0] if len(A) else border
    corner = border @ solution - M[0, 0]
    if not np.isfinite(corner):
        return None
    return np.append(corner + least, kappa)


def _newton(M: np.ndarray, D: np.ndarray) -> np.ndarray:
    """Steps that lower sum D along the central path (Benson, Ye and Zhang 2000).

    They are Newton's for the maximum of logdet(M + diag D) + sum_j log D_j - pull sum D, each with the largest pull for
    which the decrement is at most NEAR.
    """
    order, best = len(D), D
    value, X = _barrier(M, D)
    for _ in range(NEWTON_STEPS):
        if X is None:
            break
        inner = np.append(0.0, 1 / D[1:])
        gradient = np.diag(X) + inner
        H = np.array(X * X, order="F")
        H[np.diag_indices(order)] += inner**2
        factor, info = dpotrf(H, lower=1, overwrite_a=1)
        if info != 0:
            break
        up, down = dpotrs(factor, np.stack([gradient, np.ones(order)], 1), lower=1)[0].T
        # The decrement's square is a pull^2 - 2 b pull + c.
        a, b, c = down.sum(), down @ gradient, up @ gradient
        pull = (b + np.sqrt(max(b * b - a * (c - NEAR**2), 0.0))) / a
        if not pull > 0:
            break
        step, decrement = up - pull * down, c - 2 * b * pull + a * pull * pull
        falling = step[1:] < 0
        length = min(1.0, 0.95 * float((-D[1:][falling] / step[1:][falling]).min(initial=np.inf)))
        while length > 1e-4:
            risen, X = _barrier(M, D + length * step)
            if X is not None and risen - value - pull * length * step.sum() >= 0.05 * length * decrement:
                break
            length /= 2
        else:
            break
        D, value = D + length * step, risen
        best = min(best, D, key=np.sum)
        if decrement <= NEAR**2 * 1.01 and 2 * order / pull < 1e-8 * abs(D.sum()):
            break
    return best


def _barrier(M: np.ndarray, D: np.ndarray) -> tuple[float, np.ndarray | None]:
    """(logdet(M + diag D) + sum_j log D_j, the inverse); the inverse is None where D is not inside."""
    B = np.array(M, order="F")
    B[np.diag_indices(len(D))] += D
    factor, info = dpotrf(B, lower=1, overwrite_a=1)
    if info != 0 or not (D[1:] > 0).all():
        return -np.inf, None
    value = 2 * np.log(np.diag(factor)).sum() + np.log(D[1:]).sum()
    X, info = dpotri(factor, lower=1, overwrite_c=1)
    lower = np.tril(X)
    return value, lower + np.tril(lower, -1).T if info == 0 else None
