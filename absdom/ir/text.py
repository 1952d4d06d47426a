"""The text form of a graph: one line per node, printed and parsed back. Weights are not part of it.

%0 = Input(label='x') : float32[1,5]
%2 = Linear() %0 %1 : float32[1,50]  # Gemm 'fc1'
return %2
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

from absdom import registry
from absdom.errors import GraphError
from absdom.ir.graph import Graph, Node
from absdom.types import Source, TensorType

LINE = re.compile(r"%(\d+) = (\w+)\((.*)\)((?: %\d+)*) : (\w+)\[([\d,]*)\](?:  # (\S*) (['\"].*))?$")


def print_graph(graph: Graph) -> str:
    lines = []
    for i, node in enumerate(graph.nodes):
        attributes = ", ".join(f"{k}={v!r}" for k, v in node.op.attributes().items())
        reads = "".join(f" %{j}" for j in node.inputs)
        source = f"  # {node.source.op} {node.source.name!r}" if node.source != Source() else ""
        lines.append(f"%{i} = {node.op.name}({attributes}){reads} : {node.type}{source}")
    lines.append("return " + " ".join(f"%{i}" for i in graph.outputs))
    return "\n".join(lines)


def parse_graph(text: str, params: Mapping[str, object] | None = None) -> Graph:
    """The graph of a text form; `params` gives the tensors of its Param leaves."""
    from absdom.ir.op import Input, Param

    known = {**registry.ops(), "Input": Input, "Param": Param}
    nodes, outputs = [], ()
    for number, line in enumerate(text.strip().splitlines(), 1):
        if line.startswith("return"):
            outputs = tuple(int(t[1:]) for t in line.split()[1:])
            continue
        match = LINE.match(line.strip())
        if match is None or int(match[1]) != len(nodes):
            raise GraphError(f"line {number} of the text form cannot be read: {line!r}")
        if match[2] not in known:
            raise GraphError(f"line {number} of the text form: there is no op {match[2]!r}")
        try:
            op = known[match[2]](**_keywords(match[3], number))
        except TypeError as error:
            raise GraphError(f"line {number} of the text form: {error}") from None
        shape = tuple(int(s) for s in match[6].split(",") if s)
        source = Source(_string(match[8], number) if match[8] else "", match[7] or "")
        nodes.append(Node(op, tuple(int(t[1:]) for t in match[4].split()), TensorType(shape, match[5]), source))
    inputs = tuple(i for i, n in enumerate(nodes) if isinstance(n.op, Input))
    return Graph(tuple(nodes), inputs, outputs, dict(params or {}))


def _keywords(text: str, number: int) -> dict:
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        return {k.arg: _literal(k.value) for k in call.keywords}
    except (SyntaxError, ValueError):
        raise GraphError(f"line {number} of the text form: cannot read the attributes {text!r}") from None


def _string(text: str, number: int) -> str:
    try:
        return str(ast.literal_eval(text))
    except (SyntaxError, ValueError):
        raise GraphError(f"line {number} of the text form: cannot read the name {text}") from None


def _literal(value: ast.expr):
    match value:  # repr writes infinities as names
        case ast.Name(id="inf"):
            return float("inf")
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id="inf")):
            return float("-inf")
    return ast.literal_eval(value)
