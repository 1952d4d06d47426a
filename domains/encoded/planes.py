"""Planes below and above a node's elements, by pulling +-e_k through its rule in the linear domain."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from absdom import registry
from absdom.arithmetic import numbers
from absdom.domains.encoded.common import one_hots, settings, sparse
from absdom.domains.linear import Linear
from absdom.encoding import gamma


def _variants(place) -> list:
    """(place, relaxation) at several values of the knobs; the rule of the linear domain comes with them."""
    dual, _ = registry.find_rule(Linear, type(place.op))
    if dual is None:
        return []
    recipe = Linear()
    starts = {name: start.value for name, start in dual.knobs(place, recipe).items()}
    places = [place._replace(knobs=knobs) for knobs in settings(tuple(starts), starts)]
    return [(dual, here, dual.relax(here, recipe)) for here in places]


def plane_rows(place) -> int:
    """At least as many rows per element as `add_planes` adds."""
    dual, _ = registry.find_rule(Linear, type(place.op))
    if dual is None:
        return 0
    starts = {name: start.value[:0] for name, start in dual.knobs(place, Linear()).items()}
    return 2 * len(settings(tuple(starts), starts))


def add_planes(place, builder, columns, wanted: np.ndarray, out: np.ndarray) -> None:
    """Rows for the `wanted` elements, whose columns are `out`; rounding is in their constants, or in their slack."""
    at, positions = place.at, np.flatnonzero(wanted)
    kept = [(columns[i], numbers(place.inputs[i].magnitude())) for i, v in enumerate(at.varying) if v]
    variants, starts = _variants(place), np.cumsum([0] + [len(c) for c, _ in kept])
    for sign in (1.0, -1.0):
        for start, hot in one_hots(at.output.shape, positions, sign, starts[-1]):
            own, found = out[positions[start : start + hot.count]], []
            for dual, here, relaxation in variants:
                parts, term = dual.pull(hot, here, relaxation)
                term = np.zeros(hot.count) if term is None else numbers(term)
                entries = [(*sparse(p), first) for p, first in zip(parts, starts[:-1], strict=True) if p is not None]
                if not entries:
                    entries = [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0), 0)]
                row, element, value = (
                    np.concatenate(t) for t in zip(*((r, e + first, v) for r, e, v, first in entries), strict=True)
                )
                fine = np.isfinite(term)
                fine[row[~np.isfinite(value)]] = False
                used = fine[row]
                plane = sp.csr_matrix((value[used], (row[used], element[used])), shape=(hot.count, starts[-1]))
                new = fine.copy()
                for other, constant in found:
                    new &= (constant != term) | (np.diff((plane != other).indptr) > 0)
                found.append((plane, np.where(fine, term, np.nan)))
                _add(builder, plane[new], term[new], own[new], sign, kept)


def _add(builder, plane: sp.csr_matrix, term: np.ndarray, own: np.ndarray, sign: float, kept: list) -> None:
    """sign y >= <plane, inputs> + term."""
    plane = plane.tocoo()
    column, size = (np.concatenate(t) for t in zip(*kept, strict=True))
    k, count = np.arange(len(own)), np.bincount(plane.row, minlength=len(own))
    # Elements may share a column; their coefficients are then summed.
    slack = np.bincount(plane.row, np.abs(plane.data) * size[plane.col], minlength=len(own)) * gamma(count)
    builder.add_rows(
        np.concatenate([k, plane.row]), np.concatenate([own, column[plane.col]]),
        np.concatenate([np.full(len(k), sign), -plane.data]), term, np.full(len(k), np.inf), slack,
    )  # fmt: skip
