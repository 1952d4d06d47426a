"""Sine, cosine and tangent: where their arches lie is told by multiples of pi, with the rounding of those."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch

from absdom.ir.op import _ulp
from absdom.ops.smooth import Smooth
from absdom.registry import register_op


class Periodic(Smooth):
    """sin(x + phase): concave where it is positive."""

    low = -1.0
    high = 1.0
    breaks = ()
    curvature = (-1, 1)  # both occur; where they lie is told by `peak`
    phase: float = 0.0

    def error(self, x, value):
        return torch.full_like(value, _ulp(value, 2)) + value.abs() * _ulp(value, 4)

    def _pieces(self):
        return ()

    def _blur(self, lower, upper):
        """How far off a multiple of pi may be, near the interval."""
        return (lower.abs() + upper.abs() + 10) * _ulp(lower, 4)

    def is_defined(self, lower, upper):
        return self._blur(lower, upper) < 1e-2  # beyond, floats do not tell where the next arch begins

    def _first_and_last(self, lower, upper, offset):
        """The first and the last of the points offset + 2 pi k in [lower, upper]; outside of it there are none."""
        blur = self._blur(lower, upper)
        first = offset + 2 * pi * torch.ceil((lower - blur - offset) / (2 * pi))
        last = offset + 2 * pi * torch.floor((upper + blur - offset) / (2 * pi))
        return (first, first <= upper + blur), (last, last >= lower - blur)

    def image(self, lower, upper):
        ends = self.eval(lower), self.eval(upper)
        small, big = torch.minimum(*ends), torch.maximum(*ends)
        small, big = small - self.error(lower, small), big + self.error(lower, big)
        for value, offset in ((1.0, pi / 2 - self.phase), (-1.0, -pi / 2 - self.phase)):
            inside = self._first_and_last(lower, upper, offset)[0][1] | ~torch.isfinite(upper - lower)
            if value > 0:
                big = torch.where(inside | big.isnan(), torch.ones_like(big), big)
            else:
                small = torch.where(inside | small.isnan(), -torch.ones_like(small), small)
        return small.clamp(min=-1), big.clamp(max=1)

    def peak(self, lower, upper, slope, sign):
        first, second = self._value(lower, slope, sign), self._value(upper, slope, sign)
        best, at = torch.maximum(first, second), torch.where(second > first, upper, lower).detach()
        # sign (sin(x + phase) - slope x) turns down where cos(x + phase) = slope and sign sin > 0. It falls or rises by
        # the same from each of these points to the next, so only the first and the last matter.
        flat = slope.abs() < 1
        angle = torch.arccos(torch.where(flat, slope, torch.zeros_like(slope)).detach())
        for x, inside in self._first_and_last(lower, upper, (angle if sign > 0 else -angle) - self.phase):
            x = self._with_ends(torch.minimum(torch.maximum(x, lower), upper), lower, upper)
            with torch.no_grad():  # the tangent bounds the arch, which is no wider than pi
                rest = (self.derivative(x) - slope).abs() + _ulp(x, 16)
                rise = rest * (upper - lower).clamp(max=pi) * (1 + _ulp(x))
            value = self._value(x, slope, sign) + rise
            better = flat & inside & (value > best)
            best, at = torch.where(better, value, best), torch.where(better, x, at).detach()
        return best, at


@register_op
@dataclass(frozen=True)
class Sin(Periodic):
    def eval(self, x):
        return torch.sin(x)

    def derivative(self, x):
        return torch.cos(x)


@register_op
@dataclass(frozen=True)
class Cos(Periodic):
    phase = pi / 2

    def eval(self, x):
        return torch.cos(x)

    def derivative(self, x):
        return -torch.sin(x)


@register_op
@dataclass(frozen=True)
class Tan(Smooth):
    """Tangent, where no pole lies in the interval; elsewhere nothing is known."""

    breaks = (0.0,)
    curvature = (-1, 1)

    def eval(self, x):
        return torch.tan(x)

    def derivative(self, x):
        return 1 + torch.tan(x).square()

    def error(self, x, value):
        return (value.abs() + x.abs() * (1 + value.square())) * _ulp(value, 8) + torch.finfo(value.dtype).tiny

    def derivative_error(self, x, value):
        return value * (1 + value) * (1 + x.abs()) * _ulp(value, 16)

    def stationary(self, slope, piece):
        x = torch.atan((slope - 1).clamp(min=0).sqrt())
        return x if piece else -x

    def _at_pole(self, lower, upper):
        blur = (lower.abs() + upper.abs() + 10) * _ulp(lower, 8)
        first = pi / 2 + pi * torch.ceil((lower - blur - pi / 2) / pi)
        return (first <= upper + blur) | ~torch.isfinite(upper - lower)

    def peak(self, lower, upper, slope, sign):
        """In the period around 0, moved there by a multiple of pi, with the rounding of the move on both sides."""
        turns = torch.round((lower + upper) / (2 * pi)).detach()
        move = turns * pi
        blur = torch.where(turns == 0, torch.zeros_like(move), (lower.abs() + upper.abs()) * _ulp(lower, 4)).detach()
        bound, at = super().peak(lower - move - blur, upper - move + blur, slope, sign)
        bound = bound - sign * slope * move + (slope * move).abs() * _ulp(slope, 4)
        return bound, torch.minimum(torch.maximum(at + move, lower), upper)
