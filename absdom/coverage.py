"""The op x domain table: how each domain treats each op, and from which file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from absdom import registry
from absdom.domain import Dual, Encoded, Forward, Tuned
from absdom.ir.graph import Graph
from absdom.ir.op import Affine, Composite, Elementwise, Input, Multivariate, Param


def domains() -> list[type]:
    """The domain classes that are registered as recipes: those that have rules of their own."""
    found = [r for _, r in sorted(registry.recipes().items()) if isinstance(r, type)]
    return [r for r in found if issubclass(r, (Forward, Dual)) and not issubclass(r, Tuned)]


def cell(domain: type, op: type) -> str:
    """`exact`, `kind`, `decomposed`, `coarse` or `none`."""
    if issubclass(op, Composite):
        return "decomposed"
    if not issubclass(op, (Affine, Elementwise, Multivariate)):
        return "specialised"
    _, how = registry.find_rule(domain, op)
    if how == "none" and registry.treats(domain, op):
        return "coarse"
    if how == "kind" and getattr(op, "coarse", False) and domain.name != "interval":
        return "coarse"
    return how


def encoded(op: type) -> str:
    """How an op becomes rows of a program: `exact`, `binaries` (exact with those), `relaxed` or `box`; or as `cell`."""
    if issubclass(op, Composite):
        return "decomposed"
    if not issubclass(op, (Affine, Elementwise, Multivariate)):
        return "specialised"
    if registry.find_rule(Encoded, op)[0] is None or getattr(op, "coarse", False):
        return "box"
    if issubclass(op, Affine):
        return "exact"
    pieces = op.extremum if issubclass(op, Multivariate) else op.pieces is not Elementwise.pieces
    return "binaries" if pieces else "relaxed"


def table() -> str:
    """Markdown: one row per op, one column per domain and one for programs, and the file of each domain's rules."""
    columns = domains()
    names = [*(d.name for d in columns), "encoded"]
    lines = ["| op | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for name, op in sorted(registry.ops().items()):
        lines.append(f"| {name} | " + " | ".join([*(cell(d, op) for d in columns), encoded(op)]) + " |")
    lines.append("")
    for domain in columns:
        files = {Path(f).name for op in registry.ops().values() if (f := registry.rule_file(domain, op))}
        lines.append(f"Rules of {domain.name}: {', '.join(sorted(files))}.")
    lines.append("encoded: rows of programs (lp, milp, sdp); `binaries`: exact with those; `box`: its bounds alone.")
    return "\n".join(lines)


def treatment(graph: Graph) -> list[str]:
    """One line per op of a lowered graph: how often it occurs, and how each domain treats it."""
    counts = Counter(type(node.op) for node in graph.nodes if not isinstance(node.op, (Input, Param)))
    return [
        f"{op.__name__} ({count}): "
        + ", ".join([*(f"{d.name} {cell(d, op)}" for d in domains()), f"encoded {encoded(op)}"])
        for op, count in sorted(counts.items(), key=lambda item: item[0].__name__)
    ]
