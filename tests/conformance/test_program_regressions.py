"""Ways in which linear, mixed-integer and semidefinite programs gave wrong verdicts, each where the truth is known.

The attack is off: where a counterexample exists, no program may prove that there is none, whatever its solver says.
"""

from __future__ import annotations

import importlib
import inspect
from fractions import Fraction

import numpy as np
import pytest
import torch
from exact_phases import phases
from program_answers import PROGRAMS, Asked, needs
from small_networks import Net
from tiny_networks import largest, tiny

from absdom import api, ops
from absdom.arithmetic import PROOF
from absdom.encoding import INPUTS, Encoding, Style
from absdom.ir.graph import Builder
from absdom.plan.encode import Encoder
from absdom.plan.recipes import parse_recipe
from absdom.problem import Problem, bound_rows
from absdom.property import InputSet, Property, make_property
from absdom.solvers.workers import Event
from absdom.types import Clock, TensorType


@pytest.fixture(params=PROGRAMS)
def method(request) -> str:
    needs(request.param)
    return request.param


def verdict(graph, prop, method: str, timeout: float = 20.0) -> str:
    return api.verify(graph, prop, method=method, timeout=timeout, attack=False, device="cpu").verdict


def one_row(net, d: float, strict: bool = False) -> Property:
    """Counterexamples have c.y + d <= 0 (strict: < 0)."""
    return make_property(net.lower, net.upper, [(0, [(net.c, d, strict)])])


def exactly(least: Fraction) -> float:
    """A float64 number d with least + d <= 0, the largest one."""
    d = -float(least)
    return d if least + Fraction(d) <= 0 else float(np.nextafter(d, -np.inf))


