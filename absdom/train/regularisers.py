"""Terms beside a loss: penalties of weights."""

from __future__ import annotations

from typing import ClassVar

import torch

from absdom.train.layers import weighted_layers
from absdom.train.loss import Loss, Regulariser, Step


class L1(Regulariser):
    """strength x the sum of the absolute weights of fully connected and convolutional layers; biases and norms are left
    alone (as in the public code of the interval-based methods)."""

    name: ClassVar[str] = "l1"
    state: ClassVar[tuple[str, ...]] = ("strength",)

    def __init__(self, strength: float):
        self.strength = strength

    def __call__(self, step: Step, loss: Loss) -> torch.Tensor:
        total = sum(layer.weight.abs().sum() for layer in weighted_layers(step.live.graph()))
        return self.strength * total
