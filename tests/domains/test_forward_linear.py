"""Forward linear bounds: sound on the states themselves, equal to sign-split matrices, rows through the last layers."""

from __future__ import annotations

from math import inf

import mpmath
import numpy as np
import pytest
import torch
from exact_oracle import real_outputs
from forward_states import dense, final_state
from test_graphs import case_of

from absdom import ops, testing
from absdom.arithmetic import PROOF, SEARCH
from absdom.domains.forward_linear import ForwardLinear
from absdom.ir.graph import Builder
from absdom.passes import lower
from absdom.plan import run
from absdom.plan.planner import make_schedule
from absdom.property import InputSet
from absdom.rows import Rows
from absdom.sets import InputBatch

FORWARD = ForwardLinear()
CASES = {case.name: case for case in testing.standard_cases()}
DIFFERENTIATED = (
    "Relu",
    "Clip",
    "Sigmoid",
    "Linear",
    "Sub",
    "Concat",
    "Product",
    "Softmax",
    "ReduceMax",
    "MatrixProduct",
)


@pytest.mark.parametrize("name", CASES)
def test_every_op_keeps_the_laws(name):
    testing.check_sound(CASES[name].half_flat(), FORWARD)
    testing.check_exact_on_points(CASES[name].on_points(), FORWARD)
    testing.check_batch(CASES[name], FORWARD)
    if name in DIFFERENTIATED:
        testing.check_gradients(CASES[name], FORWARD)


@pytest.mark.parametrize("seed", range(25))
def test_states_and_rows_hold_over_the_reals(seed):
    """Not met with intervals: the maps alone, in charged runs, at points that exact arithmetic judges."""
    graph, case = case_of(seed)
    state, _ = final_state(case.graph, InputBatch(case.lower, case.upper), PROOF, FORWARD)
    boxes = len(case.lower)
    with torch.no_grad():
        found = FORWARD.concretize(state, PROOF)
        nu = torch.randn((boxes * 2, *found.lower.shape[1:]), generator=torch.Generator().manual_seed(seed)).double()
        rows = FORWARD.bound_rows(state, Rows.dense_rows(nu, boxes), PROOF)
        ragged = Rows.dense_rows(nu, boxes, torch.arange(boxes).repeat_interleave(2))
        torch.testing.assert_close(FORWARD.bound_rows(state, ragged, PROOF), rows, rtol=1e-9, atol=0, equal_nan=True)
    points = testing.sample(case.graph, case.lower, case.upper, count=2, steps=3, seed=seed)
    for b in range(boxes):
        low, high = found.lower[b].flatten().tolist(), found.upper[b].flatten().tolist()
        for point in points[b]:
            y = real_outputs(graph, point)[0]
            assert all(not (l > v or h < v) for l, v, h in zip(low, y, high, strict=True)), (case.name, b)
            for r in (2 * b, 2 * b + 1):
                value = sum(mpmath.mpf(c) * v for c, v in zip(nu[r].flatten().tolist(), y, strict=True))
                assert not rows[r].item() > value, (case.name, r)


