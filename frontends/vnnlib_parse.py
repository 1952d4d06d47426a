"""Text of VNN-LIB 1.0 to atoms and a disjunctive normal form, in flat arrays.

The text is walked once with compiled expressions and a stack of open lists. Runs of plain atoms such as
`(<= X_0 1.5)`, bare, inside `(assert ...)` or as `(and ...)` groups of an `or`, make up nearly all of a large file;
they are recognised by one expression and split in bulk, so that they cost a fraction of a microsecond per atom. All
else goes through the stack, one list at a time.

Arithmetic on constants is exact, in decimals, and its result is rounded once, to the nearest float64.
"""

from __future__ import annotations

import re
from array import array
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, Inexact
from math import isinf
from typing import NamedTuple, NoReturn

import numpy as np

from absdom.errors import PropertyError
from absdom.frontends.vnnlib_atoms import ASSERT, COMPOUND, CONSTANT, NONE, Atoms, apart
from absdom.frontends.vnnlib_dnf import Conjunction, Disjunction

LONGEST_TERM, MOST_TERMS = 200, 100_000  # in bytes, in number, of arithmetic whose value is kept
WINDOW = 1 << 20  # bytes that a run may span: bounds the tokens that exist at one time

COMPARISON = {b"<=": 0, b">=": 1, b"<": 2, b">": 3}  # odd: greater; 2 and above: strict
EQUALITY = (b"=", b"==")
ARITHMETIC = (b"+", b"-", b"*", b"/")
ZERO, ONE, MINUS = Decimal(0), Decimal(1), Decimal(-1)
Form = dict[int, Decimal]
SUPPORTED = "and, or, <=, >=, <, >, =, ==, +, -, *, /"
COMMANDS = "declare-const, declare-fun, assert"

_NUMBER = rb"[-+]?(?:\d++(?:\.\d*+)?|\.\d++)(?:[eE][-+]?\d++)?"
NUMBER = re.compile(_NUMBER)
GROUP = re.compile(rb"\(\s*+and(?=[\s(])")
_SKIP = rb"(?:\s++|;[^\n]*+)*+"
SKIP = re.compile(_SKIP)
HEAD = re.compile(rb"\(" + _SKIP + rb"([^\s();]*+)" + _SKIP)
CLOSE = re.compile(rb"\)" + _SKIP)
SYMBOL = re.compile(rb"([^\s();]++)" + _SKIP)
# Arithmetic up to three lists deep: the key under which its value is kept.
TERM = re.compile(rb"\([-+*/]\s(?:[^();]++|\((?:[^();]++|\([^();]*+\))*+\))*+\)")
VARIABLE = re.compile(rb"([XY])_(0|[1-9]\d*)")
DECLARATION = re.compile(
    rb"\(\s*(?:declare-const\s+([^\s();]+)|declare-fun\s+([^\s();]+)\s*\(\s*\))\s+([^\s();]+)\s*\)"
)
# SMT-LIB commands that do not change what is asked.
SILENT = re.compile(
    rb"\(\s*(?:set-logic|set-info|set-option|check-sat|get-model|exit)(?:\s+(?:\"[^\"]*\"|[^\s()\";]+))*\s*\)"
)


class Runs(NamedTuple):
    """The expressions for plain atoms: one, a run of them, of `and` groups in an `or`, and of assertions."""

    atom: re.Pattern
    atoms: re.Pattern
    groups: re.Pattern
    asserts: re.Pattern

    @staticmethod
    def of(variable: bytes) -> Runs:
        atom = rb"\(\s*+[<>]=?\s++" + variable + rb"\s++(?:" + variable + rb"|" + _NUMBER + rb")\s*+\)\s*+"
        group = rb"\(\s*+and\s*+(?:" + atom + rb")++\)\s*+"
        assertion = rb"\(\s*+assert\s*+(?:" + atom + rb"|" + group + rb")\)\s*+"
        return Runs(*(re.compile(t) for t in (atom, *(rb"(?:" + r + rb")++" for r in (atom, group, assertion)))))


RUNS = Runs.of(rb"[XY]_\d++")
_PARENTHESES = bytes.maketrans(b"()", b"  ")


