"""ATen calls that compute element by element, written as absdom ops."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import torch

from absdom import ops
from absdom.frontends.torch_source import target_name
from absdom.frontends.torch_values import Index, Masked, Translation, Unsupported, handles
from absdom.ir.op import Op


def _unary(op: Op) -> Callable:
    return lambda t, x: t.add(op, x)


for _name, _op in {
    "relu": ops.Relu(), "abs": ops.Abs(), "neg": ops.Neg(), "sign": ops.Sign(), "sgn": ops.Sign(), "exp": ops.Exp(),
    "sigmoid": ops.Sigmoid(), "tanh": ops.Tanh(), "log": ops.Log(), "sqrt": ops.Sqrt(), "erf": ops.Erf(),
    "silu": ops.Silu(), "mish": ops.Mish(), "hardswish": ops.HardSwish(), "selu": ops.Selu(), "atan": ops.Atan(),
    "sin": ops.Sin(), "cos": ops.Cos(), "tan": ops.Tan(), "floor": ops.Floor(), "ceil": ops.Ceil(),
    "trunc": ops.Truncate(), "fix": ops.Truncate(), "softsign": ops.Softsign(), "relu6": ops.Clip(0.0, 6.0),
}.items():  # fmt: skip
    handles(_name)(_unary(_op))


@handles("square")
def square(t: Translation, x):
    return power(t, x, 2)


@handles("rsqrt")
def rsqrt(t: Translation, x):
    return power(t, x, -0.5)


@handles("reciprocal")
def reciprocal(t: Translation, x):
    return power(t, x, -1)


@handles("exp2", "expm1")
def shifted_exp(t: Translation, x):
    if target_name(t.node) == "exp2":
        return power(t, 2.0, x)
    return t.add(ops.Sub(), t.add(ops.Exp(), x), 1.0)


@handles("log2", "log10")
def other_log(t: Translation, x):
    base = 2.0 if target_name(t.node) == "log2" else 10.0
    return t.add(ops.Div(), t.add(ops.Log(), x), t.add(ops.Log(), base))


@handles("log1p")
def log1p(t: Translation, x):
    return t.add(ops.Log(), t.add(ops.Add(), x, 1.0))


@handles("sinh", "cosh")
def hyperbolic(t: Translation, x):
    """(exp(x) -+ exp(-x)) / 2."""
    up, down = t.add(ops.Exp(), x), t.add(ops.Exp(), t.add(ops.Neg(), x))
    join = ops.Sub() if target_name(t.node) == "sinh" else ops.Add()
    return t.add(ops.Div(), t.add(join, up, down), 2.0)


@handles("leaky_relu")
def leaky_relu(t: Translation, x, negative_slope=0.01):
    return t.add(ops.LeakyRelu(float(negative_slope)), x)


@handles("rrelu")
def rrelu(t: Translation, x, lower=0.125, upper=1 / 3, training=False, generator=None):
    if training:
        raise Unsupported("rrelu is random in training mode: call module.eval() first")
    return t.add(ops.LeakyRelu((float(lower) + float(upper)) / 2), x)


@handles("prelu", "_prelu_kernel")
def prelu(t: Translation, x, weight):
    """max(x, 0) + w min(x, 0), one slope per channel; the slopes stay live."""
    shape, slopes = t.shape(x), t.shape(weight)
    if slopes not in ((), (1,)) and len(slopes) == 1 and len(shape) > 1:
        weight = t.reshape(weight, (slopes[0], *[1] * (len(shape) - 2)))
    below = t.add(ops.Neg(), t.add(ops.Relu(), t.add(ops.Neg(), x)))
    return t.add(ops.Add(), t.add(ops.Relu(), x), t.add(ops.Mul(), below, weight))


@handles("elu")
def elu(t: Translation, x, alpha=1.0, scale=1.0, input_scale=1.0):
    if input_scale != 1:
        raise Unsupported(f"input_scale={input_scale}")
    out = t.add(ops.Elu(float(alpha)), x)
    return out if scale == 1 else t.add(ops.Mul(), out, float(scale))


@handles("celu")
def celu(t: Translation, x, alpha=1.0):
    return t.add(ops.Celu(float(alpha)), x)


@handles("gelu")
def gelu(t: Translation, x, approximate="none"):
    return t.add(ops.Gelu(tanh=approximate == "tanh"), x)


@handles("softplus")
def softplus(t: Translation, x, beta=1.0, threshold=20.0):
    """log(1 + exp(beta x)) / beta. Beyond the threshold torch returns x, which float32 cannot tell apart."""
    if threshold < 20:
        raise Unsupported(f"threshold={threshold}: the jump there is no rounding error")
    if beta == 1:
        return t.add(ops.Softplus(), x)
    return t.add(ops.Div(), t.add(ops.Softplus(), t.add(ops.Mul(), x, float(beta))), float(beta))


@handles("log_sigmoid", "log_sigmoid_forward")
def log_sigmoid(t: Translation, x):
    return t.add(ops.Neg(), t.add(ops.Softplus(), t.add(ops.Neg(), x)))


@handles("hardsigmoid")
def hardsigmoid(t: Translation, x):
    """min(max(x + 3, 0), 6) / 6."""
    return t.add(ops.Div(), t.add(ops.Clip(0.0, 6.0), t.add(ops.Add(), x, 3.0)), 6.0)


@handles("hardtanh")
def hardtanh(t: Translation, x, min_val=-1.0, max_val=1.0):
    return t.add(ops.Clip(float(min_val), float(max_val)), x)


@handles("threshold")
def threshold(t: Translation, x, threshold, value):
    """x above the threshold, `value` elsewhere."""
    if threshold == value:
        return t.add(ops.Clip(float(threshold), inf), x)
    return t.add(ops.Where(), gt(t, x, float(threshold)), x, float(value))


@handles("hardshrink")
def hardshrink(t: Translation, x, lambd=0.5):
    """x where |x| > lambd, 0 elsewhere."""
    return t.add(ops.Where(), gt(t, t.add(ops.Abs(), x), float(lambd)), x, 0.0)


@handles("softshrink")
def softshrink(t: Translation, x, lambd=0.5):
    """x moved towards zero by `lambd`: x - clip(x, -lambd, lambd)."""
    return t.add(ops.Sub(), x, t.add(ops.Clip(-float(lambd), float(lambd)), x))


@handles("clamp", "clip")
def clamp(t: Translation, x, min=None, max=None):
    if all(b is None or isinstance(b, (int, float)) for b in (min, max)):
        low, high = -inf if min is None else float(min), inf if max is None else float(max)
        return t.add(ops.Clip(low if low < high else high, high), x)  # crossed ends: the maximum is taken last
    out = t.index(x)
    out = out if min is None else extreme(t, out, min, "max")
    return out if max is None else extreme(t, out, max, "min")


@handles("clamp_min")
def clamp_min(t: Translation, x, min):
    return clamp(t, x, min, None)


@handles("clamp_max")
def clamp_max(t: Translation, x, max):
    return clamp(t, x, None, max)


@handles("maximum")
def maximum(t: Translation, a, b):
    return extreme(t, a, b, "max")


@handles("minimum")
def minimum(t: Translation, a, b):
    return extreme(t, a, b, "min")


def extreme(t: Translation, a, b, which: str) -> Index:
    """The elementwise maximum or minimum of two values that broadcast."""
    for x, end in ((a, b), (b, a)):
        if t.is_settled(end) and not t.is_constant(x) and t.constant(end).numel() == 1:
            value = float(t.constant(end))
            out = t.add(ops.Clip(value, inf) if which == "max" else ops.Clip(-inf, value), x)
            shape = torch.broadcast_shapes(t.shape(x), tuple(t.constant(end).shape))
            return out if t.shape(out) == tuple(shape) else t.add(ops.Expand(tuple(shape)), out)
    if which == "max":
        return t.add(ops.Maximum(), a, b)
    return t.add(ops.Neg(), t.add(ops.Maximum(), t.add(ops.Neg(), a), t.add(ops.Neg(), b)))


# Arithmetic. Minus infinity is legal in one place: added to scores on their way into a softmax.


@handles("add")
def add(t: Translation, a, b, alpha=1):
    if alpha != 1:
        b = t.add(ops.Mul(), b, float(alpha))
    for x, y in ((a, b), (b, a)):
        masked = add_mask(t, x, y)
        if masked is not None:
            return masked
    return t.add(ops.Add(), a, b)


def add_mask(t: Translation, scores, mask) -> Masked | None:
    """scores + mask, where `mask` is a constant that holds minus infinity, or either is masked already; else None."""
    value, other = t.value(scores), t.value(mask)
    old = value.blocked if isinstance(value, Masked) else None
    node = value.node if isinstance(value, Masked) else scores
    if isinstance(other, Masked) or not t.is_constant(mask):
        return None if old is None else Masked(t.add(ops.Add(), node, mask), old)
    tensor = t.constant(mask)
    blocked = torch.isneginf(tensor.double()) if tensor.is_floating_point() else torch.zeros_like(tensor, dtype=bool)
    if old is None and not blocked.any():
        return None
    shape = torch.broadcast_shapes(t.shape(node), tuple(tensor.shape))
    rest = tensor.masked_fill(blocked, 0.0)
    if rest.any():
        node = t.add(ops.Add(), node, t.param(rest, "mask") if blocked.any() else mask)
    node = t.index(node)
    if t.shape(node) != tuple(shape):
        node = t.add(ops.Expand(tuple(shape)), node)
    blocked = blocked.expand(shape)
    return Masked(node, blocked if old is None else blocked | old.expand(shape))


@handles("sub", "subtract")
def sub(t: Translation, a, b, alpha=1):
    return t.add(ops.Sub(), a, b if alpha == 1 else t.add(ops.Mul(), b, float(alpha)))


@handles("rsub")
def rsub(t: Translation, a, b, alpha=1):
    return sub(t, b, a, alpha)


@handles("mul", "multiply")
def mul(t: Translation, a, b):
    if isinstance(t.value(a), Masked) and isinstance(b, (int, float)) and b > 0:
        return Masked(t.add(ops.Mul(), t.value(a).node, b), t.value(a).blocked)
    if a is b and not t.is_constant(a):
        return power(t, a, 2)
    return t.add(ops.Mul(), a, b)


@handles("div", "true_divide", "divide")
def div(t: Translation, a, b, rounding_mode=None):
    if isinstance(t.value(a), Masked) and isinstance(b, (int, float)) and b > 0:
        return Masked(t.add(ops.Div(), t.value(a).node, b), t.value(a).blocked)
    if t.is_constant(b) and not t.constant(b).all():
        raise Unsupported("it divides by a constant that is zero somewhere")
    out = t.add(ops.Div(), a, b)
    return out if rounding_mode is None else t.add(ops.Floor() if rounding_mode == "floor" else ops.Truncate(), out)


@handles("floor_divide")
def floor_divide(t: Translation, a, b):
    return div(t, a, b, "floor")


@handles("remainder")
def remainder(t: Translation, a, b):
    """a - b floor(a / b)."""
    return t.add(ops.Sub(), a, t.add(ops.Mul(), b, div(t, a, b, "floor")))


@handles("addcmul")
def addcmul(t: Translation, x, a, b, *, value=1):
    product = t.add(ops.Mul(), a, b)
    return t.add(ops.Add(), x, product if value == 1 else t.add(ops.Mul(), product, float(value)))


@handles("lerp")
def lerp(t: Translation, a, b, weight):
    return t.add(ops.Add(), a, t.add(ops.Mul(), t.add(ops.Sub(), b, a), weight))


@handles("pow")
def power(t: Translation, x, exponent):
    if not t.is_constant(exponent):
        if not t.is_constant(x) or not (t.constant(x) > 0).all():
            raise Unsupported("its exponent depends on the network's input or on parameters, and its base is not > 0")
        return t.add(ops.Exp(), t.add(ops.Mul(), exponent, t.add(ops.Log(), x)))
    exponents = t.constant(exponent).double().unique()
    if len(exponents) != 1:
        raise Unsupported("its exponents differ from element to element")
    exponent = float(exponents[0])
    if exponent in (0.0, 1.0):
        return t.index(x) if exponent else t.param(torch.ones(t.shape(x), dtype=torch.float64), "one")
    if exponent == 0.5:
        return t.add(ops.Sqrt(), x)
    return t.add(ops.Power(exponent), x)


@handles("round")
def round_(t: Translation, x, decimals=0):
    if decimals:
        raise Unsupported(f"decimals={decimals}")
    return t.add(ops.Round(), x)


# Comparisons are steps of a difference, 0 or 1; a constant condition is a mask.


@handles("gt", "greater")
def gt(t: Translation, a, b):
    return t.add(ops.Step(), t.add(ops.Sub(), a, b))


@handles("ge", "greater_equal")
def ge(t: Translation, a, b):
    return t.add(ops.Step(closed=True), t.add(ops.Sub(), a, b))


@handles("lt", "less")
def lt(t: Translation, a, b):
    return gt(t, b, a)


@handles("le", "less_equal")
def le(t: Translation, a, b):
    return ge(t, b, a)


@handles("eq")
def eq(t: Translation, a, b):
    return t.add(ops.Equal(), a, b)


@handles("ne", "not_equal")
def ne(t: Translation, a, b):
    return t.add(ops.Sub(), 1.0, eq(t, a, b))


def _truth(t: Translation, *operands) -> None:
    if any(o.meta["val"].dtype != torch.bool for o in operands):
        raise Unsupported("its operands are no comparisons")


@handles("logical_not", "bitwise_not")
def logical_not(t: Translation, x):
    _truth(t, x)
    return t.add(ops.Sub(), 1.0, x)


@handles("logical_and", "bitwise_and", "__and__")
def logical_and(t: Translation, a, b):
    _truth(t, a, b)
    return extreme(t, a, b, "min")


@handles("logical_or", "bitwise_or", "__or__")
def logical_or(t: Translation, a, b):
    _truth(t, a, b)
    return extreme(t, a, b, "max")


@handles("logical_xor", "bitwise_xor", "__xor__")
def logical_xor(t: Translation, a, b):
    _truth(t, a, b)
    return t.add(ops.Abs(), t.add(ops.Sub(), a, b))


@handles("where")
def where(t: Translation, condition, a=None, b=None):
    if a is None:
        raise Unsupported("the shape of its result depends on data")
    if t.is_constant(condition):
        return choose(t, t.constant(condition).bool(), a, b)
    return t.add(ops.Where(), condition, a, b)


def choose(t: Translation, mask: torch.Tensor, a, b) -> Index | Masked:
    """a where the constant mask holds, b elsewhere. What a constant holds where it is not chosen does not matter."""
    shape = tuple(torch.broadcast_shapes(tuple(mask.shape), t.shape(a), t.shape(b)))
    sides = []
    for side, other, chosen in ((a, b, mask), (b, a, ~mask)):
        if t.is_constant(side):
            known = t.constant(side)
            if torch.isfinite(known).all():
                sides.append(t.index(side))
                continue
            known = torch.where(chosen, known, torch.zeros((), dtype=known.dtype))
            if torch.isneginf(known).any() and not t.is_constant(other):
                if not torch.isneginf(known)[chosen.expand(known.shape)].all():
                    raise Unsupported("it writes minus infinity beside numbers: mask the scores in one step")
                node = t.index(other) if t.shape(other) == shape else t.add(ops.Expand(shape), other)
                return Masked(node, chosen.expand(shape))
            sides.append(t.param(known, "chosen"))
        else:
            sides.append(t.index(side))
    out = t.add(ops.Where(), t.param(mask.double(), "mask"), *sides)
    return out if t.shape(out) == shape else t.add(ops.Expand(shape), out)


@handles("masked_fill")
def masked_fill(t: Translation, x, mask, value):
    old = t.value(x)
    if isinstance(old, Masked) and t.is_constant(mask) and float(t.constant(value)) == -inf:
        return Masked(old.node, old.blocked | t.constant(mask).bool())
    return where(t, mask, value, x)
