"""RNN, GRU and LSTM, unrolled over their fixed number of steps into matrix products, sums, products and activations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np

from absdom import ops
from absdom.errors import ModelError
from absdom.frontends.onnx_ops import checks, translates
from absdom.frontends.onnx_values import Call, Problem, Translation

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
USUAL = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
ACTIVATIONS = {"sigmoid": ops.Sigmoid, "tanh": ops.Tanh, "relu": ops.Relu, "softsign": ops.Softsign}
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
MOST_STEPS = 512


@checks("RNN", "GRU", "LSTM")
def check_recurrent(call: Call) -> None:
    for name in call.get("activations", ()):
        if _text(name).lower() not in ACTIVATIONS:
            raise Problem(f"the activation {_text(name)!r}; supported are {', '.join(sorted(ACTIVATIONS))}")
    if call.get("direction", "forward") not in DIRECTIONS:
        raise Problem(f"direction={call.get('direction')!r} is unknown")
    if call.get("input_forget", 0):
        raise Problem("input_forget=1 is not supported")


def _text(name) -> str:
    return name.decode() if isinstance(name, bytes) else name


@dataclass
class Cell:
    """One direction: weights "gates*H I" and "gates*H H", biases of both products, the state."""

    t: Translation
    call: Call
    functions: tuple
    pre: int  # x W^T + Wb of all steps, "S B gates*H"
    recurrent: int  # R^T, "H gates*H"
    bias: int | None  # Rb, "gates*H"
    peepholes: int | None  # LSTM: "3*H" for the gates i, o, f
    hidden: int  # H

    def add(self, *parts: int | None) -> int:
        return reduce(lambda a, b: self.t.add(ops.Add(), a, b), (p for p in parts if p is not None))

    def mul(self, a: int, b: int) -> int:
        return self.t.add(ops.Mul(), a, b)

    def matmul(self, a: int, b: int) -> int:
        return self.t.add(ops.MatMul(), a, b)

    def part(self, x: int | None, k: int, count: int = 1) -> int | None:
        """The gates k to k + count along the last axis."""
        if x is None:
            return None
        shape = self.t.builder.type(x).shape
        start, stop = k * self.hidden, (k + count) * self.hidden
        return x if (start, stop) == (0, shape[-1]) else self.t.add(ops.Slice(len(shape) - 1, start, stop), x)

    def activate(self, k: int, x: int) -> int:
        clip = self.call.get("clip")
        if clip:
            x = self.t.add(ops.Clip(-float(clip), float(clip)), x)
        return self.t.add(self.functions[k](), x)

    def step(self, x: int, h: int, c: int | None) -> tuple[int, int | None]:
        """One step "B gates*H", "B H", "B H" -> the new h and c (ONNX's RNN, GRU and LSTM, in its order of gates)."""
        if self.call.op == "GRU":
            return self._gru(x, h), None
        gates = self.add(x, self.matmul(h, self.recurrent), self.bias)
        if self.call.op == "RNN":
            return self.activate(0, gates), None
        i, o, f, g = (self.part(gates, k) for k in range(4))
        peep_i, peep_o, peep_f = (self.part(self.peepholes, k) for k in range(3))

        def open_gate(value, peephole, cell):
            return self.activate(0, value if peephole is None else self.add(value, self.mul(cell, peephole)))

        kept = self.mul(open_gate(f, peep_f, c), c)
        c = self.add(kept, self.mul(open_gate(i, peep_i, c), self.activate(1, g)))
        return self.mul(open_gate(o, peep_o, c), self.t.add(self.functions[2](), c)), c

    def _gru(self, x: int, h: int) -> int:
        both = self.matmul(h, self.part(self.recurrent, 0, 2))
        both = self.activate(0, self.add(self.part(x, 0, 2), both, self.part(self.bias, 0, 2)))
        z, r = self.part(both, 0), self.part(both, 1)
        new, shift = self.part(self.recurrent, 2), self.part(self.bias, 2)
        if self.call.get("linear_before_reset", 0):
            inner = self.mul(r, self.add(self.matmul(h, new), shift))
        else:
            inner = self.add(self.matmul(self.mul(r, h), new), shift)
        candidate = self.activate(1, self.add(self.part(x, 2), inner))
        # (1 - z) candidate + z h, with z once
        return self.add(candidate, self.mul(z, self.t.add(ops.Sub(), h, candidate)))


def _check_shapes(t: Translation, call: Call) -> None:
    """x "S B I" (or "B S I"), weights "D gates*H I" and "D gates*H H", biases, first states and peepholes."""
    if any(len(t.shape(call, i)) != 3 for i in range(3)):
        raise ModelError(f"{t.where}: an input of {call.source} has not three axes")
    x, hidden = t.shape(call, 0), t.shape(call, 2)[-1]
    sides, gates = len(DIRECTIONS[call.get("direction", "forward")]), GATES[call.op]
    state = (x[0], sides, hidden) if call.get("layout", 0) else (sides, x[1], hidden)
    wanted = {1: (gates * hidden, x[2]), 2: (gates * hidden, hidden), 3: (2 * gates * hidden,), 7: (3 * hidden,)}
    for position, shape in ({k: (sides, *v) for k, v in wanted.items()} | {5: state, 6: state}).items():
        if call.has(position) and t.shape(call, position) != shape:
            found = t.shape(call, position)
            raise ModelError(f"{t.where}: input {position} of {call.source} has shape {found}; {shape} fits the others")


@translates("RNN", "GRU", "LSTM")
def recurrent(t: Translation, call: Call):
    _check_shapes(t, call)
    x, gates, hidden = t.node(call, 0), GATES[call.op], t.shape(call, 2)[-1]
    if call.get("layout", 0):
        x = t.add(ops.Permute((1, 0, 2)), x)
    steps, batch, _ = t.builder.type(x).shape
    reverse = DIRECTIONS[call.get("direction", "forward")]
    if steps > MOST_STEPS:
        raise Problem(f"{steps} steps; up to {MOST_STEPS} are supported")
    lengths = t.constant(call, 4, "sequence_lens").reshape(-1) if call.has(4) else np.full(batch, steps)
    names = [_text(n).lower() for n in call.get("activations") or USUAL[call.op] * len(reverse)]
    each = len(USUAL[call.op])
    if len(names) != each * len(reverse) or len(lengths) != batch:
        raise ModelError(f"{t.where}: {call.source} has activations {names} and {len(lengths)} sequence_lens")
    made = []
    for d, backwards in enumerate(reverse):
        functions = tuple(ACTIVATIONS[n] for n in names[d * each : (d + 1) * each])
        cell = _cell(t, call, x, d, functions, gates, hidden)
        state = [_state(t, call, i, d, batch, hidden) if i == 5 or gates == 4 else None for i in (5, 6)]
        made.append(_unroll(t, cell, state, steps, lengths, backwards))
    y = t.add(ops.Concat(1), *(side[0] for side in made)) if len(reverse) > 1 else made[0][0]
    last = [t.add(ops.Concat(0), *parts) if len(parts) > 1 else parts[0] for parts in _ends(t, call, made)]
    if call.get("layout", 0):
        y = t.add(ops.Permute((2, 0, 1, 3)), y)
        last = [t.add(ops.Permute((1, 0, 2)), state) for state in last]
    return (y, *last)


def _ends(t: Translation, call: Call, sides) -> list[list[int]]:
    """Per output behind the first: the last state of each direction, "1 B H"."""
    count = 2 if call.op == "LSTM" else 1
    return [[t.reshape(side[k], (1, *t.builder.type(side[k]).shape)) for side in sides] for k in range(1, 1 + count)]


def _direction(t: Translation, call: Call, position: int, d: int) -> int | None:
    """What an input with a leading axis of directions holds for one of them."""
    if not call.has(position):
        return None
    node, shape = t.node(call, position), t.shape(call, position)
    return t.reshape(node if shape[0] == 1 else t.add(ops.Slice(0, d, d + 1), node), shape[1:])


def _cell(t: Translation, call: Call, x: int, d: int, functions, gates: int, hidden: int) -> Cell:
    weights, recurrent = (t.add(ops.Permute((1, 0)), _direction(t, call, i, d)) for i in (1, 2))
    bias, peepholes = _direction(t, call, 3, d), _direction(t, call, 7, d) if call.op == "LSTM" else None
    pre, half = t.add(ops.MatMul(), x, weights), gates * hidden
    if bias is not None:
        pre = t.add(ops.Add(), pre, t.add(ops.Slice(0, 0, half), bias))
        bias = t.add(ops.Slice(0, half, 2 * half), bias)
    return Cell(t, call, functions, pre, recurrent, bias, peepholes, hidden)


def _state(t: Translation, call: Call, position: int, d: int, batch: int, hidden: int) -> int:
    if not call.has(position):
        return t.param(np.zeros((batch, hidden), dtype=np.float32), f"{call.name}.start")
    if not call.get("layout", 0):
        return _direction(t, call, position, d)
    return t.reshape(t.add(ops.Slice(1, d, d + 1), t.node(call, position)), (batch, hidden))


def _unroll(t: Translation, cell: Cell, state: list, steps: int, lengths: np.ndarray, backwards: bool):
    """All outputs "S 1 B H" and the last states; beyond its length a sequence keeps its state and gives zeros."""
    h, c = state
    batch = len(lengths)
    zeros = t.param(np.zeros((batch, cell.hidden), dtype=np.float32), f"{cell.call.name}.zeros")
    made: list[int] = [zeros] * steps
    for k in reversed(range(steps)) if backwards else range(steps):
        x = t.reshape(t.add(ops.Slice(0, k, k + 1), cell.pre), t.builder.type(cell.pre).shape[1:])
        new_h, new_c = cell.step(x, h, c)
        out = new_h
        if (lengths <= k).any():
            running = t.param((lengths > k).astype(np.float32).reshape(batch, 1), f"{cell.call.name}.running")
            out = t.add(ops.Where(), running, new_h, zeros)
            new_h = t.add(ops.Where(), running, new_h, h)
            new_c = t.add(ops.Where(), running, new_c, c) if c is not None else None
        h, c = new_h, new_c
        made[k] = t.reshape(out, (1, 1, batch, cell.hidden))
    return t.add(ops.Concat(0), *made) if steps > 1 else made[0], h, c
