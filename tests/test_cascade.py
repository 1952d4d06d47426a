"""The ladder of `certify --method bab`: what each stage is asked, what it closes, what is counted and kept."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from absdom import ladder, registry
from absdom.certification import certify, prepare
from absdom.certifier import CANARY
from absdom.cli.main import main
from absdom.errors import AbsdomError, UsageError
from absdom.ladder import TIMEOUT, Bounds, Complete, affordable, ladder_of
from absdom.plan.recipes import parse_recipe
from absdom.problem import Problem
from absdom.results import ATTACKED, CERTIFIED, OPEN, WRONG, Item

STAGES = ("clean", "pgd", "ibp", "crown", "alpha-crown", "complete")
EPS, COUNT = 0.1, 120


@pytest.fixture(scope="module")
def found(digits):
    return certify(digits.model, digits.data, method="bab", eps=EPS, limit=COUNT, jobs=1, device="cpu")


def test_counts_add_up_stage_by_stage(found):
    counts = found.counts()
    assert tuple(count.stage for count in counts) == STAGES == found.stages and len(found) == COUNT
    left = COUNT
    for count in counts:
        assert count.asked == left
        left -= count.certified + count.refuted
        assert count.open == left and count.seconds > 0
    assert left == 0 == found.out_of_time and sum(count.certified for count in counts) == found.certified.sum()
    assert counts[0].refuted == (~found.clean).sum() > 0 and counts[0].certified == counts[1].certified == 0
    assert counts[1].refuted > 0 and all(count.certified > 0 for count in counts[2:4])
    assert sum(count.refuted for count in counts) == found.attacked.sum() == (~found.certified).sum()
    lines = found.text().splitlines()
    (head,) = (
        k for k, line in enumerate(lines) if line.split() == "stage asked certified refuted open seconds".split()
    )
    for count, line in zip(counts, lines[head + 1 :]):
        name, *numbers, _ = line.split()
        assert name == count.stage and [int(n) for n in numbers] == [*count[2:6]]


def test_each_item_goes_up_the_ladder_until_it_is_decided(found):
    asked = 0
    for item in found.items:
        names = [step.stage for step in item.trace]
        outcomes = [step.outcome for step in item.trace]
        assert names == sorted(names, key=STAGES.index) and names[:2] == ["clean", "pgd"]
        assert item.seconds == sum(step.seconds for step in item.trace) and all(s.seconds >= 0 for s in item.trace)
        assert (outcomes[0] == WRONG) == (not item.clean) and outcomes[-1] == item.outcomes[0]
        if outcomes[1] == ATTACKED:
            assert len(names) == (len(STAGES) if item.number % CANARY == 0 else 2)
            assert {*outcomes[1:]} == {ATTACKED}
            asked += len(names) > 2
        else:
            assert {*outcomes[1:-1]} <= {OPEN} and (item.clean or "complete" not in names)
    assert asked > 0


def test_the_ladder_knows_more_than_each_of_its_rungs(digits, found):
    """And shares are in order: what one method certifies or refutes, the ladder does."""
    for method in ("ibp", "crown"):
        one = certify(digits.model, digits.data, method=method, eps=EPS, limit=COUNT, device="cpu")
        assert (one.certified <= found.certified).all() and (one.attacked <= found.attacked).all()
        assert [count.stage for count in one.counts()] == ["clean", "pgd", method]
    assert one.certified.sum() < found.certified.sum()
    assert not (found.certified & found.attacked).any()


def test_what_is_proved_is_not_bounded_again(digits, monkeypatch):
    """Rungs are asked about the open rows of open items, many items at once although their time is limited."""
    honest, calls = ladder.bound_rows, []

    def spy(engine, recipe, arithmetic, prop, rows, *more, **options):
        lower = honest(engine, recipe, arithmetic, prop, rows, *more, **options)
        calls.append((len(prop.inputs), prop.spec.rows, len(rows), int((lower[rows] > 0).sum())))
        return lower

    monkeypatch.setattr(ladder, "bound_rows", spy)
    method = ("ibp", "crown")
    found = certify(digits.model, digits.data, method=method, eps=EPS, limit=60, attack=False, jobs=1, device="cpu",
                    timeout_per_image=60)  # fmt: skip
    first, second = found.counts()[1:]
    ibp, crown = (np.array(calls[k::2]).sum(0) for k in (0, 1))  # group by group
    assert len(calls) < 12 and tuple(ibp[:3]) == (60, 540, 540)
    closed = sum(item.trace[1].outcome == CERTIFIED for item in found.items)  # wrong classes too
    assert crown[0] == 60 - closed and crown[2] == 540 - ibp[3] < crown[1]
    assert first.certified > 0 and second.asked == first.open


def test_the_search_refutes_what_no_attack_was_asked_about(digits, found):
    """And what it finds is replayed: nothing is refuted that the attack with the search does not refute."""
    alone = certify(digits.model, digits.data, method="bab", eps=EPS, limit=40, attack=False, device="cpu")
    assert (alone.certified == found.certified[:40]).all() and (alone.attacked == found.attacked[:40]).all()
    last = alone.counts()[-1]
    assert last.refuted > 0 and last.open == 0 and alone.attacked_error == alone.certified_error


def test_items_without_time_stay_open(digits):
    late = certify(digits.model, digits.data, method="bab", eps=EPS, limit=10, timeout_per_image=1e-9, device="cpu")
    assert late.out_of_time == 10 and not late.certified.any() and {item.outcomes for item in late.items} == {(OPEN,)}
    assert [count.open for count in late.counts()] == [late.clean.sum()] * 4
    assert late.stages == ("clean", "pgd", "ibp", "complete")  # what would take too long gives way
    assert {count.asked for count in late.counts()[1:]} == {0}
    assert prepare(digits.model, digits.data, method="bab", eps=EPS).timeout == TIMEOUT
    assert prepare(digits.model, digits.data, method="crown", eps=EPS).timeout == np.inf
    hasty = certify(digits.model, digits.data, method="bab", eps=EPS, limit=COUNT, timeout_per_image=0.02, device="cpu")
    assert (hasty.out_of_time > 0) == any(item.outcomes == (OPEN,) and item.clean for item in hasty.items)


def test_records_of_stages_are_gone_on_from(digits, found, tmp_path, capfd):
    out, file = tmp_path / "items.jsonl", tmp_path / "report.json"
    command = ["certify", digits.model, digits.data, "--eps", str(EPS), "--method", "bab", "--device", "cpu"]
    command += ["--out", str(out), "--jobs", "1"]
    assert main([*command, "--limit", "30"]) == 0
    head, *lines = out.read_text().splitlines()
    assert json.loads(head)["timeout_per_image"] == TIMEOUT and len(lines) == 30
    items = [Item.from_json(json.loads(line)) for line in lines]
    assert [item.to_json() for item in items] == [json.loads(line) for line in lines]
    out.write_text("\n".join([head, *lines[:20], lines[20][:-9]]))  # as a kill leaves it
    assert main([*command, "--limit", "60", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert report["fresh"] == 40 and report["n"] == 60 and report["method"] == "bab"
    again = certify(digits.model, digits.data, method="bab", eps=EPS, limit=60, known=found.items, device="cpu")
    assert again.fresh == 0
    keys = ("model", "stage", "asked", "certified", "refuted", "open", "seconds")
    assert [tuple(count) for count in report["stages"]] == [keys] * len(STAGES)
    # Which stage decides an item may change with the points that an attack starts from; whether it is decided may not.
    assert report["certified_error"] == again.certified_error and report["attacked_error"] == again.attacked_error
    assert report["stages"][-1]["open"] == 0 and report["cascade"][0]["certified"] == (~again.flagged).sum()
    assert "alpha-crown" in capfd.readouterr().out


@pytest.mark.parametrize("change", [{"stage": 1}, {"outcome": "x"}, {"seconds": "1"}, {"model": None}, {"more": 1}])
def test_odd_traces_are_no_records(found, change):
    value = found.items[0].to_json()
    assert Item.from_json(value) == found.items[0]
    value["trace"] = [value["trace"][0] | change]
    with pytest.raises((ValueError, TypeError)):
        Item.from_json(value)


def test_several_models(digits, found):
    """Each model has a ladder of its own, and the second is asked about what the first left."""
    models = [digits.model, digits.model]
    two = certify(models, digits.data, method="bab", eps=EPS, limit=40, jobs=2, device="cpu")
    assert (two.certified == found.certified[:40]).all() and (two.flagged == found.flagged[:40]).all()
    assert tuple((count.model, count.stage) for count in two.counts()) == tuple((m, s) for m in (0, 1) for s in STAGES)
    first, second = two.cascade()
    assert second["asked"] == 40 - first["certified"] and second["certified"] == 0 == second["differs"]
    assert "model 2: alpha-crown" in two.text()


def test_a_wrong_search_is_loud(digits, found, monkeypatch):
    """An item that an attack broke is put to every stage now and then."""
    assert any(item.outcomes == (ATTACKED,) and item.number % CANARY == 0 for item in found.items)

    def hopeful(problem, confirm, clock, progress=None):
        return replace(problem, closed=np.ones_like(problem.closed)), None, 0, np.inf, ""

    registry.load()
    monkeypatch.setitem(registry._services, "bab", hopeful)
    with pytest.raises(AbsdomError, match=r"replayed counterexample, and a bound of 0 .* by Complete.*bug of absdom"):
        certify(digits.model, digits.data, method=("ibp", "complete"), eps=EPS, limit=COUNT, jobs=1, device="cpu")


def test_programs_that_are_too_large_leave_the_search(digits, monkeypatch):
    """Then it is asked again, with the rest of the time."""
    calls = []
    honest = registry.service("bab")

    def spy(problem, confirm, clock, progress=None):
        calls.append(clock.left())
        return honest(problem, confirm, clock, progress)

    monkeypatch.setitem(registry._services, "bab", spy)
    small = replace(parse_recipe("milp"), budget=1e-6)
    monkeypatch.setitem(registry._recipes, "milp", lambda: small)
    one = certify(digits.model, digits.data, method=("crown", Complete(soon=1e-9)), eps=EPS, limit=40, attack=False,
                  jobs=1, device="cpu")  # fmt: skip
    assert one.counts()[-1].asked > 0 and one.counts()[-1].open == 0
    assert calls[0] < 1e-6 and any(seconds > 1 for seconds in calls)


def test_ladders(digits):
    assert [rung.name for rung in ladder_of("bab")] == list(STAGES[2:])
    assert ladder_of(("ibp", Complete())) == (Bounds("ibp", parse_recipe("ibp")), Complete())
    for method, words in (
        ((), "no rung"),
        (("crown", "crown"), "each of them once, not crown, crown"),
        (("ibp", "magic"), "there is no 'magic'"),
        (("crown", "projected(projections=40, estimator=median)"), "estimates"),
    ):
        with pytest.raises(UsageError, match=words):
            ladder_of(method)
    with pytest.raises(UsageError, match="timeout per image 0"):
        prepare(digits.model, digits.data, method="bab", eps=EPS, timeout_per_image=0)


def test_rungs_that_would_take_all_the_time_give_way(digits):
    told: list[str] = []
    problem = prepare(digits.model, digits.data, method="ibp", eps=EPS).models[0].problem
    assert isinstance(problem, Problem)
    assert affordable(problem, ladder_of("bab"), 60, told.append) == ladder_of("bab") and told == []
    cheap = affordable(problem, ladder_of("bab"), 1e-9, told.append)
    assert [rung.name for rung in cheap] == ["ibp", "complete"] and len(told) == 2
    assert "crown would cost" in told[0] and "ibp instead" in told[0]
