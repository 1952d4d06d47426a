"""Conjunctions and disjunctions of atoms (by number) while they are read, flattened to disjunctive normal form.

A disjunct is a set of numbers of atoms; a DNF is `sizes` (how many atoms each disjunct has) and `numbers` (theirs, one
disjunct behind the other), both int32.
"""

from __future__ import annotations

from array import array

import numpy as np

from absdom.errors import PropertyError

MOST_DISJUNCTS = 5_000_000
MOST_NUMBERS = 50_000_000

Dnf = tuple[np.ndarray, np.ndarray]


def _extend(target: array, values: np.ndarray) -> None:
    target.frombytes(values.astype(np.int32, copy=False).tobytes())


class Conjunction:
    """`and`, `assert` or the whole file: atoms that always hold, and disjunctions (the factors) beside them."""

    __slots__ = ("head", "offset", "negated", "count", "common", "factors")

    def __init__(self, head: bytes, offset: int):
        self.head = head
        self.offset = offset
        self.negated = False  # formulas in it are read as their negations
        self.count = 0  # formulas seen
        self.common = array("i")
        self.factors: list[Dnf] = []

    def add_range(self, start: int, count: int) -> None:
        """Atoms start, start + 1 ... each a formula of its own."""
        self.count += count
        _extend(self.common, np.arange(start, start + count))

    def add_conjunction(self, numbers) -> None:
        self.count += 1
        self.common.extend(numbers)

    def add_factor(self, dnf: Dnf) -> None:
        self.count += 1
        self.factors.append(dnf)

    def close_into(self, parent: Conjunction | Disjunction) -> None:
        if not self.factors:
            parent.add_conjunction(self.common)
        elif isinstance(parent, Conjunction):
            parent.count += 1
            parent.common.extend(self.common)
            parent.factors.extend(self.factors)
        else:
            common = np.frombuffer(self.common, dtype=np.int32)
            parent.add_dnf(expand([(np.array([len(common)], dtype=np.int32), common), *self.factors]))

    def expanded(self) -> Dnf:
        """The factors multiplied out, without what is common to all; one empty disjunct where there are none."""
        return expand(self.factors or [(np.zeros(1, dtype=np.int32), np.zeros(0, dtype=np.int32))])


class Disjunction:
    """`or`: the disjuncts read so far."""

    __slots__ = ("head", "offset", "negated", "sizes", "numbers")

    def __init__(self, head: bytes, offset: int):
        self.head = head
        self.offset = offset
        self.negated = False  # formulas in it are read as their negations
        self.sizes = array("i")
        self.numbers = array("i")

    @property
    def count(self) -> int:
        return len(self.sizes)

    def add_range(self, start: int, count: int, sizes: np.ndarray) -> None:
        """Atoms start, start + 1 ... dealt to disjuncts of these sizes."""
        _extend(self.sizes, sizes)
        _extend(self.numbers, np.arange(start, start + count))

    def add_conjunction(self, numbers) -> None:
        self.sizes.append(len(numbers))
        self.numbers.extend(numbers)

    def add_dnf(self, dnf: Dnf) -> None:
        _extend(self.sizes, dnf[0])
        _extend(self.numbers, dnf[1])

    def close_into(self, parent: Conjunction | Disjunction) -> None:
        dnf = np.frombuffer(self.sizes, dtype=np.int32), np.frombuffer(self.numbers, dtype=np.int32)
        if isinstance(parent, Conjunction):
            parent.add_factor(dnf)
        else:
            parent.add_dnf(dnf)


def expand(factors: list[Dnf]) -> Dnf:
    """The product of DNFs, its disjuncts in the order of nested loops over the factors."""
    disjuncts, numbers = 1, 0
    for sizes, held in factors:
        # Each atom of one side is repeated once for each disjunct of the other side.
        numbers = numbers * len(sizes) + len(held) * disjuncts
        disjuncts *= len(sizes)
        if disjuncts > MOST_DISJUNCTS and len(factors) > 1 or numbers > MOST_NUMBERS and len(factors) > 2:
            raise PropertyError(
                f"multiplied out, the conjunction of these 'or's has {disjuncts:,} disjuncts or more with {numbers:,} "
                f"atoms (at most {MOST_DISJUNCTS:,} and {MOST_NUMBERS:,}): split the property into several files"
            )
    product = factors[0]
    for factor in factors[1:]:
        product = _product(product, factor)
    return product


def _product(a: Dnf, b: Dnf) -> Dnf:
    rows = np.repeat(np.arange(len(a[0])), len(b[0])), np.tile(np.arange(len(b[0])), len(a[0]))
    sizes = a[0][rows[0]] + b[0][rows[1]]
    begin = np.cumsum(sizes, dtype=np.int64) - sizes
    numbers = np.empty(int(sizes.sum(dtype=np.int64)), dtype=np.int32)
    for (part_sizes, part), row in zip((a, b), rows, strict=True):
        part_begin = np.cumsum(part_sizes, dtype=np.int64) - part_sizes
        taken = part_sizes[row]
        numbers[spans(begin, taken)] = part[spans(part_begin[row], taken)]
        begin = begin + taken
    return sizes, numbers


def spans(begin: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """begin[0], begin[0] + 1 ... (sizes[0] of them), begin[1] ... : one flat index array."""
    before = np.cumsum(sizes, dtype=np.int64) - sizes
    return np.repeat(begin - before, sizes) + np.arange(int(sizes.sum(dtype=np.int64)))
