"""The lines of every elementwise function against the best that one line on each side can do.

The area between two lines over [l, u] is (u - l) times their distance at the middle. A line above f is there no lower
than the concave envelope of f, and one line reaches it: so the envelopes at the middle give the least area. They are
found here on a grid, as the least over slopes s of max_z f(z) - s (z - middle), by bisection.
"""

from __future__ import annotations

from math import inf

import numpy as np
import op_strategies  # noqa: F401  (fills the table of strategies)
import pytest
import torch
from op_cases import REALS, generated_ops, inner

from absdom import ops
from absdom.ir.op import Elementwise
from absdom.ops.smooth import Smooth

COUNT, GRID, STEPS = 200, 2001, 40
FACTOR = 1.05

ATTRIBUTES = {
    "Power": [(2.0,), (3.0,), (4.0,), (-1.0,), (-2.0,), (0.5,), (1.5,), (-0.5,)],
    "Elu": [(1.0,), (0.3,), (2.0,)],
    "Celu": [(1.0,), (0.5,), (2.0,)],
    "Gelu": [(False,), (True,)],
}
PIECEWISE = [
    ops.Relu(), ops.LeakyRelu(0.1), ops.LeakyRelu(1.7), ops.LeakyRelu(-0.3), ops.Abs(), ops.Clip(-0.5, 0.7), ops.Clip(0.0, 6.0),
    ops.Clip(high=0.3), ops.Clip(low=-0.2), ops.Floor(), ops.Ceil(), ops.Round(), ops.Sign(), ops.Step(),
]  # fmt: skip


def functions() -> list[Elementwise]:
    smooth = [cls for cls in generated_ops().values() if issubclass(cls, Smooth)]
    return [cls(*values) for cls in smooth for values in ATTRIBUTES.get(cls.__name__, [()])] + PIECEWISE


def intervals(op: Elementwise, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Wide, narrow, one-sided and symmetric ones, inside the domain and not over a pole."""
    random = np.random.default_rng(seed)
    centre = random.standard_normal(4 * COUNT) * random.choice([0.5, 2.0, 5.0], 4 * COUNT)
    centre[::7] = 0
    radius = 10.0 ** random.uniform(-2, 1, 4 * COUNT)
    low, high = inner(getattr(op, "domain", REALS))
    ends = centre - radius, centre + radius
    if low > -inf:
        ends = tuple(low + np.abs(e) for e in ends)
    lower, upper = (torch.from_numpy(np.clip(t, low, high)) for t in (np.minimum(*ends), np.maximum(*ends)))
    usable = upper > lower + 1e-3
    if isinstance(op, Smooth):
        usable &= op.is_defined(lower, upper)
        steepest = op.eval(torch.stack([lower, upper])).abs().amax(0)
        usable &= steepest < 1e4
    return lower[usable][:COUNT], upper[usable][:COUNT]


def best_height(op: Elementwise, lower, upper, sign: int) -> torch.Tensor:
    """sign times the least height of a line on that side of f, above the middle of each interval."""
    share = torch.linspace(0, 1, GRID, dtype=torch.float64)
    x = lower[:, None] + (upper - lower)[:, None] * share
    y = sign * op.eval(x)
    x = x - ((lower + upper) / 2)[:, None]
    chords = (y[:, 1:] - y[:, :-1]) / (x[:, 1:] - x[:, :-1])
    small, big = chords.amin(1), chords.amax(1)

    left, right = (y[:, : GRID // 2 + 1], x[:, : GRID // 2 + 1]), (y[:, GRID // 2 :], x[:, GRID // 2 :])
    for _ in range(STEPS):  # a steeper line is higher over the left half and lower over the right one
        slope = ((small + big) / 2)[:, None]
        over_left, over_right = ((v - slope * t).amax(1) for v, t in (left, right))
        turn = over_left > over_right
        small, big = torch.where(turn, small, slope[:, 0]), torch.where(turn, slope[:, 0], big)
    return torch.maximum(over_left, over_right)


@pytest.mark.parametrize("op", functions(), ids=str)
def test_lines_have_nearly_the_least_area(op):
    lower, upper = intervals(op, seed=len(str(op)))
    assert len(lower) >= COUNT // 2, "too few intervals to judge by"
    lines = op.lines(lower, upper, op.initial(lower, upper))
    middle = (lower + upper) / 2
    above = lines.upper_slope * middle + lines.upper_bias
    below = lines.lower_slope * middle + lines.lower_bias
    best = best_height(op, lower, upper, 1) + best_height(op, lower, upper, -1)
    scale = op.eval(lower).abs() + op.eval(upper).abs() + upper - lower
    jumps = 1e-3 if op in PIECEWISE else 1e-6  # the grid sees a corner or a jump only up to its resolution
    found, allowed = above - below, FACTOR * best + jumps * scale
    worst = int((found - allowed).argmax())
    assert (found <= allowed).all(), (
        f"{int((found > allowed).sum())} of {len(found)} intervals; on [{lower[worst].item()!r}, "
        f"{upper[worst].item()!r}] the lines are {found[worst].item():.6g} apart in the middle, the best {best[worst].item():.6g}"
    )
    assert (found >= best * (1 - 1e-9) - jumps * scale).all(), "closer than valid lines can be"


def test_the_reference_knows_the_best_lines_of_known_functions():
    """ReLU: the chord and a line through zero; a parabola: the chord and the tangent in the middle."""
    lower, upper = torch.tensor([-1.0, -3.0], dtype=torch.float64), torch.tensor([1.0, 1.0], dtype=torch.float64)
    for op, sign, expected in (
        (ops.Relu(), 1, [0.5, 0.5]),
        (ops.Relu(), -1, [0.0, 0.0]),
        (ops.Abs(), 1, [1.0, 2.0]),
        (ops.Abs(), -1, [0.0, -1.0]),
    ):
        found = best_height(op, lower, upper, sign)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)
