"""The third seam's value: a network over one box as variables, rows, whole numbers and quadratic forms, for any solver.

Every point of the network (an input of the box with the values that follow from it) satisfies an Encoding; nothing
else is promised. The rows were read in float64, so each may be missed by up to its `slack`, which `safe_bound` pays
for. A solver's multipliers are taken, its status and its value never are.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from absdom.types import Size

UNIT = 2.0**-53
TINY = 2.0**-1022
INPUTS = -1  # the number of the node of columns that belong to no node, and of the rows of the input set


def gamma(n):
    """Higham's gamma_n for float64 with a surplus for the roundings of the charge itself; n may be an array."""
    n = np.asarray(n, dtype=np.float64) + 8
    return n * UNIT / (1 - n * UNIT) * 1.001


class Style(NamedTuple):
    """What an encoding shall hold besides its convex rows.

    integers: binaries that make piecewise linear ops exact; segments: pieces for smooth ops (0: none, relaxed only);
    quadratics: quadratic forms of the ops that have such.
    """

    integers: bool = False
    segments: int = 0
    quadratics: bool = False


class Objective(NamedTuple):
    """The linear form <slope, v> + constant, of which sums that were rounded may have changed up to `slack`."""

    slope: np.ndarray
    constant: float = 0.0
    slack: float = 0.0


@dataclass(frozen=True, eq=False)
class Quadratics:
    """Q quadratic forms, sum value v_i v_j + linear v + constant: <= slack, or (`equality`) within +-slack of 0.

    `form`, `first`, `second`, `value`: the products, one entry each (i <= j or not, no symmetry is needed).
    `convex`: a part of the input set, <= 0 on a convex set.
    """

    form: np.ndarray
    first: np.ndarray
    second: np.ndarray
    value: np.ndarray
    linear: sp.csr_matrix
    constant: np.ndarray
    equality: np.ndarray
    slack: np.ndarray
    convex: np.ndarray

    @property
    def count(self) -> int:
        return len(self.constant)


