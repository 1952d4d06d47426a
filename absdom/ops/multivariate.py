"""Functions of several varying elements: maxima, and what the other files of such functions share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from absdom.ir.op import Multivariate, PlaneMap, _down, _ulp, _up
from absdom.ops.shape import lead
from absdom.registry import register_op


def widen(lower, upper, count: int = 4):
    """Bounds moved outward by `count` units of roundoff of their size."""
    tiny = torch.finfo(lower.dtype).tiny
    return lower - lower.abs() * _ulp(lower, count) - tiny, upper + upper.abs() * _ulp(upper, count) + tiny


def tame(lower, upper):
    """(lower, upper, mask): ends of intervals that are unknown or so large that products overflow become 0.

    The mask is where both were fit for use. Everywhere else a relaxation falls back to the image, so that no infinity
    (and no NaN, in gradients neither) comes out of what is computed on the side that is not chosen.
    """
    largest = torch.finfo(lower.dtype).max ** 0.4
    good = (lower.abs() < largest) & (upper.abs() < largest)
    return lower.where(good, lower.new_zeros(())), upper.where(good, upper.new_zeros(())), good


def interval_planes(op, lowers, uppers):
    """Constant planes at the image: always valid, never tight."""
    low, high = op.image(lowers, uppers)
    none = tuple(None for _ in lowers)
    return PlaneMap(none, low), PlaneMap(none, high)


def halfway(p, q, low, high):
    """From slopes p below and q above: (slope between them, least (p - slope) z, greatest (q - slope) z, size).

    For z in [low, high], element by element; `size` times a few units of roundoff is what rounding can change.
    """
    low, high = (torch.where((p == 0) & (q == 0), torch.zeros_like(t), t) for t in (low, high))  # may be infinite
    slope = (p + q) / 2
    down, up = p - slope, q - slope
    size = (p.abs() + q.abs()) * torch.maximum(low.abs(), high.abs())
    return slope, torch.minimum(down * low, down * high), torch.maximum(up * low, up * high), size


def narrower(low, high, image):
    """Mask of bands [low, high] that are narrower than the image: elsewhere constants are better."""
    return high - low < image[1] - image[0]


def parallel_of_planes(op, lowers, uppers):
    """`Multivariate.parallel` half way between two planes whose coefficients are tensors."""
    below, above = op.planes(lowers, uppers)
    image, slopes, parts = op.image(lowers, uppers), [], []
    for p, q, low, high in zip(below.coefficients, above.coefficients, lowers, uppers, strict=True):
        rank = p.dim() - 1
        slope, *more = halfway(p, q, lead(low, rank), lead(high, rank))
        slopes.append(slope)
        parts.append(more)
    down, up, size = (op.gather(list(group)) for group in zip(*parts, strict=True))
    terms = len(parts) + max(t[0].numel() // max(size[0].numel(), 1) for t in slopes)
    slack = size * _ulp(size, 8 + 2 * terms) + torch.finfo(size.dtype).tiny
    low, high = _down(below.bias, down) - slack, _up(above.bias, up) + slack
    better = narrower(low, high, image)
    slopes = tuple(torch.where(better, t, torch.zeros_like(t)) for t in slopes)
    return slopes, torch.where(better, low, image[0]), torch.where(better, high, image[1])


@register_op
@dataclass(frozen=True)
class ReduceMax(Multivariate):
    """Maximum over one axis, which stays as size 1."""

    axis: int

    extremum = 1

    def infer(self, x):
        return x.with_shape(1 if i == self.axis else s for i, s in enumerate(x.shape))

    def eval(self, x):
        return x.amax(self.axis + 1, keepdim=True)

    def image(self, lowers, uppers):
        return self.eval(lowers[0]), self.eval(uppers[0])

    def is_exact(self, lower, upper):
        # An element below the best lower bound is never the maximum.
        return (upper <= lower.amax(self.axis + 1, keepdim=True)) | (lower == upper)

    def gather(self, parts):
        return parts[0].sum(self.axis + 1, keepdim=True)

    def planes(self, lowers, uppers):
        """Below: the element of the largest lower bound. Above: that element if no other reaches it, else a constant.

        Exact where one element dominates (Singh et al. 2019, DeepPoly).
        """
        low, high, axis = lowers[0], uppers[0], self.axis + 1
        best, chosen, others = self._leader(low, high)
        dominated = low.gather(axis, best) >= others
        zero = torch.zeros_like(others)
        top = high.amax(axis, keepdim=True)
        upper = PlaneMap((torch.where(dominated, chosen, torch.zeros_like(chosen)),), torch.where(dominated, zero, top))
        return PlaneMap((chosen,), zero), upper

    def parallel(self, lowers, uppers):
        """Slope 1 on the element of the largest lower bound; the others pass it by at most max u_j - l_m."""
        low, high = lowers[0], uppers[0]
        best, chosen, others = self._leader(low, high)
        floor = low.gather(self.axis + 1, best)
        rise = torch.where(others > floor, _up(others, -floor), torch.zeros_like(others))
        known = rise.isfinite()
        image = self.image(lowers, uppers)
        chosen = torch.where(known, chosen, torch.zeros_like(chosen))
        return (chosen,), torch.where(known, torch.zeros_like(rise), image[0]), torch.where(known, rise, image[1])

    def _leader(self, low, high):
        """(place of the element of the largest lower bound, 1 there and 0 elsewhere, largest other upper bound)."""
        axis = self.axis + 1
        # Among (nearly) equal lower bounds the element with the largest upper bound: ties are common behind a ReLU.
        floor = low.amax(axis, keepdim=True)
        near = low >= floor - 1e-5 * (high.amax(axis, keepdim=True) - floor)
        best = high.masked_fill(~near, -torch.inf).argmax(axis, keepdim=True)
        chosen = torch.zeros_like(low).scatter(axis, best, 1.0)
        return best, chosen, high.masked_fill(chosen > 0, -torch.inf).amax(axis, keepdim=True)
