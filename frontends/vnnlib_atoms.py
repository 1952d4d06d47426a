"""Atoms of a VNN-LIB text, in flat arrays, and the numbers in them."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from decimal import Decimal
from fractions import Fraction
from math import inf, nextafter

CONSTANT, COMPOUND, NONE = -1, -2, -1  # in Atoms.left, Atoms.left, Atoms.right
WHOLE = 2**52  # above, every float64 number is whole
ASSERT = re.compile(rb"\(\s*+assert(?=[\s(])")


class Atoms:
    """Flat arrays of atoms `left op right + value`.

    Variables are codes: X_i is 2 i, Y_j is 2 j + 1. left: a code, CONSTANT (the atom is 0 op value) or COMPOUND (any
    other sum); right: a code or NONE. The terms of compound number k, which `right` holds, are those of `codes` and
    `coefficients` from begin[k] to begin[k + 1].
    """

    def __init__(self, pattern: re.Pattern):
        self.pattern = pattern  # of a plain atom
        self.op = array("b")
        self.left = array("i")
        self.right = array("i")
        self.value = array("d")
        self.begin = array("i", [0])
        self.codes = array("i")
        self.coefficients = array("d")
        self.first = array("q")  # number of the first atom of each run ...
        self.offset = array("q")  # ... and where in the text it starts

    def __len__(self) -> int:
        return len(self.op)

    def place(self, atom: int, text: bytes) -> int:
        """Offset in the text of this atom."""
        run = bisect_right(self.first, atom) - 1
        offset = self.offset[run]
        if atom > self.first[run] or ASSERT.match(text, offset):
            for k, found in enumerate(self.pattern.finditer(text, offset), self.first[run]):
                if k == atom:
                    return found.start()
        return offset


def apart(exact: Decimal | Fraction, near: float) -> float:
    """`near`, or the float64 beside it where a number that is not whole was rounded to a whole one.

    So whole numbers below WHOLE are exact in a property; all others are taken to be rounded.
    """
    if abs(near) < WHOLE and near.is_integer() and (whole := type(exact)(near)) != exact:
        return nextafter(near, inf if exact > whole else -inf)
    return near