@dataclass(frozen=True, eq=False)
class Encoding:
    """Variables v in [lower, upper] "N" with low - slack <= matrix v <= high + slack "M" and `integer` ones whole.

    inputs "n": the columns of the network's inputs, flat and side by side; target "T": those of the elements of the
    node whose rows are asked for (-1: not among them, not needed); node "N": the graph's node that a column belongs
    to; complete: with its whole numbers, no other v satisfies it (up to slack): what is least over it is attained.
    """

    lower: np.ndarray
    upper: np.ndarray
    matrix: sp.csr_matrix
    low: np.ndarray
    high: np.ndarray
    slack: np.ndarray
    integer: np.ndarray
    node: np.ndarray
    inputs: np.ndarray
    target: np.ndarray
    quadratics: Quadratics
    columns_of: dict[int, np.ndarray] = field(default_factory=dict, repr=False)  # node -> its elements' columns
    choices: tuple = field(default=(), repr=False)  # what the binaries choose between: see `Choice`
    distances: tuple = field(default=(), repr=False)  # columns that belong to no node: see `Distances`
    complete: bool = False

    @property
    def size(self) -> Size:
        m = self.matrix
        bytes_ = 12 * m.nnz + 32 * (m.shape[0] + m.shape[1])
        return Size(
            m.shape[1], m.shape[0], m.nnz, int(self.integer.sum()), self.quadratics.count, (), 10 * bytes_ / 2**20
        )

    @cached_property
    def _absolute(self) -> tuple[sp.csc_matrix, sp.csc_matrix, np.ndarray]:
        """A^T, |A|^T and the entries of each column."""
        turned = self.matrix.T.tocsr()
        return turned, abs(turned), np.diff(turned.indptr)

    def objective(self, C: np.ndarray, d: float = 0.0) -> Objective:
        """<C, target> + d over the variables: C "T"."""
        return Objective(self._spread(C), float(d), float(self._doubt(C)))

    def _spread(self, C: np.ndarray) -> np.ndarray:
        used = C != 0
        if (self.target[used] < 0).any():
            raise ValueError("a row speaks of an element of the target that the encoding was not asked to hold")
        return np.bincount(self.target[used], C[used], minlength=len(self.lower))

    def _doubt(self, C: np.ndarray) -> float:
        """What the sum of coefficients of elements that share a column can have lost."""
        shared = np.bincount(self.target[C != 0], minlength=len(self.lower)) > 1
        if not shared.any():
            return 0.0
        reach = np.maximum(np.abs(self.lower), np.abs(self.upper))[shared]
        return float((self._spread(np.abs(C))[shared] * reach).sum() * gamma(len(C)))

    def with_maximum(self, C: np.ndarray, d: np.ndarray) -> tuple[Encoding, Objective]:
        """One more column t with t >= <C_k, target> + d_k for all k: its least value bounds max_k from below.

        C "K T", d "K". Gives the wider encoding and its objective, t alone.
        """
        G, slack = np.stack([self._spread(c) for c in C]), np.array([self._doubt(c) for c in C])
        with np.errstate(invalid="ignore"):  # 0 times infinity is 0 here
            sides = [np.where(G == 0, 0.0, G * side) for side in (self.lower, self.upper)]
        reach, ends, tops = (t.sum(1) for t in (np.maximum(*np.abs(sides)), np.minimum(*sides), np.maximum(*sides)))
        margin = (reach + np.abs(d)) * gamma(G.shape[1] + 4) + slack + TINY
        row = sp.hstack([sp.csr_matrix(-G), sp.csr_matrix(np.ones((len(G), 1)))])
        wide = sp.hstack([self.matrix, sp.csr_matrix((self.matrix.shape[0], 1))])
        linear = sp.hstack([self.quadratics.linear, sp.csr_matrix((self.quadratics.count, 1))]).tocsr()
        more = replace(
            self,
            lower=np.append(self.lower, (ends + d - margin).max()),
            upper=np.append(self.upper, (tops + d + margin).max()),
            matrix=sp.vstack([wide, row]).tocsr(),
            low=np.concatenate([self.low, d]),
            high=np.concatenate([self.high, np.full(len(d), np.inf)]),
            slack=np.concatenate([self.slack, slack]),
            integer=np.append(self.integer, False),
            node=np.append(self.node, INPUTS),
            quadratics=replace(self.quadratics, linear=linear),
        )
        return more, Objective(np.append(np.zeros(len(self.lower)), 1.0))

    @cached_property
    def _input_rows(self) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
        """The rows that speak of the input set alone, with their sides."""
        own = np.diff(self.matrix[:, self.node != INPUTS].indptr) == 0
        return self.matrix[own], self.low[own], self.high[own]

    def admits(self, v: np.ndarray, tolerance: float, curved: bool = True) -> bool:
        """Is the input set, but for its box, missed by at most `tolerance` (relative) at the variables "N"?

        Without `curved`, only the rows of the set are looked at, and not its quadratic forms.
        """
        (rows, low, high), forms = self._input_rows, self.quadratics
        acts, room = rows @ v, tolerance * (1 + abs(rows) @ np.abs(v))
        if not ((acts >= low - room) & (acts <= high + room)).all():
            return False
        value = np.bincount(forms.form, forms.value * v[forms.first] * v[forms.second], minlength=forms.count)
        value = (value + forms.linear @ v + forms.constant)[forms.convex]
        return not curved or bool((value <= tolerance).all())

    def least(self, C: np.ndarray, d: np.ndarray) -> tuple[Encoding, Objective]:
        """An encoding and its objective, whose minimum is that of the largest of the rows C "K T" . target + d "K"."""
        return (self, self.objective(C[0], d[0])) if len(C) == 1 else self.with_maximum(C, d)

    def safe_bound(
        self,
        objective: Objective,
        multipliers: np.ndarray,
        lower: np.ndarray | None = None,
        upper: np.ndarray | None = None,
    ) -> float:
        """A lower bound of the objective over the encoding, whole numbers relaxed, that holds over the reals.

        multipliers "M": any numbers; those of the rows' lower sides positive, of their upper sides negative, as in the
        Lagrangian <c, v> - <y, A v - rhs>. `lower`, `upper` "N": narrower bounds of the variables, of one leaf of a
        search. (Neumaier and Shcherbina 2004, with running error bounds instead of directed rounding.)
        """
        lower, upper = (self.lower if lower is None else lower), (self.upper if upper is None else upper)
        y = np.nan_to_num(np.asarray(multipliers, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        y = np.where(y > 0, np.where(np.isfinite(self.low), y, 0.0), np.where(np.isfinite(self.high), y, 0.0))
        turned, absolute, entries = self._absolute
        slope = objective.slope - turned @ y
        weight = np.abs(objective.slope) + absolute @ np.abs(y)
        with np.errstate(invalid="ignore", over="ignore"):
            reach = np.maximum(np.abs(lower), np.abs(upper))
            used = weight > 0
            slip = np.where(used, gamma(entries + 2) * (weight + TINY) * reach, 0.0)
            ends = np.where(used, np.where(slope >= 0, slope * lower, slope * upper), 0.0)
            side = np.where(y > 0, self.low, np.where(y < 0, self.high, 0.0))
            terms = y * side
            missed = np.abs(y) * self.slack
            lost = slip.sum() + missed.sum() + objective.slack
            total = ends.sum() + terms.sum() + objective.constant - lost
            size = np.abs(ends).sum() + np.abs(terms).sum() + abs(objective.constant) + lost
            bound = total - size * gamma(len(ends) + len(terms) + 8) - (len(ends) + len(terms)) * TINY
        return float(bound) if np.isfinite(bound) else -np.inf


@dataclass(frozen=True, eq=False)
class Choice:
    """What one or several binaries decide: `binaries[k]` is 1 where piece k holds, at the columns `value`.

    `kind` "pieces": the pieces of a function of the column `source`, that end at `ends`; "largest" or "least": which
    of the columns `source` the value is. A single binary chooses between two pieces: 1 is the second one. Pieces that
    are `lines` "K 2" (slope, bias) may have no length or end where the function jumps.
    """

    kind: str
    binaries: np.ndarray
    value: int
    source: np.ndarray
    ends: np.ndarray = field(default_factory=lambda: np.zeros(0))
    # Further columns, 0 but for the piece that holds: what it has of the source and, where given, of the value.
    parts: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    lines: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))


