"""Train a controller that provably brakes in front of a wall, and verify the file that comes out.

A cart has a position and a velocity; the network chooses its acceleration and learns it from a simple expert. The
property is not classification: close to the wall and moving towards it, the cart has to brake at least so hard. The
expert, and a network that only imitates it, brake less; certified training adds the bound of the property to the loss.

Run: python examples/09_train_controller.py [FOLDER]     (the files stay in FOLDER if it is given)
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

import absdom
from absdom.train import Certified, PropertySpecification, Ramp, export_onnx

STEPS, CELLS = 400, 8


def expert(state: torch.Tensor) -> torch.Tensor:
    """The acceleration that brings the cart back to the middle, "B 1"."""
    position, velocity = state.split(1, 1)
    return (-0.6 * position - 0.8 * velocity).clamp(-1, 1)


def safety(net: torch.nn.Module) -> absdom.Property:
    """Position in [0.6, 1] (the wall is at 1) and velocity in [0, 0.5] imply an acceleration of at most -0.7."""
    given = absdom.network(net, torch.zeros(1, 2))
    return absdom.forall(absdom.box([0.6, 0.0], [1.0, 0.5]), absdom.outputs(given)[0] <= -0.7)


def train(certified: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = (2, 32, 32, 1)
    layers = [layer for pair in zip(sizes, sizes[1:]) for layer in (torch.nn.Linear(*pair), torch.nn.ReLU())]
    net = torch.nn.Sequential(*layers[:-1])
    spec = PropertySpecification(safety(net), sharpness=20.0)  # a margin of 0.1 is much
    loss = Certified(net, spec, eps=0.0, recipe="crown-ibp")
    ramp = Ramp(loss, "eps", 0.0, 1 / CELLS, start=0, length=STEPS // 2)
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(STEPS):
        states = 2 * torch.rand(128, 2) - 1
        total = (net(states) - expert(states)).square().mean()
        if certified:
            total = total + 0.05 * loss(*spec.sample(64)).total
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        ramp.step()
    states = 2 * torch.rand(1000, 2) - 1
    error = (net(states) - expert(states)).square().mean().sqrt()
    print(f"{'certified' if certified else 'plain'} training: distance from the expert {error:.3f}")
    return net


def main(folder: Path) -> int:
    verdicts = []
    for certified in (False, True):
        net, name = train(certified), "certified" if certified else "plain"
        export_onnx(net, torch.zeros(1, 2), folder / f"{name}.onnx")
        (folder / "safety.vnnlib").write_text(safety(net).to_vnnlib())
        result = absdom.verify(folder / f"{name}.onnx", folder / "safety.vnnlib", timeout=60)
        verdicts.append(result.verdict)
        print(f"{name}.onnx, safety.vnnlib: {result.verdict}")
        if result.witness is not None:
            print(f"  at (position, velocity) = {result.witness.x.tolist()}: {result.witness.y.tolist()}")
    return 0 if verdicts == ["sat", "unsat"] else 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        raise SystemExit(main(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory() as scratch:
        raise SystemExit(main(Path(scratch)))
