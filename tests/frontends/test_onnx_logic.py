"""ONNX ops that compare, decide, choose and rank, against onnxruntime: on ties, on truth tables, on places that move."""

from __future__ import annotations

import csv
import itertools

import numpy as np
import pytest
import torch
from graph_evaluate import evaluate
from onnx import numpy_helper
from onnx_models import model, names_of, node, run

from absdom import api, testing
from absdom.arithmetic import PROOF, SEARCH
from absdom.errors import UnsupportedOp
from absdom.frontends.onnx import load_onnx
from absdom.ir.check import check
from absdom.passes import lower
from absdom.plan import run as plan_run

FLOAT, INT32, INT64, BOOL, INT8 = 1, 6, 7, 9, 3
TIES = [-2.0, -1.5, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5]


def same(data: bytes, points) -> None:
    """The graph gives onnxruntime's numbers at each point, exactly; bounds at points hold, and are those numbers."""
    graph = check(load_onnx(data=data))
    points = np.atleast_2d(np.asarray(points, dtype=np.float32))
    shapes = [graph.nodes[i].type.shape for i in graph.inputs]
    expected = run(data, points, shapes)
    assert [graph.nodes[i].type.shape for i in graph.outputs] == [y.shape for y in expected[0]]
    flat = np.stack([np.concatenate([y.ravel() for y in one]) for one in expected]).astype(np.float64)
    lowered = lower(graph)
    for dtype in (torch.float32, torch.float64):
        assert np.array_equal(evaluate(lowered, points, dtype), flat)
    if len(graph.outputs) == 1:
        boxes = torch.from_numpy(points.astype(np.float64))
        for arithmetic in (PROOF, testing.FLOAT64):  # at a tie, a charged run cannot know on which side it is
            found = testing.bounds_of(lowered, boxes, boxes, "crown", arithmetic)
            low, high = found.lower.reshape(len(boxes), -1).numpy(), found.upper.reshape(len(boxes), -1).numpy()
            assert (low <= flat).all() and (high >= flat).all()
        assert (high - low).max(initial=0) < 1e-9


def floats(*nodes):
    """The last output as float32, so that one kind of model serves all."""
    return [*nodes, node("Cast", "z", "y", to=FLOAT)]


@pytest.mark.parametrize("op", ["Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"])
@pytest.mark.parametrize("kind", [None, INT64])
def test_comparisons_with_ties(op, kind):
    nodes = [node(op, "a b", "z")]
    if kind is not None:
        nodes = [node("Cast", f"{n}", f"{n}i", to=kind) for n in "ab"] + [node(op, "ai bi", "z")]
    data = model(floats(*nodes), {"a": [1], "b": [1]}, "y", opset=16)
    same(data, list(itertools.product(TIES, repeat=2)))
    one = model(floats(node(op, "x c", "z")), {"x": [3]}, "y", {"c": np.array([0.5, -1.0, 2.0])}, opset=16)
    same(one, [[0.5, -1.0, 2.0], [np.nextafter(np.float32(0.5), 1), -1.5, 3.0], [0.4, 0, 1.9]])


@pytest.mark.parametrize("op", ["Floor", "Ceil", "Round"])
def test_rounding_at_and_beside_jumps(op):
    near = [float(np.nextafter(np.float32(v), np.float32(e))) for v in TIES for e in (-np.inf, np.inf)]
    same(model(node(op, "x", "y"), {"x": [1]}, "y"), [[v] for v in TIES + near + [1e10, -8388609.0]])


