"""Dense networks, and the state of a forward domain at their output: bounds that are not met with intervals."""

from __future__ import annotations

import torch

from absdom import ops
from absdom.ir.graph import Builder
from absdom.passes import lower
from absdom.plan import run
from absdom.plan.planner import make_schedule
from absdom.types import TensorType

RELU = ops.Relu()


def dense(sizes, seed=0, op=RELU):
    """A network of dense layers with weights (W, b), and those."""
    generator = torch.Generator().manual_seed(seed)
    builder, weights = Builder(), []
    x = builder.input("x", TensorType((1, sizes[0]), "float64"))
    for k, (m, n) in enumerate(zip(sizes, sizes[1:], strict=False)):
        w = torch.randn((m, n), generator=generator, dtype=torch.float64) / m**0.5
        b = torch.randn(n, generator=generator, dtype=torch.float64) / 4
        weights.append((w, b))
        x = builder.add(ops.Add(), builder.add(ops.MatMul(), x, builder.param(w, f"w{k}")), builder.param(b, f"b{k}"))
        if k < len(sizes) - 2:
            x = builder.add(op, x)
    return lower(builder.finish([x])), weights


def final_state(graph, sets, arithmetic, recipe):
    """(the domain's state at the output, the bounds of all nodes)."""
    final: dict = {}
    context = run.prepare(make_schedule(graph, recipe), arithmetic)
    with torch.no_grad():
        bounds = run.propagate(context, sets, final=final)
    return final[recipe], bounds
