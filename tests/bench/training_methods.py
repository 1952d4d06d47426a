"""IBP, CROWN-IBP, CAP and the one-step method of Lee et al. on one schedule: errors and smoothness, as in their paper.

usage: python tests/bench/training_methods.py --data MNIST.npz --work DIR [--methods ibp ...] [--radii 0.1 0.3]
       [--images 6000] [--epochs 7] [--batch 50] [--out FOLDER] [--minutes M]

Wong's small network, the same start, images, order and learning rates for all: the radius grows from 0 over the first
half (a straight line), training and test radius are the same, Adam. CAP trains with 10 Cauchy projections and is
certified by the exact dual. Each finished run is a JSON file in DIR, and one that was cut off (--minutes, or by hand)
goes on at its last whole epoch: call it again until the table is complete, as tests/bench/results/training_methods.md
with training_methods_RADIUS.svg beside it.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from absdom.train.attacks import PGD
from absdom.train.bounds import IBP
from absdom.train.cap import CAP
from absdom.train.crown_ibp import CrownIBP
from absdom.train.data import read_training
from absdom.train.hooks import Hook
from absdom.train.landscape import Landscape, plot
from absdom.train.loss import Step
from absdom.train.one_step import OneStep
from absdom.train.schedules import Piecewise, Ramp
from absdom.train.task import Classification
from absdom.train.trainer import Trainer
from absdom.train.zoo import wong_small

SHAPE, TEST = (1, 28, 28), 500
SPEC, ATTACK = Classification(), PGD(40, 0.1)
MEASURES = 24  # of the landscape in a run, of which the second half, at the full radius, is summed up


@dataclass(frozen=True)
class Method:
    title: str
    train: object  # module, spec, eps -> the loss that is trained with
    judge: object = None  # the same for the loss whose bounds certify, if it is another one


METHODS = {
    "ibp": Method("IBP", IBP),
    "crown-ibp": Method("CROWN-IBP (beta 1)", CrownIBP),
    "cap": Method("CAP (10 projections)", lambda *a, **k: CAP(*a, projections=10, **k), CAP),
    "one-step": Method("Lee et al.", OneStep),
}


class CpuSeconds(Hook):
    """The process's CPU seconds of each epoch, those of measuring among them."""

    def __init__(self):
        self.since = time.process_time()

    def epoch_end(self, trainer, record):
        now = time.process_time()
        record["cpu_seconds"], self.since = now - self.since, now


