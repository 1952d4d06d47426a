"""Makes the helpers beside the tests (`exact_oracle`, `random_graphs`), and those of other tests, importable."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent

sys.path[:0] = [str(HERE), str(HERE.parent / "frontends"), str(HERE.parent / "solvers")]
