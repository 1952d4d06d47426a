"""Bounds by random projections (Wong et al. 2018, section 3.2; Wong's dissertation, Theorem 4 and Algorithm 3).

With parallel lines f(z) = s z + middle -+ radius at every nonlinear element (CAP), an element is a centre, a linear
map of the input and linear maps of all earlier errors. Its bounds are centre -+ the l1 norm of one long vector: input
radii x coefficients, beside error radii x coefficients. Put independent Cauchy numbers in place of the inputs and the
errors, and the element becomes Cauchy with that norm as its scale: a few such draws, pushed forward through the
network, estimate it. The cost grows with the number of elements and no faster. On l2 balls the input's part is an l2
norm, and its draws are normal.

`median`: medians of absolute values. They are estimates, which may be too small: for training, never for proofs.
`geometric`: geometric means, multiplied so that they are too small with a small probability only. Slopes and radii of
later layers depend on earlier estimates, so each estimate has draws of its own, pushed forward from the inputs anew:
given all earlier estimates, what it estimates is a fixed number.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch

from absdom.arithmetic import Arithmetic
from absdom.domain import Forward, NodeBounds, Place
from absdom.domains.interval import rounding, sums, with_parameters
from absdom.domains.stacked import combine, plane_charge, through, weigh
from absdom.domains.zonotope.state import enclosing
from absdom.errors import UsageError
from absdom.ir.op import Affine, Elementwise, Multivariate, PlaneMap
from absdom.ops.shape import Move
from absdom.registry import register_recipe, register_rule
from absdom.sets import InputBatch


class Step(NamedTuple):
    """A linear map of draws "B k *in_i" (None for parameters), and how many products it sums into one element."""

    linear: Callable[[Sequence], torch.Tensor]
    absolute: Callable[[Sequence], torch.Tensor]  # the same with absolute coefficients
    terms: int


class Draws(NamedTuple):
    """vectors "B k *n", one per draw; error "B *n" (None in runs that are not charged): what rounding did to any."""

    vectors: torch.Tensor
    error: torch.Tensor | None


@dataclass(eq=False)
class Run:
    """One pass over a batch of boxes: how many estimates it has made, and the draws that they share."""

    recipe: Projected
    arithmetic: Arithmetic
    sets: InputBatch
    shared: torch.Generator | None = None
    states: int = 0
    estimates: int = 0

    def generator(self, number: int) -> torch.Generator:
        """A source of random numbers.

        Proofs have others than the searches that choose what is to be proved; and proofs of other sets have others,
        since a strategy may choose sets by what earlier ones gave. So have other recipes, whose bounds may be met with
        those of this one.
        """
        key = hashlib.blake2b(f"{self.recipe} {self.arithmetic.charged} {number}".encode(), digest_size=8)
        if self.arithmetic.charged:
            parts = (value for part in self.sets.parts for value in part if isinstance(value, torch.Tensor))
            for value in (self.sets.lower, self.sets.upper, *parts):
                key.update(value.detach().cpu().numpy().tobytes())
        return torch.Generator(self.arithmetic.device).manual_seed(int.from_bytes(key.digest()) >> 1)

    def noise(self, radius: torch.Tensor, ball: torch.Tensor | None, generator: torch.Generator) -> torch.Tensor:
        """Fresh draws "B k *n", the same for all boxes but for the radii; behind the Cauchy ones the normal ones."""
        shape = (1, self.recipe.draws, *radius.shape[1:])
        form = {"generator": generator, "dtype": radius.dtype, "device": radius.device}
        cauchy = radius.unsqueeze(1) * torch.rand(shape, **form).sub_(0.5).mul_(math.pi).tan_()
        if self.sets.ball is None:
            return cauchy
        if ball is None:
            return torch.cat([cauchy, torch.zeros_like(cauchy)], 1)
        return torch.cat([cauchy, ball.unsqueeze(1) * torch.randn(shape, **form)], 1)

    def width(self, draws: Draws, number: int, count: int) -> torch.Tensor:
        """The estimate from draws "B k *n": "B *n". The run's estimate of that number, of `count` norms per box."""
        recipe, arithmetic = self.recipe, self.arithmetic
        size = draws.vectors.abs()
        if draws.error is not None:
            size = size + draws.error.unsqueeze(1)
        doubt = recipe.failure / (number * (number + 1)) / (count * (1 if self.sets.ball is None else 2))
        found = recipe.scale(size[:, : recipe.draws], doubt, arithmetic)
        if self.sets.ball is not None:
            square = size[:, recipe.draws :].square().sum(1).clamp(min=arithmetic.tiny)
            found = found + (square / recipe.freedom(doubt)).sqrt()
        # Quantiles, logarithms and exponentials are good to about 1e-13.
        return found * (1 + 1e-9) if arithmetic.charged else found


