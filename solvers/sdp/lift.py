"""From an Encoding to few variables w in [-1, 1]: what its equality rows define is substituted, the rest is scaled.

A point is u = (1, w). Linear rows, products of two linear functionals and the objective are functionals over u. What
substitution and scaling rounded is a scalar per row and form: as |u_i| <= 1, no more than the sum of the absolute
errors of its coefficients can be missed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from absdom.encoding import INPUTS, TINY, Encoding, Objective, gamma

SURPLUS = 1 + 2.0**-20  # for the roundings of the sums of absolute values themselves


@dataclass(frozen=True, eq=False)
class Lifted:
    """Minimise cost u over u = (1, w), w in [-1, 1]^n, subject to rows and forms.

    rows "m 1+n": rows u <= row_slack, or (`row_equality`) within +-row_slack of 0. Forms "Q": the sum of the products
    (left_k u)(right_k u) over the k with form[k] = q, left and right "K 1+n", is <= form_slack, or (`form_equality`)
    within +-form_slack of 0. `cost` "1+n" may be off by `cost_slack` over the box. block "n": which part of the network
    a variable belongs to, 0 ... (0: the inputs). values "N 1+n": the encoding's columns as functionals of u.
    """

    rows: sp.csr_matrix
    row_slack: np.ndarray
    row_equality: np.ndarray
    form: np.ndarray
    left: sp.csr_matrix
    right: sp.csr_matrix
    form_slack: np.ndarray
    form_equality: np.ndarray
    cost: np.ndarray
    cost_slack: float
    block: np.ndarray
    values: sp.csr_matrix
    value_error: np.ndarray

    @property
    def order(self) -> int:
        """1 + n, the order of the matrix of all products."""
        return len(self.cost)

    @property
    def form_count(self) -> int:
        return len(self.form_slack)

    @property
    def is_bounded(self) -> bool:
        """Is the objective a number all over the box? Where it depends on a column without bounds nothing is known."""
        return bool(np.isfinite(self.cost).all())

    @cached_property
    def product_size(self) -> np.ndarray:
        """The sum of the absolute coefficients of each product, "K"."""
        return _sizes(self.left) * _sizes(self.right) * SURPLUS + TINY

    def with_objective(self, objective: Objective) -> Lifted:
        """The same program with another objective over the same encoding."""
        slope = sp.csr_matrix(objective.slope[None])
        cost, slack = _substitute(slope, np.array([objective.constant]), self.values, self.value_error)
        return replace(self, cost=cost.toarray()[0], cost_slack=float(slack[0] + objective.slack))

    def columns(self, w: np.ndarray) -> np.ndarray:
        """The encoding's columns "N" at a point w "n"."""
        return self.values @ np.concatenate([[1.0], w])


def lift(encoding: Encoding, objective: Objective, by_layer: bool = False) -> Lifted:
    """The program over the columns that no equality row defines.

    by_layer: a column that is a function of earlier layers than its neighbours in a row stays a variable, tied by an
    equality, so that each form knows two adjacent layers only. Otherwise all that can be substituted is.
    """
    fixed = encoding.lower == encoding.upper
    defining = _definitions(encoding, fixed)
    if by_layer:
        _keep_layers(encoding, defining, fixed)
    free = np.flatnonzero(~fixed & (defining < 0))
    values, error = _expansions(encoding, defining, free)
    rows, row_slack, row_equality = _rows(encoding, defining, values, error)
    form, left, right, form_slack = _forms(encoding, values, error)
    lifted = Lifted(
        rows, row_slack, row_equality, form, left, right, form_slack, encoding.quadratics.equality,
        np.zeros(1 + len(free)), 0.0, _blocks(encoding, free), values, error,
    )  # fmt: skip
    return lifted.with_objective(objective)


def _sizes(matrix: sp.csr_matrix) -> np.ndarray:
    return np.asarray(abs(matrix).sum(1)).ravel()


