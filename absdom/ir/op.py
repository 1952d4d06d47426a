"""What an op states: the mathematics of one function, and nothing about any domain.

Values have one leading axis more than the node's shape: B boxes for values that vary with the input, 1 for
parameters. `*n` stands for a node's full shape. A *varying* input of an op depends on a network input; the others
are parameters, known when a plan runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, NamedTuple

from absdom.types import TensorType


class At(NamedTuple):
    """The place where an op stands in a graph, as its rules see it."""

    inputs: tuple[TensorType, ...]
    output: TensorType
    varying: tuple[bool, ...]
    params: tuple  # one "1 *n" tensor per input that is a parameter, None for the varying ones


class Op:
    """Base of all ops. Concrete ops are frozen dataclasses: their attributes print, compare and hash."""

    kind: ClassVar[str] = "op"

    @property
    def name(self) -> str:
        return type(self).__name__

    def infer(self, *types: TensorType) -> TensorType:
        """Output type from input types; raises ValueError with a reason when they do not fit."""
        raise ValueError(f"{self.name} does not infer a type")

    def eval(self, *values):
        """The function itself, on values "B *n" (varying) and "1 *n" (parameters)."""
        raise ValueError(f"{self.name} cannot be evaluated")

    def specialise(self, varying: tuple[bool, ...]) -> tuple[Op, tuple[int, ...]]:
        """The op of a fixed kind that this op is when `varying` inputs vary, and the order of its inputs."""
        return self, tuple(range(len(varying)))

    def of_equal(self) -> Op | None:
        """The op of one input that this op is where all its inputs are the same value; None: there is none."""
        return None

    def undefined(self, lowers, uppers):
        """Mask of elements for which no value is defined somewhere in the boxes of the inputs, or None: there are none.

        Bounds of such elements may be infinite; where they are of use, they speak of the part that is defined.
        """
        return None

    def attributes(self) -> dict:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Input(Op):
    """A network input."""

    label: str
    kind: ClassVar[str] = "input"

    def infer(self, *types):
        raise ValueError("an input states its own type")


@dataclass(frozen=True)
class Param(Op):
    """A weight or constant: a leaf, live when the plan runs. Its tensor is in `Graph.params[label]`."""

    label: str
    kind: ClassVar[str] = "param"

    def infer(self, *types):
        raise ValueError("a parameter states its own type")


class Composite(Op):
    """An op that is only a name for a composition of other ops; the pass `decompose` replaces it."""

    kind: ClassVar[str] = "composite"

    def decompose(self, builder, *inputs: int) -> int:
        """Add the ops that make up this one to `builder`; give back the index of the result."""
        raise ValueError(f"{self.name} has no decomposition")


class Affine(Op):
    """Jointly affine in its varying inputs.

    `additive` names the inputs that only shift the result (biases); set to zero they leave the linear part. A
    signed op (one with a built-in minus) overrides `absolute`.
    """

    kind: ClassVar[str] = "affine"
    additive: ClassVar[tuple[int, ...]] = ()
    optional: ClassVar[tuple[int, ...]] = ()  # those of them that `eval` takes as None, for zero

    def transpose(self, nu, at: At, index: int):
        """Adjoint of the linear part for varying input `index`: nu "R *out" -> "R *in"."""
        raise ValueError(f"{self.name} has no transpose")

    def transpose_onehot(self, position, sign, at: At, index: int):
        """`transpose` of the rows sign[r] * e_{position[r]} ("R" each), or None when there is no short cut."""
        return None

    def is_additive(self, i: int, at: At) -> bool:
        return i in self.additive

    def linear(self, at: At, values):
        """The linear part applied to `values` (entries at parameters are ignored)."""
        return self.eval(*self._operands(at, values, lambda p: p))

    def absolute(self, at: At, values):
        """The linear part with every coefficient replaced by its absolute value."""
        return self.eval(*self._operands(at, values, lambda p: p.abs()))

    def error_weight(self, at: At, errors, values):
        """Sum of |error of a multiplicative parameter| x |value|; `errors` "1 *n" or None per input."""
        total = None
        for i, error in enumerate(errors):
            if error is None or self.is_additive(i, at):
                continue
            params = tuple(error if j == i else p for j, p in enumerate(at.params))
            part = self.absolute(at._replace(params=params), values)
            total = part if total is None else total + part
        return total

    def offset(self, at: At):
        """The constant part, "1 *out", or None when the op is linear."""
        if not any(self.is_additive(i, at) and not v for i, v in enumerate(at.varying)):
            return None
        some = next(p for p in at.params if p is not None)
        zeros = [some.new_zeros((1, *t.shape)) if v else None for t, v in zip(at.inputs, at.varying, strict=True)]
        return self.eval(*(p if z is None else z for p, z in zip(at.params, zeros, strict=True)))

    def offset_magnitude(self, at: At):
        """An upper bound on the absolute values that are summed into the constant part, or None."""
        offset = self.offset(at)
        return None if offset is None else offset.abs()

    def terms(self, at: At) -> int:
        """A bound on the products summed into one element, of the result or of the transpose: gamma's n.

        Sums that only undo a broadcast are counted by the caller.
        """
        return max(t.numel for t, v in zip(at.inputs, at.varying, strict=True) if v)

    def _operands(self, at, values, change):
        out = []
        for i, varying in enumerate(at.varying):
            if varying:
                out.append(values[i])
            elif i in self.optional:
                out.append(None)
            elif self.is_additive(i, at):
                out.append(at.params[i].new_zeros(()).expand(at.params[i].shape))
            else:
                out.append(change(at.params[i]))
        return out


class Lines(NamedTuple):
    """lower_slope z + lower_bias <= f(z) <= upper_slope z + upper_bias, each "B *n"."""

    lower_slope: object
    lower_bias: object
    upper_slope: object
    upper_bias: object


class Elementwise(Op):
    """f applied to each element of its one input. `lines` and `band` hold in floating point: biases are widened."""

    kind: ClassVar[str] = "elementwise"
    knobs: ClassVar[tuple[str, ...]] = ()  # names of the free slopes of `lines`, each in [0, 1]
    splittable: ClassVar[bool] = False  # two affine pieces that meet at 0, so that a search may fix the phase
    zero_bias: str = ""  # "lower" or "upper": the line of `lines` whose bias is always zero

    def infer(self, x: TensorType) -> TensorType:
        return x

    def image(self, lower, upper):
        """Bounds of f over [lower, upper], elementwise."""
        raise ValueError(f"{self.name} has no image")

    def initial(self, lower, upper) -> dict:
        """The adaptive choice of the knobs (CROWN: Zhang et al. 2018, section 3.3)."""
        return {}

    def lines(self, lower, upper, knobs: dict) -> Lines:
        """Valid lines over [lower, upper] for any knobs in [0, 1]."""
        raise ValueError(f"{self.name} has no lines")

    def parallel_slope(self, lower, upper):
        """The slope of CAP's parallel relaxation (Wong and Kolter 2018)."""
        return self.lines(lower, upper, self.initial(lower, upper)).upper_slope

    def band(self, lower, upper, slope):
        """Bounds of f(z) - slope z over [lower, upper], for any slope: from the lines, at the two ends."""
        lines = self.lines(lower, upper, self.initial(lower, upper))
        low, high = lines.lower_slope - slope, lines.upper_slope - slope
        return (
            _down((low * lower).minimum(low * upper), lines.lower_bias),
            _up((high * lower).maximum(high * upper), lines.upper_bias),
        )

    def is_exact(self, lower, upper):
        """Mask of elements where f is affine on [lower, upper], so that the lines lose nothing."""
        return lower == upper

    def split_points(self, lower, upper):
        """Where a branch and bound cuts [lower, upper]; NaN where there is nothing to gain."""
        return ((lower + upper) / 2).where(~self.is_exact(lower, upper), lower.new_full((), float("nan")))

    def pieces(self, lower: float, upper: float) -> tuple[tuple[float, float, float], ...]:
        """(end, slope, bias) of the affine pieces that cover [lower, upper], for exact encodings; (): there are none,
        or too many. Each starts where the one before ends, and holds at both ends; at a jump, f takes the value of one
        of the pieces that meet there, which may have no length. No number is rounded."""
        return ()

    def quadratic(self, lower, upper):
        """(yy, yz, zz, y, z, 1): coefficients "B *n" of a quadratic form that is 0 wherever y = f(z); None: there is
        none. Each may be rounded once."""
        return None


