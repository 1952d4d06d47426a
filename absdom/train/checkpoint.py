"""Checkpoints: files of tensors and plain values, whole or not there, that say what run they belong to."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path

import numpy as np
import torch

from absdom.errors import UsageError
from absdom.files import replaced

PARTS = {"run", "model", "optimiser", "loss", "schedules", "hooks", "random", "epoch", "step", "records", "stopped"}


def save(path: Path, state: Mapping) -> None:
    """Write a checkpoint in one step: after a crash the old one is there, or the new one."""
    with replaced(path) as file:
        torch.save(dict(state), file)


def load(path: Path) -> dict:
    """A checkpoint's state, on the CPU; the file can hold no code. Raises UsageError for what is no checkpoint."""
    state = None
    try:
        with zipfile.ZipFile(path) as file:
            whole = file.testzip() is None  # torch reads numbers that have changed as they are
        if whole:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception:  # what is damaged raises errors of many kinds
        pass
    if not isinstance(state, dict) or not PARTS <= set(state):
        raise UsageError(
            f"{path}: no checkpoint of a trainer, or a damaged one. Train into another folder, or put a copy of the "
            "checkpoint there"
        )
    return state


def check_same(path: Path, saved: Mapping, here: Mapping) -> None:
    """Raises UsageError that lists what differs between two descriptions of runs, nested mappings of plain values."""
    different = list(_differences("", saved, here))
    if different:
        more = f"\n  ... and {len(different) - 12} more" if len(different) > 12 else ""
        raise UsageError(
            f"{path} is the checkpoint of another run:\n  " + "\n  ".join(different[:12]) + more
            + "\ntrain into another folder, or give what the checkpoint was made with"
        )  # fmt: skip


def settings_of(value: object, without: Collection[str] = ()) -> dict:
    """The attributes of an object that are plain values, or frozen dataclasses of such."""
    return plain_of({k: v for k, v in vars(value).items() if not k.startswith("_") and k not in without})


def plain_of(values: Mapping[str, object]) -> dict:
    """The plain ones of these values."""
    found = {}
    for name, value in values.items():
        if isinstance(value, str | bool | int | float | None):
            found[name] = value
        elif is_dataclass(value) and value.__dataclass_params__.frozen:
            found[name] = {"kind": type(value).__name__, **settings_of(value)}
        elif isinstance(value, tuple | list) and all(isinstance(v, str | bool | int | float | None) for v in value):
            found[name] = list(value)
    return found


def _differences(name: str, saved, here) -> Iterator[str]:
    if isinstance(saved, Mapping) and isinstance(here, Mapping):
        for key in {**saved, **here}:
            yield from _differences(f"{name}{' ' if name else ''}{key}", saved.get(key), here.get(key))
    elif saved != here:
        yield f"{name}: {_shown(saved)} in the checkpoint, {_shown(here)} here"


def _shown(value) -> str:
    return "absent" if value is None else str(value)


def random_states() -> dict:
    """The states of the generators of torch (all devices), Python and numpy, as tensors and plain values."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
    }


def set_random_states(states: Mapping) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))


@contextmanager
def own_randomness(seed: int, rank: int, states: Mapping | None = None) -> Iterator[None]:
    """The generators in saved states, or else seeded; afterwards they are again in the state they were in."""
    before = random_states()
    if states is None:
        drawn = np.random.SeedSequence([seed, rank]).generate_state(1)[0]
        torch.manual_seed(int(drawn))
        random.seed(int(drawn))
        np.random.seed(drawn)
    else:
        set_random_states(states)
    try:
        yield
    finally:
        set_random_states(before)
