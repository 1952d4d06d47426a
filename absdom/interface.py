"""The tensors that a VNN-LIB 2 query declares of its network, and the comparison of them with a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from absdom.errors import PropertyError
from absdom.types import TensorType

REAL = "real"  # the declared type that fits every element type of a network


@dataclass(frozen=True)
class Variable:
    """A declared tensor: kind is `input`, `hidden` or `output`; `onnx` names the value of a hidden one in the file."""

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    onnx: str = ""

    @property
    def size(self) -> int:
        return prod(self.shape)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{','.join(map(str, self.shape))}]"

    def fits(self, type: TensorType) -> bool:
        """Is this the type of a value of the network? Axes of size 1 count for nothing, but the element type does."""
        same = [s for s in self.shape if s != 1] == [s for s in type.shape if s != 1]
        return same and self.dtype in (REAL, type.dtype)


@dataclass(frozen=True)
class Interface:
    """The network that a query speaks of: its name there, and its tensors as they are declared."""

    network: str
    variables: tuple[Variable, ...]

    def of_kind(self, kind: str) -> tuple[Variable, ...]:
        return tuple(v for v in self.variables if v.kind == kind)

    @property
    def hidden(self) -> tuple[str, ...]:
        """Names, in the ONNX file, of the values inside the network that the query speaks of."""
        return tuple(v.onnx for v in self.of_kind("hidden"))

    def check(self, inputs: Sequence[TensorType], outputs: Sequence[TensorType]) -> None:
        """Raise PropertyError unless a network with these inputs and outputs (hidden values behind them) fits."""
        hidden = self.of_kind("hidden")
        split = len(outputs) - len(hidden)
        for kind, found in (("input", inputs), ("output", outputs[:split]), ("hidden", outputs[split:])):
            declared = self.of_kind(kind)
            if len(declared) != len(found):
                raise PropertyError(
                    f"network {self.network!r} is declared with {len(declared)} {kind}s, the model has {len(found)}: "
                    f"declare all of them, in the model's order"
                )
            for variable, type in zip(declared, found, strict=True):
                if not variable.fits(type):
                    raise PropertyError(
                        f"network {self.network!r}: the {kind} tensor is declared as {variable}, but in the model it "
                        f"is {type}"
                    )
