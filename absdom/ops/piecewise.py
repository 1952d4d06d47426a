"""Piecewise linear activations. Lines are exact up to a widening of a few units of roundoff, in any precision."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch

from absdom.ir.op import Elementwise, Lines, _ulp
from absdom.kernels import relu_chord
from absdom.registry import register_op


def chord(lower, upper, f_lower, f_upper, mask):
    """Slope and intercept of the line through the two ends where `mask` holds (0 elsewhere), not yet widened."""
    width = torch.where(mask, upper - lower, torch.ones_like(lower))
    slope = torch.where(mask, (f_upper - f_lower) / width, torch.zeros_like(lower))
    return slope, torch.maximum(f_lower - slope * lower, f_upper - slope * upper)


def margin(slope, lower, upper, value):
    """What rounding of slope, product and sum can move a line by on [lower, upper]."""
    reach = torch.maximum(lower.abs(), upper.abs())
    return (slope.abs() * reach + value.abs()) * _ulp(lower) + torch.finfo(lower.dtype).tiny


class TwoPieces(Elementwise):
    """f(z) = left z for z <= 0, right z for z >= 0; convex when left <= right, else concave."""

    knobs = ("slope",)
    splittable = True

    def slopes(self) -> tuple[float, float]:
        """(left, right)."""
        raise ValueError(f"{self.name} states no slopes")

    @property
    def zero_bias(self) -> str:
        return "lower" if self.slopes()[0] <= self.slopes()[1] else "upper"

    def eval(self, x):
        left, right = self.slopes()
        return torch.where(x > 0, x * right, x * left)

    def image(self, lower, upper):
        low, high = self.eval(lower), self.eval(upper)
        inside = (lower < 0) & (upper > 0)
        zero = torch.zeros_like(low)
        small, big = torch.minimum(low, high), torch.maximum(low, high)
        small = torch.where(inside, torch.minimum(small, zero), small)
        big = torch.where(inside, torch.maximum(big, zero), big)
        if {abs(s) for s in self.slopes()} <= {0.0, 1.0}:
            return small, big  # exact: no product was rounded
        return small - small.abs() * _ulp(small), big + big.abs() * _ulp(big)

    def initial(self, lower, upper):
        left, right = self.slopes()
        # The smaller area: the right slope where the right part is longer (ReLU: slope 1 iff u > -l).
        longer = (upper > -lower) if left <= right else (upper <= -lower)
        return {"slope": longer.to(lower.dtype)}

    def lines(self, lower, upper, knobs):
        left, right = self.slopes()
        unstable = (lower < 0) & (upper > 0)
        f_low, f_high = self.eval(lower), self.eval(upper)
        stable = torch.where(upper > 0, torch.full_like(lower, right), torch.full_like(lower, left))
        t = knobs["slope"]
        between = (min(left, right) + t * abs(right - left)).clamp(min(left, right), max(left, right))  # the sum rounds
        through_zero = torch.where(unstable, between, stable)
        zero = torch.zeros_like(through_zero)
        width = torch.where(unstable, upper - lower, torch.ones_like(lower))
        slope = torch.where(unstable, (f_high - f_low) / width, stable)
        far = torch.maximum(lower.abs(), upper.abs())
        if left <= right:
            bias = torch.maximum(f_low - slope * lower, f_high - slope * upper)
            bias = torch.where(unstable, bias + margin(slope, lower, upper, far), zero[: len(bias)])
            return Lines(through_zero, zero, slope, bias)
        bias = torch.minimum(f_low - slope * lower, f_high - slope * upper)
        bias = torch.where(unstable, bias - margin(slope, lower, upper, far), zero[: len(bias)])
        return Lines(slope, bias, through_zero, zero)

    def parallel_slope(self, lower, upper):
        lines = self.lines(lower, upper, self.initial(lower, upper))
        return lines.upper_slope if self.slopes()[0] <= self.slopes()[1] else lines.lower_slope

    def band(self, lower, upper, slope):
        ends = [self.eval(lower) - slope * lower, self.eval(upper) - slope * upper]
        inside = (lower <= 0) & (upper >= 0)
        small, big = torch.minimum(*ends), torch.maximum(*ends)
        small = torch.where(inside, small.clamp(max=0), small)
        big = torch.where(inside, big.clamp(min=0), big)
        slack = margin(slope, lower, upper, torch.maximum(self.eval(lower).abs(), self.eval(upper).abs()))
        exact = self.is_exact(lower, upper) & (
            slope == torch.where(upper > 0, *map(slope.new_tensor, self.slopes()[::-1]))
        )
        slack = torch.where(exact, torch.zeros_like(slack), slack)
        return small - slack, big + slack

    def is_exact(self, lower, upper):
        return (lower >= 0) | (upper <= 0)

    def split_points(self, lower, upper):
        return torch.where(self.is_exact(lower, upper), lower.new_full((), float("nan")), torch.zeros_like(lower))

    def quadratic(self, lower, upper):
        """(y - left z) (y - right z) = 0."""
        left, right = self.slopes()
        zero = torch.zeros_like(lower)
        return zero + 1, zero - (left + right), zero + left * right, zero, zero, zero

    def pieces(self, lower, upper):
        left, right = self.slopes()
        if lower >= 0 or upper <= 0:
            return ((upper, right if upper > 0 else left, 0.0),)
        return ((0.0, left, 0.0), (upper, right, 0.0))


@register_op
@dataclass(frozen=True)
class Relu(TwoPieces):
    def slopes(self):
        return 0.0, 1.0

    def eval(self, x):
        return torch.relu(x)

    def image(self, lower, upper):
        return torch.relu(lower), torch.relu(upper)

    def lines(self, lower, upper, knobs):
        slope, bias = relu_chord(lower, upper)
        fixed = slope.detach()  # 0 or 1 where ReLU is linear
        through_zero = torch.clamp(knobs["slope"], fixed.floor(), fixed.ceil())
        return Lines(through_zero, through_zero.new_zeros(()).expand(through_zero.shape), slope, bias)


@register_op
@dataclass(frozen=True)
class LeakyRelu(TwoPieces):
    alpha: float = 0.01

    def slopes(self):
        return self.alpha, 1.0


@register_op
@dataclass(frozen=True)
class Abs(TwoPieces):
    def slopes(self):
        return -1.0, 1.0

    def eval(self, x):
        return x.abs()


@register_op
@dataclass(frozen=True)
class Clip(Elementwise):
    """min(max(x, low), high): hardtanh and its kin, relaxed directly (two ReLUs in a row would be looser)."""

    low: float = -inf
    high: float = inf

    knobs = ("lower", "upper")

    def eval(self, x):
        return x.clamp(self.low, self.high)

    def image(self, lower, upper):
        return self.eval(lower), self.eval(upper)

    def initial(self, lower, upper):
        # The smaller area, as for ReLU at each corner: the steep line where the corner lies left (right) of the middle.
        below, above = upper - self.low >= self.low - lower, self.high - lower >= upper - self.high
        return {"lower": below.to(lower.dtype), "upper": above.to(lower.dtype)}

    def lines(self, lower, upper, knobs):
        f_low, f_high = self.eval(lower), self.eval(upper)
        bent_low, bent_high = (lower < self.low) & (upper > self.low), (upper > self.high) & (lower < self.high)
        identity = (lower >= self.low) & (upper <= self.high)
        slope, up = chord(lower, upper, f_low, f_high, bent_low | bent_high)
        down = torch.minimum(f_low - slope * lower, f_high - slope * upper)
        slack = margin(slope, lower, upper, torch.maximum(f_low.abs(), f_high.abs()))
        one, zero = torch.ones_like(lower), torch.zeros_like(lower)
        # Lower line: the chord where only the top is bent (concave), a line through (low, low) where the bottom is.
        # Not the infinities themselves: gradients of unused branches would become NaN.
        end_low, end_high = (end if abs(end) < inf else 0.0 for end in (self.low, self.high))
        steep = torch.where(bent_high, (f_high - end_low) / torch.where(bent_low, upper - end_low, one), one)
        low_slope = torch.where(
            bent_low, knobs["lower"] * steep, torch.where(bent_high, slope, identity.to(lower.dtype))
        )
        corner = torch.where(bent_low, one * self.low * (1 - low_slope) if self.low > -inf else zero, zero)
        flat = torch.where(identity, zero, f_low)
        low_bias = torch.where(bent_low, corner, torch.where(bent_high, down, flat))
        low_slack = margin(low_slope, lower, upper, f_low.abs() + low_bias.abs())
        steep = torch.where(bent_low, (end_high - f_low) / torch.where(bent_high, end_high - lower, one), one)
        up_slope = torch.where(
            bent_high, knobs["upper"] * steep, torch.where(bent_low, slope, identity.to(lower.dtype))
        )
        corner = torch.where(bent_high, one * self.high * (1 - up_slope) if self.high < inf else zero, zero)
        up_bias = torch.where(bent_high, corner, torch.where(bent_low, up, torch.where(identity, zero, f_high)))
        up_slack = margin(up_slope, lower, upper, f_high.abs() + up_bias.abs())
        bent = bent_low | bent_high
        return Lines(
            low_slope, torch.where(bent, low_bias - low_slack - slack, low_bias),
            up_slope, torch.where(bent, up_bias + up_slack + slack, up_bias),
        )  # fmt: skip

    def parallel_slope(self, lower, upper):
        """The slope of the narrowest band: the chord's where one end is bent, and 2 / (1 + max(u, -l)) for hardtanh
        with both (Wong 2020, equation 3.62, corrected), steeper than the chord."""
        f_low, f_high = self.eval(lower), self.eval(upper)
        width = torch.maximum(upper - f_low, f_high - lower)
        bent = (f_high > f_low) & (width < inf)
        zero, one = torch.zeros_like(width), torch.ones_like(width)
        slope = torch.where(bent, f_high - f_low, zero) / torch.where(bent, width, one)
        return torch.where((lower >= self.low) & (upper <= self.high), one, slope.clamp(0, 1))

    def band(self, lower, upper, slope):
        values = [self.eval(lower) - slope * lower, self.eval(upper) - slope * upper]
        small, big = torch.minimum(*values), torch.maximum(*values)
        for corner in (self.low, self.high):
            if abs(corner) < inf:
                inside = (lower <= corner) & (upper >= corner)
                value = corner - slope * corner
                small = torch.where(inside, torch.minimum(small, value), small)
                big = torch.where(inside, torch.maximum(big, value), big)
        slack = margin(slope, lower, upper, torch.maximum(self.eval(lower).abs(), self.eval(upper).abs()))
        exact = (lower >= self.low) & (upper <= self.high) & (slope == 1)
        slack = torch.where(exact, torch.zeros_like(slack), slack)
        return small - slack, big + slack

    def is_exact(self, lower, upper):
        return (upper <= self.low) | (lower >= self.high) | ((lower >= self.low) & (upper <= self.high))

    def split_points(self, lower, upper):
        at_low = (lower < self.low) & (upper > self.low)
        point = torch.where(at_low, lower.new_tensor(max(self.low, -1e300)), lower.new_tensor(min(self.high, 1e300)))
        return torch.where(self.is_exact(lower, upper), lower.new_full((), float("nan")), point)

    def pieces(self, lower, upper):
        found = []
        if lower < self.low:
            found.append((min(self.low, upper), 0.0, self.low))
        if upper > self.low and lower < self.high:
            found.append((min(self.high, upper), 1.0, 0.0))
        if upper > self.high:
            found.append((upper, 0.0, self.high))
        return tuple(found) or ((upper, 1.0, 0.0),)