@dataclass(eq=False)
class State:
    """centre "B *n" -+ (the norm that draws estimate + slack "B *n"), and how draws reach this node.

    Draws pass `step` from `sources`; then new ones of length `radius` (and, at an input in a ball, `ball`) are added.
    `slack` is what no draw stands for: rounding in charged runs, infinity where nothing is known. `known`: bounds that
    an estimate cannot improve. Where all estimates share their draws, those are here and the way to them is not kept.
    """

    run: Run
    centre: torch.Tensor
    slack: torch.Tensor
    sources: tuple[State | None, ...] = ()
    step: Step | None = None
    radius: torch.Tensor | None = None
    ball: torch.Tensor | None = None
    known: NodeBounds | None = None
    draws: Draws | None = None
    number: int = 0

    def __post_init__(self):
        self.number, self.run.states = self.run.states, self.run.states + 1
        if self.run.shared is not None:
            self.draws = self.advance([s and s.draws for s in self.sources], self.run.shared)
            self.sources, self.step, self.radius, self.ball = (), None, None, None

    def advance(self, given: Sequence[Draws | None], generator: torch.Generator) -> Draws:
        """The draws here from those at the sources."""
        arithmetic, vectors, error = self.run.arithmetic, None, None
        if self.step is not None:
            vectors = self.step.linear([d and d.vectors for d in given])
            if arithmetic.charged:
                peaks = [d and d.vectors.abs().amax(1, keepdim=True) for d in given]
                error = self.step.absolute([d and d.error.unsqueeze(1) for d in given])
                error = (error + self.step.absolute(peaks) * arithmetic.gamma(2 * self.step.terms + 8))[:, 0]
        if self.radius is not None:
            fresh = self.run.noise(self.radius, self.ball, generator)
            vectors = fresh if vectors is None else vectors + fresh
            if arithmetic.charged:
                charge = fresh.abs().amax(1) * arithmetic.gamma(8) + arithmetic.tiny
                error = charge if error is None else error + charge
        return Draws(vectors, error)

    def replay(self, generator: torch.Generator) -> Draws:
        """Draws from `generator`, pushed from the inputs to this node."""
        found, uses, pending = {}, Counter(), [self]
        while pending:
            state = pending.pop()
            if state not in found:
                found[state] = None
                read = [s for s in state.sources if s is not None]
                uses.update(read)
                pending += read
        for state in sorted(found, key=lambda s: s.number):
            found[state] = state.advance([s and found[s] for s in state.sources], generator)
            uses.subtract([s for s in state.sources if s is not None])
            for source in state.sources:
                if source is not None and not uses[source]:
                    found[source] = None
        return found[self]

    def drawn(self) -> tuple[Draws, int]:
        """Draws for one more estimate, and its number."""
        self.run.estimates += 1
        number = self.run.estimates
        return self.draws or self.replay(self.run.generator(number)), number


