"""Text of a VNN-LIB 2 query (version 2.0 or 2.1) of one network to atoms and a disjunctive normal form.

The walk, the arithmetic and the fast path for runs of plain atoms are those of version 1.0. What differs: tensors with
shapes, declared at once; `!=`, which is an `or` of two strict atoms; `not`; and products of variables, each of which
becomes a column of its own. Columns are: outputs, hidden values, products; then the inputs.

Read more freely than the standard has it: numbers with exponents, `=`, `not`, division by constants, integers where the
tensors hold floats.
"""

from __future__ import annotations

import re
from array import array
from math import prod
from typing import NoReturn

import numpy as np

from absdom.errors import PropertyError
from absdom.frontends.vnnlib2_declare import RESERVED, Declaration, skip_version, version_of
from absdom.frontends.vnnlib_atoms import CONSTANT
from absdom.frontends.vnnlib_dnf import Conjunction, Disjunction
from absdom.frontends.vnnlib_parse import ONE, SKIP, Form, OpenList, Parser, Runs
from absdom.interface import Variable

__all__ = ["QueryParser", "version_of"]

MOST_PRODUCTS = 100_000
MOST_FACTORS = 64
OPPOSITE = {b"<=": b">", b">=": b"<", b"<": b">=", b">": b"<=", b"=": b"!=", b"==": b"!=", b"!=": b"=="}
PAIR = np.ones(2, dtype=np.int32)  # the sizes of two disjuncts of one atom each

_ELEMENT = re.compile(rb"([A-Za-z]\w*+)\s*+(?:\[([^\]]*+)\])?+")
_NOT = re.compile(rb"\(\s*+not(?=[\s();])" + SKIP.pattern)
_WORD = re.compile(rb"[A-Za-z]\w*+\[[\d,]*+\]|(?<=\s)[A-Za-z]\w*+(?=[\s)])")
_INDICES = re.compile(rb"\s*+\d{1,18}\s*+(?:,\s*+\d{1,18}\s*+)*+")


class _Unknown(Exception):
    """Why a word names no element of a declared tensor."""


class _Codes(dict):
    """The codes of elements such as `X[0,3]`, worked out when they are met first."""

    def __init__(self):
        super().__init__()
        self.tensors: dict[bytes, tuple[int, int, tuple[int, ...]]] = {}  # name -> first code, step, shape
        self.fixed: set[bytes] = set()

    def __missing__(self, word: bytes) -> int:
        try:
            return self.setdefault(word, self.find(word))  # words of a run repeat
        except _Unknown as error:
            raise KeyError(str(error)) from None

    def find(self, word: bytes) -> int:
        found = _ELEMENT.fullmatch(word)
        name = found[1] if found else word
        if name in self.fixed:
            raise _Unknown(
                f"the input {_text(name)} is initialized: a constant of the model, which no assertion may use"
            )
        if not found or name not in self.tensors:
            raise _Unknown(f"the variable '{_text(name)}' is not declared before this place")
        first, step, shape = self.tensors[name]
        if not shape and found[2] is None:
            return first
        if found[2] is None or not shape or not _INDICES.fullmatch(found[2]):
            wants = f"{len(shape)} indices, as in {_text(name)}[{','.join('0' * len(shape))}]" if shape else "no index"
            raise _Unknown(f"'{_text(word)}': the tensor {_text(name)} takes {wants}")
        place = [int(i) for i in found[2].split(b",")]
        if len(place) != len(shape):
            raise _Unknown(f"'{_text(word)}': the tensor {_text(name)} takes {len(shape)} indices, not {len(place)}")
        flat = 0
        for axis, (i, size) in enumerate(zip(place, shape, strict=True)):
            if i >= size:
                raise _Unknown(f"'{_text(word)}': index {i} lies outside axis {axis}, which has {size} elements")
            flat = flat * size + i
        return first + step * flat


