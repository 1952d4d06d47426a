"""The interval domain: one box per node (Gowal et al. 2018; Moore 1966). Charged runs round outward.

In a charged run each affine node also gets its `noise`: gamma_n (|W| |z| + |b|). Since (|W|^T |nu|) . |z| equals
|nu| . (|W| |z|), this one vector per box pays for the rounding of every row that is later pulled through the node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from absdom.domain import Forward, NodeBounds
from absdom.ir.op import Affine, Elementwise, Multivariate
from absdom.kernels import ends, halves
from absdom.ops.shape import Move
from absdom.registry import register_recipe, register_rule


@register_recipe("interval")
@dataclass(frozen=True)
class Interval(Forward):
    """Interval bound propagation."""

    name: ClassVar[str] = "interval"

    def lift(self, sets, types, arithmetic):
        sizes, shapes = [t.numel for t in types], [t.shape for t in types]
        ends = zip(sets.lower.split(sizes, 1), sets.upper.split(sizes, 1), shapes, strict=True)
        return [NodeBounds(low.reshape(-1, *shape), high.reshape(-1, *shape)) for low, high, shape in ends]

    def concretize(self, state, arithmetic):
        return state


def sums(at, terms: int) -> int:
    """Products and broadcast copies summed into one element, in either direction: gamma's n."""
    copies = max(at.output.numel // max(at.inputs[i].numel, 1) for i, v in enumerate(at.varying) if v)
    return terms + copies + 4


def with_parameters(states, at, errors) -> list[NodeBounds]:
    """Bounds of every operand: a parameter (None in `states`) lies within its error of its value."""
    return [
        s if s is not None else NodeBounds(p, p) if e is None else NodeBounds(p - e, p + e)
        for s, p, e in zip(states, at.params, errors, strict=True)
    ]


@register_rule(Interval, Affine)
def affine(place, states):
    """Centre and radius: c' = W c + b, r' = |W| r."""
    op, at, arithmetic = place.op, place.at, place.arithmetic
    if not arithmetic.charged:
        parts = [(None, None) if s is None else halves(s.lower, s.upper) for s in states]
        centre = op.eval(*(p if c is None else c for p, (c, _) in zip(at.params, parts, strict=True)))
        return NodeBounds(*ends(centre, op.absolute(at, [r for _, r in parts])))
    varying = [(s is not None) for s in states]
    centre = op.linear(at, [(s.lower + s.upper) / 2 if v else None for s, v in zip(states, varying, strict=True)])
    radius = op.absolute(at, [(s.upper - s.lower) / 2 if v else None for s, v in zip(states, varying, strict=True)])
    offset = op.offset(at)
    if offset is not None:
        centre = centre + offset
    noise = rounding(place, [s.magnitude() if v else None for s, v in zip(states, varying, strict=True)])
    # Centre and radius each err by at most the noise.
    return NodeBounds(centre - radius - 2 * noise, centre + radius + 2 * noise, noise)


def rounding(place, sizes) -> torch.Tensor:
    """What rounding, of parameters too, can change in W z + b, for |z| <= `sizes` (None for parameters): "B *out"."""
    op, at, errors, arithmetic = place.op, place.at, place.errors, place.arithmetic
    reach, offset = op.absolute(at, sizes), op.offset_magnitude(at)
    if offset is not None:
        reach = reach + offset
    noise = reach * arithmetic.gamma(sums(at, op.terms(at))) + arithmetic.tiny
    wrong = op.error_weight(at, errors, sizes)
    if wrong is not None:
        noise = noise + wrong
    for i, error in enumerate(errors):
        if error is not None and op.is_additive(i, at):
            params = tuple(error if j == i else p for j, p in enumerate(at.params))
            noise = noise + op.offset_magnitude(at._replace(params=params))
    return noise


@register_rule(Interval, Move)
def move(place, states):
    """Elements move, none is computed; only the transpose of an op that repeats elements has sums to round."""
    op, at, errors, arithmetic = place.op, place.at, place.errors, place.arithmetic
    lower, upper = (
        op.eval(*(
            (p if e is None else p + sign * e) if s is None else (s.lower if sign < 0 else s.upper)
            for s, p, e in zip(states, at.params, errors, strict=True)
        ))
        for sign in (-1, 1)
    )  # fmt: skip
    noise = None
    if arithmetic.charged:
        noise = torch.maximum(lower.abs(), upper.abs()) * arithmetic.gamma(sums(at, op.terms(at)))
        noise = noise + arithmetic.tiny
        if any(e is not None for e in errors):
            wrong = (
                e if e is not None else (p if s is None else s.lower).new_zeros(()).expand((1, *t.shape))
                for s, p, e, t in zip(states, at.params, errors, at.inputs, strict=True)
            )
            noise = noise + op.eval(*wrong)
    return NodeBounds(lower, upper, noise)


@register_rule(Interval, Elementwise)
def elementwise(place, states):
    return NodeBounds(*place.op.image(states[0].lower, states[0].upper))


@register_rule(Interval, Multivariate)
def multivariate(place, states):
    states = with_parameters(states, place.at, place.errors)
    return NodeBounds(*place.op.image([s.lower for s in states], [s.upper for s in states]))
