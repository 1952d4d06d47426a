"""Smooth functions: each is described once, and its lines, bands and images are derived from that here.

A description is f, f', the points where the curvature changes sign (or f has a kink), the curvature between them, the
points where f turns, and its asymptotes. Everything else rests on one function, `peak`: a bound of f(z) - slope z
over an interval, valid for every slope. On a piece where f curves away from the line, the tangent at any point bounds
f; elsewhere the ends do. So the search for good slopes needs no care: validity comes from `peak` alone.
"""

from __future__ import annotations

from functools import lru_cache
from math import inf
from typing import ClassVar

import torch

from absdom.ir.op import Elementwise, Lines, _ulp

STEPS = 7  # of the search for the slope of the tightest line
TABLE = 256  # points of a table of f' where its inverse has no closed form


class Smooth(Elementwise):
    """Base of smooth functions.

    `breaks`: ascending points between pieces; `curvature`: +1 convex, -1 concave, 0 affine, one per piece. Inside a
    piece f is continuously differentiable, and `derivative` at a break belongs to a piece that is not affine.
    `extrema`: where f turns. `low`, `high`: what f never leaves. `domain`: where f is defined (an end may belong to
    it); outside of it a network computes NaN, so bounds speak of the part inside. `poles`: points of no value.
    """

    knobs = ("lower", "upper")
    breaks: tuple[float, ...] = ()
    curvature: tuple[int, ...] = (1,)
    extrema: tuple[float, ...] = ()
    low: float = -inf
    high: float = inf
    domain: tuple[float, float] = (-inf, inf)
    poles: tuple[float, ...] = ()
    anchor: ClassVar[float] = 0.0  # some point inside the domain, for elements that nothing is known of
    reach: ClassVar[float] = 16.0  # where tables of f' end: beyond, f is nearly affine

    def derivative(self, x):
        raise ValueError(f"{self.name} states no derivative")

    def error(self, x, value):
        """A bound on |eval(x) - f(x)|, from x and value = eval(x)."""
        return value.abs() * _ulp(value, 8) + torch.finfo(value.dtype).tiny

    def derivative_error(self, x, value):
        """A bound on the error of `derivative(x)` = value."""
        return value.abs() * _ulp(value, 16)

    def stationary(self, slope, piece: int):
        """A point of the piece with f' = slope there, or near it: any point gives valid lines, the exact one tight."""
        points, values = _derivative_table(self, piece)
        points, values = slope.new_tensor(points), slope.new_tensor(values)
        place = torch.searchsorted(values, slope.contiguous()).clamp(1, len(values) - 1)
        left, right = points[place - 1], points[place]
        steep = ((values[place] - values[place - 1]) / (right - left)).abs().clamp(min=1e-30)
        steep = steep * self.curvature[piece]  # the sign of f''
        x = left
        for _ in range(4):  # Newton's steps with the slope of the table's segment, kept inside it
            x = x + (slope - self.derivative(x)) / steep
            x = torch.minimum(torch.maximum(x, torch.minimum(left, right)), torch.maximum(left, right))
        # Beyond the table f' no longer moves: the point is as far out as the piece reaches.
        a, b, curvature = self._pieces()[piece]
        for end, far in ((a, curvature > 0), (b, curvature < 0)):
            if abs(end) == inf:
                x = torch.where(slope <= values[0] if far else slope >= values[-1], slope.new_full((), end), x)
        return x

    # What the shape gives.

    def image(self, lower, upper):
        lower, upper = (self._steady(x.clamp(*self.domain)) for x in (lower, upper))
        ends = self.eval(lower), self.eval(upper)
        slack = [self.error(x, v) for x, v in zip((lower, upper), ends, strict=True)]
        small = torch.minimum(ends[0] - slack[0], ends[1] - slack[1])
        big = torch.maximum(ends[0] + slack[0], ends[1] + slack[1])
        for point in self.extrema:
            x = lower.new_tensor(point)
            value = self.eval(x)
            inside = (lower <= x) & (upper >= x)
            small = torch.where(inside, torch.minimum(small, value - self.error(x, value)), small)
            big = torch.where(inside, torch.maximum(big, value + self.error(x, value)), big)
        pole = self._at_pole(lower, upper)
        small = torch.where(pole | small.isnan(), small.new_full((), -inf), small)
        big = torch.where(pole | big.isnan(), big.new_full((), inf), big)
        return small.clamp(min=self.low), big.clamp(max=self.high)

    def is_defined(self, lower, upper):
        """Mask of elements on which f has a finite value all over [lower, upper]."""
        low, high = self.domain
        inside = (lower >= low) & (upper <= high) & ~self._at_pole(lower, upper)
        return inside & torch.isfinite(self.eval(lower)) & torch.isfinite(self.eval(upper))

    def undefined(self, lowers, uppers):
        low, high = self.domain
        return (lowers[0] < low) | (uppers[0] > high) | self._at_pole(lowers[0], uppers[0])

    def is_exact(self, lower, upper):
        exact = lower == upper
        for a, b, curvature in self._pieces():
            if curvature == 0:
                exact = exact | (lower >= a) & (upper <= b)
        return exact

    def peak(self, lower, upper, slope, sign: int):
        """(bound, point): an upper bound of sign (f(z) - slope z) over finite [lower, upper], reached near `point`."""
        first, second = self._value(lower, slope, sign), self._value(upper, slope, sign)
        best, at = torch.maximum(first, second), torch.where(second > first, upper, lower).detach()
        pieces = self._pieces()
        for k, (a, b, curvature) in enumerate(pieces):
            if curvature == -sign:
                best, at = self._peak_of_piece(k, lower, upper, a, b, slope, sign, best, at)
            elif k and pieces[k - 1][2] != -sign:  # a kink between two pieces whose ends only count
                x = self._with_ends(torch.minimum(torch.maximum(lower.new_tensor(a), lower), upper), lower, upper)
                value = self._value(x, slope, sign)
                at = torch.where(value > best, x, at).detach()
                best = torch.maximum(best, value)
        return best, at

    def band(self, lower, upper, slope):
        lower, upper, known = self._known(lower, upper)
        slope = torch.where(known, slope, torch.zeros_like(slope))
        low, high = -self.peak(lower, upper, slope, -1)[0], self.peak(lower, upper, slope, 1)[0]
        return torch.where(known, low, low.new_full((), -inf)), torch.where(known, high, high.new_full((), inf))

    def initial(self, lower, upper):
        half = torch.full_like(lower, 0.5)
        return {"lower": half, "upper": half}

    def lines(self, lower, upper, knobs):
        """The lines of least area at knobs 1/2; towards 0 and 1 their slopes go to the extremes of f' at the ends."""
        small, big = self.image(lower, upper)
        lower, upper, known = self._known(lower, upper)
        found = []
        for name, sign, end in (("lower", -1, small), ("upper", 1, big)):
            slope = self._slope(lower, upper, knobs[name], sign)
            slope = torch.where(torch.isfinite(slope) & known, slope, torch.zeros_like(slope))
            bias = sign * self.peak(lower, upper, slope, sign)[0]
            usable = known & torch.isfinite(bias)
            found += [torch.where(usable, slope, torch.zeros_like(slope)), torch.where(usable, bias, end)]
        return Lines(*found)

    def parallel_slope(self, lower, upper):
        """The slope of the narrowest band: of a convex or concave function the chord, else the best of three."""
        lines = self.lines(lower, upper, self.initial(lower, upper))
        if len(self.curvature) == 1:
            return lines.upper_slope if self.curvature[0] > 0 else lines.lower_slope
        best = least = None
        for slope in ((lines.lower_slope + lines.upper_slope) / 2, lines.lower_slope, lines.upper_slope):
            low, high = self.band(lower, upper, slope)
            if best is None:
                best, least = slope, high - low
            else:
                better = high - low < least
                best, least = torch.where(better, slope, best), torch.where(better, high - low, least)
        return best

    # How it is found.

    def _pieces(self):
        ends = (-inf, *self.breaks, inf)
        return tuple(zip(ends[:-1], ends[1:], self.curvature, strict=True))

    def _at_pole(self, lower, upper):
        found = torch.zeros_like(lower, dtype=torch.bool)
        for pole in self.poles:
            found = found | (lower <= pole) & (upper >= pole)
        return found

    def _known(self, lower, upper):
        """The interval where f is finite on all of it, [anchor, anchor] elsewhere, and the mask."""
        low, high = lower.clamp(*self.domain), upper.clamp(*self.domain)
        known = torch.isfinite(low) & torch.isfinite(high) & (low <= high)
        anchor = low.new_tensor(self.anchor)
        low, high = torch.where(known, low, anchor), torch.where(known, high, anchor)
        # Numbers whose squares overflow are as good as infinite ones.
        large = torch.finfo(low.dtype).max ** 0.5
        values = torch.stack([low, high, self.eval(low), self.eval(high), self.derivative((low + high) / 2)])
        known = known & self.is_defined(low, high) & (values.abs() < large).all(0)
        low, high = (self._steady(torch.where(known, x, anchor)) for x in (low, high))
        return low, high, known

    def _steady(self, x):
        """x, which carries no gradient where f' is infinite."""
        return torch.where(torch.isfinite(self.derivative(x.detach())), x, x.detach())

    def _value(self, x, slope, sign):
        """An upper bound of sign (f(x) - slope x)."""
        value, product = self.eval(x), slope * x
        total = sign * (value - product)
        return total + self.error(x, value) + (product.abs() + total.abs()) * _ulp(total)

    @staticmethod
    def _with_ends(x, lower, upper):
        """x without its gradient, but with that of an end where it is one."""
        return torch.where(x == lower, lower, torch.where(x == upper, upper, x.detach()))

    def _peak_of_piece(self, piece, lower, upper, a, b, slope, sign, best, at):
        left, right = lower.clamp(min=a), upper.clamp(max=b)
        meets = left <= right
        with torch.no_grad():
            x = torch.minimum(torch.maximum(self.stationary(slope, piece), left), right)
            x = torch.where(meets & torch.isfinite(x), x, torch.where(meets, left, lower))
            # f lies on one side of its tangent at x, wherever x is: the rest is what the tangent still rises by.
            steep = self.derivative(x)
            rest = sign * (steep - slope)
            error = self.derivative_error(x, steep) + (steep.abs() + slope.abs()) * _ulp(steep, 1)
            rise = torch.maximum((rest + error) * (right - x), (rest - error) * (left - x)).clamp(min=0)
            rise = rise * (1 + _ulp(rise))
        x = self._with_ends(x, lower, upper)
        value = self._value(x, slope, sign)
        value = value + rise * (1 + _ulp(rise)) + value.abs() * _ulp(value, 1)
        better = meets & (value > best)
        return torch.where(better, value, best), torch.where(better, x, at).detach()

    def _slope(self, lower, upper, knob, sign):
        """The slope of the line of least area, moved by the knob."""
        slope = self._best_slope(lower, upper, sign)
        ends = self.derivative(lower.detach()), self.derivative(upper.detach())
        low, high = (pick(pick(*ends), slope) for pick in (torch.minimum, torch.maximum))
        low, high = (torch.where(torch.isfinite(end), end, slope) for end in (low, high))
        share = torch.where(self.is_exact(lower, upper), torch.zeros_like(slope), 2 * knob - 1)
        return slope + share.clamp(min=0) * (high - slope) + share.clamp(max=0) * (slope - low)

    def _best_slope(self, lower, upper, sign):
        """The line of least area has the least value at the middle: it supports the hull of f there.

        So it is the tangent at the middle, or the bridge between a contact left of it and one right of it.
        """
        middle = (lower + upper) / 2
        middle = torch.where(upper > lower, middle, middle.detach())  # at a point, f'' may be infinite
        tangent = self.derivative(middle)
        shapes = {c * sign for c in self.curvature}
        if shapes == {-1}:
            return tangent
        if -1 not in shapes and len(self.curvature) == 1:
            return self._bridge(lower, upper, tangent)
        with torch.no_grad():
            height, at = self.peak(lower, upper, tangent, sign)
            height = height + sign * tangent * middle
            touches = (at - middle).abs() <= 1e-3 * (upper - lower)  # nothing rises above the tangent at the middle
            best, least, left, right = tangent, height, lower, upper
            small, big = torch.full_like(lower, -inf), torch.full_like(lower, inf)
            for _ in range(STEPS):
                slope = self._bridge(left, right, tangent)
                between = (small + big) / 2
                guided = ((slope <= small) | (slope >= big)) & torch.isfinite(between)
                slope = torch.where(guided, between, slope)
                (of_left, at_left), (of_right, at_right) = (
                    self.peak(p, q, slope, sign) for p, q in ((lower, middle), (middle, upper))
                )
                height = torch.maximum(of_left, of_right) + sign * slope * middle
                best, least = torch.where(height < least, slope, best), torch.minimum(height, least)
                # The side that rises more says which way to turn, and its contact is a better one.
                left_rises = of_left > of_right
                left, right = torch.where(left_rises, at_left, left), torch.where(left_rises, right, at_right)
                turn = left_rises if sign > 0 else ~left_rises
                big, small = torch.where(turn, slope, big), torch.where(turn, small, slope)
        # Once more, differentiable: contacts at the ends of the interval move with it, other contacts do not matter.
        left, right = torch.where(left == lower, lower, left), torch.where(right == upper, upper, right)
        return torch.where(touches | self.is_exact(lower, upper), tangent, self._bridge(left, right, best))

    def _bridge(self, a, b, otherwise):
        """The slope of the chord between a and b, where they are apart."""
        wide = b > a
        width = torch.where(wide, b - a, torch.ones_like(a))
        return torch.where(wide, (self.eval(b) - self.eval(a)) / width, otherwise)


