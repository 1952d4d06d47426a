"""Ascent: knobs that a search moves. Bounds stay bounds, do not get worse, and gradients of weights stay untouched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import exact_minimum, relu_net

from absdom import ops, testing
from absdom.arithmetic import PROOF, SEARCH
from absdom.domain import KnobStart
from absdom.errors import UsageError
from absdom.ir.graph import Builder
from absdom.passes import lower as lower_graph
from absdom.plan import run
from absdom.plan.planner import make_schedule
from absdom.plan.recipes import parse_recipe
from absdom.problem import Problem, bound_rows
from absdom.property import make_property
from absdom.sets import InputBatch
from absdom.solvers.ascent import Ascent, ascend
from absdom.types import Clock, TensorType

ALPHA = ("alpha-crown", "alpha-crown(share=boxes)", "alpha-crown(steps=5, intermediate=True)", "ascent(crown-ibp)")


def problem_of(seed: int, boxes: int = 2, sizes=(3, 4, 4, 3)):
    """A network, boxes of different sizes and, per box, other rows: two of the first, three of the others."""
    graph, layers = relu_net(sizes, seed)
    random = np.random.default_rng(seed)
    centre, radius = random.standard_normal((boxes, 3)), random.uniform(0.05, 0.6, (boxes, 1))
    clauses = [
        (b, [(random.standard_normal(3), random.standard_normal(), False)])
        for b in range(boxes)
        for _ in range(2 + (b > 0))
    ]
    prop = make_property(centre - radius, centre + radius, clauses)
    return Problem.of(graph, prop), layers


def rows_of(problem, method, arithmetic, **more):
    every = np.arange(problem.property.spec.rows)
    return bound_rows(problem.engine, parse_recipe(method), arithmetic, problem.property, every, **more)


@pytest.mark.parametrize("seed", range(2))
def test_never_worse_than_the_start_and_below_the_exact_minimum(seed):
    problem, layers = problem_of(seed)
    plain = {m: rows_of(problem, m, PROOF) for m in ("crown", "crown-ibp")}
    prop, spec = problem.property, problem.property.spec
    least = [
        exact_minimum(layers, spec.C.getrow(r).toarray().ravel(), spec.d[r], prop.inputs.lower[b], prop.inputs.upper[b])
        for r, b in enumerate(spec.row_box())
    ]
    for method in ALPHA:
        found = rows_of(problem, method, PROOF)
        start = plain["crown-ibp" if "ibp" in method else "crown"]
        slack = 1e-9 * (1 + np.abs(start))
        if "boxes" in method:  # the sum over a box's rows does not get worse, a single row may
            assert (np.bincount(spec.row_box(), found - start) >= -1e-9 * (1 + np.abs(start).max())).all()
        else:
            assert (found >= start - slack).all(), method
        assert (found <= np.array(least) + 1e-9 * (1 + np.abs(least))).all(), method


def test_it_gains_on_most_rows():
    gains = []
    for seed in range(8):
        problem, _ = problem_of(seed, sizes=(3, 12, 12, 12, 3))
        gains.append(rows_of(problem, "alpha-crown", SEARCH) - rows_of(problem, "crown", SEARCH))
    assert (np.concatenate(gains) > 1e-4).mean() > 0.5


def test_no_steps_is_the_plain_dual():
    problem, _ = problem_of(1)
    np.testing.assert_array_equal(rows_of(problem, "alpha-crown(steps=0)", PROOF), rows_of(problem, "crown", PROOF))


def test_each_row_is_tuned_for_itself_in_chunks_too(monkeypatch):
    problem, _ = problem_of(2)
    whole = rows_of(problem, "alpha-crown", SEARCH)
    monkeypatch.setattr("absdom.plan.memory.taped_rows", lambda *_: 1)
    np.testing.assert_allclose(rows_of(problem, "alpha-crown", SEARCH), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", (3, 4))
def test_a_chunk_with_no_more_rows_than_boxes_tunes_each_row_too(monkeypatch, size):
    problem, _ = problem_of(0, boxes=4)
    whole = rows_of(problem, "alpha-crown(steps=5)", PROOF)
    monkeypatch.setattr("absdom.plan.memory.taped_rows", lambda *_: size)
    np.testing.assert_allclose(rows_of(problem, "alpha-crown(steps=5)", PROOF), whole, rtol=1e-9)


def test_rows_of_one_box_have_knobs_of_their_own():
    graph, _ = relu_net((3, 12, 12, 3), 4)
    rows = [(np.array(c), 0.0, False) for c in ([1.0, -1, 0], [-1, 1, 0], [0, 1, -1], [-1.0, 0, 1])]
    together = Problem.of(graph, make_property(-np.ones(3), np.ones(3), [(0, [row]) for row in rows]))
    alone = [Problem.of(graph, make_property(-np.ones(3), np.ones(3), [(0, [row])])) for row in rows]
    found = rows_of(together, "alpha-crown", PROOF)
    np.testing.assert_allclose(found, [rows_of(p, "alpha-crown", PROOF)[0] for p in alone], rtol=1e-6, atol=1e-6)
    assert (found > rows_of(together, "alpha-crown(share=boxes)", PROOF) + 1e-4).any()


def test_decided_rows_need_no_more_steps():
    problem, _ = problem_of(3)
    seen = []

    def bound(live):
        seen.append(1)
        return live["k"].sum(1) + torch.tensor([5.0, -1.0])

    start = {"k": KnobStart(torch.zeros(2, 1), high=3.0)}
    best, _ = ascend(bound, start, 50, Clock(), torch.tensor([0.0, 0.5]))
    assert len(seen) < 20 and best[0] == 5 and best[1] > 0.5
    decided, free = (rows_of(problem, "alpha-crown", SEARCH, decide=d) for d in (True, False))
    assert ((decided > 0) == (free > 0)).all() and (decided <= free + 1e-4).all()


def test_weights_get_no_gradients_from_the_search_and_keep_those_of_the_bound():
    builder = Builder()
    x = builder.input("x", TensorType((1, 3), "float64"))
    weights = [torch.randn(3, 5, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)]
    weights = [w.requires_grad_() for w in weights]
    hidden = builder.add(ops.Relu(), builder.add(ops.MatMul(), x, builder.param(weights[0], "w0")))
    graph = lower_graph(builder.finish([builder.add(ops.MatMul(), hidden, builder.param(weights[1], "w1"))]))
    recipe = Ascent(parse_recipe("crown"), steps=4)
    context = run.prepare(make_schedule(graph, recipe), testing.FLOAT64)
    batch = InputBatch(*(torch.full((1, 3), v, dtype=torch.float64) for v in (-1.0, 1.0)))
    found = run.node_bounds(context, batch)
    assert all(w.grad is None for w in weights)
    gradients = torch.autograd.grad(found.lower.sum(), weights)
    assert all(bool(g.abs().sum() > 0) for g in gradients)


def test_knobs_of_products_and_softmax_move():
    for op, shapes in ((ops.Product(), 2), (ops.Softmax(1), 1)):
        graph = testing.one_op(op, *[TensorType((1, 3), "float64")] * shapes)
        case = testing.make_case(op.name, graph, -1.0, 1.5)
        plain, tuned = (
            testing.bounds_of(case.graph, case.lower, case.upper, m, PROOF) for m in ("crown", "alpha-crown")
        )
        assert (tuned.lower >= plain.lower - 1e-12).all() and (tuned.upper <= plain.upper + 1e-12).all()
        testing.check_sound(case, "alpha-crown")


@pytest.mark.parametrize("name", ["Relu", "Sigmoid", "Conv", "MaxPool", "Product", "Softmax", "Sign", "LeakyRelu"])
def test_laws(name):
    case = next(c for c in testing.standard_cases() if c.name == name)
    testing.check_sound(case, "alpha-crown(steps=3)")
    testing.check_sound(case.half_flat(), "alpha-crown(steps=3, share=boxes)")
    testing.check_exact_on_points(case.on_points(), "alpha-crown(steps=3)")
    testing.check_not_looser_than_interval(case, "alpha-crown(steps=3, intermediate=True)")


def test_what_cannot_be_tuned_says_so():
    for text, part in (
        ("ascent(interval)", "not interval"), ("ascent(alpha-crown)", "ascent is none"),
        ("alpha-crown(steps=-1)", "steps -1"), ("alpha-crown(share=neurons)", "not one of rows, boxes"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=part):
            parse_recipe(text)
