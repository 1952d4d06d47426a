"""Structural ops: they move elements and compute nothing, so their only rounding is in sums of the transpose."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from absdom.ir.op import Affine, At
from absdom.registry import register_op
from absdom.types import TensorType


def lead(x: torch.Tensor, rank: int) -> torch.Tensor:
    """Insert axes of size 1 after the leading axis until the value has `rank` axes of its own."""
    missing = rank - (x.dim() - 1)
    return x.reshape(x.shape[0], *([1] * missing), *x.shape[1:]) if missing > 0 else x


def unbroadcast(nu: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Adjoint of broadcasting "R *shape" to nu's shape: sum the axes that were expanded."""
    extra = nu.dim() - 1 - len(shape)
    if extra:
        nu = nu.sum(dim=tuple(range(1, 1 + extra)))
    axes = tuple(i + 1 for i, size in enumerate(shape) if size == 1 and nu.shape[i + 1] != 1)
    return nu.sum(dim=axes, keepdim=True) if axes else nu


class Move(Affine):
    """Base of ops that only move elements: nothing is rounded in `eval`."""

    def terms(self, at: At) -> int:
        return 1


@register_op
@dataclass(frozen=True)
class Reshape(Move):
    shape: tuple[int, ...]

    def infer(self, x):
        if prod(self.shape) != x.numel:
            raise ValueError(f"cannot reshape {x} to {self.shape}")
        return x.with_shape(self.shape)

    def eval(self, x):
        return x.reshape(x.shape[0], *self.shape)

    def transpose(self, nu, at, index):
        return nu.reshape(nu.shape[0], *at.inputs[0].shape)

    def transpose_onehot(self, position, sign, at, index):
        return position, sign


@register_op
@dataclass(frozen=True)
class Permute(Move):
    axes: tuple[int, ...]

    def infer(self, x):
        if sorted(self.axes) != list(range(x.rank)):
            raise ValueError(f"{self.axes} is no permutation of the axes of {x}")
        return x.with_shape(x.shape[a] for a in self.axes)

    def eval(self, x):
        return x.permute(0, *(a + 1 for a in self.axes))

    def transpose(self, nu, at, index):
        inverse = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return nu.permute(0, *(a + 1 for a in inverse))


@register_op
@dataclass(frozen=True)
class Concat(Move):
    """Varying inputs and constants side by side; a constant part is an offset."""

    axis: int

    def infer(self, *types):
        first = types[0]
        for t in types[1:]:
            if t.rank != first.rank or any(
                a != b for i, (a, b) in enumerate(zip(t.shape, first.shape, strict=True)) if i != self.axis
            ):
                raise ValueError(f"cannot concatenate {first} and {t} along axis {self.axis}")
        shape = list(first.shape)
        shape[self.axis] = sum(t.shape[self.axis] for t in types)
        return first.with_shape(shape)

    def is_additive(self, i, at):
        return True

    def eval(self, *values):
        size = max(v.shape[0] for v in values)
        return torch.cat([v.expand(size, *v.shape[1:]) for v in values], dim=self.axis + 1)

    def transpose(self, nu, at, index):
        start = sum(t.shape[self.axis] for t in at.inputs[:index])
        return nu.narrow(self.axis + 1, start, at.inputs[index].shape[self.axis])


@register_op
@dataclass(frozen=True)
class Slice(Move):
    """x[start:stop:step] along one axis, step > 0."""

    axis: int
    start: int
    stop: int
    step: int = 1

    def infer(self, x):
        shape = list(x.shape)
        shape[self.axis] = len(range(self.start, self.stop, self.step))
        if not 0 <= self.start <= x.shape[self.axis] or self.stop > x.shape[self.axis] or self.step < 1:
            raise ValueError(f"slice [{self.start}:{self.stop}:{self.step}] does not fit axis {self.axis} of {x}")
        return x.with_shape(shape)

    def _index(self, x):
        return (slice(None),) * (self.axis + 1) + (slice(self.start, self.stop, self.step),)

    def eval(self, x):
        return x[self._index(x)]

    def transpose(self, nu, at, index):
        out = nu.new_zeros((nu.shape[0], *at.inputs[0].shape))
        out[self._index(out)] = nu
        return out


@register_op
@dataclass(frozen=True)
class Take(Move):
    """x.index_select(axis, indices): Gather with constant indices; indices may repeat."""

    axis: int
    indices: tuple[int, ...]

    def infer(self, x):
        if any(not 0 <= i < x.shape[self.axis] for i in self.indices):
            raise ValueError(f"an index lies outside axis {self.axis} of {x}")
        shape = list(x.shape)
        shape[self.axis] = len(self.indices)
        return x.with_shape(shape)

    def eval(self, x):
        return x.index_select(self.axis + 1, torch.tensor(self.indices, device=x.device))

    def transpose(self, nu, at, index):
        out = nu.new_zeros((nu.shape[0], *at.inputs[0].shape))
        return out.index_add(self.axis + 1, torch.tensor(self.indices, device=nu.device), nu)

    def terms(self, at):
        return len(self.indices)


@register_op
@dataclass(frozen=True)
class Pad(Move):
    """Constant padding with zeros or cropping is left to Slice; `before` and `after` per axis, >= 0.

    A padding value other than 0 is written as Add of a constant by the front ends, which keeps this op linear.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]

    def infer(self, x):
        if min(self.before + self.after) < 0 or len(self.before) != x.rank:
            raise ValueError(f"padding {self.before}, {self.after} does not fit {x}")
        return x.with_shape(s + b + a for s, b, a in zip(x.shape, self.before, self.after, strict=True))

    def eval(self, x):
        flat = [p for b, a in zip(reversed(self.before), reversed(self.after), strict=True) for p in (b, a)]
        return torch.nn.functional.pad(x, flat)

    def transpose(self, nu, at, index):
        for axis, (before, size) in enumerate(zip(self.before, at.inputs[0].shape, strict=True)):
            nu = nu.narrow(axis + 1, before, size)
        return nu


@register_op
@dataclass(frozen=True)
class Expand(Move):
    """Broadcast to a larger shape."""

    shape: tuple[int, ...]

    def infer(self, x):
        try:
            shape = torch.broadcast_shapes(x.shape, self.shape)
        except RuntimeError:
            raise ValueError(f"cannot expand {x} to {self.shape}") from None
        return x.with_shape(shape)

    def eval(self, x):
        x = lead(x, len(self.shape))
        return x.expand(x.shape[0], *torch.broadcast_shapes(x.shape[1:], self.shape))

    def transpose(self, nu, at, index):
        return unbroadcast(nu, at.inputs[0].shape)

    def terms(self, at):
        return at.output.numel


def flat_type(types: tuple[TensorType, ...]) -> TensorType:
    """The type of all `types` flattened and laid side by side."""
    return TensorType((sum(t.numel for t in types),), types[0].dtype)
