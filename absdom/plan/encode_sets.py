"""Parts of an input set as rows and quadratic forms of an Encoding."""

from __future__ import annotations

import numpy as np

from absdom.arithmetic import numbers
from absdom.encoding import INPUTS, Builder, Distances, Size, gamma
from absdom.set_parts import BallBatch, EllipsoidBatch, HalfSpacesBatch


def part_size(part) -> Size:
    """At least as much as `encode_part` adds."""
    match part:
        case HalfSpacesBatch(normals=normals):
            return Size(rows=normals.shape[1], entries=normals[0].numel())
        case BallBatch(centre=centre, norm=1):
            return Size(columns=centre.shape[1], rows=2 * centre.shape[1] + 1, entries=5 * centre.shape[1])
    return Size(quadratics=1)


def encode_part(part, builder: Builder, columns: np.ndarray, reach: np.ndarray) -> None:
    """What a part of the input set says of the inputs' columns "n", whose values are at most `reach`; one set."""
    match part:
        case HalfSpacesBatch():
            offsets = numbers(part.offsets)
            normals = numbers(part.normals).reshape(len(offsets), -1)
            row, element = np.nonzero(normals)
            builder.add_rows(row, columns[element], normals[row, element], np.full(len(offsets), -np.inf), offsets)
        case BallBatch(norm=1):
            _sum_of_sizes(part, builder, columns)
        case BallBatch():
            centre, radius = numbers(part.centre), np.broadcast_to(numbers(part.radius), columns.shape)
            moves = np.flatnonzero(radius > 0)  # the box holds the others where they are
            weight = 1 / radius[moves] ** 2
            k = np.arange(len(moves))
            _ball(builder, columns[moves], centre[moves], k, k, weight, reach[moves])
        case EllipsoidBatch():
            precision = numbers(part.precision).reshape(len(columns), -1)
            first, second = np.nonzero(precision)
            _ball(builder, columns, numbers(part.centre), first, second, precision[first, second], reach)


def _sum_of_sizes(part: BallBatch, builder: Builder, columns: np.ndarray) -> None:
    """sum_i |x_i - c_i| / r_i <= 1, with a variable t_i >= |x_i - c_i| / r_i for each input."""
    centre, radius = numbers(part.centre), np.broadcast_to(numbers(part.radius), columns.shape)
    moves = np.flatnonzero(radius > 0)
    columns, centre, radius, k = columns[moves], centre[moves], radius[moves], np.arange(len(moves))
    sizes = builder.columns(np.zeros(len(moves)), np.ones(len(moves)), INPUTS)
    builder.measure(Distances(sizes, columns, centre, radius))
    for sign in (1.0, -1.0):  # r t - sign x >= - sign c
        builder.add_rows(
            np.tile(k, 2), np.concatenate([sizes, columns]), np.concatenate([radius, np.full(len(k), -sign)]),
            -sign * centre, np.full(len(k), np.inf),
        )  # fmt: skip
    builder.add_rows(np.zeros(len(k), dtype=np.int64), sizes, np.ones(len(k)), np.full(1, -np.inf), np.ones(1))


def _ball(builder: Builder, columns, centre, first, second, value, reach) -> None:
    """sum value (x_i - c_i) (x_j - c_j) <= 1."""
    linear = -(
        np.bincount(first, value * centre[second], minlength=len(columns))
        + np.bincount(second, value * centre[first], minlength=len(columns))
    )
    terms = value * centre[first] * centre[second]
    far = reach + np.abs(centre)
    size = (np.abs(value) * far[first] * far[second]).sum() + 1
    zero = np.zeros(len(value), dtype=np.int64)
    builder.complete = False  # rows do not say it
    builder.add_forms(
        (zero, columns[first], columns[second], value),
        (np.zeros(len(columns), dtype=np.int64), columns, linear),
        np.array([terms.sum() - 1]), False, np.array([2 * size * gamma(len(value) + 8)]), True,
    )  # fmt: skip
