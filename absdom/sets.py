"""Input sets as tensors, as a run takes them: boxes met with parts (balls, ellipsoids, half-spaces: see `set_parts`).

A set is known by its support function, a projection, and its lowest points in a direction.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from absdom import input_set
from absdom.arithmetic import Arithmetic
from absdom.rows import Rows
from absdom.set_parts import BallBatch, EllipsoidBatch, HalfSpacesBatch, charged_box

PARTS = {
    input_set.Ball: BallBatch,
    input_set.Ellipsoid: EllipsoidBatch,
    input_set.HalfSpaces: HalfSpacesBatch,
}


class InputBatch(NamedTuple):
    """Input sets as tensors: flat bounds "B n", met with all parts."""

    lower: torch.Tensor
    upper: torch.Tensor
    parts: tuple[BallBatch | EllipsoidBatch | HalfSpacesBatch, ...] = ()

    @staticmethod
    def of(inputs: input_set.InputSet, arithmetic: Arithmetic) -> InputBatch:
        """The tensors of an InputSet. Charged runs read bounds one unit outward: text is rounded when read.

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
        parts = tuple(PARTS[type(part)].of(part, inputs, arithmetic) for part in inputs.parts)
        return InputBatch(arithmetic.tensor(lower), arithmetic.tensor(upper), parts)

    @property
    def ball(self) -> BallBatch | None:
        """The l_p ball (1 or 2) that is the only part, if so; an axis-parallel ellipsoid has a radius per input."""
        return self.parts[0] if len(self.parts) == 1 and isinstance(self.parts[0], BallBatch) else None

    def select(self, boxes: torch.Tensor) -> InputBatch:
        """The sets at these positions (repeats allowed)."""

        def gather(value):
            return value[boxes] if isinstance(value, torch.Tensor) else value

        return InputBatch(
            gather(self.lower), gather(self.upper), tuple(type(part)(*map(gather, part)) for part in self.parts)
        )

    def support(self, nu: Rows, arithmetic: Arithmetic) -> torch.Tensor:
        """A lower bound of <nu, x> over each row's set, "R", rounding charged when the run is.

        The best of the parts' bounds, each over its intersection with the box.
        """
        found = [part.support(nu, self.lower, self.upper, arithmetic) for part in self.parts]
        if not any(part.covers_box for part in self.parts):
            found.append(charged_box(nu, self.lower, self.upper, arithmetic))
        best = found[0]
        for other in found[1:]:
            best = torch.maximum(best, other)
        return best

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """Points "B k n" moved towards the sets: onto the parts, then into the box (membership is checked later)."""
        for _ in range(sum(part.rounds for part in self.parts)):
            for part in self.parts:
                x = part.project(x, self.lower, self.upper)
            x = self._into_box(x)
        return x if self.parts else self._into_box(x)

    def lowest(self, slopes: torch.Tensor) -> torch.Tensor:
        """Points "B k n" of the sets (up to rounding; with several parts, near them) where <slopes, x> is least, for
        slopes "B k n"."""
        if not self.parts:
            return torch.where(slopes > 0, self.lower[:, None], self.upper[:, None])
        return self.project(self.parts[0].lowest(slopes, self.lower, self.upper))

    def empty(self, arithmetic: Arithmetic) -> torch.Tensor:
        """Bool "B": sets of which (in a charged run) it is proved that they have no point."""
        found = self.lower.new_zeros(len(self.lower), dtype=torch.bool)
        for part in self.parts:
            found = found | part.misses(self.lower, self.upper, arithmetic)
        return found

    def _into_box(self, x: torch.Tensor) -> torch.Tensor:
        return torch.minimum(torch.maximum(x, self.lower[:, None]), self.upper[:, None])
