"""Output files that can be written, and what goes into them."""

from __future__ import annotations

import json
import os
from pathlib import Path

from absdom.errors import UsageError
from absdom.files import plain


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


def to_json(value) -> str:
    """JSON text; numbers that JSON does not have (NaN, infinities) become null."""
    return json.dumps(plain(value), indent=2, allow_nan=False) + "\n"
