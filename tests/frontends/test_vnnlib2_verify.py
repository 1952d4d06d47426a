"""VNN-LIB 2 queries end to end: several inputs, values inside the network, products, `!=`; verdicts and witnesses."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx_models import model, node

import absdom
from absdom.errors import ModelError, PropertyError
from absdom.frontends.onnx import Judge, load_onnx
from absdom.frontends.vnnlib import read_vnnlib
from absdom.registry import service

UNIT = np.eye(2)


def identity(dtype=np.float32) -> bytes:
    """y = relu(x) - relu(-x), which is x; `kept` = relu(x); `side` = 2 x, which no output depends on."""
    nodes = [
        node("Gemm", "x W", "both"), node("Relu", "both", "kept:0"), node("Gemm", "kept:0 V", "y"),
        node("Add", "x x", "side"),
    ]  # fmt: skip
    weights = {"W": np.hstack([UNIT, -UNIT]), "V": np.vstack([UNIT, -UNIT])}
    return model(nodes, {"x": ["batch", 2]}, "y", weights, dtype=dtype)


def scaled() -> bytes:
    """Two inputs, one of them a single number, and two outputs: y = s relu(x W), t = s - sum(x)."""
    nodes = [
        node("MatMul", "x W", "z"), node("Relu", "z", "hidden"), node("Mul", "hidden s", "y"),
        node("ReduceSum", "x", "total", keepdims=0), node("Sub", "s total", "t"),
    ]  # fmt: skip
    return model(nodes, {"x": [1, 2], "s": []}, "y t", {"W": [[1.0, -1.0], [0.5, 1.0]]})


HEAD = """(vnnlib-version <2.0>)
(declare-network N
  (declare-input X {dtype} [1,2])
  {hidden}
  (declare-output Y {dtype} [1,2]))
