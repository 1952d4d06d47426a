"""`absdom verify` as one forward fold: each stage closes clauses or finds a witness; nothing goes back.

interval -> attack -> linear -> attack -> branch and bound
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import isinf

import numpy as np

from absdom import registry
from absdom.arithmetic import PROOF
from absdom.domain import Recipe, total_failure
from absdom.problem import Problem, bound_rows, recipe_stage, solves, undefined_places, within_budget
from absdom.property import InputSet
from absdom.types import Clock
from absdom.verdict import Result, StageReport, Witness

GUARANTEE = "REAL"  # the network over the real numbers with the stored weights
SHARE = 0.3  # of the timeout, that the sweeps for intermediate bounds may take before something cheaper is asked


@dataclass(frozen=True)
class Options:
    """How to verify. `recipe` None is `auto`, the whole ladder; `progress(text)` is told what goes on."""

    recipe: Recipe | None = None
    method: str = "auto"
    attack: bool = True
    seed: int = 0
    progress: Callable[[str], None] | None = None


class Confirm:
    """The only door to `sat`: a float32 point in its input set, replayed by the judge with zero tolerance.

    An interval like [0.1, 0.1] holds no float32 number. The judge then gets the nearest one, and the point of the set
    itself must be a counterexample too: charged float64 bounds at that one point have to say so.
    """

    def __init__(self, problem: Problem, judge):
        self.problem, self.property, self.judge = problem, problem.property, judge

    def __call__(self, box: int, point: np.ndarray) -> Witness | None:
        inputs = self.property.inputs
        x = inputs.round_into(np.asarray(point).ravel(), box)
        exact = np.clip(x.astype(np.float64), inputs.lower[box], inputs.upper[box])
        moved = exact != x
        if not inputs.contains(exact, box) or (moved & ~inputs.without_float32(box)).any():
            return None
        y = np.asarray(self.judge.run(x)).ravel()
        clauses = self.property.satisfied(exact if not moved.any() else x, y, box)
        if moved.any():
            clauses = tuple(q for q in clauses if self._holds_really(exact, q))
        interface = self.property.interface
        return Witness(x, y, clauses, self.judge.name, int(moved.sum()), interface) if clauses else None

    def _holds_really(self, exact: np.ndarray, clause: int) -> bool:
        """Do charged float64 bounds show that every atom of the clause holds at this point?"""
        spec = self.property.spec.select(np.array([clause]))
        flipped = replace(spec, C=-spec.C, d=-spec.d, box=np.zeros(1, dtype=np.int64))
        here = replace(self.property, inputs=InputSet.box(exact, exact), spec=flipped)
        lower = bound_rows(self.problem.engine, registry.recipes()["interval"](), PROOF, here, np.arange(flipped.rows))
        return bool(((lower > 0) | ((lower >= 0) & ~flipped.strict)).all())


class Replay:
    """Asked about points that may be counterexamples, until one of them is; it keeps the witness."""

    def __init__(self, confirm: Confirm):
        self.confirm, self.witness = confirm, None

    def __call__(self, box: int, point: np.ndarray) -> bool:
        if self.witness is None:
            self.witness = self.confirm(box, point)
        return self.witness is not None


@dataclass(eq=False)
class Log:
    """What the stages did so far."""

    stages: list[StageReport] = field(default_factory=list)
    leaves: int = 0
    least: float = np.inf


def verify_problem(problem: Problem, judge, clock: Clock, options: Options) -> Result:
    """Run the ladder until a verdict or the deadline."""
    confirm = Confirm(problem, judge)
    if options.progress is not None:
        problem.engine.report.tell = options.progress
    log = Log()
    witness = None
    for name, stage in _ladder(problem, options, confirm, clock, log):
        if problem.solved or clock.passed():
            break
        if options.progress is not None:
            options.progress(f"{name}: {len(problem.open)} of {len(problem.closed)} clauses open")
        before, started = problem, time.monotonic()
        problem, witness, note = stage(problem)
        spec = problem.property.spec
        newly = problem.closed & ~before.closed
        log.stages.append(
            StageReport(name, time.monotonic() - started, int(newly[spec.clause].sum()), int(newly.sum()), note)
        )
        if witness is not None:
            break
    return _result(problem, witness, clock, options, log)


def _ladder(problem, options: Options, confirm, clock: Clock, log: Log):
    """(name, stage) pairs; a stage is Problem -> (Problem, witness or None, note)."""
    attack = registry.service("attack")
    recipes = registry.recipes()

    def attacking(name, effort):
        def stage(problem):
            witness = attack(problem, confirm, clock, options.seed, effort)
            return problem, witness, ""

        return name, stage

    def bounding(name, recipe):
        def stage(problem):
            replay = Replay(confirm)
            problem = recipe_stage(problem, recipe, clock, replay)
            return problem, replay.witness, ""

        return name, stage

    if options.recipe is None:
        yield bounding("interval", recipes["ibp"]())  # costs as much as a few evaluations
    if options.attack:
        yield attacking("attack", "quick")
    if options.recipe is not None:
        yield bounding(options.method, options.recipe)
        if options.attack and solves(problem.engine, options.recipe):  # from where programs found the rows lowest
            yield attacking("attack-again", "quick")
        return
    # Where the sweeps for intermediate bounds would take too much of the time, the linear domain over intervals is
    # asked first, and perhaps closes what those need not.
    choice = within_budget(problem, "linear", recipes["crown"](), SHARE * clock.limit)
    if choice.method == "crown-ibp":
        yield bounding(choice.method, choice.recipe)
    yield bounding("linear", recipes["crown"]())
    if options.attack:
        yield attacking("attack-long", "long")

    def searching(problem):
        problem, witness, leaves, least, note = registry.service("bab")(problem, confirm, clock, options.progress)
        log.leaves += leaves
        log.least = least
        return problem, witness, note

    yield "branch-and-bound", searching


def guarantee(doubt: float) -> str:
    """What a verdict claims; `doubt`: a bound on the probability that a random bound it rests on is wrong."""
    return GUARANTEE if doubt == 0 else f"{GUARANTEE}, wrong with probability at most {doubt:.3g}"


def _result(problem: Problem, witness, clock: Clock, options: Options, log: Log) -> Result:
    reason = ""
    if witness is not None:
        verdict = "sat"
    elif problem.solved:
        verdict = "unsat"
    elif clock.passed():
        verdict, reason = "timeout", f"{len(problem.open)} of {len(problem.closed)} clauses open at the deadline"
    else:
        verdict, reason = "unknown", f"the method left {len(problem.open)} of {len(problem.closed)} clauses open"
        if options.recipe is not None and isinf(total_failure(options.recipe)):
            reason += f"; {options.method} gives estimates, which close nothing"
        if places := undefined_places(problem):
            reason += f"; {places[0]}"
    if problem.solved:
        known = problem.lower[np.isfinite(problem.lower)]  # clauses that a search closed have no bound of their own
    else:
        estimate = np.full(len(problem.closed), -np.inf)
        np.maximum.at(estimate, problem.property.spec.clause, problem.search_lower)
        known = np.array(
            [
                max(
                    np.fmax(problem.lower, estimate)[problem.open].min(),
                    log.least if np.isfinite(log.least) else -np.inf,
                )
            ]
        )
    return Result(
        verdict=verdict,
        guarantee=guarantee(problem.engine.doubt if verdict == "unsat" else 0.0),
        seconds=clock.elapsed(),
        method=options.method,
        stages=tuple(log.stages),
        leaves=log.leaves,
        best_bound=float(known.min()) if len(known) and np.isfinite(known.min()) else None,
        clauses=len(problem.closed),
        clauses_open=len(problem.open),
        witness=witness,
        reason=reason,
        programs=problem.engine.report.programs,
    )


def sha256(path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
