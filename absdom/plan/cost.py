"""What a schedule will cost on a property, predicted before it runs, and the cheaper recipe where that is too much.

The number of neurons that a sweep will tighten depends on bounds. Interval bounds of a few boxes stand for it: they
leave more neurons unstable than the real run will find, so the prediction errs upwards.
"""

from __future__ import annotations

from collections.abc import Mapping

from absdom.domain import Dual, Forward, NodeBounds
from absdom.ir.graph import Graph
from absdom.passes import liveness
from absdom.plan import memory, run
from absdom.plan.context import Context
from absdom.plan.plan import ForwardStage

SAMPLE = 4  # boxes whose interval bounds are looked at
STEP_SECONDS = 2e-4  # what a step takes however little it does


def predicted_flops(
    context: Context, bounds: Mapping[int, NodeBounds], sample: int, boxes: float, rows: float, parts: tuple = ()
) -> float:
    """Operations of bounding `rows` rows over `boxes` boxes, which `parts` narrow down; `bounds`: interval bounds of
    `sample` of the boxes."""
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
        elif stage.needed(parts):
            _, position = run.select(context, stage, bounds)
            total += sweep(stage.sweep.nodes, stage.duals, 2 * len(position) * boxes / max(1, sample))
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
