"""What certifying a data set has found, item by item and as fractions."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from math import isfinite, nan
from typing import NamedTuple

import numpy as np

from absdom.types import Program, largest

CERTIFIED, ATTACKED, OPEN, DIFFERS, WRONG = "certified", "attacked", "open", "differs", "wrong"
OUTCOMES = (CERTIFIED, ATTACKED, OPEN, DIFFERS)
CLEAN, PGD = "clean", "pgd"  # the stages in front of a method's own


@dataclass(frozen=True)
class Step:
    """What an item was asked: of which model (its place in the cascade), by which stage (clean, pgd, or a rung of the
    ladder), what was known of it afterwards (an outcome, or that it is wrong itself), and the seconds charged to it."""

    model: int
    stage: str
    outcome: str
    seconds: float

    @staticmethod
    def from_json(value: dict) -> Step:
        """Raises TypeError or ValueError for what is no step."""
        step = Step(**value)
        fits = type(step.model) is int and type(step.stage) is str and type(step.seconds) in (int, float)
        if not (fits and step.outcome in (*OUTCOMES, WRONG) and isfinite(step.seconds)):
            raise ValueError("no step")
        return step


class Count(NamedTuple):
    """What a stage did to the items that were not decided before: of those it was asked about, how many it certified
    and how many it refuted (wrong themselves, attacked, differing); `open`, how many were undecided after it."""

    model: int
    stage: str
    asked: int
    certified: int
    refuted: int
    open: int
    seconds: float


@dataclass(frozen=True)
class Item:
    """One item of the data. `outcomes`: per model that was asked, in their order, what it said of the *predicted* class
    (of the rows, where the data hold rows): certified, attacked, open, or differs (it predicts another class than the
    first model). `clean`: the label, or all rows, hold at the point itself.

    `trace`: all that the item was asked, in order; those that were decided may have been asked more.
    `bound`: the best least proved bound (None: nothing was bounded; a bound need not become better than positive; 0
    where a search proved without one). `doubt`: the probability that random recipes were wrong here, at most;
    `out_of_time`: open because the time for an item ended.
    """

    number: int
    label: int | None
    predicted: int | None
    clean: bool
    outcomes: tuple[str, ...]
    trace: tuple[Step, ...] = ()
    bound: float | None = None
    doubt: float = 0.0
    out_of_time: bool = False

    @property
    def seconds(self) -> float:
        """Of one worker."""
        return sum(step.seconds for step in self.trace)

    @property
    def flagged(self) -> bool:
        """Detection (Wong and Kolter 2018, corollary 2): may a point of the set be predicted otherwise?"""
        return CERTIFIED not in self.outcomes

    @property
    def certified(self) -> bool:
        """Proved correct on the whole set."""
        return self.clean and not self.flagged

    @property
    def attacked(self) -> bool:
        """Wrong itself, or every model that could certify it has a counterexample in the set."""
        return not self.clean or all(outcome in (ATTACKED, DIFFERS) for outcome in self.outcomes)

    def to_json(self) -> dict:
        bound = self.bound if self.bound is None or isfinite(self.bound) else None
        trace = [asdict(step) for step in self.trace]
        return {**asdict(self), "bound": bound, "outcomes": list(self.outcomes), "trace": trace}

    @staticmethod
    def from_json(value: dict) -> Item:
        """Raises KeyError, TypeError or ValueError for what is no item."""
        trace = tuple(Step.from_json(step) for step in value["trace"])
        item = Item(**{**value, "outcomes": tuple(value["outcomes"]), "trace": trace})
        numbers = (item.doubt, *(v for v in (item.bound,) if v is not None))
        whole = (item.number, *(v for v in (item.label, item.predicted) if v is not None))
        fits = (
            all(type(v) is int for v in whole)
            and all(type(v) in (int, float) and isfinite(v) for v in numbers)
            and type(item.clean) is bool
            and type(item.out_of_time) is bool
            and item.outcomes
            and not set(item.outcomes) - set(OUTCOMES)
        )
        if not fits:
            raise ValueError("no item")
        return item


@dataclass(frozen=True, eq=False)
class Certification:
    """The items in the order of the data, and what they add up to. Shares are between 0 and 1.

    stages: what items are asked of each model, in order; seconds: of this run; `fresh`: how many items it did (the
    others were known); `programs`: the predicted sizes of those that it asked for.
    """

    items: tuple[Item, ...]
    models: tuple[str, ...]
    stages: tuple[str, ...]
    attack: bool
    seconds: float
    fresh: int
    programs: tuple[Program, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    @property
    def doubt(self) -> float:
        """The probability that random recipes were wrong anywhere, at most."""
        return min(1.0, sum(item.doubt for item in self.items))

    @property
    def clean(self) -> np.ndarray:
        return np.array([item.clean for item in self.items])

    @property
    def attacked(self) -> np.ndarray:
        return np.array([item.attacked for item in self.items])

    @property
    def certified(self) -> np.ndarray:
        return np.array([item.certified for item in self.items])

    @property
    def flagged(self) -> np.ndarray:
        return np.array([item.flagged for item in self.items])

    @property
    def predicted(self) -> np.ndarray:
        """-1 where the data hold rows, not labels."""
        return np.array([-1 if item.predicted is None else item.predicted for item in self.items])

    @property
    def bound(self) -> np.ndarray:
        """NaN where nothing was bounded."""
        return np.array([nan if item.bound is None else item.bound for item in self.items])

    @property
    def clean_error(self) -> float:
        return float((~self.clean).mean())

    @property
    def attacked_error(self) -> float | None:
        """None without an attack."""
        return float(self.attacked.mean()) if self.attack else None

    @property
    def certified_error(self) -> float:
        return float((~self.certified).mean())

    @property
    def out_of_time(self) -> int:
        """How many items are open because their time ended."""
        return sum(item.out_of_time for item in self.items)

    def counts(self) -> list[Count]:
        """Per model and stage what became of the items; those that are wrong themselves are refuted once, at first."""
        found = []
        for model in range(len(self.models)):
            left = [item for item in self.items if len(item.outcomes) > model and (model == 0 or item.clean)]
            traces = [{step.stage: step for step in item.trace if step.model == model} for item in left]
            everyone = [step for item in self.items for step in item.trace if step.model == model]
            for stage in self.stages:
                asked = [trace[stage].outcome for trace in traces if stage in trace]
                traces = [trace for trace in traces if stage not in trace or trace[stage].outcome == OPEN]
                certified, still = asked.count(CERTIFIED), asked.count(OPEN)
                seconds = sum(step.seconds for step in everyone if step.stage == stage)
                refuted = len(asked) - certified - still
                found.append(Count(model, stage, len(asked), certified, refuted, len(traces), seconds))
        return found

    def cascade(self) -> list[dict]:
        """Per model: how many items it was asked about, and what it said of them."""
        found = []
        for k, model in enumerate(self.models):
            asked = [item for item in self.items if len(item.outcomes) > k]
            count = Counter(item.outcomes[k] for item in asked)
            correct = sum(item.clean and item.outcomes[k] == CERTIFIED for item in asked)
            found.append(
                {"model": model, "asked": len(asked), **{o: count[o] for o in OUTCOMES}, "certified_correct": correct}
            )
        return found

    def to_json(self) -> dict:
        return {
            "n": len(self),
            "clean_error": self.clean_error,
            "attacked_error": self.attacked_error,
            "certified_error": self.certified_error,
            "flagged": float(self.flagged.mean()),
            "out_of_time": self.out_of_time,
            "cascade": self.cascade(),
            "stages": [count._asdict() for count in self.counts()],
            "seconds": self.seconds,
            "fresh": self.fresh,
            "seconds_per_image": float(np.mean([item.seconds for item in self.items])),
            "failure_probability": self.doubt,
            "programs": [program.to_json() for program in self.programs],
        }

    def text(self) -> str:
        """For people."""
        count = len(self)
        lines = [f"{count} items"]
        shares = [("clean error", self.clean_error), ("attacked error", self.attacked_error)]
        shares += [("certified error", self.certified_error), ("flagged", float(self.flagged.mean()))]
        for name, share in shares:
            lines.append(f"{name:<16} " + ("not attacked" if share is None else f"{100 * share:7.3f} %"))
        lines += self._table()
        for k, stage in enumerate(self.cascade() if len(self.models) > 1 else (), 1):
            counts = ", ".join(f"{stage[outcome]} {outcome}" for outcome in OUTCOMES)
            lines.append(f"model {k}: asked about {stage['asked']}: {counts}  {stage['model']}")
        if self.out_of_time:
            lines.append(f"{self.out_of_time} items ran out of their time and are open")
        lines += map(str, largest(self.programs))
        seconds = float(np.mean([item.seconds for item in self.items]))
        lines.append(f"{self.seconds:.3f} s for {self.fresh} items, {seconds:.4f} s of one worker per item")
        return "\n".join(lines)

    def _table(self) -> list[str]:
        """Per stage what it was asked and what it decided."""
        head = ("stage", "asked", "certified", "refuted", "open", "seconds")
        rows = [head]
        for c in self.counts():
            name = c.stage if len(self.models) == 1 else f"model {c.model + 1}: {c.stage}"
            rows.append((name, *map(str, (c.asked, c.certified, c.refuted, c.open)), f"{c.seconds:.3f}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
