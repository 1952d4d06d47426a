"""A program of your own: the linear relaxation, case by case for the binaries that it leaves most undecided.

Of a solver's answer only the multipliers count: `safe_bound` makes a bound of any multipliers, so that there is nothing
to get wrong about solvers. (An EncodingRule says how an op becomes rows; see domains/encoded.)
Run: absdom bound MODEL PROPERTY --plugin examples/07_own_program.py --method 'cases(count=5)'
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

from absdom.domain import Answer, Encoded, Question, Recipe
from absdom.domains.linear import Linear
from absdom.encoding import Style
from absdom.registry import register_recipe
from absdom.solvers.lp.backend import open_program


@register_recipe("cases")
@dataclass(frozen=True)
class Cases(Encoded):
    pre: Recipe = Linear()  # the bounds of the inner layers
    count: int = 4
    budget: float = 4000.0  # MB
    name = "cases"
    style = Style(integers=True)

    def solve(self, question: Question) -> Answer:
        encoding = question.encode(self.style)
        found = [self.bound(encoding, question, question.group == g) for g in range(question.groups)]
        return Answer(*(np.array(part) for part in zip(*found)))

    def bound(self, encoding, question: Question, rows: np.ndarray) -> tuple:
        """(the least bound of all cases, the relaxation's value, the inputs where it is attained)."""
        encoding, objective = encoding.least(question.C[rows].toarray(), question.d[rows])
        program = open_program(encoding)
        root = program.minimise(objective, limit=question.clock.left())
        if root.point is None:
            return -np.inf, np.nan, np.full(len(encoding.inputs), np.nan)
        undecided = encoding.integer * np.abs(root.point - root.point.round())
        split = undecided.argsort()[::-1][: self.count]
        split, least = split[undecided[split] > 0], np.inf
        for ends in product((0.0, 1.0), repeat=len(split)):
            lower, upper = encoding.lower.copy(), encoding.upper.copy()
            lower[split] = upper[split] = ends
            y = program.minimise(objective, lower, upper, question.clock.left()).multipliers
            # Of an empty case the multipliers are a ray: the further along, the higher the bound.
            least = min(least, max(encoding.safe_bound(objective, s * y, lower, upper) for s in (1.0, 1e6)))
        return least, root.value, root.point[encoding.inputs]
