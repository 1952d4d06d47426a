"""The trainer: resuming, gradients in pieces, what it refuses, what it keeps, and what it logs."""

from __future__ import annotations

import json
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from absdom.errors import AbsdomError, ModelError, PropertyError, UsageError
from absdom.train import checkpoint
from absdom.train.attacks import PGD
from absdom.train.batch_norm import RUNNING
from absdom.train.bounds import IBP, Certified
from absdom.train.data import CropFlip, TrainingData
from absdom.train.hooks import EarlyStopping, Hook, WeightAveraging
from absdom.train.log import Meter
from absdom.train.loss import Loss, Regulariser
from absdom.train.schedules import Follow, Piecewise, Ramp
from absdom.train.shares import Evaluation, evaluate, neuron_counts
from absdom.train.task import Classification
from absdom.train.trainer import Trainer

SPEC = Classification()
PLAIN = Evaluation(attack=None)


def images(count: int = 60, batch: int = 16, **more) -> TrainingData:
    """Images of three classes: a bright row, a bright column, or noise."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(count) % 3
    x = torch.randint(0, 80, (count, 1, 6, 6), generator=generator)
    x[y == 0, :, 2, :] += 150
    x[y == 1, :, :, 3] += 150
    return TrainingData(x.to(torch.uint8), y, batch, **more)


def network(norm: bool = False, seed: int = 0, dtype=torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    conv = [nn.Conv2d(1, 4, 3, 2, 1), *([nn.BatchNorm2d(4)] if norm else []), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*conv, nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)


class AttackedIBP(Loss):
    """Clean, attacked and interval losses: all that draws random numbers or moves statistics."""

    state = ("eps", "kappa")

    def __init__(self, module, **more):
        super().__init__(module, SPEC, eps=0.0, **more)
        self.kappa = 1.0

    def terms(self, step):
        margins = step.margins("ibp")
        _, outputs = step.attacked(PGD(2, 0.5))
        attacked = step.task.loss(step.task.margins(outputs)).mean()
        clean = step.task.loss(step.task.margins(step.outputs)).mean()
        bound = step.task.loss(margins).mean()
        return {"clean": self.kappa * clean, "attacked": attacked, "bound": (1 - self.kappa) * bound}, margins


class Noise(Hook):
    """Draws from all generators, and remembers what it drew."""

    def __init__(self):
        self.drawn = []

    def before_step(self, trainer, x, y, out):
        self.drawn.append([random.random(), float(np.random.rand()), float(torch.rand(()))])

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state):
        self.drawn = state["drawn"]


def full_run(out, epochs: int, **more) -> Trainer:
    """A run with all that has a state."""
    net = network(norm=True)
    data, held = images(augment=CropFlip(1)).held_out(12)
    loss = AttackedIBP(net)
    sgd = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    ramp = Ramp(loss, "eps", 0.0, 0.1, 2, 8)
    schedules = [ramp, Follow(loss, "kappa", 1.0, 0.5, ramp), Piecewise(sgd, "lr", {5: 0.5})]
    hooks = [Noise(), EarlyStopping(patience=9), WeightAveraging(1)]
    return Trainer(
        loss, sgd, data, epochs=epochs, schedules=schedules, hooks=hooks, validation=held,
        evaluation=Evaluation(attack=PGD(2, 0.5)), out=out, seed=3, **more,
    )  # fmt: skip


def timeless(records: list[dict]) -> list[dict]:
    return [{k: v for k, v in r.items() if "second" not in k} for r in records]


def test_a_resumed_run_is_the_run(tmp_path):
    whole = full_run(tmp_path / "whole", 4, config={"method": "x"})
    records = whole.run()
    first = full_run(tmp_path / "parts", 4, config={"method": "x"})
    first.run(seconds=0)
    assert first.epoch == 0 and not first.finished

    class Cut(Exception):
        pass

    def cut(text: str) -> None:
        if text.startswith("epoch 3"):
            raise Cut

    with pytest.raises(Cut):  # an epoch that is cut off is done again
        first.run(progress=cut, resume=True)
    second = full_run(tmp_path / "parts", 4, config={"method": "x"})
    torch.manual_seed(99)
    assert timeless(second.run(resume=True)) == timeless(records)
    assert second.step == whole.step == 12 and second.finished
    for (name, a), (_, b) in zip(whole.module.state_dict().items(), second.module.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert whole.hooks[0].drawn == second.hooks[0].drawn and len(whole.hooks[0].drawn) == 12
    momenta = [t.optimiser.state_dict()["state"] for t in (whole, second)]
    assert all(torch.equal(momenta[0][k]["momentum_buffer"], s["momentum_buffer"]) for k, s in momenta[1].items())
    for folder in ("whole", "parts"):
        lines = [json.loads(line) for line in (tmp_path / folder / "log.jsonl").read_text().splitlines()]
        assert timeless(lines) == timeless(records)
    finished = full_run(tmp_path / "whole", 4, config={"method": "x"})  # once more: nothing is left to do
    finished.run(resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.module.parameters(), finished.module.parameters()))


def test_a_longer_run_goes_on_where_a_shorter_one_ended(tmp_path):
    def made(out, epochs: int):
        net = network()
        return Trainer(
            IBP(net, SPEC, eps=0.05), torch.optim.Adam(net.parameters(), 1e-2), images(), epochs=epochs,
            evaluation=PLAIN, out=out,
        )  # fmt: skip

    whole, longer = made(None, 3), made(tmp_path, 3)
    whole.run()
    made(tmp_path, 1).run()
    longer.run(resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.module.parameters(), longer.module.parameters()))


def test_pieces_of_a_run_make_up_the_run(monkeypatch):
    """Without a folder, each call of `run` goes on from what is in memory."""
    whole, parts = full_run(None, 3), full_run(None, 3)
    whole.run()
    fits = iter([True, False, True, False, True])
    monkeypatch.setattr(parts, "_fits", lambda needed, seconds: next(fits))
    for epochs in (1, 2, 3):
        assert not parts.finished
        assert len(parts.run(seconds=600)) == epochs
    assert parts.finished
    assert all(torch.equal(a, b) for a, b in zip(whole.module.parameters(), parts.module.parameters()))


def test_a_piece_ends_with_a_checkpoint(tmp_path, monkeypatch):
    trainer = made(tmp_path, epochs=9, checkpoint_every=2)
    seen = []
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda path, state: (seen.append(state["epoch"]), save(path, state)))
    monkeypatch.setattr(trainer, "_fits", lambda needed, seconds: trainer.epoch < 5)
    trainer.run(seconds=600)
    assert seen == [2, 4, 5] and len((tmp_path / "log.jsonl").read_text().splitlines()) == 5


def test_figures_are_read_now_and_then():
    """As on a GPU: what was not finite is told of the batch where it was, when it is read."""
    net = network()
    loss = IBP(net, SPEC, eps=0.1, kappa=0.5)
    batches = [loss(x, y) for x, y in images(48).epoch(0)]
    meter, norm = Meter(3), torch.tensor(2.0)
    assert meter.add(0, batches[0], norm, 16) == [] and meter.loss is None and meter.sums() == {}
    assert meter.add(1, batches[1], norm, 16) == []
    assert meter.add(2, batches[2], norm, 8) == [] and meter.loss == pytest.approx(float(batches[2].total.detach()))
    total = sum(float(out.terms["bound"]) * n for out, n in zip(batches, (16, 16, 8)))
    assert meter.sums()["terms.bound"] == (pytest.approx(total), 40)
    batches[1].terms["bound"].fill_(float("nan"))
    assert meter.add(3, batches[0], norm, 16) == [] and meter.add(4, batches[1], norm, 16) == []
    assert meter.add(5, batches[2], torch.tensor(float("inf")), 16) == ["step 4", "the term 'bound' is nan"]
    assert meter.add(6, batches[2], torch.tensor(float("inf")), 16) == []
    assert meter.read() == ["step 6", "the norm of the gradient is inf"] and meter.read() == []


def test_the_generators_are_given_back():
    states = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()]
    net = network()
    states[2] = torch.get_rng_state()
    Trainer(AttackedIBP(net), torch.optim.SGD(net.parameters(), 0.1), images(), epochs=1, evaluation=PLAIN).run()
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize("pieces", [1, 3, 5])
def test_gradients_in_pieces_are_those_of_the_batch(pieces):
    """Against a loop written out, in float64; three pieces of a batch of 16 differ in size."""
    data = images(32, 16)
    data.x = data.x.double() / 255
    net, other = network(dtype=torch.float64), network(dtype=torch.float64)
    loss = IBP(net, SPEC, eps=0.1, kappa=0.3)
    trainer = Trainer(
        loss, torch.optim.SGD(net.parameters(), 0.1), data, epochs=2, accumulate=pieces, clip_norm=0.5, evaluation=PLAIN
    )
    records = trainer.run()
    plain, sgd, norms, totals = IBP(other, SPEC, eps=0.1, kappa=0.3), torch.optim.SGD(other.parameters(), 0.1), [], []
    for epoch in range(2):
        for x, y in data.epoch(epoch):
            sgd.zero_grad()
            out = plain(x, y)
            out.total.backward()
            norms.append(nn.utils.clip_grad_norm_(other.parameters(), 0.5))
            totals.append(out.total.detach())
            sgd.step()
    for a, b in zip(net.parameters(), other.parameters()):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
    assert records[1]["loss"] == pytest.approx(float(sum(totals[2:])) / 2, abs=1e-12)
    assert records[1]["gradient_norm"] == pytest.approx(float(sum(norms[2:])) / 2, abs=1e-12)


def test_the_log_says_what_happened(tmp_path):
    trainer = full_run(tmp_path, 2)
    records = trainer.run()
    first, last = records
    assert (last["epoch"], last["step"]) == (2, 6) and set(last["terms"]) == {"clean", "attacked", "bound"}
    assert last["loss"] == pytest.approx(sum(last["terms"].values()))
    assert last["eps"] == trainer.schedules[0].value_at(5) and last["lr"] == 0.025 and first["lr"] == 0.05
    assert last["kappa"] == trainer.schedules[1].value_at(5)
    assert set(last["held_out"]) == {"clean", "attacked", "certified"}
    assert last["held_out"]["certified"] <= last["held_out"]["attacked"] <= last["held_out"]["clean"]
    assert last["train"]["certified"] <= last["train"]["clean"]
    assert sum(last["neurons"].values()) == pytest.approx(1)
    assert last["gradient_norm"] > 0 and last["seconds"] > 0 and last["steps_per_second"] > 0
    assert not list(tmp_path.glob(".*")) and {p.name for p in tmp_path.iterdir()} == {"checkpoint.pt", "log.jsonl"}


class Poison(Regulariser):
    """Nothing at first, and later what is not finite."""

    name = "poison"

    def __init__(self, at: int, value: float, parameter=None):
        self.left, self.value, self.parameter = at, value, parameter

    def __call__(self, step, loss):
        self.left -= 1
        if self.left >= 0:
            return torch.zeros(())
        if self.parameter is not None:  # zero, with a gradient that is not finite
            return torch.sqrt((self.parameter.flatten()[:1] * 0).sum())
        return torch.tensor(self.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_what_is_not_finite_stops_the_run(tmp_path, value):
    net = network()
    poison = Poison(6, value, None if value is not None else net[-1].weight)
    loss = IBP(net, SPEC, eps=0.0, regularisers=[poison])
    trainer = Trainer(loss, torch.optim.SGD(net.parameters(), 0.1), images(), epochs=3, evaluation=PLAIN, out=tmp_path)
    with pytest.raises(AbsdomError) as caught:
        trainer.run()
    text = str(caught.value)
    assert text.startswith("step 6 (epoch 2): ") and "holds the last good state, of epoch 1" in text
    assert ("the norm of the gradient is nan" if value is None else f"the term 'poison' is {value}") in text
    assert "'bound'" not in text
    assert all(torch.isfinite(p).all() for p in net.parameters())  # no step was taken with it
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["epoch"] == 1 and all(torch.isfinite(t).all() for t in state["model"].values())


def refuse(trainer: Trainer, error, text: str, **run) -> None:
    out = trainer.out
    before = None if out is None or not out.exists() else {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(error, match=text):
        trainer.run(**run)
    after = None if out is None or not out.exists() else {p.name: p.read_bytes() for p in out.iterdir()}
    assert before == after


def made(out=None, net=None, loss=None, data=None, **more) -> Trainer:
    net = network() if net is None else net
    loss = IBP(net, SPEC, eps=0.05) if loss is None else loss
    settings = {"epochs": 1, "evaluation": PLAIN, **more}
    return Trainer(loss, torch.optim.SGD(net.parameters(), 0.1), data or images(), out=out, **settings)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    made(tmp_path, config={"method": "ibp"}).run()
    same = {"config": {"method": "ibp"}, "resume": True}
    refuse(made(tmp_path), UsageError, "is there already")
    cases = [
        (made(tmp_path, net=network(norm=True)), "network 1.weight: absent in the checkpoint"),
        (made(tmp_path, data=images(57)), "data items: 60 in the checkpoint, 57 here"),
        (made(tmp_path, data=images(60, 15)), "data batch: 16 in the checkpoint, 15 here"),
        (made(tmp_path, seed=1), "trainer seed: 0 in the checkpoint, 1 here"),
        (made(tmp_path, accumulate=2), "trainer accumulate: 1"),
        (made(tmp_path, validation=images(6)), "held-out data"),
        (made(tmp_path, config={"method": "sabr"}), "config method: ibp in the checkpoint, sabr here"),
    ]
    net = network()
    net[1] = nn.Tanh()
    cases.append((made(tmp_path, net=net), r"layer 1: ReLU\(\) in the checkpoint, Tanh\(\) here"))
    cases.append((made(tmp_path, net=net, loss=Certified(net, SPEC, eps=0.1, recipe="crown-ibp")), "loss kind: IBP in"))
    cases.append(
        (made(tmp_path, net=net, loss=IBP(net, Classification(2), eps=0.1)), "loss spec norm: inf in .*, 2 here")
    )
    slower = made(tmp_path)
    slower.optimiser.defaults["lr"] = 0.01
    cases.append((slower, "optimiser lr: 0.1 in the checkpoint, 0.01 here"))
    for trainer, text in cases:
        refuse(trainer, UsageError, text, resume=True)
    changed = images()
    changed.y[0] = 1
    refuse(made(tmp_path, data=changed, config=same["config"]), UsageError, "data sha256", resume=True)
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    changed = bytearray(whole)
    changed[whole.index(b"0.weight") + 2000] ^= 1
    torch.save({"run": {}}, tmp_path / "other.pt")
    for damaged in (b"", b"nothing", whole[: len(whole) // 2], bytes(changed), (tmp_path / "other.pt").read_bytes()):
        (tmp_path / "checkpoint.pt").write_bytes(damaged)
        refuse(made(tmp_path), UsageError, "no checkpoint of a trainer, or a damaged one", resume=True)
    refuse(made(), UsageError, "no folder", resume=True)


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".checkpoint.pt.abc.pt").write_bytes(b"half a check")
    made(tmp_path).run()
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint.pt", "log.jsonl"}


def test_a_run_that_never_began_leaves_no_run(tmp_path):
    """Hooks, augmentations and a first epoch that fails: the folder can be used again."""
    words = made(tmp_path, data=TrainingData(torch.rand(9, 6), torch.arange(9) % 3, 3, augment=CropFlip(1)))
    net = network()
    broken = IBP(net, SPEC, eps=0.1, regularisers=[Poison(0, float("nan"))])
    for trainer, kind, text in (
        (made(tmp_path, hooks=[EarlyStopping()]), UsageError, "needs held-out items"),
        (words, UsageError, "crops and flips are of images"),
        (made(tmp_path, net, broken), AbsdomError, "no checkpoint was written yet"),
    ):
        with pytest.raises(kind, match=text):
            trainer.run()
        assert not list(tmp_path.iterdir())


def test_schedules_of_another_length_are_refused(tmp_path):
    def ramped(length: int) -> Trainer:
        net = network()
        loss = IBP(net, SPEC, eps=0.0)
        return made(tmp_path, net, loss, schedules=[Ramp(loss, "eps", 0.0, 0.1, 0, length)])

    ramped(5).run()
    refuse(ramped(9), UsageError, "'eps' has length 9 here, 5 in the saved state", resume=True)


class Unreadable(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(36, 3)

    def forward(self, x):
        y = self.last(x.flatten(1))
        return y if y.sum() > 0 else -y


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "run"
    refuse(made(out, net=Unreadable()), ModelError, "cannot be captured|capture")
    labels = images()
    labels.y[20] = 3
    refuse(made(out, data=labels), PropertyError, "items 16 to 31 of the training data: item 4 .*label 3")
    refuse(made(out, validation=labels), PropertyError, "of the held-out data")
    refuse(made(out, net=network(dtype=torch.bfloat16)), UsageError, "half precision")
    refuse(made(out, net=network(dtype=torch.float64)), UsageError, "float64, points are torch.float32")
    other = IBP(network(), SPEC, eps=0.1)
    refuse(made(out, loss=other), UsageError, "6 of the 6 tensors .* no parameters of the loss's module")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        refuse(made(out), UsageError, "mixed precision")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        made(tmp_path / "file" / "run").run()
    assert not out.exists()
    for name in ("epochs", "accumulate", "checkpoint_every"):
        with pytest.raises(UsageError, match=f"{name} 0"):
            made(**{name: 0})


def warned(eps: float, data: TrainingData, clip=(0.0, 1.0), end: float | None = None, length: int = 1) -> list[str]:
    net = network()
    loss = IBP(net, Classification(clip=clip), eps=eps)
    ramps = [] if end is None else [Ramp(loss, "eps", 0.0, end, 0, length)]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        made(net=net, loss=loss, data=data, schedules=ramps).run()
    return [str(w.message) for w in found if "eps" in str(w.message) or "data" in str(w.message)]


def test_units_that_disagree_are_told_once():
    grey = TrainingData(images().x.float(), images().y, 16)
    assert warned(0.1, images()) == [] and warned(8.0, grey, clip=(0.0, 255.0)) == []
    (text,) = warned(8.0, images(), end=8.0)
    assert "eps 8 for data in [0, 0.89" in text and "eps 8 of 255 is 0.03137" in text
    (text,) = warned(0.0, images(), end=8.0)
    assert "eps 8 for" in text
    (text,) = warned(0.03, grey, clip=(0.0, 255.0))
    assert "eps 0.03 for data in [0, 2" in text and "give eps as 7.65" in text
    (text,) = warned(4.0, grey)
    assert "outside the range [0, 1]" in text


def test_a_ramp_that_is_longer_than_the_run_is_told():
    (text,) = warned(0.0, images(), end=0.1, length=9999)
    assert "eps reaches 0.1 after 9999 batches, and the run has" in text


class Scripted(Hook):
    """Puts given held-out accuracies into the records."""

    def __init__(self, *certified: float):
        self.certified = certified

    def epoch_end(self, trainer, record):
        record["held_out"]["certified"] = self.certified[record["epoch"] - 1]


def test_early_stopping_keeps_the_best_weights(tmp_path):
    net = network()
    loss = IBP(net, SPEC, eps=0.0)
    seen: list[torch.Tensor] = []

    class Watch(Hook):
        def epoch_end(self, trainer, record):
            seen.append(trainer.module[-1].weight.detach().clone())

    ramp = Ramp(loss, "eps", 0.0, 0.05, 0, 6)  # two epochs of three batches: the best figure, of epoch 1, is too early
    hooks = [Scripted(0.9, 0.2, 0.5, 0.4, 0.5, 0.9), Watch(), EarlyStopping(patience=2)]
    data, held = images(57).held_out(9)
    trainer = Trainer(
        loss, torch.optim.SGD(net.parameters(), 0.1), data, epochs=6, schedules=[ramp], hooks=hooks, validation=held,
        evaluation=PLAIN, out=tmp_path,
    )  # fmt: skip
    records = trainer.run()
    assert len(records) == 5 and trainer.finished and "0.5000 of epoch 3" in records[-1]["stopped"]
    assert "best" not in records[0] and records[-1]["best"] == {"epoch": 3, "robust_error": 0.5}
    assert torch.equal(net[-1].weight, seen[2]) and not torch.equal(seen[2], seen[4])
    with pytest.raises(UsageError, match="early stopping by certified accuracy needs held-out items"):
        made(hooks=[EarlyStopping()]).run()
    with pytest.raises(UsageError, match="choose certified or attacked"):
        EarlyStopping(measure="clean")


def test_averaged_weights_are_the_mean_of_the_last_epochs():
    seen = []

    class Watch(Hook):
        def epoch_end(self, trainer, record):
            seen.append([p.detach().clone() for p in trainer.module.parameters()])

    net = network(norm=True)
    loss = IBP(net, SPEC, eps=0.02)
    made(net=net, loss=loss, epochs=4, hooks=[Watch(), WeightAveraging(3)]).run()
    for p, *others in zip(net.parameters(), *seen[1:]):
        assert torch.allclose(p, sum(others) / 3, atol=1e-6)
    statistics = [t.clone() for t in (net[1].running_mean, net[1].running_var)]
    means, variances = [], []
    for x, _ in images().epoch(3):
        z = net[0](x)
        means.append(z.mean((0, 2, 3)))
        variances.append(z.var((0, 2, 3)))
    assert torch.allclose(statistics[0], sum(means) / len(means), atol=1e-5)
    assert torch.allclose(statistics[1], sum(variances) / len(variances), atol=1e-5)


def test_running_statistics_stay_where_the_policy_says_so():
    net = network(norm=True)
    policy = type(RUNNING)("running", population=False)
    made(net=net, loss=IBP(net, SPEC, eps=0.02, batch_norm=policy)).run()
    assert torch.equal(net[1].running_mean, torch.zeros(4))


def test_states_of_neurons_are_counted():
    """Five neurons of one input in [0.4, 0.6]: -1 + x and -0.6 + x are dead, x and x - 0.4 active, x - 0.5 unstable."""
    net = nn.Sequential(nn.Linear(1, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.copy_(torch.tensor([-1.0, -0.6, 0.0, -0.375, -0.5]))
    x, y = torch.full((3, 1), 0.5, dtype=torch.float64), torch.tensor([0, 1, 1])
    loss = IBP(net, SPEC, eps=0.1)
    counts = neuron_counts(loss.live(x).propagate("ibp", SPEC.task(x, y, 0.1, 2).sets))
    assert {name: int(c) for name, c in counts.items()} == {"unstable": 3, "dead": 6, "active": 6}
    linear = nn.Linear(1, 2).double()
    assert neuron_counts(IBP(linear, SPEC, eps=0.1).live(x).propagate("ibp", SPEC.task(x, y, 0.1, 2).sets)) == {}


def test_evaluation_against_a_network_whose_answers_are_known():
    """Scores x and 0.5 - x: the label 0 is right where x > 0.25, and certified where x - eps > 0.25."""
    net = nn.Linear(1, 2).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net.bias.copy_(torch.tensor([0.0, 0.5]))
    x = torch.tensor([[0.1], [0.2], [0.3], [0.34], [0.36], [0.9]], dtype=torch.float64)
    y = torch.zeros(6, dtype=torch.int64)
    loss = IBP(net, SPEC, eps=0.5)
    found = evaluate(loss, x, y, Evaluation(eps=0.1, attack=PGD(3, 1.0)), batch=4)
    assert found == {"clean": 4 / 6, "attacked": 2 / 6, "certified": 2 / 6}
    assert evaluate(loss, x, y, Evaluation(attack=None, recipe="crown")) == {"clean": 4 / 6, "certified": 1 / 6}
    assert net.training
