"""The laws as the author of a plug-in runs them: what they take, what they find, and the examples on all ops."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from absdom import ops, registry, testing
from absdom.domain import Dual, Forward, LayerDual, NodeBounds
from absdom.domains.interval import Interval
from absdom.domains.linear import Linear
from absdom.domains.linear.duals import ElementwiseDual
from absdom.errors import GraphError, UsageError
from absdom.ir.op import Affine, Elementwise, Lines
from absdom.types import TensorType

CASES = {case.name: case for case in testing.standard_cases()}
SOME = [CASES["Relu"]]


@pytest.fixture(autouse=True)
def registered_rules(monkeypatch):
    """What a test registers goes away with it."""
    monkeypatch.setattr(registry, "_rules", dict(registry._rules))


# What they take


def test_domains_are_given_as_class_value_or_text():
    assert {testing.as_recipe(d) for d in (Interval, Interval(), "interval")} == {Interval()}
    assert testing.as_recipe("linear(pre=interval)") == Linear(pre=Interval())
    testing.check_domain(Linear, SOME)


def test_ops_are_given_as_class_value_or_text():
    assert {testing.as_op(op) for op in (ops.Relu, ops.Relu(), "Relu", "Relu()")} == {ops.Relu()}
    assert testing.as_op("Clip(low=-1.0, high=inf)") == ops.Clip(-1.0)
    for op in ("Log", ops.Product):
        testing.check_op(op, recipes=("interval", "cap"))


@dataclass(frozen=True)
class NeedsAnArgument(Forward):
    size: int

    def lift(self, sets, types, arithmetic):
        return Interval().lift(sets, types, arithmetic)

    def concretize(self, state, arithmetic):
        return state


@dataclass(frozen=True)
class TakesFour(Elementwise):
    def infer(self, a, b, c, d):
        return a


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: testing.check_domain(NeedsAnArgument, SOME), UsageError, "size.*give a domain as a value"),
        (lambda: testing.check_domain(dict, SOME), UsageError, "is no recipe: domains derive from Forward or Dual"),
        (lambda: testing.check_domain("lineer", SOME), UsageError, "column 1.*linear"),
        (lambda: testing.check_op("Reluu"), GraphError, "there is no op 'Reluu'"),
        (lambda: testing.check_op(ops.ReduceMax), UsageError, "axis.*give an op as a value"),
        (lambda: testing.check_op(TakesFour), UsageError, "give its operands"),
        (lambda: testing.check_domain(NeedsAnArgument(1)), testing.LawBroken, "has no rule for .*Relu.*from_bounds"),
    ],
)  # fmt: skip
def test_what_they_say_to_what_they_cannot_take(call, error, text):
    with pytest.raises(error, match=text):
        call()


# What they find in a domain


@dataclass(frozen=True)
class Coarse(Forward):
    """Intervals that start anew at every op; a factor shrinks them."""

    factor: float = 1.0
    name: ClassVar[str] = "coarse"

    def lift(self, sets, types, arithmetic):
        return Interval().lift(sets, types, arithmetic)

    def concretize(self, state, arithmetic):
        centre = (state.lower + state.upper) / 2
        radius = self.factor * (state.upper - state.lower) / 2
        return NodeBounds(centre - radius, centre + radius) if self.factor < 1 else state

    def from_bounds(self, bounds, place):
        return NodeBounds(bounds.lower, bounds.upper)


def test_a_domain_without_rules_keeps_the_laws_by_its_bounds():
    testing.check_domain(Coarse, [CASES[n] for n in ("Conv", "Product")])


def test_a_forward_domain_that_shrinks_is_caught():
    with pytest.raises(testing.LawBroken, match="unsound"):
        testing.check_domain(Coarse(0.8), SOME)


@dataclass(frozen=True)
class Mine(Linear):
    name: ClassVar[str] = "mine"


def test_a_layer_dual_that_forgets_its_term_is_caught_where_it_stands():
    """With a row of one sign only, and behind intervals that hide it: the layer alone shows it."""

    class Forgets(ElementwiseDual):
        def pull(self, nu, place, relaxation):
            parts, term = super().pull(nu, place, relaxation)
            return parts, term * 0

    registry.register_rule(Mine, ops.Relu)(Forgets())
    with pytest.raises(testing.LawBroken, match="layer dual is unsound.*Forgets for Relu"):
        testing.check_layers(CASES["Relu"], Mine())
    assert testing.check_layers(CASES["Tanh"], Mine()) > 0


def test_lines_that_fail_for_some_knobs_are_caught():
    class Eager(ElementwiseDual):
        def lines(self, place, recipe):
            lines = super().lines(place, recipe)
            return lines._replace(lower_slope=lines.lower_slope * 1.2) if place.knobs else lines

    registry.register_rule(Mine, ops.Relu)(Eager())
    with pytest.raises(testing.LawBroken, match="with random knobs"):
        testing.check_layers(CASES["Relu"], Mine())


def test_a_wrong_adjoint_of_an_affine_layer_is_caught():
    class Doubles(LayerDual):
        def pull(self, nu, place, relaxation):
            return tuple(nu.pull(place.op, place.at, i) + nu.pull(place.op, place.at, i)
                         for i, varying in enumerate(place.at.varying) if varying), None  # fmt: skip

    registry.register_rule(Mine, Affine)(Doubles())
    with pytest.raises(testing.LawBroken, match="layer dual is unsound.*Doubles"):
        testing.check_layers(CASES["Conv"], Mine())


class Asks(ElementwiseDual):
    def lines(self, place, recipe):
        lines = super().lines(place, recipe)
        return lines if (lines.lower_slope == 0).all() else lines._replace(lower_slope=lines.lower_slope * 1)


def test_a_rule_that_asks_for_a_value_has_no_trace():
    registry.register_rule(Mine, ops.Relu)(Asks())
    testing.check_layers(CASES["Relu"], Mine())
    with pytest.raises(testing.LawBroken, match=r"no trace.*\.item\(\)"):
        testing.check_traceable(CASES["Relu"], Mine())


def test_a_dual_without_rules_is_named():
    @dataclass(frozen=True)
    class Empty(Dual):
        name: ClassVar[str] = "empty"

    with pytest.raises(testing.LawBroken, match="empty has no rule for"):
        testing.check_domain(Empty())


# What they find in an op


@dataclass(frozen=True)
class Square(Elementwise):
    """x^2, for x in [-9, 9]. `excess` makes its band too narrow, `value` makes a rule read a number."""

    excess: float = 0.0
    reads: bool = False
    domain: ClassVar[tuple[float, float]] = (-9.0, 9.0)

    def eval(self, x):
        return x * x

    def image(self, lower, upper):
        ends = lower * lower, upper * upper
        low = torch.where((lower <= 0) & (upper >= 0), torch.zeros_like(lower), torch.minimum(*ends))
        high = torch.maximum(*ends)
        return low - 1e-12 - low * 1e-12, high + 1e-12 + high * 1e-12

    def lines(self, lower, upper, knobs):
        middle, slope = (lower + upper) / 2, lower + upper
        if self.reads:
            middle = middle + 0 * float(middle.sum())
        slack = 1e-12 * (1 + lower * lower + upper * upper)
        return Lines(2 * middle, -middle * middle - slack, slope, -lower * upper + slack)

    def band(self, lower, upper, slope):
        low, high = super().band(lower, upper, slope)
        return low + self.excess, high


def test_an_op_keeps_the_laws_with_its_facts_alone():
    testing.check_op(Square, recipes=("interval", "crown", "cap"), gradients=True)


def test_a_narrow_band_is_caught():
    with pytest.raises(testing.LawBroken, match="unsound.*parallel"):
        testing.check_op(Square(excess=0.3), recipes=("crown", "linear(pre=interval, slope=parallel)"))


def test_an_op_that_reads_a_number_has_no_trace():
    with pytest.raises(testing.LawBroken, match="no trace"):
        testing.check_op(Square(reads=True), recipes=("crown",))


def test_operands_and_ends_may_be_given():
    weights = torch.randn(4, 3, dtype=torch.float64)
    testing.check_op(ops.MatMul, TensorType((1, 4), "float64"), weights, low=-0.1, high=0.2, recipes=("cap",))


# The examples


def in_a_process(root, script: str) -> None:
    names = "05_own_domain", "06_own_layer_dual"
    load = "".join(f"registry.load_plugin({str(root / 'examples' / name)!r} + '.py')\n" for name in names)
    script = f"import torch\nfrom absdom import registry, testing\n{load}{script}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_domain_on_balls(root):
    """Sets of norms 1 and 2 in charged float64: no sampled output is cut off, and they beat the box around the ball."""
    in_a_process(root, """
