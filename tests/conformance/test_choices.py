"""Choices and places against enumeration: every truth assignment, every index that bounds allow, every order of scores."""

from __future__ import annotations

import itertools

import pytest
import torch

from absdom import ops, testing
from absdom.arithmetic import PROOF
from absdom.ir.graph import Builder
from absdom.passes import lower as lower_graph
from absdom.types import TensorType

GENERATOR = torch.Generator().manual_seed(3)


def rand(*shape):
    return torch.rand(shape, generator=GENERATOR, dtype=torch.float64)


def value_of(plane, values):
    return sum(c * v for c, v in zip(plane.coefficients, values, strict=True) if c is not None) + plane.bias


def test_a_conjunction_is_known_as_far_as_its_parts_are():
    ends = [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)]
    for parts in itertools.product(ends, repeat=3):
        low, high = (torch.tensor([[p[k] for p in parts]], dtype=torch.float64) for k in (0, 1))
        below, above = ops.ReduceMin(0).planes([low], [high], {"joint": torch.ones(1, 1)})
        truths = [t for t in itertools.product((0.0, 1.0), repeat=3) if all(a <= v <= b for v, (a, b) in zip(t, parts))]
        for truth in truths:
            v = torch.tensor([truth], dtype=torch.float64)
            least, most = ((p.coefficients[0] * v).sum() + p.bias.sum() for p in (below, above))
            assert least <= min(truth) <= most
            unknown = sum(a < b for a, b in parts)
            if unknown <= 1 or all(truth):  # then the planes are exact
                assert least >= min(truth) - 1e-12


def test_the_maximum_of_two_is_exact_where_one_is_always_larger():
    low = [torch.tensor([[0.0, -1.0, 2.0]], dtype=torch.float64), torch.tensor([[-3.0, 1.0, 2.0]], dtype=torch.float64)]
    high = [torch.tensor([[1.0, 1.0, 2.0]], dtype=torch.float64), torch.tensor([[0.0, 2.0, 2.0]], dtype=torch.float64)]
    below, above = ops.Maximum().planes(low, high)
    for plane in (below, above):
        assert plane.coefficients[0].tolist() == [[1, 0, 1]] and plane.coefficients[1].tolist() == [[0, 1, 0]]
        assert (plane.bias == 0).all()


