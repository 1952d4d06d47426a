"""ONNX activations and elementary functions, written as absdom ops."""

from __future__ import annotations

import numpy as np

from absdom import ops
from absdom.errors import ModelError
from absdom.frontends.onnx_ops import checks, single, translates
from absdom.frontends.onnx_values import Call, Problem, Translation

SELU = (1.67326319217681884765625, 1.05070102214813232421875)  # the defaults of alpha and gamma
EXPONENTS = 16  # different ones that a Pow may have


@translates("Exp", "Log", "Sqrt", "Sin", "Cos", "Tan", "Atan", "Erf", "Softplus", "Softsign", "Mish", "HardSwish")
def function(t: Translation, call: Call):
    return t.add(getattr(ops, call.op)(), t.node(call, 0))


@translates("Reciprocal")
def reciprocal(t: Translation, call: Call):
    return t.add(ops.Power(-1.0), t.node(call, 0))


@translates("Elu", "Celu")
def exponential_unit(t: Translation, call: Call):
    alpha = call.get("alpha", 1.0)
    if alpha == 0:
        if call.op == "Celu":
            raise ModelError(f"{t.where}: {call.source} has alpha=0, by which it divides")
        return t.add(ops.Relu(), t.node(call, 0))
    if alpha < 0 and call.op == "Celu":
        raise Problem(f"alpha={alpha} is negative")
    return t.add(getattr(ops, call.op)(alpha), t.node(call, 0))


@translates("Selu")
def selu(t: Translation, call: Call):
    alpha, gamma = call.get("alpha", SELU[0]), call.get("gamma", SELU[1])
    if min(alpha, gamma) <= 0:
        raise Problem(f"alpha={alpha}, gamma={gamma}: both have to be above 0")
    return t.add(ops.Selu(alpha, gamma), t.node(call, 0))


@checks("Gelu")
def check_gelu(call: Call) -> None:
    if call.get("approximate", "none") not in ("none", "tanh"):
        raise Problem(f"approximate={call.get('approximate')!r} is unknown")


@translates("Gelu")
def gelu(t: Translation, call: Call):
    return t.add(ops.Gelu(call.get("approximate", "none") == "tanh"), t.node(call, 0))


@translates("Swish")
def swish(t: Translation, call: Call):
    """x sigmoid(alpha x) = silu(alpha x) / alpha."""
    x, alpha = t.node(call, 0), call.get("alpha", 1.0)
    if alpha == 1.0:
        return t.add(ops.Silu(), x)
    factor = t.param(np.array(alpha, dtype=t.builder.type(x).dtype), f"{call.name}.alpha")
    if alpha == 0.0:
        return t.add(ops.Mul(), x, t.param(np.array(0.5, dtype=t.builder.type(x).dtype), f"{call.name}.half"))
    return t.add(ops.Div(), t.add(ops.Silu(), t.add(ops.Mul(), x, factor)), factor)


@translates("HardSigmoid")
def hard_sigmoid(t: Translation, call: Call):
    x = t.node(call, 0)
    dtype = t.builder.type(x).dtype
    alpha = t.param(np.array(call.get("alpha", single(0.2)), dtype=dtype), f"{call.name}.alpha")
    beta = t.param(np.array(call.get("beta", 0.5), dtype=dtype), f"{call.name}.beta")
    return t.add(ops.Clip(0.0, 1.0), t.add(ops.Add(), t.add(ops.Mul(), x, alpha), beta))


@translates("PRelu")
def prelu(t: Translation, call: Call):
    """One slope: LeakyRelu. Else slope x + (1 - slope) relu(x): the same, with one nonlinear part."""
    x, slope = t.node(call, 0), t.value(call, 1)
    if slope.array is not None and slope.array.size and (slope.array == slope.array.flat[0]).all():
        return t.add(ops.LeakyRelu(float(slope.array.flat[0])), x)
    slope = t.emit(slope)
    one = t.param(np.array(1.0, dtype=t.builder.type(x).dtype), f"{call.name}.one")
    bent = t.add(ops.Mul(), t.add(ops.Relu(), x), t.add(ops.Sub(), one, slope))
    return t.add(ops.Add(), t.add(ops.Mul(), x, slope), bent)


@translates("Pow")
def power(t: Translation, call: Call):
    base, exponent = t.value(call, 0), t.value(call, 1)
    if exponent.varies:
        return _exponential(t, call)
    x, exponents = t.emit(base), exponent.array.astype(np.float64)
    values = np.unique(exponents)
    if not np.isfinite(exponents).all():
        raise ModelError(f"{t.where}: {call.source} has an exponent that is not finite")
    shape = t.broadcast(call, t.builder.type(x).shape, exponents.shape)
    if shape != t.builder.type(x).shape:
        x = t.add(ops.Expand(tuple(shape)), x)
    if len(values) == 1:
        return power_of(t, x, float(values[0]), call.name)
    if len(values) > EXPONENTS:
        raise Problem(f"it has {len(values)} different exponents; at most {EXPONENTS} are supported")
    # Sorted by exponent, each part with its own, and back into place.
    flat = t.reshape(x, (int(np.prod(shape)),))
    each = np.broadcast_to(exponents, shape).reshape(-1)
    order = np.argsort(each, kind="stable")
    parts = []
    for value in values:
        places = tuple(int(i) for i in np.flatnonzero(each == value))
        parts.append(power_of(t, t.add(ops.Take(0, places), flat), float(value), call.name))
    back = tuple(int(i) for i in np.argsort(order, kind="stable"))
    return t.reshape(t.add(ops.Take(0, back), t.add(ops.Concat(0), *parts)), shape)


def power_of(t: Translation, x: int, exponent: float, name: str) -> int:
    kind = t.builder.type(x)
    if exponent == 0:
        ones = t.param(np.ones(kind.shape, dtype=kind.dtype), f"{name}.ones")
        return t.add(ops.Add(), t.add(ops.Mul(), x, t.param(np.zeros((), dtype=kind.dtype), f"{name}.zero")), ones)
    if exponent == 1:
        return x
    return t.add(ops.Sqrt() if exponent == 0.5 else ops.Power(exponent), x)


def _exponential(t: Translation, call: Call) -> int:
    """x ** y = exp(y log x), of x > 0."""
    base = t.value(call, 0)
    if base.array is not None and not (base.array > 0).all():
        raise Problem("its exponent depends on the network's input, and its base is not positive")
    logarithm = t.add(ops.Log(), t.emit(base))
    return t.add(ops.Exp(), t.add(ops.Mul(), logarithm, t.node(call, 1)))
