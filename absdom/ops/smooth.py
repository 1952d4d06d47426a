"""Smooth activations, each described once by f, f' and its shape; lines and bands are derived here.

An S-shaped f is increasing, convex on (-inf, 0] and concave on [0, inf), with f' even. Tangent points are found by
bisection that keeps the safe end, so that a line is valid by the shape and not by sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from absdom.ir.op import Elementwise, Lines, _ulp
from absdom.registry import register_op


class SShaped(Elementwise):
    """Base of sigmoid and tanh. `centre` is f(0); `low` and `high` are the asymptotes."""

    knobs = ("lower", "upper")
    low: float = -1.0
    high: float = 1.0

    def derivative(self, x):
        raise ValueError

    def image(self, lower, upper):
        low, high = self.eval(lower), self.eval(upper)
        slack = _ulp(low, 8)
        tiny = torch.finfo(low.dtype).tiny  # exp underflows far out, where f is not yet at its asymptote
        return (low - slack * low.abs()).clamp(min=self.low), (high + slack * high.abs() + tiny).clamp(max=self.high)

    def initial(self, lower, upper):
        half = torch.full_like(lower, 0.5)
        return {"lower": half, "upper": half}

    def _upper(self, lower, upper, t):
        """Slope and bias of a line above f on [lower, upper]: a tangent in the concave part, or the chord."""
        f_low, f_high = self.eval(lower), self.eval(upper)
        wide = upper > lower
        width = torch.where(wide, upper - lower, torch.ones_like(lower))
        chord = torch.where(wide, (f_high - f_low) / width, torch.zeros_like(lower))
        with torch.no_grad():
            # The first safe tangent point d in [max(0, lower), upper]: tangent(lower) >= f(lower). At d = upper it is
            # safe iff f'(upper) <= chord, else only the chord is. Bisection keeps `safe` on the safe side.
            safe = upper.clamp(min=0)
            bad = lower.clamp(min=0)
            for _ in range(24):
                middle = (safe + bad) / 2
                holds = self.eval(middle) - self.derivative(middle) * (middle - lower) >= f_low
                safe, bad = torch.where(holds, middle, safe), torch.where(holds, bad, middle)
            safe = torch.where(lower >= 0, lower, safe)
            use_chord = (upper <= 0) | (self.derivative(upper.clamp(min=0)) >= chord) & (lower < 0)
        point = safe + t * (upper - safe)
        slope = torch.where(use_chord, chord, self.derivative(point))
        anchor = torch.where(use_chord, torch.zeros_like(lower), point)
        at_anchor = torch.where(
            use_chord, torch.maximum(f_low - chord * lower, f_high - chord * upper), self.eval(point)
        )
        # The safe end also has to hold at `lower` in floating point.
        bias = torch.maximum(at_anchor - slope * anchor, f_low - slope * lower)
        return slope, bias + self._slack(slope, lower, upper)

    def _slack(self, slope, lower, upper):
        reach = torch.maximum(lower.abs(), upper.abs())
        top = torch.maximum(self.eval(lower).abs(), self.eval(upper).abs())
        return (slope.abs() * reach + top) * _ulp(lower, 16) + torch.finfo(lower.dtype).tiny

    def lines(self, lower, upper, knobs):
        up_slope, up_bias = self._upper(lower, upper, knobs["upper"])
        # f(z) - f(0) is odd: a line below f on [l, u] is a mirrored line above f on [-u, -l].
        slope, bias = self._upper(-upper, -lower, knobs["lower"])
        middle = self.low + self.high
        rounding = 0.0 if middle == 0 else (middle + bias.abs()) * _ulp(bias, 1)
        return Lines(slope, middle - bias - rounding, up_slope, up_bias)

    def parallel_slope(self, lower, upper):
        return torch.minimum(self.derivative(lower), self.derivative(upper))

    def band(self, lower, upper, slope):
        # f - slope z increases on all of [l, u] when slope <= min f', which lies at an end because f' is a bell.
        monotone = slope <= torch.minimum(self.derivative(lower), self.derivative(upper)) * (1 + _ulp(lower, 16))
        small, big = super().band(lower, upper, slope)
        slack = self._slack(slope, lower, upper)
        low = self.eval(lower) - slope * lower - slack
        high = self.eval(upper) - slope * upper + slack
        return torch.where(monotone, low, small), torch.where(monotone, high, big)


@register_op
@dataclass(frozen=True)
class Sigmoid(SShaped):
    low = 0.0
    high = 1.0

    def eval(self, x):
        return torch.sigmoid(x)

    def derivative(self, x):
        s = torch.sigmoid(x)
        return s * torch.sigmoid(-x)


@register_op
@dataclass(frozen=True)
class Tanh(SShaped):
    def eval(self, x):
        return torch.tanh(x)

    def derivative(self, x):
        return 1 - torch.tanh(x).square()


@register_op
@dataclass(frozen=True)
class Sqrt(Elementwise):
    """Square root of what is positive (here: of variances in a prologue)."""

    def eval(self, x):
        return x.sqrt()

    def image(self, lower, upper):
        low, high = lower.clamp(min=0).sqrt(), upper.clamp(min=0).sqrt()
        return low * (1 - _ulp(low)), high * (1 + _ulp(high))

    def lines(self, lower, upper, knobs):
        low, high = self.image(lower, upper)
        zero = torch.zeros_like(low)
        return Lines(zero, low, zero, high)
