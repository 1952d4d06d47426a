"""Programs are never looser than what they relax less: on 50 random small networks, over identical intermediate bounds.

    CAP, CROWN <= alpha-CROWN <= LP <= SDP with triangle rows <= MILP = exact

What a program claims is compared, since a solver stops at its tolerance: SOLVED for simplex, FIRST_ORDER for splitting
and first-order methods. The safe bounds are compared with the exact minimum, and with no tolerance.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exact_phases import phases
from program_answers import Asked, needs
from tiny_networks import KINDS, tiny

from absdom import registry

SWEPT = {
    "cap": "linear(pre=crown, slope=parallel)", "crown": "linear(pre=crown)", "alpha": "ascent(linear(pre=crown))",
}  # fmt: skip
PROGRAMS = {"lp": "lp(pre=crown)", "milp": "milp(pre=crown, gap=1e-7)"}
SOLVED = 1e-6  # relative to 1 + the size of the values
FIRST_ORDER = 1e-3


def same_bounds(one: Asked, two: Asked) -> bool:
    shared = set(one.bounds) & set(two.bounds)
    return shared == set(two.bounds) and all(
        torch.equal(one.bounds[i].lower, two.bounds[i].lower) and torch.equal(one.bounds[i].upper, two.bounds[i].upper)
        for i in shared
    )


def frozen(net, recipes: dict[str, str]) -> dict[str, Asked]:
    """The recipes over the same intermediate bounds; only the target's own may differ."""
    asked = {name: Asked(net.graph, net.lower, net.upper, recipe) for name, recipe in recipes.items()}
    first = next(iter(asked.values()))
    assert all(same_bounds(first, other) for other in asked.values())
    return asked


@pytest.mark.parametrize("part", range(5))
def test_sweeps_lp_milp(part):
    names = [n for n in PROGRAMS if n in registry.recipes()]
    for seed in range(1000 + 10 * part, 1010 + 10 * part):
        net = tiny(seed, full=True)
        C = np.stack([net.c, (1.0, 0.0)])
        asked = frozen(net, SWEPT | {n: PROGRAMS[n] for n in names})
        swept = {name: asked[name].swept(C) for name in SWEPT}
        answers = {name: asked[name].program(C) for name in names}
        cells = phases(net.graph, net.lower, net.upper)
        exact = [cells.least(c)[0] for c in C]
        true = np.array([float(t) for t in exact])
        slack = SOLVED * (1 + np.abs(true))
        assert (swept["alpha"] >= swept["crown"] - 1e-9 * (1 + np.abs(true))).all(), net.name
        for name, values in swept.items():
            assert (values <= answers["lp"].claimed + slack).all(), (net.name, name, values - answers["lp"].claimed)
        for values in (*swept.values(), *(a.lower for a in answers.values())):
            assert all(v <= t for v, t in zip(values.tolist(), exact, strict=True)), net.name
        assert (answers["lp"].claimed <= true + slack).all(), net.name
        if "milp" in names:
            assert (np.abs(answers["milp"].claimed - true) <= slack).all(), net.name
            assert (answers["lp"].lower <= answers["milp"].lower + 1e-4 * (1 + np.abs(true))).all(), net.name


RELU = tuple(k for k in KINDS if k.__name__ in ("relu", "one_layer", "residual", "convolution", "leaky"))


@pytest.mark.parametrize("part", range(5))
@pytest.mark.parametrize("recipe", ["sdp", pytest.param("sdp-fo", marks=pytest.mark.slow)])
def test_sdp_between_lp_and_exact(recipe, part):
    needs(recipe)
    for seed in range(1100 + 10 * part, 1110 + 10 * part):
        net = tiny(seed, RELU, full=True)
        asked = frozen(net, {"lp": "lp(pre=crown)", recipe: f"{recipe}(pre=crown)"})
        lp, sdp = asked["lp"].program(net.c), asked[recipe].program(net.c)
        exact, _ = phases(net.graph, net.lower, net.upper).least(net.c)
        size = 1 + abs(float(exact))
        assert sdp.lower[0] <= exact, net.name
        assert lp.claimed[0] <= sdp.lower[0] + FIRST_ORDER * size, (net.name, lp, sdp, float(exact))
        if np.isfinite(sdp.claimed[0]):
            assert sdp.claimed[0] <= float(exact) + FIRST_ORDER * size, (net.name, sdp, float(exact))