class Block:
    """Coefficients of a PlaneMap that are more than one factor per element: a linear map per box, applied by itself.

    Subclasses are frozen dataclasses whose tensors have the boxes as their leading axis (1 where all boxes share).
    """

    terms: int = 1  # a bound on the products summed into one element, in either direction: gamma's n

    def transpose(self, nu):
        """Adjoint: nu "G r *out" (G boxes, r rows each) -> "G r *in"."""
        raise ValueError(f"{type(self).__name__} has no transpose")

    def apply(self, z):
        """The map itself: z "G r *in" (G boxes, r values each) -> "G r *out"."""
        raise ValueError(f"{type(self).__name__} is not applied")

    def reach(self, size):
        """The sum of |coefficient| x size: "B *in" -> "B *out"."""
        raise ValueError(f"{type(self).__name__} has no reach")

    def tensors(self) -> dict:
        return {f.name: value for f in fields(self) if hasattr(value := getattr(self, f.name), "index_select")}

    def select(self, box) -> Block:
        """The same for the boxes `box`, one after the other."""
        chosen = {k: t if t.shape[0] == 1 else t.index_select(0, box) for k, t in self.tensors().items()}
        return replace(self, **chosen)


class PlaneMap(NamedTuple):
    """An affine map z -> sum_i gather_i(coefficients_i * z_i) + bias that bounds an op from one side."""

    coefficients: tuple  # per input a "B *in_i" (or broadcastable) tensor, None: all zero; or a Block for every input
    bias: object  # "B *out"


