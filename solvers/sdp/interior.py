"""The recipe `sdp-fo`: the semidefinite program's dual in torch, any iterate of which gives a bound.

Dathathri et al. (NeurIPS 2020) ascend this dual by its gradient, with lambda_min of its matrix as a penalty that they
estimate. Here iterates stay where the matrix is positive definite (see central_path), so that a proof is one
factorisation, and a few dozen steps that solve for all multipliers at once take the place of thousands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from absdom import registry
from absdom.domain import Answer, Encoded, Question, Recipe
from absdom.encoding import Size, Style
from absdom.errors import UsageError
from absdom.registry import register_recipe
from absdom.solvers.sdp.central_path import Dual, State, follow
from absdom.solvers.sdp.lift import Lifted, lift
from absdom.solvers.sdp.safe import Multipliers, safe_bound
from absdom.types import Clock

COPIES = 14  # matrices of the order of the multipliers that live at once


@dataclass(frozen=True)
class CentralPath(Encoded):
    """Bounds by steps along the central path of the semidefinite program's dual, on a GPU where there is one.

    pre: the recipe of the bounds that lines are built from; None: this recipe, layer by layer. steps: how many at most;
    tolerance: the relative distance from the best bound at which to stop.
    """

    pre: Recipe | None = None
    steps: int = 100
    tolerance: float = 1e-4
    device: str = "auto"
    budget: float = 4000.0
    name: ClassVar[str] = "sdp-fo"

    def __post_init__(self):
        if self.steps < 0:
            raise UsageError(f"sdp-fo(steps={self.steps}): the number of steps is at least 0")
        if not 0 < self.tolerance < math.inf:
            raise UsageError(f"sdp-fo(tolerance={self.tolerance}): a tolerance is positive")
        if self.device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"sdp-fo(device={self.device}): not one of auto, cpu, cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("sdp-fo(device=cuda): torch finds no GPU here; leave the device out")

    @property
    def style(self) -> Style:
        return Style(quadratics=True)

    def size(self, predicted: Size) -> Size:
        order = 2 + sum(own for own, _ in predicted.layers)
        multipliers = order + 2 * predicted.rows + predicted.quadratics
        return predicted._replace(blocks=(order,), megabytes=_megabytes(order, multipliers))

    def solve(self, question: Question) -> Answer:
        encoding = question.encode(self.style)
        answer = Answer.empty(question.groups, len(encoding.inputs))
        goal = np.full(question.groups, np.inf) if question.goal is None else question.goal
        members = [np.flatnonzero(question.group == g) for g in range(question.groups)]
        single = [g for g, rows in enumerate(members) if len(rows) == 1]
        if single:
            every = [encoding.objective(question.C[members[g]].toarray()[0], question.d[members[g][0]]) for g in single]
            first = lift(encoding, every[0])
            programs = [first, *(first.with_objective(objective) for objective in every[1:])]
            each = _megabytes(first.order, first.order + len(first.row_slack) + len(first.form))
            chunk = max(1, int(min(self.budget / each, len(single))))
            for at in range(0, len(single), chunk):
                part = np.array(single[at : at + chunk])
                share = Clock(question.clock.left() * len(part) / (len(single) - at + question.groups - len(single)))
                self._bound(programs[at : at + chunk], goal[part], share, answer, part, encoding)
        others = [g for g in range(question.groups) if len(members[g]) > 1]
        for k, g in enumerate(others):
            whole, objective = encoding.with_maximum(question.C[members[g]].toarray(), question.d[members[g]])
            share = Clock(question.clock.left() / (len(others) - k))
            self._bound([lift(whole, objective)], goal[[g]], share, answer, np.array([g]), whole)
        return answer

    def _bound(self, programs: list[Lifted], goal, clock: Clock, answer: Answer, groups, encoding) -> None:
        """Fill in the answer for groups whose programs differ in their objectives only."""
        kept = [k for k, program in enumerate(programs) if program.is_bounded]
        if clock.passed() or not kept:
            return
        programs, goal, groups = [programs[k] for k in kept], goal[kept], groups[kept]
        cuda = self.device != "cpu" and torch.cuda.is_available()
        dual = Dual(programs[0], np.stack([p.cost for p in programs]), "cuda" if cuda else "cpu")
        best: State | None = None
        near = np.zeros(len(programs), dtype=bool)
        for state in follow(dual, self.steps):
            best = state if best is None else _better(best, state)
            bound, gap = (t.cpu().numpy() for t in (best.bound, state.gap))
            # What lies above the goal counts once it is proved; no more than rounding is then missing as a rule.
            for k in np.flatnonzero((bound > goal) & (answer.lower[groups] <= goal)):
                answer.lower[groups[k]] = self._proved(dual, programs[k], best.v[k])
            near |= np.isfinite(gap) & (gap <= self.tolerance * np.maximum(np.abs(bound), 1e-6))
            done = (answer.lower[groups] > goal) | near
            if done.all() or clock.passed():
                break
        for k, g in enumerate(groups):
            if answer.lower[g] <= goal[k]:
                answer.lower[g] = max(answer.lower[g], self._proved(dual, programs[k], best.v[k]))
        claimed = best.bound.cpu().numpy()
        answer.claimed[groups] = np.where(np.isfinite(claimed), claimed, np.nan)
        for k, g in enumerate(groups):
            w = state.moments[k, 0, 1:].clamp(-1, 1).cpu().numpy()
            v = np.clip(programs[k].columns(w), encoding.lower, encoding.upper)
            answer.points[g] = v[encoding.inputs]

    @staticmethod
    def _proved(dual: Dual, program: Lifted, v: torch.Tensor) -> float:
        D, rows, forms = np.split(v.cpu().numpy(), [dual.order, dual.order + dual.rows])
        return safe_bound(program, Multipliers(rows, forms, D[1:]))


def _megabytes(order: int, multipliers: int) -> float:
    """What one row's steps need."""
    return 8 * (COPIES * multipliers**2 + 8 * order**2) / 2**20


def _better(old: State, new: State) -> State:
    up = new.bound > old.bound
    return new._replace(v=torch.where(up[:, None], new.v, old.v), bound=torch.where(up, new.bound, old.bound))


@register_recipe("sdp-fo")
def sdp_fo(
    pre: Recipe | None = None, steps: int = 100, tolerance: float = 1e-4, device: str = "auto", budget: float = 4000.0
) -> Recipe:
    return CentralPath(registry.recipes()["crown"]() if pre is None else pre, steps, tolerance, device, budget)
