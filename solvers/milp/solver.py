"""Mixed-integer solvers over an encoding: HiGHS, scipy's copy of it, and all that PuLP can call. None is believed.

What comes back is a point and a claim; proofs are made by `tree`. No torch here: worker processes import this.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from absdom.encoding import Encoding, Objective
from absdom.errors import UsageError
from absdom.solvers.milp.export import import_pulp, to_pulp

NAMES = {"cbc": "PULP_CBC_CMD", "gurobi": "GUROBI", "scip": "SCIP_PY", "mosek": "MOSEK"}  # short ones, and PuLP's
EXTRAS = ("gurobi", "scip", "mosek")  # of our package, each brings the solver of its name


class Reply(NamedTuple):
    """What a solver said: "optimal", "infeasible", "stopped" or "failed"; its best value (NaN) and point "N" (None)."""

    status: str
    value: float = math.nan
    point: np.ndarray | None = None


def solver_name(name: str) -> str:
    """The solver that a name stands for: "highs", "scipy", or one of PuLP's. Raises UsageError for one that is not
    there."""
    if name in ("auto", "highs"):
        try:
            import highspy  # noqa: F401
        except ImportError:
            if name == "auto":
                return "scipy"
            raise UsageError(
                "solver 'highs' needs the package highspy, which is not installed: pip install 'absdom[solvers]', "
                "or choose solver=scipy"
            ) from None
        return "highs"
    if name == "scipy":
        return name
    pulp = import_pulp(f"solver {name!r}")
    known = NAMES.get(name, name)
    if known not in pulp.listSolvers():
        raise UsageError(
            f"solver {name!r}: there is no such mixed-integer solver; choose auto, highs, scipy, {', '.join(NAMES)}, "
            f"or one of PuLP's, {', '.join(dict.fromkeys(pulp.listSolvers()))}"
        )
    if known not in pulp.listSolvers(onlyAvailable=True):
        there = ", ".join(dict.fromkeys(pulp.listSolvers(onlyAvailable=True))) or "none"
        install = f": pip install 'absdom[{name}]', or choose another" if name in EXTRAS else ""
        raise UsageError(f"solver {name!r} is not installed (PuLP finds {there}){install}")
    return known


def solve(
    encoding: Encoding,
    objective: Objective,
    solver: str = "auto",
    limit: float = math.inf,
    gap: float = 1e-5,
    goal: float | None = None,
    start: np.ndarray | None = None,
    tolerance: float | None = None,
) -> Reply:
    """The least objective over the encoding, as a solver sees it, within `limit` seconds.

    gap: relative; goal: a value at or below it is good enough; start "N": a point to start from; tolerance: how far
    the solver may miss rows and whole numbers (None: its default).
    """
    name = solver_name(solver)
    if name == "highs":
        return _highs(encoding, objective, limit, gap, goal, start, tolerance)
    if name == "scipy":
        return _scipy(encoding, objective, limit, gap)
    return _pulp(name, encoding, objective, limit, gap, start)


def _highs(encoding, objective, limit, gap, goal, start, tolerance) -> Reply:
    import highspy

    model, matrix, program = highspy.Highs(), encoding.matrix, highspy.HighsLp()
    options = {"output_flag": False, "threads": 1, "parallel": "off", "random_seed": 0, "mip_rel_gap": gap}
    options |= {"time_limit": limit, "objective_target": -math.inf if goal is None else goal - objective.constant}
    if tolerance is not None:
        names = ("mip_feasibility_tolerance", "primal_feasibility_tolerance", "dual_feasibility_tolerance")
        options |= dict.fromkeys(names, tolerance)
    for name, value in options.items():
        model.setOptionValue(name, value)
    program.num_row_, program.num_col_ = matrix.shape
    program.col_cost_, program.offset_ = objective.slope, objective.constant
    program.col_lower_, program.col_upper_ = encoding.lower, encoding.upper
    program.row_lower_, program.row_upper_ = encoding.low, encoding.high
    kinds = highspy.HighsVarType
    program.integrality_ = [kinds.kInteger if whole else kinds.kContinuous for whole in encoding.integer]
    held = program.a_matrix_
    held.format_, held.num_row_, held.num_col_ = highspy.MatrixFormat.kRowwise, *matrix.shape
    held.start_, held.index_, held.value_ = matrix.indptr, matrix.indices, matrix.data
    model.passModel(program)
    if start is not None:
        solution = highspy.HighsSolution()
        solution.col_value = list(start)
        model.setSolution(solution)
    model.run()
    said, status = model.getModelStatus(), highspy.HighsModelStatus
    if said in (status.kInfeasible, status.kUnboundedOrInfeasible):
        return Reply("infeasible")
    info, point = model.getInfo(), np.array(model.getSolution().col_value)
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible or len(point) != matrix.shape[1]:
        return Reply("stopped")
    return Reply("optimal" if said == status.kOptimal else "stopped", info.objective_function_value, point)


def _scipy(encoding, objective, limit, gap) -> Reply:
    from scipy.optimize import Bounds, LinearConstraint, milp

    options = {"mip_rel_gap": gap} | ({"time_limit": limit} if math.isfinite(limit) else {})
    rows = LinearConstraint(encoding.matrix, encoding.low, encoding.high)
    found = milp(
        objective.slope, integrality=encoding.integer.astype(np.int64), bounds=Bounds(encoding.lower, encoding.upper),
        constraints=rows if encoding.matrix.shape[0] else None, options=options,
    )  # fmt: skip
    status = {0: "optimal", 1: "stopped", 2: "infeasible"}.get(found.status, "failed")
    return Reply(status) if found.x is None else Reply(status, found.fun + objective.constant, found.x)


def _pulp(name, encoding, objective, limit, gap, start) -> Reply:
    pulp = import_pulp(f"solver {name!r}")
    problem, variables = to_pulp(encoding, objective)
    options = {"msg": False, "gapRel": gap} | ({"timeLimit": limit} if math.isfinite(limit) else {})
    if start is not None:
        for variable, value in zip(variables, start, strict=True):
            variable.setInitialValue(round(value) if variable.cat == pulp.LpInteger else value, check=False)
        options["warmStart"] = True
    try:
        problem.solve(pulp.getSolver(name, **options))
    except pulp.PulpSolverError:
        return Reply("failed")
    values = [v.varValue for v in variables]
    if problem.status == pulp.LpStatusInfeasible:
        return Reply("infeasible")
    if problem.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible) or None in values:
        return Reply("stopped")
    point = np.array(values, dtype=np.float64)
    optimal = problem.sol_status == pulp.LpSolutionOptimal
    return Reply("optimal" if optimal else "stopped", float(objective.slope @ point) + objective.constant, point)
