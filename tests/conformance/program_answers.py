"""Asking a program (lp, milp, sdp, sdp-fo) about rows at a network's output, without the sweeps that come before it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from absdom import registry
from absdom.arithmetic import PROOF
from absdom.domain import Answer, Encoded
from absdom.encoding import Encoding, Style
from absdom.passes import lower as lower_graph
from absdom.plan import run, sweeps
from absdom.plan.encode import Encoder
from absdom.plan.planner import make_schedule
from absdom.plan.programs import solve
from absdom.plan.recipes import parse_recipe
from absdom.plan.sweeps import NEVER
from absdom.rows import Rows
from absdom.sets import InputBatch
from absdom.types import Clock

PROGRAMS = ("lp", "milp", "sdp", "sdp-fo")


def needs(*names: str) -> None:
    """Skip a test where a recipe is not installed, or its solver is not."""
    for name in names:
        if name not in registry.recipes():
            pytest.skip(f"the method {name} is not installed")
        if name == "sdp":
            pytest.importorskip("cvxpy")


class Asked:
    """A network over a box, with what a recipe knows of it before its program is asked."""

    def __init__(self, graph, lower, upper, recipe: str, **options):
        recipe = parse_recipe(recipe)
        self.recipe = replace(recipe, **options) if options else recipe
        self.context = run.prepare(make_schedule(lower_graph(graph), self.recipe), PROOF)
        self.batch = InputBatch(*(torch.from_numpy(np.asarray(t, dtype=np.float64))[None] for t in (lower, upper)))
        with torch.no_grad():
            self.bounds = run.propagate(self.context, self.batch)

    def rows(self, C: np.ndarray) -> Rows:
        C = torch.from_numpy(np.asarray(C, dtype=np.float64))
        shape = self.bounds[self.context.schedule.target].lower.shape[1:]
        return Rows.dense_rows(C.reshape(len(C), *shape), 1)

    def program(self, C, d=None, group=None, goal=None, clock: Clock = NEVER) -> Answer:
        """What the program answers for each group of rows C "R m", d "R" (default: 0, and each row a group)."""
        C = np.atleast_2d(C)
        d = np.zeros(len(C)) if d is None else np.asarray(d, dtype=np.float64)
        (program,) = self.context.schedule.encoded
        with torch.no_grad():
            return solve(
                self.context, program, self.context.schedule.final, self.batch, self.bounds, self.rows(C), d, clock,
                None if group is None else np.asarray(group), None if goal is None else np.asarray(goal),
            )  # fmt: skip

    def swept(self, C) -> np.ndarray:
        """The last sweep's own bounds of the rows C "R m"."""
        (dual,) = self.context.schedule.duals
        assert not isinstance(dual, Encoded)
        found = sweeps.sweep(
            self.context, self.context.schedule.final, dual, self.batch, self.bounds, self.rows(np.atleast_2d(C))
        )
        return found.detach().numpy()

    def encoding(self, style: Style) -> Encoding:
        target = self.context.schedule.target
        wanted = torch.ones((1, *self.bounds[target].lower.shape[1:]), dtype=torch.bool)
        with torch.no_grad():
            return Encoder(self.context, self.context.schedule.final, self.batch, self.bounds, wanted).encode(style)
