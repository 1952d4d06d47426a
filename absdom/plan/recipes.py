"""Recipes as text: `linear(pre=zonotope & interval)`, `crown-ibp`, `linear(slope=parallel) & interval`."""

from __future__ import annotations

import ast

from absdom import registry
from absdom.domain import Recipe
from absdom.errors import UsageError


def parse_recipe(text: str) -> Recipe:
    """The recipe that `text` names, plug-ins included. Raises UsageError that lists what there is."""
    known = {name.replace("-", "_"): make for name, make in registry.recipes().items()}
    try:
        tree = ast.parse(text.strip().replace("-", "_"), mode="eval").body
    except SyntaxError:
        raise UsageError(f"method {text!r} cannot be read; write e.g. 'crown' or 'linear(pre=interval)'") from None
    return _recipe(tree, known, text)


def _recipe(tree: ast.expr, known: dict, text: str) -> Recipe:
    match tree:
        case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
            return _recipe(left, known, text) & _recipe(right, known, text)
        case ast.Name(id=name):
            return _make(name, {}, known, text)
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
            values = {}
            for keyword in keywords:
                if isinstance(keyword.value, ast.Constant):
                    values[keyword.arg] = keyword.value.value
                elif keyword.arg != "pre" and isinstance(keyword.value, ast.Name) and keyword.value.id not in known:
                    values[keyword.arg] = keyword.value.id  # a word: slope=parallel
                else:
                    values[keyword.arg] = _recipe(keyword.value, known, text)
            return _make(name, values, known, text)
    raise UsageError(f"method {text!r} cannot be read; write e.g. 'crown' or 'linear(pre=interval)'")


def _make(name: str, values: dict, known: dict, text: str) -> Recipe:
    if name not in known:
        names = ", ".join(sorted(n.replace("_", "-") for n in known))
        raise UsageError(f"method {text!r}: there is no {name.replace('_', '-')!r}; there are: auto, {names}")
    try:
        return known[name](**values)
    except TypeError as error:
        raise UsageError(f"method {text!r}: {error}") from None
