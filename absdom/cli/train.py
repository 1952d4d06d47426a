"""`absdom train PRESET|CONFIG.toml --data DATA.npz --out DIR`: a network is trained, written as ONNX and certified."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from absdom.cli.ball import radius
from absdom.cli.output import check_writable, to_json
from absdom.errors import UsageError
from absdom.files import write_atomic
from absdom.progress import progress_bar

MOST_CLASSES = 1000  # that labels may imply, where there are fewer items than that
MODEL, METRICS, CONFIG, CHECKPOINT, LOG = "model.onnx", "metrics.json", "config.toml", "checkpoint.pt", "log.jsonl"


def add_options(
    parser: argparse.ArgumentParser,
    count: Callable[[str], int],
    seconds: Callable[[str], float],
    seed: Callable[[str], int],
    devices: tuple[str, ...],
) -> None:
    """`count` reads a number above 0, `seconds` a time, `seed` a seed."""
    parser.add_argument("run", metavar="PRESET|CONFIG.toml", nargs="?", help="what to train (see --list)")
    parser.add_argument("--list", action="store_true", help="print the presets, one line each")
    parser.add_argument("--show", metavar="PRESET", help="print a preset as a TOML file, to be changed")
    parser.add_argument(
        "--data", metavar="DATA.npz",
        help="x_train, y_train and, to judge the network, x_test, y_test; or x and y, for both",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help=f"gets {MODEL}, {METRICS}, {CONFIG}, {LOG} and {CHECKPOINT}")
    parser.add_argument("--epochs", type=count, metavar="N", help="so many epochs, all times in proportion")
    parser.add_argument("--eps", type=radius, metavar="E", help="judge at this radius, train in proportion")
    parser.add_argument("--seed", type=seed, metavar="N", help="seed of weights, order and attacks")
    parser.add_argument("--device", choices=devices, default="auto", help="default: auto")
    parser.add_argument("--limit", type=count, metavar="N", help="at most N items, to train on and to judge by")
    parser.add_argument("--resume", action="store_true", help="go on with the run in DIR")
    parser.add_argument(
        "--pause-after", type=seconds, default=math.inf, metavar="S", help="stop where another epoch would end later"
    )
    parser.add_argument("--json", metavar="FILE|-", help=f"write what {METRICS} holds here too; -: to stdout")


def run(args: argparse.Namespace) -> int:
    if args.list or args.show is not None:
        print(_listed() if args.list else _shown(args.show), end="")
        return 0
    for name, value in (("PRESET or CONFIG.toml (see --list)", args.run), ("--data", args.data), ("--out", args.out)):
        if value is None:
            raise UsageError(f"train needs {name}")
    check_writable("--json", args.json)
    out = Path(args.out)
    if int(os.environ.get("RANK", 0)) == 0:  # the other processes may find what the first has written by then
        _check_folder(out, args.resume)

    from absdom.datasets import read_npz
    from absdom.train.data import TrainingData, read_training
    from absdom.train.parallel import own_device
    from absdom.train.zoo import input_shape

    training = _training(args)
    device = own_device(args.device)
    data = read_training(args.data, training.batch, device=device)
    shape = training.shape or input_shape(tuple(data.x.shape[1:]))
    classes = training.classes or _classes(args, data)
    data = read_training(
        args.data, training.batch, shape=shape, outputs=classes, augment=training.augmentation, device=device
    )
    if args.limit is not None:
        data = TrainingData(data.x[: args.limit], data.y[: args.limit], data.batch, augment=data.augment)
    _check_range(args, data, training)
    _, present = read_npz(args.data, ())
    tested = next((name for name in ("x_test", "x") if name in present), None)
    if tested is not None:
        _check_test_items(args.data, shape, classes, training)
    training.try_out(data, shape, classes)

    trainer = training.trainer(training.network(shape, classes).to(device), data, out)
    trainer.run(resume=args.resume, seconds=args.pause_after)
    if not trainer.processes.first:
        return 0
    if not trainer.finished:
        print(f"paused after epoch {trainer.epoch} of {trainer.epochs}: go on with --resume")
        return 0
    return _finish(args, training, trainer, shape, tested)


def _listed() -> str:
    from absdom.train.presets import PRESETS

    width = max(map(len, PRESETS))
    return "".join(f"{name:<{width}}  {line}\n" for name, (line, _) in PRESETS.items())


def _shown(name: str) -> str:
    from absdom.train.presets import preset
    from absdom.train.tables import write_toml

    return write_toml(preset(name))


def _check_folder(out: Path, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: this is a file, not a folder")
    above = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not os.access(above, os.W_OK):
        raise UsageError(f"--out {out}: the folder {above} is not writable")
    there = [name for name in (CHECKPOINT, MODEL, METRICS, CONFIG, LOG) if (out / name).exists()]
    if there and not resume:
        raise UsageError(f"--out {out}: holds a run already ({', '.join(there)}): go on with --resume, or name another")


def _training(args: argparse.Namespace):
    """The run that the arguments describe."""
    from absdom.train.config import Training, with_epochs, with_radius
    from absdom.train.presets import PRESETS, no_preset, preset
    from absdom.train.tables import read_toml

    if args.run in PRESETS:
        config = preset(args.run)
    elif args.run.endswith(".toml") or Path(args.run).exists():
        config = read_toml(args.run)
    else:
        raise UsageError(f"{no_preset(args.run)}; a file's name ends in .toml")
    Training.of(config, args.run)  # before anything is changed in it
    if args.epochs is not None:
        config = with_epochs(config, args.epochs)
    if args.eps is not None:
        config = with_radius(config, args.eps)
    if args.seed is not None:
        config["seed"] = args.seed
    return Training.of(config, args.run)


def _classes(args: argparse.Namespace, data) -> int:
    """As many as the labels say; a label that is a slip would ask for a network of any size."""
    classes = max(2, int(data.y.max()) + 1)
    if classes > max(MOST_CLASSES, len(data)):
        raise UsageError(
            f"{args.data}: {len(data)} items have labels up to {classes - 1}: if so many classes are meant, say so in "
            f"the TOML file: classes = {classes} under [network]"
        )
    return classes


def _check_range(args: argparse.Namespace, data, training) -> None:
    """Raises UsageError where points lie outside the range that their sets are cut down to."""
    (least, most), clip = data.range(), training.specification.clip
    if clip is not None and (least < clip[0] or most > clip[1]):
        raise UsageError(
            f"{args.data}: values from {least:g} to {most:g}, outside the range {clip[0]:g} to {clip[1]:g} of the "
            f"inputs that {args.run} has: give data in that range (uint8 pixels are divided by 255), or in a TOML file "
            f"theirs, clip = [{least:g}, {most:g}] under [specification] (false: none), with radii in the same units"
        )


def _check_test_items(path: str, shape: tuple[int, ...], classes: int, training) -> None:
    """Raises PropertyError where the network could not be judged by the file's test items."""
    from absdom.datasets import Ball, read_dataset
    from absdom.types import TensorType

    spec = training.specification
    ball = Ball(training.judgement.eps, spec.norm, spec.clip)
    read_dataset(path, [TensorType((1, *shape))], [TensorType((1, classes))], ball)


