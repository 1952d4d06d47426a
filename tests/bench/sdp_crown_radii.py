"""Certified l2 radii of images by CROWN and by SDP-CROWN, and their ratio: how much the balls are worth.

usage: python tests/bench/sdp_crown_radii.py MODELS_DIR DATA_DIR [--images 100] [--steps 0] [--networks NAME ...]

A radius is certified when all margins of the label over the other classes are positive over the whole ball (no
clipping). Both methods bound every layer themselves; with `--steps` the final slopes of both are moved by ascent. Radii
are found by a bracketed secant, for all images at once, to `--tolerance`, relatively; the certified end of the bracket counts.
CIFAR images are JPEG streams: reading them needs Pillow.
"""

import argparse
import io
import time
from pathlib import Path

import numpy as np
import torch

from absdom import api
from absdom.arithmetic import SEARCH
from absdom.input_set import InputSet
from absdom.plan import run
from absdom.rows import Rows
from absdom.sets import InputBatch

# network file, data file, where the search starts
NETWORKS = {
    "mnist": ("wong2018_mnist_eps0.1.onnx", "mnist.npz", 0.15),
    "cifar stage 0": ("wong2018_cifar_small_l2_36_stage0.onnx", "cifar10_jpeg.npz", 0.14),
    "cifar stage 1": ("wong2018_cifar_small_l2_36_stage1.onnx", "cifar10_jpeg.npz", 0.14),
}
CHUNK = 20  # images that are bounded at once


def read(path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first test images, flat in [0, 1], and their labels."""
    data = np.load(path)
    if "x_test" in data:
        return data["x_test"][:count].reshape(count, -1) / 255.0, data["y_test"][:count].astype(int)
    from PIL import Image

    stream, offsets = data["test_jpeg"], data["test_offsets"]
    images = [np.asarray(Image.open(io.BytesIO(stream[offsets[i] : offsets[i + 1]].tobytes()))) for i in range(count)]
    return np.stack(images).transpose(0, 3, 1, 2).reshape(count, -1) / 255.0, data["test_labels"][:count].astype(int)


def margins(context: run.Context, x: np.ndarray, labels: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """The least lower bound of the label's margins over each ball, "N"."""
    shape, classes = context.graph.nodes[context.schedule.target].type.shape, np.arange(10)
    found = []
    for i in range(0, len(x), CHUNK):
        part = slice(i, i + CHUNK)
        batch = InputBatch.of(InputSet.ball(x[part], radii[part], 2, None), SEARCH)
        C = [np.eye(10)[label] - np.eye(10)[other] for label in labels[part] for other in classes[classes != label]]
        rows = Rows.dense_rows(SEARCH.tensor(np.stack(C)).reshape(-1, *shape), len(batch.lower))
        with torch.no_grad():
            bounds = run.propagate(context, batch)
            value = run.row_bounds(context, batch, bounds, rows, SEARCH.tensor(np.zeros(rows.count)))
        found.append(value.reshape(-1, 9).amin(1).numpy())
    return np.concatenate(found)


def certified(context, x, labels, first: np.ndarray, tolerance: float, low: np.ndarray, low_margin: np.ndarray):
    """(radii, margins there, evaluations): the largest radii found at which all margins are positive.

    From radii `low` with known margins. The Illinois method: an end that stays twice counts half.
    """
    low, low_margin = low.copy(), low_margin.copy()
    high, high_margin = np.full(len(x), np.inf), np.full(len(x), np.nan)
    weight, last = low_margin.copy(), np.zeros(len(x))
    trial, evaluations = first.copy(), 0
    while len(left := np.flatnonzero(high * (1 - tolerance) > low)):
        value = margins(context, x[left], labels[left], trial[left])
        evaluations += len(left)
        good, bad = left[value > 0], left[value <= 0]
        high_margin[good[last[good] > 0]] /= 2
        weight[bad[last[bad] < 0]] /= 2
        low[good], low_margin[good], last[good] = trial[good], value[value > 0], 1
        weight[good] = low_margin[good]
        high[bad], high_margin[bad], last[bad] = trial[bad], value[value <= 0], -1
        with np.errstate(invalid="ignore"):
            crossing = low + (high - low) * weight / (weight - high_margin)
            slack = tolerance * low / 4  # so that both ends come near
            trial = np.where(np.isfinite(high), np.clip(crossing, low + slack, high - slack), 1.25 * low)
    return low, low_margin, evaluations


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--tolerance", type=float, default=2e-3)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | images | CROWN, median radius | SDP-CROWN | ratio: median | least | largest | s CROWN | s SDP |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.networks:
        model, data, start = NETWORKS[name]
        graph = api.load(str(options.models / model))
        x, labels = read(options.data / data, 3 * options.images)
        clean = margins(api.compile(graph, "interval").context(SEARCH), x, labels, np.zeros(len(x)))
        right = np.flatnonzero(clean > 0)[: options.images]  # others have no radius
        x, labels, clean = x[right], labels[right], clean[right]
        radii, seconds = {}, {}
        known = np.zeros(len(x)), clean
        for method in ("crown", "sdp-crown"):
            recipe = method if options.steps == 0 else f"ascent({method}, steps={options.steps})"
            began = time.perf_counter()
            first = np.full(len(x), start) if method == "crown" else 1.1 * known[0]
            found = certified(api.compile(graph, recipe).context(SEARCH), x, labels, first, options.tolerance, *known)
            # The radius that CROWN certifies is one of SDP-CROWN's too: it starts from there.
            radii[method], known, evaluations = found[0], found[:2], found[2]
            seconds[method] = (time.perf_counter() - began) / evaluations
        ratio = radii["sdp-crown"] / radii["crown"]
        medians = [f"{np.median(radii[m]):.4f}" for m in radii]
        spread = [f"{v:.4f}" for v in (np.median(ratio), ratio.min(), ratio.max())]
        times = [f"{seconds[m]:.2f}" for m in radii]
        print("| " + " | ".join([name, str(len(x)), *medians, *spread, *times]) + " |", flush=True)


if __name__ == "__main__":
    main()
