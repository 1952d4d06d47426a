"""Choosing a method by predicted cost: order, determinism, what recipes say of their own cost, and times as text."""

import argparse
import json

import numpy as np
import pytest
import torch

from absdom import api, ops
from absdom.arithmetic import SEARCH
from absdom.cli.main import main, positive_seconds
from absdom.ir.graph import Builder
from absdom.plan import cost
from absdom.plan.recipes import parse_recipe
from absdom.problem import LADDER, Problem, _predictions, most_precise, within_budget
from absdom.property import make_property
from absdom.types import TensorType


@pytest.fixture(scope="module")
def problem() -> Problem:
    generator = torch.Generator().manual_seed(0)
    builder = Builder()
    x = builder.input("x", TensorType((1, 20)))
    for k, (n, m) in enumerate([(20, 200), (200, 200), (200, 5)]):
        w, b = torch.randn(n, m, generator=generator) / n**0.5, torch.randn(m, generator=generator)
        x = builder.add(ops.Add(), builder.add(ops.MatMul(), x, builder.param(w, f"w{k}")), builder.param(b, f"b{k}"))
        x = builder.add(ops.Relu(), x) if k < 2 else x
    rows = [(np.eye(5)[j] - np.eye(5)[0], 0.0, False) for j in range(1, 5)]
    prop = make_property(np.zeros((2, 20)), np.ones((2, 20)), [(0, rows), (1, rows)])
    return Problem.of(builder.finish([x]), prop)


def predicted(problem, *methods: str) -> list[float]:
    recipes = {m: parse_recipe(m) for m in methods}
    return [seconds for _, seconds in _predictions(problem, recipes)]


def test_a_huge_budget_takes_the_most_precise_and_a_tiny_one_the_cheapest(problem):
    assert most_precise(problem, 1e9).method == "alpha-crown"
    assert most_precise(problem, 1e-12).method == "ibp"
    choice = most_precise(problem, 1.0)
    assert choice.recipe == api.recipe_of(choice.method) and set(choice.seconds) == set(LADDER)
    assert all(f"{name} " in choice.note for name in LADDER) and "budget of 1 s" in choice.note


def test_a_larger_budget_never_takes_a_less_precise_method(problem):
    ranks = [LADDER.index(most_precise(problem, budget).method) for budget in np.logspace(-6, 2, 60)]
    assert ranks == sorted(ranks, reverse=True) and len(set(ranks)) >= 4


def test_the_choice_rests_on_no_clock(problem, monkeypatch):
    first = most_precise(problem, 0.01)
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    again = most_precise(Problem.on(problem.engine, problem.property), 0.01)
    assert (again.method, again.seconds, again.note) == (first.method, first.seconds, first.note)


def test_recipes_say_what_they_cost(problem):
    plain, tuned, more = predicted(problem, "crown", "alpha-crown(steps=5)", "alpha-crown(steps=50)")
    inner = predicted(problem, "alpha-crown(steps=5, intermediate=True)")[0]
    assert plain < tuned < more and inner > 5 * plain
    ibp, few, many = predicted(problem, "ibp", "partition(ibp, parts=1)", "partition(ibp, parts=1000)")
    assert ibp == few and 10 * ibp < many < 1001 * ibp
    both = predicted(problem, "crown & partition(ibp, parts=1000)")[0]
    assert both == pytest.approx(plain + many)
    zonotope, hybrid = predicted(problem, "zonotope", "hybrid-zonotope")
    assert ibp < hybrid < zonotope


def test_a_state_counts_by_the_bytes_it_asks_for(problem):
    context = problem.engine.context(parse_recipe("zonotope"), SEARCH)
    interval, zonotope = (cost.state_numbers(domain, context.graph) for domain in context.schedule.reach)
    assert interval == 2 and 20 < zonotope < 1000


def test_a_method_that_lacks_a_rule_is_left_out(problem, monkeypatch):
    import absdom.problem as module
    from absdom.errors import UnsupportedOp

    made = module.make_schedule

    def refusing(graph, recipe, target=None):
        if recipe == parse_recipe("zonotope"):
            raise UnsupportedOp("no")
        return made(graph, recipe, target)

    monkeypatch.setattr(module, "make_schedule", refusing)
    fresh = Problem.of(problem.engine.graph, problem.property)
    assert "zonotope" not in most_precise(fresh, 1.0).seconds


def test_a_method_that_fits_stays_and_a_cheap_one_gives_way_to_none(problem):
    assert within_budget(problem, "crown", parse_recipe("crown"), 1e9).note == ""
    assert within_budget(problem, "ibp", parse_recipe("ibp"), 1e-12).method == "ibp"
    method, recipe, note, _ = within_budget(problem, "mine", parse_recipe("partition(crown, parts=999)"), 1e-12)
    assert (method, recipe) == ("ibp", parse_recipe("ibp")) and note.startswith("mine would cost")


def test_the_command(small, capsys):
    assert main(["bound", small.model, small.holds, "--method", "auto", "--budget", "1h", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["method"] == "alpha-crown" and set(report["predicted_seconds"]) >= {"crown", "crown-ibp", "ibp"}
    assert "auto: alpha-crown, for a budget of 3600 s (predicted: alpha-crown " in err
    assert main(["bound", small.model, small.holds, "--method", "auto", "--budget", "0.0001ms"]) == 0
    assert "method ibp," in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "seconds"), [("1", 1), ("1s", 1), ("500ms", 0.5), ("2m", 120), ("1.5h", 5400), ("1e-3s", 1e-3)]
)
def test_times(text, seconds):
    assert positive_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "0", "-1s", "nan", "1d", "1 min", "ms"])
def test_times_that_are_none(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number of seconds above 0"):
        positive_seconds(text)
