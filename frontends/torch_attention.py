"""Softmax, with constant masks, and scaled dot product attention."""

from __future__ import annotations

from math import prod

import torch

from absdom import ops
from absdom.frontends.torch_ops import add_mask
from absdom.frontends.torch_reduce import drop, matmul
from absdom.frontends.torch_values import Index, Masked, Translation, Unsupported, handles


@handles("softmax", "_softmax", "_safe_softmax")
def softmax(t: Translation, x, dim, *_, **__):
    value = t.value(x)
    if isinstance(value, Masked):
        return masked_softmax(t, value, t.axis(value.node, dim))
    return t.add(ops.Softmax(t.axis(x, dim)), x)


@handles("log_softmax", "_log_softmax")
def log_softmax(t: Translation, x, dim, *_, **__):
    return t.add(ops.LogSoftmax(t.axis(x, dim)), x)


@handles("softmin")
def softmin(t: Translation, x, dim, dtype=None):
    return t.add(ops.Softmax(t.axis(x, dim)), t.add(ops.Neg(), x))


@handles("logsumexp")
def logsumexp(t: Translation, x, dim, keepdim=False):
    axes = t.axes(x, dim)
    out = t.index(x)
    for axis in axes:
        out = t.add(ops.LogSumExp(axis), out)
    return drop(t, out, axes, keepdim)


def masked_softmax(t: Translation, scores: Masked, axis: int) -> Index:
    """Softmax where some scores are minus infinity: over the others alone, and zero at those.

    Rows with equal masks are taken together, so there is one softmax per pattern of the mask.
    """
    if not scores.blocked.any():
        return t.add(ops.Softmax(axis), scores.node)
    rank = len(t.shape(scores.node))
    order = [a for a in range(rank) if a != axis] + [axis]
    shape = [t.shape(scores.node)[a] for a in order]
    keys = shape[-1]
    rows = t.reshape(t.permute(scores.node, order), (prod(shape[:-1]), keys))
    patterns, of_row = scores.blocked.permute(order).reshape(-1, keys).unique(dim=0, return_inverse=True)
    if patterns.all(1).any():
        raise Unsupported("a row of the mask blocks everything: its softmax is not defined")
    parts, places = [], []
    for k, pattern in enumerate(patterns):
        members = (of_row == k).nonzero()[:, 0]
        open_ = (~pattern).nonzero()[:, 0].tolist()
        part = t.add(ops.Softmax(1), t.take(t.take(rows, 0, members.tolist()), 1, open_))
        if len(open_) < keys:
            column = torch.full((keys,), -1, dtype=torch.long)
            column[open_] = torch.arange(len(open_))
            part = spread(t, part, column)
        parts.append(part)
        places.append(members)
    joined = parts[0] if len(parts) == 1 else t.add(ops.Concat(0), *parts)
    back = torch.cat(places).argsort()
    out = t.reshape(t.take(joined, 0, back.tolist()), shape)
    return t.permute(out, [order.index(a) for a in range(rank)])


def spread(t: Translation, x: Index, column: torch.Tensor) -> Index:
    """Columns of a matrix at their places; zeros where `column` is -1."""
    rows, width = t.shape(x)
    padded = t.add(ops.Pad((0, 0), (0, 1)), x)
    return t.take(padded, 1, torch.where(column < 0, width, column).tolist())


@handles("scaled_dot_product_attention")
def attention(
    t: Translation, query, key, value, mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False
):
    """softmax(scale q k^T + mask) v."""
    if dropout_p:
        raise Unsupported("dropout in training mode: call module.eval() first")
    q, k, v = (t.index(x) for x in (query, key, value))
    if enable_gqa:
        k, v = (_repeat_heads(t, x, t.shape(q)[-3]) for x in (k, v))
    width = t.shape(q)[-1]
    factor = width**-0.5 if scale is None else float(scale)
    turned = t.permute(k, [*range(len(t.shape(k)) - 2), len(t.shape(k)) - 1, len(t.shape(k)) - 2])
    scores = matmul(t, t.add(ops.Mul(), q, factor), turned)
    rows, columns = t.shape(scores)[-2:]
    if is_causal:
        blocked = torch.ones(rows, columns, dtype=torch.bool).triu(1).expand(t.shape(scores))
        scores = Masked(scores, blocked)
    elif mask is not None and t.is_constant(mask) and t.constant(mask).dtype == torch.bool:
        scores = Masked(scores, ~t.constant(mask).expand(t.shape(scores)))
    elif mask is not None:
        masked = add_mask(t, scores, mask)
        scores = t.add(ops.Add(), scores, mask) if masked is None else masked
    if isinstance(scores, Masked):
        weights = masked_softmax(t, scores, len(t.shape(scores.node)) - 1)
    else:
        weights = t.add(ops.Softmax(len(t.shape(scores)) - 1), scores)
    return matmul(t, weights, v)


def _repeat_heads(t: Translation, x: Index, heads: int) -> Index:
    """Each head of a grouped query attention for all queries of its group."""
    own = t.shape(x)[-3]
    return t.take(x, len(t.shape(x)) - 3, [i // (heads // own) for i in range(heads)])
