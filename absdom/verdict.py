"""What a verification says, and on what grounds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from absdom.interface import Interface, Variable
from absdom.types import Program

WORDS = ("unsat", "sat", "unknown", "timeout")
EXIT_CODE = {"unsat": 0, "sat": 1, "error": 2, "unknown": 3, "timeout": 4}


@dataclass(frozen=True, eq=False)
class Witness:
    """A replayed counterexample: float32 inputs and the judge's own outputs, flat, and the clauses it satisfies."""

    x: np.ndarray
    y: np.ndarray
    clauses: tuple[int, ...]
    judge: str  # what computed y, with its version
    moved: int = 0  # inputs whose interval holds no float32 number: the nearest was used, and the point itself proved
    interface: Interface | None = None  # the tensors that a VNN-LIB 2 query declares

    def tensors(self) -> list[tuple[Variable, np.ndarray]]:
        """The declared tensors with their values, in the order of the query."""
        found, place = [], {"input": 0, "output": 0, "hidden": 0}
        place["hidden"] = sum(v.size for v in self.interface.of_kind("output"))
        for variable in self.interface.variables:
            start, values = place[variable.kind], self.x if variable.kind == "input" else self.y
            place[variable.kind] += variable.size
            found.append((variable, values[start : start + variable.size].reshape(variable.shape)))
        return found

    def text(self) -> str:
        """VNN-COMP's format: ((X_0 v) ... (Y_0 v) ...), each number printed so that it reads back exactly.

        For a VNN-LIB 2 query its own: a line with name, type and shape for each tensor, then its values, one a line.
        """
        if self.interface is not None:
            lines = [[str(v), *map(_number, values.ravel())] for v, values in self.tensors()]
            return "".join(f"{line}\n" for group in lines for line in group)
        lines = [f"(X_{i} {_number(v)})" for i, v in enumerate(self.x)]
        lines += [f"(Y_{i} {_number(v)})" for i, v in enumerate(self.y)]
        return "(" + "\n ".join(lines) + ")\n"


def _number(value) -> str:
    return np.format_float_positional(value, unique=True, trim="0")


@dataclass(frozen=True)
class StageReport:
    """What one stage of the ladder did."""

    name: str
    seconds: float
    rows_closed: int
    clauses_closed: int
    note: str = ""


@dataclass(frozen=True, eq=False)
class Result:
    """The answer of `absdom verify`. `best_bound` is the least over open clauses of the best lower bound of its rows
    (positive: proved); `leaves` counts the sub-problems that were bounded."""

    verdict: str
    guarantee: str
    seconds: float
    method: str
    stages: tuple[StageReport, ...] = ()
    leaves: int = 0
    best_bound: float | None = None
    clauses: int = 0
    clauses_open: int = 0
    witness: Witness | None = None
    reason: str = ""  # why unknown
    programs: tuple[Program, ...] = ()  # the predicted sizes of those that were asked for
    provenance: dict = field(default_factory=dict)  # sha256 of the files, versions, precision flags, seed, device

    @property
    def exit_code(self) -> int:
        return EXIT_CODE[self.verdict]

    def to_json(self) -> dict:
        witness = self.witness and {
            "x": [float(v) for v in self.witness.x],
            "y": [float(v) for v in self.witness.y],
            "clauses": list(self.witness.clauses),
            "judge": self.witness.judge,
            "inputs_without_float32": self.witness.moved,
        }
        return {
            "verdict": self.verdict,
            "guarantee": self.guarantee,
            "seconds": self.seconds,
            "method": self.method,
            "stages": [vars(s) for s in self.stages],
            "leaves": self.leaves,
            "best_bound": self.best_bound,
            "clauses": self.clauses,
            "clauses_open": self.clauses_open,
            "witness": witness,
            "reason": self.reason,
            "programs": [program.to_json() for program in self.programs],
            **self.provenance,
        }
