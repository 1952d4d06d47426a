"""Data sets to certify: arrays of an .npz file, read and checked against the tensors of a network.

What is asked of item i: points `x` (or `x_test`) with labels `y` (or `y_test`), or boxes `lower`, `upper` in place of
balls around x; and in place of labels `C`, with or without `d`: all of C f(x) + d has to be positive on the set.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, prod
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from absdom.errors import PropertyError, UsageError
from absdom.property import InputSet, Property, Spec
from absdom.types import TensorType

NAMES = ("x", "x_test", "y", "y_test", "lower", "upper", "C", "d")


def read_npz(path, wanted: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays `wanted`, as far as the .npz file has them, and the names of all it has."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in wanted if name in file.files}, list(file.files)
    except OSError as error:
        raise PropertyError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error):
        raise PropertyError(f"{path}: no .npz file of arrays: write it with numpy.savez({str(path)!r}, x=x)") from None


@dataclass(frozen=True)
class Ball:
    """The set around each point: radius, norm (1, 2, inf), and the range of the inputs it is met with (None: all)."""

    eps: float
    norm: float = inf
    clip: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self):
        if not (np.isfinite(self.eps) and self.eps >= 0):
            raise UsageError(f"eps {self.eps} is not a finite number of 0 or above")
        if self.norm not in (1, 2, inf):
            raise UsageError(f"the norm {self.norm} is not one of inf, 2, 1")
        if self.clip is not None and not (np.isfinite(self.clip).all() and self.clip[0] <= self.clip[1]):
            raise UsageError(f"clip {self.clip[0]:g} {self.clip[1]:g} is not a range: a low end, then a high end")


@dataclass(frozen=True, eq=False)
class Dataset:
    """N items. x: "N n" flat in the network's order, uint8 pixels or float64, or None; `sets`: Ball, or boxes as an
    InputSet of N; labels: int64 "N" or None; C "N R m" or "1 R m" and d "N R" or "1 R", where they take their place.

    `first` is the number of the first item in its file.
    """

    x: np.ndarray | None
    sets: Ball | InputSet
    labels: np.ndarray | None
    C: np.ndarray | None
    d: np.ndarray | None
    outputs: int
    first: int = 0

    def __len__(self) -> int:
        return len(self.sets if self.x is None else self.x)

    def points(self, items: np.ndarray) -> np.ndarray:
        """The points "B n" (float64) of these items; without x, the middles of their boxes."""
        if self.x is None:
            return (self.sets.lower[items] + self.sets.upper[items]) / 2
        return _values(self.x[items])

    def input_sets(self, items: np.ndarray) -> InputSet:
        if isinstance(self.sets, InputSet):
            return self.sets.select(items)
        return InputSet.ball(self.points(items), self.sets.eps, self.sets.norm, self.sets.clip)

    def rows(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """C "B R m" and d "B R" of these items, where the data have them."""
        C, d = (t if len(t) == 1 else t[items] for t in (self.C, self.d))
        return np.broadcast_to(C, (len(items), *C.shape[1:])), np.broadcast_to(d, (len(items), d.shape[1]))


def label_rows(labels: np.ndarray, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """C "B m-1 m" with the rows e_y - e_j, j != y, and d = 0: all positive where y alone has the largest score."""
    others = np.array([[j for j in range(outputs) if j != y] for y in labels]).reshape(len(labels), outputs - 1)
    identity = np.eye(outputs)
    return identity[labels][:, None] - identity[others], np.zeros((len(labels), outputs - 1))


def rows_property(sets: InputSet, C: np.ndarray, d: np.ndarray) -> Property:
    """The property that all of C "B R m" y + d "B R" is positive on each of the B sets. Each row is its own clause."""
    boxes, rows, outputs = C.shape
    spec = Spec(
        sp.csr_matrix(C.reshape(boxes * rows, outputs)), d.reshape(-1), np.zeros(boxes * rows, dtype=bool),
        np.arange(boxes * rows), np.repeat(np.arange(boxes), rows),
    )  # fmt: skip
    return Property(sets, spec)


def read_dataset(
    data: str | Path | Mapping[str, np.ndarray],
    inputs: Sequence[TensorType],
    outputs: Sequence[TensorType],
    ball: Ball | None,
    offset: int = 0,
    limit: int | None = None,
) -> Dataset:
    """Items offset, ..., offset + limit - 1 of a file (or of a mapping of such arrays), for a network of these types.

    ball: the sets around x; None where the data have boxes. Raises PropertyError for arrays that do not fit.
    """
    where = "the data" if isinstance(data, Mapping) else str(data)
    if isinstance(data, Mapping):
        arrays, names = {k: np.asarray(v) for k, v in data.items() if k in NAMES}, list(data)
    else:
        arrays, names = read_npz(data, NAMES)
    return _Reader(where, arrays, names, inputs, sum(t.numel for t in outputs)).read(ball, offset, limit)


class _Reader:
    def __init__(self, where: str, arrays: dict[str, np.ndarray], names: list[str], inputs, outputs: int):
        self.where, self.arrays, self.names, self.inputs, self.outputs = where, arrays, names, inputs, outputs

    def fail(self, text: str):
        raise PropertyError(f"{self.where}: {text}")

    def read(self, ball: Ball | None, offset: int, limit: int | None) -> Dataset:
        x_name, y_name = self._one_of("x", "x_test"), self._one_of("y", "y_test")
        boxes = [name for name in ("lower", "upper") if name in self.arrays]
        if len(boxes) == 1:
            self.fail(f"has {boxes[0]!r} alone: boxes need 'lower' and 'upper'")
        if x_name is None and not boxes:
            self.fail(f"has neither points ('x' or 'x_test') nor boxes ('lower', 'upper'), only {self._listed()}")
        if boxes and ball is not None:
            raise UsageError(f"{self.where} holds boxes ('lower', 'upper'): they take the place of eps, norm and clip")
        if not boxes and ball is None:
            raise UsageError(f"{self.where} holds points ({x_name!r}) and no boxes: give eps, the radius")
        if "C" not in self.arrays and y_name is None:
            self.fail(f"has neither labels ('y' or 'y_test') nor rows ('C'), only {self._listed()}")
        if "d" in self.arrays and "C" not in self.arrays:
            self.fail("has 'd' without 'C': rows are C f(x) + d")
        if not all(self.arrays[name].ndim for name in (x_name, *boxes) if name):
            self.fail("one of its arrays is a single number: items lie along the first axis")
        leading = [x_name, *boxes, None if "C" in self.arrays else y_name]
        leading += [n for n, axes in (("C", 3), ("d", 2)) if n in self.arrays and self.arrays[n].ndim == axes]
        counts = {name: len(self.arrays[name]) for name in leading if name and self.arrays[name].ndim}
        if len(set(counts.values())) > 1:
            self.fail("its arrays are of different lengths: " + ", ".join(f"{k!r} {v}" for k, v in counts.items()))
        total = next(iter(counts.values()))
        if not total:
            self.fail("holds no items")
        if offset >= total:
            raise UsageError(f"offset {offset} is behind the end of {self.where}, which holds {total} items")
        part = slice(offset, total if limit is None else min(total, offset + limit))
        sets = InputSet.box(*(_values(self._numbers(name, part)) for name in boxes)) if boxes else ball
        x = None if x_name is None else self._points(x_name, part, ball)
        if x is not None and boxes:
            outside = ((_values(x) < sets.lower) | (_values(x) > sets.upper)).any(1)
            if outside.any():
                item = offset + int(np.argmax(outside))
                self.fail(f"{x_name!r} has to hold points inside the boxes; item {item} is none")
        labels = C = d = None
        if "C" in self.arrays:
            C, d = self._rows(part)
        else:
            labels = self._labels(y_name, total)[part]
        return Dataset(x, sets, labels, C, d, self.outputs, offset)

    def _listed(self) -> str:
        return ", ".join(map(repr, self.names)) or "nothing"

    def _one_of(self, *names: str) -> str | None:
        found = [name for name in names if name in self.arrays]
        if len(found) > 1:
            self.fail(f"has both {found[0]!r} and {found[1]!r}: leave one of them out")
        return found[0] if found else None

    def _numbers(self, name: str, part: slice) -> np.ndarray:
        """Float64 "B n" in the network's order; uint8 stays what it is."""
        array = self.arrays[name][part]
        if array.dtype != np.uint8 and array.dtype.kind != "f":
            self.fail(f"{name!r} is of type {array.dtype}: it has to be uint8 (pixels, divided by 255) or float")
        flat = flat_items(array, [t.shape for t in self.inputs])
        if flat is None:
            wants = " and ".join(str(list(t.shape)) for t in self.inputs)
            self.fail(
                f"{name!r} has the shape {list(array.shape)}, items of {list(array.shape[1:])}; the network takes "
                f"{wants}"
            )
        if flat.dtype == np.uint8:
            return flat
        flat = flat.astype(np.float64)
        if not np.isfinite(flat).all():
            item, place = np.argwhere(~np.isfinite(flat))[0]
            self.fail(f"{name!r} holds {flat[item, place]} in item {part.start + item}")
        return flat

    def _points(self, name: str, part: slice, ball: Ball | None) -> np.ndarray:
        x = self._numbers(name, part)
        if ball is not None and ball.clip is not None:
            low, high = ball.clip
            least, most = (float(x.min()), float(x.max()))
            if x.dtype == np.uint8:
                least, most = (float(np.float32(t) / np.float32(255)) for t in (least, most))
            if least < low or most > high:
                self.fail(
                    f"{name!r} has values from {least:g} to {most:g}, outside the range {low:g} to {high:g} of the "
                    "inputs: give theirs with clip (--clip LOW HIGH), or none (--clip none)"
                )
        return x

    def _labels(self, name: str, total: int) -> np.ndarray:
        y = self.arrays[name]
        if y.dtype.kind not in "iuf" or y.size != total:
            self.fail(f"{name!r} is an array {y.dtype} {list(y.shape)}: it has to hold one whole number per item")
        y = y.reshape(-1)
        if y.dtype.kind == "f" and not (np.isfinite(y) & (y == np.round(y))).all():
            item = int(np.argmax(~(np.isfinite(y) & (y == np.round(y)))))
            self.fail(f"{name!r} holds {y[item]:g} in item {item}: labels are whole numbers")
        wrong = (y < 0) | (y >= self.outputs)
        if wrong.any():
            item = int(np.argmax(wrong))
            self.fail(
                f"{name!r} holds the label {y[item]:g} in item {item}; the network has {self.outputs} outputs, "
                f"0 ... {self.outputs - 1}"
            )
        if self.outputs < 2:
            self.fail(f"labels need a network with two outputs or more, this one has {self.outputs}: give rows, 'C'")
        return y.astype(np.int64)

    def _rows(self, part: slice) -> tuple[np.ndarray, np.ndarray]:
        C, d = self.arrays["C"], self.arrays.get("d")
        if C.dtype.kind not in "iuf" or C.ndim not in (2, 3) or C.shape[-1] != self.outputs or not C.shape[-2]:
            self.fail(
                f"'C' is an array {C.dtype} {list(C.shape)}: rows over the {self.outputs} outputs are "
                f"[R, {self.outputs}] for all items, or [N, R, {self.outputs}]"
            )
        rows = C.shape[-2]
        d = np.zeros(rows) if d is None else d
        if d.dtype.kind not in "iuf" or d.ndim not in (1, 2) or d.shape[-1] != rows:
            self.fail(f"'d' is an array {d.dtype} {list(d.shape)}: it has to be [{rows}] for all items, or [N, {rows}]")
        C, d = (C if C.ndim == 3 else C[None]), (d if d.ndim == 2 else d[None])
        C, d = (np.asarray(t if len(t) == 1 else t[part], dtype=np.float64) for t in (C, d))
        if not (np.isfinite(C).all() and np.isfinite(d).all()):
            self.fail("'C' or 'd' holds a NaN or an infinity")
        return C, d


def _values(array: np.ndarray) -> np.ndarray:
    """In float64. A pixel k stands for the float32 number k / 255, which is what a network gets to see."""
    return (array.astype(np.float32) / np.float32(255) if array.dtype == np.uint8 else array).astype(np.float64)


def flat_items(array: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> np.ndarray | None:
    """Items "N ..." as "N n" in the order of a network with inputs of these shapes; None if they do not fit.

    Axes of size 1 count for nothing. Images are transposed where only so they fit, [H, W, C] against [C, H, W] or the
    other way round. Items that are flat already, and networks that take flat inputs, leave the order as it is.
    """
    item, size = array.shape[1:], sum(map(prod, shapes))
    if prod(item) != size:
        return None
    wanted = [s for s in shapes[0] if s != 1] if len(shapes) == 1 else [size]
    given = [s for s in item if s != 1]
    if given == wanted or len(given) <= 1 or len(wanted) <= 1:
        return array.reshape(len(array), size)
    if len(given) == 3 == len(wanted):
        for order in ((2, 0, 1), (1, 2, 0)):
            if [given[k] for k in order] == wanted:
                moved = array.reshape(len(array), *given).transpose(0, *(k + 1 for k in order))
                return moved.reshape(len(array), size)
    return None
