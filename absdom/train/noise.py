"""Gaussian noise on weights: the gradient is taken beside the weights and applied to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from absdom.errors import UsageError

if TYPE_CHECKING:
    from absdom.train.live import Live


@dataclass
class WeightNoise:
    """Randomised gradient smoothing (Balauca et al. 2024, "Gaussian loss smoothing enables certified training with
    tight convex relaxations"): each call of a loss takes its value and its gradients at weights + d, d normal, and the
    optimiser applies them to the weights.

    One sample estimates the gradient of the loss's mean over d, which is smooth where a tight relaxation's is not.
    scale: the standard deviation of d in each tensor, relative to that of its numbers (which is 0 for one number, and
    for the scales and shifts of a new batch norm). `scale` can be moved by schedules.
    """

    scale: float = 0.01

    def __post_init__(self):
        if not self.scale >= 0:
            raise UsageError(f"weight noise of scale {self.scale}: give a number of 0 or more")

    @torch.no_grad()
    def shifts(self, live: Live) -> dict[torch.nn.Parameter, torch.Tensor]:
        """A draw of d: per parameter a tensor of its shape."""
        found = (p for p in live.module.parameters() if p.is_floating_point())
        return {p: self.scale * p.std(correction=0) * torch.randn_like(p) for p in found}
