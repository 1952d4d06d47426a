"""GridSample with a constant grid: each sample is a sum of a few elements with exact coefficients."""

from __future__ import annotations

import itertools
from fractions import Fraction
from functools import reduce
from math import floor, prod

import numpy as np

from absdom import ops
from absdom.errors import ModelError
from absdom.frontends.onnx_ops import checks, translates
from absdom.frontends.onnx_resize import exact_param, kernel
from absdom.frontends.onnx_structure import check_size, pick, places_of
from absdom.frontends.onnx_values import Call, Problem, Translation

DEGREES = {"nearest": 0, "bilinear": 1, "linear": 1, "bicubic": 3, "cubic": 3}
A = Fraction(-3, 4)  # of the cubic kernel
MOST_TERMS = 2**20  # coefficients


@checks("GridSample")
def check_grid_sample(call: Call) -> None:
    if call.get("mode", "linear") not in DEGREES:
        raise Problem(f"mode={call.get('mode')!r} is unknown")
    if call.get("padding_mode", "zeros") not in ("zeros", "border", "reflection"):
        raise Problem(f"padding_mode={call.get('padding_mode')!r} is unknown")


@translates("GridSample")
def grid_sample(t: Translation, call: Call):
    grid, shape = t.constant(call, 1, "grid"), t.shape(call, 0)
    spatial = shape[2:]
    if grid.ndim != len(shape) or grid.shape[0] != shape[0] or grid.shape[-1] != len(spatial):
        raise ModelError(f"{t.where}: {call.source} has an input of shape {shape} and a grid of shape {grid.shape}")
    if not np.isfinite(grid).all():
        raise ModelError(f"{t.where}: the grid of {call.source} holds NaN or infinity")
    out = (*shape[:2], *grid.shape[1:-1])
    check_size(t, call, out)
    degree, x = DEGREES[call.get("mode", "linear")], t.node(call, 0)
    terms = (degree + 1) ** len(spatial)
    if terms * prod(grid.shape[:-1]) > MOST_TERMS:
        raise Problem(f"a grid of {prod(grid.shape[:-1])} points with {terms} terms each")
    points = [_point(call, degree, point, spatial) for point in grid.reshape(-1, len(spatial))[:, ::-1]]
    channels, inner, flat = places_of(shape[:2]), grid.shape[1:-1], places_of(spatial)
    parts = []
    for k in range(terms):
        inside = [flat[place] if (place := point[k][0]) is not None else -1 for point in points]
        inside = np.array(inside).reshape(shape[0], 1, *inner)
        base = channels.reshape(*shape[:2], *[1] * len(inner)) * prod(spatial)
        taken = pick(t, [x], np.where(inside < 0, -1, base + inside))
        weights = [[point[k][1]] for point in points]
        if all(w == [1] for w in weights):
            parts.append(taken)
            continue
        weight = t.reshape(exact_param(t, weights, f"{call.name}.weight{k}"), (shape[0], 1, *inner))
        parts.append(t.add(ops.Mul(), taken, weight))
    return reduce(lambda a, b: t.add(ops.Add(), a, b), parts)


def _point(call: Call, degree: int, point: np.ndarray, spatial) -> list[tuple[tuple[int, ...] | None, Fraction]]:
    """(place, coefficient) of the elements that a sample is made of; None for a place in the padding."""
    corners = bool(call.get("align_corners", 0))
    axes = [_axis(call, degree, value, n, corners) for value, n in zip(point, spatial, strict=True)]
    found = []
    for taps in itertools.product(*axes):
        places = tuple(place for place, _ in taps)
        found.append((None if None in places else places, prod((w for _, w in taps), start=Fraction(1))))
    return found


def _axis(call: Call, degree: int, value: np.floating, n: int, corners: bool) -> list[tuple[int | None, Fraction]]:
    padding = call.get("padding_mode", "zeros")
    low, high = (Fraction(0), Fraction(n - 1)) if corners else (Fraction(-1, 2), n - Fraction(1, 2))
    if degree == 0:  # which neighbour is the nearest is decided in float32, halves to the even one
        one = np.float32(1)
        x = (value + one) / np.float32(2) * (n - 1) if corners else ((value + one) * n - one) / np.float32(2)
        base, taps = int(np.rint(np.float32(x))), {0: Fraction(1)}
    else:
        value = Fraction(float(value))
        x = (value + 1) / 2 * (n - 1) if corners else ((value + 1) * n - 1) / 2
        if degree == 1 and not low <= x <= high:
            x = _inside(x, padding, low, high, n)
        base = floor(x)
        taps = {k: kernel(base + k - x, degree, A) for k in range(-(degree // 2), 2 + degree // 2)}
    found = []
    for k, weight in taps.items():
        place = _inside(Fraction(base + k), padding, low, high, n)
        found.append((int(place) if 0 <= place < n else None, weight))
    return found


def _inside(x: Fraction, padding: str, low: Fraction, high: Fraction, n: int) -> Fraction:
    """A coordinate moved into the image as the padding says; with zeros it stays outside."""
    if padding == "border":
        return min(max(x, Fraction(0)), Fraction(n - 1))
    if padding == "zeros" or low <= x <= high:
        return x
    if low == high:
        return low
    span = high - low
    times, rest = divmod(low - x if x < low else x - high, span)
    mirrored = rest if (x < low) == (times % 2 == 0) else span - rest
    return low + mirrored
