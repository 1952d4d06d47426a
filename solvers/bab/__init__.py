"""Complete search: batched best-first branch and bound, on the input box or on ReLU phases."""

from __future__ import annotations

from absdom import registry
from absdom.registry import register_service
from absdom.solvers.bab.input_split import InputSplit
from absdom.solvers.bab.relu_split import relu_split, splittable

FEW_INPUTS = 16


def free_inputs(problem) -> int:
    """The largest number of inputs that really vary in one box."""
    inputs = problem.property.inputs
    return int((inputs.upper > inputs.lower).sum(1).max(initial=0))


@register_service("bab")
def bab(problem, confirm, clock, progress=None):
    """(problem, witness or None, leaves, least open bound, note)."""
    recipe = registry.recipes()["crown"]()
    show = None
    if progress is not None:

        def show(bounded, open_, least):
            progress(f"branch and bound: {bounded} leaves bounded, {open_} open, least bound {least:.4g}")

    if free_inputs(problem) > FEW_INPUTS and splittable(problem):
        return (*relu_split(problem, recipe, confirm, clock, show), "ReLU phases")
    search = InputSplit(problem, recipe, confirm, clock, show)
    return (*search.run(), "input split")
