"""Random projections measured: error of the median estimator, seconds per hidden unit; tables and plots.

usage: python tests/bench/projections.py [--model MODEL.onnx --data DATA.npz --eps 0.1 --images 4] [--units 4200000] [--out FOLDER]

Error: half widths of the outputs' bounds against the exact ones (CAP's, over intermediate bounds of the same kind), on
a random network and on images. Cost: bounds of all units of one 3x3 convolution over ten images of 28x28 pixels, with
more and more filters, by medians of ten projections, and a straight line through them.
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import torch

from absdom import api, ops
from absdom.arithmetic import SEARCH
from absdom.domains.projection import Projected
from absdom.ir.graph import Builder
from absdom.passes import lower
from absdom.plan import run
from absdom.plan.planner import make_schedule
from absdom.plan.recipes import parse_recipe
from absdom.sets import InputBatch
from absdom.types import TensorType

COUNTS, SEEDS = (10, 50, 200), 8
SIDE, FILTERS, EXAMPLES, PROJECTIONS = 28, (16, 64, 256, 1024, 2680, 5360), 10, 10


def random_network(sizes=(20, 60, 60, 60, 10)):
    generator = torch.Generator().manual_seed(0)
    builder = Builder()
    x = builder.input("x", TensorType((1, sizes[0]), "float32"))
    for k, (m, n) in enumerate(zip(sizes, sizes[1:], strict=False)):
        x = builder.add(ops.MatMul(), x, builder.param(torch.randn((m, n), generator=generator) / m**0.5, f"w{k}"))
        if k < len(sizes) - 2:
            x = builder.add(ops.Relu(), x)
    return lower(builder.finish([x]))


def half_widths(graph, sets, recipe) -> torch.Tensor:
    context = run.prepare(make_schedule(graph, recipe), SEARCH)
    with torch.no_grad():
        found = run.node_bounds(context, sets)
    return ((found.upper - found.lower) / 2).flatten(1).double()


def errors(name: str, graph, sets) -> list[dict]:
    """Per number of projections and estimator: how far half widths are from the exact ones, relative, over seeds."""
    started = time.perf_counter()
    exact, seconds = half_widths(graph, sets, parse_recipe("cap & interval")), time.perf_counter() - started
    rows = [{"network": name, "estimator": "exact (cap)", "seconds": f"{seconds:.3f}"}]
    for estimator in ("median", "geometric"):
        for count in COUNTS:
            started = time.perf_counter()
            ratio = torch.stack(
                [half_widths(graph, sets, Projected(count, estimator, seed=seed)) / exact for seed in range(SEEDS)]
            )
            seconds = (time.perf_counter() - started) / SEEDS
            rows.append(
                {
                    "network": name, "estimator": estimator, "projections": count,
                    "mean ratio to exact": f"{ratio.mean():.3f}", "mean |error|": f"{(ratio - 1).abs().mean():.3f}",
                    "least ratio": f"{ratio.min():.3f}", "largest ratio": f"{ratio.max():.3f}",
                    "seconds": f"{seconds:.3f}",
                }
            )  # fmt: skip
    return rows


def convolution(filters: int):
    generator = torch.Generator().manual_seed(filters)
    builder = Builder()
    x = builder.input("x", TensorType((1, 1, SIDE, SIDE), "float32"))
    weights = builder.param(torch.randn((filters, 1, 3, 3), generator=generator) / 3, "w")
    x = builder.add(ops.Conv((1, 1), (1, 1), 1, (1, 1), (1, 1)), x, weights)
    return lower(builder.finish([x]))


def costs(largest: int) -> list[dict]:
    """Seconds for the bounds of all units, image by image."""
    images = torch.rand((EXAMPLES, SIDE * SIDE), generator=torch.Generator().manual_seed(0))
    rows = []
    for filters in FILTERS:
        units = filters * SIDE * SIDE
        if units > largest:
            continue
        context = run.prepare(make_schedule(convolution(filters), Projected(PROJECTIONS)), SEARCH)
        started = time.perf_counter(), time.process_time()
        with torch.no_grad():
            for image in images:
                run.propagate(context, InputBatch(image[None] - 0.1, image[None] + 0.1))
        wall, used = time.perf_counter() - started[0], time.process_time() - started[1]
        rows.append({"units": units, "seconds": wall, "CPU seconds": used})
    return rows


def fitted(rows) -> tuple[float, float]:
    """(seconds per unit, exponent): CPU seconds = a x units through the largest, and ~ units^exponent by all."""
    units, seconds = (np.array([r[key] for r in rows]) for key in ("units", "CPU seconds"))
    exponent = np.polyfit(np.log(units), np.log(seconds), 1)[0] if len(rows) > 1 else float("nan")
    return float((units * seconds).sum() / (units**2).sum()), float(exponent)


def plot(path: Path, rows, slope: float) -> None:
    """The measured points and the straight line through them, both axes logarithmic, as SVG."""
    width, height, margin = 640, 420, 60
    ends = [(min(r[k] for r in rows), max(r[k] for r in rows)) for k in ("units", "CPU seconds")]
    ends = [(10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(high))) for low, high in ends]

    def place(units, seconds):
        shares = [np.log(v / low) / np.log(high / low) for v, (low, high) in zip((units, seconds), ends, strict=True)]
        return margin + shares[0] * (width - 2 * margin), height - margin - shares[1] * (height - 2 * margin)

    def text(x, y, words, anchor="middle"):
        return f'<text x="{x:.0f}" y="{y:.0f}" font-size="13" font-family="sans-serif" text-anchor="{anchor}">{words}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"><rect width="100%" height="100%" fill="white"/>',
        f'<rect x="{margin}" y="{margin}" width="{width - 2 * margin}" height="{height - 2 * margin}" fill="none" stroke="black"/>',
        text(width / 2, height - 12, f"hidden units of one 3x3 convolution, {EXAMPLES} images"),
        text(width / 2, 30, f"CPU seconds of the bounds, median of {PROJECTIONS} projections: {slope:.2e} per unit"),
    ]
    for axis, (low, high) in enumerate(ends):
        for power in range(round(np.log10(low)), round(np.log10(high)) + 1):
            x, y = place(10.0**power, ends[1][0]) if axis == 0 else place(ends[0][0], 10.0**power)
            parts.append(text(x, y + 18, f"1e{power}") if axis == 0 else text(x - 6, y + 4, f"1e{power}", "end"))
    line = [place(u, u * slope) for u in (rows[0]["units"], rows[-1]["units"])]
    parts.append('<polyline fill="none" stroke="gray" points="' + " ".join(f"{x:.1f},{y:.1f}" for x, y in line) + '"/>')
    for row in rows:
        x, y = place(row["units"], row["CPU seconds"])
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="steelblue"/>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def write(folder: Path, name: str, rows: list[dict]) -> None:
    """A CSV file, and the same as a table on the screen."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(folder / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(row.get(c, "")) for c in columns) + " |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--units", type=int, default=4_300_000, help="the largest layer that is timed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    centre = torch.rand((4, 20), generator=torch.Generator().manual_seed(1))
    found = errors("random, 3 x 60 units", random_network(), InputBatch(centre - 0.05, centre + 0.05))
    if options.model is not None:
        with np.load(options.data) as data:
            pixels = torch.from_numpy(data["x_test"][: options.images].reshape(options.images, -1)).float() / 255
        found += errors(
            options.model.stem, lower(api.load(options.model)), InputBatch(pixels - options.eps, pixels + options.eps)
        )
    write(options.out, "projection_errors", found)
    rows = costs(options.units)
    slope, exponent = fitted(rows)
    write(options.out, "projection_cost", [{k: v if k == "units" else f"{v:.3f}" for k, v in r.items()} for r in rows])
    print(f"CPU seconds per unit and {EXAMPLES} images: {slope:.3g}; seconds grow like units^{exponent:.2f}")
    plot(options.out / "projection_cost.svg", rows, slope)


if __name__ == "__main__":
    main()
