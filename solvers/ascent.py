"""Better bounds by gradient ascent on knobs: slopes in [0, 1] and multipliers >= 0. Every iterate is a valid bound."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from absdom import registry
from absdom.domain import Dual, KnobStart, Recipe, Tuned
from absdom.errors import UsageError
from absdom.registry import register_recipe
from absdom.types import Clock

SHARES = ("rows", "boxes")
DECAY = 0.98  # of the steps, from one to the next


@register_recipe("ascent")
@dataclass(frozen=True)
class Ascent(Tuned):
    """Knobs by projected gradient ascent (Xu et al. 2021, alpha-CROWN, for slopes); 0 steps: the knobs' starts."""

    of: Dual
    steps: int = 20
    share: str = "rows"
    intermediate: bool = False
    name: ClassVar[str] = "ascent"

    def __post_init__(self):
        if not isinstance(self.of, Dual) or isinstance(self.of, Tuned):
            raise UsageError(f"ascent improves a dual such as crown; {getattr(self.of, 'name', self.of)} is none")
        if not isinstance(self.steps, int) or self.steps < 0:
            raise UsageError(f"steps {self.steps!r} is not a whole number of 0 or above")
        if self.share not in SHARES:
            raise UsageError(f"share {self.share!r} is not one of {', '.join(SHARES)}")

    @property
    def sweeps(self) -> float:
        """A step sweeps and goes back through what it did, which is worth two sweeps more."""
        return (1 + 3 * (self.steps + 1)) * self.of.sweeps

    def tune(self, bound, starts, goal, clock):
        if not starts:
            return {}
        return ascend(bound, starts, self.steps, clock, goal, DECAY)[1]


@register_recipe("alpha-crown")
def alpha_crown(steps: int = 20, share: str = "rows", intermediate: bool = False) -> Recipe:
    return Ascent(registry.recipes()["crown"](), steps, share, intermediate)


def ascend(
    bound: Callable[[dict], torch.Tensor],
    starts: Mapping[Hashable, KnobStart],
    steps: int,
    clock: Clock,
    goal: torch.Tensor | float | None = 0.0,
    decay: float = 0.95,
) -> tuple[torch.Tensor, dict]:
    """Maximise the sum of bound(knobs) "B" by Adam with projection; the best value and knobs of each problem.

    Every knob has the problems B as its leading axis. Problems whose bound is above `goal` (a number, or "B"; None:
    there is none) stop to matter. A deadline ends the ascent with what was reached.
    """
    live = {name: start.value.detach().clone().requires_grad_(True) for name, start in starts.items()}
    optimiser = torch.optim.Adam([{"params": [v], "lr": starts[n].rate} for n, v in live.items()], betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, decay)
    best, kept = None, {}
    for step in range(steps + 1):
        with torch.enable_grad():
            value = bound(live)
        with torch.no_grad():
            better = torch.ones_like(value, dtype=torch.bool) if best is None else (value > best) | best.isnan()
            best = value.detach().clone() if best is None else torch.fmax(best, value.detach())
            for name, tensor in live.items():
                mask = better.reshape(-1, *[1] * (tensor.dim() - 1))
                kept[name] = torch.where(mask, tensor.detach(), kept.get(name, tensor.detach()))
            left = torch.ones_like(best, dtype=torch.bool) if goal is None else ~(best > goal)
        if step == steps or clock.passed() or not bool(left.any()):
            break
        with torch.enable_grad():
            gradients = torch.autograd.grad(-value[left].sum(), list(live.values()), allow_unused=True)
        for tensor, gradient in zip(live.values(), gradients, strict=True):
            tensor.grad = gradient
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.clamp_(starts[name].low, starts[name].high)
    return best, kept
