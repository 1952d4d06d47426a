"""The Python interface: load, compile, verify, bound. No global state; options and deadlines are arguments."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

import numpy as np
import torch

from absdom import registry
from absdom.arithmetic import PROOF, SEARCH, Arithmetic, precise_backends
from absdom.domain import Encoded, NodeBounds, Recipe, total_failure
from absdom.encoding import Encoding, Objective
from absdom.errors import PropertyError, UnsupportedOp, UsageError
from absdom.ir.graph import Graph
from absdom.ir.text import print_graph
from absdom.passes import lower
from absdom.pipeline import Options, sha256, verify_problem
from absdom.plan import run
from absdom.plan.context import Context
from absdom.plan.planner import make_schedule
from absdom.plan.recipes import parse_recipe
from absdom.plan.report import silent
from absdom.problem import (
    Problem,
    attach_vector,
    bound_rows,
    clause_program,
    most_precise,
    predicted_programs,
    undefined_places,
    within_budget,
)
from absdom.property import InputSet, Property
from absdom.sets import InputBatch
from absdom.types import Clock, Program
from absdom.verdict import Result, Witness


def load(model, example=None, hidden: Sequence[str] = (), batch_norm: str | None = None) -> Graph:
    """A Graph from an ONNX file (path, `.onnx` or `.onnx.gz`) or from a torch module with an example input.

    A Graph, a Compiled and a `network` of the property language give their own. hidden: names of values inside the
    model that the graph shall have as further outputs, behind the model's own. batch_norm, of a torch module: "eval"
    for the running statistics, "train" for statistics that each run is given (see `batch_statistics`).
    """
    if isinstance(getattr(model, "graph", None), Graph):
        model = model.graph
    if isinstance(model, torch.nn.Module):
        model = registry.service("torch")(model, example, batch_norm)
    if isinstance(model, Graph):
        return replace(model, outputs=(*model.outputs, *map(model.find, hidden))) if hidden else model
    return registry.service("onnx")(model, **({"hidden": hidden} if hidden else {}))


def batch_statistics(module: torch.nn.Module, *args, **kwargs) -> tuple[object, dict[str, torch.Tensor]]:
    """Run a torch module on a batch: its output, and the statistics of its batch norms as parameters by label.

    They go into `Compiled.bounds(params=...)` of a graph that was loaded with batch_norm="train", and gradients through
    the bounds reach what made them.
    """
    return registry.service("batch-statistics")(module, *args, **kwargs)


def recipe_of(method: str | Recipe) -> Recipe:
    return parse_recipe(method) if isinstance(method, str) else method


def pick_device(device: str) -> str:
    """`auto`, `cpu` or `cuda` -> the device to use, or a UsageError."""
    known = ("auto", "cpu", "cuda")
    if device not in known:
        raise UsageError(f"device {device!r} is not one of {', '.join(known)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device 'cuda': torch finds no GPU here; use --device cpu or auto")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def _check_proves(recipe: Recipe, arithmetic: Arithmetic) -> None:
    """Raises UsageError where bounds over the reals are asked of a recipe that only estimates them."""
    if arithmetic.charged and total_failure(recipe) == inf:
        raise UsageError(f"{recipe!r} gives estimates, which prove nothing: ask another recipe, or for float32 bounds")


@dataclass(eq=False)
class Compiled:
    """A graph with a recipe for one of its nodes: bounds of any layer, differentiable in the weights."""

    graph: Graph
    recipe: Recipe
    target: int

    def describe(self) -> str:
        return make_schedule(self.graph, self.recipe, self.target).describe()

    def context(self, arithmetic: Arithmetic = SEARCH, params: Mapping[str, torch.Tensor] | None = None) -> Context:
        return run.prepare(make_schedule(self.graph, self.recipe, self.target), arithmetic, params)

    def bounds(
        self,
        inputs: InputSet | InputBatch | Property,
        layer: str | None = None,
        *,
        arithmetic: Arithmetic = SEARCH,
        params: Mapping[str, torch.Tensor] | None = None,
        progress: Callable[[str], None] = silent,
    ) -> NodeBounds:
        """Bounds "B *n" of a layer by its name in the file (default: the output) over a batch of input sets (a
        property stands for its own).

        `params` replaces weights by label; gradients flow to those that need them. With `arithmetic=PROOF` the
        bounds hold over the reals. `progress` is told how large programs will be. Raises BudgetError.
        """
        _check_proves(self.recipe, arithmetic)
        node = self.target if layer is None else self.graph.find(layer)
        schedule = make_schedule(self.graph, self.recipe, node)
        context = run.prepare(schedule, arithmetic, {**self.graph.params, **(params or {})})
        context.report.tell = progress
        inputs = inputs.inputs if isinstance(inputs, Property) else inputs
        batch = InputBatch.of(inputs, context.arithmetic) if isinstance(inputs, InputSet) else inputs
        return run.node_bounds(context, batch)


def compile(graph: Graph, recipe: str | Recipe = "crown", output: str | None = None) -> Compiled:
    """Compile a recipe for the graph's output: the one of that name, where it has several."""
    precise_backends()
    graph = lower(graph)
    if output is None and len(graph.outputs) != 1:
        names = [name for name, node in graph.names.items() if node in graph.outputs]
        raise UsageError(
            f"the graph has {len(graph.outputs)} outputs; say which to compile for, compile(graph, recipe, output), of "
            f"{', '.join(sorted(names))}"
        )
    return Compiled(graph, recipe_of(recipe), graph.outputs[0] if output is None else graph.find(output))


