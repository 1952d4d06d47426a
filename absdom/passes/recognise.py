"""Put one op in the place of several that a file spells it with: a function bounded as one is bounded far tighter.

x sigmoid(x) is Silu, x tanh(softplus(x)) is Mish, and x (1 + erf(x / c)) / 2 is Gelu, with the file's own c. Over the
reals nothing changes: constants count as what they are, not as what they stand for.
"""

from __future__ import annotations

from absdom.ir.graph import Builder, Graph, rebuild
from absdom.ir.op import Param
from absdom.ops import activations, affine, functions


def recognise(graph: Graph) -> Graph:
    def change(builder: Builder, node, inputs):
        if not isinstance(node.op, affine.Mul):
            return None
        found = _gate(builder, inputs) or _gelu(builder, graph, inputs)
        return None if found is None else builder.add(found[0], found[1], source=node.source)

    return rebuild(graph, change)


def _gate(builder: Builder, inputs):
    """(op, x) of x sigmoid(x) and x tanh(softplus(x))."""
    for x, gate in (inputs, inputs[::-1]):
        node = builder.node(gate)
        if isinstance(node.op, functions.Sigmoid) and node.inputs == (x,):
            return activations.Silu(), x
        if isinstance(node.op, functions.Tanh):
            inner = builder.node(node.inputs[0])
            if isinstance(inner.op, activations.Softplus) and inner.inputs == (x,):
                return activations.Mish(), x
    return None


def _gelu(builder: Builder, graph: Graph, inputs):
    """(op, x) of a product of x, 1/2 and 1 + erf(x / c), in any order."""
    factors = [f for i in inputs for f in _factors(builder, i)]
    halves = [f for f in factors if _number(builder, graph, f) == 0.5]
    gates = [(f, found) for f in factors if (found := _erf(builder, graph, f)) is not None]
    if len(factors) != 3 or len(halves) != 1 or len(gates) != 1:
        return None
    gate, (x, divisor) = gates[0]
    rest = [f for f in factors if f not in (halves[0], gate)]
    return (activations.Gelu(divisor=divisor), x) if rest == [x] else None


def _factors(builder: Builder, i: int) -> tuple[int, ...]:
    node = builder.node(i)
    return node.inputs if isinstance(node.op, affine.Mul) else (i,)


def _erf(builder: Builder, graph: Graph, i: int) -> tuple[int, float] | None:
    """(x, c) of 1 + erf(x / c), or of 1 + erf(x r) with r = 1 / c."""
    node = builder.node(i)
    if not isinstance(node.op, affine.Add):
        return None
    for one, curve in (node.inputs, node.inputs[::-1]):
        inner = builder.node(curve)
        if _number(builder, graph, one) != 1.0 or not isinstance(inner.op, functions.Erf):
            continue
        scaled = builder.node(inner.inputs[0])
        if isinstance(scaled.op, affine.Div) and (c := _number(builder, graph, scaled.inputs[1])):
            return (scaled.inputs[0], c) if c > 0 else None
        if isinstance(scaled.op, affine.Mul):
            for x, factor in (scaled.inputs, scaled.inputs[::-1]):
                r = _number(builder, graph, factor)
                if r is not None and r > 0:
                    return x, 1 / r
    return None


def _number(builder: Builder, graph: Graph, i: int) -> float | None:
    """The value of a constant number that is not trained."""
    node = builder.node(i)
    if not isinstance(node.op, Param) or node.type.numel != 1:
        return None
    tensor = graph.params[node.op.label]
    return None if tensor.requires_grad else float(tensor.reshape(()))
