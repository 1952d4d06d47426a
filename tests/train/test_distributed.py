"""Two processes under torchrun train what one process trains on the joint batches."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import torch

PROGRAM = """
    import os, sys
    import torch
    from torch import nn
    from absdom.train.attacks import PGD
    from absdom.train.bounds import IBP
    from absdom.train.data import CropFlip, TrainingData
    from absdom.train.hooks import Hook
    from absdom.train.schedules import Ramp
    from absdom.train.shares import Evaluation
    from absdom.train.task import Classification
    from absdom.train.trainer import Trainer

    class Halves(Hook):
        # one of the processes alone finds a reason to stop, and only in a longer run
        def epoch_end(self, trainer, record):
            if record["epoch"] == 3 and int(os.environ.get("RANK", 0)) == 1:
                trainer.stop("enough")

    def train(out, epochs, accumulate=1, resume=False, norm=False):
        torch.manual_seed(int(os.environ.get("RANK", 0)))  # the first process's weights count
        conv = [nn.Conv2d(1, 3, 3, 2, 1), *([nn.BatchNorm2d(3)] if norm else []), nn.ReLU(), nn.Flatten()]
        net = nn.Sequential(*conv, nn.Linear(27, 6), nn.ReLU(), nn.Linear(6, 3), nn.Linear(3, 3)).double()
        net[-1].requires_grad_(False)
        generator = torch.Generator().manual_seed(5)
        x, y = torch.rand(31, 1, 6, 6, generator=generator, dtype=torch.float64), torch.arange(31) % 3
        data, held = TrainingData(x, y, 9, augment=CropFlip(1)).held_out(7)
        loss = IBP(net, Classification(), eps=0.0, kappa=0.5)
        ramp = Ramp(loss, "eps", 0.0, 0.05, 1, 4)
        adam = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 1e-2)
        trainer = Trainer(
            loss, adam, data, epochs=epochs, schedules=[ramp], hooks=[Halves()], accumulate=accumulate, clip_norm=0.5,
            validation=held, evaluation=Evaluation(attack=PGD(2, start="point")), out=out,
        )
        trainer.run(resume=resume)
        return trainer
"""
BOTH = """
    folder = sys.argv[1]
    train(folder + "/two", 1)
    again = train(folder + "/two", 2, resume=True)
    pieces = train(None, 2, accumulate=2)
    stopped = train(None, 9)
    rank = torch.distributed.get_rank()
    weights = [t.module.state_dict() for t in (again, pieces, train(None, 2, norm=True))]
    torch.save([*weights, stopped.epoch, stopped.stopped], f"{folder}/rank{rank}.pt")
"""


def test_two_processes_train_what_one_trains(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM) + textwrap.dedent(BOTH), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, str(program), str(tmp_path)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    here: dict = {}
    exec(textwrap.dedent(PROGRAM), here)
    alone = here["train"](tmp_path / "one", 2)
    both = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for again, pieces, norm, epochs, reason in both:
        # Batch norms see the share of a process alone; but all processes end with the same network.
        assert all(torch.equal(norm[name], both[0][2][name]) for name in norm) and norm["1.running_mean"].any()
        for name, p in alone.module.state_dict().items():
            assert torch.allclose(again[name], p, rtol=0, atol=1e-12), name
            assert torch.allclose(pieces[name], p, rtol=0, atol=1e-12), name
        assert (epochs, reason) == (3, "enough")
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert len(logs[0]) == len(logs[1]) == 2
    for line, other in zip(*logs):
        one, two = json.loads(line), json.loads(other)
        for key in ("held_out", "train", "terms", "neurons"):
            assert set(one[key]) == set(two[key])
            if key != "neurons":
                assert all(abs(one[key][name] - two[key][name]) < 1e-9 for name in one[key])
        assert abs(one["gradient_norm"] - two["gradient_norm"]) < 1e-9 and one["lr"] == two["lr"]
