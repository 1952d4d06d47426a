"""A domain of your own: images of the input's own ball. Each value is z = c + L u + r v, u in the unit ball, |v| <= 1.

For l2 balls the sets are ellipsoids, for l1 balls octahedra, for boxes parallelotopes; each is thickened by a box r,
which takes what the nonlinear layers add. Affine layers are exact: W c + b, W L, |W| r. An elementwise f lies in a band
around a line of slope s: s c, s L, |s| r, and half the band's width more in r. All other ops start anew from bounds.

Run: absdom bound MODEL PROPERTY --plugin examples/05_own_domain.py --method ball-image
or   absdom verify MODEL PROPERTY --plugin examples/05_own_domain.py --method 'crown & ball-image'
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from absdom.domain import Forward, NodeBounds
from absdom.domains.interval import sums
from absdom.ir.op import Affine, Elementwise
from absdom.registry import register_recipe, register_rule


class Image(NamedTuple):
    """c + L u + r v: centre "B *n", axes "K B *n" (K inputs, or none), box "B *n"; norm of the ball that u is in."""

    centre: torch.Tensor
    axes: torch.Tensor
    box: torch.Tensor
    norm: float

    def reach(self) -> torch.Tensor:
        """More than any |c| + |L| |u| + |r| |v|, for charges."""
        return self.centre.abs() + self.axes.abs().sum(0) + self.box


@register_recipe("ball-image")
@dataclass(frozen=True)
class BallImage(Forward):
    name: ClassVar[str] = "ball-image"

    def lift(self, sets, types, arithmetic):
        ball = sets.ball
        if ball is None:  # of a box: half its width per input, in the unit ball of the largest element
            norm, centre = torch.inf, sets.lower / 2 + sets.upper / 2
            radius = torch.maximum(sets.upper - centre, centre - sets.lower)
        else:
            norm, centre, radius = ball.norm, ball.centre, ball.radius.reshape(len(ball.centre), -1)
            radius = radius.expand_as(centre)
        axes = torch.diag_embed(radius).movedim(1, 0)  # "K B n"
        states, start = [], 0
        for t in types:
            part = slice(start, start := start + t.numel)
            c, a = centre[:, part].reshape(-1, *t.shape), axes[..., part].reshape(*axes.shape[:2], *t.shape)
            box = torch.zeros_like(c)
            if arithmetic.charged:
                box = (c.abs() + a.abs().sum(0)) * arithmetic.gamma(4) + arithmetic.tiny
            states.append(Image(c, a, box, norm))
        return states

    def concretize(self, state, arithmetic):
        radius = state.box + (dual_norm(state.axes, state.norm) if len(state.axes) else 0)
        if arithmetic.charged:
            radius = radius + state.reach() * arithmetic.gamma(len(state.axes) + 4) + arithmetic.tiny
        return NodeBounds(state.centre - radius, state.centre + radius)

    def bound_rows(self, state, rows, arithmetic):
        """<nu, c> - |nu L| - <|nu|, r>, with the dual norm: rows of a property need not wait for intervals."""
        along = torch.stack([rows.dot(a) for a in state.axes]) if len(state.axes) else rows.dot(state.centre)[None] * 0
        found = rows.dot(state.centre) - dual_norm(along, state.norm) - rows.abs_dot(state.box)
        if arithmetic.charged:
            terms = 2 * state.centre[0].numel() + len(state.axes) + 8
            found = found - rows.abs_dot(state.reach()) * arithmetic.gamma(terms) - arithmetic.tiny
        return found

    def from_bounds(self, bounds, place):
        return from_interval(bounds.lower, bounds.upper, place.arithmetic)


def dual_norm(values: torch.Tensor, norm: float) -> torch.Tensor:
    """The largest <values, u> over u in the unit ball of `norm`, along the first axis."""
    return torch.linalg.vector_norm(values, {1.0: torch.inf, 2.0: 2.0, torch.inf: 1.0}[float(norm)], dim=0)


def from_interval(lower, upper, arithmetic) -> Image:
    """A box; of what is not bounded, the box is all there is."""
    centre = (lower / 2 + upper / 2).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    box = torch.maximum(upper - centre, centre - lower)
    if arithmetic.charged:
        box = box + (box + centre.abs()) * arithmetic.gamma(2) + arithmetic.tiny
    return Image(centre, centre.new_zeros((0, *centre.shape)), box, torch.inf)


@register_rule(BallImage, Affine)
def affine(place, states):
    """W c + b, W L, |W| r: the axes of all operands are those of one ball, so they add up."""
    op, at, arithmetic = place.op, place.at, place.arithmetic
    known = [s for s in states if s is not None]
    count, norm = max(len(s.axes) for s in known), next((s.norm for s in known if len(s.axes)), known[0].norm)
    boxes = max(s.centre.shape[0] for s in known)

    def of(choose):
        return [None if s is None else choose(s) for s in states]

    def axes(s):
        missing = s.centre.new_zeros((count - len(s.axes), *s.centre.shape))
        return torch.cat([s.axes, missing]).flatten(0, 1)

    centre, box, offset = op.linear(at, of(lambda s: s.centre)), op.absolute(at, of(lambda s: s.box)), op.offset(at)
    made = op.linear(at, of(axes)) if count else centre[:0]
    if offset is not None:
        centre = centre + offset
    if arithmetic.charged:
        sizes = of(Image.reach)
        reach = op.absolute(at, sizes) + (0 if offset is None else op.offset_magnitude(at))
        rounding = reach * arithmetic.gamma(sums(at, op.terms(at)) + count) + arithmetic.tiny * (count + 1)
        wrong = op.error_weight(at, place.errors, sizes)
        rounding = rounding if wrong is None else rounding + wrong
        for i, error in enumerate(place.errors):
            if error is not None and op.is_additive(i, at):  # a bias that was rounded when it was made
                params = tuple(error if j == i else p for j, p in enumerate(at.params))
                rounding = rounding + op.offset_magnitude(at._replace(params=params))
        box = box + 3 * rounding
    return Image(centre, made.reshape(count, boxes, *centre.shape[1:]), box, norm)


@register_rule(BallImage, Elementwise)
def elementwise(place, states):
    """s z + [low, high], with the slope s of the narrowest band over what is known of z."""
    (state,), (known,), op, arithmetic = states, place.inputs, place.op, place.arithmetic
    slope = op.parallel_slope(known.lower, known.upper)
    slope = torch.where(state.box.isfinite() & slope.isfinite(), slope, torch.zeros_like(slope))
    added = from_interval(*op.band(known.lower, known.upper, slope), arithmetic)
    kept = slope != 0
    centre, box = (torch.where(kept, slope * t, slope) for t in (state.centre, state.box))
    axes, box = state.axes * slope, box.abs() + added.box
    if arithmetic.charged:
        size = slope.abs() * torch.where(kept, state.reach(), torch.zeros_like(centre)) + added.reach()
        box = box + size * arithmetic.gamma(8) + arithmetic.tiny * (2 + len(axes))
    return Image(centre + added.centre, axes, box, state.norm)
