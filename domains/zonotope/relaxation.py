"""Parallel lines around functions of single elements: f(z) = slope z + what lies in a band."""

from __future__ import annotations

import torch

from absdom.ir.op import Elementwise


def relaxation(place, choice: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(slope, low, high) so that f(z) - slope z lies in [low, high] on the op's known bounds, "B *n" each.

    choice: which slope, as the recipe says. Slope 0 and the image of f where no band is finite.
    """
    op, (bounds,) = place.op, place.inputs
    slope = _slope(op, bounds.lower, bounds.upper, choice)
    band = op.band(bounds.lower, bounds.upper, slope)
    known = slope.isfinite() & band[0].isfinite() & band[1].isfinite()
    slope = torch.where(known, slope, torch.zeros_like(slope))
    image = op.image(bounds.lower, bounds.upper)
    low, high = (torch.where(known, a, b) for a, b in zip(band, image, strict=True))
    return slope, low, high


def _slope(op: Elementwise, lower, upper, choice: str) -> torch.Tensor:
    """The slope of the parallel lines, as the recipe says: the band is sound for any."""
    if choice == "adaptive" and op.zero_bias:
        lines = op.lines(lower, upper, op.initial(lower, upper))
        return lines.lower_slope if op.zero_bias == "lower" else lines.upper_slope
    slope = op.parallel_slope(lower, upper)
    if choice == "flat":
        slope = torch.where(op.is_exact(lower, upper), slope, torch.zeros_like(slope))
    return slope
