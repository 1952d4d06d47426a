"""Division by the root of a mean square: with a mean taken off before, what layer, group and instance norms are."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from absdom.ir.op import Composite, Multivariate, PlaneMap, _ulp
from absdom.ops import affine, composite, functions
from absdom.ops.affine import broadcast_type
from absdom.ops.multivariate import parallel_of_planes, tame
from absdom.ops.products import SIDES, flatter, led, magnitude, mccormick
from absdom.ops.shape import lead
from absdom.registry import register_op


@register_op
@dataclass(frozen=True)
class Rescale(Multivariate):
    """x / (sqrt(w + epsilon) + shift) with w = max(v, x^2 / count); inputs x and v; 0 where that divides 0 by 0.

    Where v is the mean of `count` squares, x^2 among them, w is v, and the result is at most sqrt(count): which is lost
    when root and quotient are bounded one after the other.

    The result is x rho(w), rho convex and decreasing: McCormick planes, with rho(w) <= rho(v) below its chord in v, and
    above its tangent in w, where w is below the chord of max(v, largest x^2 / count). Knobs: the share of the first
    McCormick plane.
    """

    count: int
    epsilon: float = 0.0
    shift: float = 0.0

    knobs = ("lower", "upper")

    def infer(self, x, v):
        if self.count < 1 or not (self.epsilon >= 0 and self.shift >= 0):
            raise ValueError(f"count {self.count}, epsilon {self.epsilon} or shift {self.shift} is too small")
        return broadcast_type(x, v)

    def _rho(self, w):
        return 1 / (_root(w + self.epsilon) + self.shift)

    def eval(self, x, v):
        rank = max(x.dim(), v.dim()) - 1
        x, v = lead(x, rank), lead(v, rank)
        bottom = _root(torch.maximum(v, x.square() / self.count) + self.epsilon) + self.shift
        return torch.where(bottom > 0, x / bottom.where(bottom > 0, torch.ones_like(bottom)), torch.zeros_like(x))

    def image(self, lowers, uppers):
        """Exact: the value rises with x, and its size falls with v."""
        (*x, good), (*v, fit) = (tame(*ends) for ends in led(lowers, uppers))
        rounding, tiny = _ulp(x[0], 16), torch.finfo(x[0].dtype).tiny
        limit, out = x[0].new_full((), self.count**0.5 * (1 + rounding)), []
        for (_, side), end in zip(SIDES, x, strict=True):
            outward = side * end > 0
            # What makes the value smaller in size has to be small for an end that points outward, large otherwise; and
            # squares below the normal numbers are hardly known.
            w = torch.maximum(torch.where(outward, v[0], v[1]), end.square() / self.count)
            w = (w + torch.where(outward, -4 * tiny, 4 * tiny)).clamp(min=0)
            bottom = _root(w + self.epsilon) + self.shift
            known = good & fit & (bottom > 0)
            value = side * end / bottom.where(known, torch.ones_like(bottom))
            value = (value + value.abs() * rounding + tiny).where(known, limit)
            out.append(side * torch.minimum(value, limit))
        return tuple(out)

    def initial(self, lowers, uppers):
        x, _, factor, *_ = self._parts(lowers, uppers)
        return {name: flatter(x, factor, side) for name, side in SIDES}

    def _parts(self, lowers, uppers):
        """Ends of x and of v, both fit for use; of rho(w); the largest x^2 / count; and where all of them are fit."""
        (*x, good), (*v, fit) = (tame(*ends) for ends in led(lowers, uppers))
        rounding, enough = _ulp(x[0], 16), torch.finfo(x[0].dtype).tiny ** 0.4
        good = good & fit & (v[1] + self.epsilon > enough)
        if not self.shift > enough:
            good = good & (v[0] + self.epsilon > enough)
        x = [torch.where(good, t, torch.zeros_like(t)) for t in x]
        v = [torch.where(good, t, torch.ones_like(t)) for t in v]
        most = magnitude(x).square() / self.count * (1 + rounding)
        factor = self._rho(torch.maximum(v[1], most)) * (1 - rounding), self._rho(v[0].clamp(min=0)) * (1 + rounding)
        return x, v, factor, most, good

    def _lines(self, v, factor, most, middle):
        """(value in the middle of v, slope) of lines in v above and below rho(w)."""
        ends = [_root(t.clamp(min=0) + self.epsilon) for t in v]
        steep = -self._rho(v[0].clamp(min=0)) * self._rho(v[1].clamp(min=0)) / (ends[0] + ends[1])
        above = factor[1] + steep * (middle - v[0].clamp(min=0)), steep
        low, high = torch.maximum(v[0], most), torch.maximum(v[1], most)
        wide = (v[1] > v[0]) & (most > v[0])
        width = torch.where(wide, v[1] - v[0], torch.ones_like(low))
        share = torch.where(wide, (high - low) / width, (most <= v[0]).to(low.dtype))
        at = low + share * (middle - v[0])
        below = self._rho(at), -self._rho(at).square() / (2 * _root(at + self.epsilon)) * share
        return above, below

    def planes(self, lowers, uppers, knobs=None):
        knobs = self.initial(lowers, uppers) if knobs is None else knobs
        x, v, factor, most, good = self._parts(lowers, uppers)
        centre, middle = (t[0] + (t[1] - t[0]) / 2 for t in (x, v))
        above, below = self._lines(v, factor, most, middle)
        out = []
        for (name, side), constant in zip(SIDES, self.image(lowers, uppers), strict=True):
            own, part, bias = mccormick(x, factor, knobs[name], side)
            value, slope = (torch.where(side * part > 0, a, b) for a, b in zip(above, below, strict=True))
            slopes = own, part * slope
            slack = own.abs() * magnitude(x) + slopes[1].abs() * magnitude(v) + part.abs() * factor[1]
            slack = slack * _ulp(slack, 64) + torch.finfo(slack.dtype).tiny
            value = own * centre + part * value + bias + side * slack
            better = good & (side * value < side * constant)
            slopes = [t.where(better, torch.zeros_like(t)) for t in slopes]
            bias = torch.where(better, value - slopes[0] * centre - slopes[1] * middle, constant)
            out.append(PlaneMap(tuple(slopes), bias))
        return tuple(out)

    def parallel(self, lowers, uppers):
        return parallel_of_planes(self, lowers, uppers)


def _root(x):
    """The square root, with a finite gradient at 0."""
    positive = x > 0
    return x.where(positive, torch.ones_like(x)).sqrt().where(positive, torch.zeros_like(x))


@register_op
@dataclass(frozen=True)
class RmsNorm(Composite):
    """x / (sqrt(mean of x^2 over axes + epsilon) + shift) (Zhang and Sennrich 2019).

    `total`: the sum of x^2 in place of its mean, so that x is divided by its Euclidean length.
    """

    axes: tuple[int, ...]
    epsilon: float = 0.0
    shift: float = 0.0
    total: bool = False

    def infer(self, x):
        if not self.axes or any(not 0 <= a < x.rank for a in self.axes):
            raise ValueError(f"axes {self.axes} do not fit {x}")
        return x

    def decompose(self, builder, x):
        count = 1 if self.total else prod(builder.type(x).shape[a] for a in self.axes)
        mean = affine.ReduceSum(self.axes) if self.total else composite.ReduceMean(self.axes)
        v = builder.add(mean, builder.add(functions.Power(2.0), x))
        return builder.add(Rescale(count, self.epsilon, self.shift), x, v)


@register_op
@dataclass(frozen=True)
class Standardise(Composite):
    """(x - mean) / (sqrt(variance + epsilon) + shift) over axes (Ba et al. 2016: layer norm without its weights)."""

    axes: tuple[int, ...]
    epsilon: float = 0.0
    shift: float = 0.0

    def infer(self, x):
        return RmsNorm(self.axes).infer(x)

    def decompose(self, builder, x):
        centred = builder.add(affine.Sub(), x, builder.add(composite.ReduceMean(self.axes), x))
        return builder.add(RmsNorm(self.axes, self.epsilon, self.shift), centred)
