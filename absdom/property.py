"""What is asked of a network: a batch of cases, each an input set with clauses of rows that describe counterexamples.

A *row* is c.v + d over one vector v: the outputs, flattened and laid side by side; then `products` of values; then the
inputs, when `on_inputs`. (Values inside the network that rows speak of are further outputs: see `interface`.)
It is positive where its atom of the counterexample fails. A *clause* is a conjunction of atoms: a counterexample of a
clause is a point of its box at which no row is positive (a strict atom: no row is >= 0). A property holds (`unsat`)
when no clause of any case has a counterexample.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from math import prod

import numpy as np
import scipy.sparse as sp

from absdom import registry
from absdom.errors import PropertyError
from absdom.input_set import InputSet
from absdom.interface import Interface


@dataclass(frozen=True, eq=False)
class Spec:
    """Flat rows over one vector. C: float64 csr "R v"; d: "R"; strict: bool "R"; clause: int "R" (rows of one clause
    are neighbours); box: int "Q", the box of each clause."""

    C: sp.csr_matrix
    d: np.ndarray
    strict: np.ndarray
    clause: np.ndarray
    box: np.ndarray

    @property
    def rows(self) -> int:
        return self.C.shape[0]

    @property
    def clauses(self) -> int:
        return len(self.box)

    def row_box(self) -> np.ndarray:
        """The box of each row."""
        return self.box[self.clause]

    def refuted(self, lower: np.ndarray) -> np.ndarray:
        """Bool "Q": clauses with a row whose lower bound is positive, or zero and strict (closed for proofs)."""
        holds = (lower > 0) | ((lower >= 0) & self.strict)
        out = np.zeros(self.clauses, dtype=bool)
        np.logical_or.at(out, self.clause, holds)
        return out

    def select(self, clauses: np.ndarray) -> Spec:
        """The spec of these clauses only (sorted), renumbered; boxes keep their numbers."""
        clauses = np.asarray(clauses)
        keep = np.isin(self.clause, clauses)
        return Spec(
            self.C[keep],
            self.d[keep],
            self.strict[keep],
            np.searchsorted(clauses, self.clause[keep]),
            self.box[clauses],
        )


@dataclass(frozen=True, eq=False)
class Property:
    """A disjunction of cases flattened to boxes, clauses and rows; see the head of this file.

    `on_inputs`: the inputs are the last part of the rows' vector. `products`: each the places of its factors (repeats
    allowed) in the outputs with the inputs behind them. `interface`: the tensors as a query declares them, or None;
    its hidden ones are outputs behind those of the model.
    """

    inputs: InputSet
    spec: Spec
    on_inputs: bool = False
    names: tuple[str, ...] = field(default=(), repr=False)  # optional, one per clause, for reports
    products: tuple[tuple[int, ...], ...] = field(default=(), repr=False)
    interface: Interface | None = field(default=None, repr=False)

    def __post_init__(self):
        if self.spec.clauses and int(self.spec.box.max()) >= len(self.inputs):
            raise PropertyError("a clause belongs to a box that does not exist")
        if not (np.isfinite(self.spec.C.data).all() and np.isfinite(self.spec.d).all()):
            raise PropertyError("a coefficient of the property is NaN or infinite")
        values = self.outputs + self.inputs.size
        if any(len(p) < 2 or not all(0 <= f < values for f in p) for p in self.products):
            raise PropertyError("a product of the property has fewer than two factors, or one that does not exist")

    @property
    def outputs(self) -> int:
        """Number of outputs, hidden values included, that the rows speak of."""
        return self.spec.C.shape[1] - len(self.products) - (self.inputs.size if self.on_inputs else 0)

    def vector(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The vector "v" of the rows, in float64: products are rounded there."""
        values = np.concatenate([y.ravel(), x.ravel()]).astype(np.float64)
        with np.errstate(over="ignore", under="ignore"):
            products = np.append(values, 1.0)[self._factors].prod(axis=1)
        return np.concatenate([values[: self.outputs], products, values[self.outputs :] if self.on_inputs else ()])

    @cached_property
    def _factors(self) -> np.ndarray:
        """`products` as one array, with the place behind all values where a product has fewer factors than others."""
        longest = max(map(len, self.products), default=0)
        fill = self.outputs + self.inputs.size
        rows = [(*p, *[fill] * (longest - len(p))) for p in self.products]
        return np.array(rows, dtype=np.int64).reshape(len(rows), longest)

    def satisfied(self, x: np.ndarray, y: np.ndarray, box: int) -> tuple[int, ...]:
        """The clauses of `box` all of whose atoms hold at input x with output y: in rationals, with no tolerance."""
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            return ()
        v = self.vector(x, y)
        clauses = np.flatnonzero(self.spec.box == box)
        rows = np.flatnonzero(np.isin(self.spec.clause, clauses))
        C = self.spec.C[rows]
        with np.errstate(all="ignore"):
            values = C @ v + self.spec.d[rows]
            scale = abs(C) @ np.abs(v) + np.abs(self.spec.d[rows])
        # Rows that are clearly positive need no exact arithmetic. (An infinite product is never clear.)
        hopeless = set(self.spec.clause[rows[(values > 1e-9 * scale) & np.isfinite(scale)]].tolist())
        exact = _Exact(self, x, y)
        found = []
        for q in clauses.tolist():
            if q not in hopeless and all(self._fails(r, exact) for r in rows[self.spec.clause[rows] == q]):
                found.append(q)
        return tuple(found)

    def is_counterexample(self, x: np.ndarray, y: np.ndarray) -> tuple[int, ...]:
        """The clauses of which input x with output y is a counterexample, exactly: sets and rows in rationals."""
        boxes = [b for b in range(len(self.inputs)) if self.inputs.contains(x.ravel(), b)]
        return tuple(q for b in boxes for q in self.satisfied(x, y, b))

    def _fails(self, row: int, exact: _Exact) -> bool:
        """Is row `row` not positive (strict: negative), in exact arithmetic? Then its atom holds."""
        c = self.spec.C.getrow(row)
        total = Fraction(float(self.spec.d[row])) + sum(
            Fraction(float(a)) * exact[int(j)] for a, j in zip(c.data, c.indices, strict=True)
        )
        return total < 0 if self.spec.strict[row] else total <= 0

    def with_spec(self, spec: Spec) -> Property:
        return replace(self, spec=spec)

    def to_vnnlib(self) -> str:
        """VNN-LIB 1.0 text that reads back to these boxes, rows and clauses (half-spaces become rows). Raises
        PropertyError for a ball or an ellipsoid."""
        return registry.service("write-vnnlib")(self)


