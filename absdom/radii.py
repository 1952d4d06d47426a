"""The eps-distance (Wong and Kolter 2018): how large is the ball around a point on which its label is proved?

For each item, J(eps) is the least bound of label against other labels over the ball of radius eps. It falls as eps
grows (up to what a method's choices do), so its root is bracketed in float32: by secants, halving where those move one
end only. The radius below the root is then proved in charged float64, and shrunk until that succeeds. From there up, an
attack looks for the smallest ball with a counterexample.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path

import numpy as np

from absdom import registry
from absdom.api import Task, load, make_problem, model_file, pick_device, recipe_of
from absdom.arithmetic import PROOF, SEARCH, Arithmetic, precise_backends
from absdom.datasets import Ball, Dataset, label_rows, read_dataset, rows_property
from absdom.domain import Recipe, total_failure
from absdom.errors import UsageError
from absdom.input_set import InputSet
from absdom.pipeline import Confirm
from absdom.plan import cost
from absdom.plan.report import silent
from absdom.plan.sweeps import NEVER
from absdom.problem import Engine, Problem, bound_rows
from absdom.property import Property
from absdom.sets import InputBatch
from absdom.types import Program

GROUP = 64  # items searched side by side
ROUNDS = 40  # radii tried per item at most: enough to halve an interval down to float64's precision
FAR = 1e9  # without a range of the inputs, larger radii are not looked for
FIRST = 1 / 64  # of the largest radius: what is tried first
STEEPEST = 2.0  # a bound below zero counts as at most so many times the one above zero
ATTACKS = 12  # radii attacked per item at most
CLOSE = 1.02  # between a radius that the attack fails at and one that it succeeds at


@dataclass(frozen=True, eq=False)
class Radii:
    """Per item, in the order of the data: `certified` "N", a radius at which the label is proved (NaN where it is not
    even proved for the point alone), and `attacked` "N", one at which there is a counterexample, replayed by the judge
    (infinite where none was found). `doubt`: the probability that random recipes were wrong somewhere, at most."""

    numbers: np.ndarray
    labels: np.ndarray
    certified: np.ndarray
    attacked: np.ndarray
    seconds: float
    doubt: float = 0.0
    programs: tuple[Program, ...] = ()  # the predicted sizes of those that were asked for

    def __len__(self) -> int:
        return len(self.certified)

    def to_json(self) -> dict:
        items = [
            {"number": int(i), "label": int(y), "certified": _finite(c), "attacked": _finite(a)}
            for i, y, c, a in zip(self.numbers, self.labels, self.certified, self.attacked, strict=True)
        ]
        return {
            "n": len(self),
            "median_certified": _finite(np.median(np.nan_to_num(self.certified))),
            "median_attacked": _finite(np.median(self.attacked)),
            "failure_probability": min(1.0, self.doubt),
            "seconds": self.seconds,
            "programs": [program.to_json() for program in self.programs],
            "items": items,
        }


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def distance(
    model,
    x,
    label=None,
    *,
    norm: float = inf,
    clip: tuple[float, float] | None = (0.0, 1.0),
    method: str | Recipe = "crown",
    tolerance: float = 0.01,
    attack: bool = True,
    limit: int | None = None,
    offset: int = 0,
    device: str = "auto",
    seed: int = 0,
    example=None,
    progress: Callable[[int], None] | None = None,
    tell: Callable[[str], None] = silent,
) -> Radii:
    """The largest radii at which `method` proves that the labels hold on l_p balls around points, met with `clip`.

    x: points "N ..." with their labels "N" (or one of each), or an .npz file with both (see `absdom.datasets`), of
    which items offset, ..., offset + limit - 1 are taken. Each certified radius is proved in charged float64, and the
    search ends where `tolerance` times it is left. `progress` is told the numbers of items that are done, `tell` how
    large programs will be. Raises UsageError, PropertyError, ModelError, UnsupportedOp, BudgetError.
    """
    started = time.monotonic()
    precise_backends()
    where, recipe = pick_device(device), recipe_of(method)
    if total_failure(recipe) == inf:
        raise UsageError(f"method {method}: it gives estimates, which prove nothing; use another method")
    if not 0 < tolerance < 1:
        raise UsageError(f"tolerance {tolerance} is not a share between 0 and 1")
    if limit is not None and limit < 1 or offset < 0:
        raise UsageError(f"limit {limit} and offset {offset}: at least one item, from item 0 on")
    graph, path = load(model, example), model_file(model)
    types = ([graph.nodes[i].type for i in group] for group in (graph.inputs, graph.outputs))
    data = read_dataset(_data(x, label), *types, Ball(0.0, norm, clip), offset, limit)
    if data.x is None or data.labels is None:
        raise UsageError("distances are those of points with labels: the data hold 'C', rows, in their place")
    first = np.arange(min(cost.SAMPLE, len(data)))
    prop = rows_property(data.input_sets(first), *label_rows(data.labels[first], data.outputs))
    judge = None if path is None else registry.service("judge")(path)
    problem, judge = make_problem(Task(graph, prop, judge, {}), where)
    problem.engine.report.tell = tell
    certified, attacked = np.full(len(data), nan), np.full(len(data), inf)
    for start in range(0, len(data), GROUP):
        items = np.arange(start, min(start + GROUP, len(data)))
        search = _Search(problem.engine, judge, recipe, data, items, tolerance, seed)
        certified[items] = search.certified()
        if attack:
            attacked[items] = search.attacked(certified[items])
        for item in items if progress is not None else ():
            progress(offset + int(item))
    numbers = offset + np.arange(len(data))
    seconds = time.monotonic() - started
    return Radii(
        numbers, data.labels, certified, attacked, seconds, problem.engine.doubt, problem.engine.report.programs
    )


def _data(x, label):
    if isinstance(x, (str, Path)):
        if label is not None:
            raise UsageError(f"the labels of {x} are in the file: give no others")
        return x
    if label is None:
        raise UsageError("points need their labels: distance(model, x, label)")
    x, label = (t.detach().cpu().numpy() if hasattr(t, "detach") else np.asarray(t) for t in (x, label))
    return {"x": x[None], "y": label[None]} if label.ndim == 0 else {"x": x, "y": label}


class _Search:
    """Items of one group, searched side by side: all arrays are over them."""

    def __init__(
        self, engine: Engine, judge, recipe: Recipe, data: Dataset, items: np.ndarray, tolerance: float, seed: int
    ):
        self.engine, self.judge, self.recipe, self.tolerance = engine, judge, recipe, tolerance
        self.seed = seed + data.first + int(items[0])
        self.points, self.ball = data.points(items), data.sets
        self.C, self.d = label_rows(data.labels[items], data.outputs)
        self.largest = np.full(len(items), FAR)
        if self.ball.clip is not None:  # the ball that holds all of the range
            low, high = self.ball.clip
            span = np.maximum(self.points - low, high - self.points)
            self.largest = np.linalg.norm(span, self.ball.norm, axis=1)

    def certified(self) -> np.ndarray:
        every = np.arange(len(self.points))
        at_zero = self._margin(every, np.zeros(len(every)), PROOF)
        found = np.where(at_zero > 0, 0.0, nan)
        radius = self._root(at_zero)
        left, step = np.flatnonzero(radius > 0), self.tolerance
        for _ in range(ROUNDS):
            if not len(left):
                break
            proved = self._margin(left, radius[left], PROOF) > 0
            found[left[proved]] = radius[left[proved]]
            left = left[~proved]
            radius[left] *= 1 - step
            step = min(2 * step, 0.5)
        return found

    def _root(self, at_zero: np.ndarray) -> np.ndarray:
        """The largest radius found with a positive bound in float32, near one with none; 0 where there is none."""
        low, at_low = np.zeros(len(at_zero)), at_zero.copy()
        high, at_high = np.full(len(at_zero), inf), np.full(len(at_zero), nan)
        side, streak = np.zeros(len(at_zero), dtype=int), np.zeros(len(at_zero), dtype=int)
        for _ in range(ROUNDS):
            near = np.isfinite(high) & (high - low <= self.tolerance * high)
            items = np.flatnonzero((at_zero > 0) & (low < self.largest) & ~near)
            if not len(items):
                break
            radius = self._next(at_zero, low, at_low, high, at_high, streak)[items]
            value = self._margin(items, radius, SEARCH)
            good, bad = items[value > 0], items[~(value > 0)]
            low[good], at_low[good] = radius[value > 0], value[value > 0]
            high[bad], at_high[bad] = radius[~(value > 0)], value[~(value > 0)]
            moved = np.where(value > 0, 1, -1)
            streak[items] = np.where(side[items] == moved, streak[items] + 1, 1)
            side[items] = moved
        return low

    def _next(self, at_zero, low, at_low, high, at_high, streak) -> np.ndarray:
        """Which radius to try. Without an upper end: where the line through the bounds at 0 and at `low` has its root,
        and somewhat beyond. With one: the root of the secant, or the middle."""
        with np.errstate(all="ignore"):
            line = 1.05 * low * at_zero / (at_zero - at_low)
            grown = np.where(low > 0, np.clip(np.nan_to_num(line, nan=inf), 1.5 * low, 8 * low), FIRST * self.largest)
            width = high - low
            drop = np.maximum(at_high, -STEEPEST * at_low)  # bounds fall ever faster, and far below zero say little
            secant = np.clip(low + width * at_low / (at_low - drop), low + 0.05 * width, high - 0.05 * width)
        secant = np.where(np.isfinite(at_high) & np.isfinite(secant) & (streak < 2), secant, low / 2 + high / 2)
        return np.where(np.isfinite(high), secant, np.minimum(grown, self.largest))

    def attacked(self, certified: np.ndarray) -> np.ndarray:
        """The smallest radii "B" with a counterexample that were found; infinite where there is none."""
        found = np.full(len(self.points), inf)
        wrong = self._attack(np.arange(len(found)), np.zeros(len(found)))
        found[np.isfinite(wrong)] = 0.0
        low = np.nan_to_num(certified)
        radius = np.minimum(np.where(low > 0, 2 * low, FIRST * self.largest), self.largest)
        for _ in range(ATTACKS):
            items = np.flatnonzero((found > CLOSE * low) & (low < self.largest))
            if not len(items):
                break
            new = self._attack(items, radius[items])
            hit = np.isfinite(new)
            found[items[hit]] = np.minimum(found[items[hit]], new[hit])
            low[items[~hit]] = radius[items[~hit]]
            radius = np.where(np.isfinite(found), low / 2 + found / 2, np.minimum(2 * radius, self.largest))
        return found

    def _attack(self, items: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """Radii of balls around the items, at most these, that hold a counterexample; infinite where none was found."""
        found = np.full(len(items), inf)
        prop = self._property(items, radius)
        context = self.engine.evaluator(SEARCH)
        tensor, batch = context.arithmetic.tensor, InputBatch.of(prop.inputs, context.arithmetic)
        points, values = registry.service("pgd")(
            context, batch, tensor(self.C[items]), tensor(self.d[items]), NEVER, seed=self.seed
        )
        points, values = points.double().cpu().numpy(), values.double().cpu().numpy()
        confirm = Confirm(Problem.on(self.engine, prop), self.judge)
        for k in np.flatnonzero(values <= 0):
            witness = confirm(int(k), points[k])
            if witness is not None:
                step = witness.x.astype(np.float64) - self.points[items[k]]
                upward = 1 + (len(step) + 16) * 2.0**-52  # the norm rounds
                found[k] = min(radius[k], float(np.linalg.norm(step, self.ball.norm)) * upward)
        return found

    def _margin(self, items: np.ndarray, radius: np.ndarray, arithmetic: Arithmetic) -> np.ndarray:
        """J "B" of the items at these radii; minus infinity where there is no bound."""
        prop = self._property(items, radius)
        rows = np.arange(prop.spec.rows)
        value = bound_rows(self.engine, self.recipe, arithmetic, prop, rows, decide=True).reshape(len(items), -1)
        return np.nan_to_num(value, nan=-inf, posinf=inf, neginf=-inf).min(1)

    def _property(self, items: np.ndarray, radius: np.ndarray) -> Property:
        sets = InputSet.ball(self.points[items], radius, self.ball.norm, self.ball.clip)
        return rows_property(sets, self.C[items], self.d[items])
