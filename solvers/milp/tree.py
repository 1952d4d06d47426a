"""Branch and bound over the choices of an encoding, whose leaves are closed by safe bounds of linear programs alone.

The tree is finite, and with all choices decided the program of a complete encoding is exact (Tjeng et al. 2019 for the
encoding; Land and Doig 1960 for the search). Solvers are not believed anywhere: not a value, and not a status.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from absdom.encoding import Encoding, Objective
from absdom.solvers.lp.backend import Program, open_program
from absdom.solvers.milp.branching import Branching, Decision
from absdom.types import Clock

TALK = 1.0  # seconds between two words of progress


@dataclass(order=True)
class Leaf:
    """A part of the encoding that is open: where it stands in the queue, the bound it inherits, and its decisions."""

    rank: tuple[float, ...]
    bound: float = field(compare=False)
    decisions: tuple[Decision, ...] = field(compare=False)
    estimate: float = field(compare=False, default=0.0)


@dataclass(eq=False)
class Tree:
    """The search for the least objective over an encoding, or (`goal`) for a proof that it is above the goal.

    evaluate(inputs "n") gives the objective at an input of the network, if there is an evaluation; gap: how far below
    the least value the bound may stay, relative to 1 + |value|; tolerance: of the linear programs. What it found:
    `lower` is a bound that holds over the reals, whenever it is read; `value` the least objective seen, at a point of
    the encoding or of the network; `attained` that at the network's inputs `inputs`.
    """

    encoding: Encoding
    objective: Objective
    goal: float | None = None
    gap: float = 5e-5
    evaluate: Callable[[np.ndarray], float] | None = None
    report: Callable[[str], None] = lambda text: None
    solver: str = "auto"
    tolerance: float | None = None

    def __post_init__(self):
        self.branching = Branching(self.encoding)
        self.value, self.attained = math.inf, math.inf
        self.inputs: np.ndarray | None = None
        self.closed = math.inf  # the least bound of closed leaves
        self.leaves = self.bounded = 0  # leaves closed, programs solved
        self.stop_at = math.inf
        self.queue: list[Leaf] = [Leaf((0.0,), -math.inf, ())]
        self.running: dict[int, Leaf] = {}  # by thread
        self.undecidable = False
        self.lock = threading.Condition()
        self.told = Clock(TALK)

    @property
    def lower(self) -> float:
        with self.lock:
            return min([self.closed, *(leaf.bound for leaf in (*self.queue, *self.running.values()))])

    @property
    def done(self) -> bool:
        """Is there nothing to do, or nothing that more work would change?"""
        with self.lock:
            return self._ended() or not (self.queue or self.running)

    def offer(self, inputs: np.ndarray) -> None:
        """An input of the network: its objective is an upper bound of the least one."""
        if self.evaluate is None:
            return
        value = self.evaluate(inputs)
        with self.lock:
            if value < self.attained:
                self.attained, self.inputs = value, inputs
            self.value = min(self.value, value)

    def run(self, clock: Clock, threads: int = 1, leaves: float = math.inf) -> None:
        """Search until all is closed, the goal turned out to be out of reach, or the clock passed.

        leaves: so many programs are enough for now; a later call goes on.
        """
        self.stop_at = self.bounded + leaves
        helpers = [threading.Thread(target=self._work, args=(clock,), daemon=True) for _ in range(threads - 1)]
        for helper in helpers:
            helper.start()
        try:
            self._work(clock)
        finally:
            for helper in helpers:
                helper.join()

    def _ended(self) -> bool:
        return self.undecidable or (self.goal is not None and self.value <= self.goal)

    def _pauses(self, clock: Clock) -> bool:
        return clock.passed() or self.bounded >= self.stop_at or self._ended()

    def _work(self, clock: Clock) -> None:
        me, program = threading.get_ident(), open_program(self.encoding, self.solver, self.tolerance)
        while True:
            with self.lock:
                while not self.queue and self.running and not self._pauses(clock):
                    self.lock.wait(0.05)
                if self._pauses(clock) or not self.queue:
                    self.lock.notify_all()
                    return
                leaf = self.running[me] = heapq.heappop(self.queue)
            try:
                while leaf is not None:  # dive: the likelier child at once, the other one into the queue
                    children = self._expand(leaf, program, clock)
                    with self.lock:
                        del self.running[me]
                        leaf = None
                        if children and not self._pauses(clock):
                            leaf = self.running[me] = children.pop(0)
                        for child in children:
                            heapq.heappush(self.queue, child)
                        self.lock.notify_all()
            finally:  # what was not finished is still open
                with self.lock:
                    if (open_leaf := self.running.pop(me, None)) is not None:
                        heapq.heappush(self.queue, open_leaf)

    def _enough(self, bound: float) -> bool:
        if self.goal is not None:
            return bound > self.goal
        return bound >= self.value - self.gap * (1 + abs(self.value))

    def _expand(self, leaf: Leaf, program: Program, clock: Clock) -> list[Leaf]:
        """Bound a leaf: nothing if that closes it, else its children, the one to look at first in front."""
        lower, upper, allowed = self.branching.apply(leaf.decisions, self.encoding.lower, self.encoding.upper)
        if (lower > upper).any():  # bounds that hold over the reals: there is nothing in between
            return self._close(math.inf)
        if self._enough(leaf.bound):
            return self._close(leaf.bound)
        found = program.minimise(self.objective, lower, upper, clock.left())
        self.bounded += 1
        if found.status in ("stopped", "failed") and clock.passed():
            return [leaf]
        bound = max(leaf.bound, self._safe(found, lower, upper))
        if leaf.decisions and math.isfinite(leaf.bound):
            self.branching.learn(leaf.decisions[-1].choice, leaf.estimate, min(bound, self.value) - leaf.bound)
        if self._enough(bound):
            return self._close(bound)
        if found.point is None:
            split = self.branching.any_open(allowed)
        else:
            self.offer(
                np.clip(found.point[self.encoding.inputs], lower[self.encoding.inputs], upper[self.encoding.inputs])
            )
            split = self.branching.choose(found.point, found.multipliers, allowed)
            if split is None:  # a point of the encoding, up to tolerances
                if self.goal is None:
                    with self.lock:
                        self.value = min(self.value, found.value)
                if self._enough(bound):
                    return self._close(bound)
                split = self.branching.any_open(allowed)
        if split is None or self._ended():
            return self._close(bound)
        c, side, estimate = split
        self._talk()
        sides = (side, allowed[c] & ~side)
        return [
            Leaf(self._rank(bound, len(leaf.decisions), k), bound, (*leaf.decisions, Decision(c, s)), estimate)
            for k, s in enumerate(sides)
        ]

    def _rank(self, bound: float, depth: int, turn: int) -> tuple[float, ...]:
        """With a goal all leaves have to be closed, and deep ones start warmest; else the lowest comes first."""
        return (-float(depth), float(turn)) if self.goal is not None else (bound, -float(depth), float(turn))

    def _safe(self, found, lower: np.ndarray, upper: np.ndarray) -> float:
        """The safe bound from a solution; from a ray, scaled up until it is above all that matters."""
        if found.status != "infeasible":
            return self.encoding.safe_bound(self.objective, found.multipliers, lower, upper)
        start = self.encoding.safe_bound(self.objective, np.zeros_like(found.multipliers), lower, upper)
        zero = Objective(np.zeros_like(self.objective.slope))
        gain = self.encoding.safe_bound(zero, found.multipliers, lower, upper)
        return math.inf if gain > 0 else start  # 0 is the least value of 0 where there is any point

    def _close(self, bound: float) -> list[Leaf]:
        with self.lock:
            self.closed = min(self.closed, bound)
            self.undecidable |= self.goal is not None and bound <= self.goal
            self.leaves += 1
        self._talk()
        return []

    def _talk(self) -> None:
        if not self.told.passed():
            return
        self.told = Clock(TALK)
        with self.lock:
            left = len(self.queue) + len(self.running)
            text = f"{self.leaves:,} leaves closed, {left:,} open, bound {self.lower:.6g}"
            value = "" if math.isinf(self.value) else f", best point {self.value:.6g}"
        self.report(text + value)
