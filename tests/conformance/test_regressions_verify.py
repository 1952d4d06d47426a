"""Ways in which verifiers gave wrong verdicts, each with a small network whose right verdict is known beforehand.

The attack is off: where a counterexample exists, no method may say `unsat`, however it searches.
"""

from __future__ import annotations

import gzip
import os

import mpmath
import numpy as np
import pytest
import torch
from exact_lines import exact_ends
from exact_oracle import real_outputs
from nets import exact_minimum, relu_net
from onnx_models import model, node
from scipy.optimize import OptimizeResult
from small_networks import GRAPHS, MODELS

import absdom.solvers.bab as bab
from absdom import api, ops, registry, testing
from absdom.errors import AbsdomError, UnsupportedOp
from absdom.frontends.onnx import load_onnx
from absdom.frontends.vnnlib import read_vnnlib
from absdom.ir.graph import Builder
from absdom.passes import lower as lower_graph
from absdom.pipeline import Confirm
from absdom.problem import Problem, bound_rows
from absdom.property import InputSet, make_property
from absdom.solvers.bab import leaf_lp
from absdom.types import TensorType

METHODS = ("auto", "interval", "crown", "crown-ibp", "cap")


def verdict(source, prop, method="auto", timeout=20.0) -> str:
    return api.verify(source, prop, method=method, timeout=timeout, attack=False, device="cpu").verdict


def below(bound: float, outputs: int, lower, upper, strict: bool = False):
    """Counterexamples have y_0 <= bound."""
    return make_property(lower, upper, [(0, [(np.eye(outputs)[0], -bound, strict)])])


def single(array) -> np.ndarray:
    """The float32 numbers next to these, in float64."""
    return np.asarray(array).astype(np.float32).astype(np.float64)


def sizes(graph) -> tuple[int, int]:
    return tuple(sum(graph.nodes[i].type.numel for i in ends) for ends in (graph.inputs, graph.outputs))


def network(*layers, inputs: int, dtype=torch.float64):
    """x -> W x + b, with a ReLU between; layers are (W "n m", b "m") as lists."""
    builder = Builder()
    value = builder.input("x", TensorType((1, inputs), str(dtype).removeprefix("torch.")))
    for k, (w, b) in enumerate(layers):
        value = builder.add(ops.Relu(), value) if k else value
        value = builder.add(ops.MatMul(), value, builder.param(torch.tensor(w, dtype=dtype), "w"))
        value = builder.add(ops.Add(), value, builder.param(torch.tensor(b, dtype=dtype), "b"))
    return builder.finish([value])


@pytest.fixture(params=["input", "phases"])
def split(request, monkeypatch):
    """Both searches: on the input box, and on the phases of neurons (with an LP at the end)."""
    if request.param == "phases":
        monkeypatch.setattr(bab, "FEW_INPUTS", 0)
    return request.param


# Convolutions, pools, branches: exact on segments, canaries on boxes


def along_one_input(graph, seed: int, radius: float):
    """A box with one free input, and the exact least value of output 0 over it: inside the box, where one was found."""
    random = np.random.default_rng(seed)
    n, _ = sizes(graph)
    centre = random.standard_normal(n)
    found = []
    for i in random.permutation(n)[: 4 if radius > 1 else 1]:
        free = np.arange(n) == i
        lower, upper = single(centre - radius * free), single(centre + radius * free)
        least = exact_ends(graph, lower, upper)[0][0]
        ends = [real_outputs(lower_graph(graph), torch.from_numpy(x))[0][0] for x in (lower, upper)]
        found.append((float(min(ends) - least), lower, upper, least))
    return max(found, key=lambda f: f[0])[1:]


@pytest.mark.parametrize("make", [*GRAPHS, *MODELS], ids=lambda m: m.__name__)
def test_verdicts_are_exact_along_one_input(make, tmp_path):
    """Layouts of convolutions (dilation, groups, pads), chains without activations, stacked pools, residual branches,
    normalisation in front (skipped, another network was verified): as graphs and through the ONNX front end."""
    source = make(5)
    if isinstance(source, bytes):
        path = tmp_path / "model.onnx"
        path.write_bytes(source)
        source = path
    graph = source if make in GRAPHS else load_onnx(source)
    _, outputs = sizes(graph)
    for radius, gap, methods in ((4.0, 1e-4, ("auto", "crown", "cap")), (7e-8, 1e-5, ("auto",))):
        lower, upper, least = along_one_input(graph, 3, radius)
        assert verdict(source, below(float(least) - gap, outputs, lower, upper)) == "unsat"
        for method in methods:
            assert verdict(source, below(float(least) + gap, outputs, lower, upper), method) != "unsat", (
                radius,
                method,
            )


