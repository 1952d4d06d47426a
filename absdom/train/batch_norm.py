"""Whose statistics the batch norms of a training step use (the published methods differ; see the losses).

While a network trains, bounds need fixed statistics: with them a batch norm is affine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from absdom.errors import UsageError

SOURCES = ("clean", "attacked", "running")


@dataclass(frozen=True)
class BatchNormPolicy:
    """source: `clean` (the clean pass of the batch, used by attacks and bounds too; gradients reach it), `attacked`
    (attacks run on the running statistics, the pass at the attacked points sets those of the bounds) or `running` (the
    running statistics everywhere: nothing moves them).

    population: when an epoch (or training) ends, the running statistics become those of the whole training set.
    """

    source: str = "clean"
    population: bool = True

    def __post_init__(self):
        if self.source not in SOURCES:
            raise UsageError(f"batch norm statistics of {self.source!r}: choose one of {', '.join(SOURCES)}")

    def batch(self, live) -> bool:
        """Does a pass of this policy normalise with its own batch?"""
        return self.source != "running" and bool(live.norms)


CLEAN, ATTACKED, RUNNING = (BatchNormPolicy(s) for s in SOURCES)


@torch.no_grad()
def set_population_statistics(module: torch.nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Running statistics := the mean, over all batches "B *n", of their own (momentum 1/k at batch k)."""
    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    before, mode = [m.momentum for m in norms], module.training
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # torch's cumulative mean
    module.train()
    try:
        for x in batches:
            module(x)
    finally:
        module.train(mode)
        for m, momentum in zip(norms, before, strict=True):
            m.momentum = momentum
