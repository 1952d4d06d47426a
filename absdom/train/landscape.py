"""How smooth and how tight a loss is along its training: the measures of Lee et al. (2021), section 4, as a hook.

    Trainer(loss, optimiser, data, hooks=[Landscape(every=100)], out="run", ...).run()
    plot("both.svg", {"IBP": read("run/landscape.jsonl"), "CROWN-IBP": read("other/landscape.jsonl")})

Relaxations that are tight by sparse choices of slopes train worse than their bounds promise, since their loss is not
smooth: this shows it. Measuring changes nothing of the training: weights, gradients, statistics and random numbers are
as before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from absdom.errors import UsageError
from absdom.ir.op import Elementwise
from absdom.train.attacks import PGD, Attack
from absdom.train.chart import Panel, draw
from absdom.train.hooks import Hook
from absdom.train.live import Propagation
from absdom.train.log import write_log
from absdom.train.loss import Loss, Output, Step

FILE = "landscape.jsonl"
ATTACK = PGD(10, 0.25)


class Landscape(Hook):
    """Measures on the batch of every so many-th step, before the optimiser's step (each process on its own part).

    every: batches from one measurement to the next. lengths: how far to go along the negative gradient of the batch,
    in learning rates (Santurkar et al. 2018). attack: finds the points that bounds are compared with; None: none.

    Each record, an entry of `records` and, once its epoch is done, a line of `landscape.jsonl` in the trainer's folder
    (of the first process; at the end `landscape.svg` shows them), has
    - step, eps, loss; gradient: the l2 norm of the batch's gradient;
    - along: the losses of the batch at weights - length x learning rate x gradient, for each length;
      variation: the greatest less the least of these and of `loss`;
    - distance_along, cosine_along: the greatest l2 distance of the gradients there from the batch's, and the least
      cosine of the angle between them;
    - distance, cosine: the same of the batch's gradient and that of the batch before, at the weights before the last
      step (None at the first step of a run);
    - tightness: the sum over rows of the upper bounds -margin, mean over the batch (section 5: the lower, the tighter);
      tightness_ibp: of interval bounds of the same network; tightness_attacked: of -margin at attacked points, which is
      below all sound bounds (each None where there is no such number);
    - slopes: of the inputs of unstable activations, the share whose lower line has a slope other than zero: 0 for
      intervals; None for bounds that are not made of lines, and where no activation is unstable.

    A loss that draws random numbers draws the same ones wherever it is taken.
    """

    def __init__(
        self, every: int = 100, lengths: Sequence[float] = (0.5, 1.0, 2.0, 4.0), attack: Attack | None = ATTACK
    ):
        if every < 1:
            raise UsageError(f"a measurement every {every} batches: at least one batch apart")
        if not lengths or not all(t > 0 for t in lengths):
            raise UsageError(f"lengths {list(lengths)}: one number or more, all above 0")
        self.every, self.lengths, self.attack = every, tuple(lengths), attack
        self.records: list[dict] = []
        self._before: torch.Tensor | None = None

    def before_step(self, trainer, x, y, out):
        gradient = None
        if trainer.step % self.every == 0:
            rates = {group["lr"] for group in trainer.optimiser.param_groups}
            with undisturbed(trainer.loss):
                record, gradient = self.measure(trainer.loss, x, y, max(rates))
            self.records.append({"step": trainer.step, **record})
        self._before = None
        if (trainer.step + 1) % self.every == 0:
            if gradient is None:
                with undisturbed(trainer.loss):
                    gradient = differentiate(trainer.loss, x, y)[1]
            self._before = gradient

    def epoch_end(self, trainer, record):
        if trainer.out is not None and trainer.processes.first:
            write_log(trainer.out / FILE, self.records)

    def run_end(self, trainer):
        if trainer.out is not None and trainer.processes.first:
            plot((trainer.out / FILE).with_suffix(".svg"), {type(trainer.loss).__name__: self.records})

    def measure(self, loss: Loss, x: torch.Tensor, y: torch.Tensor, rate: float) -> tuple[dict, torch.Tensor]:
        """The record of a batch, and the gradient there, flat; weights are moved and put back."""
        draw_again = random_state(x.device)
        with loss.live(x).recorded() as runs:
            out, gradient = differentiate(loss, x, y)
        share = slope_share(runs)
        value, norm = float(out.total.detach()), float(gradient.norm())
        losses, gradients = [], []
        parameters = trained(loss)
        for length in self.lengths:
            with moved(parameters, -length * rate * gradient):
                set_random_state(draw_again, x.device)
                ahead, there = differentiate(loss, x, y)
            losses.append(float(ahead.total.detach()))
            gradients.append(there)
        before = self._before
        record = {
            "eps": float(loss.eps), "loss": value, "gradient": norm, "along": losses,
            "variation": max(value, *losses) - min(value, *losses),
            "distance_along": max(float((g - gradient).norm()) for g in gradients),
            "cosine_along": min(cosine(g, gradient) for g in gradients),
            "distance": None if before is None else float((before - gradient).norm()),
            "cosine": None if before is None else cosine(before, gradient),
            **self._tightness(loss, x, y, out), "slopes": share,
        }  # fmt: skip
        return record, gradient

    def _tightness(self, loss: Loss, x: torch.Tensor, y: torch.Tensor, out: Output) -> dict:
        def of(margins: torch.Tensor | None) -> float | None:
            return None if margins is None else float(-margins.double().sum(1).mean())

        live, attacked = loss.live(x), None
        step = Step(live, out.task, loss.batch_norm, lambda eps: loss.spec.task(x, y, eps, live.outputs))
        with torch.no_grad():
            if self.attack is not None:
                attacked = out.task.margins(step.attacked(self.attack)[1])
            interval = step.margins("ibp")
        return {
            "tightness": of(out.margins), "tightness_ibp": of(interval), "tightness_attacked": of(attacked),
        }  # fmt: skip

    def state_dict(self):
        return {"records": list(self.records), "before": self._before}

    def load_state_dict(self, state):
        self.records, self._before = list(state["records"]), state["before"]


def trained(loss: Loss) -> list[torch.nn.Parameter]:
    return [p for p in loss.module.parameters() if p.requires_grad]


def differentiate(loss: Loss, x: torch.Tensor, y: torch.Tensor) -> tuple[Output, torch.Tensor]:
    """The loss of a batch and its gradient, flat; what is in `.grad` stays."""
    with torch.enable_grad():
        out = loss(x, y)
        found = torch.autograd.grad(out.total, trained(loss), allow_unused=True, materialize_grads=True)
    return out, torch.cat([g.flatten() for g in found])


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def slope_share(runs: Sequence[Propagation]) -> float | None:
    """Of the inputs of activations that are not exact on their intervals, the share whose lower line, in the last sweep
    of each run, has a slope other than zero. None where all are exact, and for other domains than intervals and lines.
    """
    lines = [{i: r.lines for (_, i), r in run.relaxations.items() if hasattr(r, "lines")} for run in runs]
    if not any(lines) and any(len(run.context.schedule.reach) > 1 or run.context.schedule.duals for run in runs):
        return None
    count = sloped = 0
    for run, found in zip(runs, lines, strict=True):
        if any(lines) and not found:  # a pass beside the one with lines, such as the attack's or the intervals'
            continue
        for i, node in enumerate(run.context.graph.nodes):
            if not isinstance(node.op, Elementwise) or node.inputs[0] not in run.bounds:
                continue
            bounds = run.bounds[node.inputs[0]]
            loose = ~node.op.is_exact(bounds.lower, bounds.upper)
            count += int(loose.sum())
            if i in found:
                sloped += int((loose & (found[i].lower_slope != 0)).sum())
    return sloped / count if count else None


@contextmanager
def moved(parameters: Sequence[torch.nn.Parameter], by: torch.Tensor) -> Iterator[None]:
    """The parameters moved by a flat vector, and put back bit by bit."""
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, part in zip(parameters, by.split([p.numel() for p in parameters]), strict=True):
            p += part.reshape(p.shape)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, before, strict=True):
                p.copy_(value)


@contextmanager
def undisturbed(loss: Loss) -> Iterator[None]:
    """Random numbers and the module's buffers (running statistics) are afterwards as they were."""
    device = next(loss.module.parameters()).device
    state = random_state(device)
    buffers = [(b, b.detach().clone()) for b in loss.module.buffers()]
    try:
        yield
    finally:
        set_random_state(state, device)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def read(path: str | Path) -> list[dict]:
    """The records of a `landscape.jsonl`."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def plot(path: str | Path, runs: Mapping[str, Sequence[dict]]) -> None:
    """The measures of one run or several over steps, as an SVG file: loss with its variation along the gradient,
    distance and cosine of successive gradients, tightness beside that of intervals, share of sloped lower lines."""
    titles = {
        "variation": "loss and its range along the gradient", "distance": "distance of successive gradients",
        "cosine": "cosine of successive gradients", "tightness": "bound (sum over rows), less that of intervals",
        "slopes": "unstable activations with a sloped lower line",
    }  # fmt: skip
    panels = []
    for key, title in titles.items():
        panel = Panel(title)
        for name, records in runs.items():
            if key == "variation":
                ends = [
                    (r["step"], r["loss"], min(r["loss"], *r["along"]), max(r["loss"], *r["along"])) for r in records
                ]
                panel.band(name, *zip(*ends, strict=True))
                continue
            points = [(r["step"], value(r, key)) for r in records if value(r, key) is not None]
            if points:
                panel.line(name, *zip(*points, strict=True))
        panels.append(panel)
    Path(path).write_text(draw(panels, "batches"))


def value(record: Mapping, key: str) -> float | None:
    if key == "tightness":
        ends = record["tightness"], record["tightness_ibp"]
        return None if None in ends else ends[0] - ends[1]
    return record[key]
