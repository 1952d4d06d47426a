"""Plain data that describe objects: nested tables as TOML has them, read with exact errors, and written."""

from __future__ import annotations

import difflib
import inspect
import json
import tomllib
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType

from absdom.errors import UsageError

REQUIRED = object()  # the default of what has to be given


def read_toml(path: str | Path) -> dict:
    """The tables of a TOML file. Raises UsageError."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: no TOML: {error}") from None


def write_toml(table: Mapping) -> str:
    """The tables as TOML text, which reads back to the same values; the simple entries of a table come first."""
    lines: list[str] = []
    _write(table, (), lines)
    return "\n".join(lines).strip("\n") + "\n"


def _write(table: Mapping, path: tuple[str, ...], lines: list[str]) -> None:
    def nested(value) -> bool:
        return isinstance(value, Mapping) and not path or _tables(value)

    simple = [(key, value) for key, value in table.items() if not nested(value)]
    lines += [f"{_key(key)} = {_value(value)}" for key, value in sorted(simple, key=lambda entry: entry[0] != "name")]
    for key, value in table.items():
        if not nested(value):
            continue
        name = ".".join(map(_key, (*path, key)))
        for part in value if _tables(value) else [value]:
            lines += ["", f"[[{name}]]" if _tables(value) else f"[{name}]"]
            _write(part, (*path, key), lines)


def _tables(value) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _key(key: str) -> str:
    return key if key and all(c.isascii() and (c.isalnum() or c in "-_") for c in key) else json.dumps(key)


def _value(value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int | float):
        return repr(value) if isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    return "[" + ", ".join(map(_value, value)) + "]"


def merged(*parts: Mapping) -> dict:
    """One table of several, the later ones over the earlier ones, table by table; None removes an entry."""
    found: dict = {}
    for part in parts:
        for key, value in part.items():
            old = found.get(key)
            if value is None:
                found.pop(key, None)
            else:
                found[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return found


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """`what` is not there; what there is, the likeliest first in question form."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, 1, 0.5)
    return (
        f"there is no {what} {name!r}{f': did you mean {near[0]!r}?' if near else ''} (there are: {', '.join(known)})"
    )


@dataclass(frozen=True)
class Place:
    """Where a value stands: the file (or the name of the preset), and its key path."""

    where: str
    path: str = ""

    def __truediv__(self, key: str | int) -> Place:
        if isinstance(key, int):
            return Place(self.where, f"{self.path}[{key}]")
        return Place(self.where, f"{self.path}.{key}" if self.path else key)

    def fail(self, text: str) -> typing.NoReturn:
        raise UsageError(f"{self.where}: {self.path}: {text}" if self.path else f"{self.where}: {text}")


class Table:
    """A table whose entries are taken one by one; `done` refuses what nobody took."""

    def __init__(self, values, place: Place):
        if not isinstance(values, Mapping):
            place.fail(f"is {values!r}, and has to be a table")
        self.values, self.place, self._known = values, place, []

    def take(self, key: str, hint=object, default=REQUIRED):
        """The value of a key, of the type that `hint` says."""
        self._known.append(key)
        if key not in self.values:
            if default is REQUIRED:
                self.place.fail(f"lacks {key!r}")
            return default
        value = self.values[key]
        if not fits(value, hint):
            (self.place / key).fail(f"is {value!r}, and has to be {spoken(hint)}")
        return value

    def table(self, key: str) -> Table | None:
        """The table of a key, None if there is none."""
        value = self.take(key, default=None)
        return None if value is None else Table(value, self.place / key)

    def tables(self, key: str) -> list[Table]:
        """The list of tables of a key."""
        return [Table(v, self.place / key / i) for i, v in enumerate(self.take(key, Sequence, ()))]

    def choice(self, key: str, table: Mapping[str, object], default=REQUIRED):
        """What `table` has under the value of a key."""
        name = self.take(key, str, default)
        if name not in table:
            (self.place / key).fail(unknown(key, name, table))
        return table[name]

    def named(self, kinds: Mapping[str, Callable], given: Iterable[str] = (), special: Mapping | None = None) -> Named:
        """What the entry `name` names among `kinds`, the other entries as its options.

        given: parameters that come from elsewhere. special: parameter -> what makes its value of the place and the
        entry.
        """
        return self.options(self.choice("name", kinds), given, special)

    def options(self, make: Callable, given: Iterable[str] = (), special: Mapping | None = None) -> Named:
        """A call of `make` with all entries that were not taken as its options."""
        special, known, options = special or {}, parameters(make), {}
        for name in given:
            known.pop(name, None)
        for name, (hint, needed) in known.items():
            if name in special and name in self.values:
                options[name] = special[name](self.take(name), self.place / name)
            elif name in self.values or needed:
                options[name] = _tuples(self.take(name, hint))
            else:
                self._known.append(name)
        self.done()
        return Named(make, options, self.place)

    def done(self) -> None:
        for key in self.values:
            if key not in self._known:
                (self.place / key).fail(unknown("option", key, self._known))


