"""Every registered op, with generated shapes, attributes, parameters and boxes, keeps the laws in every recipe."""

from __future__ import annotations

from dataclasses import replace

import op_strategies  # noqa: F401  (fills the table of strategies)
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from op_cases import KINDS, STRATEGIES, generated_ops, op_cases
from op_laws import check_laws

from absdom import ops, testing

NAMES = tuple(generated_ops())
QUICK, NIGHTLY = 3, 25  # examples per op, each on a box of every kind
RELAXED = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
    HealthCheck.large_base_example,
]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=QUICK, derandomize=True, deadline=None, database=None, suppress_health_check=RELAXED)
@given(data=st.data())
def test_ops_keep_the_laws(name, data):
    check_laws(data.draw(op_cases(name)))


@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=NIGHTLY, deadline=None, database=None, print_blob=True, suppress_health_check=RELAXED)
@given(data=st.data())
def test_ops_keep_the_laws_at_length(name, data):
    check_laws(data.draw(op_cases(name)), thorough=True)


def test_the_number_of_cases():
    assert QUICK * len(KINDS) * len(NAMES) >= 1_000
    assert NIGHTLY * len(KINDS) * len(NAMES) >= 10_000


def test_strategies_belong_to_ops():
    assert set(STRATEGIES) <= set(NAMES)


# The laws can fail


def check_some(name: str) -> None:
    @settings(max_examples=8, derandomize=True, deadline=None, database=None, report_multiple_bugs=False,
              suppress_health_check=RELAXED, phases=[Phase.generate])  # fmt: skip
    @given(data=st.data())
    def check(data):
        check_laws(data.draw(op_cases(name)))

    check()


def test_a_transpose_that_ignores_dilation_is_caught(monkeypatch):
    right = ops.Conv.transpose

    def wrong(self, nu, at, index):
        plain = replace(self, dilations=tuple(1 for _ in self.dilations))
        try:
            return right(plain, nu, at, index)
        except RuntimeError:  # shapes that do not fit hide the mistake
            return right(self, nu, at, index)

    monkeypatch.setattr(ops.Conv, "transpose", wrong)
    with pytest.raises(testing.LawBroken, match="adjoint"):
        check_some("Conv")


def test_rounding_that_nobody_pays_for_is_caught(monkeypatch):
    monkeypatch.setattr(ops.Tanh, "error", lambda self, x, value: torch.zeros_like(value))
    with pytest.raises(testing.LawBroken, match="exact value is passed"):
        check_some("Tanh")


def test_lines_that_hold_for_the_usual_knobs_only_are_caught(monkeypatch):
    right = ops.Abs.lines

    def wrong(self, lower, upper, knobs):
        lines = right(self, lower, upper, knobs)
        return lines._replace(lower_slope=lines.lower_slope + 4 * knobs["slope"] * (1 - knobs["slope"]))

    monkeypatch.setattr(ops.Abs, "lines", wrong)
    with pytest.raises(testing.LawBroken, match="random knobs"):
        check_some("Abs")


def test_planes_without_their_last_digits_are_caught(monkeypatch):
    right = ops.Product.planes

    def wrong(self, lowers, uppers, knobs=None):
        low, high = right(self, lowers, uppers, knobs)
        return low._replace(bias=low.bias + low.bias.abs() * 1e-13), high

    monkeypatch.setattr(ops.Product, "planes", wrong)
    with pytest.raises(testing.LawBroken, match="the lower bound is passed"):
        check_some("Product")


def test_a_division_by_the_width_of_a_point_is_caught(monkeypatch):
    right = ops.Relu.lines

    def wrong(self, lower, upper, knobs):
        lines = right(self, lower, upper, knobs)
        slope = torch.where(upper > lower, (upper.relu() - lower.relu()) / (upper - lower), lines.upper_slope)
        return lines._replace(upper_slope=slope)

    monkeypatch.setattr(ops.Relu, "lines", wrong)
    with pytest.raises(testing.LawBroken, match="gradient is NaN"):
        check_some("Relu")