@dataclass(frozen=True, eq=False)
class Task:
    """A model and a property, read and checked against each other."""

    graph: Graph
    property: Property
    judge: object
    files: dict


class GraphJudge:
    """Replays witnesses in absdom's own float32 evaluation: for models that have no ONNX file."""

    name = "absdom float32"

    def __init__(self, problem_graph: Graph):
        recipe = registry.recipes()["interval"]()
        self._context = run.prepare(make_schedule(problem_graph, recipe), SEARCH)

    def run(self, x: np.ndarray) -> np.ndarray:
        """Flat outputs "m" of one flat input "n"."""
        with torch.no_grad():
            return run.evaluate(self._context, torch.from_numpy(x.reshape(1, -1))).numpy().ravel()


def model_file(model) -> str | Path | None:
    """The file of a model given by its path or as a `network` of the property language."""
    if isinstance(getattr(model, "graph", None), Graph):
        return getattr(model, "path", None)
    return model if isinstance(model, (str, Path)) else None


def read_task(model, prop, network: str | None = None, example=None) -> Task:
    """Read both. `network`: the name under which the query has to declare the model, if one was given."""
    files = {}
    if isinstance(prop, Property):
        property = prop
    else:
        property = registry.service("vnnlib")(prop)
        files |= {"property": str(prop), "property_sha256": sha256(prop)}
    interface = property.interface
    if network is not None and interface is not None and interface.network != network:
        raise UsageError(f"the query declares the network {interface.network!r}, a model was given for {network!r}")
    exposed = {} if interface is None or not interface.hidden else {"hidden": interface.hidden}
    graph, path = load(model, example, **exposed), model_file(model)
    judge = None
    if path is not None:
        files = {"model": str(path), "model_sha256": sha256(path), **files}
        judge = registry.service("judge")(path, **exposed)
    return Task(graph, property, judge, files)


