"""Resize, Upsample, AffineGrid and Einsum against onnxruntime and numpy."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from graph_evaluate import evaluate
from onnx_models import agree, model, names_of, node

from absdom import testing
from absdom.arithmetic import PROOF
from absdom.errors import ModelError, UnsupportedOp
from absdom.frontends.onnx import load_onnx
from absdom.passes import lower

COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")


def resize(shape, mode, coordinates, scales=None, sizes=None, opset=19, **attributes) -> bytes:
    constants = {"scales": np.array(scales, dtype=np.float32)} if scales else {"sizes": np.array(sizes)}
    inputs = "x - scales" if scales else "x - - sizes"
    call = node("Resize", inputs, "y", mode=mode, coordinate_transformation_mode=coordinates, **attributes)
    return model(call, {"x": shape}, "y", constants, opset)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("rule", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_nearest(rule, coordinates):
    for sizes in ([1, 2, 7, 5], [1, 2, 2, 9], [1, 2, 6, 1], [1, 2, 8, 12]):
        graph = agree(resize([1, 2, 4, 6], "nearest", coordinates, sizes=sizes, nearest_mode=rule))
        assert set(names_of(graph)) <= {"Input", "Take", "Slice", "Reshape"}, "nothing is computed"


@pytest.mark.parametrize("coordinates", [*COORDINATES, "half_pixel_symmetric"])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_interpolation(mode, coordinates):
    for sizes in ([1, 2, 7, 9], [1, 2, 3, 5], [1, 2, 8, 12]):
        testing.check_adjoint(agree(resize([1, 2, 4, 6], mode, coordinates, sizes=sizes), tolerance=2e-5))
    for scales in ([1, 1, 2, 1.5], [1, 1, 0.5, 0.5]):
        agree(resize([1, 2, 4, 6], mode, coordinates, scales=scales), tolerance=2e-5)


def test_interpolation_of_one_and_three_axes():
    agree(resize([1, 1, 5], "linear", "half_pixel", sizes=[1, 1, 8]))
    agree(resize([1, 1, 2, 3, 2], "linear", "align_corners", sizes=[1, 1, 3, 5, 4]), tolerance=1e-5)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_borders_that_do_not_count(mode):
    data = resize([1, 1, 4, 5], "cubic", "half_pixel", sizes=[1, 1, 7, 3], exclude_outside=1, cubic_coeff_a=-0.5)
    agree(data, tolerance=2e-5)


def test_some_axes_and_the_aspect_ratio():
    data = resize([1, 1, 4, 8], "linear", "half_pixel", sizes=[6, 6], opset=18, axes=[2, 3])
    assert agree(data).nodes[-1].type.shape == (1, 1, 6, 6)
    for policy, shape in (("not_larger", (1, 1, 3, 6)), ("not_smaller", (1, 1, 6, 12))):
        attributes = {"axes": [2, 3], "keep_aspect_ratio_policy": policy}
        graph = agree(resize([1, 1, 4, 8], "linear", "half_pixel", sizes=[6, 6], opset=18, **attributes))
        assert graph.nodes[graph.outputs[0]].type.shape == shape


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_crop_and_resize(mode):
    roi = np.array([0, 0, 0.25, -0.2, 1, 1, 0.8, 1.1], dtype=np.float32)
    call = node(
        "Resize",
        "x roi - sizes",
        "y",
        mode=mode,
        coordinate_transformation_mode="tf_crop_and_resize",
        extrapolation_value=7.5,
    )
    constants = {"roi": roi, "sizes": np.array([1, 2, 3, 6])}
    testing.check_adjoint(agree(model(call, {"x": [1, 2, 4, 5]}, "y", constants, 13), tolerance=1e-5))


@pytest.mark.parametrize(("opset", "mode"), itertools.product((7, 9), ("nearest", "linear")))
def test_upsample(opset, mode):
    scales = [1.0, 1.0, 2.0, 3.0]
    if opset == 7:
        data = model(node("Upsample", "x", "y", mode=mode, scales=scales), {"x": [1, 2, 2, 3]}, "y", opset=7)
    else:
        data = model(node("Upsample", "x s", "y", mode=mode), {"x": [1, 2, 2, 3]}, "y", {"s": np.array(scales)}, 9)
    agree(data)


def test_resize_of_opset_10():
    data = model(
        node("Resize", "x s", "y", mode="linear"), {"x": [1, 1, 2, 3]}, "y", {"s": np.array([1.0, 1, 2, 1.5])}, 10
    )
    agree(data)


@pytest.mark.parametrize(
    ("data", "words", "error"),
    [
        (resize([1, 1, 3], "linear", "align_corners", scales=[1, 1, 1.5]), "not agreed upon", UnsupportedOp),
        (resize([1, 1, 3], "sinc", "half_pixel", scales=[1, 1, 2]), "mode='sinc'", UnsupportedOp),
        (resize([1, 1, 3], "linear", "half_pixel", scales=[1, 2]), "one scale or one size", ModelError),
        (resize([1, 1, 3], "linear", "half_pixel", scales=[1, 1, -2]), "scales", ModelError),
        (resize([1, 1, 3], "linear", "half_pixel", sizes=[1, 1, 0]), "resizes", ModelError),
    ],
)
def test_what_is_refused(data, words, error):
    with pytest.raises(error, match=words):
        load_onnx(data=data)


def test_coefficients_that_float64_does_not_hold_are_enclosed():
    """A third of x is no float64 number: charged bounds at a point hold the real value on both sides."""
    graph = lower(load_onnx(data=resize([1, 1, 2], "linear", "align_corners", sizes=[1, 1, 4])))
    ends = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    for method in ("interval", "crown"):
        found = testing.bounds_of(graph, ends, ends, method, PROOF)
        third = float(found.lower[0, 0, 0, 1]), float(found.upper[0, 0, 0, 1])
        assert Fraction(third[0]) < Fraction(1, 3) < Fraction(third[1]), method
        assert third[1] - third[0] < 1e-14


@pytest.mark.parametrize(("size", "corners"), [([1, 2, 3, 4], 0), ([2, 1, 4, 3], 1), ([1, 1, 2, 3, 4], 0)])
def test_affine_grid(size, corners):
    spatial = len(size) - 2
    data = model(
        node("AffineGrid", "x size", "y", align_corners=corners), {"x": [size[0], spatial, spatial + 1]}, "y",
        {"size": np.array(size)}, 20,
    )  # fmt: skip
    agree(data)


EQUATIONS = [
    ("ij->ji", [(2, 3)]), ("ii->i", [(3, 3)]), ("ii", [(3, 3)]), ("iij->j", [(3, 3, 2)]), ("...ij->...ji", [(2, 3, 4)]),
    ("ijk->", [(2, 3, 2)]), ("bij,bjk->bik", [(2, 3, 4), (2, 4, 2)]), ("ij,jk", [(2, 3), (3, 4)]),
    ("i,i->", [(4,), (4,)]), ("i,j->ij", [(3,), (4,)]), ("bhqd,bhkd->bhqk", [(1, 2, 3, 4), (1, 2, 2, 4)]),
    ("...ij,...jk->...ik", [(2, 3, 4), (4, 2)]), ("ij,kj,k->i", [(2, 3), (4, 3), (4,)]), ("ab,cb->ca", [(2, 3), (4, 3)]),
    ("ij,ij->i", [(2, 3), (2, 3)]), ("abc,cd,bd->ad", [(2, 3, 4), (4, 5), (3, 5)]), ("i...->...", [(3, 2, 2)]),
    ("ij,kl->", [(2, 3), (2, 2)]), ("bi,oij,bj->bo", [(2, 3), (4, 3, 2), (2, 2)]),
]  # fmt: skip


@pytest.mark.parametrize(("equation", "shapes"), EQUATIONS)
def test_einsum(equation, shapes):
    """Each operand alone and all operands together vary; numpy says what the sums are."""
    generator = np.random.default_rng(len(equation))
    values = [generator.normal(size=s) for s in shapes]
    expected = np.einsum(equation, *values)
    names = [f"x{i}" for i in range(len(shapes))]
    for varying in [*([n] for n in names), names]:
        data = model(
            node("Einsum", " ".join(names), "y", equation=equation),
            {n: list(s) for n, s in zip(names, shapes, strict=True) if n in varying}, "y",
            {n: v for n, v in zip(names, values, strict=True) if n not in varying}, dtype=np.float64,
        )  # fmt: skip
        graph = load_onnx(data=data)
        point = np.concatenate([v.ravel() for n, v in zip(names, values, strict=True) if n in varying])
        assert graph.nodes[graph.outputs[0]].type.shape == expected.shape
        np.testing.assert_allclose(evaluate(graph, point)[0], expected.ravel(), rtol=1e-12, atol=1e-12)
        if len(varying) == 1:
            testing.check_adjoint(graph)


@pytest.mark.parametrize("equation", ["ij->ik", "ijk->i", "i,j->ij", "ij->ii", "i1->i"])
def test_illegal_equations(equation):
    with pytest.raises(ModelError, match="equation"):
        load_onnx(data=model(node("Einsum", "x", "y", equation=equation), {"x": [2, 3]}, "y"))
