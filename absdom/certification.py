"""Certifying a data set: of how many items is it proved that the label holds on the whole set around them?

Each item goes through: the clean prediction by the judge; an attack (projected gradients, replayed by the judge); the
proof, by a recipe in charged float64. Several models make a cascade (Wong et al. 2018, algorithm 4): a later model is
asked about what the earlier ones left open, and only where it predicts as the first one does. That test makes the
cascade sound: no input of an item's set can get another certified answer.

There is no search in float32 in front of the proofs. What the attack leaves is mostly certified, so that nearly all of
it would be bounded twice; a float64 sweep costs less than twice a float32 one.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from math import inf
from threading import Event

import numpy as np
import torch

from absdom import registry
from absdom.api import Task, load, make_problem, model_file, pick_device, recipe_of
from absdom.arithmetic import PROOF, SEARCH, precise_backends
from absdom.datasets import Ball, Dataset, label_rows, read_dataset, rows_property
from absdom.domain import Recipe, total_failure
from absdom.errors import AbsdomError, Deadline, UsageError
from absdom.ir.graph import Graph
from absdom.pipeline import Confirm, Replay
from absdom.plan import cost, memory, run
from absdom.plan.plan import Tighten
from absdom.plan.report import Report
from absdom.problem import Engine, Problem, asks_others, bound_rows, most_precise, solves
from absdom.property import InputSet, Property
from absdom.results import ATTACKED, CERTIFIED, DIFFERS, OPEN, Certification, Item
from absdom.sets import InputBatch
from absdom.types import Clock

CANARY = 10  # of the attacked items one in so many is bounded all the same: a proof there would be a bug of absdom
NOISE = 1e-4  # of the largest score: how far the judge's float32 evaluation may be from the real network
GROUP_ELEMENTS = 2**18  # values of one evaluation of all items of a group, on a CPU
JOBS = 8  # groups worked on side by side, at most, by default


@dataclass(frozen=True, eq=False)
class Stage:
    """One model of the cascade, ready to run."""

    name: str
    judge: object
    dtype: type  # of the points that the judge gets
    problem: Problem  # about the first item: it lends its graph to the engines of the workers
    boxes: int  # how many sets are bounded at once

    def outputs(self, points: np.ndarray) -> np.ndarray:
        """The judge's outputs "B m" (float64) at points "B n"."""
        return np.stack([np.asarray(self.judge.run(x)).ravel() for x in points.astype(self.dtype)]).astype(np.float64)


class _Stop(Clock):
    """A clock that also passes when somebody says so."""

    def __init__(self, event: Event, limit: float = inf):
        super().__init__(limit)
        object.__setattr__(self, "event", event)

    def left(self) -> float:
        return 0.0 if self.event.is_set() else super().left()


def certify(
    models,
    data,
    *,
    jobs: int | None = None,
    known: Iterable[Item] = (),
    record: Callable[[Sequence[Item]], None] | None = None,
    **question,
) -> Certification:
    """Certify a data set: `prepare(models, data, **question)`, then `Certifier.run`."""
    return prepare(models, data, **question).run(jobs, known, record)


