"""From bounds over one box to an Encoding: what is needed of each node, how large that is, and its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from absdom import registry
from absdom.arithmetic import numbers
from absdom.domain import Encoded, EncodingRule, NodeBounds
from absdom.encoding import INPUTS, Builder, Choice, Encoding, Size, Style
from absdom.errors import UsageError
from absdom.ir.op import Input
from absdom.plan.context import Context
from absdom.plan.encode_sets import encode_part, part_size
from absdom.plan.plan import Sweep
from absdom.sets import InputBatch


class Encoder:
    """The network up to one node, over one box, ready to be encoded in several styles, on the CPU."""

    def __init__(
        self, context: Context, plan: Sweep, batch: InputBatch, bounds: Mapping[int, NodeBounds], wanted: torch.Tensor
    ):
        """`batch` and `bounds` hold one box; `wanted` "1 *n": the elements of the plan's start that rows speak of."""
        self.context, self.graph, self.batch, self.target = context.on_cpu(), context.graph, batch, plan.start
        self.plan, self.order = plan, plan.nodes[::-1]
        self.bounds = {i: _on_cpu(own) for i, own in bounds.items()}
        self.first_wanted = wanted.cpu()
        self._built: dict[Style, Encoding] = {}
        endless = ~(batch.lower.isfinite() & batch.upper.isfinite())[0]
        if endless.any():
            raise UsageError(
                f"programs (lp, milp, sdp) need a bounded input set, and input X_{int(endless.nonzero()[0])} of this "
                "one has no finite bounds: bound it in the property"
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
        inputs, moving = self.batch.lower.shape[1], int((self.batch.lower != self.batch.upper).sum())
        total = Size(columns=inputs, layers=((moving, 0),))
        for part in self.batch.parts:
            total = total + part_size(part)
        for i in self.order:
            if i in self.wanted and not isinstance(self.graph.nodes[i].op, Input):
                rule = self.rule(i)
                count = int(self.wanted[i].sum())
                whole = Size(columns=count, layers=((count, 0),))
                total = total + (whole if rule is None else rule.count(self.place(i), self.wanted[i], style))
        stored = 12 * total.entries + 32 * (total.columns + total.rows)
        return total._replace(megabytes=10 * stored / 2**20)

    def encode(self, style: Style) -> Encoding:
        if style not in self._built:
            self._built[style] = self._encode(style)
        return self._built[style]

    def _encode(self, style: Style) -> Encoding:
        builder = Builder(style)
        flat = builder.columns(numbers(self.batch.lower), numbers(self.batch.upper), INPUTS)
        reach = np.maximum(np.abs(numbers(self.batch.lower)), np.abs(numbers(self.batch.upper)))
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
                columns[i] = builder.columns_where(wanted, numbers(own.lower), numbers(own.upper), i)
                builder.complete = False
                continue
            inputs = tuple(
                columns.get(j, np.full(self.graph.nodes[j].type.numel, -1)) if self.graph.varying[j] else None
                for j in self.graph.nodes[i].inputs
            )
            columns[i] = rule.add(self.place(i), builder, inputs, wanted, i)
            held = columns[i] >= 0
            builder.meet(columns[i][held], numbers(own.lower)[held], numbers(own.upper)[held])
        target = columns.get(self.target, np.full(self.first_wanted.numel(), -1))  # rows of zeros speak of nothing
        return builder.finish(flat, target, columns)

    def narrowed(self, encoding: Encoding, lower: np.ndarray, upper: np.ndarray) -> Encoder:
        """An encoder that also relies on these bounds "N" of the variables of an encoding of this one."""
        bounds = dict(self.bounds)
        for i in encoding.columns_of.keys() & bounds.keys():  # an input that is not read has no bounds
            columns, own = encoding.columns_of[i], bounds[i]
            held = columns >= 0
            ends = np.full((2, len(columns)), np.inf) * [[-1], [1]]
            ends[:, held] = lower[columns[held]], upper[columns[held]]
            low, high = (torch.from_numpy(e).to(own.lower).reshape(own.lower.shape) for e in ends)
            bounds[i] = own.meet(NodeBounds(low, high), "narrowed")
        return Encoder(self.context, self.plan, self.batch, bounds, self.first_wanted)

    def evaluate(self, points: np.ndarray, encoding: Encoding) -> np.ndarray:
        """The variables "k N" of points "k n": values of nodes as computed, choices as those values have them."""
        return np.clip(self.values(points, encoding), encoding.lower, encoding.upper)

    def values(self, points: np.ndarray, encoding: Encoding) -> np.ndarray:
        """As `evaluate`, wherever the bounds of the variables are."""
        from absdom.plan.run import node_values

        with torch.no_grad():
            values = node_values(self.context, self.context.arithmetic.tensor(points), self.order)
        return fill(values, len(points), encoding)


def _on_cpu(own: NodeBounds) -> NodeBounds:
    """Bounds without their balls, of which no rule of encodings knows."""
    noise = None if own.noise is None else own.noise.cpu()
    return replace(own, lower=own.lower.cpu(), upper=own.upper.cpu(), noise=noise, ball=None)


def fill(values: Mapping[int, torch.Tensor], count: int, encoding: Encoding) -> np.ndarray:
    """The variables "k N" that go with values "k *n" of the nodes; others are in the middle of their bounds."""
    with np.errstate(invalid="ignore"):
        middle = np.nan_to_num(encoding.lower / 2 + encoding.upper / 2, posinf=0.0, neginf=0.0)
    out = np.tile(middle, (count, 1))
    for i, columns in encoding.columns_of.items():
        held = columns >= 0
        value = values[i].expand(count, *values[i].shape[1:])
        out[:, columns[held]] = value.reshape(count, len(columns)).double().cpu().numpy()[:, held]
    for t in encoding.distances:
        out[:, t.value] = np.abs(out[:, t.source] - t.centre) / t.radius
    for choice in encoding.choices:
        decide(choice, out)
    return out


def decide(choice: Choice, out: np.ndarray) -> None:
    """Set the binaries of a choice, and the parts behind them, from the other variables "k N"."""
    if choice.kind == "pieces":
        z = out[:, choice.source[0]]
        piece, last = (np.searchsorted(choice.ends[:-1], z, side) for side in ("left", "right"))
        if len(choice.lines) and (last > piece).any():  # where pieces meet: the one that has the value
            slope, bias = choice.lines.T
            for step in range(1, int((last - piece).max()) + 1):
                other = np.minimum(piece + step, last)
                missed = [np.abs(slope[k] * z + bias[k] - out[:, choice.value]) for k in (piece, other)]
                piece = np.where(missed[1] < missed[0], other, piece)
    else:
        source = out[:, choice.source]
        piece = source.argmax(1) if choice.kind == "largest" else source.argmin(1)
    holds = np.arange(max(2, len(choice.binaries))) == piece[:, None]
    out[:, choice.binaries] = holds[:, -len(choice.binaries) :]
    for part, column in zip(choice.parts, (choice.source[0], choice.value)):
        out[:, part] = np.where(holds, out[:, [column]], 0.0)
