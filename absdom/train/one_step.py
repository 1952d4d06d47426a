"""Training by a relaxation that one step of ascent chose (Lee et al. 2021, "Towards better understanding of training
certifiably robust models against adversarial examples")."""

from __future__ import annotations

import torch

from absdom.train.bounds import Certified
from absdom.train.live import Live, Propagation
from absdom.train.loss import Step
from absdom.train.task import Specification, Task

Knobs = dict[tuple[int, str], torch.Tensor]


class OneStep(Certified):
    """The loss of linear bounds over boxes by intervals, whose lower slopes a are chosen per item by one step.

    With a0 uniform in [0, 1] for every unstable ReLU (the same for all rows of an item) and L(a) the loss of the
    bounds, a = clip(a0 - eta sign(dL/da0), 0, 1) is taken as given, and L(a) is minimised (eq. 7). Any slope gives a
    sound bound, and tests can use the same one: `margins` are sound in every mode. eta: from 1 on, each slope with a
    gradient becomes 0 or 1. What other functions leave open is chosen alike, within its range.
    """

    def __init__(
        self,
        module: torch.nn.Module | Live,
        spec: Specification,
        *,
        eps: float,
        eta: float = 2.0,
        kappa: float = 0.0,
        **more,
    ):
        super().__init__(module, spec, eps=eps, recipe="crown-ibp", kappa=kappa, **more)
        self.eta = eta

    def margins(self, step: Step) -> torch.Tensor:
        run = step.propagate(self.recipe)
        return rows_with(run, step.task, self.slopes(run, step.task))

    @torch.enable_grad()
    def slopes(self, run: Propagation, task: Task) -> Knobs:
        """What the step chooses: "B *n" for each node with open slopes."""
        still = run.detached()
        starts = still.knob_starts()
        if not starts:
            return {}
        first = {
            key: (low + (high - low) * torch.rand_like(value)).requires_grad_()
            for key, (value, low, high, _) in starts.items()
        }
        loss = task.loss(rows_with(still, task, first)).sum()
        gradients = torch.autograd.grad(loss, list(first.values()), allow_unused=True, materialize_grads=True)
        found = {}
        for (key, value), gradient in zip(first.items(), gradients, strict=True):
            low, high = starts[key].low, starts[key].high
            found[key] = (value.detach() - self.eta * (high - low) * gradient.sign()).clamp(low, high)
        return found


def rows_with(run: Propagation, task: Task, slopes: Knobs) -> torch.Tensor:
    """Lower bounds "B R" of the task's rows with these slopes."""
    knobs: dict[int, dict[str, torch.Tensor]] = {}
    for (node, name), value in slopes.items():
        knobs.setdefault(node, {})[name] = value
    found = run.dual_rows(task.C, knobs)
    return found if task.d is None else found + task.d
