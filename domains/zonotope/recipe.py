"""The recipe of the zonotope domain: what becomes of new errors, how many generators are kept, and how inputs start."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from absdom.domain import Forward, NodeBounds, chosen
from absdom.domains.zonotope import memory
from absdom.domains.zonotope.relaxation import relaxation
from absdom.domains.zonotope.state import Generators, InputSymbols, State, enclosing
from absdom.errors import UsageError
from absdom.ir.op import Elementwise
from absdom.registry import find_rule, register_recipe


@register_recipe("zonotope")
@dataclass(frozen=True)
class Zonotope(Forward):
    """Zonotopes with parallel relaxations (DeepZ: Singh et al. 2018; forward CAP: Wong and Kolter 2018, Algorithm 1).

    errors: new errors become `generators`, or go to the `box` part (hybrid zonotopes: Mirman et al. 2018, DiffAI).
    budget_mb: megabytes that the generators of one box may take in front of an op or behind it, as float64; above it
    the least of them go to the box part, chosen as `reduce` says: by length (`box`), or as Girard 2005 does (`girard`).
    slope: of elements that no line fits exactly: `parallel` (DeepZ: least error), `adaptive` (of piecewise linear
    functions the slope of the longer piece, DiffAI's Switch; else as parallel) or `flat` (0, DiffAI's Box).
    """

    errors: str = "generators"
    budget_mb: float = 128
    reduce: str = "box"
    slope: str = "parallel"
    name: ClassVar[str] = "zonotope"

    def __post_init__(self):
        for label, value, known in (
            ("errors", self.errors, ("generators", "box")),
            ("reduce", self.reduce, ("box", "girard")),
            ("slope", self.slope, ("parallel", "adaptive", "flat")),
        ):
            if value not in known:
                raise UsageError(f"{label} {value!r} is not one of {', '.join(known)}")
        if not isinstance(self.budget_mb, (int, float)) or not 0 < self.budget_mb < float("inf"):
            raise UsageError(f"budget_mb {self.budget_mb!r} is no positive number of megabytes")

    @property
    def budget(self) -> int:
        """In bytes."""
        return int(self.budget_mb * 2**20)

    def lift(self, sets, types, arithmetic):
        """One symbol per input element whose width is not 0; a set that is no box keeps x itself as its symbols."""
        sizes, boxes = [t.numel for t in types], len(sets.lower)
        key = InputSymbols(sum(sizes), sets) if sets.parts else None
        unit = torch.eye(sum(sizes), dtype=sets.lower.dtype, device=sets.lower.device).split(sizes, 1)
        states = []
        for low, high, part, t in zip(sets.lower.split(sizes, 1), sets.upper.split(sizes, 1), unit, types, strict=True):
            known = NodeBounds(low.reshape(boxes, *t.shape), high.reshape(boxes, *t.shape))
            zero = torch.zeros_like(known.lower)
            if key is None:
                middle, half = enclosing(known.lower, known.upper, arithmetic)
                index = chosen((half > 0).flatten(1).any(0))
                states.append(State(middle, zero, {}, self, known).with_symbols(half, index))
            else:
                values = part.reshape(1, len(part), *t.shape).expand(boxes, len(part), *t.shape)
                states.append(State(zero, zero, {key: Generators(values)}, self, known))
        return states

    def concretize(self, state, arithmetic):
        return state.bounds(arithmetic)

    def bound_rows(self, state, rows, arithmetic):
        return state.bound_rows(rows, arithmetic)

    def from_bounds(self, bounds, place):
        """The box itself, each element an error of its own."""
        middle, half = enclosing(bounds.lower, bounds.upper, place.arithmetic)
        zero = torch.zeros_like(middle)
        return State(zero, zero, {}, self).with_error(middle, half, None)

    def follow(self, place):
        if isinstance(place.op, Elementwise):
            slope, low, high = relaxation(place, self.slope)
            middle, half = enclosing(low, high, place.arithmetic)
            return lambda values, errors: slope * values[0] + middle + half * errors
        rule, _ = find_rule(Zonotope, type(place.op))
        if rule is None:  # an input, or a value of which nothing but its bounds is known
            middle, half = enclosing(place.output.lower, place.output.upper, place.arithmetic)
            return lambda values, errors: middle + half * errors
        boxed = replace(self, errors="box")

        def behind(values, errors):
            states = [State(v, torch.zeros_like(v), {}, boxed) if varying else None
                      for v, varying in zip(values, place.at.varying, strict=True)]  # fmt: skip
            state = rule(place, states)
            return state.centre + state.radius * errors

        return behind

    def box_bytes(self, graph, itemsize):
        return memory.peak_bytes(graph, itemsize, self.errors == "generators")


@register_recipe("hybrid-zonotope")
def hybrid_zonotope(slope: str = "parallel") -> Zonotope:
    return Zonotope(errors="box", slope=slope)