def test_casts_to_integers_and_booleans():
    values = [[v] for v in TIES + [1e-30, -0.999, 123456.7]]
    for kind in (INT32, INT64, BOOL):
        same(model(floats(node("Cast", "x", "z", to=kind)), {"x": [1]}, "y"), values)
    nodes = [node("Cast", "x", "i", to=INT64), node("Cast", "i", "b", to=BOOL), node("Cast", "b", "z", to=INT8)]
    same(model(floats(*nodes), {"x": [1]}, "y"), values)
    with pytest.raises(UnsupportedOp, match="to=INT8"):
        load_onnx(data=model(floats(node("Cast", "x", "z", to=INT8)), {"x": [1]}, "y"))


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_truth_tables(op):
    nodes = [node("Greater", f"{n} zero", f"{n}t") for n in "ab"] + [node(op, "at bt", "t"), node("Not", "t", "z")]
    data = model(floats(*nodes), {"a": [2, 1], "b": [2]}, "y", {"zero": np.array(0.0)})
    same(data, list(itertools.product((-1.0, 1.0), repeat=4)))
    graph = lower(load_onnx(data=data))
    boxes = torch.tensor([[1.0, 1, 1, 1], [-1, -1, -1, -1]], dtype=torch.float64)
    wide = testing.bounds_of(graph, boxes - 2 * (torch.arange(4) > 1), boxes, "crown", PROOF)
    assert wide.lower.min() < 0.01 and wide.upper.max() > 0.99


def test_nan_and_infinity_do_not_occur():
    for op in ("IsNaN", "IsInf"):
        nodes = [node(op, "x", "t"), node("Where", "t c x", "y")]
        same(model(nodes, {"x": [2]}, "y", {"c": np.array(7.0)}), [[0.5, -3.0]])


@pytest.mark.parametrize("fmod", [0, 1])
def test_mod(fmod):
    values = [[v] for v in range(-7, 8)]
    nodes = [node("Cast", "x", "i", to=INT64), node("Mod", "i c", "z", fmod=fmod)]
    for divisor in (3, -4):
        same(model(floats(*nodes), {"x": [1]}, "y", {"c": np.array(divisor)}), values)
    if fmod:
        same(model(node("Mod", "x c", "y", fmod=1), {"x": [1]}, "y", {"c": np.array(0.5)}), [[-1.75], [2.25], [0.0]])


def test_division_of_integers_cuts_off():
    nodes = [node("Cast", "x", "i", to=INT32), node("Div", "i c", "z")]
    for divisor in (2, -3):
        data = model(floats(*nodes), {"x": [1]}, "y", {"c": np.array(divisor, dtype=np.int32)})
        graph = lower(load_onnx(data=data))
        points = np.arange(-7, 8, dtype=np.float32)[:, None]
        assert np.array_equal(evaluate(graph, points)[:, 0], np.trunc(points[:, 0] / divisor))


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_extremes_of_many(op):
    points = np.random.default_rng(0).integers(-2, 3, (40, 8)).astype(np.float32)
    shapes = {"a": [2, 2], "b": [2], "c": [2, 1]}
    same(model(node(op, "a b c", "y"), shapes, "y"), points)
    constants = {"k": np.array(0.0), "m": np.array([1.0, -1.0])}
    same(model(node(op, "k a m b", "y"), {"a": [2, 2], "b": [2]}, "y", constants), points[:, :6])
    assert "Clip" in names_of(load_onnx(data=model(node(op, "a k", "y"), {"a": [3]}, "y", {"k": np.array(0.5)})))
    same(model(node(op, "a", "y"), {"a": [3]}, "y"), points[:, :3])
    same(model(node(op, "k a", "y"), {"a": [1]}, "y", {"k": np.array([[0.0, 0.0]])}), points[:, :1])


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("keep", [0, 1])
def test_extremes_over_axes(op, keep):
    points = np.random.default_rng(1).normal(size=(4, 12))
    for axes in ([0], [1, 2], [0, 2], [-1], None):
        extra = {} if axes is None else {"axes": axes}
        same(model(node(op, "x", "y", keepdims=keep, **extra), {"x": [2, 3, 2]}, "y"), points)


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
def test_places_of_extremes_with_ties(op, last):
    points = np.random.default_rng(2).integers(0, 3, (60, 6))
    for axis, keep in ((0, 1), (1, 0), (-1, 1)):
        made = node(op, "x", "z", axis=axis, keepdims=keep, select_last_index=last)
        same(model(floats(made), {"x": [2, 3]}, "y"), points)


