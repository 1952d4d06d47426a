"""Input sets as arrays: boxes, met with balls, ellipsoids and half-spaces. Membership is decided in rationals.

An `InputSet` is a batch of B boxes; each of its `parts` narrows every box down by one more convex set. Runs take them
as tensors: see `sets`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from math import inf

import numpy as np

from absdom.errors import PropertyError

SURE = 1e-9  # relative difference far above what roundoff does to the sums that membership compares
FIXED_POINT = 256  # binary places of the sums that decide what floats cannot


class Part(ABC):
    """A convex set for each box of an InputSet, as arrays whose first axis is B. Elements lie in the box as well."""

    def select(self, boxes) -> Part:
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v[boxes] for k, v in arrays.items() if isinstance(v, np.ndarray)})

    @abstractmethod
    def contains(self, x: np.ndarray, box: int) -> bool:
        """Is the float64 point "n" in the set, exactly?"""

    @abstractmethod
    def inward(self, x: np.ndarray, box: int, slack: np.ndarray, ends: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """A point near x, between `ends` if x is, from which steps of at most `slack` "n" stay in the set, where that
        is easy to find."""


@dataclass(frozen=True, eq=False)
class Ball(Part):
    """Points with ||(x - centre) / radius||_norm <= 1. centre "B n"; radius "B 1" (an l_p ball) or "B n" (half-axes
    along the inputs, 0 allowed); norm: 1 or 2."""

    centre: np.ndarray
    radius: np.ndarray
    norm: float

    def contains(self, x, box):
        centre, radius = self.centre[box], np.broadcast_to(self.radius[box], x.shape)
        flat = radius == 0
        if (x != centre)[flat].any():
            return False
        x, centre, radius = x[~flat], centre[~flat], radius[~flat]
        size = self._size((x - centre) / radius)
        if ((radius > 1e-100) & (radius < 1e100)).all() and abs(size - 1) > SURE:
            return bool(size < 1)
        power = int(self.norm)
        steps = (abs(Fraction(float(a)) - Fraction(float(c))) for a, c in zip(x, centre, strict=True))
        if self.radius.shape[1] == 1:
            return sum(s**power for s in steps) <= Fraction(float(self.radius[box, 0])) ** power
        return _at_most_one([(s / Fraction(float(r))) ** power for s, r in zip(steps, radius, strict=True)])

    def inward(self, x, box, slack, ends):
        centre, radius = self.centre[box], np.broadcast_to(self.radius[box], x.shape)
        scale = np.where(radius > 0, radius, 1)
        step = np.where(radius > 0, x - centre, 0)
        size, most = self._size(step / scale), self._size(np.where(radius > 0, slack, 0) / scale)
        if most >= 1 or size == 0:  # a ball as small as the steps of the numbers
            return x
        return centre + step * min(1, (1 - most) / size)

    def _size(self, step: np.ndarray) -> float:
        """The norm, without overflow or underflow."""
        largest = np.abs(step).max(initial=0)
        return 0.0 if largest == 0 else float(largest * np.linalg.norm(step / largest, self.norm))


@dataclass(frozen=True, eq=False)
class Ellipsoid(Part):
    """Points with (x - centre)' precision (x - centre) <= 1; precision "B n n", symmetric positive definite."""

    centre: np.ndarray
    precision: np.ndarray

    def contains(self, x, box):
        step, matrix = x - self.centre[box], self.precision[box]
        size, reach = step @ matrix @ step, np.abs(step) @ np.abs(matrix) @ np.abs(step)
        if reach < 1e100 and abs(size - 1) > SURE * (reach + 1):
            return bool(size < 1)
        exact = [Fraction(float(a)) - Fraction(float(c)) for a, c in zip(x, self.centre[box], strict=True)]
        total = Fraction(0)
        for i, row in enumerate(matrix):
            total += exact[i] * sum(Fraction(float(p)) * s for p, s in zip(row, exact, strict=True) if p)
        return total <= 1

    def inward(self, x, box, slack, ends):
        centre, matrix = self.centre[box], self.precision[box]
        step = x - centre
        size, most = np.sqrt(max(step @ matrix @ step, 0)), np.sqrt(slack @ np.abs(matrix) @ slack)
        return x if most >= 1 or size == 0 else centre + step * min(1, (1 - most) / size)