@pytest.mark.parametrize("make", [*GRAPHS, *MODELS], ids=lambda m: m.__name__)
def test_canaries_on_whole_boxes(make, tmp_path, split):
    """A counterexample was found beforehand; neither search may ever prove that there is none."""
    source = make(11)
    if isinstance(source, bytes):
        path = tmp_path / "model.onnx"
        path.write_bytes(source)
        source = path
    graph = source if make in GRAPHS else load_onnx(source)
    n, outputs = sizes(graph)
    centre = np.random.default_rng(1).standard_normal(n)
    lower, upper = single(centre - 0.2), single(centre + 0.2)
    boxes = [torch.from_numpy(t[None]) for t in (lower, upper)]
    points = testing.sample(lower_graph(graph), *boxes, count=60, steps=12)[0]
    least = testing.enclose(lower_graph(graph), points).upper.flatten(1)[:, 0].min().item()
    assert verdict(source, below(least + 1e-4, outputs, lower, upper), timeout=0.5) != "unsat"


# Floats


@pytest.mark.parametrize("seed", range(3))
def test_neurons_that_hardly_move(seed, split):
    """Float32 bounds of a neuron 1e-7 wide, imposed on a float64 LP: false `unsat`. Boxes 7e-8 wide, kinks inside."""
    random = np.random.default_rng(seed)
    centre, first = random.standard_normal(3), random.standard_normal((3, 5))
    second, third = random.standard_normal((5, 4)) * 1e7, random.standard_normal((4, 1))
    graph = network((first, -(centre @ first)), (second, random.standard_normal(4)), (third, [0.0]), inputs=3)
    lower, upper = centre - 3.5e-8, centre + 3.5e-8
    corners = np.stack([np.where(random.random(3) < 0.5, lower, upper) for _ in range(40)])
    reached = testing.enclose(lower_graph(graph), torch.from_numpy(corners)).upper.min().item()
    assert verdict(graph, below(reached, 1, lower, upper), timeout=0.5) != "unsat"
    assert verdict(graph, below(-1e3, 1, lower, upper), timeout=3) == "unsat"


def test_ends_are_not_snapped_together():
    """Bounds closer than 1e-5 taken for equal: over [0, 1e-6], relu(1e9 x - 500) reaches from 0 to 500."""
    graph = network(([[1e9]], [-500.0]), ([[-1.0]], [0.0]), inputs=1)
    for method in METHODS:
        assert verdict(graph, below(-499.0, 1, [0.0], [1e-6]), method) != "unsat"
    assert verdict(graph, below(-500.001, 1, [0.0], [1e-6])) == "unsat"


def test_a_margin_below_float32_does_not_close():
    """y = (x + 1) - 1 with x in [0, 1e-9]: float32 sees 0 and proves y >= 0 with room to spare; -1e-12 is reached."""
    graph = network(([[1.0]], [1.0]), ([[1.0]], [-1.0 - 1e-12]), inputs=1)
    for method in METHODS:
        assert verdict(graph, below(0.0, 1, [0.0], [1e-9]), method) != "unsat"
    assert verdict(graph, below(-2e-12, 1, [0.0], [1e-9])) == "unsat"


@pytest.mark.parametrize("method", METHODS)
def test_the_least_value_is_zero(method):
    """`lower >= 0` taken as a proof of y > 0, and strict atoms moved by a margin. y = relu(x): 0 is reached, below is not."""
    graph = network(([[1.0]], [0.0]), ([[1.0]], [0.0]), inputs=1)
    assert verdict(graph, below(0.0, 1, [-1.0], [1.0]), method) != "unsat"
    assert verdict(graph, below(1e-9, 1, [-1.0], [1.0], strict=True), method) != "unsat"


def test_strict_atoms_are_closed_for_proofs():
    """`<` written as `<= -margin` loses counterexamples: y = relu(x) - 1e-9 is below zero, by less than any margin."""
    graph = network(([[1.0]], [0.0]), ([[1.0]], [-1e-9]), inputs=1)
    assert verdict(graph, below(0.0, 1, [-1.0], [1.0], strict=True)) != "unsat"
    graph = network(([[1.0]], [0.0]), ([[1.0]], [0.0]), inputs=1)
    assert verdict(graph, below(-1e-12, 1, [-1.0], [1.0], strict=True)) == "unsat"


