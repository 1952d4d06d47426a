"""Seconds of a training step by each loss of bounds, beside a plain step on the same batch, and beside other tools.

    python tests/bench/train_step.py [--peers FILE.csv --calibration RATIO] [--rounds 40] [--exact]

Wong's small network on inputs of MNIST's shape, with random weights, eps 0.1, one thread. A step is zero_grad, the
loss, backward and Adam's step; the plain one has the cross-entropy of the outputs. Steps of all losses take turns, so
that what else runs on the machine falls on all of them; medians count. `--peers` has the columns method, weights (the
rows of random ones count), batch and step_s, which is divided by RATIO: how many times faster this machine is.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from absdom.allocator import keep_freed_memory
from absdom.train.bounds import IBP, Certified
from absdom.train.cap import CAP
from absdom.train.crown_ibp import CrownIBP
from absdom.train.task import Classification
from absdom.train.zoo import wong_small

OUT = Path(__file__).parent / "results" / "train_step.md"
EPS = 0.1
SLOW = 10  # losses that take so many plain steps take part in every fifth round,
LONGEST = 30.0  # and in no more once they took so many seconds in all
EXACT, EXACT_BATCH = ("CAP", "CROWN"), 50  # what keeps rows for every neuron: some 12 GB with random weights
LOSSES: dict[str, tuple[Callable, str | None]] = {  # name: the loss of a network, and what other tools call it
    "plain": (lambda net: torch.nn.functional.cross_entropy, None),
    "IBP": (lambda net: IBP(net, Classification(), eps=EPS), "auto_LiRPA IBP"),
    "IBP, with a clean pass": (lambda net: IBP(net, Classification(), eps=EPS, kappa=0.5), None),
    "CROWN-IBP": (lambda net: CrownIBP(net, Classification(), eps=EPS), "auto_LiRPA CROWN-IBP"),
    "CROWN-IBP, fused": (lambda net: CrownIBP(net, Classification(), eps=EPS, fused=True), None),
    "CAP, 50 projections": (
        lambda net: CAP(net, Classification(), eps=EPS, projections=50), "convex_adversarial, 50 projections",
    ),
    "CAP": (lambda net: CAP(net, Classification(), eps=EPS), "convex_adversarial, exact"),
    "CROWN": (lambda net: Certified(net, Classification(), eps=EPS, recipe="crown"), "auto_LiRPA CROWN"),
}  # fmt: skip


def steps(batch: int, names: Sequence[str]) -> dict[str, Callable[[], None]]:
    """One training step of each of these losses, on a network of its own with the same weights, which stay."""
    torch.manual_seed(0)
    x, y = torch.rand(batch, 1, 28, 28), torch.randint(0, 10, (batch,))

    def step_of(name: str) -> Callable[[], None]:
        torch.manual_seed(1)
        net = wong_small((1, 28, 28), 10)
        loss, optimiser = LOSSES[name][0](net), torch.optim.Adam(net.parameters(), 0.0)

        def step() -> None:
            optimiser.zero_grad()
            total = loss(net(x), y) if name == "plain" else loss(x, y).total
            total.backward()
            optimiser.step()

        return step

    return {name: step_of(name) for name in names}


def measure(batch: int, rounds: int, exact: bool = False) -> dict[str, float]:
    """Median seconds of each loss's step."""
    todo = steps(batch, [name for name in LOSSES if name not in EXACT or exact and batch == EXACT_BATCH])
    for step in todo.values():  # captures the network
        step()
    found = {name: [seconds(step)] for name, step in todo.items()}
    for i in range(rounds):
        for name, step in todo.items():
            slow = found[name][0] > SLOW * found["plain"][0]
            if (not slow or i % 5 == 0) and sum(found[name]) < LONGEST:
                found[name].append(seconds(step))
    return {name: statistics.median(times[1:] or times) for name, times in found.items()}


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def peers_of(path: Path, ratio: float) -> dict[tuple[str, int], float]:
    """(method, batch) -> seconds on this machine."""
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["weights"] == "random"]
    return {(row["method"], int(row["batch"])): float(row["step_s"]) / ratio for row in rows}


def table(batch: int, times: dict[str, float], peers: dict[tuple[str, int], float]) -> list[str]:
    lines = [
        f"\n## Batch {batch}\n",
        "| loss | ms | plain steps | another tool, ms | ratio to it |",
        "|---|---|---|---|---|",
    ]
    for name, value in times.items():
        other = peers.get((LOSSES[name][1], batch))
        beside = "- | -" if other is None else f"{1e3 * other:.1f} | {value / other:.2f}"
        lines.append(f"| {name} | {1e3 * value:.1f} | {value / times['plain']:.2f} | {beside} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--calibration", type=float, default=1.0, help="how many times faster this machine is")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--exact", action="store_true", help="CAP and CROWN too, which take 12 GB of memory")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    peers = {} if args.peers is None else peers_of(args.peers, args.calibration)
    lines = [
        "# Seconds of a training step", "",
        "Made by `python tests/bench/train_step.py`: Wong's small network, inputs of MNIST's shape, random weights, "
        f"eps {EPS}, one thread, medians of steps that take turns; torch {torch.__version__}, {platform.machine()}. "
        "Other tools' steps are scaled by the time that the same work took on the two machines.",
    ]  # fmt: skip
    for batch in (50, 100):
        lines += table(batch, measure(batch, args.rounds, args.exact), peers)
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
