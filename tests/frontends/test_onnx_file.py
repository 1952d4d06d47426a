"""Whole files: constants, names, several inputs, what is refused, the judge, and the competition's networks."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from graph_evaluate import evaluate
from onnx import TensorProto, helper, numpy_helper
from onnx_models import agree, model, names_of, node

from absdom.errors import ModelError, UnsupportedOp
from absdom.frontends.onnx import Judge, check_agreement, load_onnx
from absdom.passes import lower
from absdom.registry import service

VNNCOMP = Path(__file__).resolve().parents[3] / "shared" / "vnncomp"
RELU = model(node("Relu", "x", "y", "r"), {"x": [1, 3]}, "y")
W = np.random.default_rng(0).normal(size=(3, 3))


def edited(data: bytes, change) -> bytes:
    proto = onnx.load_model_from_string(data)
    change(proto)
    return proto.SerializeToString()


# Constants.


def test_shape_arithmetic_folds_away():
    """The usual export of x.view(x.size(0), -1) and of x[:, :n // 2], n taken from the shape through floats."""
    nodes = [
        node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Unsqueeze", "n axis", "n1"),
        node("Concat", "n1 minus", "target", axis=0), node("Reshape", "x target", "flat"),
        node("Shape", "flat", "fs", start=1), node("Cast", "fs", "ff", to=1), node("Div", "ff two", "half"),
        node("Floor", "half", "floor"), node("Cast", "floor", "end", to=7), node("Slice", "flat axis1 end axis1", "y"),
    ]  # fmt: skip
    constants = {"zero": np.array(0), "axis": [0], "minus": [-1], "two": np.array([2.0]), "axis1": [1]}
    nodes[-1] = node("Slice", "flat start end axis1", "y")
    graph = agree(model(nodes, {"x": ["batch", 3, 5]}, "y", constants | {"start": [0]}, opset=15))
    assert names_of(graph) == ["Input", "Reshape", "Slice"]
    assert graph.nodes[graph.outputs[0]].type.shape == (1, 7)


@pytest.mark.parametrize(
    ("op", "values"), [("Div", ([-7, 7], [2, -2])), ("Mod", ([-7, 7], [3, -3])), ("Sub", ([1, 2], [3]))]
)
def test_integer_arithmetic_is_onnxruntimes(op, values):
    """Cast back to float, so that the integers are seen."""
    nodes = [node(op, "a b", "c"), node("Cast", "c", "f", to=1), node("Add", "x f", "y")]
    agree(model(nodes, {"x": [2]}, "y", dict(zip("ab", values, strict=True))))


def test_chain_of_constant_ops():
    nodes = [
        node("Range", "zero four one", "r"), node("Equal", "r two", "e"), node("Where", "e big small", "w"),
        node("ConstantOfShape", "shape", "ones", value=numpy_helper.from_array(np.array([1.0], dtype=np.float32))),
        node("Mul", "w ones", "m"), node("Tile", "m reps", "t"), node("Add", "x t", "y"),
    ]  # fmt: skip
    constants = {k: np.array(v) for k, v in (("zero", 0), ("four", 4), ("one", 1), ("two", 2))}
    constants |= {"big": np.array(3.0), "small": np.array(0.5), "shape": [4], "reps": [2]}
    agree(model(nodes, {"x": [8]}, "y", constants))


def test_rounding_arithmetic_on_constants_stays_in_the_graph():
    nodes = [node("Mul", "w s", "ws"), node("Transpose", "ws", "wt"), node("MatMul", "x wt", "h"),
             node("Range", "s one one", "p"), node("Add", "h p", "y")]  # fmt: skip
    graph = agree(model(nodes, {"x": [2, 3]}, "y", {"w": W, "s": np.array(0.3), "one": np.array(1.0)}))
    assert names_of(graph).count("Mul") == 1 and names_of(graph).count("Permute") == 1
    assert set(graph.params) == {"w", "s", "p"}  # Range is computed here, Mul is not
    assert graph.params["p"].item() == np.float32(0.3)


def test_moves_of_constants_are_folded():
    nodes = [node("Transpose", "w", "wt"), node("Slice", "wt a b", "ws"), node("MatMul", "x ws", "y")]
    graph = agree(model(nodes, {"x": [2, 3]}, "y", {"w": W, "a": [0, 1], "b": [3, 3]}))
    assert names_of(graph) == ["Input", "Param", "MatMul"]
    assert torch.equal(graph.params["ws"], torch.tensor(W.T[:, 1:3], dtype=torch.float32))


def test_forms_of_constant():
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([2.0, 3.0], dtype=np.float32), "v"),
        numpy_helper.from_array(np.array([0, 2], dtype=np.int64), "i"), [3],
    )  # fmt: skip
    forms = [
        {"value": numpy_helper.from_array(np.ones(3, dtype=np.float32))},
        {"value_float": 2.5},
        {"value_floats": [1.0, 2, 3]},
    ]
    for form in forms:
        agree(model([node("Constant", "", "c", **form), node("Add", "x c", "y")], {"x": [3]}, "y"))
    for form in ({"value_int": -1}, {"value_ints": [3, 1]}):
        nodes = [node("Constant", "", "c", **form), node("Reshape", "c one", "s"), node("Reshape", "x s", "y")]
        agree(model(nodes, {"x": [3]}, "y", {"one": [-1]}))
    data = model([node("Constant", "", "c", sparse_value=sparse), node("Add", "x c", "y")], {"x": [3]}, "y")
    assert evaluate(load_onnx(data=data), np.zeros((1, 3))).tolist() == [[2, 0, 3]]


