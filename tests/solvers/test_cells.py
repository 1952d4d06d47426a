"""Inputs that are read in steps: each cell is tried once, whatever gradients say."""

from __future__ import annotations

import torch

from absdom import ops
from absdom.ir.graph import Builder
from absdom.passes import lower
from absdom.sets import InputBatch
from absdom.solvers.cells import cells, stepped_inputs
from absdom.types import TensorType


def graph():
    """Elements 0 and 3 are cut off to whole numbers, element 3 is also read as it is."""
    builder = Builder()
    x = builder.input("x", TensorType((1, 4)))
    cut = builder.add(ops.Truncate(), builder.add(ops.Take(1, (3, 0)), x))
    return lower(builder.finish([builder.add(ops.Add(), cut, builder.add(ops.Slice(1, 2, 4), x))]))


def test_inputs_that_are_read_in_steps_only():
    assert stepped_inputs(graph()).tolist() == [True, False, False, False]


def test_every_cell_once_and_the_rest_at_the_centre():
    lower_, upper = torch.tensor([[-1.2, 0, 0, 0], [2, 2, 2, 2]]), torch.tensor([[1.0, 2, 4, 6], [2, 3, 3, 3]])
    found = list(cells(graph(), InputBatch(lower_, upper)))
    assert [b for b, _ in found] == [0]  # in the second box no such input varies
    assert found[0][1][:, 0].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert (found[0][1][:, 1:] == torch.tensor([1.0, 2, 3])).all()


def test_too_many_cells_are_left_alone():
    wide = torch.full((1, 4), 1e6)
    assert list(cells(graph(), InputBatch(-wide, wide))) == []