"""


def box(name: str, low: float, high: float) -> str:
    return f"(assert (and (>= {name} {low}) (<= {name} {high})))\n"


def query(body: str, low=0.0, high=2.0, hidden="", dtype="float32") -> str:
    return HEAD.format(dtype=dtype, hidden=hidden) + box("X[0,0]", low, high) + box("X[0,1]", low, high) + body


@pytest.fixture
def verify(tmp_path):
    def run(data: bytes, text: str, **options):
        (tmp_path / "m.onnx").write_bytes(data)
        (tmp_path / "q.vnnlib").write_text(text)
        options = {"timeout": 20, "device": "cpu", **options}
        return absdom.verify(tmp_path / "m.onnx", tmp_path / "q.vnnlib", **options)

    return run


KEPT = '(declare-hidden H float32 [1,4] "kept:0")'
CASES = {
    "product of outputs": ("(assert (>= (* Y[0,0] Y[0,1]) 4.5))", "unsat", {}),
    "product of outputs, reached": ("(assert (>= (* Y[0,0] Y[0,1]) 3.9))", "sat", {}),
    "product of inputs": ("(assert (>= (* X[0,0] X[0,1]) 4.5))", "unsat", {}),
    "product of inputs, reached": ("(assert (>= (* X[0,0] X[0,1]) 4.0))", "sat", {}),
    "input times output": ("(assert (<= (* X[0,0] Y[0,1]) -4.1))", "unsat", {"low": -2.0}),
    "input times output, reached": ("(assert (<= (* X[0,0] Y[0,1]) -3.9))", "sat", {"low": -2.0}),
    # The least of a^2 + b^2 where a + b >= 1.2 is 0.72.
    "squares": (
        "(assert (>= (+ Y[0,0] Y[0,1]) 1.2))(assert (<= (+ (* Y[0,0] Y[0,0]) (* Y[0,1] Y[0,1])) 0.7))", "unsat", {}
    ),
    "squares, reached": (
        "(assert (>= (+ Y[0,0] Y[0,1]) 1.2))(assert (<= (+ (* Y[0,0] Y[0,0]) (* Y[0,1] Y[0,1])) 0.75))", "sat", {}
    ),
    "a square is not negative": ("(assert (<= (* X[0,0] X[0,0]) -0.001))", "unsat", {"low": -1.0}),
    "a cube": ("(assert (<= (- (* Y[0,0] Y[0,0] Y[0,0]) X[0,1]) -10.5))", "unsat", {"low": -2.0}),
    "a cube, reached": ("(assert (<= (- (* Y[0,0] Y[0,0] Y[0,0]) X[0,1]) -9.0))", "sat", {"low": -2.0}),
    "unequal": ("(assert (!= Y[0,0] (+ Y[0,0] 0.0)))", "unsat", {}),
    "unequal beside a band": (
        "(assert (!= Y[0,0] 0.5))(assert (<= Y[0,0] -0.25))", "unsat", {}
    ),
    "unequal, reached": ("(assert (!= Y[0,0] 0.5))", "sat", {}),
    "not": ("(assert (not (or (<= Y[0,0] 2.5) (and (<= Y[0,1] 9.0) (!= X[0,0] 7.0)))))", "unsat", {}),
    "not, reached": ("(assert (not (or (<= Y[0,0] 1.5) (== Y[0,1] 1.0))))", "sat", {}),
    "strict": ("(assert (> Y[0,0] 2.001))", "unsat", {}),
    "hidden": ("(assert (>= (+ H[0,0] H[0,2]) 2.1))", "unsat", {"low": -2.0, "hidden": KEPT}),
    "hidden, reached": ("(assert (>= (+ H[0,2] Y[0,1]) 3.5))", "sat", {"low": -2.0, "hidden": KEPT}),
    "hidden times output": ("(assert (<= (* H[0,0] Y[0,0]) -0.01))", "unsat", {"hidden": KEPT}),
    "hidden times output, reached": ("(assert (>= (* H[0,0] Y[0,1] X[0,0]) 7.5))", "sat", {"hidden": KEPT}),
    "hidden beside the outputs": (
        "(assert (>= S[0,0] 4.1))", "unsat", {"hidden": '(declare-hidden S float32 [1,2] "side")'}
    ),
    "hidden beside the outputs, reached": (
        "(assert (>= S[0,0] 3.9))", "sat", {"hidden": '(declare-hidden S float32 [1,2] "side")'}
    ),
    "an output is no secret": (
        "(assert (>= S[0,0] (+ Y[0,0] 0.01)))", "unsat", {"hidden": '(declare-hidden S float32 [1,2] "y")'}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_verdicts(verify, name):
    body, verdict, options = CASES[name]
    result = verify(identity(), query(body, **options))
    assert result.verdict == verdict and result.guarantee == "REAL"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[1] == "sat"])
@pytest.mark.parametrize("method", ["auto", "ibp", "crown"])
def test_without_the_attack_it_is_never_proved(verify, name, method):
    body, _, options = CASES[name]
    assert verify(identity(), query(body, **options), attack=False, method=method, timeout=0.7).verdict != "unsat"


def replay(data: bytes, inputs: dict, wanted: list[str]) -> list[np.ndarray]:
    """The values of these names by onnxruntime, on the model with what is hidden added to its outputs."""
    proto = onnx.load_model_from_string(data)
    have = {o.name for o in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in have)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(wanted, inputs)


TWO = """(vnnlib-version <2.0>)
(declare-network N (declare-input X float32 [1,2]) (declare-input s float32 [])
  (declare-hidden H float32 [1,2] "hidden") (declare-output Y float32 [1,2]) (declare-output t float32 [1]))
