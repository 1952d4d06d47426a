"""Several values of one node at once, "B k *n": how they pass linear maps, planes and rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from absdom.domain import Place
from absdom.ir.op import Block, PlaneMap
from absdom.ops.shape import lead
from absdom.rows import GATHERED, Rows


def flattened(value: torch.Tensor) -> torch.Tensor:
    """ "B k *n" as "B k n"."""
    return value.flatten(2) if value.dim() > 2 else value.unsqueeze(2)


def combine(nu: torch.Tensor, rows: Rows, value: torch.Tensor) -> torch.Tensor:
    """<nu, value> over *n: nu "R *n", placed in boxes as `rows` are, value "B k *n" (or "1 k *n") -> "R k"."""
    nu, value = nu.reshape(rows.count, -1), flattened(value).mT
    if len(value) == 1:
        return nu @ value[0]
    if rows.box is None:
        return torch.bmm(nu.reshape(rows.boxes, -1, nu.shape[1]), value).flatten(0, 1)
    size = max(1, GATHERED // value[0].numel())
    parts = zip(nu.split(size), rows.box.split(size), strict=True)
    return torch.cat([torch.bmm(n.unsqueeze(1), value.index_select(0, box))[:, 0] for n, box in parts])


def leading(values) -> tuple[int, int]:
    """(boxes, count) of "B k *n" values, None among them."""
    return tuple(max(v.shape[axis] for v in values if v is not None) for axis in (0, 1))


def through(function, at, values) -> torch.Tensor:
    """function(at, values) with the two leading axes of "B k *n" values in one; None: zero, or a parameter."""
    boxes, count = leading(values)
    zero = zero_of(values)
    flat = [
        (zero.expand(boxes * count, *t.shape) if v is None else v.expand(boxes, count, *t.shape).flatten(0, 1))
        if varying
        else None
        for v, t, varying in zip(values, at.inputs, at.varying, strict=True)
    ]
    return function(at, flat).reshape(boxes, count, *at.output.shape)


def zero_of(values) -> torch.Tensor:
    """Zero, in the element type and on the device of the values."""
    return next(v for v in values if v is not None).new_zeros(())


def weigh(place: Place, plane: PlaneMap, values, absolute: bool = False) -> torch.Tensor:
    """A plane's linear part, or that with absolute coefficients, of "B k *in_i" values (None: zero): "B k *out"."""
    (boxes, count), zero = leading(values), zero_of(values)
    pairs = [
        (c, zero.expand(1, count, *t.shape) if v is None else v)
        for c, v, t in zip(plane.coefficients, values, place.at.inputs, strict=True)
        if c is not None
    ]
    if not pairs:
        return zero.expand(boxes, count, *place.at.output.shape)
    if isinstance(pairs[0][0], Block):
        return sum(torch.func.vmap(c.reach, 1, 1)(v) if absolute else c.apply(v) for c, v in pairs)
    boxes, rank = max(boxes, *(len(c) for c, _ in pairs)), max(c.dim() - 1 for c, _ in pairs)
    weighted = [
        lead(c.abs() if absolute else c, rank).unsqueeze(1) * lead(v.flatten(0, 1), rank).unflatten(0, v.shape[:2])
        for c, v in pairs
    ]
    total = place.op.gather([t.expand(boxes, *t.shape[1:]).flatten(0, 1) for t in weighted])
    return total.unflatten(0, (boxes, count)).expand(boxes, count, *place.at.output.shape)


def plane_charge(place: Place, planes: Sequence[PlaneMap], sizes) -> torch.Tensor:
    """What rounding can change in `planes` of values with absolute parts `sizes`, "B *in_i" each: "B *out"."""
    arithmetic, at = place.arithmetic, place.at
    sizes = [s.unsqueeze(1) for s in sizes]
    blocks = [c for plane in planes for c in plane.coefficients if isinstance(c, Block)]
    terms = 2 * max(c.terms for c in blocks) if blocks else max(at.output.numel, *(t.numel for t in at.inputs))
    reach = sum(weigh(place, plane, sizes, absolute=True) for plane in planes)[:, 0]
    return reach * arithmetic.gamma(24 + terms) + sum(p.bias.abs() for p in planes) * arithmetic.gamma(8)
