"""`absdom verify MODEL --ball x.npz`: verdicts, witnesses inside the ball, and errors."""

from __future__ import annotations

import json
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from absdom.cli.main import main


@pytest.fixture(scope="module")
def centre(small, tmp_path_factory):
    """The point of the first example as an .npz file, with its label."""
    x = np.round(np.random.default_rng(1).uniform(-1, 1, 6), 3)
    layers = small.maker.make_network(small.model)
    label = int(small.maker.evaluate(layers, x).argmax())
    path = tmp_path_factory.mktemp("ball") / "x.npz"
    np.savez(path, x=x.reshape(1, 2, 3), label=label)
    return SimpleNamespace(path=str(path), x=x, label=label)


def verify(small, *options: str) -> int:
    return main(["verify", small.model, *options, "--timeout", "60", "--device", "cpu"])


def test_a_ball_that_holds(small, centre, capfd):
    assert verify(small, "--ball", centre.path, "--eps", "0.2", "--json", "-") == 0
    first, rest = capfd.readouterr().out.split("\n", 1)
    report = json.loads(rest)
    assert first == "unsat" and report["clauses"] == 2
    assert report["property"] == centre.path and len(report["property_sha256"]) == 64
    assert report["ball"] == {"eps": 0.2, "norm": "inf", "label": centre.label, "clip": None}
    assert verify(small, "--ball", centre.path, "--norm", "1", "--eps", "0.5") == 0
    assert capfd.readouterr().out.startswith("unsat\nproperty holds")


@pytest.mark.parametrize("norm", [1, 2])
def test_witnesses_lie_in_the_ball(small, centre, capfd, tmp_path, norm):
    eps, file = 2.5, tmp_path / "w.txt"
    options = ["--norm", str(norm), "--eps", str(eps), "--json", "-", "--counterexample", str(file)]
    assert verify(small, "--ball", centre.path, *options) == 1
    first, rest = capfd.readouterr().out.split("\n", 1)
    witness = json.loads(rest)["witness"]
    point = np.array(witness["x"], dtype=np.float32)
    size = sum(abs(Fraction(float(a)) - Fraction(float(c))) ** norm for a, c in zip(point, centre.x))
    assert first == "sat" and size <= Fraction(eps) ** norm
    assert int(np.argmax(witness["y"])) != centre.label
    assert file.read_text().startswith("((X_0 ")


def test_clip_and_label(small, tmp_path):
    """A radius fails on all numbers and holds where clip leaves one point; --label goes before the file's label."""
    x, layers = np.full(6, 0.25), small.maker.make_network(small.model)
    label = int(small.maker.evaluate(layers, x).argmax())
    path = tmp_path / "x.npz"
    np.savez(path, x=x, label=(label + 1) % 3)
    options = ["--ball", str(path), "--eps", "4", "--norm", "2"]
    assert verify(small, *options, "--label", str(label)) == 1
    assert verify(small, *options, "--label", str(label), "--clip", "0.25", "0.25") == 0
    assert verify(small, *options, "--clip", "0.25", "0.25") == 1


def refused(capfd, arguments: list[str], *words: str) -> None:
    assert main(["verify", *arguments]) == 2
    out, err = capfd.readouterr()
    (line,) = [line for line in err.splitlines() if line.startswith("absdom: error: ")]
    assert out == "" and "--debug" not in line and len(err.splitlines()) == 1, err
    assert all(word in line for word in words), line


def test_options_that_do_not_go_together(small, centre, capfd):
    model, ball = small.model, ["--ball", centre.path]
    refused(capfd, [model, small.holds, *ball, "--eps", "1"], "takes the place of PROPERTY")
    refused(capfd, [model, small.holds, "--norm", "2"], "--norm goes with --ball")
    refused(capfd, [model, small.holds, "--eps", "0"], "--eps goes with --ball")
    refused(capfd, [model, *ball], "--eps E")
    refused(capfd, [model], "PROPERTY")
    refused(capfd, [model, *ball, "--eps", "-1"], "--eps", "negative")
    refused(capfd, [model, *ball, "--eps", "nan"], "--eps", "finite")
    refused(capfd, [model, *ball, "--eps", "1", "--norm", "3"], "--norm", "inf")
    refused(capfd, [model, *ball, "--eps", "1", "--label", "one"], "--label", "whole number")
    refused(capfd, [model, *ball, "--eps", "1", "--label", "3"], centre.path, "label 3 is not one of 0 ... 2")
    refused(capfd, [model, *ball, "--eps", "1", "--clip", "0", "0.1"], centre.path, "outside clip")
    refused(capfd, [model, *ball, "--eps", "1", "--clip", "0"], "--clip")


def test_files_that_hold_no_ball(small, capfd, tmp_path):
    good = np.zeros(6)

    def trial(words: tuple[str, ...], options: tuple[str, ...] = (), **arrays) -> None:
        path = tmp_path / "a.npz"
        np.savez(path, **arrays)
        refused(capfd, [small.model, "--ball", str(path), "--eps", "1", *options], str(path), *words)

    given = ("--label", "0")
    trial(("no array 'x'", "image"), image=good)
    trial(("no array 'label'", "--label K"), x=good)
    trial(("6", "5 numbers"), given, x=good[:5])
    trial(("x[2] is nan",), given, x=np.array([0, 0, np.nan, 0, 0, 0]))
    trial(("no array of numbers", "complex"), given, x=good.astype(complex))
    trial(("'label' is no whole number",), x=good, label=0.5)
    trial(("'label' is no whole number",), x=good, label=[0, 1])
    trial(("no .npz file",), given, x=np.array([None] * 6))
    options = ["--eps", "1", "--label", "0"]
    refused(capfd, [small.model, "--ball", str(tmp_path / "none.npz"), *options], "none.npz", "No such file")
    text = tmp_path / "text.npz"
    text.write_text("no archive")
    refused(capfd, [small.model, "--ball", str(text), *options], "text.npz", "no .npz file")
    np.save(tmp_path / "x.npy", good)
    refused(capfd, [small.model, "--ball", str(tmp_path / "x.npy"), *options], "x.npy", "no .npz file")
    cut = tmp_path / "cut.npz"
    np.savez_compressed(cut, x=good)
    cut.write_bytes(cut.read_bytes()[:-30])
    refused(capfd, [small.model, "--ball", str(cut), *options], "cut.npz", "no .npz file")
