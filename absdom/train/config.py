"""A training run as plain data, tables of names and numbers as in a TOML file, and the objects that it describes.

    training = Training.read("run.toml")            # or Training.of(preset("small/mnist-0.3"), "small/mnist-0.3")
    trainer = training.trainer(training.network(shape, classes), data, out="run")

Radii are in the units of the data, times in epochs. `absdom train --show PRESET` prints a description as an example.
Names and options are those of the classes of `absdom.train` and of the networks of `absdom.train.zoo`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from typing import NamedTuple

import torch

from absdom.api import recipe_of
from absdom.errors import AbsdomError, UsageError
from absdom.ladder import ladder_of
from absdom.train import adversarial, bounds, expressive, hooks
from absdom.train.attacks import FGSM, PGD
from absdom.train.batch_norm import BatchNormPolicy
from absdom.train.cap import CAP
from absdom.train.colt import COLT, COLTStages
from absdom.train.crown_ibp import CrownIBP
from absdom.train.data import Augmentation, CropFlip, TrainingData
from absdom.train.diffai import Abstract, Attacked, Between, Clean, Coin, DiffAI, Goal, LinMix
from absdom.train.fast_ibp import FastRegulariser, fast_init_
from absdom.train.landscape import Landscape
from absdom.train.loss import Loss
from absdom.train.noise import WeightNoise
from absdom.train.one_step import OneStep
from absdom.train.regularisers import L1
from absdom.train.sabr import SABR
from absdom.train.schedules import Cyclic, Follow, Linear, Piecewise, Ramp, Schedule
from absdom.train.shares import Evaluation
from absdom.train.tables import REQUIRED, Named, Place, Table, merged, read_toml, unknown
from absdom.train.taps import STAPS, TAPS
from absdom.train.task import Classification
from absdom.train.trainer import Trainer
from absdom.train.zoo import ZOO

LOSSES: dict[str, type[Loss]] = {
    "adversarial": adversarial.Adversarial, "cap": CAP, "cc-ibp": expressive.CCIBP, "certified": bounds.Certified,
    "colt": COLT, "crown-ibp": CrownIBP, "diffai": DiffAI, "exp-ibp": expressive.ExpIBP, "ibp": bounds.IBP,
    "mtl-ibp": expressive.MTLIBP, "one-step": OneStep, "sabr": SABR, "staps": STAPS, "taps": TAPS,
    "trades": adversarial.TRADES,
}  # fmt: skip
ATTACKS: dict[str, Callable] = {"pgd": PGD, "fgsm": FGSM}
GOALS: dict[str, type[Goal]] = {
    "abstract": Abstract, "attacked": Attacked, "between": Between, "clean": Clean, "coin": Coin, "lin-mix": LinMix
}  # fmt: skip
REGULARISERS: dict[str, type] = {"fast": FastRegulariser, "l1": L1}
OPTIMISERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD
}  # fmt: skip
AUGMENTATIONS: dict[str, type[Augmentation]] = {"crop-flip": CropFlip}
HOOKS: dict[str, type[hooks.Hook]] = {
    "collapse-guard": adversarial.CollapseGuard,
    "early-stopping": hooks.EarlyStopping,
    "landscape": Landscape,
    "weight-averaging": hooks.WeightAveraging,
}
SCHEDULES = {"ramp": Ramp, "linear": Linear, "follow": Follow, "piecewise": Piecewise, "cyclic": Cyclic,
             "colt": COLTStages}  # fmt: skip
NORMS = {"inf": inf, "2": 2.0, "1": 1.0}
INITS = ("default", "fast")
TIMES = ("start", "length", "peak", "mix", "halve")  # of schedules, in epochs
STAGES = ("factor", "widen", "decay", "stability", "grow")  # numbers of COLT's stages
FROM_ELSEWHERE = ("module", "spec", "eps", "batch_norm", "regularisers", "noise", "params", "lr")


@dataclass(frozen=True)
class Judgement:
    """How the trained network is judged. eps: the radius. method: what proves, as `absdom certify` takes it, or several
    in a row. limit: at most so many items (None: all). timeout: seconds per item of the complete certification."""

    eps: float
    method: str | Sequence[str] = ("ibp", "crown-ibp")
    limit: int | None = None
    timeout: float = 60.0


@dataclass(frozen=True, eq=False)
class Training:
    """A run, checked as far as it can be without data. `config`: the tables it was made of."""

    config: dict
    place: Place
    epochs: int
    batch: int
    seed: int
    clip_norm: float | None
    accumulate: int
    init: str
    net: Named
    shape: tuple[int, ...] | None
    classes: int | None
    specification: Classification
    eps: float
    loss: Named
    batch_norm: BatchNormPolicy | None
    noise: WeightNoise | None
    regularisers: tuple[Named, ...]
    lr: float
    optimiser: Named
    schedules: tuple[Timed, ...]
    augmentation: Augmentation | None
    hooks: tuple[Named, ...]
    held_out: int
    judgement: Judgement

    @classmethod
    def read(cls, path: str | Path, changes: Mapping | None = None) -> Training:
        """The run that a TOML file describes, with changes. Raises UsageError that names file and key."""
        return cls.of(merged(read_toml(path), changes or {}), str(path))

    @classmethod
    def of(cls, config: Mapping, where: str = "the configuration") -> Training:
        """The run that nested tables describe; `where` is what errors call them."""
        return _Reader(Table(copy.deepcopy(dict(config)), Place(where))).training()

    def network(self, shape: Sequence[int], classes: int) -> torch.nn.Module:
        """The network for items of this shape, with the weights that the seed decides. No global state moves."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = self.net(tuple(shape), classes)
            if self.init == "fast":
                fast_init_(network, torch.zeros(1, *shape))
        return network

    def make_loss(self, network: torch.nn.Module) -> Loss:
        """The loss at its final radius."""
        more = {} if self.batch_norm is None else {"batch_norm": self.batch_norm}
        if self.noise is not None:
            more["noise"] = self.noise
        made = [self._with_end(r)() for r in self.regularisers]
        return self._with_end(self.loss)(network, self.specification, eps=self.eps, regularisers=made, **more)

    def trainer(
        self, network: torch.nn.Module, data: TrainingData, out: str | Path | None = None, more_hooks: Sequence = ()
    ) -> Trainer:
        """The trainer of the network (on the device of the data); `out` is its folder."""
        loss = self.make_loss(network)
        optimiser = self.optimiser(network.parameters(), lr=self.lr)
        kept, validation = data, None
        if self.held_out:
            try:
                kept, validation = data.held_out(self.held_out, self.seed)
            except UsageError as error:
                (self.place / "held_out").fail(str(error))
        made: list[Schedule] = []
        for timed in self.schedules:
            made.append(timed.make(loss, optimiser, kept, made))
        return Trainer(
            loss, optimiser, kept, epochs=self.epochs, schedules=made, clip_norm=self.clip_norm,
            hooks=[*(hook() for hook in self.hooks), *more_hooks], accumulate=self.accumulate, validation=validation,
            evaluation=Evaluation(eps=self.judgement.eps), out=out, seed=self.seed, config=self.config,
        )  # fmt: skip

    def try_out(self, data: TrainingData, shape: Sequence[int], classes: int) -> None:
        """One call of everything on two items, with a network of its own: what does not fit together is said here."""
        with torch.random.fork_rng(devices=[]):
            batch = next(data.parts())
            network = self.network(shape, classes).to(batch.x.device)
            self.trainer(network, data)
            self.loss.at_its_place(self.make_loss(network), batch.x[:2], batch.y[:2])

    def _with_end(self, named: Named) -> Named:
        """Told which radius the ramp ends at, where it wants to know and its options do not say."""
        if named.accepts("eps_max") and "eps_max" not in named.options:
            return Named(named.make, {**named.options, "eps_max": self.eps}, named.place)
        return named