def _finish(args: argparse.Namespace, training, trainer, shape: tuple[int, ...], tested: str | None) -> int:
    """Write the model, certify it, write the other files, and say what was found."""
    import torch

    from absdom.api import versions
    from absdom.pipeline import guarantee, sha256
    from absdom.train.export import export_onnx
    from absdom.train.tables import write_toml

    out, judgement, records = Path(args.out), training.judgement, trainer.records
    device = trainer.data.x.device.type
    export_onnx(trainer.module.cpu(), torch.zeros(1, *shape), out / MODEL)
    write_atomic(out / CONFIG, write_toml(training.config))
    command = shlex.join(["absdom", "certify", str(out / MODEL), args.data, *_question(training)])
    report = {
        "run": args.run, "config": training.config, "epochs": len(records), "last_epoch": records[-1],
        "training_seconds": sum(record["seconds"] for record in records),
    }  # fmt: skip
    if tested is not None:
        found = _certify(args, training, str(out / MODEL))
        report |= {
            **found.to_json(), "items": tested, "eps": judgement.eps, "method": judgement.method,
            "guarantee": guarantee(found.doubt),
        }  # fmt: skip
    report |= {
        "certify": command, "device": device, "data": args.data, "data_sha256": sha256(args.data),
        "model_sha256": sha256(out / MODEL), "versions": versions(),
    }  # fmt: skip
    write_atomic(out / METRICS, to_json(report))
    if args.json and args.json != "-":
        write_atomic(args.json, to_json(report))
    if args.json == "-":
        print(to_json(report), end="")
        return 0
    print(f"{len(records)} epochs, {report['training_seconds']:.1f} s: {out / MODEL}")
    if tested is None:
        print(f"{args.data} holds no test items ('x_test', 'y_test'): the network is not judged")
    else:
        print(found.text() + ("" if tested == "x_test" else "\n(the items that it was trained on: no 'x_test' there)"))
    print(f"certify it completely:\n  {command}")
    return 0


def _question(training) -> list[str]:
    """The options of `absdom certify` that ask what the network was trained for."""
    spec, judgement = training.specification, training.judgement
    norm = "inf" if spec.norm == math.inf else f"{spec.norm:g}"
    clip = [] if spec.clip == (0.0, 1.0) else ["--clip", *(["none"] if spec.clip is None else map(str, spec.clip))]
    return [
        "--eps", repr(judgement.eps), "--norm", norm, *clip, "--method", "bab", "--timeout-per-image",
        f"{judgement.timeout:g}",
    ]  # fmt: skip


def _certify(args: argparse.Namespace, training, model: str):
    """Clean, attacked and certified errors of the file, on the data's test items."""
    from absdom.certification import prepare

    spec, judgement = training.specification, training.judgement
    limits = [n for n in (args.limit, judgement.limit) if n is not None]
    work = prepare(
        model, args.data, method=judgement.method, eps=judgement.eps, norm=spec.norm, clip=spec.clip,
        limit=min(limits, default=None), device=args.device, seed=training.seed,
        progress=lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    with progress_bar(work.left(())) as advance:
        return work.run(record=lambda items: [advance(f"item {i.number}: {i.outcomes[-1]}") for i in items])
