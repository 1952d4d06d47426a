"""What certifying a data set has found, item by item and as fractions."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from math import isfinite, nan

import numpy as np

from absdom.types import Program, largest

CERTIFIED, ATTACKED, OPEN, DIFFERS = "certified", "attacked", "open", "differs"
OUTCOMES = (CERTIFIED, ATTACKED, OPEN, DIFFERS)


@dataclass(frozen=True)
class Item:
    """One item of the data. `outcomes`: per model that was asked, in their order, what it said of the *predicted* class
    (of the rows, where the data hold rows): certified, attacked, open, or differs (it predicts another class than the
    first model). `clean`: the label, or all rows, hold at the point itself.

    `bound`: the best least proved bound (None: nothing was bounded; a bound need not become better than positive).
    `seconds` of one worker; `doubt`: the probability that random recipes were wrong here, at most; `out_of_time`: open
    because the time for an item ended.
    """

    number: int
    label: int | None
    predicted: int | None
    clean: bool
    outcomes: tuple[str, ...]
    bound: float | None = None
    seconds: float = 0.0
    doubt: float = 0.0
    out_of_time: bool = False

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
        return {**asdict(self), "bound": bound, "outcomes": list(self.outcomes)}

    @staticmethod
    def from_json(value: dict) -> Item:
        """Raises KeyError, TypeError or ValueError for what is no item."""
        item = Item(**{**value, "outcomes": tuple(value["outcomes"])})
        numbers = (item.seconds, item.doubt, *(v for v in (item.bound,) if v is not None))
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

    seconds: of this run; `fresh`: how many items it did (the others were known); `programs`: the predicted sizes of
    those that it asked for.
    """

    items: tuple[Item, ...]
    models: tuple[str, ...]
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

    def stages(self) -> list[dict]:
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
            "stages": self.stages(),
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
        for k, stage in enumerate(self.stages(), 1):
            counts = ", ".join(f"{stage[outcome]} {outcome}" for outcome in OUTCOMES)
            lines.append(f"model {k}: asked about {stage['asked']}: {counts}  {stage['model']}")
        if self.out_of_time:
            lines.append(f"{self.out_of_time} items ran out of their time and are open")
        lines += map(str, largest(self.programs))
        seconds = float(np.mean([item.seconds for item in self.items]))
        lines.append(f"{self.seconds:.3f} s for {self.fresh} items, {seconds:.4f} s of one worker per item")
        return "\n".join(lines)
