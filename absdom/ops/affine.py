"""Ops that are affine in what varies: sums, scalings, matrix products, convolutions. Transposes are explicit."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch.nn import functional as F

from absdom.ir.op import Affine, At, Op
from absdom.ops.shape import lead, unbroadcast
from absdom.registry import register_op


def broadcast_type(a, b):
    try:
        return a.with_shape(torch.broadcast_shapes(a.shape, b.shape))
    except RuntimeError:
        raise ValueError(f"shapes {a} and {b} do not broadcast") from None


class Sum(Affine):
    """Base of Add and Sub: both inputs may vary; the constant one is an offset."""

    additive = (0, 1)

    def infer(self, a, b):
        return broadcast_type(a, b)

    def linear(self, at, values):
        # Only what varies, so that a residual add copies no constant.
        parts = [self._signed(i, values[i]) for i, varying in enumerate(at.varying) if varying]
        return self._join(parts, at)

    def absolute(self, at, values):
        return self._join([values[i] for i, varying in enumerate(at.varying) if varying], at)

    def _join(self, parts, at):
        parts = [lead(p, at.output.rank) for p in parts]
        total = parts[0] + parts[1] if len(parts) == 2 else parts[0]
        return total.expand(total.shape[0], *at.output.shape)

    def _signed(self, i, value):
        return value

    def transpose(self, nu, at, index):
        return unbroadcast(self._signed(index, nu), at.inputs[index].shape)

    def offset(self, at: At):
        if all(at.varying):
            return None
        i = at.varying.index(False)
        return self._join([self._signed(i, at.params[i])], at)

    def terms(self, at: At) -> int:
        return 2


@register_op
@dataclass(frozen=True)
class Add(Sum):
    def eval(self, a, b):
        rank = max(a.dim(), b.dim()) - 1
        return lead(a, rank) + lead(b, rank)


@register_op
@dataclass(frozen=True)
class Sub(Sum):
    def eval(self, a, b):
        rank = max(a.dim(), b.dim()) - 1
        return lead(a, rank) - lead(b, rank)

    def _signed(self, i, value):
        return -value if i == 1 else value


@register_op
@dataclass(frozen=True)
class Neg(Affine):
    def infer(self, x):
        return x

    def eval(self, x):
        return -x

    def absolute(self, at, values):
        return values[0]

    def transpose(self, nu, at, index):
        return -nu

    def terms(self, at):
        return 1


@register_op
@dataclass(frozen=True)
class Scale(Affine):
    """x * c with a parameter c that broadcasts."""

    def infer(self, x, c):
        return broadcast_type(x, c)

    def eval(self, x, c):
        rank = max(x.dim(), c.dim()) - 1
        return lead(x, rank) * lead(c, rank)

    def transpose(self, nu, at, index):
        return unbroadcast(nu * lead(at.params[1], at.output.rank), at.inputs[0].shape)

    def terms(self, at):
        return 1


@register_op
@dataclass(frozen=True)
class Divide(Affine):
    """x / c with a parameter c that broadcasts: one correctly rounded division, no rounded reciprocal."""

    def infer(self, x, c):
        return broadcast_type(x, c)

    def eval(self, x, c):
        rank = max(x.dim(), c.dim()) - 1
        return lead(x, rank) / lead(c, rank)

    def transpose(self, nu, at, index):
        return unbroadcast(nu / lead(at.params[1], at.output.rank), at.inputs[0].shape)

    def error_weight(self, at, errors, values):
        if errors[1] is None:
            return None
        c = at.params[1].abs()
        # |x/c - x/c'| <= |x| e / (c (c - e)); the clamp gives infinity where e reaches c.
        ratio = errors[1] / (c * (c - errors[1]).clamp(min=0))
        return self.eval(values[0], ratio.reciprocal())

    def terms(self, at):
        return 1


@register_op
@dataclass(frozen=True)
class Mul(Op):
    """x * y before it is known what varies."""

    def infer(self, a, b):
        return broadcast_type(a, b)

    def eval(self, a, b):
        rank = max(a.dim(), b.dim()) - 1
        return lead(a, rank) * lead(b, rank)

    def specialise(self, varying):
        from absdom.ops.products import Product

        if all(varying):
            return Product(), (0, 1)
        return Scale(), (0, 1) if varying[0] else (1, 0)

    def of_equal(self):
        from absdom.ops.functions import Power

        return Power(2.0)


@register_op
@dataclass(frozen=True)
class Div(Op):
    """x / y before it is known what varies."""

    def infer(self, a, b):
        return broadcast_type(a, b)

    def eval(self, a, b):
        rank = max(a.dim(), b.dim()) - 1
        return lead(a, rank) / lead(b, rank)

    def specialise(self, varying):
        from absdom.ops.products import Quotient

        return (Quotient() if varying[1] else Divide()), (0, 1)


@register_op
@dataclass(frozen=True)
class ReduceSum(Affine):
    """Sum over axes, which stay as size 1 (a Reshape drops them)."""

    axes: tuple[int, ...]

    def infer(self, x):
        return x.with_shape(1 if i in self.axes else s for i, s in enumerate(x.shape))

    def eval(self, x):
        # torch takes an empty tuple for all axes.
        return x.sum(dim=tuple(a + 1 for a in self.axes), keepdim=True) if self.axes else x

    def transpose(self, nu, at, index):
        return nu.expand(nu.shape[0], *at.inputs[0].shape)

    def terms(self, at):
        return prod(at.inputs[0].shape[a] for a in self.axes)


def matmul_type(a, b):
    if a.rank < 2 or b.rank < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"cannot multiply the matrices {a} and {b}")
    try:
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except RuntimeError:
        raise ValueError(f"cannot multiply the matrices {a} and {b}") from None
    return a.with_shape((*batch, a.shape[-2], b.shape[-1]))


@register_op
@dataclass(frozen=True)
class MatMul(Op):
    """x @ y (each of rank >= 2) before it is known what varies."""

    def infer(self, a, b):
        return matmul_type(a, b)

    def eval(self, a, b):
        rank = max(a.dim(), b.dim()) - 1
        return lead(a, rank) @ lead(b, rank)

    def specialise(self, varying):
        from absdom.ops.products import MatrixProduct

        if all(varying):
            return MatrixProduct(), (0, 1)
        return (Linear() if varying[0] else LinearLeft()), (0, 1)


@register_op
@dataclass(frozen=True)
class Linear(Affine):
    """x @ W + b with parameters W "... k m" and, optionally, b (which broadcasts to the result)."""

    additive = optional = (2,)

    def infer(self, x, w, b=None):
        out = matmul_type(x, w)
        if b is not None and broadcast_type(out, b).shape != out.shape:
            raise ValueError(f"the bias {b} does not broadcast to {out}")
        return out

    def eval(self, x, w, b=None):
        rank = max(x.dim(), w.dim()) - 1
        if w.dim() == 3 and x.dim() == 3 and x.shape[1] == 1:  # one row per box: a plain matrix product
            out = (x.squeeze(1) @ w.squeeze(0)).unsqueeze(1)
        else:
            out = lead(x, rank) @ lead(w, rank)
        return out if b is None else out + lead(b, rank)

    def transpose(self, nu, at, index):
        w = at.params[1]
        if w.dim() == 3:
            return nu @ w.squeeze(0).mT
        return unbroadcast(nu @ lead(w, at.output.rank).mT, at.inputs[0].shape)

    def transpose_onehot(self, position, sign, at, index):
        if len(at.inputs[1].shape) != 2 or prod(at.output.shape[:-1]) != 1:
            return None
        rows = at.params[1].squeeze(0).mT.index_select(0, position) * sign[:, None]
        return rows.reshape(len(position), *at.inputs[0].shape)

    def offset(self, at):
        if len(at.params) < 3:
            return None
        return lead(at.params[2], at.output.rank).expand(1, *at.output.shape)

    def terms(self, at):
        copies = prod(at.output.shape[:-1]) // max(1, prod(at.inputs[0].shape[:-1]))
        return max(at.inputs[0].shape[-1], at.output.shape[-1] + copies) + 1


@register_op
@dataclass(frozen=True)
class LinearLeft(Affine):
    """W @ x with a parameter W."""

    def infer(self, w, x):
        return matmul_type(w, x)

    def eval(self, w, x):
        rank = max(x.dim(), w.dim()) - 1
        return lead(w, rank) @ lead(x, rank)

    def transpose(self, nu, at, index):
        return unbroadcast(lead(at.params[0], at.output.rank).mT @ nu, at.inputs[1].shape)

    def terms(self, at):
        copies = prod(at.output.shape[:-2]) // max(1, prod(at.inputs[1].shape[:-2]))
        return max(at.inputs[1].shape[-2], at.output.shape[-2] + copies)


@register_op
@dataclass(frozen=True)
class Conv(Affine):
    """Convolution over 1 to 3 spatial axes, x "N C ...", W "M C/groups ...", optional bias "M"."""

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int
    before: tuple[int, ...]
    after: tuple[int, ...]

    additive = optional = (2,)

    def infer(self, x, w, b=None):
        spatial = len(self.strides)
        if x.rank != spatial + 2 or w.rank != x.rank:
            raise ValueError(f"a convolution over {spatial} axes does not fit {x} and weights {w}")
        if x.shape[1] != w.shape[1] * self.groups or w.shape[0] % self.groups:
            raise ValueError(f"{x} has {x.shape[1]} channels, the weights {w} with groups={self.groups} need others")
        sizes = [
            (n + p + q - d * (k - 1) - 1) // s + 1
            for n, k, s, d, p, q in zip(
                x.shape[2:], w.shape[2:], self.strides, self.dilations, self.before, self.after, strict=True
            )
        ]
        if min(sizes) < 1:
            raise ValueError(f"the kernel of {w} is larger than the padded input {x}")
        return x.with_shape((x.shape[0], w.shape[0], *sizes))

    def _padding(self, x):
        if self.before == self.after:
            return x, self.before
        flat = [p for b, a in zip(reversed(self.before), reversed(self.after), strict=True) for p in (b, a)]
        return F.pad(x, flat), (0,) * len(self.strides)

    def eval(self, x, w, b=None):
        conv = (F.conv1d, F.conv2d, F.conv3d)[len(self.strides) - 1]
        flat, padding = self._padding(x.flatten(0, 1))
        bias = None if b is None else b.squeeze(0)
        out = conv(flat, w.squeeze(0), bias, self.strides, padding, self.dilations, self.groups)
        return out.reshape(*x.shape[:2], *out.shape[1:])

    def transpose(self, nu, at, index):
        size = at.inputs[0].shape[2:]
        if self._tiles(at):
            return self._transpose_tiles(nu, at)
        back = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(self.strides) - 1]
        padded = [n + p + q for n, p, q in zip(size, self.before, self.after, strict=True)]
        symmetric = self.before == self.after
        kernel = at.inputs[1].shape[2:]
        rest = [
            n - ((o - 1) * s + d * (k - 1) + 1)
            for n, o, s, d, k in zip(padded, at.output.shape[2:], self.strides, self.dilations, kernel, strict=True)
        ]
        out = back(
            nu.flatten(0, 1), at.params[1].squeeze(0), None, self.strides,
            self.before if symmetric else 0, tuple(rest), self.groups, self.dilations,
        )  # fmt: skip
        if not symmetric:
            for axis, (p, n) in enumerate(zip(self.before, size, strict=True)):
                out = out.narrow(axis + 2, p, n)
        return out.reshape(nu.shape[0], *at.inputs[0].shape)

    def _tiles(self, at: At) -> bool:
        """Do the windows part the input into tiles, as the patches of a vision transformer do?"""
        kernel = at.inputs[1].shape[2:]
        covered = tuple(n * k for n, k in zip(at.output.shape[2:], kernel, strict=True))
        plain = self.groups == 1 and not any(self.before) and not any(self.after) and set(self.dilations) == {1}
        return plain and self.strides == kernel and covered == at.inputs[0].shape[2:]

    def _transpose_tiles(self, nu, at: At):
        """A matrix product, and the tiles put in their places: many times faster than a transposed convolution."""
        channels, *kernel = at.inputs[1].shape[1:]
        rank, (filters, *sites) = len(kernel), at.output.shape[1:]
        flat = nu.reshape(-1, filters, prod(sites)).mT @ at.params[1].squeeze(0).flatten(1)
        tiles = flat.reshape(-1, *sites, channels, *kernel)
        order = [0, rank + 1, *(a for i in range(rank) for a in (1 + i, rank + 2 + i))]
        return tiles.permute(order).reshape(nu.shape[0], *at.inputs[0].shape)

    def transpose_onehot(self, position, sign, at, index):
        """A row of a convolution is one kernel, placed at its window: no dense product over a one-hot tensor."""
        _, channels, *size = at.inputs[0].shape
        _, filters, *sites = at.output.shape
        if at.inputs[0].shape[0] != 1 or self.groups != 1:
            return None
        site, place = position % prod(sites), []
        for axis in reversed(range(len(sites))):
            place.append(site % sites[axis])
            site = site // sites[axis]
        place.reverse()
        kernel = at.inputs[1].shape[2:]
        padded = [n + p + q for n, p, q in zip(size, self.before, self.after, strict=True)]
        rows = at.params[1].squeeze(0).index_select(0, position // prod(sites))
        rows = rows * sign.reshape(-1, *[1] * (1 + len(size)))
        # Flat index of each kernel tap inside the padded image, per row.
        flat = position.new_zeros((len(position), *[1] * len(size)))
        for axis, (k, d, s) in enumerate(zip(kernel, self.dilations, self.strides, strict=True)):
            taps = torch.arange(k, device=position.device) * d
            shape = [1] * len(size)
            shape[axis] = k
            at_axis = (place[axis] * s).reshape(-1, *[1] * len(size)) + taps.reshape(1, *shape)
            flat = flat * padded[axis] + at_axis
        out = rows.new_zeros((len(position), channels, prod(padded)))
        out = out.scatter(2, flat.flatten(1)[:, None].expand(-1, channels, -1), rows.flatten(2))
        out = out.reshape(len(position), channels, *padded)
        for axis, (p, n) in enumerate(zip(self.before, size, strict=True)):
            out = out.narrow(axis + 2, p, n)
        return out[:, None]

    def offset(self, at):
        if len(at.params) < 3:
            return None
        bias = at.params[2].reshape(1, 1, -1, *[1] * len(self.strides))
        return bias.expand(1, *at.output.shape)

    def terms(self, at):
        w = at.inputs[1].shape
        # A pull sums over the output channels that see one input element; the forward pass over the kernel.
        return max(prod(w[1:]), prod(w[2:]) * w[0]) + 1
