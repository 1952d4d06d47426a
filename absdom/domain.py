"""The seams for a domain: Forward, Dual, Encoded and the values that go through them.

A domain states how one kind of op acts on its sets; the planner decides where, and the run loop does it. Rules are
registered per (domain, kind of op) with `absdom.registry.register_rule`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import ClassVar, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from absdom.arithmetic import Arithmetic
from absdom.encoding import Builder, Encoding, Size, Style
from absdom.ir.op import At, Op
from absdom.property import Property
from absdom.rows import Rows
from absdom.sets import InputBatch
from absdom.types import Clock, TensorType


class _WithoutNan(torch.autograd.Function):
    """nan_to_num whose gradient passes unchanged: that of torch compares every element again, twice."""

    generate_vmap_rule = True

    @staticmethod
    def forward(bound, infinity):
        return torch.nan_to_num(bound, nan=infinity, posinf=torch.inf, neginf=-torch.inf)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def no_nan(bound: torch.Tensor, infinity: float) -> torch.Tensor:
    """A bound whose NaNs (infinity minus infinity, where nothing is known) became the infinity that claims nothing."""
    return _WithoutNan.apply(bound, infinity)


def capturing() -> bool:
    """Is a trace being made, in which sizes may not depend on data?"""
    modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    return bool(modes) or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def chosen(mask: torch.Tensor) -> torch.Tensor:
    """The positions where a mask "n" holds, a Select point; all of them while a trace is made."""
    return torch.arange(len(mask), device=mask.device) if capturing() else torch.nonzero(mask)[:, 0]


def of_each(value: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """A value "B ..." for each of the boxes `index`; "1 ..." is that of all boxes."""
    return value.expand(len(index), *value.shape[1:]) if value.shape[0] == 1 else value.index_select(0, index)


class Ball(NamedTuple):
    """Values centre + e with |e|_2 <= radius and |e_i| <= reach_i; centre, reach "B *n", radius "B".

    Where `products` "n n" is there, also e = A w with |w|_2 <= source "B" and |A A^T| <= products, entry by entry.
    """

    centre: torch.Tensor
    radius: torch.Tensor
    reach: torch.Tensor
    products: torch.Tensor | None = None
    source: torch.Tensor | None = None

    def select(self, index: torch.Tensor) -> Ball:
        """The balls of the boxes `index` (repeats allowed)."""
        of_boxes = (("centre", self.centre), ("radius", self.radius), ("reach", self.reach), ("source", self.source))
        return self._replace(**{k: of_each(v, index) for k, v in of_boxes if v is not None})


@dataclass(frozen=True, eq=False)
class NodeBounds:
    """Bounds of one node over B boxes: lower, upper "B *n". Met, never overwritten.

    `noise` "B *n" (or "1 *n"), in charged runs: what rounding at this node can add to or take from <nu, z> is at most
    <|nu|, noise>, for any row nu that is pulled through the node's op. `ball`, where some domain made it: the values
    lie in it too.
    """

    lower: torch.Tensor
    upper: torch.Tensor
    noise: torch.Tensor | None = None
    provenance: str = "interval"
    ball: Ball | None = None

    def meet(self, other: NodeBounds, provenance: str) -> NodeBounds:
        """Both claims at once; NaN claims nothing. Ends that cross (rounding, an empty set) are put in order."""
        low = torch.maximum(self.lower, no_nan(other.lower, -torch.inf))
        high = torch.minimum(self.upper, no_nan(other.upper, torch.inf))
        return replace(
            self, lower=torch.minimum(low, high), upper=torch.maximum(low, high),
            ball=other.ball if self.ball is None else self.ball,
            provenance=f"{self.provenance} & {provenance}",
        )  # fmt: skip

    def without_nan(self) -> NodeBounds:
        return replace(self, lower=no_nan(self.lower, -torch.inf), upper=no_nan(self.upper, torch.inf))

    def magnitude(self) -> torch.Tensor:
        return torch.maximum(self.lower.abs(), self.upper.abs())

    def select(self, index: torch.Tensor) -> NodeBounds:
        """The bounds over the boxes `index` (repeats allowed)."""
        chosen = {
            f.name: of_each(v, index) for f in fields(self) if isinstance(v := getattr(self, f.name), torch.Tensor)
        }
        if self.ball is not None:
            chosen["ball"] = self.ball.select(index)
        return replace(self, **chosen)

    def detach(self) -> NodeBounds:
        """The bounds without charges and without gradients."""
        ball = None if self.ball is None else Ball(*(t if t is None else t.detach() for t in self.ball))
        return replace(self, lower=self.lower.detach(), upper=self.upper.detach(), noise=None, ball=ball)


class Place(NamedTuple):
    """An op where it stands while a plan runs: what a rule may look at."""

    op: Op
    at: At
    inputs: tuple[NodeBounds | None, ...]  # per input the best known so far; None for parameters
    output: NodeBounds | None  # the best known so far; None while the first of it, by intervals, is made
    knobs: Mapping[str, torch.Tensor]
    arithmetic: Arithmetic
    errors: tuple  # per input: "1 *n" error of a rounded parameter, or None
    memo: dict  # what a rule keeps here as long as the weights do not change


class Recipe:
    """A way to bound a network, as a value. `a & b` meets two recipes.

    `failure_probability`: that a bound of one box is wrong, for recipes that draw random numbers; infinity: what they
    give are estimates, which may steer and train and never close a clause.
    """

    name: ClassVar[str] = "recipe"
    failure_probability: float = 0.0

    def __and__(self, other: Recipe) -> Recipe:
        both = (recipe.parts if isinstance(recipe, Meet) else (recipe,) for recipe in (self, other))
        return Meet(sum(both, ()))


class Forward(Recipe, ABC):
    """A domain whose states go from the inputs to the outputs. Rules: rule(place, states), None for a parameter.

    Where no rule is found for an op, the state is made anew by `from_bounds`, if the domain has it (`coarse`).
    """

    @abstractmethod
    def lift(self, sets: InputBatch, types: Sequence[TensorType], arithmetic: Arithmetic) -> list:
        """The states of the network's inputs, of these types; `sets` holds them flat and side by side."""

    @abstractmethod
    def concretize(self, state, arithmetic: Arithmetic) -> NodeBounds:
        """Interval bounds of a state."""

    def from_bounds(self, bounds: NodeBounds, place: Place):
        """A state that knows these bounds and nothing else; None: this domain has none."""
        return None

    def bound_rows(self, state, rows: Rows, arithmetic: Arithmetic) -> torch.Tensor | None:
        """Lower bounds "R" of rows at the node of `state`; None: its intervals say all that is known."""
        return None

    def follow(self, place: Place) -> Callable[[Sequence, torch.Tensor], torch.Tensor] | None:
        """How single points of the domain's sets pass an op (or start at an input): a function of the values "B *in" of
        its operands and of new errors "B *out" in [-1, 1], one per element, to values "B *out".

        Followed from the inputs on, with any errors, such values lie in the state that the domain has of a node, if it
        keeps all errors apart. None: the domain's sets are not made of such points.
        """
        return None

    def box_bytes(self, graph, itemsize: int) -> int:
        """Bytes that the states of one box take, where that is more than their intervals."""
        return 0

    @classmethod
    def has_fallback(cls) -> bool:
        return cls.from_bounds is not Forward.from_bounds


