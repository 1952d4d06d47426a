"""The examples run, and say what they promise."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(root, name: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(root / "examples" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=root)


def test_01_verify(root, tmp_path):
    done = run(root, "01_verify.py", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "property holds" in done.stdout and "property VIOLATED" in done.stdout and "(X_0 " in done.stdout
    assert (tmp_path / "counterexample.txt").read_text().startswith("((X_0 ")


def test_every_example_is_tested(root):
    names = {path.stem for path in (root / "examples").glob("*.py")}
    assert {f"test_{name}" for name in names} <= set(globals()), "give each example a test here"


def test_02_bounds(root):
    pytest.importorskip("torch")
    done = run(root, "02_bounds.py")
    assert done.returncode == 0, done.stdout + done.stderr
