"""`absdom distance MODEL DATA.npz`: the largest radii at which the labels of a data set are proved."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from absdom.cli.ball import NORMS
from absdom.cli.certify import clip_of, item_options
from absdom.cli.output import check_writable, to_json
from absdom.files import write_atomic
from absdom.progress import progress_bar

SHOWN_ITEMS = 40


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1")
    return value


def add_options(parser: argparse.ArgumentParser, count: Callable[[str], int], devices: tuple[str, ...]) -> None:
    parser.add_argument(
        "data", metavar="DATA.npz", help="arrays x (uint8 pixels, divided by 255, or floats) and y, the labels"
    )
    parser.add_argument("--norm", choices=tuple(NORMS), default="inf", help="norm of the balls (default: inf)")
    parser.add_argument("--method", default="crown", metavar="RECIPE", help="a name or a recipe (default: crown)")
    parser.add_argument(
        "--tolerance", type=share, default=0.01, metavar="T", help="relative, of the radii (default: 0.01)"
    )
    item_options(parser, count, devices)
    parser.add_argument("--json", metavar="FILE|-", help="write all radii as JSON; -: to stdout")


def run(args: argparse.Namespace) -> int:
    check_writable("--json", args.json)
    clip = clip_of(args.clip)

    from absdom.api import versions
    from absdom.pipeline import guarantee, sha256
    from absdom.radii import distance
    from absdom.types import largest

    with progress_bar(args.limit) as advance:
        found = distance(
            args.model, args.data, norm=NORMS[args.norm], clip=clip, method=args.method, tolerance=args.tolerance,
            attack=args.attack == "pgd", limit=args.limit, offset=args.offset, device=args.device, seed=args.seed,
            progress=lambda number: advance(f"item {number}"), tell=lambda text: print(text, file=sys.stderr),
        )  # fmt: skip
    report = {
        "model": args.model, "model_sha256": sha256(args.model), "data": args.data, "data_sha256": sha256(args.data),
        "norm": args.norm, "clip": "none" if clip is None else list(clip), "method": args.method,
        "tolerance": args.tolerance, "attack": args.attack, "seed": args.seed,
        "guarantee": guarantee(min(1.0, found.doubt)),
        **found.to_json(), "versions": versions(),
    }  # fmt: skip
    if args.json == "-":
        print(to_json(report), end="")
        return 0
    if args.json:
        write_atomic(args.json, to_json(report))
    print(f"{'item':>7} {'label':>6} {'certified':>12} {'attacked':>12}")
    for item in report["items"][:SHOWN_ITEMS]:
        certified, attacked = (
            f"{item[key]:12.6g}" if item[key] is not None else f"{'none':>12}" for key in ("certified", "attacked")
        )
        print(f"{item['number']:>7} {item['label']:>6} {certified} {attacked}")
    if len(found) > SHOWN_ITEMS:
        print(f"  and {len(found) - SHOWN_ITEMS} items more: write them with --json FILE")
    ends = [report[key] for key in ("median_certified", "median_attacked")]
    certified, attacked = ("none" if end is None else f"{end:.6g}" for end in ends)
    print(f"{len(found)} items, median certified {certified}, median attacked {attacked}, {found.seconds:.3f} s")
    print("".join(f"{program}\n" for program in largest(found.programs)), end="")
    print(f"method {args.method}, guarantee {report['guarantee']}")
    return 0
