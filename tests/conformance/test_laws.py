"""The public laws of absdom.testing: on one network per shipped op, in every recipe; and that they can fail."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from absdom import ops, testing
from absdom.ir.op import Affine, Elementwise, Lines
from absdom.types import TensorType

CASES = {case.name: case for case in testing.standard_cases()}
EVERY = ("interval", "crown", "cap & crown-ibp")


def test_every_registered_op_has_a_standard_case():
    # Ops of other test modules' plug-ins may be registered too; the shipped ones are what counts.
    assert not testing.ops_without_example() & set(ops.__all__)


@pytest.mark.parametrize("name", CASES)
def test_ops_keep_the_laws(name):
    case = CASES[name]
    assert testing.check_adjoint(case.graph) >= 2
    for recipe in EVERY:
        testing.check_case(case, recipe)


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("Conv", "AveragePool", "Tan")])
def test_bounds_are_differentiable_in_boxes_and_weights(name):
    testing.check_gradients(CASES[name], "crown")


def test_one_op_alone():
    x = TensorType((1, 4), "float64")
    testing.check_op(ops.Relu(), x, gradients=True)
    testing.check_op(ops.MatMul(), x, torch.randn(4, 3, dtype=torch.float64))
    testing.check_op(ops.Product(), x, x)
    testing.check_op(ops.Quotient(), x, x, low=0.5, high=2.0)


def test_a_whole_domain():
    testing.check_domain("crown-ibp", [CASES["Relu"], CASES["Conv"]], gradients=False)


@dataclass(frozen=True)
class WrongTranspose(Affine):
    def infer(self, x):
        return x

    def eval(self, x):
        return x.flip(-1) * 2

    def absolute(self, at, values):
        return values[0].flip(-1) * 2

    def transpose(self, nu, at, index):
        return nu * 2


@dataclass(frozen=True)
class WrongSign(Affine):
    """Forgets that an op with a built-in minus has to say what `absolute` is."""

    def infer(self, x):
        return x

    def eval(self, x):
        return -x

    def transpose(self, nu, at, index):
        return -nu


@dataclass(frozen=True)
class WrongLines(Elementwise):
    """A square whose lower line is the chord."""

    def eval(self, x):
        return x.square()

    def image(self, lower, upper):
        ends = lower.square(), upper.square()
        inside = (lower <= 0) & (upper >= 0)
        low = torch.where(inside, torch.zeros_like(lower), torch.minimum(*ends))
        return low - 1e-12, torch.maximum(*ends) * (1 + 1e-12) + 1e-12

    def lines(self, lower, upper, knobs):
        slope, bias = lower + upper, -lower * upper
        return Lines(slope, bias, slope, bias + 1e-9)


def test_the_laws_catch_a_wrong_transpose():
    with pytest.raises(testing.LawBroken, match="adjoint"):
        testing.check_adjoint(testing.one_op(WrongTranspose(), TensorType((1, 3), "float64")))


def test_the_laws_catch_a_forgotten_absolute():
    with pytest.raises(testing.LawBroken, match="absolute"):
        testing.check_adjoint(testing.one_op(WrongSign(), TensorType((1, 3), "float64")))


def test_the_laws_catch_an_invalid_line():
    graph = testing.one_op(WrongLines(), TensorType((1, 3), "float64"))
    case = testing.make_case("square", graph, -1.0, 1.5)
    testing.check_sound(case, "interval")
    with pytest.raises(testing.LawBroken, match="unsound"):
        testing.check_sound(case, "crown")


def test_bounds_that_are_unknown_claim_nothing():
    """Infinity minus infinity is NaN, and sign(NaN) is 0 in torch: a quotient by an interval around 0 proved Sign = 0."""
    from absdom.arithmetic import PROOF
    from absdom.ir.graph import Builder
    from absdom.passes import lower

    builder = Builder()
    x = builder.input("x", TensorType((1, 4), "float64"))
    quotient = builder.add(ops.Div(), builder.add(ops.Slice(1, 0, 2), x), builder.add(ops.Slice(1, 2, 4), x))
    mixed = builder.add(ops.MatMul(), quotient, builder.param(torch.tensor([[1.0, 2.0], [1.0, 3.0]]), "w"))
    for last, ends in ((ops.Sign(), (-1, 1)), (ops.Sigmoid(), (0, 1)), (ops.Clip(0.0, 1.0), (0, 1))):
        graph = lower(builder.finish([builder.add(last, mixed)]))
        for method in EVERY:
            box = torch.full((2, 4), 1.0, dtype=torch.float64)
            found = testing.bounds_of(graph, -box, 2 * box, method, PROOF)
            assert (found.lower <= ends[0]).all() and (found.upper >= ends[1]).all(), (last, method)
            assert found.lower.isfinite().all() and found.upper.isfinite().all(), "the interval bound was lost"
