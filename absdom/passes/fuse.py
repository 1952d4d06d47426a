"""Put the constant that is added behind a matrix product or a convolution into the op, where that is exact."""

from __future__ import annotations

from absdom.ir.graph import Builder, Graph, rebuild
from absdom.ops import affine


def fuse(graph: Graph) -> Graph:
    """x @ W + b becomes Linear(x, W, b) where the product has no other reader and b does not enlarge it."""
    joined: set[int] = set()  # products that an Add swallows
    plan: dict[int, tuple[int, int]] = {}  # Add -> (product, bias), old indices
    for i, node in enumerate(graph.nodes):
        if not isinstance(node.op, affine.Add) or not graph.varying[i]:
            continue
        for product, bias in (node.inputs, node.inputs[::-1]):
            if _fits(graph, i, product, bias):
                plan[i] = (product, bias)
                joined.add(product)
                break
    if not plan:
        return graph
    new: dict[int, int] = {}
    order = iter(sorted(graph.ancestors([*graph.outputs, *graph.inputs])))

    def change(builder: Builder, node, inputs):
        i = next(order)
        if i in plan:
            product, bias = plan[i]
            reads = [new[j] for j in graph.nodes[product].inputs]
            made = builder.add(affine.Linear(), *reads, new[bias], source=graph.nodes[product].source)
        else:
            made = builder.copy(node, inputs, graph.params)
        new[i] = made
        return made

    return rebuild(graph, change)


def _fits(graph: Graph, add: int, product: int, bias: int) -> bool:
    node = graph.nodes[product]
    return (
        isinstance(node.op, affine.MatMul)
        and graph.varying[node.inputs[0]]
        and not graph.varying[node.inputs[1]]
        and not graph.varying[bias]
        and len(graph.consumers[product]) == 1
        and product not in graph.outputs
        and node.type.shape == graph.nodes[add].type.shape
    )