class OpenList:
    """An open list of arithmetic or of a comparison: its head and the linear forms seen so far."""

    __slots__ = ("head", "offset", "negated", "items")

    def __init__(self, head: bytes, offset: int):
        self.head = head
        self.negated = False
        self.offset = offset
        self.items: list[dict[int, Decimal]] = []


class Parser:
    """One pass over `text`; afterwards `atoms`, `root` (the conjunction of all assertions), `inputs`, `outputs`.

    A linear form is a dict from code to coefficient, with the constant under CONSTANT. `extra`: further arguments of
    the Property; `vector`: how many columns the rows have before the inputs.
    """

    runs = RUNS
    symbol = SYMBOL
    commands = (b"assert", b"declare-const", b"declare-fun")
    comparisons = (*COMPARISON, *EQUALITY)
    supported = SUPPORTED

    def __init__(self, text: bytes, name: str):
        self.text = text
        self.name = name
        self.extra: dict = {}
        self.atoms = Atoms(self.runs.atom)
        self.root = Conjunction(b"", 0)
        self.codes: dict[bytes, int] = {}
        self.declared: dict[int, int] = {}  # code -> offset of its declaration
        self.terms: dict[bytes, Form] = {}  # by their text: large files repeat theirs
        # 5000 digits hold the constants that people write; to need more is an error, never a silent rounding.
        self.exact = Context(prec=5000, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[Inexact])
        # Enough digits for the quotient to fall on the right side of every number halfway between two float64 ones.
        self.quotient = Context(prec=1200, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])
        self._walk()
        self.inputs, self.outputs = self._sizes()
        self.vector = self.outputs

    def input_name(self, i: int) -> str:
        return f"X_{i}"

    def where(self, offset: int) -> str:
        line = self.text.count(b"\n", 0, offset) + 1
        column = offset - self.text.rfind(b"\n", 0, offset)
        return f"{self.name}:{line}:{column}"

    def fail(self, offset: int, message: str) -> NoReturn:
        raise PropertyError(f"{self.where(offset)}: {message}")

    # -- the walk

    def _walk(self) -> None:
        text, end = self.text, len(self.text)
        stack: list[Conjunction | Disjunction | OpenList] = [self.root]
        position = SKIP.match(text, 0).end()
        if position == end:
            raise PropertyError(f"{self.name}: the file is empty: it declares and asserts nothing")
        while position < end:
            frame = stack[-1]
            byte = text[position]
            if byte == 40:  # (
                past = self._run(frame, position)
                position = SKIP.match(text, past).end() if past else self._open(stack, position)
            elif byte == 41:  # )
                if len(stack) == 1:
                    self.fail(position, "this ')' closes nothing: remove it, or add the '(' that is missing before it")
                self._close(stack, position + 1)
                position = CLOSE.match(text, position).end()
            else:
                symbol = self.symbol.match(text, position)
                if not isinstance(frame, OpenList):
                    self.fail(position, f"{_show(symbol[1])} stands where {_wanted(frame)} is expected")
                frame.items.append(self._operand(symbol[1], position))
                position = symbol.end()
        if len(stack) > 1:
            many = "" if len(stack) == 2 else f" ({len(stack) - 1} are open at the end of the file)"
            self.fail(stack[1].offset, f"this '(' is never closed{many}: add the ')' that is missing")

    def _run(self, frame, position: int) -> int:
        """Take a run of plain atoms that starts here; the position past it, or 0 where there is none."""
        if isinstance(frame, OpenList):
            return 0
        limit = position + WINDOW
        if frame is self.root:
            found = self.runs.asserts.match(self.text, position, limit)
            if found:
                start, count = self._plain(GROUP.sub(b" ", ASSERT.sub(b" ", found[0])), position)
                frame.add_range(start, count)
                return found.end()
            return 0
        if isinstance(frame, Disjunction):
            found = self.runs.groups.match(self.text, position, limit)
            if found:
                pieces = GROUP.split(found[0])
                sizes = np.array([piece.count(b"(") for piece in pieces[1:]], dtype=np.int32)
                start, count = self._plain(b" ".join(pieces), position)
                frame.add_range(start, count, sizes)
                return found.end()
        found = self.runs.atoms.match(self.text, position, limit)
        if not found:
            return 0
        start, count = self._plain(found[0], position)
        if isinstance(frame, Disjunction):
            frame.add_range(start, count, np.ones(count, dtype=np.int32))
        else:
            frame.add_range(start, count)
        return found.end()

    def _plain(self, run: bytes, position: int) -> tuple[int, int]:
        """Append the atoms of a run, which holds three words for each: number of the first one, and how many."""
        words = run.translate(_PARENTHESES).split()
        operators, names, operands = words[0::3], words[1::3], words[2::3]
        del words
        atoms, codes, count = self.atoms, self.codes, len(names)
        start = len(atoms)
        try:
            left = array("i", map(codes.__getitem__, names))
            try:
                value = array("d", map(float, operands))
                right = array("i", [NONE]) * count
            except ValueError:
                value = array("d", [0.0 if w[0] > 57 else float(w) for w in operands])
                right = array("i", [codes[w] if w[0] > 57 else NONE for w in operands])  # 57: the digit 9
        except KeyError:
            self._unknown_after(position)
            raise
        atoms.first.append(start)
        atoms.offset.append(position)
        atoms.op.extend(map(COMPARISON.__getitem__, operators))
        atoms.left.extend(left)
        atoms.right.extend(right)
        atoms.value.extend(value)
        infinite = np.isinf(np.frombuffer(value, dtype=np.float64))
        if infinite.any():
            k = int(np.argmax(infinite))
            self.fail(atoms.place(start + k, self.text), f"the number {_show(operands[k])} is too large for float64")
        self._keep_apart(operands, value, start)
        return start, count

    def _keep_apart(self, words: list[bytes], value: array, start: int) -> None:
        """See `apart`, for the atoms from `start` on; only long words, and those with an exponent, can need it."""
        near = np.frombuffer(value, dtype=np.float64)
        for k in np.flatnonzero(near == np.rint(near)).tolist():
            if (len(words[k]) > 15 or b"e" in words[k].lower()) and words[k][0] <= 57:
                self.atoms.value[start + k] = apart(Decimal(words[k].decode()), value[k])

    # -- lists

    def _open(self, stack: list, position: int) -> int:
        found = HEAD.match(self.text, position)
        head, frame = found[1], stack[-1]
        if frame is self.root:
            return self._command(stack, position, head, found.end())
        if head in self.commands:
            self.fail(
                stack[1].offset, f"this '(' is not closed before the next command, which is at {self.where(position)}"
            )
        if head in (b"and", b"or") or head in self.comparisons:
            if isinstance(frame, OpenList):
                self.fail(position, f"'({_text(head)} ...)' is a formula and stands where a number is expected")
            if head == b"and":
                stack.append(Conjunction(head, position))
            elif head == b"or":
                stack.append(Disjunction(head, position))
            else:
                stack.append(OpenList(head, position))
        elif head in ARITHMETIC:
            if not isinstance(frame, OpenList):
                self.fail(position, f"'({_text(head)} ...)' is a number and stands where a formula is expected")
            found_term = TERM.match(self.text, position)
            known = found_term and self.terms.get(found_term[0])
            if known:
                frame.items.append(known.copy())
                return SKIP.match(self.text, found_term.end()).end()
            stack.append(OpenList(head, position))
        elif not head:
            self.fail(position, f"a list without an operator; supported are {self.supported}")
        else:
            self.fail(position, f"the operator {_show(head)} is not supported; supported are {self.supported}")
        return found.end()

    def _command(self, stack: list, position: int, head: bytes, past: int) -> int:
        if head == b"assert":
            stack.append(Conjunction(head, position))
            return past
        if head in (b"declare-const", b"declare-fun"):
            found = DECLARATION.match(self.text, position)
            if not found:
                self.fail(position, "this is no declaration; write (declare-const X_0 Real)")
            self._declare(found[1] or found[2], found[3], position)
            return SKIP.match(self.text, found.end()).end()
        found = SILENT.match(self.text, position)
        if not found:
            self.fail(position, f"the command {_show(head)} is not supported; supported are {COMMANDS}")
        return SKIP.match(self.text, found.end()).end()

    def _close(self, stack: list, past: int) -> None:
        frame = stack.pop()
        parent = stack[-1]
        if isinstance(frame, OpenList):
            try:
                if frame.head in ARITHMETIC:
                    form = self._number(frame)
                    parent.items.append(form)
                    if past - frame.offset <= LONGEST_TERM and len(self.terms) < MOST_TERMS:
                        self.terms[self.text[frame.offset : past]] = form.copy()
                else:
                    self._add_comparison(frame, parent)
            except Inexact:
                self.fail(frame.offset, "the constants here need more than 5000 digits")
            return
        if frame.head == b"assert" and frame.count != 1:
            self.fail(frame.offset, f"'assert' takes one formula, not {frame.count}")
        if not frame.count:
            self.fail(frame.offset, f"'{_text(frame.head)}' without a formula in it")
        try:
            frame.close_into(parent)
        except PropertyError as error:
            self.fail(frame.offset, str(error))

    # -- declarations

    def _declare(self, name: bytes, sort: bytes, position: int) -> None:
        found = VARIABLE.fullmatch(name)
        if not found:
            self.fail(position, f"the name {_show(name)} is not one of X_0, X_1, ... (inputs), Y_0, Y_1, ... (outputs)")
        if sort != b"Real":
            self.fail(position, f"{_text(name)} is declared as {_show(sort)}; only Real is supported")
        index = int(found[2][:12])
        if index >= 1 << 29:
            self.fail(position, f"the number of {_text(name)} is too large")
        code = 2 * index + (found[1] == b"Y")
        if code in self.declared:
            line = self.where(self.declared[code])
            self.fail(position, f"{_text(name)} is declared twice; the first time is at {line}")
        self.declared[code] = position
        self.codes[name] = code

    def _sizes(self) -> tuple[int, int]:
        sizes = []
        for rest, letter, what in ((0, "X", "input"), (1, "Y", "output")):
            indices = sorted(code // 2 for code in self.declared if code % 2 == rest)
            if not indices:
                raise PropertyError(f"{self.name}: no {what} is declared; write (declare-const {letter}_0 Real)")
            for expected, index in enumerate(indices):
                if index != expected:
                    message = f"{letter}_{index} is declared here, but {letter}_{expected} is not: no gaps"
                    self.fail(self.declared[2 * index + rest], message)
            sizes.append(len(indices))
        return sizes[0], sizes[1]

    # -- linear arithmetic

    def _operand(self, word: bytes, position: int) -> Form:
        code = self.codes.get(word)
        if code is not None:
            return {code: ONE}
        if NUMBER.fullmatch(word):
            if isinf(float(word)):
                self.fail(position, f"the number {_show(word)} is too large for float64")
            return {CONSTANT: Decimal(word.decode())}
        if VARIABLE.fullmatch(word) or word[:1].isalpha() and word.lower() not in (b"nan", b"inf", b"infinity"):
            self._undeclared(word, position)
        self.fail(position, f"{_show(word)} is not a finite decimal number")

    def _unknown_after(self, position: int) -> None:
        """Fail at the first variable behind this place that is not declared."""
        for found in re.compile(rb"[XY]_\d+").finditer(self.text, position):
            if found[0] not in self.codes:
                self._undeclared(found[0], found.start())

    def _undeclared(self, word: bytes, position: int) -> NoReturn:
        self.fail(position, f"the variable {_show(word)} is not declared before this place")

    def _number(self, frame: OpenList) -> Form:
        """The linear form of an arithmetic list."""
        head, items = frame.head, frame.items
        if not items:
            self.fail(frame.offset, f"'{_text(head)}' without operands")
        if head == b"+":
            return self._sum(items)
        if head == b"-":
            kept = 0 if len(items) == 1 else 1
            return self._sum(items[:kept] + [self._scaled(item, MINUS) for item in items[kept:]])
        form = items[0]
        for other in items[1:]:
            if head == b"/":
                if not _is_constant(other):
                    self.fail(frame.offset, "division by a variable is not linear: only constants divide")
                divisor = other.get(CONSTANT, 0)
                if not divisor:
                    self.fail(frame.offset, "division by zero")
                form = {code: self.quotient.divide(c, divisor) for code, c in form.items()}
            elif _is_constant(other):
                form = self._scaled(form, other.get(CONSTANT, ZERO))
            elif _is_constant(form):
                form = self._scaled(other, form.get(CONSTANT, ZERO))
            else:
                form = self._product(form, other, frame.offset)
        return form

    def _product(self, form: Form, other: Form, offset: int) -> Form:
        """The product of two forms that both have variables."""
        self.fail(offset, "a product of two variables is not linear: one factor has to be a constant")

    def _sum(self, items: list[Form]) -> Form:
        """The sum; one of the items is used up. The small go into the largest, so deep nesting costs no squares."""
        total = max(items, key=len)
        for item in items:
            if item is not total:
                for code, c in item.items():
                    total[code] = self.exact.add(total[code], c) if code in total else c
        return total

    def _scaled(self, form: Form, factor: Decimal) -> Form:
        if factor == MINUS:
            return {code: c.copy_negate() for code, c in form.items()}
        return {code: self.exact.multiply(c, factor) for code, c in form.items()}

    def _add_comparison(self, frame: OpenList, parent: Conjunction | Disjunction) -> None:
        parent.add_conjunction(self._compare(frame))

    def _compare(self, frame: OpenList) -> list[int]:
        """Append the atoms of a comparison (several where it is chained or an equality): their numbers."""
        items = frame.items
        if len(items) < 2:
            self.fail(frame.offset, f"'{_text(frame.head)}' takes two operands or more, not {len(items)}")
        numbers = []
        for k in range(len(items) - 1):
            difference = self._sum([items[k], self._scaled(items[k + 1], MINUS)])
            if frame.head in EQUALITY:
                numbers += [
                    self._atom(difference, 0, frame.offset),
                    self._atom(self._scaled(difference, MINUS), 0, frame.offset),
                ]
            else:
                op = COMPARISON[frame.head]
                numbers.append(
                    self._atom(self._scaled(difference, MINUS) if op & 1 else difference, op & 2, frame.offset)
                )
        return numbers

    def _atom(self, form: Form, op: int, offset: int) -> int:
        """Append the atom form <= 0 (op 2: form < 0): its number."""
        atoms, number = self.atoms, len(self.atoms)
        codes = sorted(code for code, c in form.items() if c and code != CONSTANT)
        value, left, right = form.get(CONSTANT, ZERO).copy_negate(), COMPOUND, NONE
        if not codes:
            left = CONSTANT
            value = (value > 0) - (value < 0)  # only its sign counts, and rounding must not lose it
        elif len(codes) == 1 and not codes[0] & 1:
            left, scale = codes[0], form[codes[0]]
            value, op = self.quotient.divide(value, scale), op + (scale < 0)
        else:
            right = len(atoms.begin) - 1
            atoms.codes.extend(codes)
            atoms.coefficients.extend([float(form[code]) for code in codes])
            atoms.begin.append(len(atoms.codes))
            if any(map(isinf, atoms.coefficients[-len(codes) :])):
                self.fail(offset, "a coefficient of this atom is too large for float64")
        near = float(value)
        if isinf(near):
            self.fail(offset, "the constant of this atom is too large for float64")
        atoms.value.append(apart(value, near))
        atoms.op.append(op)
        atoms.left.append(left)
        atoms.right.append(right)
        atoms.first.append(number)
        atoms.offset.append(offset)
        return number


def _is_constant(form: dict) -> bool:
    return all(code == CONSTANT or not c for code, c in form.items())


def _text(word: bytes) -> str:
    return word[:40].decode(errors="replace") + ("..." if len(word) > 40 else "")


def _show(word: bytes) -> str:
    return f"'{_text(word)}'"


def _wanted(frame) -> str:
    return "a command" if frame.head == b"" else "a formula"
