"""Numbers that move while a network trains: the radius, the weights of terms, the learning rate.

    ramp = Ramp(loss, "eps", 0.0, 0.1, start=data.in_batches(2), length=data.in_batches(10))
    for x, y in data.epoch(0):
        ...                                  # batch k is trained with value_at(k)
        ramp.step()

A schedule moves one attribute of an object (a loss, a regulariser) or one entry of an optimiser's parameter groups. It
counts batches from 0; all lengths are in batches. Making it sets the value of batch 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch.optim import Optimizer

from absdom.errors import UsageError


class Schedule(ABC):
    """Moves `target.name`, or that entry of each parameter group where `target` is an optimiser.

    `settings`: what it was made with, plain values; a saved state fits a schedule of equal settings only.
    """

    def __init__(self, target: object, name: str, **settings):
        self.target, self.name, self.count = target, name, 0
        self.settings = {"kind": type(self).__name__, "name": name, **settings}
        found = [name in group for group in self._groups()] or [hasattr(target, name)]
        if not all(found):
            raise UsageError(f"a schedule of {name!r}: {type(target).__name__} has no such number")
        self._set()

    @abstractmethod
    def value_at(self, k: int) -> float:
        """The value that batch k = 0, 1, ... is trained with (of an optimiser's first group)."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Has the value reached its end?"""

    def step(self) -> None:
        """A batch is done: the value of the next one."""
        self.count += 1
        self._set()

    def state_dict(self) -> dict:
        return {"count": self.count, "settings": dict(self.settings)}

    def load_state_dict(self, state: Mapping) -> None:
        """Go on at the saved batch. Raises UsageError where the state is one of another schedule."""
        for key in {**self.settings, **state["settings"]}:
            here, saved = self.settings.get(key), state["settings"].get(key)
            if here != saved:
                raise UsageError(f"the schedule of {self.name!r} has {key} {here!r} here, {saved!r} in the saved state")
        self.count = state["count"]
        self._set()

    def _groups(self) -> list[dict]:
        return self.target.param_groups if isinstance(self.target, Optimizer) else []

    def _set(self) -> None:
        value = self.value_at(self.count)
        for group in self._groups():
            group[self.name] = value
        if not self._groups():
            setattr(self.target, self.name, value)


class Ramp(Schedule):
    """From `start_value` to `end_value` within `length` batches from batch `start` on; exactly these before and after.

    smooth: the ramp of the interval-bound papers (Xu et al. 2020): a power `exponent` over the first `middle` share of
    the length, then the straight line that continues it without a kink. Else a straight line.
    """

    def __init__(
        self,
        target: object,
        name: str,
        start_value: float,
        end_value: float,
        start: int,
        length: int,
        *,
        smooth: bool = True,
        middle: float = 0.25,
        exponent: float = 4.0,
    ):
        if start < 0 or length < 0:
            raise UsageError(f"a ramp of {name!r} from batch {start} over {length} batches: neither can be below 0")
        if not (0 < middle < 1 and exponent >= 1):
            raise UsageError(f"a ramp of {name!r}: middle {middle} has to be inside (0, 1), exponent {exponent} from 1")
        self.start_value, self.end_value, self.start, self.length = start_value, end_value, start, length
        self.smooth, self.middle, self.exponent = smooth, middle, exponent
        own = {"start_value": start_value, "end_value": end_value, "start": start, "length": length, "smooth": smooth}
        super().__init__(target, name, **own, **({"middle": middle, "exponent": exponent} if smooth else {}))

    def value_at(self, k):
        if k >= self.start + self.length:
            return self.end_value
        if k <= self.start:
            return self.start_value
        share = self._share((k - self.start) / self.length)
        return self.start_value * (1 - share) + self.end_value * share

    def _share(self, t: float) -> float:
        """The share of the way after the share t of the time."""
        if not self.smooth:
            return t
        m, e = self.middle, self.exponent
        scale = 1 / ((1 - m) * e * m ** (e - 1) + m**e)
        return scale * t**e if t <= m else scale * (m**e + e * m ** (e - 1) * (t - m))

    @property
    def finished(self):
        return self.count >= self.start + self.length


class Linear(Ramp):
    """A ramp along a straight line."""

    def __init__(self, target: object, name: str, start_value: float, end_value: float, start: int, length: int):
        super().__init__(target, name, start_value, end_value, start, length, smooth=False)


class Follow(Schedule):
    """start_value - (r / r_end)(start_value - end_value), where r is the value of another ramp: weights that follow eps
    (beta and kappa of Zhang et al. 2020, kappa of Gowal et al. 2018)."""

    def __init__(self, target: object, name: str, start_value: float, end_value: float, ramp: Ramp):
        if not ramp.end_value:
            raise UsageError(f"a schedule of {name!r} cannot follow {ramp.name!r}, which ends at 0")
        self.start_value, self.end_value, self.ramp = start_value, end_value, ramp
        super().__init__(target, name, start_value=start_value, end_value=end_value, ramp=dict(ramp.settings))

    def value_at(self, k):
        share = self.ramp.value_at(k) / self.ramp.end_value
        return self.start_value * (1 - share) + self.end_value * share

    @property
    def finished(self):
        return self.count >= self.ramp.start + self.ramp.length


class Scaled(Schedule):
    """Multiplies what the target had when the schedule was made (each parameter group its own) by `factor_at`."""

    def __init__(self, target: object, name: str, **settings):
        groups = target.param_groups if isinstance(target, Optimizer) else []
        self.base = [group[name] for group in groups if name in group] or [getattr(target, name, None)]
        super().__init__(target, name, base=list(self.base), **settings)

    @abstractmethod
    def factor_at(self, k: int) -> float:
        """The factor of batch k = 0, 1, ..."""

    def value_at(self, k):
        return self.base[0] * self.factor_at(k)

    def _set(self):
        factor, groups = self.factor_at(self.count), self._groups()
        for group, base in zip(groups, self.base):
            group[self.name] = base * factor
        if not groups:
            setattr(self.target, self.name, self.base[0] * factor)


class Piecewise(Scaled):
    """Multiplied by `factors[k]` from batch k on, each on top of those before: {2500: 0.1, 4200: 0.1}."""

    def __init__(self, target: object, name: str, factors: Mapping[int, float]):
        self.factors = {int(k): float(f) for k, f in sorted(factors.items())}
        super().__init__(target, name, factors={str(k): f for k, f in self.factors.items()})

    def factor_at(self, k):
        product = 1.0
        for start, factor in self.factors.items():
            if start <= k:
                product *= factor
        return product

    @property
    def finished(self):
        return self.count >= max(self.factors, default=0)


class Cyclic(Scaled):
    """Triangles of `length` batches: `low` x the target's own value, up to it at batch `peak` of each, and down again
    (Smith 2017; fast adversarial training takes one triangle, with its peak at two fifths)."""

    def __init__(self, target: object, name: str, peak: int, length: int, low: float = 0.0):
        if not 0 < peak < length:
            raise UsageError(f"a cyclic schedule of {name!r}: the peak {peak} has to lie inside the {length} batches")
        self.peak, self.length, self.low = peak, length, low
        super().__init__(target, name, peak=peak, length=length, low=low)

    def factor_at(self, k):
        k = k % self.length
        height = k / self.peak if k <= self.peak else (self.length - k) / (self.length - self.peak)
        return self.low + (1 - self.low) * height

    @property
    def finished(self):
        return self.count >= self.length
