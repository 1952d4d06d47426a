"""Linear programs over an encoding: `backend` (solvers, no torch), `recipe` (bounds)."""
