"""How zonotopes pass each kind of op. In charged runs what rounds goes to the box part.

Affine ops are exact. Elementwise functions take the parallel transformer: for the op's slope s between the known
bounds, f(z) - s z lies in the op's band, whose half width is a new error (DeepZ: Singh et al. 2018, section 4; for
ReLU s is u / (u - l), the relaxation of Wong and Kolter 2018). Functions of several elements do the same with a plane.
"""

from __future__ import annotations

import torch

from absdom.domains import stacked
from absdom.domains.interval import rounding, with_parameters
from absdom.domains.zonotope.recipe import Zonotope
from absdom.domains.zonotope.reduction import fit
from absdom.domains.zonotope.relaxation import relaxation
from absdom.domains.zonotope.state import State, enclosing, through
from absdom.ir.op import Affine, Block, Elementwise, Multivariate, PlaneMap
from absdom.ops.shape import Move
from absdom.registry import register_rule


@register_rule(Zonotope, Affine)
def affine(place, states):
    """W z + b: every generator goes through the linear part, the box part through its absolute value."""
    op, at = place.op, place.at
    states = fit(states, place)

    def linear(values):
        return stacked.through(op.linear, at, values)

    centre = linear([None if s is None else s.centre.unsqueeze(1) for s in states])[:, 0]
    radius = op.absolute(at, [None if s is None else s.radius for s in states])
    offset = op.offset(at)
    if offset is not None:
        centre = centre + offset
    if place.arithmetic.charged and not (isinstance(op, Move) and all(e is None for e in place.errors)):
        radius = radius + rounding(place, [None if s is None else s.size for s in states])
    return State(centre, radius, through(states, linear), _recipe(states))


def _recipe(states):
    return next(s for s in states if s is not None).recipe


@register_rule(Zonotope, Elementwise)
def elementwise(place, states):
    """s z + (f(z) - s z), the second part known by the op's band; a constant where no band is finite."""
    (state,) = fit(states, place)
    slope, low, high = relaxation(place, state.recipe.slope)
    scaled = State(
        _product(slope, state.centre),
        _product(slope.abs(), state.radius),
        {key: g._replace(values=g.values * slope.unsqueeze(1)) for key, g in state.blocks.items()},
        state.recipe,
    )
    return _widened(scaled, low, high, _product(slope.abs(), state.size), 1, place)


def _product(slope, value):
    """slope x value; 0 where the slope is, whatever the value."""
    return torch.where(slope == 0, torch.zeros_like(value), slope * value)


@register_rule(Zonotope, Multivariate)
def multivariate(place, states):
    """The op's plane, and a new error for what the function differs from it."""
    at, states = place.at, fit(states, place)
    operands = with_parameters(place.inputs, at, place.errors)
    coefficients, low, high = place.op.parallel([b.lower for b in operands], [b.upper for b in operands])
    plane = PlaneMap(coefficients, low)
    middles = [enclosing(b.lower, b.upper, place.arithmetic) if s is None else None
               for s, b in zip(states, operands, strict=True)]  # fmt: skip

    def parts(of_state, of_parameter):
        found = zip(states, middles, operands, strict=True)
        return [(of_state(s) if s is not None else of_parameter(m, b)).unsqueeze(1) for s, m, b in found]

    centre = stacked.weigh(place, plane, parts(lambda s: s.centre, lambda m, b: m[0]))[:, 0]
    radius = stacked.weigh(place, plane, parts(lambda s: s.radius, lambda m, b: m[1]), absolute=True)[:, 0]
    size = stacked.weigh(place, plane, parts(lambda s: s.size, lambda m, b: b.magnitude()), absolute=True)[:, 0]
    used = [s if c is not None else None for s, c in zip(states, coefficients, strict=True)]
    blocks = through(used, lambda values: stacked.weigh(place, plane, values))
    scaled = State(centre.expand_as(low), radius.expand_as(low), blocks, _recipe(states))
    terms = max([t.numel for t in at.inputs] + [c.terms for c in coefficients if isinstance(c, Block)])
    return _widened(scaled, low, high, size, terms, place)


def _widened(state: State, low, high, size, terms: int, place) -> State:
    """`state`, a linear image with parts of `size` after sums of `terms` products, plus what lies in [low, high]."""
    middle, half = enclosing(low, high, place.arithmetic)
    charge = None
    if place.arithmetic.charged:
        charge = (size + middle.abs() + half) * place.arithmetic.gamma(terms + 8) + place.arithmetic.tiny
    return state.with_error(middle, half, charge)
