"""What the ONNX front end knows while it reads a model: nodes, values, and how constants become graph leaves.

A value is *varying* (a node of the graph) or a *constant* (an array). Constants of integer and boolean type, and moves
of constant weights (Reshape, Slice, Concat ...), are computed here, exactly. Arithmetic on constant floats that rounds
(Add, Mul, MatMul ...) is not folded away: it becomes nodes over Param leaves, whose rounding the engine tracks. Where
the engine has no such op (Pow, Exp ...), the array that ONNX's reference implementation computes in the file's own
precision is taken as the weight, and so is the array behind a cast of a constant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx
import torch

from absdom.errors import ModelError
from absdom.ir.graph import Builder
from absdom.ir.op import Op
from absdom.types import Source

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
WHOLE = 2**53  # up to here integers are float64 numbers
LARGEST = 2**28  # elements of a constant that the file may ask us to compute

# Ops that only move or select elements: on constants they are folded, with no rounding.
EXACT = frozenset(
    """Abs ArgMax ArgMin Clip Compress Concat ConstantOfShape DepthToSpace Dropout Expand Flatten Gather GatherElements
    GatherND Identity Max Min Neg Pad Relu ReduceMax ReduceMin Reshape ScatterElements ScatterND Shape Sign Size Slice
    SpaceToDepth Split Squeeze Tile TopK Transpose Trilu Unsqueeze Where""".split()
)  # fmt: skip
# Other ops that the reference implementation may compute on constants. No randomness, no control flow, no text.
COMPUTED = frozenset(
    """Acos And Asin Atan BitShift Cast Ceil Constant Cos CumSum Elu Equal Erf Exp EyeLike Floor Greater GreaterOrEqual
    HardSigmoid HardSwish IsInf IsNaN Less LessOrEqual Log LogSoftmax Mean Mod NonZero Not OneHot Or PRelu Pow Range
    Reciprocal ReduceL1 ReduceL2 ReduceProd ReduceSumSquare Round Selu Sin Softplus Softsign Sqrt Sum Tan Xor""".split()
)  # fmt: skip

# Ops whose older versions mean the same, and are not in the reference implementation.
NEWER = {"DequantizeLinear": 21, "QuantizeLinear": 21}


class Problem(Exception):
    """Why one node cannot be translated; collected over all nodes into one UnsupportedOp."""


@dataclass(frozen=True)
class Call:
    """One ONNX node with its attributes decoded; an input or output that is absent or never read has the name ''."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict = field(repr=False)
    proto: onnx.NodeProto = field(repr=False)

    @property
    def source(self) -> Source:
        return Source(self.name, self.op)

    def get(self, name: str, default=None):
        return self.attributes.get(name, default)

    def has(self, position: int) -> bool:
        return position < len(self.inputs) and bool(self.inputs[position])

    def has_output(self, position: int) -> bool:
        return position < len(self.outputs) and bool(self.outputs[position])


@dataclass
class Value:
    """`array` is None for what varies. `call`: the rounding arithmetic on constants that `array` came from.

    `suspect`: the initializer that brought a NaN or an infinity into `array`. `broken`: a node above has a Problem, and
    nothing is known but, in `fixed`, whether this is a constant. `element`: what the file calls the elements of what
    varies; in the graph all are real numbers. `ragged`: its size depends on the network's input, see `onnx_ragged`.
    """

    name: str
    node: int | None = None
    array: np.ndarray | None = None
    call: Call | None = None
    suspect: str | None = None
    broken: bool = False
    fixed: bool = False
    element: np.dtype | None = None
    ragged: object = None

    @property
    def varies(self) -> bool:
        return self.array is None and not self.fixed

    @property
    def settled(self) -> bool:
        """Is it a constant that no rounding has touched?"""
        return self.array is not None and self.call is None


TRUTHS = frozenset("And Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Not Or Xor".split())


def result_types(call: Call, types: list[np.dtype | None]) -> list[np.dtype]:
    """The element types of the outputs of a node, by those of its inputs (None where one is absent)."""
    if call.op == "Cast":
        first = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(call.get("to")))
    elif call.op in TRUTHS:
        first = np.dtype(bool)
    elif call.op in ("ArgMax", "ArgMin"):
        first = np.dtype(np.int64)
    elif call.op == "QuantizeLinear":
        number = call.get("output_dtype") or onnx.TensorProto.UINT8
        stated = types[2] if len(types) > 2 else None
        first = stated or np.dtype(onnx.helper.tensor_dtype_to_np_dtype(number))
    else:
        first = types[{"CastLike": 1, "OneHot": 2, "Where": 1, "DequantizeLinear": 1}.get(call.op, 0)]
    indices = {"TopK": np.dtype(np.int64), "MaxPool": np.dtype(np.int64), "Dropout": np.dtype(bool)}
    return [first, *[indices.get(call.op, first)] * (len(call.outputs) - 1)]


