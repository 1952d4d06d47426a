"""What a schedule will cost on a property, predicted before it runs, and the cheaper recipe where that is too much.

The number of neurons that a sweep will tighten depends on bounds. Interval bounds of a few boxes stand for it: they
leave more neurons unstable than the real run will find, so the prediction errs upwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from absdom.domain import Dual, Encoded, Forward, NodeBounds
from absdom.encoding import Size
from absdom.ir.graph import Graph
from absdom.passes import liveness
from absdom.plan import memory, run
from absdom.plan.context import Context
from absdom.plan.encode import Encoder
from absdom.plan.plan import ForwardStage, Sweep
from absdom.sets import InputBatch

SAMPLE = 4  # boxes whose interval bounds are looked at
STEP_SECONDS = 2e-4  # what a step takes however little it does
PROGRAM_SECONDS = 5e-3  # and what a program takes


class Programs(NamedTuple):
    """`count` programs of a recipe over each box, for elements of one node, and how large they will be at most."""

    node: int
    recipe: Encoded
    count: float
    size: Size


def predicted_programs(
    context: Context, sample: InputBatch, bounds: Mapping[int, NodeBounds], rows: float
) -> Iterable[Programs]:
    """The programs of a schedule; `bounds`: interval bounds over the boxes of `sample`, the first of which counts.

    `rows`: how many are bounded at the end.
    """
    first = torch.zeros(1, dtype=torch.int64, device=sample.lower.device)
    batch, bounds = sample.select(first), {i: own.select(first) for i, own in bounds.items()}

    def sizes(plan: Sweep, wanted: torch.Tensor, recipes: tuple[Encoded, ...], count: float) -> Iterable[Programs]:
        for recipe in recipes:
            encoder = Encoder(context, plan, batch, bounds, wanted)
            yield Programs(plan.start, recipe, count, recipe.size(encoder.predict(recipe.style)))

    for stage in context.schedule.stages:
        if not isinstance(stage, ForwardStage) and stage.encoded and stage.needed(batch.parts):
            _, position = run.select(context, stage, bounds)
            wanted = torch.zeros_like(bounds[stage.sweep.start].lower, dtype=torch.bool)
            wanted.view(-1)[position] = True
            if len(position):
                yield from sizes(stage.sweep, wanted, stage.encoded, 2 * len(position))
    final = context.schedule.final
    every = torch.ones_like(bounds[final.start].lower, dtype=torch.bool)
    yield from sizes(final, every, context.schedule.encoded, rows)


def predicted_flops(
    context: Context, sample: InputBatch, bounds: Mapping[int, NodeBounds], boxes: float, rows: float
) -> float:
    """Operations of bounding `rows` rows over `boxes` boxes; `bounds`: interval bounds over `sample`, some of them."""
    schedule, graph = context.schedule, context.graph
    weight = {domain: state_numbers(domain, graph) for domain in schedule.reach}
    step = STEP_SECONDS * _rate(context.arithmetic.device)

    def sweep(nodes: tuple[int, ...], duals: tuple[Dual, ...], count: float) -> float:
        return sum(dual.sweeps for dual in duals) * sum(step + count * memory.flops(graph, i) for i in nodes)

    total = 0.0
    for stage in schedule.stages:
        if isinstance(stage, ForwardStage):
            for domain, nodes in schedule.reach.items():
                inside = [i for i in stage.nodes if i in nodes]
                total += sum(step + boxes * weight[domain] * memory.flops(graph, i) for i in inside)
        elif stage.needed(sample.parts):
            _, position = run.select(context, stage, bounds)
            total += sweep(stage.sweep.nodes, stage.duals, 2 * len(position) * boxes / max(1, len(sample.lower)))
    if schedule.solves:
        for found in predicted_programs(context, sample, bounds, rows / max(1.0, boxes)):
            once = found.recipe.operations(found.size) + PROGRAM_SECONDS * _rate(context.arithmetic.device)
            total += boxes * found.count * once
    return total + sweep(schedule.final.nodes, schedule.duals, rows)


def state_numbers(domain: Forward, graph: Graph) -> float:
    """How many numbers a state holds per element of a node, by the bytes that the domain asks for: two for intervals,
    two and as many as there are generators for zonotopes."""
    varying = tuple(i for i in reversed(range(len(graph.nodes))) if graph.varying[i])
    return 2 + domain.box_bytes(graph, 1) / max(1, liveness.sweep_peak(graph, varying))


def predicted_seconds(flops: float, device: str) -> float:
    """At a fixed assumed speed, so that the same input makes the same choice on every machine of a kind."""
    return flops / _rate(device)


def _rate(device: str) -> float:
    return memory.ASSUMED_FLOPS["cuda" if device.startswith("cuda") else "cpu"]
