"""The declarations of a VNN-LIB 2 query: the version in its header, and the tensors of its network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from math import prod
from typing import NoReturn

from absdom.errors import PropertyError
from absdom.interface import Interface, Variable

NEWEST = (2, 1)
DTYPES = {"real": "real", "Real": "real", "float32": "float32", "float64": "float64"}
KINDS = {b"declare-input": "input", b"declare-hidden": "hidden", b"declare-output": "output"}
ORDER = ("input", "hidden", "output")
LARGEST = 1 << 29  # elements of all tensors: they get numbers
RESERVED = (b"and", b"or", b"not", b"assert")

Fail = Callable[[int, str], NoReturn]

_SKIP = rb"(?:\s++|;[^\n]*+)*+"
_HEADER = re.compile(_SKIP + rb"\((\s*+vnnlib-version)\b")
_VERSION = re.compile(rb"\(\s*+vnnlib-version\s*+<\s*+(\d{1,4})\s*+\.\s*+(\d{1,4})\s*+>\s*+\)" + _SKIP)
_TOKEN = re.compile(rb"([()]|\"[^\"\n]*+\"|\[[^\]();]*+\]|[^\s();\"\[\]]++|.)" + _SKIP, re.DOTALL)
_NAME = re.compile(rb"[A-Za-z]\w*+")
_DIMENSION = re.compile(rb"\s*+(\d{1,18})\s*+")


def version_of(text: bytes, name: str) -> tuple[int, int]:
    """The version in the header; (1, 0) where there is no header. PropertyError for a version that is not known."""
    header = _HEADER.match(text)
    if header is None:
        return 1, 0
    start = header.start(1) - 1
    found = _VERSION.match(text, start)
    line, column = text.count(b"\n", 0, start) + 1, start - text.rfind(b"\n", 0, start)
    if found is None:
        raise PropertyError(f"{name}:{line}:{column}: this is no version; write (vnnlib-version <2.0>)")
    version = int(found[1]), int(found[2])
    if not (2, 0) <= version <= NEWEST:
        raise PropertyError(
            f"{name}:{line}:{column}: VNN-LIB {version[0]}.{version[1]} is not known: absdom reads 2.0, 2.1, and 1.0, "
            f"which has no header"
        )
    return version


def skip_version(text: bytes, position: int) -> int:
    return _VERSION.match(text, position).end()


class Declaration:
    """A `(declare-network ...)` that starts at `position`: its `interface`; `fixed`, the names of inputs that have an
    initializer; `end`, the place behind it."""

    def __init__(self, text: bytes, position: int, fail: Fail):
        self._fail = fail
        self._tokens = self._scan(text, position)
        self.fixed: set[bytes] = set()
        self._start = position
        self.end = position
        self._take(b"(")
        self._take(b"declare-network")
        network = self._name("network")
        variables: list[Variable] = []
        names = {network}
        while (opened := self._next()) == b"(":
            kind, offset = self._next(), self._offset
            if kind in (b"equal-to", b"isomorphic-to"):
                fail(offset, f"'{_text(kind)}' relates two networks, and one network is supported for now")
            if kind not in KINDS:
                fail(
                    offset, f"{_show(kind)} is none of declare-input, declare-hidden, declare-output (one network is "
                    "supported for now)",
                )  # fmt: skip
            variable = self._variable(KINDS[kind], offset, names)
            if variable is not None:
                self._check_order(variables, variable, offset)
                variables.append(variable)
        if opened != b")":
            fail(self._offset, f"{_show(opened)} stands where a declaration or ')' is expected")
        self.interface = Interface(network.decode(), tuple(variables))
        for kind in ("input", "output"):
            if not self.interface.of_kind(kind):
                fail(position, f"the network {_text(network)} declares no {kind}; write (declare-{kind} X float32 [1])")
        if sum(v.size for v in variables) >= LARGEST:
            fail(position, f"the tensors of the network {_text(network)} have too many elements")

    def _variable(self, kind: str, offset: int, names: set[bytes]) -> Variable | None:
        """What stands behind `(declare-input` and the like, up to its parenthesis; None for an initialized input."""
        name = self._name("tensor")
        if name in names:
            self._fail(self._offset, f"the name {_show(name)} is declared twice")
        names.add(name)
        dtype = _text(self._next())
        if dtype not in DTYPES:
            self._fail(
                self._offset, f"the element type '{dtype}' is not supported; supported are real, float32, float64"
            )
        shape = self._shape()
        after, onnx = self._next(), ""
        if kind == "hidden":
            if after[:1] != b'"' or len(after) < 3:
                self._fail(self._offset, "a hidden tensor names the value in the ONNX file it stands for, in quotes")
            onnx, after = after[1:-1].decode("utf-8", "replace"), self._next()
        elif kind == "input" and after == b"initialized":
            self.fixed.add(name)
            after = self._next()
        elif after[:1] == b'"':
            self._fail(self._offset, f"{kind}s are mapped to those of the model by their order, and take no name of it")
        if after != b")":
            self._fail(self._offset, f"{_show(after)} stands where ')' is expected")
        return None if name in self.fixed else Variable(name.decode(), kind, DTYPES[dtype], shape, onnx)

    def _check_order(self, before: list[Variable], variable: Variable, offset: int) -> None:
        if before and ORDER.index(before[-1].kind) > ORDER.index(variable.kind):
            self._fail(offset, "inputs are declared first, then hidden tensors, then outputs")
        if before and (before[0].dtype == "real") != (variable.dtype == "real"):
            self._fail(offset, "either all tensors are declared as real or none is")

    def _shape(self) -> tuple[int, ...]:
        token = self._next()
        if token[:1] != b"[" or token[-1:] != b"]":
            self._fail(self._offset, f"{_show(token)} is no shape; write [1,3,8], or [] for a single number")
        if not token[1:-1].strip():
            return ()
        found = [_DIMENSION.fullmatch(part) for part in token[1:-1].split(b",")]
        shape = tuple(int(f[1]) if f else 0 for f in found)
        if not all(shape):
            self._fail(self._offset, f"{_show(token)}: the sizes in a shape are whole numbers above 0")
        if prod(shape) >= LARGEST:
            self._fail(self._offset, f"{_show(token)}: a tensor of this shape is too large")
        return shape

    def _name(self, what: str) -> bytes:
        name = self._next()
        if not _NAME.fullmatch(name) or name in RESERVED:
            self._fail(self._offset, f"{_show(name)} is no name of a {what}: letters, digits and _, a letter first")
        return name

    def _take(self, token: bytes) -> None:
        found = self._next()
        if found != token:
            self._fail(self._offset, f"{_show(found)} stands where {_show(token)} is expected")

    def _next(self) -> bytes:
        found = next(self._tokens, None)
        if found is None:
            self._fail(self._start, "this '(' is never closed: add the ')' that is missing")
        self._offset, self.end = found.start(1), found.end()
        return found[1]

    @staticmethod
    def _scan(text: bytes, position: int) -> Iterator[re.Match]:
        while found := _TOKEN.match(text, position):
            yield found
            position = found.end()


def _text(word: bytes) -> str:
    return word[:40].decode(errors="replace") + ("..." if len(word) > 40 else "")


def _show(word: bytes) -> str:
    return f"'{_text(word)}'"
