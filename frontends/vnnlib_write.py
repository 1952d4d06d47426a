"""A `Property` as VNN-LIB 1.0 text, which reads back to the same boxes, rows and clauses.

Numbers are written with as many digits as it takes to read the same float64 again. VNN-LIB 1.0 knows boxes only; the
half-spaces of a polytope become further rows of each clause, over inputs.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from absdom.errors import PropertyError
from absdom.input_set import HalfSpaces
from absdom.property import Property
from absdom.registry import register_service


@register_service("write-vnnlib")
def write_vnnlib(prop: Property) -> str:
    """The text. Boxes without a clause are left out, the others are numbered in the order of the clauses.

    Raises PropertyError for a ball or an ellipsoid, and for a row that a reader would round.
    """
    sets, spec = prop.inputs, prop.spec
    if any(not isinstance(part, HalfSpaces) for part in sets.parts):
        raise PropertyError(
            "VNN-LIB 1.0 holds boxes and half-spaces: this property has an l1 ball, an l2 ball or an ellipsoid (an inf "
            "ball is a box)"
        )
    if prop.products or (prop.interface is not None and prop.interface.hidden):
        raise PropertyError("VNN-LIB 1.0 knows no products of variables and no values inside the network")
    lines = [f"; the counterexamples of a property of {sets.size} inputs and {prop.outputs} outputs"]
    lines += [f"(declare-const X_{i} Real)" for i in range(sets.size)]
    lines += [f"(declare-const Y_{j} Real)" for j in range(prop.outputs)]
    used = np.unique(spec.box) if spec.clauses else np.array([0])
    lower, upper = sets.lower[used], sets.upper[used]
    shared = (lower == lower[0]).all(axis=0) & (upper == upper[0]).all(axis=0)
    lines += [f"(assert {atom})" for i in np.flatnonzero(shared) for atom in _bounds(prop, used[0], i)]
    if spec.clauses:
        own, rows = np.flatnonzero(~shared), np.argsort(spec.clause, kind="stable")
        parts = np.split(rows, np.searchsorted(spec.clause[rows], np.arange(1, spec.clauses)))
        lines += ["(assert (or", *(f"  {_clause(prop, q, own, part)}" for q, part in enumerate(parts)), "))"]
    else:
        lines.append("(assert (<= 1 0))  ; there are none")
    return "\n".join(lines) + "\n"


def _bounds(prop: Property, box: int, i: int) -> list[str]:
    sets = prop.inputs
    return [f"(>= X_{i} {_number(sets.lower[box, i])})", f"(<= X_{i} {_number(sets.upper[box, i])})"]


def _clause(prop: Property, clause: int, own: np.ndarray, rows: np.ndarray) -> str:
    """One disjunct: the bounds of the inputs `own`, then the rows."""
    atoms = [atom for i in own for atom in _bounds(prop, prop.spec.box[clause], i)]
    atoms += [_row(prop, r) for r in rows]
    atoms += _half_spaces(prop, prop.spec.box[clause])
    return f"(and {' '.join(atoms)})"


def _half_spaces(prop: Property, box: int) -> list[str]:
    """The half-spaces that narrow down a box, without those that hold everywhere."""
    rows = [row for part in prop.inputs.parts for row in zip(part.normals[box], part.offsets[box], strict=True)]
    named = (([(f"X_{i}", float(g[i])) for i in np.flatnonzero(g)], -float(h)) for g, h in rows)
    return [_atom(terms, d, "<=", "a half-space") for terms, d in named if terms or d > 0]


def _row(prop: Property, row: int) -> str:
    spec = prop.spec
    span = slice(*spec.C.indptr[row : row + 2])
    terms = [(_name(prop, j), float(c)) for j, c in zip(spec.C.indices[span], spec.C.data[span]) if c != 0]
    return _atom(terms, float(spec.d[row]), "<" if spec.strict[row] else "<=", f"row {row}")


def _atom(terms: list[tuple[str, float]], d: float, sign: str, what: str) -> str:
    """sum of c name + d <= 0 (or < 0)."""
    if not terms:
        return f"({sign} {_number(d)} 0)"
    if len(terms) == 1:
        (name, c), mirrored = terms[0], sign.replace("<", ">")
        bound = Fraction(-d) / Fraction(c)
        if name.startswith("X") and Fraction(float(bound)) != bound:
            raise PropertyError(
                f"{what} bounds {name} by {float(bound)!r} up to rounding: no float64 is the exact value, and "
                f"readers of VNN-LIB round it; scale it so that the bound is a float64"
            )
        if abs(c) == 1:
            return f"({sign if c > 0 else mirrored} {name} {_number(-c * d)})"
    if d == 0 and sorted(c for _, c in terms) == [-1.0, 1.0]:
        positive, negative = sorted(terms, key=lambda term: -term[1])
        return f"({sign} {positive[0]} {negative[0]})"
    products = [name if c == 1 else f"(* {_number(c)} {name})" for name, c in terms]
    total = products[0] if len(products) == 1 else f"(+ {' '.join(products)})"
    return f"({sign} {total} {_number(-d)})"


def _name(prop: Property, column: int) -> str:
    return f"Y_{column}" if column < prop.outputs else f"X_{column - prop.outputs}"


def _number(value: float) -> str:
    return repr(float(value) + 0.0)
