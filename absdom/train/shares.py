"""Figures of a network under a specification: shares of neurons by state, and accuracies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from absdom.domain import Recipe
from absdom.ops.piecewise import TwoPieces
from absdom.train.attacks import PGD
from absdom.train.batch_norm import RUNNING
from absdom.train.live import Propagation
from absdom.train.loss import Loss, Step

NEURONS = ("unstable", "dead", "active")


@torch.no_grad()
def neuron_counts(run: Propagation) -> dict[str, torch.Tensor]:
    """How many ReLUs (of all boxes) may take either piece over their set, only the left one (dead: zero throughout) or
    only the right one (active); other functions of two pieces at 0 count as well. Scalars by name; none: {}."""
    found = []
    graph = run.context.graph
    for node in graph.nodes:
        if isinstance(node.op, TwoPieces) and node.inputs[0] in run.bounds:
            read = run.bounds[node.inputs[0]]
            dead, active = read.upper <= 0, (read.lower >= 0) & (read.upper > 0)
            found.append(torch.stack([(~(dead | active)).sum(), dead.sum(), active.sum()]))
    return dict(zip(NEURONS, torch.stack(found).sum(0))) if found else {}


@dataclass(frozen=True)
class Evaluation:
    """How held-out items are evaluated, with the running statistics of batch norms.

    eps: the radius (None: what the loss has at that time). attack: points where the property may fail, see
    `absdom.train.attacks` (None: no attack). recipe: of the bounds, in the numbers of the data (None: no bounds).
    """

    eps: float | None = None
    attack: Callable | None = field(default_factory=PGD)
    recipe: str | Recipe | None = "ibp"

    def counts(self, loss: Loss, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of points x "B *n" with y: how many are right ("clean"), right at an attacked point too, and certified; the
        counts of neurons where bounds were made. Scalars on the device."""
        live, training = loss.live(x), loss.module.training
        loss.module.eval()
        try:
            task = loss.spec.task(x, y, loss.eps if self.eps is None else self.eps, live.outputs)
            step = Step(live, task, RUNNING)
            attacked = None if self.attack is None else self.attack(step.evaluate, task)
            with torch.no_grad():
                clean = task.holds(task.margins(step.outputs))
                found = {"clean": clean.sum()}
                if attacked is not None:
                    found["attacked"] = (clean & task.holds(task.margins(step.evaluate(attacked)))).sum()
                if self.recipe is not None:
                    found["certified"] = task.holds(step.margins(self.recipe)).sum()
                    found |= neuron_counts(step.propagate(self.recipe))
        finally:
            loss.module.train(training)
        return found

    def sums(self, loss: Loss, batches: Iterable) -> dict[str, torch.Tensor]:
        """The counts of all batches (x, y) together; "items" is how many points there were."""
        total: dict[str, torch.Tensor] = {}
        for x, y in batches:
            for name, count in {"items": torch.tensor(len(x), device=x.device), **self.counts(loss, x, y)}.items():
                total[name] = total[name] + count if name in total else count
        return total


def shares_of(sums: dict[str, float]) -> dict[str, float]:
    """Accuracies as shares of the items, and states of neurons as shares of all neurons."""
    neurons = sum(sums.get(name, 0) for name in NEURONS)
    return {
        name: value / (neurons if name in NEURONS else sums["items"])
        for name, value in sums.items()
        if name != "items" and (name not in NEURONS or neurons)
    }


def evaluate(
    loss: Loss, x: torch.Tensor, y: torch.Tensor, evaluation: Evaluation | None = None, batch: int = 500
) -> dict[str, float]:
    """Clean, attacked and certified accuracy of points x "N *n" with y, and the shares of neurons by state."""
    evaluation = Evaluation() if evaluation is None else evaluation
    parts = ((x[k : k + batch], y[k : k + batch]) for k in range(0, len(x), batch))
    return shares_of({name: float(count) for name, count in evaluation.sums(loss, parts).items()})
