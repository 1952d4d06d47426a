"""Small value types that every floor of the house shares. No torch here: the CLI's help and checkers import this."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class TensorType:
    """Full shape of a node's value as ONNX has it (its own leading 1 included) and its element type."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def with_shape(self, shape) -> TensorType:
        return TensorType(tuple(int(s) for s in shape), self.dtype)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Source:
    """Where a node comes from: the ONNX node's name and op type, or the torch line. Only for messages."""

    name: str = ""
    op: str = ""

    def __str__(self) -> str:
        return f"{self.op} '{self.name}'" if self.op else (f"'{self.name}'" if self.name else "a node without a name")


@dataclass(frozen=True)
class Clock:
    """A deadline as a value: seconds are counted from `start` (a `time.monotonic` reading)."""

    limit: float = math.inf
    start: float = field(default_factory=time.monotonic)

    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def left(self) -> float:
        return self.limit - self.elapsed()

    def passed(self) -> bool:
        return self.left() <= 0


SHOWN_BLOCKS = 6  # orders of matrices that are listed one by one


class Size(NamedTuple):
    """How large an encoding is, or will be at most."""

    columns: int = 0
    rows: int = 0
    entries: int = 0
    binaries: int = 0
    quadratics: int = 0
    blocks: tuple[int, ...] = ()  # orders of the matrices of a semidefinite program
    megabytes: float = 0.0  # what a solver of it is expected to take
    layers: tuple[tuple[int, int], ...] = ()  # per part of the network: (variables of its own, defined by equalities)

    def __add__(self, other: Size) -> Size:
        return Size(*(a + b for a, b in zip(self, other, strict=True)))

    def __str__(self) -> str:
        parts = [f"{self.columns:,} variables", f"{self.rows:,} rows", f"{self.entries:,} entries"]
        parts += [f"{self.binaries:,} binaries"] if self.binaries else []
        parts += [f"{self.quadratics:,} quadratic forms"] if self.quadratics else []
        if self.blocks:
            count, few = len(self.blocks), len(self.blocks) <= SHOWN_BLOCKS
            orders = ", ".join(map(str, self.blocks)) if few else f"up to {max(self.blocks)}"
            parts.append(f"{'a matrix' if count == 1 else f'{count} matrices'} of order {orders}")
        return ", ".join(parts) + f", about {self.megabytes:,.{0 if self.megabytes >= 10 else 1}f} MB"

    def to_json(self) -> dict:
        return {
            "variables": self.columns, "rows": self.rows, "entries": self.entries, "binaries": self.binaries,
            "quadratic_forms": self.quadratics, "matrices": list(self.blocks), "megabytes": self.megabytes,
        }  # fmt: skip


class Program(NamedTuple):
    """The predicted size of the largest program of a method at a place in the network."""

    method: str
    place: str
    size: Size

    def __str__(self) -> str:
        return f"{self.method}: {self.size}, at {self.place}"

    def to_json(self) -> dict:
        return {"method": self.method, "at": self.place, **self.size.to_json()}


def largest(programs: Iterable[Program]) -> list[Program]:
    """The largest program of each method."""
    found: dict[str, Program] = {}
    for program in programs:
        if program.method not in found or program.size.megabytes > found[program.method].size.megabytes:
            found[program.method] = program
    return list(found.values())
