"""Data sets: layouts, pixels, boxes, rows, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from absdom.datasets import Ball, label_rows, read_dataset, rows_property
from absdom.errors import PropertyError, UsageError
from absdom.types import TensorType

LABELS = np.array([0, 3, 1])
BALL = Ball(0.1)


def read(arrays: dict, shape=(1, 3, 2, 4), outputs: int = 4, ball=BALL, **options):
    return read_dataset(arrays, [TensorType(shape)], [TensorType((1, outputs))], ball, **options)


def test_layouts_of_images():
    chw = np.random.default_rng(0).random((3, 3, 2, 4))
    hwc = chw.transpose(0, 2, 3, 1)
    flat = chw.reshape(3, -1)
    for x in (chw, chw[:, None], hwc, flat, flat[:, :, None]):
        data = read({"x": x, "y": LABELS})
        assert (data.points(np.arange(3)) == flat).all()
    assert (read({"x": chw, "y": LABELS}, (1, 2, 4, 3)).points(np.arange(3)) == hwc.reshape(3, -1)).all()
    grey = np.random.default_rng(1).random((3, 2, 4))
    for shape in ((1, 1, 2, 4), (1, 2, 4, 1), (1, 8), (2, 4)):
        for x in (grey, grey[..., None], grey[:, None]):
            assert (read({"x_test": x, "y_test": LABELS}, shape).points(np.arange(3)) == grey.reshape(3, -1)).all()
    cube = np.random.default_rng(2).random((3, 2, 2, 2))  # fits as it is, and is left so
    assert (read({"x": cube, "y": LABELS}, (1, 2, 2, 2)).points(np.arange(3)) == cube.reshape(3, -1)).all()


def test_pixels_are_the_float32_numbers_that_networks_see():
    x = np.arange(24, dtype=np.uint8).reshape(1, 3, 2, 4) * 11
    points = read({"x": x, "y": [1]}).points(np.array([0]))
    assert points.dtype == np.float64
    assert (points == (x.astype(np.float32) / np.float32(255)).reshape(1, -1)).all()


def test_offset_and_limit():
    x = np.random.default_rng(0).random((9, 4))
    data = read({"x": x, "y": np.arange(9) % 4}, (1, 4), offset=3, limit=4)
    assert len(data) == 4 and data.first == 3
    assert (data.points(np.array([1])) == x[4]).all() and data.labels.tolist() == [3, 0, 1, 2]
    assert len(read({"x": x, "y": np.arange(9) % 4}, (1, 4), offset=3, limit=99)) == 6
    with pytest.raises(UsageError, match="offset 9 is behind the end of the data, which holds 9 items"):
        read({"x": x, "y": np.arange(9) % 4}, (1, 4), offset=9)


def test_boxes_and_rows():
    lower = np.zeros((2, 4))
    C, d = np.arange(12.0).reshape(1, 3, 4), np.array([[1.0, 2, 3], [4, 5, 6]])
    data = read({"lower": lower, "upper": lower + 1, "C": C[0], "d": d}, (1, 4), ball=None, offset=1)
    assert (data.points(np.array([0])) == 0.5).all()
    rows, constants = data.rows(np.array([0]))
    assert (rows == C).all() and (constants == d[1:]).all()
    prop = rows_property(data.input_sets(np.array([0])), rows, constants)
    assert prop.spec.clauses == 3 and (prop.inputs.upper == 1).all()
    assert (read({"lower": lower, "upper": lower, "C": C[0]}, (1, 4), ball=None).rows(np.arange(2))[1] == 0).all()
    each = np.random.default_rng(0).random((2, 3, 4))
    rows, _ = read({"x": lower, "C": each}, (1, 4)).rows(np.array([1, 0]))
    assert (rows == each[::-1]).all()


def test_boxes_of_pixels():
    low = np.arange(8, dtype=np.uint8).reshape(2, 4) * 30
    data = read({"x": low + 2, "lower": low, "upper": low + 5, "y": [0, 1]}, (1, 4), ball=None)
    sets, every = data.input_sets(np.arange(2)), np.arange(2)
    for ends, pixels in ((sets.lower, low), (data.points(every), low + 2), (sets.upper, low + 5)):
        assert (ends == pixels.astype(np.float32) / np.float32(255)).all()
    with pytest.raises(PropertyError, match="points inside the boxes; item 0 is none"):
        read({"x": low + 6, "lower": low, "upper": low + 5, "y": [0, 1]}, (1, 4), ball=None)


def test_rows_of_labels():
    C, d = label_rows(np.array([2, 0]), 3)
    assert C.tolist() == [[[-1, 0, 1], [0, -1, 1]], [[1, -1, 0], [1, 0, -1]]] and not d.any()


GOOD = {"x": np.full((3, 4), 0.5), "y": LABELS}
BOXES = {"lower": np.zeros((3, 4)), "upper": np.ones((3, 4)), "y": LABELS}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": None}, "neither points ('x' or 'x_test') nor boxes ('lower', 'upper'), only 'y'"),
        ({"y": None}, "neither labels ('y' or 'y_test') nor rows ('C'), only 'x'"),
        ({"x_test": np.zeros((3, 4))}, "both 'x' and 'x_test'"),
        ({"x": np.zeros((3, 5))}, "'x' has the shape [3, 5], items of [5]; the network takes [1, 4]"),
        ({"x": np.zeros((2, 4))}, "different lengths: 'x' 2, 'y' 3"),
        ({"x": np.zeros((0, 4)), "y": LABELS[:0]}, "no items"),
        ({"x": np.full((3, 4), 1.5)}, "'x' has values from 1.5 to 1.5, outside the range 0 to 1"),
        ({"x": np.array([[0, 0, 0, 0], [0, np.nan, 0, 0], [0, 0, 0, 0]])}, "'x' holds nan in item 1"),
        ({"x": np.zeros((3, 4), np.int64)}, "of type int64"),
        ({"x": np.float64(1)}, "a single number"),
        ({"y": np.array([0, 4, 1])}, "label 4 in item 1; the network has 4 outputs, 0 ... 3"),
        ({"y": np.array([0, -1, 1])}, "label -1 in item 1"),
        ({"y": np.array([0, 0.5, 1])}, "holds 0.5 in item 1: labels are whole numbers"),
        ({"y": np.eye(3)}, "an array float64 [3, 3]: it has to hold one whole number per item"),
        ({"y": np.array(["a", "b", "c"])}, "one whole number per item"),
        ({"lower": np.zeros((3, 4))}, "'lower' alone"),
        ({"d": np.zeros(2)}, "'d' without 'C'"),
        ({"C": np.zeros((2, 3))}, "'C' is an array float64 [2, 3]: rows over the 4 outputs are [R, 4]"),
        ({"C": np.zeros((2, 2, 4))}, "different lengths: 'x' 3, 'C' 2"),
        ({"C": np.zeros((2, 4)), "d": np.zeros(3)}, "'d' is an array float64 [3]: it has to be [2]"),
        ({"C": np.full((2, 4), np.inf)}, "a NaN or an infinity"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit(changes, words):
    arrays = {k: v for k, v in (GOOD | changes).items() if v is not None}
    with pytest.raises(PropertyError) as caught:
        read(arrays, (1, 4))
    assert words in str(caught.value)


def test_sets_that_do_not_fit():
    with pytest.raises(UsageError, match="holds points .'x'. and no boxes: give eps"):
        read(GOOD, (1, 4), ball=None)
    with pytest.raises(UsageError, match="they take the place of eps, norm and clip"):
        read(BOXES, (1, 4))
    with pytest.raises(PropertyError, match="lower bound 1.0 is above the upper bound 0.0"):
        read(BOXES | {"lower": BOXES["upper"], "upper": BOXES["lower"]}, (1, 4), ball=None)
    with pytest.raises(PropertyError, match="points inside the boxes; item 1 is none"):
        read(BOXES | {"x": np.array([[1.0] * 4, [0, 0, 0, 1.5], [0] * 4])}, (1, 4), ball=None)
    with pytest.raises(PropertyError, match="labels need a network with two outputs or more"):
        read({"x": np.zeros((1, 4)), "y": [0]}, (1, 4), 1)
    for eps in (-0.1, np.nan, np.inf):
        with pytest.raises(UsageError, match="eps"):
            Ball(eps)
    with pytest.raises(UsageError, match="norm 3 is not one of inf, 2, 1"):
        Ball(0.1, 3)
    with pytest.raises(UsageError, match="clip 1 0 is not a range"):
        Ball(0.1, clip=(1, 0))