def trained(name: str, eps: float, args, left: float):
    """(loss, records, landscape) of a run, or None where the time was not enough for its last epoch."""
    torch.manual_seed(0)
    net = wong_small(SHAPE, 10)
    data = read_training(args.data, args.batch, shape=SHAPE, outputs=10)
    data.x, data.y = data.x[: args.images], data.y[: args.images]
    loss = METHODS[name].train(net, SPEC, eps=0.0)
    optimiser = torch.optim.Adam(net.parameters(), args.lr)
    steps = args.epochs * data.batches
    schedules = [
        Ramp(loss, "eps", 0.0, eps, 0, steps // 2, smooth=False),
        Piecewise(optimiser, "lr", {3 * steps // 4: 0.2, 7 * steps // 8: 0.2}),
    ]
    landscape = Landscape(every=max(steps // MEASURES, 1), lengths=(1.0, 4.0, 16.0))
    trainer = Trainer(
        loss, optimiser, data, epochs=args.epochs, schedules=schedules, hooks=[landscape, CpuSeconds()],
        out=args.work / f"{name}-{eps:g}", config={"lr": args.lr, "method": name, "eps": eps},
    )  # fmt: skip
    started, last = time.monotonic(), [0.0]

    def progress(text: str) -> None:
        if time.monotonic() - last[0] > 5:
            last[0] = time.monotonic()
            print(f"\r{name} {eps:g}: {text}, {last[0] - started:.0f} s   ", end="", file=sys.stderr, flush=True)

    records = trainer.run(resume=True, seconds=left, progress=progress)
    print(file=sys.stderr)
    return (loss, records, landscape) if trainer.finished else None


@torch.no_grad()
def judged(name: str, loss, eps: float, args) -> dict:
    """Errors on the first test images; raises AssertionError where what is certified was attacked."""
    data = read_training(args.data, args.batch, shape=SHAPE, outputs=10, part="test")
    data.x, data.y = data.x[:TEST], data.y[:TEST]
    loss.module.eval()
    judge = (METHODS[name].judge or METHODS[name].train)(loss.module, SPEC, eps=eps)
    torch.manual_seed(0)  # the slopes that the one-step method starts from
    started, counts = time.process_time(), dict.fromkeys(("clean", "pgd", "own", "crown"), 0)
    for k, (x, y, *_) in enumerate(data.parts()):
        live, out = judge.live(x), judge(x, y)
        step = Step(live, out.task, judge.batch_norm)
        right = out.task.holds(out.task.margins(step.outputs))
        safe = right & out.task.holds(out.task.margins(step.attacked(ATTACK)[1]))
        proved = {"own": out.task.holds(out.margins), "crown": out.task.holds(step.margins("crown"))}
        for certified in proved.values():
            assert not (certified & ~safe).any(), "an image was certified that an attack breaks"
        for key, held in {"clean": right, "pgd": safe, **proved}.items():
            counts[key] += int((~held).sum())
        print(
            f"\r{name} {eps:g}: judged {min((k + 1) * data.batch, len(data))} images   ",
            end="",
            file=sys.stderr,
            flush=True,
        )
    print(file=sys.stderr)
    errors = {key: 100 * count / len(data) for key, count in counts.items()}
    return {**errors, "judge_seconds": time.process_time() - started}


def summary(records: list[dict]) -> dict:
    """Medians of the measures at the full radius."""
    late = records[len(records) // 2 :]
    return {
        "variation": median(r["variation"] for r in late),
        "distance_along": median(r["distance_along"] for r in late),
        "distance": median(r["distance"] for r in late),
        "cosine": median(r["cosine"] for r in late),
        "slopes": middle(r["slopes"] for r in late),
        "gap": middle(None if r["tightness"] is None else r["tightness"] - r["tightness_attacked"] for r in late),
    }


def middle(values) -> float | None:
    """The median of the numbers among the values, None if there are none."""
    known = [v for v in values if v is not None]
    return median(known) if known else None


def settings(args) -> dict:
    return {"images": args.images, "epochs": args.epochs, "batch": args.batch, "lr": args.lr, "test": TEST}


def one(name: str, eps: float, args, until: float) -> dict | None:
    """The result of a run, from its file if it is finished; None where time ran out."""
    file = args.work / f"{name}-{eps:g}.json"
    if file.exists():
        found = json.loads(file.read_text())
        if found["settings"] != settings(args):
            raise SystemExit(f"{file} has the settings {found['settings']}, not {settings(args)}: take another --work")
        return found
    if time.monotonic() > until or (done := trained(name, eps, args, until - time.monotonic())) is None:
        return None
    loss, records, landscape = done
    found = {
        "settings": settings(args), "seconds": sum(r["cpu_seconds"] for r in records),
        "errors": judged(name, loss, eps, args), "smoothness": summary(landscape.records),
        "landscape": landscape.records,
    }  # fmt: skip
    file.write_text(json.dumps(found))
    return found


def table(results: dict, args) -> str:
    lines = [
        "# Four certified training methods on one shortened schedule",
        "",
        f"`python tests/bench/training_methods.py --data mnist.npz --work DIR --images {args.images} --epochs "
        f"{args.epochs} --batch {args.batch}`: MNIST, Wong's small network, the first {args.images} training images, "
        f"{args.epochs} epochs, batches of {args.batch}, Adam {args.lr:g}, the radius from 0 to its end in the first "
        f"half, training and test radius equal; errors in per cent on the first {TEST} test images; CPU seconds of "
        f"training with one thread. CAP trains with 10 Cauchy projections and is certified by the exact dual.",
    ]
    for eps in args.radii:
        lines += ["", f"## eps {eps:g}", "", "| method | clean | PGD-40 | certified, own bound | by CROWN | seconds |"]
        lines += ["|---|---|---|---|---|---|"]
        for name in args.methods:
            r = results[name, eps]
            e = r["errors"]
            numbers = f"{e['clean']:.1f} | {e['pgd']:.1f} | {e['own']:.1f} | {e['crown']:.1f} | {r['seconds']:.0f}"
            lines.append(f"| {METHODS[name].title} | {numbers} |")
        lines += [
            "", "Medians at the full radius: range of the loss and largest change of the gradient along it (1, 4 and 16 "
            "learning rates), l2 distance and cosine of successive gradients, share of unstable ReLUs with a sloped "
            "lower line, bound less attacked margin (summed over rows; CAP trains with estimates of norms: no bound, and no lines).",
            "", "| method | loss range | change along | distance | cosine | sloped | gap |", "|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for name in args.methods:
            s = results[name, eps]["smoothness"]
            gap, slopes = ("-" if s[key] is None else f"{s[key]:.2f}" for key in ("gap", "slopes"))
            numbers = f"{s['variation']:.3g} | {s['distance_along']:.3g} | {s['distance']:.3g} | {s['cosine']:.3f}"
            lines.append(f"| {METHODS[name].title} | {numbers} | {slopes} | {gap} |")
        lines += ["", f"![along training](training_methods_{eps:g}.svg)"]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--radii", nargs="+", type=float, default=[0.1, 0.3])
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop before this, to be continued")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * args.minutes
    results = {(name, eps): one(name, eps, args, until) for eps in args.radii for name in args.methods}
    if None in results.values():
        raise SystemExit("not all runs are finished: call it again to go on")
    args.out.mkdir(parents=True, exist_ok=True)
    for eps in args.radii:
        runs = {METHODS[name].title: results[name, eps]["landscape"] for name in args.methods}
        plot(args.out / f"training_methods_{eps:g}.svg", runs)
    (args.out / "training_methods.md").write_text(table(results, args))
    print(table(results, args))


if __name__ == "__main__":
    main()
