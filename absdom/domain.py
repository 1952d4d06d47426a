"""The seams for a domain: Forward, Dual and the values that go through them. (The third seam is encoding.py.)

A domain states how one kind of op acts on its sets; the planner decides where, and the run loop does it. Rules are
registered per (domain, kind of op) with `absdom.registry.register_rule`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import torch

from absdom.arithmetic import Arithmetic
from absdom.ir.op import At, Op
from absdom.rows import Rows


def no_nan(bound: torch.Tensor, infinity: float) -> torch.Tensor:
    """A bound whose NaNs (infinity minus infinity, where nothing is known) became the infinity that claims nothing."""
    return torch.nan_to_num(bound, nan=infinity, posinf=torch.inf, neginf=-torch.inf)


@dataclass(frozen=True, eq=False)
class NodeBounds:
    """Bounds of one node over B boxes: lower, upper "B *n". Met, never overwritten.

    `noise` "B *n" (or "1 *n"), in charged runs: what rounding at this node can add to or take from <nu, z> is at most
    <|nu|, noise>, for any row nu that is pulled through the node's op.
    """

    lower: torch.Tensor
    upper: torch.Tensor
    noise: torch.Tensor | None = None
    provenance: str = "interval"

    def meet(self, lower: torch.Tensor, upper: torch.Tensor, provenance: str) -> NodeBounds:
        """Both claims at once; NaN claims nothing. Ends that cross (rounding, an empty set) are put in order."""
        low = torch.maximum(self.lower, no_nan(lower, -torch.inf))
        high = torch.minimum(self.upper, no_nan(upper, torch.inf))
        return replace(
            self, lower=torch.minimum(low, high), upper=torch.maximum(low, high),
            provenance=f"{self.provenance} & {provenance}",
        )  # fmt: skip

    def magnitude(self) -> torch.Tensor:
        return torch.maximum(self.lower.abs(), self.upper.abs())


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


class Place(NamedTuple):
    """An op where it stands while a plan runs: what a dual rule may look at."""

    op: Op
    at: At
    inputs: tuple[NodeBounds | None, ...]  # per input; None for parameters
    output: NodeBounds
    knobs: Mapping[str, torch.Tensor]
    arithmetic: Arithmetic
    errors: tuple  # per input: "1 *n" error of a rounded parameter, or None


class Recipe:
    """A way to bound a network, as a value. `a & b` meets two recipes."""

    name: ClassVar[str] = "recipe"

    def __and__(self, other: Recipe) -> Recipe:
        return Meet((self, other))


class Forward(Recipe, ABC):
    """A domain whose states go from the inputs to the outputs. Rules: rule(op, at, states, errors, arithmetic)."""

    @abstractmethod
    def lift(self, lower: torch.Tensor, upper: torch.Tensor, arithmetic: Arithmetic):
        """The state of an input, from its bounds "B *n"."""

    @abstractmethod
    def concretize(self, state, arithmetic: Arithmetic) -> NodeBounds:
        """Interval bounds of a state."""


class Dual(Recipe):
    """A domain whose rows go from a node back to the inputs. Rules are LayerDual objects.

    `pre` is the recipe of the bounds that relaxations are built from; None: this recipe itself, layer by layer.
    """

    pre: Recipe | None = None


class LayerDual(ABC):
    """How rows pass one kind of op: for all z in its bounds, <nu_out, f(z)> >= sum_i <part_i, z_i> + term."""

    def relax(self, place: Place, recipe: Dual):
        """What depends on bounds and knobs only, made once for all rows."""
        return None

    @abstractmethod
    def pull(self, nu: Rows, place: Place, relaxation) -> tuple[tuple[Rows | None, ...], torch.Tensor | None]:
        """(one entry per varying input, None for zero rows; the term "R", charges included, None for zero)."""


class AffineDual(LayerDual):
    """Affine ops are exact in every dual: part = W^T nu, term = <nu, b>."""

    def relax(self, place, recipe):
        return place.op.offset(place.at)

    def pull(self, nu, place, relaxation):
        parts = tuple(nu.pull(place.op, place.at, i) for i, varying in enumerate(place.at.varying) if varying)
        constant = None if relaxation is None else nu.dot(relaxation)
        if place.output.noise is None:
            return parts, constant
        # The noise covers each product of the offset; its sum over the node's elements is charged here.
        noise = place.output.noise
        if relaxation is not None:
            noise = noise + relaxation.abs() * place.arithmetic.gamma(place.at.output.numel)
        charge = nu.abs_dot(noise)
        return parts, -charge if constant is None else constant - charge


@dataclass(frozen=True)
class Meet(Recipe):
    """Several recipes at once: every bound is the best of theirs."""

    parts: tuple[Recipe, ...]
    name: ClassVar[str] = "meet"

    def __and__(self, other: Recipe) -> Recipe:
        return Meet((*self.parts, *(other.parts if isinstance(other, Meet) else (other,))))


@dataclass(frozen=True, eq=False)
class LinearConstraint:
    """K half-spaces <coefficients, z> + rhs <= 0 over nodes, each with a multiplier knob >= 0.

    terms: node -> coefficients "K *n"; rhs "K". `scope` "K": the box it belongs to, or None: all boxes. The sweep adds
    multiplier x coefficients to nu once all consumers of a node are summed, and multiplier x rhs to the constant.
    """

    terms: Mapping[int, torch.Tensor]
    rhs: torch.Tensor
    scope: torch.Tensor | None = None

    @property
    def count(self) -> int:
        return len(self.rhs)

    def inject(self, node: int, nu: Rows, multiplier: torch.Tensor) -> Rows:
        """`multiplier` "R K" (>= 0)."""
        coefficients = self.terms[node].reshape(self.count, -1)
        return nu.shift((self._in_scope(nu, multiplier) @ coefficients).reshape(-1, *nu.shape))

    def inject_size(self, node: int, nu: Rows, multiplier: torch.Tensor) -> Rows:
        """What `inject` sums, in absolute values; `nu` is already absolute."""
        absolute = replace(self, terms={node: self.terms[node].abs()})
        return absolute.inject(node, nu, multiplier.abs())

    def constant(self, nu: Rows, multiplier: torch.Tensor) -> torch.Tensor:
        return self._in_scope(nu, multiplier) @ self.rhs

    def constant_size(self, nu: Rows, multiplier: torch.Tensor) -> torch.Tensor:
        return self._in_scope(nu, multiplier).abs() @ self.rhs.abs()

    def _in_scope(self, nu: Rows, multiplier: torch.Tensor) -> torch.Tensor:
        if self.scope is None:
            return multiplier
        box = nu.per_row(torch.arange(nu.boxes, device=self.rhs.device))
        return multiplier * (self.scope[None] == box[:, None])


@dataclass(frozen=True, eq=False)
class SplitConstraint:
    """The one-coefficient case (beta): at node `node`, sign * z <= 0 where sign "B *n" is not 0; multiplier "R *n"."""

    node: int
    sign: torch.Tensor
    count: ClassVar[int] = 1

    @property
    def terms(self) -> tuple[int, ...]:
        return (self.node,)

    def inject(self, node: int, nu: Rows, multiplier: torch.Tensor) -> Rows:
        return nu.shift(nu.per_row(self.sign) * multiplier)

    def inject_size(self, node: int, nu: Rows, multiplier: torch.Tensor) -> Rows:
        return nu.shift(nu.per_row(self.sign).abs() * multiplier.abs())

    def constant(self, nu: Rows, multiplier: torch.Tensor) -> None:
        return None


@dataclass(frozen=True, eq=False)
class Constraints:
    """Constraints with the values of their multipliers, as a sweep takes them."""

    items: tuple[tuple[LinearConstraint | SplitConstraint, torch.Tensor], ...] = ()
    nodes: frozenset[int] = field(default=frozenset())

    @staticmethod
    def of(*items) -> Constraints:
        return Constraints(items, frozenset(n for constraint, _ in items for n in constraint.terms))