class KnobStart(NamedTuple):
    """Where a search over a free parameter starts, its range (any value in it is valid) and its first step."""

    value: torch.Tensor  # "B ..."
    low: float = 0.0
    high: float = 1.0
    rate: float = 0.5


class Dual(Recipe):
    """A domain whose rows go from a node back to the inputs. Rules are LayerDual objects.

    `pre` is the recipe of the bounds that relaxations are built from; None: this recipe itself, layer by layer.
    `companions` are forward domains whose results its rules read. `sweeps`: how many plain sweeps one of its sweeps
    costs, as far as that can be predicted.
    """

    pre: Recipe | None = None
    sweeps: float = 1.0
    companions: ClassVar[tuple[Forward, ...]] = ()


class Tuned(Dual, ABC):
    """A dual whose free parameters are moved by a search; every value of theirs gives a valid bound.

    `share`: "rows" gives each row its own parameters, "boxes" one set to all rows of a box. `intermediate`: the bounds
    of intermediate layers are tuned too, each for itself.
    """

    of: Dual
    share: str = "rows"
    intermediate: bool = False

    @abstractmethod
    def tune(
        self,
        bound: Callable[[dict], torch.Tensor],
        starts: Mapping[tuple[int, str], KnobStart],
        goal: torch.Tensor | None,
        clock: Clock,
    ) -> dict[tuple[int, str], torch.Tensor]:
        """Values of the knobs that make bound(knobs) "G" large, each of its G groups for itself.

        `goal` "G": values above it are of no more use; None: there is no such value.
        """


