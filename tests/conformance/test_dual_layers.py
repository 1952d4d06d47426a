"""The dual layers of the dissertation (Wong 2020, corollaries 3 to 7 and their kin), each by a formula of its own here.

A dual layer of z -> f(z) takes the dual variables nu behind f to nu_in = D(nu) in front of it, with a number h(nu) such
that max over z in [l, u] of <nu, f(z)> - <nu_in, z> <= h. Sweeps carry rows, which are -nu, and add terms, which are -h.
`slope=parallel` is the linear form, where D does not depend on the sign of nu, `slope=adaptive` the tighter one.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from random_graphs import random_boxes, random_graph

from absdom import ops, testing
from absdom.domains.interval import Interval
from absdom.domains.linear import Linear
from absdom.ir.graph import Builder
from absdom.ir.op import Affine, Input
from absdom.passes import lower as lower_graph
from absdom.plan import run
from absdom.plan.planner import make_schedule, sweep_from
from absdom.plan.sweeps import sweep
from absdom.rows import Rows
from absdom.sets import InputBatch
from absdom.types import TensorType

FORMS = ("parallel", "adaptive")
NEAR = {"rtol": 1e-12, "atol": 1e-12}
COUNT = 60


def layer(graph, lower, upper, nu, slope):
    """(nu_in "R *in", h "R") of a network of one input for dual variables nu "R *out", over the box lower, upper "*in"."""
    graph, recipe = lower_graph(graph), Linear(pre=Interval(), slope=slope)
    context = run.prepare(make_schedule(graph, recipe), testing.FLOAT64)
    batch = InputBatch(lower.reshape(1, -1), upper.reshape(1, -1))
    bounds, seen = run.propagate(context, batch), {}
    value = sweep(context, context.schedule.final, recipe, batch, bounds, Rows.dense_rows(-nu, 1), trace=seen)
    (source,) = graph.inputs
    rows = seen[source].dense() if source in seen else torch.zeros(len(nu), *lower.shape, dtype=nu.dtype)
    flat = rows.reshape(len(nu), -1)
    least = torch.minimum(flat * batch.lower, flat * batch.upper).sum(1)
    return -rows, least - value


def alone(op, lower, upper, nu, slope):
    """The same for an elementwise op, each element with its own dual variable: nu_in and h per element."""
    graph = testing.one_op(op, TensorType(tuple(lower.shape), "float64"))
    nu_in, h = layer(graph, lower, upper, torch.diag(nu), slope)
    assert torch.equal(nu_in, torch.diag(nu_in.diagonal())), "an elementwise layer mixes no elements"
    return nu_in.diagonal(), h


def excess(f, lower, upper, nu, nu_in, h, count=2001):
    """max over sampled z of nu f(z) - nu_in z, less h: above zero where the layer is wrong."""
    z = lower + (upper - lower) * torch.linspace(0, 1, count, dtype=torch.float64)[:, None]
    return (nu * f(z) - nu_in * z).amax(0) - h


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ends(kind, count=COUNT, seed=1):
    """(l, u) "count": ends on given sides of given points, for the cases of the table."""
    random = torch.rand((2, count), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1e-3
    if kind == "any":
        return (3 * normal(2, count, seed=seed)).sort(0).values
    places = {"below": (-1, -1), "above": (1, 1), "inside": (0, 0), "left": (-1, 0), "right": (0, 1), "both": (-1, 1)}
    low, high = places[kind]
    start = {-1: -1 - 3 * random[0], 0: -0.9 * random[0] if low == 0 else 0, 1: 1 + random[0]}[low]
    end = {-1: start + random[1] * (-1 - start), 0: 0.9 * random[1], 1: 1 + random[0] + 3 * random[1]}[high]
    return start, end


def both_signs(count=COUNT, seed=2):
    nu = normal(count, seed=seed)
    nu[0] = 0
    return nu


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **NEAR)


# Affine layers: exact, in both forms


@pytest.mark.parametrize("slope", FORMS)
def test_linear(slope):
    w, b, nu = normal(3, 4), normal(4, seed=3), normal(5, 4, seed=4)
    builder = Builder()
    x = builder.input("x", TensorType((3,), "float64"))
    x = builder.add(ops.Reshape((1, 3)), x)
    out = builder.add(ops.Add(), builder.add(ops.MatMul(), x, builder.param(w, "w")), builder.param(b, "b"))
    graph = builder.finish([builder.add(ops.Reshape((4,)), out)])
    close(layer(graph, -normal(3).abs(), normal(3).abs(), nu, slope), (nu @ w.mT, nu @ b))


@pytest.mark.parametrize("slope", FORMS)
def test_convolution(slope):
    w, b, nu = normal(4, 2, 3, 3), normal(4, seed=3), normal(5, 4, 3, 3, seed=4)
    graph = testing.one_op(
        ops.Conv((2, 2), (1, 1), 1, (1, 1), (1, 1)), TensorType((1, 2, 5, 5), "float64"), w, b
    )  # fmt: skip
    box = torch.ones(1, 2, 5, 5, dtype=torch.float64)
    nu_in, h = layer(graph, -box, box, nu[:, None], slope)
    close((nu_in[:, 0], h), (F.conv_transpose2d(nu, w, stride=2, padding=1), (nu.sum((2, 3)) @ b)))


@pytest.mark.parametrize("slope", FORMS)
@pytest.mark.parametrize("name", ["reshape", "scale", "average pool", "concat"])
def test_layers_without_constants(name, slope):
    scale = normal(2, 4, 4)
    functions = {
        "reshape": (lambda b, x: b.add(ops.Reshape((4, 8)), x), lambda z: z.reshape(4, 8)),
        "scale": (lambda b, x: b.add(ops.Mul(), x, b.param(scale, "s")), lambda z: z * scale),
        "average pool": (
            lambda b, x: b.add(ops.AveragePool((2, 2), (2, 2), (1, 1), (0, 0), (0, 0)), x),
            lambda z: F.avg_pool2d(z, 2),
        ),
        "concat": (lambda b, x: b.add(ops.Concat(1), x, b.add(ops.Neg(), x)), lambda z: torch.cat([z, -z], 1)),
    }
    build, function = functions[name]
    builder = Builder()
    graph = builder.finish([build(builder, builder.input("x", TensorType((1, 2, 4, 4), "float64")))])
    z = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    value, pull = torch.func.vjp(function, z)
    nu = normal(3, *value.shape, seed=5)
    nu_in, h = layer(graph, z - 1, z + 1, nu, slope)
    close((nu_in, h), (torch.stack([pull(row)[0] for row in nu]), torch.zeros(3, dtype=torch.float64)))


@pytest.mark.parametrize("slope", FORMS)
def test_skip(slope):
    """A node that feeds several: y = x + relu(x). nu_in is the sum of what the branches send, h the sum of theirs."""
    lower, upper, nu = -normal(6).abs(), normal(6, seed=1).abs(), normal(6, seed=2)
    builder = Builder()
    x = builder.input("x", TensorType((6,), "float64"))
    graph = builder.finish([builder.add(ops.Add(), x, builder.add(ops.Relu(), x))])
    branch = alone(ops.Relu(), lower, upper, nu, slope)
    nu_in, h = layer(graph, lower, upper, torch.diag(nu), slope)
    close((nu_in.diagonal(), h), (nu + branch[0], branch[1]))


@pytest.mark.parametrize("slope", FORMS)
def test_batch_norm(slope):
    """D = diag(gamma / sqrt(var + e)), d = beta - gamma mu / sqrt(var + e); the gamma in d is not in print."""
    gamma, beta, mean, var, e = normal(3), normal(3, seed=1), normal(3, seed=2), normal(3, seed=3).abs(), 1e-3
    graph = testing.one_op(ops.BatchNorm(e), TensorType((1, 3, 2), "float64"), gamma, beta, mean, var)
    box, nu = torch.ones(1, 3, 2, dtype=torch.float64), normal(4, 1, 3, 2, seed=4)
    root = (var + e).sqrt()
    found = layer(graph, -box, box, nu, slope)
    close(found, (nu * (gamma / root)[:, None], (nu * (beta - gamma * mean / root)[:, None]).sum((1, 2, 3))))
    printed = (nu * (beta - mean / root)[:, None]).sum((1, 2, 3))
    assert (found[1] > printed + 1e-3).any(), "without gamma h is too small: the layer is affine, so h is exact"


# ReLU


def relu_slope(lower, upper):
    return torch.where(lower >= 0, 1.0, torch.where(upper <= 0, 0.0, upper / (upper - lower)))


def test_relu_linear():
    lower, upper = ends("any")
    nu = both_signs()
    nu_in = relu_slope(lower, upper) * nu
    h = torch.where((lower < 0) & (upper > 0), -lower * nu_in.clamp(min=0), 0)
    close(alone(ops.Relu(), lower, upper, nu, "parallel"), (nu_in, h))
    assert excess(torch.relu, lower, upper, nu, nu_in, h).max() < 1e-12


def test_relu_by_sign():
    """s [nu]_+ - alpha [nu]_-; alpha is 1 where u > -l, else 0."""
    lower, upper = ends("any")
    nu, s = both_signs(), relu_slope(lower, upper)
    alpha = torch.where((lower < 0) & (upper > 0), (upper > -lower).double(), s)
    nu_in = s * nu.clamp(min=0) + alpha * nu.clamp(max=0)
    h = torch.where((lower < 0) & (upper > 0), -lower * s * nu.clamp(min=0), 0)
    close(alone(ops.Relu(), lower, upper, nu, "adaptive"), (nu_in, h))
    assert excess(torch.relu, lower, upper, nu, nu_in, h).max() < 1e-12


# Hardtanh


def hardtanh(z):
    return z.clamp(-1, 1)


def hardtanh_linear(lower, upper, nu):
    """The six cases, the last one corrected: in print D and d have changed places, and max(u, -l) reads max(u, l)."""
    left, right = (1 + upper) / (upper - lower), (1 - lower) / (upper - lower)
    wide = 2 / (1 + torch.maximum(upper, -lower))
    cases = (
        (upper <= -1, 0 * nu, -nu),
        (lower >= 1, 0 * nu, nu),
        ((lower >= -1) & (upper <= 1), nu, 0 * nu),
        ((lower < -1) & (upper <= 1), left * nu, torch.maximum(-(left * lower + 1) * nu, left * nu - nu)),
        ((lower >= -1) & (upper > 1), right * nu, torch.maximum(-(right * lower - lower) * nu, -right * nu + nu)),
        ((lower < -1) & (upper > 1), wide * nu, ((1 - wide) * nu).abs()),
    )
    nu_in, h = 0 * nu, 0 * nu
    for mask, d, constant in reversed(cases):
        nu_in, h = torch.where(mask, d, nu_in), torch.where(mask, constant, h)
    return nu_in, h


def hardtanh_by_sign(lower, upper, nu):
    """Of the case l < -1, u > 1: through (1, 1) and (l, -1) above, through (-1, -1) and (u, 1) below."""
    s = torch.where(nu >= 0, 2 / (1 - lower), 2 / (1 + upper))
    return s * nu, torch.where(nu >= 0, (1 - s) * nu, (s - 1) * nu)


@pytest.mark.parametrize("kind", ["below", "above", "inside", "left", "right", "both", "any"])
def test_hardtanh_linear(kind):
    lower, upper = ends(kind)
    nu = both_signs()
    expected = hardtanh_linear(lower, upper, nu)
    assert excess(hardtanh, lower, upper, nu, *expected).max() < 1e-12
    close(alone(ops.Clip(-1.0, 1.0), lower, upper, nu, "parallel"), expected)


def test_hardtanh_by_sign():
    """Ours is this line, or the constant where that has the smaller area under it: never higher at the centre."""
    lower, upper = ends("both")
    nu = both_signs()
    expected = hardtanh_by_sign(lower, upper, nu)
    assert excess(hardtanh, lower, upper, nu, *expected).max() < 1e-12
    nu_in, h = alone(ops.Clip(-1.0, 1.0), lower, upper, nu, "adaptive")
    assert excess(hardtanh, lower, upper, nu, nu_in, h).max() < 1e-12
    same = (nu_in - expected[0]).abs() < 1e-12
    torch.testing.assert_close(h[same], expected[1][same], **NEAR)
    centre = (lower + upper) / 2
    assert (nu_in[~same].abs() < 1e-15).all()
    assert (h + nu_in * centre <= expected[1] + expected[0] * centre + 1e-12).all()
    assert 0.2 < same.double().mean() < 1
    # With one corner the adaptive form is no looser than the linear one.
    for kind in ("left", "right", "both"):
        lower, upper = ends(kind)
        linear, centre = hardtanh_linear(lower, upper, nu), (lower + upper) / 2
        nu_in, h = alone(ops.Clip(-1.0, 1.0), lower, upper, nu, "adaptive")
        assert (h + nu_in * centre <= linear[1] + linear[0] * centre + 1e-12).all()


@pytest.mark.parametrize(
    "printed",
    [
        lambda m, wrong_m: (1 - 2 / (1 + m), 2 / (1 + m)),  # D and d in each other's place
        lambda m, wrong_m: (2 / (1 + wrong_m), (1 - 2 / (1 + wrong_m)).abs()),  # max(u, l) for max(u, -l)
    ],
)
def test_hardtanh_as_printed_is_wrong(printed):
    lower, upper = ends("both")
    nu = both_signs()
    slope, size = printed(torch.maximum(upper, -lower), torch.maximum(upper, lower))
    assert excess(hardtanh, lower, upper, nu, slope * nu, size * nu.abs()).max() > 0.1


# General forms

FUNCTIONS = (ops.Clip(-0.3, 0.4), ops.LeakyRelu(0.1), ops.Abs(), ops.Gelu(), ops.Softplus(), ops.HardSwish(), ops.Sin())


@pytest.mark.parametrize("op", FUNCTIONS, ids=str)
def test_parallel_lines(op):
    """s nu and b_up [nu]_+ - b_lo [nu]_-, with the least b_up and the largest b_lo that the slope allows."""
    lower, upper = ends("any")
    nu, s = both_signs(), op.parallel_slope(lower, upper)
    z = lower + (upper - lower) * torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None]
    corners = torch.tensor([-3.0, -0.3, 0.0, 0.4, 3.0], dtype=torch.float64)[:, None].expand(-1, COUNT)
    z = torch.cat([z, torch.minimum(torch.maximum(corners, lower), upper)])
    rest = op.eval(z) - s * z
    expected = rest.amax(0) * nu.clamp(min=0) + rest.amin(0) * nu.clamp(max=0)
    nu_in, h = alone(op, lower, upper, nu, "parallel")
    torch.testing.assert_close(nu_in, s * nu, **NEAR)
    torch.testing.assert_close(h, expected, rtol=1e-5, atol=1e-5)
    assert (h >= expected - 1e-12).all()


@pytest.mark.parametrize("op", FUNCTIONS, ids=str)
def test_two_lines(op):
    """a_up [nu]_+ - a_lo [nu]_- and b_up [nu]_+ - b_lo [nu]_-."""
    lower, upper = ends("any")
    nu, lines = both_signs(), op.lines(lower, upper, op.initial(lower, upper))
    above, below = nu.clamp(min=0), nu.clamp(max=0)
    nu_in = lines.upper_slope * above + lines.lower_slope * below
    h = lines.upper_bias * above + lines.lower_bias * below
    close(alone(op, lower, upper, nu, "adaptive"), (nu_in, h))
    assert excess(op.eval, lower, upper, nu, nu_in, h).max() < 1e-12


@pytest.mark.parametrize("op", [ops.Tanh(), ops.Sigmoid()], ids=str)
def test_s_shaped(op):
    """Slope min(f'(l), f'(u)) and the ends: ours are the narrowest band and the lines of least area, never looser."""
    lower, upper = ends("any")
    nu = both_signs()
    f_low, f_high = op.eval(lower), op.eval(upper)
    s = torch.minimum(op.derivative(lower), op.derivative(upper))
    nu_in, h = s * nu, (f_high - s * upper) * nu.clamp(min=0) + (f_low - s * lower) * nu.clamp(max=0)
    assert excess(op.eval, lower, upper, nu, nu_in, h).max() < 1e-12
    ours = alone(op, lower, upper, nu, "parallel")
    assert excess(op.eval, lower, upper, nu, *ours).max() < 1e-12
    (_, up), (_, down) = (alone(op, lower, upper, sign * torch.ones_like(nu), "parallel") for sign in (1, -1))
    width, theirs = up + down, f_high - f_low - s * (upper - lower)
    assert (width <= theirs + 1e-12).all() and (width < 0.8 * theirs).double().mean() > 0.3
    centre, found = (lower + upper) / 2, alone(op, lower, upper, nu, "adaptive")
    assert (found[1] + found[0] * centre <= h + nu_in * centre + 1e-12).all()


@pytest.mark.parametrize("slope", FORMS)
def test_max_pool(slope):
    """Slope 1 on z_m, m = argmax l, b_lo = 0, b_up = max(0, max of the other u_j - l_m); by sign: above a constant."""
    graph = testing.one_op(ops.MaxPool((2, 2), (2, 2), (1, 1), (0, 0), (0, 0)), TensorType((1, 1, 4, 4), "float64"))
    centre, radius = normal(1, 1, 4, 4), normal(1, 1, 4, 4, seed=1).abs()
    lower, upper = centre - radius, centre + radius
    lower[0, 0, :2, :2], upper[0, 0, :2, :2] = torch.tensor([[0.0, 3], [1, 2]]), torch.tensor([[1.0, 4], [2, 2.5]])
    nu = torch.cat([torch.diag(torch.full((4,), sign)) for sign in (1.0, -2.0)]).double().reshape(8, 1, 1, 2, 2)
    found = layer(graph, lower, upper, nu, slope)
    nu_in, h = torch.zeros(8, 4, 4, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    for r, row in enumerate(nu.reshape(8, 4)):
        k, value = int(row.abs().argmax()), row[row.abs().argmax()]
        places = [(2 * (k // 2) + i, 2 * (k % 2) + j) for i in range(2) for j in range(2)]
        m = max(places, key=lambda p: lower[0, 0, *p])
        rest = max(upper[0, 0, *p] for p in places if p != m)
        if slope == "adaptive" and value > 0 and rest > lower[0, 0, *m]:
            h[r] = value * max(upper[0, 0, *p] for p in places)
        else:
            nu_in[r, *m] = value
            h[r] = value.clamp(min=0) * (rest - lower[0, 0, *m]).clamp(min=0)
    close(found, (nu_in[:, None, None], h))
    assert h[0] == 0, "one element of the first window exceeds all others"


# Sums of layers


def test_the_sign_of_the_terms():
    """l = x'V - eps |V| - sum h(-nu): with the sign that is in print the bound of a small network is passed."""
    w, v = normal(2, 6), normal(6, 1, seed=1)
    builder = Builder()
    x = builder.input("x", TensorType((1, 2), "float64"))
    hidden = builder.add(ops.Relu(), builder.add(ops.MatMul(), x, builder.param(w, "w")))
    graph = builder.finish([builder.add(ops.MatMul(), hidden, builder.param(v, "v"))])
    box = torch.ones(1, 2, dtype=torch.float64)
    radius = w.abs().sum(0)
    nu = -v[:, 0]  # the least value of <v, relu> is minus the largest of <-v, relu>
    nu_in, h = nu / 2, (radius / 2 * nu.clamp(min=0)).sum()  # s = 1/2, -l s [nu]_+
    support = (w @ nu_in).abs().sum()
    values = torch.relu((2 * torch.rand(5000, 2, dtype=torch.float64) - 1) @ w) @ v
    right, printed = -support - h, -support + h
    assert right <= values.min() < printed
    nu_in, h = layer(graph, -box, box, -torch.ones(1, 1, 1, dtype=torch.float64), "parallel")
    torch.testing.assert_close(-nu_in.abs().sum() - h[0], right, **NEAR)


