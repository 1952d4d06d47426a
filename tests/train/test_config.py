"""Runs as plain data: every preset builds, what is unknown is refused where it stands, times and radii scale."""

from __future__ import annotations

import tomllib
from math import inf

import pytest
import torch

from absdom.errors import UsageError
from absdom.train import config as configs
from absdom.train.colt import COLTStages
from absdom.train.config import Training, with_epochs, with_radius
from absdom.train.data import TrainingData
from absdom.train.diffai import Between, Clean, LinMix
from absdom.train.presets import PRESETS, preset
from absdom.train.schedules import Follow, Piecewise, Ramp
from absdom.train.tables import Place, Table, fits, merged, parameters, spoken, write_toml

RUN = {
    "epochs": 10, "batch": 20, "seed": 3,
    "network": {"name": "mlp", "hidden": [8]},
    "loss": {"name": "mtl-ibp", "eps": 0.2, "alpha": 0.3, "attack": {"name": "pgd", "steps": 2}},
    "regularisers": [{"name": "fast"}, {"name": "l1", "strength": 1e-3}],
    "optimiser": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    "schedules": [
        {"of": "eps", "start": 1, "length": 4},
        {"kind": "follow", "of": "kappa", "from": 1.0, "to": 0.5},
        {"kind": "piecewise", "of": "lr", "at": [5, 8], "factor": 0.1},
        {"kind": "linear", "of": "l1.strength", "from": 1e-3, "to": 0, "length": 2},
        {"kind": "cyclic", "of": "alpha", "peak": 4, "length": 10},
    ],
    "hooks": [{"name": "weight-averaging", "epochs": 2}, {"name": "collapse-guard", "against": {"name": "fgsm"}}],
    "evaluation": {"eps": 0.1},
}  # fmt: skip


def some_data(shape=(6,), count: int = 100, classes: int = 3, batch: int = 20) -> TrainingData:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, *shape, generator=generator)
    return TrainingData(x, torch.randint(0, classes, (count,), generator=generator), batch)


def test_a_run_is_built_as_described():
    training, data = Training.of(RUN), some_data()
    network = training.network((6,), 3)
    trainer = training.trainer(network, data)
    loss = trainer.loss
    assert type(loss).__name__ == "MTLIBP" and loss.alpha == 0.0 and loss.attack.steps == 2  # the cycle starts at 0
    fast, l1 = loss.regularisers
    assert fast.eps_max == 0.2 and l1.strength == 1e-3
    ramp, follow, falls, linear, cycle = trainer.schedules
    assert isinstance(ramp, Ramp) and (ramp.start, ramp.length, ramp.end_value) == (5, 20, 0.2) and loss.eps == 0.0
    assert isinstance(follow, Follow) and loss.kappa == 1.0 and linear.length == 10 and cycle.peak == 20
    assert isinstance(falls, Piecewise) and falls.factors == {25: 0.1, 40: 0.1}
    (group,) = trainer.optimiser.param_groups
    assert group["momentum"] == 0.9 and group["lr"] == 0.1 and trainer.epochs == 10 and trainer.seed == 3
    assert [type(h).__name__ for h in trainer.hooks] == ["WeightAveraging", "CollapseGuard"]
    assert trainer.evaluation.eps == 0.1 and training.specification.clip == (0.0, 1.0)
    assert trainer.config["network"] == {"name": "mlp", "hidden": [8]}


