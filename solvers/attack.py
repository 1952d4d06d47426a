"""Falsifier: projected gradient descent (in l_1 and l_2 balls: Frank-Wolfe) with restarts on the margin of all
disjuncts at once.

Points start at random, in corners, at the centre, and where a linear bound is worst. What looks like a
counterexample is rounded to float32 and handed to `confirm`, which alone decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from absdom.arithmetic import SEARCH
from absdom.plan import run
from absdom.problem import Problem
from absdom.registry import register_service
from absdom.sets import InputBatch
from absdom.solvers.cells import cells
from absdom.types import Clock
from absdom.verdict import Witness

ELEMENTS = 2e7  # samples x rows evaluated at once
CANDIDATES = 8  # handed to the judge per step, the most negative first


@dataclass(frozen=True)
class Attack:
    """restarts: points per box; steps: gradient steps of each; rounds: how often that is repeated with new points."""

    restarts: int = 24
    steps: int = 40
    rounds: int = 1


EFFORTS = {"quick": Attack(restarts=24, steps=20), "long": Attack(restarts=48, steps=60, rounds=3)}


@register_service("attack")
def attack(
    problem: Problem,
    confirm: Callable[[int, np.ndarray], Witness | None],
    clock: Clock,
    seed: int = 0,
    effort: str = "quick",
) -> Witness | None:
    """A confirmed counterexample of an open clause, or None. `effort`: one of EFFORTS."""
    effort = EFFORTS[effort]
    generator = torch.Generator().manual_seed(seed)
    spec = problem.property.spec
    boxes = np.unique(spec.box[problem.open])
    context = problem.engine.evaluator(SEARCH)
    rows_of_box = np.bincount(spec.row_box(), minlength=len(problem.property.inputs))
    found = _try_cells(problem, context, boxes, confirm, clock)
    if found is not None or clock.passed():
        return found
    for _ in range(effort.rounds):
        for group in _groups(boxes, rows_of_box, effort.restarts):
            found = _attack_boxes(problem, context, group, confirm, clock, generator, effort)
            if found is not None or clock.passed():
                return found
    return None


def _groups(boxes: np.ndarray, rows_of_box: np.ndarray, restarts: int):
    """Consecutive boxes, as many as can be attacked at once."""
    start = 0
    while start < len(boxes):
        stop, rows = start, 0
        while stop < len(boxes) and (
            stop == start or (stop + 1 - start) * restarts * (rows + rows_of_box[boxes[stop]]) < ELEMENTS
        ):
            rows += int(rows_of_box[boxes[stop]])
            stop += 1
        yield boxes[start:stop]
        start = stop


def starts(batch: InputBatch, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` points per box, "B count n": the centre, random corners, and uniform ones."""
    size, n = batch.lower.shape
    share = torch.rand((size, count, n), generator=generator).to(batch.lower)
    corners = count // 3
    share[:, :corners] = (share[:, :corners] > 0.5).to(share.dtype)
    share[:, -1] = 0.5
    return batch.project(batch.lower[:, None] + share * (batch.upper - batch.lower)[:, None])


def _try_cells(problem, context, boxes, confirm, clock) -> Witness | None:
    prop, arithmetic = problem.property, context.arithmetic
    for b, points in cells(context.graph, InputBatch.of(prop.inputs.select(boxes), arithmetic)):
        if clock.passed():
            return None
        clauses = problem.open[prop.spec.box[problem.open] == boxes[b]]
        rows = np.flatnonzero(np.isin(prop.spec.clause, clauses))
        C, d = arithmetic.tensor(prop.spec.C[rows].toarray()), arithmetic.tensor(prop.spec.d[rows])
        row_clause = torch.as_tensor(np.searchsorted(clauses, prop.spec.clause[rows]), device=C.device)
        with torch.no_grad():
            values = run.evaluate(context, points) @ C.T + d
        worst = values.new_full((len(values), len(clauses)), -torch.inf)
        worst = worst.scatter_reduce(1, row_clause.expand(len(values), -1), values, "amax")
        found = _try(problem, boxes[b : b + 1], clauses, points[None], worst, confirm, len(points))
        if found is not None:
            return found
    return None


