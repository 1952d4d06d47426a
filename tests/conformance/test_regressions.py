"""Networks on which verifiers have been wrong: every recipe is sound on them.

Ends over segments of the input are known exactly (`exact_lines`), so that nothing here rests on absdom's own numbers.
"""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from exact_lines import exact_ends
from exact_oracle import real_outputs
from nets import relu_net
from small_networks import GRAPHS, Net

from absdom import ops, testing
from absdom.arithmetic import PROOF
from absdom.passes import lower as lower_graph
from absdom.plan import run
from absdom.plan.planner import make_schedule
from absdom.plan.recipes import parse_recipe
from absdom.property import InputSet
from absdom.sets import InputBatch


def box_of(graph, seed: int, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """A random box with float32 ends, so that every judge can stand on its corners."""
    n = sum(graph.nodes[i].type.numel for i in graph.inputs)
    random = np.random.default_rng(seed)
    centre = random.standard_normal(n)
    ends = centre - radius * random.uniform(0, 1, n), centre + radius * random.uniform(0, 1, n)
    return tuple(e.astype(np.float32).astype(np.float64) for e in ends)


def outside(found, least, largest) -> bool:
    """Does the exact range reach beyond the bounds of the one box?"""
    ends = zip(found.lower.flatten().tolist(), found.upper.flatten().tolist(), least, largest, strict=True)
    return any(mpmath.mpf(low) > a or mpmath.mpf(high) < b for low, high, a, b in ends)


# Bounds


@pytest.mark.parametrize("radius", [0.0, 7e-8, 0.6])
@pytest.mark.parametrize("make", GRAPHS, ids=lambda m: m.__name__)
def test_the_exact_range_over_segments_lies_inside_all_bounds(make, radius):
    """Dilated, grouped, strided and padded convolutions in a row; convolutions without activations; stacked overlapping
    max pools; average pools; linear residual branches; branches joined by Concat and Add."""
    graph = make(seed := int(radius * 10) + len(make.__name__))
    lower, upper = box_of(graph, seed, radius)
    corner = np.random.default_rng(seed).random(len(lower)) < 0.5
    least, largest = exact_ends(graph, np.where(corner, lower, upper), np.where(corner, upper, lower))
    lowered = lower_graph(graph)
    box = [torch.from_numpy(t[None]) for t in (lower, upper)]
    for recipe in testing.RECIPES:
        found = testing.bounds_of(lowered, *box, recipe, PROOF)
        assert not outside(found, least, largest), recipe
    assert radius > 0 or found.upper.sub(found.lower).max() < 1e-9  # and at a point nothing is lost


@pytest.mark.parametrize("make", GRAPHS, ids=lambda m: m.__name__)
def test_the_laws_on_these_networks(make):
    graph = lower_graph(make(7))
    boxes = [box_of(graph, seed, 0.3) for seed in range(2)]
    case = testing.Case(make.__name__, graph, *(torch.from_numpy(np.stack(t)) for t in zip(*boxes, strict=True)))
    assert testing.check_adjoint(graph) > 3
    testing.check_sound(case, "crown")
    testing.check_sound(case.half_flat(), "cap & crown-ibp")
    testing.check_batch(case, "crown")


def test_forty_networks_at_forty_points():
    """Zero-width boxes: float32 bounds that miss the exact value in the last digits prove falsehoods."""
    for seed in range(40):
        graph, _ = relu_net((4, 8, 8, 3), seed)
        x = np.random.default_rng(seed).standard_normal((1, 4))
        real = real_outputs(lower_graph(graph), torch.from_numpy(x[0]))[0]
        for recipe in ("interval", "crown", "cap"):
            found = testing.bounds_of(lower_graph(graph), torch.from_numpy(x), torch.from_numpy(x), recipe, PROOF)
            assert not outside(found, real, real), (seed, recipe)


@pytest.mark.parametrize("norm", [1, 2, np.inf])
def test_balls_through_one_convolution_have_the_dual_norm(norm):
    """The 2-norm used for every p: over a ball of radius r, the least <w, x> is <w, c> - r |w|_q with 1/p + 1/q = 1."""
    net = Net(3, 1, 2, 4, 4)
    net.conv(2, (2, 3), strides=(2, 1), dilations=(2, 1), groups=2, before=(1, 0), after=(0, 1))
    graph = lower_graph(net.finish())
    centre, radius = np.random.default_rng(0).standard_normal((2, 32)), 0.7
    for recipe in ("crown", "cap"):
        context = run.prepare(make_schedule(graph, parse_recipe(recipe)), PROOF)
        batch = InputBatch.of(InputSet.ball(centre, radius, norm, clip=None), PROOF)
        with torch.no_grad():
            found = run.node_bounds(context, batch)
            zero = run.evaluate(context, torch.zeros(1, 32, dtype=torch.float64)).flatten()
            matrix = (run.evaluate(context, torch.eye(32, dtype=torch.float64)).flatten(1) - zero).numpy().T
        dual = {1: np.abs(matrix).max(1), 2: np.linalg.norm(matrix, axis=1), np.inf: np.abs(matrix).sum(1)}[norm]
        for b in range(2):
            middle = matrix @ centre[b] + zero.numpy()
            for bound, exact in ((found.lower, middle - radius * dual), (found.upper, middle + radius * dual)):
                np.testing.assert_allclose(bound[b].numpy().ravel(), exact, rtol=1e-6, atol=1e-6)
            assert (found.lower[b].numpy().ravel() <= middle - radius * dual + 1e-13).all()
            assert (found.upper[b].numpy().ravel() >= middle + radius * dual - 1e-13).all()


def test_a_value_less_itself_is_zero():
    """Symbols of one input that are counted twice where branches meet: x - x has no width, x + x has twice x's."""
    net = Net(0, 1, 3)
    twice = net.add(ops.Add(), net.value)
    net.add(ops.Sub(), net.builder.add(ops.Add(), net.input, net.input))
    net.add(ops.Concat(1), twice)
    graph = lower_graph(net.finish())
    box = torch.tensor([[-1.0, 0.5, 2.0]], dtype=torch.float64)
    found = testing.bounds_of(graph, box, box + 1, "crown", PROOF)
    expected = torch.cat([torch.zeros(1, 3), 2 * box], 1), torch.cat([torch.zeros(1, 3), 2 * box + 2], 1)
    for bound, exact, way in ((found.lower, expected[0], 1), (found.upper, expected[1], -1)):
        assert ((bound - exact) * way <= 0).all() and ((bound - exact).abs() < 1e-13).all()


@pytest.mark.parametrize("op", [ops.Mul(), ops.MatMul()], ids=str)
def test_products_keep_their_constants(op):
    """Bilinear terms pulled back without the constants of their planes: over a box, the ends are at the four corners."""
    random = np.random.default_rng(1)
    for _ in range(15):
        net = Net(0, 1, 2)
        right = net.builder.add(ops.Slice(1, 1, 2), net.input)
        net.add(ops.Slice(1, 0, 1))
        net.add(op, right)
        graph = lower_graph(net.finish())
        ends = np.sort(random.standard_normal((2, 2)) * 10.0 ** random.integers(-3, 4, 2), 0)
        corners = [a * b for a in ends[:, 0] for b in ends[:, 1]]
        slack = 1e-13 * max(map(abs, corners))
        for recipe in testing.RECIPES:
            found = testing.bounds_of(graph, *(torch.from_numpy(e[None]) for e in ends), recipe, PROOF)
            assert (
                found.lower.item() <= min(corners) + 1e-3 * slack and found.upper.item() >= max(corners) - 1e-3 * slack
            )
            assert found.lower.item() >= min(corners) - 10 * slack and found.upper.item() <= max(corners) + 10 * slack
