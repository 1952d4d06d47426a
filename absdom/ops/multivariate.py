"""Functions of several varying elements: products, quotients, maxima, softmax."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from absdom.ir.op import Multivariate, PlaneMap, _ulp
from absdom.ops.affine import broadcast_type, matmul_type
from absdom.ops.shape import lead
from absdom.registry import register_op


def _widen(lower, upper, count: int = 4):
    tiny = torch.finfo(lower.dtype).tiny
    return lower - lower.abs() * _ulp(lower, count) - tiny, upper + upper.abs() * _ulp(upper, count) + tiny


def _corners(op, a, b):
    values = torch.stack([op(x, y) for x in a for y in b])
    return _widen(values.amin(0), values.amax(0))


@register_op
@dataclass(frozen=True)
class Product(Multivariate):
    """x * y with both varying: McCormick planes."""

    def infer(self, a, b):
        return broadcast_type(a, b)

    def eval(self, a, b):
        rank = max(a.dim(), b.dim()) - 1
        return lead(a, rank) * lead(b, rank)

    def image(self, lowers, uppers):
        return _corners(self.eval, (lowers[0], uppers[0]), (lowers[1], uppers[1]))

    def planes(self, lowers, uppers):
        rank = max(t.dim() for t in lowers) - 1
        (al, bl), (au, bu) = [lead(t, rank) for t in lowers], [lead(t, rank) for t in uppers]

        # x y >= bl x + al y - al bl and x y >= bu x + au y - au bu. At the centre both have one value, always; the one
        # that is flatter over the box reaches further there. (Near ties go one way, so that rounding picks nothing.)
        def reach_of(p, q):
            return q.abs() * (au - al) + p.abs() * (bu - bl)

        def plane(first, second, sign):
            pick = reach_of(*first) <= reach_of(*second) * (1 + 1e-5)
            p, q = (torch.where(pick, x, y) for x, y in zip(first, second, strict=True))
            reach = [torch.maximum(low.abs(), high.abs()) for low, high in ((al, au), (bl, bu))]
            slack = (q.abs() * reach[0] + p.abs() * reach[1] + (p * q).abs()) * _ulp(p, 8) + torch.finfo(p.dtype).tiny
            return PlaneMap((q, p), -(p * q) - sign * slack)

        return plane((al, bl), (au, bu), 1), plane((al, bu), (au, bl), -1)


@register_op
@dataclass(frozen=True)
class Quotient(Multivariate):
    """x / y with a varying y; the image is unbounded where y's interval holds 0, and no planes are known yet."""

    coarse = True  # planes are constants at the image

    def infer(self, a, b):
        return broadcast_type(a, b)

    def eval(self, a, b):
        rank = max(a.dim(), b.dim()) - 1
        return lead(a, rank) / lead(b, rank)

    def image(self, lowers, uppers):
        low, high = _corners(self.eval, (lowers[0], uppers[0]), (lowers[1], uppers[1]))
        around = lead((lowers[1] <= 0) & (uppers[1] >= 0), low.dim() - 1).expand_as(low)
        infinite = torch.full_like(low, torch.inf)
        return torch.where(around, -infinite, low), torch.where(around, infinite, high)

    def planes(self, lowers, uppers):
        return interval_planes(self, lowers, uppers)


@register_op
@dataclass(frozen=True)
class MatrixProduct(Multivariate):
    """x @ y with both varying: the image only, in centre and radius form."""

    coarse = True  # planes are constants at the image

    def infer(self, a, b):
        return matmul_type(a, b)

    def eval(self, a, b):
        rank = max(a.dim(), b.dim()) - 1
        return lead(a, rank) @ lead(b, rank)

    def image(self, lowers, uppers):
        (ca, cb), (ra, rb) = [
            [lead((u + s * l) / 2, max(t.dim() for t in lowers) - 1) for l, u in zip(lowers, uppers, strict=True)]
            for s, t in ((1, lowers[0]), (-1, lowers[0]))
        ]
        centre = ca @ cb
        radius = ca.abs() @ rb + ra @ (cb.abs() + rb)
        size = lowers[0].shape[-1]
        slack = ((ca.abs() + ra) @ (cb.abs() + rb)) * _ulp(centre, 4 * size + 16) + torch.finfo(centre.dtype).tiny
        return centre - radius - slack, centre + radius + slack

    def planes(self, lowers, uppers):
        return interval_planes(self, lowers, uppers)


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


@register_op
@dataclass(frozen=True)
class Softmax(Multivariate):
    """Softmax over one axis."""

    axis: int

    coarse = True  # planes are constants at the image

    def infer(self, x):
        return x

    def eval(self, x):
        return torch.softmax(x, self.axis + 1)

    def image(self, lowers, uppers):
        """p_i is least at l_i with the others at their upper bounds: 1 / (1 + sum_j exp(u_j - l_i)) over j != i."""
        axis = self.axis + 1
        ends = []
        for own, other in ((lowers[0], uppers[0]), (uppers[0], lowers[0])):
            total = self._sum_of_others(other, own, axis)
            ends.append(1 / (1 + total))
        # exp multiplies the rounding of a difference of size d by d; a sum of exps is ruled by its largest.
        largest = uppers[0].amax(axis, keepdim=True) - lowers[0].amin(axis, keepdim=True)
        slack = _ulp(ends[0], 1) * (16 + 4 * lowers[0].shape[axis] + largest)
        tiny = torch.finfo(ends[0].dtype).tiny
        low, high = ends[0] * (1 - slack) - tiny, ends[1] * (1 + slack) + tiny
        return torch.nan_to_num(low, nan=0.0).clamp(min=0), torch.nan_to_num(high, nan=1.0).clamp(max=1)

    @staticmethod
    def _sum_of_others(other, own, axis):
        size = other.shape[axis]
        differences = other.unsqueeze(axis) - own.unsqueeze(axis + 1)  # [.., own, other, ..]
        eye = torch.eye(size, dtype=torch.bool, device=other.device)
        eye = eye.reshape(*[1] * axis, size, size, *[1] * (other.dim() - axis - 1))
        return differences.exp().masked_fill(eye, 0).sum(axis + 1)

    def planes(self, lowers, uppers):
        return interval_planes(self, lowers, uppers)
