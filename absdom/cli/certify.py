"""`absdom certify MODEL [MODEL ...] DATA.npz`: the clean, attacked and certified error of a data set."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from absdom import __version__
from absdom.cli.ball import NORMS, finite, radius
from absdom.cli.output import check_writable, to_json
from absdom.errors import UsageError
from absdom.files import write_atomic
from absdom.progress import progress_bar

FORMAT = "absdom certify 2"
DEFAULT_CLIP = (0.0, 1.0)


def whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or above")
    return int(text)


def item_options(parser: argparse.ArgumentParser, count: Callable[[str], int], devices: tuple[str, ...]) -> None:
    """Which items of a data set, within which range, attacked how and where: `count` reads a number above 0."""
    parser.add_argument(
        "--clip",
        nargs="+",
        metavar=("none | LOW", "HIGH"),
        help="range of the inputs, with which balls are met (default: 0 1)",
    )
    parser.add_argument("--limit", type=count, metavar="N", help="at most N items")
    parser.add_argument(
        "--offset", type=whole_number, default=0, metavar="N", help="skip the first N items (default: 0)"
    )
    parser.add_argument("--attack", choices=("pgd", "none"), default="pgd", help="default: pgd")
    parser.add_argument("--seed", type=whole_number, default=0, metavar="N", help="seed of the attack (default: 0)")
    parser.add_argument("--device", choices=devices, default="auto", help="default: auto")


def add_options(
    parser: argparse.ArgumentParser,
    count: Callable[[str], int],
    seconds: Callable[[str], float],
    devices: tuple[str, ...],
) -> None:
    """`count` reads a number above 0, `seconds` a time."""
    parser.add_argument("models", metavar="MODEL", nargs="+", help="network; several make a cascade")
    parser.add_argument(
        "data",
        metavar="DATA.npz",
        help="arrays x (uint8 pixels, divided by 255, or floats) and y, the labels (x_test and y_test are taken too); "
        "lower and upper: boxes in place of balls; C and d: rows in place of labels, C f(x) + d > 0 must hold",
    )
    parser.add_argument("--eps", type=radius, metavar="E", help="radius of the balls (needed unless there are boxes)")
    parser.add_argument("--norm", choices=tuple(NORMS), help="norm of the balls (default: inf)")
    parser.add_argument(
        "--method", required=True, metavar="RECIPE",
        help="ibp, crown-ibp, crown, cap or a recipe; auto: the most precise that --budget allows; bab: ibp, then "
        "crown, then alpha-crown, then a complete search, each for what is still open",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=seconds, default=10.0, metavar="S", help="predicted seconds per item, for auto (default: 10)"
    )
    parser.add_argument(
        "--timeout-per-image", type=seconds, metavar="S",
        help="an item that needs more seconds stays open (default: 60 for bab, else none)",
    )  # fmt: skip
    item_options(parser, count, devices)
    parser.add_argument(
        "--jobs", type=count, metavar="N", help="groups of items side by side (default: one per core; 1 for programs)"
    )
    parser.add_argument(
        "--out", metavar="FILE.jsonl", help="append one record per item here; items found there are not done again"
    )
    parser.add_argument("--json", metavar="FILE|-", help="write the shares and counts as JSON; -: to stdout")


def clip_of(words: list[str] | None) -> tuple[float, float] | None:
    """The range that --clip gives. Raises UsageError."""
    if words is None:
        return DEFAULT_CLIP
    if words == ["none"]:
        return None
    try:
        low, high = map(finite, words)
    except (ValueError, argparse.ArgumentTypeError):
        raise UsageError(
            f"--clip takes LOW HIGH or none, not {' '.join(words)!r} (name the models before it)"
        ) from None
    return low, high


def run(args: argparse.Namespace) -> int:
    check_writable("--json", args.json)
    check_writable("--out", args.out)
    if args.json and args.out and args.json != "-" and Path(args.json).resolve() == Path(args.out).resolve():
        raise UsageError(f"--json and --out name the same file, {args.out}: the report would replace the records")
    clip = clip_of(args.clip)
    for name in ("norm", "clip"):
        if getattr(args, name) is not None and args.eps is None:
            raise UsageError(f"--{name} goes with --eps E, the radius of balls")

    from absdom.api import versions
    from absdom.certification import prepare
    from absdom.pipeline import guarantee, sha256

    norm = args.norm or "inf"
    work = prepare(
        args.models, args.data, method=args.method, eps=args.eps, norm=NORMS[norm], clip=clip, limit=args.limit,
        offset=args.offset, attack=args.attack == "pgd", device=args.device, seed=args.seed, budget=args.budget,
        timeout_per_image=args.timeout_per_image, progress=lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    method = args.method if args.method != "auto" else f"auto, {args.budget:g} s per item"
    asked = {"method": method, "attack": args.attack, "seed": args.seed}
    if args.eps is not None:
        asked |= {"eps": args.eps, "norm": norm, "clip": "none" if clip is None else list(clip)}
    if math.isfinite(work.timeout):
        asked["timeout_per_image"] = work.timeout
    files = {
        "models_sha256": [sha256(m) for m in args.models], "data_sha256": sha256(args.data),
        "plugins_sha256": [sha256(p) for p in args.plugin],
    }  # fmt: skip
    head = {"format": FORMAT, "version": __version__, **files, **asked}
    known = [] if args.out is None else read_records(args.out, head)
    with records(args.out, head) as record, progress_bar(work.left(known)) as advance:

        def done(items: Sequence) -> None:
            record(items)
            for item in items:
                advance(f"item {item.number}: {item.outcomes[-1]}")

        found = work.run(jobs=args.jobs, known=known, record=done)
    report = {
        "models": args.models, "data": args.data, "offset": args.offset, **asked, **found.to_json(),
        "guarantee": guarantee(found.doubt), "device": work.device, **files, "versions": versions(),
    }  # fmt: skip
    if args.json == "-":
        print(to_json(report), end="")
        return 0
    if args.json:
        write_atomic(args.json, to_json(report))
    print(f"{found.text()}\nmethod {method}, guarantee {report['guarantee']}")
    return 0


def read_records(path: str, head: dict) -> list:
    """The items of a file of records; [] if there is none. A last line cut short by a kill is removed from the file.

    Raises UsageError if the file is another one, or its records answer another question.
    """
    from absdom.results import Item

    file = Path(path)
    if not file.exists():
        return []
    text = file.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    lines = whole.decode("utf-8", "replace").splitlines()
    if not lines:
        if text:
            raise UsageError(f"{path}: the file exists and holds no records of certify; name another with --out")
        return []
    try:
        found = json.loads(lines[0])
        if found.get("format") != FORMAT:
            raise ValueError
        items = [Item.from_json(json.loads(line)) for line in lines[1:]]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UsageError(f"{path}: the file exists and holds no records of certify; name another with --out") from None
    differs = sorted(key for key in {*found, *head} if found.get(key) != head.get(key))
    if differs:
        key = differs[0]
        more = f" (and {', '.join(differs[1:])})" if len(differs) > 1 else ""
        raise UsageError(
            f"{path}: its records are of another run, {key} was {found.get(key)!r} and is now {head.get(key)!r}{more}: "
            "name another file with --out"
        )
    if whole != text:
        os.truncate(file, len(whole))
    return items


@contextmanager
def records(path: str | None, head: dict) -> Iterator[Callable[[Sequence], None]]:
    """Gives the function that appends the records of items to a file, all of them or (after a kill) a part that
    `read_records` understands. The first line of the file is `head`."""
    if path is None:
        yield lambda items: None
        return

    def write(items: Sequence) -> None:  # what is refused before its first item leaves no file
        with open(path, "a", encoding="utf-8") as file:
            values = [*([head] if file.tell() == 0 else []), *(item.to_json() for item in items)]
            file.write("".join(json.dumps(value, allow_nan=False) + "\n" for value in values))

    yield write
