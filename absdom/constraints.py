"""What a dual sweep is told beside the bounds: half-spaces over nodes, each with a multiplier >= 0.

Split constraints, cuts, constraints on outputs, polytopes of inputs: any multiplier gives a valid bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from absdom.rows import Rows


@dataclass(frozen=True, eq=False)
class LinearConstraint:
    """K half-spaces <coefficients, z> + rhs <= 0 over nodes, each with a multiplier knob >= 0.

    terms: node -> coefficients "K *n"; rhs "K". `scope` "K": the box it belongs to, or None: all boxes. The sweep adds
    multiplier x coefficients to nu once all consumers of a node are summed, and multiplier x rhs to the constant.
    """

    terms: Mapping[int, torch.Tensor]
    rhs: torch.Tensor
    scope: torch.Tensor | None = None

    @property
    def count(self) -> int:
        return len(self.rhs)

    def inject(self, node: int, nu: Rows, multiplier: torch.Tensor) -> Rows:
        """`multiplier` "R K" (>= 0)."""
        coefficients = self.terms[node].reshape(self.count, -1)
        return nu.shift((self._in_scope(nu, multiplier) @ coefficients).reshape(-1, *nu.shape))

    def inject_size(self, node: int, nu: Rows, multiplier: torch.Tensor) -> Rows:
        """What `inject` sums, in absolute values; `nu` is already absolute."""
        absolute = replace(self, terms={node: self.terms[node].abs()})
        return absolute.inject(node, nu, multiplier.abs())

    def constant(self, nu: Rows, multiplier: torch.Tensor) -> torch.Tensor:
        return self._in_scope(nu, multiplier) @ self.rhs

    def constant_size(self, nu: Rows, multiplier: torch.Tensor) -> torch.Tensor:
        return self._in_scope(nu, multiplier).abs() @ self.rhs.abs()

    def _in_scope(self, nu: Rows, multiplier: torch.Tensor) -> torch.Tensor:
        if self.scope is None:
            return multiplier
        box = nu.per_row(torch.arange(nu.boxes, device=self.rhs.device))
        return multiplier * (self.scope[None] == box[:, None])


@dataclass(frozen=True, eq=False)
class SplitConstraint:
    """The one-coefficient case (beta): at node `node`, sign * z <= 0 where sign "B *n" is not 0; multiplier "R *n"."""

    node: int
    sign: torch.Tensor
    count: ClassVar[int] = 1

    @property
    def terms(self) -> tuple[int, ...]:
        return (self.node,)

    def inject(self, node: int, nu: Rows, multiplier: torch.Tensor) -> Rows:
        return nu.shift(nu.per_row(self.sign) * multiplier)

    def inject_size(self, node: int, nu: Rows, multiplier: torch.Tensor) -> Rows:
        return nu.shift(nu.per_row(self.sign).abs() * multiplier.abs())

    def constant(self, nu: Rows, multiplier: torch.Tensor) -> None:
        return None


@dataclass(frozen=True, eq=False)
class Constraints:
    """Constraints with the values of their multipliers, as a sweep takes them."""

    items: tuple[tuple[LinearConstraint | SplitConstraint, torch.Tensor], ...] = ()
    nodes: frozenset[int] = field(default=frozenset())

    @staticmethod
    def of(*items) -> Constraints:
        return Constraints(items, frozenset(n for constraint, _ in items for n in constraint.terms))