def test_constant_output_and_input_as_output():
    agree(model([node("Add", "c c", "y")], {"x": [2]}, "y x", {"c": np.ones(3)}))


def test_weights_listed_as_inputs_are_weights():
    data = model(node("MatMul", "x w", "y"), {"x": [1, 3], "w": [3, 3]}, "y", {"w": W})
    assert len(agree(data).inputs) == 1


def test_several_inputs_and_outputs_and_names():
    nodes = [
        node("Add", "a b", "s", "sum"),
        node("Relu", "s", "p", "act"),
        node("Identity", "p", "q"),
        node("Neg", "s", "dead"),
    ]
    graph = agree(model(nodes, {"a": ["n", 2], "b": [2], "unread": [3]}, "q s p"))
    assert [graph.nodes[i].op.label for i in graph.inputs] == ["a", "b", "unread"]
    assert graph.find("p") == graph.find("q") == graph.outputs[0]
    assert str(graph.nodes[graph.find("p")].source) == "Relu 'act'"
    assert "Neg" not in names_of(graph)


def test_labels_and_types_of_weights():
    data = model(node("Gemm", "x fc.w fc.b", "y", transB=1), {"x": [1, 3]}, "y", {"fc.w": W, "fc.b": np.ones(3)})
    graph = agree(data)
    assert set(graph.params) == {"fc.w", "fc.b"}
    assert all(p.dtype == torch.float32 and p.is_contiguous() for p in graph.params.values())


# What is refused.


def refused(data: bytes, *words: str, error=ModelError) -> Exception:
    with pytest.raises(error) as caught:
        load_onnx(data=data)
    for word in words:
        assert word in str(caught.value), caught.value
    if error is ModelError:
        assert "\n" not in str(caught.value)
    return caught.value


def test_unsupported_nodes_are_listed_together():
    nodes = [
        node("Det", "x", "a", "s1"), node("Det", "a", "b", "s2"), node("MaxPool", "x", "m i", "pool", kernel_shape=[2]),
        node("Cast", "i", "if", "cast", to=1), node("Concat", "m if b", "cat", "", axis=2), node("Shape", "b", "shape"),
        node("ConstantOfShape", "shape", "zeros"), node("RandomNormal", "", "noise", "dice", shape=[2]),
        node("Cos", "x", "dead", "unused"), helper.make_node("Mine", ["cat"], ["y"], name="own", domain="my.ops"),
    ]  # fmt: skip
    data = model(nodes, {"x": [1, 2, 4]}, "y zeros noise")
    error = refused(
        data, "Det: 's1', 's2'", "MaxPool (its output Indices is used): 'pool'", "'dice'", error=UnsupportedOp
    )
    assert error.ops == ("Det", "MaxPool", "RandomNormal", "my.ops.Mine")


