"""The commands: arguments to calls of `absdom.api`, results to text. Returns exit codes."""

from __future__ import annotations

import argparse
import importlib
import math
import sys

from absdom.allocator import keep_freed_memory
from absdom.cli import ball, query
from absdom.cli import certify as certifying
from absdom.cli import distance as distances
from absdom.cli import export as exporting
from absdom.cli import train as training
from absdom.cli.output import check_writable, to_json
from absdom.errors import AbsdomError, UsageError
from absdom.files import write_atomic
from absdom.types import largest

SHOWN_VALUES = 16  # longer witnesses go to a file, not to the screen
SHOWN_ROWS = 40


def run(args: argparse.Namespace) -> int:
    return COMMANDS[args.command](args)


def _api(args: argparse.Namespace):
    """`absdom.api`, after the plug-ins of the command line have registered what they bring."""
    keep_freed_memory()
    registry = importlib.import_module("absdom.registry")
    for path in args.plugin:
        try:
            registry.load_plugin(path)
        except AbsdomError:
            raise
        except Exception as error:
            raise UsageError(f"plug-in {path}: {type(error).__name__}: {error}") from error
    return importlib.import_module("absdom.api")


def _chat(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def verify(args: argparse.Namespace) -> int:
    check_writable("--json", args.json)
    check_writable("--counterexample", args.counterexample)
    api = _api(args)
    more = {}
    if args.network:
        model, prop, more["network"] = query.read(args)
        asked = {}
    elif args.serialise_assignments:
        raise UsageError("--serialise-assignments goes with --network NAME=MODEL")
    else:
        model, prop, asked = ball.read(args)
    result = api.verify(
        model, prop, timeout=args.timeout, method=args.method, device=args.device,
        attack=not args.no_attack, seed=args.seed, progress=_chat, started=args.started,
        **more,
    )  # fmt: skip
    result.provenance.update(asked)
    try:
        if args.counterexample and result.witness is not None:
            write_atomic(args.counterexample, result.witness.text())
        if args.json and args.json != "-":
            write_atomic(args.json, to_json(result.to_json()))
    except OSError as error:
        raise UsageError(f"the verdict is {result.verdict}, but {error.filename}: {error.strerror}") from error
    if args.network:
        return query.answer(result, args.serialise_assignments, _story(result), api.serialise_assignments)
    print(result.verdict)
    if args.json == "-":
        print(to_json(result.to_json()), end="")
    else:
        print(_story(result))
    return result.exit_code


def _story(result) -> str:
    """The lines under the verdict, for people."""
    open_clauses = f"{result.clauses_open} of {result.clauses} clauses open"
    bound = "" if result.best_bound is None else f", best bound {result.best_bound:.6g}"
    why = f": {result.reason}" if result.reason else ""
    headline = {
        "unsat": f"property holds: {result.clauses} clauses refuted{bound}",
        "sat": "property VIOLATED: the witness below is a counterexample",
        "unknown": f"not decided{why}; {open_clauses}{bound}",
        "timeout": f"out of time{why}; {open_clauses}{bound}",
    }[result.verdict]
    lines = [headline]
    for stage in result.stages:
        note = f"  {stage.note}" if stage.note else ""
        lines.append(f"  {stage.name:<12} {stage.seconds:8.3f} s  {stage.clauses_closed:>6} clauses closed{note}")
    lines.append(
        f"{result.seconds:.3f} s, method {result.method}, {result.leaves} leaves, guarantee {result.guarantee}"
    )
    lines += map(str, largest(result.programs))
    if result.witness is not None:
        lines += _witness(result.witness)
    return "\n".join(lines)


def _witness(witness) -> list[str]:
    where = ", ".join(map(str, witness.clauses))
    lines = [f"witness (clause {where}; outputs by {witness.judge}):"]
    if witness.moved:
        lines.append(f"  {witness.moved} inputs have no float32 number in their interval: the nearest one is shown")
    if len(witness.x) + len(witness.y) > SHOWN_VALUES:
        return [*lines, f"  {len(witness.x)} inputs, {len(witness.y)} outputs: write them with --counterexample FILE"]
    return [*lines, *(f"  {line}" for line in witness.text().rstrip().splitlines())]


def bound(args: argparse.Namespace) -> int:
    check_writable("--json", args.json)
    report = _api(args).bound(
        args.model, args.property, method=args.method, device=args.device, budget=args.budget, progress=_chat
    )
    text = to_json(report.to_json()) if args.json else ""
    if args.json == "-":
        print(text, end="")
        return 0
    if args.json:
        write_atomic(args.json, text)
    print(f"{'clause':>7} {'row':>5} {'lower bound':>16}")
    for clause, row, lower in report.rows[:SHOWN_ROWS]:
        print(f"{clause:>7} {row:>5} {lower:>16.8g}")
    if len(report.rows) > SHOWN_ROWS:
        print(f"  and {len(report.rows) - SHOWN_ROWS} rows more: write them with --json FILE")
    least = min((lower for _, _, lower in report.rows), default=math.inf)
    print("".join(f"{program}\n" for program in largest(report.programs)), end="")
    print(
        f"{len(report.rows)} rows, least {least:.8g}, method {report.method}, {report.seconds:.3f} s, "
        f"peak {report.peak_mb:.1f} MB"
    )
    return 0


def certify(args: argparse.Namespace) -> int:
    _api(args)
    return certifying.run(args)


def distance(args: argparse.Namespace) -> int:
    _api(args)
    return distances.run(args)


def export(args: argparse.Namespace) -> int:
    _api(args)
    return exporting.run(args)


def train(args: argparse.Namespace) -> int:
    _api(args)
    return training.run(args)


def plan(args: argparse.Namespace) -> int:
    print(_api(args).plan(args.model, args.property, method=args.method))
    return 0


def supports(args: argparse.Namespace) -> int:
    print("\n".join(_api(args).supports(args.capability)))
    return 0


def coverage(args: argparse.Namespace) -> int:
    print(_api(args).coverage())
    return 0


def info(args: argparse.Namespace) -> int:
    for key, value in _api(args).info(args.model).items():
        print(f"{key}: {_listed(value)}")
    return 0


def _listed(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {count}" for key, count in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    text = str(value)
    return "\n  " + text.replace("\n", "\n  ") if "\n" in text else text


def survey(args: argparse.Namespace) -> int:
    check_writable("--json", args.json)
    _api(args)
    from absdom.cli import survey as surveys

    methods = [m for m in args.methods.split(",") if m]
    found = surveys.run_survey(
        args.instances, methods, points=args.points, budget=args.budget, limit=args.limit, chat=_chat
    )
    if args.json:
        write_atomic(args.json, to_json(found.to_json()))
    print(found.table())
    return 1 if found.exceptions else 0


def campaign(args: argparse.Namespace) -> int:
    from absdom.cli import campaign as campaigns

    check_writable("--out", args.out)
    if args.method != "auto":
        importlib.import_module("absdom.api").recipe_of(args.method)
    outcome = campaigns.run_campaign(
        args.instances, args.out, timeout_cap=args.timeout_cap, limit=args.limit, jobs=args.jobs, method=args.method,
        chat=_chat,
    )  # fmt: skip
    print(outcome.table())
    return 1 if outcome.wrong else 0


COMMANDS = {
    f.__name__: f
    for f in (verify, bound, certify, distance, train, export, plan, supports, coverage, info, survey, campaign)
}
