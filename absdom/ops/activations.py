"""Smooth activations of networks, each as a description that `smooth` makes lines and images from.

Inflection points and extrema without a closed form are given to 17 digits: what a break misses by 1e-16 moves a line
by far less than it is widened for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, sqrt

import torch
from torch.nn import functional as F

from absdom.ir.op import _ulp
from absdom.ops.smooth import Smooth
from absdom.registry import register_op


@register_op
@dataclass(frozen=True)
class Softplus(Smooth):
    """log(1 + exp(x))."""

    low = 0.0

    def eval(self, x):
        return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))

    def derivative(self, x):
        return torch.sigmoid(x)

    def stationary(self, slope, piece):
        return torch.log(slope) - torch.log1p(-slope)


class ExponentialUnit(Smooth):
    """right x for x >= 0, left (exp(x / scale) - 1) below; with a kink at 0 unless left / scale = right."""

    breaks = (0.0,)

    def _parts(self) -> tuple[float, float, float]:
        """(left, scale, right)."""
        raise ValueError(f"{self.name} states no parts")

    @property
    def curvature(self):
        return (1 if self._parts()[0] > 0 else -1, 0)

    @property
    def extrema(self):
        left, scale, right = self._parts()
        return (0.0,) if left / scale * right < 0 else ()

    def eval(self, x):
        left, scale, right = self._parts()
        return torch.where(x > 0, right * x, left * torch.expm1(x.clamp(max=0) / scale))

    def derivative(self, x):
        left, scale, right = self._parts()
        return torch.where(x > 0, torch.full_like(x, right), left / scale * torch.exp(x.clamp(max=0) / scale))

    def derivative_error(self, x, value):
        return value.abs() * (16 + 2 * (x / self._parts()[1]).abs()) * _ulp(value, 1)

    def stationary(self, slope, piece):
        left, scale, _ = self._parts()
        return scale * torch.log(slope * (scale / left))


@register_op
@dataclass(frozen=True)
class Elu(ExponentialUnit):
    alpha: float = 1.0

    def _parts(self):
        return self.alpha, 1.0, 1.0


@register_op
@dataclass(frozen=True)
class Celu(ExponentialUnit):
    alpha: float = 1.0

    def _parts(self):
        return self.alpha, self.alpha, 1.0


@register_op
@dataclass(frozen=True)
class Selu(ExponentialUnit):
    alpha: float = 1.6732632423543772
    gamma: float = 1.0507009873554805

    def _parts(self):
        return self.alpha * self.gamma, 1.0, self.gamma


class Gated(Smooth):
    """x g(x) with a smooth step g: concave, convex, concave; falls to its minimum, then rises."""

    curvature = (-1, 1, -1)
    anchor = 0.0

    def error(self, x, value):
        return x.abs() * _ulp(value, 16) + torch.finfo(value.dtype).tiny  # 1 + erf and its kin cancel

    def derivative_error(self, x, value):
        return (1 + x.abs().clamp(max=32)) * _ulp(value, 16)


@register_op
@dataclass(frozen=True)
class Gelu(Gated):
    """x Phi(x) = x (1 + erf(x / sqrt(2))) / 2, with any divisor in place of sqrt(2); with `tanh`, the approximation
    0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), which has no divisor."""

    tanh: bool = False
    divisor: float = sqrt(2)

    @property
    def breaks(self):
        return (-1.4185040087908284, 1.4185040087908284) if self.tanh else (-self.divisor, self.divisor)

    @property
    def extrema(self):
        return (-0.75246142207101626 if self.tanh else -0.75179152469356446 * (self.divisor / sqrt(2)),)

    @property
    def low(self):
        return -0.1701 if self.tanh else -0.16998 * (self.divisor / sqrt(2))

    def eval(self, x):
        if self.tanh or self.divisor == sqrt(2):
            return F.gelu(x, approximate="tanh" if self.tanh else "none")
        return x * (1 + torch.erf(x / self.divisor)) / 2

    def derivative(self, x):
        if not self.tanh:
            t = x / self.divisor
            return (1 + torch.erf(t)) / 2 + t.clamp(-64, 64) * torch.exp(-t.square()) / sqrt(pi)
        inner = sqrt(2 / pi) * (x + 0.044715 * x**3)
        small = torch.exp(-2 * inner.abs())
        bell = 4 * small / (1 + small).square()
        # A bell of 0 times a square that overflows would be NaN; far out the product is 0.
        spread = sqrt(2 / pi) * (1 + 3 * 0.044715 * x.clamp(-32, 32).square())
        return (1 + torch.tanh(inner)) / 2 + x.clamp(-32, 32) * bell * spread / 2


@register_op
@dataclass(frozen=True)
class Silu(Gated):
    """x sigmoid(x), also called Swish."""

    breaks = (-2.3993572805154677, 2.3993572805154677)
    extrema = (-1.2784645427610738,)
    low = -0.27847
    reach = 48.0

    def eval(self, x):
        return F.silu(x)

    def derivative(self, x):
        s = torch.sigmoid(x)
        return s + x.clamp(-200, 200) * s * torch.sigmoid(-x)


@register_op
@dataclass(frozen=True)
class Mish(Gated):
    """x tanh(softplus(x))."""

    breaks = (-2.2563763963607931, 1.4905711794854284)
    extrema = (-1.1924312145154952,)
    low = -0.30885
    reach = 48.0

    def eval(self, x):
        return F.mish(x)

    def derivative(self, x):
        gate = torch.tanh(F.softplus(x))
        return gate + x.clamp(-200, 200) * torch.sigmoid(x) * (1 - gate.square())


@register_op
@dataclass(frozen=True)
class HardSwish(Smooth):
    """x min(max(x + 3, 0), 6) / 6."""

    breaks = (-3.0, 3.0)
    curvature = (0, 1, 0)
    extrema = (-3.0, -1.5)
    low = -0.376

    def eval(self, x):
        return F.hardswish(x)

    def error(self, x, value):
        return x.abs() * _ulp(value, 8) + torch.finfo(value.dtype).tiny

    def derivative(self, x):
        inner = (2 * x.clamp(-3, 3) + 3) / 6
        return torch.where(x < -3, torch.zeros_like(x), torch.where(x > 3, torch.ones_like(x), inner))

    def derivative_error(self, x, value):
        return torch.ones_like(value) * _ulp(value, 8)

    def stationary(self, slope, piece):
        return 3 * slope - 1.5