@pytest.mark.parametrize(
    ("call", "opset", "words"),
    [
        (node("Cast", "x", "y", "n", to=10), 13, "to=FLOAT16"),
        (node("Cast", "x", "y", "n", to=3), 13, "to=INT8"),
        (node("Pad", "x p", "y", "n", mode="mirror"), 19, "mode='mirror'"),
        (node("Conv", "x x", "y", "n"), 13, "weights depend"),
        (node("GatherElements", "w x", "y", "n"), 13, "index depends"),
        (node("BatchNormalization", "x s s s s", "y a b", "n", training_mode=1), 14, "training"),
        (node("Div", "x zero", "y", "n"), 13, "zero somewhere"),
        (node("If", "c", "y", "n"), 13, "no then_branch"),
        (node("AveragePool", "x", "y", "n", kernel_shape=[1], auto_pad="ODD"), 13, "auto_pad='ODD'"),
        (node("MaxPool", "x", "y", "n", kernel_shape=[2], dilations=[2], auto_pad="SAME_UPPER"), 13, "not agreed"),
    ],
)
def test_unsupported_attributes(call, opset, words):
    constants = {"p": [0] * 6, "w": W, "s": np.ones(2), "zero": np.zeros(1), "c": np.array(True)}
    outputs = "y mask" if "mask" in call.output else "y a b" if len(call.output) > 2 else "y"
    refused(model(call, {"x": [1, 2, 3]}, outputs, constants, opset), words, "'n'", error=UnsupportedOp)


def test_broken_files(tmp_path):
    long = model([node("MatMul", "x w", "y")], {"x": [1, 3]}, "y", {"w": W})
    refused(long[:-40], "truncated or no ONNX file")
    refused(gzip.compress(long)[:-20], "truncated or damaged")
    refused(b"", "no ONNX model")
    refused(b"hello, this is text\n" * 9, "ONNX")
    with pytest.raises(ModelError, match="no such file"):
        load_onnx(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match="cannot be read"):
        load_onnx(tmp_path)
    with pytest.raises(ModelError, match="neither"):
        load_onnx()


def test_no_prefix_of_a_file_is_accepted():
    data = model([node("MatMul", "x w", "h"), node("Relu", "h", "y")], {"x": [1, 3]}, "y", {"w": W})
    for length in range(0, len(data), 7):
        refused(data[:length])


def test_gzip_is_recognised_by_its_bytes(tmp_path):
    for name, data in (("a.onnx", RELU), ("b.onnx.gz", gzip.compress(RELU)), ("c.onnx", gzip.compress(RELU))):
        (tmp_path / name).write_bytes(data)
        assert names_of(load_onnx(tmp_path / name)) == ["Input", "Relu"]
        assert Judge(str(tmp_path / name)).run(np.array([-1, 0, 2.0])).tolist() == [0, 0, 2]


@pytest.mark.parametrize("opset", [6, 29])
def test_other_opsets(opset):
    refused(model(node("Relu", "x", "y"), {"x": [1]}, "y", opset=opset), f"opset {opset}", "7 to 28")


def test_open_axes():
    assert load_onnx(data=model(node("Relu", "x", "y"), {"x": ["n", 2]}, "y")).nodes[0].type.shape == (1, 2)
    assert load_onnx(data=model(node("Relu", "x", "y"), {"x": [4, 2]}, "y")).nodes[0].type.shape == (4, 2)
    refused(model(node("Relu", "x", "y"), {"x": ["n", "width"]}, "y"), "axis 1 of input 'x'", "width")
    refused(model(node("Relu", "x", "y"), {"x": None}, "y"), "'x' has no shape")


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT64])
def test_other_element_types_of_inputs(kind):
    def change(proto):
        proto.graph.input[0].type.tensor_type.elem_type = kind

    refused(edited(RELU, change), "'x'", TensorProto.DataType.Name(kind))