def test_doubles_are_padded_with_nothing():
    """Max pools padded with -1e10 in double precision, or with float32's lowest number: values below it are lost."""
    values = -np.array([[[[1e300, 2e300], [3e300, 4e300]]]])
    data = model(
        [node("Add", "x c", "a"), node("MaxPool", "a", "b", kernel_shape=[2, 2], pads=[1, 1, 1, 1], strides=[3, 3])],
        {"x": [1, 1, 2, 2]}, "b", {"c": values}, dtype=np.float64,
    )  # fmt: skip
    graph = lower_graph(load_onnx(data=data))
    point = torch.zeros(1, 4, dtype=torch.float64)
    for recipe in ("interval", "crown"):
        found = testing.bounds_of(graph, point, point, recipe, testing.PROOF)
        assert found.lower.flatten()[0] <= -1e300 <= found.upper.flatten()[0] <= -0.999e300, recipe


# Properties


BOX = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 -1))(assert (<= X_0 1))"


@pytest.mark.parametrize(
    "atoms, expected",
    [
        ("(assert (or (and (<= Y_0 -1)) (and (>= Y_0 0.5))))(assert (<= Y_0 0.4))", "unsat"),
        ("(assert (<= Y_0 0.4))(assert (or (and (<= Y_0 -1)) (and (>= Y_0 0.5))))", "unsat"),
        ("(assert (or (and (<= Y_0 -1)) (and (>= Y_0 0.5))))(assert (<= Y_0 0.6))", "sat"),
        ("(assert (or (<= Y_0 -1) (and (>= Y_0 0.5) (or (<= Y_0 0.1) (>= Y_0 2)))))", "unsat"),
        ("(assert (or (and (<= X_0 -0.5) (>= Y_0 0.1)) (and (>= X_0 0.5) (<= Y_0 0.4))))", "unsat"),
        ("(assert (or (and (<= X_0 -0.5) (>= Y_0 0.1)) (and (>= X_0 0.5) (<= Y_0 0.6))))", "sat"),
        ("(assert (or (and (>= X_0 0.5) (<= Y_0 0.4)) (and (<= X_0 -0.5) (<= Y_0 0.0))))", "sat"),
        ("(assert (<= Y_0 X_0))(assert (<= X_0 -0.001))", "unsat"),
        ("(assert (<= Y_0 X_0))", "sat"),
    ],
)
def test_conjuncts_beside_an_or_and_boxes_per_disjunct(atoms, expected):
    """Loaders that drop what stands beside an `or`, or clip every disjunct to the box of one. y = relu(x)."""
    graph = network(([[1.0]], [0.0]), ([[1.0]], [0.0]), inputs=1)
    prop = read_vnnlib(data=(BOX + atoms).encode(), name="p.vnnlib")
    assert verdict(graph, prop) == expected
    for method in METHODS[1:]:
        assert verdict(graph, prop, method) in (expected, "unknown")


def test_one_clause_does_not_clip_the_box_of_another(split):
    """Boxes shrunk to where one disjunct can still fail, and then used for all: the other's counterexample is cut off."""
    graph = network(([[1.0, -1.0]], [0.0, 0.0]), ([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0]), inputs=1)  # relu(x), relu(-x)
    high = [(0, [([-1.0, 0.0], 1.5, False)])]  # relu(x) >= 1.5: never
    left = [(0, [([0.0, -1.0], 0.97, False)])]  # relu(-x) >= 0.97: far left
    right = [(0, [([-1.0, 0.0], 0.97, False)])]  # relu(x) >= 0.97: far right
    for clauses in (high + left, left + high, right + high, left + right, right + left):
        assert verdict(graph, make_property([-1.0], [1.0], clauses), timeout=5) == "sat"
    both = [(0, left[0][1] + right[0][1])]
    assert verdict(graph, make_property([-1.0], [1.0], both), timeout=5) == "unsat"
    mixed = [(0, left[0][1] + right[0][1]), *left]
    assert verdict(graph, make_property([-1.0], [1.0], mixed), timeout=5) == "sat"


def test_bounds_in_the_text_are_the_bounds():
    """A box rebuilt from its middle and radius is off by an ulp."""
    text = BOX.replace("-1", "0.1").replace(" 1)", " 0.3)") + "(assert (<= Y_0 0))"
    inputs = read_vnnlib(data=text.encode(), name="p.vnnlib").inputs
    assert (inputs.lower[0, 0], inputs.upper[0, 0]) == (0.1, 0.3)


# Searches


