"""Many instances, each in a process of its own: a crash, a hang or a lack of memory costs one row, not the run."""

from __future__ import annotations

import csv
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from absdom.cli.records import COLUMNS, DECIDED, Instance, Outcome, Row, read_instances, read_results
from absdom.cli.runner import Runner, run_all
from absdom.errors import UsageError
from absdom.progress import progress_bar

VERIFY = (sys.executable, "-m", "absdom", "verify")
GRACE = 10.0  # seconds beyond the timeout before a process is killed: start-up and the last confirming pass


def run_campaign(
    instances: str,
    out: str,
    *,
    timeout_cap: float = math.inf,
    limit: int | None = None,
    jobs: int = 1,
    method: str = "auto",
    command: Sequence[str] = VERIFY,
    grace: float = GRACE,
    chat: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Verify the instances of a CSV file, `jobs` at a time; append each row to `out` when it is known.

    Rows that `out` already has, by (onnx, vnnlib), are not run again. `command` is called with model, property,
    `--timeout S`, `--json FILE` and, where it is not auto, `--method RECIPE`. Raises UsageError when a file cannot be
    used, also where its rows are of another method; a failing instance is a row.
    """
    rows = read_results(out)
    others = sorted({row.method for row in rows} - {"", method})
    if others and method != "auto":
        raise UsageError(f"{out}: its rows are of the method {others[0]}, not {method}: name another file with --out")
    outcome, fresh = _split(read_instances(instances)[:limit], rows)
    if outcome.rows:
        chat(
            f"{out}: {len(outcome.rows)} of {len(outcome.rows) + len(fresh)} instances are there and are not run again"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    command = [*command, "--method", method] if method != "auto" else command
    runner = Runner(command, grace, max(1, cores // jobs) if jobs > 1 else None)
    with open(out, "a", encoding="utf-8", newline="") as file, progress_bar(len(fresh)) as advance:
        writer = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            writer.writerow(COLUMNS)
            file.flush()
        for row in run_all(runner, [(i, min(i.timeout, timeout_cap)) for i in fresh], jobs):
            writer.writerow(row.fields())
            file.flush()
            outcome.rows.append(row)
            advance(_standing(outcome, row))
    return outcome


def _split(instances: Iterable[Instance], rows: Iterable[Row]) -> tuple[Outcome, list[Instance]]:
    """What earlier rows answer, and what is left to run. An instance listed twice needs two rows."""
    earlier: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        earlier.setdefault((row.onnx, row.vnnlib), []).append(row)
    outcome, fresh = Outcome(), []
    for instance in instances:
        found = earlier.get(instance.key)
        if found:
            outcome.rows.append(replace(found.pop(0), consensus=instance.consensus))
        else:
            fresh.append(instance)
    return outcome, fresh


def _standing(outcome: Outcome, row: Row) -> str:
    solved = sum(r.verdict in DECIDED for r in outcome.rows)
    wrong = f", WRONG {len(outcome.wrong)}" if outcome.wrong else ""
    return f"solved {solved}{wrong}; last: {row.verdict} {Path(row.onnx).name}"
