"""A schedule made ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch

from absdom.arithmetic import Arithmetic
from absdom.domain import NodeBounds, Place
from absdom.ir.graph import Graph
from absdom.ir.op import At
from absdom.plan.plan import Schedule
from absdom.plan.report import Report

_NONE = MappingProxyType({})


@dataclass(eq=False)
class Context:
    """A schedule made ready for one arithmetic: the prologue's values "1 *n", and each op's place in the graph.

    With frozen weights it is made once and used for every batch of boxes; with live weights, once per step.
    """

    schedule: Schedule
    arithmetic: Arithmetic
    values: dict[int, torch.Tensor]
    errors: dict[int, torch.Tensor]
    report: Report = field(default_factory=Report)
    _at: dict[int, At] = field(default_factory=dict)
    _memo: dict[int, dict] = field(default_factory=dict)
    _on_cpu: Context | None = field(default=None, init=False, repr=False)

    @property
    def graph(self) -> Graph:
        return self.schedule.graph

    def at(self, i: int) -> At:
        if i not in self._at:
            node = self.graph.nodes[i]
            types = tuple(self.graph.nodes[j].type for j in node.inputs)
            varying = tuple(self.graph.varying[j] for j in node.inputs)
            params = tuple(None if v else self.values[j] for j, v in zip(node.inputs, varying, strict=True))
            self._at[i] = At(types, node.type, varying, params)
        return self._at[i]

    def error_of(self, i: int) -> tuple:
        return tuple(self.errors.get(j) for j in self.graph.nodes[i].inputs)

    def place(self, i: int, bounds: Mapping[int, NodeBounds], knobs: Mapping[str, torch.Tensor] = _NONE) -> Place:
        """Op i where it stands, over the boxes of `bounds`."""
        node = self.graph.nodes[i]
        inputs = tuple(bounds[j] if self.graph.varying[j] else None for j in node.inputs)
        memo = self._memo.setdefault(i, {})
        return Place(node.op, self.at(i), inputs, bounds.get(i), knobs, self.arithmetic, self.error_of(i), memo)

    def on_cpu(self) -> Context:
        """The same numbers on the CPU, made once."""
        if self.arithmetic.device == "cpu":
            return self
        if self._on_cpu is None:
            values, errors = ({i: t.cpu() for i, t in part.items()} for part in (self.values, self.errors))
            arithmetic = replace(self.arithmetic, device="cpu")
            self._on_cpu = replace(self, arithmetic=arithmetic, values=values, errors=errors, _at={}, _memo={})
        return self._on_cpu

    def uncharged(self) -> Context:
        """The same numbers without charges and without gradients: for a search over knobs."""
        values = {i: t.detach() for i, t in self.values.items()}
        arithmetic = replace(self.arithmetic, charged=False)
        return replace(self, arithmetic=arithmetic, values=values, errors={}, _at={}, _memo={})
