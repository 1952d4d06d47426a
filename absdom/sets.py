"""Input sets as tensors, as a run takes them: boxes, and l_p balls met with their box.

A set is known by its support function, a projection, and its lowest points in a direction.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from absdom.arithmetic import Arithmetic
from absdom.rows import Rows


class InputBatch(NamedTuple):
    """Input sets as tensors: flat bounds "B n"; for l_p balls also centre "B n" and radius "B"."""

    lower: torch.Tensor
    upper: torch.Tensor
    centre: torch.Tensor | None
    radius: torch.Tensor | None
    norm: float

    @staticmethod
    def of(inputs, arithmetic: Arithmetic) -> InputBatch:
        """From an absdom.property.InputSet. Charged runs read bounds one unit outward: text is rounded when read.

        Whole numbers (below 2^52) are exact: readers take care that nothing else is rounded to one.
        """
        lower, upper = torch.from_numpy(inputs.lower), torch.from_numpy(inputs.upper)
        infinity = torch.tensor(torch.inf, dtype=torch.float64)
        if arithmetic.charged or arithmetic.dtype != torch.float64:
            # Into float32 the box must not shrink either.
            near = [t.to(arithmetic.dtype) for t in (lower, upper)]
            if arithmetic.charged:
                pairs = zip((lower, upper), near, strict=True)
                exact = [(t == t.round()) & (t.abs() < 2.0**52) & (n == t) for t, n in pairs]
                near = [
                    torch.where(e, n, torch.nextafter(n, end.to(arithmetic.dtype)))
                    for e, n, end in zip(exact, near, (-infinity, infinity), strict=True)
                ]
            lower, upper = near
        convert = arithmetic.tensor
        if inputs.centre is None:
            return InputBatch(convert(lower), convert(upper), None, None, inputs.norm)
        return InputBatch(convert(lower), convert(upper), convert(inputs.centre), convert(inputs.radius), inputs.norm)

    def select(self, index: torch.Tensor) -> InputBatch:
        """The sets at these positions (repeats allowed)."""
        fields = {f: v[index] for f, v in self._asdict().items() if isinstance(v, torch.Tensor)}
        return self._replace(**fields)

    def support(self, nu: Rows, arithmetic: Arithmetic) -> torch.Tensor:
        """A lower bound of <nu, x> over each row's set, "R", rounding charged when the run is."""
        best = nu.dot_signed(self.lower, self.upper)
        if self.centre is not None:
            best = torch.maximum(best, self._ball(nu))
        if arithmetic.charged:
            reach = torch.maximum(self.lower.abs(), self.upper.abs())
            if self.centre is not None:
                reach = reach + self.centre.abs() + self.radius[:, None]
            best = best - nu.abs_dot(reach) * arithmetic.gamma(2 * self.lower.shape[1] + 16) - arithmetic.tiny
        return best

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """Points "B k n" moved towards the sets: onto the ball, then into the box (membership is checked later)."""
        if self.centre is not None:
            step = x - self.centre[:, None]
            if self.norm == 2:
                length = step.norm(dim=2, keepdim=True).clamp(min=1e-30)
                step = step * (self.radius[:, None, None] / length).clamp(max=1)
            else:
                step = _project_l1(step, self.radius[:, None, None])
            x = self.centre[:, None] + step
        return torch.minimum(torch.maximum(x, self.lower[:, None]), self.upper[:, None])

    def lowest(self, slopes: torch.Tensor) -> torch.Tensor:
        """Points "B k n" of the sets (up to rounding) where <slopes, x> is least, for slopes "B k n"."""
        corner = torch.where(slopes > 0, self.lower[:, None], self.upper[:, None])
        if self.centre is None:
            return corner
        step, radius = corner - self.centre[:, None], self.radius[:, None, None]
        step = torch.where(slopes == 0, 0, step)
        if self.norm == 1:  # the budget goes to the steepest inputs first, each as far as the box lets it
            order = slopes.abs().argsort(-1, descending=True)
            wanted = step.abs().gather(-1, order)
            taken = torch.minimum(wanted, (radius - wanted.cumsum(-1) + wanted).clamp(min=0))
            step = step.sign() * torch.zeros_like(step).scatter(-1, order, taken)
        else:  # along -slopes; what the box stops is given to the others, a few times
            room, free = step.abs(), slopes != 0
            for _ in range(8):
                spent = torch.where(free, 0, room).square().sum(-1, keepdim=True)
                length = torch.where(free, slopes, 0).norm(dim=-1, keepdim=True).clamp(min=1e-30)
                size = slopes.abs() * ((radius.square() - spent).clamp(min=0).sqrt() / length)
                free = free & (size < room)
            step = step.sign() * torch.minimum(torch.where(free, size, room), room)
        return self.project(self.centre[:, None] + step)

    def _ball(self, nu: Rows) -> torch.Tensor:
        """The ball met with the box, by its dual: max over m >= 0 of sum_i min over [lo, hi] of nu d + m |d|^p, less
        m radius^p. Any m >= 0 gives a valid bound; a search over m, which is concave, picks one."""
        data = nu.dense()
        centre = nu.per_row(self.centre)
        low, high = nu.per_row(self.lower) - centre, nu.per_row(self.upper) - centre
        radius = nu.per_row(self.radius[:, None])[:, 0]
        size = data.abs()

        def value(m):
            m_ = m[:, None]
            if self.norm == 2:
                d = torch.where(
                    m_ > 0,
                    -data / (2 * m_).clamp(min=1e-300 if m.dtype == torch.float64 else 1e-37),
                    -data.sign() * 1e30,
                )
                d = torch.minimum(torch.maximum(d, low), high)
                return (data * d + m_ * d * d).sum(1) - m * radius * radius
            corner = torch.where(data > 0, low, high)
            zero = torch.minimum(torch.maximum(torch.zeros_like(low), low), high)
            d = torch.where(size > m_, corner, zero)
            return (data * d + m_ * d.abs()).sum(1) - m * radius

        with torch.no_grad():
            if self.norm == 2:
                top = data.norm(dim=1) / (2 * radius).clamp(min=1e-30)
            else:
                top = size.amax(1)
            left, right = torch.zeros_like(top), top
            for _ in range(40):
                a, b = left + (right - left) / 3, right - (right - left) / 3
                better = value(a) >= value(b)
                right, left = torch.where(better, b, right), torch.where(better, left, a)
            middle = (left + right) / 2
        base = nu.dot(self.centre)
        found = torch.maximum(value(middle), value(top))
        if self.norm == 2:  # the unclipped ball, in closed form
            found = torch.maximum(found, -radius * data.norm(dim=1))
        else:
            found = torch.maximum(found, -radius * size.amax(1))
        return base + found


def _project_l1(step: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Projection onto l1 balls (Duchi et al. 2008); points inside stay as they are."""
    size = step.abs()
    ordered = size.sort(-1, descending=True).values
    excess = (ordered.cumsum(-1) - radius) / torch.arange(1, step.shape[-1] + 1, device=step.device)
    last = (ordered > excess).sum(-1, keepdim=True).clamp(min=1) - 1
    shrunk = step.sign() * (size - excess.gather(-1, last)).clamp(min=0)
    return torch.where(size.sum(-1, keepdim=True) <= radius, step, shrunk)
