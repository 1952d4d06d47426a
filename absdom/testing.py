"""The laws that every op and every domain keeps: the functions that our own tests and a plug-in author's tests run.

    from absdom import testing
    testing.check_op(MyOp)                                           # one op in every recipe
    testing.check_domain(MyDomain)                                   # one recipe on every op
    testing.check_graph(graph, InputSet.box(lower, upper), recipe)   # a network

Each raises LawBroken with the law, the recipe and the numbers. Bounds of charged float64 runs are compared with zero
tolerance: what the comparison itself can round is enclosed by charged interval arithmetic at each single point.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from absdom import ops, registry
from absdom.arithmetic import PROOF, SEARCH, Arithmetic
from absdom.domain import Dual, Forward, Meet, NodeBounds, Recipe, rules_of
from absdom.errors import UsageError
from absdom.ir.graph import Builder, Graph
from absdom.ir.op import Affine, At, Composite, Elementwise, Input, Multivariate, Op, Param
from absdom.ir.text import parse_graph
from absdom.passes import lower as lower_graph
from absdom.plan import run
from absdom.plan.planner import make_schedule
from absdom.plan.recipes import parse_recipe
from absdom.property import InputSet
from absdom.sets import InputBatch
from absdom.testing_cases import examples
from absdom.testing_rules import FLOAT64, Case, LawBroken, check_layers, check_traceable
from absdom.types import TensorType

RECIPES = ("interval", "zonotope", "forward", "crown", "crown-ibp", "cap", "linear(slope=flat)", "cap & crown-ibp")
TRACED = ("Add", "Conv", "Concat", "Relu", "Tanh", "Product", "MaxPool")  # cases enough to trace the rules of a domain


def _demand(holds: bool, text: str) -> None:
    if not holds:
        raise LawBroken(text)


def one_op(op: Op, *operands: TensorType | torch.Tensor) -> Graph:
    """A network of one op: a TensorType is an input of the network, a tensor is a parameter."""
    builder = Builder()
    nodes = [
        builder.param(o, f"p{k}") if isinstance(o, torch.Tensor) else builder.input(f"x{k}", o)
        for k, o in enumerate(operands)
    ]
    return lower_graph(builder.finish([builder.add(op, *nodes)]))


def bounds_of(graph: Graph, lower: torch.Tensor, upper: torch.Tensor, recipe, arithmetic: Arithmetic) -> NodeBounds:
    """Bounds of the output of a lowered graph over boxes "B n", exactly as given: nothing is rounded outward."""
    recipe = parse_recipe(recipe) if isinstance(recipe, str) else recipe
    context = run.prepare(make_schedule(graph, recipe), arithmetic)
    batch = InputBatch(arithmetic.tensor(lower), arithmetic.tensor(upper))
    with torch.no_grad():
        return run.node_bounds(context, batch)


def enclose(graph: Graph, points: torch.Tensor) -> NodeBounds:
    """What the outputs over the reals are at float64 points "B n": charged intervals that are a few roundings wide."""
    return bounds_of(graph, points, points, "interval", PROOF)


def sample(graph: Graph, lower: torch.Tensor, upper: torch.Tensor, count: int = 8, steps: int = 6, seed: int = 0):
    """Points "B k n" of boxes "B n": corners, uniform ones, and the ends of a projected gradient walk per output."""
    generator = torch.Generator().manual_seed(seed)
    boxes, n = lower.shape
    share = torch.rand((boxes, count, n), generator=generator, dtype=lower.dtype)
    share[:, : count // 2] = share[:, : count // 2].round()
    share[:, 0], share[:, 1 % count] = 0, 1
    points = lower[:, None] + share * (upper - lower)[:, None]
    points = [torch.minimum(torch.maximum(points, lower[:, None]), upper[:, None])]
    context = run.prepare(make_schedule(graph, parse_recipe("interval")), FLOAT64)
    outputs = graph.nodes[graph.outputs[0]].type.numel
    for k in range(min(outputs, 4)):
        for direction in (-1, 1):
            points.append(_walk(context, points[0][:, -1], lower, upper, k, direction, steps)[:, None])
    return torch.cat(points, 1)


def _walk(context, x, lower, upper, k, direction, steps):
    size = (upper - lower) / 2
    for _ in range(steps):
        x = x.detach().requires_grad_()
        value = run.evaluate(context, x).flatten(1)[:, k].sum()
        gradient = torch.autograd.grad(value, x, allow_unused=True)[0] if value.requires_grad else None
        gradient = torch.zeros_like(x) if gradient is None else gradient.nan_to_num()
        x = torch.minimum(torch.maximum(x.detach() + direction * size * gradient.sign(), lower), upper)
        size = size * 0.6
    return x.detach()


def check_graph(
    graph: Graph, inputs: InputSet, recipe: Recipe | str, *, gradients: bool = False, seed: int = 0
) -> None:
    """All laws for a network on boxes."""
    graph = lower_graph(graph)
    case = Case("network", graph, torch.from_numpy(inputs.lower), torch.from_numpy(inputs.upper))
    check_case(case, recipe, gradients=gradients, seed=seed)


def check_case(case: Case, recipe: Recipe | str, *, gradients: bool = False, seed: int = 0) -> None:
    """All laws for one recipe: on the boxes, on boxes with flat dimensions, and on points."""
    for variant in (case, case.half_flat(), case.on_points()):
        check_sound(variant, recipe, seed=seed)
    check_exact_on_points(case.on_points(), recipe)
    check_not_looser_than_interval(case, recipe)
    check_batch(case, recipe)
    if gradients:
        check_gradients(case, recipe)


def scale_of(case: Case) -> float:
    """The largest absolute value that any node takes over the boxes, by intervals; at least the smallest normal one."""
    context = run.prepare(make_schedule(case.graph, parse_recipe("interval")), FLOAT64)
    with torch.no_grad():
        bounds = run.propagate(context, InputBatch(case.lower, case.upper))
    values = torch.cat([b.magnitude().flatten() for b in bounds.values()])
    values = torch.cat([values, *(t.abs().max().double()[None] for t in case.graph.params.values() if t.numel())])
    finite = values[values.isfinite()]
    return max(float(finite.max()) if len(finite) else 1.0, 1e-300)


def check_sound(case: Case, recipe: Recipe | str, *, seed: int = 0) -> None:
    """Sampled and attacked outputs lie inside the bounds: charged float64 ones exactly, float32 ones up to rounding."""
    points = sample(case.graph, case.lower, case.upper, seed=seed)
    boxes, count, n = points.shape
    real = enclose(case.graph, points.reshape(-1, n))
    low, high = (t.reshape(boxes, count, -1) for t in (real.lower, real.upper))
    slack = 1e-4 * scale_of(case)
    for arithmetic, allowed in ((PROOF, 0.0), (SEARCH, slack)):
        found = bounds_of(case.graph, case.lower, case.upper, recipe, arithmetic)
        for side, bad in (
            ("lower", found.lower.double().flatten(1)[:, None] - allowed > high),
            ("upper", found.upper.double().flatten(1)[:, None] + allowed < low),
        ):
            if bad.any():
                b, k, j = bad.nonzero()[0].tolist()
                bound = getattr(found, side).flatten(1)[b, j].item()
                raise LawBroken(
                    f"unsound: {case.name}, {recipe}, {'charged ' if arithmetic.charged else ''}{arithmetic.dtype}: "
                    f"the {side} bound {bound!r} of output {j} in box {b} is passed at {points[b, k].tolist()}, "
                    f"where the output lies in [{low[b, k, j].item()!r}, {high[b, k, j].item()!r}]"
                )


def check_exact_on_points(case: Case, recipe: Recipe | str) -> None:
    """Bounds over a point are the value there, up to rounding."""
    context = run.prepare(make_schedule(case.graph, parse_recipe("interval")), FLOAT64)
    value = run.evaluate(context, case.lower).detach()
    found = bounds_of(case.graph, case.lower, case.upper, recipe, FLOAT64)
    real = enclose(case.graph, case.lower)  # how far rounding can reach at all
    slack = 1e-9 * scale_of(case) + (real.upper - real.lower)
    for side in ("lower", "upper"):
        distance = (getattr(found, side) - value).abs()
        far = distance - slack  # NaN is no answer either
        _demand(
            bool((far <= 0).all()),
            f"not exact on points: {case.name}, {recipe}: the {side} bound is {distance.max().item()} off",
        )


def check_not_looser_than_interval(case: Case, recipe: Recipe | str) -> None:
    """The meet of any recipe with intervals is no looser than intervals."""
    recipe = parse_recipe(recipe) if isinstance(recipe, str) else recipe
    base = parse_recipe("interval")
    plain = bounds_of(case.graph, case.lower, case.upper, base, FLOAT64)
    met = bounds_of(case.graph, case.lower, case.upper, base & recipe, FLOAT64)
    slack = 1e-12 * scale_of(case)
    good = (met.lower >= plain.lower - slack).all() and (met.upper <= plain.upper + slack).all()
    _demand(bool(good), f"looser than interval: {case.name}, {recipe}")


def check_batch(case: Case, recipe: Recipe | str) -> None:
    """Each box of a batch gets the bounds that it gets alone."""
    together = bounds_of(case.graph, case.lower, case.upper, recipe, FLOAT64)
    slack = 1e-9 * scale_of(case)
    for b in range(len(case.lower)):
        alone = bounds_of(case.graph, case.lower[b : b + 1], case.upper[b : b + 1], recipe, FLOAT64)
        for side in ("lower", "upper"):
            one, two = getattr(together, side)[b], getattr(alone, side)[0]
            same = (one == two) | ((one - two).abs() <= slack)
            _demand(bool(same.all()), f"box {b} of a batch has another {side} bound than alone: {case.name}, {recipe}")


def check_gradients(case: Case, recipe: Recipe | str) -> None:
    """Bounds are differentiable in the box and in the weights: gradcheck in float64."""
    recipe = parse_recipe(recipe) if isinstance(recipe, str) else recipe
    schedule = make_schedule(case.graph, recipe)
    labels = [k for k, t in case.graph.params.items() if t.is_floating_point()]

    def function(lower, upper, *params):
        weights = {**case.graph.params, **dict(zip(labels, params, strict=True))}
        found = run.node_bounds(run.prepare(schedule, FLOAT64, weights), InputBatch(lower, upper))
        return found.lower, found.upper

    arguments = [case.lower, case.upper, *(case.graph.params[k].double() for k in labels)]
    arguments = [a.detach().clone().requires_grad_() for a in arguments]
    try:
        good = torch.autograd.gradcheck(function, arguments, eps=1e-7, atol=1e-4, rtol=1e-3, fast_mode=True)
    except RuntimeError as error:
        raise LawBroken(f"gradcheck fails: {case.name}, {recipe}: {error}") from None
    _demand(good, f"gradcheck fails: {case.name}, {recipe}")


def check_adjoint(graph: Graph, *, rows: int = 3, seed: int = 0) -> int:
    """Every affine node with a varying operand: transposes, `absolute` and `offset` agree with `eval`.

    Gives back how many operands were checked.
    """
    graph = lower_graph(graph)
    context = run.prepare(make_schedule(graph, parse_recipe("interval")), FLOAT64)
    generator, checked = torch.Generator().manual_seed(seed), 0
    for i in context.schedule.final.nodes:
        if isinstance(graph.nodes[i].op, Affine):
            for index in graph.varying_inputs(i):
                _check_operand(graph.nodes[i].op, context.at(i), index, rows, generator)
                checked += 1
    return checked


def _check_operand(op: Affine, at: At, index: int, rows: int, generator) -> None:
    where = f"{op.name} {op.attributes()}, operand {index} of types {', '.join(map(str, at.inputs))}"
    shape = at.inputs[index].shape

    def random(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    def linear(z):
        values = [z if k == index else z.new_zeros((len(z), *t.shape)) for k, t in enumerate(at.inputs)]
        return op.linear(at, values)

    nu = random(rows, *at.output.shape)
    x = random(rows, *shape).requires_grad_()
    image = linear(x)
    expected = torch.autograd.grad((image * nu).sum(), x)[0]
    pulled = op.transpose(nu, at, index)
    slack = 1e-12 * (1 + float(expected.abs().max()))
    _demand(pulled.shape == expected.shape, f"the transpose has shape {tuple(pulled.shape)}: {where}")
    _demand(bool(((pulled - expected).abs() <= slack).all()), f"the transpose is not the adjoint of eval: {where}")
    products = [(a * b).reshape(rows, -1) for a, b in ((nu, image), (pulled, x))]  # a value may have no axes
    left, right = (p.sum(1) for p in products)
    size = sum(p.abs().sum(1) for p in products) + 1e-300
    _demand(bool(((left - right).abs() <= 1e-11 * size).all()), f"<nu, A x> is not <A^T nu, x>: {where}")
    numel = at.output.numel
    every = torch.eye(numel, dtype=torch.float64).reshape(numel, *at.output.shape)
    matrix = op.transpose(every, at, index).reshape(numel, -1)  # A, row by row
    position = torch.randint(numel, (2 * rows,), generator=generator)
    sign = torch.randint(2, (2 * rows,), generator=generator).double() * 2 - 1
    short = op.transpose_onehot(position, sign, at, index)
    if isinstance(short, tuple):
        place, value = short
        dense = torch.zeros((2 * rows, matrix.shape[1]), dtype=torch.float64)
        short = dense.scatter(1, place[:, None], value[:, None])
    if short is not None:
        wanted = matrix[position] * sign[:, None]
        _demand(
            bool(torch.equal(short.reshape(wanted.shape), wanted)), f"transpose_onehot differs from transpose: {where}"
        )
    z = x.detach().abs()
    values = [z if k == index else z.new_zeros((rows, *t.shape)) for k, t in enumerate(at.inputs)]
    absolute = op.absolute(at, values).reshape(rows, -1)
    wanted = z.reshape(rows, -1) @ matrix.abs().mT
    _demand(bool(((absolute - wanted).abs() <= 1e-11 * (1 + wanted)).all()), f"`absolute` is not |A| z: {where}")
    zeros = [p if p is not None else torch.zeros((1, *t.shape), dtype=torch.float64)
             for p, t in zip(at.params, at.inputs, strict=True)]  # fmt: skip
    constant, offset = op.eval(*zeros), op.offset(at)
    offset = torch.zeros_like(constant) if offset is None else offset
    _demand(bool(torch.equal(offset.expand_as(constant), constant)), f"`offset` is not eval at zero: {where}")


def check_op(
    op: Op | type[Op] | str,
    *operands: TensorType | torch.Tensor,
    low: float | None = None,
    high: float | None = None,
    recipes: Sequence[Recipe | str] = RECIPES,
    gradients: bool = False,
    seed: int = 0,
) -> None:
    """All laws for one op (a value, a class or its text), alone in a network, in each recipe.

    Operands that are TensorTypes vary in boxes inside [low, high], tensors are parameters. Without operands: as many of
    four elements as the op takes. Without ends: from -1 to 1.5, moved into the op's `domain`.
    """
    op = as_op(op)
    start, end = getattr(op, "domain", (-torch.inf, torch.inf))
    low = max(-1.0, start + 0.05) if low is None else low
    high = min(max(1.5, low + 1), end) if high is None else high
    case = make_case(op.name, one_op(op, *(operands or _some_operands(op))), low, high, seed)
    check_adjoint(case.graph, seed=seed)
    for recipe in map(as_recipe, recipes):
        check_case(case, recipe, gradients=gradients, seed=seed)
        check_layers(case, recipe, seed=seed)
    check_traceable(case, Meet(tuple(map(as_recipe, recipes))))


def check_domain(
    domain: Recipe | type[Recipe] | str, cases: Sequence[Case] | None = None, *, gradients: bool = False
) -> None:
    """All laws for one domain or recipe (a value, a class or its text), on these cases or on one per shipped op.

    `gradients`: differentiability too, which takes longest.
    """
    recipe = as_recipe(domain)
    if cases is None:
        _demand_cells(recipe)
    for case in cases if cases is not None else standard_cases():
        check_case(case, recipe, gradients=gradients)
        check_layers(case, recipe)
        if cases is not None or case.name in TRACED:
            check_traceable(case, recipe)


def as_recipe(domain: Recipe | type[Recipe] | str) -> Recipe:
    """A recipe from itself, from what makes it without arguments, or from its text."""
    if isinstance(domain, str):
        return parse_recipe(domain)
    if isinstance(domain, Recipe):
        return domain
    made = _made(domain, "a domain")
    if not isinstance(made, Recipe):
        raise UsageError(f"{domain!r} makes {made!r}, which is no recipe: domains derive from Forward or Dual")
    return made


def as_op(op: Op | type[Op] | str) -> Op:
    """An op from itself, from its class, or from its text, such as "Clip(low=-1.0, high=1.0)"."""
    if isinstance(op, str):
        call = op if "(" in op else f"{op}()"
        return parse_graph(f"%0 = {call} : float64[]").nodes[0].op
    return op if isinstance(op, Op) else _made(op, "an op")


def _made(maker, what: str):
    try:
        return maker()
    except TypeError as error:
        raise UsageError(f"{maker!r} is not made without arguments ({error}): give {what} as a value") from None


def _some_operands(op: Op) -> list[TensorType]:
    x = TensorType((1, 4), "float64")
    for count in (1, 2, 3):
        try:
            op.infer(*[x] * count)
        except (ValueError, TypeError, IndexError):
            continue
        return [x] * count
    raise UsageError(f"{op} does not take one, two or three operands of type {x}: give its operands")


def _demand_cells(recipe: Recipe) -> None:
    """Every shipped op has a rule in the recipe's own domain, or the domain can start anew from bounds."""
    kinds = (Affine, Elementwise, Multivariate)
    names = [n for n in ops.__all__ if isinstance(c := getattr(ops, n), type) and issubclass(c, kinds)]
    owner = rules_of(recipe)
    if isinstance(owner, (Forward, Dual)):
        missing = [n for n in names if not registry.treats(type(owner), getattr(ops, n))]
        _demand(
            not missing,
            f"{owner.name} has no rule for {', '.join(missing)}: register rules for the kinds Affine, Elementwise and "
            "Multivariate, or give a forward domain `from_bounds`; or give check_domain the cases that it is made for",
        )


