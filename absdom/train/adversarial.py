"""Empirical losses, at attacked points: adversarial training, TRADES, and a guard against catastrophic overfitting."""

from __future__ import annotations

import torch

from absdom.errors import UsageError
from absdom.train.attacks import FGSM, PGD, Attack
from absdom.train.batch_norm import ATTACKED, BatchNormPolicy
from absdom.train.hooks import Hook
from absdom.train.loss import Loss
from absdom.train.task import Specification, Task

TEN_STEPS = PGD(steps=10, step=0.25)
FIVE_STEPS = PGD(steps=5, step=0.5)
ONE_STEP = FGSM()


class Adversarial(Loss):
    """kappa x loss(clean margins) + (1 - kappa) x loss(margins at attacked points): nothing is certified.

    With PGD: Madry et al. (2018); with FGSM: Wong, Rice and Kolter (2020), beside which a `CollapseGuard` belongs.
    """

    state = ("eps", "kappa")

    def __init__(
        self,
        module,
        spec: Specification,
        *,
        eps: float,
        attack: Attack = TEN_STEPS,
        kappa: float = 0.0,
        batch_norm: BatchNormPolicy = ATTACKED,
        **more,
    ):
        super().__init__(module, spec, eps=eps, batch_norm=batch_norm, **more)
        self.attack, self.kappa = attack, kappa

    def terms(self, step):
        task, terms = step.task, {}
        if self.kappa < 1:
            _, outputs = step.attacked(self.attack)
            terms["attacked"] = (1 - self.kappa) * task.loss(task.margins(outputs)).mean()
        if self.kappa > 0:
            terms["clean"] = self.kappa * task.loss(task.margins(step.outputs)).mean()
        return terms, None


class TRADES(Loss):
    """Clean loss + beta x KL(clean || attacked), attacked where KL is high (Zhang et al. 2019).

    The distributions are softmax(0, -margins); for classification those of the classes. attack: a PGD, or another that
    takes an objective, and does not start at the point (there KL is flat).
    """

    state = ("eps", "beta")

    def __init__(self, module, spec: Specification, *, eps: float, beta: float = 6.0, attack: PGD = TEN_STEPS, **more):
        super().__init__(module, spec, eps=eps, **more)
        if getattr(attack, "start", None) == "point":
            raise UsageError("the attack of TRADES starts at the point, where its objective is flat: let it be uniform")
        self.beta, self.attack = beta, attack

    def terms(self, step):
        task = step.task

        def search(evaluate, task: Task) -> torch.Tensor:
            clean = log_softmax(task, evaluate(task.x).detach())
            return self.attack(evaluate, task, lambda outputs: divergence(clean, log_softmax(task, outputs)))

        _, outputs = step.attacked(search)
        change = divergence(log_softmax(task, step.outputs), log_softmax(task, outputs))
        return {
            "clean": task.loss(task.margins(step.outputs)).mean(),
            "divergence": self.beta * change.mean(),
        }, None


def log_softmax(task: Task, outputs: torch.Tensor) -> torch.Tensor:
    """log softmax(0, -clauses) "B 1+Q" of outputs "B K"; for classification that of the label, then of the others."""
    below = -task.clauses(task.margins(outputs))
    return torch.nn.functional.pad(below, (1, 0)).log_softmax(1)


def divergence(of: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    """KL(of || to), "B", of logarithms "B Q"."""
    return (of.exp() * (of - to)).sum(1)


class CollapseGuard(Hook):
    """Stops a training by single-step attacks that has collapsed: catastrophic overfitting (Wong, Rice, Kolter 2020).

    Once per epoch, on its first batch: the share of items on which the property holds under `attack` (PGD with 5
    steps), and under `against` (the single step). The network has learnt to mislead the single step alone when the
    first is less than the second by more than `gap`. Both are logged, as `guard`.
    """

    def __init__(self, *, attack: Attack = FIVE_STEPS, against: Attack = ONE_STEP, gap: float = 0.2):
        self.attack, self.against, self.gap = attack, against, gap
        self._task: Task | None = None

    def before_step(self, trainer, x, y, out):
        if self._task is None:
            self._task = out.task

    def epoch_end(self, trainer, record):
        if self._task is None:
            return
        task, self._task = self._task, None
        strong, weak = (held(trainer.loss.live(task.x), task, a) for a in (self.attack, self.against))
        record["guard"] = {"attack": strong, "against": weak}
        if strong < weak - self.gap:
            trainer.stop(
                f"catastrophic overfitting: the property holds on {strong:.1%} of a training batch under the attack "
                f"with more steps, and on {weak:.1%} under the single step; train with more steps, or shorter ones"
            )


@torch.no_grad()
def held(live, task: Task, attack: Attack) -> float:
    """The share of items on which the property still holds at attacked points, by the running statistics."""
    mode = live.module.training
    live.module.eval()
    try:
        return task.holds(task.margins(live.evaluate(attack(live.evaluate, task)))).float().mean().item()
    finally:
        live.module.train(mode)
