"""Certifying a data set: of how many items is it proved that the label holds on the whole set around them?

Each item goes through: the clean prediction by the judge; an attack (projected gradients, replayed by the judge); the
proof in charged float64, by a recipe or by a ladder of them (see `absdom.ladder`). Several models make a cascade (Wong
et al. 2018, algorithm 4): a later model is asked about what the earlier ones left open, and only where it predicts as
the first one does. That test makes the cascade sound: no input of an item's set can get another certified answer.

There is no search in float32 in front of the proofs. What the attack leaves is mostly certified, so that nearly all of
it would be bounded twice; a float64 sweep costs less than twice a float32 one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf

import numpy as np

from absdom import registry
from absdom.api import Task, load, make_problem, model_file, pick_device
from absdom.arithmetic import precise_backends
from absdom.certifier import Certifier, Model
from absdom.datasets import Ball, Dataset, label_rows, read_dataset, rows_property
from absdom.domain import Recipe
from absdom.errors import UsageError
from absdom.ir.graph import Graph
from absdom.ladder import Bounds, Rung, affordable, ladder_of, time_limit
from absdom.plan import cost
from absdom.plan.report import Report, silent
from absdom.problem import Problem, most_precise
from absdom.results import Certification, Item


def certify(
    models,
    data,
    *,
    jobs: int | None = None,
    known: Iterable[Item] = (),
    record: Callable[[Sequence[Item]], None] | None = None,
    **question,
) -> Certification:
    """Certify a data set: `prepare(models, data, **question)`, then `Certifier.run`."""
    return prepare(models, data, **question).run(jobs, known, record)


def prepare(
    models,
    data,
    *,
    method: str | Recipe | Rung | Sequence[str | Recipe | Rung],
    eps: float | None = None,
    norm: float = inf,
    clip: tuple[float, float] | None = (0.0, 1.0),
    limit: int | None = None,
    offset: int = 0,
    attack: bool = True,
    device: str = "auto",
    seed: int = 0,
    example=None,
    budget: float = inf,
    timeout_per_image: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> Certifier:
    """Read and check all that is needed to certify items offset, ..., offset + limit - 1 of `data` (an .npz file, or a
    mapping of its arrays; see `absdom.datasets`) on the l_p balls of radius eps around them, met with the range `clip`
    of the inputs. eps None: the data hold boxes.

    models: one model, or a list of them, a cascade (all that `load` takes). An item is certified when its label's
    score is proved above every other score on the whole set; ties count as errors. `method`: a recipe; "auto", the most
    precise one of which at most `budget` seconds per item of the first model are predicted; "bab", a ladder of recipes
    and at its end a complete search; or a sequence of recipes, a ladder of one's own, that may end with "complete".
    `progress` is told what was chosen, and how large programs will be. An item for which `timeout_per_image` seconds,
    attack and all models included, are too few stays open and is counted (None: 60 s with a complete search, else
    without limit). Raises UsageError, PropertyError, ModelError, UnsupportedOp, and BudgetError while it runs.
    """
    precise_backends()
    where, tell = pick_device(device), silent if progress is None else progress
    ladder = () if method == "auto" else ladder_of(method)
    timeout = time_limit(ladder, timeout_per_image)
    if (limit is not None and limit < 1) or offset < 0:
        raise UsageError(f"limit {limit}, offset {offset}: at least one item, and none before item 0")
    models = list(models) if isinstance(models, (list, tuple)) else [models]
    if not models:
        raise UsageError("certify needs a model")
    ball = None if eps is None else Ball(float(eps), norm, clip)
    graphs = [load(model, example) for model in models]
    dataset = _read(data, graphs, ball, offset, limit)
    tasks = [_task(m, g, dataset) for m, g in zip(models, graphs, strict=True)]
    if not ladder or len(ladder) > 1:
        first = Problem.of(tasks[0].graph, tasks[0].property, where)
        if ladder:
            ladder = affordable(first, ladder, timeout, tell)
        else:
            choice = most_precise(first, budget * len(tasks[0].property.inputs))
            ladder = (Bounds(choice.method, choice.recipe),)
            tell(f"auto: {choice.method}, for {budget:g} s per item")
    ready = [_model(m, t, ladder, where) for m, t in zip(models, tasks, strict=True)]
    return Certifier(dataset, ready, ladder, attack, seed, where, timeout, Report(tell))


def _read(data, graphs: Sequence[Graph], ball: Ball | None, offset: int, limit: int | None) -> Dataset:
    """The data set, for graphs that all take and give the same tensors."""
    kinds = [[[g.nodes[i].type for i in part] for part in (g.inputs, g.outputs)] for g in graphs]
    shapes = [tuple(tuple(t.shape for t in part) for part in kind) for kind in kinds]
    for k, shape in enumerate(shapes[1:], 2):
        if shape != shapes[0]:
            raise UsageError(
                f"the models of a cascade take and give the same shapes: the first one has {_shapes(shapes[0])}, "
                f"model {k} has {_shapes(shape)}"
            )
    dataset = read_dataset(data, *kinds[0], ball, offset, limit)
    if dataset.C is not None and len(graphs) > 1:
        raise UsageError("a cascade answers with labels: rows ('C') are asked of one model")
    return dataset


def _shapes(sides) -> str:
    given, gives = (", ".join(str(list(shape)) for shape in side) for side in sides)
    return f"{given} -> {gives}"


def _task(model, graph: Graph, dataset: Dataset) -> Task:
    """The question about the first few items."""
    path, first = model_file(model), np.arange(min(cost.SAMPLE, len(dataset)))
    C, d = dataset.rows(first) if dataset.C is not None else label_rows(dataset.labels[first], dataset.outputs)
    prop = rows_property(dataset.input_sets(first), C, d)
    return Task(graph, prop, None if path is None else registry.service("judge")(path), {})


def _model(model, task: Task, ladder: Sequence[Rung], device: str) -> Model:
    """The model made ready; its graph has been compared with the judge, and the recipes handle all of its ops."""
    problem, judge = make_problem(task, device)
    double = task.judge is not None and any(task.graph.nodes[i].type.dtype == "float64" for i in task.graph.inputs)
    boxes = tuple(rung.boxes(problem.engine, task.property.inputs) for rung in ladder)
    return Model(str(model_file(model) or "a graph"), judge, np.float64 if double else np.float32, problem, boxes)