def seeds(method: str, many: int) -> range:
    return range(many if method in ("lp", "milp") else max(1, many // 8))


# Ties and margins


@pytest.mark.parametrize("margin", [0.0, 1e-9])
def test_canaries_at_the_exact_minimum(method, margin):
    """Rows whose least value is barely 0 or below it: a solver's tolerance is no proof."""
    for seed in seeds(method, 10):
        net = tiny(seed, full=seed % 2 == 1)
        least, _ = phases(net.graph, net.lower, net.upper).least(net.c)
        assert verdict(net.graph, one_row(net, exactly(least) - margin), method) != "unsat", net.name


def test_ties(method):
    """The least value is 0, exactly: a counterexample unless the atom is strict. Neither tolerance nor margin may decide.
    (The judge's own rounding may go below 0: such a witness is one of the deployed network.)"""
    done = 0
    for seed in range(40):
        net = tiny(seed)
        least, _ = phases(net.graph, net.lower, net.upper).least(net.c)
        if Fraction(float(least)) != least:
            continue
        done += 1
        assert verdict(net.graph, one_row(net, -float(least)), method) != "unsat", net.name
        strict = one_row(net, -float(least), strict=True)
        found = api.verify(net.graph, strict, method=method, timeout=20, attack=False, device="cpu")
        assert found.witness is None or strict.satisfied(found.witness.x, found.witness.y, 0), net.name
        if done == (5 if method in ("lp", "milp") else 2):
            break
    assert done >= 2


def test_a_maximum_of_rows_that_is_zero(method):
    """All rows of a clause reach 0 at one point, some of them strict: mixed clauses have no counterexample there only if
    the strict ones cannot be below."""
    for seed in seeds(method, 8):
        net = tiny(seed)
        C = np.array([[1.0, 0.0], [-1.0, 0.0]])
        cells = phases(net.graph, net.lower, net.upper)
        low, high = (s * cells.least(s * C[0])[0] for s in (1, -1))
        middle = float((low + high) / 2)
        atoms = [(C[0], -middle, False), (C[1], middle, False)]  # y_0 = middle, which is reached
        prop = make_property(net.lower, net.upper, [(0, atoms)])
        assert verdict(net.graph, prop, method) != "unsat", net.name


# Clauses, boxes, rows


def test_rows_that_are_refuted_only_together(method):
    """Each row is negative somewhere, and they are never so at one point."""
    proved = 0
    for seed in range(700, 706 if method in ("lp", "milp") else 702):
        net, random = tiny(seed), np.random.default_rng(seed)
        C = np.round(random.standard_normal((2, 2)) * 8) / 8
        C = np.concatenate([C, -C.sum(0, keepdims=True)])  # sums to zero: some row is >= the mean of d
        alone = [phases(net.graph, net.lower, net.upper).least(c)[0] for c in C]
        d = np.array([float(-t) for t in alone])
        joint = phases(largest(net.graph, C, d), net.lower, net.upper).least([1.0])[0]
        if joint <= Fraction(1, 1000):
            continue
        for shift, holds in ((0.9, True), (1.1, False)):
            moved = d - shift * float(joint)
            prop = make_property(net.lower, net.upper, [(0, [(c, t, False) for c, t in zip(C, moved, strict=True)])])
            found = verdict(net.graph, prop, method)
            assert found != ("sat" if holds else "unsat"), (net.name, shift)
            proved += found == "unsat"
            assert found == "unsat" or method != "milp" or not holds, net.name
    assert proved or method.startswith("sdp")


def test_boxes_with_rows_of_their_own(method):
    """Bounds and rows of one box must not be those of another, in whatever order they are asked."""
    for seed in seeds(method, 3):
        net = tiny(seed)
        middle = (net.lower + net.upper) / 2
        boxes = [(net.lower, middle), (middle, net.upper), (net.lower, net.upper), (middle, middle)]
        C = np.array([net.c, -net.c, [1.0, 0.0], [0.0, 1.0]])
        exact = [phases(net.graph, *box).least(c)[0] for box, c in zip(boxes, C, strict=True)]
        for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
            for wrong in (None, seed % 4):
                rows = []
                for place, k in enumerate(order):
                    d = exactly(exact[k]) + (-1e-7 if wrong == k else 1.0)
                    rows.append((place, [(C[k], d, False)]))
                lows, highs = (np.stack([boxes[k][side] for k in order]) for side in (0, 1))
                found = verdict(net.graph, make_property(lows, highs, rows), method)
                assert found != ("sat" if wrong is None else "unsat"), (net.name, order, wrong)
                if wrong is None and method == "milp":
                    assert found == "unsat", (net.name, order)


def identity(n: int):
    """x -> relu(x) - relu(-x): the identity, which a relaxation does not see."""
    builder = Builder()
    x = builder.input("x", TensorType((1, n), "float64"))
    left = builder.add(ops.Relu(), x)
    right = builder.add(ops.Relu(), builder.add(ops.Neg(), x))
    return builder.finish([builder.add(ops.Sub(), left, right)])


def test_products_in_properties(method):
    """Rows on y_0 y_1 and on x_0 x_0, where y = x in [-1, 2] x [-1, 3]: least values -3 and 0."""
    graph = identity(2)
    for products, least in ((((0, 1),), -3.0), (((2, 2),), 0.0)):
        for below, wrong in ((0.0, "unsat"), (1e-6, "unsat"), (-1e-3, "sat"), (-40.0, "sat")):
            spec = make_property(
                [[-1.0, -1.0]], [[2.0, 3.0]], [(0, [(np.array([0.0, 0.0, 1.0]), -least - below, False)])]
            )
            prop = Property(InputSet.box([[-1.0, -1.0]], [[2.0, 3.0]]), spec.spec, products=products)
            found = verdict(graph, prop, method, timeout=5)
            assert found != wrong, (products, below)
            if below == -40.0:
                assert found == "unsat"


def test_rows_on_inputs(method):
    """y_0 - x_0 with y = x: zero everywhere. A tie, and a hair beside it."""
    graph = identity(2)
    for c, d, strict, wrong in (
        ([1.0, 0.0, -1.0, 0.0], 0.0, False, "unsat"),
        ([1.0, 0.0, -1.0, 0.0], 0.0, True, "sat"),
        ([1.0, 0.0, -1.0, 0.0], 1e-6, False, "sat"),
        ([1.0, 1.0, -1.0, -1.0], -1e-12, True, "unsat"),
        ([0.0, 0.0, 1.0, 1.0], 2.0, False, "unsat"),
        ([0.0, 0.0, 1.0, 1.0], 2.0, True, "sat"),
    ):
        prop = make_property([[-1.0, -1.0]], [[2.0, 3.0]], [(0, [(np.array(c), d, strict)])], on_inputs=True)
        found = verdict(graph, prop, method)
        assert found != wrong, (c, d, strict)
        if method == "milp" and d == 1e-6:
            assert found == "unsat"


# Floats


def test_boxes_that_are_points(method):
    for seed in seeds(method, 10):
        net = tiny(seed, full=True)
        x = net.lower + np.random.default_rng(seed).random(len(net.lower)) * (net.upper - net.lower)
        here = net._replace(lower=x, upper=x)
        least, _ = phases(net.graph, x, x).least(net.c)
        assert verdict(net.graph, one_row(here, exactly(least)), method) != "unsat", net.name
        assert verdict(net.graph, one_row(here, exactly(least) + 1e-6), method) == "unsat", net.name


def test_neurons_that_hardly_move(method):
    """Bounds of a neuron 1e-9 wide, rounded or snapped and imposed on a program: false `unsat`. Kinks lie inside, and
    the next layer multiplies by 1e8."""
    for seed in seeds(method, 8):
        random, net = np.random.default_rng(seed), Net(seed, 1, 2)
        net.dense(3)
        centre = np.round(random.standard_normal(2), 3)
        values = phases(net.builder.finish([net.value]), centre, centre).outputs[0].ravel()
        shift = torch.tensor([-float(v) + 1e-10 * k for k, v in enumerate(values)], dtype=torch.float64)
        net.add(ops.Add(), net.builder.param(shift, "shift"))
        net.add((ops.Relu(), ops.Abs(), ops.Clip(0.0, 1e-10), ops.LeakyRelu(0.1))[seed % 4])
        net.add(ops.MatMul(), net.builder.param(torch.from_numpy(random.standard_normal((3, 2)) * 1e8), "w"))
        graph, radius = net.finish(), 1e-9
        lower, upper, c = centre - radius, centre + radius, np.array([1.0, -1.0])
        least, _ = phases(graph, lower, upper).least(c)
        for margin in (0.0, 1e-7, 1e-3):
            prop = make_property(lower, upper, [(0, [(c, exactly(least) - margin, False)])])
            assert verdict(graph, prop, method) != "unsat", (seed, margin)
        if method == "milp":
            prop = make_property(lower, upper, [(0, [(c, exactly(least) + 1e-2 * (1 + abs(float(least))), False)])])
            assert verdict(graph, prop, method) == "unsat", seed


def test_ends_that_are_nearly_a_kink(method):
    """Pre-activations in [-1e-13, 1] or [-1, 1e-13], scaled up behind: a neuron is not to be called stable."""
    for low, high in ((-1e-13, 1.0), (-1.0, 1e-13), (-1e-13, 1e-13), (-1e-300, 1.0), (-5e-324, 1e-3)):
        builder = Builder()
        x = builder.input("x", TensorType((1, 1), "float64"))
        y = builder.add(ops.Relu(), x)
        y = builder.add(ops.Sub(), y, x)  # relu(-x), at most -low
        y = builder.add(ops.MatMul(), y, builder.param(torch.tensor([[-1e13]], dtype=torch.float64), "w"))
        graph = builder.finish([y])
        least, _ = phases(graph, [low], [high]).least([1.0])
        prop = make_property([low], [high], [(0, [(np.ones(1), exactly(least), False)])])
        assert verdict(graph, prop, method) != "unsat", (low, high)


def test_values_far_from_zero(method):
    """Boxes around 1e7 with small differences: what a mixed or rounded frame of coordinates would lose."""
    for seed in seeds(method, 8):
        net = tiny(seed, full=True)
        centre = np.full(len(net.lower), 1e7)
        far = net._replace(lower=centre + net.lower, upper=centre + net.upper)
        least, _ = phases(far.graph, far.lower, far.upper).least(far.c)
        assert verdict(far.graph, one_row(far, exactly(least)), method) != "unsat", net.name
        assert Asked(far.graph, far.lower, far.upper, f"{method}(pre=crown)").program(far.c).lower[0] <= least, net.name


# Solvers that fail, stop or lie


def test_a_deadline_that_has_passed(method):
    for seed in seeds(method, 4):
        net = tiny(seed)
        least, _ = phases(net.graph, net.lower, net.upper).least(net.c)
        for timeout in (1e-9, 1e-3, 0.02):
            prop = one_row(net, exactly(least) - 1e-9)
            assert verdict(net.graph, prop, method, timeout) != "unsat", net.name


LIES = ("optimal", "infeasible", "random", "elsewhere")
MORE_LIES = ("stopped", "failed", "nan", "huge", "negated")


def lying(run, kind: str):
    """A solver's answer, bent."""

    def lie(self, *args, **kwargs):
        found = run(self, *args, **kwargs)
        y, random = np.array(found.multipliers, dtype=np.float64), np.random.default_rng(0)
        match kind:
            case "optimal":
                return found._replace(status="optimal", value=1e6)
            case "infeasible":
                return found._replace(status="infeasible", value=np.inf, point=None)
            case "stopped" | "failed":
                return found._replace(status=kind, value=np.nan, point=None)
            case "nan":
                return found._replace(multipliers=np.where(random.random(len(y)) < 0.3, np.nan, y))
            case "random":
                return found._replace(multipliers=random.standard_normal(len(y)), value=1e6)
            case "huge":
                return found._replace(multipliers=1e300 * (y + random.standard_normal(len(y))), value=1e6)
            case "negated":
                return found._replace(multipliers=-y)
            case "elsewhere":
                point = None if found.point is None else found.point + random.standard_normal(len(found.point))
                return found._replace(point=point, value=1e6)
        raise ValueError(kind)

    return lie


def in_process(function, jobs, *args, **kwargs):
    """Worker processes would not know of the lies."""
    for number, job in enumerate(jobs):
        result = function(*job)
        while inspect.isgenerator(result):
            try:
                yield Event(number, "progress", next(result))
            except StopIteration as end:
                result = end.value
        yield Event(number, "done", result)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", [*LIES, *(pytest.param(kind, marks=pytest.mark.slow) for kind in MORE_LIES)])
@pytest.mark.parametrize("method", ["lp", "milp"])
def test_linear_programs_that_lie(method, kind, monkeypatch):
    """Wrong statuses, values, points and multipliers prove nothing that is not so."""
    needs(method)
    backend = pytest.importorskip("absdom.solvers.lp.backend")
    for owner in (backend.HighsProgram, backend.ScipyProgram):
        monkeypatch.setattr(owner, "_run", lying(owner._run, kind))
    monkeypatch.setattr("absdom.solvers.workers.run_all", in_process)
    for name in ("absdom.solvers.milp.recipe", "absdom.solvers.milp.tighten", "absdom.solvers.lp.recipe"):
        module = importlib.import_module(name)
        if hasattr(module, "run_all"):
            monkeypatch.setattr(module, "run_all", in_process)
    for seed in range(3):
        net = tiny(seed)
        least, _ = phases(net.graph, net.lower, net.upper).least(net.c)
        assert verdict(net.graph, one_row(net, exactly(least) - 1e-9), method, timeout=1) != "unsat", net.name
        answer = Asked(net.graph, net.lower, net.upper, f"{method}(pre=crown)").program(net.c, clock=Clock(1.0))
        assert answer.lower[0] <= least, net.name


@pytest.mark.parametrize("kind", ["random", "nan", "infinite", "huge"])
def test_any_multipliers_at_all(method, kind, monkeypatch):
    """Whoever asks for a safe bound, with whatever multipliers, is told nothing false."""
    random, honest = np.random.default_rng(1), Encoding.safe_bound

    def bent(self, objective, multipliers, lower=None, upper=None):
        y = np.array(multipliers, dtype=np.float64)
        noise = random.standard_normal(len(y))
        spots = random.random(len(y)) < 0.2
        bends = {"random": noise, "nan": np.where(spots, np.nan, y), "huge": noise * 1e200,
                 "infinite": np.where(spots, np.inf * np.sign(noise), y)}  # fmt: skip
        return honest(self, objective, bends[kind], lower, upper)

    monkeypatch.setattr(Encoding, "safe_bound", bent)
    for seed in seeds(method, 6):
        net = tiny(seed)
        least, _ = phases(net.graph, net.lower, net.upper).least(net.c)
        assert verdict(net.graph, one_row(net, exactly(least) - 1e-9), method, timeout=2) != "unsat", net.name


# Recipes around programs


@pytest.mark.parametrize("seed", range(1))
def test_meets_and_layers_are_sound_and_no_looser(seed):
    net = tiny(seed)
    least, _ = phases(net.graph, net.lower, net.upper).least(net.c)
    prop, every = one_row(net, 0.0), np.arange(1)

    def bound(recipe: str) -> float:
        found = bound_rows(Problem.of(net.graph, prop).engine, parse_recipe(recipe), PROOF, prop, every)[0]
        assert found <= least, (net.name, recipe)
        return found

    slack = 1e-7 * (1 + abs(float(least)))
    crown, lp = bound("crown"), bound("lp")
    assert lp >= crown  # the sweeps of `pre` come first
    assert bound("lp & crown") >= max(lp, crown) - slack
    assert bound("lp & zonotope") >= lp - slack
    assert bound("lp(pre=alpha-crown)") >= bound("alpha-crown") - slack
    for recipe in (
        '{"%*": lp}', '{"MatMul": lp, "*": crown}', 'linear(pre=lp)', "ascent(linear(pre=lp))", "lp(pre=lp)",
        'lp(pre={"Relu": lp, "*": crown})', "lp(pre=interval)", "partition(lp)", "lp & alpha-crown & zonotope",
    ):  # fmt: skip
        bound(recipe)
    assert bound("linear(pre=lp)") >= bound("linear(pre=crown)") - 0.1 * (1 + abs(float(least)))


@pytest.mark.parametrize("around", ["{}(pre={})", "{1} & {0}", "{}(pre=linear(pre={}))"])
def test_estimates_in_front_of_programs_close_nothing(method, around):
    """A program over bounds that are estimates proves nothing, however safe its own bound is."""
    recipe = around.format(method, "projected(projections=1)")
    for seed in range(2):
        net = tiny(seed)
        least, _ = phases(net.graph, net.lower, net.upper).least(net.c)
        found = api.verify(net.graph, one_row(net, 1 - float(least)), method=recipe, timeout=20, attack=False)
        assert (found.verdict, found.guarantee) == ("unknown", "REAL"), (net.name, found)


# Sets and bounds that are empty, endless or not read


def one_layer(*parts):
    """x in R^2 -> the results of `parts`, functions of (builder, x), side by side."""
    builder = Builder()
    x = builder.input("x", TensorType((1, 2), "float64"))
    return builder.finish([builder.add(ops.Concat(1), *(part(builder, x) for part in parts))])


def test_elements_without_bounds_that_a_clause_does_not_read():
    """0 times infinity is 0: exp(1000 x_0) has no finite bound, and no row speaks of it."""
    graph = one_layer(
        lambda b, x: b.add(ops.Relu(), x),
        lambda b, x: b.add(
            ops.Exp(), b.add(ops.Mul(), x, b.param(torch.tensor([[1000.0, 1.0]], dtype=torch.float64), "w"))
        ),
    )
    for method in ("lp", "milp"):
        for rows in ([[1.0, 0, 0, 0]], [[1.0, 0, 0, 0], [-1.0, 0, 0, 0]], [[1.0, 0, 0, 1.0], [-1.0, 0, 0, 1.0]]):
            for d, right in ((0.01, "unsat"), (-4.0, "sat")):
                clause = (0, [(np.array(c), d, False) for c in rows])
                prop = make_property([[-1.0, -1.0]], [[1.0, 1.0]], [clause])
                found = verdict(graph, prop, method)
                assert found == right if d > 0 else found != "unsat", (method, rows, d)


@pytest.mark.parametrize("name", ["lp", "milp"])
def test_sets_without_a_point(name):
    """x_0 + x_1 <= -3 in [-1, 1]^2: falsifiers give points outside, where values say nothing."""
    graph = one_layer(lambda b, x: b.add(ops.Relu(), x), lambda b, x: b.add(ops.Abs(), x))
    atoms = [(np.array([1.0, 0, 0, 0]), -5.0, False), (np.array([0, 0, 1.0, 0]), -5.0, False)]
    for count in (1, 2):
        for offset, right in ((-3.0, "unsat"), (-1.5, "sat")):
            prop = make_property([[-1.0, -1.0]], [[1.0, 1.0]], [(0, atoms[:count])])
            inputs = InputSet.polytope([[1.0, 1.0]], [offset], [-1.0, -1.0], [1.0, 1.0])
            assert verdict(graph, Property(inputs, prop.spec), name) == right, (count, offset)


def test_narrowing_a_network_that_does_not_read_an_input():
    builder = Builder()
    x, _ = (builder.input(name, TensorType((1, 2), "float64")) for name in "xz")
    graph = builder.finish([builder.add(ops.Relu(), x)])
    asked = Asked(graph, np.full(4, -1.0), np.ones(4), "milp")
    final, wanted = asked.context.schedule.final, torch.ones((1, 1, 2), dtype=torch.bool)
    encoder = Encoder(asked.context, final, asked.batch, {i: asked.bounds[i] for i in final.nodes}, wanted)
    relaxed = encoder.encode(Style())
    upper = np.where(relaxed.node == INPUTS, relaxed.upper, 0.5)
    assert (encoder.narrowed(relaxed, relaxed.lower, upper).encode(Style()).upper[relaxed.target] == 0.5).all()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["lp", "milp", "lp(pre=lp)"])
def test_programs_behind_bounds_on_a_gpu(name):
    """Encodings are made on the CPU, wherever the bounds in front of them are."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    for seed in range(4):
        net = tiny(seed)
        least, _ = phases(net.graph, net.lower, net.upper).least(net.c)
        for margin in (0.01, -0.01):
            asked = one_row(net, margin - float(least))
            verdicts = [
                api.verify(net.graph, asked, method=name, timeout=30, device=d).verdict for d in ("cpu", "cuda")
            ]
            assert verdicts[0] == verdicts[1] != ("sat" if margin > 0 else "unsat"), net.name
