"""What all tests share: where the competition data lies, a small network, and the marker `gpu`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

# Several test processes share the cores, and so do the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
VNNCOMP = ROOT.parent / "shared" / "vnncomp"


def pytest_addoption(parser):
    parser.addoption("--update-readme", action="store_true", help="write the coverage table into README.md")


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def vnncomp() -> Path:
    """The folder of competition instances: smoke/, dev/, peers/, each with an instances.csv."""
    if not VNNCOMP.is_dir():
        pytest.skip(f"the competition instances are not there: {VNNCOMP}")
    return VNNCOMP


def load_example(root: Path, name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", root / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def small(root, tmp_path_factory) -> SimpleNamespace:
    """The files of the first example, paths as text: model, holds, fails; and `maker`, the module that made them."""
    maker = load_example(root, "01_verify")
    model, properties = maker.make_files(tmp_path_factory.mktemp("small"))
    paths = {name: str(path) for name, path in properties.items()}
    return SimpleNamespace(model=str(model), maker=maker, **paths)


@pytest.fixture(scope="session")
def digits(root, tmp_path_factory) -> SimpleNamespace:
    """A small network trained by the example on scikit-learn's digits, at eps 0.1: `model` and `data`, paths as text,
    and what the example printed."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    folder = tmp_path_factory.mktemp("digits")
    command = [sys.executable, str(root / "examples" / "08_train_and_certify.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    paths = {"model": str(folder / "model.onnx"), "data": str(folder / "digits.npz")}
    return SimpleNamespace(**paths, printed=done.stdout)
