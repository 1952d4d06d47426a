"""A Graph as an ONNX file of opset 17: what depends on weights alone is stored, each op is one node.

Batch norms are to be folded before; a batch norm that is left is written as one. Ops that have no node here are refused
all at once. Values and nodes go by the names of the layers that they come from.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from absdom import ops
from absdom.errors import UnsupportedOp
from absdom.ir.graph import Graph, Node
from absdom.ir.op import Input, Op
from absdom.registry import register_service

OPSET, IR_VERSION = 17, 8
TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}

# Ops that ONNX has under the same name, without attributes.
SAME = (
    ops.Relu, ops.Abs, ops.Neg, ops.Sigmoid, ops.Tanh, ops.Erf, ops.Atan, ops.Softsign, ops.Exp, ops.Log, ops.Sqrt,
    ops.Sin, ops.Cos, ops.Tan, ops.Floor, ops.Ceil, ops.Sign, ops.Add, ops.Sub, ops.Mul, ops.Div, ops.MatMul,
)  # fmt: skip
# Ops whose ONNX node differs in its attributes only: name there, attributes from the op.
ATTRIBUTES: dict[type[Op], tuple[str, Callable[[Op], dict]]] = {
    ops.LeakyRelu: ("LeakyRelu", lambda op: {"alpha": op.alpha}),
    ops.Elu: ("Elu", lambda op: {"alpha": op.alpha}),
    ops.Softmax: ("Softmax", lambda op: {"axis": op.axis}),
    ops.LogSoftmax: ("LogSoftmax", lambda op: {"axis": op.axis}),
    ops.Permute: ("Transpose", lambda op: {"perm": op.axes}),
    ops.Concat: ("Concat", lambda op: {"axis": op.axis}),
    ops.ReduceMean: ("ReduceMean", lambda op: {"axes": op.axes, "keepdims": 1}),
    ops.BatchNorm: ("BatchNormalization", lambda op: {"epsilon": op.epsilon}),
    ops.Conv: (
        "Conv",
        lambda op: {
            "strides": op.strides, "dilations": op.dilations, "group": op.groups, "pads": (*op.before, *op.after)
        },
    ),
    ops.MaxPool: ("MaxPool", lambda op: {**_windows(op), "dilations": op.dilations}),
    ops.AveragePool: ("AveragePool", lambda op: {**_windows(op), "count_include_pad": int(op.count_padding)}),
}  # fmt: skip
# Ops whose parameters are further inputs in ONNX: name there, and the arrays.
ARRAYS: dict[type[Op], tuple[str, Callable[[Op], list]]] = {
    ops.Reshape: ("Reshape", lambda op: [op.shape]),
    ops.Expand: ("Expand", lambda op: [op.shape]),
    ops.Pad: ("Pad", lambda op: [(*op.before, *op.after)]),
    ops.Slice: ("Slice", lambda op: [(op.start,), (op.stop,), (op.axis,), (op.step,)]),
    ops.ReduceSum: ("ReduceSum", lambda op: [op.axes]),
}


def _windows(op: Op) -> dict:
    return {
        "kernel_shape": op.kernel, "strides": op.strides, "pads": (*op.before, *op.after), "ceil_mode": int(op.ceil)
    }  # fmt: skip


@register_service("write-onnx")
def write_onnx(graph: Graph, path: str | Path) -> None:
    """Write a graph of float32 or float64 as it is (its own batch of 1 included).

    Raises UnsupportedOp for what cannot be written: the ops, and the layers they come from.
    """
    _Writer(graph).save(path)


class _Writer:
    def __init__(self, graph: Graph):
        self.graph, self.nodes, self.stored = graph, [], {}
        self.taken: set[str] = set()
        self.values = _constants(graph)
        self.names: dict[int, str] = {}

    def save(self, path: str | Path) -> None:
        graph = self.graph
        needed = sorted(graph.ancestors(graph.outputs))
        problems = [
            f"{node.op.name} ({node.source})"
            for i in needed
            if graph.varying[i] and not isinstance((node := graph.nodes[i]).op, Input) and not _writable(node.op)
        ]
        if problems:
            raise UnsupportedOp(
                "the network cannot be written as ONNX, these ops have no node there yet: " + ", ".join(problems),
                tuple(sorted({text.split(" ")[0] for text in problems})),
            )
        for i in graph.inputs:
            self.names[i] = self._name(graph.nodes[i].op.label)
        ends = ["output"] if len(graph.outputs) == 1 else [f"output{k}" for k in range(len(graph.outputs))]
        for i, end in zip(graph.outputs, ends, strict=True):
            self.names.setdefault(i, self._name(end))
        for i in needed:
            if graph.varying[i] and not isinstance(graph.nodes[i].op, Input):
                self._node(i, graph.nodes[i])
        made = helper.make_graph(
            self.nodes, "absdom", [self._info(i) for i in graph.inputs], [self._info(i) for i in graph.outputs],
            [numpy_helper.from_array(array, name) for name, array in self.stored.items()],
        )  # fmt: skip
        model = helper.make_model(
            made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="absdom"
        )
        onnx.checker.check_model(model, full_check=True)
        Path(path).write_bytes(model.SerializeToString())

    def _node(self, i: int, node: Node) -> None:
        layer = node.source.name or node.op.name.lower()
        self.names.setdefault(i, self._name(layer))
        match node.op:
            case ops.Linear():
                self._linear(i, node, layer)
            case ops.Clip(low, high):
                dtype = node.type.dtype
                ends = [
                    self._store(np.array(v, dtype=dtype), f"{layer}.{n}") for n, v in (("low", low), ("high", high))
                ]
                self._add("Clip", [self.names[node.inputs[0]], *ends], i)
            case ops.Reshape(shape) if len(shape) == 2 and shape[0] == self.graph.nodes[node.inputs[0]].type.shape[0]:
                self._add("Flatten", [self.names[node.inputs[0]]], i, axis=1)
            case op if type(op) in ARRAYS:
                kind, arrays = ARRAYS[type(op)]
                more = [self._store(np.array(a, dtype=np.int64), f"{layer}.{kind.lower()}") for a in arrays(op)]
                self._add(kind, [self.names[node.inputs[0]], *more], i)
            case op:
                kind, attributes = ATTRIBUTES.get(type(op), (op.name, lambda op: {}))
                self._add(kind, self._reads(node, layer), i, **attributes(op))

    def _linear(self, i: int, node: Node, layer: str) -> None:
        """x W + b: one Gemm, with the weights as torch keeps them, for matrices."""
        x, weight, *bias = node.inputs
        if len(self.graph.nodes[x].type.shape) == 2 and self.values[weight].ndim == 2:
            stored = [self._store(self.values[weight].T.copy(), f"{layer}.weight")]
            stored += [self._store(self.values[b], f"{layer}.bias") for b in bias]
            self._add("Gemm", [self.names[x], *stored], i, transB=1)
            return
        product = self.names[i] if not bias else self._name(f"{layer}.product")
        stored = self._store(self.values[weight], f"{layer}.weight")
        self.nodes.append(helper.make_node("MatMul", [self.names[x], stored], [product], name=product))
        if bias:
            self._add("Add", [product, self._store(self.values[bias[0]], f"{layer}.bias")], i)

    def _reads(self, node: Node, layer: str) -> list[str]:
        """The names of a node's inputs; constants are stored as the layer's own."""
        called = ("", ".weight", ".bias", ".mean", ".variance") if node.op.name in ("Conv", "BatchNorm") else ()
        found = []
        for place, i in enumerate(node.inputs):
            constant = not self.graph.varying[i]
            suffix = called[place] if place < len(called) else f".{place}"
            found.append(self._store(self._cast(i, node), f"{layer}{suffix}") if constant else self.names[i])
        return found

    def _cast(self, i: int, node: Node) -> np.ndarray:
        """A constant in the numbers of the node that reads it, as torch takes a number beside a tensor."""
        return self.values[i].astype(node.type.dtype)

    def _add(self, kind: str, reads: list[str], i: int, **attributes) -> None:
        self.nodes.append(helper.make_node(kind, reads, [self.names[i]], name=self.names[i], **attributes))

    def _store(self, array: np.ndarray, name: str) -> str:
        name = self._name(name)
        self.stored[name] = np.ascontiguousarray(array)
        return name

    def _name(self, wanted: str) -> str:
        """A name that is not taken yet."""
        name, number = wanted, 1
        while name in self.taken:
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(name)
        return name

    def _info(self, i: int):
        type = self.graph.nodes[i].type
        return helper.make_tensor_value_info(self.names[i], TYPES[type.dtype], type.shape)


def _writable(op: Op) -> bool:
    if isinstance(op, ops.AveragePool) and set(op.dilations) != {1}:
        return False  # of a later opset
    return isinstance(op, (*SAME, ops.Linear, ops.Clip)) or type(op) in ATTRIBUTES or type(op) in ARRAYS


def _constants(graph: Graph) -> dict[int, np.ndarray]:
    """The values "*n" of all nodes that depend on weights alone, in the numbers they are stored in."""
    found: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for i, node in enumerate(graph.nodes):
            if graph.varying[i]:
                continue
            label = node.op.attributes().get("label") if not node.inputs else None
            found[i] = graph.params[label][None] if label else node.op.eval(*(found[j] for j in node.inputs))
    return {i: value[0].detach().cpu().numpy() for i, value in found.items()}
