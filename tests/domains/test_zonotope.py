"""Zonotopes: laws, shared symbols, sets that are no boxes, budgets, and rows at the output."""

from __future__ import annotations

from itertools import product
from math import inf

import mpmath
import numpy as np
import pytest
import torch
from exact_oracle import real_outputs
from random_graphs import BOXES, random_boxes, random_graph
from torch.fx.experimental.proxy_tensor import make_fx

from absdom import ops, testing
from absdom.arithmetic import PROOF, Arithmetic
from absdom.domain import NodeBounds
from absdom.domains.zonotope import Zonotope
from absdom.errors import UsageError
from absdom.ir.graph import Builder
from absdom.passes import lower
from absdom.plan import run
from absdom.plan.planner import make_schedule
from absdom.plan.recipes import parse_recipe
from absdom.property import InputSet
from absdom.rows import Rows
from absdom.sets import InputBatch
from absdom.types import TensorType

FLOAT64 = Arithmetic(torch.float64)
CASES = {case.name: case for case in testing.standard_cases()}
SMALL = 3e-4  # a budget in megabytes that lets few generators through
VARIANTS = (
    "zonotope",
    "hybrid-zonotope",
    f"zonotope(budget_mb={SMALL})",
    f"zonotope(budget_mb={SMALL}, reduce=girard)",
    "hybrid-zonotope(slope=adaptive)",
    "zonotope(slope=flat)",
)


class Net:
    """A network that grows layer by layer; weights by seed."""

    def __init__(self, seed: int, *shape: int):
        self.random = np.random.default_rng(seed)
        self.builder = Builder()
        self.value = self.builder.input("x", TensorType(shape, "float64"))

    def add(self, op, *more: int) -> int:
        self.value = self.builder.add(op, self.value, *more)
        return self.value

    def weights(self, *shape: int, scale: float) -> int:
        return self.builder.param(torch.from_numpy(self.random.standard_normal(shape) * scale), "w")

    def dense(self, size: int) -> int:
        n = self.builder.type(self.value).numel
        self.add(ops.Reshape((1, n)))
        self.add(ops.MatMul(), self.weights(n, size, scale=n**-0.5))
        return self.add(ops.Add(), self.weights(size, scale=0.3))

    def conv(self, filters: int, padding: int, stride: int = 1) -> int:
        shape = (filters, self.builder.type(self.value).shape[1], 3, 3)
        op = ops.Conv((stride, stride), (1, 1), 1, (padding, padding), (padding, padding))
        return self.add(op, self.weights(*shape, scale=0.3), self.weights(filters, scale=0.3))

    def relu(self) -> int:
        return self.add(ops.Relu())

    def finish(self):
        return lower(self.builder.finish([self.value]))


def states_of(graph, batch: InputBatch, recipe, arithmetic=FLOAT64):
    """The zonotope of the output, and the bounds of all nodes."""
    recipe = parse_recipe(recipe) if isinstance(recipe, str) else recipe
    context = run.prepare(make_schedule(graph, recipe), arithmetic)
    final: dict = {}
    with torch.no_grad():
        bounds = run.propagate(context, batch, final=final)
    return final[recipe], bounds, context


def width(bounds: NodeBounds) -> torch.Tensor:
    return bounds.upper - bounds.lower


@pytest.mark.parametrize("name", CASES)
def test_every_op_keeps_the_laws(name):
    testing.check_case(CASES[name], "zonotope")


@pytest.mark.parametrize("name", ["Relu", "Conv", "MatrixProduct", "MaxPool"])
@pytest.mark.parametrize("recipe", ["hybrid-zonotope", VARIANTS[2], *VARIANTS[4:]])
def test_more_laws(name, recipe):
    testing.check_case(CASES[name], recipe)


@pytest.mark.parametrize(
    "name", ["Relu", "Tanh", "Linear", "Concat", "Product", "MatrixProduct", "ReduceMax", "Softmax"]
)
@pytest.mark.parametrize("recipe", VARIANTS)
def test_bounds_are_differentiable(name, recipe):
    testing.check_gradients(CASES[name], recipe)


