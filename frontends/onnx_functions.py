"""Functions in ONNX models written out: the model's own, and operators that the standard defines by other operators."""

from __future__ import annotations

import inspect

import onnx
from onnx import inliner

from absdom.errors import ModelError
from absdom.frontends.onnx_file import DOMAINS
from absdom.frontends.onnx_ops import HANDLERS
from absdom.frontends.onnx_values import COMPUTED, EXACT

RANDOM = frozenset({"Bernoulli"})
KNOWS_STANDARD = "inline_schema_functions" in inspect.signature(inliner.inline_selected_functions).parameters


def write_out(model: onnx.ModelProto, opset: int, where: str) -> onnx.ModelProto:
    """The model without calls of its own functions, and without operators that only a body of the standard explains."""
    if model.functions:
        try:
            model = inliner.inline_local_functions(model)
        except Exception as error:  # the inliner's exceptions have no common base
            raise ModelError(f"{where}: its functions cannot be written out: {_line(error)}") from None
    standard = [node for node in model.graph.node if _standard_function(node, opset) is not None]
    if not standard or not KNOWS_STANDARD:
        return model
    _state_types(model)
    for node in standard:
        _state_defaults(node, _standard_function(node, opset))
    names = [("", s.name) for s in onnx.defs.get_all_schemas() if _is_unknown(s.name)]
    try:
        return inliner.inline_selected_functions(model, names, inline_schema_functions=True)
    except Exception:
        return model  # they are listed as not supported


def _state_types(model: onnx.ModelProto) -> None:
    """Bodies depend on the types of their inputs, and the inliner looks for those of stored tensors among the stated
    types only. An input that is absent has the name '' and wants a type too."""
    known = {v.name for v in (*model.graph.input, *model.graph.value_info)}
    for tensor in model.graph.initializer:
        if tensor.name not in known:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            model.graph.value_info.append(info)
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("", onnx.TensorProto.FLOAT, None))


def _is_unknown(name: str) -> bool:
    return name not in HANDLERS and name not in EXACT | COMPUTED | RANDOM


def _standard_function(node: onnx.NodeProto, opset: int) -> onnx.defs.OpSchema | None:
    """The definition of a node that only a body of the standard explains."""
    if node.domain not in DOMAINS or not _is_unknown(node.op_type):
        return None
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return None
    return schema if schema.has_function or schema.has_context_dependent_function else None


def _state_defaults(node: onnx.NodeProto, schema: onnx.defs.OpSchema) -> None:
    """Bodies refer to attributes that have a default; the inliner finds those that the node states."""
    stated = {a.name for a in node.attribute}
    for name, attribute in schema.attributes.items():
        if name not in stated and attribute.default_value.name:
            node.attribute.append(attribute.default_value)


def _line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
