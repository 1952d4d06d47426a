"""Transposed convolution: the adjoint of a convolution, so its own transpose is one."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch.nn import functional as F

from absdom.ir.op import Affine
from absdom.registry import register_op


@register_op
@dataclass(frozen=True)
class ConvTranspose(Affine):
    """Transposed convolution over 1 to 3 spatial axes, x "N C ...", W "C M/groups ...", optional bias "M".

    Without padding it gives (n - 1) stride + dilation (k - 1) + 1 elements per axis. Of these, `size` are kept, from
    place `before` on; what lies outside of them (before < 0, or a size that reaches further) holds the bias only.
    """

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int
    before: tuple[int, ...]
    size: tuple[int, ...]

    additive = optional = (2,)

    def infer(self, x, w, b=None):
        spatial = len(self.strides)
        if x.rank != spatial + 2 or w.rank != x.rank:
            raise ValueError(f"a transposed convolution over {spatial} axes does not fit {x} and weights {w}")
        if x.shape[1] != w.shape[0] or w.shape[0] % self.groups:
            raise ValueError(f"{x} has {x.shape[1]} channels, the weights {w} with groups={self.groups} need others")
        if min(self.size) < 1:
            raise ValueError(f"nothing of the result is kept: size {self.size}")
        if b is not None and b.shape != (w.shape[1] * self.groups,):
            raise ValueError(f"the bias {b} does not fit {w.shape[1] * self.groups} channels")
        return x.with_shape((x.shape[0], w.shape[1] * self.groups, *self.size))

    def _margins(self, x, w) -> list[tuple[int, int]]:
        """Per axis: elements of the full result that are cut off in front and behind; below 0: zeros are added."""
        full = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(x, self.strides, self.dilations, w, strict=True)]
        return [(b, f - b - m) for f, b, m in zip(full, self.before, self.size, strict=True)]

    def eval(self, x, w, b=None):
        back = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(self.strides) - 1]
        margins = self._margins(x.shape[3:], w.shape[3:])
        full = back(x.flatten(0, 1), w[0], None, self.strides, 0, 0, self.groups, self.dilations)
        out = F.pad(full, [-m for pair in reversed(margins) for m in pair])
        if b is not None:
            out = out + b[0].reshape(-1, *[1] * len(self.strides))
        return out.reshape(*x.shape[:2], *out.shape[1:])

    def transpose(self, nu, at, index):
        conv = (F.conv1d, F.conv2d, F.conv3d)[len(self.strides) - 1]
        x, w = at.inputs[:2]
        margins = self._margins(x.shape[2:], w.shape[2:])
        full = F.pad(nu.flatten(0, 1), [m for pair in reversed(margins) for m in pair])
        out = conv(full, at.params[1][0], None, self.strides, 0, self.dilations, self.groups)
        return out.reshape(nu.shape[0], *x.shape)

    def offset(self, at):
        if len(at.params) < 3:
            return None
        bias = at.params[2][0].reshape(1, 1, -1, *[1] * len(self.strides))
        return bias.expand(1, *at.output.shape)

    def terms(self, at):
        w = at.inputs[1].shape
        # An element of the result sums over its input channels, a pull over the output channels, each over the kernel.
        return max(w[0], w[1]) * prod(w[2:]) + 1
