"""Schedules: values against the published formulas, exact ends, and states."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from absdom.errors import UsageError
from absdom.train.schedules import Cyclic, Follow, Linear, Piecewise, Ramp


def published(e0: float, e1: float, t0: int, t1: int, t: int, c: float = 0.25, e: float = 4.0) -> float:
    """The smoothed ramp as the public code of the interval-bound papers has it."""
    h = c * (t1 - t0)
    middle = t0 + h
    a = (e1 - e0) / ((t1 - middle) * e * h ** (e - 1) + h**e)
    if t < t0:
        return e0
    if t >= t1:
        return e1
    if t <= middle:
        return e0 + a * (t - t0) ** e
    at_middle = e0 + a * h**e
    return at_middle + (e1 - at_middle) * (t - middle) / (t1 - middle)


@pytest.mark.parametrize(
    "e0, e1, start, length, more",
    [
        (0.0, 0.3, 10, 100, {}),
        (0.01, 0.1, 0, 37, {}),
        (0.5, 0.1, 5, 8, {}),
        (0.0, 8.8 / 255, 100, 700, {"middle": 0.4}),
        (0.0, 1.0, 3, 50, {"exponent": 2.0}),
    ],
)
def test_smoothed_ramp_is_the_published_one(e0, e1, start, length, more):
    loss = SimpleNamespace(eps=None)
    ramp = Ramp(loss, "eps", e0, e1, start, length, **more)
    c, e = more.get("middle", 0.25), more.get("exponent", 4.0)
    for k in range(start + length + 5):
        assert ramp.value_at(k) == pytest.approx(published(e0, e1, start, start + length, k, c, e), abs=1e-14)
    assert all(ramp.value_at(k) == e0 for k in range(start + 1))
    assert all(ramp.value_at(k) == e1 for k in (start + length, start + length + 1, 10**9))


def test_smoothed_ramp_has_no_kink():
    ramp = Ramp(SimpleNamespace(eps=0), "eps", 0.0, 1.0, 0, 100_000)
    slopes = [ramp.value_at(k + 1) - ramp.value_at(k) for k in range(99_999)]
    change = [abs(b - a) for a, b in zip(slopes, slopes[1:])]
    assert max(change) < 1e-8 and max(slopes) == pytest.approx(16 / 13 / 100_000, rel=1e-4)
    assert min(slopes) >= 0


def test_linear_ramp_and_what_follows_it():
    loss = SimpleNamespace(eps=None, kappa=None, beta=None)
    ramp = Linear(loss, "eps", 0.0, 0.4, 2, 4)
    kappa, beta = Follow(loss, "kappa", 1.0, 0.5, ramp), Follow(loss, "beta", 1.0, 0.1, ramp)
    seen = []
    for _ in range(8):
        seen.append((loss.eps, loss.kappa, loss.beta))
        assert beta.value_at(ramp.count) == pytest.approx(1.0 - (loss.eps / 0.4) * (1.0 - 0.1))
        for schedule in (ramp, kappa, beta):
            schedule.step()
    assert [eps for eps, *_ in seen] == pytest.approx([0, 0, 0, 0.1, 0.2, 0.3, 0.4, 0.4])
    assert seen[0] == (0.0, 1.0, 1.0) and seen[-1] == (0.4, 0.5, 0.1)
    assert ramp.finished and kappa.finished


def test_a_ramp_of_no_length_jumps():
    ramp = Ramp(SimpleNamespace(eps=0), "eps", 0.0, 0.1, 3, 0)
    assert [ramp.value_at(k) for k in range(5)] == [0.0, 0.0, 0.0, 0.1, 0.1]


def optimiser(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates], lr=1.0)


def test_piecewise_scales_each_group_of_an_optimiser():
    sgd = optimiser(1.0, 0.5)
    steps = Piecewise(sgd, "lr", {2: 0.1, 4: 0.5})
    rates = []
    for k in range(6):
        rates.append([group["lr"] for group in sgd.param_groups])
        assert steps.value_at(k) == rates[-1][0]
        steps.step()
    assert rates[:2] == [[1.0, 0.5]] * 2
    assert rates[2] == pytest.approx([0.1, 0.05]) and rates[5] == pytest.approx([0.05, 0.025])


def test_cyclic_rate():
    sgd = optimiser(0.2)
    cycle = Cyclic(sgd, "lr", 4, 10)
    values = [cycle.value_at(k) for k in range(21)]
    assert values[:11] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 1 / 6, 2 / 15, 0.1, 1 / 15, 1 / 30, 0])
    assert values[10:20] == values[:10]
    assert Cyclic(optimiser(1.0), "lr", 1, 2, low=0.5).value_at(0) == 0.5


def test_states_go_on_where_they_were():
    def made():
        loss, sgd = SimpleNamespace(eps=0.0, kappa=1.0), optimiser(1.0, 0.5)
        ramp = Ramp(loss, "eps", 0.0, 0.3, 2, 10)
        return loss, sgd, (ramp, Follow(loss, "kappa", 1.0, 0.5, ramp), Piecewise(sgd, "lr", {3: 0.1}))

    loss, sgd, schedules = made()
    for _ in range(7):
        for schedule in schedules:
            schedule.step()
    again, sgd_again, fresh = made()
    for schedule, saved in zip(fresh, schedules):
        schedule.load_state_dict(saved.state_dict())
    assert vars(again) == vars(loss)
    assert [g["lr"] for g in sgd_again.param_groups] == [g["lr"] for g in sgd.param_groups]


def test_a_state_of_another_schedule_is_refused():
    loss = SimpleNamespace(eps=0.0)
    saved = Ramp(loss, "eps", 0.0, 0.3, 2, 10).state_dict()
    with pytest.raises(UsageError, match="'eps' has length 20 here, 10 in the saved state"):
        Ramp(loss, "eps", 0.0, 0.3, 2, 20).load_state_dict(saved)
    with pytest.raises(UsageError, match="kind 'Linear' here, 'Ramp'"):
        Linear(loss, "eps", 0.0, 0.3, 2, 10).load_state_dict(saved)


def test_nonsense_is_refused():
    loss = SimpleNamespace(eps=0.0)
    with pytest.raises(UsageError, match="has no such number"):
        Ramp(loss, "radius", 0.0, 1.0, 0, 1)
    with pytest.raises(UsageError, match="has no such number"):
        Piecewise(optimiser(1.0), "momentums", {1: 0.5})
    with pytest.raises(UsageError, match="below 0"):
        Ramp(loss, "eps", 0.0, 1.0, 0, -1)
    with pytest.raises(UsageError, match="which ends at 0"):
        Follow(loss, "eps", 0.0, 1.0, Ramp(loss, "eps", 1.0, 0.0, 0, 1))
    with pytest.raises(UsageError, match="inside the 3 batches"):
        Cyclic(optimiser(1.0), "lr", 3, 3)
