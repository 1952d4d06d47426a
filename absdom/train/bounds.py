"""Losses of lower bounds: by any recipe (`Certified`), and by the interval domain (Gowal et al. 2018)."""

from __future__ import annotations

from math import isinf

import torch

from absdom.api import recipe_of
from absdom.domain import Recipe, total_failure
from absdom.train.live import Live
from absdom.train.loss import Loss, Step
from absdom.train.task import Specification


def estimates(recipe: str | Recipe) -> bool:
    """Does a recipe give estimates, which are no bounds?"""
    return isinf(total_failure(recipe_of(recipe)))


class Certified(Loss):
    """kappa x loss(clean margins) + (1 - kappa) x loss(lower bounds of the margins), bounds by any recipe.

    recipe: text or a Recipe, a plug-in's too; the pass is differentiated as it stands. With a recipe that estimates the
    loss has no sound margins.
    """

    state = ("eps", "kappa")

    def __init__(self, module, spec: Specification, *, eps: float, recipe: str | Recipe, kappa: float = 0.0, **more):
        super().__init__(module, spec, eps=eps, **more)
        self.recipe, self.kappa = recipe, kappa
        self._estimates = estimates(recipe)

    def margins(self, step: Step):
        """Lower bounds "B R" of the task's rows."""
        return step.margins(self.recipe)

    def bound(self, step: Step) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The loss that is minimised beside the clean one; lower bounds "B R" of the rows if sound ones were made."""
        margins = self.margins(step)
        return step.task.loss(margins).mean(), None if self._estimates else margins

    def terms(self, step):
        terms, margins = {}, None
        if self.kappa > 0:
            terms["clean"] = self.kappa * step.task.loss(step.task.margins(step.outputs)).mean()
        if self.kappa < 1:
            bound, margins = self.bound(step)
            terms["bound"] = (1 - self.kappa) * bound
        return terms, margins


class IBP(Certified):
    """Interval bound propagation, the last layer merged into the rows (Gowal et al. 2018)."""

    def __init__(self, module: Live, spec: Specification, *, eps: float, kappa: float = 0.0, **more):
        super().__init__(module, spec, eps=eps, recipe="ibp", kappa=kappa, **more)
