"""Places that depend on the input: reading and writing at a varying index, the largest elements and where they stand.

An index is a value like any other, meant as the whole number next to it; a negative one counts from the end. Images are
hulls over the places that the bounds of the index allow; planes are constants there.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from absdom.ir.op import Multivariate
from absdom.ops.multivariate import interval_planes
from absdom.registry import register_op

RANKED = 1024  # elements of an axis up to which the places of the largest ones are compared in pairs


class Coarse(Multivariate):
    """Base: planes are constants at the image."""

    coarse = True

    def planes(self, lowers, uppers, knobs=None):
        return interval_planes(self, lowers, uppers)


def whole(index, low: int, high: int):
    """Whole numbers next to `index`, within [low, high]."""
    return index.detach().nan_to_num(nan=low).clamp(low, high).round().long()


def allowed(lower, upper, low: int, high: int):
    """First and last whole number in [low, high] that an index in [lower, upper] can mean."""
    return whole(lower, low, high), whole(upper.nan_to_num(nan=high), low, high)


def both(a, b):
    """Two values with as many boxes."""
    count = max(len(a), len(b))
    return a.expand(count, *a.shape[1:]), b.expand(count, *b.shape[1:])


@register_op
@dataclass(frozen=True)
class Lookup(Coarse):
    """x, index -> the elements of x at `index` along one axis: Gather. Outside the axis: its first or last element."""

    axis: int

    def infer(self, x, index):
        return x.with_shape((*x.shape[: self.axis], *index.shape, *x.shape[self.axis + 1 :]))

    def _flat(self, x, index):
        """x "B n rest" and the flat index "B m"."""
        x, index = both(x, index)
        return x.movedim(self.axis + 1, 1).flatten(2) if x.dim() > 2 else x[:, :, None], index.reshape(len(index), -1)

    def _shape(self, out, x, index):
        rest = [s for i, s in enumerate(x.shape[1:]) if i != self.axis]
        out = out.reshape(len(out), *index.shape[1:], *rest)
        rank = index.dim() - 1
        order = [*range(rank, rank + self.axis), *range(rank), *range(rank + self.axis, rank + len(rest))]
        return out.permute(0, *(1 + i for i in order))

    def eval(self, x, index):
        table, flat = self._flat(x, index)
        n = table.shape[1]
        place = whole(flat, -n, n - 1) % n
        return self._shape(table.gather(1, place[:, :, None].expand(-1, -1, table.shape[2])), x, index)

    def image(self, lowers, uppers):
        (low, first), (high, last) = self._flat(lowers[0], lowers[1]), self._flat(uppers[0], uppers[1])
        n = low.shape[1]
        first, last = allowed(first, last, -n, n - 1)
        small = low.new_full((*first.shape, low.shape[2]), torch.inf)
        big = -small
        for place in range(n):
            hit = ((first <= place) & (last >= place)) | ((first <= place - n) & (last >= place - n))
            small = torch.where(hit[:, :, None], torch.minimum(small, low[:, place, None]), small)
            big = torch.where(hit[:, :, None], torch.maximum(big, high[:, place, None]), big)
        return self._shape(small, lowers[0], lowers[1]), self._shape(big, uppers[0], uppers[1])


@register_op
@dataclass(frozen=True)
class Window(Coarse):
    """x "n", start -> x[start : start + size] as Python slices, filled up to `size` with `fill` where it is shorter."""

    size: int
    fill: float = 0.0

    def infer(self, x, start):
        if x.rank != 1 or start.numel != 1:
            raise ValueError(f"a window of {x} from {start}: wanted one axis, and one place")
        return x.with_shape((self.size,))

    def _cut(self, x, start: int):
        n = x.shape[1]
        begin, end = (s + n if s < 0 else s for s in (start, start + self.size))
        part = x[:, min(begin, n) : min(max(end, 0), n)] if begin >= 0 else x[:, : min(max(end, 0), n)]
        return torch.nn.functional.pad(part, (0, self.size - part.shape[1]), value=self.fill)

    def _starts(self, n: int) -> range:
        """One start for each thing that can happen: further out everything is cut away."""
        return range(-n - self.size, n + 1)

    def eval(self, x, start):
        x, start = both(x, start.reshape(len(start), 1))
        starts = self._starts(x.shape[1])
        table = torch.stack([self._cut(x, s) for s in starts], 1)
        place = whole(start, starts[0], starts[-1]) - starts[0]
        return table.gather(1, place[:, :, None].expand(-1, 1, self.size))[:, 0]

    def image(self, lowers, uppers):
        low, first = both(lowers[0], lowers[1].reshape(len(lowers[1]), 1))
        high, last = both(uppers[0], uppers[1].reshape(len(uppers[1]), 1))
        starts = self._starts(low.shape[1])
        first, last = allowed(first, last, starts[0], starts[-1])
        every = torch.arange(starts[0], starts[-1] + 1, device=low.device)
        outside = ((every < first) | (every > last))[:, :, None]
        tables = [torch.stack([self._cut(t, s) for s in starts], 1) for t in (low, high)]
        return tables[0].masked_fill(outside, torch.inf).amin(1), tables[1].masked_fill(outside, -torch.inf).amax(1)


@register_op
@dataclass(frozen=True)
class Scatter(Coarse):
    """data, indices "... k", updates -> data, overwritten at each index by its update: ScatterND.

    An index that lies outside is skipped. Where several meet, any of them may be the last.
    """

    def infer(self, data, indices, updates):
        k = indices.shape[-1] if indices.rank else 0
        if not 1 <= k <= data.rank or updates.shape != (*indices.shape[:-1], *data.shape[k:]):
            raise ValueError(f"cannot write {updates} into {data} at {indices}")
        return data

    def _parts(self, data, indices, updates):
        """data "B cells rest", indices "B m k", updates "B m rest", sizes of the k axes."""
        k = indices.shape[-1]
        sizes = data.shape[1 : k + 1]
        count = max(len(data), len(indices), len(updates))
        data = data.reshape(len(data), prod(sizes), -1).expand(count, -1, -1)
        indices = indices.reshape(len(indices), -1, k).expand(count, -1, -1)
        return data, indices, updates.reshape(len(updates), indices.shape[1], -1).expand(count, -1, -1), sizes

    def eval(self, data, indices, updates):
        shape = data.shape[1:]
        data, indices, updates, sizes = self._parts(data, indices, updates)
        flat, outside = 0, False
        for axis, n in enumerate(sizes):
            place = whole(indices[:, :, axis], -n - 1, n)
            outside = outside | (place < -n) | (place >= n)
            flat = flat * n + place % n
        cells = data.shape[1]
        flat = torch.where(outside, torch.full_like(flat, cells), flat)
        room = torch.cat([data, data.new_zeros((len(data), 1, data.shape[2]))], 1)  # a last cell for what is skipped
        out = room.scatter(1, flat[:, :, None].expand_as(updates), updates)
        return out[:, :cells].reshape(len(out), *shape)

    def image(self, lowers, uppers):
        shape = lowers[0].shape[1:]
        low, first, least, sizes = self._parts(*lowers)
        high, last, most, _ = self._parts(*uppers)
        small, big = torch.full_like(low, torch.inf), torch.full_like(high, -torch.inf)  # hull of the writes
        kept = torch.ones_like(low[:, :, :1], dtype=torch.bool)
        hits = []  # per axis: can, and must, each write fall on each place, "B m n"
        for axis, n in enumerate(sizes):
            begin, end = allowed(first[:, :, axis, None], last[:, :, axis, None], -n - 1, n)
            place = torch.arange(n, device=low.device)
            hit = ((begin <= place) & (end >= place)) | ((begin <= place - n) & (end >= place - n))
            hits.append((hit, hit & (begin == end)))
        for m in range(first.shape[1]):
            may = must = torch.ones((len(low), 1), dtype=torch.bool, device=low.device)
            for can, has_to in hits:
                may = (may[:, :, None] & can[:, m, None]).flatten(1)
                must = (must[:, :, None] & has_to[:, m, None]).flatten(1)
            small = torch.where(may[:, :, None], torch.minimum(small, least[:, m, None]), small)
            big = torch.where(may[:, :, None], torch.maximum(big, most[:, m, None]), big)
            kept = kept & ~must[:, :, None]
        low = torch.where(kept, torch.minimum(low, small), small)
        high = torch.where(kept, torch.maximum(high, big), big)
        return low.reshape(len(low), *shape), high.reshape(len(high), *shape)


def order_of(x, largest: bool):
    """Indices that sort the last axis, equal elements by their place."""
    return torch.argsort(x, dim=-1, descending=largest, stable=True)


@register_op
@dataclass(frozen=True)
class TopValues(Coarse):
    """The k largest (or smallest) elements along one axis, in order: each is a monotone function of all elements."""

    axis: int
    k: int
    largest: bool = True

    def infer(self, x):
        if not 0 <= self.k <= x.shape[self.axis]:
            raise ValueError(f"{self.k} elements cannot be taken from axis {self.axis} of {x}")
        return x.with_shape(self.k if i == self.axis else s for i, s in enumerate(x.shape))

    def eval(self, x):
        return x.sort(self.axis + 1, descending=self.largest).values.narrow(self.axis + 1, 0, self.k)

    def image(self, lowers, uppers):
        return self.eval(lowers[0]), self.eval(uppers[0])


@register_op
@dataclass(frozen=True)
class TopIndices(Coarse):
    """The places of the k largest (or smallest) elements along one axis; of equal ones the first comes first."""

    axis: int
    k: int
    largest: bool = True

    def infer(self, x):
        return TopValues(self.axis, self.k, self.largest).infer(x)

    def eval(self, x):
        order = order_of(x.detach().movedim(self.axis + 1, -1), self.largest)
        return order[..., : self.k].movedim(-1, self.axis + 1).to(x.dtype)

    def image(self, lowers, uppers):
        """Element i can have rank r unless too many elements surely come before it, or too many after it."""
        low, high = (t[0].movedim(self.axis + 1, -1) for t in (lowers, uppers))
        if not self.largest:
            low, high = -high, -low
        n = low.shape[-1]
        if n > RANKED:
            shape = (*low.shape[:-1], self.k)
            first, last = low.new_zeros(shape), low.new_full(shape, n - 1)
        else:
            first, last = self._places(low, high, n)
        return first.movedim(-1, self.axis + 1), last.movedim(-1, self.axis + 1)

    def _places(self, low, high, n: int):
        place = torch.arange(n, device=low.device)
        before = place[:, None] < place  # [i, j]: i stands before j
        wins = (low[..., :, None] > high[..., None, :]) | (before & (low[..., :, None] >= high[..., None, :]))
        wins = wins & (place[:, None] != place)
        best, worst = wins.sum(-2), n - 1 - wins.sum(-1)  # ranks that element i can have at best and at worst
        rank = torch.arange(self.k, device=low.device)[:, None]
        possible = (best[..., None, :] <= rank) & (worst[..., None, :] >= rank)
        first = torch.where(possible, place, n - 1).amin(-1)
        last = torch.where(possible, place, 0).amax(-1)
        return first.to(low.dtype), last.to(low.dtype)
