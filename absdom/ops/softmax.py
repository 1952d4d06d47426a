"""Softmax and log-sum-exp over one axis, with planes from convexity and not from their parts exp, sum and quotient.

Wei et al. 2023 (Convex Bounds on the Softmax Function) bound p_i by functions that are convex or concave, the tangents
of which are planes. Here p_i = sigmoid(z_i), z_i = x_i - log sum of exp(x_j) over j != i, is taken apart at the
sigmoid:

    h_i = z_i is concave, so any tangent of it lies above; g_i = x_i - log sum of chord_j(x_j) <= z_i, with the chord of
    each exp, is convex, so any tangent of it lies below. A line above (below) the sigmoid with slope >= 0 over the
    range of z_i, applied to the tangent of h_i (of g_i), is a plane above (below) p_i.

Over the same box the chord of the sigmoid is never above their chord of exp(log p_i) (LSE), and where p_i > 1/2 (above)
or p_i < 1/2 (below) a tangent of the sigmoid loses nothing at the centre of the box.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch

from absdom.ir.op import Multivariate, PlaneMap, _down, _ulp, _up
from absdom.ops.blocks import Contraction
from absdom.ops.multivariate import halfway, interval_planes, narrower, parallel_of_planes, tame
from absdom.registry import register_op


def sigmoid_line(low, high, at, above: bool):
    """(slope, value at `at`) of a line above (or below) the sigmoid on [low, high]; `at` lies in between.

    A line with the slope of the sigmoid at any d >= 0 is above it if it is so at d and at `low`: it is a tangent where
    the sigmoid is concave, and above both ends of the convex part. So d is free, and the value follows from the two.
    """
    if not above:  # sigmoid(-z) = 1 - sigmoid(z)
        low, high, at = -high, -low, -at

    def value(z):
        return torch.sigmoid(z) if above else -torch.sigmoid(-z)

    def derivative(z):
        return torch.sigmoid(z) * torch.sigmoid(-z)

    def excess(d):
        """How far the tangent at d is above the sigmoid at `low`."""
        return value(d) - derivative(d) * (d - low) - value(low)

    wide = high > low
    width = torch.where(wide, high - low, torch.ones_like(low))
    chord = torch.where(wide, (value(high) - value(low)) / width, derivative(low))
    end = high.clamp(min=0)
    with torch.no_grad():
        use_chord = (high <= 0) | (low < 0) & (excess(end) < 0)
        safe, bad = end, low.clamp(min=0)
        for _ in range(24):
            middle = (safe + bad) / 2
            holds = excess(middle) >= 0
            safe, bad = torch.where(holds, middle, safe), torch.where(holds, bad, middle)
    # One Newton step, for its gradient: the safe end moves with `low`.
    curve = derivative(safe) * (torch.sigmoid(safe) - torch.sigmoid(-safe)) * (safe - low)
    moves = (low < 0) & (safe > 0) & (curve > 1e-8)
    one, zero = torch.ones_like(low), torch.zeros_like(low)
    stepped = safe - torch.where(moves, excess(safe), zero) / torch.where(moves, curve, one)
    safe = torch.minimum(torch.maximum(stepped, low.clamp(min=0)), end)
    point = torch.minimum(torch.maximum(safe, at), end)
    slope = torch.where(use_chord, chord, derivative(point))
    anchor = torch.where(use_chord, high, point)
    ends = value(anchor) + slope * (at - anchor), value(low) + slope * (at - low)
    best = torch.maximum(*ends)
    return slope, best if above else -best


def others(x, own=None):
    """x "B .. n" -> "B .. n n": per element i all x_j (less own_i, if given), with -infinity in place of x_i itself."""
    eye = torch.eye(x.shape[-1], dtype=torch.bool, device=x.device)
    table = x.unsqueeze(-2).expand(*x.shape, x.shape[-1])
    return (table if own is None else table - own.unsqueeze(-1)).masked_fill(eye, -torch.inf)


def log_sum(x):
    """(log of the sum of exp over the last axis, the terms' shares of the sum)."""
    top = x.amax(-1, keepdim=True)
    terms = (x - top).exp()
    total = terms.sum(-1, keepdim=True)
    return (top + total.log()).squeeze(-1), terms / total


def log_sum_of_chords(low, high):
    """(log of the sum of the chords of exp at the centre, its gradient there), over the last axis."""
    top = high.amax(-1, keepdim=True)
    small, big = (low - top).exp(), (high - top).exp()
    width = torch.where(high > low, high - low, torch.ones_like(low))
    # (e^h - e^l) / (h - l) without cancellation
    slopes = torch.where(high > low, -big * torch.expm1(-width) / width, big)
    total = ((small + big) / 2).sum(-1, keepdim=True)
    return (top + total.log()).squeeze(-1), slopes / total


def rounding_of(low, high):
    """What rounding can change in the log of a sum of exps of differences, over the last axis: absolute, "B .. 1"."""
    apart = high.amax(-1, keepdim=True) - low.amin(-1, keepdim=True)
    return (apart + 1) * _ulp(low, 16 + 4 * low.shape[-1])


def raised(low, high):
    """Bounds with what a mask has put out of reach raised to where its exp is still 0 beside the rest.

    Masks of attention are as low as floats go; taken as they are, their size alone would drown the rest in rounding.
    The third value is the mask of what was raised: a plane is right there as a constant only.
    """
    floor = low.amax(-1, keepdim=True) + log(torch.finfo(low.dtype).tiny) - 72
    gone = high < floor
    return torch.where(gone, floor, low), torch.where(gone, floor, high), gone


def centre_of(low, high):
    return low + (high - low) / 2


def along(block, x, axis: int) -> Contraction:
    """Coefficients "B .. n n" of a function of x along one axis."""
    formulas = "gr...i,g...ij->gr...j", "g...ij,gr...j->gr...i"
    return Contraction(block, *formulas, tuple(x.shape[1:]), x.shape[axis + 1], axis)


def parallel_along(op, lowers, uppers):
    """`Multivariate.parallel` of a function along one axis: half way between its planes, where that beats the image."""
    below, above = op.planes(lowers, uppers)
    (p,), (q,), axis = below.coefficients, above.coefficients, op.axis + 1
    image = op.image(lowers, uppers)
    if p is None:
        return (None,), *image
    low, high, _ = (t.movedim(axis, -1).unsqueeze(-2) for t in tame(lowers[0], uppers[0]))
    slope, *parts = halfway(p.value, q.value, low, high)
    down, up, size = (t.sum(-1).movedim(-1, axis) for t in parts)
    slack = size * _ulp(size, 8 + 2 * low.shape[-1]) + torch.finfo(size.dtype).tiny
    low, high = _down(below.bias, down) - slack, _up(above.bias, up) + slack
    better = narrower(low, high, image)
    slope = torch.where(better.movedim(axis, -1).unsqueeze(-1), slope, torch.zeros_like(slope))
    return (along(slope, lowers[0], op.axis),), torch.where(better, low, image[0]), torch.where(better, high, image[1])


@register_op
@dataclass(frozen=True)
class Softmax(Multivariate):
    """Softmax over one axis."""

    axis: int

    def infer(self, x):
        return x

    def eval(self, x):
        return torch.softmax(x, self.axis + 1)

    def image(self, lowers, uppers):
        """p_i is least at l_i with the others at their upper bounds: sigmoid of -log sum_j exp(u_j - l_i), j != i."""
        axis, size = self.axis + 1, lowers[0].shape[self.axis + 1]
        if size == 1:
            return torch.ones_like(lowers[0]), torch.ones_like(uppers[0])
        low, high, _ = raised(*(t.movedim(axis, -1) for t in (lowers[0], uppers[0])))
        slack, tiny = rounding_of(low, high), torch.finfo(low.dtype).tiny
        bottom, top = (torch.sigmoid(-log_sum(others(b, a))[0]) for a, b in ((low, high), (high, low)))
        bottom = torch.nan_to_num(bottom * (1 - slack) - tiny, nan=0.0).clamp(min=0)
        top = torch.nan_to_num(top * (1 + slack) + tiny, nan=1.0).clamp(max=1)
        return bottom.movedim(-1, axis), top.movedim(-1, axis)

    def planes(self, lowers, uppers, knobs=None):
        """Per element the better at the centre of the box: the planes above, or the constants of the image."""
        axis, size = self.axis + 1, lowers[0].shape[self.axis + 1]
        if size == 1:
            return interval_planes(self, lowers, uppers)
        image = [t.movedim(axis, -1) for t in self.image(lowers, uppers)]
        low, high, gone = raised(*(t.movedim(axis, -1) for t in (lowers[0], uppers[0])))
        low, high, good = tame(low, high)
        good = good.all(-1, keepdim=True)
        centre = centre_of(low, high)
        reach, rounding = torch.maximum(low.abs(), high.abs()).amax(-1, keepdim=True), _ulp(low, 16 + 4 * size)
        bottom = -log_sum(others(high, low))[0] - rounding_of(low, high)
        top = -log_sum(others(low, high))[0] + rounding_of(low, high)
        out = []
        for side, constant in zip((-1, 1), image, strict=True):
            if side > 0:
                total, shares = log_sum(others(centre))
            else:
                total, shares = log_sum_of_chords(others(low), others(high))
            at = torch.minimum(torch.maximum(centre - total, bottom), top)
            slope, value = sigmoid_line(bottom, top, at, above=side > 0)
            slack = (slope * (reach + 1) + value.abs()) * rounding + (1 + reach) * torch.finfo(low.dtype).tiny
            value = value + side * slack
            block = slope.unsqueeze(-1) * (torch.eye(size, dtype=low.dtype, device=low.device) - shares)
            block = block.masked_fill(gone.unsqueeze(-2), 0.0)
            bias = value - (block * centre.unsqueeze(-2)).sum(-1)
            better = good & (side * value < side * constant)
            block = torch.where(better.unsqueeze(-1), block, torch.zeros_like(block))
            bias = torch.where(better, bias, constant).movedim(-1, axis)
            out.append(PlaneMap((along(block, lowers[0], self.axis),), bias))
        return tuple(out)

    def parallel(self, lowers, uppers):
        return parallel_along(self, lowers, uppers)


@register_op
@dataclass(frozen=True)
class LogSumExp(Multivariate):
    """Log of the sum of exp over one axis, which stays as size 1. Convex."""

    axis: int

    def infer(self, x):
        return x.with_shape(1 if i == self.axis else s for i, s in enumerate(x.shape))

    def eval(self, x):
        return x.logsumexp(self.axis + 1, keepdim=True)

    def image(self, lowers, uppers):
        low, high = self.eval(lowers[0]), self.eval(uppers[0])
        slack = _ulp(low, 16 + 4 * lowers[0].shape[self.axis + 1])
        return low - slack * (1 + low.abs()), high + slack * (1 + high.abs())

    def gather(self, parts):
        return parts[0].sum(self.axis + 1, keepdim=True)

    def planes(self, lowers, uppers, knobs=None):
        """Below, the tangent at the centre; above, that of the log of the sum of chords, which is concave."""
        axis = self.axis + 1
        low, high, good = (t.movedim(axis, -1) for t in tame(lowers[0], uppers[0]))
        centre, good = centre_of(low, high), good.all(-1)
        reach = torch.maximum(low.abs(), high.abs()).amax(-1)
        slack = (reach + 1) * _ulp(low, 16 + 8 * low.shape[-1])
        image = [t.squeeze(axis) for t in self.image(lowers, uppers)]
        out = []
        for side, (value, slopes), constant in zip(
            (-1, 1), (log_sum(centre), log_sum_of_chords(low, high)), image, strict=True
        ):
            value = value + side * slack
            better = good & (side * value < side * constant)
            slopes = torch.where(better.unsqueeze(-1), slopes, torch.zeros_like(slopes))
            bias = torch.where(better, value - (slopes * centre).sum(-1), constant)
            out.append(PlaneMap((slopes.movedim(-1, axis),), bias.unsqueeze(axis)))
        return tuple(out)

    def parallel(self, lowers, uppers):
        return parallel_of_planes(self, lowers, uppers)


@register_op
@dataclass(frozen=True)
class LogSoftmax(Multivariate):
    """x - log sum exp over one axis."""

    axis: int

    def infer(self, x):
        return x

    def eval(self, x):
        return torch.log_softmax(x, self.axis + 1)

    def image(self, lowers, uppers):
        """log p_i = -softplus(log of the sum of exp(x_j), j != i, less x_i), which is monotone in every element."""
        axis, size = self.axis + 1, lowers[0].shape[self.axis + 1]
        low, high = (t.movedim(axis, -1) for t in (lowers[0], uppers[0]))
        if size == 1:
            return torch.zeros_like(lowers[0]), torch.zeros_like(uppers[0])
        slack = rounding_of(low, high)
        ends = [-_softplus(log_sum(others(b, a))[0]) for a, b in ((low, high), (high, low))]
        bottom = torch.nan_to_num(ends[0] - slack, nan=-torch.inf, neginf=-torch.inf)
        top = torch.nan_to_num(ends[1] + slack, nan=0.0, posinf=0.0).clamp(max=0)
        return bottom.movedim(-1, axis), top.movedim(-1, axis)

    def planes(self, lowers, uppers, knobs=None):
        """x_i less a plane of the log-sum-exp: concave, so the tangent above is the best there is at the centre."""
        axis, size = self.axis + 1, lowers[0].shape[self.axis + 1]
        image = [t.movedim(axis, -1) for t in self.image(lowers, uppers)]
        low, high, good = (t.movedim(axis, -1) for t in tame(lowers[0], uppers[0]))
        centre, good = centre_of(low, high), good.all(-1, keepdim=True)
        slack = (torch.maximum(low.abs(), high.abs()).amax(-1, keepdim=True) + 1) * _ulp(low, 16 + 8 * size)
        unit = torch.eye(size, dtype=low.dtype, device=low.device)
        out = []
        for side, (total, shares), constant in zip(
            (-1, 1), (log_sum_of_chords(low, high), log_sum(centre)), image, strict=True
        ):
            value = centre - total.unsqueeze(-1) + side * slack
            better = good & (side * value < side * constant)
            block = torch.where(better.unsqueeze(-1), unit - shares.unsqueeze(-2), torch.zeros_like(unit))
            bias = torch.where(better, value - (block * centre.unsqueeze(-2)).sum(-1), constant)
            out.append(PlaneMap((along(block, lowers[0], self.axis),), bias.movedim(-1, axis)))
        return tuple(out)

    def parallel(self, lowers, uppers):
        return parallel_along(self, lowers, uppers)


def _softplus(x):
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))
