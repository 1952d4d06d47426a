"""How rows pass each kind of op: for z in its bounds, <nu, f(z)> >= <part, z> + term.

In charged runs the term also subtracts what rounding can have changed: <|nu|, noise> for affine ops (see interval.py),
and for lines and planes a few units of roundoff of slope x reach and of the constants.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from absdom.domain import AffineDual, KnobStart, LayerDual
from absdom.domains.interval import with_parameters
from absdom.domains.linear.recipe import Linear
from absdom.ir.op import Affine, Block, Elementwise, Lines, Multivariate, PlaneMap
from absdom.ops.multivariate import interval_planes
from absdom.ops.piecewise import Relu
from absdom.ops.shape import lead
from absdom.registry import register_rule


class ElementwiseLines(NamedTuple):
    lines: Lines
    charge: torch.Tensor | None
    shifted: bool  # whether the line that op.lines puts through zero was replaced by another


def starts(initial: dict, recipe: Linear) -> dict[str, KnobStart]:
    """Free parameters start at the adaptive choice; recipes that fix the slopes have none."""
    return {name: KnobStart(value) for name, value in initial.items()} if recipe.slope == "adaptive" else {}


class ElementwiseDual(LayerDual):
    """nu_in = nu+ * lower slope + nu- * upper slope; the biases go to the constant."""

    def knobs(self, place, recipe):
        bounds = place.inputs[0]
        return starts(place.op.initial(bounds.lower, bounds.upper), recipe)

    def lines(self, place, recipe) -> Lines:
        """The lines below and above the function at this place."""
        bounds = place.inputs[0]
        return choose_lines(place.op, bounds.lower, bounds.upper, recipe.slope, place.knobs)

    def relax(self, place, recipe):
        bounds, lines, charge = place.inputs[0], self.lines(place, recipe), None
        if place.arithmetic.charged:
            slope = torch.maximum(lines.lower_slope.abs(), lines.upper_slope.abs())
            bias = torch.maximum(lines.lower_bias.abs(), lines.upper_bias.abs())
            # A difference of slopes, two products and a sum per element; the sum of the biases over all elements.
            charge = slope * bounds.magnitude() * place.arithmetic.gamma(12)
            charge = charge + 3 * bias * place.arithmetic.gamma(place.at.output.numel) + place.arithmetic.tiny
        return ElementwiseLines(lines, charge, shifted=recipe.slope != "adaptive" and not place.knobs)

    def pull(self, nu, place, relaxation):
        lines, zero = relaxation.lines, place.op.zero_bias
        part, constant = nu.relax(
            lines.lower_slope, lines.upper_slope,
            None if zero == "lower" and not relaxation.shifted else lines.lower_bias,
            None if zero == "upper" and not relaxation.shifted else lines.upper_bias,
        )  # fmt: skip
        return (part,), constant if relaxation.charge is None else constant - nu.abs_dot(relaxation.charge)


class AdaptiveRelu(NamedTuple):
    """ReLU with its adaptive lines, where neither rounding nor infinities are guarded against: rows pass in one go."""

    op: Relu
    lower: torch.Tensor
    upper: torch.Tensor

    @property
    def lines(self) -> Lines:
        return choose_lines(self.op, self.lower, self.upper, "adaptive", {})


class KindDual(ElementwiseDual):
    """The rule of the kind: the same, and for ReLU fewer passes over memory where a run allows it."""

    def relax(self, place, recipe):
        guarded = place.arithmetic.charged or place.arithmetic.guarded
        if type(place.op) is not Relu or guarded or place.knobs or recipe.slope != "adaptive":
            return super().relax(place, recipe)
        return AdaptiveRelu(place.op, place.inputs[0].lower, place.inputs[0].upper)

    def pull(self, nu, place, relaxation):
        if not isinstance(relaxation, AdaptiveRelu):
            return super().pull(nu, place, relaxation)
        part, constant = nu.relax_relu(relaxation.lower, relaxation.upper)
        return (part,), constant


def choose_lines(op: Elementwise, lower, upper, slope: str, knobs) -> Lines:
    """The lines of `op` by the recipe's choice of slopes; knobs, where given, replace the adaptive choice."""
    if slope == "adaptive" or knobs:
        return op.lines(lower, upper, {**op.initial(lower, upper), **knobs})
    if slope == "flat":
        low, high = op.image(lower, upper)
        zero = torch.zeros_like(low)
        return Lines(zero, low, zero, high)
    both = op.parallel_slope(lower, upper)
    low, high = op.band(lower, upper, both)
    return Lines(both, low, both, high)


