"""SDP-CROWN: l2 balls through layers, the dual over them, against samples, brute force and CROWN."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
import pytest
import torch

from absdom import ops, testing
from absdom.arithmetic import PROOF, SEARCH, Arithmetic
from absdom.domains.linear import sdp_crown
from absdom.domains.linear.balls import Balls
from absdom.domains.linear.spectral import matrix_norm, operator_norm
from absdom.input_set import InputSet
from absdom.ir.graph import Builder
from absdom.ir.op import At
from absdom.ops.affine import Conv, Linear, LinearLeft
from absdom.ops.transposed import ConvTranspose
from absdom.passes import lower
from absdom.plan import run
from absdom.plan.planner import make_schedule
from absdom.plan.recipes import parse_recipe
from absdom.rows import Rows
from absdom.sets import InputBatch
from absdom.types import TensorType

FLOAT64 = Arithmetic(torch.float64)


def real(*shape: int) -> TensorType:
    return TensorType(shape, "float64")


def network(seed: int, widths=(6, 14, 12, 3), activation=ops.Relu, residual=False, scale=1.0):
    """Dense layers around an activation; `residual`: the second hidden layer is added to the first."""
    random = np.random.default_rng(seed)
    builder = Builder()
    x = builder.input("x", real(1, widths[0]))
    value = before = x
    for k, (n, m) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        w = builder.param(torch.from_numpy(random.standard_normal((n, m)) * scale / np.sqrt(n)), f"w{k}")
        b = builder.param(torch.from_numpy(random.standard_normal(m) / 4), f"b{k}")
        value = builder.add(ops.Add(), builder.add(ops.MatMul(), value, w), b)
        if k < len(widths) - 2:
            value = builder.add(activation(), value)
            if residual and k == 1 and n == m:
                value = builder.add(ops.Add(), value, before)
            before = value
    return lower(builder.finish([value]))


def convolutions(seed: int):
    random = np.random.default_rng(seed)
    builder = Builder()
    x = builder.input("x", real(1, 2, 6, 6))
    w = builder.param(torch.from_numpy(random.standard_normal((3, 2, 3, 3)) / 3), "w")
    hidden = builder.add(ops.Relu(), builder.add(ops.Conv((2, 1), (1, 1), 1, (1, 0), (0, 1)), x, w))
    v = builder.param(torch.from_numpy(random.standard_normal((2, 3, 2, 2)) / 3), "v")
    hidden = builder.add(ops.Relu(), builder.add(ops.Conv((1, 2), (1, 1), 1, (0, 0), (0, 0)), hidden, v))
    flat = builder.add(ops.Reshape((1, builder.type(hidden).numel)), hidden)
    last = builder.param(torch.from_numpy(random.standard_normal((builder.type(flat).numel, 3))), "last")
    return lower(builder.finish([builder.add(ops.MatMul(), flat, last)]))


NETWORKS = {
    "relu": lambda s: network(s),
    "leaky": lambda s: network(s, activation=lambda: ops.LeakyRelu(0.2)),
    "steep left": lambda s: network(s, activation=lambda: ops.LeakyRelu(1.7)),
    "abs": lambda s: network(s, activation=ops.Abs),
    "residual": lambda s: network(s, widths=(5, 9, 9, 8, 2), residual=True),
    "convolutions": convolutions,
}


def context_of(graph, recipe, arithmetic=FLOAT64):
    return run.prepare(make_schedule(graph, parse_recipe(recipe) if isinstance(recipe, str) else recipe), arithmetic)


def balls_of(graph, radii, seed=0, clip=None):
    n = sum(graph.nodes[i].type.numel for i in graph.inputs)
    centre = np.random.default_rng(seed).uniform(0, 1, (len(radii), n))
    return InputSet.ball(centre, np.asarray(radii), 2, clip), centre


def on_ball(context, centre, radius, steps=10, restarts=3):
    """Points of one l2 ball "k n": random ones, and where projected gradient walks on each output end."""
    generator = torch.Generator().manual_seed(1)
    c, n = torch.from_numpy(centre), len(centre)

    def project(x):
        d = x - c
        return c + d * (radius * 0.999999 / d.norm(dim=-1, keepdim=True).clamp(min=1e-300)).clamp(max=1)

    start = torch.randn((60, n), generator=generator, dtype=torch.float64)
    points = [c + start * (radius * 0.999999 / start.norm(dim=1, keepdim=True))]
    for sign in (1, -1):
        for k in range(3):
            x = points[0][:restarts]
            for _ in range(steps):
                x = x.detach().requires_grad_()
                out = run.evaluate(context, x).flatten(1)
                (g,) = torch.autograd.grad(out[:, k % out.shape[1]].sum(), x)
                x = project(x.detach() + sign * radius / 4 * g / g.norm(dim=1, keepdim=True).clamp(min=1e-300))
            points.append(x)
    return torch.cat([c[None], *points])


@pytest.mark.parametrize("name", NETWORKS)
def test_every_ball_and_every_bound_holds_on_samples_and_attacks(name):
    for seed in range(2):
        graph = NETWORKS[name](seed)
        radii = [0.0, 0.02, 0.3, 1.5]
        inputs, centre = balls_of(graph, radii, seed)
        plain = context_of(graph, "interval")
        for recipe in ("sdp-crown", "balls", "sdp-crown(pre=interval)", "sdp-crown(slope=flat)"):
            context = context_of(graph, recipe, PROOF)
            with torch.no_grad():
                batch = InputBatch.of(inputs, PROOF)
                bounds = run.propagate(context, batch)
                found = run.node_bounds(context, batch)
            for b, radius in enumerate(radii):
                points = on_ball(plain, centre[b], radius)
                out = testing.enclose(graph, points)
                assert (found.lower[b] <= out.upper).all() and (found.upper[b] >= out.lower).all(), (recipe, b)
                values = states(plain, points)
                for i, known in bounds.items():
                    if known.ball is not None:
                        step = (values[i] - known.ball.centre[b]).flatten(1)
                        slack = 1e-12 * (1 + values[i].abs().max())
                        assert (step.norm(dim=1) <= known.ball.radius[b] + slack).all()
                        assert (step.abs() <= known.ball.reach[b].flatten() + slack).all()
                        if known.ball.products is not None:  # the ellipsoids that diagonal dominance gives
                            p = torch.rand(step.shape[1], generator=torch.Generator().manual_seed(i)).double()
                            size = (step.square() * p / (known.ball.products @ p)).sum(1).sqrt()
                            assert (size <= known.ball.source[b] + slack).all()


def states(context, points):
    """The value of every varying node at points."""
    values = {**context.values, **dict(run.split_inputs(context.graph, points))}
    for i in context.schedule.final.nodes[::-1]:
        if i not in values:
            values[i] = context.graph.nodes[i].op.eval(*(values[j] for j in context.graph.nodes[i].inputs))
    return values


@pytest.mark.parametrize("arithmetic", [FLOAT64, SEARCH, PROOF], ids=["float64", "float32", "charged"])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_row_is_looser_than_crown_over_the_same_bounds(name, arithmetic):
    wins = 0
    for seed in range(4):
        graph = NETWORKS[name](seed)
        inputs, _ = balls_of(graph, [0.0, 0.05, 0.4, 1.0], seed)
        context = context_of(graph, "balls & crown & sdp-crown", arithmetic)
        crown, sdp = parse_recipe("crown"), parse_recipe("sdp-crown")
        with torch.no_grad():
            batch = InputBatch.of(inputs, arithmetic)
            bounds = run.propagate(context, batch)
            shape = context.graph.nodes[context.schedule.target].type.shape
            C = torch.randn((4 * 5, *shape), generator=torch.Generator().manual_seed(seed), dtype=arithmetic.dtype)
            rows = Rows.dense_rows(C, 4)
            ragged = Rows.dense_rows(C, 4, torch.arange(4).repeat_interleave(5))
            swept = [run.sweep(context, context.schedule.final, r, batch, bounds, rows) for r in (crown, sdp)]
            again = run.sweep(context, context.schedule.final, sdp, batch, bounds, ragged)
        slack = {torch.float64: 1e-10, torch.float32: 1e-4}[arithmetic.dtype] * (1 + swept[0].abs())
        assert (swept[1] >= swept[0] - slack).all()
        assert ((again - swept[1]).abs() <= slack).all(), "ragged rows get other bounds"
        wins += int((swept[1] > swept[0] + 10 * slack).sum())
    assert wins > 10, "the balls gain nothing"


def test_picking_the_neurons_that_bend_changes_nothing(monkeypatch):
    for name in ("relu", "leaky", "convolutions"):
        graph = NETWORKS[name](1)
        inputs, _ = balls_of(graph, [0.0, 0.1, 0.6], 1)
        for arithmetic in (FLOAT64, PROOF):
            found = []
            for few in (0, 10**6):
                monkeypatch.setattr(sdp_crown, "FEW", few)
                with torch.no_grad():
                    bounds = run.node_bounds(
                        context_of(graph, "sdp-crown", arithmetic), InputBatch.of(inputs, arithmetic)
                    )
                found.append(torch.stack([bounds.lower, bounds.upper]))
            assert torch.allclose(*found, rtol=1e-9, atol=1e-9)


def test_one_layer_against_the_optimum_of_the_relaxation():
    """max over m of the bound, by brute force on grids of m and of every neuron's interval; and below it, samples."""
    for seed in range(3):
        graph = network(seed, widths=(4, 7, 1), scale=1.5)
        inputs, _ = balls_of(graph, [0.4], seed)
        context = context_of(graph, "sdp-crown", FLOAT64)
        with torch.no_grad():
            batch = InputBatch.of(inputs, FLOAT64)
            bounds = run.propagate(context, batch)
            (relu,) = (i for i in context.schedule.final.nodes if graph.nodes[i].op.name == "Relu")
            place = context.place(relu, bounds)
            dual = run.registry.find_rule(type(parse_recipe("sdp-crown")), ops.Relu)[0]
            nu = Rows.dense_rows(torch.randn((8, 1, 7), generator=torch.Generator().manual_seed(seed)).double(), 1)
            known = place.inputs[0]
            isotropic = known.ball._replace(products=None, source=None)
            place = place._replace(inputs=(replace(known, ball=isotropic),))
            (part,), term = dual.pull(nu, place, dual.relax(place, parse_recipe("sdp-crown")))
        low, high, c = (t.flatten().numpy() for t in (known.lower, known.upper, isotropic.centre))
        share = np.linspace(0, 1, 1001)[:, None]
        x = low + (high - low) * share
        for r in range(8):
            row, g = nu.dense()[r].flatten().numpy(), part.dense()[r].flatten().numpy()
            base = row * np.maximum(x, 0) - g * x
            bent = (low < 0) & (high > 0) & (row != 0)
            best = -inf
            for m in np.concatenate([[0], np.geomspace(1e-3, 1e3, 200)]):
                value = (base + m / 2 * (x - c) ** 2)[:, bent].min(0).sum() - m / 2 * float(isotropic.radius[0]) ** 2
                best = max(best, value)
            assert float(term[r]) <= best + 2e-3 * (1 + abs(best)) and float(term[r]) >= best - 2e-2 * (1 + abs(best))


