"""Tiny seeded networks and their exact minima, for tests of solvers."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from scipy.optimize import linprog

from absdom import ops
from absdom.ir.graph import Builder, Graph
from absdom.types import TensorType


def relu_net(
    sizes: tuple[int, ...], seed: int, residual: bool = False
) -> tuple[Graph, list[tuple[np.ndarray, np.ndarray]]]:
    """A ReLU network (float64 weights) and its layers [(W, b), ...]; `residual` adds each hidden layer to the next."""
    generator = torch.Generator().manual_seed(seed)
    builder = Builder()
    x = builder.input("x", TensorType((1, sizes[0]), "float64"))
    layers, previous = [], None
    for k, (n, m) in enumerate(itertools.pairwise(sizes)):
        w = torch.randn(n, m, generator=generator, dtype=torch.float64) / n**0.5
        b = torch.randn(m, generator=generator, dtype=torch.float64) * 0.3
        layers.append((w.numpy(), b.numpy()))
        x = builder.add(ops.MatMul(), x, builder.param(w, f"w{k}"))
        x = builder.add(ops.Add(), x, builder.param(b, f"b{k}"))
        if k < len(sizes) - 2:
            x = builder.add(ops.Relu(), x)
            if residual and previous is not None:
                x = builder.add(ops.Add(), x, previous)
            previous = x
    return builder.finish([x]), layers


def exact_minimum(layers, c: np.ndarray, d: float, lower: np.ndarray, upper: np.ndarray) -> float:
    """min of c.y + d over the box, by one LP per pattern of ReLU phases (plain feed-forward networks)."""
    hidden = [len(b) for _, b in layers[:-1]]
    best = np.inf
    for pattern in itertools.product((0, 1), repeat=sum(hidden)):
        matrix, offset, rows, rhs, at = np.eye(len(lower)), np.zeros(len(lower)), [], [], 0
        for w, b in layers[:-1]:
            matrix, offset = w.T @ matrix, w.T @ offset + b
            phase = np.array(pattern[at : at + len(b)])
            at += len(b)
            sign = np.where(phase == 1, -1.0, 1.0)  # active: -z <= 0, inactive: z <= 0
            rows.append(sign[:, None] * matrix)
            rhs.append(-sign * offset)
            matrix, offset = phase[:, None] * matrix, phase * offset
        w, b = layers[-1]
        objective = c @ (w.T @ matrix)
        constant = c @ (w.T @ offset + b) + d
        found = linprog(
            objective, np.concatenate(rows), np.concatenate(rhs), bounds=list(zip(lower, upper, strict=True))
        )
        if found.status == 0:
            best = min(best, found.fun + constant)
    return best
