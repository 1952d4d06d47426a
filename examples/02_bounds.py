"""Bounds of any layer, by its name in the file, with the Python API.

Run: python examples/02_bounds.py
"""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path

import numpy as np

import absdom

# The network of the first example: layer0, relu0, layer1, relu1, layer2.
maker = import_module("01_verify")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        maker.make_network(path)
        graph = absdom.load(path)

    # A batch of two input sets: the same centre, a small and a large box.
    centre = np.zeros((2, maker.SIZES[0]))
    inputs = absdom.InputSet.ball(centre, [0.05, 0.5], clip=None)

    for recipe in ("ibp", "crown"):
        compiled = absdom.compile(graph, recipe)
        for layer in ("z0", "z1", "y"):
            bounds = compiled.bounds(inputs, layer)
            width = (bounds.upper - bounds.lower).flatten(1).mean(1)
            print(f"{recipe:>6}  {layer}: mean width {width[0]:.4f} (radius 0.05), {width[1]:.4f} (radius 0.5)")


if __name__ == "__main__":
    main()
