"""From bounds over one box to an Encoding: what is needed of each node, how large that is, and its rows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch

from absdom import registry
from absdom.domain import Encoded, EncodingRule, NodeBounds
from absdom.encoding import INPUTS, Builder, Choice, Encoding, Size, Style
from absdom.errors import UsageError
from absdom.ir.op import Input
from absdom.plan.context import Context
from absdom.plan.encode_sets import encode_part, part_size
from absdom.plan.plan import Sweep
from absdom.sets import InputBatch


class Encoder:
    """The network up to one node, over one box, ready to be encoded in several styles."""

    def __init__(
        self, context: Context, plan: Sweep, batch: InputBatch, bounds: Mapping[int, NodeBounds], wanted: torch.Tensor
    ):
        """`batch` and `bounds` hold one box; `wanted` "1 *n": the elements of the plan's start that rows speak of."""
        self.context, self.graph, self.batch, self.target = context, context.graph, batch, plan.start
        self.order = plan.nodes[::-1]
        self.bounds = bounds
        self.first_wanted = wanted
        self._built: dict[Style, Encoding] = {}
        if not (batch.lower.isfinite().all() and batch.upper.isfinite().all()):
            raise UsageError(
                "programs (lp, milp, sdp) need a bounded input set, and an input of this one has no finite bounds: "
                "bound it in the property, or ask a method of linear bounds"
            )

    def rule(self, i: int) -> EncodingRule | None:
        return registry.find_rule(Encoded, type(self.graph.nodes[i].op))[0]

    def place(self, i: int):
        return self.context.place(i, self.bounds)

    @cached_property
    def wanted(self) -> dict[int, torch.Tensor]:
        """Per node the elements that are needed, bool "1 *n"."""
        found = {self.target: self.first_wanted}
        for i in reversed(self.order):
            if i not in found or isinstance(self.graph.nodes[i].op, Input):
                continue
            rule = self.rule(i)
            if rule is None:
                continue
            parts = rule.needs(self.place(i), found[i])
            for j, part in zip(self.graph.nodes[i].inputs, parts, strict=True):
                if part is not None:
                    found[j] = found[j] | part if j in found else part
        return {i: mask for i, mask in found.items() if mask.any()}

    def predict(self, style: Style) -> Size:
        inputs = self.batch.lower.shape[1]
        total = Size(columns=inputs, rows=0)
        for part in self.batch.parts:
            total = total + part_size(part)
        for i in self.order:
            if i in self.wanted and not isinstance(self.graph.nodes[i].op, Input):
                rule = self.rule(i)
                count = int(self.wanted[i].sum())
                total = total + (
                    Size(columns=count) if rule is None else rule.count(self.place(i), self.wanted[i], style)
                )
        stored = 12 * total.entries + 32 * (total.columns + total.rows)
        return total._replace(megabytes=10 * stored / 2**20)

    def encode(self, style: Style) -> Encoding:
        if style not in self._built:
            self._built[style] = self._encode(style)
        return self._built[style]

    def _encode(self, style: Style) -> Encoding:
        builder = Builder(style)
        flat = builder.columns(_numbers(self.batch.lower), _numbers(self.batch.upper), INPUTS)
        reach = np.maximum(np.abs(_numbers(self.batch.lower)), np.abs(_numbers(self.batch.upper)))
        sizes = [self.graph.nodes[i].type.numel for i in self.graph.inputs]
        columns = dict(zip(self.graph.inputs, np.split(flat, np.cumsum(sizes)[:-1]), strict=True))
        for part in self.batch.parts:
            encode_part(part, builder, flat, reach)
        for i in self.order:
            if i not in self.wanted or isinstance(self.graph.nodes[i].op, Input):
                continue
            own, wanted = self.bounds[i], self.wanted[i][0].flatten().cpu().numpy()
            rule = self.rule(i)
            if rule is None:
                columns[i] = builder.columns_where(wanted, _numbers(own.lower), _numbers(own.upper), i)
                builder.complete = False
                continue
            inputs = tuple(columns.get(j) if self.graph.varying[j] else None for j in self.graph.nodes[i].inputs)
            columns[i] = rule.add(self.place(i), builder, inputs, wanted, i)
            held = columns[i] >= 0
            builder.meet(columns[i][held], _numbers(own.lower)[held], _numbers(own.upper)[held])
        return builder.finish(flat, columns[self.target], columns)

    def evaluate(self, points: np.ndarray, encoding: Encoding) -> np.ndarray:
        """The variables "k N" of points "k n": values of nodes as computed, choices as those values have them."""
        from absdom.plan.run import node_values

        out = np.tile((encoding.lower + encoding.upper) / 2, (len(points), 1))
        with torch.no_grad():
            values = node_values(self.context, self.context.arithmetic.tensor(points), self.order)
        for i, columns in encoding.columns_of.items():
            held = columns >= 0
            out[:, columns[held]] = values[i].reshape(len(points), -1).cpu().numpy()[:, held]
        for choice in encoding.choices:
            decide(choice, out)
        return np.clip(out, encoding.lower, encoding.upper)


def decide(choice: Choice, out: np.ndarray) -> None:
    """Set the binaries of a choice, and the parts behind them, from the other variables "k N"."""
    if choice.kind == "pieces":
        z = out[:, choice.source[0]]
        piece = np.minimum(np.searchsorted(choice.ends[:-1], z), len(choice.ends) - 1)
    else:
        source = out[:, choice.source]
        piece = source.argmax(1) if choice.kind == "largest" else source.argmin(1)
    if len(choice.binaries) == 1:
        out[:, choice.binaries[0]] = piece
    else:
        out[:, choice.binaries] = np.eye(len(choice.binaries))[piece]
    if choice.parts.size:
        holds = np.eye(len(choice.binaries))[piece]
        for part, value in zip(choice.parts, (choice.source[0], choice.value)):
            out[:, part] = holds * out[:, [value]]


def _numbers(t: torch.Tensor) -> np.ndarray:
    return t.detach().double().cpu().numpy().ravel()
