"""Expressive losses: between the loss at attacked points and that of lower bounds (De Palma et al. 2024).

A = loss at attacked points, B = loss of lower bounds; alpha goes from A (0) to B (1), and the loss with it.
"""

from __future__ import annotations

from abc import abstractmethod

import torch

from absdom.domain import Recipe
from absdom.errors import UsageError
from absdom.train.attacks import PGD, Attack
from absdom.train.bounds import estimates
from absdom.train.loss import Loss
from absdom.train.task import Specification, Task

CORNER = PGD(steps=1, step=10.0, best=False)


class Expressive(Loss):
    """kappa x loss(clean margins) + (1 - kappa) x the combination of A and B that a subclass gives.

    alpha: the share of B, 0 to 1. attack: finds the points of A, in the sets of radius `attack_radius` x eps (CORNER
    goes to a corner of boxes). recipe: bounds the margins of B.
    """

    state = ("eps", "kappa", "alpha")

    def __init__(
        self,
        module,
        spec: Specification,
        *,
        eps: float,
        alpha: float,
        attack: Attack = CORNER,
        attack_radius: float = 1.0,
        recipe: str | Recipe = "ibp",
        kappa: float = 0.0,
        **more,
    ):
        super().__init__(module, spec, eps=eps, **more)
        if not 0 <= alpha <= 1:
            raise UsageError(f"alpha {alpha}: the share of the bounds' loss is between 0 and 1")
        self.alpha, self.kappa = alpha, kappa
        self.attack, self.attack_radius, self.recipe = attack, attack_radius, recipe
        self._estimates = estimates(recipe)

    @abstractmethod
    def combine(self, task: Task, attacked: torch.Tensor, bounds: torch.Tensor) -> dict[str, torch.Tensor]:
        """The terms, scalars by name, of margins "B R" at attacked points and lower bounds "B R"."""

    def terms(self, step):
        task = step.task
        _, outputs = step.attacked(self.attack, self.attack_radius)  # its pass may set the statistics of the bounds
        margins = step.margins(self.recipe)
        terms = self.combine(task, task.margins(outputs), margins)
        terms = {name: (1 - self.kappa) * value for name, value in terms.items()}
        if self.kappa > 0:
            terms["clean"] = self.kappa * task.loss(task.margins(step.outputs)).mean()
        return terms, None if self._estimates else margins


class MTLIBP(Expressive):
    """alpha B + (1 - alpha) A."""

    def combine(self, task, attacked, bounds):
        return {
            "attacked": (1 - self.alpha) * task.loss(attacked).mean(),
            "bound": self.alpha * task.loss(bounds).mean(),
        }


class CCIBP(Expressive):
    """The loss of alpha x bounds + (1 - alpha) x margins at attacked points."""

    def combine(self, task, attacked, bounds):
        return {"combined": task.loss(self.alpha * bounds + (1 - self.alpha) * attacked).mean()}


class ExpIBP(Expressive):
    """B^alpha A^(1 - alpha), of the means over the batch as in the published code.

    By Hoelder's inequality that is at least the mean over items of the same.
    """

    def combine(self, task, attacked, bounds):
        tiny = torch.finfo(bounds.dtype).tiny  # at zero a power has no gradient
        A, B = (task.loss(m).mean().clamp(min=tiny) for m in (attacked, bounds))
        return {"combined": B**self.alpha * A ** (1 - self.alpha)}
