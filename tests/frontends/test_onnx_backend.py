"""onnx's own backend node tests: what loads computes what onnx says, and at least so many do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_backend
import pytest
import torch
from onnx_backend import AGREES, NOT_LOADED, ONE, WRONG

from absdom import testing
from absdom.problem import attach_vector

CASES, _ = onnx_backend.collect()
LEAST = 0.94  # of the cases load and agree: `make onnx-backend` prints how many
SEEN: dict[str, str] = {}


@pytest.mark.parametrize("name", CASES)
def test_node(name):
    outcome = onnx_backend.attempt(CASES[name])
    SEEN[name] = outcome.state
    assert outcome.state != WRONG, outcome.reason
    if outcome.state == NOT_LOADED:
        pytest.skip(outcome.reason)


def test_the_comparison_can_fail():
    case = CASES["test_matmul_2d"]
    inputs, (output,) = case.data_sets[0]
    changed = replace(case, data_sets=[(inputs, [output + 0.01 * np.abs(output).max()])])
    assert onnx_backend.attempt(case).state == AGREES
    assert onnx_backend.attempt(changed).state == WRONG
    assert onnx_backend.attempt(replace(case, data_sets=[(inputs, [output.T])])).state == WRONG


def test_how_many_agree():
    """The share that README states does not fall. (Under xdist a worker sees a part of the cases: it runs the rest.)"""
    for name in CASES:
        if name not in SEEN:
            SEEN[name] = onnx_backend.attempt(CASES[name]).state
    assert sum(state in (AGREES, ONE) for state in SEEN.values()) >= LEAST * len(CASES)


def check_bounds(name: str) -> None:
    """Charged bounds over a small box around the data hold what onnx's operators give inside of it."""
    found = onnx_backend.loaded(CASES[name], largest=60)
    if found is None:
        pytest.skip("it does not load, or is larger than that")
    graph, point = attach_vector(found[0], False), torch.from_numpy(found[1])[None]
    if not 0 < graph.nodes[graph.outputs[0]].type.numel <= 200 or len(graph.nodes) > 150:
        pytest.skip("it is larger than that")
    case = testing.Case(name, graph, point - 0.05, point + 0.05)
    for recipe in ("interval", "crown"):
        testing.check_sound(case, recipe)


@pytest.mark.parametrize("name", list(CASES)[::12])
def test_bounds_hold(name):
    check_bounds(name)


@pytest.mark.nightly
@pytest.mark.parametrize("name", CASES)
def test_all_bounds_hold(name):
    check_bounds(name)
