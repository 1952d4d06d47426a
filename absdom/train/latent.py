"""A network cut at a layer: what lies behind it, as a function of the layer's values, and tasks about those values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from absdom.errors import UsageError
from absdom.ir.graph import Graph
from absdom.ir.op import Input, Param
from absdom.plan.context import Context
from absdom.sets import InputBatch
from absdom.train.task import Task


@dataclass(frozen=True)
class Cut:
    """A node whose values decide the outputs, the varying nodes in `front` of it (itself the last), those `behind` it
    up to the output, both in order, and the labels of the parameters that its values depend on."""

    layer: str
    node: int
    front: tuple[int, ...]
    behind: tuple[int, ...]
    parameters: tuple[str, ...]

    @staticmethod
    def at(graph: Graph, layer: str) -> Cut:
        """The cut behind the layer of that name, as in the module ("features.5") or in the graph.

        Raises UsageError for a name that is not there, and where a path to the output goes around the layer.
        """
        if layer not in graph.names:
            raise UsageError(
                f"no layer is called {layer!r} (or one that only moves elements became part of the next); "
                f"there are: {', '.join(sorted(graph.names))}"
            )
        node, reached, needed = graph.names[layer], set(), [graph.outputs[0]]
        while needed:
            i = needed.pop()
            if i == node or i in reached or not graph.varying[i]:
                continue
            if isinstance(graph.nodes[i].op, Input):
                raise UsageError(
                    f"the network cannot be cut at {layer!r}: a path from its input to its output goes around that "
                    f"layer. Name one that all paths go through, such as the sum at the end of a residual block"
                )
            reached.add(i)
            needed.extend(graph.nodes[i].inputs)
        before = sorted(graph.ancestors([node]))
        labels = (graph.nodes[i].op.label for i in before if isinstance(graph.nodes[i].op, Param))
        return Cut(layer, node, tuple(i for i in before if graph.varying[i]), tuple(sorted(reached)), tuple(labels))

    def evaluate(self, context: Context, z: torch.Tensor) -> torch.Tensor:
        """The outputs "B K" where the layer has the values z "B *n"."""
        graph, values = context.graph, {**context.values, self.node: z}
        for i in self.behind:
            values[i] = graph.nodes[i].op.eval(*(values[j] for j in graph.nodes[i].inputs))
        return values[graph.outputs[0]].reshape(len(z), -1)


def task_per_clause(task: Task, lower: torch.Tensor, upper: torch.Tensor) -> Task:
    """The same question about boxes of a layer's values, [lower, upper] "B *n", one clause at a time.

    The new task has B times Q items (those of one box side by side) of one clause each; its points are the middles.
    """
    rows = task.C.shape[1]
    if task.clause is None:
        index = torch.arange(rows, device=task.C.device)[:, None]
    else:  # a clause with fewer rows repeats its first, which leaves its greatest row as it is
        own = [torch.nonzero(task.clause == q)[:, 0] for q in range(task.clause_count)]
        longest = max(map(len, own))
        index = torch.stack([torch.cat([o, o[:1].expand(longest - len(o))]) for o in own])
    count, width = index.shape

    def repeated(t: torch.Tensor) -> torch.Tensor:
        return t.repeat_interleave(count, 0)

    lower, upper = repeated(lower), repeated(upper)
    d = None if task.d is None else task.d[:, index].flatten(0, 1)
    clause = None if width == 1 else torch.zeros(width, dtype=torch.long, device=index.device)
    return replace(
        task, x=lower / 2 + upper / 2, sets=InputBatch(lower.flatten(1), upper.flatten(1)),
        C=task.C[:, index].flatten(0, 1), d=d, clause=clause,
    )  # fmt: skip
