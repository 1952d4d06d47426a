"""Bounds and seconds of one pass against another tool's table: same instances, same method, one thread, float32.

usage: python tests/bench/bounds_against_peers.py TABLE.csv INSTANCES_DIR [--ratio R] [--family F] [--methods IBP CROWN]

TABLE.csv has columns family, onnx, vnnlib, method, batch, seconds, lower_bounds ("[..]" in the order of the file).
`--ratio` is how fast this machine is against the table's (GFLOP/s here / there): the table's seconds are divided by it.
A row is looser when its bound lies below the table's by more than 1e-3 of the largest bound of its instance (IBP: 1e-4).
"""

import argparse
import ast
import csv
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from absdom import api
from absdom.arithmetic import SEARCH
from absdom.plan.recipes import parse_recipe
from absdom.problem import bound_rows

METHODS = {
    "IBP": "ibp", "CROWN-IBP": "crown-ibp", "forward": "forward", "CROWN": "crown",
    "alpha-CROWN": "alpha-crown(intermediate=True)",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("table", type=Path)
    parser.add_argument("instances", type=Path)
    parser.add_argument("--ratio", type=float, default=1.0)
    parser.add_argument("--family", default="")
    parser.add_argument("--methods", nargs="+", default=list(METHODS)[:4], help="alpha-CROWN takes minutes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with open(options.table, newline="") as file:
        table = [r for r in csv.DictReader(file) if r["method"] in options.methods and r["batch"] == "1"]
    by_method: dict[str, list] = {}
    for row in table:
        if options.family and row["family"] != options.family:
            continue
        try:
            ours, seconds = measure(options.instances / row["onnx"], options.instances / row["vnnlib"], row["method"])
        except Exception as error:  # an op that is missing is a line of the table, not its end
            print(
                f"{row['family']:14} {row['method']:9} {Path(row['onnx']).name[:36]:36} {str(error).splitlines()[0][:90]}"
            )
            continue
        text = row["lower_bounds"].replace("nan", "None").replace("NaN", "None")
        theirs = (
            np.array([np.nan if v is None else v for v in ast.literal_eval(text)], dtype=float)
            if text
            else ours * np.nan
        )
        scaled = float(row["seconds"]) / options.ratio if row["seconds"] else math.nan
        scale = np.nanmax(np.abs(theirs)) if np.isfinite(theirs).any() else math.nan
        worst = np.nanmax((theirs - ours) / scale) if theirs.shape == ours.shape and scale > 0 else math.nan
        mean = np.nanmean((ours - theirs) / scale) if theirs.shape == ours.shape and scale > 0 else math.nan
        by_method.setdefault(row["method"], []).append((worst, seconds / scaled))
        print(
            f"{row['family']:14} {row['method']:9} {Path(row['onnx']).name[:36]:36} {Path(row['vnnlib']).name[:30]:30} "
            f"loosest {worst:+.1e} mean gain {mean:+.1e}  {seconds:.4f} s against {scaled:.4f} s",
            flush=True,
        )
    for method, found in by_method.items():
        limit = 1e-4 if method == "IBP" else 1e-3
        looser = sum(w > limit for w, _ in found)
        times = [t for _, t in found if math.isfinite(t)]
        print(
            f"{method}: {len(found)} passes, {looser} looser than {limit:g}, "
            f"seconds / theirs: median {statistics.median(times):.2f}, worst {max(times):.2f}, slower {sum(t > 1 for t in times)}"
        )


def measure(onnx: Path, vnnlib: Path, method: str) -> tuple[np.ndarray, float]:
    task = api.read_task(onnx, vnnlib)
    problem, _ = api.make_problem(task)
    recipe = parse_recipe(METHODS[method])
    every = np.arange(task.property.spec.rows)
    times = []
    while len(times) < 4 and (not times or sum(times) < 5):  # a warm-up, then the median
        started = time.perf_counter()
        value = bound_rows(problem.engine, recipe, SEARCH, task.property, every)
        times.append(time.perf_counter() - started)
    return value, statistics.median(times[1:] or times)


if __name__ == "__main__":
    main()