@pytest.mark.parametrize("far", [0.0, 1e3])
@pytest.mark.parametrize("seed", [0, 3])
def test_splits_far_from_the_origin(seed, far, split):
    """LPs in mixed coordinates, relaxations kept from before a split: exact verdicts, also for a box around 1000."""
    graph, layers = relu_net((2, 4, 3, 2), seed)
    w, b = layers[0]
    moved = b - far * w.sum(0)
    graph.params["b0"].copy_(torch.from_numpy(moved))
    lower, upper = far - np.ones(2), far + np.ones(2)
    c = np.array([1.0, -1.0])
    least = exact_minimum([(w, moved), *layers[1:]], c, 0.0, lower, upper)
    for gap, wrong, right in ((-0.01, "sat", "unsat"), (0.01, "unsat", "sat")):
        found = verdict(graph, make_property(lower, upper, [(0, [(c, -least - gap, False)])]), timeout=10)
        assert found != wrong
        assert found == right or gap > 0


def test_a_context_keeps_nothing_of_an_earlier_box():
    """Relaxations of the whole box used on a part of it, or of the part on the whole."""
    graph, _ = relu_net((3, 6, 6, 2), 5)
    problem = Problem.of(graph, below(0.0, 2, -np.ones(3), np.ones(3)))
    crown, fresh = registry.recipes()["crown"](), Problem.of(graph, problem.property)
    whole = below(0.0, 2, -np.ones(3), np.ones(3))
    part = below(0.0, 2, np.zeros(3), np.ones(3))
    first = [bound_rows(problem.engine, crown, testing.PROOF, p, np.arange(1))[0] for p in (whole, part, whole, part)]
    again = bound_rows(fresh.engine, crown, testing.PROOF, part, np.arange(1))[0]
    assert first == [first[0], first[1]] * 2 and again == first[1]
    assert first[1] > first[0]


@pytest.mark.parametrize("answer", ["infeasible", "wrong duals", "failure"])
def test_solvers_are_not_believed(answer, monkeypatch):
    """An LP solver in numerical trouble says `infeasible`, or gives duals that prove nothing: never `unsat` by its word."""
    asked = []

    def liar(c, A=None, b=None, bounds=None, **more):
        asked.append(answer)
        n = len(b) if b is not None else 0
        if answer == "infeasible" and len(asked) % 2:
            return OptimizeResult(status=2, fun=None, x=None)
        if answer == "failure":
            return OptimizeResult(status=4, fun=None, x=None)
        marginals = -np.random.default_rng(len(asked)).random(n) * 1e6
        return OptimizeResult(status=0, fun=1.0, x=np.zeros(len(c)), ineqlin=OptimizeResult(marginals=marginals))

    monkeypatch.setattr(leaf_lp, "linprog", liar)
    monkeypatch.setattr(bab, "FEW_INPUTS", 0)
    for seed in range(3):
        graph, layers = relu_net((3, 3, 3, 2), 30 + seed)
        c = np.array([1.0, 0.0])
        least = exact_minimum(layers, c, 0.0, -np.ones(3), np.ones(3))
        prop = make_property(-np.ones(3), np.ones(3), [(0, [(c, -least - 1e-3, False)])])
        assert verdict(graph, prop, timeout=1) != "unsat"
    assert asked, "no leaf came to the LP: the test sees nothing"


def test_a_stage_that_fails_proves_nothing(monkeypatch):
    """An assertion swallowed inside a stage turned into `unsat`."""

    def broken(*_, **__):
        raise AssertionError("inside")

    graph, _ = relu_net((3, 6, 6, 2), 2)
    registry.load()
    monkeypatch.setitem(registry._services, "bab", broken)
    with pytest.raises(AssertionError, match="inside"):
        verdict(graph, below(0.0, 2, -np.ones(3), np.ones(3)))


# Models and witnesses


LINE = [node("Mul", "x w", "a"), node("Relu", "a", "y")]


def line(weight: float) -> bytes:
    return model(LINE, {"x": [1, 1]}, "y", {"w": np.array([[weight]])})


def test_a_changed_file_is_read_again(tmp_path):
    """A cached translation of a model that was overwritten (same path, same size, same time) is another network."""
    path = tmp_path / "model.onnx"
    prop = make_property([0.0], [1.0], [(0, [([-1.0], 1.5, False)])])  # relu(w x) >= 1.5
    for weight, expected in ((1.0, "unsat"), (2.0, "sat"), (1.0, "unsat")):
        path.write_bytes(line(weight))
        os.utime(path, (1e9, 1e9))
        assert verdict(path, prop) == expected


