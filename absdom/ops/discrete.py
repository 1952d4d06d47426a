"""Step functions: rounding, signs and comparisons with zero. They do not decrease, and are constant between jumps.

Lines: over the jumps of [l, u] the least concave function above f consists of a segment from (l, f(l)) to the upper end
of the first jump, for unit stairs a line of slope 1 along the upper ends, and the constant f(u). The line of smallest
area is the one of these that is lowest at the midpoint; the lower line is the same for -f(-x). Both hold at the jumps
themselves, whatever value f takes there.

Gradients of `eval` pass straight through (Bengio et al. 2013), for attacks only; bounds never use them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from absdom.ir.op import Elementwise, Lines
from absdom.ops.piecewise import margin
from absdom.registry import register_op

MOST = 1024  # steps over one interval that are told apart


class Line(NamedTuple):
    slope: torch.Tensor
    bias: torch.Tensor


def upper_line(lower, upper, f_lower, f_upper, jump, other: Line | None, share) -> Line:
    """A line above a step function that goes from `f_lower` to `f_upper`, whose first jump is at `jump`.

    `other`: another valid line, or None. `share` in [0, 1] blends the constant f_upper with the best sloped line.
    """
    zero, one = torch.zeros_like(lower), torch.ones_like(lower)
    finite = lower.isfinite() & upper.isfinite() & (f_upper > f_lower)
    low, high = torch.where(finite, lower, zero), torch.where(finite, upper, one)
    start, end = torch.where(finite, f_lower, zero), torch.where(finite, f_upper, one)
    middle = low / 2 + high / 2
    # Only where the first jump lies in the right half: its slope is then at most twice that of the whole chord. (Of
    # unit stairs only where the slope is at least 1, so that the line stays above the next steps.)
    steep = finite & (jump - low > torch.finfo(low.dtype).tiny ** 0.5) & (jump >= middle)
    if other is not None:
        steep = steep & (jump - low <= 1)
    width = torch.where(steep, jump - low, one)
    rise = torch.where(steep, one if other is not None else end - start, zero)
    slope = rise / width
    if other is not None:
        slope = torch.where(steep, slope.clamp(min=1), other.slope)
    top = torch.where(
        steep, torch.maximum(start - slope * low, start + rise - slope * torch.where(steep, jump, one)), end
    )
    bias = top if other is None else torch.where(steep, top, other.bias)
    slope, bias = share * slope, share * bias + (1 - share) * end
    sloped = finite & (slope != 0)
    bias = bias + margin(slope, low, high, bias.abs() + end.abs())
    return Line(torch.where(sloped, slope, zero), torch.where(sloped, bias, f_upper))


def _mirror(line: Line) -> Line:
    return Line(line.slope, -line.bias)


class StepFunction(Elementwise):
    """Base: `step` is f, `first_jump` and `last_jump` say where in [l, u] it jumps, where it is not constant there."""

    knobs = ("lower", "upper")

    def step(self, x):
        raise ValueError(f"{self.name} states no function")

    def soft(self, x):
        """What gradients of attacks see instead of f."""
        return x

    def first_jump(self, f_lower):
        raise ValueError(f"{self.name} states no jumps")

    def last_jump(self, f_upper):
        raise ValueError(f"{self.name} states no jumps")

    def slanted(self, lower, upper, f_lower, f_upper) -> tuple[Line | None, Line | None]:
        """Lines below and above f that are not those of `upper_line`, or None."""
        return None, None

    def eval(self, x):
        hard = self.step(x.detach())
        if not x.requires_grad:
            return hard
        soft = self.soft(x)
        return hard + torch.nan_to_num(soft - soft.detach())

    def image(self, lower, upper):
        return self.step(lower.detach()), self.step(upper.detach())

    def _both(self, lower, upper, knobs) -> tuple[Line, Line]:
        f_lower, f_upper = self.image(lower, upper)
        below, above = self.slanted(lower, upper, f_lower, f_upper)
        high = upper_line(lower, upper, f_lower, f_upper, self.first_jump(f_lower), above, knobs["upper"])
        below = None if below is None else _mirror(below)
        low = upper_line(-upper, -lower, -f_upper, -f_lower, -self.last_jump(f_upper), below, knobs["lower"])
        return _mirror(low), high

    def initial(self, lower, upper):
        one = torch.ones_like(lower)
        f_lower, f_upper = self.image(lower, upper)
        low, high = self._both(lower, upper, {"lower": one, "upper": one})
        middle = lower / 2 + upper / 2
        better = {"lower": low.slope * middle + low.bias > f_lower, "upper": high.slope * middle + high.bias < f_upper}
        return {name: mask.to(lower.dtype) for name, mask in better.items()}

    def lines(self, lower, upper, knobs):
        low, high = self._both(lower, upper, knobs)
        return Lines(low.slope, low.bias, high.slope, high.bias)

    def band(self, lower, upper, slope):
        low, high = super().band(lower, upper, slope)
        f_lower, f_upper = self.image(lower, upper)
        tiny, flat = torch.finfo(lower.dtype).tiny, slope == 0
        return torch.where(flat, f_lower, low - tiny), torch.where(flat, f_upper, high + tiny)

    def is_exact(self, lower, upper):
        return self.step(lower) == self.step(upper)

    def pieces(self, lower, upper):
        """One per value; at a jump two or three of them meet, and one of them has the value that f takes there."""
        first, last = (float(self.step(torch.tensor(x, dtype=torch.float64))) for x in (lower, upper))
        if not last - first < MOST or max(abs(first), abs(last)) > 2.0**51:
            return ()
        values = torch.arange(first, last + 1, dtype=torch.float64)
        ends = [*self.first_jump(values[:-1]).tolist(), upper]
        return tuple((end, 0.0, value) for end, value in zip(ends, values.tolist(), strict=True))

    def split_points(self, lower, upper):
        f_lower, f_upper = self.image(lower, upper)
        middle = self.first_jump((f_lower / 2 + f_upper / 2 - 0.5).ceil())
        inside = ~self.is_exact(lower, upper) & (middle >= lower) & (middle <= upper)
        return torch.where(inside, middle, lower.new_full((), float("nan")))


class UnitStairs(StepFunction):
    """Every whole number k follows k - 1 at one jump, at k - 1 + `delay`."""

    delay: float

    def first_jump(self, f_lower):
        return f_lower + self.delay

    def last_jump(self, f_upper):
        return f_upper - 1 + self.delay

    def slanted(self, lower, upper, f_lower, f_upper):
        one = torch.ones_like(lower)
        return Line(one, one * -self.delay), Line(one, one * (1 - self.delay))


@register_op
@dataclass(frozen=True)
class Floor(UnitStairs):
    """The largest whole number <= x: x - 1 < f(x) <= x."""

    delay = 1.0

    def step(self, x):
        return torch.floor(x)


@register_op
@dataclass(frozen=True)
class Ceil(UnitStairs):
    """The smallest whole number >= x: x <= f(x) < x + 1."""

    delay = 0.0

    def step(self, x):
        return torch.ceil(x)


@register_op
@dataclass(frozen=True)
class Round(UnitStairs):
    """The nearest whole number, halves to the even one: |f(x) - x| <= 1/2."""

    delay = 0.5

    def step(self, x):
        return torch.round(x)


@register_op
@dataclass(frozen=True)
class Truncate(StepFunction):
    """Towards zero: what a cast to an integer does. Floor for x >= 0, Ceil for x <= 0."""

    def step(self, x):
        return torch.trunc(x)

    def first_jump(self, f_lower):
        return torch.where(f_lower < 0, f_lower, f_lower + 1)

    def last_jump(self, f_upper):
        return torch.where(f_upper > 0, f_upper, f_upper - 1)

    def slanted(self, lower, upper, f_lower, f_upper):
        high = self._above(lower, upper, f_upper)
        return _mirror(self._above(-upper, -lower, -f_lower)), high

    @staticmethod
    def _above(lower, upper, f_upper) -> Line:
        """x for l >= 0, x + 1 for u < 1; between, that or the line from (max(l, -1), 0) to (f(u), f(u))."""
        zero, one = torch.zeros_like(lower), torch.ones_like(lower)
        mixed = (lower < 0) & (f_upper > 0) & f_upper.isfinite()
        start = torch.where(mixed, lower.clamp(min=-1), -one)
        top = torch.where(mixed, f_upper, one)
        slope = top / (top - start)
        bias = torch.maximum(-slope * start, top - slope * top)
        middle = lower / 2 + upper / 2
        chord = mixed & (slope * middle + bias < middle + 1)
        return Line(torch.where(chord, slope, one), torch.where(chord, bias, torch.where(lower >= 0, zero, one)))


class OneJump(StepFunction):
    """A single jump, at zero."""

    def soft(self, x):
        return x.clamp(-1, 1)

    def first_jump(self, f_lower):
        return torch.zeros_like(f_lower)

    def last_jump(self, f_upper):
        return torch.zeros_like(f_upper)


@register_op
@dataclass(frozen=True)
class Sign(OneJump):
    """-1, 0 or 1."""

    def step(self, x):
        return torch.sign(x)


@register_op
@dataclass(frozen=True)
class Step(OneJump):
    """1 where x > 0 (`closed`: where x >= 0), else 0: a comparison of a and b is a step of their difference."""

    closed: bool = False

    def step(self, x):
        return (x >= 0 if self.closed else x > 0).to(x.dtype)

    def soft(self, x):
        return x.clamp(-1, 1) / 2

    def quadratic(self, lower, upper):
        """y (y - 1) = 0."""
        zero = torch.zeros_like(lower)
        return zero + 1, zero, zero, zero - 1, zero, zero

    def image(self, lower, upper):
        low, high = super().image(lower, upper)
        return low, torch.where(upper.isnan(), torch.ones_like(high), high)
