"""Any property as what a network is trained to satisfy: cells of its boxes, and its clauses as margins.

    spec = PropertySpecification("safe.vnnlib")              # or one written in Python
    x, y = spec.sample(256)                                  # points, and the box that each lies in
    out = CrownIBP(spec.attach(net), spec, eps=0.1)(x, y)    # cells of a tenth of the boxes' widths

A clause of the property describes counterexamples; the margins of its rows are positive where it has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from absdom import registry
from absdom.arithmetic import Arithmetic
from absdom.errors import PropertyError, UsageError
from absdom.problem import product_groups
from absdom.property import Property
from absdom.set_parts import BallBatch
from absdom.sets import InputBatch
from absdom.train.task import Specification, Task

HOLDS = 1e4  # the margin of a clause that a box has not: exp(-HOLDS) is zero
MOST_CELLS = 10_000_000


class Tables(NamedTuple):
    """A property as tensors: sets of all boxes; C "rows+1 K" and d "rows+1" with a last row that always holds; of each
    box the numbers of its rows, slot by slot, "boxes R"; the clause of each slot, "R", or None: one slot each."""

    sets: InputBatch
    C: torch.Tensor
    d: torch.Tensor
    rows: torch.Tensor
    clause: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class PropertySpecification(Specification):
    """The clauses of a property are to be refuted on cells of its boxes.

    In a batch, x "B *n" are points of the sets, y "B" (whole numbers) the box that each lies in. The cell of a point
    reaches eps half-widths of the box to both sides of it, met with the set: with eps = 1 around the middle, or eps = 2
    anywhere, it is all of the box. Where a loss of bounds is below log 2, the property holds on the cell (Task.holds).

    prop: a Property, or the path of a VNN-LIB file. shape: of one input, as the module takes it (default: flat).
    sharpness: all rows are multiplied by it; the loss of a margin m is about exp(-sharpness m), so that it matters in
    which units outputs are. Raises PropertyError for a property that cannot be trained for: one without clauses, one
    that no network has, and one that reads values inside a network.
    """

    prop: Property | str | Path
    shape: tuple[int, ...] | None = None
    sharpness: float = 1.0
    _tables: dict = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        prop = self.prop
        if not isinstance(prop, Property):
            prop = registry.service("vnnlib")(prop)
            object.__setattr__(self, "prop", prop)
        if prop.interface is not None and prop.interface.hidden:
            raise PropertyError(
                f"the property reads values inside the network ({', '.join(prop.interface.hidden)}): train for one "
                f"over inputs and outputs, or give a module that has those values as outputs"
            )
        if not prop.spec.clauses:
            raise PropertyError("the property has no clause: nothing can violate it, so there is nothing to train for")
        if self.shape is not None and prod(self.shape) != prop.inputs.size:
            raise PropertyError(f"the property has {prop.inputs.size} inputs, the shape {list(self.shape)} has others")
        if not self.sharpness > 0:
            raise UsageError(f"sharpness is a number above 0, not {self.sharpness}")
        spec = prop.spec
        possible = np.diff(spec.C.indptr) > 0  # a row without coefficients is what its constant says
        possible |= (spec.d > 0) | ((spec.d >= 0) & spec.strict)
        open_clauses = np.zeros(spec.clauses, dtype=bool)
        np.logical_or.at(open_clauses, spec.clause, possible)
        if not open_clauses.all():
            q = int(np.argmin(open_clauses))
            raise PropertyError(
                f"clause {q} of the property is violated on all of box {spec.box[q]}, whatever the network computes"
            )

    @cached_property
    def boxes(self) -> np.ndarray:
        """The boxes that have clauses, in order; nothing is asked of others."""
        return np.unique(self.prop.spec.box)

    def attach(self, module: torch.nn.Module) -> torch.nn.Module:
        """What a loss of this specification takes: the module, or, if rows read inputs or products of values, one that
        gives them beside the module's outputs. Its weights are the module's own."""
        if not self.prop.on_inputs and not self.prop.products:
            return module
        return PropertyVector(module, self.prop)

    def check(self, x, y, outputs):
        prop, size = self.prop, self.prop.inputs.size
        if outputs != prop.spec.C.shape[1]:
            attached = prop.on_inputs or bool(prop.products)
            raise PropertyError(
                f"the property reads {prop.spec.C.shape[1]} values, the module gives {outputs}"
                + ("; inputs or products are among them: make the loss of spec.attach(module)" if attached else "")
            )
        if x[0].numel() != size:
            raise PropertyError(f"items have {x[0].numel()} numbers, the property has {size} inputs")
        if y.dtype not in (torch.int64, torch.int32, torch.uint8) or y.shape != x.shape[:1]:
            raise PropertyError(
                f"boxes y have shape {list(y.shape)} and type {y.dtype}: one whole number for each of {len(x)} items"
            )
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < len(prop.inputs):
            raise PropertyError(f"y names box {int(y.max())}: the property has boxes 0 to {len(prop.inputs) - 1}")
        sets = self._of(x).sets
        lower, upper = sets.lower[y.long()], sets.upper[y.long()]
        outside = ((x.flatten(1) < lower) | (x.flatten(1) > upper)).any(1)
        if bool(outside.any()):
            item = int(outside.int().argmax())
            raise PropertyError(f"item {item} of the batch lies outside box {int(y[item])} of the property")

    def task(self, x, y, eps, outputs):
        sets, middle = self._of(x).sets.select(y.long()), x.flatten(1)
        reach = (sets.upper - sets.lower) / 2 * eps
        lower, upper = torch.maximum(sets.lower, middle - reach), torch.minimum(sets.upper, middle + reach)
        return self._task(x, y.long(), InputBatch(lower, upper, cut(sets.parts)), eps)

    def sample(
        self, count: int, generator: torch.Generator | None = None, dtype=torch.float32, device="cpu"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Points x "count *n" and their boxes y "count": a box with clauses at random, then a point of it, each drawn
        uniformly (and moved into the other parts of the set)."""
        boxes = torch.from_numpy(self.boxes)
        y = boxes[torch.randint(len(boxes), (count,), generator=generator)].to(device)
        share = torch.rand((count, self.prop.inputs.size), generator=generator, dtype=dtype).to(device)
        sets = self._of(share).sets.select(y)
        x = sets.lower + share * (sets.upper - sets.lower)
        return self._shaped(sets.project(x[:, None])[:, 0]), y

    def cells(
        self, per_axis: int | Sequence[int], batch: int = 1024, dtype=torch.float32, device="cpu"
    ) -> Iterator[Task]:
        """All boxes, cut into `per_axis` equal parts along each input (one number for all, or one for each; what has no
        width is not cut), as tasks of at most `batch` cells, which cover them without gaps.

        Where all hold, the property does (up to rounding). Raises UsageError for more than ten million.
        """
        sets = self._of(torch.zeros(0, dtype=dtype, device=device)).sets
        for b in self.boxes.tolist():
            lower, upper = sets.lower[b], sets.upper[b]
            counts = torch.as_tensor(per_axis).expand(len(lower))
            if int(counts.min()) < 1:
                raise UsageError("cells: the number of parts along an axis is 1 or more")
            counts = torch.where((lower < upper).cpu(), counts, 1).tolist()
            if prod(counts) > MOST_CELLS:
                raise UsageError(
                    f"cells: {prod(counts):.3g} cells of box {b}; cut along fewer of its {len(counts)} inputs "
                    f"(per_axis=[...] has a number for each)"
                )
            share = torch.arange(max(counts) + 1, device=device)[None] / torch.tensor(counts, device=device)[:, None]
            edges = lower[:, None] + (upper - lower)[:, None] * share.to(dtype)
            edges = torch.where(share >= 1, upper[:, None], edges.clamp(lower[:, None], upper[:, None]))
            for start in range(0, prod(counts), batch):
                numbers = torch.arange(start, min(start + batch, prod(counts)), device=device)
                place = torch.stack(torch.unravel_index(numbers, counts), 1)
                low, high = (edges.gather(1, (place + k).T).T for k in (0, 1))
                y = torch.full_like(numbers, b)
                where = InputBatch(low, high, cut(sets.select(y).parts))
                yield self._task(self._shaped(low + (high - low) / 2), y, where, 1 / max(counts))

    def _task(self, x: torch.Tensor, y: torch.Tensor, sets: InputBatch, eps: float) -> Task:
        tables = self._of(x)
        rows = tables.rows[y]
        return Task(x, sets, tables.C[rows], tables.d[rows], tables.clause, eps)

    def _shaped(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.shape is None else x.reshape(-1, *self.shape)

    def _of(self, like: torch.Tensor) -> Tables:
        """The tables in the numbers of `like`, made once."""
        key = like.dtype, like.device
        if key not in self._tables:
            arithmetic, spec = Arithmetic(like.dtype, device=str(like.device)), self.prop.spec
            C, d = spec.C.toarray() * self.sharpness, spec.d * self.sharpness
            C, d = np.concatenate([C, np.zeros_like(C[:1])]), np.append(d, HOLDS)
            rows, clause = slots(spec, len(self.prop.inputs))
            self._tables[key] = Tables(
                InputBatch.of(self.prop.inputs, arithmetic), arithmetic.tensor(torch.from_numpy(C)),
                arithmetic.tensor(torch.from_numpy(d)), torch.from_numpy(rows).to(like.device),
                None if len(np.unique(clause)) == len(clause) else torch.from_numpy(clause).to(like.device),
            )  # fmt: skip
        return self._tables[key]


def slots(spec, boxes: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each box in slots that all boxes share: row numbers "boxes R", and the clause of each slot, "R".

    A clause with fewer rows than its slots repeats its first (which leaves its greatest row as it is); a clause that
    the box has not is filled with the row behind all rows.
    """
    own: list[list[np.ndarray]] = [[] for _ in range(boxes)]
    order = np.argsort(spec.clause, kind="stable")
    ends = np.cumsum(np.bincount(spec.clause, minlength=spec.clauses))
    for box, rows in zip(spec.box, np.split(order, ends[:-1]), strict=True):
        own[box].append(rows)
    own = [sorted(clauses, key=len, reverse=True) for clauses in own]
    widths = [max(len(c[q]) for c in own if len(c) > q) for q in range(max(map(len, own)))]
    found = np.full((boxes, sum(widths)), len(spec.clause), dtype=np.int64)
    starts = np.cumsum([0, *widths])
    for box, clauses in enumerate(own):
        for q, rows in enumerate(clauses):
            found[box, starts[q] : starts[q + 1]] = rows[0]
            found[box, starts[q] : starts[q] + len(rows)] = rows
    return found, np.repeat(np.arange(len(widths)), widths)


def cut(parts: tuple) -> tuple:
    """The parts of sets, now that cells are smaller than the sets' boxes."""
    return tuple(part._replace(clipped=True) if isinstance(part, BallBatch) else part for part in parts)


class PropertyVector(torch.nn.Module):
    """A module with the values that rows of a property read: its outputs, then products of values, then the inputs."""

    def __init__(self, module: torch.nn.Module, prop: Property):
        super().__init__()
        self.module, self.on_inputs = module, prop.on_inputs
        self.products = product_groups(prop.products)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, x = self.module(x).flatten(1), x.flatten(1)
        values, found = torch.cat([y, x], 1), []
        for exponents, members in self.products.items():
            chain = None
            for f, exponent in enumerate(exponents):
                part = values[:, [factors[f] for _, factors in members]]
                part = part if exponent == 1 else part**exponent
                chain = part if chain is None else chain * part
            found.append(chain)
        order = [k for members in self.products.values() for k, _ in members]
        if found:
            found = [torch.cat(found, 1)[:, sorted(range(len(order)), key=order.__getitem__)]]
        return torch.cat([y, *found, *([x] if self.on_inputs else [])], 1)
