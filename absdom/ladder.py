"""How certifying proves: a ladder of rungs, each asked about the rows that the one before it left open.

A recipe is a ladder of one rung. `bab` is one of four: intervals, CROWN, CROWN with its slopes improved, and a complete
search, each dearer than all before it and asked about fewer sets. What a rung proves is proved in charged float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np
import torch

from absdom import registry
from absdom.api import recipe_of
from absdom.arithmetic import PROOF, SEARCH
from absdom.domain import Recipe, total_failure
from absdom.errors import BudgetError, UsageError
from absdom.pipeline import Confirm, Replay
from absdom.plan import memory, run
from absdom.plan.plan import Tighten
from absdom.problem import Engine, Problem, asks_others, bound_rows, recipe_stage, solves, within_budget
from absdom.property import InputSet, Property
from absdom.sets import InputBatch
from absdom.types import Clock
from absdom.verdict import Witness

COMPLETE = "complete"
LADDERS = {"bab": ("ibp", "crown", "alpha-crown", COMPLETE)}
TIMEOUT = 60.0  # seconds per item of a ladder with a complete search, where none are given
FRONT = 0.5  # of an item's time that is left, for each rung but the last


@dataclass(frozen=True, eq=False)
class Found:
    """What a rung found out about a property: proved lower bounds "R" of its rows (NaN: none), which of them are proved
    positive, bool "R", and counterexamples that the judge confirmed, by box."""

    lower: np.ndarray
    closed: np.ndarray
    witnesses: Mapping[int, Witness] = field(default_factory=dict)


class Rung(ABC):
    """One way to prove rows positive. `name` is what reports call it."""

    name: str
    complete = False  # a search that ends with a proof or a counterexample, if it has the time

    @abstractmethod
    def ask(self, engine: Engine, judge, prop: Property, rows: np.ndarray, clock: Clock) -> Found:
        """Ask about these rows of the property, until the clock ends it."""

    @abstractmethod
    def alone(self, engine: Engine) -> bool:
        """Is it asked about one set at a time, because what a set takes differs too much from the next?"""

    def refutes(self, engine: Engine) -> bool:
        """Does it look for counterexamples too?"""
        return self.alone(engine)

    def takes_all_cores(self, engine: Engine) -> bool:
        """Does it use all cores for one set, so that sets side by side would be in each other's way?"""
        return self.alone(engine)

    def boxes(self, engine: Engine, inputs: InputSet) -> int:
        """How many sets like these to ask about at once."""
        return 1


@dataclass(frozen=True)
class Bounds(Rung):
    """Bounds of the rows by a recipe."""

    name: str
    recipe: Recipe

    def alone(self, engine):
        return solves(engine, self.recipe)

    def boxes(self, engine, inputs):
        """No more than fill a chunk of rows where intermediate bounds are swept.

        A chunk over parts of several boxes has to gather each row's bounds; rows of one box share them.
        """
        if asks_others(self.recipe) or solves(engine, self.recipe):
            return 1
        schedule, size = engine.context(self.recipe, PROOF).schedule, 256
        context = engine.evaluator(SEARCH)
        with torch.no_grad():
            batch = InputBatch.of(inputs, context.arithmetic)
            bounds = run.propagate(context, batch)
            for stage in schedule.stages:
                if isinstance(stage, Tighten) and stage.needed(inputs.parts):
                    _, position = run.select(context, stage, bounds)
                    rows = 2 * len(position) / len(inputs)
                    chunk = memory.chunk_rows(engine.graph, stage.sweep.nodes, PROOF.dtype.itemsize, engine.device)
                    size = min(size, chunk / max(1.0, rows))
        return max(1, int(size))

    def ask(self, engine, judge, prop, rows, clock):
        replay, box = Replay(Confirm(Problem.on(engine, prop), judge)), prop.spec.row_box()
        points = {} if self.alone(engine) else None
        lower = bound_rows(engine, self.recipe, PROOF, prop, rows, clock, points, decide=True, found=replay)
        for row in (r for r in points or () if not lower[r] > 0):
            replay(int(box[row]), points[row])
        found = {} if replay.witness is None else {0: replay.witness}  # programs are asked about one set at a time
        return Found(lower, lower > 0, found)


