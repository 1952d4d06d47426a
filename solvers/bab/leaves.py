"""Leaves of a branch and bound, in arrays: one row per leaf, nothing per leaf in Python objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from absdom.property import Spec


@dataclass(frozen=True, eq=False)
class ClauseTable:
    """The clauses of a spec by box: slot k of box b is clause `clause[b, k]` (-1: none)."""

    clause: np.ndarray  # int "B slots"
    first: np.ndarray  # "Q": first row of each clause
    count: np.ndarray  # "Q": its number of rows

    @staticmethod
    def of(spec: Spec, boxes: int) -> ClauseTable:
        order = np.argsort(spec.box, kind="stable")
        sizes = np.bincount(spec.box, minlength=boxes)
        slot = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        table = np.full((boxes, max(1, sizes.max(initial=0))), -1)
        table[spec.box[order], slot] = order
        count = np.bincount(spec.clause, minlength=spec.clauses)
        return ClauseTable(table, np.cumsum(count) - count, count)

    def open_mask(self, open_clauses: np.ndarray) -> np.ndarray:
        """Bool "B slots": where an open clause sits."""
        return np.isin(self.clause, open_clauses) & (self.clause >= 0)

    def rows(self, box: np.ndarray, open_: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For leaves with these boxes and open masks: (leaf, slot, row) of every row that is to be bounded."""
        leaf, slot = np.nonzero(open_)
        clause = self.clause[box[leaf], slot]
        count = self.count[clause]
        offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        row = np.repeat(self.first[clause], count) + offset
        return np.repeat(leaf, count), np.repeat(slot, count), row


def per_slot(leaf, slot, value, shape, reduce=np.maximum) -> np.ndarray:
    """Reduce row values to one per (leaf, slot); -inf where there is no row."""
    out = np.full(shape, -np.inf)
    reduce.at(out, (leaf, slot), value)
    return out