@dataclass(frozen=True)
class Timed:
    """A schedule that is still to be made: its times are in epochs."""

    make_kind: Callable[[object, str, Made], Schedule]
    of: str
    place: Place

    def make(self, loss: Loss, optimiser: torch.optim.Optimizer, data: TrainingData, made: list[Schedule]) -> Schedule:
        """made: the schedules in front of it."""
        target, name = _target(loss, optimiser, self.of, self.place)
        try:
            return self.make_kind(target, name, Made(optimiser, data, made))
        except UsageError as error:
            self.place.fail(str(error))


class Made(NamedTuple):
    """What is there when a schedule is made."""

    optimiser: torch.optim.Optimizer
    data: TrainingData
    schedules: Sequence[Schedule]


def _target(loss: Loss, optimiser: torch.optim.Optimizer, of: str, place: Place) -> tuple[object, str]:
    """What a schedule moves: `lr`, a number of the loss, or one of a regulariser ("l1.strength")."""
    known: dict[str, tuple[object, str]] = {"lr": (optimiser, "lr")}
    known |= {name: (loss, name) for name in loss.state}
    known |= {f"{r.name}.{name}": (r, name) for r in loss.regularisers for name in r.state}
    if of not in known:
        (place / "of").fail(unknown("number", of, known))
    return known[of]