class _Part(Clock):
    """A share of the time that another clock has left, and no longer than that one runs."""

    def __init__(self, whole: Clock, share: float):
        super().__init__(share * whole.left())
        object.__setattr__(self, "whole", whole)

    def left(self) -> float:
        return min(super().left(), self.whole.left())


@dataclass(frozen=True)
class Complete(Rung):
    """The branch and bound of `absdom verify`, for `soon` of the time; for what it does not decide then, mixed-integer
    programs with tightened bounds; and branch and bound again where those are too large or end undecided."""

    name: str = COMPLETE
    soon: float = 0.25
    complete = True

    def alone(self, engine):
        return True

    def takes_all_cores(self, engine):
        return False

    def ask(self, engine, judge, prop, rows, clock):
        problem = Problem.on(engine, prop)  # each row is a clause
        problem = replace(problem, closed=~np.isin(np.arange(prop.spec.rows), rows))
        replay = Replay(Confirm(problem, judge))
        for search, share in ((self._branch, self.soon), (self._programs, 1.0), (self._branch, 1.0)):
            if problem.solved or replay.witness is not None or clock.passed():
                break
            problem = search(problem, replay, _Part(clock, share))
        closed = problem.closed & np.isin(np.arange(prop.spec.rows), rows)
        lower = np.where(np.isfinite(problem.lower), problem.lower, np.nan)
        return Found(lower, closed, {} if replay.witness is None else {0: replay.witness})

    @staticmethod
    def _branch(problem: Problem, replay: Replay, clock: Clock) -> Problem:
        def confirm(box: int, point: np.ndarray) -> Witness | None:
            return replay.witness if replay(box, point) else None

        return registry.service("bab")(problem, confirm, clock, problem.engine.report)[0]

    @staticmethod
    def _programs(problem: Problem, replay: Replay, clock: Clock) -> Problem:
        try:
            return recipe_stage(problem, registry.recipes()["milp"](), clock, replay)
        except BudgetError as error:
            problem.engine.report(f"no programs: {error}")
            return problem


def ladder_of(method: str | Recipe | Rung | Sequence[str | Recipe | Rung]) -> tuple[Rung, ...]:
    """The rungs of a method: a recipe, the name of a ladder, or a sequence of recipes, COMPLETE and other rungs.

    Raises UsageError, also for recipes that prove nothing.
    """
    entries = (
        LADDERS.get(method, (method,))
        if isinstance(method, str)
        else tuple(method)
        if isinstance(method, Sequence)
        else (method,)
    )
    rungs = tuple(_rung(entry) for entry in entries)
    if not rungs:
        raise UsageError("a ladder of methods has no rung")
    names = [rung.name for rung in rungs]
    if len({*names}) < len(names):
        raise UsageError(f"a ladder of methods has each of them once, not {', '.join(names)}")
    return rungs


def _rung(method: str | Recipe | Rung) -> Rung:
    if isinstance(method, Rung) or method == COMPLETE:
        return method if isinstance(method, Rung) else Complete()
    recipe = recipe_of(method)
    if total_failure(recipe) == inf:
        raise UsageError(f"method {method}: it gives estimates, which prove nothing; certify with another method")
    return Bounds(method if isinstance(method, str) else recipe.name, recipe)


def time_limit(ladder: Sequence[Rung], seconds: float | None) -> float:
    """Seconds per item: those that are given, or else TIMEOUT where a search would go on for ever."""
    if seconds is None:
        return TIMEOUT if any(rung.complete for rung in ladder) else inf
    if not seconds > 0:
        raise UsageError(f"timeout per image {seconds}: it is not a positive number of seconds")
    return seconds


def affordable(
    problem: Problem, ladder: Sequence[Rung], seconds: float, tell: Callable[[str], None]
) -> tuple[Rung, ...]:
    """The ladder with what is cheaper in the place of rungs, the last one apart, that would take too much of an item's
    seconds by prediction."""
    found: list[Rung] = []
    for rung in ladder[:-1]:
        if isinstance(rung, Bounds):
            allowed = FRONT * seconds * len(problem.property.inputs)
            choice = within_budget(problem, rung.name, rung.recipe, allowed)
            if choice.method != rung.name:
                tell(f"{choice.note} (for {len(problem.property.inputs)} items)")
                rung = Bounds(choice.method, choice.recipe)
        if rung.name not in {other.name for other in found}:
            found.append(rung)
    return (*found, ladder[-1])
