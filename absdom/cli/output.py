"""Files that are whole or not there, JSON that every reader accepts, and progress bars."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from absdom.errors import UsageError


def check_writable(option: str, path: str | None) -> None:
    """Say before a long run that its result could not be written."""
    if path is None or path == "-":
        return
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise UsageError(f"{option} {path}: the folder {folder} does not exist")
    if Path(path).is_dir():
        raise UsageError(f"{option} {path}: this is a folder, not a file")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{option} {path}: the folder {folder} is not writable")


def write_atomic(path: str, text: str) -> None:
    """Write `path` in one step: readers see the old file or the whole new one."""
    with replaced(path) as file:
        file.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replaced(path: str) -> Iterator[Path]:
    """Gives the path of a new file, with the same suffix, that takes the place of `path` once it is written."""
    target = Path(path)
    if target.exists() and not target.is_file():  # /dev/stdout and pipes cannot be renamed over
        yield target
        return
    target = target.resolve()
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
    os.close(handle)
    try:
        yield Path(name)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def to_json(value) -> str:
    """JSON text; numbers that JSON does not have (NaN, infinities) become null."""
    return json.dumps(_plain(value), indent=2, allow_nan=False) + "\n"


def _plain(value):
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str | bool | int | None):
        return value
    if hasattr(value, "tolist"):  # numpy scalars and arrays, tensors
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


@contextlib.contextmanager
def progress_bar(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr where that is a terminal, nothing elsewhere; gives the function that advances it, with a text."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda text: bar.update(task, advance=1, description=text)
