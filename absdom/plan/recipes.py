"""Recipes as text: `crown-ibp`, `linear(pre=zonotope & interval)`, `ascent(crown, steps=20)`, `{"a*": cap, "*": ibp}`.

A name, with arguments in parentheses where it takes some; `a & b` meets two recipes; braces choose one per layer, by
patterns in quotes. Arguments are recipes, numbers, words and texts in quotes. Python's own parser reads the text and
nothing of it is run: only names, calls of registered recipes, `&`, dictionaries and literals mean anything.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import re
import types
import typing

from absdom import registry
from absdom.domain import Layers, Recipe
from absdom.errors import UsageError

EXAMPLE = "write e.g. 'crown' or 'linear(pre=interval)'"
# A name may hold dashes, which Python's parser would read as differences: there each becomes an underscore.
TOKEN = re.compile(
    r"""(?P<name>[^\W\d]\w*(?:-\w+)*) | (?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?!\w) |
    '[^'\\\n]*' | "[^"\\\n]*" | [(){}\[\],:=&+-] | \s+""",
    re.VERBOSE,
)
WORDS = {int: "a whole number", float: "a number", str: "a word", bool: "True or False", type(None): "None"}


def parse_recipe(text: str) -> Recipe:
    """The recipe that `text` names, plug-ins included. Raises UsageError that says what is wrong, where, and what there
    is."""
    reader = _Reader(text)
    try:
        return reader.recipe(reader.tree())
    except (RecursionError, MemoryError):
        raise UsageError(f"method {text[:60]!r}...: it is nested too deeply") from None


