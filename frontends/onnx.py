"""The ONNX front end: a model file in, a Graph out; and the judge, onnxruntime on the original bytes.

An open (symbolic) first axis of an input counts as 1. Arithmetic on constants that rounds stays in the graph, other
constants are folded exactly: see `onnx_values`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from absdom.errors import GraphError, ModelError, UnsupportedOp
from absdom.frontends import (  # noqa: F401  (they register their handlers, and the writer)
    onnx_conv,
    onnx_einsum,
    onnx_fourier,
    onnx_hyperbolic,
    onnx_logic,
    onnx_normalise,
    onnx_quantise,
    onnx_ragged,
    onnx_recurrent,
    onnx_reduce,
    onnx_resize,
    onnx_sample,
    onnx_shapes,
    onnx_smooth,
    onnx_structure,
    onnx_write,
)
from absdom.frontends.onnx_control import CONTROL, expand
from absdom.frontends.onnx_file import (
    array,
    constant,
    dense,
    element_type,
    expose,
    live_nodes,
    parse,
    read_bytes,
    reads,
)
from absdom.frontends.onnx_functions import write_out
from absdom.frontends.onnx_judge import Judge, check_agreement
from absdom.frontends.onnx_ops import CHECKS, HANDLERS
from absdom.frontends.onnx_values import COMPUTED, EXACT, Call, Problem, Translation, Value, result_types
from absdom.ir.graph import Graph
from absdom.registry import register_service
from absdom.types import Source, TensorType

__all__ = ["Judge", "check_agreement", "load_onnx"]


@register_service("onnx")
def load_onnx(path: str | Path | None = None, *, data: bytes | None = None, hidden: Sequence[str] = ()) -> Graph:
    """The graph of an ONNX model, `.onnx` or gzipped, opset 7 to 28, float32 or float64, given by path or by bytes.

    hidden: names of values inside the model that the graph shall have as further outputs, behind the model's own.
    Raises ModelError for what is no legal model, and one UnsupportedOp that lists all nodes that are not supported.
    """
    data, where = read_bytes(path, data)
    model, opset = parse(data, where)
    model = write_out(model, opset, where)
    outputs = expose(model, hidden, where)
    calls = live_nodes(model.graph, where)
    t = Translation(opset, HANDLERS, where)
    _inputs(t, model.graph)
    read = {name for call in calls for name in reads(call.proto)}
    _weights(t, model.graph, read | {o.name for o in model.graph.output})
    problems: dict[tuple[str, str], list[str]] = {}
    for call in calls:
        problem = _translate(t, call, bool(problems))
        if problem is not None:
            problems.setdefault((call.op, problem), []).append(call.name)
    if problems:
        raise _unsupported(problems, where, opset)
    try:
        return t.builder.finish([t.output(t.values[name]) for name in outputs])
    except Problem as problem:
        raise ModelError(f"{where}: an output cannot be used: {problem}") from None


def _inputs(t: Translation, graph: onnx.GraphProto) -> None:
    stored = {i.name for i in graph.initializer} | {i.values.name for i in graph.sparse_initializer}
    for info in graph.input:
        if info.name in stored:
            continue  # a weight that older files list among the inputs
        kind = info.type.tensor_type
        if kind.elem_type not in (TensorProto.FLOAT, TensorProto.DOUBLE):
            raise ModelError(
                f"{t.where}: input {info.name!r} has element type {element_type(kind.elem_type)}; absdom reads float32 "
                f"and float64 models"
            )
        if not kind.HasField("shape"):
            raise ModelError(f"{t.where}: input {info.name!r} has no shape; state it in the file")
        shape = []
        for axis, dim in enumerate(kind.shape.dim):
            if dim.dim_value <= 0 and axis > 0:
                raise ModelError(
                    f"{t.where}: axis {axis} of input {info.name!r} is open ({dim.dim_param or '?'}); only the first "
                    f"axis may be: fix the others in the file"
                )
            shape.append(max(dim.dim_value, 1))
        dtype = "float32" if kind.elem_type == TensorProto.FLOAT else "float64"
        node = t.builder.input(info.name, TensorType(tuple(shape), dtype), Source(info.name, "Input"))
        t.values[info.name] = Value(info.name, node)
        t.builder.name(info.name, node)
    if not t.values:
        raise ModelError(f"{t.where}: has no inputs")


def _weights(t: Translation, graph: onnx.GraphProto, read: set[str]) -> None:
    """Arrays of the initializers that live nodes read."""
    found = {i.name: (array, i) for i in graph.initializer}
    found |= {i.values.name: (dense, i) for i in graph.sparse_initializer}
    for name, (decode, tensor) in found.items():
        if name in read:
            t.values[name] = _constant(name, decode(tensor, name, t.where))


def _constant(name: str, value: np.ndarray) -> Value:
    bad = value.dtype.kind == "f" and not np.isfinite(value).all()
    return Value(name, array=value, suspect=name if bad else None)


def _translate(t: Translation, call: Call, doubtful: bool) -> str | None:
    """Give the outputs of one node their values; or say why not, and mark them as broken.

    `doubtful`: there were problems before, so that an error here may be their consequence.
    """
    inputs = [t.values[name] for name in call.inputs if name]
    read = inputs[:1] if call.op == "CastLike" else inputs  # of the second one it takes the element type only
    varies = any(v.varies for v in read) and call.op not in ("Shape", "Size")
    problem = None
    try:
        if call.op in CONTROL:
            if not any(v.broken for v in inputs):
                expand(t, call, _translate)
                return None
        elif call.op not in HANDLERS and (varies or call.op not in EXACT | COMPUTED):
            raise Problem("")
        if call.op in CHECKS:
            CHECKS[call.op](call)
        if not any(v.broken for v in inputs):
            _make(t, call, varies)
            return None
    except Problem as reason:
        problem = str(reason)
    except GraphError as error:
        if not doubtful:
            raise ModelError(f"{t.where}: {error}") from None
    except ModelError:
        if not doubtful:
            raise
    for name in filter(None, call.outputs):
        t.values[name] = Value(name, broken=True, fixed=not varies)
    return problem


def _make(t: Translation, call: Call, varies: bool) -> None:
    if onnx_ragged.concerns(t, call):
        onnx_ragged.translate(t, call)
    elif call.op == "Constant":
        t.values[call.outputs[0]] = _constant(call.outputs[0], constant(call, t.where))
    elif call.op in ("Shape", "Size"):
        shape = np.array(t.shape(call, 0), dtype=np.int64)
        shape = shape.prod() if call.op == "Size" else shape[call.get("start", 0) : call.get("end")]
        t.values[call.outputs[0]] = Value(call.outputs[0], array=np.asarray(shape))
    elif call.op == "CastLike" and not varies:
        t.cast_like(call)
    elif not varies:
        t.fold(call)
    else:
        types = [t.dtype(call, i) if call.has(i) else None for i in range(len(call.inputs))]
        for name, node, element in zip(call.outputs, t.translate(call), result_types(call, types), strict=False):
            if name:
                t.values[name] = Value(name, node, element=element)
                t.builder.name(name, node)


def _unsupported(problems: dict[tuple[str, str], list[str]], where: str, opset: int) -> UnsupportedOp:
    lines = []
    for (op, reason), names in sorted(problems.items()):
        lines.append(f"  {op}{f' ({reason})' if reason else ''}: {', '.join(map(repr, names))}")
    kinds = tuple(sorted({op for op, _ in problems}))
    text = f"{where}: {len(kinds)} kind{'s' if len(kinds) > 1 else ''} of node not supported (opset {opset}):\n"
    return UnsupportedOp(text + "\n".join(lines), kinds)
