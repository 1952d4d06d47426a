"""One hidden layer of ReLUs, trained by PGD only: what linear programs leave open there and semidefinite ones close.

usage: python tests/bench/sdp_one_layer.py DATA.npz WEIGHTS.pt [--images 10] [--epochs 12] [--methods cap crown lp sdp-fo]

Trains 784-500-10 on DATA.npz (x_train, y_train, x_test, y_test as uint8) where WEIGHTS.pt does not exist: Adam, PGD of
7 steps at --epsilon, no regulariser. Then bounds the margin of the label over the runner-up class on the first test images,
in the box of --epsilon met with [0, 1]; CROWN's bounds of the hidden layer serve all methods. Images that PGD breaks are
marked. Prints a Markdown table: bound, seconds; certified where the bound is positive.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from absdom import api
from absdom.arithmetic import PROOF
from absdom.datasets import rows_property
from absdom.input_set import InputSet
from absdom.problem import Problem, bound_rows

METHODS = {
    "cap": "cap", "crown": "crown", "alpha-crown": "alpha-crown", "lp": "lp", "sdp": "sdp(products=0)",
    "sdp-fo": "sdp-fo", "milp": "milp",
}  # fmt: skip


def network(hidden: int = 500) -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(784, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 10))


def attacked(net, x, y, epsilon: float, steps: int, step: float) -> torch.Tensor:
    lower, upper = (x - epsilon).clamp(0), (x + epsilon).clamp(max=1)
    p = lower + (upper - lower) * torch.rand_like(x)
    for _ in range(steps):
        p.requires_grad_()
        (g,) = torch.autograd.grad(torch.nn.functional.cross_entropy(net(p), y), p)
        p = torch.minimum(torch.maximum(p.detach() + step * g.sign(), lower), upper)
    return p


def train(x, y, epochs: int, epsilon: float, seed: int = 0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    net, batch = network(), 100
    optimiser = torch.optim.Adam(net.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=epochs * (len(x) // batch))
    for epoch in range(epochs):
        wrong = 0
        for part in torch.randperm(len(x)).split(batch):
            out = net(attacked(net, x[part], y[part], epsilon, 7, epsilon / 3))
            wrong += int((out.argmax(1) != y[part]).sum())
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(out, y[part]).backward()
            optimiser.step()
            rate.step()
        print(f"epoch {epoch + 1}: {100 * wrong / len(x):.2f} % wrong under attack", flush=True)
    return net


def images(data, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.from_numpy(data[f"x_{part}"].reshape(len(data[f"x_{part}"]), -1) / 255.0).float()
    return x, torch.from_numpy(data[f"y_{part}"].astype(np.int64))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--epsilon", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=list(METHODS)[:6], help="names, or any methods as text")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = np.load(options.data)
    if options.weights.exists():
        net = network()
        net.load_state_dict(torch.load(options.weights))
    else:
        net = train(*images(data, "train"), options.epochs, options.epsilon)
        torch.save(net.state_dict(), options.weights)
    x, y = images(data, "test")
    broken = net(attacked(net, x, y, options.epsilon, 40, options.epsilon / 10)).argmax(1) != y
    print(
        f"test error {100 * (net(x).argmax(1) != y).float().mean():.2f} %, under PGD {100 * broken.float().mean():.2f} %"
    )
    graph = api.load(net.double(), example=torch.zeros(1, 784, dtype=torch.float64))
    print("| image | " + " | ".join(options.methods) + " |\n" + "|---" * (len(options.methods) + 1) + "|", flush=True)
    for i in range(options.first, options.first + options.images):
        out = net(x[[i]].double())[0]
        other = next(int(k) for k in out.argsort(descending=True) if k != y[i])
        C = np.zeros((1, 1, 10))
        C[0, 0, int(y[i])], C[0, 0, other] = 1, -1
        centre = x[i].double().numpy()
        box = InputSet.box(np.clip(centre - options.epsilon, 0, 1)[None], np.clip(centre + options.epsilon, 0, 1)[None])
        prop = rows_property(box, C, np.zeros((1, 1)))
        cells = [f"{i}{' (broken)' if broken[i] else ''}: {int(y[i])} over {other}"]
        for name in options.methods:
            problem = Problem.of(graph, prop)
            started = time.perf_counter()
            try:
                value = bound_rows(problem.engine, api.recipe_of(METHODS.get(name, name)), PROOF, prop, np.arange(1))[0]
                mark = "**" if value > 0 else ""
                cells.append(f"{mark}{value:.3f}{mark}, {time.perf_counter() - started:.1f} s")
            except Exception as error:  # a method that cannot is a cell of the table, not its end
                cells.append(str(error).splitlines()[0][:60])
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