@dataclass(frozen=True, eq=False)
class HalfSpaces(Part):
    """Points with normals x <= offsets: normals "B m n", offsets "B m". (Rows of zeros with offset 0 hold always.)"""

    normals: np.ndarray
    offsets: np.ndarray

    def contains(self, x, box):
        normals, offsets = self.normals[box], self.offsets[box]
        with np.errstate(over="ignore", invalid="ignore"):
            value, reach = normals @ x - offsets, np.abs(normals) @ np.abs(x) + np.abs(offsets)
        sure = np.isfinite(reach) & (np.abs(value) > SURE * reach + 1e-290)
        if (value > 0)[sure].any():
            return False
        point = [Fraction(float(a)) for a in x]
        return all(
            sum(Fraction(float(normals[k, i])) * point[i] for i in np.flatnonzero(normals[k]))
            <= Fraction(float(offsets[k]))
            for k in np.flatnonzero(~sure)
        )

    def inward(self, x, box, slack, ends):
        normals, offsets = self.normals[box], self.offsets[box]
        moves = normals * (ends[0] < ends[1])
        length = np.square(moves).sum(1)
        room = offsets - np.abs(normals) @ slack
        for _ in range(8 * len(offsets)):
            above = np.where(length > 0, (normals @ x - room) / np.sqrt(np.where(length > 0, length, 1)), -inf)
            k = int(above.argmax())
            if above[k] <= 0:
                break
            x = np.clip(x - moves[k] * (1.01 * above[k] / np.sqrt(length[k])), *ends)
        return x


