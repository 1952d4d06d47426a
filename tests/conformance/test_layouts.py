"""All layouts of rows give one answer: one-hot or dense, ragged or rectangular, in chunks or at once."""

from __future__ import annotations

import pytest
import torch
from random_graphs import random_boxes, random_graph

from absdom.arithmetic import PROOF, Arithmetic
from absdom.passes import lower
from absdom.plan import memory, run, sweeps
from absdom.plan.planner import make_schedule
from absdom.plan.recipes import parse_recipe
from absdom.rows import Rows
from absdom.sets import InputBatch

FLOAT64 = Arithmetic(torch.float64)
SEEDS = (0, 1, 2, 6, 7, 11, 15, 20)


def place(seed: int, recipe: str = "crown", arithmetic=FLOAT64, boxes: int = 3):
    graph = lower(random_graph(seed))
    n = sum(graph.nodes[i].type.numel for i in graph.inputs)
    low, high = random_boxes(seed, n, "normal", boxes)
    context = run.prepare(make_schedule(graph, parse_recipe(recipe)), arithmetic)
    batch = InputBatch(low, high)
    return context, batch, run.propagate(context, batch)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * (1 + float(a.abs().max())), equal_nan=True)


def starts(context):
    """The output, and every affine node: places where sweeps start."""
    nodes = context.schedule.final.nodes
    return [i for i in nodes if context.graph.nodes[i].type.numel > 1][:4]


def swept(context, batch, bounds, start, rows):
    from absdom.plan.planner import sweep_from

    return sweeps.sweep(context, sweep_from(context.graph, start), context.schedule.duals[0], batch, bounds, rows)


@pytest.mark.parametrize("arithmetic", [FLOAT64, PROOF], ids=["float64", "charged"])
@pytest.mark.parametrize("seed", SEEDS)
def test_one_hot_rows_are_dense_rows(seed, arithmetic):
    context, batch, bounds = place(seed, arithmetic=arithmetic)
    generator = torch.Generator().manual_seed(seed)
    for start in starts(context):
        shape = context.graph.nodes[start].type.shape
        numel = context.graph.nodes[start].type.numel
        box = torch.tensor([0, 0, 0, 2, 2, 1])  # ragged, and not in order
        position = torch.randint(numel, (6,), generator=generator)
        sign = torch.tensor([1.0, -1, 1, -1, 1, -1], dtype=torch.float64)
        hot = Rows.one_hot(position, sign, shape, 3, box)
        close(
            swept(context, batch, bounds, start, hot),
            swept(context, batch, bounds, start, Rows.dense_rows(hot.dense(), 3, box)),
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_ragged_rows_are_rectangular_rows_and_boxes_one_at_a_time(seed):
    context, batch, bounds = place(seed)
    start, numel = context.schedule.target, 2
    data = torch.randn(
        (6, *context.graph.nodes[start].type.shape), generator=torch.Generator().manual_seed(seed)
    ).double()
    box = torch.tensor([0, 0, 1, 1, 2, 2])
    together = swept(context, batch, bounds, start, Rows.dense_rows(data, 3))
    close(together, swept(context, batch, bounds, start, Rows.dense_rows(data, 3, box)))
    order = torch.tensor([4, 1, 0, 3, 5, 2])
    close(together[order], swept(context, batch, bounds, start, Rows.dense_rows(data[order], 3, box[order])))
    for b in range(3):
        one = InputBatch(batch.lower[b : b + 1], batch.upper[b : b + 1])
        alone = swept(
            context, one, run.propagate(context, one), start, Rows.dense_rows(data[numel * b : numel * b + 2], 1)
        )
        close(together[numel * b : numel * b + 2], alone)


@pytest.mark.parametrize("recipe", ["crown", "cap", "cap & crown-ibp"])
@pytest.mark.parametrize("seed", SEEDS)
def test_chunks_change_nothing(seed, recipe, monkeypatch):
    context, batch, bounds = place(seed, recipe)
    whole = run.node_bounds(context, batch)
    for size in (1, 2, 5):
        monkeypatch.setattr(memory, "chunk_rows", lambda *_, size=size: size)
        parts = run.node_bounds(context, batch)
        close(whole.lower, parts.lower)
        close(whole.upper, parts.upper)


def test_rows_that_differ_per_box_are_grouped_or_not_with_one_result():
    # Boxes of very different sizes: unstable neurons are few in one box and many in the other.
    for seed in SEEDS:
        graph = lower(random_graph(seed))
        n = sum(graph.nodes[i].type.numel for i in graph.inputs)
        low, high = random_boxes(seed, n, "normal", 5)
        high = low + (high - low) * torch.tensor([1.0, 1e-6, 0.0, 3.0, 1e-3], dtype=torch.float64)[:, None]
        context = run.prepare(make_schedule(graph, parse_recipe("crown")), FLOAT64)
        together = run.node_bounds(context, InputBatch(low, high))
        for b in range(5):
            alone = run.node_bounds(context, InputBatch(low[b : b + 1], high[b : b + 1]))
            close(together.lower[b], alone.lower[0])
            close(together.upper[b], alone.upper[0])