def _definitions(encoding: Encoding, fixed: np.ndarray) -> np.ndarray:
    """Per column the row that defines it by earlier columns, or -1.

    An equality defines its last column where that has the coefficient 1 or -1; columns are made in the order of the
    network, so that no definition leads back to itself.
    """
    A = encoding.matrix
    A.sort_indices()
    defining = np.full(A.shape[1], -1)
    same = np.flatnonzero((encoding.low == encoding.high) & (np.diff(A.indptr) > 0))
    last = A.indptr[same + 1] - 1
    column = A.indices[last]
    usable = (np.abs(A.data[last]) == 1) & ~fixed[column] & ~encoding.integer[column]
    usable &= ~np.isin(column, encoding.inputs)
    defining[column[usable]] = same[usable]
    return defining


def _waves(encoding: Encoding, defining: np.ndarray):
    """Batches of defined columns, each of which needs only columns of earlier batches: (columns, their rows of A)."""
    left = np.flatnonzero(defining >= 0)
    done = defining < 0
    A = encoding.matrix
    while len(left):
        part = A[defining[left]]
        waits = np.bincount(np.repeat(np.arange(len(left)), np.diff(part.indptr)), ~done[part.indices], len(left)) > 1
        ready = left[~waits]
        yield ready, A[defining[ready]]
        done[ready] = True
        left = left[waits]


def _keep_layers(encoding: Encoding, defining: np.ndarray, fixed: np.ndarray) -> None:
    """Take back definitions of columns that would tie a layer to one before its neighbours'."""
    top = np.where(fixed, INPUTS, encoding.node)
    for columns, part in _waves(encoding, defining.copy()):
        row = np.repeat(np.arange(len(columns)), np.diff(part.indptr))
        others = part.indices != columns[row]
        row, column = row[others], part.indices[others]
        highest = np.full(len(columns), INPUTS)
        np.maximum.at(highest, row, top[column])
        low = column[(defining[column] >= 0) & (top[column] < highest[row])]
        defining[low] = -1
        top[low] = encoding.node[low]
        top[columns] = highest


def _substitute(A: sp.csr_matrix, constant: np.ndarray, values: sp.csr_matrix, error: np.ndarray):
    """Rows A v + constant over u, and what they may miss over the box."""
    out = (A @ values + _first_column(constant, values.shape[1])).tocsr()
    absolute, entries = abs(A), np.diff(A.indptr)
    reach = absolute @ _sizes(values) + np.abs(constant)
    return out, (absolute @ error + gamma(entries + 4) * reach) * SURPLUS + TINY


def _first_column(constant: np.ndarray, width: int) -> sp.csr_matrix:
    used = np.flatnonzero(constant)
    return sp.csr_matrix((constant[used], (used, np.zeros(len(used), dtype=np.int64))), shape=(len(constant), width))


def _expansions(encoding: Encoding, defining: np.ndarray, free: np.ndarray) -> tuple[sp.csr_matrix, np.ndarray]:
    """The columns as functionals of u "N 1+n", and how far they can be from them."""
    lower, upper = encoding.lower, encoding.upper
    count, width = len(lower), 1 + len(free)
    with np.errstate(invalid="ignore"):  # without bounds: NaN, and so is what depends on such a column
        centre = np.clip(lower / 2 + upper / 2, lower, upper)
        radius = np.maximum(upper - centre, centre - lower) * (1 + 2.0**-51) + TINY
    known = np.flatnonzero(defining < 0)
    row = np.concatenate([known, free])
    column = np.concatenate([np.zeros(len(known), dtype=np.int64), np.arange(1, width)])
    values = sp.csr_matrix((np.concatenate([centre[known], radius[free]]), (row, column)), shape=(count, width))
    error = np.zeros(count)
    for columns, part in _waves(encoding, defining):
        own = part.tocoo()
        sign = np.asarray(part[np.arange(len(columns)), columns]).ravel()
        others = own.col != columns[own.row]
        rest = sp.csr_matrix(
            (-own.data[others] * sign[own.row[others]], (own.row[others], own.col[others])), shape=part.shape
        )
        found, missed = _substitute(rest, sign * encoding.low[defining[columns]], values, error)
        place = sp.csr_matrix((np.ones(len(columns)), (columns, np.arange(len(columns)))), shape=(count, len(columns)))
        values = (values + place @ found).tocsr()
        error[columns] = missed + encoding.slack[defining[columns]]
    return values, error


