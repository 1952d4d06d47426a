"""The smooth functions that networks use, each as a description that `smooth` makes lines and images from.

Inflection points and extrema without a closed form are given to 17 digits: what a break misses by 1e-16 moves a line
by far less than it is widened for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, pi, sqrt

import torch
from torch.nn import functional as F

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

    def stationary(self, slope, piece):
        root = (slope / self.exponent).abs() ** (1 / (self.exponent - 1))
        if not self._whole:
            return root
        # f'(x) = p x^(p-1): of the sign of p everywhere if p is odd, of the sign of p x if it is even.
        if self.exponent % 2 == 0:
            return root * torch.sign(slope) * (1 if self.exponent > 0 else -1)
        return root if piece else -root


def reciprocal() -> Power:
    return Power(-1.0)


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


class Periodic(Smooth):
    """sin(x + phase): concave where it is positive."""

    low = -1.0
    high = 1.0
    breaks = ()
    curvature = (-1, 1)  # both occur; where they lie is told by `peak`
    phase: float = 0.0

    def error(self, x, value):
        return torch.full_like(value, _ulp(value, 2)) + value.abs() * _ulp(value, 4)

    def _pieces(self):
        return ()

    def _blur(self, lower, upper):
        """How far off a multiple of pi may be, near the interval."""
        return (lower.abs() + upper.abs() + 10) * _ulp(lower, 4)

    def is_defined(self, lower, upper):
        return self._blur(lower, upper) < 1e-2  # beyond, floats do not tell where the next arch begins

    def _first_and_last(self, lower, upper, offset):
        """The first and the last of the points offset + 2 pi k in [lower, upper]; outside of it there are none."""
        blur = self._blur(lower, upper)
        first = offset + 2 * pi * torch.ceil((lower - blur - offset) / (2 * pi))
        last = offset + 2 * pi * torch.floor((upper + blur - offset) / (2 * pi))
        return (first, first <= upper + blur), (last, last >= lower - blur)

    def image(self, lower, upper):
        ends = self.eval(lower), self.eval(upper)
        small, big = torch.minimum(*ends), torch.maximum(*ends)
        small, big = small - self.error(lower, small), big + self.error(lower, big)
        for value, offset in ((1.0, pi / 2 - self.phase), (-1.0, -pi / 2 - self.phase)):
            inside = self._first_and_last(lower, upper, offset)[0][1] | ~torch.isfinite(upper - lower)
            if value > 0:
                big = torch.where(inside | big.isnan(), torch.ones_like(big), big)
            else:
                small = torch.where(inside | small.isnan(), -torch.ones_like(small), small)
        return small.clamp(min=-1), big.clamp(max=1)

    def peak(self, lower, upper, slope, sign):
        first, second = self._value(lower, slope, sign), self._value(upper, slope, sign)
        best, at = torch.maximum(first, second), torch.where(second > first, upper, lower).detach()
        # sign (sin(x + phase) - slope x) turns down where cos(x + phase) = slope and sign sin > 0. It falls or rises by
        # the same from each of these points to the next, so only the first and the last matter.
        flat = slope.abs() < 1
        angle = torch.arccos(torch.where(flat, slope, torch.zeros_like(slope)).detach())
        for x, inside in self._first_and_last(lower, upper, (angle if sign > 0 else -angle) - self.phase):
            x = self._with_ends(torch.minimum(torch.maximum(x, lower), upper), lower, upper)
            with torch.no_grad():  # the tangent bounds the arch, which is no wider than pi
                rest = (self.derivative(x) - slope).abs() + _ulp(x, 16)
                rise = rest * (upper - lower).clamp(max=pi) * (1 + _ulp(x))
            value = self._value(x, slope, sign) + rise
            better = flat & inside & (value > best)
            best, at = torch.where(better, value, best), torch.where(better, x, at).detach()
        return best, at


@register_op
@dataclass(frozen=True)
class Sin(Periodic):
    def eval(self, x):
        return torch.sin(x)

    def derivative(self, x):
        return torch.cos(x)


@register_op
@dataclass(frozen=True)
class Cos(Periodic):
    phase = pi / 2

    def eval(self, x):
        return torch.cos(x)

    def derivative(self, x):
        return -torch.sin(x)


@register_op
@dataclass(frozen=True)
class Tan(Smooth):
    """Tangent, where no pole lies in the interval; elsewhere nothing is known."""

    breaks = (0.0,)
    curvature = (-1, 1)

    def eval(self, x):
        return torch.tan(x)

    def derivative(self, x):
        return 1 + torch.tan(x).square()

    def error(self, x, value):
        return (value.abs() + x.abs() * (1 + value.square())) * _ulp(value, 8) + torch.finfo(value.dtype).tiny

    def derivative_error(self, x, value):
        return value * (1 + value) * (1 + x.abs()) * _ulp(value, 16)

    def stationary(self, slope, piece):
        x = torch.atan((slope - 1).clamp(min=0).sqrt())
        return x if piece else -x

    def _at_pole(self, lower, upper):
        blur = (lower.abs() + upper.abs() + 10) * _ulp(lower, 8)
        first = pi / 2 + pi * torch.ceil((lower - blur - pi / 2) / pi)
        return (first <= upper + blur) | ~torch.isfinite(upper - lower)

    def peak(self, lower, upper, slope, sign):
        """In the period around 0, moved there by a multiple of pi, with the rounding of the move on both sides."""
        turns = torch.round((lower + upper) / (2 * pi)).detach()
        move = turns * pi
        blur = torch.where(turns == 0, torch.zeros_like(move), (lower.abs() + upper.abs()) * _ulp(lower, 4)).detach()
        bound, at = super().peak(lower - move - blur, upper - move + blur, slope, sign)
        bound = bound - sign * slope * move + (slope * move).abs() * _ulp(slope, 4)
        return bound, torch.minimum(torch.maximum(at + move, lower), upper)