class _Exact:
    """The elements of a property's vector at one point, as rationals: products are not rounded."""

    def __init__(self, prop: Property, x: np.ndarray, y: np.ndarray):
        self.prop = prop
        self.values = np.concatenate([y.ravel(), x.ravel()])

    def __getitem__(self, place: int) -> Fraction:
        first, products = self.prop.outputs, self.prop.products
        if first <= place < first + len(products):
            return prod(self._value(f) for f in products[place - first])
        return self._value(place if place < first else place - len(products))

    def _value(self, place: int) -> Fraction:
        return Fraction(float(self.values[place]))


def make_property(
    lower, upper, clauses: list[tuple[int, list[tuple[np.ndarray, float, bool]]]], on_inputs: bool = False
) -> Property:
    """A property from boxes "B n" and clauses (box, [(c, d, strict), ...]): small ones, by hand and in tests."""
    inputs = InputSet.box(lower, upper)
    rows = [(q, *row) for q, (_, atoms) in enumerate(clauses) for row in atoms]
    spec = Spec(
        sp.csr_matrix(np.stack([np.asarray(c, dtype=np.float64) for _, c, _, _ in rows])),
        np.array([d for _, _, d, _ in rows], dtype=np.float64),
        np.array([s for _, _, _, s in rows], dtype=bool),
        np.array([q for q, *_ in rows], dtype=np.int64),
        np.array([b for b, _ in clauses], dtype=np.int64),
    )
    return Property(inputs, spec, on_inputs)