def test_the_seed_decides_the_weights_and_nothing_global_moves():
    state = torch.get_rng_state()
    first, second = (Training.of(RUN).network((6,), 3) for _ in range(2))
    other = Training.of({**RUN, "seed": 4}).network((6,), 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.fc1.weight, second.fc1.weight) and not torch.equal(first.fc1.weight, other.fc1.weight)
    fast = Training.of({**RUN, "init": "fast"}).network((6,), 3)
    assert not torch.equal(fast.fc1.weight, first.fc1.weight) and torch.equal(fast.fc2.weight, first.fc2.weight)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_run(name):
    table = preset(name)
    assert tomllib.loads(write_toml(table)) == table
    training = Training.of(table, name)
    method, _, data = name.partition("/")
    kind, _, radius = data.partition("-")
    assert training.judgement.eps == pytest.approx(float(radius) / (255 if float(radius) >= 1 else 1))
    assert training.eps >= training.judgement.eps * 0.999 and training.epochs >= 20
    times = [s.get("start", 0) + s.get("length", 0) for s in table["schedules"]]
    times += [t for s in table["schedules"] for t in s.get("at", ())]
    assert max(times) < training.epochs
    wide = (
        {"network": {"width": 4}} if training.net.options.get("bn", True) and "cnn7" in str(training.net.make) else {}
    )
    small = Training.of(merged(table, wide), name)
    shape = {"mnist": (1, 28, 28), "digits": (64,)}.get(kind, (3, 32, 32))
    if method in ("small", "cap"):
        trainer = small.trainer(small.network(shape, 10), some_data(shape, 4, 10, 2))
        assert trainer.loss.eps < small.eps and trainer.schedules


@pytest.mark.parametrize("method", sorted({name.split("/")[0] for name in PRESETS} - {"lee", "ibp"}))
def test_every_method_takes_a_step(method):
    """The recipe of each method, with a network of one channel of width."""
    name = next(n for n in PRESETS if n.startswith(f"{method}/"))
    table, shape = preset(name), (1 if "mnist" in name else 3, 8, 8)
    wide = {"network": {"width": 1}} if table["network"]["name"] == "cnn7" else {}
    training = Training.of(merged(table, wide, {"batch": 4}), name)
    data = some_data(shape, 8, 3, 4)
    network = training.network(shape, 3)
    loss = training.make_loss(network)
    out = loss(data.x[:4], data.y[:4])
    out.total.backward()
    assert torch.isfinite(out.total) and all(p.grad is not None for p in network.parameters())


def test_the_stages_of_colt_are_a_schedule():
    colt = {"kind": "colt", "length": 2, "mix": 1, "halve": 0.5, "widen": 1.2, "stability": 0.1}
    run = merged(RUN, {"regularisers": [], "schedules": [colt], "loss": None, "epochs": 8}) | {
        "loss": {"name": "colt", "eps": 0.1, "layers": ["relu1"], "recipe": "ibp", "attack": {"name": "pgd", "steps": 1}}
    }  # fmt: skip
    trainer = Training.of(run).trainer(Training.of(run).network((6,), 3), some_data())
    (stages,) = trainer.schedules
    assert isinstance(stages, COLTStages) and stages.optimiser is trainer.optimiser
    assert (stages.length, stages.mix, stages.halve, stages.stages) == (10, 5, 2, 2)
    assert trainer.loss.eps == pytest.approx(1.05 * 1.2 * 0.1) and trainer.loss.stability == 0.1
    half = with_epochs(run, 4)["schedules"][0]
    assert (half["length"], half["mix"], half["halve"]) == (1, 0.5, 0.25)
    refuse({**run, "loss": RUN["loss"]}, r"schedules\[0\].of: there is no number 'stage'", build=True)
    refuse({**run, "schedules": [{**colt, "mix": 3}]}, r"schedules\[0\]: stages of 10 batches", build=True)
    refuse({**run, "schedules": [{**colt, "of": "eps"}]}, "there is no option 'of'")


def test_goals_of_diffai_are_tables():
    goal = {"name": "lin-mix", "weight": 0.3, "first": {"name": "clean"},
            "second": {"name": "between", "attack": {"name": "pgd", "steps": 2}, "recipe": "ibp"}}  # fmt: skip
    run = merged(RUN, {"regularisers": [], "schedules": [], "loss": None})
    training = Training.of({**run, "loss": {"name": "diffai", "eps": 0.1, "goal": goal}})
    found = training.make_loss(training.network((6,), 3)).goal
    assert isinstance(found, LinMix) and found.weight == 0.3 and isinstance(found.first, Clean)
    assert isinstance(found.second, Between) and found.second.attack.steps == 2 and found.second.recipe == "ibp"
    for wrong, text in (
        (
            {**goal, "second": {"name": "cleen"}},
            "loss.goal.second.name: there is no name 'cleen': did you mean 'clean'",
        ),
        ({**goal, "weight": 3}, "loss.goal: weight 3"),
        ("clean", "loss.goal: is 'clean', and has to be a table"),
    ):
        refuse({**run, "loss": {"name": "diffai", "eps": 0.1, "goal": wrong}}, text)


