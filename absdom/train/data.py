"""Training data: tensors that stay on the device, in an order that (seed, epoch) decides.

Pixels stay uint8 until a batch is made of them, k -> k / 255 in float32. An epoch's order and augmentations are drawn
anew from (seed, epoch), so that a run can be resumed at any epoch, and so that several processes share each batch.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from absdom.datasets import flat_items, read_npz
from absdom.errors import PropertyError, UsageError

PIXEL = 255.0


def generator_of(seed: int, *more: int) -> torch.Generator:
    """A generator on the CPU that these numbers decide, and no other draws."""
    if seed < 0:
        raise UsageError(f"seed {seed} is below 0")
    generator = torch.Generator()
    generator.manual_seed(int(np.random.SeedSequence([seed, *more]).generate_state(1, np.uint64)[0] >> 1))
    return generator


class Augmentation(ABC):
    """A random change of images "B C H W", drawn before it is applied."""

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """What is random about `count` images, "count k"."""

    @abstractmethod
    def __call__(self, x: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """The images "B C H W" changed, each by its row of `drawn` "B k"."""


@dataclass(frozen=True)
class CropFlip(Augmentation):
    """A crop at a random place of the image with `padding` zeros on each side, then a flip of left and right with
    probability one half (`flip`)."""

    padding: int = 2
    flip: bool = True

    def draw(self, count, generator):
        places = torch.randint(0, 2 * self.padding + 1, (count, 2), generator=generator)
        return torch.cat([places, torch.randint(0, 2, (count, 1), generator=generator)], 1)

    def __call__(self, x, drawn):
        if x.dim() != 4:
            raise UsageError(f"crops and flips are of images, B C H W; these items have the shape {list(x.shape[1:])}")
        height, width = x.shape[2:]
        if self.padding:
            x = torch.nn.functional.pad(x, (self.padding,) * 4)
        rows = drawn[:, 0, None] + torch.arange(height, device=x.device)
        columns = drawn[:, 1, None] + torch.arange(width, device=x.device)
        if self.flip:
            columns = torch.where(drawn[:, 2, None] > 0, columns.flip(1), columns)
        item, channel = (torch.arange(n, device=x.device) for n in x.shape[:2])
        return x[item[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


class Batch(NamedTuple):
    """Points "B *n", and what the specification takes beside them "B ...", labels as a rule."""

    x: torch.Tensor
    y: torch.Tensor


class TrainingData:
    """N items x "N *n" (uint8 pixels, or float) and y "N ...", labels as a rule, on one device.

    batch: the most items of a batch; an epoch is split into as few batches as that allows, of nearly equal size.
    Raises PropertyError for data that are none.
    """

    def __init__(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        batch: int,
        *,
        augment: Augmentation | None = None,
        device: str | torch.device | None = None,
    ):
        if batch < 1:
            raise UsageError(f"batch {batch}: at least one item")
        if x.dtype != torch.uint8 and not x.is_floating_point():
            raise PropertyError(f"x is of type {x.dtype}: it has to be uint8 (pixels, divided by 255) or float")
        if x.dtype in (torch.float16, torch.bfloat16):
            raise UsageError(f"x is of type {x.dtype}: bounds in half precision are refused; give float32")
        if x.dim() < 2 or not len(x):
            raise PropertyError(f"x has the shape {list(x.shape)}: items lie along the first axis, at least one")
        if len(x) != len(y):
            raise PropertyError(f"{len(x)} items in x, {len(y)} in y")
        if x.is_floating_point() and not torch.isfinite(x).all():
            wrong = torch.nonzero(~torch.isfinite(x).flatten(1).all(1))[0, 0]
            raise PropertyError(f"x holds a NaN or an infinity in item {int(wrong)}")
        self.x, self.y, self.batch, self.augment = x.to(device), y.to(device), batch, augment

    def __len__(self) -> int:
        return len(self.x)

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return -(-len(self) // self.batch)

    def in_batches(self, epochs: float) -> int:
        """A number of epochs as a number of batches, rounded."""
        return round(epochs * self.batches)

    def size(self, k: int) -> int:
        """Items of batch k of an epoch."""
        return (k + 1) * len(self) // self.batches - k * len(self) // self.batches

    def epoch(self, epoch: int, seed: int = 0, rank: int = 0, processes: int = 1) -> Iterator[Batch]:
        """The batches of epoch 0, 1, ..., shuffled and augmented; of process `rank` of several: its part of each."""
        generator, device = generator_of(seed, epoch), self.x.device
        order = torch.randperm(len(self), generator=generator).to(device)
        drawn = None if self.augment is None else self.augment.draw(len(self), generator).to(device)
        end = 0
        for k in range(self.batches):
            start, end = end, end + self.size(k)
            items = order[start:end][rank::processes]
            if not len(items):
                raise UsageError(f"a batch of {end - start} items cannot be shared by {processes} processes")
            x = self.x[items]
            if drawn is not None:
                x = self.augment(x, drawn[start:end][rank::processes])
            yield Batch(as_points(x), self.y[items])

    def parts(self, rank: int = 0, processes: int = 1) -> Iterator[Batch]:
        """All items in order, as they are, in batches; of process `rank` of several: every so many-th."""
        x, y = self.x[rank::processes], self.y[rank::processes]
        for start in range(0, len(x), self.batch):
            yield Batch(as_points(x[start : start + self.batch]), y[start : start + self.batch])

    def held_out(self, count: int, seed: int = 0) -> tuple[TrainingData, TrainingData]:
        """Two parts: the items to train on, and `count` items drawn from them to evaluate on (not augmented)."""
        if not 0 < count < len(self):
            raise UsageError(f"{count} of {len(self)} items cannot be held out: at least one, and not all")
        order = torch.randperm(len(self), generator=generator_of(seed)).to(self.x.device)
        kept, held = order[count:].sort().values, order[:count].sort().values
        return (
            TrainingData(self.x[kept], self.y[kept], self.batch, augment=self.augment),
            TrainingData(self.x[held], self.y[held], self.batch),
        )

    def range(self) -> tuple[float, float]:
        """The least and the greatest value of a point."""
        least, most = (float(t) for t in torch.aminmax(self.x))
        return (least / PIXEL, most / PIXEL) if self.x.dtype == torch.uint8 else (least, most)

    def fingerprint(self) -> dict:
        """What tells these data from others: plain values."""
        digest = hashlib.sha256()
        for array in (self.x, self.y):
            digest.update(np.ascontiguousarray(array.cpu().numpy()).data)
        return {
            "items": len(self), "shape": list(self.x.shape[1:]), "type": str(self.x.dtype), "batch": self.batch,
            "augment": repr(self.augment), "sha256": digest.hexdigest(),
        }  # fmt: skip


def as_points(x: torch.Tensor) -> torch.Tensor:
    """Values as a network gets them: a pixel k is the float32 number k / 255."""
    return x.to(torch.float32) / PIXEL if x.dtype == torch.uint8 else x


def read_training(
    path: str | Path,
    batch: int,
    *,
    shape: tuple[int, ...] | None = None,
    outputs: int | None = None,
    part: str = "train",
    augment: Augmentation | None = None,
    device: str | torch.device | None = None,
) -> TrainingData:
    """Points and labels of an .npz file: `x_train` and `y_train`, or `x` and `y` (part "test": `x_test`, `y_test`).

    shape: that of a network's input without its batch axis; items are reshaped to it, [28, 28] to [1, 28, 28] or
    [784], and images with channels last are transposed where only so they fit. None: as in the file. outputs: of the
    network; labels have to be below. Raises PropertyError for arrays that do not fit, with the file's name.
    """
    if part not in ("train", "test"):
        raise UsageError(f"part {part!r} of a file: choose train or test")
    names = {axis: (f"{axis}_{part}", axis) for axis in ("x", "y")}
    arrays, present = read_npz(path, [name for pair in names.values() for name in pair])

    def fail(text: str):
        raise PropertyError(f"{path}: {text}")

    chosen = {}
    for axis, pair in names.items():
        found = [name for name in pair if name in arrays]
        if found == list(pair):
            fail(f"has both {pair[0]!r} and {pair[1]!r}: leave one of them out")
        if not found:
            fail(f"has neither {pair[0]!r} nor {pair[1]!r}, only {', '.join(map(repr, present)) or 'nothing'}")
        chosen[axis] = found[0]
    x, y = (arrays[chosen[axis]] for axis in ("x", "y"))
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        fail(f"{chosen['x']!r} is of type {x.dtype}: it has to be uint8 (pixels, divided by 255) or float")
    if x.ndim < 2:
        fail(f"{chosen['x']!r} has the shape {list(x.shape)}: items lie along the first axis, numbers along the others")
    if shape is not None:
        flat = flat_items(x, [tuple(shape)])
        if flat is None:
            fail(f"{chosen['x']!r} has items of the shape {list(x.shape[1:])}; the network takes {list(shape)}")
        x = flat.reshape(len(x), *shape)
    y = y.reshape(len(y), -1)[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.dtype.kind not in "iuf" or y.ndim != 1 or len(y) != len(x):
        fail(f"{chosen['y']!r} is an array {y.dtype} {list(y.shape)}: one whole number for each of {len(x)} items")
    wrong = ~np.isfinite(y) | (y != np.round(y)) | (y < 0) | (y >= (np.inf if outputs is None else outputs))
    if wrong.any():
        item = int(np.argmax(wrong))
        fail(
            f"{chosen['y']!r} holds the label {y[item]:g} in item {item}: labels are whole numbers from 0"
            + ("" if outputs is None else f" to {outputs - 1}, the network has {outputs} outputs")
        )
    x = x if x.dtype == np.uint8 else x.astype(np.float32)
    try:
        return TrainingData(
            torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y.astype(np.int64)), batch,
            augment=augment, device=device,
        )  # fmt: skip
    except PropertyError as error:
        raise PropertyError(f"{path}: {error}") from None
