"""`absdom export MODEL PROPERTY -o FILE.lp|FILE.mps`: the program of one clause as a file for any solver."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from absdom.cli.output import check_writable
from absdom.errors import UsageError
from absdom.files import replaced

SUFFIXES = (".lp", ".mps")


def add_options(parser: argparse.ArgumentParser, number: Callable[[str], int]) -> None:
    """`number` reads a whole number of 0 or above."""
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="write it here: FILE.lp or FILE.mps")
    parser.add_argument(
        "--method", default="milp", metavar="RECIPE", help="milp, lp or another recipe of programs (default: milp)"
    )
    parser.add_argument(
        "--clause", type=number, metavar="N", help="the clause, as `absdom bound` numbers it (default: the first one)"
    )
    parser.add_argument("--box", type=number, metavar="N", help="the first clause of this box, if none is named")


def run(args: argparse.Namespace) -> int:
    check_writable("--out", args.out)
    suffix = Path(args.out).suffix
    if suffix not in SUFFIXES:
        raise UsageError(f"--out {args.out}: the file's name ends in {' or '.join(SUFFIXES)}, which says its format")

    from absdom import registry
    from absdom.api import encode

    write = registry.service("export-program")
    encoding, objective = encode(
        args.model, args.property, method=args.method, clause=args.clause, box=args.box,
        progress=lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    with replaced(args.out) as path:
        write(encoding, objective, str(path))
    print(f"{args.out}: {encoding.size}")
    if encoding.quadratics.count:
        print(f"{encoding.quadratics.count} quadratic forms are not in the file: its minimum is a lower bound")
    exact = "the clause's own minimum" if encoding.complete else "a lower bound of it"
    print(f"minimise it, for example with `highs {args.out}` or `cbc {args.out} solve`: the minimum is {exact};")
    print("above 0, by more than the solver's tolerance, no point of the input set satisfies the clause")
    return 0
