"""Fewer generators, so that those of one box are no larger than the recipe's budget.

The generators with the least score go to the box part (Kopetzki, Schuermann and Althoff 2017, section III):

- `box`: the score is the length ||g||_1, which is what the generator's own box adds to the widths;
- `girard`: ||g||_1 - ||g||_inf, which is 0 for generators along an axis: those lose nothing (Girard 2005).

Each box of a batch keeps its own choice. What stays keeps its symbols, so that what branches share is kept too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from absdom.arithmetic import Arithmetic
from absdom.domains.zonotope.state import Generators, InputSymbols, State

ITEM = 8  # bytes of an element: a search in float32 keeps as many generators as its proof in float64


def fit(states: Sequence[State | None], place) -> list[State | None]:
    """The states in front of an op, each with no more generators than fit the budget there and behind it."""
    numels = [t.numel for t, varying in zip(place.at.inputs, place.at.varying, strict=True) if varying]
    largest = max(place.at.output.numel, *numels) * ITEM
    return [s if s is None else reduce(s, s.recipe.budget // largest, place.arithmetic) for s in states]


def reduce(state: State, limit: int, arithmetic: Arithmetic) -> State:
    """The state with at most `limit` generators per box; those of input sets that are no boxes stay in any case."""
    if state.count <= limit:
        return state
    kept = {key: g for key, g in state.blocks.items() if isinstance(key, InputSymbols)}
    others = {key: g for key, g in state.blocks.items() if key not in kept}
    if not others:
        return state
    count = max(0, limit - sum(g.values.shape[1] for g in kept.values()))
    scores = torch.cat([_score(g.values.flatten(2), state.recipe.reduce) for g in others.values()], 1)
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)
    radius, parts = state.radius, chosen.split([g.values.shape[1] for g in others.values()], 1)
    for (key, g), keep in zip(others.items(), parts, strict=True):
        keep = keep.reshape(*keep.shape, *[1] * (g.values.dim() - 2))
        dropped = torch.linalg.vector_norm(g.values.masked_fill(keep, 0), 1, 1)
        radius = radius + dropped
        columns = torch.nonzero(keep.flatten(1).any(0))[:, 0]  # a Select point
        if len(columns):
            values = g.values.masked_fill(~keep, 0).index_select(1, columns)
            kept[key] = Generators(values, columns if g.index is None else g.index[columns])
    if arithmetic.charged:
        radius = radius * (1 + arithmetic.gamma(scores.shape[1]))
    return replace(state, radius=radius, blocks=kept)


def _score(generators: torch.Tensor, method: str) -> torch.Tensor:
    """What speaks for keeping each generator, "B K *n" -> "B K"; 0 for those that are zero only."""
    length = torch.linalg.vector_norm(generators, 1, 2)
    if method == "box":
        return length
    # Of two along axes the longer one, so that rounding picks nothing.
    return length * (1 + 1e-6) - torch.linalg.vector_norm(generators, torch.inf, 2)
