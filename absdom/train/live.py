"""A module while it trains: captured once, its weights read anew at each call; differentiable bounds of its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy

import torch

from absdom import registry
from absdom.api import load, recipe_of
from absdom.arithmetic import Arithmetic, precise_backends
from absdom.domain import KnobStart, NodeBounds, Recipe
from absdom.errors import UsageError
from absdom.ir.graph import Graph
from absdom.ir.op import Affine, Elementwise, Input, Op
from absdom.passes import lower
from absdom.plan import run
from absdom.plan.context import Context
from absdom.plan.planner import make_schedule
from absdom.plan.sweeps import knob_starts, sweep
from absdom.rows import Rows
from absdom.sets import InputBatch
from absdom.train.latent import Cut

NORMS = torch.nn.modules.batchnorm._BatchNorm
Statistics = Mapping[str, torch.Tensor]  # mean and variance of each batch norm, by label; empty: the running ones


def _only_overflows(op: Op) -> bool:
    """Are bounds of this op finite for finite bounds, but for overflow?"""
    return isinstance(op, (Input, Affine)) or isinstance(op, Elementwise) and op.splittable


def _places(module: torch.nn.Module, graph: Graph) -> dict[str, tuple[dict, str]]:
    """Where the module keeps each parameter and buffer that the graph reads, by label: which dict, under which name."""
    found = {}
    for path, layer in module.named_modules(remove_duplicate=False):
        for owner in (layer._parameters, layer._buffers):
            for name, value in owner.items():
                label = f"{path}.{name}" if path else name
                if value is not None and graph.params.get(label) is value:
                    found[label] = owner, name
    return found


class Propagation:
    """One run of a recipe over sets: its context, the bounds of every node, and the forward domains' last states.

    relaxations: what the last sweep of rows made of the bounds, by (dual, node): lines of activations, for instance.
    """

    def __init__(self, context: Context, sets: InputBatch):
        self.context, self.sets, self.states, self.relaxations = context, sets, {}, {}
        self.bounds: dict[int, NodeBounds] = run.propagate(context, sets, final=self.states)

    def lower_bounds(self, C: torch.Tensor, d: torch.Tensor | None = None) -> torch.Tensor:
        """Lower bounds "B R" of C y + d, C "B R K": the best that the recipe gives."""
        rows, constants, self.relaxations = self._rows(C), C.new_zeros(C.shape[:2]) if d is None else d, {}
        found = run.row_bounds(
            self.context, self.sets, self.bounds, rows, constants.flatten(), self.relaxations, states=self.states
        )  # fmt: skip
        return found.reshape(C.shape[:2])

    def interval_rows(self, C: torch.Tensor) -> torch.Tensor:
        """Lower bounds "B R" of C y from the intervals in front of the last affine ops, which are merged into C."""
        final = self.context.schedule.final
        return sweep(self.context, final, None, self.sets, self.bounds, self._rows(C)).reshape(C.shape[:2])

    def dual_rows(self, C: torch.Tensor, knobs=None) -> torch.Tensor:
        """Lower bounds "B R" of C y by the recipe's (only) dual alone, swept back to the inputs."""
        (dual,) = self.context.schedule.duals
        final, self.relaxations = self.context.schedule.final, {}
        rows = self._rows(C)
        found = sweep(self.context, final, dual, self.sets, self.bounds, rows, self.relaxations, knobs=knobs)
        return found.reshape(C.shape[:2])

    def knob_starts(self) -> dict[tuple[int, str], KnobStart]:
        """The free parameters of the recipe's (only) dual, by node and name; `dual_rows` takes values of them."""
        (dual,) = self.context.schedule.duals
        return knob_starts(self.context, self.context.schedule.final, dual, self.bounds)

    def detached(self) -> Propagation:
        """The same run as numbers: no gradient reaches weights or bounds through it."""
        other = copy(self)
        other.context, other.states = self.context.uncharged(), {}
        other.bounds = {i: b.detach() for i, b in self.bounds.items()}
        return other

    def _rows(self, C: torch.Tensor) -> Rows:
        shape = self.context.graph.nodes[self.context.schedule.target].type.shape
        return Rows.dense_rows(C.reshape(-1, *shape), len(C))