def prepare(
    models,
    data,
    *,
    method: str | Recipe,
    eps: float | None = None,
    norm: float = inf,
    clip: tuple[float, float] | None = (0.0, 1.0),
    limit: int | None = None,
    offset: int = 0,
    attack: bool = True,
    device: str = "auto",
    seed: int = 0,
    example=None,
    budget: float = inf,
    timeout_per_image: float = inf,
    progress: Callable[[str], None] | None = None,
) -> Certifier:
    """Read and check all that is needed to certify items offset, ..., offset + limit - 1 of `data` (an .npz file, or a
    mapping of its arrays; see `absdom.datasets`) on the l_p balls of radius eps around them, met with the range `clip`
    of the inputs. eps None: the data hold boxes.

    models: one model, or a list of them, a cascade (all that `load` takes). An item is certified when its label's
    score is proved above every other score on the whole set; ties count as errors. `method` "auto": the most precise
    one of which at most `budget` seconds per item of the first model are predicted; `progress` is told which, and how
    large programs will be. An item for which `timeout_per_image` seconds, attack and all models included, are too few
    stays open and is counted; with such a limit items are done one by one. Raises UsageError, PropertyError,
    ModelError, UnsupportedOp, and BudgetError while it runs.
    """
    precise_backends()
    where, recipe = pick_device(device), None if method == "auto" else recipe_of(method)
    if recipe is not None and total_failure(recipe) == inf:
        raise UsageError(f"method {method}: it gives estimates, which prove nothing; certify with another method")
    if (limit is not None and limit < 1) or offset < 0:
        raise UsageError(f"limit {limit}, offset {offset}: at least one item, and none before item 0")
    if not timeout_per_image > 0:
        raise UsageError(f"timeout per image {timeout_per_image}: it is not a positive number of seconds")
    models = list(models) if isinstance(models, (list, tuple)) else [models]
    if not models:
        raise UsageError("certify needs a model")
    ball = None if eps is None else Ball(float(eps), norm, clip)
    graphs = [load(model, example) for model in models]
    dataset = _read(data, graphs, ball, offset, limit)
    tasks = [_task(m, g, dataset) for m, g in zip(models, graphs, strict=True)]
    if recipe is None:
        first = Problem.of(tasks[0].graph, tasks[0].property, where)
        choice = most_precise(first, budget * len(tasks[0].property.inputs))
        recipe = choice.recipe
        if progress is not None:
            progress(f"auto: {choice.method}, for {budget:g} s per item")
    stages = [_stage(m, t, recipe, where) for m, t in zip(models, tasks, strict=True)]
    report = Report() if progress is None else Report(progress)
    return Certifier(dataset, stages, recipe, attack, seed, where, timeout_per_image, report)


def _read(data, graphs: Sequence[Graph], ball: Ball | None, offset: int, limit: int | None) -> Dataset:
    """The data set, for graphs that all take and give the same tensors."""
    kinds = [[[g.nodes[i].type for i in part] for part in (g.inputs, g.outputs)] for g in graphs]
    shapes = [tuple(tuple(t.shape for t in part) for part in kind) for kind in kinds]
    for k, shape in enumerate(shapes[1:], 2):
        if shape != shapes[0]:
            raise UsageError(
                f"the models of a cascade take and give the same shapes: the first one has {_shapes(shapes[0])}, "
                f"model {k} has {_shapes(shape)}"
            )
    dataset = read_dataset(data, *kinds[0], ball, offset, limit)
    if dataset.C is not None and len(graphs) > 1:
        raise UsageError("a cascade answers with labels: rows ('C') are asked of one model")
    return dataset


def _shapes(sides) -> str:
    given, gives = (", ".join(str(list(shape)) for shape in side) for side in sides)
    return f"{given} -> {gives}"


def _task(model, graph: Graph, dataset: Dataset) -> Task:
    """The question about the first few items."""
    path, first = model_file(model), np.arange(min(cost.SAMPLE, len(dataset)))
    C, d = dataset.rows(first) if dataset.C is not None else label_rows(dataset.labels[first], dataset.outputs)
    prop = rows_property(dataset.input_sets(first), C, d)
    return Task(graph, prop, None if path is None else registry.service("judge")(path), {})


def _stage(model, task: Task, recipe: Recipe, device: str) -> Stage:
    """The model made ready; its graph has been compared with the judge, and the recipe handles all of its ops."""
    problem, judge = make_problem(task, device)
    double = task.judge is not None and any(task.graph.nodes[i].type.dtype == "float64" for i in task.graph.inputs)
    boxes = boxes_at_once(problem.engine, recipe, task.property.inputs)
    return Stage(str(model_file(model) or "a graph"), judge, np.float64 if double else np.float32, problem, boxes)


def boxes_at_once(engine: Engine, recipe: Recipe, inputs: InputSet) -> int:
    """How many sets like these to bound at once: no more than fill a chunk of rows where intermediate bounds are swept.

    A chunk over parts of several boxes has to gather each row's bounds; rows of one box share them.
    """
    if asks_others(recipe) or solves(engine, recipe):
        return 1
    schedule, size = engine.context(recipe, PROOF).schedule, 256
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


