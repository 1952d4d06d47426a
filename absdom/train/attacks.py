"""Attacks inside losses: points of a task's sets where a training objective is high.

An attack is any callable `attack(evaluate, task) -> x`, x "B *n" in the sets of the task; `evaluate` gives the outputs
"B K" at points "B *n" under fixed statistics. These ascend by gradients with respect to x alone: parameters keep what
they have in `.grad`. (The solvers' own attacks run on graphs of frozen weights, and aim at the sign of a margin.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from absdom.errors import UsageError
from absdom.train.task import Task

Evaluate = Callable[[torch.Tensor], torch.Tensor]
Attack = Callable[[Evaluate, Task], torch.Tensor]
Objective = Callable[[torch.Tensor], torch.Tensor]  # outputs "B K" -> what is to grow, "B"

STARTS = ("uniform", "point")


@dataclass(frozen=True)
class PGD:
    """Projected steepest ascent on the task's loss, or on a given objective (Madry et al. 2018).

    steps: how many. step: the length of one, relative to the set: on boxes to the half-width of each coordinate (signs
    of the gradient), else to the way from the point to where the set ends along the gradient (in an l2 ball the
    normalised gradient; in an l1 ball the steepest inputs, each as far as the range lets it). restarts: the best of so
    many. start: `uniform` in the set, or the `point` itself (further restarts are uniform). decay: numbers of steps
    after which the step becomes a tenth of what it was. best: of all iterates of a sample the one with the highest
    objective, which costs a pass behind the last step; else the last one (restarts are always compared).
    """

    steps: int = 10
    step: float = 0.25
    restarts: int = 1
    start: str = "uniform"
    decay: tuple[int, ...] = ()
    best: bool = True

    def __post_init__(self):
        if self.start not in STARTS:
            raise UsageError(f"an attack that starts at {self.start!r}: choose one of {', '.join(STARTS)}")
        if self.steps < 0 or self.restarts < 1 or not self.step > 0:
            raise UsageError(
                f"an attack with {self.steps} steps of size {self.step} and {self.restarts} restarts: it needs 0 steps "
                f"or more, a size above 0, and a restart"
            )

    @torch.no_grad()
    def __call__(self, evaluate: Evaluate, task: Task, objective: Objective | None = None) -> torch.Tensor:
        """Points "B *n" of the sets (up to rounding, where they are no boxes).

        objective: of the outputs "B K", what is to grow, "B"; the task's loss if None.
        """
        if objective is None:
            objective = lambda outputs: task.loss(task.margins(outputs))  # noqa: E731

        def at(x: torch.Tensor) -> torch.Tensor:
            return objective(evaluate(x.reshape(task.x.shape)))

        found, highest = None, None
        for restart in range(self.restarts):
            x = self._start(task, uniform=self.start == "uniform" or restart > 0)
            found, highest = _higher(found, highest, *self._ascend(at, task, x))
        return found.reshape(task.x.shape)

    def _start(self, task: Task, *, uniform: bool) -> torch.Tensor:
        """Points "B n"; where sets are no boxes, on the way from the point to a random one of the rim."""
        sets = task.sets
        point = sets.project(task.x.flatten(1)[:, None])[:, 0]
        if not uniform:
            return point
        x = torch.lerp(sets.lower, sets.upper, torch.rand_like(sets.lower))
        x = torch.minimum(torch.maximum(x, sets.lower), sets.upper)
        if not sets.parts:
            return x
        return torch.lerp(point, sets.project(x[:, None])[:, 0], torch.rand_like(x[:, :1]))

    def _ascend(self, at: Objective, task: Task, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Points "B n", and their objectives "B" where these are compared."""
        found, highest, step = None, None, self.step
        for number in range(self.steps):
            value, gradient = _differentiate(at, x)
            if self.best:
                found, highest = _higher(found, highest, x, value)
            if number in self.decay:
                step = step / 10
            x = self._step(task, x, gradient, step)
        if not self.best and self.restarts == 1:
            return x, None
        return _higher(found, highest, x, at(x))

    @staticmethod
    def _step(task: Task, x: torch.Tensor, gradient: torch.Tensor, step: float) -> torch.Tensor:
        """A steepest step, projected: "B n"."""
        sets = task.sets
        if not sets.parts:
            x = x + step * gradient.sign() * (sets.upper - sets.lower) / 2
        else:
            centre = sets.project(task.x.flatten(1)[:, None])
            slopes = gradient / gradient.abs().amax(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
            x = x + step * (sets.lowest(-slopes[:, None]) - centre)[:, 0]
        return sets.project(x[:, None])[:, 0]


def _differentiate(at: Objective, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Objectives "B" at points "B n", and their gradients "B n" (zero where they are no numbers)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = at(x)
        if not value.requires_grad:  # nothing depends on the input
            return value, torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(value.sum(), x, allow_unused=True, materialize_grads=True)
    return value.detach(), gradient.nan_to_num(0.0)


def _higher(
    x: torch.Tensor | None, value: torch.Tensor | None, other: torch.Tensor, its_value: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Per sample the one of two points "B n" whose value "B" is higher, the first if equal; it may be None."""
    if x is None:
        return other, its_value
    better = its_value > value
    return torch.where(better[:, None], other, x), torch.where(better, its_value, value)


def FGSM(step: float = 1.25) -> PGD:
    """One step from a uniform start, and what it gives (Wong, Rice and Kolter 2020, Algorithm 3)."""
    return PGD(steps=1, step=step, best=False)
