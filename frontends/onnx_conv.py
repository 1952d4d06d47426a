"""ONNX ops over windows: transposed convolutions, and poolings that are compositions."""

from __future__ import annotations

from math import prod

import numpy as np

from absdom import ops
from absdom.errors import ModelError
from absdom.frontends.onnx_ops import check_windows, checks, translates, windows
from absdom.frontends.onnx_reduce import norm
from absdom.frontends.onnx_structure import check_size
from absdom.frontends.onnx_values import Call, Problem, Translation
from absdom.ops.composite import window_counts


@checks("ConvTranspose", "LpPool")
def check_auto_pad(call: Call) -> None:
    check_windows(call)


@translates("ConvTranspose")
def conv_transpose(t: Translation, call: Call):
    if t.value(call, 1).varies or (call.has(2) and t.value(call, 2).varies):
        raise Problem("its weights depend on the network's input")
    shape, weights = t.shape(call, 0), t.shape(call, 1)
    rank = len(shape) - 2
    if not 1 <= rank <= 3:
        raise Problem(f"it has {rank} spatial axes; 1 to 3 are supported")
    kernel = weights[2:]
    if call.get("kernel_shape") and tuple(call.get("kernel_shape")) != kernel:
        raise ModelError(f"{t.where}: {call.source} has kernel_shape {call.get('kernel_shape')}, weights {weights}")
    mode = call.get("auto_pad", "NOTSET")
    # The padding is worked out here: it depends on the size of the result.
    plain = Call(call.op, call.name, (), (), {**call.attributes, "auto_pad": "NOTSET"}, call.proto)
    strides, dilations, before, after = windows(t, plain, shape[2:], kernel)
    extra = tuple(call.get("output_padding") or (0,) * rank)
    wanted = tuple(call.get("output_shape") or ())[-rank:]
    if len(extra) != rank or len(wanted) not in (0, rank):
        raise ModelError(f"{t.where}: {call.source} has output_padding {extra} and output_shape {wanted}")
    natural = [
        (n - 1) * s + d * (k - 1) + 1 + e
        for n, s, d, k, e in zip(shape[2:], strides, dilations, kernel, extra, strict=True)
    ]
    if not wanted and mode.startswith("SAME"):
        wanted = tuple(n * s for n, s in zip(shape[2:], strides, strict=True))
    if wanted:
        total = [max(f - w, 0) for f, w in zip(natural, wanted, strict=True)]
        before = tuple(p // 2 if mode == "SAME_UPPER" else p - p // 2 for p in total)
    else:
        if mode == "VALID":
            before = after = (0,) * rank
        wanted = tuple(f - b - a for f, b, a in zip(natural, before, after, strict=True))
    check_size(t, call, wanted)
    inputs = [t.node(call, i) for i in range(3) if i < 2 or call.has(2)]
    return t.add(ops.ConvTranspose(strides, dilations, call.get("group", 1), before, wanted), *inputs)


@translates("Col2Im")
def col2im(t: Translation, call: Call):
    """Blocks laid over each other and summed: a transposed convolution with one filter for each place of a block."""
    shape, image, block = t.shape(call, 0), t.integers(call, 1, "image_shape"), t.integers(call, 2, "block_shape")
    if not 1 <= len(image) <= 3:
        raise Problem(f"it has {len(image)} spatial axes; 1 to 3 are supported")
    strides, dilations, before, after = windows(t, call, image, block)
    counts = window_counts(image, block, strides, dilations, before, after, ceil=False)
    taps = prod(block)
    if len(shape) != 3 or shape[1] % taps or shape[2] != prod(counts) or min(counts) < 1:
        raise ModelError(f"{t.where}: blocks {block} of {call.source} do not fit images {image} and the input {shape}")
    check_size(t, call, (shape[0], shape[1] // taps, *image))
    groups = shape[1] // taps
    kernels = np.tile(np.eye(taps, dtype=np.float32).reshape(taps, 1, *block), (groups, *[1] * (1 + len(block))))
    x = t.reshape(t.node(call, 0), (*shape[:2], *counts))
    return t.add(
        ops.ConvTranspose(strides, dilations, groups, before, image), x, t.param(kernels, f"{call.name}.blocks")
    )


def pooled_shape(t: Translation, call: Call) -> tuple[int, ...]:
    shape = t.shape(call, 0)
    if len(shape) < 3:
        raise ModelError(f"{t.where}: {call.source} has an input of shape {shape}: no spatial axes")
    return shape


@translates("GlobalMaxPool")
def global_max_pool(t: Translation, call: Call):
    shape = pooled_shape(t, call)
    flat = t.reshape(t.node(call, 0), (*shape[:2], prod(shape[2:])))
    return t.reshape(t.add(ops.ReduceMax(2), flat), (*shape[:2], *[1] * (len(shape) - 2)))


@translates("GlobalLpPool")
def global_lp_pool(t: Translation, call: Call):
    rank = len(pooled_shape(t, call))
    return norm(t, call, t.node(call, 0), call.get("p", 2), lambda x: t.add(ops.ReduceSum(tuple(range(2, rank))), x))


@translates("LpPool")
def lp_pool(t: Translation, call: Call):
    """The p-norm of each window; padding counts as zero."""
    shape, kernel = pooled_shape(t, call), tuple(call.get("kernel_shape") or ())
    strides, dilations, before, after = windows(t, call, shape[2:], kernel)
    ceil = bool(call.get("ceil_mode", 0)) and not call.get("auto_pad", "").startswith("SAME")
    counts = window_counts(shape[2:], kernel, strides, dilations, before, after, ceil)
    after = tuple(  # rounded up, the last window reaches further
        max(q, (o - 1) * s + d * (k - 1) + 1 - n - p)
        for n, o, k, s, d, p, q in zip(shape[2:], counts, kernel, strides, dilations, before, after, strict=True)
    )
    check_size(t, call, (shape[1], *kernel))
    ones = t.param(np.ones((shape[1], 1, *kernel), dtype=np.float32), f"{call.name}.ones")
    conv = ops.Conv(strides, dilations, shape[1], before, after)
    return norm(t, call, t.node(call, 0), call.get("p", 2), lambda x: t.add(conv, x, ones))
