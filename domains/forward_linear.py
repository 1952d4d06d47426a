"""Forward linear bounds: per element two affine maps of the flat network input, one below and one above.

The maps are kept as middle -+ spread. For W z + b: middle' = W middle + b, spread' = |W| spread, coefficient by
coefficient, which is W+ lower + W- upper below and W+ upper + W- lower above. The number of coefficients grows with
the number of inputs: made for few of them (Zhang et al. 2018, appendix; Xu et al. 2020, forward mode).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from absdom.domain import AffineDual, Forward, NodeBounds, Place
from absdom.domains.interval import rounding, with_parameters
from absdom.domains.stacked import combine, flattened, plane_charge, through, weigh
from absdom.domains.zonotope.state import enclosing
from absdom.ir.op import Affine, Elementwise, Multivariate
from absdom.ops.shape import Move
from absdom.passes import liveness
from absdom.registry import register_recipe, register_rule
from absdom.rows import GATHERED, Rows
from absdom.sets import InputBatch

AFFINE = AffineDual()


@dataclass(frozen=True, eq=False)
class Maps:
    """For x in its set: <slope, x> + constant -+ (<spread_slope, x> + spread) bound an element from below and above.

    slope "B m *n" (or "1 m *n"), m the number of flat inputs; constant, spread "B *n" (or "1 *n"); spread_slope like
    slope, None: zero. In charged runs what rounding can have changed is part of `spread`. `known`: bounds that the
    maps cannot improve. `origin`: the affine op that made the maps and what it read; rows are pulled back through it.
    `rank`: how many affine ops in a row lie in front.
    """

    sets: InputBatch
    slope: torch.Tensor
    constant: torch.Tensor
    spread_slope: torch.Tensor | None
    spread: torch.Tensor
    known: NodeBounds | None = None
    origin: tuple[Place, Sequence[Maps | None]] | None = None
    rank: int = 0

    def size(self) -> torch.Tensor:
        """A bound "B *n" on the sum of absolute values of all that is summed in either map."""
        slope = self.slope.abs() if self.spread_slope is None else self.slope.abs() + self.spread_slope.abs()
        return contract(magnitude(self.sets), slope) + self.constant.abs() + self.spread.abs()

    def restart(self, good: torch.Tensor, place: Place) -> Maps:
        """The maps, with the interval of the op's output in place of those that are not `good`; they have slope 0."""
        centre, radius = enclosing(place.output.lower, place.output.upper, place.arithmetic)
        return replace(
            self,
            constant=torch.where(good, self.constant, centre),
            spread=torch.where(good, self.spread, radius),
        )


def magnitude(sets: InputBatch) -> torch.Tensor:
    """The largest absolute value of each input element, "B m"."""
    return torch.maximum(sets.lower.abs(), sets.upper.abs())


