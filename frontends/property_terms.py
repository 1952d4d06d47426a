"""Symbolic values of the property language: linear terms over inputs and outputs, vectors of them, max, min, argmax.

Arithmetic is exact, in rationals: a float stands for the number that it is. What is not linear, or has no meaning on
symbols (`and`, `if`, products), is an error that says what to write instead.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import isfinite
from numbers import Rational, Real
from typing import NoReturn

import numpy as np

from absdom.errors import PropertyError
from absdom.frontends.property_formulas import Atom, Formula, Some, Surely, all_of, any_of


class Symbolic:
    """What all symbolic values have: comparisons, and clear refusals of what Python would do with plain values."""

    __array_ufunc__ = None  # numpy's operators then leave the work to ours
    __hash__ = None

    def __le__(self, other) -> Formula:
        return compare(self, "<=", other)

    def __lt__(self, other) -> Formula:
        return compare(self, "<", other)

    def __ge__(self, other) -> Formula:
        return compare(other, "<=", self)

    def __gt__(self, other) -> Formula:
        return compare(other, "<", self)

    def __eq__(self, other) -> Formula:
        return compare(self, "==", other)

    def __ne__(self, other) -> Formula:
        return compare(self, "!=", other)

    def __bool__(self) -> NoReturn:
        raise PropertyError(
            "a symbolic value has no truth value: compare it, as in y[0] <= 1, and join formulas with &, |, ~, implies"
        )

    def __float__(self) -> NoReturn:
        raise PropertyError("a symbolic value is no number: it stands for every input of the set, or its output")

    __int__ = __index__ = __float__

    def __and__(self, other) -> NoReturn:
        raise PropertyError("& and | join formulas and bind closer than comparisons: write (a <= b) & (c <= d)")

    __rand__ = __or__ = __ror__ = __and__

    def __invert__(self) -> NoReturn:
        raise PropertyError("~ negates formulas, not values: write ~(a <= b), with brackets")

    def __pow__(self, other) -> NoReturn:
        raise PropertyError(NOT_LINEAR)

    __rpow__ = __rtruediv__ = __pow__

    def __sub__(self, other):
        return self + -as_symbolic(other)

    def __rsub__(self, other):
        return -self + other

    def __radd__(self, other):
        return self + other

    def __rmul__(self, other):
        return self * other

    def __neg__(self):
        return self * -1

    def __pos__(self):
        return self

    def __truediv__(self, other):
        if isinstance(other, Symbolic):
            raise PropertyError(NOT_LINEAR)
        if np.ndim(other):
            return self * [1 / _divisor(v) for v in _array(other).ravel()]
        return self * (1 / _divisor(other))


NOT_LINEAR = (
    "a product, quotient or power of symbolic values is not linear: one factor has to be a number; what is not linear "
    "has to be computed inside the network"
)


def number(value) -> Fraction:
    """The exact value of a finite number (Python's, numpy's, or a tensor with one element)."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (Real, Decimal)):
        raise PropertyError(f"{value!r} stands where a number or a symbolic value is expected")
    if not isinstance(value, Rational) and not isfinite(value):
        raise PropertyError(f"the number {value} is not finite")
    return Fraction(value) if isinstance(value, (Rational, Decimal)) else Fraction(float(value))


def _array(value) -> np.ndarray:
    """An array, list or tensor of numbers as Python objects, in its shape."""
    return np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value, dtype=object)


def _divisor(value) -> Fraction:
    divisor = number(value)
    if not divisor:
        raise PropertyError("division by zero")
    return divisor


@dataclass(frozen=True, eq=False, repr=False)
class Term(Symbolic):
    """A linear form: coefficients by code (X_i is 2 i, Y_j is 2 j + 1, as in VNN-LIB) and a constant.

    `network`: the one whose inputs and outputs these are; None for a number.
    """

    coefficients: Mapping[int, Fraction]
    constant: Fraction
    network: object = None

    def __add__(self, other):
        other = as_symbolic(other)
        if not isinstance(other, Term):
            return other + self
        total = dict(self.coefficients)
        for code, value in other.coefficients.items():
            total[code] = total.get(code, 0) + value
        return Term(total, self.constant + other.constant, common_network(self, other))

    def __mul__(self, other):
        if isinstance(other, Symbolic):
            raise PropertyError(NOT_LINEAR)
        if np.ndim(other):
            return Vector([self * value for value in _array(other).ravel()])
        factor = number(other)
        return Term({k: c * factor for k, c in self.coefficients.items()}, self.constant * factor, self.network)

    def __abs__(self) -> Extreme:
        return Extreme((self, -self), largest=True)

    def __repr__(self) -> str:
        parts = [f"{_short(c)}*{'xy'[k % 2]}[{k // 2}]" for k, c in sorted(self.coefficients.items()) if c]
        if self.constant or not parts:
            parts.append(_short(self.constant))
        return " + ".join(parts)


def _short(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):g}"


def common_network(*terms: Term):
    """The network of these terms; None if all are numbers."""
    found = None
    for term in terms:
        if term.network is not None:
            if found is not None and not found.same(term.network):
                raise PropertyError(
                    "values of two networks in one formula: a property speaks of one network (make it once, "
                    "net = network(...), and take x = inputs(net) and y = net(x) from it)"
                )
            found = term.network
    return found


