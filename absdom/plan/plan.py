"""Plans as data: they print, they are costed, they are cached, they run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from absdom.domain import Dual, Encoded, Forward
from absdom.encoding import Size
from absdom.ir.graph import Graph
from absdom.plan import memory


@dataclass(frozen=True)
class ForwardStage:
    """Bounds of these nodes, in order, from the bounds of what they read."""

    nodes: tuple[int, ...]


@dataclass(frozen=True)
class Sweep:
    """Rows go from `start` back to the inputs, through `nodes` (start first, each after all its consumers)."""

    start: int
    nodes: tuple[int, ...]


@dataclass(frozen=True)
class Tighten:
    """Select the neurons of `sweep.start` that a reader cannot treat exactly, sweep +-e_i from them, meet.

    `readers`: (reader node, position of its input, moves between the start and the reader, nearest to it last).
    `exact_on_boxes`: intervals are exact there unless the input sets are more than boxes, so that boxes need no sweep.
    """

    sweep: Sweep
    readers: tuple[tuple[int, int, tuple[int, ...]], ...]
    duals: tuple[Dual, ...]
    exact_on_boxes: bool = False
    encoded: tuple[Encoded, ...] = ()

    def needed(self, parts: tuple) -> bool:
        """Is there anything to tighten on input sets with these parts?"""
        return bool(parts) or not self.exact_on_boxes


@dataclass(frozen=True, eq=False)
class Schedule:
    """A recipe compiled for a graph. Plans with Select points between them (the Tighten stages)."""

    graph: Graph
    reach: dict[Forward, frozenset[int]]  # forward domains, the interval one first, and the nodes that each bounds
    duals: tuple[Dual, ...]  # recipes of the final sweep
    stages: tuple[ForwardStage | Tighten, ...]
    final: Sweep
    prologue: tuple[int, ...]
    encoded: tuple[Encoded, ...] = ()  # recipes whose programs bound the rows at the end

    @property
    def target(self) -> int:
        return self.final.start

    @property
    def solves(self) -> bool:
        """Does any bound come from a program over an encoding? Such runs are made in charged float64 only."""
        return bool(self.encoded) or any(isinstance(s, Tighten) and s.encoded for s in self.stages)

    @property
    def base(self) -> Forward:
        """The interval domain."""
        return next(iter(self.reach))

    @cached_property
    def last_use(self) -> dict[int, int]:
        """Node -> the last step of the forward stages, counted from 0, that reads it."""
        order = [i for stage in self.stages if isinstance(stage, ForwardStage) for i in stage.nodes]
        return {j: step for step, i in enumerate(order) for j in self.graph.nodes[i].inputs if self.graph.varying[j]}

    @cached_property
    def peak_row_bytes(self) -> int:
        """Bytes per row of the final sweep in float32: what decides the size of a chunk."""
        return memory.row_bytes(self.graph, self.final.nodes, 4)

    def describe(self, sizes: Mapping[tuple[int, Encoded], Size] = MappingProxyType({})) -> str:
        """Steps, shapes, knobs, FLOPs and peak bytes, as text; `sizes`: how large programs at a node are at most."""
        graph = self.graph

        def program(node: int, recipe: Encoded) -> str:
            size = sizes.get((node, recipe))
            return repr(recipe) if size is None else f"{recipe!r}  at most {size}"

        lines = [
            "forward domains: " + ", ".join(_reach(*item, self.reach[self.base]) for item in self.reach.items()),
            "duals: " + (", ".join(map(repr, self.duals)) or "none (rows are bounded from the forward bounds)"),
        ]
        for stage in self.stages:
            if isinstance(stage, ForwardStage):
                for i in stage.nodes:
                    lines.append(f"forward  {_line(graph, i)}  {memory.flops(graph, i) * 2:.3g} flop/box")
            else:
                start, sets = stage.sweep.start, " (none on boxes)" if stage.exact_on_boxes else ""
                lines.append(f"select   %{start}: neurons that {_readers(stage)} cannot treat exactly{sets}")
                lines.append("  duals: " + ", ".join(map(repr, stage.duals)))
                lines += [f"  program: {program(start, recipe)}" for recipe in stage.encoded]
                lines += _sweep_lines(graph, stage.sweep, "  pull   ")
        lines.append(f"rows     at %{self.target}")
        if self.duals:
            lines += _sweep_lines(graph, self.final, "  pull   ")
        lines += [f"program  at %{self.target}: {program(self.target, recipe)}" for recipe in self.encoded]
        return "\n".join(lines)


def _reach(domain: Forward, nodes: frozenset[int], every: frozenset[int]) -> str:
    return domain.name if nodes == every else f"{domain.name} (up to %{max(nodes)})"


def _line(graph: Graph, i: int) -> str:
    node = graph.nodes[i]
    reads = " ".join(f"%{j}" for j in node.inputs)
    return f"%{i} = {node.op.name} {reads} : {node.type}" + (f"  # {node.source.name}" if node.source.name else "")


def _readers(stage: Tighten) -> str:
    return ", ".join(f"%{reader}" for reader, _, _ in stage.readers)


def _sweep_lines(graph: Graph, sweep: Sweep, head: str) -> list[str]:
    lines = []
    for i in sweep.nodes:
        op = graph.nodes[i].op
        knobs = getattr(op, "knobs", ())
        note = f"  knobs: {', '.join(knobs)} {list(graph.nodes[i].type.shape)}" if knobs else ""
        lines.append(f"{head}{_line(graph, i)}  {memory.flops(graph, i):.3g} flop/row{note}")
    total = sum(memory.flops(graph, i) for i in sweep.nodes)
    lines.append(
        f"{head}total {total:.3g} flop/row, peak {memory.row_bytes(graph, sweep.nodes, 4)} bytes/row (float32)"
    )
    return lines
