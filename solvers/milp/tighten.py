"""Tighter bounds of what choices depend on, layer by layer, by linear programs: each may decide a choice beforehand.

As in Tjeng et al. 2019, section 4.3: only elements whose cheaper bounds leave a choice open are asked about.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from absdom.domain import Question
from absdom.encoding import Encoding, Objective, Style
from absdom.solvers.lp.backend import open_program
from absdom.types import Clock


def tighten(question: Question, style: Style, solver: str, clock: Clock, threads: int) -> Question:
    """The question with bounds of all elements that the choices of its encoding in `style` look at."""
    if question.narrow is None:
        return question
    wanted = _sources(question.encode(style))
    for node in sorted(wanted)[1:]:  # in front of the first choice everything is affine, and its bounds are exact
        if clock.passed():
            break
        relaxed = question.encode(Style())
        if node not in relaxed.columns_of:  # narrower bounds in front made all that reads it constant
            continue
        columns = relaxed.columns_of[node][wanted[node]]
        columns = np.unique(columns[columns >= 0])
        lower, upper = relaxed.lower.copy(), relaxed.upper.copy()
        before = (upper - lower)[columns].sum()
        _tighten_columns(relaxed, columns, lower, upper, solver, clock, threads)
        after = (upper - lower)[columns].sum()
        question.report(f"bounds of {len(columns):,} elements of %{node} by programs: {before:.4g} -> {after:.4g} wide")
        question = question.narrow(relaxed, lower, upper)
    return question


def _sources(exact: Encoding) -> dict[int, np.ndarray]:
    """node -> its elements that a choice looks at."""
    looked_at = np.zeros(len(exact.lower), dtype=bool)
    for choice in exact.choices:
        looked_at[choice.source] = True
    found, taken = {}, np.zeros(len(exact.lower), dtype=bool)
    for node, columns in sorted(exact.columns_of.items()):
        held = columns >= 0
        mine = held.copy()
        mine[held] = looked_at[columns[held]] & ~taken[columns[held]]
        taken[columns[mine]] = True
        if mine.any() and not np.isin(columns[mine], exact.inputs).all():
            found[node] = np.flatnonzero(mine)
    return found


def up_to(encoding: Encoding, count: int) -> Encoding:
    """The first `count` columns with the rows that speak of no other: what they say alone."""
    matrix = encoding.matrix
    last = np.zeros(matrix.shape[0], dtype=np.int64)
    np.maximum.at(last, np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)), matrix.indices)
    rows = np.flatnonzero(last < count)
    return replace(
        encoding, lower=encoding.lower[:count], upper=encoding.upper[:count],
        matrix=sp.csr_matrix(matrix[rows][:, :count]), low=encoding.low[rows], high=encoding.high[rows],
        slack=encoding.slack[rows], integer=encoding.integer[:count], node=encoding.node[:count],
    )  # fmt: skip


def _tighten_columns(relaxed, columns, lower, upper, solver, clock, threads) -> None:
    """Narrow lower and upper "N" at these columns in place."""
    part = up_to(relaxed, int(columns.max(initial=0)) + 1)

    def work(mine) -> None:
        program = open_program(part, solver)
        for column in mine:
            for sign in (1.0, -1.0):
                if clock.passed():
                    return
                objective = Objective(np.zeros(len(part.lower)))
                objective.slope[column] = sign
                found = program.minimise(objective, limit=clock.left())
                bound = part.safe_bound(objective, found.multipliers)
                if sign > 0:
                    lower[column] = max(lower[column], bound)
                else:
                    upper[column] = min(upper[column], -bound)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, np.array_split(columns, threads)))