@dataclass
class _Reader:
    """Reads the tables of a run, section by section."""

    table: Table
    eps: float = field(default=0.0, init=False)

    def training(self) -> Training:
        top = self.table
        epochs, batch = self._count(top, "epochs"), self._count(top, "batch")
        seed, accumulate = self._count(top, "seed", 0, least=0), self._count(top, "accumulate", 1)
        clip_norm = self._number(top, "clip_norm", 10.0, zero=True)
        init = top.take("init", str, "default")
        if init not in INITS:
            (top.place / "init").fail(unknown("initialisation", init, INITS))
        held_out = self._count(top, "held_out", 0, least=0)
        loss = self._loss(self._section("loss"))
        optimiser = self._section("optimiser")
        lr = self._number(optimiser, "lr")
        network = self._section("network")
        shape = network.take("shape", tuple[int, ...], None)
        classes = self._count(network, "classes", 0, least=0) or None
        found = Training(
            self.table.values, top.place, epochs, batch, seed, clip_norm or None, accumulate, init,
            network.named(ZOO, ("shape", "classes")), shape, classes, self._specification(), self.eps, loss,
            self._policy(), self._noise(), tuple(map(self._regulariser, top.tables("regularisers"))), lr,
            optimiser.named(OPTIMISERS, FROM_ELSEWHERE), tuple(map(self._timed, top.tables("schedules"))),
            self._augmentation(), tuple(t.named(HOOKS, (), ATTACK_OPTIONS) for t in top.tables("hooks")), held_out,
            self._judgement(self._section("evaluation")),
        )  # fmt: skip
        top.done()
        return found

    def _section(self, key: str) -> Table:
        found = self.table.table(key)
        if found is None:
            self.table.place.fail(f"lacks the table [{key}]")
        return found

    def _count(self, table: Table, key: str, default=REQUIRED, *, least: int = 1) -> int:
        value = table.take(key, int, default)
        if value < least:
            (table.place / key).fail(f"is {value}, and has to be {least} or more")
        return value

    def _number(self, table: Table, key: str, default=REQUIRED, *, zero: bool = False) -> float:
        value = float(table.take(key, float, default))
        if not (value > 0 or zero and value == 0):
            (table.place / key).fail(f"is {value:g}, and has to be {'0 or above' if zero else 'above 0'}")
        return value

    def _loss(self, table: Table) -> Named:
        self.eps = self._number(table, "eps", zero=True)
        special = {**ATTACK_OPTIONS, "recipe": _recipe, "goal": _goal}
        return table.named(LOSSES, (*FROM_ELSEWHERE, *_optional_end(table)), special)

    def _regulariser(self, table: Table) -> Named:
        return table.named(REGULARISERS, _optional_end(table))

    def _specification(self) -> Classification:
        table = self.table.table("specification")
        if table is None:
            return Classification()
        norm = table.choice("norm", NORMS, "inf")
        clip = table.take("clip", tuple[float, float] | bool, (0.0, 1.0))
        table.done()
        if clip is True:
            (table.place / "clip").fail("is true: give the range of the inputs, [0, 1], or false for none")
        return Named(Classification, {"norm": norm, "clip": tuple(clip) if clip else None}, table.place)()

    def _policy(self) -> BatchNormPolicy | None:
        table = self.table.table("batch_norm")
        return None if table is None else table.options(BatchNormPolicy)()

    def _noise(self) -> WeightNoise | None:
        table = self.table.table("noise")
        return None if table is None else table.options(WeightNoise)()

    def _augmentation(self) -> Augmentation | None:
        table = self.table.table("augmentation")
        return None if table is None else table.named(AUGMENTATIONS)()

    def _judgement(self, table: Table) -> Judgement:
        eps = self._number(table, "eps", zero=True)
        method = table.take("method", str | tuple[str, ...], Judgement.method)
        limit = self._count(table, "limit", 0, least=0) or None
        timeout = self._number(table, "timeout", Judgement.timeout)
        table.done()
        try:
            ladder_of(method)
        except AbsdomError as error:
            (table.place / "method").fail(str(error))
        return Judgement(eps, method if isinstance(method, str) else tuple(method), limit, timeout)

    def _timed(self, table: Table) -> Timed:
        kind = table.choice("kind", SCHEDULES, "ramp")
        of = "stage" if kind is COLTStages else table.take("of", str)
        if kind in (Ramp, Linear):
            ends = [table.take("from", float, 0.0), table.take("to", float, *([self.eps] if of == "eps" else []))]
            times = [self._number(table, "start", 0.0, zero=True), self._number(table, "length", zero=True)]
            more = {k: table.take(k, float) for k in ("middle", "exponent") if kind is Ramp and k in table.values}
            make = partial(_ramp, kind, ends, times, more)
        elif kind is Follow:
            make = partial(_follow, table.take("from", float), table.take("to", float))
        elif kind is Piecewise:
            make = partial(_piecewise, table.take("at", tuple[float, ...]), table.take("factor", float))
        elif kind is Cyclic:
            times = [self._number(table, key) for key in ("peak", "length")]
            make = partial(_cyclic, times, table.take("low", float, 0.0))
        else:
            times = {key: self._number(table, key) for key in ("length", "mix", "halve")}
            more = {key: table.take(key, float) for key in STAGES if key in table.values}
            make = partial(_stages, self.eps, times, more)
        table.done()
        return Timed(make, of, table.place)


