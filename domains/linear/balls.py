"""Balls: each node's values lie within an l2 distance of a centre. What the dual of SDP-CROWN reads.

An affine op stretches a ball by at most its spectral norm, an element of its result by the 2-norm of its row; a
Lipschitz function of elements by its constant. The interval that is known of a node gives a ball too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from absdom.arithmetic import PROOF, Arithmetic
from absdom.domain import Ball, Forward, NodeBounds, Place
from absdom.domains.interval import Interval, sums
from absdom.domains.linear.spectral import operator_norm
from absdom.ir.op import Affine, At
from absdom.ops.affine import Conv, Linear, LinearLeft, Sum
from absdom.ops.piecewise import Clip, TwoPieces
from absdom.ops.shape import Reshape
from absdom.ops.transposed import ConvTranspose
from absdom.registry import find_rule, register_recipe, register_rule
from absdom.set_parts import BallBatch

MIXERS = (Linear, LinearLeft, Conv, ConvTranspose)  # whose coefficients are the entries of one parameter
PRODUCTS = 2**24  # entries up to which the products of all pairs of rows of a mixer are kept


@register_recipe("balls")
@dataclass(frozen=True)
class Balls(Forward):
    """l2 balls, met with intervals: cheap, and the bounds of the first layer of an l2 ball are exact."""

    name: ClassVar[str] = "balls"

    def lift(self, sets, types, arithmetic):
        def split(flat):
            parts = flat.split([t.numel for t in types], dim=1)
            return [p.reshape(-1, *t.shape) for p, t in zip(parts, types, strict=True)]

        boxes = [NodeBounds(low, high) for low, high in zip(split(sets.lower), split(sets.upper), strict=True)]
        balls = [around(box, arithmetic) for box in boxes]
        for part in sets.parts:
            if isinstance(part, BallBatch):
                # An l1 ball lies in the l2 ball of its radius. A ball over several inputs is projected on each.
                reach, radius = split(part.radius.expand_as(part.centre)), part.radius.amax(1)
                given = [Ball(c, radius, r) for c, r in zip(split(part.centre), reach, strict=True)]
                given = [within(ball, box, arithmetic) for ball, box in zip(given, boxes, strict=True)]
                balls = [closer(*pair) for pair in zip(given, balls, strict=True)]
        return balls

    def concretize(self, state, arithmetic):
        slack = (state.centre.abs() + state.reach) * surplus(arithmetic, 1)
        return NodeBounds(state.centre - state.reach - slack, state.centre + state.reach + slack, ball=state)

    def from_bounds(self, bounds, place):
        return around(bounds, place.arithmetic)


def surplus(arithmetic: Arithmetic, n: int) -> float:
    """By how much n roundings can have lowered a sum of numbers >= 0, relatively; 0 in uncharged runs."""
    return arithmetic.gamma(n) if arithmetic.charged else 0.0


def per_box(value: torch.Tensor, rank: int) -> torch.Tensor:
    """ "B" as "B 1 ... 1"."""
    return value.reshape(-1, *[1] * rank)


def length(reach: torch.Tensor, arithmetic: Arithmetic) -> torch.Tensor:
    """An upper bound of the 2-norm over all axes but the first, "B"."""
    flat = reach.flatten(1)
    # Scaled, so that squares of the smallest numbers count.
    size = flat.detach().amax(1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
    size = torch.where(size.isfinite(), size, torch.ones_like(size))
    return torch.linalg.vector_norm(flat / size, dim=1) * size[:, 0] * (1 + surplus(arithmetic, flat.shape[1]))


def around(bounds: NodeBounds, arithmetic: Arithmetic) -> Ball:
    """The ball around a box."""
    lower, upper = bounds.lower, bounds.upper
    finite = lower.isfinite() & upper.isfinite()
    centre = torch.where(finite, lower / 2 + upper / 2, torch.zeros_like(lower))
    reach = torch.maximum(upper - centre, centre - lower) * (1 + surplus(arithmetic, 1))
    return Ball(centre, length(reach, arithmetic), reach)


def within(ball: Ball, bounds: NodeBounds, arithmetic: Arithmetic) -> Ball:
    """The ball, knowing that its values lie in these bounds: `reach` shrinks, and with it the radius."""
    far = torch.maximum(bounds.upper - ball.centre, ball.centre - bounds.lower).clamp(min=0)
    reach = torch.minimum(ball.reach, far * (1 + surplus(arithmetic, 1)))
    return ball._replace(radius=torch.minimum(ball.radius, length(reach, arithmetic)), reach=reach)


def closer(one: Ball, two: Ball) -> Ball:
    """Per box the ball of smaller radius; what more is known of `one` does not hold where `two` is taken."""
    first = one.radius <= two.radius  # False where the radius is NaN
    mask = per_box(first, one.centre.dim() - 1)
    source = None if one.source is None else torch.where(first, one.source, torch.full_like(one.source, torch.inf))
    return Ball(
        torch.where(mask, one.centre, two.centre),
        torch.where(first, one.radius, two.radius),
        torch.where(mask, one.reach, two.reach),
        one.products,
        source,
    )


def settled(ball: Ball, place: Place) -> Ball:
    """The ball met with the interval that is known of the op's result."""
    return closer(within(ball, place.output, place.arithmetic), around(place.output, place.arithmetic))


