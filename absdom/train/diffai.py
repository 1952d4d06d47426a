"""Training by abstract interpretation (DiffAI: Mirman et al. 2018), and mixed goals (Mirman et al. 2019, "A provable
defense for deep residual networks").

A goal says what a batch's loss is taken at: its points, an attack's, or all of a set by a recipe. Goals mix:

    DiffAI(net, spec, eps=0.1, goal=LinMix(Attacked(PGD()), Abstract("ibp"), weight=0.1))
    DiffAI(net, spec, eps=0.1, goal=Abstract("hybrid-zonotope(slope=adaptive)"))
    DiffAI(net, spec, eps=0.1, goal=Between(PGD(), "zonotope"))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from absdom.domain import Recipe
from absdom.errors import UsageError
from absdom.sets import InputBatch
from absdom.train.attacks import Attack
from absdom.train.bounds import estimates
from absdom.train.live import Live, Propagation
from absdom.train.loss import Loss, Step
from absdom.train.task import Specification, Task

Terms = dict[str, torch.Tensor]


class Goal(ABC):
    """What the loss of a batch is taken at. Goals with `parts` have a `weight`, which schedules may move."""

    @abstractmethod
    def terms(self, step: Step) -> tuple[Terms, torch.Tensor | None]:
        """Scalars by name, which sum to the goal's loss; lower bounds "B R" of the rows on the task's sets, if sound
        ones were made."""

    def parts(self) -> tuple[Goal, ...]:
        """The goals within."""
        return ()


@dataclass
class Clean(Goal):
    """The points themselves."""

    def terms(self, step):
        return {"clean": _loss(step.task, step.outputs)}, None


@dataclass
class Attacked(Goal):
    """Points that an attack found."""

    attack: Attack

    def terms(self, step):
        return {"attacked": _loss(step.task, step.attacked(self.attack)[1])}, None


@dataclass
class Abstract(Goal):
    """The whole set: the loss of lower bounds of the rows.

    corner: bounds of the rows at the worst corner of the outputs' intervals (of the label's score its lower end, of the
    others their upper ones), as the paper's box loss; else those that the domain has of the rows themselves, which are
    tighter.
    """

    recipe: str | Recipe = "hybrid-zonotope"
    corner: bool = False

    def __post_init__(self):
        self._estimates = estimates(self.recipe)

    def terms(self, step):
        margins = _margins(step.propagate(self.recipe), step.task, self.corner)
        return {"bound": step.task.loss(margins).mean()}, None if self._estimates else margins


@dataclass
class Between(Goal):
    """The box between a point and what an attack found (AdvDom), by a recipe: no bound of the whole set."""

    attack: Attack
    recipe: str | Recipe = "hybrid-zonotope"
    corner: bool = False

    def terms(self, step):
        found, point = step.points(self.attack).flatten(1), step.task.x.flatten(1)
        sets = InputBatch(torch.minimum(found, point), torch.maximum(found, point))
        margins = _margins(step.propagate(self.recipe, sets), step.task, self.corner)
        return {"between": step.task.loss(margins).mean()}, None


@dataclass
class LinMix(Goal):
    """(1 - weight) x one goal's loss + weight x another's; `weight` is in [0, 1] and can be moved by schedules."""

    first: Goal
    second: Goal
    weight: float = 0.1

    def __post_init__(self):
        _check_share("weight", self.weight)

    def parts(self):
        return self.first, self.second

    def terms(self, step):
        found: Terms = {}
        best = None
        for goal, share in ((self.first, 1 - self.weight), (self.second, self.weight)):
            if share > 0:
                terms, margins = goal.terms(step)
                best = margins if best is None else best if margins is None else torch.maximum(best, margins)
                for name, value in terms.items():
                    found[name] = found.get(name, 0) + share * value
        return found, best


@dataclass
class Coin(Goal):
    """For each batch one of two goals at random, the second one with a probability (`weight`), by torch's generator."""

    first: Goal
    second: Goal
    weight: float = 0.5

    def __post_init__(self):
        _check_share("weight", self.weight)

    def parts(self):
        return self.first, self.second

    def terms(self, step):
        chosen = self.second if float(torch.rand(())) < self.weight else self.first
        return chosen.terms(step)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UsageError(f"{name} {value}: give a number between 0 and 1")


def _loss(task: Task, outputs: torch.Tensor) -> torch.Tensor:
    return task.loss(task.margins(outputs)).mean()


def _margins(run: Propagation, task: Task, corner: bool) -> torch.Tensor:
    """Lower bounds "B R" of the task's rows from a run."""
    if not corner:
        return run.lower_bounds(task.C, task.d)
    ends = run.bounds[run.context.schedule.target]
    low, high = (end.flatten(1)[:, :, None] for end in (ends.lower, ends.upper))
    found = (torch.bmm(task.C.clamp(min=0), low) + torch.bmm(task.C.clamp(max=0), high))[:, :, 0]
    return found if task.d is None else found + task.d


class DiffAI(Loss):
    """The loss of a goal: by default that of bounds by hybrid zonotopes, whose new errors go to a box part.

    goal: what is trained on; None: all of the set, by `recipe`. Recipes of the paper's domains: `ibp` (Box),
    `hybrid-zonotope` (least error at each ReLU; the paper's Smooth takes the same slopes with twice the error),
    `hybrid-zonotope(slope=adaptive)` (Switch), `hybrid-zonotope(slope=flat)` (Box at each ReLU), `zonotope` (DeepZ).
    """

    def __init__(
        self,
        module: torch.nn.Module | Live,
        spec: Specification,
        *,
        eps: float,
        recipe: str | Recipe = "hybrid-zonotope",
        corner: bool = False,
        goal: Goal | None = None,
        **more,
    ):
        super().__init__(module, spec, eps=eps, **more)
        self.goal = Abstract(recipe, corner) if goal is None else goal

    def terms(self, step):
        return self.goal.terms(step)

    def state_dict(self):
        return super().state_dict() | {f"goal.{i}.weight": goal.weight for i, goal in self._mixtures()}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        for i, goal in self._mixtures():
            goal.weight = state[f"goal.{i}.weight"]

    def _mixtures(self) -> list[tuple[int, LinMix | Coin]]:
        """The mixtures within the goal, numbered from the outside."""
        found, left = [], [self.goal]
        while left:
            goal = left.pop(0)
            left += goal.parts()
            if goal.parts():
                found.append(goal)
        return list(enumerate(found))
