"""`absdom train`: from data to a certified ONNX file, resumed runs, and what is refused before anything is written."""

from __future__ import annotations

import json
import shlex
import shutil
import tomllib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from absdom.cli.main import main
from absdom.errors import UsageError
from absdom.train.parallel import own_device
from absdom.train.presets import PRESETS
from absdom.train.tables import merged, write_toml
from absdom.train.trainer import Trainer

RUN = {
    "epochs": 6, "batch": 32,
    "network": {"name": "mlp", "hidden": [12], "mean": 0.5},
    "loss": {"name": "mtl-ibp", "eps": 0.06, "alpha": 0.5, "attack": {"name": "pgd", "steps": 1}},
    "optimiser": {"name": "adam", "lr": 0.05},
    "schedules": [{"of": "eps", "start": 1, "length": 2}],
    "evaluation": {"eps": 0.05, "method": "crown", "timeout": 20},
}  # fmt: skip


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> SimpleNamespace:
    """Small images of three classes (a bright row each) in an .npz file, and a TOML file of a run."""
    folder = tmp_path_factory.mktemp("train")
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 200)
    x = random.integers(0, 80, (200, 3, 4)).astype(np.uint8)
    x[np.arange(200), y] += 150
    np.savez(folder / "data.npz", x_train=x[:160], y_train=y[:160], x_test=x[160:], y_test=y[160:])
    (folder / "run.toml").write_text(write_toml(RUN))
    return SimpleNamespace(folder=folder, data=str(folder / "data.npz"), run=str(folder / "run.toml"), x=x, y=y)


def train(task, out, *options: str, run: str | None = None, data: str | None = None) -> int:
    return main(["train", run or task.run, "--data", data or task.data, "--out", str(out), "--device", "cpu", *options])


