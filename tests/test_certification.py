"""Certified data sets: what is counted, cascades, detection, and what must never be certified."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import absdom
from absdom import ladder
from absdom.certification import certify
from absdom.domain import Strategy
from absdom.errors import AbsdomError, UsageError
from absdom.plan.recipes import parse_recipe
from absdom.results import Item

SIZES = (6, 12, 10, 4)
COUNT = 40


def layers(seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [
        (
            (generator.normal(size=(n, m)) / n**0.5).astype(np.float32),
            generator.normal(0, 0.3, m).astype(np.float32),
        )
        for n, m in zip(SIZES, SIZES[1:])
    ]


def evaluate(net, x: np.ndarray) -> np.ndarray:
    for k, (w, b) in enumerate(net):
        x = x @ w.astype(np.float64) + b
        x = np.maximum(x, 0) if k < len(net) - 1 else x
    return x


def write(net, path) -> str:
    nodes, stored, last = [], [], "x"
    for k, (w, b) in enumerate(net):
        stored += [numpy_helper.from_array(w, f"w{k}"), numpy_helper.from_array(b, f"b{k}")]
        out = "y" if k == len(net) - 1 else f"z{k}"
        nodes.append(helper.make_node("Gemm", [last, f"w{k}", f"b{k}"], [out]))
        if out != "y":
            nodes.append(helper.make_node("Relu", [out], [f"a{k}"]))
        last = f"a{k}"
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, net[0][0].shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, net[-1][0].shape[1]])],
        stored,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return str(path)


@dataclass
class Task:
    net: list
    model: str
    x: np.ndarray
    y: np.ndarray

    @property
    def data(self) -> dict:
        return {"x": self.x, "y": self.y}


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    """A network, points, and labels that are its predictions, but for every fifth."""
    net = layers(0)
    x = np.random.default_rng(1).random((COUNT, SIZES[0])).astype(np.float32)
    y = evaluate(net, x).argmax(1)
    y[::5] = (y[::5] + 1) % SIZES[-1]
    return Task(net, write(net, tmp_path_factory.mktemp("net") / "net.onnx"), x, y)


def strip(items) -> list[Item]:
    """The items without traces, which hold seconds, and without the last digits of bounds: other batches round otherwise."""
    return [replace(item, trace=(), bound=None if item.bound is None else round(item.bound, 9)) for item in items]


def samples(task: Task, item: int, eps: float, norm: float, clip) -> np.ndarray:
    """Points of the ball, many of them on its edge."""
    generator = np.random.default_rng(item)
    step = generator.normal(size=(300, task.x.shape[1]))
    if norm == np.inf:
        step = np.where(generator.random(step.shape) < 0.7, np.sign(step), step.clip(-1, 1)) * eps
    else:
        step *= eps / np.linalg.norm(step, norm, axis=1, keepdims=True)
    x = task.x[item] + step
    return x if clip is None else x.clip(*clip)


@pytest.mark.parametrize(("norm", "eps"), [(np.inf, 0.04), (2, 0.09), (1, 0.14)])
@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
def test_shares_are_in_order_and_certificates_hold(task, norm, eps, clip):
    found = certify(task.model, task.data, method="crown", eps=eps, norm=norm, clip=clip, jobs=1)
    loose = certify(task.model, task.data, method="ibp", eps=eps, norm=norm, clip=clip, jobs=1)
    assert len(found) == COUNT and found.clean_error == pytest.approx(1 / 5)
    assert found.clean_error <= found.attacked_error <= found.certified_error <= loose.certified_error
    assert 0 < found.certified.sum() < loose.flagged.sum() and found.attacked.sum() > COUNT // 5
    assert not (found.certified & found.attacked).any() and (found.certified <= ~found.flagged).all()
    assert (found.predicted == evaluate(task.net, task.x).argmax(1)).all()
    assert (found.clean == (found.predicted == task.y)).all()
    assert (~found.flagged).sum() > found.certified.sum()  # wrong labels whose prediction is certified
    for item in np.flatnonzero(~found.flagged):
        near = samples(task, item, eps, norm, clip)
        assert (evaluate(task.net, near).argmax(1) == found.predicted[item]).all()


def test_bounds_are_those_of_bound(task):
    found = certify(task.model, task.data, method="cap", eps=0.05, attack=False, jobs=1, limit=6, offset=3)
    assert found.attacked_error is None and [item.number for item in found.items] == list(range(3, 9))
    for item in found.items:
        prop = absdom.robust(absdom.network(task.model), task.x[item.number], 0.05, item.predicted)
        rows = absdom.bound(task.model, prop, method="cap", proof=True).rows
        assert item.bound == pytest.approx(min(lower for *_, lower in rows), abs=1e-9)


def test_workers_and_earlier_records_change_nothing(task):
    seen: list[Item] = []
    one = certify(task.model, task.data, method="crown", eps=0.05, jobs=1, record=seen.extend)
    assert strip(sorted(seen, key=lambda item: item.number)) == strip(one.items) and one.fresh == COUNT
    two = certify(task.model, task.data, method="crown", eps=0.05, jobs=2)
    assert strip(two.items) == strip(one.items)
    seen.clear()
    known = [*one.items[:7], *one.items[20:], replace(one.items[0], number=COUNT + 3)]
    rest = certify(task.model, task.data, method="crown", eps=0.05, known=known, record=seen.extend)
    assert rest.fresh == 13 and sorted(item.number for item in seen) == list(range(7, 20))
    assert strip(rest.items) == strip(one.items)


def test_breaking_off_ends_the_workers(task):
    def stop(items):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        certify(task.model, task.data, method="crown", eps=0.05, jobs=2, record=stop)


def test_rows_and_boxes_ask_the_same(task):
    expected = certify(task.model, task.data, method="crown", eps=0.05, clip=None, jobs=1)
    right = expected.predicted
    rows = np.array([[np.eye(4)[p] - np.eye(4)[j] for j in range(4) if j != p] for p in right])
    asked = certify(task.model, {"x": task.x, "C": rows}, method="crown", eps=0.05, clip=None, jobs=1)
    assert asked.clean.all() and (asked.flagged == expected.flagged).all()
    assert (asked.certified == ~expected.flagged).all() and (asked.predicted == -1).all()
    x = task.x.astype(np.float64)
    boxes = {"lower": np.nextafter(x - 0.05, -np.inf), "upper": np.nextafter(x + 0.05, np.inf), "y": task.y}
    assert strip(certify(task.model, boxes, method="crown", jobs=1).items) == strip(expected.items)
    shifted = certify(task.model, {"x": task.x, "C": rows[0], "d": np.full(3, 100.0)}, method="ibp", eps=0.05)
    assert shifted.certified.all()


def test_a_tie_is_an_error(task, tmp_path):
    w, b = task.net[-1]
    twin = [*task.net[:-1], (w[:, [0, 0, 1, 2]], b[[0, 0, 1, 2]])]
    model = write(twin, tmp_path / "twin.onnx")
    y = evaluate(twin, task.x).argmax(1)
    found = certify(model, {"x": task.x, "y": y}, method="crown", eps=0.0, jobs=1)
    assert (y == 0).any() and (found.clean == (y != 0)).all() and (found.certified == (y != 0)).all()


def single(model: str, data: dict, **options) -> np.ndarray:
    return certify(model, data, method="crown", eps=0.05, jobs=1, attack=False, **options)


def test_cascades(task, tmp_path):
    """Algorithm 4 of Wong et al. 2018, by hand: each model certifies alone, then the test of agreement."""
    nets = [task.net]
    for seed in (5, 6):  # models that often agree with the first, and are certified elsewhere
        noise = layers(seed)
        nets.append([(w + np.float32(0.15) * v, b) for (w, b), (v, _) in zip(task.net, noise)])
    models = [write(net, tmp_path / f"{k}.onnx") for k, net in enumerate(nets)]
    alone = [single(model, task.data) for model in models]
    found = single(models, task.data)
    agreeing = alone[0].predicted == alone[1].predicted
    assert not agreeing.all()
    answered = ~alone[0].flagged
    going = np.ones(COUNT, dtype=bool)
    for other in alone[1:]:
        going &= other.predicted == alone[0].predicted
        answered |= going & ~other.flagged
    assert (found.flagged == ~answered).all() and (answered & alone[0].flagged).any()
    assert (found.certified == (answered & alone[0].clean)).all()
    counts = found.cascade()
    assert [c["asked"] for c in counts][:2] == [COUNT, int(alone[0].flagged.sum())]
    assert sum(c["certified"] for c in counts) == answered.sum()
    assert counts[1]["differs"] == int((alone[0].flagged & ~agreeing).sum())
    attacked = certify(models, task.data, method="crown", eps=0.05, jobs=1)
    assert (attacked.flagged == found.flagged).all() and not (attacked.attacked & attacked.certified).any()


def test_a_model_that_differs_ends_the_cascade(task, tmp_path):
    """Also where a third model would agree again: the second one may certify another class nearby."""
    w, b = task.net[-1]
    other = write([*task.net[:-1], (w[:, [1, 2, 3, 0]], b[[1, 2, 3, 0]])], tmp_path / "other.onnx")
    first = single(task.model, task.data)
    found = single([task.model, other, task.model], task.data)
    assert (found.flagged == first.flagged).all()
    assert found.cascade()[1]["differs"] == first.flagged.sum() and found.cascade()[2]["asked"] == 0


@dataclass(frozen=True)
class Asks(Strategy):
    """Bounds by CROWN, asked for."""

    name = "asks"
    failure_probability: float = 0.0

    def bound(self, ask, prop, rows):
        return ask(parse_recipe("crown"), prop, rows)


def test_strategies_and_random_recipes(task):
    expected = certify(task.model, task.data, method="crown", eps=0.05, jobs=1)
    found = certify(task.model, task.data, method=Asks(), eps=0.05, jobs=1)
    assert strip(found.items) == strip(expected.items) and found.to_json()["failure_probability"] == 0
    with pytest.raises(UsageError, match="estimates, which prove nothing"):
        certify(task.model, task.data, method=Asks(np.inf), eps=0.05)


def test_a_wrong_proof_is_loud(task, monkeypatch):
    honest = ladder.bound_rows
    monkeypatch.setattr(ladder, "bound_rows", lambda *a, **k: honest(*a, **k) + 1)
    with pytest.raises(AbsdomError, match="has a replayed counterexample, and a bound of .* this is a bug of absdom"):
        certify(task.model, task.data, method="crown", eps=0.5, jobs=1)


def test_what_is_refused(task, tmp_path):
    with pytest.raises(UsageError, match="at least one item"):
        certify(task.model, task.data, method="crown", eps=0.1, limit=0)
    with pytest.raises(UsageError, match="a model"):
        certify([], task.data, method="crown", eps=0.1)
    with pytest.raises(UsageError, match="there is no 'magic'"):
        certify(task.model, task.data, method="magic", eps=0.1)
    w, b = task.net[-1]
    model = write([*task.net[:-1], (w[:, :3], b[:3])], tmp_path / "three.onnx")
    with pytest.raises(UsageError, match=r"first one has \[1, 6\] -> \[1, 4\], model 2 has \[1, 6\] -> \[1, 3\]"):
        certify([task.model, model], task.data, method="crown", eps=0.1)
    with pytest.raises(UsageError, match="rows .'C'. are asked of one model"):
        certify([task.model, task.model], {"x": task.x, "C": np.eye(4)}, method="crown", eps=0.1)


def test_torch_modules(task):
    """Models without a file are judged by absdom's own evaluation."""
    modules: list[torch.nn.Module] = []
    for w, b in task.net:
        linear = torch.nn.Linear(*w.shape)
        linear.weight.data, linear.bias.data = torch.from_numpy(w.T.copy()), torch.from_numpy(b)
        modules += [linear, torch.nn.ReLU()]
    module = torch.nn.Sequential(*modules[:-1])
    expected = certify(task.model, task.data, method="crown", eps=0.05, jobs=1)
    found = certify(module, task.data, method="crown", eps=0.05, jobs=1, example=torch.zeros(1, SIZES[0]))
    assert (found.certified == expected.certified).all() and (found.clean == expected.clean).all()
