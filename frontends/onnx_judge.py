"""The judge: onnxruntime on the original bytes says what the network computes; witnesses and front end answer to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import numpy as np

from absdom.errors import ModelError
from absdom.frontends.onnx_file import expose, parse, read_bytes
from absdom.registry import register_service

TOLERANCE = 1e-4  # of the largest value that an output takes
NOISE = 1e-6  # of the largest value that any output takes: a few units of float32 roundoff
ALL_ZERO = 1e-6  # absolute, where the judge gives nothing but zeros


@register_service("judge")
class Judge:
    """An onnxruntime session on the CPU, with its default optimisations and one thread, on an unchanged model.

    `inputs`, `outputs`: flat sizes; `output_names`: filled at the first run, one (name, size) per output. `hidden`:
    names of values inside the model; the model runs with them as further outputs, behind its own.
    """

    def __init__(self, path: str | Path | None = None, *, data: bytes | None = None, hidden: Sequence[str] = ()):
        import onnxruntime

        data, self.where = read_bytes(path, data)
        self._wanted = None
        if hidden:
            model, _ = parse(data, self.where)
            self._wanted = expose(model, hidden, self.where)
            data = model.SerializeToString()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise ModelError(f"{self.where}: onnxruntime cannot load it: {_line(error)}") from None
        self.name = f"onnxruntime {onnxruntime.__version__}"
        self.output_names: tuple[tuple[str, int], ...] = ()
        self._inputs = [(i.name, _shape(i, self.where), _dtype(i, self.where)) for i in self._session.get_inputs()]

    @property
    def inputs(self) -> int:
        return sum(prod(shape) for _, shape, _ in self._inputs)

    def run(self, x: np.ndarray) -> np.ndarray:
        """Flat outputs, "m" of one point "n", "K m" of a batch "K n"; several inputs and outputs lie side by side."""
        x = np.asarray(x)
        if x.ndim not in (1, 2) or x.shape[-1] != self.inputs:
            raise ModelError(f"{self.where}: takes {self.inputs} numbers, a point of shape {x.shape} was given")
        if x.ndim == 1:
            return self._one(x)
        if not len(x):
            raise ModelError(f"{self.where}: a batch of no points was given")
        return np.stack([self._one(point) for point in x])

    def output_label(self, place: int) -> str:
        """The name of flat output `place`, and its place inside that output."""
        for name, size in self.output_names:
            if place < size:
                return f"{name!r}[{place}]"
            place -= size
        raise IndexError(place)

    def _one(self, point: np.ndarray) -> np.ndarray:
        feed, start = {}, 0
        for name, shape, dtype in self._inputs:
            size = prod(shape)
            feed[name] = np.ascontiguousarray(point[start : start + size].reshape(shape), dtype=dtype)
            start += size
        names = [o.name for o in self._session.get_outputs()]
        try:
            outputs = self._session.run(None, feed)
        except Exception as error:
            raise ModelError(f"{self.where}: onnxruntime cannot run it: {_line(error)}") from None
        if not all(isinstance(o, np.ndarray) and o.dtype.kind in "fiub" for o in outputs):
            raise ModelError(f"{self.where}: an output is no tensor of numbers")
        if self._wanted is not None:
            found = dict(zip(names, outputs, strict=True))
            names, outputs = self._wanted, [found[name] for name in self._wanted]
        self.output_names = tuple((name, o.size) for name, o in zip(names, outputs, strict=True))
        return np.concatenate([o.ravel() for o in outputs])


def _line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _shape(info, where: str) -> tuple[int, ...]:
    shape = []
    for axis, size in enumerate(info.shape):
        if isinstance(size, int) and size > 0:
            shape.append(size)
        elif axis == 0:
            shape.append(1)
        else:
            raise ModelError(f"{where}: axis {axis} of input {info.name!r} is open; only the first axis may be")
    return tuple(shape)


def _dtype(info, where: str):
    found = {"tensor(float)": np.float32, "tensor(double)": np.float64}.get(info.type)
    if found is None:
        raise ModelError(
            f"{where}: input {info.name!r} is of type {info.type}; absdom reads float32 and float64 models"
        )
    return found


@register_service("check-agreement")
def check_agreement(
    graph_eval: Callable[[np.ndarray], np.ndarray], judge: Judge, points: np.ndarray, outliers: float = 0.0
) -> float:
    """Raise ModelError if `graph_eval` ("K n" -> "K m") and the judge differ on `points` by more than 1e-4, relatively.

    Output j may differ by 1e-4 S_j + 1e-6 S, where S_j is the largest absolute value that the judge gives for it on
    the points and S the largest S_j. So the measure has no unit (outputs of 1e-8 are compared as strictly as outputs
    of 1), an output that is small at one point is measured by what it is elsewhere, and one that is always small
    beside the others (by cancellation) has room for float32 roundoff. Where the judge gives only zeros, 1e-6 is
    allowed.
    `outliers`: the share of points that may differ (a network with jumps, such as Sign, may round to the other side).
    Gives back the largest difference, outliers aside, as a fraction of what is allowed.
    """
    points = np.atleast_2d(points)
    expected = judge.run(points).astype(np.float64)
    found = np.asarray(graph_eval(points)).astype(np.float64)
    if found.shape != expected.shape:
        raise ModelError(
            f"{judge.where}: {judge.name} gives {expected.shape[1]} numbers, absdom's graph {found.shape[1:]}: absdom "
            f"has misread the model; please report it"
        )
    for what, values in ((judge.name, expected), ("absdom", found)):
        if not np.isfinite(values).all():
            k, j = np.argwhere(~np.isfinite(values))[0]
            raise ModelError(f"{judge.where}: {what} computes {values[k, j]} for output {judge.output_label(int(j))}")
    own = np.abs(expected).max(axis=0)
    allowed = TOLERANCE * own + NOISE * own.max() if own.any() else np.full_like(own, ALL_ZERO)
    shares = np.abs(found - expected) / allowed
    kept = np.argsort(shares.max(axis=1))[: len(points) - int(outliers * len(points))]
    k, j = (int(i) for i in np.unravel_index(int(shares[kept].argmax()), (len(kept), shares.shape[1])))
    k = kept[k]
    if shares[k, j] > 1:
        raise ModelError(
            f"{judge.where}: absdom's graph and {judge.name} disagree, most on output {judge.output_label(j)}: "
            f"{found[k, j]:.9g} against {expected[k, j]:.9g}, {shares[k, j]:.3g} times the allowed difference; absdom "
            f"has misread the model; please report it"
        )
    return float(shares[k, j])
