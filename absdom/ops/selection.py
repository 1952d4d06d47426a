"""Choices between values: maxima of two, minima over an axis, equality, Where, and the place of a maximum.

Booleans and whole numbers are ordinary values in a graph: false is 0, true is 1. The conjunction of several is their
minimum, a negation 1 - x.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from absdom.ir.op import Affine, Composite, Multivariate, PlaneMap, _ulp
from absdom.ops import affine, discrete, multivariate, piecewise, shape
from absdom.ops.affine import broadcast_type
from absdom.ops.multivariate import narrower
from absdom.ops.products import magnitude, middles
from absdom.ops.shape import lead, unbroadcast
from absdom.registry import register_op

PAIRWISE = 2**16  # pairs of scores up to which the place of a maximum is written as comparisons


def _aligned(values):
    rank = max(v.dim() for v in values) - 1
    return [lead(v, rank) for v in values]


def _three_types(*types):
    out = types[-1]
    for t in types[:-1]:
        out = broadcast_type(out, t)
    return out


def _slack(*terms):
    return sum(t.abs() for t in terms) * _ulp(terms[0], 16) + torch.finfo(terms[0].dtype).tiny


@register_op
@dataclass(frozen=True)
class Maximum(Multivariate):
    """max(a, b), elementwise: b + relu(a - b) with the triangle over the difference (Ehlers 2017)."""

    extremum = 1

    def infer(self, a, b):
        return broadcast_type(a, b)

    def eval(self, a, b):
        return torch.maximum(*_aligned((a, b)))

    def image(self, lowers, uppers):
        return self.eval(*lowers), self.eval(*uppers)

    def planes(self, lowers, uppers, knobs=None):
        (al, bl), (au, bu) = _aligned(lowers), _aligned(uppers)
        first, second = al >= bu, bl >= au
        zero = torch.zeros_like(al + bl)
        one = torch.ones_like(zero)
        # Below: the one that is larger at the centre. Above: s a + (1 - s) b - s dl over d = a - b in [dl, du].
        pick = first | (~second & (al + au >= bl + bu))
        lower = PlaneMap((torch.where(pick, one, zero), torch.where(pick, zero, one)), zero)
        free = (~first & ~second & (au - bl).isfinite() & (al - bu).isfinite()).expand_as(zero)
        dl, du = torch.where(free, al - bu, -one), torch.where(free, au - bl, one)
        share = du / (du - dl)
        rise = -share * dl
        rise = rise + (share * dl).abs() * _ulp(rise, 8) + torch.finfo(rise.dtype).tiny
        la, lb, ua, ub = (torch.where(free, t.expand_as(zero), zero) for t in (al, bl, au, bu))
        centre = share * (la / 2 + ua / 2) + (1 - share) * (lb / 2 + ub / 2) + rise
        high = torch.maximum(au, bu)
        rise = rise + _slack(share * torch.maximum(la.abs(), ua.abs()), torch.maximum(lb.abs(), ub.abs()))
        sloped = free & (centre < torch.where(free, high, zero))
        decided = (first | second).expand_as(zero)
        weight = torch.where(decided, first.to(one.dtype).expand_as(one), torch.where(sloped, share, zero))
        other = torch.where(decided | sloped, 1 - weight, zero)
        upper = PlaneMap((weight, other), torch.where(decided, zero, torch.where(sloped, rise, high)))
        return lower, upper

    def parallel(self, lowers, uppers):
        """The slopes of the upper plane: max(a, b) - s a - (1 - s) b = relu(d) - s d >= 0 for d = a - b."""
        _, upper = self.planes(lowers, uppers)
        slack = _slack(*_aligned(lowers), *_aligned(uppers))  # the weights may not add up to 1
        below = torch.where(upper.bias == 0, torch.zeros_like(slack), -slack)
        sloped = sum(upper.coefficients) > 0
        return upper.coefficients, torch.where(sloped, below, self.image(lowers, uppers)[0]), upper.bias


@register_op
@dataclass(frozen=True)
class ReduceMin(Multivariate):
    """Minimum over one axis, which stays as size 1; on truth values their conjunction.

    Below: x_i where i is never above another, else sum x - (sum u - min u), which holds for any bounds u (on truth
    values: sum x - (n - 1)), or the constant min l; the knob blends them. Above: the element of the least upper bound.
    """

    axis: int

    knobs = ("joint",)

    extremum = -1

    def infer(self, x):
        return x.with_shape(1 if i == self.axis else s for i, s in enumerate(x.shape))

    def eval(self, x):
        return x.amin(self.axis + 1, keepdim=True)

    def image(self, lowers, uppers):
        return self.eval(lowers[0]), self.eval(uppers[0])

    def is_exact(self, lower, upper):
        return (lower >= upper.amin(self.axis + 1, keepdim=True)) | (lower == upper)

    def gather(self, parts):
        return parts[0].sum(self.axis + 1, keepdim=True)

    def _joint(self, low, high):
        """Where the joint plane is finite, the bias of it, and its value at the centre."""
        axis = self.axis + 1
        finite = (low.isfinite() & high.isfinite()).all(axis, keepdim=True)
        top, bottom = (torch.where(finite, t, torch.zeros_like(t)) for t in (high, low))
        bias = top.amin(axis, keepdim=True) - top.sum(axis, keepdim=True)
        reach = torch.maximum(top.abs(), bottom.abs()).sum(axis, keepdim=True)
        bias = bias - 2 * reach * _ulp(low, 4 + low.shape[axis]) - torch.finfo(low.dtype).tiny
        return finite, bias, (top / 2 + bottom / 2).sum(axis, keepdim=True) + bias

    def initial(self, lowers, uppers):
        finite, _, centre = self._joint(lowers[0], uppers[0])
        return {"joint": (finite & (centre > self.eval(lowers[0]))).to(lowers[0].dtype)}

    def planes(self, lowers, uppers, knobs=None):
        axis, low, high = self.axis + 1, lowers[0], uppers[0]
        best = high.argmin(axis, keepdim=True)
        chosen = torch.zeros_like(low).scatter(axis, best, 1.0)
        others = low.masked_fill(chosen > 0, torch.inf).amin(axis, keepdim=True)
        dominated = high.gather(axis, best) <= others
        zero = torch.zeros_like(others)
        finite, bias, _ = self._joint(low, high)
        floor = low.amin(axis, keepdim=True)
        share = (knobs or self.initial(lowers, uppers))["joint"] * (finite & ~dominated)
        mixed = share * bias + (1 - share) * torch.where(finite, floor, zero)
        mixed = mixed - (bias.abs() + torch.where(finite, floor, zero).abs()) * _ulp(mixed)
        below = torch.where(dominated, zero, torch.where(share > 0, mixed, floor))
        coefficients = torch.where(dominated, chosen, share.expand_as(chosen))
        return PlaneMap((coefficients,), below), PlaneMap((chosen,), zero)

    def parallel(self, lowers, uppers):
        """The least is less the largest of the opposites."""
        slopes, low, high = multivariate.ReduceMax(self.axis).parallel([-uppers[0]], [-lowers[0]])
        return slopes, -high, -low


@register_op
@dataclass(frozen=True)
class Equal(Multivariate):
    """1 where a = b over the reals, else 0. Above, where a - b keeps its sign: the line from 1 at 0 to 0 at its end."""

    def infer(self, a, b):
        return broadcast_type(a, b)

    def eval(self, a, b):
        a, b = _aligned((a, b))
        return (a == b).to((a + b).dtype)

    def image(self, lowers, uppers):
        (al, bl), (au, bu) = _aligned(lowers), _aligned(uppers)
        always = (al == au) & (bl == bu) & (al == bl)
        never = (al > bu) | (bl > au)
        return always.to(al.dtype), (~never).to(al.dtype)

    def planes(self, lowers, uppers, knobs=None):
        (al, bl), (au, bu) = _aligned(lowers), _aligned(uppers)
        low, high = self.image(lowers, uppers)
        above, below = (al >= bu) & (au > bl), (bl >= au) & (bu > al)
        far = torch.where(above, au - bl, bu - al)
        sloped = (above | below) & (low != high) & far.isfinite() & (far > torch.finfo(far.dtype).tiny ** 0.5)
        slope = torch.where(above, -1.0, 1.0) / torch.where(sloped, far, torch.ones_like(far))
        slope = torch.where(sloped, slope * (1 - _ulp(slope)), torch.zeros_like(slope))
        reach = torch.maximum(al.abs(), au.abs()) + torch.maximum(bl.abs(), bu.abs())
        slack = torch.where(sloped, slope.abs() * torch.where(sloped, reach, far * 0) * _ulp(slope, 8), slope)
        return PlaneMap((None, None), low), PlaneMap((slope, -slope), high + slack.nan_to_num(nan=0.0))


@register_op
@dataclass(frozen=True)
class Where(Multivariate):
    """a where the condition is 1, b where it is 0: b + c (a - b), so that a bound of c that is off by rounding matters
    no more than that. Planes: those of McCormick (1976) over c and a - b."""

    def infer(self, condition, a, b):
        return _three_types(condition, a, b)

    def specialise(self, varying):
        return (self if varying[0] else Select()), (0, 1, 2)

    def eval(self, condition, a, b):
        c, a, b = _aligned((condition, a, b))
        between = b + c * (a - b).nan_to_num()
        out = torch.where(c == 1, a, torch.where(c == 0, b, between))
        return out + (c - c.detach()) * (a - b).detach().nan_to_num() if c.requires_grad else out

    def image(self, lowers, uppers):
        (cl, al, bl), (cu, au, bu) = _aligned(lowers), _aligned(uppers)
        ends = []
        for c in (cl, cu):
            for d, (a, b) in ((1, (al, bl)), (-1, (au, bu))):
                # Multilinear: extreme at corners. Outside [0, 1] one of the weights c, 1 - c is negative.
                other_a, other_b = (au, bu) if d > 0 else (al, bl)
                x, y = torch.where(c >= 0, a, other_a), torch.where(c <= 1, b, other_b)
                value = c * x + (1 - c) * y
                slack = ((c * x).abs() + ((1 - c) * y).abs()) * _ulp(value, 8)
                mixed = value - d * (slack + torch.finfo(value.dtype).tiny)
                ends.append(torch.where(c == 1, a, torch.where(c == 0, b, mixed)))
        low, high = torch.minimum(ends[0], ends[2]), torch.maximum(ends[1], ends[3])
        return low.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf), high.nan_to_num(
            nan=torch.inf, posinf=torch.inf, neginf=-torch.inf
        )

    def planes(self, lowers, uppers, knobs=None):
        (cl, al, bl), (cu, au, bu) = _aligned(lowers), _aligned(uppers)
        low, high = self.image(lowers, uppers)
        box = [t.expand_as(low) for t in (cl, cu, al, au, bl, bu)]
        return self._plane(box, low, -1), self._plane(box, high, 1)

    def parallel(self, lowers, uppers):
        """b + c d for d = a - b about its centre: cm d + dm c - cm dm +- rc rd."""
        (cl, al, bl), (cu, au, bu) = _aligned(lowers), _aligned(uppers)
        image = self.image(lowers, uppers)
        zero = torch.zeros_like(image[0])
        sure = ((cl == cu) & ((cl == 0) | (cl == 1))).expand_as(zero)
        finite = torch.stack([t.expand_as(zero) for t in (cl, cu, al, au, bl, bu)]).isfinite().all(0) & ~sure
        c, a, b = ([torch.where(finite, t, zero) for t in ends] for ends in ((cl, cu), (al, au), (bl, bu)))
        (middle, rc), (apart, rd) = middles(c, (a[0] - b[1], a[1] - b[0]))
        size = (magnitude(a) + magnitude(b)) * (1 + magnitude(c))
        slack = rc * rd + size * _ulp(size, 32) + torch.finfo(size.dtype).tiny
        low, high = -(middle * apart) - slack, slack - middle * apart
        good = finite & narrower(low, high, image)
        weight = torch.where(sure, cl, torch.where(good, middle, zero))
        slopes = torch.where(good, apart, zero), weight, torch.where(sure | good, 1 - weight, zero)
        return slopes, *(torch.where(good, t, torch.where(sure, zero, end)) for t, end in zip((low, high), image))

    @staticmethod
    def _plane(box, end, side) -> PlaneMap:
        """c d >= dl c + cl d - cl dl, c d >= du c + cu d - cu du, or the image.

        The two planes have one value at the centre; the flatter one reaches further (near ties go one way).
        """
        one, zero = torch.ones_like(end), torch.zeros_like(end)
        sure = (box[0] == box[1]) & ((box[0] == 0) | (box[0] == 1))
        finite = torch.stack(box).isfinite().all(0) & ~sure
        cl, cu, al, au, bl, bu = (torch.where(finite, t, zero) for t in box)
        dl, du = (al - bu, au - bl) if side < 0 else (au - bl, al - bu)
        am, bm, cm = al / 2 + au / 2, bl / 2 + bu / 2, cl / 2 + cu / 2
        size = torch.maximum(al.abs(), au.abs()) + torch.maximum(bl.abs(), bu.abs())
        slack = size * (1 + torch.maximum(cl.abs(), cu.abs())) * _ulp(size, 32) + torch.finfo(size.dtype).tiny
        first, second = (d.abs() * (cu - cl) + c.abs() * (au - al) + (1 - c).abs() * (bu - bl)
                         for c, d in ((cl, dl), (cu, du)))  # fmt: skip
        flatter = first <= second * (1 + 1e-5)
        c, d = torch.where(flatter, cl, cu), torch.where(flatter, dl, du)
        centre = (bm + c * (am - bm) + d * (cm - c)) * side + slack
        planar = finite & (centre < torch.where(finite, end, zero) * side)
        weight = torch.where(sure, box[0], torch.where(planar, c, zero))
        of_b = torch.where(sure | planar, one - weight, zero)
        bias = torch.where(planar, side * slack - c * d, torch.where(sure, zero, end))
        return PlaneMap((torch.where(planar, d, zero), weight, of_b), bias)


@register_op
@dataclass(frozen=True)
class Select(Affine):
    """Where with a parameter as its condition: it moves elements."""

    def infer(self, condition, a, b):
        return _three_types(condition, a, b)

    def is_additive(self, i, at):
        return i > 0

    def eval(self, condition, a, b):
        condition, a, b = _aligned((condition, a, b))
        return torch.where(condition > 0.5, a, b)

    def transpose(self, nu, at, index):
        chosen = lead(at.params[0], at.output.rank) > 0.5
        kept = torch.where(chosen if index == 1 else ~chosen, nu, torch.zeros_like(nu))
        return unbroadcast(kept, at.inputs[index].shape)

    def error_weight(self, at, errors, values):
        """Infinite where rounding can have changed the condition."""
        if errors[0] is None:
            return None
        doubt = (at.params[0] - 0.5).abs() <= errors[0]
        infinite = torch.where(doubt, torch.full_like(at.params[0], torch.inf), torch.zeros_like(at.params[0]))
        return lead(infinite, at.output.rank).expand(1, *at.output.shape)

    def terms(self, at):
        return 1


@register_op
@dataclass(frozen=True)
class ArgMax(Composite):
    """The place of the maximum over one axis, which stays as size 1; the first of several, or (`last`) the last.

    Written as comparisons of all pairs, so that domains bound differences of scores; many scores: as `TopIndices`.
    """

    axis: int
    last: bool = False

    def infer(self, x):
        return x.with_shape(1 if i == self.axis else s for i, s in enumerate(x.shape))

    def decompose(self, builder, x):
        t = builder.type(x)
        n, rest = t.shape[self.axis], t.numel // max(t.shape[self.axis], 1)
        if n == 1:
            return builder.add(piecewise.Clip(0.0, 0.0), x)
        if n * (n - 1) // 2 * rest > PAIRWISE:
            return self._ranked(builder, x, n)
        pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
        later, earlier = (builder.add(shape.Take(self.axis, tuple(p[k] for p in pairs)), x) for k in (1, 0))
        won = builder.add(discrete.Step(self.last), builder.add(affine.Sub(), later, earlier))
        if n == 2:
            return won
        return self._from_pairs(builder, won, t, {pair: k for k, pair in enumerate(pairs)})

    def _from_pairs(self, builder, won, t, place):
        """The place of the score that wins against all others; `won`: per pair, whether the later one wins."""
        n, tail = t.shape[self.axis], [1] * (t.rank - self.axis - 1)
        games = [(i, j) for i in range(n) for j in range(n) if i != j]
        order = tuple(place[min(g), max(g)] for g in games)
        sign = torch.tensor([1 if i > j else -1 for i, j in games]).reshape(-1, *tail)
        wins = builder.add(affine.Mul(), builder.add(shape.Take(self.axis, order), won), builder.param(sign, "sign"))
        wins = builder.add(affine.Add(), wins, builder.param((1 - sign) // 2, "shift"))
        wins = builder.add(shape.Reshape((*t.shape[: self.axis], n, n - 1, *t.shape[self.axis + 1 :])), wins)
        best = builder.add(shape.Reshape(t.shape), builder.add(ReduceMin(self.axis + 1), wins))
        numbers = builder.param(torch.arange(n).reshape(-1, *tail), "places")
        total = builder.add(affine.ReduceSum((self.axis,)), builder.add(affine.Mul(), best, numbers))
        return builder.add(discrete.Round(), total)  # rounding of the sum moves it off the whole number

    def _ranked(self, builder, x, n):
        from absdom.ops.indexing import TopIndices

        if not self.last:
            return builder.add(TopIndices(self.axis, 1), x)
        reverse = builder.add(shape.Take(self.axis, tuple(reversed(range(n)))), x)
        place = builder.add(TopIndices(self.axis, 1), reverse)
        return builder.add(affine.Sub(), builder.param(torch.tensor(n - 1), "last"), place)
