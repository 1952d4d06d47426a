"""Programs in units of their own: solvers miss rows and prices by absolute tolerances, which say nothing of a neuron
that moves by 1e-9. Factors are powers of two; what shifts round does no harm, since no answer of a solver is believed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from absdom.encoding import Encoding, Objective


class Units(NamedTuple):
    """Columns are middle + size * w with w in about [-1, 1] "N"; a row counts `weight` times "M"."""

    middle: np.ndarray
    size: np.ndarray
    weight: np.ndarray

    @staticmethod
    def of(encoding: Encoding) -> Units:
        with np.errstate(over="ignore", invalid="ignore"):
            middle, half = encoding.lower / 2 + encoding.upper / 2, encoding.upper / 2 - encoding.lower / 2
        known = np.isfinite(middle) & np.isfinite(half) & ~encoding.integer
        middle = np.where(known, middle, 0.0)
        size = _power(np.where(known, half, 1.0))
        return Units(middle, size, _weights(encoding.matrix, size))

    def with_rows(self, matrix: sp.csr_matrix) -> Units:
        """The same units of the columns, for a matrix with further rows."""
        return self._replace(weight=np.append(self.weight, _weights(matrix[len(self.weight) :], self.size)))

    def encoding(self, encoding: Encoding) -> Encoding:
        """The program as a solver sees it (its slack is not: that is a matter of safe bounds)."""
        matrix = sp.diags_array(self.weight) @ encoding.matrix @ sp.diags_array(self.size)
        shift = encoding.matrix @ self.middle
        lower, upper = self.columns(encoding.lower), self.columns(encoding.upper)
        low, high = ((side - shift) * self.weight for side in (encoding.low, encoding.high))
        return replace(encoding, matrix=sp.csr_matrix(matrix), lower=lower, upper=upper, low=low, high=high)

    def columns(self, values: np.ndarray) -> np.ndarray:
        return (values - self.middle) / self.size

    def objective(self, objective: Objective) -> tuple[Objective, float]:
        """The objective in these units, and how often it counts there."""
        slope = objective.slope * self.size
        weight = 1 / _power(np.abs(slope).max(initial=0.0)[None])[0]
        return Objective(slope * weight), weight


def _power(size: np.ndarray) -> np.ndarray:
    """The power of two next to each size; 1 for 0, and for what is too small or too large to divide by."""
    known = (size > 2.0**-500) & (size < 2.0**500)
    return np.where(known, 2.0 ** np.round(np.log2(np.where(known, size, 1.0))), 1.0)


def _weights(matrix: sp.csr_matrix, size: np.ndarray) -> np.ndarray:
    """What makes the largest entry of each row about 1."""
    if not matrix.shape[0]:
        return np.zeros(0)
    return 1 / _power(abs(matrix @ sp.diags_array(size)).max(axis=1).toarray().ravel())