def refuse(run: dict, text: str, build: bool = False) -> None:
    with pytest.raises(UsageError, match=text):
        training = Training.of(run)
        if build:
            training.trainer(training.network((6,), 3), some_data())


def test_presets_shrink_where_it_was_published():
    shrunk = {name for name in PRESETS if preset(name)["loss"].get("shrink", 1) != 1}
    assert shrunk == {"sabr/cifar10-2", "taps/cifar10-2", "staps/cifar10-2"}


def changed(path: str, value) -> dict:
    """RUN with one entry changed, removed (None) or added."""
    found = merged(RUN)
    *where, last = path.split(".")
    table = found
    for key in where:
        table[key] = [*table[key]] if isinstance(table[key], list) else dict(table[key])
        table = table[key]
        if isinstance(table, list):
            table[0] = dict(table[0])
            table = table[0]
    if value is None:
        del table[last]
    else:
        table[last] = value
    return found


@pytest.mark.parametrize(
    "path, value, words",
    [
        ("epoch", 3, "run: epoch: there is no option 'epoch': did you mean 'epochs'?"),
        ("epochs", None, "run: lacks 'epochs'"),
        ("epochs", 0, "run: epochs: is 0, and has to be 1 or more"),
        ("epochs", 2.5, "run: epochs: is 2.5, and has to be a whole number"),
        ("init", "fats", "run: init: there is no initialisation 'fats': did you mean 'fast'?"),
        ("loss", None, "run: lacks the table [loss]"),
        ("loss", 3, "run: loss: is 3, and has to be a table"),
        ("loss.name", "mlt-ibp", "run: loss.name: there is no name 'mlt-ibp': did you mean 'mtl-ibp'?"),
        ("loss.eps", -0.1, "run: loss.eps: is -0.1, and has to be 0 or above"),
        ("loss.eps", "big", "run: loss.eps: is 'big', and has to be a finite number"),
        ("loss.alpha", None, "run: loss: lacks 'alpha'"),
        ("loss.alhpa", 0.1, "run: loss.alhpa: there is no option 'alhpa': did you mean 'alpha'?"),
        ("loss.recipe", "crwon", "run: loss.recipe: "),
        ("loss.attack", "pgd", "run: loss.attack: is 'pgd', and has to be a table"),
        ("loss.attack.steps", "ten", "run: loss.attack.steps: is 'ten', and has to be a whole number"),
        ("loss.attack.start", "corner", "run: loss.attack: an attack that starts at 'corner'"),
        ("network.name", "cnn8", "run: network.name: there is no name 'cnn8': did you mean 'cnn7'?"),
        ("network.hidden", 5, "run: network.hidden: is 5, and has to be a list, each a whole number"),
        ("regularisers.name", "l3", "run: regularisers[0].name: there is no name 'l3': did you mean 'l1'?"),
        ("optimiser.lr", 0, "run: optimiser.lr: is 0, and has to be above 0"),
        ("optimiser.momentun", 0.9, "did you mean 'momentum'?"),
        ("schedules.kind", "rampe", "run: schedules[0].kind: there is no kind 'rampe': did you mean 'ramp'?"),
        ("schedules.length", None, "run: schedules[0]: lacks 'length'"),
        ("hooks.name", "averaging", "run: hooks[0].name: there is no name 'averaging'"),
        ("evaluation.eps", None, "run: evaluation: lacks 'eps'"),
        ("evaluation.method", "crwon", "run: evaluation.method: "),
        ("specification", {"norm": "3"}, "run: specification.norm: there is no norm '3'"),
        ("specification", {"clip": True}, "give the range of the inputs"),
        ("specification", {"clip": [1, 0]}, "run: specification: "),
        ("batch_norm", {"source": "old"}, "run: batch_norm: batch norm statistics of 'old'"),
        ("augmentation", {"name": "flip"}, "run: augmentation.name: there is no name 'flip'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(path, value, words):
    with pytest.raises(UsageError) as error:
        Training.of(changed(path, value), "run")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_what_only_data_can_tell():
    for path, value, words in (
        (
            "schedules",
            [{"of": "kapa", "to": 1, "length": 2}],
            "run: schedules[0].of: there is no number 'kapa': did you mean 'kappa'?",
        ),
        ("held_out", 100, "run: held_out: 100 of 100 items cannot be held out"),
    ):
        with pytest.raises(UsageError) as error:
            Training.of(changed(path, value), "run").try_out(some_data(), (6,), 3)
        assert words in str(error.value)
    cut = merged(RUN, {"loss": {"name": "taps", "alpha": None, "layer": "relu9"}, "schedules": None})
    with pytest.raises(UsageError, match="run: loss: .*relu9"):
        Training.of(cut, "run").try_out(some_data(), (6,), 3)
    late = changed("schedules", [RUN["schedules"][1]])
    with pytest.raises(UsageError, match="give the ramp of eps in front of it"):
        Training.of(late, "run").try_out(some_data(), (6,), 3)
    with pytest.raises(UsageError, match="run: network: .*takes images"):
        Training.of(changed("network", {"name": "cnn3"}), "run").network((6,), 3)


def test_times_and_radii_scale():
    run = with_radius(with_epochs(RUN, 5), 0.05)
    assert run["epochs"] == 5 and run["schedules"][0] == {"of": "eps", "start": 0.5, "length": 2.0}
    assert run["schedules"][2]["at"] == [2.5, 4.0] and run["schedules"][4]["peak"] == 2.0
    assert run["evaluation"]["eps"] == 0.05 and run["loss"]["eps"] == 0.1 and RUN["epochs"] == 10
    explicit = changed("schedules", [{"of": "eps", "from": 0.02, "to": 0.2, "length": 3}])
    assert with_radius(explicit, 0.05)["schedules"][0]["from"] == pytest.approx(0.01)
    with pytest.raises(UsageError, match="judged at eps 0"):
        with_radius(changed("evaluation.eps", 0.0), 0.1)
    short = Training.of(with_epochs(changed("schedules", [RUN["schedules"][2]]), 1))
    collided = short.trainer(short.network((6,), 3), some_data(batch=100))  # both falls at the same batch
    assert collided.schedules[0].factor_at(5) == pytest.approx(0.01)


def test_toml_is_read_back_and_its_errors_name_the_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(write_toml(RUN))
    assert tomllib.loads(path.read_text()) == RUN
    assert Training.read(path, {"epochs": 7}).epochs == 7
    path.write_text("epochs = \n")
    for wrong, words in ((path, "no TOML"), (tmp_path / "none.toml", "cannot be read")):
        with pytest.raises(UsageError, match=words) as error:
            Training.read(wrong)
        assert str(wrong) in str(error.value)
    odd = {"a b": 1, "text": 'say "so"\n', "big": 1e300, "inner": {"x": {"y": [True, [1, 2]]}}, "rows": [{"k": -0.5}]}
    assert tomllib.loads(write_toml(odd)) == odd


def test_types_in_words():
    assert fits(1, float) and not fits(True, float) and not fits(inf, float) and not fits(1.0, int)
    assert fits([1, 2], tuple[int, ...]) and not fits([1, "a"], tuple[int, ...]) and fits([0, 1], tuple[float, float])
    assert not fits([0], tuple[float, float]) and fits(3, int | None) and not fits("x", torch.Tensor | None)
    assert spoken(tuple[float, float] | None) == "a list of a finite number and a finite number"
    assert spoken(int | str | None) == "a whole number or a text"
    with pytest.raises(UsageError, match="a.b: is 1, and has to be a table"):
        Table({"b": 1}, Place("file", "a")).table("b")


def test_options_are_those_of_the_classes():
    """An option that a class gives to its base itself is none of its own."""
    assert "recipe" not in parameters(configs.LOSSES["ibp"]) and "recipe" in parameters(configs.LOSSES["certified"])
    assert parameters(configs.LOSSES["staps"])["layer"] == (str, True)
    assert parameters(configs.LOSSES["crown-ibp"])["fused"] == (bool, False)
