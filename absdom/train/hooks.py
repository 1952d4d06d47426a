"""What takes part in training without being a loss: observers, guards, and choices of the weights to keep."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from absdom.errors import UsageError
from absdom.train.loss import Output

if TYPE_CHECKING:
    from absdom.train.trainer import Trainer


class Hook:
    """Called by a Trainer at fixed places; each method does nothing unless it is overridden.

    With several processes every one of them calls its own copy. State that a resumed run needs goes into `state_dict`
    (tensors and plain values).
    """

    def check(self, trainer: Trainer) -> None:
        """Before a run does or writes anything: raises UsageError where the trainer lacks what the hook takes."""

    def before_step(self, trainer: Trainer, x: torch.Tensor, y: torch.Tensor, out: Output) -> None:
        """After the backward pass of a batch x "B *n", before gradients are clipped and the optimiser steps."""

    def epoch_end(self, trainer: Trainer, record: dict) -> None:
        """After an epoch and its evaluation; `record` is what will be logged, and may be added to."""

    def run_end(self, trainer: Trainer) -> None:
        """After the last epoch, whether it was reached or `trainer.stop` was called; not where a run is cut into
        pieces."""

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: Mapping) -> None:
        pass


def _copy(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy({k: v.detach() for k, v in module.state_dict().items()})


class EarlyStopping(Hook):
    """Keeps the weights with the least held-out robust error, from where the loss's schedules (above all of the radius)
    have reached their ends; stops after `patience` epochs without a better one (Rice et al. 2020), and leaves the
    module with the best weights.

    measure: `certified` (by the evaluation's recipe) or `attacked`: 1 - that accuracy of the held-out items.
    """

    def __init__(self, patience: int = 10, measure: str = "certified"):
        if measure not in ("certified", "attacked"):
            raise UsageError(f"early stopping by {measure!r}: choose certified or attacked")
        if patience < 1:
            raise UsageError(f"patience {patience} is below one epoch")
        self.patience, self.measure = patience, measure
        self.error, self.epoch, self.weights = None, None, None

    def check(self, trainer):
        lacks = {"certified": trainer.evaluation.recipe, "attacked": trainer.evaluation.attack}[self.measure] is None
        if trainer.validation is None or lacks:
            raise UsageError(
                f"early stopping by {self.measure} accuracy needs held-out items (held_out in a file, validation= of a "
                f"trainer) and an evaluation that measures it"
            )

    def epoch_end(self, trainer, record):
        if not all(s.finished for s in trainer.schedules if s.target is trainer.loss):
            return
        error = 1 - record["held_out"][self.measure]
        if self.error is None or error < self.error:
            self.error, self.epoch, self.weights = error, record["epoch"], _copy(trainer.module)
        record["best"] = {"epoch": self.epoch, "robust_error": self.error}
        if record["epoch"] - self.epoch >= self.patience:
            trainer.stop(f"no better held-out robust error than {self.error:.4f} of epoch {self.epoch}")

    def run_end(self, trainer):
        if self.weights is not None:
            trainer.module.load_state_dict(self.weights)

    def state_dict(self):
        return {"error": self.error, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state):
        self.error, self.epoch, self.weights = state["error"], state["epoch"], state["weights"]


class WeightAveraging(Hook):
    """At the end the module has the mean of its weights after each of the last `epochs` epochs (Izmailov et al. 2018);
    the statistics of batch norms are computed anew."""

    def __init__(self, epochs: int):
        if epochs < 1:
            raise UsageError(f"averaging the weights of {epochs} epochs: at least one")
        self.epochs, self.count, self.mean, self.of = epochs, 0, None, None

    def epoch_end(self, trainer, record):
        if record["epoch"] <= trainer.epochs - self.epochs:
            return
        if self.of not in (None, trainer.epochs):
            raise UsageError(
                f"weights were averaged over the last of {self.of} epochs, and training has {trainer.epochs}"
            )
        self.of = trainer.epochs
        weights = {k: v.detach().clone() for k, v in trainer.module.named_parameters()}
        self.count += 1
        if self.mean is None:
            self.mean = weights
        for k, v in weights.items():
            self.mean[k] = torch.lerp(self.mean[k].to(v.device), v, 1 / self.count)

    def run_end(self, trainer):
        if self.mean is None:
            return
        with torch.no_grad():
            for k, v in trainer.module.named_parameters():
                v.copy_(self.mean[k])
        trainer.population_statistics()

    def state_dict(self):
        return {"count": self.count, "mean": self.mean, "of": self.of}

    def load_state_dict(self, state):
        self.count, self.mean, self.of = state["count"], state["mean"], state["of"]
