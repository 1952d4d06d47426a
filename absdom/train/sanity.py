"""What is looked at before a run starts: do module, optimiser, data, and the radius fit together?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import inf

import torch

from absdom.errors import PropertyError, UsageError
from absdom.train.data import TrainingData, as_points
from absdom.train.live import Live
from absdom.train.loss import Loss
from absdom.train.schedules import Ramp, Schedule

HALF = (torch.float16, torch.bfloat16)
PIXELS = 255


def check_precision(module: torch.nn.Module, data: TrainingData) -> torch.device:
    """The device and the type of numbers are one and the same everywhere. Raises UsageError."""
    parameters = dict(module.named_parameters())
    if not parameters:
        raise UsageError(f"{type(module).__name__} has no parameters: there is nothing to train")
    x = as_points(data.x[:1])
    for name, p in parameters.items():
        if p.dtype in HALF:
            raise UsageError(f"the parameter {name!r} is {p.dtype}: bounds in half precision are refused; use float32")
        if p.device != x.device:
            raise UsageError(f"the parameter {name!r} is on {p.device}, the data on {x.device}: move one of them")
        if p.is_floating_point() and p.dtype != x.dtype:
            raise UsageError(f"the parameter {name!r} is {p.dtype}, points are {x.dtype}: convert one of them")
    if torch.is_autocast_enabled(x.device.type):
        raise UsageError("bounds under autocast (mixed precision) are refused: leave that region for the training")
    return x.device


def check_optimiser(optimiser: torch.optim.Optimizer, module: torch.nn.Module) -> None:
    """It moves parameters of this module. Raises UsageError."""
    own = {id(p) for p in module.parameters()}
    moved = [p for group in optimiser.param_groups for p in group["params"]]
    foreign = sum(id(p) not in own for p in moved)
    if foreign:
        raise UsageError(
            f"{foreign} of the {len(moved)} tensors that the optimiser moves are no parameters of the loss's module: "
            "make it with the parameters of that module, after the module was moved to its device"
        )


def check_items(loss: Loss, live: Live, data: TrainingData, name: str) -> None:
    """Every item fits the specification. Raises PropertyError with the item's place."""
    start = 0
    for x, y in data.parts():
        try:
            loss.spec.check(x, y.cpu(), live.outputs)
        except PropertyError as error:
            raise PropertyError(f"items {start} to {start + len(x) - 1} of the {name} data: {error}") from None
        start += len(x)


def warn_of_units(loss: Loss, schedules: Sequence[Schedule], data: TrainingData) -> None:
    """Warns where the radius and the data, or the data and the range of the inputs, seem to be in different units.

    Of specifications that have the range `clip` and the `norm` of a ball; others have units of their own.
    """
    spec = loss.spec
    if not hasattr(spec, "clip"):
        return
    low, high = data.range()
    ends = [s.value_at(k) for s in schedules if s.target is loss and s.name == "eps" for k in (0, 2**40)]
    eps, norm = max([loss.eps, *ends]), getattr(spec, "norm", inf)
    reach = (high - low) * data.x[0].numel() ** (0 if norm == inf else 1 / norm)
    where = f"data in [{low:g}, {high:g}]"
    if eps >= reach > 0:
        _warn(
            f"eps {eps:g} for {where}: the set around each point holds all of them. eps is in the units of the data, "
            f"after pixels were divided by {PIXELS}: eps {eps:g} of {PIXELS} is {eps / PIXELS:.4g}"
        )
    elif low >= 0 and PIXELS / 2 < high <= PIXELS and 0 < eps < 1:
        _warn(
            f"eps {eps:g} for {where}: less than one step of such pixels. eps is in the units of the data: divide the "
            f"data by {PIXELS} (uint8 data are), or give eps as {eps * PIXELS:.4g}"
        )
    if spec.clip is not None and (low < spec.clip[0] or high > spec.clip[1]):
        _warn(
            f"{where}, outside the range [{spec.clip[0]:g}, {spec.clip[1]:g}] of the inputs (clip), which cuts the "
            "sets down to it: give the range of these data, or None"
        )


def warn_of_ramps(schedules: Sequence[Schedule], steps: int) -> None:
    """Warns of ramps that are not at their end when the run is, after so many batches."""
    for ramp in schedules:
        if isinstance(ramp, Ramp) and ramp.start + ramp.length > steps:
            _warn(
                f"{ramp.name} reaches {ramp.end_value:g} after {ramp.start + ramp.length:g} batches, and the run has "
                f"{steps}: it ends at {ramp.value_at(steps):.4g}; train longer, or shorten the ramp"
            )


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)
