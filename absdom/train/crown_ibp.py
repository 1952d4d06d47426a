"""CROWN-IBP: linear bounds of the margins over intermediate boxes by intervals (Zhang et al. 2020), and loss fusion
(Xu et al. 2020, section 3.3): a bound of the loss itself, by one row per item."""

from __future__ import annotations

from dataclasses import replace

import torch

from absdom.train.bounds import Certified
from absdom.train.live import Live, Propagation
from absdom.train.loss import Step
from absdom.train.task import Specification, Task

LEAST = 1e-5  # of a bound relative to its largest part: below, a difference of float32 numbers is mostly rounding


class CrownIBP(Certified):
    """The loss of (1 - beta) x interval bounds + beta x linear bounds of the margins; where beta is 0 nothing is swept.
    Published runs let it fall to 0 while eps grows: `Follow(loss, "beta", 1.0, 0.0, ramp)`.

    fused: with gaps g = -margins, each within its interval [g_l, g_u], sum exp(g) lies below the sum of the chords of
    exp, which is linear: one row per item is swept, whatever the number of margins, and log(1 + bound) is minimised.
    `margins` are then those of intervals. Of a clause with several rows, that with the best interval bound is taken.
    """

    state = ("eps", "kappa", "beta")

    def __init__(
        self,
        module: torch.nn.Module | Live,
        spec: Specification,
        *,
        eps: float,
        kappa: float = 0.0,
        beta: float = 1.0,
        fused: bool = False,
        **more,
    ):
        super().__init__(module, spec, eps=eps, recipe="crown-ibp", kappa=kappa, **more)
        self.beta, self.fused = beta, fused

    def margins(self, step: Step) -> torch.Tensor:
        run, task = step.propagate(self.recipe), step.task
        if self.beta == 1:
            return shifted(run.dual_rows(task.C), task.d)
        found = run.interval_rows(task.C)
        return shifted(found if self.beta == 0 else torch.lerp(found, run.dual_rows(task.C), self.beta), task.d)

    def bound(self, step):
        if not self.fused:
            return super().bound(step)
        run, task = step.propagate(self.recipe), step.task
        single = task if task.clause is None else best_rows(task, shifted(run.interval_rows(task.C), task.d))
        rows = single.C.shape[1]
        both = run.interval_rows(torch.cat([single.C, -single.C], 1))
        lower, upper = shifted(both[:, :rows], single.d), shifted(-both[:, rows:], single.d)
        margins = lower if single is task else shifted(run.interval_rows(task.C), task.d)
        if self.beta == 0:
            return single.loss(lower).mean(), margins
        return fused_loss(run, single, lower, upper, self.beta).mean(), margins


def fused_loss(run: Propagation, task: Task, lower: torch.Tensor, upper: torch.Tensor, w: float) -> torch.Tensor:
    """An upper bound "B" of log(1 + sum exp(-margin)), for margins in [lower, upper] "B R", each a clause of its own.

    With chords s (g - g_u) + exp(g_u) of each gap g = -margin; all is divided by exp(top), top the largest exponent.
    """
    high = -lower
    top = high.detach().amax(1, keepdim=True).clamp(min=0)
    ends, one = (high - top).exp(), (-top).exp().squeeze(1)
    slope = ends * mean_decay(upper - lower)
    least = run.dual_rows(torch.bmm(slope.unsqueeze(1), task.C)).squeeze(1)
    if task.d is not None:
        least = least + (slope * task.d).sum(1)
    linear = (ends - slope * high).sum(1) - least
    return torch.lerp(ends.sum(1), linear, w).add(one).clamp(min=LEAST).log() + top.squeeze(1)


def mean_decay(width: torch.Tensor) -> torch.Tensor:
    """(1 - exp(-width)) / width, for width >= 0: the mean of exp(-t) over [0, width]."""
    small = width < 1e-3
    safe = torch.where(small, torch.ones_like(width), width)
    return torch.where(small, 1 - width / 2 + width.square() / 6, -torch.expm1(-safe) / safe)


def best_rows(task: Task, lower: torch.Tensor) -> Task:
    """A task of one row per clause, positive only where the clause is: the row with the greatest of the bounds "B R".

    exp(-max of rows) is at most exp(-any of them); rows that are equally good are averaged.
    """
    best = lower == task.clauses(lower)[:, task.clause]
    member = torch.nn.functional.one_hot(task.clause).to(lower.dtype)  # "R Q"
    share = best.unsqueeze(2) * member
    share = (share / share.sum(1, keepdim=True)).mT  # "B Q R"
    d = None if task.d is None else torch.bmm(share, task.d.unsqueeze(2)).squeeze(2)
    return replace(task, C=torch.bmm(share, task.C), d=d, clause=None)


def shifted(rows: torch.Tensor, d: torch.Tensor | None) -> torch.Tensor:
    """Values or bounds "B R" of C y as those of C y + d."""
    return rows if d is None else rows + d