class Multivariate(Op):
    """A function of several elements: products, maxima, softmax.

    An op with `knobs` takes them as the third argument of `planes`, each of the shape that `initial` gives it; `gather`
    and `spread` are for coefficients that are tensors.
    """

    kind: ClassVar[str] = "multivariate"
    knobs: ClassVar[tuple[str, ...]] = ()  # names of the free parameters of `planes`, each in [0, 1]
    coarse: ClassVar[bool] = False  # its planes are no better than its image
    extremum: ClassVar[int] = 0  # 1: the largest of the elements that are gathered; -1: the least of them

    def image(self, lowers, uppers):
        """Bounds "B *out" over the boxes of the inputs."""
        raise ValueError(f"{self.name} has no image")

    def initial(self, lowers, uppers) -> dict:
        """The adaptive choice of the knobs."""
        return {}

    def planes(self, lowers, uppers, knobs: dict | None = None) -> tuple[PlaneMap, PlaneMap]:
        """A lower and an upper plane over the boxes of the inputs, valid for any knobs in [0, 1]."""
        raise ValueError(f"{self.name} has no planes")

    def parallel(self, lowers, uppers) -> tuple[tuple, object, object]:
        """(coefficients, low, high): one linear map for both sides; low <= f(z) - its value at z <= high, "B *out".

        Coefficients are those of a PlaneMap; the ends hold in floating point. Here: no coefficients, and the image.
        """
        return (None,) * len(lowers), *self.image(lowers, uppers)

    def gather(self, parts):
        """Sum the products of a PlaneMap, one "B ..." tensor per input, to "B *out"."""
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def is_exact(self, lower, upper):
        """Mask of input elements whose bounds, if tighter, would not change the planes."""
        return lower == upper

    def spread(self, nu, at: At, index: int):
        """Adjoint of the gathering of a PlaneMap: "R *out" -> something that broadcasts to "R *in_index"."""
        return nu

    def bilinear(self, at: At):
        """(out, first, second), flat positions "K" each: every element of the output is the sum of its products of an
        element of the first input and one of the second; None: it is not."""
        return None


def _up(a, b):
    total = a + b
    return total + (a.abs() + b.abs()) * _ulp(total)


def _down(a, b):
    total = a + b
    return total - (a.abs() + b.abs()) * _ulp(total)


def _ulp(t, count: int = 4) -> float:
    """`count` units of roundoff of t's element type."""
    import torch

    return count * torch.finfo(t.dtype).eps


@dataclass(frozen=True)
class Knob:
    """A free parameter of a relaxation: any value that `project` gives back keeps the bound valid."""

    name: str
    shape: tuple[int, ...]
    low: float = 0.0
    high: float = field(default=1.0)

    def project(self, value):
        return value.clamp(self.low, self.high)
