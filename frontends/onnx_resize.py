"""ONNX ops that interpolate with constant coefficients: each axis is a choice of elements, or one exact matrix.

Coordinates and coefficients are fractions. Nearest neighbours, which jump, are chosen in float32, as onnxruntime does.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil, floor, prod

import numpy as np

from absdom import ops
from absdom.errors import ModelError
from absdom.frontends.onnx_ops import checks, translates
from absdom.frontends.onnx_shapes import cut
from absdom.frontends.onnx_structure import check_size, pick, places_of
from absdom.frontends.onnx_values import Call, Problem, Translation
from absdom.frontends.resampling import halves, kernel

MODES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
)
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
CUBIC = 3  # the degree of the kernel


def exact_param(t: Translation, rows: Sequence[Sequence[Fraction]], label: str) -> int:
    """A matrix of fractions: a Param where float64 holds them, else a sum of two, whose rounding the engine tracks."""
    high, low = halves(rows)
    if low is None:
        short = high.astype(np.float32)
        return t.param(short if (short == high).all() else high, label)
    return t.add(ops.Add(), t.param(high, label), t.param(low, f"{label}.rest"))


def along(t: Translation, x: int, axis: int, matrix: int) -> int:
    """The matrix "m n" applied to one axis of size n."""
    shape = t.builder.type(x).shape
    rows = t.builder.type(matrix).shape[0]
    flat = t.reshape(x, (prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])))
    return t.reshape(t.add(ops.MatMul(), matrix, flat), (*shape[:axis], rows, *shape[axis + 1 :]))


@checks("Resize", "Upsample")
def check_resize(call: Call) -> None:
    for name, default, known in (
        ("mode", "nearest", ("nearest", "linear", "bilinear", "cubic")),
        ("coordinate_transformation_mode", "half_pixel", MODES),
        ("nearest_mode", "round_prefer_floor", NEAREST),
        ("keep_aspect_ratio_policy", "stretch", ("stretch", "not_larger", "not_smaller")),
    ):
        if call.get(name, default) not in known:
            raise Problem(f"{name}={call.get(name)!r} is unknown")
    if call.get("antialias", 0) and call.get("mode", "nearest") == "nearest":
        raise Problem("antialias=1 with mode='nearest'")


@translates("Resize", "Upsample")
def resize(t: Translation, call: Call):
    x, shape = t.node(call, 0), t.shape(call, 0)
    axes, sizes, scales = targets(t, call, shape)
    mode = "asymmetric"
    if t.opset >= 11 and call.op == "Resize":
        mode = call.get("coordinate_transformation_mode", "half_pixel")
    regions, beyond = region(t, call, len(axes)), {}
    for axis, size, scale, (start, end) in zip(axes, sizes, scales, regions, strict=True):
        n = shape[axis]
        if (scale, size) == (1, n) and (mode != "tf_crop_and_resize" or (start, end) == (0, 1)):
            continue
        if scale * n != size and mode in ("align_corners", "tf_crop_and_resize"):
            raise Problem(
                f"{mode} with a size of {float(scale * n):.6g}: which coordinates it means is not agreed upon"
            )
        if call.get("mode", "nearest") == "nearest":
            x = cut(t, x, axis, nearest(t, call, mode, size, n, scale, start, end))
        else:
            rows = coefficients(call, [coordinate(mode, i, size, n, scale, start, end) for i in range(size)], n, scale)
            x = along(t, x, axis, exact_param(t, rows, f"{call.name}.axis{axis}"))
        if mode == "tf_crop_and_resize":
            places = [coordinate(mode, i, size, n, scale, start, end) for i in range(size)]
            beyond[axis] = np.array([not 0 <= p <= n - 1 for p in places])
    return extrapolate(t, call, x, beyond)


def extrapolate(t: Translation, call: Call, x: int, beyond: dict[int, np.ndarray]) -> int:
    """The extrapolation value where a coordinate lies `beyond` its axis, x elsewhere."""
    shape = t.builder.type(x).shape
    outside = np.zeros(shape, dtype=bool)
    for axis, mask in beyond.items():
        outside |= mask.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    if not outside.any():
        return x
    value = t.param(np.full(1, call.get("extrapolation_value", 0.0), np.float32), f"{call.name}.extrapolation_value")
    return pick(t, [x, value], np.where(outside, prod(shape), places_of(shape)))


def targets(t: Translation, call: Call, shape) -> tuple[list[int], list[int], list[Fraction]]:
    """The axes that are resized, their new sizes and the scales, by whichever of both is given."""
    axes = [t.axis(call, a, len(shape)) for a in call.get("axes") or range(len(shape))]
    sizes, position = (), 1
    if call.op == "Upsample" and t.opset < 9:
        scales = np.array(call.get("scales", ()), dtype=np.float32)
    else:
        if call.op == "Resize" and t.opset >= 11:
            position = 2
            sizes = t.integers(call, 3, "sizes") if call.has(3) else ()
        scales = t.constant(call, position, "scales").reshape(-1) if call.has(position) else np.zeros(0)
    if len(sizes or scales) != len(axes) or (len(sizes) and len(scales)):
        raise ModelError(f"{t.where}: {call.source} needs either one scale or one size for each of {len(axes)} axes")
    here = [shape[a] for a in axes]
    if not all(here):
        raise ModelError(f"{t.where}: {call.source} resizes {shape}, which has no elements")
    if not sizes:
        if not (np.isfinite(scales) & (scales > 0)).all():
            raise ModelError(f"{t.where}: {call.source} has scales {scales.tolist()}")
        sizes = [int(np.floor(np.float32(s) * np.float32(n))) for s, n in zip(scales, here, strict=True)]
        exact = [Fraction(float(s)) for s in scales]
    else:
        exact = [Fraction(size, n) for size, n in zip(sizes, here, strict=True)]
        policy = call.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            exact = [min(exact) if policy == "not_larger" else max(exact)] * len(axes)
            sizes = [floor(s * n + Fraction(1, 2)) for s, n in zip(exact, here, strict=True)]
    out = list(shape)
    for axis, size in zip(axes, sizes, strict=True):
        out[axis] = size
    check_size(t, call, out)
    if min(out) < 1:
        raise ModelError(f"{t.where}: {call.source} resizes {shape} to {tuple(out)}")
    return axes, list(sizes), exact


def region(t: Translation, call: Call, rank: int) -> list[tuple[Fraction, Fraction]]:
    """Start and end of the region of interest per resized axis, as fractions of the axis."""
    if call.get("coordinate_transformation_mode") != "tf_crop_and_resize":
        return [(Fraction(0), Fraction(1))] * rank
    roi = t.constant(call, 1, "roi").reshape(-1)
    if len(roi) != 2 * rank or not np.isfinite(roi).all():
        raise ModelError(f"{t.where}: {call.source} has a roi {roi.tolist()} for {rank} axes")
    return [(Fraction(float(a)), Fraction(float(b))) for a, b in zip(roi[:rank], roi[rank:], strict=True)]


def coordinate(mode: str, i, size: int, n: int, scale, start, end, half=Fraction(1, 2)):
    """Where element i of `size` lies among n: in the numbers that i, scale, start, end and half are of."""
    match mode:
        case "align_corners":
            return i * (n - 1) / type(half)(size - 1) if size > 1 else 0 * half
        case "asymmetric":
            return i / scale
        case "tf_crop_and_resize":
            if size == 1:
                return half * (start + end) * (n - 1)
            return start * (n - 1) + i * (end - start) * (n - 1) / type(half)(size - 1)
        case "pytorch_half_pixel" if size == 1:
            return 0 * half
        case "half_pixel_symmetric":
            return half * n * (1 - size / (scale * n)) + (i + half) / scale - half
    return (i + half) / scale - half


def nearest(t: Translation, call: Call, mode: str, size: int, n: int, scale, start, end) -> list[int]:
    single = np.float32
    numbers = (single(float(v)) for v in (scale, start, end, Fraction(1, 2)))
    x = np.asarray(coordinate(mode, np.arange(size, dtype=single), size, n, *numbers), dtype=single)
    x = np.broadcast_to(x, (size,)).astype(np.float64)
    rule = call.get("nearest_mode", "round_prefer_floor") if t.opset >= 11 and call.op == "Resize" else "floor"
    if rule == "floor" and t.opset < 11 and scale < 1 and (np.ceil(x) != np.floor(x)).any():
        raise Problem("which neighbours it takes as it makes the tensor smaller is not agreed upon (opset 10)")
    rounded = {
        "round_prefer_floor": np.ceil(x - 0.5),
        "round_prefer_ceil": np.floor(x + 0.5),
        "floor": np.floor(x),
        "ceil": np.ceil(x),
    }[rule]
    return [int(i) for i in rounded.clip(0, n - 1)]


def coefficients(call: Call, places: list[Fraction], n: int, scale: Fraction) -> list[list[Fraction]]:
    """One row of weights per place; what lies outside counts as the border, or not at all."""
    degree = CUBIC if call.get("mode") == "cubic" else 1
    a = Fraction(float(np.float32(call.get("cubic_coeff_a", -0.75))))
    squeeze = min(scale, Fraction(1)) if call.get("antialias", 0) else Fraction(1)
    first = floor(-Fraction(degree + 1, 2) / squeeze) + 1
    rows = []
    for place in places:
        base = ceil(place) - 1
        taps = {base + k: kernel(squeeze * (base + k - place), degree, a) for k in range(first, 2 - first)}
        if call.get("exclude_outside", 0):
            taps = {i: weight for i, weight in taps.items() if 0 <= i < n} or taps
        total = sum(taps.values())
        row = [Fraction(0)] * n
        for i, weight in taps.items():
            row[min(max(i, 0), n - 1)] += weight / total
        rows.append(row)
    return rows


@translates("AffineGrid")
def affine_grid(t: Translation, call: Call):
    """Points of a regular grid over [-1, 1] under each image's affine map: the last axis first in the coordinates."""
    theta, size = t.node(call, 0), t.integers(call, 1, "size")
    check_size(t, call, size)
    spatial = size[2:]
    if len(spatial) not in (2, 3) or t.shape(call, 0) != (size[0], len(spatial), len(spatial) + 1):
        raise ModelError(f"{t.where}: {call.source} has size {size} and maps of shape {t.shape(call, 0)}")
    steps = []
    for n in spatial:
        corners = bool(call.get("align_corners", 0))
        if corners and n == 1:
            raise Problem("align_corners=1 with an axis of size 1")
        steps.append([Fraction(2 * i, n - 1) - 1 if corners else Fraction(2 * i + 1, n) - 1 for i in range(n)])
    points = [
        [*(step[i] for step, i in zip(reversed(steps), reversed(index), strict=True)), Fraction(1)]
        for index in np.ndindex(*spatial)
    ]
    turned = t.add(ops.Permute((0, 2, 1)), theta)
    out = t.add(ops.MatMul(), exact_param(t, points, f"{call.name}.points"), turned)
    return t.reshape(out, (size[0], *spatial, len(spatial)))