class _Reader:
    def __init__(self, text: str):
        self.text = text
        self.makers = {_key(name): (name, make) for name, make in registry.recipes().items()}

    def error(self, place: int | ast.AST, message: str) -> UsageError:
        """`place`: a node, or the number of characters in front."""
        column = 1 + (place if isinstance(place, int) else self.start(place))
        return UsageError(f"method {self.text!r}: column {column}: {message}")

    def start(self, node: ast.AST) -> int:
        return self._characters(node.col_offset)

    def _characters(self, count: int) -> int:
        """The parser counts bytes of the line that it was given."""
        head = len(self.text) - len(self.text.lstrip())
        return head + len(self.text.lstrip().encode()[:count].decode(errors="ignore"))

    def written(self, node: ast.AST) -> str:
        """The node as the user wrote it, dashes included."""
        return self.text[self.start(node) : self._characters(node.end_col_offset)]

    def tree(self) -> ast.expr:
        parts, place = [], 0
        while place < len(self.text):
            token = TOKEN.match(self.text, place)
            if token is None:
                raise self.error(place, f"{self.text[place:].split()[0]!r} cannot be read; {EXAMPLE}")
            word = token.group()
            parts.append(_key(word) if token["name"] else " " * len(word) if word.isspace() else word)
            place = token.end()
        source = "".join(parts)
        if not source.strip():
            raise UsageError(f"method {self.text!r} is empty; {EXAMPLE}")
        try:
            return ast.parse(source.strip(), mode="eval").body
        except SyntaxError as error:
            head = len(source) - len(source.lstrip())
            what = "this cannot be read" if error.msg.startswith("invalid syntax") else error.msg
            raise self.error(head + max(0, (error.offset or 1) - 1), f"{what}; {EXAMPLE}") from None

    def recipe(self, node: ast.expr) -> Recipe:
        match node:
            case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
                return self.recipe(left) & self.recipe(right)
            case ast.Name():
                return self.call(node, node, [], [])
            case ast.Call(func=ast.Name() as name, args=arguments, keywords=keywords):
                return self.call(node, name, arguments, keywords)
            case ast.Dict(keys=patterns, values=recipes):
                return self.layers(node, patterns, recipes)
        raise self.error(node, f"{self.written(node)!r} is no recipe; {EXAMPLE}")

    def layers(self, node: ast.Dict, patterns: list[ast.expr | None], recipes: list[ast.expr]) -> Recipe:
        cases: dict[str, Recipe] = {}
        for pattern, recipe in zip(patterns, recipes, strict=True):
            if not (isinstance(pattern, ast.Constant) and isinstance(pattern.value, str)):
                place, found = (recipe, "**") if pattern is None else (pattern, self.written(pattern))
                raise self.error(place, f'a pattern of layers stands in quotes, such as "conv*", not {found}')
            if pattern.value in cases:
                raise self.error(pattern, f"the pattern {pattern.value!r} stands here twice")
            cases[pattern.value] = self.recipe(recipe)
        return self.made(node, {}, Layers, {"cases": tuple(cases.items())})

    def call(self, node: ast.expr, name: ast.Name, arguments: list, keywords: list) -> Recipe:
        key = _key(name.id)
        if key not in self.makers:
            raise self.unknown(name)
        shown, make = self.makers[key]
        parameters = _parameters(make)
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        named = {k: p for k, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        takes = f"it takes: {', '.join(named)}" if named else "it takes no arguments"
        places: dict[str, ast.AST] = {}
        values: dict[str, object] = {}
        places_in_order = [k for k, p in named.items() if p.kind is not p.KEYWORD_ONLY]
        for position, argument in enumerate(arguments):
            if position >= len(places_in_order):
                raise self.error(argument, f"{shown!r} has no room for {self.written(argument)!r}; {takes}")
            places[places_in_order[position]] = argument
        for keyword in keywords:
            if keyword.arg is None or not (keyword.arg in named or open_ended):
                wrong = "**" if keyword.arg is None else keyword.arg
                raise self.error(keyword, f"{shown!r} has no {wrong!r}; {_meant(wrong, named)}{takes}")
            if keyword.arg in places:
                raise self.error(keyword, f"{shown!r} is given {keyword.arg!r} twice")
            places[keyword.arg] = keyword.value
        for key, argument in places.items():
            hint = named[key].annotation if key in named else inspect.Parameter.empty
            values[key] = self.argument(argument, key, hint)
        missing = [k for k, p in named.items() if p.default is p.empty and k not in values]
        if missing:
            raise self.error(node, f"{shown!r} needs {' and '.join(map(repr, missing))}; {takes}")
        return self.made(node, places, make, values)

    def made(self, node: ast.expr, places: dict[str, ast.AST], make, values: dict) -> Recipe:
        """What `make` gives; an error that begins with the name of an argument is placed there."""
        try:
            return make(**values)
        except (UsageError, ValueError, TypeError) as error:
            named = (place for key, place in places.items() if re.match(rf"{key}\b", str(error)))
            raise self.error(next(named, node), str(error)) from None

    def unknown(self, name: ast.Name) -> UsageError:
        word = self.written(name)
        if word == "auto":
            return self.error(
                name, "'auto' is a choice between methods, made by verify and bound, and stands alone there"
            )
        names = sorted(shown for shown, _ in self.makers.values())
        return self.error(name, f"there is no {word!r}; {_meant(word, names)}there are: auto, {', '.join(names)}")

    def argument(self, node: ast.expr, key: str, hint):
        """The value of an argument of that type. A bare name is a recipe where the type asks for one, else a word."""
        wants_recipe = any(inspect.isclass(h) and issubclass(h, Recipe) for h in _options(hint))
        value = self.value(node, wants_recipe, hint is inspect.Parameter.empty)
        if value == "inf" and float in _options(hint):
            value = math.inf
        if not _fits(value, hint):
            wanted = " or ".join(dict.fromkeys(map(_worded, _options(hint))))
            raise self.error(node, f"{key} is {wanted}, not {self.written(node)}")
        return float(value) if isinstance(value, int) and not _fits_exactly(value, hint) else value

    def value(self, node: ast.expr, wants_recipe: bool, untyped: bool = False):
        match node:
            case ast.Constant(value=str() | int() | float() | None as value):
                return value
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=ast.Constant(value=int() | float() as value)):
                return -value if isinstance(op, ast.USub) else +value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id="inf")):
                return -math.inf
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                return tuple(self.value(part, wants_recipe, untyped) for part in parts)
            case ast.Name() if not (wants_recipe or (untyped and _key(node.id) in self.makers)):
                return self.written(node)
        return self.recipe(node)


def _key(name: str) -> str:
    return name.replace("-", "_")


def _meant(word: str, names) -> str:
    close = difflib.get_close_matches(word, list(names), n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def _parameters(make) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(make, eval_str=True).parameters)
    except NameError:  # an annotation that names what is imported for type checkers only
        found = inspect.signature(make).parameters
        return {key: p.replace(annotation=inspect.Parameter.empty) for key, p in found.items()}


def _options(hint) -> tuple:
    """The alternatives of a type: those of a union, or the type alone."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(type(None) if h is None else h for h in typing.get_args(hint))
    return (hint,)


def _worded(hint) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if inspect.isclass(hint) and issubclass(hint, Recipe):
        return "a recipe" if hint is Recipe else f"a recipe of the kind {hint.__name__}"
    return WORDS.get(hint) or getattr(hint, "__name__", str(hint))


def _fits(value, hint) -> bool:
    """May a parameter of that type take the value? Types beyond those that texts can name are the recipe's affair."""
    return any(_fits_one(value, h) for h in _options(hint))


def _fits_exactly(value, hint) -> bool:
    return any(h is not float and _fits_one(value, h) for h in _options(hint))


def _fits_one(value, hint) -> bool:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint in (int, float):
        return isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
    if inspect.isclass(hint) and (hint in WORDS or issubclass(hint, Recipe)):
        return isinstance(value, hint)
    if origin is tuple:
        return isinstance(value, tuple)
    return hint is not type(None) or value is None