class Question(NamedTuple):
    """What an Encoded recipe is asked about one box: how low the largest of each group's rows can be.

    `encode(style)` gives the network as variables and rows; the bounds it relies on hold over the reals. `goal` "G":
    bounds above it are of no more use (None: there is no such value). `evaluate(points "k n", encoding)` gives the
    variables "k N" of points of the box (float64, rounded); `attack(c, d)` a point "n" of the box where c.y + d is low,
    None where the rows are not at the network's end. `found(point "n")` is to be asked about points of the box where a
    group's rows may all be at most at its goal; where it says True, no further answer is of use. `narrow(encoding,
    lower "N", upper "N")`: the same question, whose encodings also rely on these bounds of an encoding's variables,
    which have to hold over the reals; None: there is no such question.
    """

    encode: Callable[[Style], Encoding]
    C: sp.csr_matrix  # "R T"
    d: np.ndarray  # "R"
    group: np.ndarray  # "R", sorted: 0 ... G - 1
    goal: np.ndarray | None
    clock: Clock
    evaluate: Callable[[np.ndarray, Encoding], np.ndarray]
    attack: Callable[[np.ndarray, float], np.ndarray] | None
    report: Callable[[str], None]
    found: Callable[[np.ndarray], bool] = lambda point: False
    narrow: Callable[[Encoding, np.ndarray, np.ndarray], Question] | None = None

    @property
    def groups(self) -> int:
        return int(self.group[-1]) + 1 if len(self.group) else 0


class Answer(NamedTuple):
    """Per group: a lower bound that holds over the reals, the solver's own claim, and the inputs of its best point."""

    lower: np.ndarray  # "G"; -inf: nothing is known
    claimed: np.ndarray  # "G"; NaN: there is none
    points: np.ndarray  # "G n"; NaN: there is none

    @staticmethod
    def empty(groups: int, inputs: int) -> Answer:
        """Nothing is known of any group; to be filled in."""
        return Answer(np.full(groups, -np.inf), np.full(groups, np.nan), np.full((groups, inputs), np.nan))


SIMPLEX = 20.0  # operations of the simplex method per row and entry of a linear program
ITERATIONS = 500.0  # of a first-order method for a semidefinite program


class Encoded(Recipe, ABC):
    """A domain whose rows are bounded by a program over an Encoding of the network. Rules are EncodingRule objects.

    `pre` is the recipe of the bounds that the encoding is built from; None: this recipe itself, layer by layer. Its
    bounds are always made in charged float64. A program that needs more than `budget` megabytes is refused.
    """

    pre: Recipe | None = None
    budget: float = 4000.0

    @property
    @abstractmethod
    def style(self) -> Style:
        """What its encodings hold."""

    def size(self, predicted: Size) -> Size:
        """The size of the program over an encoding of the predicted size."""
        return predicted

    def operations(self, size: Size) -> float:
        """Predicted operations of one program of that size: a linear program per binary, and the factorisations of a
        first-order method where there are matrices."""
        linear = SIMPLEX * size.rows * size.entries * (1 + size.binaries)
        return linear + ITERATIONS * sum(10.0 * order**3 for order in size.blocks)

    @abstractmethod
    def solve(self, question: Question) -> Answer:
        """Bound all groups until the clock ends it: what is not done by then is -inf."""


