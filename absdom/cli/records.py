"""Instances and results of a campaign: CSV in, rows, CSV and a table out."""

from __future__ import annotations

import csv
import io
import math
import os
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from absdom.errors import UsageError

COLUMNS = ("benchmark", "onnx", "vnnlib", "timeout", "verdict", "seconds", "method", "consensus", "note")
DECIDED = ("sat", "unsat")


@dataclass(frozen=True)
class Instance:
    """One line of an instances file; `onnx` and `vnnlib` as written there, `folder` is where they start from."""

    onnx: str
    vnnlib: str
    timeout: float
    benchmark: str
    consensus: str
    folder: Path

    @property
    def key(self) -> tuple[str, str]:
        return self.onnx, self.vnnlib

    def file(self, path: str) -> str:
        """The path to open; competition repositories list `net.onnx` and keep `net.onnx.gz`."""
        plain = self.folder / path
        packed = plain.with_name(plain.name + ".gz")
        return str(packed if packed.is_file() and not plain.exists() else plain)


@dataclass(frozen=True)
class Row:
    """One line of a results file; `timeout` is the one that was applied, the cap included."""

    benchmark: str
    onnx: str
    vnnlib: str
    timeout: float
    verdict: str
    seconds: float
    method: str
    consensus: str
    note: str

    @property
    def wrong(self) -> bool:
        return self.verdict in DECIDED and self.consensus in DECIDED and self.verdict != self.consensus

    def fields(self) -> list[str]:
        return [
            self.benchmark, self.onnx, self.vnnlib, f"{self.timeout:g}", self.verdict, f"{self.seconds:.3f}",
            self.method, self.consensus, self.note,
        ]  # fmt: skip


def read_instances(path: str) -> list[Instance]:
    """Instances of a CSV file: with a header that names onnx, vnnlib, timeout (and perhaps benchmark, consensus, ...),
    or without one and the three columns in this order."""
    file = Path(path)
    with file.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle)
        lines = [(reader.line_num, [cell.strip() for cell in line]) for line in reader if any(map(str.strip, line))]
    if not lines:
        raise UsageError(f"{path}: the file has no instances")
    names = ["onnx", "vnnlib", "timeout"]
    if "onnx" in lines[0][1] and "vnnlib" in lines[0][1]:
        names = lines.pop(0)[1]
        if "timeout" not in names:
            raise UsageError(f"{path}: the header has no column `timeout`")
    return [_instance(path, number, dict(zip(names, line)), file.resolve().parent) for number, line in lines]


def _instance(path: str, number: int, cells: dict[str, str], folder: Path) -> Instance:
    for name in ("onnx", "vnnlib", "timeout"):
        if not cells.get(name):
            raise UsageError(f"{path}, line {number}: the column {name} is empty")
    try:
        timeout = float(cells["timeout"])
    except ValueError:
        timeout = math.nan
    if not timeout > 0:
        raise UsageError(f"{path}, line {number}: the timeout {cells['timeout']!r} is not a number of seconds above 0")
    parts = Path(cells["onnx"]).parts
    first = parts[0] if len(parts) > 1 and not Path(cells["onnx"]).is_absolute() else folder.name
    benchmark = cells.get("benchmark") or first
    return Instance(cells["onnx"], cells["vnnlib"], timeout, benchmark, cells.get("consensus", ""), folder)


def read_results(path: str) -> list[Row]:
    """The rows of a results file; [] if there is none. A last line cut short by a kill is removed from the file."""
    file = Path(path)
    if not file.exists():
        return []
    text = file.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        os.truncate(file, len(whole))
    lines = list(csv.reader(io.StringIO(whole.decode("utf-8"), newline="")))
    if not lines:
        return []
    if tuple(lines[0]) != COLUMNS:
        raise UsageError(f"{path}: the file exists and is no results file of a campaign; name another with --out")
    rows = []
    for cells in lines[1:]:
        if len(cells) != len(COLUMNS):
            raise UsageError(f"{path}: a row has {len(cells)} columns, not {len(COLUMNS)}: {','.join(cells)[:80]}")
        values = dict(zip(COLUMNS, cells))
        values["timeout"], values["seconds"] = float(values["timeout"]), float(values["seconds"])
        rows.append(Row(**values))
    return rows


@dataclass
class Outcome:
    """The rows of a campaign, those of earlier runs included."""

    rows: list[Row] = field(default_factory=list)

    @property
    def wrong(self) -> list[Row]:
        return [row for row in self.rows if row.wrong]

    def table(self) -> str:
        """One line per benchmark, and what contradicts the consensus."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.benchmark, []).append(row)
        lines = [_summary(name, rows) for name, rows in sorted(groups.items())]
        if len(groups) > 1:
            lines.append(_summary("all", self.rows))
        head = ["benchmark", "instances", "solved", "sat", "unsat", "unknown", "timeout", "error", "WRONG", "median s"]
        widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
        text = [
            "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
            for line in [head, *lines]
        ]
        text += [
            f"WRONG: {row.onnx} {row.vnnlib}: {row.verdict}, the consensus is {row.consensus}" for row in self.wrong
        ]
        return "\n".join(text)


def _summary(name: str, rows: Sequence[Row]) -> list[str]:
    count = Counter(row.verdict for row in rows)
    numbers = [
        len(rows),
        count["sat"] + count["unsat"],
        *(count[v] for v in ("sat", "unsat", "unknown", "timeout", "error")),
    ]
    wrong = sum(row.wrong for row in rows)
    return [name, *map(str, numbers), str(wrong), f"{statistics.median(row.seconds for row in rows):.2f}"]
