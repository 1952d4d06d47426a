"""The last word on a leaf whose neurons are all fixed: there the network is affine, and an LP over the inputs decides.

    minimise t  subject to  every row of the clause <= t,  sign_j z_j(x) <= 0 for every split neuron j,  x in the box

The LP is solved in floats and not believed: its multipliers go into one charged float64 sweep, which proves or does
not. Where the LP is infeasible, the multipliers of its least violation, scaled up, do the same (a Farkas proof).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linprog

from absdom.arithmetic import Arithmetic
from absdom.constraints import Constraints
from absdom.plan import run, sweeps
from absdom.plan.planner import sweep_from
from absdom.rows import Rows
from absdom.sets import InputBatch

LARGEST = 4000  # split neurons


def close_leaf(search, leaf) -> bool:
    """Is the one leaf in `leaf` refuted? A point that refutes the property goes to the search's judge."""
    if not 0 < search.neurons <= LARGEST:
        return False
    with torch.no_grad():
        program = _Program(search, leaf)
    weights, beta, point = program.solve()
    if weights is None:
        return False
    if point is not None:
        search.witness = search.confirm(search.box, point)
        if search.witness is not None:
            return False
    with torch.no_grad():
        return program.prove(weights, beta) > 0


class _Program:
    """The affine maps of one leaf: rows and split neurons as g.x + h, and the LP over them."""

    def __init__(self, search, leaf):
        self.search, self.leaf = search, leaf
        self.bounds = search.bounds(search.proof, leaf.phase)
        self.exact = Arithmetic(torch.float64)
        self.context = search.problem.engine.context(search.recipe, self.exact)
        self.batch = InputBatch.of(search.problem.property.inputs.select([search.box]), self.exact)
        self.low, self.high = (t[0].cpu().numpy() for t in (self.batch.lower, self.batch.upper))
        row, _ = search.rows(leaf)
        spec = search.spec
        self.C = self.context.arithmetic.tensor(spec.C[row].toarray())
        self.d = self.context.arithmetic.tensor(spec.d[row])
        g, h = self._map(search.proof.schedule.final, Rows.dense_rows(self.C, 1))
        self.rows = g, h + spec.d[row]
        parts = []
        for _, source, position, start in search.readers:
            sign = torch.ones(len(position), dtype=torch.float64, device=position.device)
            shape = search.graph.nodes[source].type.shape
            g, h = self._map(sweep_from(search.graph, source), Rows.one_hot(position, sign, shape, 1))
            phase = leaf.phase[0, start : start + len(position)].cpu().numpy().astype(float)
            parts.append((-phase[:, None] * g, -phase * h))
        self.splits = tuple(np.concatenate(p) for p in zip(*parts, strict=True))

    def _map(self, plan, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        if rows.count == 0:
            return np.zeros((0, len(self.low))), np.zeros(0)
        seen: dict = {}
        value = sweeps.sweep(self.context, plan, self.search.recipe, self.batch, self.bounds, rows, {}, trace=seen)
        g = sweeps.input_slopes(self.search.graph, seen, rows)
        return g.cpu().numpy(), (value - self.batch.support(Rows.dense_rows(g, 1), self.exact)).cpu().numpy()

    def solve(self):
        """(weights of the rows, multipliers of the splits, point or None); weights None: the LP gave no answer."""
        (G, h), (S, s) = self.rows, self.splits
        n = G.shape[1]
        box = [*zip(self.low, self.high, strict=True), (None, None)]
        column = np.concatenate([-np.ones(len(G)), np.zeros(len(S))])[:, None]
        matrix, rhs = np.hstack([np.vstack([G, S]), column]), -np.concatenate([h, s])
        found = linprog(np.append(np.zeros(n), 1.0), matrix, rhs, bounds=box)
        if found.status == 0:
            force = np.maximum(-found.ineqlin.marginals, 0)
            weights = force[: len(G)] / max(force[: len(G)].sum(), 1e-300)
            return weights, force[len(G) :], found.x[:n] if found.fun <= 0 else None
        if found.status != 2:
            return None, None, None
        least = linprog(np.append(np.zeros(n), 1.0), np.hstack([S, -np.ones((len(S), 1))]), -s, bounds=box)
        if least.status != 0 or least.fun <= 0:
            return None, None, None
        weights = np.eye(len(G))[0]
        worst = abs(np.minimum(G[0] * self.low, G[0] * self.high).sum() + h[0]) + 1
        return weights, np.maximum(-least.ineqlin.marginals, 0) * 4 * worst / least.fun, None

    def prove(self, weights: np.ndarray, beta: np.ndarray) -> float:
        """The charged float64 bound of the weighted sum of the rows, with these multipliers on the splits."""
        search, proof = self.search, self.search.proof
        force = proof.arithmetic.tensor(beta)[None]
        knobs, items = search.knobs(proof, self.leaf, self.leaf.slope.double(), force, self.bounds)
        mix = proof.arithmetic.tensor(weights)[None]
        value = run.row_bounds(
            proof, search.batch[proof], self.bounds, Rows.dense_rows(mix @ self.C, 1), mix @ self.d, None,
            constraints=Constraints.of(*items), knobs=knobs,
        )  # fmt: skip
        # The mixture of rows was rounded: pay for it as for one more layer of as many terms.
        target = self.bounds[search.proof.schedule.target]
        reach = mix @ (self.C.abs() @ target.magnitude()[0].flatten() + self.d.abs())
        return float(value - reach * proof.arithmetic.gamma(len(weights) + 2))