@pytest.mark.parametrize("largest", [0, 1])
def test_the_largest_and_their_places_with_ties(largest):
    points = np.random.default_rng(3).integers(0, 3, (60, 8))
    nodes = [
        node("TopK", "x k", "v i", axis=1, largest=largest),
        node("Cast", "i", "f", to=FLOAT),
        node("Add", "v f", "y"),
    ]
    same(model(nodes, {"x": [2, 4]}, "y", {"k": [3]}), points)
    same(model(node("TopK", "x k", "y i", axis=0, largest=largest), {"x": [4, 2]}, "y", {"k": [2]}), points)
    with pytest.raises(UnsupportedOp, match="sorted=0"):
        load_onnx(data=model(node("TopK", "x k", "y i", sorted=0), {"x": [4]}, "y", {"k": [2]}))


def test_one_hot():
    for axis, values in ((-1, [0.0, 1.0]), (0, [2.0, -1.5])):
        nodes = [node("Cast", "x", "i", to=INT64), node("OneHot", "i d v", "y", axis=axis)]
        data = model(nodes, {"x": [2]}, "y", {"d": np.array(3), "v": np.array(values)})
        same(data, list(itertools.product(range(-4, 5), repeat=2)))
    nodes = [node("ArgMax", "x", "i", axis=1, keepdims=0), node("OneHot", "i d v", "y")]
    data = model(nodes, {"x": [2, 3]}, "y", {"d": np.array(3), "v": np.array([0.0, 1.0])})
    same(data, np.random.default_rng(4).integers(0, 3, (30, 6)))


def test_where_with_known_and_unknown_conditions():
    points = np.random.default_rng(5).integers(-2, 3, (40, 6))
    nodes = [node("Greater", "a b", "t"), node("Where", "t a b", "y")]
    same(model(nodes, {"a": [2, 2], "b": [2]}, "y"), points)
    constants = {"t": np.array([[True], [False]])}
    data = model(node("Where", "t a b", "y"), {"a": [2, 2], "b": [2]}, "y", constants)
    same(data, points)
    assert "Select" in names_of(lower(load_onnx(data=data)))


def test_reading_at_a_place_that_moves():
    table = {"w": np.arange(8.0).reshape(4, 2) ** 2}
    places = list(itertools.product((-4, -1, 0, 3), repeat=2))
    for axis, inside in ((0, 4), (1, 2)):
        nodes = [node("Cast", "x", "i", to=INT64), node("Gather", "w i", "y", axis=axis)]
        legal = [p for p in places if all(-inside <= v < inside for v in p)]
        same(model(nodes, {"x": [2]}, "y", table), legal)
    nodes = [node("ArgMax", "x", "i", axis=1), node("Gather", "x i", "y", axis=1)]
    same(model(nodes, {"x": [1, 3]}, "y"), np.random.default_rng(6).normal(size=(5, 3)))


def test_writing_at_a_place_that_moves():
    nodes = [node("Cast", "x", "i", to=INT64), node("Reshape", "i s", "r"), node("ScatterND", "w r u", "y")]
    constants = {"w": np.arange(6.0).reshape(3, 2), "u": [[9.0, 8.0]], "s": [1, 1]}
    same(model(nodes, {"x": [1]}, "y", constants), [[v] for v in (-3, -1, 0, 2)])


def patch(length: int, rows: int = 3, columns: int = 4) -> list:
    """Ones, with zeros written into the rows p to p + length and columns q to q + length: slices of what there is."""
    nodes = [node("Cast", "x", "i", to=INT64), node("Split", "i", "p q")]
    for name, axis in (("p", "rows"), ("q", "columns")):
        nodes += [node("Add", f"{name} n", f"{name}e"), node("Slice", f"{axis} {name} {name}e zero", f"{name}s")]
    nodes += [
        node("Reshape", "ps down", "pr"), node("Slice", "ones p pe zero", "part"), node("Slice", "part q qe one", "cut"),
        node("Shape", "cut", "size"), node("Shape", "size", "rank"), node("ConstantOfShape", "rank", "zeros", value=numpy_helper.from_array(np.array([0]))),
        node("Equal", "size minus", "open"), node("Where", "open zeros size", "full"),
        node("Add", "pr qs", "both"), node("Shape", "both", "twice"),
        node("Expand", "pr full", "px"), node("Expand", "qs twice", "qx"),
        node("Unsqueeze", "px last", "pu"), node("Unsqueeze", "qx last", "qu"), node("Concat", "pu qu", "index", axis=-1),
        node("ConstantOfShape", "size", "none"), node("Concat", "size nothing", "joined", axis=0),
        node("Reshape", "none joined", "update"), node("ScatterND", "ones index update", "mask"), node("Mul", "mask w", "y"),
    ]  # fmt: skip
    return model(nodes, {"x": [2]}, "y", {
        "n": [length], "rows": np.arange(rows), "columns": np.arange(columns), "zero": [0], "one": [1], "minus": [-1, -1],
        "down": [-1, 1], "last": [-1], "nothing": np.zeros(0, dtype=np.int64),
        "ones": np.ones((rows, columns)), "w": np.arange(1.0, rows * columns + 1).reshape(rows, columns),
    })  # fmt: skip


