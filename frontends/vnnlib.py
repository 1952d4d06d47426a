"""The VNN-LIB front end: the text of a property in version 1.0 or 2, gzipped or not, to a `Property`.

The assertions describe counterexamples. They are conjoined and flattened to disjunctive normal form; each disjunct
becomes a clause: a box, from its atoms over one single input, and rows, from all others. A strict atom over one input
closes the box and is also kept as a row, so that witnesses are checked exactly. Disjuncts with an empty box, or with
an atom such as 1 <= 0, have no counterexample and are dropped.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from math import inf
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from absdom.errors import PropertyError
from absdom.frontends import vnnlib2_answers, vnnlib_write  # noqa: F401  (they register their services)
from absdom.frontends.vnnlib2_parse import QueryParser, version_of
from absdom.frontends.vnnlib_atoms import COMPOUND, CONSTANT, NONE
from absdom.frontends.vnnlib_dnf import Dnf, spans
from absdom.frontends.vnnlib_parse import Parser
from absdom.property import InputSet, Property, Spec
from absdom.registry import register_service

CHUNK = 1 << 21  # numbers in the boxes that are worked on at one time


@register_service("vnnlib")
def read_vnnlib(
    path: str | Path | None = None,
    *,
    data: bytes | None = None,
    name: str | None = None,
    inputs: int | None = None,
    outputs: int | None = None,
) -> Property:
    """Read a VNN-LIB property from a file (.vnnlib, gzipped or not) or from bytes.

    A header `(vnnlib-version <2.0>)` (or 2.1) says which version it is; text without a header is of version 1.0.

    inputs, outputs: flat sizes of the network; where given, a property of other sizes is an error. `name` stands for
    the file in messages. Raises PropertyError, with line and column where there are any.
    """
    if (path is None) == (data is None):
        raise PropertyError("read_vnnlib takes either a path or data")
    name = name or (str(path) if path is not None else "property")
    if data is None:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise PropertyError(f"{name}: cannot be read: {error.strerror or error}") from error
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise PropertyError(f"{name}: the gzip file is damaged: {error}") from error
    parser = (Parser if version_of(data, name) == (1, 0) else QueryParser)(data, name)
    for what, there, wanted in (("inputs", parser.inputs, inputs), ("outputs", parser.outputs, outputs)):
        if wanted is not None and there != wanted:
            raise PropertyError(f"{name}: the property declares {there} {what}, but the network has {wanted}")
    try:
        return _Builder(parser).build()
    except MemoryError as error:
        raise PropertyError(f"{name}: the boxes of this property do not fit into memory") from error


class _Builder:
    """Atoms and DNF to boxes, clauses and rows, in whole arrays. n inputs, m outputs, D disjuncts, Q clauses."""

    def __init__(self, parser: Parser):
        self.parser = parser
        self.n, self.m = parser.inputs, parser.vector
        atoms = parser.atoms
        op = np.frombuffer(atoms.op, dtype=np.int8)
        self.left = np.frombuffer(atoms.left, dtype=np.int32)
        self.right = np.frombuffer(atoms.right, dtype=np.int32)
        self.value = np.frombuffer(atoms.value, dtype=np.float64)
        self.greater = (op & 1).astype(bool)
        self.strict = op >= 2
        # An atom such as X_0 <= X_0 has no variable either; the value of such a one is 0.
        constant = (self.left == CONSTANT) | (self.left == self.right)
        self.false = constant & np.where(self.strict, self.value <= 0, self.value < 0)
        self.boxed = (self.left >= 0) & (self.left % 2 == 0) & (self.right == NONE)
        self.row = ~constant & (~self.boxed | self.strict)

    def build(self) -> Property:
        common = np.frombuffer(self.parser.root.common, dtype=np.int32)
        lower, upper = self._global_box(common)
        try:
            dnf = self.parser.root.expanded()
        except PropertyError as error:
            raise PropertyError(f"{self.parser.name}: {error}") from error
        alive = self._possible(dnf, bool(self.false[common].any()))
        inputs, box = self._boxes(dnf, alive, lower, upper)
        spec, on_inputs = self._spec(dnf, alive, box[alive], common[self.row[common]])
        return Property(inputs, spec, on_inputs, **self.parser.extra)

    def _global_box(self, common: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The box "n" of the atoms outside of any `or`; infinite where they do not bound."""
        lower, upper = np.full((1, self.n), -inf), np.full((1, self.n), inf)
        self._tighten(lower, upper, np.zeros(len(common), dtype=np.int64), common)
        crossed = lower[0] > upper[0]
        if crossed.any():
            i = int(np.argmax(crossed))
            places = []
            for bound, greater in ((lower[0, i], True), (upper[0, i], False)):
                of_input = common[self.boxed[common] & (self.left[common] == 2 * i)]
                atom = of_input[(self.greater[of_input] == greater) & (self.value[of_input] == bound)][0]
                places.append(self.parser.where(self.parser.atoms.place(int(atom), self.parser.text)))
            raise PropertyError(
                f"{places[0]}: input {self.parser.input_name(i)}: the lower bound {float(lower[0, i])!r} is above the "
                f"upper bound {float(upper[0, i])!r} at {places[1]}"
            )
        return lower[0], upper[0]

    def _tighten(self, lower: np.ndarray, upper: np.ndarray, disjunct: np.ndarray, atoms: np.ndarray) -> None:
        """Meet the boxes "k n" with the boxed ones among these atoms, each of a disjunct in 0 ... k - 1; in place."""
        for bounds, greater, meet in ((lower, True, np.maximum), (upper, False, np.minimum)):
            mine = self.boxed[atoms] & (self.greater[atoms] == greater)
            chosen = atoms[mine]
            place = disjunct[mine].astype(np.int64) * self.n + self.left[chosen] // 2
            meet.at(bounds.reshape(-1), place, self.value[chosen] + 0.0)  # + 0.0: equal boxes have equal bytes

    def _possible(self, dnf: Dnf, false: bool) -> np.ndarray:
        """Bool "D": the disjuncts without an atom that is false everywhere."""
        sizes, numbers = dnf
        if false:
            return np.zeros(len(sizes), dtype=bool)
        alive = np.ones(len(sizes), dtype=bool)
        bad = np.flatnonzero(self.false[numbers])
        if len(bad):
            alive[np.searchsorted(np.cumsum(sizes, dtype=np.int64), bad, side="right")] = False
        return alive

    def _boxes(self, dnf: Dnf, alive: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> tuple[InputSet, np.ndarray]:
        """The distinct boxes, and the box "D" of each disjunct; disjuncts with an empty one leave `alive`."""
        sizes, numbers = dnf
        ends = np.cumsum(sizes, dtype=np.int64)
        box = np.full(len(sizes), -1, dtype=np.int64)
        # Disjuncts without a bound of their own, often all of them, share the global box.
        bounded = np.zeros(len(numbers) + 1, dtype=np.int64)
        np.cumsum(self.boxed[numbers], out=bounded[1:])
        own = alive & (bounded[ends] > bounded[ends - sizes])
        del bounded
        # Untouched rows of these cost no memory.
        lowers, uppers = (np.empty((int(own.sum()) + 1, self.n)) for _ in range(2))
        known: dict[bytes, int] = {}
        if (alive & ~own).any():
            self._demand_bounds(lower, upper, None)
            box[alive & ~own] = self._store(known, lowers, uppers, lower, upper)
        own = np.flatnonzero(own)
        step = max(1, CHUNK // self.n)
        for first in range(0, len(own), step):
            part = own[first : first + step]
            low, high = np.tile(lower, (len(part), 1)), np.tile(upper, (len(part), 1))
            begin, end = ends[part[0]] - sizes[part[0]], ends[part[-1]]
            here = np.zeros(part[-1] - part[0] + 1, dtype=bool)
            here[part - part[0]] = True
            span = slice(part[0], part[-1] + 1)
            atoms = numbers[begin:end][np.repeat(here, sizes[span])]
            self._tighten(low, high, np.repeat(np.arange(len(part)), sizes[part]), atoms)
            full = (low <= high).all(axis=1)
            alive[part[~full]] = False
            for k in np.flatnonzero(full):
                box[part[k]] = self._store(known, lowers, uppers, low[k], high[k], int(part[k]))
        count = len(known)
        if not count and np.isfinite(lower).all() and np.isfinite(upper).all():
            return InputSet.box(lower, upper), box  # no clause is left; the box still says where the question lay
        return InputSet(lowers[:count], uppers[:count]), box

    def _store(self, known: dict, lowers, uppers, lower, upper, disjunct: int | None = None) -> int:
        """The number of this box, a new one if it has not been seen."""
        digest = hashlib.blake2b(lower.tobytes(), digest_size=16)
        digest.update(upper.tobytes())
        fresh = len(known)
        number = known.setdefault(digest.digest(), fresh)
        if number == fresh:
            self._demand_bounds(lower, upper, disjunct)
            lowers[number], uppers[number] = lower, upper
        return number

    def _demand_bounds(self, lower: np.ndarray, upper: np.ndarray, disjunct: int | None) -> None:
        missing = np.isinf(lower) | np.isinf(upper)
        if not missing.any():
            return
        i, many = int(np.argmax(missing)), int(missing.sum())
        side = "lower" if np.isinf(lower[i]) else "upper"
        side = "lower and no upper" if np.isinf(lower[i]) and np.isinf(upper[i]) else side
        place = "" if disjunct is None else f" in disjunct {disjunct + 1}"
        more = "" if many == 1 else f" ({many} inputs lack one)"
        raise PropertyError(
            f"{self.parser.name}: input {self.parser.input_name(i)} has no {side} bound{place}{more}: "
            f"every input needs both"
        )

    def _spec(self, dnf: Dnf, alive: np.ndarray, box: np.ndarray, common: np.ndarray) -> tuple[Spec, bool]:
        """The rows of the clauses (box "Q"): the common ones, then a disjunct's own; and whether inputs are in them."""
        sizes, numbers = dnf
        clauses = len(box)
        own = np.flatnonzero(self.row[numbers])
        disjunct = np.searchsorted(np.cumsum(sizes, dtype=np.int64), own, side="right")
        own, disjunct = own[alive[disjunct]], disjunct[alive[disjunct]]
        number_of = np.cumsum(alive) - 1
        clause = np.concatenate([np.repeat(np.arange(clauses), len(common)), number_of[disjunct]])
        atom = np.concatenate([np.tile(common, clauses), numbers[own]])
        bare = np.setdiff1d(np.arange(clauses), clause)
        # A clause without rows holds in all of its box: one row that is never positive stands for it.
        clause, atom = np.concatenate([clause, bare]), np.concatenate([atom, np.full(len(bare), -1)])
        order = np.argsort(clause, kind="stable")
        clause, atom = clause[order].astype(np.int64), atom[order]
        used, position = np.unique(atom, return_inverse=True)
        matrix, d, strict, on_inputs = self._rows(used)
        return Spec(matrix[position], d[position], strict[position], clause, box), on_inputs

    def _rows(self, atoms: np.ndarray) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray, bool]:
        """One row for each of these atoms (-1: the row that is never positive): C, d, strict, inputs are in them."""
        real = atoms >= 0
        sign = np.where(real & ~self.greater[atoms], 1.0, -1.0) if len(self.left) else np.full(len(atoms), -1.0)
        rows, codes, values = [], [], []
        for operand, factor in ((self.left, 1.0), (self.right, -1.0)):
            at = np.flatnonzero(real)
            at = at[(operand[atoms[at]] >= 0) & (self.left[atoms[at]] >= 0)]
            rows.append(at)
            codes.append(operand[atoms[at]])
            values.append(factor * sign[at])
        at = np.flatnonzero(real)
        at = at[self.left[atoms[at]] == COMPOUND]
        held = self.parser.atoms
        number, begin = self.right[atoms[at]], np.frombuffer(held.begin, dtype=np.int32)
        terms = begin[number + 1] - begin[number]
        of_terms = spans(begin[number], terms)
        rows.append(np.repeat(at, terms))
        codes.append(np.frombuffer(held.codes, dtype=np.int32)[of_terms])
        values.append(np.frombuffer(held.coefficients, dtype=np.float64)[of_terms])
        row, code, value = np.concatenate(rows), np.concatenate(codes), np.concatenate(values)
        on_inputs = bool((code % 2 == 0).any())
        column = code // 2 + np.where(code % 2 == 0, self.m, 0)
        shape = (len(atoms), self.m + (self.n if on_inputs else 0))
        matrix = sp.csr_matrix((value, (row, column)), shape=shape, dtype=np.float64)
        d, strict = np.full(len(atoms), -1.0), np.zeros(len(atoms), dtype=bool)
        d[real] = -sign[real] * self.value[atoms[real]] + 0.0
        strict[real] = self.strict[atoms[real]]
        return matrix, d, strict, on_inputs
