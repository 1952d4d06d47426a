"""Encodings: every point of a network satisfies its rows, and with binaries nothing else does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import op_strategies  # noqa: F401  (fills the table of strategies)
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_cases import KINDS, TAME, generated_ops, op_cases
from random_graphs import BOXES, random_boxes, random_graph
from scipy.optimize import Bounds, LinearConstraint, milp
from small_networks import GRAPHS, Net

from absdom import ops, registry, testing
from absdom.coverage import encoded
from absdom.domain import Encoded
from absdom.domains.encoded import pieces as encoded_pieces
from absdom.domains.linear import Linear
from absdom.domains.linear.duals import ElementwiseDual
from absdom.encoding import Builder, Choice, Style
from absdom.ir.op import Elementwise, Lines
from absdom.ops.affine import Affine
from absdom.plan.encode import decide
from absdom.property import InputSet
from absdom.testing_encodings import STYLES, check_encoding, check_exact, encoders, points_of
from absdom.testing_rules import LawBroken
from absdom.types import TensorType

EVERYTHING = Style(integers=True, segments=3, quadratics=True)
SCALES = (1.0, 1.0, 1.0, 1e6, 1e-6)


def boxes(graph, seed: int, kind: str = "normal", count: int = 1) -> InputSet:
    n = sum(graph.nodes[i].type.numel for i in graph.inputs)
    return InputSet.box(*(t.numpy() for t in random_boxes(seed, n, kind, count)))


def layers(seed: int, *activations):
    net = Net(seed, 1, 3)
    for op in activations:
        net.dense(4)
        net.add(op)
    net.dense(2)
    return net.finish()


def shared(seed: int):
    """Values that are read twice, by one op too; constants and padding side by side with elements; both extrema."""
    net = Net(seed, 1, 3)
    first = net.dense(3)
    net.relu()
    net.add(ops.Add(), first)
    net.add(ops.Add(), net.value)
    bent = net.add(ops.Clip(-0.5, 0.7))
    net.add(ops.Concat(1), net.builder.param(torch.ones(1, 2, dtype=torch.float64), "c"), bent)
    net.add(ops.Pad((0, 1), (0, 2)))
    net.relu()
    net.add(ops.ReduceMax(1))
    net.add(ops.Concat(1), first, first)
    net.add(ops.ReduceMin(1))
    net.dense(2)
    return net.finish()


def largest(seed: int):
    """Maxima of two values, of one with a constant, and of one with itself."""
    net = Net(seed, 1, 4)
    first = net.dense(3)
    net.value = net.input
    net.dense(3)
    second = net.add(ops.Maximum(), first)
    net.add(ops.Maximum(), net.weights(3))
    net.add(ops.Sub(), first)
    net.add(ops.Maximum(), net.value)
    net.add(ops.Abs())
    net.add(ops.Maximum(), second)
    net.dense(2)
    return net.finish()


def two_inputs(seed: int):
    net = Net(seed, 1, 2)
    other = net.builder.input("other", TensorType((1, 3), "float64"))
    net.add(ops.Concat(1), other)
    net.add(ops.Take(1, (4, 0, 0, 2)))
    net.dense(3)
    net.relu()
    net.add(ops.Add(), other)
    net.add(ops.LeakyRelu(0.2))
    net.dense(2)
    return net.finish()


def products(seed: int):
    """x x^T, and products of elements that share columns."""
    net = Net(seed, 1, 4)
    net.add(ops.Reshape((2, 2)))
    turned = net.builder.add(ops.Permute((1, 0)), net.value)
    net.add(ops.MatMul(), turned)
    net.add(ops.Mul(), net.builder.add(ops.Slice(0, 0, 1), turned))
    net.add(ops.Power(2.0))
    net.dense(2)
    return net.finish()


PAIRS = (
    (ops.Relu(), ops.LeakyRelu(0.1)), (ops.Abs(), ops.LeakyRelu(-0.3)), (ops.LeakyRelu(1.7), ops.Clip(-0.5, 0.5)),
    (ops.Clip(0.0, 1.0), ops.Clip(high=0.3)), (ops.Sign(), ops.Relu()), (ops.Step(True), ops.Step(False)),
    (ops.Floor(), ops.Relu()), (ops.Ceil(), ops.Round()), (ops.Truncate(), ops.Abs()),
    (ops.LeakyRelu(1.0), ops.Clip(low=-0.2)),
)  # fmt: skip
LINEAR_PIECES = {
    **{graph.__name__: graph for graph in (*GRAPHS, shared, largest, two_inputs)},
    **{f"{a.name} {b.name}": lambda seed, pair=(a, b): layers(seed, *pair) for a, b in PAIRS},
}


@pytest.mark.parametrize("name", LINEAR_PIECES)
def test_piecewise_linear_networks_are_encoded_exactly(name):
    for seed, kind in enumerate(("normal", "flat")):
        graph = LINEAR_PIECES[name](seed)
        check_encoding(graph, boxes(graph, seed, kind), styles=(Style(), EVERYTHING))
        check_exact(graph, boxes(graph, seed, kind), count=2)


def test_every_op_keeps_the_law():
    for case in testing.standard_cases():
        box = InputSet.box(case.lower[:1].numpy(), case.upper[:1].numpy())
        assert check_encoding(case.graph, box, styles=(EVERYTHING,)), case.name


@pytest.mark.parametrize("seed", range(8))
def test_random_networks_keep_the_law(seed):
    graph = random_graph(seed, SCALES[seed % 5])
    recipe = ("crown", "interval", "cap & crown-ibp")[seed % 3]
    check_encoding(graph, boxes(graph, seed, BOXES[seed % 5]), recipe=recipe, styles=(Style(), EVERYTHING))


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(8, 200))
def test_more_random_networks_keep_the_law(seed):
    graph = random_graph(seed, SCALES[seed % 5])
    check_encoding(graph, boxes(graph, seed, BOXES[seed // 5 % 5]), styles=(*STYLES, EVERYTHING))


@pytest.mark.nightly
@pytest.mark.parametrize("name", generated_ops())
@settings(max_examples=6, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_generated_ops_keep_the_law(name, data):
    case = data.draw(op_cases(name))
    tame = torch.tensor([k in TAME for k in KINDS])
    check_encoding(
        case.graph, InputSet.box(case.lower[tame].numpy(), case.upper[tame].numpy()), styles=(Style(), EVERYTHING)
    )


def sets(n: int, seed: int) -> dict[str, InputSet]:
    random = np.random.default_rng(seed)
    centre, matrix = random.standard_normal(n) / 5 + 0.5, random.standard_normal((n, n))
    return {
        "l1": InputSet.ball(centre, 0.7, 1, clip=None), "l1 in pixels": InputSet.ball(centre, 0.7, 1),
        "l2": InputSet.ball(centre, 0.5, 2, clip=None), "l2 in pixels": InputSet.ball(centre, 0.7, 2),
        "half-axes": InputSet.ellipsoid(centre, random.uniform(0, 1, n) * (np.arange(n) % 3 > 0)),
        "ellipsoid": InputSet.mahalanobis(centre, 4 * matrix @ matrix.T + np.eye(n)),
        "polytope": InputSet.polytope(random.standard_normal((3, n)), np.ones(3), -np.ones(n), np.ones(n)),
        "a point": InputSet.ball(centre, 0.0, clip=None),
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
def test_points_of_all_sets_keep_the_law(seed):
    graph = (two_inputs, shared)[seed](seed)
    n = sum(graph.nodes[i].type.numel for i in graph.inputs)
    for name, inputs in sets(n, seed).items():
        assert check_encoding(graph, inputs, styles=(EVERYTHING,)) > 0, name


def test_products_are_quadratic_forms():
    graph = products(0)
    check_encoding(graph, boxes(graph, 0))
    encoding = encoders(graph, boxes(graph, 0))[0].encode(Style(quadratics=True))
    # x x^T has 2 x 2 sums of two products, its product with a row of x another 4, and so many squares.
    assert encoding.quadratics.count == 12 and encoding.quadratics.equality.all()
    assert len(encoding.quadratics.value) == 8 + 4 + 3 * 4


def test_only_what_is_wanted_is_encoded():
    for name in ("shared", "joined_branches", "stacked_max_pools", "linear_branches"):
        graph = LINEAR_PIECES[name](1)
        wanted = torch.tensor([[[True, False]]])
        check_encoding(graph, boxes(graph, 1), wanted=wanted, styles=(EVERYTHING,))
        part, whole = (encoders(graph, boxes(graph, 1), wanted=w)[0].encode(Style()) for w in (wanted, None))
        assert (part.target >= 0).tolist() == [True, False] and part.matrix.shape[0] < whole.matrix.shape[0]
        with pytest.raises(ValueError, match="not asked to hold"):
            part.objective(np.ones(2))


def test_parameters_that_were_rounded_are_known_up_to_their_error():
    """A batch norm, and the maximum with a constant that was computed."""
    net = Net(3, 1, 2, 2)
    variance = net.builder.param(torch.rand(2, dtype=torch.float64) + 0.1, "var")
    net.add(ops.BatchNorm(1e-3), *(net.weights(2, scale=1.0) for _ in range(3)), variance)
    third = net.builder.add(ops.Div(), net.weights(1, 2, 2, scale=1.0), net.builder.param(torch.tensor([3.0]), "three"))
    net.add(ops.Maximum(), third)
    net.add(ops.Concat(1), third)
    net.dense(2)
    graph = net.finish()
    check_encoding(graph, boxes(graph, 3))
    check_exact(graph, boxes(graph, 3))


def test_unknown_intervals_leave_rows_out():
    net = Net(0, 1, 2)
    net.add(ops.Reshape((1, 2)))
    net.add(ops.Exp())
    net.add(ops.Exp())
    net.add(ops.Exp())
    net.relu()
    net.add(ops.Concat(1), net.input)
    net.dense(2)
    graph = net.finish()
    for style in (*STYLES, EVERYTHING):
        (encoder,) = encoders(graph, InputSet.box([[0.0, 0.0]], [[9.0, 9.0]]))
        encoding = encoder.encode(style)
        assert not encoding.complete
        assert np.isfinite(encoding.slack).all() and np.isfinite(encoding.matrix.data).all()


def test_a_value_at_a_jump_has_its_piece():
    for op, lower, upper, expected in (
        (ops.Sign(), -1.0, 1.0, ((0.0, 0.0, -1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 1.0))),
        (ops.Sign(), 0.0, 1.0, ((0.0, 0.0, 0.0), (1.0, 0.0, 1.0))),
        (ops.Step(), -1.0, 0.0, ((0.0, 0.0, 0.0),)),
        (ops.Step(True), -1.0, 0.0, ((0.0, 0.0, 0.0), (0.0, 0.0, 1.0))),
        (ops.Floor(), 0.5, 2.0, ((1.0, 0.0, 0.0), (2.0, 0.0, 1.0), (2.0, 0.0, 2.0))),
        (ops.Ceil(), 1.0, 1.5, ((1.0, 0.0, 1.0), (1.5, 0.0, 2.0))),
        (ops.Round(), 0.5, 2.5, ((0.5, 0.0, 0.0), (1.5, 0.0, 1.0), (2.5, 0.0, 2.0))),
        (ops.Truncate(), -1.5, 1.0, ((-1.0, 0.0, -1.0), (1.0, 0.0, 0.0), (1.0, 0.0, 1.0))),
        (ops.Floor(), -1e9, 1e9, ()),
    ):
        assert op.pieces(lower, upper) == expected, op


@pytest.mark.parametrize("op", [op for pair in PAIRS for op in pair], ids=str)
def test_pieces_hold_the_graph(op):
    random = np.random.default_rng(0)
    for _ in range(30):
        lower, upper = np.sort(np.round(random.uniform(-3, 3, 2) * 4) / 4) + 0.0
        z = np.unique(
            np.concatenate([np.round(random.uniform(lower, upper, 40) * 8) / 8, [lower, upper]]).clip(lower, upper)
        )
        y = op.eval(torch.from_numpy(z)).numpy()
        found = op.pieces(lower, upper)
        ends = np.array([p[0] for p in found])
        starts = np.concatenate([[lower], ends[:-1]])
        assert ends[-1] == upper and (starts <= ends).all()
        held = [(a <= z) & (z <= b) & (s * z + c == y) for a, (b, s, c) in zip(starts, found, strict=True)]
        assert np.any(held, 0).all(), (op, lower, upper)


def test_decide_takes_the_piece_that_has_the_value():
    lines = np.array([[0.0, -1.0], [0.0, 0.0], [0.0, 1.0]])
    choice = Choice(
        "pieces", np.array([2, 3, 4]), 1, np.array([0]), np.array([0.0, 0.0, 1.0]), np.array([[5, 6, 7]]), lines
    )
    out = np.zeros((4, 8))
    out[:, 0], out[:, 1] = [-0.5, 0.0, 0.0, 1.0], [-1.0, 0.0, 1.0, 1.0]
    decide(choice, out)
    assert out[:, 2:5].argmax(1).tolist() == [0, 1, 2, 2] and (out[:, 2:5].sum(1) == 1).all()
    assert (out[:, 5:].sum(1) == out[:, 0]).all()


def test_rows_never_read_columns_that_are_not_there():
    builder = Builder(Style())
    columns = builder.columns([0.0], [1.0], 0)
    with pytest.raises(ValueError, match="did not name"):
        builder.add_rows([0, 0], [columns[0], -1], [1.0, 1.0], [0.0], [1.0])
    with pytest.raises(ValueError, match="did not name"):
        builder.add_forms(([0], [-1], columns, [1.0]), ([0], columns, [1.0]), [0.0], True)


def test_segments_close_in_on_a_smooth_network():
    graph = layers(2, ops.Tanh(), ops.Sigmoid())
    (encoder,) = encoders(graph, boxes(graph, 2))
    points = points_of(encoder, boxes(graph, 2), 0, count=200)
    found = []
    for segments in (0, 2, 6):
        encoding = encoder.encode(Style(integers=segments > 0, segments=segments))
        assert not encoding.complete
        lower, upper = encoding.low - encoding.slack, encoding.high + encoding.slack
        cost = np.arange(len(encoding.lower)) == encoding.target[0]
        program = milp(
            cost, integrality=encoding.integer, bounds=Bounds(encoding.lower, encoding.upper),
            constraints=LinearConstraint(encoding.matrix, lower, upper),
        )  # fmt: skip
        assert program.status == 0
        assert program.fun <= encoder.values(points, encoding)[:, encoding.target[0]].min() + 1e-6
        found.append(program.fun)
    assert found[0] < found[1] < found[2]


def test_the_coverage_table_says_how_ops_are_encoded():
    found = {name: encoded(getattr(ops, name)) for name in ("Conv", "Relu", "Round", "MaxPool", "Maximum", "Tanh")}
    assert found == {
        "Conv": "exact", "Relu": "binaries", "Round": "binaries", "MaxPool": "decomposed", "Maximum": "binaries",
        "Tanh": "relaxed",
    }  # fmt: skip
    assert encoded(ops.Scatter) == "box"


# Plug-ins


@dataclass(frozen=True)
class Difference(Affine):
    """x_1 - x_0, x_2 - x_1 ...: what it reads cancels in sums over its outputs."""

    def infer(self, x):
        return x.with_shape((x.shape[0], x.shape[1] - 1))

    def eval(self, x):
        return x[..., 1:] - x[..., :-1]

    def absolute(self, at, values):
        return values[0][..., 1:] + values[0][..., :-1]

    def transpose(self, nu, at, index):
        pad = torch.nn.functional.pad
        return pad(nu, (1, 0)) - pad(nu, (0, 1))


def test_an_affine_op_whose_coefficients_cancel():
    net = Net(0, 1, 4)
    net.relu()
    net.add(Difference())
    check_encoding(net.finish(), boxes(net.finish(), 0))


@dataclass(frozen=True)
class Bump(Elementwise):
    """x^2 / 2 - 1, without lines: the rule of the linear domain is its own."""

    def eval(self, x):
        return x.square() / 2 - 1

    def image(self, lower, upper):
        ends = self.eval(lower), self.eval(upper)
        low = torch.where((lower <= 0) & (upper >= 0), torch.full_like(lower, -1.0), torch.minimum(*ends))
        return low - 1e-12, torch.maximum(*ends) + 1e-12


class BumpDual(ElementwiseDual):
    def knobs(self, place, recipe):
        return {}

    def lines(self, place, recipe):
        low, high = place.inputs[0].lower, place.inputs[0].upper
        middle, chord = (low + high) / 2, (low + high) / 2
        return Lines(middle, -middle.square() / 2 - 1 - 1e-9, chord, -low * high / 2 - 1 + 1e-9)


def test_an_op_with_its_own_rule_in_the_linear_domain(monkeypatch):
    monkeypatch.setitem(registry._rules, (Linear, Bump), BumpDual())
    net = Net(0, 1, 3)
    net.dense(3)
    net.add(Bump())
    net.dense(2)
    graph = net.finish()
    check_encoding(graph, boxes(graph, 0), styles=(Style(), EVERYTHING))
    encoding = encoders(graph, boxes(graph, 0))[0].encode(Style())
    assert encoding.matrix.shape[0] == 3 + 2 * 3 + 2  # two dense layers, and a line below and above each bump


def test_an_op_without_a_rule_is_its_box(monkeypatch):
    monkeypatch.delitem(registry._rules, (Encoded, Elementwise))
    graph = layers(0, ops.Relu())
    check_encoding(graph, boxes(graph, 0))
    assert not encoders(graph, boxes(graph, 0))[0].encode(Style(True)).complete


# The laws can fail


def caught(graph, match: str, check=check_encoding) -> None:
    with pytest.raises(LawBroken, match=match):
        for seed in range(4):
            check(graph, boxes(graph, seed))


def test_a_gap_that_is_too_small_is_caught(monkeypatch):
    right = encoded_pieces._two_pieces

    def wrong(builder, pieces, *rest):
        right(builder, pieces._replace(start=pieces.start / 2, end=pieces.end * 0.9), *rest)

    monkeypatch.setattr(encoded_pieces, "_two_pieces", wrong)
    caught(layers(0, ops.Abs()), "a row")


def test_a_missing_piece_is_caught(monkeypatch):
    right = ops.Clip.pieces
    monkeypatch.setattr(ops.Clip, "pieces", lambda self, low, high: right(self, low, high)[-2:])
    caught(layers(1, ops.Clip(-0.1, 0.1)), "a (row|variable)")


def test_a_loose_encoding_is_caught(monkeypatch):
    monkeypatch.setattr(encoded_pieces, "_two_pieces", lambda *arguments: None)
    caught(layers(0, ops.Relu()), "reaches", check_exact)


def test_an_operand_that_is_not_the_one_is_caught(monkeypatch):
    right = ops.MatrixProduct.bilinear
    monkeypatch.setattr(ops.MatrixProduct, "bilinear", lambda self, at: (lambda o, a, b: (o, b, a))(*right(self, at)))
    caught(products(0), "quadratic form")


def test_a_size_that_is_too_small_is_caught(monkeypatch):
    monkeypatch.setattr(ops.Linear, "absolute", lambda self, at, values: values[0] @ at.params[1].abs() * 0.5)
    with pytest.raises(LawBroken, match="were predicted"):
        graph = layers(0, ops.Relu())
        check_encoding(graph, boxes(graph, 0), recipe="interval")


def test_what_was_predicted_is_near():
    for seed, activation in enumerate((ops.Relu(), ops.Tanh(), ops.Clip(0.0, 1.0))):
        net = Net(seed, 1, 2, 8, 8)
        net.conv(4, (3, 3), (2, 2), before=(1, 1), after=(1, 1))
        net.add(activation)
        net.dense(10)
        net.add(activation)
        net.dense(2)
        graph = net.finish()
        for style in STYLES:
            (encoder,) = encoders(graph, boxes(graph, seed))
            predicted, size = encoder.predict(style), encoder.encode(style).size
            for name in ("columns", "rows", "entries", "binaries", "quadratics"):
                assert getattr(size, name) <= getattr(predicted, name) <= 2 * getattr(size, name), (style, name)
