"""Several processes that train one network (torchrun): each works on its share of every batch, gradients are averaged.

Bounds read the parameters themselves and not through a module's forward, so what DistributedDataParallel wraps is a
module whose forward is the loss.
"""

from __future__ import annotations

import atexit
import os
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import distributed

from absdom.api import pick_device
from absdom.errors import UsageError
from absdom.train.loss import Loss, Output


@dataclass(frozen=True)
class Processes:
    """This process's number among how many; with one, nothing is exchanged."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"  # of the tensors that are exchanged

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sums(self, values: dict[str, float]) -> dict[str, float]:
        """The sum over all processes of each number; all have the same names."""
        if self.count == 1:
            return values
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return dict(zip(values, total.tolist(), strict=True))

    def gather(self, value) -> list:
        """The (plain) value of each process, by rank."""
        if self.count == 1:
            return [value]
        found = [None] * self.count
        distributed.all_gather_object(found, value)
        return found

    def average_(self, tensors: list[torch.Tensor]) -> None:
        """Put the mean over all processes into each tensor; whole numbers stay."""
        for t in tensors:
            if self.count > 1 and t.is_floating_point():
                distributed.all_reduce(t)
                t /= self.count


def own_device(device: str) -> str:
    """`auto`, `cpu` or `cuda` -> the device of this process: of several GPUs the one that torchrun numbers it with.

    Raises UsageError where that is not there.
    """
    device, number = pick_device(device), os.environ.get("LOCAL_RANK")
    if device != "cuda" or number is None:
        return device
    if int(number) >= torch.cuda.device_count():
        raise UsageError(
            f"process {number} (LOCAL_RANK) has no GPU of its own, there are {torch.cuda.device_count()}: start as "
            "many processes on this machine (--nproc-per-node)"
        )
    return f"cuda:{number}"


def joined(device: torch.device) -> Processes:
    """The process group that torchrun asks for (gloo on CPUs, nccl on GPUs), or one that was made before.

    It is made once in a process and left at its end: under torchrun a second one would meet what the first one left.
    """
    if not distributed.is_initialized():
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return Processes()
        if device.type == "cuda":
            torch.cuda.set_device(device)  # plain values are exchanged by way of the current GPU
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    where = str(device) if distributed.get_backend() == "nccl" else "cpu"
    return Processes(distributed.get_rank(), distributed.get_world_size(), where)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


class _LossModule(torch.nn.Module):
    """The loss as a module over the trained module's parameters; its last output beside it."""

    def __init__(self, loss: Loss):
        super().__init__()
        self.module, self.loss, self.out = loss.module, loss, None

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.out = self.loss(x, y)
        return self.out.total


class Backward:
    """The backward pass of a loss over a batch in pieces, with the gradients of all processes averaged."""

    def __init__(self, loss: Loss, processes: Processes):
        self.loss, self.wrapped = loss, None
        if processes.count > 1:
            # A loss need not use all parameters at each step (a term that a schedule switches off).
            self.wrapped = torch.nn.parallel.DistributedDataParallel(_LossModule(loss), find_unused_parameters=True)

    def __call__(self, x: torch.Tensor, y: torch.Tensor, weight: float, last: bool = True) -> Output:
        """Adds weight x the gradient of the total; processes exchange theirs in the last piece."""
        if self.wrapped is None:
            out = self.loss(x, y)
            (out.total * weight).backward()
            return out
        with nullcontext() if last else self.wrapped.no_sync():
            (self.wrapped(x, y) * weight).backward()
        return self.wrapped.module.out
