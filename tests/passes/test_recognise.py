"""Functions that a file spells out become one op, with the file's own constants, and compute the same."""

from __future__ import annotations

import pytest
import torch

from absdom import ops, testing
from absdom.arithmetic import PROOF
from absdom.ir.graph import Builder
from absdom.passes import lower
from absdom.plan import run
from absdom.plan.planner import make_schedule
from absdom.plan.recipes import parse_recipe
from absdom.sets import InputBatch
from absdom.types import TensorType

ROOT = 1.4142135381698608  # sqrt(2) as a float32


def spelled(build) -> tuple:
    """(what is spelled, lowered)."""
    b = Builder()
    x = b.input("x", TensorType((1, 5), "float64"))

    def number(value, label):
        return b.param(torch.tensor([value], dtype=torch.float64), label)

    graph = b.finish([build(b, x, number)])
    return graph, lower(graph)


def silu(b, x, number):
    return b.add(ops.Mul(), b.add(ops.Sigmoid(), x), x)


def mish(b, x, number):
    return b.add(ops.Mul(), x, b.add(ops.Tanh(), b.add(ops.Softplus(), x)))


def gate(b, x, number, one=1.0):
    return b.add(ops.Add(), b.add(ops.Erf(), b.add(ops.Div(), x, number(ROOT, "root"))), number(one, "one"))


def gelu_product_first(b, x, number):
    return b.add(ops.Mul(), b.add(ops.Mul(), x, gate(b, x, number)), number(0.5, "half"))


def gelu_half_first(b, x, number):
    return b.add(ops.Mul(), gate(b, x, number), b.add(ops.Mul(), number(0.5, "half"), x))


def gelu_by_factor(b, x, number):
    scaled = b.add(ops.Mul(), number(0.75, "factor"), x)
    curve = b.add(ops.Add(), number(1.0, "one"), b.add(ops.Erf(), scaled))
    return b.add(ops.Mul(), b.add(ops.Mul(), curve, number(0.5, "half")), x)


SPELLED = {
    silu: ops.Silu(), mish: ops.Mish(), gelu_product_first: ops.Gelu(divisor=ROOT), gelu_half_first: ops.Gelu(divisor=ROOT),
    gelu_by_factor: ops.Gelu(divisor=1 / 0.75),
}  # fmt: skip


@pytest.mark.parametrize("build", SPELLED, ids=lambda f: f.__name__)
def test_spelled_functions_are_recognised(build):
    graph, lowered = spelled(build)
    found = [n.op for n in lowered.nodes if n.inputs]
    assert found == [SPELLED[build]]
    x = torch.linspace(-6, 6, 200, dtype=torch.float64).reshape(-1, 5)
    values = [run.evaluate(run.prepare(make_schedule(g, parse_recipe("ibp")), testing.FLOAT64), x) for g in (lowered,)]
    want = {0: x[:, None]}
    for i, node in enumerate(graph.nodes):
        if node.inputs:
            want[i] = node.op.eval(*(want[j] for j in node.inputs))
        elif i:
            want[i] = graph.params[node.op.label][None]
    assert torch.allclose(values[0], want[graph.outputs[0]], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("build", SPELLED, ids=lambda f: f.__name__)
def test_their_bounds_hold_and_are_tighter(build):
    _, lowered = spelled(build)
    low, high = torch.full((1, 5), -2.0, dtype=torch.float64), torch.full((1, 5), 1.0, dtype=torch.float64)
    context = run.prepare(make_schedule(lowered, parse_recipe("ibp")), PROOF)
    bounds = run.node_bounds(context, InputBatch(low, high))
    values = run.evaluate(context, torch.linspace(-2, 1, 500, dtype=torch.float64).reshape(-1, 5))
    assert (bounds.lower <= values).all() and (values <= bounds.upper).all()
    assert (bounds.lower > values.min() - 1e-3).all() and (bounds.upper < values.max() + 1e-3).all()


@pytest.mark.parametrize("change", ["one", "trained", "other factor"])
def test_what_only_looks_like_them_stays(change):
    def build(b, x, number):
        if change == "other factor":
            return b.add(ops.Mul(), b.add(ops.Mul(), x, gate(b, x, number)), number(0.25, "quarter"))
        half = torch.tensor([0.5], dtype=torch.float64, requires_grad=change == "trained")
        other = gate(b, x, number, one=2.0 if change == "one" else 1.0)
        return b.add(ops.Mul(), b.add(ops.Mul(), x, other), b.param(half, "half"))

    assert not any(isinstance(n.op, ops.Gelu) for n in spelled(build)[1].nodes)
