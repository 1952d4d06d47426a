"""ATen calls of layers: convolutions, norms, pooling, dropout."""

from __future__ import annotations

from math import prod

import torch

from absdom import ops
from absdom.frontends.torch_reduce import along, reduce_extreme
from absdom.frontends.torch_source import module_paths
from absdom.frontends.torch_values import Index, Translation, Unsupported, handles


def per_axis(value, count: int) -> tuple[int, ...]:
    value = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(value * count if len(value) == 1 else value)


def batched(t: Translation, x, rank: int) -> tuple[Index, bool]:
    """x with a batch axis in front, if it lacks one; and whether it did."""
    node = t.index(x)
    lacks = len(t.shape(node)) == rank - 1
    return (t.reshape(node, (1, *t.shape(node))) if lacks else node), lacks


def unbatched(t: Translation, x: Index, lacked: bool) -> Index:
    return t.reshape(x, t.shape(x)[1:]) if lacked else x


# Convolutions.


@handles("conv1d", "conv2d", "conv3d")
def conv(t: Translation, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    count = len(t.shape(weight)) - 2
    kernel, dilation = t.shape(weight)[2:], per_axis(dilation, count)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before = tuple(n // 2 for n in total)
        after = tuple(n - b for n, b in zip(total, before, strict=True))
    else:
        before = after = per_axis(0 if padding == "valid" else padding, count)
    op = ops.Conv(per_axis(stride, count), dilation, groups, before, after)
    node, lacked = batched(t, x, count + 2)
    return unbatched(t, t.add(op, node, weight) if bias is None else t.add(op, node, weight, bias), lacked)


@handles("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(t: Translation, x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    count = len(t.shape(weight)) - 2
    stride, padding, extra, dilation = (per_axis(v, count) for v in (stride, padding, output_padding, dilation))
    node, lacked = batched(t, x, count + 2)
    size = tuple(
        (n - 1) * s - 2 * p + d * (k - 1) + 1 + e
        for n, s, p, d, k, e in zip(
            t.shape(node)[2:], stride, padding, dilation, t.shape(weight)[2:], extra, strict=True
        )
    )
    op = ops.ConvTranspose(stride, dilation, groups, padding, size)
    return unbatched(t, t.add(op, node, weight) if bias is None else t.add(op, node, weight, bias), lacked)


@handles("convolution")
def convolution(t: Translation, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    if transposed:
        return conv_transpose(t, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(t, x, weight, bias, stride, padding, dilation, groups)


# Norms.


def normalised_batch(t: Translation, x, gamma, beta, mean, var, training: bool, epsilon: float) -> Index:
    """Batch norm with given statistics: those of a training step where these were asked for, else the running ones."""
    channels = t.shape(x)[1]
    if t.batch_statistics is not None:
        path = t.batch_statistics.canonical((module_paths(t.node) or [""])[-1])
        labels = t.batch_statistics.next(path)
        starts = [
            torch.full((channels,), start) if s is None else t.value(s).tensor  # the buffer itself, which stays live
            for s, start in ((mean, 0.0), (var, 1.0))
        ]
        mean, var = (t.param(s, label) for s, label in zip(starts, labels, strict=True))
    elif mean is None or var is None:
        raise Unsupported(
            "batch norm without running statistics: its value depends on the batch; load the module with "
            "batch_norm='train' to feed the statistics of each batch"
        )
    elif training and not t.training:
        raise Unsupported(
            "batch norm that takes the statistics of the batch in evaluation mode too; load the module with "
            "batch_norm='train' to feed them"
        )
    gamma = t.param(torch.ones(channels), "gamma") if gamma is None else gamma
    beta = t.param(torch.zeros(channels), "beta") if beta is None else beta
    return t.add(ops.BatchNorm(float(epsilon)), x, gamma, beta, mean, var)


@handles("batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
def batch_norm(t: Translation, x, gamma, beta, mean, var, training, momentum, epsilon, cudnn=False):
    return normalised_batch(t, x, gamma, beta, mean, var, training, epsilon)


@handles("_native_batch_norm_legit_no_training")
def batch_norm_eval(t: Translation, x, gamma, beta, mean, var, momentum, epsilon):
    return (normalised_batch(t, x, gamma, beta, mean, var, False, epsilon), None, None)


@handles("_native_batch_norm_legit", "_native_batch_norm_legit_functional", "native_batch_norm")
def batch_norm_native(t: Translation, x, gamma, beta, *rest):
    """With running statistics (mean, var, training, momentum, epsilon), or without (training, momentum, epsilon)."""
    mean, var = rest[:2] if len(rest) == 5 else (None, None)
    return (normalised_batch(t, x, gamma, beta, mean, var, rest[-3], rest[-1]), None, None, None, None)


def scaled(t: Translation, x: Index, gamma, beta, shape) -> Index:
    """x * gamma + beta, either of them optional, as arrays of this shape."""
    if gamma is not None:
        x = t.add(ops.Mul(), x, t.reshape(gamma, shape))
    return x if beta is None else t.add(ops.Add(), x, t.reshape(beta, shape))


@handles("layer_norm")
def layer_norm(t: Translation, x, shape, gamma=None, beta=None, epsilon=1e-5, cudnn=True):
    rank = len(t.shape(x))
    out = t.add(ops.Standardise(tuple(range(rank - len(shape), rank)), float(epsilon)), x)
    return scaled(t, out, gamma, beta, tuple(shape))


@handles("native_layer_norm")
def native_layer_norm(t: Translation, x, shape, gamma, beta, epsilon):
    return layer_norm(t, x, shape, gamma, beta, epsilon), None, None


@handles("rms_norm", "_fused_rms_norm")
def rms_norm(t: Translation, x, shape, weight=None, eps=None):
    """x / sqrt(mean(x^2) + epsilon) over the last axes."""
    rank = len(t.shape(x))
    eps = torch.finfo(t.node.args[0].meta["val"].dtype).eps if eps is None else float(eps)
    op = ops.RmsNorm(tuple(range(rank - len(shape), rank)), eps)
    out = scaled(t, t.add(op, x), weight, None, tuple(shape))
    return out if not t.node.target.name().startswith("aten::_fused") else (out, None)


@handles("group_norm")
def group_norm(t: Translation, x, groups, gamma=None, beta=None, epsilon=1e-5, cudnn=True):
    n, channels, *spatial = t.shape(x)
    split = t.reshape(x, (n, groups, channels // groups * prod(spatial)))
    out = t.reshape(t.add(ops.Standardise((2,), float(epsilon)), split), (n, channels, *spatial))
    return scaled(t, out, gamma, beta, (channels, *[1] * len(spatial)))


@handles("native_group_norm")
def native_group_norm(t: Translation, x, gamma, beta, n, channels, size, groups, epsilon):
    return group_norm(t, x, groups, gamma, beta, epsilon), None, None


@handles("instance_norm")
def instance_norm(t: Translation, x, gamma, beta, mean, var, use_input_stats, momentum, epsilon, cudnn=False):
    if not use_input_stats:
        return t.add(
            ops.BatchNorm(float(epsilon)), x,
            t.param(torch.ones(t.shape(x)[1]), "gamma") if gamma is None else gamma,
            t.param(torch.zeros(t.shape(x)[1]), "beta") if beta is None else beta, mean, var,
        )  # fmt: skip
    rank = len(t.shape(x))
    out = t.add(ops.Standardise(tuple(range(2, rank)), float(epsilon)), x)
    return scaled(t, out, gamma, beta, (t.shape(x)[1], *[1] * (rank - 2)))


# Pooling.


@handles("max_pool1d", "max_pool2d", "max_pool3d")
def max_pool(t: Translation, x, kernel, stride=(), padding=0, dilation=1, ceil_mode=False):
    count = int(t.node.target.name().split("max_pool")[1][0])
    node, lacked = batched(t, x, count + 2)
    return unbatched(t, t.add(pool(ops.MaxPool, count, kernel, stride, padding, dilation, ceil_mode), node), lacked)


@handles("max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices")
def max_pool_with_places(t: Translation, *args, **kwargs):
    return max_pool(t, *args, **kwargs), None  # the places are not known


@handles("avg_pool1d", "avg_pool2d", "avg_pool3d")
def avg_pool(
    t: Translation, x, kernel, stride=(), padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    count = int(t.node.target.name().split("avg_pool")[1][0])
    node, lacked = batched(t, x, count + 2)
    op = pool(ops.AveragePool, count, kernel, stride, padding, 1, ceil_mode, count_padding=bool(count_include_pad))
    if divisor_override is None:
        return unbatched(t, t.add(op, node), lacked)
    size = prod(per_axis(kernel, count))
    if ceil_mode or not count_include_pad and any(per_axis(padding, count)):
        raise Unsupported("divisor_override with ceil_mode or uncounted padding")
    total = t.add(ops.Mul(), t.add(op, node), float(size))
    return unbatched(t, t.add(ops.Div(), total, float(divisor_override)), lacked)


def pool(kind, count: int, kernel, stride, padding, dilation, ceil: bool, **more):
    kernel, padding = per_axis(kernel, count), per_axis(padding, count)
    stride = kernel if stride in ((), [], None) else per_axis(stride, count)
    return kind(kernel, stride, per_axis(dilation, count), padding, padding, bool(ceil), **more)


def adaptive_windows(n: int, m: int) -> list[range]:
    """The m windows of torch's adaptive pooling of n elements: from floor(i n / m) to ceil((i + 1) n / m)."""
    return [range(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]


def _sizes(t: Translation, node: Index, size, count: int) -> tuple[int, ...]:
    wanted = per_axis(size, count)
    return tuple(n if m is None else m for n, m in zip(t.shape(node)[2:], wanted, strict=True))


@handles("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d",
         "_adaptive_avg_pool3d")  # fmt: skip
def adaptive_avg_pool(t: Translation, x, size):
    count = int(t.node.target.name().split("avg_pool")[1][0])
    node, lacked = batched(t, x, count + 2)
    whole, size = t.shape(node)[2:], _sizes(t, node, size, count)
    if set(size) == {1}:
        return unbatched(t, t.add(ops.ReduceMean(tuple(range(2, count + 2))), node), lacked)
    if not any(n % m for n, m in zip(whole, size, strict=True)):
        kernel = tuple(n // m for n, m in zip(whole, size, strict=True))
        return unbatched(t, t.add(pool(ops.AveragePool, count, kernel, kernel, 0, 1, False), node), lacked)
    # Windows of different sizes: sums by one matrix of ones per axis, then one exact count per window.
    counts = torch.ones(size, dtype=torch.float64)
    for k, (n, m) in enumerate(zip(whole, size, strict=True)):
        windows = adaptive_windows(n, m)
        matrix = torch.zeros(m, n, dtype=torch.float64)
        for row, window in enumerate(windows):
            matrix[row, list(window)] = 1
        node = along(t, node, k + 2, t.param(matrix, "windows"))
        counts = counts * torch.tensor([len(w) for w in windows]).reshape(-1, *[1] * (count - 1 - k))
    return unbatched(t, t.add(ops.Div(), node, t.param(counts, "counts")), lacked)


@handles("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def adaptive_max_pool(t: Translation, x, size):
    count = int(t.node.target.name().split("max_pool")[1][0])
    node, lacked = batched(t, x, count + 2)
    whole, size = t.shape(node)[2:], _sizes(t, node, size, count)
    if set(size) == {1}:
        out = reduce_extreme(t, node, tuple(range(2, count + 2)), "max")
    elif not any(n % m for n, m in zip(whole, size, strict=True)):
        kernel = tuple(n // m for n, m in zip(whole, size, strict=True))
        out = t.add(pool(ops.MaxPool, count, kernel, kernel, 0, 1, False), node)
    else:  # one axis after the other: a window repeats an element to be as long as the longest
        out = node
        for k, (n, m) in enumerate(zip(whole, size, strict=True)):
            windows = [list(w) for w in adaptive_windows(n, m)]
            longest = max(map(len, windows))
            places = [i for w in windows for i in w + w[:1] * (longest - len(w))]
            shape = t.shape(out)
            split = t.reshape(t.take(out, k + 2, places), (*shape[: k + 2], m, longest, *shape[k + 3 :]))
            out = t.reshape(t.add(ops.ReduceMax(k + 3), split), (*shape[: k + 2], m, *shape[k + 3 :]))
    return unbatched(t, out, lacked), None  # the places are not known


# What does nothing in evaluation mode.


@handles("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def dropout(t: Translation, x, p, train):
    if train and p > 0:
        raise Unsupported("dropout in training mode is random: call module.eval() first")
    return t.index(x)


@handles("native_dropout")
def native_dropout(t: Translation, x, p, train):
    return dropout(t, x, p, train), None