def test_from_data_to_a_certified_file(task, tmp_path, capfd):
    out = tmp_path / "deep" / "out"
    assert train(task, out) == 0
    said, err = capfd.readouterr()
    assert err == "" and "certified error" in said
    assert {p.name for p in out.iterdir()} == {
        "model.onnx", "metrics.json", "config.toml", "log.jsonl", "checkpoint.pt"
    }  # fmt: skip
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["n"] == 40 and metrics["clean_error"] <= metrics["attacked_error"] <= metrics["certified_error"]
    assert metrics["clean_error"] == 0 and metrics["certified_error"] < 0.2 and metrics["guarantee"] == "REAL"
    assert len(metrics["model_sha256"]) == 64 and metrics["versions"]["torch"] and metrics["training_seconds"] > 0
    assert tomllib.loads((out / "config.toml").read_text()) == RUN == metrics["config"]
    assert len((out / "log.jsonl").read_text().splitlines()) == 6

    command = said.splitlines()[-1].strip()
    assert command == metrics["certify"] and "--norm inf --method bab --timeout-per-image 20" in command
    assert main(shlex.split(command)[1:] + ["--json", "-", "--limit", "10", "--device", "cpu"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["clean_error"] == 0 and report["models_sha256"] == [metrics["model_sha256"]]


def test_a_run_in_pieces_is_the_same_run(task, tmp_path, capfd, monkeypatch):
    """The clock is replaced: a piece ends after so many epochs."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(task, whole) == 0
    for end, options in ((2, ()), (3, ["--resume"]), (99, ["--resume"])):
        monkeypatch.setattr(Trainer, "_fits", lambda self, needed, seconds, end=end: self.epoch < end)
        assert train(task, parts, "--pause-after", "10m", *options) == 0
        said = capfd.readouterr().out
        assert (f"paused after epoch {end} of 6: go on with --resume" in said) == (end < 6)
        assert (parts / "model.onnx").exists() == (end > 6)
    first, second = ((folder / "model.onnx").read_bytes() for folder in (whole, parts))
    assert first == second
    states = [torch.load(f / "checkpoint.pt", weights_only=True)["model"] for f in (whole, parts)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_options_change_the_run(task, tmp_path, capfd):
    out = tmp_path / "out"
    options = ("--epochs", "2", "--eps", "0.02", "--seed", "5", "--limit", "20", "--json", "-")
    assert train(task, out, *options) == 0
    metrics = json.loads(capfd.readouterr().out)
    config = metrics["config"]
    assert metrics["n"] == 20 and metrics["epochs"] == 2 and metrics["eps"] == 0.02 and config["seed"] == 5
    assert config["schedules"][0] == {"of": "eps", "start": pytest.approx(1 / 3), "length": pytest.approx(2 / 3)}
    assert config["loss"]["eps"] == pytest.approx(0.024)


def test_data_without_test_items(task, tmp_path, capfd):
    for names, words in (
        (("x_train", "y_train"), "holds no test items ('x_test', 'y_test'): the network is not judged"),
        (("x", "y"), "the items that it was trained on"),
    ):
        data = tmp_path / f"{names[0]}.npz"
        np.savez(data, **dict(zip(names, (task.x[:50], task.y[:50]), strict=True)))
        assert train(task, tmp_path / names[0], "--epochs", "1", data=str(data)) == 0
        assert words in capfd.readouterr().out
    assert "clean_error" not in json.loads((tmp_path / "x_train" / "metrics.json").read_text())


def test_list_and_show(capfd):
    assert main(["train", "--list"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS) and all(len(line) < 100 for line in lines)
    assert main(["train", "--show", "fast-ibp/mnist-0.3"]) == 0
    assert tomllib.loads(capfd.readouterr().out) == PRESETS["fast-ibp/mnist-0.3"][1]


def refused(task, out, capfd, *words: str, **more) -> None:
    options = more.pop("options", ())
    there = sorted(p.name for p in out.iterdir()) if out.is_dir() else None
    assert train(task, out, *options, **more) == 2
    said, err = capfd.readouterr()
    assert said == "" and len(err.splitlines()) == 1 and err.startswith("absdom: error: ") and "--debug" not in err, err
    for word in words:
        assert word in err, err
    assert (sorted(p.name for p in out.iterdir()) if out.is_dir() else None) == there


def test_another_run_in_the_folder(task, tmp_path, capfd):
    out = tmp_path / "out"
    assert train(task, out, "--epochs", "1") == 0
    capfd.readouterr()
    refused(task, out, capfd, "holds a run already", "--resume")
    refused(task, out, capfd, "checkpoint of another run", "epochs: 1 in the checkpoint, 6 here", options=["--resume"])
    assert train(task, out, "--epochs", "1", "--resume") == 0


def test_bad_runs_are_refused_in_one_line(task, tmp_path, capfd):
    out = tmp_path / "out"
    refused(task, out, capfd, "no preset 'small/mnist-0.2'", "did you mean 'small/mnist-0", run="small/mnist-0.2")
    refused(task, out, capfd, "none.toml: cannot be read", run=str(tmp_path / "none.toml"))
    wrong = tmp_path / "wrong.toml"
    for change, words in (
        ({"loss": {"name": "ipb"}}, "loss.name: there is no name 'ipb': did you mean 'ibp'?"),
        ({"loss": {"name": "taps", "layer": "relu7", "alpha": None}}, "relu7"),
        ({"network": {"name": "gowal_small", "hidden": None}}, "too small"),
        ({"network": {"classes": 2}}, "labels are whole numbers from 0 to 1"),
        ({"network": {"shape": [5, 5]}}, "the network takes [5, 5]"),
        ({"held_out": 160}, "cannot be held out"),
    ):
        wrong.write_text(write_toml(merged(RUN, change)))
        refused(task, out, capfd, words, run=str(wrong))
    wrong.write_text("epochs == 3")
    refused(task, out, capfd, "no TOML", run=str(wrong))


def test_bad_data_and_folders_are_refused_in_one_line(task, tmp_path, capfd):
    out, data = tmp_path / "out", str(tmp_path / "data.npz")
    refused(task, out, capfd, "none.npz: cannot be read", data=str(tmp_path / "none.npz"))
    x, y = task.x[:20], task.y[:20]
    for arrays, words in (
        ({"x_test": x, "y_test": y}, "neither 'x_train' nor 'x'"),
        ({"x_train": x, "y_train": y - 1}, "holds the label -1"),
        ({"x_train": x, "y_train": y[:5]}, "one whole number for each of 20 items"),
        ({"x_train": x.astype(np.int64), "y_train": y}, "is of type int64"),
        ({"x_train": x, "y_train": y, "x_test": x, "y_test": y + 3}, "holds the label 5"),
        ({"x_train": x, "y_train": y, "x_test": x[:, :2], "y_test": y}, "the network takes"),
        ({"x_train": x, "y_train": y + 10**9}, "20 items have labels up to 100000000"),
        ({"x_train": x / 2.0, "y_train": y}, "outside the range 0 to 1 of the inputs"),
        ({"x_train": x, "y_train": y, "x_test": x / 2.0, "y_test": y}, "outside the range"),
    ):
        np.savez(data, **arrays)
        refused(task, out, capfd, words, data=data)
    (tmp_path / "file").write_text("")
    refused(task, tmp_path / "file", capfd, "this is a file, not a folder")
    assert main(["train"]) == 2 and "train needs PRESET" in capfd.readouterr().err
    assert main(["train", "small/mnist-0.1", "--data", "d.npz"]) == 2 and "--out" in capfd.readouterr().err
    assert main(["train", "--show", "smal"]) == 2 and "there is no preset 'smal'" in capfd.readouterr().err


def test_a_warning_is_one_line(task, tmp_path, capfd):
    assert train(task, tmp_path / "out", "--epochs", "1", "--eps", "8", "--limit", "30") == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("absdom: warning: eps 9.6 for data in [0, ") and "9.6 of 255 is 0.03765" in line


def test_other_processes_leave_the_folder_to_the_first(task, tmp_path, capfd, monkeypatch):
    (tmp_path / "log.jsonl").write_text("")  # by the first process, which was quicker
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "1")
        assert train(task, tmp_path, "--epochs", "1") == 0
    capfd.readouterr()
    refused(task, tmp_path, capfd, "holds a run already")


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device("auto") == own_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_device("auto") == "cuda:1" and own_device("cpu") == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="no GPU of its own, there are 2"):
        own_device("cuda")


def test_a_loss_that_is_no_number_stops_the_run(task, tmp_path, capfd):
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(write_toml(merged(RUN, {"optimiser": {"name": "sgd", "lr": 1e30}, "clip_norm": 0.0})))
    out = tmp_path / "out"
    assert train(task, out, run=str(wrong)) == 2
    said, err = capfd.readouterr()
    assert said == "" and "training stops" in err and len(err.splitlines()) == 1
    assert not (out / "model.onnx").exists() and not (out / "metrics.json").exists()
    shutil.rmtree(out)
