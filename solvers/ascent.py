"""Better bounds by gradient ascent on knobs: slopes in [0, 1] and multipliers >= 0. Every iterate is a valid bound."""

from __future__ import annotations

from collections.abc import Callable

import torch

from absdom.types import Clock


def ascend(
    bound: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    knobs: dict[str, torch.Tensor],
    limits: dict[str, tuple[float, float]],
    rates: dict[str, float],
    steps: int,
    clock: Clock,
    decay: float = 0.95,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Maximise the sum of bound(knobs) "B" by Adam with projection; the best value and knobs of each problem.

    Every knob has the problems B as its leading axis. Problems that are solved (bound > 0) stop to matter. A deadline
    ends the ascent with what was reached.
    """
    live = {name: value.detach().clone().requires_grad_(True) for name, value in knobs.items()}
    optimiser = torch.optim.Adam([{"params": [v], "lr": rates[n]} for n, v in live.items()], betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, decay)
    best, kept = None, {}
    for step in range(steps + 1):
        with torch.enable_grad():
            value = bound(live)
        with torch.no_grad():
            better = torch.ones_like(value, dtype=torch.bool) if best is None else value > best
            best = value.detach().clone() if best is None else torch.maximum(best, value.detach())
            for name, tensor in live.items():
                mask = better.reshape(-1, *[1] * (tensor.dim() - 1))
                kept[name] = torch.where(mask, tensor.detach(), kept.get(name, tensor.detach()))
        if step == steps or clock.passed() or bool((best > 0).all()):
            break
        optimiser.zero_grad()
        (-value[best <= 0].sum()).backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.clamp_(*limits[name])
    return best, kept