def test_norms_are_above_the_singular_values_and_near_them():
    generator = torch.Generator().manual_seed(0)

    def weights(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    cases = [
        (Linear(), real(1, 7), weights(7, 5)),
        (Linear(), real(3, 7), weights(7, 15), weights(15)),
        (LinearLeft(), weights(4, 7), real(7, 3)),
        (Conv((2, 2), (1, 1), 1, (1, 1), (1, 1)), real(1, 3, 8, 8), weights(4, 3, 4, 4), weights(4)),
        (Conv((1, 2), (2, 1), 2, (0, 2), (1, 0)), real(1, 4, 7, 9), weights(6, 2, 3, 2)),
        (Conv((3,), (1,), 1, (0,), (0,)), real(2, 2, 11), weights(3, 2, 2)),
        (ConvTranspose((2, 1), (1, 2), 1, (1, -1), (9, 8)), real(1, 3, 4, 5), weights(3, 2, 3, 3)),
        (ConvTranspose((2,), (1,), 2, (0,), (10,)), real(1, 4, 5), weights(4, 3, 2)),
        (ops.ReduceSum((1,)), real(3, 4)),
        (ops.Add(), real(1, 5), real(3, 5)),
        (ops.Sub(), real(3, 5), real(1, 5)),
        (ops.Take(1, (0, 0, 2)), real(2, 5)),
    ]
    for op, *operands in cases:
        types = [real(*o.shape) if isinstance(o, torch.Tensor) else o for o in operands]
        varying = tuple(not isinstance(o, torch.Tensor) for o in operands)
        params = tuple(o[None] if isinstance(o, torch.Tensor) else None for o in operands)
        at = At(tuple(types), op.infer(*types), varying, params)
        for index in (i for i, v in enumerate(varying) if v):
            n = types[index].numel
            every = torch.eye(n, dtype=torch.float64).reshape(n, *types[index].shape)
            values = [
                every if i == index else every.new_zeros((n, *t.shape)) if v else None
                for i, (t, v) in enumerate(zip(types, varying, strict=True))
            ]
            true = torch.linalg.matrix_norm(op.linear(at, values).flatten(1), 2)
            found = operator_norm(op, at, index, (None,) * len(operands))
            assert true <= found * (1 + 1e-13) and found <= 1.2 * true, (op, index)


@pytest.mark.parametrize("shape", [(1, 1), (3, 9), (40, 40), (200, 30)])
def test_the_norm_of_a_matrix_is_close(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for factor in (1.0, 1e-120, 1e120):
        found = matrix_norm(matrix * factor)
        true = torch.linalg.matrix_norm(matrix, 2) * factor
        assert true <= found * (1 + 1e-14) and found <= true * 1.02
    assert matrix_norm(torch.zeros(shape, dtype=torch.float64)) < 1e-100


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["sdp-crown", "balls", "ascent(sdp-crown, steps=2)"])
def test_the_laws_of_domains_on_every_op(recipe):
    testing.check_domain(recipe)


@pytest.mark.parametrize("recipe", ["sdp-crown", "balls"])
def test_the_laws_of_domains(recipe):
    wanted = ("Relu", "LeakyRelu", "Conv", "Sigmoid")
    cases = [case for case in testing.standard_cases() if case.name in wanted]
    assert len(cases) == len(wanted)
    testing.check_domain(recipe, cases)


def test_gradients_with_respect_to_weights_and_boxes():
    for seed in range(2):
        graph = network(seed, widths=(3, 5, 4, 2))
        n = 3
        centre = torch.rand((2, n), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        labels = [k for k in graph.params if k.startswith("w")]
        schedule = make_schedule(graph, parse_recipe("balls"))

        def function(low, high, *weights, graph=graph, labels=labels, schedule=schedule):
            context = run.prepare(schedule, FLOAT64, {**graph.params, **dict(zip(labels, weights, strict=True))})
            bounds = run.propagate(context, InputBatch(low, high))
            ball = bounds[schedule.target].ball
            return ball.centre, ball.radius, ball.reach

        arguments = [centre - 0.05, centre + 0.07, *(graph.params[k].double() for k in labels)]
        arguments = [a.detach().clone().requires_grad_() for a in arguments]
        assert torch.autograd.gradcheck(function, arguments, eps=1e-7, atol=1e-4, rtol=1e-3)


def test_gradients_of_the_dual_are_supergradients_of_slopes():
    """Where the best multiplier is inside an interval in which no neuron changes sides, the gradient is the slope."""
    graph = network(3, widths=(4, 30, 20, 2))
    inputs, _ = balls_of(graph, [0.3], 3)
    context, recipe = context_of(graph, "sdp-crown"), parse_recipe("sdp-crown")
    batch = InputBatch.of(inputs, FLOAT64)
    with torch.no_grad():
        bounds = run.propagate(context, batch)
    shape = context.graph.nodes[context.schedule.target].type.shape
    rows = Rows.dense_rows(torch.ones((1, *shape), dtype=torch.float64), 1)
    relus = [i for i in context.schedule.final.nodes if graph.nodes[i].op.name == "Relu"]
    dual = run.registry.find_rule(type(recipe), ops.Relu)[0]
    knobs = {i: {k: s.value for k, s in dual.knobs(context.place(i, bounds), recipe).items()} for i in relus}
    assert set(knobs[relus[0]]) == {"slope", "chord"}

    def value(chord):
        changed = {**knobs, relus[0]: {**knobs[relus[0]], "chord": chord}}
        return run.sweep(context, context.schedule.final, recipe, batch, bounds, rows, knobs=changed)

    start = (knobs[relus[0]]["chord"] * 0.8 + 0.1).requires_grad_()
    (slope,) = torch.autograd.grad(value(start).sum(), start)
    direction = torch.randn(start.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-5
    with torch.no_grad():
        measured = (value(start + step * direction) - value(start - step * direction)) / (2 * step)
    assert abs(float(measured) - float((slope * direction).sum())) <= 0.05 * (1 + float(slope.abs().sum()))


def test_ascent_over_one_box_with_picked_neurons(monkeypatch):
    monkeypatch.setattr(sdp_crown, "FEW", 0)
    graph = network(5, widths=(6, 20, 16, 2))
    inputs, _ = balls_of(graph, [0.3], 5)
    widths = []
    for recipe in ("sdp-crown", "ascent(sdp-crown, steps=5)"):
        found = run.node_bounds(context_of(graph, recipe, PROOF), InputBatch.of(inputs, PROOF))
        widths.append(float((found.upper - found.lower).sum()))
    assert widths[1] < widths[0]


def test_ascent_improves_and_balls_of_other_sets_hold():
    graph = network(5, widths=(6, 20, 16, 2))
    inputs, centre = balls_of(graph, [0.2, 0.5], 5)
    widths = {}
    for recipe in ("crown", "sdp-crown", "ascent(sdp-crown, steps=10)"):
        context = context_of(graph, recipe)
        found = run.node_bounds(context, InputBatch.of(inputs, FLOAT64))
        widths[recipe] = float((found.upper - found.lower).sum())
    assert widths["ascent(sdp-crown, steps=10)"] < widths["sdp-crown"] < widths["crown"]
    # Boxes, and l1 balls cut by a box.
    for sets in (InputSet.box(centre - 0.1, centre + 0.1), InputSet.ball(centre, 0.3, 1, (0.0, 1.0))):
        with torch.no_grad():
            lifted = Balls().lift(InputBatch.of(sets, PROOF), [graph.nodes[i].type for i in graph.inputs], PROOF)[0]
        random = np.random.default_rng(0)
        for b in range(2):
            step = random.standard_normal((200, 6))
            points = np.clip(centre[b] + 0.3 * step / np.abs(step).sum(1, keepdims=True), sets.lower[b], sets.upper[b])
            inside = np.stack([p for p in points if sets.contains(p, b)])
            distance = torch.from_numpy(inside)[:, None] - lifted.centre[b]
            assert (distance.flatten(1).norm(dim=1) <= lifted.radius[b]).all()
