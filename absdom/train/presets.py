"""Runs by name, METHOD/DATA-RADIUS, with the hyper-parameters that were published for them (`small/...`: our own).

Radii of mnist are of values in [0, 1], those of cifar10 and tinyimagenet are in 255ths. A preset is a line about it and
the tables that are laid one over the other, as `absdom.train.config` reads them. Sources: Gowal et al. 2018 (ibp), Shi
et al. 2021 (fast-ibp), De Palma et al. 2024 (cc-ibp, exp-ibp), Lee et al. 2021 (lee), Wong et al. 2018 (cap), Balunovic
and Vechev 2020 (colt), Mirman et al. 2019 (diffai), and for all others CTBench (Mao et al. 2025), which tuned them
alike. Chosen by us, because they are not stated: L1 of cc-ibp and exp-ibp, the size of the steps of attacks with
several, the epochs at which the learning rate falls in runs of 240 and 260, colt on MNIST (as on CIFAR-10 at 2/255,
with a smaller network), and of diffai all but its goal and learning rate. Figures in the lines are what was published
for networks that were certified by complete verification as a rule, in per cent clean / certified accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from absdom.errors import UsageError
from absdom.train.tables import merged, unknown

PIXEL = 1 / 255
CIFAR_MEAN, CIFAR_STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.201]
TINY_MEAN, TINY_STD = [0.4802, 0.4481, 0.3975], [0.2302, 0.2265, 0.2262]
CORNER = {"name": "pgd", "steps": 1, "step": 10.0, "best": False}


def _pgd(steps: int, step: float = 0.25, **more) -> dict:
    return {"name": "pgd", "steps": steps, "step": step, **more}


def _falls(at: list[int], factor: float) -> dict:
    return {"kind": "piecewise", "of": "lr", "at": at, "factor": factor}


def _ramp(start: float, length: float, kind: str = "ramp", of: str = "eps", **ends: float) -> dict:
    return {"kind": kind, "of": of, **ends, "start": start, "length": length}


def _with(table: Mapping, schedule: dict) -> dict:
    """The table, and a schedule behind its own."""
    return merged(table, {"schedules": [*table["schedules"], schedule]})


def _adam(lr: float) -> dict:
    return {"name": "adam", "lr": lr}


def _l1(strength: float, fast: float | None = 0.5) -> dict:
    """The regularisers of the interval-based methods."""
    found = [{"name": "fast", "strength": fast}] if fast else []
    return {"regularisers": [*found, *([{"name": "l1", "strength": strength}] if strength else [])]}


def _at(eps: float, trained: float | None = None) -> dict:
    """Judged at eps, trained at this radius or another one."""
    return {"loss": {"eps": eps if trained is None else trained}, "evaluation": {"eps": eps}}


def _loss(name: str, robust: float = 1.0, /, **options) -> dict:
    """robust: the weight of the robust loss; the clean one has the rest."""
    kappa = {"kappa": round(1 - robust, 6)} if robust < 1 else {}
    return {"loss": {"name": name, **kappa, **options}}


# The set-up of the fast interval methods (CNN7 with batch norm): MNIST, CIFAR-10 at 2/255 and at 8/255, TinyImageNet.
FAST = {"init": "fast", "clip_norm": 10.0, "optimiser": _adam(5e-4), "network": {"name": "cnn7"}}
FAST_MNIST = merged(FAST, {"epochs": 70, "batch": 256, "schedules": [_ramp(0, 20), _falls([50, 60], 0.2)]})
_CIFAR = {
    "network": {"mean": CIFAR_MEAN, "std": CIFAR_STD},
    "augmentation": {"name": "crop-flip", "padding": 2, "flip": True},
}
FAST_CIFAR_2 = merged(FAST, _CIFAR, {"epochs": 160, "batch": 128, "schedules": [_ramp(1, 80), _falls([120, 140], 0.2)]})
FAST_CIFAR_8 = merged(
    FAST, _CIFAR, {"epochs": 240, "batch": 128, "schedules": [_ramp(1, 120), _falls([200, 220], 0.2)]}
)
FAST_TINY = merged(
    FAST_CIFAR_2,
    {"network": {"last_stride": 2, "mean": TINY_MEAN, "std": TINY_STD}, "augmentation": {"padding": 4}},
)
SHI = {"schedules": [_ramp(1, 20), _falls([50, 60], 0.2)]}
DE_PALMA = {"batch_norm": {"source": "attacked"}}
DE_PALMA_8 = {"epochs": 260, "schedules": [_ramp(1, 120), _falls([180, 220], 0.2)]}

BETA = {"kind": "follow", "of": "beta", "from": 1.0, "to": 0.0}

# Interval training as it was first published: CNN7 without batch norm, kappa down to one half with the radius.
KAPPA = {"kind": "follow", "of": "kappa", "from": 1.0, "to": 0.5}
GOWAL_MNIST = {
    "epochs": 100, "batch": 100, "network": {"name": "dm_large"}, "optimiser": _adam(1e-3),
    "schedules": [_ramp(3.3, 16.7, "linear"), KAPPA, _falls([25, 42], 0.1)],
}  # fmt: skip
GOWAL_CIFAR = merged(
    _CIFAR,
    {
        "epochs": 3200, "batch": 1024, "network": {"name": "dm_large"}, "optimiser": _adam(5e-4),
        "schedules": [_ramp(320, 1600), KAPPA, _falls([2600, 3040], 0.1)],
    },
)  # fmt: skip

# Tight relaxations: no range of the inputs, as published.
LEE_MNIST = {
    "epochs": 200, "batch": 80, "network": {"name": "dm_large"}, "optimiser": _adam(5e-4),
    "specification": {"clip": False}, "schedules": [_ramp(10, 50, "linear"), _falls([130, 190], 0.1)],
}  # fmt: skip
LEE_CIFAR = merged(
    _CIFAR,
    {
        "epochs": 400, "batch": 128, "network": {"name": "wong_large"}, "optimiser": _adam(3e-4),
        "specification": {"clip": False},
        "schedules": [_ramp(20, 240, "linear"), _falls(list(range(270, 400, 10)), 0.5)],
    },
)  # fmt: skip
WONG = {
    "epochs": 60, "batch": 50, "clip_norm": 1.0, "network": {"name": "wong_small"}, "specification": {"clip": False}
}  # fmt: skip
WONG_FALLS = _falls([30, 40, 50], 0.5)
WONG_MNIST = merged(
    WONG, {"optimiser": _adam(1e-3), "schedules": [_ramp(0, 20, "linear", **{"from": 0.01}), WONG_FALLS]}
)
WONG_CIFAR = merged(
    WONG, _CIFAR,
    {
        "optimiser": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
        "network": {"mean": [0.485, 0.456, 0.406], "std": 0.225},
        "schedules": [_ramp(0, 20, "linear", **{"from": 0.001 * 0.225}), WONG_FALLS],
    },
)  # fmt: skip

# Layer by layer: stages of 200 epochs, mixed in during the first 60.
COLT = {
    "batch": 100, "clip_norm": 0.0, "optimiser": {"name": "sgd", "lr": 0.03, "momentum": 0.9},
    "loss": {"name": "colt", "recipe": "projected", "attack": _pgd(8)},
    "schedules": [{"kind": "colt", "length": 200, "mix": 60, "halve": 10}],
    "regularisers": [{"name": "l1", "strength": 1e-5}],
}  # fmt: skip
COLT_MNIST = merged(COLT, {"epochs": 600, "network": {"name": "conv_med"}, "loss": {"layers": ["relu1", "relu2"]}})
COLT_CIFAR = merged(
    COLT, _CIFAR,
    {"epochs": 800, "network": {"name": "conv_med_big"}, "loss": {"layers": ["relu1", "relu2", "relu3"]}},
)  # fmt: skip
COLT_8 = {
    "batch": 150, "regularisers": [{"name": "l1", "strength": 5e-6}],
    "schedules": [
        {"kind": "colt", "length": 200, "mix": 60, "halve": 10, "widen": 1.2, "decay": 0.5, "stability": 0.003}
    ],
}  # fmt: skip

DIFFAI = {
    "epochs": 200, "batch": 100, "network": {"name": "wong_small"}, "optimiser": _adam(1e-3),
    "schedules": [_ramp(10, 50, "linear"), _falls([150, 180], 0.1)],
    "loss": {
        "name": "diffai",
        "goal": {
            "name": "lin-mix", "first": {"name": "attacked", "attack": _pgd(5)},
            "second": {"name": "abstract", "recipe": "ibp"}, "weight": 0.1,
        },
    },
}  # fmt: skip

# Networks that two CPU cores train in minutes.
SMALL = {
    "batch": 100, "init": "fast", "network": {"name": "wong_small"}, "optimiser": _adam(2e-3),
    "evaluation": {"method": ["ibp", "crown"], "limit": 1000},
}  # fmt: skip
TWO_STEPS = _pgd(2, 0.9, best=False)

SHRINK = {"shrink": 0.8}
PLAIN = {"init": "default"}

PRESETS: Mapping[str, tuple[str, dict]] = MappingProxyType({
    name: (line, merged(*parts))
    for name, line, *parts in (
        ("small/mnist-0.1", "Wong small on a CPU: 98.4 / 96.1 (first 1,000, bab)", SMALL, _at(0.1, 0.2),
         {"epochs": 30, "schedules": [_ramp(1, 10), _falls([21, 27], 0.2)]},
         _loss("mtl-ibp", alpha=0.1, attack=TWO_STEPS), _l1(1e-6, fast=None)),
        ("small/mnist-0.3", "Wong small, minutes on a CPU", SMALL, _at(0.3),
         {"epochs": 20, "schedules": [_ramp(1, 7), _falls([14, 18], 0.2)]},
         _loss("mtl-ibp", alpha=0.5, attack=TWO_STEPS), _l1(0.0)),

        ("small/digits-0.1", "for the digits of examples/08: seconds on a CPU", SMALL, _at(0.1),
         {"epochs": 40, "network": {"name": "mlp", "hidden": [128]}, "optimiser": {"lr": 3e-3}, "init": "default",
          "schedules": [_ramp(1, 20)]}, _loss("ibp", 0.5)),

        ("ibp/mnist-0.1", "Gowal et al.: 98.94 / 97.08", GOWAL_MNIST, _at(0.1, 0.2), _loss("ibp")),
        ("ibp/mnist-0.3", "Gowal et al.: 98.34 / 91.79", GOWAL_MNIST, _at(0.3, 0.4), _loss("ibp")),
        ("ibp/cifar10-2", "Gowal et al.: 70.21 / 44.12", GOWAL_CIFAR, _at(2 * PIXEL, 2.2 * PIXEL), _loss("ibp")),
        ("ibp/cifar10-8", "Gowal et al.: 49.49 / 31.56", GOWAL_CIFAR, _at(8 * PIXEL, 8.8 * PIXEL), _loss("ibp")),

        ("fast-ibp/mnist-0.1", "Shi et al.: - / 97.95", FAST_MNIST, SHI, _at(0.1, 0.2), _loss("ibp"), _l1(0.0)),
        ("fast-ibp/mnist-0.3", "Shi et al.: 97.67 / 93.10", FAST_MNIST, SHI, _at(0.3, 0.4), _loss("ibp"), _l1(0.0)),
        ("fast-ibp/cifar10-2", "Shi et al.: 66.84 / 52.85", FAST_CIFAR_2, {"schedules": [_ramp(2, 80),
         _falls([120, 140], 0.2)]}, _at(2 * PIXEL), _loss("ibp"), _l1(0.0)),
        ("fast-ibp/cifar10-8", "Shi et al.: 48.94 / 34.97", FAST_CIFAR_2, {"schedules": [_ramp(2, 80),
         _falls([120, 140], 0.2)]}, _at(8 * PIXEL), _loss("ibp"), _l1(0.0)),
        ("fast-ibp/tinyimagenet-1", "Shi et al.: 25.92 / 17.87", FAST_TINY, {"epochs": 80, "schedules": [_ramp(2, 20),
         _falls([61, 71], 0.2)]}, _at(PIXEL), _loss("ibp"), _l1(0.0, 0.2)),

        ("ctbench-ibp/mnist-0.1", "98.87 / 98.26", FAST_MNIST, _at(0.1, 0.2), _loss("ibp", 0.7), _l1(2e-6)),
        ("ctbench-ibp/mnist-0.3", "98.54 / 93.80", FAST_MNIST, _at(0.3), _loss("ibp", 0.7), _l1(2e-6)),
        ("ctbench-ibp/cifar10-2", "67.49 / 55.99", FAST_CIFAR_2, _at(2 * PIXEL), _loss("ibp", 0.8), _l1(1e-6)),
        ("ctbench-ibp/cifar10-8", "48.51 / 35.28", FAST_CIFAR_8, _at(8 * PIXEL), _loss("ibp"), _l1(0.0)),
        ("ctbench-ibp/tinyimagenet-1", "26.77 / 19.82", FAST_TINY, _at(PIXEL), _loss("ibp"), _l1(1e-5, 0.2)),

        ("crown-ibp/mnist-0.1", "98.94 / 98.21", _with(FAST_MNIST, BETA), _at(0.1, 0.2),
         _loss("crown-ibp", 0.7, fused=True), _l1(5e-6)),
        ("crown-ibp/mnist-0.3", "98.48 / 93.90", _with(FAST_MNIST, BETA), _at(0.3),
         _loss("crown-ibp", 0.7, fused=True), _l1(1e-6)),
        ("crown-ibp/cifar10-2", "67.60 / 57.11", _with(FAST_CIFAR_2, BETA), _at(2 * PIXEL),
         _loss("crown-ibp", fused=True), _l1(3e-6)),
        ("crown-ibp/cifar10-8", "48.25 / 32.59", _with(FAST_CIFAR_8, BETA), _at(8 * PIXEL),
         _loss("crown-ibp", fused=True), _l1(0.0)),
        ("crown-ibp/tinyimagenet-1", "28.44 / 22.14", _with(FAST_TINY, BETA), _at(PIXEL),
         _loss("crown-ibp", fused=True), _l1(2e-5, 0.2)),

        ("sabr/mnist-0.1", "99.08 / 98.40", FAST_MNIST, _at(0.1, 0.2),
         _loss("sabr", 0.7, ratio=0.4, attack=_pgd(10, restarts=3)), _l1(1e-6)),
        ("sabr/mnist-0.3", "98.66 / 93.68", FAST_MNIST, _at(0.3),
         _loss("sabr", ratio=0.9, attack=_pgd(5, restarts=3)), _l1(2e-6)),
        ("sabr/cifar10-2", "77.86 / 63.61", FAST_CIFAR_2, _at(2 * PIXEL, 3 * PIXEL),
         _loss("sabr", ratio=0.1, attack=_pgd(5, restarts=3), **SHRINK), _l1(1e-6)),
        ("sabr/cifar10-8", "52.71 / 35.34", FAST_CIFAR_8, _at(8 * PIXEL),
         _loss("sabr", ratio=0.9, attack=_pgd(5, restarts=3)), _l1(0.0)),
        ("sabr/tinyimagenet-1", "30.58 / 20.96", FAST_TINY, _at(PIXEL),
         _loss("sabr", ratio=0.4, attack=_pgd(1, restarts=3)), _l1(5e-5, 0.2)),

        ("mtl-ibp/mnist-0.1", "99.18 / 98.37", FAST_MNIST, _at(0.1, 0.2),
         _loss("mtl-ibp", 0.7, alpha=0.02, attack=_pgd(10)), _l1(1e-5)),
        ("mtl-ibp/mnist-0.3", "98.74 / 93.90", FAST_MNIST, _at(0.3),
         _loss("mtl-ibp", alpha=0.5, attack=CORNER), _l1(1e-6)),
        ("mtl-ibp/cifar10-2", "78.82 / 64.41", FAST_CIFAR_2, _at(2 * PIXEL),
         _loss("mtl-ibp", 0.9, alpha=0.01, attack=CORNER, attack_radius=2.0), _l1(3e-6)),
        ("mtl-ibp/cifar10-8", "54.28 / 35.41", FAST_CIFAR_8, _at(8 * PIXEL),
         _loss("mtl-ibp", alpha=0.6, attack=CORNER), _l1(0.0)),
        ("mtl-ibp/tinyimagenet-1", "35.97 / 27.73", FAST_TINY, _at(PIXEL),
         _loss("mtl-ibp", 0.7, alpha=0.05, attack=CORNER, attack_radius=1.5), _l1(5e-5, 0.2)),

        ("cc-ibp/mnist-0.1", "De Palma et al.: - / 98.43", FAST_MNIST, DE_PALMA, _at(0.1, 0.2),
         _loss("cc-ibp", alpha=0.1, attack=CORNER), _l1(2e-6)),
        ("cc-ibp/mnist-0.3", "De Palma et al.", FAST_MNIST, DE_PALMA, _at(0.3, 0.4),
         _loss("cc-ibp", alpha=0.3, attack=CORNER), _l1(2e-6)),
        ("cc-ibp/cifar10-2", "De Palma et al.: - / 63.78", FAST_CIFAR_2, DE_PALMA, _at(2 * PIXEL),
         _loss("cc-ibp", alpha=0.01, attack=_pgd(8), attack_radius=2.1), _l1(3e-6)),
        ("cc-ibp/cifar10-8", "De Palma et al.", FAST_CIFAR_8, DE_PALMA, DE_PALMA_8, _at(8 * PIXEL),
         _loss("cc-ibp", alpha=0.5, attack=CORNER), _l1(0.0)),
        ("cc-ibp/tinyimagenet-1", "De Palma et al.: - / 26.39", FAST_TINY, DE_PALMA, _at(PIXEL),
         _loss("cc-ibp", alpha=0.01, attack=CORNER), _l1(5e-5, 0.2)),
        ("exp-ibp/cifar10-2", "De Palma et al.", FAST_CIFAR_2, DE_PALMA, _at(2 * PIXEL),
         _loss("exp-ibp", alpha=0.095, attack=_pgd(8), attack_radius=2.1), _l1(3e-6)),
        ("exp-ibp/cifar10-8", "De Palma et al.", FAST_CIFAR_8, DE_PALMA, DE_PALMA_8, _at(8 * PIXEL),
         _loss("exp-ibp", alpha=0.5, attack=CORNER), _l1(0.0)),
        ("exp-ibp/tinyimagenet-1", "De Palma et al.", FAST_TINY, DE_PALMA, _at(PIXEL),
         _loss("exp-ibp", alpha=0.04, attack=CORNER), _l1(5e-5, 0.2)),

        ("taps/mnist-0.1", "99.16 / 98.52", FAST_MNIST, _at(0.1, 0.2),
         _loss("taps", 0.7, layer="relu3", weight=4.0, attack=_pgd(10)), _l1(2e-6)),
        ("taps/mnist-0.3", "98.56 / 93.95", FAST_MNIST, _at(0.3, 0.4),
         _loss("taps", layer="relu4", weight=4.0, attack=_pgd(5)), _l1(0.0)),
        ("taps/cifar10-2", "74.44 / 61.27", FAST_CIFAR_2, _at(2 * PIXEL),
         _loss("taps", layer="relu1", weight=4.0, attack=_pgd(8), **SHRINK), _l1(2e-6)),
        ("taps/cifar10-8", "49.96 / 35.25", FAST_CIFAR_8, _at(8 * PIXEL),
         _loss("taps", layer="flatten", weight=2.0, attack=_pgd(10)), _l1(0.0)),
        ("taps/tinyimagenet-1", "28.53 / 21.74", FAST_TINY, _at(PIXEL),
         _loss("taps", 0.7, layer="flatten", weight=8.0, attack=_pgd(1)), _l1(5e-5, 0.2)),
        ("staps/mnist-0.1", "99.11 / 98.47", FAST_MNIST, _at(0.1, 0.2),
         _loss("staps", ratio=0.4, layer="flatten", weight=4.0), _l1(5e-6)),
        ("staps/mnist-0.3", "98.74 / 93.64", FAST_MNIST, _at(0.3),
         _loss("staps", ratio=0.6, layer="flatten", weight=4.0), _l1(1e-5)),
        ("staps/cifar10-2", "77.05 / 64.21", FAST_CIFAR_2, _at(2 * PIXEL),
         _loss("staps", ratio=0.1, layer="flatten", weight=2.0, **SHRINK), _l1(1e-6)),
        ("staps/cifar10-8", "51.49 / 35.11", FAST_CIFAR_8, _at(8 * PIXEL),
         _loss("staps", ratio=0.9, layer="flatten", weight=2.0), _l1(0.0)),
        ("staps/tinyimagenet-1", "30.63 / 22.31", FAST_TINY, _at(PIXEL),
         _loss("staps", ratio=0.6, layer="flatten", weight=4.0), _l1(5e-5, 0.2)),

        ("pgd/mnist-0.1", "adversarial training, nothing certified", FAST_MNIST, PLAIN, _at(0.1),
         _loss("adversarial", attack=_pgd(10)), _l1(1e-5, None)),
        ("pgd/mnist-0.3", "adversarial training, nothing certified", FAST_MNIST, PLAIN, _at(0.3),
         _loss("adversarial", attack=_pgd(5)), _l1(5e-6, None)),
        ("pgd/cifar10-2", "adversarial training, nothing certified", FAST_CIFAR_2, PLAIN, _at(2 * PIXEL),
         _loss("adversarial", attack=_pgd(8)), _l1(2e-5, None)),
        ("pgd/cifar10-8", "adversarial training, nothing certified", FAST_CIFAR_8, PLAIN, _at(8 * PIXEL),
         _loss("adversarial", attack=_pgd(10)), _l1(1e-6, None)),
        ("pgd/tinyimagenet-1", "adversarial training, nothing certified", FAST_TINY, PLAIN, _at(PIXEL),
         _loss("adversarial", attack=_pgd(1)), _l1(1e-5, None)),

        ("colt/mnist-0.1", "Balunovic and Vechev: 99.2 / 97.1", COLT_MNIST, _at(0.1)),
        ("colt/mnist-0.3", "Balunovic and Vechev: 97.3 / 85.7", COLT_MNIST, _at(0.3)),
        ("colt/cifar10-2", "Balunovic and Vechev: 78.4 / 60.5", COLT_CIFAR, _at(2 * PIXEL)),
        ("colt/cifar10-8", "Balunovic and Vechev: 51.7 / 27.5", COLT_CIFAR, COLT_8, _at(8 * PIXEL)),
        ("diffai/mnist-0.1", "a tenth of the loss over boxes, as Mirman et al.", DIFFAI, _at(0.1)),
        ("diffai/mnist-0.3", "a tenth of the loss over boxes, as Mirman et al.", DIFFAI, _at(0.3)),
        ("diffai/cifar10-2", "a tenth of the loss over boxes, as Mirman et al.", DIFFAI, _CIFAR, _at(2 * PIXEL)),
        ("diffai/cifar10-8", "a tenth of the loss over boxes, as Mirman et al.", DIFFAI, _CIFAR, _at(8 * PIXEL)),
        ("cap/mnist-0.1", "Wong et al., small: 98.63 / 95.01", WONG_MNIST, _at(0.1), _loss("cap", projections=50)),
        ("cap/mnist-0.3", "Wong et al., small: 85.13 / 56.90", WONG_MNIST, _at(0.3), _loss("cap", projections=50)),
        ("cap/cifar10-2", "Wong et al., small: 61.09 / 47.25", WONG_CIFAR, _at(2 * PIXEL),
         _loss("cap", projections=50)),
        ("cap/cifar10-8", "Wong et al., small: 27.76 / 20.75", WONG_CIFAR, _at(8 * PIXEL),
         _loss("cap", projections=50)),
        ("lee/mnist-0.3", "Lee et al.: 96.51 / 90.21", LEE_MNIST, _at(0.3, 0.4), _loss("one-step")),
        ("lee/cifar10-2", "Lee et al., shallow: 68.51 / 50.58", LEE_CIFAR, _at(2 * PIXEL), _loss("one-step")),
        ("lee/cifar10-8", "Lee et al., shallow: 43.99 / 30.30", LEE_CIFAR, _at(8 * PIXEL), _loss("one-step")),
    )
})  # fmt: skip


def no_preset(name: str) -> str:
    """In words: there is none of this name, but those of its method, or methods."""
    methods = dict.fromkeys(known.split("/")[0] for known in PRESETS)
    method = name.split("/")[0]
    others = [known for known in PRESETS if known.startswith(f"{method}/")]
    near = unknown("preset", name, PRESETS).partition(" (")[0]
    return f"{near} (there are: {', '.join(others or [f'{m}/...' for m in methods])}; `absdom train --list`)"


def preset(name: str) -> dict:
    """The tables of a preset. Raises UsageError for a name that is none."""
    if name not in PRESETS:
        raise UsageError(no_preset(name))
    return merged(PRESETS[name][1])