""" + box("X[0,0]", -1.0, 1.0) + box("X[0,1]", 0.25, 1.0) + box("s", 0.5, 3.0)  # fmt: skip


def test_two_inputs_and_two_outputs(verify, tmp_path):
    product = "(assert (<= (* H[0,0] s) (- Y[0,0] 0.3)))"  # y = s relu(x W)
    assert verify(scaled(), TWO + product).verdict == "unsat"
    result = verify(scaled(), TWO + "(assert (and (>= (* H[0,0] s X[0,1]) 3.5) (<= (+ t[0] X[0,0]) 2.5)))")
    assert result.verdict == "sat"
    assert verify(scaled(), TWO + "(assert (>= (+ t[0] X[0,0] X[0,1]) (+ s 0.01)))").verdict == "unsat"

    names = [variable.name for variable, _ in result.witness.tensors()]
    values = {variable.name: value for variable, value in result.witness.tensors()}
    assert names == ["X", "s", "H", "Y", "t"] and values["s"].shape == () and values["H"].shape == (1, 2)
    found = replay(scaled(), {"x": values["X"], "s": values["s"]}, ["hidden", "y", "t"])
    for name, value in zip(("H", "Y", "t"), found, strict=True):
        np.testing.assert_array_equal(values[name].ravel(), value.ravel())
    h, s, x1, t, x0 = (
        Fraction(float(v))
        for v in (values["H"][0, 0], values["s"], values["X"][0, 1], values["t"][0], values["X"][0, 0])
    )
    assert h * s * x1 >= Fraction(3.5) and t + x0 <= Fraction(2.5)

    service("serialise-assignments")(result.witness, tmp_path / "new" / "folder")
    for name in names:
        tensor = onnx.TensorProto.FromString((tmp_path / "new" / "folder" / f"{name}.pb").read_bytes())
        assert tensor.name == name
        array = numpy_helper.to_array(tensor)
        assert array.dtype == np.float32 and array.shape == values[name].shape
        np.testing.assert_array_equal(array, values[name])


@pytest.mark.parametrize("seed", range(10))
def test_random_queries_with_a_known_witness_are_never_proved(tmp_path, seed):
    """The instance is sat by construction; no method may say unsat, and with the attack on a found witness is exact."""
    rng = np.random.default_rng(seed)
    n = 3 if seed % 3 else 20  # many inputs: the search splits neurons, not the box
    weights = {"W": rng.normal(size=(n, 5)) / np.sqrt(n / 3), "c": rng.normal(size=5), "V": rng.normal(size=(5, 2))}
    nodes = [node("Gemm", "x W c", "z"), node("Relu", "z", "h"), node("Gemm", "h V", "y")]
    data = model(nodes, {"x": [1, n]}, "y", weights)
    (tmp_path / "m.onnx").write_bytes(data)
    names = [f"X[0,{i}]" for i in range(n)] + [f"Y[0,{i}]" for i in range(2)] + [f"H[0,{i}]" for i in range(5)]
    x = rng.uniform(-1, 1, n).astype(np.float32)
    y, h = replay(data, {"x": x[None]}, ["y", "h"])
    values = dict(zip(names, map(float, [*x, *y.ravel(), *h.ravel()])))
    text = f"""(vnnlib-version <2.0>)(declare-network N (declare-input X real [1,{n}])
      (declare-hidden H real [1,5] "h") (declare-output Y real [1,2]))\n"""
    text += "".join(box(f"X[0,{i}]", -1.0, 1.0) for i in range(n))
    for _ in range(2):
        terms, total = [], 0.0
        for _ in range(rng.integers(1, 4)):
            factors = rng.choice(names, size=rng.integers(1, 4)).tolist()
            weight = round(float(rng.normal()), 3)
            terms.append(f"(* {weight} {' '.join(factors)})")
            total += weight * np.prod([values[f] for f in factors])
        head, slack = (">=", -1) if rng.random() < 0.5 else ("<=", 1)
        text += f"(assert ({head} (+ 0.0 {' '.join(terms)}) {total + slack * 1e-3 * (1 + abs(total)):.9f}))\n"
    (tmp_path / "q.vnnlib").write_text(text)
    prop = read_vnnlib(tmp_path / "q.vnnlib")
    assert prop.is_counterexample(x, np.concatenate([y.ravel(), h.ravel()])) == (0,)
    for method in ("auto", "ibp", "crown"):
        result = absdom.verify(tmp_path / "m.onnx", prop, attack=False, method=method, timeout=0.5, device="cpu")
        assert result.verdict != "unsat"
    result = absdom.verify(tmp_path / "m.onnx", prop, timeout=3, device="cpu")
    assert result.verdict != "unsat"
    if result.witness is not None:
        assert prop.is_counterexample(result.witness.x, result.witness.y)


# -- the model and the query have to fit


def test_float64_models_and_real(verify):
    double = identity(np.float64)
    body = "(assert (>= (* Y[0,0] Y[0,1]) 4.5))"
    assert verify(double, query(body, dtype="float64")).verdict == "unsat"
    assert verify(double, query(body, dtype="real")).verdict == "unsat"
    with pytest.raises(PropertyError, match="declared as X float32.*in the model it is float64"):
        verify(double, query(body))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("X float32 [1,2]", "X float32 [1,3]", r"input tensor is declared as X float32 \[1,3\]"),
        ("Y float32 [1,2]", "Y float32 [1,3]", r"output tensor is declared as Y float32 \[1,3\]"),
        (
            "(declare-output",
            "(declare-output Z float32 [1])\n(declare-output",
            "declared with 2 outputs, the model has 1",
        ),
        ("(declare-hidden", "(declare-input Z float32 [1])\n(declare-hidden", "declared with 2 inputs"),
        ("H float32 [1,4]", "H float32 [1,5]", "hidden tensor is declared as H"),
    ],
)
def test_declarations_that_do_not_fit(verify, old, new, message):
    text = query("(assert (>= Y[0,0] 1.0))", hidden=KEPT).replace(old, new)
    text += box("Z[0]", 0.0, 1.0) if "input Z" in new else box("X[0,2]", 0.0, 1.0) if "X float" in new else ""
    with pytest.raises(PropertyError, match=message):
        verify(identity(), text)


def test_hidden_values_that_do_not_exist(verify):
    with pytest.raises(ModelError, match=r"no node of the model makes a value called 'kept' \(is 'kept:0' meant\?\)"):
        verify(identity(), query("(assert (>= Y[0,0] 1.0))", hidden=KEPT.replace("kept:0", "kept")))
    with pytest.raises(ModelError, match="'x'"):
        verify(identity(), query("(assert (>= Y[0,0] 1.0))", hidden=KEPT.replace("kept:0", "x")))


def test_axes_of_size_one_count_for_nothing(verify):
    text = query("(assert (>= (* Y[0] Y[1]) 4.5))").replace("Y float32 [1,2]", "Y float32 [2]")
    assert verify(identity(), text).verdict == "unsat"


def test_the_judge_and_the_graph_expose_the_same_values():
    hidden = ("side", "kept:0", "y")
    graph, judge = load_onnx(data=identity(), hidden=hidden), Judge(data=identity(), hidden=hidden)
    assert [graph.nodes[i].type.numel for i in graph.outputs] == [2, 2, 4, 2]
    found = judge.run(np.array([[0.5, -0.25], [-1.0, 2.0]], dtype=np.float32))
    np.testing.assert_array_equal(found[0], [0.5, -0.25, 1, -0.5, 0.5, 0, 0, 0.25, 0.5, -0.25])
    np.testing.assert_array_equal(found[1], [-1, 2, -2, 4, 0, 2, 1, 0, -1, 2])
    assert [name for name, _ in judge.output_names] == ["y", "side", "kept:0", "y"]


def test_a_graph_in_place_of_a_file():
    graph = load_onnx(data=identity())
    prop = read_vnnlib(data=query("(assert (>= (* H[0,0] Y[0,1]) 3.5))", hidden=KEPT).encode())
    result = absdom.verify(graph, prop, timeout=20, device="cpu")
    assert result.verdict == "sat" and len(result.witness.y) == 6
    prop = read_vnnlib(data=query("(assert (>= (* H[0,0] Y[0,1]) 4.5))", hidden=KEPT).encode())
    assert absdom.verify(graph, prop, timeout=20, device="cpu").verdict == "unsat"


def test_bounds_of_rows_with_products_hold(tmp_path):
    (tmp_path / "m.onnx").write_bytes(scaled())
    body = (
        "(assert (<= (+ (* H[0,0] s X[0,1]) (* X[0,0] X[0,0]) (* t[0] -1.0)) 0.5))(assert (>= (* Y[0,1] H[0,1]) 1.0))"
    )
    prop = read_vnnlib(data=(TWO + body).encode())
    rng = np.random.default_rng(0)
    judge = Judge(tmp_path / "m.onnx", hidden=prop.interface.hidden)
    points = prop.inputs.lower + rng.random((300, 3)) * (prop.inputs.upper - prop.inputs.lower)
    points[:8] = [[a, b, c] for a in (-1, 1) for b in (0.25, 1) for c in (0.5, 3)]
    points = points.astype(np.float32)
    rows = np.stack([prop.spec.C @ prop.vector(x, judge.run(x)) + prop.spec.d for x in points]).min(0)
    for method in ("ibp", "crown-ibp", "crown", "cap"):
        report = absdom.bound(tmp_path / "m.onnx", prop, method=method, device="cpu", proof=True)
        lower = np.array([value for _, _, value in report.rows])
        assert (lower <= rows + 1e-5).all() and np.isfinite(lower).all()
    assert "Product" in absdom.api.plan(tmp_path / "m.onnx", prop)


@pytest.mark.parametrize(("level", "verdict"), [(2.9, "sat"), (3.1, "unsat")])
def test_an_output_that_does_not_depend_on_the_input(verify, level, verdict):
    data = model(node("Add", "c d", "y"), {"x": [1, 2]}, "y", {"c": [[1.0, 2.0]], "d": [[0.0, 1.0]]})
    assert verify(data, query(f"(assert (>= Y[0,1] {level}))")).verdict == verdict
