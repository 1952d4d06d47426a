"""`absdom verify MODEL --ball x.npz`: robustness on an l_p ball around a stored input, in place of a property file."""

from __future__ import annotations

import argparse
import math

from absdom.errors import PropertyError, UsageError

NORMS = {"1": 1, "2": 2, "inf": math.inf}


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("balls", "robustness of one input, in place of PROPERTY")
    group.add_argument(
        "--ball",
        metavar="FILE.npz",
        help="`x`, the centre, and optionally its `label`: every input near x has the label",
    )
    group.add_argument("--eps", type=radius, metavar="E", help="radius of the ball")
    group.add_argument("--norm", choices=tuple(NORMS), help="norm of the ball (default: inf)")
    group.add_argument("--label", type=_label, metavar="K", help="number of the label (default: the file's)")
    group.add_argument(
        "--clip", nargs=2, type=finite, metavar=("LOW", "HIGH"), help="range of the inputs (default: all numbers)"
    )


def asked_for(argv: list[str]) -> bool:
    """Does a command line have --ball, so that PROPERTY may be missing?"""
    return any(word.split("=")[0] == "--ball" for word in argv)


def finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def radius(text: str) -> float:
    value = finite(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is negative: a radius is 0 or above")
    return value


def _label(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or above")
    return int(text)


def read(args: argparse.Namespace):
    """(network, Property, lines for the JSON's provenance) of a command line with --ball; (MODEL, PROPERTY, {}) else.

    Raises UsageError for options that do not go together, PropertyError for what is wrong with the file.
    """
    given = [name for name in ("eps", "norm", "label", "clip") if getattr(args, name) is not None]
    if args.ball is None:
        if given:
            raise UsageError(f"--{given[0]} goes with --ball FILE.npz")
        return args.model, args.property, {}
    if args.property is not None:
        raise UsageError(f"--ball takes the place of PROPERTY: give one of {args.ball} and {args.property}")
    if args.eps is None:
        raise UsageError("--ball needs --eps E, the radius")
    x, label = _load(args.ball)
    label = label if args.label is None else args.label
    if label is None:
        raise UsageError(f"--ball needs --label K: {args.ball} has no array 'label'")

    import absdom
    from absdom.pipeline import sha256

    net, norm = absdom.network(args.model), args.norm or "inf"
    try:
        prop = absdom.robust(net, x, args.eps, label, NORMS[norm], None if args.clip is None else tuple(args.clip))
    except PropertyError as error:
        raise PropertyError(f"{args.ball}: {error}") from None
    ball = {"eps": args.eps, "norm": norm, "label": label, "clip": args.clip}
    return net, prop, {"property": args.ball, "property_sha256": sha256(args.ball), "ball": ball}


def _load(path: str):
    """The arrays x and label (None where there is none) of an .npz file."""
    from absdom.datasets import read_npz

    arrays, held = read_npz(path, ("x", "label"))
    names = ", ".join(held) or "nothing"
    if "x" not in arrays:
        raise PropertyError(f"{path}: has no array 'x', only {names}: write it with numpy.savez({path!r}, x=x)")
    label = arrays.get("label")
    if label is not None:
        if label.size != 1 or label.dtype.kind not in "iu":
            raise PropertyError(f"{path}: 'label' is no whole number but an array {label.dtype} {label.shape}")
        label = int(label.ravel()[0])
    return arrays["x"], label
