"""Functions of several varying elements: maxima, and what the other files of such functions share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from absdom.ir.op import Multivariate, PlaneMap, _ulp
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


@register_op
@dataclass(frozen=True)
class ReduceMax(Multivariate):
    """Maximum over one axis, which stays as size 1."""

    axis: int

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
        axis = self.axis + 1
        low, high = lowers[0], uppers[0]
        # Among (nearly) equal lower bounds the element with the largest upper bound: ties are common behind a ReLU.
        floor = low.amax(axis, keepdim=True)
        near = low >= floor - 1e-5 * (high.amax(axis, keepdim=True) - floor)
        best = high.masked_fill(~near, -torch.inf).argmax(axis, keepdim=True)
        chosen = torch.zeros_like(low).scatter(axis, best, 1.0)
        others = high.masked_fill(chosen > 0, -torch.inf).amax(axis, keepdim=True)
        dominated = low.gather(axis, best) >= others
        zero = torch.zeros_like(others)
        top = high.amax(axis, keepdim=True)
        upper = PlaneMap((torch.where(dominated, chosen, torch.zeros_like(chosen)),), torch.where(dominated, zero, top))
        return PlaneMap((chosen,), zero), upper
