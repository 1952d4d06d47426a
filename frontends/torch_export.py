"""The torch front end: a module and an example in, a Graph out, its weights live.

The module is captured with `torch.export` and its ATen graph is mapped op by op. `Graph.params` holds the module's own
parameters under their qualified names, so a gradient through a bound reaches them and an optimiser step is seen by the
next run. What a weight goes through on its way (a transpose, say) is part of the graph's prologue.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable

import torch

from absdom import ops
from absdom.errors import GraphError, ModelError, UnsupportedOp
from absdom.ir.graph import Builder, Graph
from absdom.registry import register_service
from absdom.types import Source, TensorType

HANDLERS: dict[str, Callable] = {}
WHOLE = 2**62  # torch.export writes an open end of a slice as a huge number


class Unsupported(Exception):
    """Why one call cannot be translated."""


def handles(*names: str):
    def register(handler):
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


@register_service("torch")
def load_torch(module: torch.nn.Module, example) -> Graph:
    """The graph of `module` on inputs shaped like `example` (a tensor or a tuple of tensors, batch size 1).

    Raises ModelError for what cannot be captured and one UnsupportedOp that lists all calls without a translation.
    """
    example = _example(example)
    training = [name or "the module" for name, m in module.named_modules() if m.training and _mode_matters(m)]
    if training:
        raise ModelError(f"{', '.join(training[:3])} is in training mode: call module.eval() first")
    try:
        program = torch.export.export(module, example, strict=False)
    except Exception as error:  # torch.export raises many kinds
        raise ModelError(f"torch.export cannot capture the module: {_reason(error)}") from None
    return Translation(program, module).graph()


def _example(example) -> tuple[torch.Tensor, ...]:
    if example is None:
        raise ModelError("a torch module needs an example input: load(module, example)")
    example = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    for tensor in example:
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            raise ModelError("the example is no float tensor (or tuple of them)")
        if tensor.dim() and tensor.shape[0] != 1:
            raise ModelError(f"the example has batch size {tensor.shape[0]}; give one of batch size 1")
    return example


def _mode_matters(module: torch.nn.Module) -> bool:
    norm = torch.nn.modules.batchnorm._NormBase
    return isinstance(module, (norm, torch.nn.modules.dropout._DropoutNd))


def _reason(error: Exception) -> str:
    """The first telling line of an error, with the user's source line where torch names it."""
    text = str(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    place = re.findall(r'File "([^"]+)", line (\d+)', text)
    user = [p for p in place if "/torch/" not in p[0]]
    return first + (f" ({user[-1][0]}, line {user[-1][1]})" if user else "")


class Translation:
    """One pass over the captured calls."""

    def __init__(self, program, module: torch.nn.Module):
        self.program, self.builder = program, Builder()
        self.values: dict[str, int] = {}
        self.live = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}

    def graph(self) -> Graph:
        signature = self.program.graph_signature
        stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants = signature.inputs_to_lifted_tensor_constants
        problems: list[str] = []
        modules: dict[str, int] = {}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                if node.name in stored:
                    self.values[node.name] = stored[node.name]  # added when a call reads it
                elif node.name in constants:
                    self.values[node.name] = self.builder.param(self.program.constants[constants[node.name]], node.name)
                else:
                    self.values[node.name] = self._input(node)
            elif node.op == "call_function":
                problem = self._call(node, bool(problems))
                if problem is not None:
                    problems.append(problem)
                elif isinstance(self.values.get(node.name), int):
                    self.builder.name(node.name, self.values[node.name])
                    if path := _module_path(node):
                        modules[path] = self.values[node.name]
        if problems:
            raise UnsupportedOp(
                f"{len(problems)} calls of the module are not supported:\n  " + "\n  ".join(problems), tuple(problems)
            )
        for path, index in modules.items():
            self.builder.name(path, index)
        return self.builder.finish(self.index(o) for o in self._outputs())

    def _outputs(self):
        found = next(n for n in self.program.graph.nodes if n.op == "output").args[0]
        return [found] if isinstance(found, torch.fx.Node) else list(found)

    def _input(self, node) -> int:
        value = node.meta["val"]
        return self.builder.input(
            node.name,
            TensorType(tuple(value.shape), str(value.dtype).removeprefix("torch.")),
            Source(node.name, "input"),
        )

    def _call(self, node, broken: bool) -> str | None:
        """Translate one call; give back why not. Behind a problem (`broken`) only missing handlers are reported."""
        name = _target(node)
        handler = HANDLERS.get(name)
        where = f"{name} '{node.name}'{_line(node)}"
        if handler is None:
            return where
        if broken:
            return None
        self.source = Source(_module_path(node) or node.name, name)
        try:
            self.values[node.name] = handler(self, *node.args, **node.kwargs)
        except (Unsupported, GraphError) as error:
            return f"{where}: {error}"
        except TypeError:
            return f"{where}: its arguments {node.args} {dict(node.kwargs)} are not supported"
        return None

    # What handlers use.

    def index(self, x) -> int:
        """The graph index of an argument: a call's result, a weight (added on first use) or a number."""
        if isinstance(x, torch.fx.Node):
            value = self.values[x.name]
            if isinstance(value, str):
                value = self.values[x.name] = self.builder.param(self.live[value], value, Source(value, "parameter"))
            return value
        if isinstance(x, (int, float)):
            return self.builder.param(torch.tensor([float(x)], dtype=torch.float64), "number", self.source)
        raise Unsupported(f"an argument {x!r} is neither a tensor nor a number")

    def add(self, op, *inputs) -> int:
        return self.builder.add(op, *(i if isinstance(i, int) else self.index(i) for i in inputs), source=self.source)

    def shape(self, x) -> tuple[int, ...]:
        return self.builder.type(x if isinstance(x, int) else self.index(x)).shape

    def reshape(self, x, shape) -> int:
        return self.add(ops.Reshape(tuple(shape)), x)

    def axis(self, x, axis: int) -> int:
        return axis % len(self.shape(x))