@lru_cache(maxsize=64)
def _derivative_table(op: Smooth, piece: int) -> tuple[list[float], list[float]]:
    """Points of a piece, and f' there in ascending order."""
    a, b, _ = op._pieces()[piece]
    share = torch.linspace(0, 1, TABLE, dtype=torch.float64)
    if a == -inf:  # denser near the break, where f' is flat
        points = b - (b + op.reach) * share.square()
    else:
        points = a + (min(b, op.reach) - a) * (share.square() if b == inf else share)
    values = op.derivative(points)
    if values[0] > values[-1]:
        points, values = points.flip(0), values.flip(0)
    return points.tolist(), torch.cummax(values, 0).values.tolist()


class SShaped(Smooth):
    """Increasing, convex below 0 and concave above, with f' even."""

    breaks = (0.0,)
    curvature = (1, -1)

    def inverse_derivative(self, slope):
        """The x >= 0 with f'(x) = slope, for slopes in (0, f'(0)]."""
        raise ValueError(f"{self.name} states no inverse of its derivative")

    def stationary(self, slope, piece):
        x = self.inverse_derivative(slope.clamp(min=torch.finfo(slope.dtype).tiny)).clamp(min=0)
        return x if piece else -x

    def _best_slope(self, lower, upper, sign):
        """With one bend the contacts are known: the lower end and a tangent point right of 0, or both ends."""
        # f(z) - f(0) is odd: lines below f on [l, u] have the slopes of lines above f on [-u, -l].
        low, high = (lower, upper) if sign > 0 else (-upper, -lower)
        middle = (low + high) / 2
        tangent = self.derivative(middle)
        point = self._contact(low, high)
        touches = (low >= 0) | (middle >= point)
        return torch.where(touches, tangent, self._bridge(low, point, tangent))

    def _contact(self, low, high):
        """Where the line above f that leaves (low, f(low)) touches f again."""
        steep = self.derivative(low.detach())
        with torch.no_grad():
            point = high.clamp(min=0)
            for _ in range(STEPS):  # Newton's steps, which come down to the tangent point from the right
                point = torch.minimum(self.stationary(self._bridge(low, point, steep), 1), high)
        return torch.where(point == high, high, point)

    def parallel_slope(self, lower, upper):
        """The smaller slope of the line above that leaves the lower end and of the line below that leaves the upper.

        With less slope a band is as wide as from one contact to the other, and narrows as the slope grows; with more,
        from an end to the contact on its own side, and widens.
        """
        lower, upper, known = self._known(lower, upper)
        sides = (lower, upper), (-upper, -lower)
        slope = torch.minimum(*(self._bridge(a, self._contact(a, b), self.derivative(a)) for a, b in sides))
        return torch.where(known & torch.isfinite(slope), slope, torch.zeros_like(slope))
