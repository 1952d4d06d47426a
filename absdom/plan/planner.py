"""Recipe and graph -> Schedule. All missing cells of the op x domain table are reported together, before any work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from absdom import registry
from absdom.domain import Dual, Encoded, Forward, Layers, Meet, Recipe, Strategy, Tuned, rules_of
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
    base = registry.recipes()["interval"]()
    order = tuple(i for i in sorted(graph.ancestors([target])) if graph.varying[i])
    prologue = tuple(i for i in sorted(graph.ancestors([target])) if not graph.varying[i])
    names = _names(graph)
    wanted = {i: _parts(recipe, names[i]) for i in order}
    duals, encoded = _split(wanted[target].final)
    reach = {base: frozenset(order)}
    for domain in _unique(d for parts in wanted.values() for d in (*parts.forwards, *_companions(parts))):
        readers = [i for i, parts in wanted.items() if domain in parts.forwards or domain in _companions(parts)]
        reach.setdefault(domain, frozenset(graph.ancestors(readers) & set(order)))
    inner = {i: parts.inner for i, parts in wanted.items() if parts.inner}
    inner_duals = _unique(d for i in inner for d in _split(inner[i])[0])
    _check_cells(graph, order, prologue, (*reach, *inner_duals, *duals), base)
    return Schedule(graph, reach, duals, _stages(graph, order, inner), sweep_from(graph, target), prologue, encoded)


def sweep_from(graph: Graph, start: int) -> Sweep:
    ancestors = graph.ancestors([start])
    return Sweep(start, tuple(i for i in sorted(ancestors, reverse=True) if graph.varying[i]))


def _names(graph: Graph) -> list[tuple[str, ...]]:
    """What the patterns of Layers are compared with: per node its values' names, its source, its op and its number."""
    found = [[node.source.name, node.op.name, f"%{i}"] for i, node in enumerate(graph.nodes)]
    for name, i in graph.names.items():
        found[i].append(name)
    return [tuple(n for n in names if n) for names in found]


class _Parts(NamedTuple):
    """What a recipe means for one node: forward domains, and what bounds rows at it as an inner and as a last one."""

    forwards: tuple[Forward, ...] = ()
    inner: tuple[Dual | Encoded, ...] = ()
    final: tuple[Dual | Encoded, ...] = ()


def _parts(recipe: Recipe, names: tuple[str, ...]) -> _Parts:
    match recipe:
        case Forward():
            return _Parts(forwards=(recipe,))
        case Tuned(of=dual):
            forwards, inner, _ = _parts(dual, names)
            if recipe.intermediate:
                inner = tuple(recipe if part == dual else part for part in inner)
            return _Parts(forwards, inner, (recipe,))
        case Dual(pre=None) | Encoded(pre=None):
            return _Parts((), (recipe,), (recipe,))
        case Dual(pre=pre):
            forwards, inner, final = _parts(pre, names)
            return _Parts(forwards, _unique(inner + final), (recipe,))
        case Encoded(pre=pre):  # rows that the sweeps of `pre` bring to their goal need no program
            forwards, inner, final = _parts(pre, names)
            return _Parts(forwards, _unique(inner + final), (*_split(final)[0], recipe))
        case Layers():
            chosen = recipe.of(names)
            if chosen is None:
                return _Parts()
            forwards, inner, final = _parts(chosen, names)
            return _Parts(forwards, _unique(inner + final), final)
        case Meet(parts):
            split = [_parts(p, names) for p in parts]
            return _Parts(*(_unique(sum((s[k] for s in split), ())) for k in range(3)))
        case Strategy():
            raise UsageError(
                f"{recipe!r} asks other recipes about whole properties: it stands alone or in a meet (a & b), not "
                "within another recipe and not for one layer"
            )
    raise UsageError(f"{recipe!r} is no recipe: recipes are Forward, Dual or Encoded domains and their meets")


def _split(recipes) -> tuple[tuple[Dual, ...], tuple[Encoded, ...]]:
    programs = tuple(r for r in recipes if isinstance(r, Encoded))
    return tuple(r for r in recipes if not isinstance(r, Encoded)), programs


def _companions(parts: _Parts) -> tuple[Forward, ...]:
    return _unique(c for dual in _split((*parts.inner, *parts.final))[0] for c in rules_of(dual).companions)


def _unique(items) -> tuple:
    return tuple(dict.fromkeys(items))


def _check_cells(graph, order, prologue, domains, base) -> None:
    missing = []
    for domain in domains:
        checked = order + (prologue if domain == base else ())
        owner = rules_of(domain)
        for i in checked:
            op = graph.nodes[i].op
            if not isinstance(op, (Input, Param)) and not registry.treats(type(owner), type(op)):
                missing.append(f"{graph.nodes[i].source} needs a rule of {owner.name} for {op.name}")
    if missing:
        chain = "tried: a rule for the op, then for its kind, then `from_bounds`"
        raise UnsupportedOp(f"{'; '.join(missing)} ({chain}; see `absdom coverage`)", tuple(missing))


def _stages(graph: Graph, order: tuple[int, ...], inner: Mapping[int, tuple]) -> tuple[ForwardStage | Tighten, ...]:
    """`inner`: the recipes that bound rows at a node, for nodes that have such."""
    wanted = {i: readers for i, readers in _tighten_points(graph, order).items() if i in inner} if inner else {}
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
            duals, encoded = _split(inner[i])
            exact = interval_is_exact(graph, i)
            stages.append(Tighten(sweep_from(graph, i), tuple(wanted[i]), duals, exact, encoded))
            # The moves again, from the tightened bounds.
            pending = moves
            done.update(moves)
    stages.append(ForwardStage(tuple(pending)))
    return tuple(s for s in stages if not isinstance(s, ForwardStage) or s.nodes)


def _tighten_points(graph: Graph, order: tuple[int, ...]) -> dict[int, list[tuple[int, int, tuple[int, ...]]]]:
    """Nodes whose bounds are worth a sweep -> the nonlinear readers that want them.

    A reader behind ops that only move elements is served at the node in front of the moves. Nothing is swept from the
    inputs themselves.
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
            if not isinstance(graph.nodes[start].op, Input):
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
