"""Recipe and graph -> Schedule. All missing cells of the op x domain table are reported together, before any work."""

from __future__ import annotations

from absdom import registry
from absdom.domain import Dual, Forward, Meet, Recipe
from absdom.errors import UnsupportedOp, UsageError
from absdom.ir.graph import Graph
from absdom.ir.op import Affine, Elementwise, Input, Multivariate, Param
from absdom.ops.shape import Concat, Move
from absdom.plan.plan import ForwardStage, Schedule, Sweep, Tighten


def make_schedule(graph: Graph, recipe: Recipe, target: int | None = None) -> Schedule:
    """Compile `recipe` for the bounds of node `target` (default: the graph's one output) and all it depends on."""
    if target is None:
        if len(graph.outputs) != 1:
            raise UsageError(f"the graph has {len(graph.outputs)} outputs; name the node that is to be bounded")
        target = graph.outputs[0]
    forwards, inner, duals = _parts(recipe)
    base = registry.recipes()["interval"]()
    forwards = (base, *(f for f in forwards if f != base))
    order = tuple(i for i in sorted(graph.ancestors([target])) if graph.varying[i])
    prologue = tuple(i for i in sorted(graph.ancestors([target])) if not graph.varying[i])
    _check_cells(graph, order, prologue, (*forwards, *inner, *duals), base)
    stages = _stages(graph, order, bool(inner))
    return Schedule(graph, forwards, duals, inner, stages, sweep_from(graph, target), prologue)


def sweep_from(graph: Graph, start: int) -> Sweep:
    ancestors = graph.ancestors([start])
    return Sweep(start, tuple(i for i in sorted(ancestors, reverse=True) if graph.varying[i]))


def _parts(recipe: Recipe) -> tuple[tuple[Forward, ...], tuple[Dual, ...], tuple[Dual, ...]]:
    """(forward domains, duals of intermediate bounds, duals of the final rows) of a recipe."""
    match recipe:
        case Forward():
            return (recipe,), (), ()
        case Dual(pre=None):
            return (), (recipe,), (recipe,)
        case Dual(pre=pre):
            forwards, inner, final = _parts(pre)
            return forwards, _unique(inner + final), (recipe,)
        case Meet(parts):
            split = [_parts(p) for p in parts]
            return tuple(_unique(sum((s[k] for s in split), ())) for k in range(3))
    raise UsageError(f"{recipe!r} is no recipe: recipes are Forward or Dual domains and their meets")


def _unique(items: tuple) -> tuple:
    return tuple(dict.fromkeys(items))


def _check_cells(graph, order, prologue, domains, base) -> None:
    missing = []
    for domain in domains:
        checked = order + (prologue if domain == base else ())
        for i in checked:
            op = graph.nodes[i].op
            if not isinstance(op, (Input, Param)) and registry.find_rule(type(domain), type(op))[0] is None:
                missing.append(f"{graph.nodes[i].source} needs a rule of {domain.name} for {op.name}")
    if missing:
        chain = "tried: a rule for the op, then for its kind"
        raise UnsupportedOp(f"{'; '.join(missing)} ({chain}; see `absdom coverage`)", tuple(missing))


def _stages(graph: Graph, order: tuple[int, ...], tighten: bool) -> tuple[ForwardStage | Tighten, ...]:
    wanted = _tighten_points(graph, order) if tighten else {}
    stages: list[ForwardStage | Tighten] = []
    pending: list[int] = []
    done: set[int] = set()
    for i in order:
        if i in done:
            continue
        pending.append(i)
        done.add(i)
        if i in wanted:
            moves = sorted({m for _, _, path in wanted[i] for m in path})
            pending += moves
            stages.append(ForwardStage(tuple(pending)))
            stages.append(Tighten(sweep_from(graph, i), tuple(wanted[i])))
            # The moves again, from the tightened bounds.
            pending = moves
            done.update(moves)
    stages.append(ForwardStage(tuple(pending)))
    return tuple(s for s in stages if not isinstance(s, ForwardStage) or s.nodes)


def _tighten_points(graph: Graph, order: tuple[int, ...]) -> dict[int, list[tuple[int, int, tuple[int, ...]]]]:
    """Nodes whose bounds are worth a sweep -> the nonlinear readers that want them.

    A reader behind ops that only move elements is served at the node in front of the moves. Where interval arithmetic
    is exact already (one affine layer behind the inputs) nothing is swept.
    """
    points: dict[int, list] = {}
    for reader in order:
        node = graph.nodes[reader]
        if not isinstance(node.op, (Elementwise, Multivariate)):
            continue
        for position in graph.varying_inputs(reader):
            start, path = node.inputs[position], []
            while _is_plain_move(graph, start):
                path.append(start)
                start = graph.nodes[start].inputs[0]
            if not interval_is_exact(graph, start):
                points.setdefault(start, []).append((reader, position, tuple(reversed(path))))
    return points


def _is_plain_move(graph: Graph, i: int) -> bool:
    op = graph.nodes[i].op
    return isinstance(op, Move) and not isinstance(op, Concat)


def interval_is_exact(graph: Graph, i: int) -> bool:
    """Is interval arithmetic exact on boxes at node i? True where each input element is mixed at most once."""
    mixed = 0
    while not isinstance(graph.nodes[i].op, Input):
        node = graph.nodes[i]
        positions = graph.varying_inputs(i)
        if not isinstance(node.op, (Affine, Elementwise)) or len(positions) != 1:
            return False
        if isinstance(node.op, Elementwise):
            return False
        if node.type.numel != graph.nodes[node.inputs[positions[0]]].type.numel or _mixes(node.op):
            mixed += 1
        if mixed > 1:
            return False
        i = node.inputs[positions[0]]
    return True


def _mixes(op) -> bool:
    """Does one output element of the affine op depend on several input elements?"""
    from absdom.ops.affine import Divide, Neg, Scale, Sum

    return not isinstance(op, (Move, Sum, Scale, Divide, Neg))
