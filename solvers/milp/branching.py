"""What the choices of an encoding mean for a search: which are undecided at a point, and what deciding them brings."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from absdom.encoding import Encoding

TOLERANCE = 1e-6  # by which a row may be missed at a point that counts as one of the encoding, of 1 or of its big M
PRIOR = 1e-3  # weight of the estimates themselves beside what was seen of their quality


class Decision(NamedTuple):
    """A choice number that is narrowed to some of its pieces (bool "k")."""

    choice: int
    allowed: np.ndarray


class Branching:
    """The choices of an encoding as arrays: K pieces of each (0 and 1 for a single binary), padded to the most."""

    def __init__(self, encoding: Encoding):
        self.encoding, self.choices = encoding, encoding.choices
        self.pieces = np.array([max(2, len(c.binaries)) for c in self.choices], dtype=np.int64)
        width = int(self.pieces.max(initial=2))
        self.exists = np.arange(width)[None] < self.pieces[:, None]
        self.split = np.array([bool(c.parts.size) for c in self.choices], dtype=bool)
        self.seen_gain, self.seen_estimate = np.full((2, len(self.choices)), PRIOR)
        self._rows(width)
        self._ties()

    def _rows(self, width: int) -> None:
        """The rows that speak of binaries: their choice, and what each piece adds to them."""
        matrix, count = self.encoding.matrix, len(self.choices)
        owner = np.full(matrix.shape[1], -1)
        piece = np.zeros(matrix.shape[1], dtype=np.int64)
        for c, choice in enumerate(self.choices):
            owner[choice.binaries] = c
            piece[choice.binaries] = np.arange(len(choice.binaries)) + (len(choice.binaries) == 1)
        entry = sp.coo_array(matrix)
        of_binaries = owner[entry.col] >= 0
        row, column, value = entry.row[of_binaries], entry.col[of_binaries], entry.data[of_binaries]
        rows, local = np.unique(row, return_inverse=True)
        self.row_choice = np.full(len(rows), -1)
        self.row_choice[local] = owner[column]
        mixed = np.zeros(len(rows), dtype=bool)
        mixed[local[self.row_choice[local] != owner[column]]] = True
        self.coefficients = np.zeros((len(rows), width))
        self.coefficients[local, piece[column]] = value
        self.low, self.high = self.encoding.low[rows], self.encoding.high[rows]
        continuous = matrix[rows].tocsr(copy=True)
        continuous.data[owner[continuous.indices] >= 0] = 0.0
        # Rows of several choices, and of choices with parts, say nothing about one choice alone.
        kept = ~mixed if count == 0 else ~mixed & ~self.split[self.row_choice]
        self.continuous, self.row_choice = continuous[kept], self.row_choice[kept]
        self.coefficients, self.low, self.high = self.coefficients[kept], self.low[kept], self.high[kept]
        self.size = np.where(self.split, 1.0, 0.0)  # of what a choice decides about
        np.maximum.at(self.size, self.row_choice, np.abs(self.coefficients).max(1, initial=0.0))

    def _ties(self) -> None:
        """The rows that tie the value of a choice to its source and to nothing else."""
        by_column = self.encoding.matrix.tocsc()
        matrix = self.encoding.matrix
        rows, owner, value = [], [], []
        for c, choice in enumerate(self.choices):
            own = {choice.value, *choice.source.tolist(), *choice.binaries.tolist(), *choice.parts.ravel().tolist()}
            start, stop = by_column.indptr[choice.value : choice.value + 2]
            for row, coefficient in zip(by_column.indices[start:stop], by_column.data[start:stop], strict=True):
                if own.issuperset(matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]].tolist()):
                    rows.append(row)
                    owner.append(c)
                    value.append(abs(coefficient))
        self.tie_rows, self.tie_owner = np.array(rows, dtype=np.int64), np.array(owner, dtype=np.int64)
        self.tie_weight = np.array(value)

    def misses(self, point: np.ndarray) -> np.ndarray:
        """By how much the rows of each choice are missed "c K" at the point "N", were it decided for each piece."""
        found = np.zeros(self.exists.shape)
        acts = (self.continuous @ point)[:, None] + self.coefficients
        missed = np.maximum(np.maximum(self.low[:, None] - acts, acts - self.high[:, None]), 0.0)
        np.maximum.at(found, self.row_choice, missed)
        for c in np.flatnonzero(self.split):
            found[c, : self.pieces[c]] = 1 - point[self.choices[c].binaries]
        return np.where(self.exists, found, np.inf)

    def choose(
        self, point: np.ndarray, multipliers: np.ndarray, allowed: np.ndarray
    ) -> tuple[int, np.ndarray, float] | None:
        """(choice, pieces of the side to look at first, estimated gain), or None: the point decides all choices.

        The estimate: what the multipliers pay for the rows that tie a choice's value, times how far the point is from
        its pieces, corrected by what such estimates were worth before.
        """
        misses = np.where(allowed, self.misses(point), np.inf)
        worst = misses.min(1)
        open_ones = np.flatnonzero((worst > TOLERANCE * np.minimum(self.size, 1.0)) & (allowed.sum(1) > 1))
        if not len(open_ones):
            return None
        price = np.bincount(
            self.tie_owner, np.abs(multipliers[self.tie_rows]) * self.tie_weight, minlength=len(self.choices)
        )
        best, found = -1.0, None
        trust = price * self.seen_gain / self.seen_estimate
        sides = [self._first_side(c, point, misses[c], allowed[c]) for c in open_ones]
        for c, side in zip(open_ones, sides, strict=True):
            one, other = misses[c][side].min(), misses[c][allowed[c] & ~side].min()
            score = (trust[c] * one + 1e-9 * one) * (trust[c] * other + 1e-9 * other)
            if score > best:
                best, found = score, (int(c), side, float(price[c] * min(one, other)))
        return found

    def any_open(self, allowed: np.ndarray) -> tuple[int, np.ndarray, float] | None:
        """As `choose`, without a point: the first choice that is not decided, halved."""
        open_ones = np.flatnonzero(allowed.sum(1) > 1)
        if not len(open_ones):
            return None
        c = int(open_ones[0])
        members = np.flatnonzero(allowed[c])
        side = np.zeros_like(allowed[c])
        side[members[: (len(members) + 1) // 2]] = True
        return c, side, 0.0

    def _first_side(self, c: int, point: np.ndarray, misses: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """The side of a split of the allowed pieces that holds the piece nearest to the point."""
        choice, members = self.choices[c], np.flatnonzero(allowed)
        side = np.zeros_like(allowed)
        nearest = members[misses[members].argmin()]
        if choice.kind != "pieces" or len(members) == 2:
            side[nearest] = True
            return side
        # Neighbours stay together: one side up to the nearest piece, or from it on, whichever is more even.
        at = int(np.searchsorted(members, nearest))
        side[members[: at + 1] if at + 1 <= len(members) - at else members[at:]] = True
        return side

    def learn(self, c: int, estimate: float, gain: float) -> None:
        """What a decision brought, in the objective, beside what was expected of it."""
        if np.isfinite(gain):
            self.seen_gain[c] += gain
            self.seen_estimate[c] += estimate

    def apply(self, decisions, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(bounds of the columns, allowed pieces "c K") under decisions."""
        lower, upper, allowed = lower.copy(), upper.copy(), self.exists.copy()
        for c, side in decisions:
            allowed[c] = side
            choice, members = self.choices[c], np.flatnonzero(side)
            if len(choice.binaries) == 1:
                lower[choice.binaries[0]], upper[choice.binaries[0]] = members[0], members[-1]
            else:
                upper[choice.binaries[~side[: len(choice.binaries)]]] = 0.0
                if len(members) == 1:
                    lower[choice.binaries[members[0]]] = 1.0
            if choice.kind == "pieces":
                source, first, last = choice.source[0], members[0], members[-1]
                if first > 0:
                    lower[source] = max(lower[source], choice.ends[first - 1])
                if last < self.pieces[c] - 1:
                    upper[source] = min(upper[source], choice.ends[last])
            if choice.parts.size:
                gone = choice.parts[:, ~side[: len(choice.binaries)]]
                lower[gone] = upper[gone] = 0.0
        return lower, upper, allowed
