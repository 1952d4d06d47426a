"""Takes items through models and their ladders: groups of items together, then one by one what needs its own time.

Per model: the prediction by the judge, an attack, and the rungs. Groups go as far as rungs can be asked about many sets
at once; what is open then waits, and takes the other rungs alone, behind all groups. What a group spends is charged to
its items in equal parts, so that an item's limit means the same in a group as alone.
"""

from __future__ import annotations

import os
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from math import inf
from threading import Event

import numpy as np
import torch

from absdom import registry
from absdom.arithmetic import SEARCH
from absdom.datasets import Dataset, label_rows, rows_property
from absdom.errors import AbsdomError, Deadline
from absdom.ladder import FRONT, Found, Rung
from absdom.pipeline import Confirm
from absdom.plan.report import Report
from absdom.problem import Engine, Problem
from absdom.property import Property
from absdom.results import ATTACKED, CERTIFIED, CLEAN, DIFFERS, OPEN, PGD, WRONG, Certification, Item, Step
from absdom.sets import InputBatch
from absdom.types import Clock
from absdom.verdict import Witness

CANARY = 10  # of the attacked items one in so many is asked about all the same: a proof there would be a bug of absdom
CANARY_SECONDS = 1.0  # that a complete search gets for it
NOISE = 1e-4  # of the largest score: how far the judge's float32 evaluation may be from the real network
GROUP_ELEMENTS = 2**18  # values of one evaluation of all items of a group, on a CPU
JOBS = 8  # groups worked on side by side, at most, by default


@dataclass(frozen=True, eq=False)
class Model:
    """One model of the cascade, ready to run."""

    name: str
    judge: object
    dtype: type  # of the points that the judge gets
    problem: Problem  # about the first items: it lends its graph to the engines of the workers
    boxes: tuple[int, ...]  # per rung, how many sets it is asked about at once

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


@dataclass(eq=False)
class _Work:
    """An item on its way. Rows C "R m", d "R" ask about the predicted class, or are those of the data; `clean`: does
    the item itself pass? Of the model that is asked now: `rung`, the next one; lower "R" and closed "R", what is proved
    of the rows; `witness`."""

    index: int  # in the data
    number: int  # in the file
    label: int | None
    predicted: int | None
    clean: bool
    C: np.ndarray
    d: np.ndarray
    model: int = 0
    rung: int = 0
    lower: np.ndarray | None = None
    closed: np.ndarray | None = None
    witness: Witness | None = None
    best: float = np.nan
    doubt: float = 0.0
    spent: float = 0.0
    outcomes: list[str] = field(default_factory=list)
    trace: list[Step] = field(default_factory=list)

    def enter(self, model: int) -> None:
        """Begin with a model."""
        self.model, self.rung, self.witness = model, 0, None
        self.lower, self.closed = np.full(len(self.d), np.nan), np.zeros(len(self.d), dtype=bool)

    @property
    def outcome(self) -> str:
        """What is known of it on this model. A counterexample counts, whatever rounding may have let through."""
        return ATTACKED if self.witness is not None else CERTIFIED if self.closed.all() else OPEN

    @property
    def canary(self) -> bool:
        return self.witness is not None and self.number % CANARY == 0 and not self.closed.all()

    def wants(self, rung: Rung) -> bool:
        """Is there anything to ask the rung? A complete search is for items that may still be certified: where the
        label is wrong, it could only tell whether the wrong class is certain."""
        return (self.outcome == OPEN and (self.clean or not rung.complete)) or self.canary

    def note(self, stage: str, outcome: str, seconds: float) -> None:
        self.spent += seconds
        self.trace.append(Step(self.model, stage, outcome, seconds))

    def item(self, timeout: float) -> Item:
        return Item(
            number=self.number,
            label=self.label,
            predicted=self.predicted,
            clean=self.clean,
            outcomes=tuple(self.outcomes),
            trace=tuple(self.trace),
            bound=None if np.isnan(self.best) else float(self.best),
            doubt=self.doubt,
            out_of_time=self.outcomes[-1] == OPEN and self.spent >= timeout,
        )


