"""Small value types that every floor of the house shares. No torch here: the CLI's help and checkers import this."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field


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