def _rows(encoding: Encoding, defining: np.ndarray, values: sp.csr_matrix, error: np.ndarray):
    """All rows that define nothing, and the bounds of the columns that were substituted, less what the box implies."""
    other = np.setdiff1d(np.arange(encoding.matrix.shape[0]), defining[defining >= 0])
    gone = np.flatnonzero(defining >= 0)
    eye = sp.csr_matrix((np.ones(len(gone)), (np.arange(len(gone)), gone)), shape=(len(gone), len(defining)))
    A = sp.vstack([encoding.matrix[other], eye]).tocsr()
    low = np.concatenate([encoding.low[other], encoding.lower[gone]])
    high = np.concatenate([encoding.high[other], encoding.upper[gone]])
    slack = np.concatenate([encoding.slack[other], np.zeros(len(gone))])
    same = low == high
    over, under = np.flatnonzero(np.isfinite(high)), np.flatnonzero(np.isfinite(low) & ~same)
    signed = sp.vstack([A[over], -A[under]]).tocsr()
    rows, missed = _substitute(signed, np.concatenate([-high[over], low[under]]), values, error)
    missed = missed + np.concatenate([slack[over], slack[under]])
    equality = np.concatenate([same[over], np.zeros(len(under), dtype=bool)])
    constant = rows[:, [0]].toarray().ravel()
    weight = _sizes(rows) - np.abs(constant)
    useful = np.where(equality, weight > 0, weight + constant > 2.0**-40 * np.abs(constant))
    kept = np.flatnonzero(useful)
    scale = _power(weight[kept])
    return (sp.diags(scale) @ rows[kept]).tocsr(), missed[kept] * scale, equality[kept]


def _forms(encoding: Encoding, values: sp.csr_matrix, error: np.ndarray):
    """(form, left, right, slack): each form as products, grouped by their first factor."""
    q, count = encoding.quadratics, len(error)
    linear, used = q.linear.tocoo(), np.flatnonzero(q.constant)
    # The number `count` stands for the column that is 1.
    form = np.concatenate([q.form, linear.row, used])
    first = np.concatenate([q.first, np.full(len(linear.row) + len(used), count)])
    second = np.concatenate([q.second, linear.col, np.full(len(used), count)])
    value = np.concatenate([q.value, linear.data, q.constant[used]])
    form, first, second, value = (t[value != 0] for t in (form, first, second, value))  # ReLU has a zero z_j z_j
    one = sp.csr_matrix(([1.0], ([0], [0])), shape=(1, values.shape[1]))
    extended, missed = sp.vstack([values, one]).tocsr(), np.append(error, 0.0)
    size = _sizes(extended) * SURPLUS
    key, group = np.unique(form * (count + 1) + first, return_inverse=True)
    owner, first_of = key // (count + 1), key % (count + 1)
    sums = sp.csr_matrix((value, (group, second)), shape=(len(key), count + 1))
    right = (sums @ extended).tocsr()
    lost = missed[first] * (size[second] + missed[second]) + size[first] * missed[second]
    lost = lost + size[first] * size[second] * gamma(np.bincount(group, minlength=len(key))[group] + 2)
    slack = np.bincount(form, np.abs(value) * lost, minlength=q.count) * SURPLUS + q.slack + TINY
    left = extended[first_of]
    weight = np.bincount(owner, _sizes(left) * _sizes(right), minlength=q.count)
    scale = _power(weight)
    return owner, left, (sp.diags(scale[owner]) @ right).tocsr(), slack * scale


def _power(weight: np.ndarray) -> np.ndarray:
    """Powers of two (exact as factors) that bring these sizes near 1."""
    return 2.0 ** -np.round(np.log2(np.clip(np.where(weight > 0, weight, 1.0), 2.0**-200, 2.0**200)))


def _blocks(encoding: Encoding, free: np.ndarray) -> np.ndarray:
    """The inputs, then one block per node that has variables, then columns added behind the network."""
    node = encoding.node[free].copy()
    behind = np.flatnonzero(encoding.node != INPUTS)
    if len(behind):
        node[(node == INPUTS) & (free > behind[-1])] = encoding.node.max() + 1
    return np.unique(np.append(node, INPUTS), return_inverse=True)[1][:-1]
