"""Encodings as PuLP problems, and as .lp and .mps files, for any solver outside."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from absdom.encoding import INPUTS, Encoding, Objective
from absdom.errors import UsageError
from absdom.registry import register_service


def import_pulp(what: str):
    """The module pulp, or a UsageError that says which extra brings it."""
    try:
        import pulp
    except ImportError:
        raise UsageError(
            f"{what} needs the package pulp, which is not installed: pip install 'absdom[solvers]'"
        ) from None
    return pulp


def column_names(encoding: Encoding) -> list[str]:
    """Readable names "N": inputs x0, x1, ...; element 3 of node 5 n5_3; binaries of node 5 b5_0, ...; others v7."""
    names = [f"v{k}" for k in range(len(encoding.lower))]
    for node, columns in sorted(encoding.columns_of.items(), reverse=True):  # the first node of a column names it
        for element, column in enumerate(columns):
            if column >= 0:
                names[column] = f"n{node}_{element}"
    for element, column in enumerate(encoding.inputs):
        names[column] = f"x{element}"
    count: dict[int, int] = {}
    for column in np.flatnonzero(encoding.integer):
        node = int(encoding.node[column])
        count[node] = count.get(node, -1) + 1
        names[column] = f"b{'' if node == INPUTS else node}_{count[node]}"
    return names


def to_pulp(encoding: Encoding, objective: Objective, name: str = "absdom"):
    """(LpProblem that minimises the objective over the encoding, its variables "N").

    The objective's constant is the coefficient of a variable `one`, fixed at 1, so that every format keeps it.
    Quadratic forms and the rows' slack are left out.
    """
    pulp = import_pulp("a program in PuLP")
    problem = pulp.LpProblem(name, pulp.LpMinimize)
    kinds = np.where(encoding.integer, pulp.LpInteger, pulp.LpContinuous)
    variables = [
        pulp.LpVariable(n, low, high, str(kind))
        for n, low, high, kind in zip(
            column_names(encoding), *(_bounds(t) for t in (encoding.lower, encoding.upper)), kinds, strict=True
        )
    ]
    terms = [(variables[k], float(objective.slope[k])) for k in np.flatnonzero(objective.slope)]
    if objective.constant or not terms:
        terms.append((pulp.LpVariable("one", 1, 1), float(objective.constant)))
    problem += pulp.LpAffineExpression(terms)
    problem.addVariables(variables)
    matrix = encoding.matrix
    for row, (low, high) in enumerate(zip(encoding.low.tolist(), encoding.high.tolist(), strict=True)):
        entries = slice(matrix.indptr[row], matrix.indptr[row + 1])
        parts = zip(matrix.indices[entries], matrix.data[entries].tolist(), strict=True)
        terms = [(variables[k], value) for k, value in parts]
        if low == high:
            sides = [("", pulp.LpConstraintEQ, low)]
        else:
            sides = [("_low", pulp.LpConstraintGE, low), ("_high", pulp.LpConstraintLE, high)]
        for ending, sense, side in sides:
            if np.isfinite(side) and terms:
                problem += pulp.LpConstraint(pulp.LpAffineExpression(terms), sense, f"r{row}{ending}", side)
    return problem, variables


def _bounds(values: np.ndarray) -> list[float | None]:
    return [v if np.isfinite(v) else None for v in values.tolist()]


@register_service("export-program")
def export(encoding: Encoding, objective: Objective, path) -> None:
    """Write the program to a .lp or .mps file (numbers with 12 digits). Raises UsageError for another ending."""
    path = Path(path)
    if path.suffix not in (".lp", ".mps"):
        raise UsageError(f"{path}: programs are written as .lp or .mps")
    problem, _ = to_pulp(encoding, objective)
    if path.suffix == ".lp":
        problem.writeLP(str(path))
    else:
        problem.writeMPS(str(path))
