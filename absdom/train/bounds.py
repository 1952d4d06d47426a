"""Losses of lower bounds: by any recipe (`Certified`), and by the interval domain (Gowal et al. 2018)."""

from __future__ import annotations

from absdom.domain import Recipe
from absdom.train.live import Live
from absdom.train.loss import Loss, Step
from absdom.train.task import Specification


class Certified(Loss):
    """kappa x loss(clean margins) + (1 - kappa) x loss(lower bounds of the margins), bounds by any recipe.

    recipe: text or a Recipe, a plug-in's too; the pass is differentiated as it stands.
    """

    state = ("eps", "kappa")

    def __init__(self, module, spec: Specification, *, eps: float, recipe: str | Recipe, kappa: float = 0.0, **more):
        super().__init__(module, spec, eps=eps, **more)
        self.recipe, self.kappa = recipe, kappa

    def margins(self, step: Step):
        """Lower bounds "B R" of the task's rows."""
        return step.margins(self.recipe)

    def terms(self, step):
        terms, margins = {}, None
        if self.kappa > 0:
            terms["clean"] = self.kappa * step.task.loss(step.task.margins(step.outputs)).mean()
        if self.kappa < 1:
            margins = self.margins(step)
            terms["bound"] = (1 - self.kappa) * step.task.loss(margins).mean()
        return terms, margins


class IBP(Certified):
    """Interval bound propagation, the last layer merged into the rows (Gowal et al. 2018)."""

    def __init__(self, module: Live, spec: Specification, *, eps: float, kappa: float = 0.0, **more):
        super().__init__(module, spec, eps=eps, recipe="ibp", kappa=kappa, **more)
