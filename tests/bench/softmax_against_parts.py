"""CROWN bounds with Softmax as one op against exp, sum and quotient in its place: rows of properties, one thread, float32.

usage: python tests/bench/softmax_against_parts.py INSTANCES_DIR FAMILY [--limit N]

INSTANCES_DIR/instances.csv names the networks and properties, those whose path starts with FAMILY take part. Per
instance: the mean over rows of (bound with the op - bound with the parts) / (largest bound of the op), the share of
rows that are looser, and the seconds of one pass of each.
"""

import argparse
import csv
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from absdom import api, ops
from absdom.arithmetic import SEARCH
from absdom.ir.graph import Graph, rebuild
from absdom.plan.recipes import parse_recipe
from absdom.problem import bound_rows


def in_parts(graph: Graph) -> Graph:
    """Every Softmax as exp(x) / sum of exp(x)."""

    def change(builder, node, inputs):
        if not isinstance(node.op, ops.Softmax):
            return None
        powers = builder.add(ops.Exp(), *inputs, source=node.source)
        total = builder.add(ops.ReduceSum((node.op.axis,)), powers, source=node.source)
        return builder.add(ops.Div(), powers, total, source=node.source)

    return rebuild(graph, change)


def measure(task) -> tuple[np.ndarray, float]:
    problem, _ = api.make_problem(task)
    crown = parse_recipe("crown")
    problem.engine.context(crown, SEARCH)  # prepared before the clock starts
    started = time.perf_counter()
    value = bound_rows(problem.engine, crown, SEARCH, task.property, np.arange(task.property.spec.rows))
    return value, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("instances", type=Path)
    parser.add_argument("family")
    parser.add_argument("--limit", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with open(options.instances / "instances.csv", newline="") as file:
        pairs = [row[:2] for row in csv.reader(file) if row and row[0].startswith(options.family)]
    looser = 0
    for onnx, vnnlib in pairs[: options.limit]:
        task = api.read_task(options.instances / onnx, options.instances / vnnlib)
        (whole, seconds), (parts, other) = measure(task), measure(replace(task, graph=in_parts(task.graph)))
        gain = (whole - parts) / np.abs(whole).max()
        looser += int((gain < -1e-5).sum())
        print(
            f"{Path(vnnlib).name[:36]:36} worst row {whole.min():+.4g} against {parts.min():+.4g}, mean gain "
            f"{gain.mean():+.1e}, looser rows {int((gain < -1e-5).sum())} of {len(gain)}, "
            f"{seconds:.2f} s against {other:.2f} s",
            flush=True,
        )
    print(f"looser rows in all: {looser}")


if __name__ == "__main__":
    main()