def _optional_end(table: Table) -> tuple[str, ...]:
    """`eps_max` need not be given: it is the radius that is trained at."""
    return () if "eps_max" in table.values else ("eps_max",)


def _ramp(kind, ends, times, more, target, name, made: Made) -> Ramp:
    return kind(target, name, *ends, *map(made.data.in_batches, times), **more)


def _follow(start_value, end_value, target, name, made: Made) -> Follow:
    ramps = [s for s in made.schedules if isinstance(s, Ramp) and s.name == "eps"]
    if not ramps:
        raise UsageError("it follows the radius: give the ramp of eps in front of it")
    return Follow(target, name, start_value, end_value, ramps[-1])


def _piecewise(at, factor, target, name, made: Made) -> Piecewise:
    factors: dict[int, float] = {}
    for epoch in at:
        k = made.data.in_batches(epoch)
        factors[k] = factors.get(k, 1.0) * factor
    return Piecewise(target, name, factors)


def _cyclic(times, low, target, name, made: Made) -> Cyclic:
    return Cyclic(target, name, *map(made.data.in_batches, times), low)


def _stages(eps, times, more, target, name, made: Made) -> COLTStages:
    lengths = {key: made.data.in_batches(time) for key, time in times.items()}
    return COLTStages(target, made.optimiser, eps=eps, **lengths, **more)


def _attack(value, place: Place):
    """An attack of a table such as { name = "pgd", steps = 8 }."""
    return Table(value, place).named(ATTACKS)()


def _goal(value, place: Place) -> Goal:
    """A goal of DiffAI; mixtures have goals within: { name = "coin", first = { ... }, second = { ... } }."""
    special = {**ATTACK_OPTIONS, "recipe": _recipe, "first": _goal, "second": _goal}
    return Table(value, place).named(GOALS, (), special)()


def _recipe(value, place: Place) -> str:
    if not isinstance(value, str):
        place.fail(f"is {value!r}, and has to be the text of a recipe, such as 'ibp' or 'linear(pre=interval)'")
    try:
        recipe_of(value)
    except AbsdomError as error:
        place.fail(str(error))
    return value


ATTACK_OPTIONS = {"attack": _attack, "search": _attack, "against": _attack}


def with_radius(config: Mapping, eps: float) -> dict:
    """The same run judged at another radius, with all radii of the training in proportion."""
    found = copy.deepcopy(dict(config))
    if not found["evaluation"]["eps"]:
        raise UsageError("the run is judged at eps 0: no radius of it can be changed in proportion")
    scale = eps / found["evaluation"]["eps"]
    found["evaluation"]["eps"] = eps
    found["loss"]["eps"] *= scale
    for schedule in found.get("schedules", ()):
        for key in ("from", "to"):
            if schedule.get("of") == "eps" and key in schedule:
                schedule[key] *= scale
    return found


def with_epochs(config: Mapping, epochs: int) -> dict:
    """The same run in another number of epochs, with all times in proportion."""
    found = copy.deepcopy(dict(config))
    scale = epochs / found["epochs"]
    found["epochs"] = epochs
    for schedule in found.get("schedules", ()):
        for key in TIMES:
            if key in schedule:
                schedule[key] = schedule[key] * scale
        if "at" in schedule:
            schedule["at"] = [t * scale for t in schedule["at"]]
    return found
