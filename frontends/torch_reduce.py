"""ATen calls that reduce axes or multiply matrices, written as absdom ops."""

from __future__ import annotations

from math import inf, prod

import torch

from absdom import ops
from absdom.frontends.torch_ops import add_mask, extreme, power
from absdom.frontends.torch_values import Index, Translation, Unsupported, handles


def drop(t: Translation, x: Index, axes, keepdim: bool) -> Index:
    """Without the axes that were reduced to size 1."""
    return x if keepdim else t.reshape(x, [n for i, n in enumerate(t.shape(x)) if i not in axes])


@handles("sum")
def reduce_sum(t: Translation, x, dim=None, keepdim=False, dtype=None):
    axes = t.axes(x, dim)
    return drop(t, t.add(ops.ReduceSum(axes), x), axes, keepdim)


@handles("mean")
def reduce_mean(t: Translation, x, dim=None, keepdim=False, dtype=None):
    axes = t.axes(x, dim)
    return drop(t, t.add(ops.ReduceMean(axes), x), axes, keepdim)


def reduce_extreme(t: Translation, x, axes: tuple[int, ...], which: str) -> Index:
    """Maximum or minimum over axes at once, which stay as size 1."""
    if not axes:
        return t.index(x)
    shape = t.shape(x)
    rest = [i for i in range(len(shape)) if i not in axes]
    flat = t.reshape(t.permute(x, [*rest, *axes]), (*[shape[i] for i in rest], prod(shape[i] for i in axes)))
    out = t.add((ops.ReduceMax if which == "max" else ops.ReduceMin)(len(rest)), flat)
    return t.reshape(out, [1 if i in axes else n for i, n in enumerate(shape)])


@handles("amax")
def amax(t: Translation, x, dim=(), keepdim=False):
    axes = t.axes(x, list(dim))
    return drop(t, reduce_extreme(t, x, axes, "max"), axes, keepdim)


@handles("amin")
def amin(t: Translation, x, dim=(), keepdim=False):
    axes = t.axes(x, list(dim))
    return drop(t, reduce_extreme(t, x, axes, "min"), axes, keepdim)


@handles("max")
def reduce_max(t: Translation, x, dim=None, keepdim=False):
    return _max_or_min(t, x, dim, keepdim, "max")


@handles("min")
def reduce_min(t: Translation, x, dim=None, keepdim=False):
    return _max_or_min(t, x, dim, keepdim, "min")


def _max_or_min(t: Translation, x, dim, keepdim: bool, which: str):
    """Of all elements, of two tensors, or along an axis, then with the places."""
    if isinstance(dim, torch.fx.Node):
        return extreme(t, x, dim, which)
    axes = t.axes(x, dim)
    out = drop(t, reduce_extreme(t, x, axes, which), axes, keepdim)
    if dim is None:
        return out
    return out, place_of(t, x, dim, keepdim, which) if t.wants(1) else None


def place_of(t: Translation, x, dim, keepdim: bool, which: str) -> Index:
    x = t.add(ops.Neg(), x) if which == "min" else t.index(x)
    if dim is None:
        x, dim = t.reshape(x, (prod(t.shape(x)),)), 0
    axis = t.axis(x, dim)
    return drop(t, t.add(ops.ArgMax(axis), x), (axis,), keepdim)


@handles("argmax")
def argmax(t: Translation, x, dim=None, keepdim=False):
    return t.reshape(place_of(t, x, dim, keepdim, "max"), t.node.meta["val"].shape)


@handles("argmin")
def argmin(t: Translation, x, dim=None, keepdim=False):
    return t.reshape(place_of(t, x, dim, keepdim, "min"), t.node.meta["val"].shape)


@handles("topk")
def topk(t: Translation, x, k, dim=-1, largest=True, sorted=True):
    axis = t.axis(x, dim)
    makers = (ops.TopValues, ops.TopIndices)
    return tuple(t.add(op(axis, int(k), bool(largest)), x) if t.wants(i) else None for i, op in enumerate(makers))


@handles("sort")
def sort(t: Translation, x, dim=-1, descending=False, *, stable=False):
    return topk(t, x, t.shape(x)[t.axis(x, dim)], dim, descending)


@handles("any", "all")
def truth(t: Translation, x, dim=None, keepdim=False):
    """Of comparisons, along axes: the largest, or the smallest, of 0 and 1."""
    if t.node.args[0].meta["val"].dtype != torch.bool:
        raise Unsupported("its operand is no comparison")
    axes = t.axes(x, dim)
    which = "max" if t.node.target.name().startswith("aten::any") else "min"
    return drop(t, reduce_extreme(t, x, axes, which), axes, keepdim)


def spread_of(t: Translation, x, axes, correction: float) -> Index:
    """Sum of squared distances from the mean, over (count - correction); axes stay as size 1."""
    count = prod(t.shape(x)[a] for a in axes) - correction
    if count <= 0:
        raise Unsupported(f"the variance of {count + correction} elements with correction {correction}")
    centred = t.add(ops.Sub(), x, t.add(ops.ReduceMean(axes), x))
    return t.add(ops.Div(), t.add(ops.ReduceSum(axes), power(t, centred, 2)), float(count))


@handles("var")
def var(t: Translation, x, dim=None, unbiased=True, keepdim=False, *, correction=None):
    dim, unbiased = (None, dim) if isinstance(dim, bool) else (dim, unbiased)
    axes = t.axes(x, dim)
    correction = float(unbiased) if correction is None else float(correction)
    return drop(t, spread_of(t, x, axes, correction), axes, keepdim)