def test_half_precision_weights():
    data = model(node("Add", "x w", "y"), {"x": [3]}, "y", {"w": np.ones(3)})

    def change(proto):
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones(3, dtype=np.float16), "w"))

    refused(edited(data, change), "'w'", "FLOAT16")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(value):
    w = np.array([[1.0, value], [0, 1]])
    refused(model(node("MatMul", "x fc.w", "y"), {"x": [1, 2]}, "y", {"fc.w": w}), "'fc.w' holds NaN or infinity")
    nodes = [node("Transpose", "fc.w", "t"), node("MatMul", "x t", "y")]
    refused(model(nodes, {"x": [1, 2]}, "y", {"fc.w": w}), "'fc.w'")
    nodes = [node("Relu", "x", "y"), node("MatMul", "x fc.w", "dead")]
    load_onnx(data=model(nodes, {"x": [1, 2]}, "y", {"fc.w": w}))


@pytest.mark.parametrize("location", ["weights.bin", "/etc/passwd", "../../secret"])
def test_external_data_is_never_read(location, tmp_path):
    def change(proto):
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    data = edited(model(node("Add", "x w", "y"), {"x": [3]}, "y", {"w": np.ones(3)}), change)
    refused(data, "'w' lies in another file", location)


def test_illegal_graphs():
    size = {"x": [2, 3]}
    refused(model(node("Relu", "ghost", "y"), size, "y"), "'ghost'")
    refused(model([node("Relu", "h", "y"), node("Relu", "x", "h")], size, "y"), "topological")
    refused(model([node("Relu", "x", "y"), node("Abs", "x", "y")], size, "y"), "two nodes")
    refused(model(node("MatMul", "x w", "y", "mm"), size, "y", {"w": np.ones((4, 2))}), "'mm'", "multiply")
    refused(model(node("Reshape", "x s", "y", "re"), size, "y", {"s": [4, 2]}), "'re'", "(2, 3)")
    refused(model(node("Gather", "x i", "y", "g"), size, "y", {"i": [7]}), "'g'", "outside")
    refused(model(node("Concat", "x x", "y", "c", axis=5), size, "y"), "'c' has axis 5")
    refused(model(node("Add", "x", "y", "a"), size, "y"), "'a' lacks its input 1")
    refused(model([node("Reshape", "w s", "v", "re"), node("Add", "x v", "y")], size, "y", {"w": W, "s": [5]}), "'re'")


def test_small_files_cannot_ask_for_huge_constants():
    nodes = [node("ConstantOfShape", "s", "c", "big"), node("ReduceMax", "c", "m"), node("Add", "x m", "y")]
    refused(model(nodes, {"x": [1]}, "y", {"s": [10**5, 10**6]}), "'big'", "too large")
    nodes = [node("Expand", "w s", "c", "big"), node("ReduceMax", "c", "m"), node("Add", "x m", "y")]
    refused(model(nodes, {"x": [1]}, "y", {"w": W, "s": [10**9, 3, 3]}), "'big'", "too large")


# The judge.


def test_services():
    assert service("onnx") is load_onnx
    assert service("judge") is Judge


def test_judge_lays_inputs_and_outputs_side_by_side():
    nodes = [node("MatMul", "a b", "p"), node("Neg", "b", "q")]
    judge = Judge(data=model(nodes, {"a": ["n", 2], "b": [2, 1]}, "p q"))
    assert judge.name.startswith("onnxruntime 1.")
    assert judge.inputs == 4
    assert judge.run(np.array([1, 2, 3, 4], dtype=np.float32)).tolist() == [11, -3, -4]
    assert judge.run(np.array([[1, 2, 3, 4], [0, 0, 1, 1]], dtype=np.float32)).tolist() == [[11, -3, -4], [0, -1, -1]]
    assert [judge.output_label(i) for i in range(3)] == ["'p'[0]", "'q'[0]", "'q'[1]"]
    with pytest.raises(ModelError, match="takes 4 numbers"):
        judge.run(np.zeros(3))


