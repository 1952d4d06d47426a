"""What a schedule will cost on a property, predicted before it runs, and the cheaper recipe where that is too much.

The number of neurons that a sweep will tighten depends on bounds. Interval bounds of a few boxes stand for it: they
leave more neurons unstable than the real run will find, so the prediction errs upwards.
"""

from __future__ import annotations

from collections.abc import Mapping

from absdom.domain import NodeBounds
from absdom.plan import memory, run
from absdom.plan.context import Context
from absdom.plan.plan import ForwardStage

SAMPLE = 4  # boxes whose interval bounds are looked at


def predicted_flops(
    context: Context, bounds: Mapping[int, NodeBounds], sample: int, boxes: int, rows: int
) -> float:
    """Operations of bounding `rows` rows over `boxes` boxes; `bounds`: interval bounds of `sample` of the boxes."""
    schedule, graph = context.schedule, context.graph
    total = 0.0
    for stage in schedule.stages:
        if isinstance(stage, ForwardStage):
            total += boxes * sum(2 * memory.flops(graph, i) for i in stage.nodes)
        else:
            _, position = run.select(context, stage, bounds)
            selected = 2 * len(position) * boxes / max(1, sample) * len(stage.duals)
            total += selected * sum(memory.flops(graph, i) for i in stage.sweep.nodes)
    return total + rows * len(schedule.duals) * sum(memory.flops(graph, i) for i in schedule.final.nodes)


def predicted_seconds(flops: float, device: str) -> float:
    """At a fixed assumed speed, so that the same input makes the same choice on every machine of a kind."""
    return flops / memory.ASSUMED_FLOPS["cuda" if device.startswith("cuda") else "cpu"]
