"""What the torch front end knows while it translates captured calls: values, constants, and the graph that grows.

A value is a node of the graph (it depends on an input or on a parameter), or a *constant*: something that no parameter
enters, so that its number is known at capture. Masks, indices and positions are constants of integer type or moved
elements: they are computed here, exactly. Arithmetic on constant floats that rounds, and whatever is computed from
buffers of floats, goes into the graph where a layer reads it: its rounding is tracked and the buffer stays live. A
plain number in the module's code is the float64 number that Python reads there, whatever the weights' element type.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch

from absdom import ops
from absdom.errors import GraphError, ModelError, UsageError
from absdom.frontends.torch_source import describe, module_paths, target_name
from absdom.ir.graph import Builder
from absdom.ir.op import Op
from absdom.types import Source

FLOATS = (torch.float32, torch.float64)
HANDLERS: dict[str, Callable] = {}
# Calls that only move or make elements: on constants nothing is rounded.
EXACT = frozenset(
    """_to_copy _unsafe_view abs alias arange broadcast_to cat chunk clamp clone constant_pad_nd contiguous copy detach
    diag_embed diagonal empty empty_like expand expand_as eye fill flatten flip full full_like gather index index_put
    index_select lift_fresh lift_fresh_copy linspace masked_fill maximum minimum movedim narrow neg new_full new_ones
    new_zeros ones ones_like pad permute pixel_shuffle repeat repeat_interleave reshape roll scalar_tensor scatter
    select select_scatter slice slice_scatter split split_with_sizes squeeze stack t tile to transpose tril triu unbind
    unflatten unsqueeze view view_as where zeros zeros_like""".split()
)
# Moves that a mask of softmax may pass on its way there.
MASK_MOVES = frozenset(
    """_to_copy _unsafe_view alias clone contiguous detach expand flatten permute reshape squeeze to transpose unflatten
    unsqueeze view""".split()
)
# Calls that take only the shape and the element type of what they read.
LIKE = ("empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like")
CONTROL = ("cond", "while_loop", "map_impl", "scan", "associative_scan")
READS = ("item", "_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2")


class Unsupported(Exception):
    """Why one call cannot be translated; collected over all calls into one UnsupportedOp."""


class Index(int):
    """A node of the graph under construction: no number of the user's."""


@dataclass(eq=False)
class Constant:
    """`tensor` is its value now. `call` made it, if the graph should compute it live or track its rounding."""

    tensor: torch.Tensor
    label: str
    call: torch.fx.Node | None = None
    position: int | None = None  # which of several results of `call` it is
    settled: bool = True  # neither a buffer nor a rounding stands behind it
    node: Index | None = None


class Weight(NamedTuple):
    """A parameter that no call has read yet."""

    label: str


class Masked(NamedTuple):
    """Scores of a softmax: the node, and where they are minus infinity (bool, of the same shape)."""

    node: Index
    blocked: torch.Tensor


class Broken(NamedTuple):
    """What a call with a problem would have given."""


def handles(*names: str):
    """Decorator: the function translates these ATen calls; it takes the translation and the call's own arguments.

    Ops of other libraries are called `library.name`.
    """

    def register(handler: Callable) -> Callable:
        for name in names:
            if HANDLERS.setdefault(name, handler) is not handler:
                files = " and in ".join(h.__code__.co_filename for h in (HANDLERS[name], handler))
                raise UsageError(f"the torch call {name} is translated twice: in {files}; remove one of them")
        return handler

    return register


