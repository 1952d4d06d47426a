"""Formulas over the inputs and outputs of a network: linear atoms under all, any and not.

Formulas are values in negation normal form. `violations` multiplies the negation of one out to clauses of atoms: the
counterexamples of the property that the formula holds everywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from absdom.errors import PropertyError

MOST_CLAUSES = 100_000


class Formula(ABC):
    """What holds or does not hold at an input x with the output y. `&`, `|`, `~` make new ones."""

    def __and__(self, other) -> Formula:
        return all_of(self, _formula(other, "&"))

    def __or__(self, other) -> Formula:
        return any_of(self, _formula(other, "|"))

    @abstractmethod
    def __invert__(self) -> Formula:
        """Holds where this one does not."""

    def __bool__(self) -> NoReturn:
        raise PropertyError(
            "a formula has no truth value of its own: write a & b instead of `a and b`, a | b instead of `a or b`, ~a "
            "instead of `not a`, implies(a, b) instead of `if`, (0 <= t) & (t <= 1) instead of `0 <= t <= 1`, and "
            "maximum(...) instead of max(...)"
        )

    def __eq__(self, other) -> NoReturn:
        raise PropertyError("two formulas are not compared with == or !=: write implies(a, b) & implies(b, a)")

    __ne__ = __eq__
    __rand__, __ror__ = __and__, __or__
    __hash__ = None


def _formula(value, sign: str) -> Formula:
    if not isinstance(value, Formula):
        raise PropertyError(
            f"{type(value).__name__} stands where a formula is expected at {sign}, which binds closer than a "
            f"comparison: write (a <= b) {sign} (c <= d)"
        )
    return value


@dataclass(frozen=True, eq=False, repr=False)
class Atom(Formula):
    """term <= 0, or term < 0 if `strict`."""

    term: object
    strict: bool

    def __invert__(self) -> Atom:
        return Atom(-self.term, not self.strict)

    def __repr__(self) -> str:
        return f"{self.term!r} {'<' if self.strict else '<='} 0"


@dataclass(frozen=True, eq=False)
class Every(Formula):
    parts: tuple[Formula, ...]

    def __invert__(self) -> Some:
        return Some(tuple(~part for part in self.parts))


@dataclass(frozen=True, eq=False)
class Some(Formula):
    parts: tuple[Formula, ...]

    def __invert__(self) -> Every:
        return Every(tuple(~part for part in self.parts))


@dataclass(frozen=True, eq=False)
class Surely(Formula):
    """A statement that is open at some points: `sure` holds where it certainly does, `never` where it does not.

    It counts as held where it is sure, and its negation where that is sure, so that a property which holds in this
    reading holds however the open points are settled.
    """

    sure: Formula
    never: Formula

    def __invert__(self) -> Surely:
        return Surely(self.never, self.sure)


def _flat(formulas, name: str) -> list[Formula]:
    """The formulas given one by one, or as one iterable."""
    if len(formulas) == 1 and not isinstance(formulas[0], Formula) and isinstance(formulas[0], Iterable):
        formulas = tuple(formulas[0])
    for formula in formulas:
        if not isinstance(formula, Formula):
            raise PropertyError(f"{name} takes formulas such as y[0] <= 1, not {type(formula).__name__}")
    return list(formulas)


def all_of(*formulas) -> Formula:
    """Every one of these formulas (given one by one or as an iterable) holds; true where there are none."""
    flat = _flat(formulas, "all_of")
    if len(flat) == 1:
        return flat[0]
    return Every(tuple(part for f in flat for part in (f.parts if isinstance(f, Every) else (f,))))


def any_of(*formulas) -> Formula:
    """One of these formulas (given one by one or as an iterable) holds; false where there are none."""
    flat = _flat(formulas, "any_of")
    if len(flat) == 1:
        return flat[0]
    return Some(tuple(part for f in flat for part in (f.parts if isinstance(f, Some) else (f,))))


def implies(premise: Formula, conclusion: Formula) -> Formula:
    """Where the premise holds, the conclusion does."""
    premise, conclusion = _flat((premise, conclusion), "implies")
    return any_of(~premise, conclusion)


Clause = tuple[Atom, ...]


def violations(formula: Formula) -> list[Clause]:
    """The negation of the formula as a disjunction of conjunctions of atoms."""
    if isinstance(formula, Atom):
        return [(~formula,)]
    if isinstance(formula, Surely):
        return violations(formula.sure)
    parts = [violations(part) for part in formula.parts]
    if isinstance(formula, Every):
        clauses = [clause for part in parts for clause in part]
        _check_count(len(clauses))
        return clauses
    product: list[Clause] = [()]
    for part in sorted(parts, key=len):
        _check_count(len(product) * len(part))
        product = [(*left, *right) for left in product for right in part]
    return product


def _check_count(count: int) -> None:
    if count > MOST_CLAUSES:
        raise PropertyError(
            f"multiplied out, the negation of this formula has {count:,} clauses or more (at most {MOST_CLAUSES:,}): "
            f"split the property into several"
        )