@handles("std")
def std(t: Translation, x, dim=None, unbiased=True, keepdim=False, *, correction=None):
    return t.add(ops.Sqrt(), var(t, x, dim, unbiased, keepdim, correction=correction))


@handles("var_mean")
def var_mean(t: Translation, x, dim=None, unbiased=True, keepdim=False, *, correction=None):
    dim_ = None if isinstance(dim, bool) else dim
    return var(t, x, dim, unbiased, keepdim, correction=correction), reduce_mean(t, x, dim_, keepdim)


@handles("linalg_vector_norm", "norm")
def vector_norm(t: Translation, x, ord=2, dim=None, keepdim=False, *, dtype=None):
    axes, order = t.axes(x, dim), 2 if ord is None else ord
    if order == inf:
        return drop(t, reduce_extreme(t, t.add(ops.Abs(), x), axes, "max"), axes, keepdim)
    if order == 1:
        return drop(t, t.add(ops.ReduceSum(axes), t.add(ops.Abs(), x)), axes, keepdim)
    if order == 2:
        return drop(t, t.add(ops.Sqrt(), t.add(ops.ReduceSum(axes), power(t, x, 2))), axes, keepdim)
    raise Unsupported(f"the norm of order {order}")


@handles("prod")
def reduce_prod(t: Translation, x, dim=None, keepdim=False, *, dtype=None):
    """Products of pairs, then of pairs of those."""
    axes, shape = t.axes(x, dim), t.shape(x)
    rest = [i for i in range(len(shape)) if i not in axes]
    count = prod(shape[i] for i in axes)
    out = t.reshape(t.permute(x, [*axes, *rest]), (count, *[shape[i] for i in rest]))
    while count > 1:
        half = count // 2
        product = t.add(ops.Mul(), t.take(out, 0, range(half)), t.take(out, 0, range(half, 2 * half)))
        out = t.add(ops.Concat(0), product, t.take(out, 0, [count - 1])) if count % 2 else product
        count = half + count % 2
    return drop(t, t.reshape(out, [1 if i in axes else n for i, n in enumerate(shape)]), axes, keepdim)


@handles("cumsum")
def cumsum(t: Translation, x, dim, *, dtype=None):
    axis, shape = t.axis(x, dim), t.shape(x)
    if not shape:
        return t.index(x)
    triangle = torch.ones(shape[axis], shape[axis], dtype=torch.float64).tril()
    return along(t, x, axis, t.param(triangle, "triangle"))


def along(t: Translation, x, axis: int, matrix: Index) -> Index:
    """A matrix "m n" applied to one axis of size n."""
    shape, rows = t.shape(x), t.shape(matrix)[0]
    flat = t.reshape(x, (prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])))
    return t.reshape(t.add(ops.MatMul(), matrix, flat), (*shape[:axis], rows, *shape[axis + 1 :]))


# Matrix products.


@handles("matmul", "mm", "bmm", "mv", "dot", "vdot")
def matmul(t: Translation, a, b):
    """x @ y with torch's rules for vectors."""
    left, right = t.index(a), t.index(b)
    lead_vector, end_vector = len(t.shape(left)) == 1, len(t.shape(right)) == 1
    if lead_vector:
        left = t.reshape(left, (1, *t.shape(left)))
    if end_vector:
        right = t.reshape(right, (*t.shape(right), 1))
    out = t.add(ops.MatMul(), left, right)
    shape = list(t.shape(out))
    if end_vector:
        del shape[-1]
    if lead_vector:
        del shape[-1 if end_vector else -2]
    return t.reshape(out, shape)


@handles("linear")
def linear(t: Translation, x, weight, bias=None):
    turned = weight if len(t.shape(weight)) == 1 else t.permute(weight, (1, 0))
    out = matmul(t, x, turned)
    return out if bias is None else t.add(ops.Add(), out, bias)


@handles("addmm", "addmv", "baddbmm")
def addmm(t: Translation, bias, a, b, *, beta=1, alpha=1):
    product = matmul(t, a, b)
    if alpha != 1:
        product = t.add(ops.Mul(), product, float(alpha))
    if beta == 0:
        return product
    if beta == 1:
        masked = add_mask(t, product, bias)
        return t.add(ops.Add(), product, bias) if masked is None else masked
    return t.add(ops.Add(), product, t.add(ops.Mul(), bias, float(beta)))


@handles("outer", "ger")
def outer(t: Translation, a, b):
    return t.add(ops.Mul(), t.reshape(a, (*t.shape(a), 1)), b)


@handles("bilinear")
def bilinear(t: Translation, a, b, weight, bias=None):
    """out_k = a^T W_k b + c_k over the last axes."""
    n, m = t.shape(a)[-1], t.shape(b)[-1]
    outs = t.shape(weight)[0]
    products = t.add(ops.Mul(), t.reshape(a, (*t.shape(a), 1)), t.reshape(b, (*t.shape(b)[:-1], 1, m)))
    flat = t.reshape(products, (*t.shape(a)[:-1], n * m))
    out = matmul(t, flat, t.permute(t.reshape(weight, (outs, n * m)), (1, 0)))
    return out if bias is None else t.add(ops.Add(), out, bias)


@handles("_weight_norm", "_weight_norm_interface")
def weight_norm(t: Translation, v, g, dim=0):
    axes = tuple(a for a in range(len(t.shape(v))) if a != dim)
    out = t.add(ops.Mul(), v, t.add(ops.Div(), g, vector_norm(t, v, 2, axes, True)))
    return (out, None) if t.node.target.name().endswith("_interface") else out
