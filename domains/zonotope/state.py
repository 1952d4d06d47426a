"""States of the zonotope domain: z = centre + sum of generators x symbols + a box part.

Generators come in blocks, one per set of symbols. A set of symbols is made by one rule (or by the inputs) and is its
own name: where two branches of a graph meet, blocks of the same symbols are added, so that what the branches share is
kept. A graph without branches has one set per nonlinear op.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch

from absdom.arithmetic import Arithmetic
from absdom.domain import NodeBounds, Recipe, chosen
from absdom.rows import Rows
from absdom.sets import InputBatch

SUPPORTED = 2**22  # elements of rows whose support is asked for at once


def enclosing(lower: torch.Tensor, upper: torch.Tensor, arithmetic: Arithmetic) -> tuple[torch.Tensor, torch.Tensor]:
    """(middle, half) so that [lower, upper] lies within middle -+ half; (0, infinity) where an end is not finite."""
    finite = lower.isfinite() & upper.isfinite()
    middle = torch.where(finite, lower / 2 + upper / 2, torch.zeros_like(lower))
    half = torch.maximum(upper - middle, middle - lower)
    if arithmetic.charged:
        half = half * (1 + 4 * arithmetic.unit)
    return middle, torch.where(finite, half, torch.full_like(half, torch.inf))


@dataclass(frozen=True, eq=False)
class Symbols:
    """`count` symbols, each anywhere in [-1, 1]; compared by identity."""

    count: int

    def reach(self, block: torch.Tensor) -> torch.Tensor:
        """The most that |generators x symbols| can be, "B K *n" -> "B *n"."""
        return torch.linalg.vector_norm(block, 1, 1)

    def range(self, block: torch.Tensor, arithmetic: Arithmetic) -> tuple[torch.Tensor, torch.Tensor]:
        """Bounds of generators x symbols, "B *n" each; the sum's rounding is charged by the caller."""
        reach = self.reach(block)
        return -reach, reach

    def lowest(self, rows: Rows, products: torch.Tensor, arithmetic: Arithmetic) -> torch.Tensor:
        """A lower bound "R" of <products, symbols>, where `products` "R K" are rows x generators."""
        return -torch.linalg.vector_norm(products, 1, 1)


