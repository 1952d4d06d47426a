"""Rows of dual variables (nu): flat and ragged, each row belongs to one box; storage is dense or one-hot.

A row nu at a node of shape *n stands for the linear form <nu, z> whose lower bound is wanted. Rules of domains use
only the methods here, so that another storage (windows of convolutions) can come in behind them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch

from absdom.ir.op import Affine, At, Block
from absdom.kernels import contract, halves, relax, relax_relu

GATHERED = 2**22  # elements of coefficients that ragged rows gather at once


@dataclass(frozen=True, eq=False)
class Rows:
    """R rows over B boxes at a node of shape `shape`.

    `box` is the "R" index of each row's box; None means box-major groups of equal size (R = B * per_box), where plain
    broadcasting applies. Either `dense` "R *n" is there, or `position` and `sign` "R": sign[r] * e_position[r].
    """

    shape: tuple[int, ...]
    boxes: int
    box: torch.Tensor | None = None
    dense_data: torch.Tensor | None = None
    position: torch.Tensor | None = None
    sign: torch.Tensor | None = None

    @staticmethod
    def dense_rows(data: torch.Tensor, boxes: int, box: torch.Tensor | None = None) -> Rows:
        if boxes == 1:
            box = None
        return Rows(tuple(data.shape[1:]), boxes, box, dense_data=data)

    @staticmethod
    def one_hot(position, sign, shape, boxes: int, box: torch.Tensor | None = None) -> Rows:
        return Rows(tuple(shape), boxes, None if boxes == 1 else box, position=position, sign=sign)

    @property
    def count(self) -> int:
        return len(self.dense_data if self.dense_data is not None else self.position)

    def dense(self) -> torch.Tensor:
        """The rows as a tensor "R *n"."""
        if self.dense_data is not None:
            return self.dense_data
        out = self.sign.new_zeros((self.count, prod(self.shape)))
        out = out.scatter(1, self.position[:, None], self.sign[:, None])
        return out.reshape(self.count, *self.shape)

    def _with(self, data: torch.Tensor) -> Rows:
        return replace(self, shape=tuple(data.shape[1:]), dense_data=data, position=None, sign=None)

    def pull(self, op: Affine, at: At, index: int) -> Rows:
        """The adjoint of an affine op, applied to each row."""
        if self.dense_data is None:
            short = op.transpose_onehot(self.position, self.sign, at, index)
            if isinstance(short, tuple):
                return replace(self, shape=at.inputs[index].shape, position=short[0], sign=short[1])
            if short is not None:
                return self._with(short)
        return self._with(op.transpose(self.dense(), at, index))

    def spread(self, op, at: At, index: int, lower: torch.Tensor, upper: torch.Tensor) -> Rows:
        """Rows behind a pair of planes: coefficient `lower` where nu >= 0, `upper` where nu < 0."""
        from absdom.ops.shape import unbroadcast

        nu = op.spread(self.dense(), at, index)
        nu = nu.expand(nu.shape[0], *torch.broadcast_shapes(nu.shape[1:], lower.shape[1:]))
        pulled, _ = self._with(nu).relax(lower, upper, None, None)
        return pulled._with(unbroadcast(pulled.dense_data, at.inputs[index].shape))

    def spread_blocks(self, pairs: list[tuple[Block, Block]]) -> list[Rows]:
        """Rows behind pairs of planes, one pair per operand, whose coefficients are Blocks."""
        data = self.dense()

        def through(nu, chosen):
            positive, negative = nu.clamp(min=0), nu.clamp(max=0)
            return [(low.transpose(positive) + high.transpose(negative)).flatten(0, 1) for low, high in chosen]

        if self.box is None:
            return [self._with(t) for t in through(data.reshape(self.boxes, -1, *data.shape[1:]), pairs)]
        largest = max(t.numel() // t.shape[0] for pair in pairs for t in pair[0].tensors().values())
        size = max(1, GATHERED // largest)
        parts = [
            through(nu.unsqueeze(1), [(low.select(box), high.select(box)) for low, high in pairs])
            for nu, box in zip(data.split(size), self.box.split(size), strict=True)
        ]
        return [self._with(torch.cat(part)) for part in zip(*parts, strict=True)]

    def relax(self, lower, upper, lower_bias, upper_bias) -> tuple[Rows, torch.Tensor | None]:
        """Rows and constants behind a pair of lines: nu+ takes the lower line, nu- the upper one.

        Slopes and biases are "B *n" (or "1 *n"); a bias None is zero. Few passes over the rows: this is where sweeps
        spend their time.
        """
        data = self.dense()
        shape = torch.broadcast_shapes(data.shape[1:], lower.shape[1:])
        slopes = [self._of_rows(s) for s in torch.broadcast_tensors(lower, upper)]
        groups = len(slopes[0])  # of rows with the same slopes
        grouped = data.expand(-1, *shape).reshape(groups, self.count // groups, -1)
        out = relax(grouped, *(s.expand(-1, *shape).reshape(groups, -1) for s in slopes)).reshape(-1, *shape)
        if lower_bias is None and upper_bias is None:
            return self._with(out), None
        below = torch.relu(-data)  # with a gradient that is cheaper than that of a clamp
        if lower_bias is None:
            return self._with(out), -self._contract(below, upper_bias)
        constant = self._contract(data, lower_bias)
        change = lower_bias if upper_bias is None else lower_bias - upper_bias
        return self._with(out), constant + self._contract(below, change)

    def relax_relu(self, lower: torch.Tensor, upper: torch.Tensor) -> tuple[Rows, torch.Tensor]:
        """Rows and constants behind ReLU on [lower, upper], "B *n" (or "1 *n"), with the adaptive lines: uncharged."""
        data, lower, upper = self.dense(), self._of_rows(lower), self._of_rows(upper)
        groups = len(lower)
        grouped = data.reshape(groups, self.count // groups, -1)
        out, constant = relax_relu(grouped, lower.reshape(groups, -1), upper.reshape(groups, -1))
        return self._with(out.reshape(data.shape)), constant.reshape(self.count)

    def _of_rows(self, value: torch.Tensor) -> torch.Tensor:
        """A value "B *n" for each ragged row; as it is where plain broadcasting applies."""
        return value if value.shape[0] == 1 or self.box is None else value.index_select(0, self.box)

    def dot(self, value: torch.Tensor) -> torch.Tensor:
        """<nu, value> per row, "R"; value "B *n" or "1 *n"."""
        return self._contract(self.dense(), value)

    def dot_signed(self, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        """<nu+, positive> + <nu-, negative> per row, nu = nu+ + nu-."""
        data = self.dense()
        return self._contract(data.clamp(min=0), positive) + self._contract(data.clamp(max=0), negative)

    def lowest(self, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        """The least <nu, z> per row over [lower, upper], "R": uncharged."""
        centre, radius = halves(lower, upper)
        return self.dot(centre) - self.abs_dot(radius)

    def abs_dot(self, value: torch.Tensor) -> torch.Tensor:
        """<|nu|, value> per row."""
        if self.dense_data is None and value.shape[0] == 1:
            return value.flatten()[self.position] * self.sign.abs()
        return self._contract(self.dense().abs(), value)

    def _contract(self, data: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        count, value = self.count, value.expand(value.shape[0], *self.shape)
        data, value = data.reshape(count, -1), value.reshape(value.shape[0], -1)
        if value.shape[0] == 1:
            return data @ value[0]
        if self.box is not None:
            return (data * value.index_select(0, self.box)).sum(1)
        return contract(data.reshape(self.boxes, -1, data.shape[1]), value).reshape(count)

    def __add__(self, other: Rows) -> Rows:
        return self._with(self.dense() + other.dense())

    def shift(self, amount: torch.Tensor) -> Rows:
        """Rows plus a tensor "R *n" (multipliers of constraints)."""
        return self._with(self.dense() + amount)

    def per_row(self, value: torch.Tensor) -> torch.Tensor:
        """A value "B ..." or "1 ..." as "R ..."."""
        if value.shape[0] == 1:
            return value.expand(self.count, *value.shape[1:])
        if self.box is not None:
            return value.index_select(0, self.box)
        return value.repeat_interleave(self.count // self.boxes, 0)

    def detach(self) -> Rows:
        return self if self.dense_data is None else self._with(self.dense_data.detach())

    def slice(self, start: int, stop: int) -> Rows:
        """Rows start to stop, as ragged rows (or as one box)."""
        box = self.box
        if box is None and self.boxes > 1:
            box = torch.arange(self.boxes, device=(self.dense_data if self.position is None else self.position).device)
            box = box.repeat_interleave(self.count // self.boxes)
        cut = {
            name: None if value is None else value[start:stop]
            for name, value in (("dense_data", self.dense_data), ("position", self.position), ("sign", self.sign))
        }
        return replace(self, box=None if box is None else box[start:stop], **cut)