class Certifier:
    """Works through groups of items, several at a time. Each worker has engines of its own."""

    def __init__(
        self,
        data: Dataset,
        stages: Sequence[Stage],
        recipe: Recipe,
        attack: bool,
        seed: int,
        device: str,
        timeout: float,
        report: Report,
    ):
        """timeout: seconds per item."""
        self.data, self.stages, self.recipe, self.attack, self.seed = data, stages, recipe, attack, seed
        self.device, self.timeout, self.report = device, timeout, report
        self.pgd = registry.service("pgd") if attack else None
        self.stop = Event()
        self.solves = any(solves(stage.problem.engine, recipe) for stage in stages)

    def left(self, known: Iterable[Item]) -> int:
        """How many items are still to be done."""
        return len(self._fresh({item.number for item in known}))

    def _fresh(self, known) -> np.ndarray:
        return np.array([i for i in range(len(self.data)) if self.data.first + i not in known], dtype=np.int64)

    def run(
        self,
        jobs: int | None = None,
        known: Iterable[Item] = (),
        record: Callable[[Sequence[Item]], None] | None = None,
    ) -> Certification:
        """The items of the data: those of an earlier run, `known`, as they are, the others done now.

        `jobs`: groups worked on side by side (default: one per core; one on a GPU and for programs, whose solvers use
        the cores themselves). `record` gets each group when it is done.
        """
        started = time.monotonic()
        self.stop.clear()
        done = {item.number: item for item in known}
        fresh = self._fresh(done)
        alone = self.device == "cuda" or self.solves
        for items in self._groups(fresh, jobs or (1 if alone else min(JOBS, _cores()))):
            done |= {item.number: item for item in items}
            if record is not None:
                record(items)
        ordered = tuple(done[self.data.first + i] for i in range(len(self.data)))
        names = tuple(stage.name for stage in self.stages)
        seconds = time.monotonic() - started
        attacked = self.attack or self.solves
        return Certification(ordered, names, attacked, seconds, len(fresh), self.report.programs)

    def _groups(self, items: np.ndarray, jobs: int) -> Iterable[list[Item]]:
        """The items, group by group, as they are done."""
        elements = max(sum(n.type.numel for n in s.problem.engine.graph.nodes) for s in self.stages)
        size = max(16, min(256, GROUP_ELEMENTS // elements)) * (8 if self.device == "cuda" else 1)
        size = 1 if self.solves or self.timeout < inf else max(1, min(size, -(-len(items) // jobs)))
        groups = [items[i : i + size] for i in range(0, len(items), size)]
        engines: queue.SimpleQueue = queue.SimpleQueue()
        for _ in range(jobs):
            engines.put([Engine(s.problem.engine.graph, self.device, report=self.report) for s in self.stages])
        if jobs == 1:
            yield from (self._group(group, engines) for group in groups)
            return
        threads = torch.get_num_threads()
        share = max(1, _cores() // jobs)
        pool = ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(share,))
        try:
            for future in as_completed([pool.submit(self._group, group, engines) for group in groups]):
                yield future.result()
        finally:  # also when the caller breaks off: what runs ends at its next look at the clock
            self.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)

    def _group(self, items: np.ndarray, engines: queue.SimpleQueue) -> list[Item]:
        mine = engines.get()
        try:
            started = time.perf_counter()
            found = self._certify(items, mine)
            if self.stop.is_set():
                raise Deadline("certification was stopped")
            seconds = (time.perf_counter() - started) / len(items)
            return [replace(item, seconds=seconds) for item in found]
        finally:
            engines.put(mine)

    def _certify(self, items: np.ndarray, engines: Sequence[Engine]) -> list[Item]:
        data, count, clock = self.data, len(items), _Stop(self.stop, self.timeout)
        points, sets = data.points(items), data.input_sets(items)
        labels = None if data.labels is None else data.labels[items]
        outputs = self.stages[0].outputs(points)
        predicted = outputs.argmax(1)
        if labels is None:
            C, d = data.rows(items)
            clean = ((C @ outputs[:, :, None])[:, :, 0] + d > 0).all(1)
        else:
            C, d = label_rows(predicted, data.outputs)
            others = np.where(np.eye(data.outputs, dtype=bool)[labels], -inf, outputs)
            clean = outputs[np.arange(count), labels] > others.max(1)
        outcomes: list[list[str]] = [[] for _ in items]
        best, doubt = np.full(count, np.nan), np.zeros(count)
        open_items = np.arange(count)
        for stage, engine in zip(self.stages, engines, strict=True):
            asked = open_items
            if stage is not self.stages[0] and len(asked):
                outputs[asked] = stage.outputs(points[asked])
                agrees = outputs[asked].argmax(1) == predicted[asked]
                for i in asked[~agrees]:
                    outcomes[i].append(DIFFERS)
                # For good: a later certificate would not agree with those of this model around other points.
                open_items = asked = asked[agrees]
            if not len(asked):
                break
            prop = rows_property(sets.select(asked), C[asked], d[asked])
            fooled = self._attacked(stage, engine, prop, C[asked], d[asked], int(items[0]), clock)
            wanted = np.flatnonzero(~fooled | ((data.first + items[asked]) % CANARY == 0))
            before = engine.doubt
            chosen = asked[wanted]
            lower, refuted = self._bounds(stage, engine, sets.select(chosen), C[chosen], d[chosen], clock)
            doubt[asked[wanted]] += (engine.doubt - before) / max(1, len(wanted))
            bound = np.full(len(asked), np.nan)
            bound[wanted] = lower
            fooled[wanted] |= refuted
            best[asked] = np.fmax(best[asked], bound)
            scale = 1 + np.abs(outputs[asked]).max(1)
            self._check(items[asked], fooled, bound, NOISE * scale)
            proved = ~fooled & (bound > 0)
            for i, was_fooled, was_proved in zip(asked, fooled, proved, strict=True):
                outcomes[i].append(CERTIFIED if was_proved else ATTACKED if was_fooled else OPEN)
            open_items = np.setdiff1d(open_items, asked[proved])
        return [
            Item(
                number=data.first + int(items[i]),
                label=None if labels is None else int(labels[i]),
                predicted=None if labels is None else int(predicted[i]),
                clean=bool(clean[i]),
                outcomes=tuple(outcomes[i]),
                bound=None if np.isnan(best[i]) else float(best[i]),
                doubt=float(doubt[i]),
                out_of_time=clock.passed() and outcomes[i][-1:] == [OPEN],
            )
            for i in range(count)
        ]

    def _attacked(self, stage: Stage, engine: Engine, prop: Property, C, d, seed: int, clock: Clock) -> np.ndarray:
        """Bool "B": sets with a counterexample that the judge confirms."""
        fooled = np.zeros(len(prop.inputs), dtype=bool)
        if self.pgd is None:
            return fooled
        context = engine.evaluator(SEARCH)
        tensor = context.arithmetic.tensor
        batch = InputBatch.of(prop.inputs, context.arithmetic)
        points, values = self.pgd(context, batch, tensor(C), tensor(d), clock, seed=self.seed + seed)
        points, values = points.double().cpu().numpy(), values.double().cpu().numpy()
        confirm = Confirm(Problem.on(engine, prop), stage.judge)
        for box in np.flatnonzero(values <= 0):
            fooled[box] = confirm(int(box), points[box]) is not None
        return fooled

    def _bounds(
        self, stage: Stage, engine: Engine, sets: InputSet, C: np.ndarray, d: np.ndarray, clock: Clock
    ) -> tuple[np.ndarray, np.ndarray]:
        """The least proved bound "B" of each set's rows, NaN where there is none; bool "B": the sets in which a program
        found a counterexample that the judge confirms."""
        least, refuted = np.full(len(C), np.nan), np.zeros(len(C), dtype=bool)
        for start in range(0, len(C), stage.boxes):
            part = np.arange(start, min(len(C), start + stage.boxes))
            prop = rows_property(sets.select(part), C[part], d[part])
            replay = Replay(Confirm(Problem.on(engine, prop), stage.judge))
            points = {} if self.solves else None
            rows, box = np.arange(prop.spec.rows), prop.spec.row_box()
            lower = bound_rows(engine, self.recipe, PROOF, prop, rows, clock, points, decide=True, found=replay)
            least[part] = lower.reshape(len(part), -1).min(1)  # a NaN among the rows stays
            for row in (r for r in points or () if not lower[r] > 0):
                replay(int(box[row]), points[row])
            refuted[part] = replay.witness is not None  # programs are asked about one set at a time
        return least, refuted

    def _check(self, items: np.ndarray, fooled: np.ndarray, bound: np.ndarray, noise: np.ndarray) -> None:
        """No proof may contradict a replayed counterexample by more than float32 evaluation can err."""
        wrong = fooled & (bound > noise)
        if wrong.any():
            i = int(np.argmax(wrong))
            raise AbsdomError(
                f"item {self.data.first + int(items[i])} has a replayed counterexample, and a bound of {bound[i]:.6g} "
                f"above 0 was proved by {self.recipe!r}: this is a bug of absdom, please report it; until then believe "
                "no certificate of this method"
            )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
