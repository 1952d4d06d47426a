"""If, Loop and Scan whose course is known when the model is read: the branch that is taken, the body once per round."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from absdom import ops
from absdom.errors import ModelError
from absdom.frontends.onnx_file import array, decode, graphs_of
from absdom.frontends.onnx_shapes import cut
from absdom.frontends.onnx_values import Call, Problem, Translation, Value

CONTROL = frozenset({"If", "Loop", "Scan"})
MOST_NODES = 20_000  # nodes of a body times its rounds

Translate = Callable[[Translation, Call, bool], "str | None"]


def body_of(call: Call, name: str) -> onnx.GraphProto:
    for attribute in call.proto.attribute:
        if attribute.name == name:
            return attribute.g
    raise Problem(f"it has no {name}")


def renamed(node: onnx.NodeProto, scope: dict[str, str]) -> onnx.NodeProto:
    """A copy in which names are replaced, also where graphs inside of it read them."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    _rename(copy, scope)
    return copy


def _rename(node: onnx.NodeProto, scope: dict[str, str]) -> None:
    for names in (node.input, node.output):
        for i, name in enumerate(names):
            names[i] = scope.get(name, name)
    for graph in graphs_of(node):
        for inner in graph.node:
            _rename(inner, scope)
        for output in graph.output:
            output.name = scope.get(output.name, output.name)


class Round:
    """One passage through a graph: its inputs bound to values, its nodes translated, its outputs read."""

    def __init__(self, t: Translation, call: Call, graph: onnx.GraphProto, prefix: str, given: list[Value]):
        if len(given) != len(graph.input):
            raise ModelError(
                f"{t.where}: the body of {call.source} has {len(graph.input)} inputs, {len(given)} are given"
            )
        self.t, self.call, self.graph, self.prefix = t, call, graph, prefix
        own = [i.name for i in (*graph.input, *graph.initializer)] + [
            n for node in graph.node for n in node.output if n
        ]
        self.scope = {name: f"{prefix}{name}" for name in own}
        for info, value in zip(graph.input, given, strict=True):
            t.values[self.scope[info.name]] = value
        for tensor in graph.initializer:
            stored = array(tensor, tensor.name, t.where)
            t.values[self.scope[tensor.name]] = Value(self.scope[tensor.name], array=stored)

    def run(self, translate: Translate) -> list[Value]:
        nodes = [renamed(node, self.scope) for node in self.graph.node]
        results = [self.scope.get(o.name, o.name) for o in self.graph.output]
        read = {name for node in nodes for name in node.input} | set(results)
        for node in nodes:
            missing = next((n for n in node.input if n and n not in self.t.values), None)
            if missing is not None:
                raise ModelError(f"{self.t.where}: {self.call.source} reads {missing!r}, which nothing makes before it")
            problem = translate(self.t, decode(node, read), False)
            if problem is not None:
                raise Problem(f"inside of it: {node.op_type}{f' ({problem})' if problem else ''}")
        missing = next((n for n in results if n not in self.t.values), None)
        if missing is not None:
            raise ModelError(f"{self.t.where}: the result {missing!r} of {self.call.source} is made by nothing")
        found = [self.t.values[name] for name in results]
        if any(value.broken for value in found):
            raise Problem("it reads a value that is not supported")
        return found


def expand(t: Translation, call: Call, translate: Translate) -> None:
    """Give the outputs of a control-flow node their values."""
    results = {"If": branch, "Loop": loop, "Scan": scan}[call.op](t, call, translate)
    for name, value in zip(call.outputs, results, strict=False):
        if name:
            t.values[name] = value


def branch(t: Translation, call: Call, translate: Translate) -> list[Value]:
    taken = t.integer(call, 0, "condition")
    body = body_of(call, "then_branch" if taken else "else_branch")
    return Round(t, call, body, f"{call.name}/", []).run(translate)


def rounds(call: Call, body: onnx.GraphProto, count: int) -> range:
    if count * max(len(body.node), 1) > MOST_NODES:
        raise Problem(f"{count} rounds of {len(body.node)} nodes are too many to write out")
    return range(count)