class Certifier:
    """Works through groups of items, several at a time. Each worker has engines of its own."""

    def __init__(
        self,
        data: Dataset,
        models: Sequence[Model],
        ladder: Sequence[Rung],
        attack: bool,
        seed: int,
        device: str,
        timeout: float,
        report: Report,
    ):
        """timeout: seconds per item."""
        self.data, self.models, self.ladder, self.attack, self.seed = data, models, ladder, attack, seed
        self.device, self.timeout, self.report = device, timeout, report
        self.pgd = registry.service("pgd") if attack else None
        self.stop = Event()
        engines = [model.problem.engine for model in models]
        self.refutes = attack or any(rung.refutes(engine) for rung in ladder for engine in engines)
        self.takes_all_cores = any(rung.takes_all_cores(engine) for rung in ladder for engine in engines)

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
        the cores themselves). `record` gets items when they are done.
        """
        started = time.monotonic()
        self.stop.clear()
        done = {item.number: item for item in known}
        fresh = self._fresh(done)
        one = self.device == "cuda" or self.takes_all_cores
        for items in self._items(fresh, jobs or (1 if one else min(JOBS, _cores()))):
            done |= {item.number: item for item in items}
            if record is not None and items:  # of a group all may wait
                record(items)
        ordered = tuple(done[self.data.first + i] for i in range(len(self.data)))
        names = tuple(model.name for model in self.models)
        stages = (CLEAN, *((PGD,) if self.attack else ()), *(rung.name for rung in self.ladder))
        seconds = time.monotonic() - started
        return Certification(ordered, names, stages, self.refutes, seconds, len(fresh), self.report.programs)

    def _items(self, items: np.ndarray, jobs: int) -> Iterator[list[Item]]:
        """The items, as they are done: first groups of them, then those that groups leave, one by one."""
        elements = max(sum(n.type.numel for n in m.problem.engine.graph.nodes) for m in self.models)
        size = max(16, min(256, GROUP_ELEMENTS // elements)) * (8 if self.device == "cuda" else 1)
        size = max(1, min(size, -(-len(items) // jobs)))
        engines: queue.SimpleQueue = queue.SimpleQueue()
        for _ in range(jobs):
            engines.put([Engine(m.problem.engine.graph, self.device, report=self.report) for m in self.models])
        todo = deque((self._group, items[i : i + size]) for i in range(0, len(items), size))
        if jobs == 1:
            while todo:
                function, given = todo.popleft()
                done, waiting = self._task(function, given, engines)
                todo.extend((self._alone, work) for work in waiting)
                yield done
            return
        threads = torch.get_num_threads()
        share = max(1, _cores() // jobs)
        pool = ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(share,))
        try:
            pending = {pool.submit(self._task, *task, engines) for task in todo}
            while pending:
                ended, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in ended:
                    done, waiting = future.result()
                    pending |= {pool.submit(self._task, self._alone, work, engines) for work in waiting}
                    yield done
        finally:  # also when the caller breaks off: what runs ends at its next look at the clock
            self.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)

    def _task(self, function, given, engines: queue.SimpleQueue) -> tuple[list[Item], list[_Work]]:
        """The items that are done, and those that wait for rungs to be asked about them alone."""
        mine = engines.get()
        try:
            done, waiting = function(given, mine)
            if self.stop.is_set():
                raise Deadline("certification was stopped")
            return [work.item(self.timeout) for work in done], waiting
        finally:
            engines.put(mine)

    def _group(self, items: np.ndarray, engines: Sequence[Engine]) -> tuple[list[_Work], list[_Work]]:
        """A group as far as it can go together."""
        data, clock = self.data, Clock()
        outputs = self.models[0].outputs(data.points(items))
        labels, predicted = data.labels, outputs.argmax(1)
        if labels is None:
            C, d = data.rows(items)
            clean = ((C @ outputs[:, :, None])[:, :, 0] + d > 0).all(1)
        else:
            C, d = label_rows(predicted, data.outputs)
            others = np.where(np.eye(data.outputs, dtype=bool)[labels[items]], -inf, outputs)
            clean = outputs[np.arange(len(items)), labels[items]] > others.max(1)
        works = [
            _Work(
                index=int(i),
                number=data.first + int(i),
                label=None if labels is None else int(labels[i]),
                predicted=None if labels is None else int(predicted[k]),
                clean=bool(clean[k]),
                C=C[k],
                d=d[k],
            )
            for k, i in enumerate(items)
        ]
        seconds = clock.elapsed() / len(works)
        for work in works:
            work.enter(0)
            work.note(CLEAN, OPEN if work.clean else WRONG, seconds)
        self._attack(works, engines)
        return self._climb(works, engines, together=True)

    def _alone(self, work: _Work, engines: Sequence[Engine]) -> tuple[list[_Work], list[_Work]]:
        """The rest of an item's way."""
        return self._climb([work], engines, together=False)

    def _climb(self, works: list[_Work], engines: Sequence[Engine], together: bool) -> tuple[list[_Work], list[_Work]]:
        """The rungs, and then the next models, for items that all stand at the same place: those that are done, and
        those that stopped in front of a rung that has to be asked about them alone."""
        done, waiting = [], []
        while works:
            model = works[0].model
            for k in range(works[0].rung, len(self.ladder)):
                rung, asked = self.ladder[k], [work for work in works if work.wants(self.ladder[k])]
                if together and rung.alone(engines[model]):
                    for work in asked:
                        work.rung = k
                    works = [work for work in works if work not in asked]
                    waiting += asked
                else:
                    self._ask(rung, k, asked, engines)
            for work in works:
                work.outcomes.append(work.outcome)
            done += [work for work in works if work.outcome == CERTIFIED]
            works = [work for work in works if work.outcome != CERTIFIED]
            if model + 1 == len(self.models):
                return done + works, waiting
            works, differing = self._agree(works, model + 1)
            done += differing
            self._attack(works, engines)
        return done, waiting

    def _agree(self, works: list[_Work], model: int) -> tuple[list[_Work], list[_Work]]:
        """Enter a later model: those of which it predicts the same class as the first one, and the others. They are
        done: a later certificate would not agree with those of this model around other points."""
        agreeing, differing = [], []
        for work in works:
            clock = Clock()
            same = self.models[model].outputs(self.data.points(np.array([work.index])))[0].argmax() == work.predicted
            work.enter(model)
            work.note(CLEAN, OPEN if same else DIFFERS, clock.elapsed())
            (agreeing if same else differing).append(work)
        for work in differing:
            work.outcomes.append(DIFFERS)
        return agreeing, differing

    def _limit(self, works: Sequence[_Work], share: float) -> float:
        """Seconds for something that is asked about these items together: each is charged the same part of them."""
        return share * sum(max(0.0, self.timeout - work.spent) for work in works)

    def _property(self, works: Sequence[_Work]) -> Property:
        sets = self.data.input_sets(np.array([work.index for work in works]))
        return rows_property(sets, np.stack([work.C for work in works]), np.stack([work.d for work in works]))

    def _attack(self, works: list[_Work], engines: Sequence[Engine]) -> None:
        """Projected gradients; the judge confirms what they find."""
        works = [work for work in works if work.spent < self.timeout]
        if self.pgd is None or not works:
            return
        model, engine, prop = self.models[works[0].model], engines[works[0].model], self._property(works)
        clock = _Stop(self.stop, self._limit(works, FRONT))
        context = engine.evaluator(SEARCH)
        tensor = context.arithmetic.tensor
        C, d = (tensor(np.stack([getattr(work, name) for work in works])) for name in "Cd")
        batch = InputBatch.of(prop.inputs, context.arithmetic)
        points, values = self.pgd(context, batch, C, d, clock, seed=self.seed + works[0].index)
        points, values = points.double().cpu().numpy(), values.double().cpu().numpy()
        confirm = Confirm(Problem.on(engine, prop), model.judge)
        for box in np.flatnonzero(values <= 0):
            works[box].witness = confirm(int(box), points[box])
        seconds = clock.elapsed() / len(works)
        for work in works:
            work.note(PGD, work.outcome, seconds)

    def _ask(self, rung: Rung, k: int, works: list[_Work], engines: Sequence[Engine]) -> None:
        """Ask rung number k about the open rows of these items, as many of them at once as it can take."""
        works = [work for work in works if work.spent < self.timeout]
        share = FRONT if k + 1 < len(self.ladder) else 1.0
        boxes = self.models[works[0].model].boxes[k] if works else 1
        for start in range(0, len(works), boxes):
            part = works[start : start + boxes]
            limit = self._limit(part, share)
            if rung.complete and part[0].canary:  # nothing is left to find out about an attacked item
                limit = min(limit, CANARY_SECONDS)
            clock = _Stop(self.stop, limit)
            model, engine = self.models[part[0].model], engines[part[0].model]
            before, prop = engine.doubt, self._property(part)
            closed = np.concatenate([work.closed for work in part])
            found = rung.ask(engine, model.judge, prop, np.flatnonzero(~closed), clock)
            seconds, doubt = clock.elapsed() / len(part), (engine.doubt - before) / len(part)
            rows = np.cumsum([0, *(len(work.d) for work in part)])
            for box, work in enumerate(part):
                here = slice(rows[box], rows[box + 1])
                work.witness = work.witness or found.witnesses.get(box)
                self._learn(rung, work, found, here)
                work.doubt += doubt
                work.note(rung.name, work.outcome, seconds)

    def _learn(self, rung: Rung, work: _Work, found: Found, rows: slice) -> None:
        """Take in what a rung found out about an item's rows.

        Raises AbsdomError where a row is proved positive that a replayed counterexample contradicts by more than
        float32 evaluation can err.
        """
        lower, closed = found.lower[rows], found.closed[rows]
        work.lower = np.fmax(work.lower, np.where(closed, np.fmax(lower, 0.0), lower))
        work.closed = work.closed | closed
        work.best = np.fmax(work.best, work.lower.min())  # a NaN among the rows stays
        if work.witness is not None:
            values = work.C @ work.witness.y[: work.C.shape[1]].astype(np.float64) + work.d
            proved = np.where(work.closed, work.lower, -inf)
            noise = NOISE * (1 + np.abs(work.witness.y).max())
            wrong = np.flatnonzero((values <= 0) & (proved - values > noise))
            if len(wrong):
                raise AbsdomError(
                    f"item {work.number} has a replayed counterexample, and a bound of {proved[wrong[0]]:.6g} for a "
                    f"row that is {values[wrong[0]]:.6g} there was proved by {rung!r}: this is a bug of absdom, please "
                    "report it; until then believe no certificate of this method"
                )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