@pytest.mark.parametrize("op", [ops.Relu(), ops.LeakyRelu(0.2), ops.Sigmoid(), ops.Abs()], ids=lambda op: op.name)
def test_maps_are_those_of_sign_split_matrices(op):
    """lower' = W+ lower + W- upper, layer by layer, in plain matrices."""
    graph, weights = dense((3, 6, 5, 4), 3, op)
    low, high = torch.tensor([[-0.5, 0.2, -1.0]]).double(), torch.tensor([[0.3, 0.9, 0.1]]).double()
    state, bounds = final_state(graph, InputBatch(low, high), testing.FLOAT64, FORWARD)
    below = above = (torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    hidden = [i for i, n in enumerate(graph.nodes) if type(n.op) is type(op)]
    for k, (w, b) in enumerate(weights):
        up, down = w.clamp(min=0), w.clamp(max=0)
        below, above = (
            (one[0] @ up + two[0] @ down, one[1] @ up + two[1] @ down + b)
            for one, two in ((below, above), (above, below))
        )
        if k < len(hidden):
            known = bounds[graph.nodes[hidden[k]].inputs[0]]
            lines = [t[0, 0] for t in op.lines(known.lower, known.upper, op.initial(known.lower, known.upper))]
            pairs = []
            for slope, bias, (one, two) in ((lines[0], lines[1], (below, above)), (lines[2], lines[3], (above, below))):
                chosen = [torch.where(slope >= 0, p, q) for p, q in zip(one, two, strict=True)]
                pairs.append((chosen[0] * slope, chosen[1] * slope + bias))
            below, above = pairs
    slope, constant = state.slope[0, :, 0], state.constant[0, 0]
    wide, spread = state.spread_slope[0, :, 0], state.spread[0, 0]
    for expected, found in ((below, (slope - wide, constant - spread)), (above, (slope + wide, constant + spread))):
        for e, f in zip(expected, found, strict=True):
            torch.testing.assert_close(f, e, rtol=1e-12, atol=1e-12)


def test_rows_are_combined_before_the_last_layers():
    """A row of the output is bounded through W c: a difference of two equal outputs is exactly zero."""
    graph, _ = dense((4, 8, 6))
    builder = Builder()
    new = {i: builder.copy(node, node.inputs, graph.params) for i, node in enumerate(graph.nodes)}
    twice = builder.add(ops.Concat(1), new[graph.outputs[0]], new[graph.outputs[0]])
    graph = lower(builder.finish([twice]))
    sets = InputBatch(torch.full((1, 4), -1.0).double(), torch.full((1, 4), 1.0).double())
    state, _ = final_state(graph, sets, testing.FLOAT64, FORWARD)
    nu = torch.zeros((1, 1, 12), dtype=torch.float64)
    nu[0, 0, 2], nu[0, 0, 8] = 1, -1
    value = FORWARD.bound_rows(state, Rows.dense_rows(nu, 1), testing.FLOAT64)
    found = FORWARD.concretize(state, testing.FLOAT64)
    assert value.abs().item() < 1e-12
    assert (found.lower[0, 0, 2] - found.upper[0, 0, 8]).item() < -0.1


def test_one_layer_is_exact_on_balls():
    """Without a nonlinear op the bounds are the support function of the set."""
    graph, [(w, b)] = dense((5, 3))
    centre = torch.rand((2, 5), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for norm, dual in ((1, inf), (2, 2)):
        sets = InputBatch.of(InputSet.ball(centre.numpy(), 0.3, norm, None), testing.FLOAT64)
        state, _ = final_state(graph, sets, testing.FLOAT64, FORWARD)
        found = FORWARD.concretize(state, testing.FLOAT64)
        middle, reach = centre @ w + b, 0.3 * torch.linalg.vector_norm(w, dual, 0)
        torch.testing.assert_close(found.lower[:, 0], middle - reach)
        torch.testing.assert_close(found.upper[:, 0], middle + reach)


@pytest.mark.parametrize("norm", [1, 2])
def test_sound_on_clipped_balls(norm):
    graph, _ = dense((4, 10, 10, 2), 5, ops.Tanh())
    random = np.random.default_rng(0)
    centre = random.uniform(0, 1, (3, 4))
    inputs = InputSet.ball(centre, 0.4, norm)
    state, _ = final_state(graph, InputBatch.of(inputs, PROOF), PROOF, FORWARD)
    found = FORWARD.concretize(state, PROOF)
    context = run.prepare(make_schedule(graph, FORWARD), testing.FLOAT64)
    for _ in range(200):
        step = random.standard_normal((3, 4))
        step *= 0.4 * random.uniform(0, 1, (3, 1)) / np.linalg.norm(step, norm, 1, keepdims=True)
        y = run.evaluate(context, torch.from_numpy(np.clip(centre + step, 0, 1)))
        assert ((found.lower <= y + 1e-12) & (y - 1e-12 <= found.upper)).all()


def test_tighter_than_intervals_on_deep_networks_and_looser_than_crown():
    graph, _ = dense((4, 20, 20, 20, 2), 7)
    low, high = torch.full((1, 4), -0.2).double(), torch.full((1, 4), 0.3).double()
    width = {}
    for method in ("interval", FORWARD, "crown"):
        found = testing.bounds_of(graph, low, high, method, SEARCH)
        width[str(method)] = float((found.upper - found.lower).sum())
    assert width["crown"] < width[str(FORWARD)] < width["interval"]
