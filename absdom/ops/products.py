"""Products and quotients of varying values: McCormick planes (McCormick 1976), element by element and in matrices."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from absdom.ir.op import Multivariate, PlaneMap, _ulp
from absdom.ops.affine import broadcast_type, matmul_type
from absdom.ops.blocks import Contraction
from absdom.ops.multivariate import narrower, tame, widen
from absdom.ops.shape import lead
from absdom.registry import register_op

PRODUCTS = 2**20  # of one matrix product and box: above it all its products share one choice of planes
CHUNK = 2**22  # products that are held at once for an image
# x "n k" and y "k m" with coefficients "n k m": the adjoint from rows "n m", and the sum for the result.
LEFT = "gr...nm,g...nkm->gr...nk", "g...nkm,gr...nk->gr...nm"
RIGHT = "gr...nm,g...nkm->gr...km", "g...nkm,gr...km->gr...nm"
SIDES = (("lower", -1), ("upper", 1))


def led(lowers, uppers):
    """The ends of each operand, led to one rank."""
    rank = max(t.dim() for t in lowers) - 1
    return [(lead(low, rank), lead(high, rank)) for low, high in zip(lowers, uppers, strict=True)]


def corners(op, a, b):
    """Bounds of a function that takes its extrema over boxes at corners; a and b are pairs of ends."""
    values = torch.stack([op(x, y) for x in a for y in b])
    return widen(values.amin(0), values.amax(0))


def anchors(a, b, side: int):
    """The corners (x, y) at which the two McCormick planes below (side -1) or above (1) x y have their slopes."""
    return ((a[0], b[0]), (a[1], b[1])) if side < 0 else ((a[0], b[1]), (a[1], b[0]))


def flatter(a, b, side: int):
    """1 where the first of the two McCormick planes on this side is flatter over the box, 0 where the second is.

    Both have one value at the centre, always; the flatter one reaches less far. Near ties go one way, so that rounding
    picks nothing.
    """
    reach = [q.abs() * (a[1] - a[0]) + p.abs() * (b[1] - b[0]) for p, q in anchors(a, b, side)]
    return (reach[0] <= reach[1] * (1 + 1e-5)).to(reach[0].dtype)


def positions(at):
    """Per input the flat positions of its elements, "1 *in"."""
    return [torch.arange(t.numel).reshape(1, *t.shape) for t in at.inputs]


def magnitude(ends):
    return torch.maximum(ends[0].abs(), ends[1].abs())


def middles(a, b):
    """(centre, radius) of x, then of y: x y = cy x + cx y - cx cy + (x - cx) (y - cy), the last at most rx ry in size.

    That band is half as wide as the one between two McCormick planes.
    """
    centres = [t[0] / 2 + t[1] / 2 for t in (a, b)]
    return [(c, torch.maximum(t[1] - c, c - t[0])) for t, c in zip((a, b), centres, strict=True)]


def mccormick(a, b, share, side: int):
    """(slope of x, slope of y, bias) of a plane below (side -1) or above (1) x y, widened for its own rounding.

    x y >= bl x + al y - al bl and x y >= bu x + au y - au bu; and above, x y <= bu x + al y - al bu and
    x y <= bl x + au y - au bl. The plane is `share` of the first and the rest of the second.
    """
    (p, q), (r, s) = anchors(a, b, side)
    rest, reach = 1 - share, 2 * magnitude(a) * magnitude(b)
    slack = reach * _ulp(reach, 16) + torch.finfo(reach.dtype).tiny
    return share * q + rest * s, share * p + rest * r, side * slack - (share * (p * q) + rest * (r * s))


@register_op
@dataclass(frozen=True)
class Product(Multivariate):
    """x * y with both varying. Knobs: the share of the first McCormick plane on each side."""

    knobs = ("lower", "upper")

    def infer(self, a, b):
        return broadcast_type(a, b)

    def eval(self, a, b):
        rank = max(a.dim(), b.dim()) - 1
        return lead(a, rank) * lead(b, rank)

    def image(self, lowers, uppers):
        return corners(self.eval, (lowers[0], uppers[0]), (lowers[1], uppers[1]))

    def initial(self, lowers, uppers):
        a, b = led(lowers, uppers)
        return {name: flatter(a, b, side) for name, side in SIDES}

    def planes(self, lowers, uppers, knobs=None):
        knobs = self.initial(lowers, uppers) if knobs is None else knobs
        (*a, good), (*b, fit) = (tame(*ends) for ends in led(lowers, uppers))
        good, out = good & fit, []
        for (name, side), constant in zip(SIDES, self.image(lowers, uppers), strict=True):
            x, y, bias = mccormick(a, b, knobs[name], side)
            zero = torch.zeros_like(bias)
            out.append(PlaneMap((torch.where(good, x, zero), torch.where(good, y, zero)), bias.where(good, constant)))
        return tuple(out)

    def bilinear(self, at):
        first, second = (lead(t, at.output.rank).expand(1, *at.output.shape).flatten() for t in positions(at))
        return torch.arange(at.output.numel), first, second

    def parallel(self, lowers, uppers):
        (*a, good), (*b, fit) = (tame(*ends) for ends in led(lowers, uppers))
        good, ((x, wide), (y, tall)) = good & fit, middles(a, b)
        reach = 2 * magnitude(a) * magnitude(b)
        slack = wide * tall + reach * _ulp(reach, 16) + torch.finfo(reach.dtype).tiny
        low, high = self.image(lowers, uppers)
        slopes = (torch.where(good, t, torch.zeros_like(slack)) for t in (y, x))
        return tuple(slopes), (-(x * y) - slack).where(good, low), (slack - x * y).where(good, high)


@register_op
@dataclass(frozen=True)
class MatrixProduct(Multivariate):
    """x @ y with both varying: a McCormick plane per product x_nk y_km, summed over k.

    Knobs as for Product, "B .. n k m". A matrix product of more than PRODUCTS products takes half of both planes
    everywhere: then its coefficients are no larger than its operands.
    """

    knobs = ("lower", "upper")

    def infer(self, a, b):
        return matmul_type(a, b)

    def eval(self, a, b):
        rank = max(a.dim(), b.dim()) - 1
        return lead(a, rank) @ lead(b, rank)

    def image(self, lowers, uppers):
        """The sum over k of the bounds of the products, in slices of k that bound the memory."""
        a, b = led(lowers, uppers)
        size = a[0].shape[-1]
        step = max(1, CHUNK // self.eval(a[0][..., :1], b[0][..., :1, :]).numel())
        low = high = reach = 0
        for start in range(0, size, step):
            one, two = _per_product(a, b, slice(start, start + step))
            values = torch.stack([x * y for x in one for y in two])
            low, high = low + values.amin(0).sum(-2), high + values.amax(0).sum(-2)
            reach = reach + values.abs().amax(0).sum(-2)
        slack = reach * _ulp(reach, size + 8) + torch.finfo(reach.dtype).tiny * size
        return low - slack, high + slack

    def initial(self, lowers, uppers):
        a, b = led(lowers, uppers)
        if _products(a[0], b[0]) > PRODUCTS:
            return {name: a[0].new_full([1] * (a[0].dim() + 1), 0.5) for name, _ in SIDES}
        return {name: flatter(*_per_product(a, b), side) for name, side in SIDES}

    def planes(self, lowers, uppers, knobs=None):
        knobs = self.initial(lowers, uppers) if knobs is None else knobs
        (*a, good), (*b, fit) = (tame(*ends) for ends in led(lowers, uppers))
        known = good.all(-1, keepdim=True) & fit.all(-2, keepdim=True)
        size, terms = a[0].shape[-1], 2 * max(a[0].shape[-2], b[0].shape[-1])
        reach = 2 * magnitude(a) @ magnitude(b)
        slack = reach * _ulp(reach, 16 + 2 * size) + torch.finfo(reach.dtype).tiny * (size + 1)
        out = []
        for name, side in SIDES:
            share = knobs[name]
            (p, q), (r, s) = anchors(*_per_product(a, b), side)
            x, y = share * q + (1 - share) * s, share * p + (1 - share) * r
            if share.shape[-3:] == (1, 1, 1):  # then x has no axis n, y none m, and the constants are matrix products
                (p, q), (r, s), share = *anchors(a, b, side), share[..., 0]
                constant = share * (p @ q) + (1 - share) * (r @ s)
            else:
                constant = (share * (p * q) + (1 - share) * (r * s)).sum(-2)
            bias = torch.where(known, side * slack - constant, side * torch.inf)
            left = Contraction(x, *LEFT, tuple(lowers[0].shape[1:]), terms)
            right = Contraction(y, *RIGHT, tuple(lowers[1].shape[1:]), terms)
            out.append(PlaneMap((left, right), bias))
        return tuple(out)

    def bilinear(self, at):
        a, b = (lead(t, at.output.rank) for t in positions(at))
        first, second = torch.broadcast_tensors(a[..., None], b[..., None, :, :])
        out = torch.arange(at.output.numel).reshape(at.output.shape).unsqueeze(-2).expand(first.shape[1:])
        return out.flatten(), first.flatten(), second.flatten()

    def parallel(self, lowers, uppers):
        (*a, good), (*b, fit) = (tame(*ends) for ends in led(lowers, uppers))
        known = good.all(-1, keepdim=True) & fit.all(-2, keepdim=True)
        size, terms = a[0].shape[-1], 2 * max(a[0].shape[-2], b[0].shape[-1])
        (x, wide), (y, tall) = middles(a, b)
        reach = 2 * magnitude(a) @ magnitude(b)
        slack = wide @ tall + reach * _ulp(reach, 16 + 2 * size) + torch.finfo(reach.dtype).tiny * (size + 1)
        infinite = torch.full_like(slack, torch.inf)
        left = Contraction(y.unsqueeze(-3), *LEFT, tuple(lowers[0].shape[1:]), terms)
        right = Contraction(x.unsqueeze(-1), *RIGHT, tuple(lowers[1].shape[1:]), terms)
        return (left, right), (-(x @ y) - slack).where(known, -infinite), (slack - x @ y).where(known, infinite)


def _per_product(a, b, part=slice(None)):
    """Ends of x_nk "B .. n k 1" and of y_km "B .. 1 k m"."""
    return [t[..., part, None] for t in a], [t[..., None, part, :] for t in b]


def _products(a, b) -> int:
    return prod(torch.broadcast_shapes(a.shape[1:-2], b.shape[1:-2])) * a.shape[-2] * a.shape[-1] * b.shape[-1]


@register_op
@dataclass(frozen=True)
class Quotient(Multivariate):
    """x / y with a varying y; where y's interval holds 0 the image is unbounded.

    For any slopes (a, b) the best constant of a plane a x + b y + c is known: x/y - a x is linear in x, so its extrema
    are on the edges x = X, where X/y - b y has them at the ends of y or at y = sqrt(-X/b). The slopes are those of
    McCormick planes of x * (1/y), with a tangent or the chord of 1/y. Knobs: the share of the first plane.
    """

    knobs = ("lower", "upper")

    def infer(self, a, b):
        return broadcast_type(a, b)

    def eval(self, a, b):
        rank = max(a.dim(), b.dim()) - 1
        return lead(a, rank) / lead(b, rank)

    def image(self, lowers, uppers):
        low, high = corners(self.eval, (lowers[0], uppers[0]), (lowers[1], uppers[1]))
        around = lead(self.undefined(lowers, uppers), low.dim() - 1).expand_as(low)
        infinite = torch.full_like(low, torch.inf)
        return torch.where(around, -infinite, low), torch.where(around, infinite, high)

    def undefined(self, lowers, uppers):
        return (lowers[1] <= 0) & (uppers[1] >= 0)

    def initial(self, lowers, uppers):
        """Of the two planes and half of both, the best at the centre of the box."""
        x, y, *_ = _positive(lowers, uppers)
        middle, knobs = ((x[0] + x[1]) / 2, (y[0] + y[1]) / 2), {}
        for name, side in SIDES:
            best = None
            for share in (0.5, 1.0, 0.0):
                share = torch.full_like(middle[0] * middle[1], share)
                a, b, c = _quotient_plane(x, y, share, side)
                value = side * (a * middle[0] + b * middle[1] + c)
                if best is None:
                    best, knobs[name] = value, share
                else:
                    better = value < best - 1e-6 * best.abs()
                    best, knobs[name] = torch.where(better, value, best), torch.where(better, share, knobs[name])
        return knobs

    def planes(self, lowers, uppers, knobs=None):
        knobs = self.initial(lowers, uppers) if knobs is None else knobs
        x, y, sign, good = _positive(lowers, uppers)
        out = []
        for (name, side), constant in zip(SIDES, self.image(lowers, uppers), strict=True):
            a, b, c = _quotient_plane(x, y, knobs[name], side)
            zero = torch.zeros_like(c)
            slopes = tuple(torch.where(good, sign * t, zero) for t in (a, b))
            out.append(PlaneMap(slopes, c.where(good, constant)))
        return tuple(out)

    def parallel(self, lowers, uppers):
        """Slopes of x * (1/y) about its centre, with the chord of 1/y."""
        x, y, sign, good = _positive(lowers, uppers)
        a, b = (1 / y[0] + 1 / y[1]) / 2, -(x[0] / 2 + x[1] / 2) / (y[0] * y[1])
        low, high = _quotient_band(x, y, a, b)
        image = self.image(lowers, uppers)
        good = good & narrower(low, high, image)
        slopes = (torch.where(good, sign * t, torch.zeros_like(low)) for t in (a, b))
        return tuple(slopes), low.where(good, image[0]), high.where(good, image[1])


def _positive(lowers, uppers):
    """x's ends and y's, both times -1 where y < 0; that sign; and the mask of what is fit (elsewhere y is 1)."""
    (*x, good), (*y, fit) = (tame(*ends) for ends in led(lowers, uppers))
    sign = torch.where(y[1] < 0, -torch.ones_like(y[1]), torch.ones_like(y[1]))
    x, y = ([torch.where(sign < 0, -t[1], t[0]), torch.where(sign < 0, -t[0], t[1])] for t in (x, y))
    good = good & fit & (y[0] > torch.finfo(y[0].dtype).tiny ** 0.4)
    return x, [torch.where(good, t, torch.ones_like(t)) for t in y], sign, good


def _quotient_plane(x, y, share, side: int):
    """(a, b, c): a x + b y + c below (side -1) or above (1) x / y for y > 0, widened for its own rounding."""
    reciprocal, middle = (1 / y[1], 1 / y[0]), 2 / (y[0] + y[1])
    first, second = anchors(x, reciprocal, side)

    def slope(end):
        """Of end / y: a tangent where it is convex and bounded below (concave and bounded above), else the chord."""
        return -end * torch.where(side * end < 0, middle.square(), reciprocal[0] * reciprocal[1])

    a = share * first[1] + (1 - share) * second[1]
    b = share * slope(first[0]) + (1 - share) * slope(second[0])
    return a, b, _quotient_band(x, y, a, b)[(side + 1) // 2]


def _quotient_band(x, y, a, b):
    """Bounds of x / y - a x - b y for y > 0, exact but for what they are widened by."""
    ends = []
    for end in x:
        steep = b != 0
        square = torch.where(steep, -end / torch.where(steep, b, torch.ones_like(b)), y[0].square())
        turn = torch.minimum(torch.maximum(square, y[0].square()), y[1].square()).sqrt()
        ends += [end / t - b * t - a * end for t in (*y, turn)]
    c = torch.stack(ends)
    reach = magnitude(x) * (a.abs() + 1 / y[0]) + b.abs() * y[1]
    slack = reach * _ulp(reach, 16) + torch.finfo(reach.dtype).tiny
    return c.amin(0) - slack, c.amax(0) + slack
