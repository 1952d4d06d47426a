"""What of a set of instances loads, agrees with onnxruntime and has bounds: one row per instance, nothing decided."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from absdom.cli.records import read_instances
from absdom.errors import AbsdomError
from absdom.progress import progress_bar


@dataclass
class Finding:
    """One instance. `reached`: the last step that held; `problem`: why the next one did not ("" if all hold)."""

    onnx: str
    vnnlib: str
    reached: str = "nothing"
    problem: str = ""
    clauses: int = 0
    rows: int = 0
    seconds: float = 0.0
    methods: dict = field(default_factory=dict)  # method asked for -> {ran, seconds, least, note}


@dataclass
class Survey:
    findings: list[Finding]

    @property
    def exceptions(self) -> list[Finding]:
        return [f for f in self.findings if f.problem]

    def to_json(self) -> dict:
        return {"instances": [asdict(f) for f in self.findings], "exceptions": len(self.exceptions)}

    def table(self) -> str:
        models = {f.onnx for f in self.findings}
        bad_models = {f.onnx for f in self.exceptions}
        lines = [f"{len(self.findings)} instances of {len(models)} models"]
        for method in dict.fromkeys(m for f in self.findings for m in f.methods):
            ran = [f.methods[method] for f in self.findings if method in f.methods]
            cheaper = sum(r["ran"] != method for r in ran)
            lines.append(
                f"{method}: {len(ran)} instances have finite bounds, {cheaper} of them by a cheaper method, "
                f"{sum(r['seconds'] for r in ran):.1f} s"
            )
        lines.append(f"{len(models) - len(bad_models)} models without exceptions; {len(self.exceptions)} exceptions")
        lines += [f"  {f.onnx} {f.vnnlib}: {f.problem} (got as far as: {f.reached})" for f in self.exceptions]
        return "\n".join(lines)


def run_survey(
    instances: str,
    methods: Sequence[str] = ("ibp", "crown"),
    *,
    points: int = 20,
    budget: float,
    limit: int | None = None,
    chat: Callable[[str], None] = lambda text: None,
) -> Survey:
    """Load, compare on `points` random points of the input sets, and bound each instance of a CSV file."""
    listed = read_instances(instances)[:limit]
    found = Survey([])
    with progress_bar(len(listed)) as advance:
        for instance in listed:
            finding = Finding(instance.onnx, instance.vnnlib)
            started = time.monotonic()
            try:
                _look(finding, instance, methods, points, budget)
            except (AbsdomError, MemoryError) as error:
                finding.problem = " ".join(str(error).split()) or type(error).__name__
            finding.seconds = time.monotonic() - started
            found.findings.append(finding)
            ran = ", ".join(f"{r['ran']} {r['seconds']:.2f} s" for r in finding.methods.values())
            chat(f"{instance.onnx} {instance.vnnlib}: {finding.problem or 'holds'} [{ran}]")
            advance(f"{len(found.exceptions)} exceptions")
            gc.collect()
    return found


def _look(finding: Finding, instance, methods, points: int, budget: float) -> None:
    from absdom import api

    task = api.read_task(instance.file(instance.onnx), instance.file(instance.vnnlib))
    finding.reached = "loaded"
    finding.clauses, finding.rows = task.property.spec.clauses, task.property.spec.rows
    problem, _ = api.make_problem(task, points=points)
    finding.reached = "agrees with onnxruntime"
    for method in methods:
        report = api.bound_problem(problem, *api.within_budget(problem, method, api.recipe_of(method), budget)[:2])
        least = min((v for _, _, v in report.rows), default=float("inf"))
        if not abs(least) < float("inf") and report.rows:
            raise AbsdomError(f"{report.method} gives the bound {least}")
        finding.methods[method] = {"ran": report.method, "seconds": report.seconds, "least": least}
        finding.reached = f"bounded by {method}"