def enclosed(place: Place, centres: list) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The op at the centres of its operands, and in charged runs how far that may be from the value over the reals."""
    points = [None if c is None else NodeBounds(c, c) for c in centres]
    found = find_rule(Interval, type(place.op))[0](place, points)
    centre = found.lower / 2 + found.upper / 2
    if not place.arithmetic.charged:
        return centre, None
    error = torch.maximum(found.upper - centre, centre - found.lower)
    return centre, error * (1 + place.arithmetic.gamma(1)) + place.arithmetic.tiny


@register_rule(Balls, Affine)
def affine(place, states):
    op, at, arithmetic = place.op, place.at, place.arithmetic
    centre, error = enclosed(place, [None if s is None else s.centre for s in states])
    reaches = [None if s is None else s.reach for s in states]
    reach = op.absolute(at, reaches)
    index = at.varying.index(True)
    products = source = None
    if isinstance(op, MIXERS):
        rows = kept(place, "rows", lambda: row_norms(place, index))
        source = states[index].radius
        reach = torch.minimum(reach, per_box(source, at.output.rank) * rows)
        if at.output.numel**2 <= PRODUCTS:
            products = kept(place, "products", lambda: row_products(place, index))
    elif isinstance(op, (Reshape, Sum)) and at.varying.count(True) == 1:
        if at.output.numel == at.inputs[index].numel:  # a shift, or another shape, in the same order
            products, source = states[index].products, states[index].source
    radius = torch.zeros_like(states[index].radius)
    for i, state in enumerate(states):
        if state is not None:
            radius = radius + state.radius * kept(place, i, lambda i=i: operator_norm(op, at, i, place.errors))
    if arithmetic.charged:
        wrong = op.error_weight(at, place.errors, reaches)
        reach = reach * (1 + arithmetic.gamma(sums(at, op.terms(at)))) + error + (0 if wrong is None else wrong)
        radius = (radius + length(error, arithmetic)) * (1 + arithmetic.gamma(4 + 2 * len(states)))
        if products is not None:  # the error of the centre, in units of the diagonal
            share = error.flatten(1) / products.diagonal().sqrt() * (1 + arithmetic.gamma(2))
            source = (source + length(share, arithmetic)) * (1 + arithmetic.gamma(2))
    reach = reach * (1 + surplus(arithmetic, 4))
    return settled(Ball(centre, radius, reach, products, None if products is None else source), place)


def kept(place: Place, name, make) -> torch.Tensor:
    """What depends on weights only, in the numbers of the run (rounded up by enough)."""
    key = ("balls", name)
    if key not in place.memo:
        value = make()
        place.memo[key] = (value * (1 + PROOF.gamma(1))).to(place.arithmetic.dtype)
    return place.memo[key]


def row_norms(place: Place, index: int) -> torch.Tensor:
    """Upper bounds "1 *out" of the 2-norms of the rows of a mixer, float64."""
    op, at = place.op, _double(place.at)
    params = tuple(p if p is None or op.is_additive(i, at) else p.square() for i, p in enumerate(at.params))
    squares = op.absolute(at._replace(params=params), _ones(place, index))
    norms = squares.clamp(min=1e-300).sqrt() * (1 + PROOF.gamma(op.terms(at) + 4))
    wrong = _row_errors(place, index)
    return norms if wrong is None else norms + wrong.reshape(norms.shape)


def row_products(place: Place, index: int) -> torch.Tensor:
    """Upper bounds "n n" of |<row_i, row_j>| for the rows of a mixer; no number on the diagonal is near zero."""
    op, at, arithmetic = place.op, place.at, place.arithmetic
    rows = kept(place, "rows", lambda: row_norms(place, index)).flatten()
    n, found = at.output.numel, []
    for places in torch.arange(n, device=rows.device).split(256):
        unit = torch.zeros((len(places), n), dtype=arithmetic.dtype, device=rows.device)
        unit = unit.scatter(1, places[:, None], 1).reshape(-1, *at.output.shape)
        weights = op.transpose(unit, at, index)
        found.append(op.linear(at, [weights if i == index else None for i in range(len(at.inputs))]).flatten(1).abs())
    products = torch.cat(found)
    if arithmetic.charged:
        errors, wrong = rows * arithmetic.gamma(2 * op.terms(at)), _row_errors(place, index)
        errors = errors if wrong is None else errors + wrong
        products = (products + rows[:, None] * errors + errors[:, None] * rows) * (1 + arithmetic.gamma(6))
    floor = (rows.amax() * 1e-3).square().expand(n).clamp(min=arithmetic.tiny)
    return torch.maximum(products, torch.diag(floor))


def _double(at: At) -> At:
    return at._replace(params=tuple(None if p is None else p.double() for p in at.params))


def _ones(place: Place, index: int) -> list:
    like = place.at.params[1 - index].new_ones((), dtype=torch.float64)
    return [like.expand(1, *t.shape) if i == index else None for i, t in enumerate(place.at.inputs)]


def _row_errors(place: Place, index: int) -> torch.Tensor | None:
    """Upper bounds "n" of the 2-norms of the errors of a mixer's rows, by their 1-norms; None: there are none."""
    errors = tuple(None if e is None else e.double() for e in place.errors)
    found = place.op.error_weight(_double(place.at), errors, _ones(place, index))
    if found is None:
        return None
    return found.flatten() * (1 + PROOF.gamma(place.op.terms(place.at)))


def lipschitz(place: Place, state: Ball, constant: float) -> Ball:
    arithmetic = place.arithmetic
    low, high = place.op.image(state.centre, state.centre)
    centre = low / 2 + high / 2
    radius, reach = constant * state.radius, constant * state.reach
    if arithmetic.charged:
        error = torch.maximum(high - centre, centre - low) * (1 + arithmetic.gamma(1)) + arithmetic.tiny
        reach = (reach + error) * (1 + arithmetic.gamma(4))
        radius = (radius + length(error, arithmetic)) * (1 + arithmetic.gamma(4))
    return settled(Ball(centre, radius, reach), place)


@register_rule(Balls, TwoPieces)
def two_pieces(place, states):
    return lipschitz(place, states[0], max(abs(s) for s in place.op.slopes()))


@register_rule(Balls, Clip)
def clip(place, states):
    return lipschitz(place, states[0], 1.0)