def _target(node) -> str:
    target = node.target
    return (
        target._schema.name.split("::")[-1] if hasattr(target, "_schema") else getattr(target, "__name__", str(target))
    )


def _module_path(node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return paths[-1] if paths else ""


def _line(node) -> str:
    """The user's line that made a call, from torch's stack trace."""
    places = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    user = [p for p in places if "/torch/nn/" not in p[0]]
    return f" ({user[-1][0]}, line {user[-1][1]})" if user else ""


def _per_axis(value, count: int) -> tuple[int, ...]:
    value = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(value * count if len(value) == 1 else value)


def _elementwise(op) -> Callable:
    return lambda t, x: t.add(op, x)


HANDLERS |= {
    "relu": _elementwise(ops.Relu()), "relu_": _elementwise(ops.Relu()), "abs": _elementwise(ops.Abs()),
    "neg": _elementwise(ops.Neg()), "sigmoid": _elementwise(ops.Sigmoid()), "tanh": _elementwise(ops.Tanh()),
    "sign": _elementwise(ops.Sign()), "relu6": _elementwise(ops.Clip(0.0, 6.0)),
}  # fmt: skip


@handles("leaky_relu", "leaky_relu_")
def leaky_relu(t, x, slope=0.01):
    return t.add(ops.LeakyRelu(float(slope)), x)


@handles("hardtanh", "hardtanh_")
def hardtanh(t, x, low=-1.0, high=1.0):
    return t.add(ops.Clip(float(low), float(high)), x)


@handles("clamp", "clamp_")
def clamp(t, x, min=None, max=None):
    return t.add(ops.Clip(-math.inf if min is None else float(min), math.inf if max is None else float(max)), x)


@handles("clamp_min")
def clamp_min(t, x, min):
    return t.add(ops.Clip(float(min), math.inf), x)


@handles("softmax", "_softmax")
def softmax(t, x, dim, *_, **__):
    return t.add(ops.Softmax(t.axis(x, dim)), x)


@handles(
    "dropout", "dropout_", "feature_dropout", "detach", "clone", "contiguous", "alias", "identity", "to", "_to_copy"
)
def identity(t, x, *_, **__):
    return t.index(x)


def _binary(op) -> Callable:
    def handler(t, a, b, alpha=1):
        if alpha != 1:
            b = t.add(ops.Mul(), b, alpha)
        return t.add(op, a, b)

    return handler


for _names, _op in ((("add", "add_"), ops.Add()), (("sub", "sub_"), ops.Sub()), (("mul", "mul_"), ops.Mul())):
    handles(*_names)(_binary(_op))


@handles("div", "div_")
def div(t, a, b, rounding_mode=None):
    if rounding_mode is not None:
        raise Unsupported(f"rounding_mode={rounding_mode!r}")
    return t.add(ops.Div(), a, b)


@handles("rsub")
def rsub(t, a, b, alpha=1):
    return _binary(ops.Sub())(t, b, a, alpha)


@handles("linear")
def linear(t, x, weight, bias=None):
    out = _matmul(t, t.index(x), t.add(ops.Permute((1, 0)), weight))
    return out if bias is None else t.add(ops.Add(), out, bias)


@handles("addmm")
def addmm(t, bias, x, weight, *, beta=1, alpha=1):
    if (alpha, beta) != (1, 1):
        raise Unsupported(f"alpha={alpha}, beta={beta}")
    return t.add(ops.Add(), t.add(ops.MatMul(), x, weight), bias)


@handles("matmul", "mm", "bmm")
def matmul(t, a, b):
    return _matmul(t, t.index(a), t.index(b))


def _matmul(t, a: int, b: int) -> int:
    """x @ y with torch's rules for vectors."""
    left, right = len(t.shape(a)), len(t.shape(b))
    if left == 1:
        a = t.reshape(a, (1, *t.shape(a)))
    if right == 1:
        b = t.reshape(b, (*t.shape(b), 1))
    out = t.add(ops.MatMul(), a, b)
    shape = list(t.shape(out))
    if left == 1:
        del shape[-1 if right == 1 else -2]
    if right == 1:
        del shape[-1]
    return out if min(left, right) > 1 else t.reshape(out, shape)


@handles("conv1d", "conv2d", "conv3d")
def conv(t, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    count = len(t.shape(weight)) - 2
    kernel, dilation = t.shape(weight)[2:], _per_axis(dilation, count)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before = tuple(n // 2 for n in total)
        after = tuple(n - b for n, b in zip(total, before, strict=True))
    else:
        before = after = _per_axis(0 if padding == "valid" else padding, count)
    op = ops.Conv(_per_axis(stride, count), dilation, groups, before, after)
    return t.add(op, x, weight) if bias is None else t.add(op, x, weight, bias)


@handles("convolution")
def convolution(t, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    if transposed:
        raise Unsupported("a transposed convolution")
    return conv(t, x, weight, bias, stride, padding, dilation, groups)


@handles("batch_norm")
def batch_norm(t, x, gamma, beta, mean, var, training, momentum, epsilon, cudnn=False):
    if training:
        raise Unsupported("batch norm in training mode: call module.eval() first")
    channels = t.shape(x)[1]
    gamma = t.builder.param(torch.ones(channels), "gamma", t.source) if gamma is None else gamma
    beta = t.builder.param(torch.zeros(channels), "beta", t.source) if beta is None else beta
    return t.add(ops.BatchNorm(float(epsilon)), x, gamma, beta, mean, var)


@handles("_native_batch_norm_legit_no_training")
def native_batch_norm(t, x, gamma, beta, mean, var, momentum, epsilon):
    return (batch_norm(t, x, gamma, beta, mean, var, False, momentum, epsilon),)


@handles("getitem")
def getitem(t, x, position):
    return t.values[x.name][position]


HANDLERS[operator.getitem.__name__] = getitem


@handles("max_pool1d", "max_pool2d", "max_pool3d")
def max_pool(t, x, kernel, stride=(), padding=0, dilation=1, ceil_mode=False):
    return t.add(_pool(ops.MaxPool, t, x, kernel, stride, padding, dilation, ceil_mode), x)


@handles("avg_pool1d", "avg_pool2d", "avg_pool3d")
def avg_pool(t, x, kernel, stride=(), padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
    if divisor_override is not None:
        raise Unsupported("divisor_override")
    return t.add(
        _pool(ops.AveragePool, t, x, kernel, stride, padding, 1, ceil_mode, count_padding=count_include_pad), x
    )


def _pool(kind, t, x, kernel, stride, padding, dilation, ceil, **more):
    count = len(t.shape(x)) - 2
    kernel, padding = _per_axis(kernel, count), _per_axis(padding, count)
    stride = kernel if stride in ((), [], None) else _per_axis(stride, count)
    return kind(kernel, stride, _per_axis(dilation, count), padding, padding, bool(ceil), **more)


@handles("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def adaptive_avg_pool(t, x, size):
    count = len(t.shape(x)) - 2
    whole, size = t.shape(x)[2:], _per_axis(size, count)
    if any(n % m for n, m in zip(whole, size, strict=True)):
        raise Unsupported(f"adaptive pooling of {whole} to {size}: the windows would differ in size")
    kernel = tuple(n // m for n, m in zip(whole, size, strict=True))
    return avg_pool(t, x, kernel, kernel)


@handles("sum")
def reduce_sum(t, x, dim=None, keepdim=False, dtype=None):
    return _reduce(t, ops.ReduceSum, x, dim, keepdim)


@handles("mean")
def reduce_mean(t, x, dim=None, keepdim=False, dtype=None):
    return _reduce(t, ops.ReduceMean, x, dim, keepdim)


def _reduce(t, kind, x, dim, keepdim) -> int:
    shape = t.shape(x)
    axes = range(len(shape)) if dim is None or dim == [] else dim if isinstance(dim, (list, tuple)) else [dim]
    axes = tuple(sorted(a % len(shape) for a in axes))
    out = t.add(kind(axes), x)
    return out if keepdim else t.reshape(out, [n for i, n in enumerate(shape) if i not in axes])


@handles("view", "reshape", "_unsafe_view", "view_copy")
def view(t, x, shape):
    known = math.prod(n for n in shape if n != -1)
    return t.reshape(x, [math.prod(t.shape(x)) // known if n == -1 else n for n in shape])


@handles("flatten")
def flatten(t, x, start=0, end=-1):
    shape = t.shape(x)
    start, end = start % len(shape), end % len(shape)
    return t.reshape(x, (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))


@handles("unflatten")
def unflatten(t, x, dim, sizes):
    shape, dim = t.shape(x), t.axis(x, dim)
    return view(t, x, (*shape[:dim], *sizes, *shape[dim + 1 :]))


@handles("squeeze")
def squeeze(t, x, dim=None):
    shape = t.shape(x)
    axes = range(len(shape)) if dim is None else dim if isinstance(dim, (list, tuple)) else [dim]
    axes = {a % len(shape) for a in axes}
    return t.reshape(x, [n for i, n in enumerate(shape) if i not in axes or n != 1])


@handles("unsqueeze")
def unsqueeze(t, x, dim):
    shape = list(t.shape(x))
    shape.insert(dim % (len(shape) + 1), 1)
    return t.reshape(x, shape)


@handles("permute")
def permute(t, x, axes):
    return t.add(ops.Permute(tuple(t.axis(x, a) for a in axes)), x)


@handles("transpose")
def transpose(t, x, first, second):
    axes = list(range(len(t.shape(x))))
    first, second = t.axis(x, first), t.axis(x, second)
    axes[first], axes[second] = second, first
    return t.add(ops.Permute(tuple(axes)), x)


@handles("t", "numpy_T")
def swap(t, x):
    return t.add(ops.Permute(tuple(reversed(range(len(t.shape(x)))))), x)


@handles("cat")
def cat(t, tensors, dim=0):
    return t.add(ops.Concat(t.axis(tensors[0], dim)), *tensors)


@handles("slice")
def slice_(t, x, dim=0, start=None, end=None, step=1):
    dim = t.axis(x, dim)
    start, stop, step = slice(start, None if end is None or end >= WHOLE else end, step).indices(t.shape(x)[dim])
    return t.add(ops.Slice(dim, start, max(start, stop), step), x)


@handles("select")
def select(t, x, dim, position):
    dim = t.axis(x, dim)
    shape = t.shape(x)
    out = t.add(ops.Take(dim, (position % shape[dim],)), x)
    return t.reshape(out, [n for i, n in enumerate(shape) if i != dim])


@handles("expand")
def expand(t, x, shape, implicit=False):
    own = (1,) * (len(shape) - len(t.shape(x))) + tuple(t.shape(x))
    return t.add(ops.Expand(tuple(n if m == -1 else m for n, m in zip(own, shape, strict=True))), x)


@handles("constant_pad_nd", "pad")
def pad(t, x, pads, mode="constant", value=0.0):
    if mode != "constant" or value not in (0, 0.0, None):
        raise Unsupported(f"padding with mode={mode!r}, value={value}")
    if min(pads) < 0:
        raise Unsupported("negative padding")
    before, after = [0] * len(t.shape(x)), [0] * len(t.shape(x))
    for k in range(len(pads) // 2):
        before[-1 - k], after[-1 - k] = pads[2 * k], pads[2 * k + 1]
    return t.add(ops.Pad(tuple(before), tuple(after)), x)
