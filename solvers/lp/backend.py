"""Linear programs over an Encoding with a solver that is not believed: HiGHS through highspy, else scipy's copy of it.

What comes back is a point and multipliers of any quality; claims are made by `Encoding.safe_bound` alone. Whole
numbers are relaxed, quadratic forms left out. No torch here: worker processes import this.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from absdom.encoding import Encoding, Objective
from absdom.errors import UsageError
from absdom.solvers.lp.scaling import Units

SOLVERS = ("auto", "highs", "scipy")
LARGE = 20_000  # entries of programs that interior points solve faster than the simplex method from scratch
STEPS = 1000  # of the simplex method from the last basis, in such programs


class Solution(NamedTuple):
    """What a solver said: "optimal", "infeasible", "stopped" (a limit) or "failed".

    value: its claim of the least objective, constant included (NaN: none); point "N" or None; multipliers "M" in the
    signs of `Encoding.safe_bound`: of an infeasible program a ray, with which the safe bound of the objective 0 is 1;
    all zero where the solver gave none.
    """

    status: str
    value: float
    point: np.ndarray | None
    multipliers: np.ndarray


class Program(ABC):
    """Minimise several objectives over the rows of one encoding, one after the other."""

    def __init__(self, encoding: Encoding, tolerance: float | None):
        self.encoding, self.tolerance = encoding, tolerance
        self.rows = encoding.matrix.shape[0]  # without those that are added
        self.units = Units.of(encoding)
        self.scaled = self.units.encoding(encoding)  # what the solver sees

    def minimise(
        self, objective: Objective, lower: np.ndarray | None = None, upper: np.ndarray | None = None,
        limit: float = math.inf,
    ) -> Solution:  # fmt: skip
        """The least objective with the columns in [lower, upper] "N" (None: the encoding's), within `limit` seconds."""
        lower = self.encoding.lower if lower is None else lower
        upper = self.encoding.upper if upper is None else upper
        if limit <= 0:
            return Solution("stopped", math.nan, None, np.zeros(self.encoding.matrix.shape[0]))
        # Claims that cross close nothing here: their hull is what the rows see.
        inner, weight = self.units.objective(objective)
        below, above = np.minimum(lower, upper), np.maximum(lower, upper)
        found = self._run(inner, self.units.columns(below), self.units.columns(above), limit)
        multipliers = found.multipliers * self.units.weight
        if found.status != "infeasible":
            point = None if found.point is None else self.units.middle + self.units.size * found.point
            value = found.value / weight + float(objective.slope @ self.units.middle) + objective.constant
            return Solution(found.status, value, point, multipliers / weight)
        ray = self._unit_ray(multipliers, lower, upper)
        return found._replace(multipliers=ray) if ray is not None else found._replace(
            status="failed", multipliers=np.zeros_like(found.multipliers)
        )  # fmt: skip

    def _unit_ray(self, ray: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray | None:
        """The ray, in the sign and size that prove 1 <= 0; None: it proves nothing."""
        size = np.abs(ray).max(initial=0.0)
        if not 0 < size < math.inf:
            return None
        zero = Objective(np.zeros(len(lower)))
        for unit in (ray / size, -ray / size):
            gain = self.encoding.safe_bound(zero, unit, lower, upper)
            if gain > 0:
                return unit / gain
        return None

    def add_rows(self, encoding: Encoding) -> None:
        """Go on with an encoding that has further rows behind those of this one."""
        self.encoding, self.units = encoding, self.units.with_rows(encoding.matrix)
        start, self.scaled = self.scaled.matrix.shape[0], self.units.encoding(encoding)
        self._added(start)

    @abstractmethod
    def _added(self, start: int) -> None:
        """The scaled program has got rows, from `start` on."""

    @abstractmethod
    def _run(self, objective: Objective, lower: np.ndarray, upper: np.ndarray, limit: float) -> Solution:
        """As `minimise`, of the scaled program; of an infeasible one any ray, in any sign."""


def demand_solver(solver: str) -> None:
    """Raises UsageError where there is no such solver, or where it is not installed."""
    if solver not in SOLVERS:
        raise UsageError(
            f"solver {solver!r}: there is no such linear program solver; choose one of {', '.join(SOLVERS)}"
        )
    if solver == "highs" and not _has_highspy():
        raise UsageError(
            "solver 'highs' needs the package highspy, which is not installed: pip install 'absdom[solvers]', or "
            "choose solver=scipy"
        )


def open_program(encoding: Encoding, solver: str = "auto", tolerance: float | None = None) -> Program:
    """A program over the encoding; `tolerance`: how far the solver may miss rows and optimality (None: its default)."""
    demand_solver(solver)
    kind = ScipyProgram if solver == "scipy" or not _has_highspy() else HighsProgram
    return kind(encoding, tolerance)


def _has_highspy() -> bool:
    try:
        import highspy  # noqa: F401
    except ImportError:
        return False
    return True


class HighsProgram(Program):
    """A model of HiGHS that is kept: a solve starts from the basis of the one before."""

    def __init__(self, encoding: Encoding, tolerance: float | None):
        import highspy

        super().__init__(encoding, tolerance)
        self.highspy, self.model = highspy, highspy.Highs()
        options = {"output_flag": False, "threads": 1, "parallel": "off", "random_seed": 0}
        options["simplex_strategy"] = 0  # dual where bounds changed, primal where costs did
        if tolerance is not None:
            names = ("primal_feasibility_tolerance", "dual_feasibility_tolerance", "ipm_optimality_tolerance")
            options |= dict.fromkeys(names, tolerance)
        for name, value in options.items():
            self.model.setOptionValue(name, value)
        encoding, program = self.scaled, highspy.HighsLp()
        m = encoding.matrix
        program.num_row_, program.num_col_ = m.shape
        program.col_cost_ = np.zeros(m.shape[1])
        program.col_lower_, program.col_upper_ = encoding.lower, encoding.upper
        program.row_lower_, program.row_upper_ = encoding.low, encoding.high
        matrix = program.a_matrix_
        matrix.format_ = highspy.MatrixFormat.kRowwise
        matrix.num_row_, matrix.num_col_ = m.shape
        matrix.start_, matrix.index_, matrix.value_ = m.indptr, m.indices, m.data
        self.model.passModel(program)
        self._every = np.arange(m.shape[1], dtype=np.int32)
        self._bounds = (encoding.lower, encoding.upper)

    def _added(self, start):
        more = self.scaled.matrix[start:]
        self.model.addRows(
            more.shape[0], self.scaled.low[start:], self.scaled.high[start:], more.nnz,
            more.indptr.astype(np.int32), more.indices.astype(np.int32), more.data,
        )  # fmt: skip

    def _run(self, objective, lower, upper, limit):
        model, every, status = self.model, self._every, self.highspy.HighsModelStatus
        model.changeColsCost(len(every), every, objective.slope)
        if not (np.array_equal(lower, self._bounds[0]) and np.array_equal(upper, self._bounds[1])):
            model.changeColsBounds(len(every), every, lower, upper)
            self._bounds = (lower.copy(), upper.copy())
        model.setOptionValue("time_limit", limit + model.getRunTime() if math.isfinite(limit) else math.inf)
        said = self._ask()
        if said in (status.kInfeasible, status.kUnboundedOrInfeasible):
            return Solution("infeasible", math.inf, None, self._ray())
        solution = model.getSolution()
        multipliers = np.zeros(len(self.scaled.low))
        if solution.dual_valid:
            multipliers = np.array(solution.row_dual)
        if said == status.kOptimal:
            value = model.getInfo().objective_function_value + objective.constant
            return Solution("optimal", value, np.array(solution.col_value), multipliers)
        stopped = said in (status.kTimeLimit, status.kIterationLimit, status.kObjectiveBound, status.kObjectiveTarget)
        return Solution("stopped" if stopped else "failed", math.nan, None, multipliers)

    def _ask(self):
        """The status of the model. A large one is first solved by interior points; later ones start from the last
        basis, and leave it where that takes too many steps."""
        model, status = self.model, self.highspy.HighsModelStatus
        large = self.scaled.matrix.nnz > LARGE
        if not large or model.getBasis().valid:
            model.setOptionValue("solver", "simplex")
            model.setOptionValue("simplex_iteration_limit", STEPS if large else 2**31 - 1)
            model.run()
            if model.getModelStatus() != status.kIterationLimit:
                return model.getModelStatus()
        model.clearSolver()
        model.setOptionValue("solver", "ipm")
        model.setOptionValue("simplex_iteration_limit", 2**31 - 1)
        model.run()
        return model.getModelStatus()

    def _ray(self) -> np.ndarray:
        """Presolve finds no ray: where there is none yet, the simplex method is asked again without it."""
        _, found, ray = self.model.getDualRay()
        if not found:
            self.model.clearSolver()
            self.model.setOptionValue("solver", "simplex")
            self.model.setOptionValue("simplex_iteration_limit", 2**31 - 1)
            self.model.setOptionValue("presolve", "off")
            self.model.run()
            self.model.setOptionValue("presolve", "choose")
            _, found, ray = self.model.getDualRay()
        return np.array(ray) if found else np.zeros(len(self.scaled.low))


class ScipyProgram(Program):
    """scipy.optimize.linprog, from the start each time."""

    def _added(self, start):
        pass

    def _run(self, objective, lower, upper, limit):
        found, multipliers = self._solve(objective.slope, self.scaled.matrix, lower, upper, limit)
        if found.status == 0:
            return Solution("optimal", found.fun + objective.constant, found.x, multipliers)
        if found.status == 2:
            return Solution("infeasible", math.inf, None, self._ray(lower, upper, limit))
        return Solution("stopped" if found.status == 1 else "failed", math.nan, None, multipliers)

    def _ray(self, lower, upper, limit) -> np.ndarray:
        """The multipliers of the least sum of violations prove that it is not 0."""
        rows = self.scaled.matrix.shape[0]
        matrix = sp.hstack([self.scaled.matrix, sp.eye_array(rows), -sp.eye_array(rows)]).tocsr()
        cost = np.concatenate([np.zeros(len(lower)), np.ones(2 * rows)])
        below = np.concatenate([lower, np.zeros(2 * rows)])
        above = np.concatenate([upper, np.full(2 * rows, np.inf)])
        return self._solve(cost, matrix, below, above, limit)[1]

    def _solve(self, cost, matrix, lower, upper, limit):
        from scipy.optimize import linprog

        low, high = self.scaled.low, self.scaled.high
        up, down = np.flatnonzero(np.isfinite(high) & (high != low)), np.flatnonzero(np.isfinite(low) & (high != low))
        same = np.flatnonzero(low == high)
        options = {"time_limit": limit}
        if self.tolerance is not None:
            options |= dict.fromkeys(("primal_feasibility_tolerance", "dual_feasibility_tolerance"), self.tolerance)
        found = linprog(
            cost, sp.vstack([matrix[up], -matrix[down]]), np.concatenate([high[up], -low[down]]), matrix[same],
            low[same], np.stack([lower, upper], 1), method="highs-ipm" if matrix.nnz > LARGE else "highs",
            options=options,
        )  # fmt: skip
        multipliers = np.zeros(matrix.shape[0])
        if found.get("eqlin") is not None and found.eqlin.marginals is not None and found.status == 0:
            multipliers[same] = found.eqlin.marginals
            multipliers[up] += found.ineqlin.marginals[: len(up)]
            multipliers[down] -= found.ineqlin.marginals[len(up) :]
        return found, multipliers
