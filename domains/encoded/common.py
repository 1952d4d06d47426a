"""What the rules of encodings share: tensors as flat numbers, rows as sparse entries, values of free slopes."""

from __future__ import annotations

import numpy as np
import torch

from absdom import registry
from absdom.arithmetic import numbers
from absdom.domains.linear import Linear
from absdom.rows import Rows

CHUNK = 2**24  # elements of the dense rows that are read at once


def one_hots(shape, positions: np.ndarray, sign: float, width: int):
    """The rows sign * e_position of a node, a chunk at a time: (offset, Rows)."""
    size = max(1, CHUNK // max(1, width))
    for start in range(0, len(positions), size):
        part = torch.as_tensor(positions[start : start + size])
        yield start, Rows.one_hot(part, torch.full((len(part),), sign, dtype=torch.float64), shape, 1)


def sparse(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, element, value) of what is not zero."""
    if rows.dense_data is None:
        kept = torch.nonzero(rows.sign)[:, 0]
        return kept.cpu().numpy(), rows.position[kept].cpu().numpy(), numbers(rows.sign[kept])
    data = rows.dense_data.reshape(rows.count, -1)
    row, element = torch.nonzero(data, as_tuple=True)
    return row.cpu().numpy(), element.cpu().numpy(), numbers(data[row, element])


def settings(names, initial: dict) -> list[dict]:
    """Values of the free slopes at which lines are taken: the adaptive choice, and both ends of their range."""
    ends = [{name: torch.full_like(initial[name], end) for name in names} for end in (0.0, 1.0)]
    return [initial, *ends] if names else [initial]


def own_dual(op: type, kind: type):
    """The rule that an op has in the linear domain in place of that of its kind; None: it has none."""
    dual, of_kind = registry.find_rule(Linear, op)[0], registry.find_rule(Linear, kind)[0]
    return None if dual is of_kind else dual
