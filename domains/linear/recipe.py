"""The recipe of the linear domain and its usual compositions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from absdom.domain import Dual, Recipe
from absdom.domains.interval import Interval
from absdom.errors import UsageError
from absdom.registry import register_recipe

SLOPES = ("adaptive", "parallel", "flat")


@register_recipe("linear")
@dataclass(frozen=True)
class Linear(Dual):
    """Linear bounds by back-substitution (Zhang et al. 2018; Wong and Kolter 2018; the same dual for equal slopes).

    pre: the recipe of the bounds that lines are built from; None: this recipe, layer by layer, from unstable neurons.
    slope: `adaptive` (CROWN), `parallel` (CAP: both lines, or planes, with one slope) or `flat` (constants: interval).
    """

    pre: Recipe | None = None
    slope: str = "adaptive"
    name: ClassVar[str] = "linear"

    def __post_init__(self):
        if self.slope not in SLOPES:
            raise UsageError(f"slope {self.slope!r} is not one of {', '.join(SLOPES)}")
        if self.pre == self:
            raise UsageError("a linear recipe needs no pre that equals itself: leave pre out")


@register_recipe("ibp")
def ibp() -> Recipe:
    return Interval()


@register_recipe("crown")
def crown() -> Recipe:
    return Linear()


@register_recipe("crown-ibp")
def crown_ibp() -> Recipe:
    return Linear(pre=Interval())


@register_recipe("cap")
def cap() -> Recipe:
    return Linear(slope="parallel")
