"""Certified radii: proved where they are reported, near the exact ones, and below what an attack reaches."""

import json
from math import inf, nan

import numpy as np
import pytest
import torch

import absdom
from absdom import ops
from absdom.arithmetic import PROOF
from absdom.errors import PropertyError, UsageError
from absdom.input_set import InputSet
from absdom.ir.graph import Builder
from absdom.plan.recipes import parse_recipe
from absdom.problem import Problem, bound_rows
from absdom.radii import Radii, distance
from absdom.types import TensorType

METHODS = ("crown", "ibp", "partition(crown, parts=4)")
DUAL = {1: inf, 2: 2, inf: 1}


def network(sizes: tuple[int, ...], seed: int):
    """A float32 ReLU network; one layer alone is affine."""
    generator = torch.Generator().manual_seed(seed)
    builder = Builder()
    x, layers = builder.input("x", TensorType((1, sizes[0]))), []
    for k, (n, m) in enumerate(zip(sizes, sizes[1:])):
        w, b = torch.randn(n, m, generator=generator) / n**0.5, torch.randn(m, generator=generator) * 0.3
        layers.append((w.double().numpy(), b.double().numpy()))
        x = builder.add(ops.Add(), builder.add(ops.MatMul(), x, builder.param(w, f"w{k}")), builder.param(b, f"b{k}"))
        x = builder.add(ops.Relu(), x) if k < len(sizes) - 2 else x
    return builder.finish([x]), layers


def outputs(layers, x: np.ndarray) -> np.ndarray:
    for k, (w, b) in enumerate(layers):
        x = x @ w + b
        x = np.maximum(x, 0) if k < len(layers) - 1 else x
    return x


