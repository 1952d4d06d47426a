"""What a training step asks about a batch: input sets, and rows that shall be positive on them.

A property is a conjunction of clauses, each of which is refuted by one positive row: classification has a clause per
other class with one row each, "the label's score is above this one". Margins are the values of the rows; every loss is
a function of margins, at points (clean, attacked) or of their lower bounds over the sets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf

import torch

from absdom.datasets import Ball
from absdom.errors import PropertyError
from absdom.set_parts import BallBatch
from absdom.sets import InputBatch


@dataclass(frozen=True, eq=False)
class Task:
    """Points x "B *n", a set around each, and rows C y + d of the outputs y "B K": C "B R K", d "B R" (None: zero).

    clause: "R", the number of the clause of each row, 0, 1, ...; None: each row is its own. `eps` is the radius that
    the sets were made with.
    """

    x: torch.Tensor
    sets: InputBatch
    C: torch.Tensor
    d: torch.Tensor | None = None
    clause: torch.Tensor | None = None
    eps: float = 0.0

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def clause_count(self) -> int:
        """How many clauses there are."""
        return self.C.shape[1] if self.clause is None else int(self.clause.max()) + 1

    def with_sets(self, sets: InputBatch) -> Task:
        """The same question about other sets."""
        return replace(self, sets=sets)

    def margins(self, outputs: torch.Tensor) -> torch.Tensor:
        """The rows "B R" at outputs "B K"."""
        values = torch.bmm(self.C, outputs.flatten(1)[:, :, None])[:, :, 0]
        return values if self.d is None else values + self.d

    def clauses(self, margins: torch.Tensor) -> torch.Tensor:
        """Per clause its greatest row, "B Q": what has to be positive. For lower bounds of rows: a lower bound."""
        if self.clause is None:
            return margins
        index = self.clause.expand(len(margins), -1)
        return margins.new_full((len(margins), self.clause_count), -inf).scatter_reduce(1, index, margins, "amax")

    def loss(self, margins: torch.Tensor) -> torch.Tensor:
        """log(1 + sum_q exp(-clause_q)), "B": for classification at a point this is the cross-entropy.

        It falls with every margin, so that of lower bounds it is at least the loss at any point of the set (Wong and
        Kolter 2018, Theorem 2).
        """
        below = -self.clauses(margins)
        return torch.logsumexp(torch.nn.functional.pad(below, (1, 0)), 1)

    def holds(self, margins: torch.Tensor) -> torch.Tensor:
        """Bool "B": every clause is positive. For lower bounds: the property is certified (up to rounding)."""
        return (self.clauses(margins) > 0).all(1)


class Specification(ABC):
    """What a network is trained to satisfy: makes a Task of each batch (x, y)."""

    @abstractmethod
    def task(self, x: torch.Tensor, y: torch.Tensor, eps: float, outputs: int) -> Task:
        """The question about points x "B *n" with y (labels, or whatever this specification takes), at radius eps, of
        a network with so many outputs."""

    @abstractmethod
    def check(self, x: torch.Tensor, y: torch.Tensor, outputs: int) -> None:
        """Raises PropertyError for a batch that does not fit (asked at each call of a loss).

        Of labels y that lie on the CPU; on another device a step should not wait for the answer.
        """


@dataclass(frozen=True)
class Classification(Specification):
    """The label's score is above all others on the l_p ball of radius eps, met with the range of the inputs.

    norm: inf, 2 or 1. clip: the range of the inputs, (0, 1) for images in [0, 1]; None: no range.
    """

    norm: float = inf
    clip: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self):
        Ball(0.0, self.norm, self.clip)  # checks both

    def check(self, x, y, outputs):
        if y.dtype not in (torch.int64, torch.int32, torch.uint8) or y.shape != x.shape[:1]:
            raise PropertyError(
                f"labels have shape {list(y.shape)} and type {y.dtype}: one whole number for each of {len(x)} items"
            )
        known = (y >= 0) & (y < outputs)
        if y.device.type != "cpu":  # to read it back would wait for all steps that are under way
            torch._assert_async(known.all(), f"labels are 0 to {outputs - 1}: the network has {outputs} outputs")
        elif not known.all():
            wrong = int(known.int().argmin())
            raise PropertyError(
                f"item {wrong} of the batch has the label {int(y[wrong])}: the network has {outputs} outputs, so "
                f"labels are 0 to {outputs - 1}"
            )

    def task(self, x, y, eps, outputs):
        return Task(x, ball_sets(x, eps, self.norm, self.clip), label_margins(y.long(), outputs, x.dtype), eps=eps)


def ball_sets(x: torch.Tensor, eps: float, norm: float, clip: tuple[float, float] | None) -> InputBatch:
    """The l_p balls around points "B *n", met with a range of the inputs."""
    x = x.flatten(1)
    low, high = x - eps, x + eps
    if clip is not None:  # where a point lies outside, the set is the point of the range next to it
        low, high = low.clamp(*clip), high.clamp(*clip)
    if norm == inf:
        return InputBatch(low, high)
    clipped = clip is not None and bool(((x - eps < clip[0]) | (x + eps > clip[1])).any())
    return InputBatch(low, high, (BallBatch(x, x.new_full((len(x), 1), eps), float(norm), clipped),))


def label_margins(labels: torch.Tensor, classes: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows e_y - e_j for the classes j != y, in order: "B K-1 K"."""
    eye = torch.eye(classes, dtype=dtype, device=labels.device)
    others = torch.arange(classes - 1, device=labels.device)[None]
    others = others + (others >= labels[:, None])
    return eye[labels][:, None] - eye[others]