class Translation:
    """The graph under construction, and the value behind every name of the file."""

    def __init__(self, opset: int, handlers: dict, where: str):
        self.opset = opset
        self.where = where
        self.builder = Builder()
        self.values: dict[str, Value] = {}
        self._handlers = handlers
        self._source = Source()

    # What handlers ask of their node's inputs.

    def value(self, call: Call, position: int) -> Value:
        if not call.has(position):
            raise ModelError(f"{self.where}: {call.source} lacks its input {position}")
        return self.values[call.inputs[position]]

    def node(self, call: Call, position: int) -> int:
        """The graph node of an input; a constant becomes a Param leaf, or the arithmetic that makes it."""
        return self.emit(self.value(call, position))

    def shape(self, call: Call, position: int) -> tuple[int, ...]:
        value = self.value(call, position)
        return value.array.shape if value.node is None else self.builder.type(value.node).shape

    def constant(self, call: Call, position: int, what: str) -> np.ndarray:
        value = self.value(call, position)
        if value.varies:
            raise Problem(f"its {what} depends on the network's input")
        return value.array

    def integers(self, call: Call, position: int, what: str) -> tuple[int, ...]:
        return tuple(int(i) for i in self.constant(call, position, what).reshape(-1))

    def number(self, call: Call, position: int, what: str) -> float:
        """A constant that is one number."""
        found = self.constant(call, position, what)
        if found.size != 1:
            raise ModelError(f"{self.where}: the {what} of {call.source} is not one number: it has shape {found.shape}")
        return found.reshape(-1)[0].item()

    def integer(self, call: Call, position: int, what: str) -> int:
        return int(self.number(call, position, what))

    def broadcast(self, call: Call, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        try:
            return tuple(np.broadcast_shapes(*shapes))
        except ValueError:
            raise ModelError(f"{self.where}: the shapes {shapes} of {call.source} do not fit together") from None

    def axis(self, call: Call, axis: int, rank: int) -> int:
        """`axis` counted from the front."""
        if not -rank <= axis < rank:
            raise ModelError(f"{self.where}: {call.source} has axis {axis}, its input only {rank} axes")
        return axis % rank

    # What handlers do.

    def add(self, op: Op, *inputs: int) -> int:
        return self.builder.add(op, *inputs, source=self._source)

    def reshape(self, x: int, shape) -> int:
        from absdom.ops import Reshape

        shape = tuple(int(s) for s in shape)
        return x if self.builder.type(x).shape == shape else self.add(Reshape(shape), x)

    def param(self, array: np.ndarray, label: str, suspect: str | None = None) -> int:
        if array.dtype.kind in "iub" and ((array <= WHOLE) & (array >= -WHOLE)).all():
            array = array.astype(np.int64)
        elif array.dtype not in FLOATS:
            raise Problem(f"the constant {label!r} has element type {array.dtype}; float32 and float64 are supported")
        if not np.isfinite(array).all():
            name = f"the weight {suspect!r}" if suspect else f"the constant {label!r}"
            raise ModelError(f"{self.where}: {name} holds NaN or infinity")
        return self.builder.param(torch.from_numpy(np.array(array, order="C")), label, self._source)

    def emit(self, value: Value) -> int:
        if value.ragged is not None:
            raise Problem("the size of its input depends on the network's input")
        if value.node is None:
            if value.call is not None and value.call.op in self._handlers:
                self._emit_call(value.call)
            if value.node is None:
                value.node = self.param(value.array, value.name, value.suspect)
                self.builder.name(value.name, value.node)
        return value.node

    def output(self, value: Value) -> int:
        """The node of a network output, which may be a constant of any type of number."""
        if value.node is None and value.array.dtype not in FLOATS:
            value.node = self.param(value.array.astype(np.float64), value.name)
        return self.emit(value)

    def _emit_call(self, call: Call) -> None:
        try:
            nodes = self.translate(call)
        except Problem:
            return  # the engine cannot compute it: its array is a Param
        for name, node in zip(call.outputs, nodes, strict=False):
            if name:
                self.values[name].node = node
                self.builder.name(name, node)

    def translate(self, call: Call) -> tuple[int, ...]:
        """Run the handler of a node; the nodes of its outputs."""
        before, self._source = self._source, call.source
        try:
            made = self._handlers[call.op](self, call)
        finally:
            self._source = before
        return made if isinstance(made, tuple) else (made,)

    # Constants.

    def fold(self, call: Call) -> None:
        """Give the outputs of a node whose inputs are all constants their arrays."""
        inputs = [self.values[name] if name else None for name in call.inputs]
        for name, array in zip(call.outputs, self.compute(call, inputs), strict=False):
            if not name:
                continue
            value = Value(name, array=array)
            if array.dtype in FLOATS:
                if call.op not in EXACT and call.op in self._handlers and call.op != "Cast":
                    value.call = call
                elif call.op in EXACT and any(v is not None and v.call is not None for v in inputs):
                    value.call = call
                value.suspect = next((v.suspect for v in inputs if v is not None and v.suspect), None)
            self.values[name] = value

    def dtype(self, call: Call, position: int) -> np.dtype:
        """The element type that an input has in the file."""
        value = self.value(call, position)
        if value.array is not None:
            return value.array.dtype
        return value.element if value.element is not None else np.dtype(self.builder.type(value.node).dtype)

    def cast_like(self, call: Call) -> None:
        """Give a constant the element type of another value."""
        value = self.value(call, 0)
        with np.errstate(all="ignore"):
            array = value.array.astype(self.dtype(call, 1))
        self.values[call.outputs[0]] = Value(call.outputs[0], array=array, suspect=value.suspect)

    def compute(self, call: Call, inputs: list[Value | None]) -> list[np.ndarray]:
        """The outputs of one node on arrays, by ONNX's reference implementation."""
        from onnx.reference import ReferenceEvaluator

        arrays = {name: v.array for name, v in zip(call.inputs, inputs, strict=True) if v is not None}
        self._check_size(call, [None if v is None else v.array for v in inputs])
        types = {name: onnx.helper.np_dtype_to_tensor_dtype(a.dtype) for name, a in arrays.items()}
        names = [name for name in call.proto.output if name]
        graph = onnx.helper.make_graph(
            [call.proto],
            "constant",
            [onnx.helper.make_tensor_value_info(name, t, None) for name, t in types.items()],
            [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in names],
        )
        opset = max(self.opset, NEWER.get(call.op, 0))
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
        try:
            with np.errstate(all="ignore"):
                found = dict(zip(names, ReferenceEvaluator(model).run(None, arrays), strict=True))
        except Exception as error:  # the reference implementation raises whatever numpy does
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(f"{self.where}: the constant {call.source} cannot be computed: {reason}") from None
        out = [np.asarray(found[name]) if name else np.zeros(0) for name in call.proto.output]
        if any(a.dtype.kind not in "fiub" for a in out):
            raise Problem("it gives constants that are not numbers")
        return out

    def _check_size(self, call: Call, arrays: list[np.ndarray | None]) -> None:
        """No small file may ask for a huge constant."""
        ints = [a for a in arrays if a is not None and a.dtype.kind in "iu"]
        size, first = 0, arrays[0] if arrays else None
        if first is None:
            return
        match call.op:
            case "ConstantOfShape" | "Expand":
                size = prod(int(i) for i in ints[-1].reshape(-1)) if ints else 0
                if call.op == "Expand":
                    size = max(size, 1) * first.size
            case "Tile" if len(arrays) > 1 and arrays[1] is not None:
                size = first.size * prod(int(i) for i in arrays[1].reshape(-1))
            case "Pad" if ints or call.get("pads"):
                pads = arrays[1] if len(arrays) > 1 and arrays[1] is not None else call.get("pads", ())
                size = (max(first.shape, default=1) + max((abs(int(p)) for p in pads), default=0)) ** first.ndim
            case "Range" if len(arrays) == 3 and all(a is not None and a.size == 1 for a in arrays):
                start, limit, delta = (float(a.reshape(-1)[0]) for a in arrays)
                size = abs((limit - start) / delta) if delta else 0
            case "OneHot" if len(arrays) > 1 and arrays[1] is not None and arrays[1].size:
                size = first.size * abs(int(arrays[1].reshape(-1)[0]))
        if size > LARGEST:
            raise ModelError(f"{self.where}: {call.source} makes a constant of {size:.0f} elements: too large")
