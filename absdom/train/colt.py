"""COLT: convex layerwise adversarial training, stage by stage (Balunovic and Vechev 2020), and what moves its stages.

At a stage the network is cut at a layer. In front of the cut weights stand still, and the layer's values are known to
lie in a zonotope: z = slope x + middle + half x error at every nonlinear element, with an error of its own in [-1, 1].
An attack looks for errors (those of the inputs too) for which the rest of the network does badly, and the rest is
trained on what it found. A point of the zonotope costs one pass to the cut; generators are not needed for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.optim import Optimizer

from absdom.api import recipe_of
from absdom.domain import Forward, Recipe
from absdom.errors import UsageError
from absdom.ir.op import Affine, Elementwise
from absdom.sets import InputBatch
from absdom.train.attacks import PGD, Attack
from absdom.train.bounds import estimates
from absdom.train.latent import Cut
from absdom.train.live import Propagation
from absdom.train.loss import Loss, Step
from absdom.train.schedules import Schedule
from absdom.train.task import Specification, Task


class RelaxedPoints:
    """Points of the set in which a domain's relaxations, over the bounds of a run, enclose a layer's values.

    Callable: errors "B m" in [-1, 1] -> values "B *n", differentiable in the errors and not in the weights. Raises
    UsageError for input sets that are no boxes, and for a domain that follows no points.
    """

    def __init__(self, run: Propagation, cut: Cut, domain: str | Recipe = "zonotope"):
        if run.sets.parts:
            raise UsageError("points of a relaxation are made from boxes of inputs: take a specification with norm inf")
        self.cut, self.context, domain = cut, run.context.uncharged(), recipe_of(domain)
        graph, bounds = self.context.graph, {i: run.bounds[i].detach() for i in cut.front}
        own = [i for i in cut.front if not isinstance(graph.nodes[i].op, Affine)]
        places = {i: self.context.place(i, bounds) for i in own}
        self.relaxed = {i: domain.follow(p) if isinstance(domain, Forward) else None for i, p in places.items()}
        if None in self.relaxed.values():
            raise UsageError(f"{domain!r} follows no points through a network: take a zonotope")
        self.sizes = [graph.nodes[i].type.numel for i in own]

    def task(self, task: Task) -> Task:
        """The same question about the errors: its points are their middles, "B m"."""
        middle = task.x.new_zeros((len(task), sum(self.sizes)))
        return replace(task, x=middle, sets=InputBatch(middle - 1, middle + 1))

    def __call__(self, errors: torch.Tensor) -> torch.Tensor:
        nodes, values = self.context.graph.nodes, dict(self.context.values)
        parts = dict(zip(self.relaxed, errors.split(self.sizes, 1), strict=True))
        for i in self.cut.front:
            node = nodes[i]
            read = [values[j] for j in node.inputs]
            if i in parts:
                values[i] = self.relaxed[i](read, parts[i].reshape(-1, *node.type.shape))
            else:  # affine: a point goes to a point
                values[i] = node.op.eval(*read)
        return values[self.cut.node]


class COLT(Loss):
    """A stage of convex layerwise adversarial training: kappa L_k + (1 - kappa) L_(k-1) + kappa x stability x unstable.

    Stage 0 attacks the inputs, so that L_0 is that of adversarial training (and L_-1 the clean loss); stage k attacks
    layers[k-1], named as in the module, in order from the input. L_k: the loss at the points of the layer's zonotope
    that the attack found. unstable: per item the sum of (-l)+ (u)+ over the values in front of the next stage's layer
    (over its own where it is no function of single elements). In a stage k > 0 the parameters in front of layers[k-1]
    are frozen: the first call sets `requires_grad` to False, and nothing sets it back.

    recipe: bounds of the values that relaxations are made for. The published code estimates them (Wong et al. 2018):
    that is "projected", for networks whose zonotopes are too large. attack: of error terms; its step is relative to
    [-1, 1]. The published L1 term is a regulariser. margins: the recipe's bounds, if it proves any, in a stage with
    affine layers only behind its cut; else None.
    """

    state = ("eps", "kappa", "stage", "stability")

    def __init__(
        self,
        module,
        spec: Specification,
        *,
        eps: float,
        layers: Sequence[str],
        stage: int = 0,
        kappa: float = 1.0,
        stability: float = 0.0,
        recipe: str | Recipe = "zonotope",
        attack: Attack = PGD(steps=8, step=0.25),  # noqa: B008  (a frozen value)
        **more,
    ):
        super().__init__(module, spec, eps=eps, **more)
        if not layers or isinstance(layers, str):
            raise UsageError("layers: the names of the layers that stages cut at, in order from the input")
        self.layers, self.stage, self.kappa, self.stability = tuple(layers), stage, kappa, stability
        self.recipe, self.attack = recipe, attack

    def terms(self, step):
        cuts = self._cuts(step)
        self._freeze(step, cuts)
        stabilised = self.kappa * self.stability > 0 and self.stage < len(cuts)
        next_node = _front_of(step, cuts[self.stage]) if stabilised else None
        run = self._run(step, cuts, next_node)
        terms = {}
        if self.kappa > 0:
            terms["latent"] = self.kappa * self._attacked(step, run, cuts, self.stage)
        if self.kappa < 1:
            terms["previous"] = (1 - self.kappa) * self._attacked(step, run, cuts, self.stage - 1)
        if stabilised:
            bounds = run.bounds[next_node]
            unstable = (-bounds.lower).clamp(min=0) * bounds.upper.clamp(min=0)
            terms["stability"] = self.kappa * self.stability * unstable.flatten(1).sum(1).mean()
        margins = None
        if self.stage and run.context.schedule.target in step.live.graph(step.statistics).outputs:
            if not estimates(self.recipe):
                with torch.no_grad():
                    margins = run.lower_bounds(step.task.C, step.task.d)
        return terms, margins

    def _cuts(self, step: Step) -> list[Cut]:
        """The cuts of all stages but the first. Raises UsageError where they are not in order."""
        if not 0 <= self.stage <= len(self.layers):
            raise UsageError(f"stage {self.stage}: with the layers {self.layers} it is 0 to {len(self.layers)}")
        cuts = [step.cut(name) for name in self.layers]
        for a, b in zip(cuts, cuts[1:], strict=False):
            if a.node not in b.front[:-1]:
                raise UsageError(f"layers of stages go from the input on: {b.layer!r} does not lie behind {a.layer!r}")
        return cuts

    def _freeze(self, step: Step, cuts: Sequence[Cut]) -> None:
        if self.stage:
            frozen = frozenset(cuts[self.stage - 1].parameters)
            for name, parameter in self.module.named_parameters():
                if name in frozen:
                    parameter.requires_grad_(False)

    def _run(self, step: Step, cuts: Sequence[Cut], next_node: int | None) -> Propagation | None:
        """The recipe, as far as this stage needs it."""
        if not self.stage:
            return None if next_node is None else step.propagate(self.recipe, node=next_node)
        cut, nodes = cuts[self.stage - 1], step.live.graph(step.statistics).nodes
        if all(isinstance(nodes[i].op, Affine) for i in cut.behind):
            return step.propagate(self.recipe)
        return step.propagate(self.recipe, node=cut.node if next_node is None else next_node)

    def _attacked(self, step: Step, run: Propagation, cuts: Sequence[Cut], stage: int) -> torch.Tensor:
        """L_stage, the mean over the batch."""
        task = step.task
        if stage < 1:
            outputs = step.outputs if stage < 0 else step.attacked(self.attack)[1]
        else:
            cut = cuts[stage - 1]
            points, rest = RelaxedPoints(run, cut), step.live.context("ibp", task.x, step.statistics)
            fixed = rest.uncharged()
            errors = self.attack(lambda e: cut.evaluate(fixed, points(e)), points.task(task))
            outputs = cut.evaluate(rest, points(errors.detach()))
        return task.loss(task.margins(outputs)).mean()


def _front_of(step: Step, cut: Cut) -> int:
    """The node whose signs matter to a layer: its input, or itself where it is no function of single elements."""
    graph = step.live.graph(step.statistics)
    node = graph.nodes[cut.node]
    return node.inputs[0] if isinstance(node.op, Elementwise) else cut.node


class COLTStages(Schedule):
    """Takes a COLT loss and its optimiser through all stages; lengths are in batches.

    Each stage takes `length` batches. kappa goes from 0 to 1 in the first `mix`; thereafter the learning rate is halved
    every `halve`. Stage k of n: the radius is factor x widen^(n-1-k) x eps, the learning rate starts at decay^k times
    the optimiser's own, the stability term at grow^k x stability, and the optimiser's momenta at zero. The defaults are
    those published for CIFAR-10 at 2/255 (8/255: widen 1.2, decay .5, stability .003).
    """

    def __init__(
        self,
        loss: COLT,
        optimiser: Optimizer,
        *,
        eps: float,
        length: int,
        mix: int,
        halve: int,
        factor: float = 1.05,
        widen: float = 1.1,
        decay: float = 0.75,
        stability: float = 0.005,
        grow: float = 1.5,
    ):
        if not (0 < mix <= length and halve > 0):
            raise UsageError(
                f"stages of {length} batches, mixed in the first {mix}, the rate halved every {halve}: it takes "
                f"0 < mix <= length and 0 < halve"
            )
        self.optimiser, self.stages = optimiser, len(loss.layers) + 1
        self.eps, self.length, self.mix, self.halve = eps, length, mix, halve
        self.factor, self.widen, self.decay, self.stability, self.grow = factor, widen, decay, stability, grow
        self.rates = [group["lr"] for group in optimiser.param_groups]
        own = ("eps", "length", "mix", "halve", "factor", "widen", "decay", "stability", "grow", "rates")
        super().__init__(loss, "stage", layers=list(loss.layers), **{name: getattr(self, name) for name in own})

    def value_at(self, k):
        """The stage of batch k."""
        return min(k // self.length, self.stages - 1)

    @property
    def finished(self):
        return self.count >= self.stages * self.length

    def step(self):
        before = self.target.stage
        super().step()
        if self.target.stage != before:
            self.optimiser.state.clear()

    def _set(self):
        loss, stage = self.target, self.value_at(self.count)
        done = self.count - stage * self.length
        loss.stage, loss.kappa = stage, min(1.0, done / self.mix)
        loss.eps = self.factor * self.widen ** (self.stages - 1 - stage) * self.eps
        loss.stability = self.stability * self.grow**stage
        rate = self.decay**stage * 0.5 ** (max(0, done - self.mix) // self.halve)
        for group, own in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = own * rate
