"""Random networks and random boxes, by seed: every op that is shipped, in odd shapes, with shared sub-graphs."""

from __future__ import annotations

from math import prod

import numpy as np
import torch

from absdom import ops
from absdom.ir.graph import Builder, Graph
from absdom.types import TensorType

LARGEST = 40  # elements of one value
BOXES = ("normal", "point", "flat", "huge", "tiny")
SMOOTH = (
    ops.Erf(), ops.Atan(), ops.Softsign(), ops.Softplus(), ops.Elu(0.7), ops.Celu(2.0), ops.Selu(), ops.Gelu(),
    ops.Gelu(True), ops.Silu(), ops.Mish(), ops.HardSwish(), ops.Sin(), ops.Cos(),
)  # fmt: skip


class Maker:
    """Grows one network: `value` is the node that the next op reads; `kept` are older nodes to come back to."""

    def __init__(self, seed: int, scale: float = 1.0):
        self.random = np.random.default_rng(seed)
        self.scale = scale
        self.builder = Builder()
        shape = self.pick([(1, 5), (1, 2, 4), (1, 2, 3, 4), (2, 3), (1, 1, 2, 2, 3), (4,)])
        self.value = self.builder.input("x", TensorType(shape, "float64"))
        self.kept = [self.value]

    def pick(self, items):
        return items[int(self.random.integers(len(items)))]

    def integer(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high + 1))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.builder.type(self.value).shape

    def weights(self, *shape, scale: float | None = None) -> int:
        scale = self.scale if scale is None else scale
        return self.builder.param(torch.from_numpy(self.random.standard_normal(shape) * scale), "w")

    def add(self, op, *more: int, first: bool = True) -> None:
        reads = (self.value, *more) if first else (*more, self.value)
        self.value = self.builder.add(op, *reads)

    def grow(self, steps: int) -> Graph:
        moves = [getattr(self, name) for name in dir(type(self)) if name.startswith("op_")]
        done = 0
        while done < steps:
            before = self.value
            self.pick(moves)()
            if prod(self.shape) > LARGEST or prod(self.shape) == 0:
                self.value = before
                continue
            done += self.value != before
            self.kept.append(self.value)
        return self.finish()

    def finish(self) -> Graph:
        self.add(ops.Reshape((1, prod(self.shape))))
        n = prod(self.shape)
        self.add(ops.MatMul(), self.weights(n, 2, scale=n**-0.5))
        self.add(ops.Add(), self.weights(2, scale=1.0))
        return self.builder.finish([self.value])

    def same_shape(self) -> int | None:
        """An older node of the current shape (a residual branch), or a dense image of an older node in that shape."""
        found = [k for k in self.kept[:-1] if self.builder.type(k).shape == self.shape]
        if found and self.random.random() < 0.7:
            return self.pick(found)
        old = self.pick(self.kept)
        numel = self.builder.type(old).numel
        flat = self.builder.add(ops.Reshape((1, numel)), old)
        made = self.builder.add(
            ops.MatMul(), flat, self.weights(numel, prod(self.shape), scale=self.scale * numel**-0.5)
        )
        return self.builder.add(ops.Reshape(self.shape), made)

    # Affine ops

    def op_residual(self):
        self.add(self.pick([ops.Add(), ops.Sub()]), self.same_shape())

    def op_constant(self):
        shape = self.pick([self.shape[-1:], self.shape, (1,)])
        self.add(self.pick([ops.Add(), ops.Sub()]), self.weights(*shape), first=self.random.random() < 0.6)

    def op_scale(self):
        self.add(
            ops.Mul(), self.weights(*self.pick([self.shape[-1:], self.shape, (1,)])), first=self.random.random() < 0.5
        )

    def op_divide(self):
        tensor = torch.from_numpy(self.random.uniform(0.5, 2, self.shape[-1:]) * self.pick([-1, 1]))
        self.add(ops.Div(), self.builder.param(tensor, "c"))

    def op_neg(self):
        self.add(ops.Neg())

    def op_sum(self):
        axes = tuple(a for a in range(len(self.shape)) if self.random.random() < 0.4) or (0,)
        self.add(self.pick([ops.ReduceSum, ops.ReduceMean])(axes))

    def op_dense(self):
        if len(self.shape) < 2:
            self.add(ops.Reshape((1, *self.shape)))
        k, batch = self.shape[-1], self.pick([(), (), (1,), (self.shape[0],) if len(self.shape) > 2 else ()])
        m = self.integer(1, 4)
        if self.random.random() < 0.2:
            batch = (2,) if len(self.shape) == 2 else batch
        self.add(ops.MatMul(), self.weights(*batch, k, m, scale=self.scale * k**-0.5))
        if self.random.random() < 0.6:
            self.add(ops.Add(), self.weights(*self.pick([(m,), self.shape[-2:], (1,)])))

    def op_dense_left(self):
        if len(self.shape) >= 2:
            k = self.shape[-2]
            batch = self.pick([(), (), (2,)]) if len(self.shape) == 2 else ()
            self.add(ops.MatMul(), self.weights(*batch, self.integer(1, 4), k, scale=self.scale * k**-0.5), first=False)

    def op_convolution(self):
        window = self.window()
        if window is None:
            return
        kernel, strides, dilations, before, after = window
        groups = self.pick([g for g in (1, 1, 2, 3) if self.shape[1] % g == 0])
        filters, channels = groups * self.integer(1, 2), self.shape[1] // groups
        weights = self.weights(filters, channels, *kernel, scale=self.scale * (channels * prod(kernel)) ** -0.5)
        bias = [self.weights(filters)] if self.random.random() < 0.5 else []
        self.add(ops.Conv(strides, dilations, groups, before, after), weights, *bias)

    def window(self):
        """(kernel, strides, dilations, before, after) that fits, where the value is an image of 1 to 3 axes."""
        if not 3 <= len(self.shape) <= 5:
            return None
        size = self.shape[2:]
        kernel = tuple(self.integer(1, 3) for _ in size)
        strides = tuple(self.integer(1, 3) for _ in size)
        dilations = tuple(self.integer(1, 2) for _ in size)
        before, after = (tuple(self.integer(0, 2) for _ in size) for _ in range(2))
        room = (n + b + a - d * (k - 1) for n, b, a, d, k in zip(size, before, after, dilations, kernel, strict=True))
        return (kernel, strides, dilations, before, after) if min(room) >= 1 else None

    # Ops that move

    def op_move(self):
        rank, axis = len(self.shape), self.integer(0, len(self.shape) - 1)
        size = self.shape[axis]
        match self.integer(0, 6):
            case 0:
                self.add(ops.Permute(tuple(int(a) for a in self.random.permutation(rank))))
            case 1:
                start = self.integer(0, size - 1)
                self.add(ops.Slice(axis, start, self.integer(start + 1, size), self.integer(1, 2)))
            case 2:
                self.add(ops.Take(axis, tuple(self.integer(0, size - 1) for _ in range(self.integer(1, 4)))))
            case 3:
                pads = [tuple(self.integer(0, 1) for _ in range(rank)) for _ in range(2)]
                self.add(ops.Pad(*pads))
            case 4:
                if size > 1 and self.random.random() < 0.5:
                    self.add(ops.Slice(axis, 0, 1))
                self.add(ops.Expand(self.pick([(2, *self.shape), tuple(2 if s == 1 else s for s in self.shape)])))
            case 5:
                n = prod(self.shape)
                half = next((d for d in (3, 2) if n % d == 0), 1)
                self.add(
                    ops.Reshape(
                        self.pick([(1, n), (n // half, half), (1, half, n // half), (1, 1, half, n // half), (n,)])
                    )
                )
            case 6:
                parts = [self.same_shape()] if self.random.random() < 0.6 else []
                if self.random.random() < 0.5 or not parts:
                    parts.append(self.weights(*self.shape))
                self.add(ops.Concat(axis), *parts, first=self.random.random() < 0.5)

    # Activations

    def op_activation(self):
        self.add(self.pick([
            ops.Relu(), ops.Relu(), ops.Relu(), ops.LeakyRelu(0.1), ops.LeakyRelu(1.7), ops.LeakyRelu(-0.3), ops.Abs(),
            ops.Clip(-0.5, 0.5), ops.Clip(high=0.3), ops.Clip(low=-0.2), ops.Clip(0.0, 1.0), ops.Sigmoid(), ops.Tanh(),
        ]))  # fmt: skip

    op_activation_again = op_activation_too = op_activation

    def op_smooth(self):
        self.add(self.pick(SMOOTH))

    op_smooth_again = op_smooth

    def op_step(self):
        if self.random.random() < 0.6:
            self.add(self.pick([ops.Floor(), ops.Ceil(), ops.Round(), ops.Truncate(), ops.Step(True), ops.Step(False)]))

    def op_sign(self):
        if self.random.random() < 0.3:
            self.add(ops.Sign())

    # Functions of several elements

    def op_product(self):
        self.add(ops.Mul(), self.same_shape())

    def op_product_broadcast(self):
        factor = self.builder.add(ops.ReduceSum((0,)), self.value)
        factor = self.builder.add(ops.Reshape(self.shape[1:] or (1,)), factor)
        self.add(ops.Mul(), self.builder.add(ops.Tanh(), factor), first=self.random.random() < 0.5)

    def op_matrix_product(self):
        if len(self.shape) >= 2:
            axes = tuple(range(len(self.shape)))
            turned = self.builder.add(ops.Permute((*axes[:-2], axes[-1], axes[-2])), self.value)
            self.add(ops.MatMul(), turned)

    def op_quotient(self):
        below = self.builder.add(ops.Sigmoid(), self.same_shape())
        below = self.builder.add(ops.Add(), below, self.builder.param(torch.full((1,), 0.5, dtype=torch.float64), "c"))
        if self.random.random() < 0.3:
            self.value = self.builder.add(ops.Div(), self.weights(*self.shape), below)
        else:
            self.add(ops.Div(), below)

    def op_maximum(self):
        self.add(ops.ReduceMax(self.integer(0, len(self.shape) - 1)))

    def op_softmax(self):
        self.add(ops.Softmax(self.integer(0, len(self.shape) - 1)))

    def op_pool(self):
        window = self.window()
        if window is None:
            return
        kernel, strides, dilations, before, after = window
        before, after = (tuple(min(p, k - 1) for p, k in zip(pads, kernel, strict=True)) for pads in (before, after))
        room = [n + b + a - d * (k - 1)
                for n, b, a, d, k in zip(self.shape[2:], before, after, dilations, kernel, strict=True)]  # fmt: skip
        if min(room) < 1:
            return
        if any((k - 1) * d >= n for n, k, d in zip(self.shape[2:], kernel, dilations, strict=True)):
            dilations = tuple(1 for _ in kernel)  # else a window could miss the image
        if self.random.random() < 0.5:
            self.add(
                ops.AveragePool(kernel, strides, dilations, before, after, count_padding=self.random.random() < 0.5)
            )
        else:
            self.add(ops.MaxPool(kernel, strides, dilations, before, after))

    op_pool_again = op_pool

    def op_batch_norm(self):
        if len(self.shape) >= 2:
            c = self.shape[1]
            var = self.builder.param(torch.from_numpy(self.random.uniform(1e-6, 2, c)), "var")
            self.add(ops.BatchNorm(1e-5), self.weights(c), self.weights(c), self.weights(c), var)


def random_graph(seed: int, scale: float = 1.0) -> Graph:
    maker = Maker(seed, scale)
    return maker.grow(maker.integer(3, 8))


def random_boxes(seed: int, n: int, kind: str, boxes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes "B n" in float64, with lower <= upper."""
    random = np.random.default_rng(seed)
    centre = random.standard_normal((boxes, n))
    radius = random.uniform(0, 1, (boxes, n)) * random.choice([0.05, 0.5, 1.5], (boxes, 1))
    if kind == "point":
        radius[:] = 0
    elif kind == "flat":
        radius[random.random((boxes, n)) < 0.5] = 0
    elif kind == "huge":
        centre, radius = centre * 1e6, radius * 1e6
    elif kind == "tiny":
        radius *= 1e-12
    return torch.from_numpy(centre - radius), torch.from_numpy(centre + radius)