def test_the_upper_plane_of_a_maximum_uses_the_difference():
    a, b = (torch.tensor([[-1.0]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64))
    _, above = ops.Maximum().planes([a, a], [b, b])
    assert value_of(above, [torch.zeros(1, 1), torch.zeros(1, 1)]).item() == pytest.approx(1.0)
    _, above = ops.Maximum().planes([a, a], [b, 0.5 * b])
    assert value_of(above, [0 * b, -0.25 * b]).item() == pytest.approx(0.75)  # the constant would be 1


@pytest.mark.parametrize("sure", [0.0, 1.0])
def test_where_is_exact_where_its_condition_is_known(sure):
    c = torch.full((1, 4), sure, dtype=torch.float64)
    low, high = [c, -rand(1, 4), -rand(1, 4)], [c, rand(1, 4), rand(1, 4)]
    op, chosen = ops.Where(), 1 if sure else 2
    assert torch.equal(op.image(low, high)[0], low[chosen]) and torch.equal(op.image(low, high)[1], high[chosen])
    for plane in op.planes(low, high):
        values = [c, rand(1, 4), rand(1, 4)]
        assert torch.equal(value_of(plane, values), values[chosen])


def test_where_of_an_unknown_condition_is_the_hull():
    zero, one = torch.zeros(1, 4, dtype=torch.float64), torch.ones(1, 4, dtype=torch.float64)
    a, b = rand(2, 1, 4).sort(0).values, rand(2, 1, 4).sort(0).values + 0.3
    low, high = ops.Where().image([zero, a[0], b[0]], [one, a[1], b[1]])
    assert torch.equal(low, torch.minimum(a[0], b[0])) and torch.equal(high, torch.maximum(a[1], b[1]))
    infinite = ops.Where().image([zero, zero - torch.inf, b[0]], [one, zero + torch.inf, b[1]])
    assert (infinite[0] == -torch.inf).all() and (infinite[1] == torch.inf).all()


def test_equality_is_known_at_points_and_apart():
    low, high = torch.tensor([[1.0, 0.0, 0.0, 2.0]]), torch.tensor([[1.0, 1.0, 1.0, 3.0]])
    other = torch.tensor([[1.0, 1.0, 1.5, 2.0]])
    least, most = ops.Equal().image([low, other], [high, other])
    assert least.tolist() == [[1, 0, 0, 0]] and most.tolist() == [[1, 1, 0, 1]]
    _, above = ops.Equal().planes([low, other], [high, other])
    assert value_of(above, [high + 0, other])[0, 3].abs() < 1e-5  # 0 at the far end


def enumerate_box(low, high):
    """Every point whose coordinates are ends, or whole numbers between them."""
    axes = [
        sorted({a.item(), b.item(), *range(-(-int(a * 8) // 8), int(b) + 1)}) for a, b in zip(low, high, strict=True)
    ]
    axes = [[v for v in axis if a <= v <= b] for axis, a, b in zip(axes, low, high, strict=True)]
    return torch.tensor(list(itertools.product(*axes)), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(6))
def test_images_of_indexing_are_hulls_over_the_places(seed):
    generator = torch.Generator().manual_seed(seed)
    whole = lambda *shape: torch.randint(-5, 5, shape, generator=generator).double()  # noqa: E731
    x = whole(1, 4)
    first, last = torch.stack([whole(1, 2), whole(1, 2)]).sort(0).values
    points = enumerate_box(first[0], last[0])
    cases = [(ops.Lookup(0), lambda i: [x, i]), (ops.Scatter(), lambda i: [x, i[:, :, None], x[:, :2] + 7])]
    cases += [(ops.Window(size, 0.5), lambda i: [x, i[:, :1]]) for size in (1, 3)]
    for op, operands in cases:
        low, high = op.image(operands(first), operands(last))
        values = torch.cat([op.eval(*operands(p[None])) for p in points])
        assert torch.equal(low[0], values.amin(0)) and torch.equal(high[0], values.amax(0)), (op, first, last)


def test_windows_are_python_slices():
    x = torch.arange(1.0, 6.0)[None]
    for size, start in itertools.product((1, 2, 4), range(-9, 9)):
        expected = x[0, start : start + size].tolist()
        found = ops.Window(size, -1.0).eval(x, torch.tensor([[float(start)]]))[0].tolist()
        assert found == expected + [-1.0] * (size - len(expected)), (size, start)


def test_a_write_outside_is_skipped():
    out = ops.Scatter().eval(torch.zeros(1, 3), torch.tensor([[[3.0], [-4.0], [-1.0], [1e9]]]), torch.ones(1, 4))
    assert out.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("largest", [True, False])
def test_places_of_the_largest_are_hulls_over_all_orders(largest):
    generator = torch.Generator().manual_seed(5)
    for _ in range(25):
        ends = torch.randint(0, 5, (2, 3), generator=generator).double().sort(0).values
        low, high = ends[0][None], ends[1][None]
        for op in (ops.TopIndices(0, 3, largest), ops.TopValues(0, 2, largest)):
            values = torch.cat([op.eval(p[None]) for p in enumerate_box(low[0], high[0])])
            least, most = op.image([low], [high])
            assert (least <= values).all() and (most >= values).all()
            if isinstance(op, ops.TopValues) or (low == high).all():
                assert torch.equal(least[0], values.amin(0)) and torch.equal(most[0], values.amax(0))


def graph_of(op, n):
    builder = Builder()
    x = builder.input("x", TensorType((1, n), "float64"))
    return lower_graph(builder.finish([builder.add(op, x)]))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 400])
def test_the_place_of_a_maximum_with_ties(n, last):
    graph = graph_of(ops.ArgMax(1, last), n)
    generator = torch.Generator().manual_seed(n)
    grid = torch.randint(0, 3, (60, n), generator=generator).double()
    if n <= 4:
        grid = torch.tensor(list(itertools.product((0.0, 1.0, 2.0), repeat=n)), dtype=torch.float64)
    best = grid == grid.amax(1, keepdim=True)
    place = torch.arange(n).double()
    expected = place.where(best, -1.0).amax(1) if last else place.where(best, n + 0.0).amin(1)
    for recipe in ("interval", "crown"):
        found = testing.bounds_of(graph, grid, grid, recipe, testing.FLOAT64)
        assert torch.equal(found.lower.flatten(), expected) and torch.equal(found.upper.flatten(), expected), recipe


def test_a_place_is_bounded_by_differences_of_scores():
    """Scores that overlap, and whose difference is always positive: intervals do not see it."""
    builder = Builder()
    x = builder.input("x", TensorType((1, 1), "float64"))
    weights = torch.tensor([[1.0, 1.0, -0.1]], dtype=torch.float64)
    scores = builder.add(ops.MatMul(), builder.add(ops.Relu(), x), builder.param(weights, "w"))
    scores = builder.add(ops.Add(), scores, builder.param(torch.tensor([0.0, 0.5, 0.0], dtype=torch.float64), "b"))
    for last, op in ((scores, ops.ArgMax(1)), (builder.add(ops.Softmax(1), scores), ops.ArgMax(1))):
        graph = lower_graph(builder.finish([builder.add(op, last)]))
        low, high = torch.tensor([[-1.0]]), torch.tensor([[2.0]])
        crown = testing.bounds_of(graph, low, high, "crown", PROOF)
        assert (crown.lower.item(), crown.upper.item()) == (1, 1)
        assert testing.bounds_of(graph, low, high, "interval", PROOF).lower.item() == 0
        assert not any(n.op.name == "Softmax" for n in graph.nodes)


def test_a_softmax_stays_where_a_ranking_looks_across_it():
    builder = Builder()
    x = builder.input("x", TensorType((2, 3), "float64"))
    soft = builder.add(ops.Softmax(1), x)
    across = lower_graph(builder.finish([builder.add(ops.ArgMax(0), soft)]))
    assert any(n.op.name == "Softmax" for n in across.nodes)
    turned = builder.add(ops.ArgMax(0), builder.add(ops.Permute((1, 0)), soft))
    assert not any(n.op.name == "Softmax" for n in lower_graph(builder.finish([turned])).nodes)
