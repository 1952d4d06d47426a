"""Einsum by pairs: diagonals, sums and permutations of one operand, products and matrix products of two."""

from __future__ import annotations

from math import prod

import numpy as np

from absdom import ops
from absdom.errors import ModelError
from absdom.frontends.onnx_ops import translates
from absdom.frontends.onnx_structure import check_size, pick
from absdom.frontends.onnx_values import Call, Problem, Translation


def parse(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result; an ellipsis becomes letters of its own. ValueError if illegal."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise ValueError(f"it has {len(terms)} terms for {len(ranks)} inputs")
    spread = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    if any(s < 0 or (s and "..." not in term) for term, s in zip(terms, spread, strict=True)):
        raise ValueError("a term does not fit the rank of its input")
    free = "".join(chr(0x3B1 + i) for i in range(max(spread, default=0)))
    named = [t.replace("...", free[len(free) - s :]) for t, s in zip(terms, spread, strict=True)]
    every = "".join(named)
    if not arrow:
        plain = sorted(c for c in set(every) - set(free) if every.count(c) == 1)
        right = ("..." if "..." in left else "") + "".join(plain)
    out = right.replace("...", free)
    if not all(c.isalpha() for c in every + out) or len(set(out)) < len(out) or set(out) - set(every):
        raise ValueError("its result names an index twice, or one that no input has")
    return named, out


class Term:
    """A graph node with a letter per axis."""

    def __init__(self, t: Translation, node: int, letters: str):
        self.t, self.node, self.letters = t, node, letters

    @property
    def shape(self) -> tuple[int, ...]:
        return self.t.builder.type(self.node).shape

    def size(self, letter: str) -> int:
        return self.shape[self.letters.index(letter)]

    def diagonal(self) -> Term:
        """Each letter once: a letter that is there twice takes the diagonal."""
        kept = "".join(dict.fromkeys(self.letters))
        if kept == self.letters:
            return self
        shape = self.shape
        size = {c: max(s for c2, s in zip(self.letters, shape, strict=True) if c2 == c) for c in kept}
        grid = dict(zip(kept, np.indices([size[c] for c in kept], sparse=True), strict=True))
        index = tuple(grid[c] if s > 1 else 0 for c, s in zip(self.letters, shape, strict=True))
        places = np.broadcast_to(np.arange(prod(shape)).reshape(shape)[index], [size[c] for c in kept])
        return Term(self.t, pick(self.t, [self.node], places), kept)

    def sum(self, letters) -> Term:
        """Summed over these letters."""
        axes = tuple(i for i, c in enumerate(self.letters) if c in letters)
        if not axes:
            return self
        node = self.t.add(ops.ReduceSum(axes), self.node)
        kept = [i for i in range(len(self.letters)) if i not in axes]
        node = self.t.reshape(node, (self.shape[i] for i in kept))
        return Term(self.t, node, "".join(self.letters[i] for i in kept))

    def ordered(self, letters: str, sizes: dict | None = None) -> Term:
        """The axes in this order; a letter that is not there becomes an axis of size 1. `sizes` are broadcast to."""
        order = [self.letters.index(c) for c in letters if c in self.letters]
        node = self.node
        if order != sorted(order):
            node = self.t.add(ops.Permute(tuple(order)), node)
        shape = tuple(self.size(c) if c in self.letters else 1 for c in letters)
        node = self.t.reshape(node, shape)
        wanted = tuple((sizes or {}).get(c, s) for c, s in zip(letters, shape, strict=True))
        return Term(self.t, node if wanted == shape else self.t.add(ops.Expand(wanted), node), letters)

    def grouped(self, *groups: str) -> int:
        """A node with one axis per group of letters."""
        return self.t.reshape(self.node, (prod(self.size(c) for c in group) for group in groups))


def join(a: Term, b: Term, needed: set[str], sizes: dict) -> Term:
    """The product of two terms, summed over the letters that are not `needed` any more."""
    t = a.t
    a, b = a.sum(set(a.letters) - needed - set(b.letters)), b.sum(set(b.letters) - needed - set(a.letters))
    summed = "".join(c for c in a.letters if c in b.letters and c not in needed)
    both = "".join(c for c in a.letters if c in b.letters and c in needed)
    left = "".join(c for c in a.letters if c not in b.letters)
    right = "".join(c for c in b.letters if c not in a.letters)
    if not summed:
        letters = both + left + right
        return Term(t, t.add(ops.Mul(), a.ordered(letters).node, b.ordered(letters).node), letters)
    one, two = a.ordered(both + left + summed, sizes), b.ordered(both + summed + right, sizes)
    product = t.add(ops.MatMul(), one.grouped(both, left, summed), two.grouped(both, summed, right))
    letters = both + left + right
    return Term(t, t.reshape(product, (sizes[c] for c in letters)), letters)


@translates("Einsum")
def einsum(t: Translation, call: Call):
    equation, shapes = call.get("equation", ""), [t.shape(call, i) for i in range(len(call.inputs))]
    try:
        named, out = parse(equation, [len(s) for s in shapes])
    except ValueError as error:
        raise ModelError(f"{t.where}: {call.source} has the equation {equation!r}: {error}") from None
    sizes: dict[str, int] = {}
    for letters, shape in zip(named, shapes, strict=True):
        for letter, size in zip(letters, shape, strict=True):
            known = sizes.get(letter, 1)
            if 1 not in (known, size) and known != size:
                raise ModelError(f"{t.where}: {call.source} has an index of size {known} and {size} in {equation!r}")
            sizes[letter] = max(known, size)
    check_size(t, call, [sizes[c] for c in out])
    terms = [Term(t, t.node(call, i), letters).diagonal() for i, letters in enumerate(named)]
    if len(terms) > 8:
        raise Problem(f"it has {len(terms)} inputs; 8 are supported")
    total = terms[0]
    for k, term in enumerate(terms[1:], 1):
        needed = set(out).union(*(other.letters for other in terms[k + 1 :]))
        total = join(total, term, needed, sizes)
    return total.sum(set(total.letters) - set(out)).ordered(out, {c: sizes[c] for c in out}).node