# Flat lines are intervals


@pytest.mark.parametrize("seed", range(50))
def test_flat_lines_at_the_image_are_interval_arithmetic(seed):
    """The sweep alone, not met with anything, from every node that reads no affine one (rows pass those at once)."""
    graph = lower_graph(random_graph(seed))
    box = InputBatch(*random_boxes(seed, graph.nodes[graph.inputs[0]].type.numel, "normal"))
    recipe = Linear(pre=Interval(), slope="flat")
    context = run.prepare(make_schedule(graph, recipe), testing.FLOAT64)
    bounds, checked = run.propagate(context, box), 0
    for i in context.schedule.final.nodes:
        reads = [graph.nodes[j].op for j in graph.nodes[i].inputs if graph.varying[j]]
        if isinstance(graph.nodes[i].op, Input) or not bounds[i].upper.isfinite().all():
            continue
        if isinstance(graph.nodes[i].op, Affine) and any(isinstance(op, Affine) for op in reads):
            continue
        if len({j for j in graph.nodes[i].inputs if graph.varying[j]}) < len(reads):
            continue  # intervals do not know that two operands are one value
        n, boxes = graph.nodes[i].type.numel, len(box.lower)
        for sign, end in ((1.0, bounds[i].lower), (-1.0, bounds[i].upper)):
            rows = torch.eye(n, dtype=torch.float64).mul(sign).repeat(boxes, 1)
            rows = Rows.dense_rows(rows.reshape(-1, *graph.nodes[i].type.shape), boxes)
            found = sign * sweep(context, sweep_from(graph, i), recipe, box, bounds, rows)
            size = max(1.0, float(max(bounds[j].magnitude().max() for j in graph.nodes[i].inputs if j in bounds)))
            torch.testing.assert_close(found.reshape(end.shape), end, rtol=1e-12, atol=1e-12 * size)
        checked += 1
    assert checked


@pytest.mark.parametrize("seed", range(12))
def test_flat_rows_at_the_last_affine_ops_are_intervals(seed):
    """Rows of a specification: those of the linear recipe are those that end at the intervals in front."""
    graph = lower_graph(random_graph(seed + 500))
    box = InputBatch(*random_boxes(seed, graph.nodes[graph.inputs[0]].type.numel, "normal"))
    recipe = Linear(pre=Interval(), slope="flat")
    context = run.prepare(make_schedule(graph, recipe), testing.FLOAT64)
    bounds = run.propagate(context, box)
    shape, boxes = graph.nodes[graph.outputs[0]].type.shape, len(box.lower)
    rows = Rows.dense_rows(normal(boxes * 3, *shape, seed=seed), boxes)
    flat, base = (sweep(context, context.schedule.final, r, box, bounds, rows) for r in (recipe, None))
    size = max(1.0, float(torch.stack([b.magnitude().max() for b in bounds.values()]).nan_to_num(posinf=0).max()))
    torch.testing.assert_close(flat, base, rtol=1e-12, atol=1e-12 * size)
