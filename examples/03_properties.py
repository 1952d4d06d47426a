"""Write properties in Python: robustness in three norms, and formulas over inputs and outputs.

Run: python examples/03_properties.py
"""

from __future__ import annotations

import torch

import absdom


def main() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()
    centre = torch.full((1, 4), 0.5)
    label = int(module(centre).argmax())

    net = absdom.network(module, centre)  # or absdom.network("net.onnx")
    x, y = absdom.inputs(net), absdom.outputs(net)
    unit = absdom.box([0, 0, 0, 0], 1)
    near = absdom.ball(centre, 0.05, norm=2, clip=(0, 1))
    properties = {
        "robust, l_inf": absdom.robust(net, centre, 0.01, label),
        "robust, l_2": absdom.robust(net, centre, 0.01, label, norm=2),
        "robust, l_1, large": absdom.robust(net, centre, 2.0, label, norm=1),
        "one of two classes": absdom.forall(near, (absdom.argmax(y) == label) | (y[label] >= y[0] - 0.1)),
        "small outputs": absdom.forall(unit, absdom.maximum(y) - 2 * x[0] <= 3),
        "a premise": absdom.forall(unit, absdom.implies(x[0] + x[1] <= 0.5, abs(y[0] - y[1]) < 2)),
    }
    for name, prop in properties.items():
        result = absdom.verify(net, prop, timeout=30)
        print(f"{name}: {result.verdict}")
        if result.witness is not None:
            print(f"  at x = {result.witness.x.tolist()}, y = {result.witness.y.tolist()}")
    print(properties["a premise"].to_vnnlib())


if __name__ == "__main__":
    main()