def _attack_boxes(problem, context, boxes, confirm, clock, generator, effort) -> Witness | None:
    prop, spec = problem.property, problem.property.spec
    arithmetic = context.arithmetic
    batch = InputBatch.of(prop.inputs.select(boxes), arithmetic)
    clauses = problem.open[np.isin(spec.box[problem.open], boxes)]
    rows = np.flatnonzero(np.isin(spec.clause, clauses))
    C, d = arithmetic.tensor(prop.spec.C[rows].toarray()), arithmetic.tensor(spec.d[rows])
    row_clause = torch.as_tensor(np.searchsorted(clauses, spec.clause[rows]), device=C.device)
    clause_box = np.searchsorted(boxes, spec.box[clauses])

    x = starts(batch, effort.restarts, generator)
    placed = dict.fromkeys(range(len(boxes)), 0)
    for b, point in problem.hints:
        k = int(np.searchsorted(boxes, b))
        if k < len(boxes) and boxes[k] == b and placed[k] < effort.restarts // 2:
            x[k, placed[k]] = arithmetic.tensor(point)
            placed[k] += 1
    per_box = x.shape[1]
    flat_box = torch.arange(len(boxes), device=x.device).repeat_interleave(per_box)
    mine = torch.as_tensor(clause_box, device=x.device)[None] == flat_box[:, None]  # sample x clause
    target = _targets(mine)
    momentum = torch.zeros_like(x)
    for step in range(effort.steps + 1):
        if clock.passed():
            return None
        x = x.detach().requires_grad_(step < effort.steps)
        with torch.set_grad_enabled(step < effort.steps):
            values = run.evaluate(context, x.flatten(0, 1)) @ C.T + d
            worst = values.new_full((len(values), len(clauses)), -torch.inf)
            worst = worst.scatter_reduce(1, row_clause.expand(len(values), -1), values, "amax")
        found = _try(
            problem, boxes, clauses, x.detach(), worst.detach().masked_fill(~mine, torch.inf), confirm, per_box
        )
        if found is not None or step == effort.steps:
            return found
        if not values.requires_grad:  # nothing that rows speak of depends on the input: no other point will do
            return None
        with torch.enable_grad():
            above = torch.zeros_like(worst).scatter_add(1, row_clause.expand(len(values), -1), values.clamp(min=0))
            loss = (worst + above).gather(1, target[:, None]).sum()
            (gradient,) = torch.autograd.grad(loss, x)
        x, momentum = descend(batch, x.detach(), gradient, momentum, step)
    return None


def descend(batch: InputBatch, x, gradient, momentum, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Step number `step` (from 0) against the gradient, inside the sets: new points "B k n", new momentum "B k n"."""
    momentum = 0.75 * momentum + gradient / gradient.abs().mean(2, keepdim=True).clamp(min=1e-30)
    if not batch.parts:
        width = (batch.upper - batch.lower)[:, None]
        return batch.project(x - momentum.sign() * width * (0.25 * 0.93**step)), momentum
    # A step of Frank and Wolfe (1956): signs would leave a ball, and most of it when projected back.
    return torch.lerp(x, batch.lowest(momentum), 2 / (step + 2)), momentum


def _targets(mine: torch.Tensor) -> torch.Tensor:
    """Per sample a clause of its own box, taking turns, so that all disjuncts are attacked at once."""
    rank = mine.cumsum(1) - 1
    count = mine.sum(1, keepdim=True).clamp(min=1)
    turn = torch.arange(len(mine), device=mine.device)[:, None] % count
    return ((rank == turn) & mine).to(torch.uint8).argmax(1)


def _try(problem, boxes, clauses, x, worst, confirm, per_box) -> Witness | None:
    """Hand the most negative samples to the judge."""
    best, _ = worst.min(1)
    order = torch.nonzero(best <= 0).flatten()
    if len(order) == 0:
        return None
    order = order[best[order].argsort()][:CANDIDATES]
    points = x.flatten(0, 1)[order].double().cpu().numpy()
    for sample, point in zip(order.tolist(), points, strict=True):
        box = int(boxes[sample // per_box])
        found = confirm(box, point)
        if found is not None:
            return found
    return None
