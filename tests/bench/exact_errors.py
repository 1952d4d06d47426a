"""How many images each method certifies, from the cheapest to the exact one, and what an image costs.

usage: python tests/bench/exact_errors.py MODEL DATA.npz [--eps 0.1] [--images 200] [--out FILE.md]
       [--methods RECIPE ...] [--timeout-per-image 120]

All methods stand on the same intermediate bounds but CAP, which makes its own. Prints a table, and with --out writes it.
"""

import argparse
from pathlib import Path

import numpy as np

from absdom.certification import certify

METHODS = ("cap", "crown", "alpha-crown", "lp", "sdp-fo", "milp")


def row(args, method: str) -> str:
    found = certify(
        args.model, args.data, method=method, eps=args.eps, limit=args.images, timeout_per_image=args.timeout_per_image
    )
    seconds = np.array([item.seconds for item in found.items])
    counts = found.cascade()[0]
    correct = sum(item.certified for item in found.items)
    return (
        f"| `{method}` | {correct} | {counts['attacked']} | {counts['open']} | {100 * found.certified_error:.2f} % "
        f"| {seconds.mean():.2f} | {np.median(seconds):.2f} | {seconds.max():.1f} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--timeout-per-image", type=float, default=120.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = [
        f"# {Path(args.model).stem}: the first {args.images} images, eps {args.eps:g}",
        "",
        "| method | certified | attacked | open | certified error | s, mean | s, median | s, largest |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for method in args.methods:
        lines.append(row(args, method))
        print(lines[-1], flush=True)
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
