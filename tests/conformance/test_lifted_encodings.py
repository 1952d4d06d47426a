"""Encodings no network has: numbers of all sizes, points that use up every slack, columns defined twice."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse as sp

from absdom.encoding import Encoding, Objective, Quadratics
from absdom.solvers.sdp import products
from absdom.solvers.sdp.lift import lift
from absdom.solvers.sdp.safe import Multipliers, safe_bound

SIZES = {"ordinary": (-1, 1), "mixed": (-9, 9), "small": (-150, -100), "large": (-3, 8)}
INPUTS, COLUMNS, ROWS, FORMS = 3, 9, 4, 4


def above(x: Fraction) -> float:
    """A float of at least x."""
    rounded = float(x)
    return rounded if Fraction(rounded) >= x else float(np.nextafter(rounded, np.inf))


class Made:
    """A random encoding with one of its points, exactly; columns behind the inputs are mostly defined by rows."""

    def __init__(self, seed: int, exponents: tuple[int, int]):
        self.random, self.exponents = np.random.default_rng(seed), exponents
        self.point: list[Fraction] = []
        self.bounds, self.rows = [], []  # (lower, upper), ({column: value}, low, high, slack)
        for j in range(COLUMNS):
            self.free_column() if j < INPUTS or self.random.random() < 0.2 else self.defined_column(j)
        for _ in range(ROWS):
            terms = self.terms(COLUMNS, 3)
            act = self.at(terms)
            side = float(act) * (1 - 1e-10 * (self.random.random() < 0.5))
            slack = above(abs(act - Fraction(side)))
            self.rows.append((terms, *((-np.inf, side) if self.random.random() < 0.5 else (side, np.inf)), slack))
        lower, upper = np.array(self.bounds).T
        matrix = np.zeros((len(self.rows), COLUMNS))
        for k, (terms, *_) in enumerate(self.rows):
            matrix[k, list(terms)] = list(terms.values())
        low, high, slack = np.array([r[1:] for r in self.rows]).T
        columns = np.arange(COLUMNS)
        self.encoding = Encoding(
            lower, upper, sp.csr_matrix(matrix), low, high, slack, np.zeros(COLUMNS, dtype=bool),
            np.where(columns < INPUTS, 0, columns), columns[:INPUTS], columns, self.forms(),
        )  # fmt: skip

    def number(self) -> float:
        return float(self.random.choice([-1, 1]) * 10.0 ** self.random.uniform(*self.exponents))

    def terms(self, columns: int, count: int) -> dict[int, float]:
        return {int(c): self.number() for c in self.random.choice(columns, count, replace=False)}

    def at(self, terms: dict[int, float]) -> Fraction:
        return sum((Fraction(a) * self.point[c] for c, a in terms.items()), Fraction(0))

    def free_column(self) -> None:
        centre = self.number()
        width = (0.0, 1e-12, 5e-324, abs(self.number()), 1e-15 * abs(centre))[self.random.integers(5)]
        low, high = centre - width, centre + width
        self.bounds.append((low, high))
        self.point.append(Fraction(low) + (Fraction(high) - Fraction(low)) * int(self.random.integers(17)) / 16)

    def defined_column(self, j: int) -> None:
        terms, bias, sign = self.terms(j, int(self.random.integers(min(j, 4))) + 1), self.number(), self.number()
        slack = (0.0, 1e-10 * abs(self.number()), abs(self.number()))[self.random.integers(3)]
        value = Fraction(bias) + self.at(terms) + Fraction(slack) * int(self.random.integers(-1, 2))
        sign = float(np.sign(sign))
        self.rows.append(({j: sign} | {c: -sign * a for c, a in terms.items()}, sign * bias, sign * bias, slack))
        room = [Fraction(abs(self.number())) * int(self.random.random() < 0.7) for _ in range(2)]
        self.bounds.append((-above(room[0] - value), above(value + room[1])))
        self.point.append(value)
        if self.random.random() < 0.3:
            again = {j: 1.0} | {c: -a for c, a in self.terms(j, 1).items()}
            act = self.at(again)
            self.rows.append((again, float(act), float(act), above(abs(act - Fraction(float(act))))))

    def forms(self) -> Quadratics:
        equality, parts = self.random.random(FORMS) < 0.5, []
        linear, constant, slack = np.zeros((FORMS, COLUMNS)), np.zeros(FORMS), np.zeros(FORMS)
        for q in range(FORMS):
            terms = self.terms(COLUMNS, 2)
            total, linear[q, list(terms)] = self.at(terms), list(terms.values())
            for _ in range(self.random.integers(5)):
                i, j = (int(t) for t in self.random.integers(COLUMNS, size=2))
                parts.append((q, i, j, self.number()))
                total += Fraction(parts[-1][3]) * self.point[i] * self.point[j]
            constant[q] = -float(total) * (1 - (0.0, 0.1)[self.random.integers(2)])
            slack[q] = above(abs(total + Fraction(constant[q])))
        form, first, second, value = (np.array(t) for t in zip(*parts, strict=True))
        none = np.zeros(FORMS, dtype=bool)
        return Quadratics(form, first, second, value, sp.csr_matrix(linear), constant, equality, slack, none)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("by_layer", [False, True])
def test_no_multipliers_prove_more_than_a_point_has(size, by_layer):
    for seed in range(10):
        made = Made(seed, SIZES[size])
        random = made.random
        slope = np.array([made.number() for _ in range(COLUMNS)]) * (random.random(COLUMNS) < 0.6)
        objective = Objective(slope, made.number())
        true = made.at(dict(enumerate(slope))) + Fraction(objective.constant)
        lifted = products.with_equalities(lift(made.encoding, objective, by_layer))
        pairs = random.integers(0, lifted.rows.shape[0] + 2 * lifted.order - 2, (2, 12 * (lifted.order > 1)))
        lifted = products.with_products(lifted, *pairs)
        for factor in (0.0, 1.0, 1e150):
            y = [t * random.standard_normal(t.shape) * 10.0 ** random.uniform(-5, 8, t.shape)
                 * (random.random(t.shape) < 0.4)
                 for t in (np.full(n, factor) for n in (lifted.rows.shape[0], lifted.form_count, lifted.order - 1))]  # fmt: skip
            bound = safe_bound(lifted, Multipliers(*y))
            assert np.isfinite(bound) and Fraction(bound) <= true, seed