def contract(weight: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Sum over m of weight "B m" x slope "B m *n" (or "1 m *n"): "B *n"."""
    flat = flattened(slope)
    out = weight @ flat[0] if len(flat) == 1 else torch.bmm(weight.unsqueeze(1), flat)
    return out.reshape(-1, *slope.shape[2:])


@register_recipe("forward")
@dataclass(frozen=True)
class ForwardLinear(Forward):
    """Linear bounds in the network's input, made from the inputs to the outputs."""

    name: ClassVar[str] = "forward"

    def lift(self, sets, types, arithmetic):
        count = sets.lower.shape[1]
        unit = torch.eye(count, dtype=sets.lower.dtype, device=sets.lower.device)
        sizes, states = [t.numel for t in types], []
        for t, part, low, high in zip(types, *(v.split(sizes, 1) for v in (unit, sets.lower, sets.upper)), strict=True):
            known = NodeBounds(low.reshape(-1, *t.shape), high.reshape(-1, *t.shape))
            zero = low.new_zeros((1, *t.shape))
            states.append(Maps(sets, part.reshape(1, count, *t.shape), zero, None, zero, known))
        return states

    def concretize(self, state, arithmetic):
        if state.known is not None:
            return state.known
        low, high, wide = state.slope, state.slope, state.spread_slope
        if wide is not None:
            low, high = low - wide, high + wide
        sets, ends = state.sets, []
        if sets.parts:
            for side, slope in ((1, low), (-1, -high)):
                flat = flattened(slope).mT.expand(len(sets.lower), -1, -1).flatten(0, 1)
                least = self._support(Rows.dense_rows(flat, len(sets.lower)), sets, arithmetic)
                ends.append(side * least.reshape(-1, *slope.shape[2:]))
        else:
            centre, radius = sets.lower / 2 + sets.upper / 2, sets.upper / 2 - sets.lower / 2
            if arithmetic.charged:
                radius = radius + magnitude(sets) * arithmetic.gamma(2 * sets.lower.shape[1] + 16) + arithmetic.tiny
            reach = contract(radius, low.abs())
            ends.append(contract(centre, low) - reach)
            ends.append(contract(centre, high) + (reach if wide is None else contract(radius, high.abs())))
        lower, upper = state.constant - state.spread + ends[0], state.constant + state.spread + ends[1]
        if arithmetic.charged:
            slack = state.size() * arithmetic.gamma(4) + arithmetic.tiny
            lower, upper = lower - slack, upper + slack
        return NodeBounds(lower, upper)

    def box_bytes(self, graph, itemsize):
        inputs = sum(graph.nodes[i].type.numel for i in graph.inputs)
        varying = tuple(i for i in reversed(range(len(graph.nodes))) if graph.varying[i])
        return 4 * itemsize * inputs * liveness.sweep_peak(graph, varying)  # origins are kept for a while

    def _support(self, rows: Rows, sets: InputBatch, arithmetic) -> torch.Tensor:
        size = max(1, GATHERED // rows.shape[0])
        if rows.count <= size:
            return sets.support(rows, arithmetic)
        parts = [sets.support(rows.slice(i, i + size), arithmetic) for i in range(0, rows.count, size)]
        return torch.cat(parts)

    def bound_rows(self, state, rows, arithmetic):
        """Lower bounds "R" of <row, z>: rows go back through the last affine ops and meet the maps before them."""
        slopes, terms, reach = [], [], []
        pending = {state: rows}
        while pending:
            here = max(pending, key=lambda s: s.rank)
            nu = pending.pop(here)
            if here.origin is None:
                slope, constant = ahead(here, nu)
                slopes.append(slope)
                terms.append(constant)
                if arithmetic.charged:
                    size = combine(nu.dense().abs(), nu, here.size().unsqueeze(1))[:, 0]
                    reach.append(size * arithmetic.gamma(2 * here.size()[0].numel() + 8))
                continue
            place, sources = here.origin
            parts, term = AFFINE.pull(nu, place, AFFINE.relax(place, self))
            terms += [] if term is None else [term]
            read = [(s, b) for s, b in zip(sources, place.inputs, strict=True) if s is not None]
            for (source, bounds), part in zip(read, parts, strict=True):
                if source in pending:
                    part = pending[source] + part
                    reach.append(part.abs_dot(bounds.magnitude()) * arithmetic.gamma(1))
                pending[source] = part
        rows = Rows.dense_rows(sum(slopes), rows.boxes, rows.box)
        terms.append(self._support(rows, state.sets, arithmetic))
        total = sum(terms)
        if arithmetic.charged:
            reach.append(rows.abs_dot(magnitude(state.sets)) * arithmetic.gamma(len(slopes)))
            size = sum(t.abs() for t in terms)
            total = total - sum(reach) - size * arithmetic.gamma(len(terms)) - arithmetic.tiny
        return total


def ahead(maps: Maps, nu: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """The lower map of <nu, z>: slope "R m" and constant "R"."""
    data = nu.dense()
    slope, constant = combine(data, nu, maps.slope), combine(data, nu, maps.constant.unsqueeze(1))[:, 0]
    constant = constant - combine(data.abs(), nu, maps.spread.unsqueeze(1))[:, 0]
    if maps.spread_slope is not None:
        slope = slope - combine(data.abs(), nu, maps.spread_slope)
    return slope, constant


@register_rule(ForwardLinear, Affine)
def affine(place: Place, states):
    """The middle goes through W and b, the spread through |W|."""
    op, at, arithmetic = place.op, place.at, place.arithmetic
    some = next(s for s in states if s is not None)
    slopes, constants, spreads, sizes = (
        [None if s is None else part(s) for s in states]
        for part in (lambda s: s.slope, lambda s: s.constant[:, None], lambda s: s.spread[:, None], lambda s: s.size())
    )
    constant, spread = through(op.linear, at, constants)[:, 0], through(op.absolute, at, spreads)[:, 0]
    offset = op.offset(at)
    if offset is not None:
        constant = constant + offset
    spread_slope = None
    if any(s is not None and s.spread_slope is not None for s in states):
        wide = [s if s is None else torch.zeros_like(s.slope) if s.spread_slope is None else s.spread_slope
                for s in states]  # fmt: skip
        spread_slope = through(op.absolute, at, wide)
    if arithmetic.charged:
        # Middle and spread each err by no more than that.
        spread = (spread + 2 * rounding(place, sizes)) * (1 + 4 * arithmetic.unit)
    known = place.output if isinstance(op, Move) else None
    slope, rank = through(op.linear, at, slopes), 1 + max(s.rank for s in states if s is not None)
    return Maps(some.sets, slope, constant, spread_slope, spread, known, (place, states), rank)


@register_rule(ForwardLinear, Elementwise)
def elementwise(place: Place, states):
    """A line takes the lower map where its slope is positive, the upper one where it is negative."""
    op, (state,), (bounds,) = place.op, states, place.inputs
    lines = op.lines(bounds.lower, bounds.upper, op.initial(bounds.lower, bounds.upper))
    good = sum(lines).isfinite() & state.constant.isfinite() & state.spread.isfinite()
    low, low_bias, high, high_bias = (torch.where(good, t, 0) for t in lines)
    # (low, high) as middle -+ spread: what each of the two becomes, from each of the two.
    straight, cross = (low + high) / 2, (high.abs() - low.abs()) / 2
    widen, wide = (high - low) / 2, (high.abs() + low.abs()) / 2
    constant = straight * state.constant + cross * state.spread + (low_bias + high_bias) / 2
    spread = widen * state.constant + wide * state.spread + (high_bias - low_bias) / 2
    slope, spread_slope = straight.unsqueeze(1) * state.slope, widen.unsqueeze(1) * state.slope
    if state.spread_slope is not None:
        slope = torch.addcmul(slope, cross.unsqueeze(1), state.spread_slope)
        spread_slope = torch.addcmul(spread_slope, wide.unsqueeze(1), state.spread_slope)
    if place.arithmetic.charged:
        size = 2 * wide * state.size() + low_bias.abs() + high_bias.abs()
        spread = (spread + size * place.arithmetic.gamma(8)) * (1 + 4 * place.arithmetic.unit) + place.arithmetic.tiny
    return Maps(state.sets, slope, constant, spread_slope, spread, place.output).restart(good, place)


@register_rule(ForwardLinear, Multivariate)
def multivariate(place: Place, states):
    """Planes take, per coefficient, the lower map where it is positive and the upper one where it is negative."""
    op, at, arithmetic = place.op, place.at, place.arithmetic
    sets, inputs = next((s.sets, s.slope.shape[1]) for s in states if s is not None)
    bounds = with_parameters(place.inputs, at, place.errors)
    operands = [constants(sets, inputs, b, arithmetic) if s is None else s for s, b in zip(states, bounds, strict=True)]
    middles, spreads = zip(*map(stacked, operands), strict=True)
    planes = op.planes([b.lower for b in bounds], [b.upper for b in bounds])
    ends = []
    for plane, side in zip(planes, (-1, 1), strict=True):
        value, width = weigh(place, plane, middles), weigh(place, plane, spreads, absolute=True)
        ends.append((value + side * width, plane.bias))
    (low, low_bias), (high, high_bias) = ends
    good = (low[:, -1] + high[:, -1] + low_bias + high_bias).isfinite()
    low, high = (torch.where(good.unsqueeze(1), t, 0) for t in (low, high))
    slope, spread_slope = (low + high) / 2, (high - low) / 2
    constant, spread = slope[:, -1] + (low_bias + high_bias) / 2, spread_slope[:, -1] + (high_bias - low_bias) / 2
    if arithmetic.charged:
        spread = (spread + plane_charge(place, planes, [s.size() for s in operands])) * (
            1 + 4 * arithmetic.unit
        ) + arithmetic.tiny
    return Maps(sets, slope[:, :-1], constant, spread_slope[:, :-1], spread).restart(good, place)


def constants(sets: InputBatch, inputs: int, bounds: NodeBounds, arithmetic) -> Maps:
    """The maps of a value that lies within bounds and does not depend on the input."""
    slope = bounds.lower.new_zeros((1, inputs, *bounds.lower.shape[1:]))
    centre, radius = enclosing(bounds.lower, bounds.upper, arithmetic)
    return Maps(sets, slope, centre, None, radius)


def stacked(maps: Maps) -> tuple[torch.Tensor, torch.Tensor]:
    """Middle and spread as "B (m + 1) *n": the constant comes last."""
    boxes, spread_slope = len(maps.sets.lower), maps.spread_slope
    spread_slope = torch.zeros_like(maps.slope) if spread_slope is None else spread_slope
    parts = (maps.slope, maps.constant), (spread_slope, maps.spread)
    return tuple(
        torch.cat([t.expand(boxes, *t.shape[1:]) for t in (slope, constant.unsqueeze(1))], 1)
        for slope, constant in parts
    )