class Distances(NamedTuple):
    """The columns `value` stand for |source - centre| / radius, or more."""

    value: np.ndarray
    source: np.ndarray
    centre: np.ndarray
    radius: np.ndarray


class Builder:
    """Collects the parts of an Encoding, many columns and rows at a time."""

    def __init__(self, style: Style):
        self.style = style
        self.complete = style.integers
        self.count = self.rows = self.forms = 0
        self._columns: list[tuple] = []  # lower, upper, integer, node
        self._met: list[tuple] = []  # columns, lower, upper
        self._entries: list[tuple] = []  # row, column, value
        self._sides: list[tuple] = []  # low, high, slack
        self._products: list[tuple] = []  # form, first, second, value
        self._linear: list[tuple] = []  # form, column, value
        self._forms: list[tuple] = []  # constant, equality, slack, convex
        self._choices: list[Choice] = []
        self._distances: list[Distances] = []

    def columns(self, lower, upper, node: int, integer: bool = False) -> np.ndarray:
        """New variables with these bounds "k": their numbers."""
        lower, upper = (np.asarray(t, dtype=np.float64).ravel() for t in (lower, upper))
        fresh = np.arange(self.count, self.count + len(lower))
        self._columns.append((lower, upper, np.full(len(lower), integer), np.full(len(lower), node)))
        self.count += len(lower)
        return fresh

    def columns_where(self, wanted: np.ndarray, lower: np.ndarray, upper: np.ndarray, node: int) -> np.ndarray:
        """New variables for the wanted elements of a node, -1 for the others."""
        out = np.full(len(wanted), -1)
        out[wanted] = self.columns(lower[wanted], upper[wanted], node)
        return out

    def binaries(self, count: int, node: int) -> np.ndarray:
        return self.columns(np.zeros(count), np.ones(count), node, integer=True)

    def meet(self, columns: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> None:
        """Further bounds of variables that are there."""
        self._met.append((columns, lower, upper))

    def add_rows(self, row, column, value, low, high, slack=0.0) -> None:
        """Rows low - slack <= sum value v_column <= high + slack; `row` counts from 0 within this call."""
        demand_columns(column)
        low, high = np.broadcast_arrays(np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64))
        row, column, value = (np.ravel(t) for t in np.broadcast_arrays(row, column, value))
        self._entries.append((row + self.rows, column, value.astype(np.float64)))
        self._sides.append((low.ravel(), high.ravel(), np.broadcast_to(slack, low.shape).ravel()))
        self.rows += low.size

    def add_forms(self, products: tuple, linear: tuple, constant, equality, slack=0.0, convex=False) -> None:
        """Quadratic forms: products (form, first, second, value), linear (form, column, value); forms count from 0."""
        constant = np.asarray(constant, dtype=np.float64).ravel()
        for part in (*products[1:3], linear[1]):
            demand_columns(part)
        form, *rest = (np.ravel(t) for t in np.broadcast_arrays(*products))
        self._products.append((form + self.forms, *rest))
        form, *rest = (np.ravel(t) for t in np.broadcast_arrays(*linear))
        self._linear.append((form + self.forms, *rest))
        marks = (np.broadcast_to(mark, constant.shape) for mark in (equality, slack, convex))
        self._forms.append((constant, *marks))
        self.forms += len(constant)

    def choose(self, choice: Choice) -> None:
        self._choices.append(choice)

    def measure(self, distances: Distances) -> None:
        self._distances.append(distances)

    def finish(self, inputs: np.ndarray, target: np.ndarray, columns_of: dict[int, np.ndarray]) -> Encoding:
        lower, upper, integer, node = _joined(self._columns, (float, float, bool, np.int64))
        for columns, low, high in self._met:
            np.maximum.at(lower, columns, low)
            np.minimum.at(upper, columns, high)
        # Claims that cross hold both: of a point at most (rounding), or of nothing.
        lower, upper = np.minimum(lower, upper), np.maximum(lower, upper)
        row, column, value = _joined(self._entries, (np.int64, np.int64, float))
        low, high, slack = _joined(self._sides, (float, float, float))
        # Rows that say nothing, where nothing is known; with them no solver gets far.
        known = np.isfinite(slack) & ~np.isnan(low) & ~np.isnan(high) & (low < np.inf) & (high > -np.inf)
        known[row[~np.isfinite(value)]] = False
        if not known.all():
            self.complete = False
            number, kept = np.cumsum(known) - 1, known[row]
            row, column, value = number[row[kept]], column[kept], value[kept]
            low, high, slack = low[known], high[known], slack[known]
        matrix = sp.csr_matrix((value, (row, column)), shape=(len(low), self.count))
        return Encoding(
            lower, upper, matrix, low, high, slack, integer, node, inputs, target, self._all_forms(), columns_of,
            tuple(self._choices), tuple(self._distances), self.complete,
        )  # fmt: skip

    def _all_forms(self) -> Quadratics:
        form, first, second, value = _joined(self._products, (np.int64, np.int64, np.int64, float))
        row, column, coefficient = _joined(self._linear, (np.int64, np.int64, float))
        linear = sp.csr_matrix((coefficient, (row, column)), shape=(self.forms, self.count))
        constant, *marks = _joined(self._forms, (float, bool, float, bool))
        return Quadratics(form, first, second, value, linear, constant, *marks)


def demand_columns(columns) -> None:
    if (np.asarray(columns) < 0).any():
        raise ValueError("a rule of the encoding reads an element that its `needs` did not name")


def _joined(parts: list[tuple], types: tuple) -> list[np.ndarray]:
    if not parts:
        return [np.zeros(0, dtype=t) for t in types]
    return [np.concatenate(group).astype(t) for group, t in zip(zip(*parts, strict=True), types, strict=True)]
