"""Affine ops as equalities, exact but for the noise of their nodes; ops that only move elements add none."""

from __future__ import annotations

import numpy as np
import torch

from absdom.arithmetic import numbers
from absdom.domain import EncodingRule
from absdom.domains.encoded.common import one_hots, sparse
from absdom.domains.interval import rounding
from absdom.encoding import Size, gamma


class AffineRows(EncodingRule):
    """z = W x + b, within the node's noise."""

    def needs(self, place, wanted):
        """What has a coefficient: by the gradient of |W| x, in which nothing cancels."""
        at = place.at
        with torch.enable_grad():
            ones = [torch.ones((1, *t.shape), dtype=torch.float64, requires_grad=True) if v else None
                    for t, v in zip(at.inputs, at.varying, strict=True)]  # fmt: skip
            total = (place.op.absolute(at, ones) * wanted).sum()
            varying = [t for t in ones if t is not None]
            found = iter(torch.autograd.grad(total, varying, allow_unused=True))
        return tuple(None if t is None else torch.zeros_like(t) != 0 if (g := next(found)) is None else g != 0
                     for t in ones)  # fmt: skip

    def count(self, place, wanted, style):
        at = place.at._replace(params=tuple(None if p is None else (p != 0).double() for p in place.at.params))
        ones = [torch.ones((1, *t.shape), dtype=torch.float64) if v else None for t, v in zip(at.inputs, at.varying)]
        taps = place.op.absolute(at, ones)
        count = int(wanted.sum())
        return Size(columns=count, rows=count, entries=int((taps * wanted).sum().ceil()) + count)

    def add(self, place, builder, columns, wanted, node):
        op, at, own = place.op, place.at, place.output
        positions = np.flatnonzero(wanted)
        out = builder.columns_where(wanted, numbers(own.lower), numbers(own.upper), node)
        rows, columns_of, values = [np.arange(len(positions))], [out[positions]], [np.ones(len(positions))]
        for i, varying in enumerate(at.varying):
            if not varying:
                continue
            for start, hot in one_hots(at.output.shape, positions, 1.0, at.inputs[i].numel):
                row, element, value = sparse(hot.pull(op, at, i))
                rows.append(row + start)
                columns_of.append(columns[i][element])
                values.append(-value)
        offset = op.offset(at)
        offset = np.zeros(len(wanted)) if offset is None else numbers(offset.expand(1, *at.output.shape))
        noise = own.noise
        if noise is None:  # a rule for this op that knows of none
            noise = rounding(place, [None if b is None else b.magnitude() for b in place.inputs])
        noise = numbers(noise.expand(1, *at.output.shape))[positions]
        offset = offset[positions]
        builder.add_rows(
            *(np.concatenate(t) for t in (rows, columns_of, values)), offset, offset, noise + np.abs(offset) * gamma(2)
        )
        return out


class MoveRows(EncodingRule):
    """An element that was moved is the column that it was; a constant is a column of its own."""

    needs = AffineRows.needs

    def count(self, place, wanted, style):
        constant = self._moved(place, [np.arange(t.numel) for t in place.at.inputs]) < 0
        return Size(columns=int((constant & wanted[0].flatten().cpu().numpy()).sum()))

    def add(self, place, builder, columns, wanted, node):
        own, moved = place.output, self._moved(place, columns)
        if np.isnan(moved[wanted]).any():
            raise ValueError(f"{place.op} moves an element that it did not ask for")
        constant = wanted & (moved < 0)
        out = builder.columns_where(constant, numbers(own.lower), numbers(own.upper), node)
        kept = wanted & ~constant
        out[kept] = moved[kept].astype(np.int64)
        return out

    @staticmethod
    def _moved(place, columns) -> np.ndarray:
        """The columns "out" themselves sent through the op: -1 for constants, NaN for elements that have none."""
        at = place.at
        numbered = [
            torch.from_numpy(np.where(c < 0, np.nan, c + 1.0)).reshape(1, *t.shape) if v else None
            for c, t, v in zip(columns, at.inputs, at.varying, strict=True)
        ]
        zeros = (torch.zeros_like(p, dtype=torch.float64) if n is None else n for p, n in zip(at.params, numbered))
        return numbers(place.op.eval(*zeros).expand(1, *at.output.shape)) - 1