def points(layers, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(seed).uniform(0, 1, (count, len(layers[0][0]))).astype(np.float32)
    return x, outputs(layers, x.astype(np.float64)).argmax(1)


@pytest.mark.parametrize("norm", [1, 2, inf])
def test_an_affine_network_gives_the_exact_distance(norm):
    graph, layers = network((5, 4), 0)
    x, y = points(layers, 6, 1)
    found = distance(graph, x, y, norm=norm, clip=None, tolerance=1e-4, device="cpu")
    (w, b) = layers[0]
    scores = x.astype(np.float64) @ w + b
    for i in range(6):
        exact = min(
            (scores[i, y[i]] - scores[i, j]) / np.linalg.norm(w[:, y[i]] - w[:, j], DUAL[norm])
            for j in range(4) if j != y[i]
        )  # fmt: skip
        assert exact * (1 - 3e-4) <= found.certified[i] < exact <= found.attacked[i] <= exact * 1.1


@pytest.mark.parametrize("clip", [(0.0, 1.0), None], ids=["clipped", "whole"])
@pytest.mark.parametrize("norm", [2, inf])
@pytest.mark.parametrize("method", METHODS)
def test_radii_are_proved_and_attacked(method, norm, clip):
    graph, layers = network((4, 8, 8, 3), 2)
    x, y = points(layers, 5, 3)
    found = distance(graph, x, y, norm=norm, clip=clip, method=method, device="cpu")
    assert (found.certified > 0).all() and (found.certified < found.attacked).all()
    random = np.random.default_rng(0)
    recipe = parse_recipe(method)
    for i in range(5):
        # The same claim, asked in the language of properties and proved afresh; a little above, the method fails.
        held = {}
        for factor in (1.0, 1.05):
            prop = absdom.robust(graph, x[i], float(found.certified[i]) * factor, int(y[i]), norm, clip)
            engine = Problem.of(graph, prop).engine
            held[factor] = (bound_rows(engine, recipe, PROOF, prop, np.arange(prop.spec.rows)) > 0).all()
        assert held[1.0]
        assert not held[1.05] or found.certified[i] > 0.9 * found.attacked[i]
        # Samples of the certified ball keep the label.
        sets = InputSet.ball(x[i].astype(np.float64), found.certified[i], norm, clip)
        near = random.uniform(sets.lower, sets.upper, (300, 4))
        near = np.array([p for p in near if sets.contains(p, 0)])
        assert (outputs(layers, near).argmax(1) == y[i]).all()


def test_without_an_attack_there_is_no_upper_end():
    graph, layers = network((3, 6, 3), 5)
    x, y = points(layers, 3, 6)
    found = distance(graph, x, y, attack=False, device="cpu")
    assert np.isinf(found.attacked).all()
    with_attack = distance(graph, x, y, device="cpu")
    assert (found.certified == with_attack.certified).all()
    assert distance(graph, x[1], y[1], device="cpu").certified == pytest.approx(found.certified[1:2], rel=0.02)


def test_labels_that_do_not_hold_have_no_radius():
    graph, layers = network((3, 6, 3), 5)
    x, y = points(layers, 4, 6)
    wrong = np.array([y[0], (y[1] + 1) % 3, y[2], (y[3] + 2) % 3])
    found = distance(graph, x, wrong, device="cpu")
    assert np.isnan(found.certified).tolist() == [False, True, False, True]
    assert (found.attacked[[1, 3]] == 0).all() and (found.attacked[[0, 2]] > 0).all()


def test_a_label_that_always_holds_is_proved_on_the_whole_range():
    builder = Builder()
    x = builder.input("x", TensorType((1, 2)))
    w, b = torch.tensor([[0.1, 0.0], [0.0, 0.1]]), torch.tensor([5.0, 0.0])
    y = builder.add(ops.Add(), builder.add(ops.MatMul(), x, builder.param(w, "w")), builder.param(b, "b"))
    graph = builder.finish([y])
    found = distance(graph, np.array([[0.25, 0.5]]), np.array([0]), device="cpu")
    assert found.certified[0] == 0.75 and np.isinf(found.attacked[0])
    free = distance(graph, np.array([[0.25, 0.5]]), np.array([0]), clip=None, norm=1, device="cpu")
    assert 45 < free.certified[0] < free.attacked[0] < 60  # 0.1 (x_1 - x_0) = 5


def test_a_tighter_method_has_larger_radii():
    graph, layers = network((4, 10, 10, 3), 7)
    x, y = points(layers, 4, 8)
    radii = {m: distance(graph, x, y, method=m, attack=False, device="cpu").certified for m in ("ibp", "crown")}
    tuned = distance(graph, x, y, method="alpha-crown(steps=5)", attack=False, device="cpu").certified
    assert (radii["crown"] > radii["ibp"]).all() and (tuned > 0.98 * radii["crown"]).all()


def test_groups_give_the_same_as_one_call(monkeypatch):
    import absdom.radii as module

    graph, layers = network((3, 6, 3), 9)
    x, y = points(layers, 5, 2)
    whole = distance(graph, x, y, attack=False, device="cpu")
    monkeypatch.setattr(module, "GROUP", 2)
    numbers = []
    parts = distance(graph, x, y, attack=False, device="cpu", progress=numbers.append)
    assert np.allclose(parts.certified, whole.certified, rtol=0.02) and numbers == list(range(5))


def test_the_command(small, tmp_path, capsys):
    from absdom.cli.main import main

    graph = absdom.load(small.model)
    size, many = (sum(graph.nodes[i].type.numel for i in group) for group in (graph.inputs, graph.outputs))
    x = np.random.default_rng(0).uniform(0, 1, (3, size)).astype(np.float32)
    data, out = str(tmp_path / "data.npz"), str(tmp_path / "out.json")
    np.savez(data, x=x, y=np.zeros(3, dtype=np.int64) % many)
    head = ["distance", small.model, data, "--device", "cpu"]
    assert main([*head, "--norm", "2", "--method", "crown", "--offset", "1", "--json", out]) == 0
    text = capsys.readouterr().out
    assert "certified" in text and "2 items, median certified" in text
    with open(out, encoding="utf-8") as file:
        report = json.load(file)
    assert report["n"] == 2 and [item["number"] for item in report["items"]] == [1, 2] and report["norm"] == "2"
    for options, message in (
        (["--norm", "3"], "invalid choice"),
        (["--tolerance", "1"], "'1' is not a share between 0 and 1"),
        (["--method", "crwn"], "there is no 'crwn'"),
        (["--clip", "0.9", "1"], "outside the range"),
        (["--offset", "3"], "behind the end"),
    ):
        assert main([*head, *options]) == 2
        assert message in capsys.readouterr().err


def test_bad_arguments(tmp_path):
    graph, layers = network((3, 4, 2), 0)
    x, y = points(layers, 2, 0)
    for values, message in (
        ({"label": None}, "points need their labels"),
        ({"tolerance": 0.0}, "tolerance 0.0 is not a share"),
        ({"norm": 3}, "norm 3 is not one of"),
        ({"limit": 0}, "at least one item"),
        ({"method": "crown(3)"}, "column 7"),
    ):
        with pytest.raises(UsageError, match=message):
            distance(graph, x, **{"label": y, **values})
    for bad, message in ((x[:, :2], "shape"), (np.where(x > 2, x, nan), "nan"), (x + 1, "outside the range")):
        with pytest.raises(PropertyError, match=message):
            distance(graph, bad, y)
    with pytest.raises(PropertyError, match="label 7"):
        distance(graph, x, np.array([0, 7]))
    np.savez(tmp_path / "rows.npz", x=x, C=np.eye(2))
    with pytest.raises(UsageError, match="points with labels"):
        distance(graph, str(tmp_path / "rows.npz"))
    with pytest.raises(UsageError, match="give no others"):
        distance(graph, str(tmp_path / "rows.npz"), y)


def test_json_has_no_infinities():
    value = Radii(np.arange(2), np.zeros(2), np.array([nan, 0.5]), np.array([0.0, inf]), 1.0).to_json()
    assert value["items"][0]["certified"] is None and value["items"][1]["attacked"] is None
    assert value["median_certified"] == 0.25 and json.dumps(value, allow_nan=False)
