"""Mixed-integer programs over an encoding: solvers for incumbents (`solver`), a search tree for proofs (`tree`)."""