class Variables(Sequence):
    """The inputs (`side` 0) or outputs (1) of a network as terms, made when they are asked for."""

    def __init__(self, network, side: int, count: int):
        self.network, self.side, self.count = network, side, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(self.count))]
        return Term({2 * range(self.count)[place] + self.side: Fraction(1)}, Fraction(0), self.network)


@dataclass(frozen=True, eq=False, repr=False)
class Vector(Symbolic):
    """A flat vector of terms. Arithmetic and comparisons go component by component; numbers are broadcast.

    A comparison of vectors holds where it holds in every component (`!=`: where some component differs).
    """

    terms: Sequence[Term]

    def __len__(self) -> int:
        return len(self.terms)

    def __iter__(self):
        return iter(self.terms)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return Vector(self.terms[place])
        if isinstance(place, (list, np.ndarray)):
            return Vector([self[i] for i in place])
        try:
            place = operator.index(place)
        except TypeError:
            raise PropertyError(
                f"[{place!r}]: symbolic vectors are flat and take one number or a slice; "
                f"np.ravel_multi_index gives the place of an element of a tensor"
            ) from None
        if not -len(self) <= place < len(self):
            raise PropertyError(f"[{place}]: the vector has {len(self)} components: 0 ... {len(self) - 1}")
        return self.terms[place]

    def __add__(self, other) -> Vector:
        return self._each(operator.add, as_symbolic(other))

    def __mul__(self, other) -> Vector:
        if isinstance(other, Symbolic):
            raise PropertyError(NOT_LINEAR)
        if not np.ndim(other):
            return Vector([term * other for term in self])
        factors = _array(other).ravel()
        self._same_length(len(factors))
        return Vector([term * factor for term, factor in zip(self, factors)])

    def __matmul__(self, other) -> Term:
        """The sum of the products with the components of `other`: numbers "m"."""
        if isinstance(other, Symbolic):
            raise PropertyError(NOT_LINEAR)
        return _dot(_array(other), self)

    def __rmatmul__(self, other) -> Term | Vector:
        """matrix @ vector; `other`: numbers "m" (a term) or "k m" (a vector of k)."""
        other = _array(other)
        return _dot(other, self) if other.ndim == 1 else Vector([_dot(row, self) for row in other])

    def __abs__(self) -> NoReturn:
        raise PropertyError("abs takes one component: write all_of(abs(t) <= 1 for t in y), or maximum(y, -y) <= 1")

    def sum(self) -> Term:
        return sum(self, Term({}, Fraction(0)))

    def max(self) -> Extreme:
        return maximum(self)

    def min(self) -> Extreme:
        return minimum(self)

    def _each(self, function: Callable, other: Symbolic) -> Vector:
        if isinstance(other, Extreme):
            raise PropertyError(ONE_EXTREME)
        if isinstance(other, Vector):
            self._same_length(len(other))
            return Vector([function(a, b) for a, b in zip(self, other)])
        return Vector([function(term, other) for term in self])

    def _same_length(self, length: int) -> None:
        if length != len(self):
            raise PropertyError(f"vectors of {len(self)} and of {length} components do not go together")


def _dot(row: np.ndarray, vector: Vector) -> Term:
    if row.shape != (len(vector),):
        raise PropertyError(f"@ takes {len(vector)} numbers for each component of the result, not an array {row.shape}")
    return sum((term * c for term, c in zip(vector, row) if c != 0), Term({}, Fraction(0)))


ONE_EXTREME = (
    "each side of a comparison may hold one maximum or minimum: bring the other one to the other side, as in "
    "maximum(a) <= maximum(b) + 1"
)


@dataclass(frozen=True, eq=False, repr=False)
class Extreme(Symbolic):
    """The largest (or the least) of some terms: to be compared, after adding or multiplying with numbers."""

    terms: tuple[Term, ...]
    largest: bool

    def __add__(self, other) -> Extreme:
        other = as_symbolic(other)
        if not isinstance(other, Term):
            raise PropertyError(ONE_EXTREME)
        return Extreme(tuple(term + other for term in self.terms), self.largest)

    def __mul__(self, other) -> Extreme:
        if isinstance(other, Symbolic):
            raise PropertyError(NOT_LINEAR)
        factor = number(other)
        return Extreme(tuple(term * factor for term in self.terms), self.largest == (factor >= 0))


def _extreme(values, largest: bool) -> Extreme:
    terms: list[Term] = []
    name = "maximum" if largest else "minimum"
    for value in map(as_symbolic, values):
        if isinstance(value, Extreme) and value.largest != largest:
            raise PropertyError(
                f"a {'minimum' if largest else 'maximum'} inside a {name} is not supported: {ONE_EXTREME}"
            )
        terms += [value] if isinstance(value, Term) else value.terms
    if not terms:
        raise PropertyError(f"{name} of nothing")
    common_network(*terms)
    return Extreme(tuple(terms), largest)