def test_a_model_that_was_misread_is_an_error(tmp_path, monkeypatch):
    """A loaded graph that disagrees with onnxruntime, mentioned in passing: it has to stop the run."""
    path = tmp_path / "model.onnx"
    path.write_bytes(line(2.0))
    task = api.read_task(path, make_property([0.0], [1.0], [(0, [([-1.0], 1.5, False)])]))
    other = api.Task(load_onnx(data=line(1.0)), task.property, task.judge, task.files)
    with pytest.raises(AbsdomError):
        api.make_problem(other)


def test_ops_that_are_not_known_are_errors(tmp_path):
    """Dispatch without an else: an unknown op fell through, and its input was taken for its output."""
    path = tmp_path / "model.onnx"
    path.write_bytes(model([node("Relu", "x", "a"), node("Det", "a", "y")], {"x": [2, 2]}, "y"))
    with pytest.raises(UnsupportedOp, match="Det"):
        verdict(path, make_property(-np.ones(4), np.ones(4), [(0, [([1.0], 0.0, False)])]))


def test_a_witness_lies_in_the_box_exactly():
    """Counterexamples accepted 1e-4 outside of the box, or with outputs 1e-4 short."""
    graph = network(([[1.0]], [0.0]), ([[1.0]], [0.0]), inputs=1, dtype=torch.float32)
    for bound, point, accepted in (
        (1.00005, 1.0001, False),
        (1.0, 1.0, True),
        (1.00005, 1.0, False),
        (0.9, 0.5, False),
    ):
        prop = make_property([0.0], [1.0], [(0, [([-1.0], bound, False)])])  # y >= bound
        problem, judge = api.make_problem(api.read_task(graph, prop))
        assert (Confirm(problem, judge)(0, np.array([point])) is not None) == accepted
        assert (verdict(graph, prop) == "sat") == (bound <= 1)


def test_the_judge_is_named_with_its_version(tmp_path):
    """Another version of onnxruntime than the one that keeps the score: what replayed the witness has to be on record."""
    import onnxruntime

    path = tmp_path / "model.onnx"
    path.write_bytes(line(2.0))
    prop = make_property([0.0], [1.0], [(0, [([-1.0], 1.5, False)])])
    result = api.verify(path, prop, device="cpu")
    assert result.verdict == "sat" and onnxruntime.__version__ in result.witness.judge
    assert result.provenance["versions"]["onnxruntime"] == onnxruntime.__version__


@pytest.mark.parametrize("norm", [0.5, 3, 4, 0])
def test_norms_without_a_dual_are_errors(norm):
    """The 2-norm taken for every other p, silently."""
    with pytest.raises(AbsdomError, match="norm"):
        InputSet.ball(np.zeros(2), 0.1, norm)


def test_reduced_precision_is_off():
    """TF32 in convolutions moves outputs by 4e-3."""
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        graph, _ = relu_net((2, 3, 2), 0)
        result = api.verify(graph, below(-100.0, 2, -np.ones(2), np.ones(2)), device="cpu")
        assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
        assert result.provenance["precision"]["tf32"] is False
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


def test_functions_are_not_sampled():
    """Bounds of nonlinear functions from a handful of points: a dip of width 0.01 lies between any of them."""
    builder = Builder()
    x = builder.input("x", TensorType((1, 1), "float64"))
    scale = builder.param(torch.tensor([[1e3, 1e3]], dtype=torch.float64), "w")
    shift = builder.param(torch.tensor([-305.1, -307.1], dtype=torch.float64), "b")
    steps = builder.add(ops.Sigmoid(), builder.add(ops.Add(), builder.add(ops.MatMul(), x, scale), shift))
    dip = builder.add(ops.MatMul(), steps, builder.param(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), "v"))
    graph = builder.finish([dip])  # -(sigmoid(1000 x - 305.1) - sigmoid(1000 x - 307.1)): -0.46 at 0.3061
    least = float(-mpmath.tanh(0.5))
    for method in METHODS:
        assert verdict(graph, below(least + 1e-3, 1, [-5.0], [5.0]), method) != "unsat"
    assert verdict(graph, below(least - 1e-3, 1, [-5.0], [5.0])) == "unsat"


def test_two_models_of_one_name(tmp_path):
    """Verdicts looked up by the base name of a file: two models called alike, in two folders, are two models."""
    prop = make_property([0.0], [1.0], [(0, [([-1.0], 1.5, False)])])
    for folder, weight, expected in (("a", 1.0, "unsat"), ("b", 2.0, "sat")):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "model.onnx.gz"
        path.write_bytes(gzip.compress(line(weight)))
        assert verdict(path, prop) == expected
