"""The op x domain table: how each domain treats each op, and from which file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from absdom import registry
from absdom.domain import Dual, Forward, Tuned
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


def table() -> str:
    """Markdown: one row per op, one column per domain, and the file of each domain's rules."""
    columns = domains()
    lines = ["| op | " + " | ".join(d.name for d in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, op in sorted(registry.ops().items()):
        lines.append(f"| {name} | " + " | ".join(cell(d, op) for d in columns) + " |")
    lines.append("")
    for domain in columns:
        files = {Path(f).name for op in registry.ops().values() if (f := registry.rule_file(domain, op))}
        lines.append(f"Rules of {domain.name}: {', '.join(sorted(files))}.")
    return "\n".join(lines)


def treatment(graph: Graph) -> list[str]:
    """One line per op of a lowered graph: how often it occurs, and how each domain treats it."""
    counts = Counter(type(node.op) for node in graph.nodes if not isinstance(node.op, (Input, Param)))
    return [
        f"{op.__name__} ({count}): " + ", ".join(f"{d.name} {cell(d, op)}" for d in domains())
        for op, count in sorted(counts.items(), key=lambda item: item[0].__name__)
    ]