@dataclass(frozen=True, eq=False)
class InputSymbols(Symbols):
    """The network's input vector itself, known by its set's support function: exact on l1 and l2 balls."""

    sets: InputBatch

    def reach(self, block):
        size = torch.maximum(self.sets.lower.abs(), self.sets.upper.abs())
        return torch.einsum("bk...,bk->b...", block.abs(), size)

    def range(self, block, arithmetic):
        boxes, inputs, *shape = block.shape
        rows = Rows.dense_rows(block.flatten(2).mT.reshape(-1, inputs), boxes)
        size, ends = max(1, SUPPORTED // inputs), []
        for sign in (1, -1):
            parts = [rows.slice(start, start + size) for start in range(0, rows.count, size)]
            parts = [replace(part, dense_data=sign * part.dense()) for part in parts]
            ends.append(sign * torch.cat([self.sets.support(part, arithmetic) for part in parts]))
        return ends[0].reshape(boxes, *shape), ends[1].reshape(boxes, *shape)

    def lowest(self, rows, products, arithmetic):
        return self.sets.support(Rows.dense_rows(products, rows.boxes, rows.box), arithmetic)


class Generators(NamedTuple):
    """values "B K *n" of the symbols `index` "K" of a set; None: of all of them, in order."""

    values: torch.Tensor
    index: torch.Tensor | None = None

    def whole(self, count: int) -> torch.Tensor:
        """One generator for each of the set's `count` symbols."""
        if self.index is None:
            return self.values
        shape = (self.values.shape[0], count, *self.values.shape[2:])
        return self.values.new_zeros(shape).index_copy(1, self.index, self.values)


@dataclass(frozen=True, eq=False)
class State:
    """centre and radius "B *n"; blocks: the generators of each set of symbols that the value depends on.

    `radius` is the box part: one symbol per element that nothing else shares. `recipe` says what becomes of new errors
    and how much room there is. `known`: bounds that are there without asking the blocks.
    """

    centre: torch.Tensor
    radius: torch.Tensor
    blocks: Mapping[Symbols, Generators]
    recipe: Recipe
    known: NodeBounds | None = None

    @property
    def count(self) -> int:
        """The generators of all blocks."""
        return sum(block.values.shape[1] for block in self.blocks.values())

    @cached_property
    def size(self) -> torch.Tensor:
        """The sum of the absolute values of all parts, "B *n": what roundings are charged by."""
        return sum((key.reach(block.values) for key, block in self.blocks.items()), self.centre.abs() + self.radius)

    def bounds(self, arithmetic: Arithmetic) -> NodeBounds:
        """The interval hull, "B *n"."""
        if self.known is not None:
            return self.known
        lower, upper = self.centre - self.radius, self.centre + self.radius
        for key, block in self.blocks.items():
            low, high = key.range(block.values, arithmetic)
            lower, upper = lower + low, upper + high
        if arithmetic.charged:
            slack = self.size * arithmetic.gamma(self.count + 4) + arithmetic.tiny
            lower, upper = lower - slack, upper + slack
        return NodeBounds(_claim(lower), -_claim(-upper))

    def bound_rows(self, rows: Rows, arithmetic: Arithmetic) -> torch.Tensor:
        """Lower bounds "R" of <row, z>."""
        value = rows.dot(self.centre) - rows.abs_dot(self.radius)
        for key, block in self.blocks.items():
            value = value + key.lowest(rows, _products(rows, block.values), arithmetic)
        if arithmetic.charged:
            terms = self.centre[0].numel() + self.count + 8
            value = value - rows.abs_dot(self.size) * arithmetic.gamma(terms) - arithmetic.tiny
        return _claim(value)

    def with_error(self, middle: torch.Tensor, half: torch.Tensor, charge: torch.Tensor | None) -> State:
        """This state moved by `middle` and widened by `half`, a new error per element, and by `charge`, all "B *n".

        New errors go to the box part, or become generators where they are more than rounding in some box (a Select
        point), as the recipe says.
        """
        radius = self.radius if charge is None else self.radius + charge
        made = replace(self, centre=self.centre + middle, radius=radius, known=None)
        if self.recipe.errors == "box":
            return replace(made, radius=made.radius + half)
        floor = 64 * torch.finfo(half.dtype).eps * (middle.abs() + self.size)  # no more than rounding: not worth it
        index = chosen((half > floor).flatten(1).any(0))
        return made.with_symbols(half, index)

    def with_symbols(self, half: torch.Tensor, index: torch.Tensor) -> State:
        """New symbols for the elements `index` of the flat "B *n" widths `half`; what the others have is box part."""
        if len(index) == 0:
            return replace(self, radius=self.radius + half)
        flat = half.flatten(1)
        rest = flat.index_fill(1, index, 0.0).reshape(half.shape)
        values = flat.new_zeros((len(flat), len(index), flat.shape[1]))
        values = values.scatter(2, index[None, :, None].expand(len(flat), -1, 1), flat[:, index, None])
        made = Generators(values.reshape(len(half), len(index), *half.shape[1:]))
        return replace(self, radius=self.radius + rest, blocks={**self.blocks, Symbols(len(index)): made})


def _claim(lower: torch.Tensor) -> torch.Tensor:
    """Lower bounds; an overflow (infinity, or infinity minus infinity) claims nothing."""
    return torch.where(lower < torch.inf, lower, torch.full_like(lower, -torch.inf))


def _products(rows: Rows, block: torch.Tensor) -> torch.Tensor:
    """Rows x generators, "R K"."""
    nu, block = rows.dense().flatten(1), block.flatten(2).mT
    if rows.box is None:
        return torch.bmm(nu.reshape(rows.boxes, -1, nu.shape[1]), block).flatten(0, 1)
    places = [torch.nonzero(rows.box == b)[:, 0] for b in range(rows.boxes)]
    parts = [nu[place] @ block[b] for b, place in enumerate(places)]
    return torch.cat(parts)[torch.cat(places).argsort()]


def through(states: Sequence[State | None], apply: Callable) -> dict[Symbols, Generators]:
    """The blocks behind a linear map; `apply` takes per operand "B K *n", or None for zero and for a parameter.

    Generators of the same symbols go together.
    """
    out = {}
    for key in dict.fromkeys(key for state in states if state is not None for key in state.blocks):
        found = [None if state is None else state.blocks.get(key) for state in states]
        index, *others = (g.index for g in found if g is not None)
        if any(other is not index for other in others):
            index, found = None, [None if g is None else Generators(g.whole(key.count)) for g in found]
        out[key] = Generators(apply([None if g is None else g.values for g in found]), index)
    return out