class EncodingRule(ABC):
    """How one kind of op becomes rows: every point of the op over its box satisfies what `add` adds."""

    def needs(self, place: Place, wanted: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Per input, the elements "1 *in" (bool) that the `wanted` ones of the output "1 *out" depend on."""
        ones = ((wanted.new_ones((1, *t.shape)) if v else None) for t, v in zip(place.at.inputs, place.at.varying))
        return tuple(ones)

    @abstractmethod
    def count(self, place: Place, wanted: torch.Tensor, style: Style) -> Size:
        """At least as much as `add` will add."""

    @abstractmethod
    def add(
        self, place: Place, builder: Builder, columns: tuple[np.ndarray | None, ...], wanted: np.ndarray, node: int
    ) -> np.ndarray:
        """The columns of the node's elements, flat; -1 for those not `wanted` (flat, bool).

        `columns` are those of the inputs; None for a parameter.
        """


def rules_of(recipe: Recipe) -> Recipe:
    """The recipe whose rules a run looks up."""
    return recipe.of if isinstance(recipe, Tuned) else recipe


class Strategy(Recipe, ABC):
    """A recipe that is more than one run of a plan: it asks others."""

    @abstractmethod
    def bound(self, ask, prop: Property, rows: np.ndarray) -> np.ndarray:
        """Lower bounds "R" of all rows of `prop`; NaN for those not among `rows` and where nothing is known.

        ask(recipe, prop, rows) gives the same by another recipe, in the same arithmetic, until `ask.clock` ends it;
        see absdom.problem.Ask.
        """

    def cost(self, cost_of: Callable[[Recipe, float, float], float], boxes: float, rows: float) -> float:
        """Predicted operations of bounding `rows` rows over `boxes` boxes, of which all are asked for.

        cost_of(recipe, boxes, rows) predicts those of another recipe. Without a word of its own, a strategy asks each
        of its recipes once.
        """
        inner = (value for f in fields(self) for value in _flat(getattr(self, f.name)))
        return sum(cost_of(recipe, boxes, rows) for recipe in inner if isinstance(recipe, Recipe))


@dataclass(frozen=True)
class Layers(Recipe):
    """Recipes mixed per layer: a node's bounds come from the first case whose pattern fits one of its names.

    Patterns are those of fnmatch ("conv*"); a node's names are those of its value and of its ONNX node or line of
    code, the name of its op, and "%" with its number in `absdom plan`.
    """

    cases: tuple[tuple[str, Recipe], ...]
    name: ClassVar[str] = "layers"

    def of(self, names: Sequence[str]) -> Recipe | None:
        """The recipe for a node with these names; None: no pattern fits."""
        return next((r for pattern, r in self.cases if any(fnmatchcase(n, pattern) for n in names)), None)


def total_failure(recipe: Recipe) -> float:
    """A bound on the probability that any part of a recipe gives a wrong bound of one box."""
    parts, found = [recipe], {}
    while parts:
        part = parts.pop()
        found[part] = part.failure_probability
        for f in fields(part):
            for value in _flat(getattr(part, f.name)):
                parts += [value] if isinstance(value, Recipe) else []
        parts += getattr(part, "companions", ())
    return sum(found.values())


def _flat(value):
    if isinstance(value, tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value


class LayerDual(ABC):
    """How rows pass one kind of op: for all z in its bounds, <nu_out, f(z)> >= sum_i <part_i, z_i> + term."""

    def knobs(self, place: Place, recipe: Dual) -> dict[str, KnobStart]:
        """The free parameters of the relaxation at this place; `place.knobs` has them while a search moves them."""
        return {}

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
