"""The parts of input sets as tensors: balls and axis-parallel ellipsoids, ellipsoids, half-spaces.

A part gives, over its intersection with the box [lower, upper] "B n": a lower bound of <nu, x> per row (its support
function; charged runs subtract what rounding does), points moved towards it, points where <slopes, x> is low, and a
proof that nothing of the box is in it. Bounds come from Lagrange duals: any multiplier >= 0 gives a valid one, so
multipliers are searched for without gradients, and the bound is evaluated once (Danskin's theorem gives its gradient).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from absdom.arithmetic import Arithmetic
from absdom.rows import Rows

GATHERED = 2**23  # numbers of matrices that rows of different boxes gather at once
NEWTON = 12  # steps of the search for the multiplier of a clipped l2 ball
ROUNDS, RESTART = 160, 40  # steps of the search for multipliers of half-spaces, and after how many it starts anew


def aligned(nu: Rows, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The rows as "G k n" and values "B ..." as "G ...", for groups of rows of one box."""
    data = nu.dense().reshape(nu.count, -1)
    if nu.box is None:
        return data.reshape(nu.boxes, -1, data.shape[1]), *values
    return data[:, None], *(v if v.shape[0] == 1 else v.index_select(0, nu.box) for v in values)


def box_support(nu: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """The least <nu, x> over boxes: nu "G k n", ends "G n" -> "G k"."""
    return _dot(nu.clamp(min=0), lower) + _dot(nu.clamp(max=0), upper)


def _dot(nu: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """nu "G k n", value "G n" -> "G k"."""
    return torch.matmul(nu, value[..., None])[..., 0]


def _nearest(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The number nearest to 0 in [low, high]."""
    return torch.minimum(low.clamp(min=0), high)


def _outward(low: torch.Tensor, high: torch.Tensor, arithmetic: Arithmetic) -> tuple[torch.Tensor, torch.Tensor]:
    """Ends that a few roundings may have moved, wide enough for the exact ones in charged runs."""
    if not arithmetic.charged:
        return low, high
    slack = [t.abs().clamp(max=1e290) * (8 * arithmetic.unit) + arithmetic.tiny for t in (low, high)]
    return low - slack[0], high + slack[1]


class BallBatch(NamedTuple):
    """||(x - centre) / radius||_norm <= 1. centre "B n"; radius "B 1" or "B n"; norm 1 or 2.

    `clipped`: may the box cut something off? Where not, the dual norm gives the support function at once.
    """

    centre: torch.Tensor
    radius: torch.Tensor
    norm: float
    clipped: bool

    @staticmethod
    def of(part, inputs, arithmetic: Arithmetic) -> BallBatch:
        inside = (inputs.lower <= part.centre - part.radius) & (part.centre + part.radius <= inputs.upper)
        return BallBatch(arithmetic.tensor(part.centre), arithmetic.tensor(part.radius), part.norm, not inside.all())

    rounds = 1

    @property
    def covers_box(self) -> bool:
        """Is `support` never below the support function of the box?"""
        return not self.clipped

    def support(self, nu: Rows, lower, upper, arithmetic: Arithmetic) -> torch.Tensor:
        found = self._clipped(nu, lower, upper, arithmetic) if self.clipped else self._whole(nu, arithmetic)
        return found.reshape(nu.count)

    def _whole(self, nu: Rows, arithmetic: Arithmetic) -> torch.Tensor:
        """<nu, centre> - ||radius nu|| in the dual norm."""
        data, centre, radius = aligned(nu, self.centre, self.radius)
        one = radius.shape[1] == 1
        scaled = data if one else data * radius[:, None]
        size = scaled.norm(dim=2) if self.norm == 2 else scaled.abs().amax(2)
        if arithmetic.charged:
            n = data.shape[2]
            size = size * (1 + arithmetic.gamma(n)) + n * arithmetic.tiny**0.5  # squares may vanish
        if one:
            size = size * radius
        found = _dot(data, centre) - size
        if arithmetic.charged:
            found = found - (_dot(data.abs(), centre.abs()) + size) * arithmetic.gamma(data.shape[2]) - arithmetic.tiny
        return found

    def _clipped(self, nu: Rows, lower, upper, arithmetic: Arithmetic) -> torch.Tensor:
        """max over m >= 0 of <nu, centre> + sum_i min over u_i of (s_i u_i + m |u_i|^p) - m, for x = centre + radius u
        and s = radius nu. Of the box, u keeps what lies in [-1, 1]."""
        data, centre, radius, lower, upper = aligned(nu, self.centre, self.radius, lower, upper)
        s = data * radius[:, None]
        low, high = self._ends(centre, radius, lower, upper, arithmetic)
        m, _ = self._solve(s, low, high)
        if self.norm == 2:
            u = torch.maximum(torch.minimum(-s / (2 * m)[..., None], high), low)
        else:
            corner = torch.where(s > 0, low, high)
            u = torch.where(s.abs() > m[..., None], corner, _nearest(low, high))
        price = u.abs().pow(int(self.norm)).sum(2)
        found = _dot(data, centre) + (s * u).sum(2) + m * (price - 1)
        if arithmetic.charged:
            reach = (s.abs() * torch.maximum(low.abs(), high.abs())).sum(2) + m * (price + 1)
            size = _dot(data.abs(), centre.abs()) + reach
            n = data.shape[2]
            found = found - size * arithmetic.gamma(2 * n + 8) - (4 * n + 4) * arithmetic.tiny * (1 + m)
        return found

    @staticmethod
    def _ends(centre, radius, lower, upper, arithmetic) -> tuple[torch.Tensor, torch.Tensor]:
        """The ends "G 1 n" of u where the box leaves them, in [-1, 1] and in order; charged: outward."""
        divisor = torch.where(radius > 0, radius, 1)
        low, high = _outward((lower - centre) / divisor, (upper - centre) / divisor, arithmetic)
        flat = (radius > 0).to(low.dtype)
        return (low.clamp(-1, 1) * flat)[:, None], (high.clamp(-1, 1) * flat)[:, None]

    def _solve(self, s: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A good multiplier m "G k", and u "G k n" where sum s u is least: the box's ends, s "G k n"."""
        rest = _nearest(low, high)
        if self.norm == 1:  # the budget goes to the steepest inputs first, each as far as the box lets it
            corner = torch.where(s > 0, low, torch.where(s < 0, high, rest))
            steep, order = s.abs().sort(-1, descending=True)
            wanted = (corner - rest).detach().abs().gather(-1, order)
            budget = 1 - rest.detach().abs().sum(-1, keepdim=True)
            taken = torch.minimum(wanted, (budget - wanted.cumsum(-1) + wanted).clamp(min=0))
            last = (wanted.cumsum(-1) < budget).sum(-1, keepdim=True)
            m = torch.nn.functional.pad(steep, (0, 1)).gather(-1, last)[..., 0]
            share = torch.zeros_like(taken).scatter(-1, order, taken)
            return m, rest + (corner - rest).sign() * share
        with torch.no_grad():  # Newton's steps, kept in a bracket, for t = 1 / (2 m): sum of u(t)^2 = 1
            t = 1 / s.norm(dim=2).clamp(min=1e-30)
            below, above = torch.zeros_like(t), torch.full_like(t, torch.inf)
            for _ in range(NEWTON):
                raw = -s * t[..., None]
                u = torch.maximum(torch.minimum(raw, high), low)
                total = torch.linalg.vector_norm(u, dim=2).square()
                loose = torch.linalg.vector_norm(torch.where(u == raw, s, 0), dim=2).square()  # of those between ends
                below, above = torch.where(total <= 1, t, below), torch.where(total > 1, t, above)
                step = ((1 - total) / loose + t.square()).clamp(min=0).sqrt()
                inside = (step >= below) & (step <= above) & (step > 0)
                between = torch.where(below > 0, below.sqrt() * above.sqrt(), above / 16)
                other = torch.where(above.isinf(), 4 * t, between)
                t = torch.where(inside, step, other).clamp(max=1e30)
            u = torch.maximum(torch.minimum(-s * t[..., None], high), low)
        return 0.5 / t, u

    def project(self, x: torch.Tensor, lower, upper) -> torch.Tensor:
        centre, radius = self.centre[:, None], self.radius[:, None]
        divisor = torch.where(radius > 0, radius, 1)
        step = torch.where(radius > 0, (x - centre) / divisor, 0)
        if self.norm == 2:
            step = step / step.norm(dim=2, keepdim=True).clamp(min=1)
        else:
            step = _project_l1(step)
        return centre + step * radius

    def lowest(self, slopes: torch.Tensor, lower, upper) -> torch.Tensor:
        ends = self._ends(self.centre, self.radius, lower, upper, Arithmetic(slopes.dtype))
        with torch.no_grad():
            _, u = self._solve(slopes * self.radius[:, None], *ends)
        return self.centre[:, None] + self.radius[:, None] * u

    def misses(self, lower, upper, arithmetic: Arithmetic) -> torch.Tensor:
        low, high = self._ends(self.centre, self.radius, lower, upper, arithmetic)
        divisor = torch.where(self.radius > 0, self.radius, 1)
        raw = _outward((lower - self.centre) / divisor, (upper - self.centre) / divisor, arithmetic)
        rest = _nearest(low, high)[:, 0]
        size = rest.abs().pow(int(self.norm)).sum(1) * (1 - arithmetic.gamma(rest.shape[1]))
        flat = (self.radius > 0) | ((lower <= self.centre) & (self.centre <= upper))
        return (size > 1) | (raw[0] > 1).any(1) | (raw[1] < -1).any(1) | ~flat.all(1)


class EllipsoidBatch(NamedTuple):
    """(x - centre)' precision (x - centre) <= 1. centre "B n"; precision and `inverse`, which is near its inverse,
    "B n n"."""

    centre: torch.Tensor
    precision: torch.Tensor
    inverse: torch.Tensor

    @staticmethod
    def of(part, inputs, arithmetic: Arithmetic) -> EllipsoidBatch:
        precision = torch.from_numpy(part.precision)
        return EllipsoidBatch(*map(arithmetic.tensor, (part.centre, precision, torch.linalg.inv(precision))))

    rounds = 8
    covers_box = False

    def support(self, nu: Rows, lower, upper, arithmetic: Arithmetic) -> torch.Tensor:
        """With w near P^-1 nu and e = nu - P w: <nu, d> >= -sqrt(w' P w) - sum |e| max |d| wherever d' P d <= 1."""
        return in_chunks(self._support, nu, self.centre.shape[1] ** 2, self, lower, upper, arithmetic)

    @staticmethod
    def _support(nu: Rows, part: EllipsoidBatch, lower, upper, arithmetic: Arithmetic) -> torch.Tensor:
        data, centre, precision, inverse, lower, upper = aligned(nu, *part, lower, upper)
        w = data @ inverse.mT
        back = w @ precision
        size = (back * w).sum(2).clamp(min=0)
        if not arithmetic.charged:  # at zero the root has no gradient
            return (_dot(data, centre) - torch.where(size > 0, torch.where(size > 0, size, 1).sqrt(), 0)).flatten()
        n = data.shape[2]
        reach, sizes = torch.maximum((lower - centre).abs(), (upper - centre).abs()), w.abs() @ precision.abs()
        error = (data - back).abs() + (data.abs() + sizes) * arithmetic.gamma(n + 2) + arithmetic.tiny
        size = (size + (sizes * w.abs()).sum(2) * arithmetic.gamma(2 * n)).clamp(min=arithmetic.tiny) + arithmetic.tiny
        loss = size.sqrt() + _dot(error, reach)
        charge = (_dot(data.abs(), centre.abs()) + loss) * arithmetic.gamma(n + 2) + n * arithmetic.tiny
        return (_dot(data, centre) - loss - charge).flatten()

    def project(self, x: torch.Tensor, lower, upper) -> torch.Tensor:
        """Towards the centre, onto the rim."""
        step = x - self.centre[:, None]
        size = ((step @ self.precision) * step).sum(2, keepdim=True).clamp(min=1).sqrt()
        return self.centre[:, None] + step / size

    def lowest(self, slopes: torch.Tensor, lower, upper) -> torch.Tensor:
        w = slopes @ self.inverse.mT
        size = ((w @ self.precision) * w).sum(2, keepdim=True).clamp(min=1e-30).sqrt()
        return self.centre[:, None] - w / size

    def misses(self, lower, upper, arithmetic: Arithmetic) -> torch.Tensor:
        """A plane across the gradient at the point of the box nearest to the centre, with both sets beside it."""
        near = torch.minimum(torch.maximum(self.centre, lower), upper)
        slope = torch.matmul(self.precision, (near - self.centre)[..., None])[..., 0]
        rows = Rows.dense_rows(slope, len(slope))
        gap = charged_box(rows, lower, upper, arithmetic)
        return gap + self.support(rows._with(-slope), *self._hull(lower, upper), arithmetic) > 0

    def _hull(self, lower, upper) -> tuple[torch.Tensor, torch.Tensor]:
        """A box that holds all of the ellipsoid, which [lower, upper] may cut."""
        # Three times: `InputSet.mahalanobis` saw that less than twice is enough.
        width = torch.diagonal(self.inverse, dim1=1, dim2=2).clamp(min=0).sqrt() * 3
        return torch.minimum(lower, self.centre - width), torch.maximum(upper, self.centre + width)


class HalfSpacesBatch(NamedTuple):
    """normals x <= offsets: normals "B m n", offsets "B m"."""

    normals: torch.Tensor
    offsets: torch.Tensor

    @staticmethod
    def of(part, inputs, arithmetic: Arithmetic) -> HalfSpacesBatch:
        return HalfSpacesBatch(arithmetic.tensor(part.normals), arithmetic.tensor(part.offsets))

    rounds = 24
    covers_box = True

    def support(self, nu: Rows, lower, upper, arithmetic: Arithmetic) -> torch.Tensor:
        """max over m >= 0 of min over the box of <nu + normals' m, x>, less <m, offsets>."""
        matrix = self.normals.shape[1] * self.normals.shape[2]
        return in_chunks(self._support, nu, matrix, self, lower, upper, arithmetic)

    @staticmethod
    def _support(nu: Rows, part: HalfSpacesBatch, lower, upper, arithmetic: Arithmetic) -> torch.Tensor:
        data, normals, offsets, lower, upper = aligned(nu, *part, lower, upper)
        m, _ = _multipliers(data, normals, offsets, lower, upper)
        moved = data + m @ normals
        found = box_support(moved, lower, upper) - _dot(m, offsets)
        if arithmetic.charged:
            reach = torch.maximum(lower.abs(), upper.abs())
            count = normals.shape[1] + normals.shape[2]
            sizes = _dot(data.abs() + m @ normals.abs(), reach) + _dot(m, offsets.abs())
            found = found - sizes * arithmetic.gamma(2 * count)
            found = found - (count + 4) * arithmetic.tiny * (1 + reach.sum(1))[:, None]
        return found.flatten()

    def project(self, x: torch.Tensor, lower, upper) -> torch.Tensor:
        """Onto the half-space that is violated most, and a little further."""
        moves = self.normals * (lower < upper)[:, None]
        length = moves.norm(dim=2)
        unit = moves / torch.where(length > 0, length, 1)[..., None]
        above = (x @ self.normals.mT - self.offsets[:, None]) / torch.where(length > 0, length, torch.inf)[:, None]
        worst, k = above.max(2, keepdim=True)
        return x - worst.clamp(min=0) * 1.1 * unit.gather(1, k.expand(-1, -1, x.shape[2]))

    def lowest(self, slopes: torch.Tensor, lower, upper) -> torch.Tensor:
        return _multipliers(slopes, self.normals, self.offsets, lower, upper)[1]

    def misses(self, lower, upper, arithmetic: Arithmetic) -> torch.Tensor:
        return self.support(Rows.dense_rows(torch.zeros_like(lower), len(lower)), lower, upper, arithmetic) > 0


def charged_box(nu: Rows, lower, upper, arithmetic: Arithmetic) -> torch.Tensor:
    """The least <nu, x> over each row's box, "R", rounding charged when the run is."""
    if not arithmetic.charged:
        return nu.lowest(lower, upper)
    found, reach = nu.dot_signed(lower, upper), torch.maximum(lower.abs(), upper.abs())
    return found - nu.abs_dot(reach) * arithmetic.gamma(2 * lower.shape[1] + 16) - arithmetic.tiny


def in_chunks(support, nu: Rows, matrix: int, *more) -> torch.Tensor:
    """`support` of the rows; rows of different boxes in chunks, where each gathers a matrix of `matrix` numbers."""
    size = max(1, GATHERED // max(matrix, 1))
    if nu.box is None or nu.count <= size:
        return support(nu, *more)
    return torch.cat([support(nu.slice(i, i + size), *more) for i in range(0, nu.count, size)])


@torch.no_grad()
def _multipliers(nu, normals, offsets, lower, upper) -> tuple[torch.Tensor, torch.Tensor]:
    """Good multipliers "G k m" of the half-spaces for rows "G k n", and points "G k n" near the lowest ones.

    Primal-dual steps of Chambolle and Pock (2011) with restarts from the average, in u = (x - middle) / half-width,
    with rows of length one; then each multiplier once at its best, the others fixed (exact for one half-space).
    """
    middle, half = (lower + upper) / 2, (upper - lower) / 2
    A = normals * half[:, None]
    length = A.norm(dim=2)
    length = torch.where(length > 1e-30, length, 1)
    A, b = A / length[..., None], (offsets - _dot(normals, middle)) / length
    c = nu * half[:, None]
    scale = (c.norm(dim=2, keepdim=True) / max(c.shape[2], 1) ** 0.5).clamp(min=1e-30)
    c = c / scale
    step = 0.95 / (A @ A.mT).abs().sum(2).amax(1).clamp(min=1e-30).sqrt()[:, None, None]

    def value(m):
        return -(c + m @ A).abs().sum(2) - _dot(m, b)

    u, m = torch.zeros_like(c), c.new_zeros((*c.shape[:2], A.shape[1]))
    best, top = m, value(m)
    for _ in range(ROUNDS // RESTART):
        sums = [torch.zeros_like(u), torch.zeros_like(m)]
        for _ in range(RESTART):
            new = (u - step * (c + m @ A)).clamp(-1, 1)
            m = (m + step * ((2 * new - u) @ A.mT - b[:, None])).clamp(min=0)
            u = new
            sums = [sums[0] + u, sums[1] + m]
        for candidate in (m, sums[1] / RESTART):
            found = value(candidate)
            best, top = torch.where((found > top)[..., None], candidate, best), torch.maximum(found, top)
        u, m = (t / RESTART for t in sums)
    for j in range(A.shape[1]):
        best = _best_along(c, A, b, best, j)
    return best * (scale / length[:, None]), middle[:, None] + half[:, None] * u


def _best_along(c, A, b, m, j: int) -> torch.Tensor:
    """m with m_j at its best: the value -|c + A' m|_1 - <m, b> is concave and piecewise linear in m_j."""
    a = A[:, None, j]
    rest = c + m @ A - m[..., j, None] * a
    weight = a.abs().expand_as(rest)
    turn = torch.where(weight > 0, -rest / torch.where(weight > 0, a, 1), -torch.inf)
    turn, order = turn.clamp(min=0).sort(-1)
    # To the right of all turns up to the k-th the slope is sum |a| - 2 (weights passed) - b.
    slope = weight.sum(-1, keepdim=True) - 2 * weight.gather(-1, order).cumsum(-1) - b[:, None, j, None]
    first = (slope > 0).sum(-1, keepdim=True).clamp(max=turn.shape[-1] - 1)
    at = torch.where(weight.sum(-1, keepdim=True) <= b[:, None, j, None], 0, turn.gather(-1, first))
    found = torch.cat([m[..., :j], at, m[..., j + 1 :]], -1)
    worth = [-(c + t @ A).abs().sum(2) - _dot(t, b) for t in (m, found)]
    return torch.where((worth[1] > worth[0])[..., None], found, m)


def _project_l1(step: torch.Tensor) -> torch.Tensor:
    """Projection onto the l1 ball of radius 1 (Duchi et al. 2008); points inside stay as they are."""
    size = step.abs()
    ordered = size.sort(-1, descending=True).values
    excess = (ordered.cumsum(-1) - 1) / torch.arange(1, step.shape[-1] + 1, device=step.device)
    last = (ordered > excess).sum(-1, keepdim=True).clamp(min=1) - 1
    shrunk = step.sign() * (size - excess.gather(-1, last)).clamp(min=0)
    return torch.where(size.sum(-1, keepdim=True) <= 1, step, shrunk)
