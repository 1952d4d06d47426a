"""Elementary functions, each as a description that `smooth` makes lines and images from."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, pi, sqrt

import torch

from absdom.ir.op import _ulp
from absdom.ops.smooth import Smooth, SShaped
from absdom.registry import register_op


@register_op
@dataclass(frozen=True)
class Sigmoid(SShaped):
    low = 0.0
    high = 1.0

    def eval(self, x):
        return torch.sigmoid(x)

    def derivative(self, x):
        return torch.sigmoid(x) * torch.sigmoid(-x)

    def inverse_derivative(self, slope):
        root = (1 - 4 * slope).clamp(min=0).sqrt()
        return 2 * torch.log1p(root) - torch.log(4 * slope)


@register_op
@dataclass(frozen=True)
class Tanh(SShaped):
    low = -1.0
    high = 1.0

    def eval(self, x):
        return torch.tanh(x)

    def derivative(self, x):
        # Not 1 - tanh(x)^2, which loses all digits in the tails.
        small = torch.exp(-2 * x.abs())
        return 4 * small / (1 + small).square()

    def inverse_derivative(self, slope):
        root = (1 - slope).clamp(min=0).sqrt()
        return torch.log1p(root) - torch.log(slope) / 2


@register_op
@dataclass(frozen=True)
class Erf(SShaped):
    low = -1.0
    high = 1.0

    def eval(self, x):
        return torch.erf(x)

    def derivative(self, x):
        return torch.exp(-x.square()) * (2 / sqrt(pi))

    def derivative_error(self, x, value):
        return value.abs() * (16 + 4 * x.square()) * _ulp(value, 1)  # exp multiplies the rounding of x^2 by x^2

    def inverse_derivative(self, slope):
        return (-torch.log(slope * (sqrt(pi) / 2))).clamp(min=0).sqrt()


@register_op
@dataclass(frozen=True)
class Atan(SShaped):
    low = -pi / 2 * (1 + 1e-7)
    high = pi / 2 * (1 + 1e-7)

    def eval(self, x):
        return torch.atan(x)

    def derivative(self, x):
        return 1 / (1 + x.square())

    def inverse_derivative(self, slope):
        return (1 / slope - 1).clamp(min=0).sqrt()


@register_op
@dataclass(frozen=True)
class Softsign(SShaped):
    low = -1.0
    high = 1.0

    def eval(self, x):
        return x / (1 + x.abs())

    def derivative(self, x):
        return 1 / (1 + x.abs()).square()

    def inverse_derivative(self, slope):
        return slope.rsqrt() - 1


@register_op
@dataclass(frozen=True)
class Exp(Smooth):
    low = 0.0

    def eval(self, x):
        return torch.exp(x)

    def derivative(self, x):
        return torch.exp(x)

    def stationary(self, slope, piece):
        return torch.log(slope)


@register_op
@dataclass(frozen=True)
class Log(Smooth):
    """Natural logarithm of what is positive."""

    curvature = (-1,)
    domain = (0.0, inf)
    anchor = 1.0

    def eval(self, x):
        return torch.log(x)

    def derivative(self, x):
        return 1 / x

    def stationary(self, slope, piece):
        return 1 / slope


@register_op
@dataclass(frozen=True)
class Sqrt(Smooth):
    """Square root of what is not negative."""

    curvature = (-1,)
    domain = (0.0, inf)
    low = 0.0
    anchor = 1.0

    def eval(self, x):
        return x.sqrt()

    def derivative(self, x):
        return 0.5 / x.sqrt()

    def stationary(self, slope, piece):
        return 0.25 / slope.square()

    def quadratic(self, lower, upper):
        """y^2 - z = 0."""
        zero = torch.zeros_like(lower)
        return zero + 1, zero, zero, zero, zero - 1, zero


@register_op
@dataclass(frozen=True)
class Power(Smooth):
    """x ** exponent with a constant exponent other than 0 and 1. Of x >= 0, where the exponent is not whole."""

    exponent: float

    @property
    def _whole(self) -> bool:
        return float(self.exponent).is_integer()

    @property
    def domain(self):
        return (-inf, inf) if self._whole else (0.0, inf)

    @property
    def poles(self):
        return (0.0,) if self.exponent < 0 else ()

    @property
    def extrema(self):
        return (0.0,) if self._whole and self.exponent > 0 and self.exponent % 2 == 0 else ()

    @property
    def low(self):
        return 0.0 if not self._whole or self.exponent % 2 == 0 else -inf

    @property
    def breaks(self):
        return (0.0,) if self._whole and (self.exponent % 2 or self.exponent < 0) else ()

    @property
    def curvature(self):
        if not self._whole:
            return (-1,) if 0 < self.exponent < 1 else (1,)
        if self.breaks:
            return (-1 if self.exponent % 2 else 1, 1)
        return (1,)

    anchor = 1.0

    def eval(self, x):
        if self.exponent == -1:
            return 1 / x
        return x**self.exponent

    def derivative(self, x):
        if self.exponent == 2:
            return 2 * x
        return self.exponent * x ** (self.exponent - 1)

    def error(self, x, value):
        # A power by repeated products rounds once for each.
        return value.abs() * _ulp(value, 8 + 2 * int(min(abs(self.exponent), 1e6))) + torch.finfo(value.dtype).tiny

    def derivative_error(self, x, value):
        return value.abs() * _ulp(value, 16 + 2 * int(min(abs(self.exponent), 1e6)))

    def quadratic(self, lower, upper):
        """z^2 - y = 0, or y z - 1 = 0."""
        zero = torch.zeros_like(lower)
        if self.exponent == 2:
            return zero, zero, zero + 1, zero - 1, zero, zero
        return (zero, zero + 1, zero, zero, zero, zero - 1) if self.exponent == -1 else None

    def stationary(self, slope, piece):
        root = (slope / self.exponent).abs() ** (1 / (self.exponent - 1))
        if not self._whole:
            return root
        # f'(x) = p x^(p-1): of the sign of p everywhere if p is odd, of the sign of p x if it is even.
        if self.exponent % 2 == 0:
            return root * torch.sign(slope) * (1 if self.exponent > 0 else -1)
        return root if piece else -root