@pytest.mark.parametrize("length", [1, 2, 3])
def test_slices_that_end_early(length):
    """At the end, and from the end backwards, the slice is shorter or empty; onnxruntime decides."""
    same(patch(length), list(itertools.product(range(-5, 6), range(-5, 7))))


def test_bounds_of_slices_that_end_early():
    graph = lower(load_onnx(data=patch(2)))
    box = torch.tensor([[1.2, 2.0], [1.9, 3.5], [1.0, 3.0], [1.8, 3.9]], dtype=torch.float64).reshape(2, 2, 2)
    found = testing.bounds_of(graph, box[:, 0], box[:, 1], "interval", PROOF)
    known = evaluate(graph, np.array([[1.0, 2.0], [1.0, 3.0], [1.0, 3.0], [1.0, 3.0]])).reshape(2, 2, 3, 4)
    low, high = found.lower.numpy(), found.upper.numpy()
    assert (low <= known.min(1)).all() and (high >= known.max(1)).all()
    assert np.allclose(low[1], high[1], atol=1e-12)  # one place only
    assert np.allclose(low[0, 0], high[0, 0]) and np.allclose(low[0, :, :2], high[0, :, :2])  # no place reaches these
    assert np.allclose(low[0, 1:, 2:], 0, atol=1e-12)


def test_other_uses_of_a_moving_size_are_refused():
    start = [node("Cast", "x", "p", to=INT64), node("Add", "p one", "e"), node("Slice", "w p e zero", "s")]
    constants = {"one": [1], "two": [2], "zero": [0], "w": np.arange(4.0), "minus": [-1]}
    for nodes in (
        [node("ReduceSum", "s", "y")],
        [node("Identity", "s", "y")],
        [node("Shape", "s", "z"), node("Cast", "z", "y", to=FLOAT)],
        [node("Shape", "s", "z"), node("Add", "z one", "m"), node("Expand", "x m", "y")],
        [node("Concat", "s w", "y", axis=0)],
        [node("Add", "s w", "y")],
        [node("Slice", "w p two zero", "y")],
    ):
        with pytest.raises(UnsupportedOp, match="depends? on the network's input"):
            load_onnx(data=model([*start, *nodes], {"x": [1]}, "y", constants))


@pytest.mark.parametrize("family", ["carvana_unet_2022", "cctsdb_yolo_2023"])
def test_competition_networks_agree_at_corners_and_inside(vnncomp, family):
    rows = [r for r in csv.reader((vnncomp / "dev" / "instances.csv").open()) if r[0].startswith(family)]
    for model_file, query in {r[0]: r[1] for r in rows}.items():
        task = api.read_task(vnncomp / "dev" / model_file, vnncomp / "dev" / query)
        problem, judge = api.make_problem(task)
        inputs = task.property.inputs
        share = np.random.default_rng(0).random((20, inputs.size))
        share[0], share[1] = 0, 1
        points = (inputs.lower[0] + share * (inputs.upper[0] - inputs.lower[0])).astype(np.float32)
        with torch.no_grad():
            found = plan_run.evaluate(problem.engine.evaluator(SEARCH), torch.from_numpy(points)).numpy()
        assert np.allclose(found[:, :1], judge.run(points), rtol=1e-4, atol=1e-5)
