"""Projected gradient descent on many sets at once (Madry et al. 2018), for data sets: which items are attacked?

Each set has its own rows, of which the least is to become negative. One of the points of a set follows the row that is
least wherever it stands; the others each follow one of the rows that are least at the centre.
"""

from __future__ import annotations

import torch

from absdom.plan import run
from absdom.plan.context import Context
from absdom.registry import register_service
from absdom.sets import InputBatch
from absdom.solvers.attack import descend, starts
from absdom.types import Clock


@register_service("pgd")
def pgd(
    context: Context,
    batch: InputBatch,
    C: torch.Tensor,
    d: torch.Tensor,
    clock: Clock,
    *,
    seed: int = 0,
    restarts: int = 4,
    steps: int = 40,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points "B n" where the least of the rows C y + d (C "B R m", d "B R") was lowest, and its values there "B".

    It ends early when every set has a point with a negative row, or at the deadline.
    """
    generator = torch.Generator().manual_seed(seed)
    x = starts(batch, restarts, generator)
    boxes, count, n = x.shape
    best, points = x.new_full((boxes,), torch.inf), x[:, -1].clone()
    target, momentum = None, torch.zeros_like(x)
    for step in range(steps + 1):
        last = step == steps or clock.passed()
        x = x.detach().requires_grad_(not last)
        with torch.set_grad_enabled(not last):
            y = run.evaluate(context, x.reshape(boxes * count, n)).reshape(boxes, count, -1)
            rows = torch.baddbmm(d[:, None], y, C.transpose(1, 2))
            least = rows.amin(2)
        value, place = least.detach().min(1)
        better = value < best
        best = torch.where(better, value, best)
        points = torch.where(better[:, None], x.detach()[torch.arange(boxes, device=x.device), place], points)
        if last or bool((best < 0).all()) or not rows.requires_grad:
            break
        if target is None:  # the last point is the centre
            order = rows.detach()[:, -1].argsort(1)
            target = order[:, torch.arange(count - 1, device=x.device) % order.shape[1]]
        with torch.enable_grad():  # also where the caller needs none
            loss = least[:, -1].sum() + rows[:, :-1].gather(2, target[:, :, None]).sum()
        (gradient,) = torch.autograd.grad(loss, x)
        x, momentum = descend(batch, x.detach(), gradient, momentum, step)
    return points, best
