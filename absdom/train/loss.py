"""Losses: callables of a batch whose total is differentiated, with their terms beside it.

    loss = IBP(net, Classification(), eps=0.1)
    out = loss(x, y)
    out.total.backward()

A loss holds no optimiser and no schedule. What schedules move (eps, kappa, ...) are plain attributes, and
`state_dict` has them. A `Step` is one call: it evaluates the module and bounds it, each at most once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from absdom.domain import Recipe
from absdom.errors import UsageError
from absdom.sets import InputBatch
from absdom.train.batch_norm import CLEAN, BatchNormPolicy
from absdom.train.latent import Cut
from absdom.train.live import Live, Propagation, Statistics
from absdom.train.noise import WeightNoise
from absdom.train.task import Specification, Task


@dataclass(frozen=True, eq=False)
class Output:
    """What a loss gives: the mean over the batch that is differentiated, and what can be logged (without gradients).

    terms: the weighted parts, by name; they sum to `total`. outputs: the clean outputs "B K", and margins: lower
    bounds "B R" of the task's rows over its sets, each None where the loss computed none (what a loss trains on need
    not be a bound).
    """

    total: torch.Tensor
    terms: dict[str, torch.Tensor]
    task: Task
    outputs: torch.Tensor | None = None
    margins: torch.Tensor | None = None


class Step:
    """One call of a loss: a task, and what was computed about it so far.

    at: the task of the same batch at another radius.
    """

    def __init__(self, live: Live, task: Task, policy: BatchNormPolicy, at: Callable[[float], Task] | None = None):
        self.live, self.task, self.policy, self._at = live, task, policy, at
        self._outputs: torch.Tensor | None = None
        self._statistics: Statistics | None = None
        self._runs: dict = {}

    def task_at(self, eps: float) -> Task:
        """The task of the same batch at another radius."""
        return self._at(eps)

    @property
    def outputs(self) -> torch.Tensor:
        """The clean outputs "B K", normalised as the policy says."""
        if self._outputs is None:
            if self.policy.source == "clean" and self._statistics is None:
                self._outputs, self._statistics = self.live.forward(self.task.x, batch=self.policy.batch(self.live))
            else:
                self._outputs = self.live.evaluate(self.task.x, self.statistics)
        return self._outputs

    @property
    def clean(self) -> torch.Tensor | None:
        """The clean outputs if they were computed."""
        return self._outputs

    @property
    def statistics(self) -> Statistics:
        """What the batch norms of bounds and attacks use. With the policy `attacked`: the running ones, until `attack`
        was called."""
        if self._statistics is None:
            if self.policy.source == "clean" and self.live.norms:
                self.outputs  # noqa: B018  (the clean pass makes them)
            else:
                return {}
        return self._statistics

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs "B K" at other points, under the same statistics."""
        return self.live.evaluate(x, self.statistics)

    def points(self, attack, radius: float = 1.0) -> torch.Tensor:
        """Points "B *n" that an attack found in the task's sets, or in those at `radius` times its eps."""
        return self._attack(attack, radius)[0]

    def attacked(self, attack, radius: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        """The same points, and the outputs there "B K", with gradients."""
        x, outputs = self._attack(attack, radius)
        return x, self.evaluate(x) if outputs is None else outputs

    def _attack(self, attack, radius: float) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Points, and the outputs there where their pass is the one that sets the statistics."""
        fixed = {k: v.detach() for k, v in self.statistics.items()}
        task = self.task if radius == 1 else self.task_at(radius * self.task.eps)
        x = attack(lambda x: self.live.evaluate(x, fixed), task).detach()
        if self.policy.source != "attacked" or self._statistics is not None:
            return x, None
        outputs, self._statistics = self.live.forward(x, batch=self.policy.batch(self.live))
        return x, outputs

    def propagate(self, recipe: str | Recipe, sets: InputBatch | None = None, node: int | None = None) -> Propagation:
        """A run of a recipe over the task's sets, or others, up to a node (default: the output); the same one is run
        once."""
        sets = self.task.sets if sets is None else sets
        key = (recipe, id(sets), node)
        if key not in self._runs:
            self._runs[key] = self.live.propagate(recipe, sets, self.statistics, node)
        return self._runs[key]

    def cut(self, layer: str) -> Cut:
        """The network cut behind a layer, by its name in the module."""
        return self.live.cut(layer, self.statistics)

    def margins(self, recipe: str | Recipe, sets: InputBatch | None = None) -> torch.Tensor:
        """Lower bounds "B R" of the task's rows, by any recipe."""
        return self.propagate(recipe, sets).lower_bounds(self.task.C, self.task.d)


class Regulariser(ABC):
    """A term beside a loss; `name` is the term's. State (as of a ramp) goes into `state`."""

    name: ClassVar[str]
    state: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __call__(self, step: Step, loss: Loss) -> torch.Tensor:
        """The term, a scalar that is added to the total."""


class Loss(ABC):
    """A loss of a module under a specification, at radius `eps` (in the units of the data).

    module: any torch module with one input and one output per item (or a Live); it is captured at the first call.
    batch_norm: whose statistics bounds use. regularisers: terms that are added. noise: shifts of the weights at which
    the loss and its gradients are taken (where gradients are wanted; then there are no margins). Raises ModelError and
    UnsupportedOp for a module that cannot be captured, PropertyError for a batch that does not fit the specification.
    """

    state: ClassVar[tuple[str, ...]] = ("eps",)  # the attributes that schedules move

    def __init__(
        self,
        module: torch.nn.Module | Live,
        spec: Specification,
        *,
        eps: float,
        batch_norm: BatchNormPolicy = CLEAN,
        regularisers: Sequence[Regulariser] = (),
        noise: WeightNoise | None = None,
    ):
        self.module = module.module if isinstance(module, Live) else module
        self.spec, self.eps, self.batch_norm, self.regularisers = spec, eps, batch_norm, tuple(regularisers)
        self.noise = noise
        self._live = module if isinstance(module, Live) else None

    @abstractmethod
    def terms(self, step: Step) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """The weighted terms "scalar" by name, which sum to the loss, and lower bounds "B R" of the rows if sound ones
        were computed."""

    def live(self, x: torch.Tensor) -> Live:
        """The captured module; x "B *n" is an example."""
        if self._live is None:
            self._live = Live(self.module, x[:1])
        return self._live

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> Output:
        if torch.is_autocast_enabled(x.device.type):
            raise UsageError("bounds under autocast (mixed precision) are refused: leave that region for the loss")
        live = self.live(x)
        self.spec.check(x, y, live.outputs)

        def at(eps: float) -> Task:
            return self.spec.task(x, y, eps, live.outputs)

        step = Step(live, at(self.eps), self.batch_norm, at)
        noisy = self.noise is not None and torch.is_grad_enabled()
        with live.shifted(self.noise.shifts(live) if noisy else {}):
            terms, margins = self.terms(step)
            for regulariser in self.regularisers:
                terms[regulariser.name] = regulariser(step, self)
        total = sum(terms.values())
        margins = None if noisy else margins  # those of another network
        return Output(
            total, {k: v.detach() for k, v in terms.items()}, step.task,
            None if step.clean is None else step.clean.detach(), None if margins is None else margins.detach(),
        )  # fmt: skip

    def state_dict(self) -> dict:
        """The numbers that schedules move, of the regularisers too."""
        found = {name: getattr(self, name) for name in self.state}
        for r in self.regularisers:
            found |= {f"{r.name}.{name}": getattr(r, name) for name in r.state}
        return found

    def load_state_dict(self, state: dict) -> None:
        for name in self.state:
            setattr(self, name, state[name])
        for r in self.regularisers:
            for name in r.state:
                setattr(r, name, state[f"{r.name}.{name}"])
