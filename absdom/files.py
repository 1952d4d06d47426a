"""Files that are whole or not there, and values as JSON has them."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def write_atomic(path: str | Path, text: str) -> None:
    """Write `path` in one step: readers see the old file or the whole new one."""
    with replaced(path) as file:
        file.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replaced(path: str | Path) -> Iterator[Path]:
    """Gives the path of a new file, with the same suffix, that takes the place of `path` once it is written."""
    target = Path(path)
    if target.exists() and not target.is_file():  # /dev/stdout and pipes cannot be renamed over
        yield target
        return
    target = target.resolve()
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
    try:
        os.close(handle)
        yield Path(name)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def plain(value):
    """The value in the types of JSON; numbers that JSON does not have (NaN, infinities) become None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, str | bool | int | None):
        return value
    if hasattr(value, "tolist"):  # numpy scalars and arrays, tensors
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