class Live:
    """A module as graphs whose weights are the module's own, looked up at each call: an optimiser's step is seen by the
    next one, and so is a move to another device or type.

    example: an input of batch size 1. With batch norms there are two graphs: one reads the running statistics, one is
    given statistics at each call.
    """

    def __init__(self, module: torch.nn.Module, example: torch.Tensor):
        precise_backends()
        self.module = module
        self.norms = tuple(m for m in module.modules() if isinstance(m, NORMS))
        self._graphs = {False: lower(load(module, example, batch_norm="eval"))}
        if self.norms:
            self._graphs[True] = lower(load(module, example, batch_norm="train"))
        graph = self._graphs[False]
        if len(graph.outputs) != 1 or len(graph.inputs) != 1:
            raise UsageError(
                f"the module has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; a loss needs one of each"
            )
        self._guarded = not all(_only_overflows(n.op) for n, v in zip(graph.nodes, graph.varying, strict=True) if v)
        self.outputs = graph.nodes[graph.outputs[0]].type.numel
        self._schedules: dict = {}
        self._places = {known: _places(module, graph) for known, graph in self._graphs.items()}
        self._cuts: dict[tuple[bool, str], Cut] = {}
        self._record: list[Propagation] | None = None

    def graph(self, statistics: Statistics = {}) -> Graph:  # noqa: B006  (never written)
        """The graph that takes these statistics."""
        return self._graphs[bool(statistics)]

    def cut(self, layer: str, statistics: Statistics = {}) -> Cut:  # noqa: B006
        """The network cut behind a layer, by its name in the module. Raises UsageError."""
        key = (bool(statistics), layer)
        if key not in self._cuts:
            self._cuts[key] = Cut.at(self.graph(statistics), layer)
        return self._cuts[key]

    def forward(self, x: torch.Tensor, *, batch: bool) -> tuple[torch.Tensor, Statistics]:
        """The module's outputs "B K" at x "B *n", and the statistics that its batch norms used.

        batch: they normalise with the statistics of x (which then move the running ones); else with the running ones.
        """
        with self._norm_mode(batch):
            if batch and self.norms:
                return registry.service("batch-statistics")(self.module, x)
            return self.module(x), {}

    def evaluate(self, x: torch.Tensor, statistics: Statistics = {}) -> torch.Tensor:  # noqa: B006
        """The module's outputs "B K" at x "B *n", normalised by given statistics."""
        if not statistics:
            return self.forward(x, batch=False)[0]
        return run.evaluate(self.context("ibp", x, statistics), x.flatten(1)).reshape(len(x), -1)

    def context(
        self,
        recipe: str | Recipe,
        like: torch.Tensor,
        statistics: Statistics = {},  # noqa: B006
        node: int | None = None,
    ) -> Context:
        """A recipe's schedule for a node (default: the output) with the weights as they are now, in the numbers of
        `like`."""
        graph = self.graph(statistics)
        key = (bool(statistics), recipe, node)
        if key not in self._schedules:
            self._schedules[key] = make_schedule(graph, recipe_of(recipe), node)
        arithmetic = Arithmetic(like.dtype, device=str(like.device), guarded=self._guarded)
        own = {label: owner[name] for label, (owner, name) in self._places[bool(statistics)].items()}
        return run.prepare(self._schedules[key], arithmetic, {**graph.params, **own, **statistics})

    def propagate(
        self,
        recipe: str | Recipe,
        sets: InputBatch,
        statistics: Statistics = {},  # noqa: B006
        node: int | None = None,
    ) -> Propagation:
        """A run of a recipe over `sets`, up to a node (default: the output); gradients flow into the weights and the
        statistics."""
        found = Propagation(self.context(recipe, sets.lower, statistics, node), sets)
        if self._record is not None:
            self._record.append(found)
        return found

    @contextmanager
    def recorded(self) -> Iterator[list[Propagation]]:
        """The runs that are made inside, in order."""
        before, self._record = self._record, []
        try:
            yield self._record
        finally:
            self._record = before

    @contextmanager
    def shifted(self, shifts: Mapping[torch.nn.Parameter, torch.Tensor]) -> Iterator[None]:
        """Within, all that is evaluated here reads parameter + shift. The parameters stay as they are, and get the
        gradients."""
        moved = {id(p): p + shift for p, shift in shifts.items()}
        owners = [m._parameters for m in self.module.modules()] if moved else []
        places = [(owner, name, p) for owner in owners for name, p in owner.items() if id(p) in moved]
        for owner, name, p in places:
            owner[name] = moved[id(p)]
        try:
            yield
        finally:
            for owner, name, p in places:
                owner[name] = p

    @contextmanager
    def _norm_mode(self, training: bool) -> Iterator[None]:
        """Batch norms alone in (or out of) training mode."""
        before = [m.training for m in self.norms]
        for m in self.norms:
            m.training = training
        try:
            yield
        finally:
            for m, mode in zip(self.norms, before, strict=True):
                m.training = mode
