"""The command line of the VNN-LIB standard: `absdom verify QUERY --network NAME=MODEL` and `absdom supports ...`.

What the standard asks of stdout: one word (`timed-out`, not `timeout`), then the assignment if the word is `sat`, and
nothing else; the report for people goes to stderr, and the exit code is 0 whenever there is an answer.
"""

from __future__ import annotations

import argparse
import sys

from absdom.errors import UsageError

CAPABILITIES = {
    "onnx-opset-versions": "the oldest and the newest opset",
    "onnx-element-types": "element types with sound analysis, one a line",
    "onnx-operators": "ONNX operators, one a line",
    "vnnlib-versions": "the oldest and the newest version of VNN-LIB",
    "hidden-node-theories": "NH, H",
    "multiple-input-output-theories": "SIO, MIO",
    "multiple-network-theories": "SNET, MENET, MINET, MNET",
    "multiple-node-comparison-theories": "SNC, MNC",
    "arithmetic-complexity-theories": "BND, OUTC, LIN, POLY",
    "optimised-disjunctive-reasoning": "true or false",
    "serialise-assignments": "true or false",
}
SPELT_TWICE = {"multiple-inputs-output-theories": "multiple-input-output-theories"}  # both are in the standard


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "queries",
        "the VNN-LIB standard's `verify QUERY --network NAME=MODEL`: stdout holds the word and the assignment",
    )
    group.add_argument(
        "--network", action="append", metavar="NAME=MODEL", help="the network that QUERY declares as NAME is this file"
    )
    group.add_argument(
        "--serialise-assignments", "--assignments", metavar="FOLDER",
        help="write the assignment of a sat as one TensorProto per tensor, FOLDER/NAME.pb, not to stdout",
    )  # fmt: skip


def add_capabilities(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group(required=True)
    for name, text in CAPABILITIES.items():
        group.add_argument(f"--{name}", dest="capability", action="store_const", const=name, help=text)
    for name, real in SPELT_TWICE.items():
        group.add_argument(f"--{name}", dest="capability", action="store_const", const=real, help=argparse.SUPPRESS)


def asked_for(argv: list[str]) -> bool:
    """Does a command line have --network, so that it has no PROPERTY?"""
    return any(word.split("=")[0] == "--network" for word in argv)


def read(args: argparse.Namespace) -> tuple[str, str, str]:
    """(model, query, name of the network) of a command line with --network; raises UsageError."""
    if args.property is not None:
        raise UsageError(f"--network names the model, so {args.model} is the query: what is {args.property}?")
    if args.ball is not None:
        raise UsageError("--ball takes the place of a query: --network does not go with it")
    if args.json == "-":
        raise UsageError("--json -: with --network the assignment goes to stdout; name a file")
    if len(args.network) > 1:
        raise UsageError(f"--network is given {len(args.network)} times: one network is supported for now")
    name, equals, model = args.network[0].partition("=")
    if not (name and equals and model):
        raise UsageError(f"--network {args.network[0]}: write NAME=MODEL, the name in the query and the file")
    return model, args.model, name


def answer(result, folder: str | None, story: str, serialise) -> int:
    """Print what the standard wants; `serialise(witness, folder)` writes an assignment. The exit code."""
    if result.witness is not None and folder is not None:
        try:
            serialise(result.witness, folder)
        except OSError as error:
            raise UsageError(f"the verdict is {result.verdict}, but {error.filename}: {error.strerror}") from error
    print({"timeout": "timed-out"}.get(result.verdict, result.verdict))
    if result.witness is not None and folder is None:
        print(result.witness.text(), end="")
    print(story, file=sys.stderr)
    return 0
