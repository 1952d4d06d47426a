"""Lines below and above elementwise functions as rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from absdom.arithmetic import numbers
from absdom.domains.encoded.common import settings


class Line(NamedTuple):
    """slope z + bias below (side 1) or above (side -1) each element "m"; `new`: finite, and no earlier line is it."""

    side: float
    slope: np.ndarray
    bias: np.ndarray
    new: np.ndarray

    def at(self, chosen: np.ndarray) -> Line:
        return Line(self.side, *(t[chosen] for t in self[1:]))


def distinct_lines(op, lower, upper) -> list[Line]:
    """The lines of an op over [lower, upper] "1 *n": the adaptive one below and above, then those of other slopes."""
    found: list[Line] = []
    for knobs in settings(op.knobs, op.initial(lower, upper)):
        low_slope, low_bias, up_slope, up_bias = (numbers(t.expand_as(lower)) for t in op.lines(lower, upper, knobs))
        for side, slope, bias in ((1.0, low_slope, low_bias), (-1.0, up_slope, up_bias)):
            new = np.isfinite(slope) & np.isfinite(bias)
            for other in found:
                if other.side == side:
                    new &= (other.slope != slope) | (other.bias != bias)
            found.append(Line(side, slope, bias, new))
    return found


def add_lines(builder, value, source, slope, bias, side: float) -> None:
    """value >= slope source + bias (side 1), <= (side -1) or equal (side 0)."""
    k = np.arange(len(value))
    infinite = np.full(len(value), np.inf)
    used = np.flatnonzero(slope != 0)
    builder.add_rows(
        np.concatenate([k, used]), np.concatenate([value, source[used]]),
        np.concatenate([np.ones(len(k)), -slope[used]]), bias if side >= 0 else -infinite,
        bias if side <= 0 else infinite,
    )  # fmt: skip