def make_case(name: str, graph: Graph, low: float, high: float, seed: int = 0, boxes: int = 3) -> Case:
    """Boxes inside [low, high], different ones, around a graph."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(graph.nodes[i].type.numel for i in graph.inputs)
    ends = low + (high - low) * torch.rand((2, boxes, n), generator=generator, dtype=torch.float64)
    return Case(name, lower_graph(graph), ends.amin(0), ends.amax(0))


def standard_cases() -> Iterator[Case]:
    """One small network per shipped op; in each, a dense layer stands in front and behind, as in real networks."""
    generator = torch.Generator().manual_seed(7)

    def weights(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64) / 2

    for name, op, shape, operands, positive in examples(weights):
        builder = Builder()
        n = 5
        x = builder.input("x", TensorType((1, n), "float64"))
        numel = TensorType(shape).numel
        hidden = builder.add(ops.MatMul(), x, builder.param(weights(n, numel), "w"))
        value = builder.add(ops.Reshape(shape), hidden)
        if positive:  # away from zero
            value = builder.add(
                ops.Add(), builder.add(ops.Abs(), value), builder.param(weights(1).abs() + 0.5, "shift")
            )
        nodes = []
        for k, operand in enumerate(operands):
            match operand:
                case torch.Tensor():
                    nodes.append(builder.param(operand, f"p{k}"))
                case "x":
                    nodes.append(value)
                case "other":
                    nodes.append(
                        builder.add(
                            ops.Reshape(shape), builder.add(ops.MatMul(), x, builder.param(weights(n, numel), "v"))
                        )
                    )
        out = builder.add(op, *nodes)
        flat = builder.add(ops.Reshape((1, builder.type(out).numel)), out)
        out = builder.add(ops.MatMul(), flat, builder.param(weights(builder.type(flat).numel, 2), "last"))
        yield make_case(name, builder.finish([out]), -1.0, 1.5)


def ops_without_example() -> set[str]:
    """Registered ops that no standard case holds (those of plug-ins)."""
    shown = {case.name for case in standard_cases()}
    return {
        name
        for name, op in registry.ops().items()
        if name not in shown
        and not issubclass(op, (Input, Param))
        and issubclass(op, (Affine, Elementwise, Multivariate, Composite, Op))
    }
