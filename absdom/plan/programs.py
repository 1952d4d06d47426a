"""Rows bounded by programs over an Encoding (LP, MILP, SDP): one box at a time, on the CPU, in charged float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import scipy.sparse as sp
import torch

from absdom import registry
from absdom.domain import Answer, Encoded, NodeBounds, Question
from absdom.errors import BudgetError
from absdom.plan.context import Context
from absdom.plan.encode import Encoder
from absdom.plan.plan import Sweep
from absdom.rows import Rows
from absdom.sets import InputBatch
from absdom.types import Clock

Found = Callable[[int, np.ndarray], bool]  # (box, flat point): is it a counterexample, and no further answer of use?


def solve(
    context: Context,
    recipe: Encoded,
    plan: Sweep,
    batch: InputBatch,
    bounds: Mapping[int, NodeBounds],
    rows: Rows,
    d: np.ndarray,
    clock: Clock,
    group: np.ndarray | None = None,
    goal: np.ndarray | None = None,
    found: Found | None = None,
) -> Answer:
    """The answer for each group of rows (None: each row is a group of its own); the rows of a group share a box.

    group "R": sorted, 0 ... G - 1; goal "G"; d "R". found(box, point "n") is asked about points that may be
    counterexamples; where it says True, nothing else is of use, and the rest stays unanswered.
    """
    group = np.arange(rows.count) if group is None else group
    count = int(group[-1]) + 1 if len(group) else 0
    answer = Answer.empty(count, batch.lower.shape[1])
    box = rows.per_row(torch.arange(rows.boxes, device=batch.lower.device)).cpu().numpy()
    data = rows.dense().reshape(rows.count, -1)
    answered = False

    def ask(b: int, point: np.ndarray) -> bool:
        nonlocal answered
        answered = answered or (found is not None and found(b, point))
        return answered

    for b in np.unique(box):
        if answered or clock.passed():
            break
        chosen = np.flatnonzero(box == b)
        mine, local = np.unique(group[chosen], return_inverse=True)
        index = torch.as_tensor([int(b)], device=batch.lower.device)
        C = data[torch.as_tensor(chosen, device=data.device)]
        one = {i: bounds[i].select(index) for i in plan.nodes}
        part = _solve_box(
            context, recipe, plan, batch.select(index), one, C, d[chosen], local, clock,
            None if goal is None else goal[mine], partial(ask, int(b)),
        )  # fmt: skip
        for whole, values in zip(answer, part, strict=True):
            whole[mine] = values
    return answer


def encoder_within_budget(
    context: Context, recipe: Encoded, plan: Sweep, batch: InputBatch, bounds: Mapping[int, NodeBounds], C: torch.Tensor
) -> Encoder:
    """What encodes the network over the one box of `batch`, for rows "R T" at the plan's start. The predicted size is
    reported first. Raises BudgetError."""
    wanted = (C != 0).any(0).reshape(1, *bounds[plan.start].lower.shape[1:])
    encoder = Encoder(context, plan, batch, bounds, wanted)
    size = recipe.size(encoder.predict(recipe.style))
    context.report.program(recipe.name, place_of(context, plan.start), size)
    if size.megabytes > recipe.budget:
        raise BudgetError(
            f"{recipe.name} would need {size}, above its budget of {recipe.budget:,.4g} MB: raise it, for example with "
            f"{recipe.name}(budget={math.ceil(1.1 * size.megabytes)}), or ask a cheaper method such as alpha-crown"
        )
    return encoder


def place_of(context: Context, node: int) -> str:
    """A node as messages name it."""
    name = context.graph.nodes[node].source.name
    return "the outputs" if node == context.schedule.target else f"%{node}" + (f" ({name})" if name else "")


def _solve_box(context, recipe: Encoded, plan, batch, bounds, C: torch.Tensor, d, group, clock, goal, found) -> Answer:
    encoder = encoder_within_budget(context, recipe, plan, batch, bounds, C)

    def attack(c: np.ndarray, d: float) -> np.ndarray:
        tensor = context.arithmetic.tensor
        points, _ = registry.service("pgd")(context, batch, tensor(c)[None, None], tensor([[d]]), clock)
        return points[0].double().cpu().numpy()

    def with_encoder(question: Question, encoder: Encoder) -> Question:
        def narrow(encoding, lower, upper):
            return with_encoder(question, encoder.narrowed(encoding, lower, upper))

        return question._replace(encode=encoder.encode, evaluate=encoder.evaluate, narrow=narrow)

    question = Question(
        encode=encoder.encode,
        C=sp.csr_matrix(C.double().cpu().numpy()),
        d=np.asarray(d, dtype=np.float64),
        group=group,
        goal=goal,
        clock=clock,
        evaluate=encoder.evaluate,
        attack=attack if plan.start == context.schedule.target else None,
        report=context.report,
        found=found,
    )
    return recipe.solve(with_encoder(question, encoder))
