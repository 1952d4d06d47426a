"""Boxes that shrink behind unstable ReLUs: for training alone (Mueller et al. 2023, section 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from absdom import registry
from absdom.domain import Forward
from absdom.ops.piecewise import Relu


@dataclass(frozen=True)
class Shrunk(Forward):
    """Met with another recipe (`ibp & shrunk`): where the input of a ReLU may have both signs, its upper end is `ratio`
    of the bound.

    What comes out is no bound, and says so: it never closes a clause. It has no name on the command line.
    """

    ratio: float
    name: ClassVar[str] = "shrunk"
    failure_probability: ClassVar[float] = math.inf

    def lift(self, sets, types, arithmetic):
        return registry.recipes()["interval"]().lift(sets, types, arithmetic)

    def concretize(self, state, arithmetic):
        return state

    def from_bounds(self, bounds, place):
        """The bounds themselves, but behind a ReLU."""
        if not isinstance(place.op, Relu):
            return bounds
        (before,) = place.inputs
        unstable = (before.lower < 0) & (before.upper > 0)
        return replace(bounds, upper=torch.where(unstable, self.ratio * bounds.upper, bounds.upper))