def maximum(*values) -> Extreme:
    """The largest of all components of these vectors, terms and numbers."""
    return _extreme(values, True)


def minimum(*values) -> Extreme:
    """The least of all components of these vectors, terms and numbers."""
    return _extreme(values, False)


@dataclass(frozen=True, eq=False, repr=False)
class Winner(Symbolic):
    """The place of the largest (or least) component of a vector: to be compared with a label by == or !=."""

    vector: Vector
    largest: bool

    def __eq__(self, label) -> Formula:
        return self._is(label)

    def __ne__(self, label) -> Formula:
        return ~self._is(label)

    def _is(self, label) -> Surely:
        name = "argmax" if self.largest else "argmin"
        place = check_label(label, len(self.vector), name)
        best = self.vector[place]
        others = [t for j, t in enumerate(self.vector) if j != place]
        sure = all_of(t < best if self.largest else best < t for t in others)
        return Surely(sure, any_of(best < t if self.largest else t < best for t in others))

    def __le__(self, other) -> NoReturn:
        raise PropertyError("argmax and argmin are compared with == or != and a label, as in argmax(y) == 3")

    __lt__ = __ge__ = __gt__ = __add__ = __mul__ = __truediv__ = __sub__ = __le__


def check_label(label, count: int, name: str) -> int:
    """The label as a number from 0 to count - 1."""
    try:
        place = operator.index(label) if not isinstance(label, (bool, np.bool_, Symbolic)) else None
    except (TypeError, PropertyError):
        place = None
    if place is None:
        raise PropertyError(
            f"a label is a whole number, not {type(label).__name__}: write {name}(y) == 3; for several labels, "
            f"any_of({name}(y) == k for k in labels)"
        )
    if not 0 <= place < count:
        raise PropertyError(f"the label {place} is not one of 0 ... {count - 1}: there are {count} scores")
    return place


def _winner(vector, largest: bool) -> Winner:
    name = "argmax" if largest else "argmin"
    if not isinstance(vector, Vector):
        raise PropertyError(f"{name} takes a symbolic vector, such as net(x), not {type(vector).__name__}")
    if len(vector) < 2:
        raise PropertyError(f"{name} takes two scores or more; for one output compare it, as in net(x)[0] >= 0")
    return Winner(vector, largest)


def argmax(vector: Vector) -> Winner:
    """The place of the largest component, to be compared with a label.

    Where scores tie, the argmax is open, and a property has to hold however ties are broken: `argmax(y) == k` is
    violated where another score is >= y[k], and `argmax(y) != k` where no other score is > y[k]. So at a tie both
    are, and as a premise (`implies(argmax(y) == k, ...)`) a tie counts. This is the closed reading of the VNN-COMP
    files.
    """
    return _winner(vector, True)


def argmin(vector: Vector) -> Winner:
    """The place of the least component; ties as in `argmax`."""
    return _winner(vector, False)


def as_symbolic(value) -> Term | Vector | Extreme:
    """A symbolic value as it is, a number as a constant term, an array of numbers as a vector."""
    if isinstance(value, Winner):
        raise PropertyError("argmax and argmin are compared with == or != and a label, as in argmax(y) == 3")
    if isinstance(value, Symbolic):
        return value
    if isinstance(value, Formula):
        raise PropertyError("a formula stands where a value is expected: comparisons are not chained or nested")
    if np.ndim(value):
        return Vector([v if isinstance(v, Term) else Term({}, number(v)) for v in _array(value).ravel()])
    return Term({}, number(value))


def compare(left, sign: str, right) -> Formula:
    """left sign right, for `<=`, `<`, `==`, `!=`; vectors component by component."""
    left, right = as_symbolic(left), as_symbolic(right)
    if sign == "!=":
        return ~compare(left, "==", right)
    if isinstance(left, Vector) or isinstance(right, Vector):
        return all_of(compare(a, sign, b) for a, b in _pairs(left, right))
    if sign == "==":
        return all_of(compare(left, "<=", right), compare(right, "<=", left))
    # max(a) <= max(b): for every a there is a b with a <= b, and so on.
    lefts = left.terms if isinstance(left, Extreme) else (left,)
    rights = right.terms if isinstance(right, Extreme) else (right,)
    every_left = not isinstance(left, Extreme) or left.largest
    every_right = not isinstance(right, Extreme) or not right.largest
    strict = sign == "<"

    def grid(outer, inner, atom, join) -> Formula:
        return all_of(join(atom(a, b) for b in inner) for a in outer)

    def atom(a: Term, b: Term) -> Atom:
        return Atom(a - b, strict)

    if every_left:
        return grid(lefts, rights, atom, all_of if every_right else any_of)
    if every_right:
        return grid(rights, lefts, lambda b, a: atom(a, b), any_of)
    return Some(tuple(atom(a, b) for a in lefts for b in rights))


def _pairs(left: Symbolic, right: Symbolic):
    """The components of two values side by side; what is no vector is repeated."""
    if not isinstance(left, Vector):
        return ((left, b) for b in right)
    if not isinstance(right, Vector):
        return ((a, right) for a in left)
    left._same_length(len(right))
    return zip(left, right)
