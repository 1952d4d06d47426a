"""Fast interval training: an initialisation and regularisers that keep boxes small (Shi et al. 2021, "Fast certified
robust training with short warmup")."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, sqrt
from typing import ClassVar

import torch

from absdom.api import load
from absdom.domain import NodeBounds
from absdom.errors import UsageError
from absdom.ops.piecewise import Relu
from absdom.passes import lower
from absdom.train.bounds import IBP
from absdom.train.layers import normalised_input, reads_sum, weighted_layers
from absdom.train.live import Live
from absdom.train.loss import Loss, Regulariser, Step
from absdom.train.task import Specification

SMALLEST = 1e-6  # the radius at which boxes are looked at while the loss is taken at points


@torch.no_grad()
def fast_init_(module: torch.nn.Module, example: torch.Tensor) -> None:
    """Weights of all layers but the last from N(0, 2 pi / n^2), n the inputs of one output: the mean radius of boxes
    stays as it is from layer to layer (Shi et al. 2021, section 3.1). Biases and norms stay as they are.

    Weights that read an activation of a sum of two branches are halved. example: an input of batch size 1.
    """
    graph = lower(load(module, example, batch_norm="eval"))
    layers = weighted_layers(graph)
    for layer in layers[:-1]:
        torch.nn.init.normal_(layer.weight, 0.0, sqrt(2 * pi) / layer.inputs)
    for layer in layers:
        if reads_sum(graph, layer.node):
            layer.weight.div_(2)


class FastRegulariser(Regulariser):
    """strength (1 - eps / eps_max) (L_t + L_r): for the warm-up and the ramp of interval training (Shi et al. 2021,
    section 3.2; both terms are 0 from eps = eps_max on).

    L_t, tightness: the mean radius in front of each ReLU shall not exceed 1 / tolerance times that of the input
    (behind its normalisation). L_r, balance: active and inactive ReLUs shall differ in mean and in variance by no
    more than that either; a layer where a ratio is not finite is left out. Boxes are those of interval propagation, at
    eps = 0 those of radius 1e-6. Raises UsageError for a network without ReLUs.
    """

    name: ClassVar[str] = "fast"
    state: ClassVar[tuple[str, ...]] = ("strength",)

    def __init__(self, strength: float = 0.5, tolerance: float = 0.5, *, eps_max: float):
        if not eps_max > 0 or not tolerance > 0:
            raise UsageError(f"eps_max {eps_max} and tolerance {tolerance}: give numbers above 0")
        self.strength, self.tolerance, self.eps_max = strength, tolerance, eps_max

    def __call__(self, step: Step, loss: Loss) -> torch.Tensor:
        factor = self.strength * (1 - step.task.eps / self.eps_max)
        if factor <= 0:
            return step.task.x.new_zeros(())
        run = step.propagate("ibp", None if step.task.eps > 0 else step.task_at(SMALLEST).sets)
        graph, bounds = run.context.graph, run.bounds
        read = [node.inputs[0] for i, node in enumerate(graph.nodes) if isinstance(node.op, Relu) and graph.varying[i]]
        if not read:
            raise UsageError("there is no ReLU in the network whose boxes could be regularised")
        start = _radius(bounds[normalised_input(graph)]).mean()
        terms = [self._tightness(start, bounds[i]) + self._balance(bounds[i]) for i in read]
        return factor * torch.stack(terms).mean()

    def _tightness(self, start: torch.Tensor, bounds: NodeBounds) -> torch.Tensor:
        return self._below(start / _radius(bounds).mean().clamp(min=1e-12))

    def _balance(self, bounds: NodeBounds) -> torch.Tensor:
        centre = bounds.lower / 2 + bounds.upper / 2
        on, off = (bounds.lower > 0).to(centre.dtype), (bounds.upper < 0).to(centre.dtype)
        spread = (centre - centre.mean()).square()
        pairs = ((centre * on).mean(), -(centre * off).mean()), ((spread * on).sum(), (spread * off).sum())
        found = centre.new_zeros(())
        finite = torch.ones_like(found, dtype=torch.bool)
        for active, inactive in pairs:
            some = inactive > 0
            ratio = active / torch.where(some, inactive, torch.ones_like(inactive))
            found = found + self._below(torch.minimum(ratio, 1 / ratio.clamp(min=1e-12)))
            finite = finite & some & ratio.isfinite()
        return torch.where(finite, found, torch.zeros_like(found))

    def _below(self, ratio: torch.Tensor) -> torch.Tensor:
        """How far a ratio is below the tolerance, relative to it."""
        return torch.relu(self.tolerance - ratio) / self.tolerance


def _radius(bounds: NodeBounds) -> torch.Tensor:
    return (bounds.upper - bounds.lower) / 2


class FastIBP(IBP):
    """Interval training with the regulariser of Shi et al. (2021); `fast_init_` belongs to it.

    The loss is that of the lower bounds alone (kappa = 0), which at eps = 0 is the loss at the points.
    """

    def __init__(
        self,
        module: torch.nn.Module | Live,
        spec: Specification,
        *,
        eps: float,
        eps_max: float,
        strength: float = 0.5,
        tolerance: float = 0.5,
        kappa: float = 0.0,
        regularisers: Sequence[Regulariser] = (),
        **more,
    ):
        fast = FastRegulariser(strength, tolerance, eps_max=eps_max)
        super().__init__(module, spec, eps=eps, kappa=kappa, regularisers=(fast, *regularisers), **more)