def make_problem(task: Task, device: str = "cpu", points: int = 4) -> tuple[Problem, object]:
    """The problem and its judge; the loaded graph is compared with the judge on random points of the input sets."""
    problem = Problem.of(task.graph, task.property, device)
    if task.judge is None:
        return problem, GraphJudge(attach_vector(task.graph, False))
    inputs = task.property.inputs
    generator = np.random.default_rng(0)
    boxes = generator.integers(0, len(inputs), size=points)
    share = generator.random((points, inputs.size))
    sample = inputs.lower[boxes] + share * (inputs.upper[boxes] - inputs.lower[boxes])
    context = problem.engine.evaluator(SEARCH)

    def graph_eval(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            out = run.evaluate(context, context.arithmetic.tensor(x)).cpu().numpy()
        return out[:, : task.property.outputs]

    registry.service("check-agreement")(graph_eval, task.judge, sample.astype(np.float32))
    return problem, task.judge


def verify(
    model,
    prop,
    *,
    timeout: float = inf,
    method: str | Recipe = "auto",
    device: str = "auto",
    attack: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    started: float | None = None,
    network: str | None = None,
    example=None,
) -> Result:
    """Verify `prop` (path or Property) on `model` (all that `load` takes; a torch module needs an example input).

    Seconds count from `started`, a reading of `time.monotonic` (default: this call). `network`: the name that a
    VNN-LIB 2 query has to give the model (default: any).
    """
    clock = Clock(timeout) if started is None else Clock(timeout, started)
    if not timeout > 0:
        raise UsageError(f"timeout {timeout} is not a positive number of seconds")
    recipe = None if method == "auto" else recipe_of(method)
    flags = precise_backends()
    where = pick_device(device)
    task = read_task(model, prop, network, example)
    problem, judge = make_problem(task, where)
    options = Options(recipe, str(method), attack, seed, progress)
    result = verify_problem(problem, judge, clock, options)
    result.provenance.update(
        {**task.files, "seed": seed, "device": where, "precision": flags, "versions": versions(), "judge": judge.name}
    )
    return result


def versions() -> dict:
    import importlib.metadata as metadata

    found = {}
    for name in ("absdom", "torch", "numpy", "onnx", "onnxruntime"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@dataclass(frozen=True)
class BoundReport:
    """Lower bounds of every row c.y + d of a property, in the order of the file."""

    rows: list[tuple[int, int, float]]  # clause, row within the spec, lower bound
    seconds: float  # of one bounding call, loading and preparing apart
    peak_mb: float
    method: str
    predicted: dict[str, float] = field(default_factory=dict)  # seconds of the methods that were considered
    programs: tuple[Program, ...] = ()  # the predicted sizes of those that were asked for

    def to_json(self) -> dict:
        rows = [{"clause": c, "row": r, "lower": v} for c, r, v in self.rows]
        return {
            "rows": rows, "seconds": self.seconds, "peak_mb": self.peak_mb, "method": self.method,
            "predicted_seconds": self.predicted, "programs": [program.to_json() for program in self.programs],
        }  # fmt: skip


BUDGET = 600.0  # predicted seconds of a bounding call, above which a cheaper method takes its place


def bound(
    model,
    prop,
    *,
    method: str | Recipe = "crown",
    device: str = "auto",
    proof: bool = False,
    budget: float = BUDGET,
    progress: Callable[[str], None] | None = None,
) -> BoundReport:
    """One bounding call over all rows of the property, in float32 (`proof`: in charged float64).

    A method of which more than `budget` seconds are predicted gives way to crown-ibp or ibp; the method `auto` is the
    most precise of those that need no more. `progress` is told, also how large programs will be, and the report names
    what was run. Raises BudgetError, and PropertyError where nothing can be bounded because a function is not defined
    on all of the input set.
    """
    precise_backends()
    problem, _ = make_problem(read_task(model, prop), pick_device(device))
    if method == "auto":
        choice = most_precise(problem, budget)
    else:
        choice = within_budget(problem, str(method), recipe_of(method), budget)
    if progress is not None:
        problem.engine.report.tell = progress
    if choice.note:
        problem.engine.report.tell(choice.note)
    _check_proves(choice.recipe, PROOF if proof else SEARCH)
    report = bound_problem(problem, choice.method, choice.recipe, PROOF if proof else SEARCH)
    return replace(report, predicted=choice.seconds)


def bound_problem(problem: Problem, name: str, recipe: Recipe, arithmetic: Arithmetic = SEARCH) -> BoundReport:
    """The same for a problem that is already made."""
    spec = problem.property.spec
    every = np.arange(spec.rows)
    started = time.perf_counter()
    value = bound_rows(problem.engine, recipe, arithmetic, problem.property, every)
    seconds = time.perf_counter() - started
    if not np.isfinite(value).all() and (places := undefined_places(problem)):
        raise PropertyError(
            f"{int((~np.isfinite(value)).sum())} of {len(value)} rows have no finite bound: {places[0]}"
            + (f" (and {len(places) - 1} nodes more)" if len(places) > 1 else "")
            + "; split the input set, or keep the operand away from there"
        )
    rows = [(int(c), r, float(v)) for r, (c, v) in enumerate(zip(spec.clause, value, strict=True))]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return BoundReport(rows, seconds, peak, name, programs=problem.engine.report.programs)


def plan(model, prop, *, method: str | Recipe = "crown") -> str:
    """The steps, shapes, knobs, FLOPs and bytes of bounding this property, as text."""
    task, recipe = read_task(model, prop), recipe_of(method)
    problem = Problem.of(task.graph, task.property)
    schedule = make_schedule(problem.engine.graph, recipe)
    return schedule.describe({(p.node, p.recipe): p.size for p in predicted_programs(problem, recipe)})


def encode(
    model,
    prop,
    *,
    method: str | Recipe = "milp",
    clause: int | None = None,
    box: int | None = None,
    progress: Callable[[str], None] = silent,
) -> tuple[Encoding, Objective]:
    """The program of one clause of a property: the network over the clause's box, and what is to be minimised, the
    largest of the clause's rows. A minimum above 0 refutes the clause.

    method: a recipe of programs (lp, milp, sdp), whose `pre` makes the intermediate bounds, in charged float64. clause:
    its number, as `bound` prints it (default: the first one, of the box of that number if `box` is given). Raises
    UsageError, BudgetError, PropertyError, ModelError.
    """
    recipe = recipe_of(method)
    if not isinstance(recipe, Encoded):
        raise UsageError(f"method {method}: it makes no program; encode with lp, milp or another one that does")
    precise_backends()
    task = read_task(model, prop)
    problem = Problem.of(task.graph, task.property)
    problem.engine.report.tell = progress
    return clause_program(problem, recipe, _chosen_clause(task.property, clause, box))


def _chosen_clause(prop: Property, clause: int | None, box: int | None) -> int:
    for name, value, count in (("clause", clause, prop.spec.clauses), ("box", box, len(prop.inputs))):
        if value is not None and not 0 <= value < count:
            raise UsageError(f"{name} {value}: the property has {count}, numbered from 0")
    inside = np.flatnonzero(prop.spec.box == box) if box is not None else np.arange(prop.spec.clauses)
    if clause is not None and clause not in inside:
        raise UsageError(f"clause {clause} is one of box {prop.spec.box[clause]}, not of box {box}")
    if not len(inside):
        raise UsageError("there is no clause to encode: no counterexample is possible there")
    return int(inside[0]) if clause is None else clause


def info(model) -> dict:
    """Ops, shapes and parameters of a model, how each domain treats each op, and the ops that are not supported."""
    try:
        graph = load(model)
    except UnsupportedOp as error:
        return {"unsupported": list(error.ops), "message": str(error)}
    counts: dict[str, int] = {}
    for node in graph.nodes:
        counts[node.op.name] = counts.get(node.op.name, 0) + 1
    parameters = sum(t.numel() for t in graph.params.values())
    from absdom.coverage import treatment

    return {
        "inputs": [str(graph.nodes[i].type) for i in graph.inputs],
        "outputs": [str(graph.nodes[i].type) for i in graph.outputs],
        "ops": {k: v for k, v in sorted(counts.items()) if k not in ("Input", "Param")},
        "parameters": parameters,
        "unsupported": [],
        "treatment": "\n".join(treatment(lower(graph))),
        "graph": print_graph(graph),
    }


def supports(capability: str) -> list[str]:
    """The lines that answer `supports --<capability>` of the VNN-LIB standard's command line."""
    return registry.service("supports")(capability)


def serialise_assignments(witness: Witness, folder: str | Path) -> None:
    """Write the tensors of a witness of a VNN-LIB 2 query as ONNX TensorProtos, `folder`/NAME.pb."""
    registry.service("serialise-assignments")(witness, folder)


def coverage() -> str:
    """The op x domain table: exact, kind, decomposed, coarse or none per cell, as Markdown."""
    from absdom.coverage import table

    return table()
