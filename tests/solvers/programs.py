"""Questions to programs over encodings of tiny networks, for tests of solvers."""

from __future__ import annotations

import math

import numpy as np
import torch

from absdom import registry
from absdom.arithmetic import PROOF
from absdom.datasets import rows_property
from absdom.encoding import Style
from absdom.plan import run
from absdom.plan.programs import encoder_within_budget, solve
from absdom.problem import Problem, spec_rows
from absdom.property import InputSet
from absdom.sets import InputBatch
from absdom.types import Clock


class Asked:
    """A network over boxes "B n" with rows C "B R m", d "B R", as a recipe of programs sees it."""

    def __init__(self, graph, lower, upper, C, d=None, recipe=None):
        lower, upper, C = np.atleast_2d(lower), np.atleast_2d(upper), np.asarray(C, dtype=float)
        C = C[None] if C.ndim == 2 else C
        self.property = rows_property(
            InputSet.box(lower, upper), C, np.zeros(C.shape[:2]) if d is None else np.asarray(d, dtype=float)
        )
        self.recipe = registry.recipes()["milp"]() if recipe is None else recipe
        self.context = Problem.of(graph, self.property).engine.context(self.recipe, PROOF)
        self.batch = InputBatch.of(self.property.inputs, self.context.arithmetic)
        with torch.no_grad():
            self.bounds = run.propagate(self.context, self.batch)
        self.rows = np.arange(self.property.spec.rows)
        boxes = np.arange(len(self.property.inputs))
        self.nu, self.d = spec_rows(self.property, self.rows, boxes, self.context.arithmetic)

    def answer(self, seconds: float = math.inf, group=None, goal=None, found=None):
        """The Answer for groups of rows "R" with goals "G"."""
        goal = None if goal is None else np.asarray(goal, dtype=float)
        with torch.no_grad():
            return solve(
                self.context, self.recipe, self.context.schedule.final, self.batch, self.bounds, self.nu,
                self.d.numpy(), Clock(seconds), group=group, goal=goal, found=found,
            )  # fmt: skip

    def encoding(self, style: Style):
        """The encoding of the first box and the first row's objective."""
        C = self.nu.dense().reshape(self.nu.count, -1)
        encoder = encoder_within_budget(
            self.context, self.recipe, self.context.schedule.final, self.batch, self.bounds, C
        )  # fmt: skip
        encoding = encoder.encode(style)
        return encoding, encoding.objective(C[0].numpy(), float(self.d[0]))

    def values(self, points) -> np.ndarray:
        """The network's outputs at points "k n"."""
        return run.evaluate(self.context, torch.as_tensor(np.asarray(points))).reshape(len(points), -1).numpy()
