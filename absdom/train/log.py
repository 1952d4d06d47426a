"""What a run says of itself: means over the batches of an epoch, and a file with one JSON record per epoch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

import torch

from absdom.files import plain, write_atomic
from absdom.train.loss import Output

CHECKED = ("loss", "terms", "gradient_norm")  # what has to be finite


class Meter:
    """Means of an epoch's figures, weighted by items. Figures stay on the device until they are read, every so many
    batches: reading waits for all that was started.
    """

    def __init__(self, every: int):
        self.every, self.loss = every, None
        self._sums: dict[tuple[str, ...], float] = {}
        self._items: dict[tuple[str, ...], int] = {}
        self._waiting: list[tuple[int, int, tuple, torch.Tensor]] = []

    def add(self, step: int, out: Output, gradient_norm: torch.Tensor, items: int) -> list[str]:
        """The figures of batch number `step`; where it was time to read, what was not finite (see `read`)."""
        figures = {("loss",): out.total.detach(), ("gradient_norm",): gradient_norm.detach()}
        figures |= {("terms", name): value for name, value in out.terms.items()}
        if out.outputs is not None:
            figures["train", "clean"] = out.task.holds(out.task.margins(out.outputs)).mean(dtype=torch.float64)
        if out.margins is not None:
            figures["train", "certified"] = out.task.holds(out.margins).mean(dtype=torch.float64)
        values = torch.stack([value.to(torch.float64) for value in figures.values()])
        self._waiting.append((step, items, tuple(figures), values))
        return self.read() if len(self._waiting) >= self.every else []

    def read(self) -> list[str]:
        """Read what was added; the figures of the first batch that has some which are not finite, in words."""
        waiting, self._waiting = self._waiting, []
        rows = torch.cat([values for *_, values in waiting]).tolist() if waiting else []
        for step, items, names, values in waiting:
            row, rows = rows[: len(values)], rows[len(values) :]
            bad = [(name, v) for name, v in zip(names, row) if name[0] in CHECKED and not isfinite(v)]
            if bad:
                return [f"step {step}", *(f"{_spoken(name)} is {value}" for name, value in bad)]
            for name, value in zip(names, row):
                self._sums[name] = self._sums.get(name, 0.0) + value * items
                self._items[name] = self._items.get(name, 0) + items
            self.loss = row[0]
        return []

    def sums(self) -> dict[str, tuple[float, int]]:
        """By name: the sum of value x items, and the items. Terms are `terms.NAME`, accuracies `train.NAME`."""
        return {".".join(name): (self._sums[name], self._items[name]) for name in self._sums}


def _spoken(name: Sequence[str]) -> str:
    return {"loss": "the loss", "gradient_norm": "the norm of the gradient"}.get(name[0]) or f"the term {name[1]!r}"


def nested(figures: dict[str, float]) -> dict:
    """{"terms.bound": 1.0} -> {"terms": {"bound": 1.0}}."""
    found: dict = {}
    for name, value in figures.items():
        group, _, rest = name.partition(".")
        if rest:
            found.setdefault(group, {})[rest] = value
        else:
            found[group] = value
    return found


def write_log(path: Path, records: Sequence[dict]) -> None:
    """A log with exactly these records."""
    write_atomic(path, "".join(_line(record) for record in records))


def append_log(path: Path, record: dict) -> None:
    with open(path, "a", encoding="utf-8", newline="") as file:
        file.write(_line(record))


def _line(record: dict) -> str:
    return json.dumps(plain(record), allow_nan=False) + "\n"