def choose_planes(op: Multivariate, lowers, uppers, slope: str, knobs) -> tuple[PlaneMap, PlaneMap]:
    """The planes of `op` by the recipe's choice of slopes; knobs, where given, replace the adaptive choice."""
    if slope == "parallel" and not knobs:
        both, low, high = op.parallel(lowers, uppers)
        return PlaneMap(both, low), PlaneMap(both, high)
    if slope == "flat" and not knobs:
        return interval_planes(op, lowers, uppers)
    if not op.knobs:
        return op.planes(lowers, uppers)
    return op.planes(lowers, uppers, {**op.initial(lowers, uppers), **knobs})


class MultivariateDual(LayerDual):
    """nu+ goes back through the lower plane, nu- through the upper one."""

    def knobs(self, place, recipe):
        bounds = with_parameters(place.inputs, place.at, place.errors)
        return starts(place.op.initial([b.lower for b in bounds], [b.upper for b in bounds]), recipe)

    def relax(self, place, recipe):
        bounds = with_parameters(place.inputs, place.at, place.errors)
        lowers, uppers = [b.lower for b in bounds], [b.upper for b in bounds]
        lower, upper = choose_planes(place.op, lowers, uppers, recipe.slope, place.knobs)
        charge = None
        if place.arithmetic.charged:
            arithmetic = place.arithmetic
            charge = torch.maximum(lower.bias.abs(), upper.bias.abs()) * arithmetic.gamma(place.at.output.numel)
            factors = []
            for low, high, b in zip(lower.coefficients, upper.coefficients, bounds, strict=True):
                if isinstance(low, Block):
                    reach = torch.maximum(low.reach(b.magnitude()), high.reach(b.magnitude()))
                    charge = charge + reach * arithmetic.gamma(16 + 2 * max(low.terms, high.terms))
                elif low is not None:
                    factors.append(torch.maximum(low.abs(), high.abs()) * lead(b.magnitude(), low.dim() - 1))
            if factors:
                copies = max(1, *(place.at.output.numel // t.numel for t in place.at.inputs))
                charge = charge + place.op.gather(factors) * arithmetic.gamma(16 + copies)
            charge = charge + arithmetic.tiny
        return lower, upper, charge, bounds

    def pull(self, nu, place, relaxation):
        lower, upper, charge, bounds = relaxation
        pairs = list(zip(lower.coefficients, upper.coefficients, strict=True))
        if all(isinstance(low, Block) for low, _ in pairs):
            parts = nu.spread_blocks(pairs)
        else:
            parts = [
                None if low is None else nu.spread(place.op, place.at, i, low, high)
                for i, (low, high) in enumerate(pairs)
            ]
        constant = nu.dot_signed(lower.bias, upper.bias)
        for part, bound, varying in zip(parts, bounds, place.at.varying, strict=True):
            if part is not None and not varying:
                constant = constant + part.dot_signed(bound.lower, bound.upper)
                if charge is not None:
                    constant = constant - part.abs_dot(bound.magnitude()) * place.arithmetic.gamma(
                        bound.lower[0].numel()
                    )
        kept = tuple(part for part, varying in zip(parts, place.at.varying, strict=True) if varying)
        return kept, constant if charge is None else constant - nu.abs_dot(charge)


register_rule(Linear, Affine)(AffineDual())
register_rule(Linear, Elementwise)(KindDual())
register_rule(Linear, Multivariate)(MultivariateDual())
