"""Recipes mixed per layer: which nodes a pattern names, what runs where, and that bounds stay bounds."""

from __future__ import annotations

import pytest
import torch

from absdom import api, ops, testing
from absdom.arithmetic import PROOF
from absdom.domain import Layers
from absdom.errors import UsageError
from absdom.ir.graph import Builder
from absdom.plan.plan import Tighten
from absdom.plan.planner import make_schedule
from absdom.plan.recipes import parse_recipe
from absdom.types import Source, TensorType


def network():
    """Four affine layers with names; the third has two readers."""
    builder, generator = Builder(), torch.Generator().manual_seed(3)
    value = builder.input("x", TensorType((1, 3), "float64"))
    sizes = (3, 6, 6, 6, 2)
    for k in range(4):
        weight = torch.randn(sizes[k], sizes[k + 1], generator=generator, dtype=torch.float64)
        value = builder.add(
            ops.MatMul(), value, builder.param(weight, f"w{k}"), source=Source(f"/fc{k}/MatMul", "MatMul")
        )
        builder.name(f"fc{k}", value)
        if k < 3:
            relu = builder.add(ops.Relu(), value)
            value = builder.add(ops.Add(), relu, value) if k == 2 else relu
    return testing.make_case("layers", builder.finish([value]), -1.0, 1.0)


def tightened(case, text: str) -> dict[str, list[str]]:
    """Name of a layer that boxes have tightened -> the names of the duals that sweep from it."""
    schedule = make_schedule(case.graph, parse_recipe(text))
    names = {node: name for name, node in case.graph.names.items()}
    return {
        names[s.sweep.start]: [d.name for d in s.duals]
        for s in schedule.stages
        if isinstance(s, Tighten) and s.needed(())
    }


def test_a_pattern_says_where_a_dual_sweeps():
    case = network()
    assert tightened(case, "crown") == {"fc1": ["linear"], "fc2": ["linear"]}
    assert tightened(case, '{"fc1": ibp, "*": crown}') == {"fc2": ["linear"]}
    assert tightened(case, '{"fc2": ibp, "*": crown}') == {"fc1": ["linear"]}
    assert tightened(case, '{"/fc1/*": alpha-crown(intermediate=True), "*": crown}') == {
        "fc1": ["ascent"], "fc2": ["linear"]
    }  # fmt: skip
    assert tightened(case, 'linear(pre={"fc1": crown, "*": ibp})') == {"fc1": ["linear"]}


def test_the_first_pattern_that_fits_counts_and_other_nodes_have_intervals():
    case = network()
    assert tightened(case, '{"fc*": crown, "fc1": ibp}') == {"fc1": ["linear"], "fc2": ["linear"]}
    assert tightened(case, '{"Linear": crown}') == {"fc1": ["linear"], "fc2": ["linear"]}  # the op's name
    some = make_schedule(case.graph, parse_recipe('{"nothing": crown}'))
    assert not some.duals and len(some.reach) == 1


def test_a_forward_domain_runs_only_as_far_as_it_is_asked():
    case = network()
    schedule = make_schedule(case.graph, parse_recipe('{"fc1": zonotope, "*": ibp}'))
    reach = {domain.name: nodes for domain, nodes in schedule.reach.items()}
    assert max(reach["zonotope"]) == case.graph.names["fc1"] and len(reach["interval"]) == len(schedule.final.nodes)
    assert f"zonotope (up to %{case.graph.names['fc1']})" in schedule.describe()


@pytest.mark.parametrize(
    "text",
    ['{"fc1": ibp, "*": crown}', '{"fc1": zonotope, "*": crown-ibp}', 'linear(pre={"fc2": crown, "*": zonotope})'],
)
def test_bounds_lie_between_those_of_the_parts(text):
    case = network()
    found = testing.bounds_of(case.graph, case.lower, case.upper, text, PROOF)
    loose = testing.bounds_of(case.graph, case.lower, case.upper, "interval", PROOF)
    assert (found.lower >= loose.lower - 1e-9).all() and (found.upper <= loose.upper + 1e-9).all()
    testing.check_case(case, text)


def test_every_layer_by_one_recipe_is_that_recipe():
    case = network()
    one, all_of_them = (
        testing.bounds_of(case.graph, case.lower, case.upper, m, PROOF) for m in ("crown", '{"*": crown}')
    )
    assert torch.equal(one.lower, all_of_them.lower) and torch.equal(one.upper, all_of_them.upper)


def test_compiled_layers_and_what_cannot_be_mixed():
    case = network()
    mixed = Layers((("fc1", parse_recipe("ibp")), ("*", parse_recipe("crown"))))
    assert "duals: " in api.compile(case.graph, mixed).describe()
    with pytest.raises(UsageError, match="stands alone or in a meet"):
        make_schedule(case.graph, parse_recipe('{"*": partition(crown)}'))