from absdom.arithmetic import PROOF
from absdom.plan import run
from absdom.plan.planner import make_schedule
from absdom.property import InputSet
from absdom.sets import InputBatch
for name in ("Relu", "Conv", "Tanh", "Product"):
    case = {c.name: c for c in testing.standard_cases()}[name]
    for norm in (1.0, 2.0):
        centre = ((case.lower + case.upper) / 2).numpy()
        sets = InputSet.ball(centre, 0.4, norm, None)
        batch = InputBatch.of(sets, PROOF)
        found = []
        for recipe in ("ball-image", "interval"):
            context = run.prepare(make_schedule(case.graph, testing.as_recipe(recipe)), PROOF)
            found.append(run.propagate(context, batch)[context.schedule.target])
        step = torch.randn(len(centre), 400, centre.shape[1], dtype=torch.float64)
        step[:, :2 * centre.shape[1]] = torch.cat([torch.eye(centre.shape[1]), -torch.eye(centre.shape[1])])
        step = 0.4 * step / step.norm(p=norm, dim=2, keepdim=True) * (1 - 1e-15)
        points = torch.from_numpy(centre)[:, None] + step
        points = torch.minimum(torch.maximum(points, batch.lower[:, None]), batch.upper[:, None])
        real = testing.enclose(case.graph, points.flatten(0, 1))
        low, high = (t.reshape(*points.shape[:2], -1) for t in (real.lower, real.upper))
        own, box = ([t.reshape(len(centre), 1, -1) for t in (f.lower, f.upper)] for f in found)
        assert (own[0] <= high).all() and (own[1] >= low).all(), (name, norm)
        assert (own[1] - own[0]).mean() < 0.9 * (box[1] - box[0]).mean(), (name, norm)
""")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ball-image", "hardtanh", "hardtanh(slope=parallel)"])
def test_the_examples_on_all_ops(root, method):
    in_a_process(root, f"testing.check_domain({method!r})")
