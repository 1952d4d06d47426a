"""Laws of single rules, for `absdom.testing`: layer duals point by point, and passes that read no tensor's value."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from absdom import registry
from absdom.arithmetic import Arithmetic
from absdom.domain import Recipe, rules_of
from absdom.ir.graph import Graph
from absdom.ir.op import Input
from absdom.plan import run
from absdom.plan.plan import ForwardStage
from absdom.plan.planner import make_schedule
from absdom.plan.recipes import parse_recipe
from absdom.plan.sweeps import sweep
from absdom.rows import Rows
from absdom.sets import InputBatch

FLOAT64 = Arithmetic(torch.float64)


class LawBroken(AssertionError):
    """A law of the house does not hold."""


@dataclass(frozen=True)
class Case:
    """A lowered network with one output, and boxes "B n" (float64) of its flat inputs."""

    name: str
    graph: Graph
    lower: torch.Tensor
    upper: torch.Tensor

    def on_points(self) -> Case:
        """The same at the centre of each box."""
        centre = self.lower / 2 + self.upper / 2
        return Case(f"{self.name} at points", self.graph, centre, centre)

    def half_flat(self) -> Case:
        """Every second dimension has zero width."""
        flat = torch.arange(self.lower.shape[1]) % 2 == 0
        return Case(f"{self.name} half flat", self.graph, self.lower, torch.where(flat, self.lower, self.upper))


def check_layers(case: Case, recipe: Recipe | str, *, points: int = 24, rows: int = 3, seed: int = 0) -> int:
    """Every layer dual of the recipe at every node with bounds: <nu, f(z)> >= sum <part, z> + term at points z of them.

    With the knobs that the dual chooses, and with random ones in their range. Gives back how many were checked.
    """
    recipe = parse_recipe(recipe) if isinstance(recipe, str) else recipe
    context = run.prepare(make_schedule(case.graph, recipe), FLOAT64)
    generator, checked = torch.Generator().manual_seed(seed), 0
    with torch.no_grad():
        bounds = run.propagate(context, InputBatch(case.lower, case.upper))
        for owner in {rules_of(dual) for dual in context.schedule.duals}:
            for i in context.schedule.final.nodes:
                place = context.place(i, bounds)
                known = [b for b in place.inputs if b is not None]
                boxes = all(b.ball is None and (b.upper - b.lower).isfinite().all() for b in known)
                if isinstance(place.op, Input) or not boxes:  # points of other sets would have to be found first
                    continue
                dual, _ = registry.find_rule(type(owner), type(place.op))
                starts = dual.knobs(place, owner)
                random = {
                    k: s.low + (s.high - s.low) * torch.rand(s.value.shape, generator=generator, dtype=s.value.dtype)
                    for k, s in starts.items()
                }
                for knobs in ({}, random) if random else ({},):
                    _check_layer(case, owner, dual, place._replace(knobs=knobs), points, rows, generator)
                    checked += 1
    return checked


def _check_layer(case, owner, dual, place, points: int, rows: int, generator) -> None:
    boxes, shape = place.output.lower.shape[0], place.at.output.shape
    nu = torch.randn((boxes * rows, *shape), generator=generator, dtype=torch.float64)
    parts, term = dual.pull(Rows.dense_rows(nu, boxes), place, dual.relax(place, owner))
    z = [None if b is None else _points(b, points, generator) for b in place.inputs]
    operands = (p if t is None else t.flatten(0, 1) for t, p in zip(z, place.at.params, strict=True))
    value = place.op.eval(*operands)
    value = value.expand(boxes * points, *shape).reshape(boxes, points, -1)
    nu = nu.reshape(boxes, rows, -1)
    left, size = (torch.einsum("brn,bpn->brp", a, b.nan_to_num()) for a, b in ((nu, value), (nu.abs(), value.abs())))
    term = torch.zeros(boxes * rows, dtype=nu.dtype) if term is None else term
    right = term.reshape(boxes, rows, 1)
    size = size + right.abs()
    for part, t in zip(parts, (t for t in z if t is not None), strict=True):
        if part is not None:
            part, t = part.dense().reshape(boxes, rows, -1), t.flatten(2)
            right = right + torch.einsum("brn,bpn->brp", part, t)
            size = size + torch.einsum("brn,bpn->brp", part.abs(), t.abs())
    bad = (right > left + 1e-9 * size + 1e-300) & value.isfinite().all(2)[:, None]
    if bad.any():
        b, r, p = bad.nonzero()[0].tolist()
        here = [t[b, p].tolist() for t in z if t is not None]
        raise LawBroken(
            f"a layer dual is unsound: {case.name}, {owner}, {type(dual).__name__} for {place.op}"
            f"{' with random knobs' if place.knobs else ''}: at z = {here} of box {b}, <nu, f(z)> is "
            f"{left[b, r, p].item()!r}, and <part, z> + term is {right[b, r, p].item()!r}, for nu = {nu[b, r].tolist()}"
        )


def _points(bounds, count: int, generator) -> torch.Tensor:
    """Corners and inner points "B k *n" of the bounds."""
    low, high = bounds.lower[:, None], bounds.upper[:, None]
    share = torch.rand((low.shape[0], count, *low.shape[2:]), generator=generator, dtype=low.dtype)
    share[:, : count // 2] = share[:, : count // 2].round()
    z = low + share * (high - low)
    return torch.minimum(torch.maximum(z, low), high)


def check_traceable(case: Case, recipe: Recipe | str) -> None:
    """All forward rules and the final sweep make one trace (make_fx with fake tensors) that serves other boxes too.

    Select points, which depend on data, are left out.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # takes seconds to import

    recipe = parse_recipe(recipe) if isinstance(recipe, str) else recipe
    schedule = make_schedule(case.graph, recipe)
    context = run.prepare(replace(schedule, stages=(ForwardStage(schedule.final.nodes[::-1]),)), FLOAT64)
    shape, boxes = case.graph.nodes[schedule.target].type.shape, len(case.lower)
    numel = case.graph.nodes[schedule.target].type.numel
    rows = Rows.dense_rows(torch.eye(numel, dtype=torch.float64).repeat(boxes, 1).reshape(-1, *shape), boxes)

    def bound(lower, upper):
        batch = InputBatch(lower, upper)
        bounds = run.propagate(context, batch)
        found = [bounds[schedule.target].lower, bounds[schedule.target].upper]
        duals = (rules_of(dual) for dual in schedule.duals)
        return [*found, *(sweep(context, schedule.final, dual, batch, bounds, rows) for dual in duals)]

    with torch.no_grad():
        bound(case.lower, case.upper)  # tables that functions keep are made outside of the trace
        try:
            traced = make_fx(bound, tracing_mode="fake", _allow_non_fake_inputs=True)(case.lower, case.upper)
        except Exception as error:  # anything that a rule may do with a tensor that has no value
            raise LawBroken(
                f"no trace: {case.name}, {recipe}: a rule asks for the value of a tensor (.item(), a Python `if`, "
                f"a mask as an index), which stops capture and compilation: {type(error).__name__}: {str(error)[:300]}"
            ) from error
        other = case.lower.flip(0), case.upper.flip(0)
        for one, two in zip(traced(*other), bound(*other), strict=True):
            if not torch.allclose(one, two, rtol=1e-9, atol=1e-12, equal_nan=True):  # sums may be made in another order
                raise LawBroken(f"a trace made for some boxes gives other bounds on others: {case.name}, {recipe}")
