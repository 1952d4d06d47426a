"""Interval bounds in front of a layer, attacks on the layer's values behind it (TAPS: Mao et al. 2023).

Intervals overestimate, more so with every layer; an attack underestimates. Put in a row, their errors cancel in part.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from absdom.api import recipe_of
from absdom.domain import Recipe
from absdom.errors import UsageError
from absdom.sets import InputBatch
from absdom.train.attacks import PGD, Attack
from absdom.train.bounds import Certified
from absdom.train.latent import Cut, task_per_clause
from absdom.train.loss import Step
from absdom.train.sabr import EIGHT_STEPS, small_sets
from absdom.train.shrunk import Shrunk
from absdom.train.task import Specification

LATENT = PGD(steps=10, step=0.4)  # .2 of the box's width, as published


class _Link(torch.autograd.Function):
    """Points z "B Q *n" of boxes [lower, upper] "B *n", as a function of the boxes: the rectified linear link.

    dz/dupper = clip((z - (upper - c w)) / (c w), 0, 1) with w = upper - lower, and alike for lower: a bound gets the
    gradients of the points that are near it (Mao et al. 2023, section 3.2). Where w = 0, each gets half of them, as in
    the published code. No gradient reaches z.
    """

    @staticmethod
    def forward(ctx, lower, upper, z, reach):
        ctx.save_for_backward(lower, upper, z)
        ctx.reach = reach
        return z.view_as(z)

    @staticmethod
    def backward(ctx, gradient):
        lower, upper, z = ctx.saved_tensors
        lower, upper = lower[:, None], upper[:, None]
        near = ctx.reach * (upper - lower)

        def gathered(distance: torch.Tensor) -> torch.Tensor:
            share = torch.where(near > 0, (1 - distance / near).clamp(0, 1), 0.5)
            return (gradient * share).sum(1)

        return gathered(z - lower), gathered(upper - z), None, None


def linked(lower: torch.Tensor, upper: torch.Tensor, z: torch.Tensor, reach: float = 0.5) -> torch.Tensor:
    """The points z "B Q *n" of the boxes [lower, upper] "B *n", with gradients to those bounds that are closer to a
    point than `reach` of the width."""
    return _Link.apply(lower, upper, z, reach)


class TAPS(Certified):
    """kappa x loss(clean margins) + (1 - kappa) x R_PGD x R_IBP (means over the batch), gradients of R_PGD x `weight`.

    R_IBP: the loss of the recipe's lower bounds. R_PGD: the loss at points of the box that the recipe gives for the
    values of `layer`, per clause the one where an attack found it lowest; its gradient reaches the box through a
    rectified linear link. As in the published code the product is one of means, and the weight (there 2 to 8) leaves
    its value as it is.

    layer: its name in the module ("5", "features.5"); all paths to the output have to go through it. attack: of that
    layer's values, one run per clause, each from a point of its box. reach: the link's c. eps_max: below it (while the
    radius ramps up) the loss is R_IBP alone; None: never. shrink: upper ends behind unstable ReLUs are this share of
    their bounds. margins: the recipe's, None where it shrinks
    or only estimates.
    """

    def __init__(
        self,
        module,
        spec: Specification,
        *,
        eps: float,
        layer: str,
        weight: float = 4.0,
        attack: Attack = LATENT,
        reach: float = 0.5,
        eps_max: float | None = None,
        recipe: str | Recipe = "ibp",
        shrink: float = 1.0,
        kappa: float = 0.0,
        **more,
    ):
        if not 0 < reach <= 1:
            raise UsageError(f"reach {reach} of a link between points and boxes: a share above 0, at most 1")
        recipe = recipe if shrink == 1 else recipe_of(recipe) & Shrunk(shrink)
        super().__init__(module, spec, eps=eps, recipe=recipe, kappa=kappa, **more)
        self.sound = not self._estimates
        self.layer, self.weight, self.attack, self.reach, self.eps_max = layer, weight, attack, reach, eps_max

    def sets(self, step: Step) -> InputBatch:
        """The sets that are propagated."""
        return step.task.sets

    def bound(self, step):
        sets, cut = self.sets(step), step.cut(self.layer)  # a wrong layer is reported while the radius ramps up, too
        margins = step.margins(self.recipe, sets)
        bound = step.task.loss(margins).mean()
        if self.eps_max is None or self.eps >= self.eps_max:
            attacked = replace(step.task, clause=None).loss(self.latent(step, sets, cut)).mean()
            bound = bound * (attacked.detach() + self.weight * (attacked - attacked.detach()))
        return bound, margins if self.sound else None

    def latent(self, step: Step, sets: InputBatch, cut: Cut) -> torch.Tensor:
        """The greatest row of each clause "B Q" at the points of the layer's boxes that the attack found for it."""
        run = step.propagate(self.recipe, sets)
        box, frozen = run.bounds[cut.node], run.context.uncharged()
        task = task_per_clause(step.task, box.lower.detach(), box.upper.detach())
        z = self.attack(lambda z: cut.evaluate(frozen, z), task).detach()
        z = linked(box.lower, box.upper, z.unflatten(0, (len(step.task), -1)), self.reach)
        rows = task.margins(cut.evaluate(run.context, z.flatten(0, 1)))
        return rows.amax(1).unflatten(0, (len(step.task), -1))


class STAPS(TAPS):
    """TAPS over the small sets of SABR, `ratio` of the size of the full ones, around the points that `search` finds.

    What comes out are no bounds over the full sets, so there are no margins. Below eps_max it is SABR's loss.
    """

    state = (*TAPS.state, "ratio")

    def __init__(
        self,
        module,
        spec: Specification,
        *,
        eps: float,
        layer: str,
        ratio: float,
        search: Attack = EIGHT_STEPS,
        **more,
    ):
        super().__init__(module, spec, eps=eps, layer=layer, **more)
        self.ratio, self.search, self.sound = ratio, search, False

    def sets(self, step):
        return small_sets(step.task.sets, step.points(self.search), self.ratio)
