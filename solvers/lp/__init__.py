"""Linear programs over an encoding."""

from absdom.solvers.lp.recipe import LinearProgram as LinearProgram