def _at_most_one(terms: list[Fraction]) -> bool:
    """Is the sum of these numbers >= 0 at most 1? In fixed point first: sums of many fractions grow without end."""
    one = 1 << FIXED_POINT
    low = sum((t.numerator << FIXED_POINT) // t.denominator for t in terms)
    if low > one or low + len(terms) <= one:
        return low <= one
    return sum(terms) <= 1


@dataclass(frozen=True, eq=False)
class InputSet:
    """A batch of B sets over n flat inputs: the boxes [lower, upper], float64 "B n", met with all `parts`."""

    lower: np.ndarray
    upper: np.ndarray
    parts: tuple[Part, ...] = ()

    def __post_init__(self):
        if self.lower.ndim != 2 or self.lower.shape != self.upper.shape:
            raise PropertyError(
                f"lower and upper have shapes {self.lower.shape} and {self.upper.shape}, not one (B, n)"
            )
        if np.isnan(self.lower).any() or np.isnan(self.upper).any():
            raise PropertyError(f"a bound of input X_{_first(np.isnan(self.lower) | np.isnan(self.upper))} is NaN")
        if np.isinf(self.lower).any() or np.isinf(self.upper).any():
            missing = np.isinf(self.lower) | np.isinf(self.upper)
            raise PropertyError(f"input X_{_first(missing)} has no lower or no upper bound: every input needs both")
        if (self.lower > self.upper).any():
            i = _first(self.lower > self.upper)
            b = int(np.argwhere(self.lower > self.upper)[0][0])
            raise PropertyError(
                f"input X_{i}: the lower bound {float(self.lower[b, i])!r} is above the upper bound "
                f"{float(self.upper[b, i])!r}"
            )

    @staticmethod
    def box(lower, upper) -> InputSet:
        lower, upper = (np.atleast_2d(np.asarray(t, dtype=np.float64)) for t in (lower, upper))
        return InputSet(lower, upper)

    @staticmethod
    def ball(centre, radius, norm: float = inf, clip: tuple[float, float] | None = (0.0, 1.0)) -> InputSet:
        """l_p balls, p in {1, 2, inf}, met with the pixel box `clip` (None: no clipping).

        centre "B n" (or "n"), radius a number or "B".
        """
        if norm not in (1, 2, inf):
            raise PropertyError(f"norm {norm} is not one of 1, 2, inf")
        centre = np.atleast_2d(np.asarray(centre, dtype=np.float64))
        radius = np.broadcast_to(np.asarray(radius, dtype=np.float64), (len(centre),)).copy()[:, None]
        if not ((radius >= 0) & np.isfinite(radius)).all():
            raise PropertyError("a radius is negative, infinite or NaN")
        return _around(centre, radius, clip, () if norm == inf else (Ball(centre, radius, norm),))

    @staticmethod
    def ellipsoid(centre, half_axes, clip: tuple[float, float] | None = None) -> InputSet:
        """Ellipsoids with axes along the inputs: sum_i ((x_i - centre_i) / half_axes_i)^2 <= 1, met with `clip`.

        centre, half_axes: "B n" (or "n"); a half-axis 0 fixes its input.
        """
        centre = np.atleast_2d(np.asarray(centre, dtype=np.float64))
        radius = np.asarray(half_axes, dtype=np.float64)
        if radius.shape not in (centre.shape, centre.shape[1:]):
            raise PropertyError(f"half_axes have the shape {radius.shape}, the centre has {centre.shape}")
        radius = np.broadcast_to(radius, centre.shape).copy()
        if not ((radius >= 0) & np.isfinite(radius)).all():
            raise PropertyError("a half-axis is negative, infinite or NaN")
        return _around(centre, radius, clip, (Ball(centre, radius, 2),))

    @staticmethod
    def mahalanobis(centre, precision, clip: tuple[float, float] | None = None) -> InputSet:
        """Ellipsoids (x - centre)' precision (x - centre) <= 1, met with `clip`; for a covariance S and a radius r,
        precision = S^-1 / r^2. centre "B n" (or "n"); precision "B n n" (or "n n"), symmetric positive definite."""
        centre = np.atleast_2d(np.asarray(centre, dtype=np.float64))
        matrix = np.asarray(precision, dtype=np.float64)
        size = centre.shape[1]
        if matrix.shape not in ((size, size), (len(centre), size, size)):
            raise PropertyError(f"the precision has the shape {matrix.shape}, not ({size}, {size})")
        matrix = np.broadcast_to(matrix, (len(centre), size, size))
        turned = matrix.swapaxes(1, 2)
        if not np.isfinite(matrix).all() or (np.abs(matrix - turned) > 1e-6 * np.abs(matrix).max()).any():
            raise PropertyError("the precision is not a symmetric matrix of finite numbers")
        matrix = (matrix + turned) / 2
        radius = np.stack([_half_widths(m) for m in matrix])
        return _around(centre, radius, clip, (Ellipsoid(centre, matrix),))

    @staticmethod
    def polytope(normals, offsets, lower, upper) -> InputSet:
        """Polytopes {lower <= x <= upper, normals x <= offsets}: lower, upper "B n" (or "n"), normals "B m n" (or
        "m n"), offsets "B m" (or "m")."""
        box = InputSet.box(lower, upper)
        normals, offsets = (np.asarray(t, dtype=np.float64) for t in (normals, offsets))
        rows = normals.shape[-2] if normals.ndim in (2, 3) else -1
        if normals.ndim == 2:
            normals = np.broadcast_to(normals, (len(box), *normals.shape))
        if offsets.ndim == 1:
            offsets = np.broadcast_to(offsets, (len(box), *offsets.shape))
        if normals.shape != (len(box), rows, box.size) or offsets.shape != (len(box), rows):
            raise PropertyError(
                f"normals {normals.shape} and offsets {offsets.shape} do not fit together over {box.size} inputs: "
                f"they are (m, {box.size}) and (m,)"
            )
        if not (np.isfinite(normals).all() and np.isfinite(offsets).all()):
            raise PropertyError("a half-space has a number that is NaN or infinite")
        return replace(box, parts=(HalfSpaces(normals.copy(), offsets.copy()),))

    def __len__(self) -> int:
        return len(self.lower)

    @property
    def size(self) -> int:
        return self.lower.shape[1]

    def select(self, boxes) -> InputSet:
        """The sets at these positions (repeats allowed)."""
        return InputSet(self.lower[boxes], self.upper[boxes], tuple(part.select(boxes) for part in self.parts))

    def contains(self, point: np.ndarray, box: int) -> bool:
        """Does the float32 or float64 point lie exactly in set `box`? Compared in exact arithmetic."""
        x = point.astype(np.float64)
        if not ((self.lower[box] <= x) & (x <= self.upper[box])).all():
            return False
        return all(part.contains(x, box) for part in self.parts)

    def round_into(self, point: np.ndarray, box: int) -> np.ndarray:
        """The float32 point next to `point`, inside the box in every coordinate whose interval holds a float32 number;
        the others (see `without_float32`) get the number nearest to their interval. Points that rounding took out of
        another part are moved into it."""
        x = self._round_into_box(point, box)
        if self._holds(x, box):
            return x
        ends = self.lower[box], self.upper[box]
        step = np.where(ends[0] < ends[1], np.abs(np.spacing(x)), 0).astype(np.float64)
        for share in (0.1, 0.5, 1.0, 2.0):
            moved = np.clip(point.astype(np.float64), *ends)
            for part in (*self.parts, *self.parts[:-1]):
                moved = part.inward(moved, box, share * step, ends)
            x = self._round_into_box(moved, box)
            if self._holds(x, box):
                break
        return x

    def _holds(self, x: np.ndarray, box: int) -> bool:
        """Is x, clipped to the box, in all parts? (What clipping moves has no float32 number in its interval.)"""
        exact = np.clip(x.astype(np.float64), self.lower[box], self.upper[box])
        return all(part.contains(exact, box) for part in self.parts)

    def _round_into_box(self, point: np.ndarray, box: int) -> np.ndarray:
        x = np.clip(point.astype(np.float64), self.lower[box], self.upper[box])
        near = x.astype(np.float32)
        inner = np.where(near < self.lower[box], np.nextafter(near, np.float32(inf)), near)
        inner = np.where(inner > self.upper[box], np.nextafter(inner, np.float32(-inf)), inner)
        inside = (inner >= self.lower[box]) & (inner <= self.upper[box])
        return np.where(inside, inner, near).astype(np.float32)

    def without_float32(self, box: int) -> np.ndarray:
        """Bool "n": inputs whose interval holds no float32 number, such as [0.1, 0.1]."""
        near = self.lower[box].astype(np.float32)
        first = np.where(near < self.lower[box], np.nextafter(near, np.float32(inf)), near)
        return first > self.upper[box]


def _first(mask: np.ndarray) -> int:
    return int(np.argwhere(mask)[0][1])


def _around(centre: np.ndarray, radius: np.ndarray, clip, parts: tuple[Part, ...]) -> InputSet:
    """The box centre +- radius ("B 1" or "B n") met with `clip`, one ulp outward: sums round, and it holds the set."""
    lower, upper = np.nextafter(centre - radius, -inf), np.nextafter(centre + radius, inf)
    lower, upper = np.where(radius == 0, centre, lower), np.where(radius == 0, centre, upper)
    if clip is not None:
        lower, upper = np.maximum(lower, clip[0]), np.minimum(upper, clip[1])
    return InputSet(lower, upper, parts)


def _half_widths(matrix: np.ndarray) -> np.ndarray:
    """Upper bounds "n" of |d_i| over d' P d <= 1, P "n n". Raises PropertyError unless P is positive definite for sure.

    With W near P^-1, w_i its rows and E = I - W P: |d_i| <= sqrt(w_i' P w_i) + sum_j |E_ij| |d_j|, by Cauchy-Schwarz.
    """
    size = len(matrix)
    roundoff = (4 * size + 32) * np.finfo(np.float64).eps
    try:  # Rump (2006): where Cholesky's method succeeds on a matrix shifted by so little, the matrix is definite
        np.linalg.cholesky(matrix - np.eye(size) * (roundoff * np.trace(matrix)))
        inverse = np.linalg.inv(matrix)
    except np.linalg.LinAlgError:
        raise PropertyError("the precision is not positive definite (up to what float64 can tell)") from None
    product, sizes = inverse @ matrix, np.abs(inverse) @ np.abs(matrix)
    own = (product * inverse).sum(1) + roundoff * (sizes * np.abs(inverse)).sum(1)
    widths = np.sqrt(np.maximum(own, 0)) * (1 + roundoff)
    error = np.abs(np.eye(size) - product) + roundoff * (sizes + np.eye(size))
    share = float((error @ widths / widths).max())
    if not share < 0.5:
        raise PropertyError("the precision is too ill-conditioned: float64 cannot tell how wide its ellipsoid is")
    return widths / (1 - share) * (1 + roundoff)