@register_recipe("projected")
@dataclass(frozen=True)
class Projected(Forward):
    """CAP's bounds, their norms estimated from random projections.

    projections: draws per estimate. estimator: `median` or `geometric`. failure: with `geometric`, the probability that
    any of all the estimates for one box is too small: the i-th call for estimates may spend failure / (i (i + 1)) of
    it, in equal parts per norm. largest_of: that many independent estimates are made of each norm, and the largest
    counts (one estimate from as many draws in all is tighter at the same probability). seed: repeats a run; None: each
    run takes a seed from torch's default generator, as training does.
    """

    projections: int = 50
    estimator: str = "median"
    failure: float = 1e-6
    seed: int | None = 0
    largest_of: int = 1
    name: ClassVar[str] = "projected"

    def __post_init__(self):
        counts = [("projections", self.projections, 1), ("largest_of", self.largest_of, 1)]
        for label, value, least in counts if self.seed is None else [*counts, ("seed", self.seed, 0)]:
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UsageError(f"{label} {value!r} is no whole number of at least {least}")
        if self.estimator not in ("median", "geometric"):
            raise UsageError(f"estimator {self.estimator!r} is not one of median, geometric")
        if not isinstance(self.failure, (int, float)) or not 0 < self.failure < 1:
            raise UsageError(f"failure {self.failure!r} is no probability between 0 and 1")

    @property
    def failure_probability(self) -> float:
        return self.failure if self.estimator == "geometric" else math.inf

    @property
    def draws(self) -> int:
        return self.projections * self.largest_of

    def lift(self, sets, types, arithmetic):
        seeded = replace(self, seed=int(torch.randint(2**62, ()))) if self.seed is None else self
        run = Run(seeded, arithmetic, sets)
        run.shared = run.generator(0) if self.estimator == "median" else None
        sizes, states, first = [t.numel for t in types], [], 0
        for t in types:
            part, shape = slice(first, first + t.numel), (len(sets.lower), *t.shape)
            first += t.numel
            known = NodeBounds(*(end[:, part].reshape(shape) for end in (sets.lower, sets.upper)))
            centre, radius = enclosing(known.lower, known.upper, arithmetic)
            lost, ball = ~radius.isfinite(), None
            if sets.ball is not None:
                wide = sets.ball.radius.expand(len(sets.lower), sum(sizes))
                centre, ball = (v[:, part].reshape(shape) for v in (sets.ball.centre, wide))
                radius, lost = torch.zeros_like(ball), torch.zeros_like(lost)
            slack = torch.where(lost, torch.inf, torch.zeros_like(radius))
            radius = torch.where(lost, 0, radius)
            states.append(State(run, centre, slack, radius=radius, ball=ball, known=known))
        return states

    def concretize(self, state, arithmetic):
        if state.known is not None:
            return state.known
        width = state.run.width(*state.drawn(), count=state.centre[0].numel()) + state.slack
        if arithmetic.charged:
            width = width + (state.centre.abs() + width) * arithmetic.gamma(4) + arithmetic.tiny
        return NodeBounds(state.centre - width, state.centre + width)

    def bound_rows(self, state, rows, arithmetic):
        nu = rows.dense()
        draws, number = state.drawn()
        vectors, error = combine(nu, rows, draws.vectors), None
        terms = 2 * nu[0].numel() + 8
        if arithmetic.charged:
            error = draws.error + draws.vectors.abs().amax(1) * arithmetic.gamma(terms)
            error = combine(nu.abs(), rows, error.unsqueeze(1))[:, 0]
        per_box = rows.count // rows.boxes if rows.box is None else rows.count  # at most
        width = state.run.width(Draws(vectors, error), number, per_box) + rows.abs_dot(state.slack)
        value = rows.dot(state.centre) - width
        if arithmetic.charged:
            value = value - (rows.abs_dot(state.centre.abs()) + width) * arithmetic.gamma(terms) - arithmetic.tiny
        return value

    def box_bytes(self, graph, itemsize):
        count = self.draws * 2  # with a temporary
        return count * itemsize * sum(n.type.numel for n, v in zip(graph.nodes, graph.varying, strict=True) if v)

    def scale(self, size: torch.Tensor, doubt: float, arithmetic: Arithmetic) -> torch.Tensor:
        """The scale of Cauchy numbers from the absolute values of draws, "B k *n" -> "B *n"."""
        groups = size.unflatten(1, (self.largest_of, self.projections))
        if self.estimator == "median":
            ordered = groups.sort(2).values
            found = (ordered[:, :, (self.projections - 1) // 2] + ordered[:, :, self.projections // 2]) / 2
        else:
            log = groups.clamp(min=arithmetic.tiny).log().mean(2)
            found = (log + overestimate(self.projections, doubt ** (1 / self.largest_of))).exp()
        return found.amax(1)

    def freedom(self, doubt: float) -> float:
        """What a sum of squares of normal draws is divided by: its mean, or its quantile at `doubt`."""
        if self.estimator == "median":
            return self.draws
        from scipy.special import gammaincinv  # slow to import, and only balls need it

        return 2 * float(gammaincinv(self.draws / 2, doubt)) * (1 - 1e-9)


@lru_cache(maxsize=1024)
def overestimate(count: int, doubt: float) -> float:
    """The logarithm of what a geometric mean of `count` Cauchy sizes is multiplied by, to be too small with
    probability `doubt` at most.

    Chernoff's bound with E |C|^-a = 1 / cos(pi a / 2), best at a = (2 / pi) atan(2 t / pi): exp(-count h(t)) with
    h(t) = (2 / pi) t atan(2 t / pi) - log(1 + (2 t / pi)^2) / 2, for the factor exp(t) = 1 / (1 - epsilon).
    """
    goal = -math.log(doubt) / count

    def exponent(t):
        return 2 / math.pi * t * math.atan(2 * t / math.pi) - math.log1p((2 * t / math.pi) ** 2) / 2

    high = 1.0
    while exponent(high) < goal:
        high *= 2
    low = 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if exponent(middle) >= goal else (middle, high)
    return high * (1 + 1e-9)


@register_rule(Projected, Affine)
def affine(place: Place, states):
    """W z + b: draws and centre go through W, the slack through |W|."""
    op, at = place.op, place.at
    run = next(s.run for s in states if s is not None)
    centre = op.linear(at, [s and s.centre for s in states])
    slack = op.absolute(at, [s and s.slack for s in states])
    offset = op.offset(at)
    if offset is not None:
        centre = centre + offset
    if place.arithmetic.charged:
        sizes = [s and s.centre.abs() + b.magnitude() for s, b in zip(states, place.inputs, strict=True)]
        slack = slack + rounding(place, sizes)
    linear, absolute = (lambda values, f=f: through(f, at, values) for f in (op.linear, op.absolute))
    known = place.output if isinstance(op, Move) else None
    return State(run, centre, slack, tuple(states), Step(linear, absolute, sums(at, op.terms(at))), known=known)


@register_rule(Projected, Elementwise)
def elementwise(place: Place, states):
    """The parallel slope, and the half width of its band as a new error; an interval where the band is not finite."""
    (state,), op, (bounds,) = states, place.op, place.inputs
    slope = op.parallel_slope(bounds.lower, bounds.upper)
    low, high = op.band(bounds.lower, bounds.upper, slope)
    good = slope.isfinite() & low.isfinite() & high.isfinite()
    slope = torch.where(good, slope, 0)
    low, high = torch.where(good, low, place.output.lower), torch.where(good, high, place.output.upper)
    slack = torch.where(slope == 0, 0, slope.abs() * state.slack)
    each, size = slope.unsqueeze(1), slope.abs().unsqueeze(1)
    step = Step(lambda values: each * values[0], lambda values: size * values[0], 1)
    charge = slope.abs() * state.centre.abs() * place.arithmetic.gamma(8)
    return renewed(place, states, step, slope * state.centre, slack + charge, low, high, place.output)


@register_rule(Projected, Multivariate)
def multivariate(place: Place, states):
    """One plane for both sides, and what the function differs from it as a new error."""
    op, at, arithmetic = place.op, place.at, place.arithmetic
    operands = with_parameters(place.inputs, at, place.errors)
    coefficients, low, high = op.parallel([b.lower for b in operands], [b.upper for b in operands])
    plane = PlaneMap(coefficients, low)
    fixed = [enclosing(b.lower, b.upper, arithmetic) for b in operands]
    parts = [f if s is None else (s.centre, s.slack) for s, f in zip(states, fixed, strict=True)]
    centres, slacks = ([p[k].expand(len(low), *p[k].shape[1:]) for p in parts] for k in (0, 1))

    def through_plane(values, absolute=False):
        return weigh(place, plane, values, absolute)

    centre = through_plane([c.unsqueeze(1) for c in centres])[:, 0]
    slack = through_plane([s.unsqueeze(1) for s in slacks], True)[:, 0]
    if arithmetic.charged:
        sizes = [c.abs() + b.magnitude() for c, b in zip(centres, operands, strict=True)]
        slack = slack + plane_charge(place, [plane], sizes)
    terms = max(at.output.numel, *(t.numel for t in at.inputs))
    step = Step(through_plane, lambda values: through_plane(values, True), terms)
    return renewed(place, states, step, centre, slack, low, high)


def renewed(place: Place, states, step: Step, centre, slack, low, high, known=None) -> State:
    """The state behind a step, plus an error anywhere in [low, high]: new draws stand for it and for the slack."""
    arithmetic = place.arithmetic
    middle, half = enclosing(low, high, arithmetic)
    centre, radius = centre + middle, half + slack
    if arithmetic.charged:
        radius = radius + (centre.abs() + middle.abs() + radius) * arithmetic.gamma(8) + arithmetic.tiny
    lost = ~radius.isfinite()
    slack = torch.where(lost, torch.inf, torch.zeros_like(radius))
    run = next(s.run for s in states if s is not None)
    return State(run, centre, slack, tuple(states), step, torch.where(lost, 0, radius), known=known)
