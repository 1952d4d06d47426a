"""ONNX files as data: bytes to a checked ModelProto, decoded nodes and arrays. Nothing is executed or unpickled."""

from __future__ import annotations

import difflib
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto, numpy_helper

from absdom.errors import ModelError
from absdom.frontends.onnx_values import Call

OPSETS = range(7, 29)
DOMAINS = ("", "ai.onnx")
LARGEST_FILE = 2**31  # bytes: no protobuf message is larger
HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def read_bytes(path: str | Path | None = None, data: bytes | None = None) -> tuple[bytes, str]:
    """The bytes of a model, unpacked if they are gzipped, and the name under which messages speak of it."""
    where = "the model" if path is None else str(path)
    if data is None:
        if path is None:
            raise ModelError("a model is given by its path or by its bytes: neither was given")
        try:
            data = Path(path).read_bytes()
        except FileNotFoundError:
            raise ModelError(f"{where}: no such file") from None
        except OSError as error:
            raise ModelError(f"{where}: cannot be read: {error.strerror or error}") from None
    if data[:2] == b"\x1f\x8b":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                data = file.read(LARGEST_FILE)
        except (EOFError, OSError, zlib.error) as error:
            raise ModelError(f"{where}: the gzip file is truncated or damaged: {error}") from None
        if len(data) >= LARGEST_FILE:
            raise ModelError(f"{where}: unpacks to more than 2 GiB, which no ONNX file holds")
    return data, where


def parse(data: bytes, where: str) -> tuple[onnx.ModelProto, int]:
    """The model and its opset; ModelError if it is no ONNX model or of an opset that is not supported."""
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError:
        raise ModelError(f"{where}: is truncated or no ONNX file (the protobuf message cannot be decoded)") from None
    if not model.opset_import or not model.graph.output:
        raise ModelError(f"{where}: is no ONNX model: it has no opset or no outputs")
    opsets = {o.version for o in model.opset_import if o.domain in DOMAINS}
    if len(opsets) != 1 or min(opsets) not in OPSETS:
        found = ", ".join(map(str, sorted(opsets))) or "none"
        raise ModelError(
            f"{where}: has opset {found}; absdom reads opset {OPSETS[0]} to {OPSETS[-1]} "
            f"(onnx.version_converter changes the opset of a model)"
        )
    return model, opsets.pop()


def expose(model: onnx.ModelProto, names: Sequence[str], where: str) -> list[str]:
    """Make these values inside the model outputs of it, in place; the names of all outputs: its own, then these."""
    own = [o.name for o in model.graph.output]
    made = {name for node in model.graph.node for name in node.output if name}
    for name in names:
        if name not in made:
            near = difflib.get_close_matches(name, made, 1)
            hint = f" (is {near[0]!r} meant?)" if near else ""
            raise ModelError(f"{where}: no node of the model makes a value called {name!r}{hint}")
        if name not in (o.name for o in model.graph.output):
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    return [*own, *names]


def element_type(number: int) -> str:
    return TensorProto.DataType.Name(number) if number in TensorProto.DataType.values() else f"number {number}"


def array(tensor: TensorProto, name: str, where: str) -> np.ndarray:
    """The array of a stored tensor; ModelError for half precision, for text and for data in other files."""
    if tensor.data_location == TensorProto.EXTERNAL:
        location = next((e.value for e in tensor.external_data if e.key == "location"), "?")
        raise ModelError(
            f"{where}: the weight {name!r} lies in another file ({location}); absdom reads models in one file only: "
            f"save it with onnx.save(..., save_as_external_data=False)"
        )
    if tensor.data_type in HALF:
        raise ModelError(
            f"{where}: the weight {name!r} is of type {element_type(tensor.data_type)}; absdom reads float32 and "
            f"float64 models: convert it first"
        )
    try:
        found = numpy_helper.to_array(tensor)
    except Exception as error:  # numpy and protobuf raise many kinds for damaged tensors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{where}: the weight {name!r} cannot be read: {reason}") from None
    if found.dtype.kind not in "fiub":
        raise ModelError(f"{where}: the weight {name!r} has element type {element_type(tensor.data_type)}, no number")
    return found


def dense(sparse: onnx.SparseTensorProto, name: str, where: str) -> np.ndarray:
    """A stored sparse tensor as an array: indices are flat places "k" or coordinates "k rank"."""
    values, places = array(sparse.values, name, where), array(sparse.indices, name, where)
    try:
        out = np.zeros(tuple(sparse.dims), dtype=values.dtype)
        if places.ndim == 1:
            out.reshape(-1)[places] = values
        else:
            out[tuple(places.T)] = values
    except (IndexError, ValueError, MemoryError):
        raise ModelError(f"{where}: the sparse weight {name!r} has places outside its shape") from None
    return out


def constant(call: Call, where: str) -> np.ndarray:
    """The array of a Constant node, in any of its forms."""
    name = call.outputs[0]
    for key, value in call.attributes.items():
        match key:
            case "value":
                return array(value, name, where)
            case "sparse_value":
                return dense(value, name, where)
            case "value_float" | "value_floats":
                return np.array(value, dtype=np.float32)
            case "value_int" | "value_ints":
                return np.array(value, dtype=np.int64)
    raise ModelError(f"{where}: the constant {name!r} is no number")


def decode(proto: onnx.NodeProto, read: set[str]) -> Call:
    """A node with its attributes as Python values (graphs are left out); outputs outside `read` become ''."""
    attributes = {}
    for a in proto.attribute:
        if a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            continue
        value = onnx.helper.get_attribute_value(a)
        attributes[a.name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    outputs = tuple(name if name in read else "" for name in proto.output)
    op = proto.op_type if proto.domain in DOMAINS else f"{proto.domain}.{proto.op_type}"
    name = proto.name or next(iter(proto.output), "")
    return Call(op, name, tuple(proto.input), outputs, attributes, proto)


def graphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside of a node: branches and bodies."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def reads(node: onnx.NodeProto) -> list[str]:
    """The names that a node reads: its inputs, and what graphs inside of it take from around them."""
    names = [name for name in node.input if name]
    for graph in graphs_of(node):
        own = {i.name for i in (*graph.input, *graph.initializer)}
        own.update(name for inner in graph.node for name in inner.output)
        inside = [name for inner in graph.node for name in reads(inner)] + [o.name for o in graph.output]
        names += [name for name in inside if name not in own]
    return names


def live_nodes(graph: onnx.GraphProto, where: str) -> list[Call]:
    """The nodes that the outputs depend on, in the order of the file, which has to be topological."""
    maker: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in maker:
                raise ModelError(f"{where}: two nodes make the value {name!r}")
            maker[name] = i
    stored = {i.name for i in graph.input} | {i.name for i in graph.initializer}
    stored |= {i.values.name for i in graph.sparse_initializer}
    read = {o.name for o in graph.output}
    live, stack = set(), list(read)
    while stack:
        name = stack.pop()
        if name not in maker:
            if name not in stored:
                raise ModelError(f"{where}: the value {name!r} is read, but neither stored nor made by any node")
            continue
        if (i := maker[name]) not in live:
            live.add(i)
            needed = reads(graph.node[i])
            late = [n for n in needed if maker.get(n, -1) >= i]
            if late:
                raise ModelError(
                    f"{where}: the nodes are not in topological order: {late[0]!r} is read before it is made"
                )
            read.update(needed)
            stack.extend(needed)
    return [decode(graph.node[i], read) for i in sorted(live)]
