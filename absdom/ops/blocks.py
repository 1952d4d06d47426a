"""Coefficients of planes that are linear maps per box: tensor contractions, and what is elementwise up to two ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from absdom.ir.op import Block
from absdom.ops.shape import unbroadcast


@dataclass(frozen=True, eq=False)
class Contraction(Block):
    """Sum of value[..] z[..] over shared axes, as two einsum formulas. Axes of size 1 of `value` broadcast.

    adjoint: from "G r *out" and "G *value" to "G r *in" before broadcasting; forward: from "G *value", "G r *in" to
    "G r *out". `shape` is the input's own, which may have been broadcast. `axis`, if not None, moves to the end first.
    """

    value: torch.Tensor
    adjoint: str
    forward: str
    shape: tuple[int, ...]
    terms: int
    axis: int | None = None

    def transpose(self, nu):
        if self.axis is not None:
            nu = nu.movedim(self.axis + 2, -1)
        out = torch.einsum(self.adjoint, nu, self.value)
        if self.axis is not None:
            out = out.movedim(-1, self.axis + 2)
        return unbroadcast(out.flatten(0, 1), self.shape).reshape(*out.shape[:2], *self.shape)

    def apply(self, z):
        return self._forward(self.value, z)

    def reach(self, size):
        return self._forward(self.value.abs(), size.unsqueeze(1)).squeeze(1)

    def _forward(self, value, z):
        if self.axis is None:
            return torch.einsum(self.forward, value, z)
        return torch.einsum(self.forward, value, z.movedim(self.axis + 2, -1)).movedim(-1, self.axis + 2)
