"""The linear domain in dual form: rows go back from a node to the inputs (CROWN, CAP, alpha, beta are its knobs)."""

from absdom.domains.linear import balls, duals, recipe, sdp_crown
from absdom.domains.linear.recipe import Linear

__all__ = ["Linear", "balls", "duals", "recipe", "sdp_crown"]