def test_judge_computes_in_the_models_own_precision():
    judge = Judge(data=model(node("Mul", "x c", "y"), {"x": [1]}, "y", {"c": np.array([1 / 3])}, dtype=np.float64))
    assert judge.run(np.array([3.0])).dtype == np.float64
    with pytest.raises(ModelError, match="cannot load"):
        Judge(data=b"nonsense")


def two_outputs(scales) -> Judge:
    return Judge(data=model(node("Mul", "x c", "y"), {"x": [2]}, "y", {"c": np.array(scales, dtype=float)}))


@pytest.mark.parametrize("scale", [1e-20, 1e-8, 1.0, 1e8])
def test_agreement_has_no_unit(scale):
    judge = two_outputs([scale, scale])
    points = np.random.default_rng(0).uniform(-1, 1, (5, 2)).astype(np.float32)
    assert check_agreement(lambda x: judge.run(x) * (1 + 5e-5), judge, points) <= 1
    with pytest.raises(ModelError, match=r"disagree, most on output 'y'\[1\]"):
        check_agreement(lambda x: judge.run(x) * np.array([1, 1 + 3e-4]), judge, points)
    with pytest.raises(ModelError, match="disagree"):
        check_agreement(lambda x: judge.run(x) * 0, judge, points)


def test_agreement_measures_small_outputs_by_themselves():
    judge = two_outputs([1e4, 1.0])
    points = np.ones((1, 2), dtype=np.float32)
    with pytest.raises(ModelError, match="disagree"):
        check_agreement(lambda x: judge.run(x) + np.array([0, 0.1]), judge, points)


def test_agreement_of_zeros_shapes_and_nan():
    judge = two_outputs([0.0, 0.0])
    points = np.ones((1, 2), dtype=np.float32)
    assert check_agreement(lambda x: judge.run(x) + 1e-7, judge, points) < 1
    for other in (lambda x: judge.run(x) + 1e-3, lambda x: judge.run(x)[:, :1], lambda x: judge.run(x) * np.nan):
        with pytest.raises(ModelError):
            check_agreement(other, judge, points)


def test_agreement_allows_jumps_only_where_asked():
    judge = two_outputs([1.0, 1.0])
    points = np.ones((20, 2), dtype=np.float32)
    jump = np.zeros((20, 2))
    jump[3] = 1
    assert check_agreement(lambda x: judge.run(x) + jump, judge, points, outliers=0.1) == 0
    with pytest.raises(ModelError, match="disagree"):
        check_agreement(lambda x: judge.run(x) + jump, judge, points)


# The competition's networks.

NETWORKS = sorted({p.name: p for p in VNNCOMP.glob("*/*/onnx/*.onnx*")}.values())
LACKING = {
    "unet_": {"ArgMax", "Cast", "ConvTranspose", "Equal", "OneHot"}, "cGAN": {"ConvTranspose", "Upsample"},
    "patch-": {"ArgMax", "Cast", "Equal", "Max", "Min", "Resize", "ScatterND"}, "quadrotor": {"Cos", "Sin"},
    "ieee_ml4acopf": {"Cos", "Pow", "Sin", "Floor"}, "_parallel": {"Pow"},
}  # fmt: skip


@pytest.mark.skipif(not NETWORKS, reason="the competition's data (../shared/vnncomp) is absent")
def test_competition_networks():
    torch.set_num_threads(1)
    loaded = 0
    for path in NETWORKS:
        lacking = set().union(*(ops for key, ops in LACKING.items() if key in path.name))
        try:
            graph = load_onnx(path)
        except UnsupportedOp as error:
            assert set(error.ops) <= lacking, f"{path.name}: {error}"
            continue
        judge = Judge(path)
        points = np.random.default_rng(0).uniform(0, 1, (3, judge.inputs)).astype(np.float32)
        lowered = lower(graph)
        check_agreement(lambda x, graph=lowered: evaluate(graph, x), judge, points)
        loaded += 1
    assert loaded >= min(70, len(NETWORKS) // 2), f"only {loaded} of {len(NETWORKS)} networks could be read"
