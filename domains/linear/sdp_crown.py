"""SDP-CROWN: the linear dual with l2 balls inside (Chiu et al. 2025, arXiv 2506.06665), for ops that bend at zero.

Let z lie in the interval [l, u] and let sum_i w_i (z_i - c_i)^2 <= q. For any slopes g and any multiplier m >= 0

    <nu, f(z)> >= <g, z> + sum_i min over x in [l_i, u_i] of (nu_i f(x) - g_i x + m w_i (x - c_i)^2 / 2) - m q / 2.

The paper has w = 1 and no intervals. At m = 0 this is CROWN's bound with the slopes g, so that no row is looser than
with CROWN. The bound is concave in m: the best m is searched for row by row, without gradients.

Where the values are c + A v with |v| <= r, every diagonal matrix with diag(1 / w) >= A A^T gives such a sum, with
q = r^2. The one taken is diagonally dominant: 1 / w_i = sum_j |A A^T|_ij p_j / p_i, which is right for any p > 0, and
p = |nu| makes the smallest sum_i nu_i^2 / w_i, which is what counts where the intervals do not: <|nu|, |A A^T| |nu|>.
Only neurons that bend and that the row reads take part, so the ellipsoids of local rows are small. The better one of
ball and ellipsoid is taken for each row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from absdom.arithmetic import Arithmetic
from absdom.domain import Ball, KnobStart, LayerDual, capturing
from absdom.domains.linear.balls import Balls, around
from absdom.domains.linear.duals import ElementwiseDual, choose_lines
from absdom.domains.linear.recipe import Linear
from absdom.ops.piecewise import TwoPieces
from absdom.registry import register_recipe, register_rule
from absdom.rows import Rows

STEPS = 8  # of the search for the multiplier
FEW = 256  # layers of at most so many neurons are taken whole; of others those are picked that bend


@register_recipe("sdp-crown")
@dataclass(frozen=True)
class SdpCrown(Linear):
    """CROWN with l2 balls of the values in front of every ReLU (SDP-CROWN): tighter on l2 input sets.

    pre: the recipe of the bounds that lines are built from; None: this recipe, layer by layer, from unstable neurons.
    slope: as in `linear`.
    """

    name: ClassVar[str] = "sdp-crown"
    companions: ClassVar[tuple] = (Balls(),)
    sweeps: ClassVar[float] = 8.0


class Bend(NamedTuple):
    """What rows need to know of a layer over B boxes, in each of which at most U neurons bend."""

    lower_slope: torch.Tensor  # "B *n"
    upper_slope: torch.Tensor  # "B *n"
    index: torch.Tensor  # "B U": the neurons that bend, and others to fill up
    low: torch.Tensor  # "B U"; 0 for neurons that fill up
    high: torch.Tensor
    ball: Ball
    charge: torch.Tensor | None  # "B *n"


class Terms(NamedTuple):
    """Per row and bent neuron, "R U": the slopes of nu f(x) - g x on both sides, and the set; limit "R 1" is q."""

    left: torch.Tensor
    right: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    centre: torch.Tensor
    weight: torch.Tensor
    limit: torch.Tensor

    def side(self, slope, low, high, price) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Least value over [low, high], the squared distance from the centre there, and whether no end stops it."""
        end = torch.where(slope == 0, 0, torch.where(slope > 0, torch.inf, -torch.inf).to(slope.dtype))
        raw = self.centre - torch.where(price > 0, slope / torch.where(price > 0, price, 1), end)
        x = torch.minimum(torch.maximum(raw, low), high)
        square = (x - self.centre).square()
        return slope * x + price * square / 2, square, raw == x

    def at(self, multiplier: torch.Tensor, arithmetic: Arithmetic) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """At multipliers "R 1": the bound "R", the squares "R U" and which neurons are free "R U"."""
        price, zero = multiplier * self.weight, torch.zeros_like(self.low)
        one, squares, free = self.side(self.left, self.low, zero, price)
        two, others, loose = self.side(self.right, zero, self.high, price)
        first = one <= two
        fixed = (multiplier * torch.where(multiplier > 0, self.limit, 0) / 2)[:, 0]
        value = torch.where(first, one, two).sum(1)
        if arithmetic.charged:
            # A few roundings of each product and its sum. The least point is off by a few roundings of its place, and
            # the value by price / 2 times the square of that. (Slopes x place: the charge of the rows.)
            far = self.centre.abs() + torch.maximum(self.high, -self.low)
            rounding = price * (torch.maximum(squares, others) * arithmetic.gamma(self.low.shape[1] + 16))
            rounding = rounding + price * (far * arithmetic.gamma(16)).square()
            value = value - rounding.sum(1) * (1 + arithmetic.gamma(self.low.shape[1]))
            fixed = fixed * (1 + arithmetic.gamma(32))
        return value - fixed, torch.where(first, squares, others), torch.where(first, free, loose)

    @torch.no_grad()
    def multiplier(self, arithmetic: Arithmetic) -> torch.Tensor:
        """A good multiplier "R 1": where sum w (x - c)^2 = q, by the equation of those neurons that no end stops."""
        limit = self.limit.clamp(min=torch.finfo(self.limit.dtype).tiny)
        inverse = torch.where(self.weight > 0, 1 / torch.where(self.weight > 0, self.weight, 1), 0)
        slopes = [t.square() * inverse for t in (self.left, self.right)]
        m = ((torch.maximum(*slopes).sum(1, keepdim=True) / limit).sqrt() / 2).nan_to_num(0, 0, 0)
        below, above = torch.zeros_like(m), torch.full_like(m, torch.inf)
        best, top = torch.zeros_like(m), None
        for _ in range(STEPS):
            value, squares, free = self.at(m, arithmetic)
            better = torch.ones_like(m, dtype=torch.bool) if top is None else (value > top)[:, None]
            best, top = torch.where(better, m, best), value if top is None else torch.maximum(value, top)
            spent = self.weight * squares
            total, stopped = spent.sum(1, keepdim=True), torch.where(free, 0, spent).sum(1, keepdim=True)
            below, above = torch.where(total > limit, m, below), torch.where(total > limit, above, m)
            step = m * ((total - stopped) / (limit - stopped).clamp(min=0)).sqrt()
            other = torch.where(above.isinf(), 4 * m, torch.where(below > 0, (below * above).sqrt(), above / 4))
            m = torch.where((step > below) & (step < above), step, other).clamp(max=1e30)
        return best.nan_to_num(0, 0, 0)