def test_slopes_by_hand():
    """One input in [-1, 3] and one in [-3, 1]: DeepZ's chords, DiffAI's Switch (slopes 1 and 0) and Box (0 and 0)."""
    net = Net(0, 1, 2)
    net.relu()
    graph = net.finish()
    batch = InputBatch(torch.tensor([[-1.0, -3.0]]).double(), torch.tensor([[3.0, 1.0]]).double())
    expected = {
        "parallel": ([0.75 * 2, 0.25 * 2], [0.75 / 2, 0.75 / 2]),  # generators: slope x radius; half of -slope x lower
        "adaptive": ([2.0, 0.0], [0.5, 0.5]),
        "flat": ([0.0, 0.0], [1.5, 0.5]),
    }
    for slope, (generators, box) in expected.items():
        state, _, _ = states_of(graph, batch, f"hybrid-zonotope(slope={slope})")
        (block,) = state.blocks.values()
        assert torch.allclose(block.values.abs().sum(1), torch.tensor([generators]).double())
        assert torch.allclose(state.radius, torch.tensor([box]).double())
    with pytest.raises(UsageError, match="slope"):
        parse_recipe("zonotope(slope=steep)")


def random_case(seed: int) -> testing.Case:
    graph = random_graph(seed, (1.0, 1.0, 1.0, 1e6, 1e-6)[seed % 5])
    n = sum(graph.nodes[i].type.numel for i in graph.inputs)
    kind = BOXES[(seed // 5) % len(BOXES)]
    return testing.Case(f"seed {seed}, {kind} boxes", lower(graph), *random_boxes(seed, n, kind))


@pytest.mark.parametrize("seed", range(6))
def test_random_networks(seed):
    case = random_case(seed)
    for recipe in VARIANTS:
        testing.check_sound(case, recipe, seed=seed)
    if seed % 5 < 3:  # ordinary weights
        for recipe in ("zonotope", VARIANTS[3]):
            testing.check_batch(case, recipe)
            testing.check_exact_on_points(case.on_points(), recipe)


def test_softmax_of_scores_whose_rounding_is_larger_than_their_exponents():
    """Scores near 1e18: what is out of reach is raised, and must not come into a plane with its own value."""
    low = torch.tensor([[5.6e17, -3.2e17]], dtype=torch.float64)
    high = torch.tensor([[1.03e18, -1.4e16]], dtype=torch.float64)
    for plane, side in zip(ops.Softmax(0).planes([low], [high]), (-1, 1), strict=True):
        (block,) = plane.coefficients
        for corner in product(*zip(low[0].tolist(), high[0].tolist(), strict=True)):
            z = torch.tensor([corner], dtype=torch.float64)
            value = block.apply(z[:, None])[:, 0] + plane.bias
            assert (side * (value - torch.softmax(z, 1)) >= -1e-9).all()


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(6, 2500))
def test_many_random_networks(seed):
    for recipe in VARIANTS:
        testing.check_sound(random_case(seed), recipe, seed=seed)


@pytest.mark.parametrize("seed", range(12))
def test_rounding_that_cancellation_leaves_is_charged(seed):
    """x A B - x fl(A B): near zero over the reals, and all that floats give is rounding of much larger values."""
    random = np.random.default_rng(seed)
    net, a, b = Net(seed, 1, 3), *(random.standard_normal(s) * 10.0 ** random.integers(0, 7) for s in ((3, 5), (5, 2)))
    layers = (
        np.concatenate([a, np.eye(3)], 1),
        np.block([[b, np.zeros((5, 2))], [np.zeros((3, 2)), a @ b]]),
        np.concatenate([np.eye(2), -np.eye(2)]),
    )
    for k, weights in enumerate(layers):
        net.add(ops.MatMul(), net.builder.param(torch.from_numpy(weights), "w"))
        if k < 2 and seed % 2:
            net.add(ops.LeakyRelu(1.0))
    source = net.builder.finish([net.value])
    low = torch.from_numpy(random.standard_normal((1, 3)))
    high = low + [0, 1e-15, 1e-12][seed % 3]
    for recipe in VARIANTS[:2]:
        found = testing.bounds_of(lower(source), low, high, recipe, PROOF)
        for point in (low[0], high[0]):
            for value, l, u in zip(real_outputs(source, point)[0], found.lower.flatten(), found.upper.flatten()):
                assert mpmath.mpf(l.item()) <= value <= mpmath.mpf(u.item())


def residual_difference(inner) -> tuple:
    """f(x) - f(x), where f(x) is computed once and read twice."""
    builder = Builder()
    x = builder.input("x", TensorType((1, 4), "float64"))
    value = inner(builder, x)
    flat = builder.add(ops.Reshape((4, 1)), value)
    back = builder.add(ops.Reshape((1, 4)), flat)
    return lower(builder.finish([builder.add(ops.Sub(), value, back)]))


INNER = {
    "x": lambda builder, x: x,
    "relu": lambda builder, x: builder.add(ops.Relu(), x),
    "tanh of tanh": lambda builder, x: builder.add(ops.Tanh(), builder.add(ops.Tanh(), x)),
    "square": lambda builder, x: builder.add(ops.Mul(), x, x),
    "max": lambda builder, x: builder.add(
        ops.Expand((1, 4)), builder.add(ops.ReduceMax(1), builder.add(ops.Reshape((1, 4)), x))
    ),
}


@pytest.mark.parametrize("name", INNER)
def test_what_branches_share_cancels(name):
    graph = residual_difference(INNER[name])
    batch = InputBatch(-torch.ones(2, 4, dtype=torch.float64), 2 * torch.ones(2, 4, dtype=torch.float64))
    for arithmetic in (FLOAT64, PROOF):
        _, bounds, context = states_of(graph, batch, "zonotope", arithmetic)
        assert (width(bounds[context.schedule.target]) <= 1e-13).all()


def test_reduced_branches_still_share_symbols():
    """x - relu(x) = min(x, 0): with most symbols dropped in one branch the others still cancel."""
    generator = torch.Generator().manual_seed(0)
    net = Net(0, 1, 4)
    first = net.dense(6)
    net.relu()
    net.dense(24)  # wide: here the budget bites
    net.relu()
    net.dense(6)
    net.add(ops.Add(), first)
    net.dense(2)
    graph = net.finish()
    low = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    batch = InputBatch(low, low + 0.2)
    found = []
    for budget in (1, 24 * 8 * 8 / 2**20, 24 * 8 * 4 / 2**20, 24 * 8 / 2**20, 1e-9):
        for method in ("box", "girard"):
            state, bounds, context = states_of(graph, batch, Zonotope(budget_mb=budget, reduce=method))
            found.append(width(state.bounds(FLOAT64)).mean().item())
            alone = [
                states_of(graph, batch.select(torch.tensor([b])), Zonotope(budget_mb=budget, reduce=method))[0]
                for b in range(3)
            ]
            for b, one in enumerate(alone):
                torch.testing.assert_close(one.bounds(FLOAT64).lower[0], state.bounds(FLOAT64).lower[b])
                assert one.count <= max(1, int(budget * 2**20) // (8 * 6)) + 6
    assert found[0] == found[1] and found == sorted(found) or found[-1] > found[0]
    assert found[-1] > 1.05 * found[0], "the budget takes nothing away"


def test_the_budget_bounds_generators_at_every_op(monkeypatch):
    from absdom.domains.zonotope import rules

    seen = []
    original = rules.through

    def recorded(states, apply):
        seen.append(max(s.count for s in states if s is not None))
        return original(states, apply)

    monkeypatch.setattr(rules, "through", recorded)
    net = Net(1, 1, 10)
    for size in (20, 20, 5):
        net.dense(size)
        net.relu()
    graph = net.finish()
    low = torch.zeros(1, 10, dtype=torch.float64)
    batch = InputBatch(low, low + 1)
    widths = []
    for limit in (3, 8, 1000):
        seen.clear()
        state, _, _ = states_of(graph, batch, Zonotope(budget_mb=limit * 20 * 8 / 2**20))
        assert seen and max(seen) <= limit * 4, (limit, seen)  # 4: the last layer is narrower
        assert max(seen[:3]) <= limit
        widths.append(width(state.bounds(FLOAT64)).sum().item())
    assert widths == sorted(widths, reverse=True) and widths[0] > widths[2]


def test_box_bytes_is_above_what_states_hold():
    net = Net(3, 1, 2, 5, 5)
    net.conv(4, 1)
    net.relu()
    net.conv(4, 0, 2)
    net.relu()
    net.dense(6)
    net.relu()
    graph = net.finish()
    low = -torch.ones(1, 50, dtype=torch.float64)
    state, _, _ = states_of(graph, InputBatch(low, -low), "zonotope")
    held = sum(g.values.numel() * 8 for g in state.blocks.values())
    assert state.count <= 50 + 100 + 16 + 6
    assert held < Zonotope().box_bytes(graph, 8) < 40 * 100 * 150 * 8
    assert Zonotope(errors="box").box_bytes(graph, 8) < Zonotope().box_bytes(graph, 8)


def test_inputs_without_width_have_no_generator():
    net = Net(2, 1, 6)
    net.dense(3)
    graph = net.finish()
    low = torch.zeros(2, 6, dtype=torch.float64)
    high = low.clone()
    high[0, 1], high[1, 4] = 1, 2
    state, _, _ = states_of(graph, InputBatch(low, high), "zonotope")
    assert state.count == 2
    state, _, _ = states_of(graph, InputBatch(low, low), "zonotope")
    assert state.count == 0


@pytest.mark.parametrize("norm", [1, 2])
def test_balls_are_exact_behind_one_layer(norm):
    random = np.random.default_rng(norm)
    net = Net(5, 1, 4)
    net.dense(3)
    graph = net.finish()
    weights = next(t for t in graph.params.values() if t.dim() == 2).double()
    centre, radius = random.uniform(0, 1, (2, 4)), 0.3
    for arithmetic in (FLOAT64, PROOF):
        batch = InputBatch.of(InputSet.ball(centre, radius, norm, None), arithmetic)
        state, bounds, context = states_of(graph, batch, "zonotope", arithmetic)
        value = run.evaluate(context, torch.from_numpy(centre))
        dual = torch.linalg.vector_norm(weights, 2 if norm == 2 else inf, 0)
        found = bounds[context.schedule.target]
        torch.testing.assert_close(found.upper - value, (radius * dual).expand_as(value), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(value - found.lower, (radius * dual).expand_as(value), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", [1, 2, inf])
@pytest.mark.parametrize("clip", [None, (0.0, 1.0)], ids=["whole", "clipped"])
def test_forward_and_backward_agree_on_balls(norm, clip):
    random = np.random.default_rng(7)
    net = Net(6, 1, 5)
    net.dense(7)
    net.relu()
    net.dense(6)
    net.relu()
    net.dense(3)
    graph = net.finish()
    centre = random.uniform(0, 1, (3, 5))
    batch = InputBatch.of(InputSet.ball(centre, [0.02, 0.1, 0.0], norm, clip), FLOAT64)
    _, forward, context = states_of(graph, batch, "zonotope")
    with torch.no_grad():
        backward = run.node_bounds(
            run.prepare(make_schedule(graph, parse_recipe("linear(pre=zonotope, slope=parallel)")), FLOAT64), batch
        )
    forward = forward[context.schedule.target]
    torch.testing.assert_close(forward.lower, backward.lower, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(forward.upper, backward.upper, rtol=1e-7, atol=1e-8)


def test_rows_are_bounded_on_the_zonotope_itself():
    net = Net(8, 1, 6)
    net.dense(8)
    net.relu()
    net.dense(5)
    graph = net.finish()
    low = torch.rand(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    batch = InputBatch(low, low + 0.5)
    random = torch.Generator().manual_seed(2)
    C = torch.randn(6, 1, 5, generator=random, dtype=torch.float64)
    for arithmetic, recipe in product((FLOAT64, PROOF), ("zonotope", "hybrid-zonotope")):
        state, bounds, context = states_of(graph, batch, recipe, arithmetic)
        target = bounds[context.schedule.target]
        grouped = state.bound_rows(Rows.dense_rows(C, 3), arithmetic)
        box = torch.tensor([2, 0, 1, 1, 2, 0])
        order = torch.tensor([1, 5, 2, 3, 0, 4])  # the same rows, group by group
        ragged = state.bound_rows(Rows.dense_rows(C, 3, box), arithmetic)
        again = state.bound_rows(Rows.dense_rows(C[order], 3), arithmetic)
        torch.testing.assert_close(ragged[order], again, rtol=1e-12, atol=1e-12)
        by_hull = Rows.dense_rows(C, 3).dot_signed(target.lower, target.upper)
        assert (grouped >= by_hull - 1e-12).all() and (grouped > by_hull + 1e-3).any()
        zero = torch.zeros(6, dtype=torch.float64)
        whole = run.row_bounds(
            context, batch, bounds, Rows.dense_rows(C, 3), zero, {}, states={parse_recipe(recipe): state}
        )
        assert (whole >= grouped - 1e-9).all()
        points = testing.sample(graph, batch.lower, batch.upper)
        values = run.evaluate(context, points.flatten(0, 1)).reshape(3, -1, 5)
        real = torch.einsum("brn,bpn->brp", C.reshape(3, 2, 5), values).amin(2).flatten()
        assert (grouped <= real + 1e-12).all()


def test_rows_on_a_ball():
    net = Net(9, 1, 4)
    net.dense(3)
    graph = net.finish()
    batch = InputBatch.of(InputSet.ball(np.full((2, 4), 0.5), 0.2, 2, None), FLOAT64)
    state, _, context = states_of(graph, batch, "zonotope")
    C = torch.tensor([[[1.0, -1.0, 0.0]], [[1.0, 1.0, 1.0]]], dtype=torch.float64)
    weights = next(t for t in graph.params.values() if t.dim() == 2).double()
    centre = run.evaluate(context, torch.full((1, 4), 0.5, dtype=torch.float64))[0, 0]
    wanted = C[:, 0] @ centre - 0.2 * (weights @ C[:, 0].T).norm(dim=0)
    torch.testing.assert_close(state.bound_rows(Rows.dense_rows(C, 2), FLOAT64), wanted, rtol=1e-9, atol=1e-9)


def test_a_state_is_made_anew_from_bounds():
    """What ops without a rule get: every element is an error of its own."""
    low = torch.tensor([[[1.0, -inf, 2.0]]], dtype=torch.float64)
    high = torch.tensor([[[3.0, 5.0, 2.0]]], dtype=torch.float64)
    graph = CASES["Relu"].graph
    context = run.prepare(make_schedule(graph, parse_recipe("zonotope")), PROOF)
    batch = InputBatch(CASES["Relu"].lower, CASES["Relu"].upper)
    with torch.no_grad():
        place = context.place(context.schedule.target, run.propagate(context, batch))
    for recipe, count in ((Zonotope(), 2), (Zonotope(errors="box"), 0)):
        state = recipe.from_bounds(NodeBounds(low, high), place)
        found = state.bounds(PROOF)
        assert state.count == count
        assert (found.lower <= low).all() and (found.upper >= high).all()
        assert found.upper[0, 0, 0] < 3 + 1e-12 and found.upper[0, 0, 2] < 2 + 1e-12


def test_hybrid_zonotopes_trace_without_reading_data():
    net = Net(4, 1, 2, 4, 4)
    net.conv(3, 1)
    net.relu()
    net.dense(4)
    graph = net.finish()
    schedule = make_schedule(graph, parse_recipe("hybrid-zonotope"))

    def bounds(low, high, *weights):
        context = run.prepare(schedule, FLOAT64, dict(zip(graph.params, weights, strict=True)))
        found = run.node_bounds(context, InputBatch(low, high))
        return found.lower, found.upper

    low = torch.rand(2, 32, dtype=torch.float64)
    arguments = (low, low + 0.1, *graph.params.values())
    with torch.no_grad():
        traced = make_fx(bounds, tracing_mode="fake")(*arguments)
        torch.testing.assert_close(traced(*arguments), bounds(*arguments))


@pytest.mark.parametrize(
    ("text", "says"),
    [("zonotope(errors=some)", "errors 'some'"), ("zonotope(reduce=all)", "reduce 'all'"), ("zonotope(budget_mb=0)", "0"),
     ("zonotope(budget_mb=much)", "much"), ("zonotope(size=3)", "size")],
)  # fmt: skip
def test_arguments_that_are_wrong(text, says):
    with pytest.raises(UsageError, match=says):
        parse_recipe(text)
