"""The torch front end: a module and an example in, a Graph out, its weights live.

The module is captured with `torch.export`, made functional (what is written in place becomes a new value), and its ATen
calls are translated one by one: `torch_ops`, `torch_layers` and `torch_shapes` hold the table. `Graph.params` holds the
module's own parameters and buffers under their qualified names, so a gradient through a bound reaches them and an
optimiser step is seen by the next run. What a weight goes through on its way (a transpose, say) is part of the graph's
prologue.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr

import torch
from torch.export.graph_signature import OutputKind
from torch.utils import _pytree as pytree

from absdom.errors import ModelError, UnsupportedOp, UsageError
from absdom.frontends import torch_attention, torch_resize, torch_shapes  # noqa: F401  (register their handlers)
from absdom.frontends.torch_source import blame, first_line, module_paths, target_name
from absdom.frontends.torch_values import FLOATS, HANDLERS, Constant, Index, Translation, Unsupported, Weight
from absdom.frontends.torch_values import problem_text as text_of
from absdom.ir.graph import Graph
from absdom.registry import register_service
from absdom.types import Source, TensorType

NORMS = torch.nn.modules.batchnorm._NormBase
NOISY = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")
DROPOUTS = torch.nn.modules.dropout._DropoutNd


@register_service("torch")
def load_torch(module: torch.nn.Module, example, batch_norm: str | None = None) -> Graph:
    """The graph of `module` on inputs shaped like `example`, batch size 1.

    `example`: a tensor, a tuple of positional arguments or a dict of keyword arguments. A result that is a tuple or a
    dict becomes several outputs, named `output.0`, `output.logits`.

    `batch_norm`: "eval" normalises with the running statistics, whatever mode the module is in (the default, with a
    warning for a module in training mode). "train" makes mean and variance of each call parameters of the graph,
    `<layer>.batch_mean` and `<layer>.batch_var`: `batch_statistics` computes them from a batch, and the caller hands
    them to each run. Until then they are the running statistics.

    Raises ModelError for what cannot be captured and one UnsupportedOp that lists all calls without a translation.
    """
    if batch_norm not in (None, "eval", "train"):
        raise UsageError(f"batch_norm={batch_norm!r} is not one of 'eval', 'train'")
    args, kwargs = _example(example)
    _check_module(module, batch_norm)
    program = _capture(module, args, kwargs)
    statistics = _Statistics(module) if batch_norm == "train" else None
    return _graph(program, module, statistics)


@register_service("batch-statistics")
def batch_statistics(module: torch.nn.Module, *args, **kwargs) -> tuple[object, dict[str, torch.Tensor]]:
    """Run `module` on a batch: its output, and the statistics that a graph of `batch_norm="train"` takes as parameters.

    Per call of a batch norm layer the mean and the (biased) variance of its input, "channels", differentiable. The run
    is the module's own: in training mode it updates the running statistics.
    """
    found: dict[str, torch.Tensor] = {}
    labels = _Statistics(module)

    def record(layer: torch.nn.Module, inputs) -> None:
        x = inputs[0]
        axes = [a for a in range(x.dim()) if a != 1]
        mean, variance = labels.next(labels.names[id(layer)])
        found[mean], found[variance] = x.mean(axes), x.var(axes, correction=0)

    batch_norm = torch.nn.modules.batchnorm._BatchNorm
    hooks = [m.register_forward_pre_hook(record) for m in module.modules() if isinstance(m, batch_norm)]
    try:
        return module(*args, **kwargs), found
    finally:
        for hook in hooks:
            hook.remove()


class _Statistics:
    """Labels of the statistics of batch norm layers, in the order of their calls."""

    def __init__(self, module: torch.nn.Module):
        self.names = {id(m): name for name, m in module.named_modules()}
        self.module, self._calls = module, {}

    def canonical(self, path: str) -> str:
        """The first name of the layer that `path` names: a shared layer has several."""
        try:
            return self.names[id(self.module.get_submodule(path))]
        except AttributeError:
            return path

    def next(self, name: str) -> tuple[str, str]:
        """Labels of the mean and the variance of the next call of a layer."""
        count = self._calls[name] = self._calls.get(name, -1) + 1
        front, behind = f"{name}." if name else "", f".{count}" if count else ""
        return f"{front}batch_mean{behind}", f"{front}batch_var{behind}"


def _example(example) -> tuple[tuple, dict]:
    """(positional, keyword) arguments of the capture, checked."""
    if example is None:
        raise ModelError("a torch module needs an example input: load(module, example)")
    if isinstance(example, Mapping):
        args, kwargs = (), dict(example)
    else:
        args, kwargs = tuple(example) if isinstance(example, (tuple, list)) else (example,), {}
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if not tensors:
        raise ModelError("the example holds no tensor: give a float tensor, a tuple or a dict of them")
    for tensor in tensors:
        if tensor.dtype not in FLOATS:
            raise ModelError(
                f"the example has element type {tensor.dtype}; absdom reads torch.float32 and torch.float64"
            )
        if tensor.dim() and tensor.shape[0] != 1:
            raise ModelError(f"the example has batch size {tensor.shape[0]}; give one of batch size 1")
    return args, kwargs


def _check_module(module: torch.nn.Module, batch_norm: str | None) -> None:
    weights = [*module.named_parameters(), *module.named_buffers()]
    empty = [n for n, p in weights if isinstance(p, torch.nn.parameter.UninitializedTensorMixin)]
    if empty:
        raise ModelError(f"the weights {_some(empty)} have no shape yet: run the module once on an example")
    types = {n: p.dtype for n, p in weights if (p.is_floating_point() or p.is_complex()) and p.dtype not in FLOATS}
    if types:
        kinds = ", ".join(sorted({str(d) for d in types.values()}))
        raise ModelError(
            f"the weights {_some(list(types))} have element type {kinds}; absdom reads float32 and float64: call "
            "module.float() or module.double()"
        )
    random = [
        n or "the module" for n, m in module.named_modules() if isinstance(m, DROPOUTS) and m.training and m.p > 0
    ]
    if random:
        raise ModelError(
            f"dropout is in training mode, so that the module is random: {_some(random)}: call module.eval()"
        )
    training = [n or "the module" for n, m in module.named_modules() if isinstance(m, NORMS) and m.training]
    if training and batch_norm is None:
        warnings.warn(
            f"batch norm is in training mode ({_some(training)}): the graph uses its running statistics, as in eval "
            "mode; say batch_norm='eval' to mean that, or batch_norm='train' to feed the statistics of each batch",
            stacklevel=4,
        )


def _some(names: list[str]) -> str:
    return ", ".join(repr(n) for n in names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _capture(module: torch.nn.Module, args: tuple, kwargs: dict) -> torch.export.ExportedProgram:
    with _plain_modes(module), _quiet():
        try:
            program = torch.export.export(module, args, kwargs, strict=False)
            for _ in range(3):  # what a decomposition is made of may have to be decomposed too
                table = _to_decompose(program)
                if table is None:
                    break
                program = program.run_decompositions(table)
        except Exception as error:  # torch.export raises many kinds
            where = blame(error, module)
            raise ModelError(
                f"torch.export cannot capture the module: {first_line(error)}{f' ({where})' if where else ''}"
            ) from None
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch logs and prints about an error that is reported here, and its warnings about its own trees."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels, printed = [logger.level for logger in loggers], io.StringIO()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stderr(printed):
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings(
                "ignore", r"The tensor attributes? self\.(\S+\.)?_flat_weights"
            )  # of recurrent layers
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    sys.stderr.write(printed.getvalue())  # what the module itself printed, where nothing failed


@contextmanager
def _plain_modes(module: torch.nn.Module) -> Iterator[None]:
    """Norms with their running statistics, and attention in its ordinary ops, while the module is captured."""
    norms = [m for m in module.modules() if isinstance(m, NORMS) and m.training]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        for norm in norms:
            norm.training = False
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for norm in norms:
            norm.training = True


def _to_decompose(program: torch.export.ExportedProgram) -> dict | None:
    """Decompositions of calls without a handler; {} if only in-place calls are left; None if nothing is to be done."""
    signature = program.graph_signature
    live = set(signature.inputs_to_parameters) | set(signature.user_inputs)
    unknown, rewrite = set(), False
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        schema = getattr(node.target, "_schema", None)
        higher = isinstance(node.target, torch._ops.HigherOrderOperator) and target_name(node).startswith("wrap_with")
        rewrite = rewrite or higher or (schema is not None and schema.is_mutable)
        if any(n.name in live for n in node.all_input_nodes):
            live.add(node.name)
            if schema is not None and target_name(node) not in HANDLERS and not schema.is_mutable:
                unknown.add(node.target)
    known = torch.export.default_decompositions() if unknown else {}
    table = {target: known[target] for target in unknown if target in known}
    return table if table or rewrite else None


def _graph(program, module: torch.nn.Module, statistics: _Statistics | None) -> Graph:
    first: dict[int, str] = {}  # tied weights go by their first name
    weights = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    for name, tensor in weights.items():
        first.setdefault(id(tensor), name)
    t = Translation(weights, statistics, module.training)
    outputs = _outputs(program)
    live = _needed(program.graph, [node for _, node in outputs])
    problems: list[tuple[str, str]] = []
    names: dict[str, Index] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            t.values[node.name] = _leaf(t, program, node, weights, first)
        elif node.op == "get_attr":
            t.values[node.name] = None  # the branches of control flow
        elif node.op == "call_function" and node in live:
            reason = t.call(node)
            if reason is not None:
                problems.append((target_name(node), text_of(node, reason)))
                continue
            value = t.values[node.name]
            if isinstance(value, Index):
                t.builder.name(node.name, value)
                names |= dict.fromkeys(module_paths(node), value)
    if problems:
        count = f"{len(problems)} call{'s' if len(problems) > 1 else ''} of the module"
        raise UnsupportedOp(
            f"{count} cannot be translated:\n  " + "\n  ".join(text for _, text in problems),
            tuple(sorted({name for name, _ in problems})),
        )
    found = []
    for label, node in outputs:
        try:
            found.append(t.index(node))
        except Unsupported as problem:
            raise ModelError(f"{label} of the module cannot be used: {problem}") from None
        t.builder.name(label, found[-1])
    for path, node in names.items():  # a layer's name stands for what it gave last
        t.builder.name(path, node)
    return t.builder.finish(found)


def _leaf(t: Translation, program, node: torch.fx.Node, weights: Mapping[str, torch.Tensor], first: Mapping[int, str]):
    signature = program.graph_signature
    if node.name in signature.inputs_to_parameters:
        return Weight(first[id(weights[signature.inputs_to_parameters[node.name]])])
    if node.name in signature.inputs_to_buffers:
        name = signature.inputs_to_buffers[node.name]
        buffer = weights[name]
        return Constant(buffer, first[id(buffer)], settled=not buffer.is_floating_point())
    if node.name in signature.inputs_to_lifted_tensor_constants:
        return Constant(program.constants[signature.inputs_to_lifted_tensor_constants[node.name]], node.name)
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return value  # a number among the arguments
    made = t.builder.input(
        node.name,
        TensorType(tuple(value.shape), str(value.dtype).removeprefix("torch.")),
        Source(node.name, "input"),
    )
    t.builder.name(node.name, made)
    return Index(made)


def _outputs(program) -> list[tuple[str, torch.fx.Node]]:
    """(name, node) of every tensor that the module returns."""
    returned = next(n for n in program.graph.nodes if n.op == "output").args[0]
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    users = [value for value, kind in zip(returned, kinds, strict=True) if kind == OutputKind.USER_OUTPUT]
    tree = pytree.tree_unflatten(list(range(len(users))), program.call_spec.out_spec)
    labels = {i: ".".join(["output", *map(_key, path)]) for path, i in pytree.tree_flatten_with_path(tree)[0]}
    found = [(labels.get(i, "output"), v) for i, v in enumerate(users) if isinstance(v, torch.fx.Node)]
    if not found:
        raise ModelError("the module returns no tensor")
    return found


def _key(key) -> str:
    return str(next(getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name)))


def _needed(graph: torch.fx.Graph, outputs: list[torch.fx.Node]) -> set[torch.fx.Node]:
    needed, open_ = set(outputs), list(outputs)
    while open_:
        for node in open_.pop().all_input_nodes:
            if node not in needed:
                needed.add(node)
                open_.append(node)
    return needed
