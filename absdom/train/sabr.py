"""Small boxes around attacked points: SABR (Mueller, Eckert, Fischer and Vechev 2023)."""

from __future__ import annotations

import torch

from absdom.api import recipe_of
from absdom.domain import Recipe
from absdom.errors import UsageError
from absdom.set_parts import BallBatch
from absdom.sets import InputBatch
from absdom.train.attacks import PGD, Attack
from absdom.train.bounds import Certified
from absdom.train.shrunk import Shrunk
from absdom.train.task import Specification

EIGHT_STEPS = PGD(steps=8, step=0.5, decay=(4, 7))


class SABR(Certified):
    """kappa x loss(clean margins) + (1 - kappa) x loss(bounds over a small set around an attacked point).

    ratio: the size of the small sets, as a share of the full ones; 1 is the recipe's own loss. recipe: what bounds the
    small sets. shrink: upper ends behind unstable ReLUs are this share of their bounds. What comes out are no bounds
    over the full sets, so there are no margins.
    """

    state = ("eps", "kappa", "ratio")

    def __init__(
        self,
        module,
        spec: Specification,
        *,
        eps: float,
        ratio: float,
        attack: Attack = EIGHT_STEPS,
        recipe: str | Recipe = "ibp",
        shrink: float = 1.0,
        **more,
    ):
        if not (0 <= ratio <= 1 and 0 < shrink <= 1):
            raise UsageError(f"ratio {ratio} and shrink {shrink}: both are shares, at most 1")
        if shrink != 1:
            recipe = recipe_of(recipe) & Shrunk(shrink)
        super().__init__(module, spec, eps=eps, recipe=recipe, **more)
        self.ratio, self.attack = ratio, attack

    def margins(self, step):
        """Bounds "B R" over the small sets."""
        return step.margins(self.recipe, small_sets(step.task.sets, step.points(self.attack), self.ratio))

    def terms(self, step):
        return super().terms(step)[0], None


def small_sets(sets: InputBatch, x: torch.Tensor, ratio: float) -> InputBatch:
    """Sets of the same shape, `ratio` of the size, inside `sets` and with centres as near as may be to x "B *n".

    Raises UsageError where sets are neither boxes nor l_p balls.
    """
    x = x.flatten(1)
    if sets.parts and sets.ball is None:
        raise UsageError("small sets are made within boxes and l_p balls; these input sets have other parts")
    ball = sets.ball
    if ball is None:
        half = ratio * (sets.upper - sets.lower) / 2
        centre = torch.clamp(x, sets.lower + half, sets.upper - half)
        return InputBatch(torch.maximum(centre - half, sets.lower), torch.minimum(centre + half, sets.upper))
    inner = BallBatch(ball.centre, (1 - ratio) * ball.radius, ball.norm, ball.clipped)
    centre = inner.project(x[:, None], sets.lower, sets.upper)[:, 0]
    centre = torch.maximum(torch.minimum(centre, sets.upper), sets.lower)  # rounding
    radius = ratio * ball.radius
    low, high = torch.maximum(centre - radius, sets.lower), torch.minimum(centre + radius, sets.upper)
    return InputBatch(low, high, (BallBatch(centre, radius, ball.norm, ball.clipped),))
