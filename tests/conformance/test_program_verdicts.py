"""`absdom verify --method milp` ends with a verdict on every small piecewise linear property: that of the search, and of
exact enumeration; witnesses are replayed."""

from __future__ import annotations

import numpy as np
import pytest
from exact_phases import phases
from program_answers import needs
from tiny_networks import tiny

from absdom import api
from absdom.property import make_property


@pytest.mark.parametrize("part", range(3))
def test_milp_decides(part):
    needs("milp")
    for seed in range(2000 + 10 * part, 2010 + 10 * part):
        net, random = tiny(seed), np.random.default_rng(seed)
        cells = phases(net.graph, net.lower, net.upper)
        C = np.concatenate([net.c[None], np.round(random.standard_normal((1, 2)) * 8) / 8])
        least = [float(cells.least(c)[0]) for c in C]
        offset = (0.01, -0.01)[seed % 2]  # above 0: no counterexample
        clauses = [(0, [(C[0], offset - least[0], False)]), (0, [(C[1], 0.01 - least[1], False)])]
        prop = make_property(net.lower, net.upper, clauses)
        right = "unsat" if offset > 0 else "sat"
        for attack in (False, True):
            found = api.verify(net.graph, prop, method="milp", timeout=30, attack=attack, device="cpu")
            assert found.verdict == right, (net.name, attack, found)
        if found.witness is not None:
            x = found.witness.x.astype(np.float64)
            assert (x >= net.lower).all() and (x <= net.upper).all()
            assert phases(net.graph, x, x).least(C[0])[0] <= float(least[0]) + 0.01 + 1e-5
        auto = api.verify(net.graph, prop, method="auto", timeout=30, device="cpu")
        assert auto.verdict in (right, "unknown", "timeout"), net.name


@pytest.mark.parametrize("method", ["lp", "sdp", "sdp-fo"])
def test_incomplete_programs_never_contradict(method):
    needs(method)
    for seed in range(2100, 2110 if method == "lp" else 2102):
        net = tiny(seed)
        least = float(phases(net.graph, net.lower, net.upper).least(net.c)[0])
        for offset, wrong in ((0.01, "sat"), (-0.01, "unsat")):
            prop = make_property(net.lower, net.upper, [(0, [(net.c, offset - least, False)])])
            found = api.verify(net.graph, prop, method=method, timeout=20, attack=False, device="cpu")
            assert found.verdict != wrong, net.name