class BendDual(LayerDual):
    """nu_in = nu+ * lower slope + nu- * upper slope as in CROWN; the constant is the bound above."""

    def knobs(self, place, recipe):
        found = ElementwiseDual().knobs(place, recipe)
        if found:  # the slope of the chord is not the best one over a ball
            bounds = place.inputs[0]
            width = (bounds.upper - bounds.lower).clamp(min=torch.finfo(bounds.lower.dtype).tiny)
            found["chord"] = KnobStart((bounds.upper / width).clamp(0, 1))
        return found

    def relax(self, place, recipe):
        op, bounds, arithmetic = place.op, place.inputs[0], place.arithmetic
        knobs = {k: v for k, v in place.knobs.items() if k != "chord"}
        lines = choose_lines(op, bounds.lower, bounds.upper, recipe.slope, knobs)
        left, right = op.slopes()
        bent = (bounds.lower < 0) & (bounds.upper > 0)
        exact = torch.where(bounds.upper > 0, torch.full_like(bounds.lower, right), torch.full_like(bounds.lower, left))
        pairs = (("lower", lines.lower_slope), ("upper", lines.upper_slope))
        slopes = {name: torch.where(bent, slope, exact) for name, slope in pairs}
        if "chord" in place.knobs:
            chord = (left + place.knobs["chord"] * (right - left)).clamp(min(left, right), max(left, right))
            side = "upper" if left <= right else "lower"
            slopes[side] = torch.where(bent, chord, slopes[side])
        flat = bent.flatten(1)
        whole = flat.shape[1] <= FEW or capturing()
        size = flat.shape[1] if whole else max(1, int(flat.sum(1).max()))
        index = flat.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :size]
        kept = flat.gather(1, index)
        low, high = (torch.where(kept, t.flatten(1).gather(1, index), 0) for t in (bounds.lower, bounds.upper))
        charge = None
        if arithmetic.charged:
            steep = torch.maximum(slopes["lower"].abs(), slopes["upper"].abs()).clamp(min=max(abs(left), abs(right)))
            # Slopes of the two sides, their products with a place, and the sum.
            charge = 4 * steep * bounds.magnitude() * arithmetic.gamma(size + 16) + arithmetic.tiny
        ball = around(bounds, arithmetic) if bounds.ball is None else bounds.ball
        return Bend(slopes["lower"], slopes["upper"], index, low, high, ball, charge)

    def pull(self, nu, place, relaxation):
        arithmetic = place.arithmetic
        part, _ = nu.relax(relaxation.lower_slope, relaxation.upper_slope, None, None)
        terms = self._terms(nu, part, place.op.slopes(), relaxation, arithmetic)
        plain, _, _ = terms.at(torch.zeros_like(terms.limit), arithmetic)
        value, _, _ = terms.at(terms.multiplier(arithmetic), arithmetic)
        constant = torch.fmax(plain, value)
        return (part,), constant if relaxation.charge is None else constant - nu.abs_dot(relaxation.charge)

    def _terms(self, nu: Rows, part: Rows, slopes, relaxation: Bend, arithmetic: Arithmetic) -> Terms:
        index, low, high = (nu.per_row(t) for t in (relaxation.index, relaxation.low, relaxation.high))
        data, back = (rows.dense().flatten(1).gather(1, index) for rows in (nu, part))
        used = low < 0
        left, right = (torch.where(used, data * s - back, 0) for s in slopes)
        centre = nu.per_row(relaxation.ball.centre.flatten(1).gather(1, relaxation.index))
        size = torch.where(used, data.abs(), 0)
        weight, limit = (size > 0).to(size.dtype), nu.per_row(relaxation.ball.radius[:, None]).square()
        if relaxation.ball.products is not None:
            source = nu.per_row(relaxation.ball.source[:, None]).square()
            share = size / size.amax(1, keepdim=True).clamp(min=torch.finfo(size.dtype).tiny)
            reach = _through(share, relaxation, nu)
            if arithmetic.charged:
                reach = reach * (1 + arithmetic.gamma(share.shape[1] + 8))
            better = (share * reach).sum(1, keepdim=True) * source < share.square().sum(1, keepdim=True) * limit
            enough = share > torch.finfo(share.dtype).tiny ** 0.5  # of smaller numbers quotients are not exact enough
            own = torch.where(enough, share / torch.where(enough, reach, 1), 0)
            weight, limit = torch.where(better, own, weight), torch.where(better, source, limit)
        return Terms(left, right, low, high, centre, weight, limit)


def _through(share: torch.Tensor, relaxation: Bend, nu: Rows) -> torch.Tensor:
    """share "R U" times the products of each row's box, "R U"."""
    products, index = relaxation.ball.products, relaxation.index.expand(nu.boxes, -1)
    if index.shape[1] == len(products):
        place = nu.per_row(index)
        return (torch.zeros_like(share).scatter(1, place, share) @ products).gather(1, place)
    boxes = torch.arange(nu.boxes, device=share.device)
    own, order = nu.per_row(boxes).sort(stable=True)
    counts = torch.bincount(own, minlength=nu.boxes).tolist()
    parts = [
        rows @ products[index[b][:, None], index[b]]
        for b, rows in zip(boxes, share[order].split(counts), strict=True)
        if len(rows)
    ]
    return torch.cat(parts)[order.argsort()]


register_rule(SdpCrown, TwoPieces)(BendDual())