def loop(t: Translation, call: Call, translate: Translate) -> list[Value]:
    if not call.has(0):
        raise Problem("it has no largest number of rounds")
    body, count = body_of(call, "body"), t.integer(call, 0, "number of rounds")
    running = bool(t.integer(call, 1, "condition")) if call.has(1) else True
    state = [t.value(call, i) for i in range(2, len(call.inputs))]
    made: list[list[Value]] = []
    for k in rounds(call, body, count):
        if not running:
            break
        number, going = Value("round", array=np.array(k)), Value("going", array=np.array(True))
        again, *found = Round(t, call, body, f"{call.name}[{k}]/", [number, going, *state]).run(translate)
        if again.varies:
            raise Problem("its condition depends on the network's input")
        running, state = bool(again.array.all()), found[: len(state)]
        made.append(found[len(state) :])
    if len(body.output) > 1 + len(state) and not made:
        raise Problem("it makes a list in no round at all")
    return [*state, *(stack(t, call, list(parts), 0, False) for parts in zip(*made, strict=True))]


def scan(t: Translation, call: Call, translate: Translate) -> list[Value]:
    if t.opset < 9:
        raise Problem("the form of opset 8 is not supported")
    body, lists = body_of(call, "body"), call.get("num_scan_inputs", 0)
    states = len(call.inputs) - lists
    if lists < 1 or states < 0 or len(body.output) < states:
        raise ModelError(f"{t.where}: {call.source} has {len(call.inputs)} inputs, {lists} of them lists")
    state, sequences = [t.value(call, i) for i in range(states)], [t.value(call, states + i) for i in range(lists)]
    shapes = [t.shape(call, states + i) for i in range(lists)]
    axes = [t.axis(call, a, len(s)) for a, s in zip(call.get("scan_input_axes", (0,) * lists), shapes, strict=True)]
    backwards, outputs = call.get("scan_input_directions", (0,) * lists), len(body.output) - states
    counts = {shape[axis] for shape, axis in zip(shapes, axes, strict=True)}
    if len(counts) != 1:
        raise ModelError(f"{t.where}: the lists of {call.source} have different lengths: {sorted(counts)}")
    (count,) = counts
    made: list[list[Value]] = []
    for k in rounds(call, body, count):
        places = [count - 1 - k if back else k for back in backwards]
        items = [item(t, v, axis, place) for v, axis, place in zip(sequences, axes, places, strict=True)]
        found = Round(t, call, body, f"{call.name}[{k}]/", [*state, *items]).run(translate)
        state = found[:states]
        made.append(found[states:])
    if outputs and not made:
        raise Problem("it makes a list in no round at all")
    where = call.get("scan_output_axes", (0,) * outputs), call.get("scan_output_directions", (0,) * outputs)
    lists_made = zip(zip(*made, strict=True), *where, strict=True)
    return [*state, *(stack(t, call, list(parts), axis, bool(back)) for parts, axis, back in lists_made)]


def item(t: Translation, value: Value, axis: int, place: int) -> Value:
    """One element of a list along an axis, which is dropped. Of constants that round, what the graph computes."""
    if value.settled:
        return Value(value.name, array=np.take(value.array, place, axis), suspect=value.suspect)
    node = t.emit(value)
    shape = t.builder.type(node).shape
    kept = t.reshape(cut(t, node, axis, (place,)), (*shape[:axis], *shape[axis + 1 :]))
    return Value(value.name, node=kept, element=value.element)


def stack(t: Translation, call: Call, parts: list[Value], axis: int, backwards: bool) -> Value:
    """Values of one shape along a new axis."""
    parts = parts[::-1] if backwards else parts
    if all(p.settled for p in parts):
        return Value(call.name, array=np.stack([p.array for p in parts], axis))
    nodes = [t.emit(p) for p in parts]
    shape = t.builder.type(nodes[0]).shape
    axis = t.axis(call, axis, len(shape) + 1)
    slices = [t.reshape(n, (*shape[:axis], 1, *shape[axis:])) for n in nodes]
    joined = t.add(ops.Concat(axis), *slices) if len(slices) > 1 else slices[0]
    return Value(call.name, node=joined, element=parts[0].element)