class Translation:
    """One pass over captured calls. `weights`: label -> parameter or buffer, the module's own tensors.

    `batch_statistics` labels the statistics of batch norms that are fed, or is None; `training`: the module's mode.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], batch_statistics=None, training: bool = False):
        self.weights, self.batch_statistics, self.training = weights, batch_statistics, training
        self.builder = Builder()
        self.values: dict[str, object] = {}
        self.numbers: dict[float, Index] = {}
        self.source = Source()
        self.node: torch.fx.Node | None = None  # the call that is being translated

    def call(self, node: torch.fx.Node) -> str | None:
        """Give one call its value; or say why not."""
        try:
            self.values[node.name] = self._value(node)
        except Unsupported as problem:
            self.values[node.name] = Broken()
            return str(problem)
        return None

    def _value(self, node: torch.fx.Node):
        reads = [self.values[n.name] for n in node.all_input_nodes]
        if node.target is operator.getitem:
            return reads[0] if isinstance(reads[0], Broken) else reads[0][node.args[1]]
        name = target_name(node)
        _check_result(node, name)
        handler = HANDLERS.get(name)
        known = name in LIKE or all(isinstance(r, Constant) for r in reads)
        if known and not (_is_random(node) and handler is not None):
            return self._constant(node, name, reads)
        if handler is None:
            raise Unsupported(_why_not(node, name))
        if any(isinstance(r, Broken) for r in reads):
            return Broken()
        masked = [n for n in node.all_input_nodes if isinstance(self.values[n.name], Masked)]
        if masked and name in MASK_MOVES:
            return self._move_mask(node, handler, masked[0])
        return self._checked(node, self._run(node, handler))

    def _run(self, node: torch.fx.Node, handler: Callable):
        """The handler's result, with the call's own place as the source of the nodes that it adds."""
        before = self.node, self.source
        paths = module_paths(node)
        self.node, self.source = node, Source(paths[-1] if paths else node.name, target_name(node))
        try:
            return handler(self, *node.args, **node.kwargs)
        except GraphError as error:
            raise Unsupported(str(error)) from None
        except TypeError as error:
            raise Unsupported(f"its arguments {node.args} {dict(node.kwargs)} are not supported: {error}") from None
        finally:
            self.node, self.source = before

    def _checked(self, node: torch.fx.Node, made):
        found = made if isinstance(made, (tuple, list)) else (made,)
        expected = node.meta.get("val")
        expected = expected if isinstance(expected, (tuple, list)) else (expected,)
        for value, fake in zip(found, expected, strict=False):
            if isinstance(value, Index) and isinstance(fake, torch.Tensor) and self.shape(value) != tuple(fake.shape):
                raise Unsupported(f"it was translated to shape {self.shape(value)}, torch gives {tuple(fake.shape)}")
        return made

    def _constant(self, node: torch.fx.Node, name: str, reads):
        if _is_random(node):
            raise Unsupported(f"{name} is random: a verifier needs a function")
        args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), self._tensor)
        try:
            with torch.no_grad():
                result = node.target(*args, **kwargs)
        except Exception as error:  # whatever torch raises
            raise Unsupported(f"its constant value cannot be computed: {error}") from None
        settled = all(r.settled for r in reads if isinstance(r, Constant))

        def wrap(tensor, position=None):
            if not isinstance(tensor, torch.Tensor):
                return tensor
            known = not tensor.is_floating_point() or (settled and (name in EXACT or name not in HANDLERS))
            return Constant(tensor, f"constant.{node.name}", None if known else node, position, known)

        if isinstance(result, (tuple, list)):
            return tuple(wrap(tensor, i) for i, tensor in enumerate(result))
        return wrap(result)

    def _tensor(self, node: torch.fx.Node):
        """What a constant call reads: a constant's value, or something of the same shape."""
        value, like = self.values[node.name], node.meta["val"]
        if isinstance(value, Constant):
            return value.tensor
        return torch.zeros(like.shape, dtype=like.dtype, device=like.device)

    def _move_mask(self, node: torch.fx.Node, handler: Callable, operand: torch.fx.Node) -> Masked:
        masked = self.values[operand.name]
        if node.args[0] is not operand:
            raise Unsupported("minus infinity may only be added to what goes into a softmax")
        self.values[operand.name] = masked.node
        try:
            made = self._run(node, handler)
        finally:
            self.values[operand.name] = masked
        if target_name(node) in ("to", "_to_copy", "alias", "clone", "contiguous", "detach"):
            return Masked(made, masked.blocked)
        return Masked(made, node.target(masked.blocked, *node.args[1:], **node.kwargs))

    # What handlers ask.

    def value(self, x):
        return self.values[x.name] if isinstance(x, torch.fx.Node) else x

    def shape(self, x) -> tuple[int, ...]:
        if isinstance(x, Index):
            return self.builder.type(x).shape
        if isinstance(x, torch.fx.Node):
            return tuple(x.meta["val"].shape)
        return tuple(x.tensor.shape) if isinstance(x, Constant) else ()

    def axis(self, x, axis: int) -> int:
        """`axis` counted from the front."""
        return axis % max(len(self.shape(x)), 1)

    def axes(self, x, axes) -> tuple[int, ...]:
        """Axes counted from the front, in order; None and [] mean all of them."""
        rank = len(self.shape(x))
        axes = range(rank) if axes is None or axes == [] else axes if isinstance(axes, (list, tuple)) else [axes]
        return tuple(sorted({a % max(rank, 1) for a in axes}))

    def constant(self, x, what: str = "an argument") -> torch.Tensor:
        """The value of something that is known at capture."""
        value = self.value(x)
        if isinstance(value, Constant):
            return value.tensor.detach().cpu()
        if isinstance(value, (bool, int, float)) and not isinstance(value, Index):
            return torch.tensor(value)
        raise Unsupported(f"{what} depends on the network's input or on parameters")

    def is_constant(self, x) -> bool:
        value = self.value(x)
        return isinstance(value, Constant) or (isinstance(value, (bool, int, float)) and not isinstance(value, Index))

    def is_settled(self, x) -> bool:
        """Is it a constant that no buffer and no rounding stands behind?"""
        value = self.value(x)
        return self.is_constant(x) and not (isinstance(value, Constant) and not value.settled)

    def index(self, x) -> Index:
        """The graph node of an argument: a call's result, a weight (added on first use), a constant or a number."""
        value = self.value(x)
        match value:
            case Index():
                return value
            case Weight():
                weight = self.weights[value.label]
                if not torch.isfinite(weight).all():
                    raise ModelError(f"the weight {value.label!r} of the module holds NaN or infinity")
                node = Index(self.builder.param(weight, value.label, Source(value.label, "parameter")))
                self.values[x.name] = node
                return node
            case Constant():
                return self._emit(value)
            case Masked():
                raise Unsupported("minus infinity may only be added to what goes into a softmax")
            case bool() | int() | float():
                if float(value) not in self.numbers:
                    tensor = torch.tensor(float(value), dtype=torch.float64)
                    self.numbers[float(value)] = self.param(tensor, f"number {float(value):.6g}")
                return self.numbers[float(value)]
        raise Unsupported("an argument is neither a tensor nor a number")

    def _emit(self, constant: Constant) -> Index:
        handler = None if constant.call is None else HANDLERS.get(target_name(constant.call))
        if constant.node is None and handler is not None:
            try:
                made = self._run(constant.call, handler)
                made = made if constant.position is None else made[constant.position]
                constant.node = made if isinstance(made, Index) else None
            except Unsupported:
                constant.node = None  # the engine cannot compute it: its value of now is a weight
        if constant.node is None:
            constant.node = self.param(constant.tensor, constant.label)
        return constant.node

    def wants(self, position: int) -> bool:
        """Does anything read this one of the results of the call?"""
        return any(u.target is operator.getitem and u.args[1] == position for u in self.node.users)

    # What handlers do.

    def param(self, tensor: torch.Tensor, label: str) -> Index:
        """A leaf that holds a tensor known at capture; whole numbers become float64."""
        tensor = tensor if tensor.is_floating_point() else tensor.double()
        if not torch.isfinite(tensor).all():
            raise Unsupported("a constant that it reads holds NaN or infinity")
        return Index(self.builder.param(tensor, label, self.source))

    def add(self, op: Op, *inputs) -> Index:
        """Add an op on graph nodes, captured values or numbers."""
        return Index(self.builder.add(op, *(self.index(i) for i in inputs), source=self.source))

    def reshape(self, x, shape) -> Index:
        node, shape = self.index(x), tuple(int(s) for s in shape)
        return node if self.shape(node) == shape else self.add(ops.Reshape(shape), node)

    def permute(self, x, order) -> Index:
        node, order = self.index(x), tuple(order)
        return node if order == tuple(range(len(order))) else self.add(ops.Permute(order), node)

    def take(self, x, axis: int, places) -> Index:
        """Elements of one axis by their places: a Slice where they are evenly spaced."""
        node, places = self.index(x), tuple(int(p) for p in places)
        size = self.shape(node)[axis]
        if places == tuple(range(size)):
            return node
        step = places[1] - places[0] if len(places) > 1 else 1
        if step > 0 and places and places == tuple(range(places[0], places[-1] + 1, step)):
            return self.add(ops.Slice(axis, places[0], places[-1] + 1, step), node)
        return self.add(ops.Take(axis, places), node)

    def pick(self, sources, places: torch.Tensor) -> Index:
        """out[i] = all sources, flat and side by side, at [places[i]], for places of any shape; -1 is a zero."""
        flat = [self.reshape(s, (prod(self.shape(self.index(s))),)) for s in sources]
        size = sum(self.shape(f)[0] for f in flat)
        if (places < 0).any():
            flat.append(self.param(torch.zeros(1, dtype=torch.float64), "zero"))
            places = torch.where(places < 0, size, places)
        joined = flat[0] if len(flat) == 1 else self.add(ops.Concat(0), *flat)
        return self.reshape(self.take(joined, 0, places.flatten().tolist()), places.shape)


def _is_random(node: torch.fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _why_not(node: torch.fx.Node, name: str) -> str:
    if name in CONTROL:
        return "control flow that depends on data"
    if _is_random(node):
        return "it is random: call module.eval() first"
    return ""


def _check_result(node: torch.fx.Node, name: str) -> None:
    """Refuse what has no fixed shape or no real numbers of at least 32 bits."""
    results = node.meta.get("val")
    for value in results if isinstance(results, (tuple, list)) else (results,):
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)) or name in READS:
            raise Unsupported("it makes a shape or a number from data")
        if isinstance(value, torch.Tensor):
            if any(isinstance(s, torch.SymInt) for s in value.shape):
                hint = ": torch takes a bool mask for data; index with whole numbers" if name == "index" else ""
                raise Unsupported(f"the shape of its result depends on data{hint}")
            if value.is_complex():
                raise Unsupported(f"its result is complex ({value.dtype}); absdom reads float32 and float64")
            if value.is_floating_point() and value.dtype not in FLOATS:
                raise Unsupported(f"its result has element type {value.dtype}; absdom reads float32 and float64")


def problem_text(node: torch.fx.Node, reason: str) -> str:
    return f"{describe(node)}: {reason}" if reason else describe(node)
