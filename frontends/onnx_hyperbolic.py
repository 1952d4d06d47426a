"""Rare functions of one variable as compositions of absdom ops: bounds hold, and are as tight as the parts allow."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from absdom import ops
from absdom.frontends.onnx_fourier import PI
from absdom.frontends.onnx_ops import translates
from absdom.frontends.onnx_resize import exact_param
from absdom.frontends.onnx_values import Call, Problem, Translation


def number(t: Translation, call: Call, value: float) -> int:
    return t.param(np.array(value, dtype=np.float32), f"{call.name}.{value:g}")


@translates("Sinh", "Cosh")
def hyperbolic(t: Translation, call: Call):
    """(exp x -+ exp -x) / 2"""
    x = t.node(call, 0)
    up, down = t.add(ops.Exp(), x), t.add(ops.Exp(), t.add(ops.Neg(), x))
    both = t.add(ops.Sub() if call.op == "Sinh" else ops.Add(), up, down)
    return t.add(ops.Div(), both, number(t, call, 2))


@translates("Asinh")
def asinh(t: Translation, call: Call):
    """log(u + sqrt(u^2 + 1)) for u = x >= 0, and its mirror image for x < 0: no digits are lost on either side."""
    x, one = t.node(call, 0), number(t, call, 1)

    def upper_half(u: int) -> int:
        root = t.add(ops.Sqrt(), t.add(ops.Add(), t.add(ops.Power(2.0), u), one))
        return t.add(ops.Log(), t.add(ops.Add(), u, root))

    halves = (upper_half(t.add(ops.Relu(), side)) for side in (x, t.add(ops.Neg(), x)))
    return t.add(ops.Sub(), *halves)


@translates("Acosh")
def acosh(t: Translation, call: Call):
    """log(x + sqrt(x^2 - 1)) for x >= 1"""
    x = t.node(call, 0)
    root = t.add(ops.Sqrt(), t.add(ops.Sub(), t.add(ops.Power(2.0), x), number(t, call, 1)))
    return t.add(ops.Log(), t.add(ops.Add(), x, root))


@translates("Atanh")
def atanh(t: Translation, call: Call):
    """(log(1 + x) - log(1 - x)) / 2 for |x| < 1"""
    x, one = t.node(call, 0), number(t, call, 1)
    ends = (t.add(ops.Log(), t.add(op(), one, x)) for op in (ops.Add, ops.Sub))
    return t.add(ops.Div(), t.add(ops.Sub(), *ends), number(t, call, 2))


@translates("Asin", "Acos")
def arcs(t: Translation, call: Call):
    """atan(x / sqrt((1 - x) (1 + x))) for |x| < 1; the arc cosine is what is left of a right angle."""
    x, one = t.node(call, 0), number(t, call, 1)
    sides = (t.add(op(), one, x) for op in (ops.Sub, ops.Add))
    arc = t.add(ops.Atan(), t.add(ops.Div(), x, t.add(ops.Sqrt(), t.add(ops.Mul(), *sides))))
    if call.op == "Asin":
        return arc
    right = t.reshape(exact_param(t, [[Fraction(PI) / 2]], f"{call.name}.right"), ())
    return t.add(ops.Sub(), right, arc)


@translates("Shrink")
def shrink(t: Translation, call: Call):
    """x - bias above lambd, x + bias below -lambd, 0 between: two ReLUs, and two jumps where bias is not lambd."""
    x, bias, width = t.node(call, 0), call.get("bias", 0.0), call.get("lambd", 0.5)
    beyond = [t.add(ops.Sub(), side, number(t, call, width)) for side in (x, t.add(ops.Neg(), x))]
    if width < 0:
        raise Problem(f"lambd={width}: its two pieces overlap")
    out = t.add(ops.Sub(), *(t.add(ops.Relu(), part) for part in beyond))
    if bias == width:
        return out
    jumps = t.add(ops.Sub(), *(t.add(ops.Step(), part) for part in beyond))
    return t.add(
        ops.Add(), out, t.add(ops.Mul(), jumps, t.add(ops.Sub(), number(t, call, width), number(t, call, bias)))
    )
