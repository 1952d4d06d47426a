"""Cuts: products of two rows that hold are forms that hold (reformulation-linearisation, Sherali and Adams)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from absdom.encoding import TINY, gamma
from absdom.solvers.sdp.lift import SURPLUS, Lifted

PER_VARIABLE = 5  # products that a round adds at most, for each variable


def factors(lifted: Lifted) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
    """(functionals r "F 1+n", slack "F", equality "F"): r u <= slack over the program: its rows, then +-w_j - 1."""
    n = lifted.order - 1
    minus = sp.csr_matrix(-np.ones((n, 1)))
    eye = sp.identity(n)
    box = sp.vstack([sp.hstack([minus, eye]), sp.hstack([minus, -eye])])
    every = sp.vstack([lifted.rows, box]).tocsr()
    slack = np.concatenate([lifted.row_slack, np.zeros(2 * n)])
    return every, slack, np.concatenate([lifted.row_equality, np.zeros(2 * n, dtype=bool)])


def with_equalities(lifted: Lifted) -> Lifted:
    """The program with each equality times its last variable: what keeps one that was not substituted tied."""
    same = np.flatnonzero(lifted.row_equality)
    last = np.array([lifted.rows.indices[lifted.rows.indptr[k] : lifted.rows.indptr[k + 1]].max() for k in same], int)
    inner = last > 0
    return with_products(lifted, same[inner], lifted.rows.shape[0] + last[inner] - 1)


def violated(
    lifted: Lifted, parts: list[np.ndarray], moments: list[np.ndarray], limit: int, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of factors (first, second), at most `limit`, whose product the moments break most; in one clique each.

    An equality makes a pair with each bound of a variable, an inequality with each inequality.
    """
    every, _, same = factors(lifted)
    pattern = sp.csr_matrix((np.ones(every.nnz), every.indices, every.indptr), every.shape)
    found = []
    for part, moment in zip(parts, moments, strict=True):
        inside = np.zeros(lifted.order)
        inside[part] = 1
        held = np.flatnonzero(pattern @ inside == np.diff(every.indptr))
        R = every[held][:, part].toarray()
        size = np.abs(R).sum(1)
        values = (R @ moment @ R.T) / np.maximum(np.outer(size, size), TINY)
        equal = same[held]
        broken = np.where(equal[:, None] | equal[None], np.abs(values), -values)
        broken[equal[:, None] & (equal[None] | (held < lifted.rows.shape[0])[None])] = 0
        a, b = np.nonzero(np.triu(broken > tolerance))
        order = np.argsort(-broken[a, b])[:limit]
        found.append((held[a[order]], held[b[order]], broken[a[order], b[order]]))
    first, second, depth = (np.concatenate(t) for t in zip(*found, strict=True))
    keep = np.unique(first * every.shape[0] + second, return_index=True)[1]
    keep = keep[np.argsort(-depth[keep], kind="stable")][:limit]
    return first[keep], second[keep]


def with_products(lifted: Lifted, first: np.ndarray, second: np.ndarray) -> Lifted:
    """The program with the products of these pairs of factors as further forms.

    Of r u <= s and q u <= t follows (s - r u)(t - q u) >= 0, so -(r u)(q u) <= s |q| + t |r| + s t.
    """
    if not len(first):
        return lifted
    every, slack, same = factors(lifted)
    size = np.asarray(abs(every).sum(1)).ravel() * SURPLUS
    missed = slack[first] * size[second] + slack[second] * size[first] + slack[first] * slack[second]
    count = lifted.form_count
    return replace(
        lifted,
        form=np.concatenate([lifted.form, np.arange(count, count + len(first))]),
        left=sp.vstack([lifted.left, -every[first]]).tocsr(),
        right=sp.vstack([lifted.right, every[second]]).tocsr(),
        form_slack=np.concatenate([lifted.form_slack, missed * (1 + gamma(8)) + TINY]),
        form_equality=np.concatenate([lifted.form_equality, same[first] | same[second]]),
    )
