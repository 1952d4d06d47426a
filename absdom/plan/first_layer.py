"""The first affine layer over whole l_p balls: its value at the centre, give or take radius x dual norm of each row.

The dual norms depend on the weights alone. They come from one sweep over the unit ball around 0, the same for all
sets: every z_i = <w_i, x> + k_i, so k_i less the least z_i over that ball is |w_i|_*.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from absdom.domain import NodeBounds
from absdom.plan.context import Context
from absdom.plan.planner import make_schedule
from absdom.plan.sweeps import sweep
from absdom.rows import Rows
from absdom.set_parts import BallBatch
from absdom.sets import InputBatch
from absdom.types import Clock


def over_balls(context: Context, start: int, batch: InputBatch, clock: Clock, propagate) -> NodeBounds | None:
    """Bounds "B *n" of node `start`, whose path from the input is affine; None unless the sets are balls with one
    radius each. What the box cuts off is not looked at. `propagate`: the run loop."""
    ball = batch.ball
    if ball is None or ball.radius.shape[1] != 1:
        return None
    context = replace(context, schedule=make_schedule(context.graph, context.schedule.base, start))
    points = propagate(context, InputBatch(ball.centre, ball.centre))
    memo, centre = context.place(start, points).memo, points[start]
    radius = ball.radius.reshape(-1, *[1] * (centre.lower.dim() - 1))
    key = "dual norms", ball.norm
    norms = memo[key] if key in memo else _dual_norms(context, start, ball, clock, propagate)
    if not any(value.requires_grad for value in context.values.values()):
        memo[key] = norms
    reach = radius * norms
    if context.arithmetic.charged:
        reach = reach + (reach + centre.magnitude()) * context.arithmetic.gamma(2) + context.arithmetic.tiny
    return NodeBounds(centre.lower - reach, centre.upper + reach)


def _dual_norms(context: Context, start: int, ball: BallBatch, clock: Clock, propagate) -> torch.Tensor:
    """Upper bounds "1 *n" of the rows' dual norms."""
    zero = torch.zeros_like(ball.centre[:1])
    unit = InputBatch(zero - 1, zero + 1, (BallBatch(zero, zero[:, :1] + 1, ball.norm, clipped=False),))
    bounds, at_zero = propagate(context, unit), propagate(context, InputBatch(zero, zero))[start]
    position = torch.arange(at_zero.lower.numel(), device=zero.device)
    rows = Rows.one_hot(position, torch.ones_like(position, dtype=zero.dtype), at_zero.lower.shape[1:], 1)
    least = sweep(context, context.schedule.final, None, unit, bounds, rows, clock=clock)
    least = least.reshape(at_zero.lower.shape)
    norms = at_zero.upper - least
    if context.arithmetic.charged:
        norms = norms + (at_zero.upper.abs() + least.abs()) * context.arithmetic.gamma(1)
    return norms
