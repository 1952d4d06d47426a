"""`certify` with a complete search decides every item of a small piecewise linear network, as exact enumeration does."""

from __future__ import annotations

import numpy as np
import pytest
from exact_phases import phases
from tiny_networks import tiny

from absdom.certification import certify
from absdom.ladder import Complete


def searches(only: str, monkeypatch) -> Complete:
    """The complete rung, of whose searches one is asked alone."""
    from absdom.solvers import bab

    if only == "phases":
        monkeypatch.setattr(bab, "FEW_INPUTS", 0)
    return Complete(soon=1e-9 if only == "programs" else 1.0)


@pytest.mark.parametrize("only", ["boxes", "phases", "programs"])
def test_every_item_is_decided_rightly(only, monkeypatch):
    rung, asked = searches(only, monkeypatch), 0
    for seed in range(2200, 2204):
        net = tiny(seed)
        least = float(phases(net.graph, net.lower, net.upper).least(net.c)[0])
        offsets = np.array([0.01, -0.01, 0.3, -0.3])
        data = {
            "lower": np.broadcast_to(net.lower, (4, len(net.lower))),
            "upper": np.broadcast_to(net.upper, (4, len(net.upper))),
            "C": np.broadcast_to(net.c, (4, 1, len(net.c))),
            "d": (offsets - least)[:, None],
        }
        for attack in (False, True):
            method = ("ibp", "crown", rung)
            found = certify(net.graph, data, method=method, attack=attack, timeout_per_image=30, jobs=1, device="cpu")
            right = ["certified" if offset > 0 else "attacked" for offset in offsets]
            wrong = ~found.clean  # not asked about: nothing can be certified where the point itself fails
            said = [item.outcomes[0] for item in found.items]
            assert all(s == r or (w and s != "certified") for s, r, w in zip(said, right, wrong)), (net.name, said)
            asked += found.counts()[-1].asked
    assert asked > 3  # bounds and points alone would not do
