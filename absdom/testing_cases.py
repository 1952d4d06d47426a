"""One small example of each shipped op, on which `testing.standard_cases` checks all laws in every domain."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from absdom import ops
from absdom.ir.op import Op

POSITIVE = ("Div", "Quotient", "Sqrt", "Log", "Power")  # ops whose operand "x" has to be above zero


def examples(weights: Callable[..., torch.Tensor]) -> Iterator[tuple[str, Op, tuple[int, ...], tuple, bool]]:
    """(name, op, shape of its operand, operands, whether the operand is positive): one per registered op.

    An operand is a tensor (a parameter), "x" or "other" (values of that shape). `weights(*shape)` makes parameters.
    """
    yield from (
        (name, op, shape, operands, name in POSITIVE)
        for name, (op, shape, operands) in (_table(weights) | _elementwise() | _choices(weights)).items()
    )


def _elementwise() -> dict[str, tuple]:
    functions = (
        ops.Relu(), ops.LeakyRelu(0.1), ops.Abs(), ops.Clip(-0.3, 0.4), ops.Sign(), ops.Sigmoid(), ops.Tanh(),
        ops.Erf(), ops.Atan(), ops.Softsign(), ops.Exp(), ops.Log(), ops.Sqrt(), ops.Power(-1.0), ops.Softplus(),
        ops.Elu(0.7), ops.Celu(2.0), ops.Selu(), ops.Gelu(), ops.Silu(), ops.Mish(), ops.HardSwish(), ops.Sin(),
        ops.Cos(), ops.Tan(), ops.Floor(), ops.Ceil(), ops.Round(), ops.Truncate(), ops.Step(True),
    )  # fmt: skip
    return {op.name: (op, (1, 4), ("x",)) for op in functions}


def _table(weights) -> dict[str, tuple]:
    return {
        "Add": (ops.Add(), (1, 3), ("x", "other")),
        "Sub": (ops.Sub(), (1, 3), ("x", "other")),
        "Neg": (ops.Neg(), (1, 3), ("x",)),
        "Scale": (ops.Scale(), (1, 3), ("x", weights(3))),
        "Divide": (ops.Divide(), (1, 3), ("x", weights(3).abs() + 0.5)),
        "Mul": (ops.Mul(), (1, 3), (weights(2, 3), "x")),
        "Div": (ops.Div(), (1, 3), (weights(3), "x")),
        "ReduceSum": (ops.ReduceSum((1,)), (1, 3, 2), ("x",)),
        "MatMul": (ops.MatMul(), (2, 3), ("x", weights(3, 2))),
        "Linear": (ops.Linear(), (1, 2, 3), ("x", weights(2, 3, 2), weights(2))),
        "LinearLeft": (ops.LinearLeft(), (3, 2), (weights(2, 2, 3), "x")),
        "Conv": (ops.Conv((2, 1), (1, 2), 2, (1, 0), (0, 1)), (1, 2, 4, 3), ("x", weights(2, 1, 3, 2), weights(2))),
        "ConvTranspose": (  # groups, a crop in front, and a size that reaches past what the kernels cover
            ops.ConvTranspose((2, 1), (1, 2), 2, (1, -1), (5, 7)),
            (1, 2, 2, 3),
            ("x", weights(2, 2, 3, 2), weights(4)),
        ),
        "Concat": (ops.Concat(1), (1, 3), ("x", weights(1, 2), "other")),
        "Slice": (ops.Slice(1, 1, 5, 2), (1, 5), ("x",)),
        "Take": (ops.Take(1, (2, 0, 2)), (1, 3), ("x",)),
        "Pad": (ops.Pad((0, 1), (0, 2)), (1, 3), ("x",)),
        "Expand": (ops.Expand((2, 3)), (1, 3), ("x",)),
        "Permute": (ops.Permute((0, 2, 1)), (1, 2, 3), ("x",)),
        "Reshape": (ops.Reshape((2, 3)), (1, 6), ("x",)),
        "Product": (ops.Product(), (1, 3), ("x", "other")),
        "Quotient": (ops.Quotient(), (1, 3), ("other", "x")),
        "MatrixProduct": (ops.MatrixProduct(), (2, 2), ("x", "other")),
        "ReduceMax": (ops.ReduceMax(1), (1, 4), ("x",)),
        "Softmax": (ops.Softmax(1), (1, 3), ("x",)),
        "LogSoftmax": (ops.LogSoftmax(1), (2, 3), ("x",)),
        "LogSumExp": (ops.LogSumExp(1), (2, 3), ("x",)),
        "Rescale": (ops.Rescale(3, 1e-3), (2, 3), ("x", "other")),
        "RmsNorm": (ops.RmsNorm((1,), 1e-3), (2, 3), ("x",)),
        "Standardise": (ops.Standardise((0, 2), 1e-2), (2, 1, 2), ("x",)),
        "MaxPool": (ops.MaxPool((2, 2), (1, 2), (1, 1), (1, 0), (0, 1)), (1, 1, 3, 3), ("x",)),
        "AveragePool": (ops.AveragePool((2, 2), (2, 1), (1, 1), (0, 1), (1, 0)), (1, 2, 3, 2), ("x",)),
        "ReduceMean": (ops.ReduceMean((1,)), (1, 3, 2), ("x",)),
        "BatchNorm": (ops.BatchNorm(1e-3), (1, 2, 2), ("x", *(weights(2) for _ in range(3)), weights(2).abs())),
    }


def _choices(weights) -> dict[str, tuple]:
    """Where an operand is an index it is a value like any other; what counts is the whole number next to it."""
    return {
        "Maximum": (ops.Maximum(), (1, 3), ("x", "other")),
        "ReduceMin": (ops.ReduceMin(1), (1, 4), ("x",)),
        "Equal": (ops.Equal(), (1, 3), ("x", "other")),
        "Where": (ops.Where(), (1, 3), ("x", "other", weights(2, 3))),
        "Select": (ops.Select(), (1, 3), (torch.tensor([[1.0], [0.0]], dtype=torch.float64), "x", "other")),
        "ArgMax": (ops.ArgMax(1), (1, 3), ("x",)),
        "TopValues": (ops.TopValues(1, 2), (1, 4), ("x",)),
        "TopIndices": (ops.TopIndices(1, 2, False), (1, 4), ("x",)),
        "Lookup": (ops.Lookup(0), (3, 1), (weights(4, 2), "x")),
        "Window": (ops.Window(2, 0.5), (1,), (weights(4), "x")),
        "Scatter": (ops.Scatter(), (2, 1), (weights(3, 1), "x", "other")),
    }
