"""The command line: argparse, dispatch, exit codes. Commands and torch are imported when a command runs, not before."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
import traceback
import warnings
from typing import NoReturn

from absdom import __version__
from absdom.cli import ball, certify, distance, export, query, train
from absdom.errors import AbsdomError, UsageError

ERROR, INTERRUPTED = 2, 130
DEVICES = ("auto", "cpu", "cuda")
UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}  # of times, in seconds

METHODS = "a name (ibp, crown, alpha-crown, lp, sdp, sdp-fo, milp ...) or a recipe"

_EXIT_CODES = "exit codes of verify: 0 unsat (the property holds), 1 sat (violated), 2 error, 3 unknown, 4 timeout"


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing several lines of usage: every error is one line. No abbreviated options."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def positive_seconds(text: str) -> float:
    """A time above 0 in seconds, also written `500ms`, `10s`, `2m`, `1h`; argparse turns the error into a message that
    names the option."""
    number, unit = next(((text[: -len(u)], u) for u in ("ms", "s", "m", "h") if text.endswith(u)), (text, "s"))
    try:
        value = float(number) * UNITS[unit]
    except ValueError:
        value = math.nan
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0 (or 500ms, 10s, 2m, 1h)")
    return value


def positive_count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def seed_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or above (and below 2**63)")
    return int(text)


def build_parser(alone: bool = False) -> argparse.ArgumentParser:
    """`alone`: `verify` may go without PROPERTY. (Always optional, it could not follow an option.)"""
    parser = _Parser(
        prog="absdom",
        description="Prove properties of neural networks, or find counterexamples.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--name", action="version", version="absdom", help="show the solver's name and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    plugin = _Parser(add_help=False)
    plugin.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE",
        help="run this Python file first: it registers ops, domains",
    )
    model = _Parser(add_help=False)
    model.add_argument("model", metavar="MODEL", help="network: .onnx or .onnx.gz")
    instance = _Parser(add_help=False, parents=[model])
    instance.add_argument("property", metavar="PROPERTY", help="property: .vnnlib or .vnnlib.gz")

    def add(name: str, parents: list, help: str, **kwargs) -> argparse.ArgumentParser:
        return commands.add_parser(name, parents=[*parents, common], help=help, description=help, **kwargs)

    verify = add(
        "verify", [model, plugin], "decide whether the property holds; the first line of stdout is the verdict",
        epilog=_EXIT_CODES,
    )  # fmt: skip
    verify.add_argument("property", metavar="PROPERTY", nargs="?" if alone else None, help="property: .vnnlib[.gz]")
    ball.add_options(verify)
    query.add_options(verify)
    verify.add_argument(
        "--timeout", type=positive_seconds, default=math.inf, metavar="S", help="seconds (default: none)"
    )
    verify.add_argument("--method", default="auto", metavar="RECIPE", help=f"auto, {METHODS} (default: auto)")
    verify.add_argument("--device", choices=DEVICES, default="auto", help="default: auto")
    verify.add_argument("--no-attack", action="store_true", help="do not search for counterexamples by gradients")
    verify.add_argument("--seed", type=seed_number, default=0, metavar="N", help="seed of the search (default: 0)")
    verify.add_argument(
        "--counterexample", metavar="FILE", help="write the witness of a sat here, in VNN-COMP's format"
    )
    verify.add_argument(
        "--json", metavar="FILE|-", help="write the whole result as JSON; -: to stdout, after the verdict"
    )

    budget = _Parser(add_help=False)
    budget.add_argument(
        "--budget", type=positive_seconds, default=600.0, metavar="S",
        help="seconds, by prediction: take crown-ibp, or ibp, where a method needs more (default: 600)",
    )  # fmt: skip
    bound = add("bound", [instance, plugin, budget], "print a lower bound of every row of the property")
    bound.add_argument(
        "--method", required=True, metavar="RECIPE",
        help=f"{METHODS}; auto: the most precise linear one that the budget allows",
    )  # fmt: skip
    bound.add_argument("--device", choices=DEVICES, default="auto", help="default: auto")
    bound.add_argument("--json", metavar="FILE|-", help="write rows, seconds and peak_mb as JSON; -: to stdout")

    certifying = add("certify", [plugin], "prove labels on balls around the items of a data set, and print the errors")
    certify.add_options(certifying, positive_count, positive_seconds, DEVICES)
    radii = add("distance", [model, plugin], "find the largest radii at which labels are proved, item by item")
    distance.add_options(radii, positive_count, DEVICES)

    training = add("train", [plugin], "train a network, write it as ONNX, and certify that file")
    train.add_options(training, positive_count, positive_seconds, seed_number, DEVICES)

    exporting = add("export", [instance, plugin], "write the program of one clause as an .lp or .mps file")
    export.add_options(exporting, certify.whole_number)

    plan = add("plan", [instance, plugin], "print the steps, shapes and costs of a run")
    plan.add_argument("--method", default="crown", metavar="RECIPE", help=METHODS)

    supports = add("supports", [plugin], "print one capability, as the VNN-LIB standard wants it")
    query.add_capabilities(supports)
    add("coverage", [plugin], "print the table of ops and domains: which rule handles what")
    add("info", [model, plugin], "print the ops, shapes, parameters and unsupported ops of a network")

    survey = add(
        "survey", [plugin, budget],
        "load every instance of a CSV file, compare it with onnxruntime and bound it; exit code 1 if anything fails",
    )  # fmt: skip
    survey.add_argument(
        "instances", metavar="INSTANCES.csv", help="columns onnx,vnnlib,timeout, with or without header"
    )
    survey.add_argument("--points", type=positive_count, default=20, metavar="N", help="random points (default: 20)")
    survey.add_argument(
        "--methods", default="ibp,crown", metavar="M,...", help="methods to bound with (default: ibp,crown)"
    )
    survey.add_argument("--limit", type=positive_count, metavar="N", help="only the first N instances")
    survey.add_argument("--json", metavar="FILE", help="write one record per instance as JSON")

    campaign = add(
        "campaign",
        [],
        "verify every instance of a CSV file and print a table; exit code 1 if a verdict contradicts `consensus`",
    )
    campaign.add_argument(
        "instances", metavar="INSTANCES.csv", help="columns onnx,vnnlib,timeout, with or without header"
    )
    campaign.add_argument(
        "--timeout-cap", type=positive_seconds, default=math.inf, metavar="S", help="at most S seconds each"
    )
    campaign.add_argument("--limit", type=positive_count, metavar="N", help="only the first N instances")
    campaign.add_argument(
        "--jobs", type=positive_count, default=1, metavar="N", help="instances at a time (default: 1)"
    )
    campaign.add_argument("--method", default="auto", metavar="RECIPE", help=f"auto, {METHODS} (default: auto)")
    campaign.add_argument(
        "--out", default="results.csv", metavar="FILE", help="one row per instance; rows found there are not run again"
    )
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    return build_parser(ball.asked_for(argv) or query.asked_for(argv)).parse_args(argv)


def _one_line(error: BaseException) -> str:
    """The text of an error or a warning; a list of several lines is joined: `head: first; second`."""
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip()).replace(":; ", ": ")


def _message(error: Exception) -> str:
    if isinstance(error, AbsdomError):
        return _one_line(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    text = _one_line(error)
    kind = type(error).__name__
    return (
        f"{kind}: {text} (run with --debug for the traceback)"
        if text
        else f"{kind} (run with --debug for the traceback)"
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors are one line on stderr, `absdom: error: ...`, and code 2."""
    started = time.monotonic()  # a timeout counts from here, imports included
    argv = sys.argv[1:] if argv is None else argv
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        return _main(argv, started)


def _warn(message: Warning, *_, **__) -> None:
    print(f"absdom: warning: {_one_line(message)}", file=sys.stderr, flush=True)


def _main(argv: list[str], started: float) -> int:
    try:
        args = parse(argv)
        args.started = started
        from absdom.cli import commands

        code = commands.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of a pipe has gone (`absdom coverage | head`): what is still buffered must not raise at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ERROR
    except KeyboardInterrupt:
        print("absdom: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        print(f"absdom: error: {_message(error)}", file=sys.stderr)
        return ERROR
