"""A trained module as an ONNX file: batch norm folded, written from the captured graph, compared with the module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from absdom import ops, registry
from absdom.api import load
from absdom.errors import ModelError
from absdom.files import replaced
from absdom.ir.graph import Builder, Graph, rebuild
from absdom.passes.fold import fold
from absdom.passes.fuse import fuse

TOLERANCE = 1e-4  # of the largest output: how far file and module may be apart
POINTS = 16


def export_onnx(module: torch.nn.Module, example: torch.Tensor, path: str | Path, seed: int = 0) -> None:
    """Write the module, as in evaluation mode, for inputs of the shape of `example` "1 *n".

    A batch norm behind a layer with weights is folded into it (in float64, rounded once); the module stays as it is.
    The file takes its place only after onnxruntime agrees with the module on random points around the example, up to
    1e-4 of the largest output. What is verified is the file. Raises ModelError for a module that cannot be captured or
    a file that disagrees, and UnsupportedOp for ops that cannot be written.
    """
    graph = fold_norms(fuse(fold(load(module, example, batch_norm="eval"))))
    with replaced(path) as file:
        registry.service("write-onnx")(graph, file)
        _compare(module, example, registry.service("judge")(file), seed)


def fold_norms(graph: Graph) -> Graph:
    """Batch norms behind a layer with weights become part of its weights and bias."""

    def change(builder: Builder, node, inputs):
        if not isinstance(node.op, ops.BatchNorm):
            return None
        layer = builder.node(inputs[0])
        tensors = [builder.tensor(i) for i in inputs[1:]]
        foldable = isinstance(layer.op, (ops.Conv, ops.Linear, ops.MatMul)) and node.type.rank == layer.type.rank
        if not foldable or any(t is None for t in tensors):
            return None
        weight = _weight(builder, layer.inputs[1])
        bias = builder.tensor(layer.inputs[2]) if len(layer.inputs) > 2 else None
        if weight is None or (len(layer.inputs) > 2 and bias is None):
            return None
        if not isinstance(layer.op, ops.Conv) and (weight.dim() != 2 or node.type.rank != 2):
            return None  # the channels of the norm are not the columns of the product
        gamma, beta, mean, variance = (t.detach().double() for t in tensors)
        factor = gamma / (variance + node.op.epsilon).sqrt()
        shift = beta - mean * factor if bias is None else (bias.detach().double() - mean) * factor + beta
        scale = factor.reshape(-1, *[1] * (weight.dim() - 1)) if isinstance(layer.op, ops.Conv) else factor
        name = layer.source.name
        folded = builder.param((weight.detach().double() * scale).to(weight.dtype), f"{name}.folded_weight")
        moved = builder.param(shift.to(weight.dtype), f"{name}.folded_bias")
        op = layer.op if isinstance(layer.op, ops.Conv) else ops.Linear()
        return builder.add(op, layer.inputs[0], folded, moved, source=layer.source)

    return rebuild(graph, change)


def _weight(builder: Builder, i: int) -> torch.Tensor | None:
    """The tensor of a weight, which may be stored transposed; None for what is computed otherwise."""
    node = builder.node(i)
    if isinstance(node.op, ops.Permute) and builder.tensor(node.inputs[0]) is not None:
        return builder.tensor(node.inputs[0]).permute(node.op.axes)
    return builder.tensor(i)


def _compare(module: torch.nn.Module, example: torch.Tensor, judge, seed: int) -> None:
    """Raises ModelError where the file's outputs are not the module's."""
    random = np.random.default_rng(seed)
    around = example.detach().double().cpu().numpy()
    points = np.concatenate(
        [
            random.random((POINTS // 2, *around.shape[1:])),
            around + random.standard_normal((POINTS // 2, *around.shape[1:])),
        ]
    )
    x = torch.as_tensor(points).to(device=example.device, dtype=example.dtype)
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            expected = module(x).flatten(1).double().cpu().numpy()
    finally:
        for m, training in modes.items():
            m.training = training
    found = np.asarray(judge.run(x.flatten(1).cpu().numpy())).astype(np.float64)
    apart = float(np.abs(found - expected).max()) if found.shape == expected.shape else np.inf
    if not apart <= TOLERANCE * max(float(np.abs(expected).max()), np.finfo(np.float32).tiny):
        raise ModelError(
            f"in onnxruntime the ONNX file computes other outputs than the module (apart by {apart:g}, outputs up to "
            f"{np.abs(expected).max():g}), and was removed. A padding with zeros in front of a max pool does this: "
            "onnxruntime takes it for the pool's own, of -infinity; pad with -inf, or let the pool do it"
        )