class QueryParser(Parser):
    """One pass over the text of a query; the attributes are those of `Parser`."""

    runs = Runs.of(rb"[A-Za-z]\w*+(?:\[[\d,]++\])?+")
    symbol = re.compile(rb"([^\s();\[\]]++(?:\s*+\[[^\]();\n]*+\])?+|[^\s();]++)" + SKIP.pattern)
    commands = (b"assert", b"declare-network")
    comparisons = tuple(OPPOSITE)
    supported = "and, or, not, <=, >=, <, >, ==, !=, +, -, *"

    def __init__(self, text: bytes, name: str):
        self.declaration: Declaration | None = None
        self.products: dict[tuple[int, ...], int] = {}  # sorted codes of the factors -> code
        self.factors: dict[int, tuple[int, ...]] = {}  # and back
        self.dtypes: list[tuple[int, int, str]] = []  # range of codes and type, if there are several types
        self.asserted = False
        super().__init__(text, name)
        products = self._number_products()
        self.vector = self.outputs + len(products)
        self.extra = {"products": products, "interface": self.declaration.interface}

    def input_name(self, i: int) -> str:
        for variable in self.declaration.interface.of_kind("input"):
            if i < variable.size:
                index = ",".join(map(str, np.unravel_index(i, variable.shape))) if variable.shape else ""
                return f"{variable.name}[{index}]" if variable.shape else variable.name
            i -= variable.size
        raise IndexError(i)

    def _walk(self) -> None:
        self.codes = _Codes()
        super()._walk()
        if self.declaration is None:
            raise PropertyError(f"{self.name}: no network is declared; write (declare-network f ...)")
        if not self.asserted:
            raise PropertyError(f"{self.name}: nothing is asserted; write (assert ...) behind the network")

    def _sizes(self) -> tuple[int, int]:
        interface = self.declaration.interface
        inputs = sum(v.size for v in interface.of_kind("input"))
        return inputs, sum(v.size for v in interface.variables) - inputs

    # -- lists

    def _run(self, frame, position: int) -> int:
        if frame.negated or self.dtypes or self.declaration is None:
            return 0
        past = super()._run(frame, position)
        self.asserted = self.asserted or past > 0
        return past

    def _command(self, stack: list, position: int, head: bytes, past: int) -> int:
        if head == b"vnnlib-version" and position == SKIP.match(self.text, 0).end():
            return skip_version(self.text, position)
        if head == b"assert":
            if self.declaration is None:
                self.fail(position, "assertions come behind the declaration of the network")
            self.asserted = True
            return super()._command(stack, position, head, past)
        if head != b"declare-network":
            self.fail(position, f"the command '{_text(head)}' is not supported; supported are declare-network, assert")
        if self.declaration is not None:
            if self.asserted:
                self.fail(position, "networks are declared before the assertions")
            self.fail(position, "a second network is declared here: one network is supported for now")
        self.declaration = Declaration(self.text, position, self.fail)
        self._number_elements(self.declaration.interface.variables)
        self.codes.fixed = self.declaration.fixed
        return self.declaration.end

    def _number_elements(self, variables: tuple[Variable, ...]) -> None:
        """Codes: even ones for inputs, odd ones for outputs and, behind them, hidden values."""
        first = {"input": 0, "output": 1}
        first["hidden"] = 1 + 2 * sum(v.size for v in variables if v.kind == "output")
        several = len({v.dtype for v in variables}) > 1
        for v in variables:
            code = first[v.kind]
            self.codes.tensors[v.name.encode()] = code, 2, v.shape
            first[v.kind] += 2 * v.size
            if several:
                self.dtypes.append((code, first[v.kind], v.dtype))

    def _number_products(self) -> tuple[tuple[int, ...], ...]:
        """The products that atoms have after all (others cancelled), renumbered, as places of their factors."""
        codes = np.array(self.atoms.codes, dtype=np.int32)
        mine = (codes % 2 == 1) & (codes >= 2 * self.outputs + 1)
        used, position = np.unique(codes[mine], return_inverse=True)
        codes[mine] = 2 * (self.outputs + position) + 1
        self.atoms.codes = array("i", codes.tobytes())
        return tuple(tuple(c // 2 + (0 if c % 2 else self.outputs) for c in self.factors[k]) for k in used.tolist())

    def _open(self, stack: list, position: int) -> int:
        frame, depth = stack[-1], len(stack)
        negation = _NOT.match(self.text, position)
        if negation and frame is not self.root:
            if isinstance(frame, OpenList):
                self.fail(position, "'(not ...)' is a formula and stands where a number is expected")
            stack.append(Conjunction(b"not", position))
            stack[-1].negated = not frame.negated
            return negation.end()
        past = super()._open(stack, position)
        if len(stack) > depth and frame.negated:
            opened = stack[-1]
            if isinstance(opened, Conjunction | Disjunction):  # not (a and b) is (not a) or (not b)
                swapped = Disjunction if isinstance(opened, Conjunction) else Conjunction
                stack[-1] = swapped(opened.head, position)
            stack[-1].negated = True
        return past

    def _close(self, stack: list, past: int) -> None:
        frame = stack[-1]
        if frame.head == b"not" and frame.count != 1:
            self.fail(frame.offset, f"'not' takes one formula, not {frame.count}")
        super()._close(stack, past)

    # -- comparisons

    def _add_comparison(self, frame: OpenList, parent: Conjunction | Disjunction) -> None:
        if len(frame.items) != 2:
            self.fail(frame.offset, f"'{_text(frame.head)}' takes two operands, not {len(frame.items)}")
        self._check_dtypes(frame)
        if frame.negated:
            frame.head = OPPOSITE[frame.head]
        if frame.head != b"!=":
            parent.add_conjunction(self._compare(frame))
            return
        numbers = []
        for head in (b"<", b">"):
            strict = OpenList(head, frame.offset)
            strict.items = [dict(form) for form in frame.items]
            numbers += self._compare(strict)
        pair = PAIR, np.array(numbers, dtype=np.int32)
        if isinstance(parent, Conjunction):
            parent.add_factor(pair)
        else:
            parent.add_dnf(pair)

    def _check_dtypes(self, frame: OpenList) -> None:
        if not self.dtypes:
            return
        codes = {c for form in frame.items for c in form if c != CONSTANT}
        codes = {f for c in codes for f in self.factors.get(c, (c,))}
        found = {t for c in codes for a, b, t in self.dtypes if a <= c < b and (c - a) % 2 == 0}
        if len(found) > 1:
            self.fail(frame.offset, f"tensors of several element types ({', '.join(sorted(found))}) in one comparison")

    # -- arithmetic

    def _operand(self, word: bytes, position: int) -> Form:
        if word[0] > 57:  # no digit, sign or point
            if word in RESERVED:
                self.fail(position, f"'{_text(word)}' stands where a number is expected")
            try:
                return {self.codes.find(b"".join(word.split())): ONE}
            except _Unknown as error:
                self.fail(position, str(error))
        return super()._operand(word, position)

    def _unknown_after(self, position: int) -> None:
        for found in _WORD.finditer(self.text, position):
            before = self.text[max(0, found.start() - 100) : found.start()].rstrip()
            if not before.endswith(b"("):  # no operator
                try:
                    self.codes.find(found[0])
                except _Unknown as error:
                    self.fail(found.start(), str(error))

    def _undeclared(self, word: bytes, position: int) -> NoReturn:
        self.fail(position, f"the variable '{_text(word)}' is not declared before this place")

    def _product(self, form: Form, other: Form, offset: int) -> Form:
        """The product of two polynomials, multiplied out."""
        if len(form) * len(other) > MOST_PRODUCTS:
            self.fail(offset, f"multiplied out, this product has more than {MOST_PRODUCTS:,} terms")
        out: Form = {}
        for a, x in form.items():
            for b, y in other.items():
                code = self._monomial(a, b, offset)
                value = self.exact.multiply(x, y)
                out[code] = self.exact.add(out[code], value) if code in out else value
        return out

    def _monomial(self, a: int, b: int, offset: int) -> int:
        """The code of the product of what two codes stand for."""
        if a == CONSTANT or b == CONSTANT:
            return b if a == CONSTANT else a
        product = tuple(sorted((*self.factors.get(a, (a,)), *self.factors.get(b, (b,)))))
        if product not in self.products:
            if len(self.products) >= MOST_PRODUCTS:
                self.fail(offset, f"the query has more than {MOST_PRODUCTS:,} products of variables")
            if len(product) > MOST_FACTORS:
                self.fail(offset, f"a product of more than {MOST_FACTORS} variables")
            variables = self.declaration.interface.variables
            before = sum(prod(v.shape) for v in variables if v.kind != "input")
            code = 2 * (before + len(self.products)) + 1
            self.products[product] = code
            self.factors[code] = product
        return self.products[product]


def _text(word: bytes) -> str:
    return word[:40].decode(errors="replace") + ("..." if len(word) > 40 else "")
