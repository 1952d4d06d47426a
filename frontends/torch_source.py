"""Where in the user's code a captured call was made: its line and its layer, for the torch front end's messages."""

from __future__ import annotations

import re
from pathlib import Path

import torch

TORCH = str(Path(torch.__file__).parent)


def target_name(node: torch.fx.Node) -> str:
    """`conv2d` for torch.ops.aten.conv2d.default; ops of other libraries keep their library's name."""
    target = node.target
    if hasattr(target, "_schema"):
        library, name = target._schema.name.split("::")
        return name if library == "aten" else f"{library}.{name}"
    return getattr(target, "__name__", str(target))


def module_paths(node: torch.fx.Node) -> list[str]:
    """Qualified names of the layers that were running, from the outermost to the one that made the call."""
    stack = node.meta.get("nn_module_stack") or {}
    return [path for path, _ in stack.values() if path]


def user_line(node: torch.fx.Node) -> str:
    """`file, line N` of the innermost frame outside torch, or ''."""
    places = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    user = [place for place in places if not place[0].startswith((TORCH, "<"))]
    return f"{user[-1][0]}, line {user[-1][1]}" if user else ""


def describe(node: torch.fx.Node) -> str:
    """A call as messages name it: op, name, layer and line."""
    paths = module_paths(node)
    layer = f" in layer {paths[-1]!r}" if paths else ""
    line = user_line(node)
    return f"{target_name(node)} '{node.name}'{layer}" + (f" ({line})" if line else "")


def blame(error: BaseException, module: torch.nn.Module) -> str:
    """The line of the user's code, and the layer, where torch raised while it ran the module; '' when unknown."""
    names = {id(m): name for name, m in module.named_modules()}
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        line, layer, trace = "", None, error.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            owner = trace.tb_frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
            if id(owner) in names and code.co_name == "forward":
                layer = names[id(owner)]
            if layer is not None and not code.co_filename.startswith((TORCH, "<")):
                line = f"{code.co_filename}, line {trace.tb_lineno}"
            trace = trace.tb_next
        if line or layer:
            return ", ".join(part for part in (line, f"in layer {layer!r}" if layer else "") if part)
        error = error.__cause__ or error.__context__
    return ""


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something."""
    if "data-dependent" in str(error):
        return "its control flow depends on data"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
