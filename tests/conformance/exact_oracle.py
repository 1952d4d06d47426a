"""What a network really gives at a float point: every op written anew on numpy arrays of 300-bit numbers.

Shares no code with absdom's ops. Floats enter exactly; sums and products of tiny networks are exact or wrong by 1e-80.
"""

from __future__ import annotations

import itertools

import mpmath
import numpy as np

from absdom import ops
from absdom.ir.op import Input, Param

PRECISION = 300


def exact(tensor) -> np.ndarray:
    """Floats as an array of exact numbers."""
    values = np.asarray(tensor.detach().double().numpy() if hasattr(tensor, "detach") else tensor, dtype=np.float64)
    out = np.empty(values.size, dtype=object)
    out[:] = [mpmath.mpf(float(v)) for v in values.ravel()]
    return out.reshape(values.shape)


def real_outputs(graph, point) -> list[np.ndarray]:
    """The graph's outputs, flat, at one flat float64 input "n"."""
    with mpmath.workprec(PRECISION):
        values = real_values(graph, exact(point))
        return [values[i].ravel() for i in graph.outputs]


def real_values(graph, flat) -> dict[int, np.ndarray]:
    """The values of all nodes at one flat input "n" of numbers of mpmath, in its precision."""
    start, values = 0, {}
    for i, node in enumerate(graph.nodes):
        match node.op:
            case Input():
                values[i] = flat[start : start + node.type.numel].reshape(node.type.shape)
                start += node.type.numel
            case Param(label):
                values[i] = exact(graph.params[label])
            case _:
                values[i] = apply(node.op, [values[j] for j in node.inputs])
                if values[i].shape != node.type.shape:
                    raise ValueError(f"{node.op} gives {values[i].shape}, the graph says {node.type}")
    return values


def each(function, *arrays) -> np.ndarray:
    out = np.frompyfunc(function, len(arrays), 1)(*arrays)
    return out if isinstance(out, np.ndarray) else np.array(out, dtype=object)


def apply(op, v):
    x = v[0]
    match op:
        case ops.Add():
            return x + v[1]
        case ops.Sub():
            return x - v[1]
        case ops.Neg():
            return -x
        case ops.Mul() | ops.Scale() | ops.Product():
            return x * v[1]
        case ops.Div() | ops.Divide() | ops.Quotient():
            return x / v[1]
        case ops.MatMul() | ops.LinearLeft() | ops.MatrixProduct():
            return x @ v[1]
        case ops.Linear():
            return x @ v[1] + (v[2] if len(v) > 2 else mpmath.mpf(0))
        case ops.ReduceSum(axes):
            for axis in axes:
                x = x.sum(axis, keepdims=True)
            return x
        case ops.ReduceMean(axes):
            count = np.prod([x.shape[a] for a in axes], dtype=int)
            return apply(ops.ReduceSum(axes), [x]) / mpmath.mpf(int(count))
        case ops.Conv():
            return convolve(op, *v)
        case ops.Relu():
            return each(lambda t: max(t, mpmath.mpf(0)), x)
        case ops.LeakyRelu(alpha):
            return each(lambda t: t if t >= 0 else mpmath.mpf(alpha) * t, x)
        case ops.Abs():
            return each(abs, x)
        case ops.Clip(low, high):
            return each(lambda t: min(max(t, mpmath.mpf(low)), mpmath.mpf(high)), x)
        case ops.Sign():
            return each(lambda t: mpmath.mpf((t > 0) - (t < 0)), x)
        case ops.Sigmoid():
            return each(lambda t: 1 / (1 + mpmath.exp(-t)), x)
        case ops.Tanh():
            return each(mpmath.tanh, x)
        case ops.Sqrt():
            return each(mpmath.sqrt, x)
        case ops.Power(exponent):
            return each(lambda t: t ** (int(exponent) if float(exponent).is_integer() else mpmath.mpf(exponent)), x)
        case ops.Elu(alpha) | ops.Celu(alpha):
            scale = mpmath.mpf(alpha) if isinstance(op, ops.Celu) else mpmath.mpf(1)
            return each(lambda t: t if t > 0 else mpmath.mpf(alpha) * mpmath.expm1(t / scale), x)
        case ops.Selu(alpha, gamma):
            return each(lambda t: gamma * t if t > 0 else mpmath.mpf(alpha) * gamma * mpmath.expm1(t), x)
        case ops.Gelu(tanh, divisor):
            root = mpmath.sqrt(2) if divisor == 2**0.5 else mpmath.mpf(divisor)
            return each(lambda t: t * (1 + (_gelu_tanh(t) if tanh else mpmath.erf(t / root))) / 2, x)
        case ops.Step(closed):
            return each(lambda t: mpmath.mpf(t > 0 or (closed and t == 0)), x)
        case ops.HardSwish():
            return each(lambda t: t * min(max(t + 3, mpmath.mpf(0)), mpmath.mpf(6)) / 6, x)
        case op_ if type(op_) in FUNCTIONS:
            return each(FUNCTIONS[type(op_)], x)
        case ops.ReduceMax(axis):
            return x.max(axis, keepdims=True)
        case ops.Maximum():
            return each(max, x, v[1])
        case ops.Softmax(axis):
            e = each(lambda t: mpmath.exp(t), x - x.max(axis, keepdims=True))
            return e / e.sum(axis, keepdims=True)
        case ops.LogSoftmax(axis):
            return x - apply(ops.LogSumExp(axis), v)
        case ops.LogSumExp(axis):
            top = x.max(axis, keepdims=True)
            return top + each(mpmath.log, each(mpmath.exp, x - top).sum(axis, keepdims=True))
        case ops.Rescale(count, epsilon, shift):
            x, w = np.broadcast_arrays(x, v[1])
            w = each(max, w, each(lambda t: t * t / mpmath.mpf(count), x))
            bottom = each(lambda t: mpmath.sqrt(t + mpmath.mpf(epsilon)) + mpmath.mpf(shift), w)
            return each(lambda t, b: t / b if b else mpmath.mpf(0), x, bottom)
        case ops.RmsNorm(axes, epsilon, shift, total):
            count = 1 if total else np.prod([x.shape[a] for a in axes], dtype=int)
            squares = apply(ops.ReduceSum(axes), [x * x])
            return apply(ops.Rescale(int(count), epsilon, shift), [x, squares / mpmath.mpf(int(count))])
        case ops.Standardise(axes, epsilon, shift):
            return apply(ops.RmsNorm(axes, epsilon, shift), [x - apply(ops.ReduceMean(axes), v)])
        case ops.BatchNorm(epsilon):
            shape = (1, -1, *[1] * (x.ndim - 2))
            gamma, beta, mean, var = (t.reshape(shape) for t in v[1:])
            return (x - mean) / each(mpmath.sqrt, var + mpmath.mpf(epsilon)) * gamma + beta
        case ops.MaxPool() | ops.AveragePool():
            return pool(op, x)
        case ops.Reshape(shape):
            return x.reshape(shape)
        case ops.Permute(axes):
            return x.transpose(axes)
        case ops.Concat(axis):
            return np.concatenate(v, axis)
        case ops.Slice(axis, start, stop, step):
            return x[(slice(None),) * axis + (slice(start, stop, step),)]
        case ops.Take(axis, indices):
            return x.take(indices, axis)
        case ops.Pad(before, after):
            return np.pad(x, list(zip(before, after, strict=True)), constant_values=mpmath.mpf(0))
        case ops.Expand(shape):
            return np.broadcast_to(x, np.broadcast_shapes(x.shape, shape))
    raise ValueError(f"the oracle does not know {op}")


