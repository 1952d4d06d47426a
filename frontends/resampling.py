"""What front ends share about interpolation: kernels in exact fractions, and matrices of fractions as float64."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np


def kernel(distance: Fraction, degree: int, a: Fraction) -> Fraction:
    """The weight of an element at this distance: the hat, or Keys' cubic kernel (Keys 1981, equation 4)."""
    x = abs(distance)
    if degree == 1:
        return max(1 - x, Fraction(0))
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else Fraction(0)


def halves(rows: Sequence[Sequence[Fraction]]) -> tuple[np.ndarray, np.ndarray | None]:
    """A matrix of fractions as the nearest float64 numbers, and what is left, or None where nothing is.

    The sum of the two is within a rounding of float64 of the fractions, so an engine that charges for that addition
    encloses them.
    """
    high = np.array([[float(v) for v in row] for row in rows])
    rest = [[float(v - Fraction(h)) for v, h in zip(*pair, strict=True)] for pair in zip(rows, high, strict=True)]
    low = np.array(rest)
    return high, low if low.any() else None