@dataclass(frozen=True)
class Named:
    """A call that is still to be made, and where it is described."""

    make: Callable
    options: dict
    place: Place

    def __call__(self, *args, **more):
        """Make it. Errors that its options cause name the place."""
        return self.at_its_place(self.make, *args, **more, **self.options)

    def at_its_place(self, call: Callable, *args, **more):
        """A call of something else; its errors name the place."""
        try:
            return call(*args, **more)
        except UsageError as error:
            self.place.fail(str(error))

    def accepts(self, name: str) -> bool:
        return name in parameters(self.make)


def parameters(make: Callable) -> dict[str, tuple[object, bool]]:
    """The parameters that can be given by name: (type, has it to be given?). Where a class hands `**more` on to its
    base, those of the base as well, but for those without a default, which the class itself gives its base."""
    found: dict[str, tuple[object, bool]] = {}
    calls = [c.__init__ for c in make.__mro__ if "__init__" in vars(c)] if inspect.isclass(make) else [make]
    for depth, call in enumerate(calls):
        signature = inspect.signature(call)
        hints = typing.get_type_hints(call)
        for name, p in signature.parameters.items():
            if name == "self" or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) or depth and p.default is p.empty:
                continue
            if name not in found:
                found[name] = hints.get(name, object), p.default is p.empty
        if not any(p.kind == p.VAR_KEYWORD for p in signature.parameters.values()):
            break
    return found


def fits(value, hint) -> bool:
    """Is a plain value of this type? Types of objects, which plain data cannot be, fit nothing."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is object or hint is typing.Any:
        return True
    if origin in (typing.Union, UnionType):
        return any(fits(value, one) for one in args)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        if not isinstance(value, list | tuple):
            return False
        if origin is tuple and args[-1:] != (...,):
            return len(value) == len(args) and all(map(fits, value, args))
        return all(fits(v, args[0]) for v in value)
    if hint is Sequence:
        return isinstance(value, list | tuple)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return hint in (bool, str, NoneType) and isinstance(value, hint)


def spoken(hint) -> str:
    """The type in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        return " or ".join(dict.fromkeys(spoken(one) for one in args if one is not NoneType and _plain(one)))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        inner = [one for one in args if one is not ...]
        if origin is tuple and args[-1:] != (...,):
            return "a list of " + " and ".join(map(spoken, inner))
        return f"a list, each {spoken(inner[0])}"
    names = {float: "a finite number", int: "a whole number", bool: "true or false", str: "a text", Sequence: "a list"}
    return names.get(hint, "left out here")


def _plain(hint) -> bool:
    return typing.get_origin(hint) is not None or hint in (float, int, bool, str)


def _tuples(value):
    """Lists as tuples: options are values that compare and hash."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