def _gelu_tanh(t):
    return mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (t + mpmath.mpf(0.044715) * t**3))


FUNCTIONS = {
    ops.Floor: mpmath.floor,
    ops.Ceil: mpmath.ceil,
    ops.Round: mpmath.nint,
    ops.Truncate: lambda t: mpmath.mpf(int(t)),
    ops.Exp: mpmath.exp,
    ops.Log: mpmath.log,
    ops.Sin: mpmath.sin,
    ops.Cos: mpmath.cos,
    ops.Tan: mpmath.tan,
    ops.Atan: mpmath.atan,
    ops.Erf: mpmath.erf,
    ops.Softplus: lambda t: mpmath.log1p(mpmath.exp(t)) if t < 0 else t + mpmath.log1p(mpmath.exp(-t)),
    ops.Softsign: lambda t: t / (1 + abs(t)),
    ops.Silu: lambda t: t / (1 + mpmath.exp(-t)),
    ops.Mish: lambda t: t * mpmath.tanh(mpmath.log1p(mpmath.exp(t))),
}


def sites(op, size, kernel):
    """Per output site, the taps as input coordinates (outside ones too)."""
    counts = [
        (n + b + a - d * (k - 1) - 1) // s + 1
        for n, k, s, d, b, a in zip(size, kernel, op.strides, op.dilations, op.before, op.after, strict=True)
    ]
    for site in itertools.product(*map(range, counts)):
        yield site, [
            (tap, tuple(o * s - b + d * t for o, s, b, d, t in zip(site, op.strides, op.before, op.dilations, tap, strict=True)))
            for tap in itertools.product(*map(range, kernel))
        ]  # fmt: skip


def inside(place, size):
    return all(0 <= p < n for p, n in zip(place, size, strict=True))


def convolve(op, x, w, b=None):
    size, kernel = x.shape[2:], w.shape[2:]
    every = list(sites(op, size, kernel))
    counts = tuple(m + 1 for m in every[-1][0])
    out = np.full((x.shape[0], w.shape[0], *counts), mpmath.mpf(0), dtype=object)
    filters, channels = w.shape[0] // op.groups, w.shape[1]
    for site, taps in every:
        for tap, place in taps:
            if inside(place, size):
                for g in range(op.groups):
                    own = slice(g * filters, (g + 1) * filters)
                    part = x[(slice(None), slice(g * channels, (g + 1) * channels), *place)]
                    out[(slice(None), own, *site)] += part @ w[(own, slice(None), *tap)].T
    return out if b is None else out + b.reshape(1, -1, *[1] * len(size))


def pool(op, x):
    size = x.shape[2:]
    every = list(sites(op, size, op.kernel))
    out = np.full((*x.shape[:2], *(m + 1 for m in every[-1][0])), mpmath.mpf(0), dtype=object)
    for site, taps in every:
        values = np.stack([x[(slice(None), slice(None), *place)] for _, place in taps if inside(place, size)])
        if isinstance(op, ops.MaxPool):
            value = values.max(0)
        else:
            value = values.sum(0) / mpmath.mpf(len(taps) if op.count_padding else len(values))
        out[(slice(None), slice(None), *site)] = value
    return out
