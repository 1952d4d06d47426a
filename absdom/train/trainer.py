"""A thin loop over a loss, an optimiser, data and schedules; all that it needs to go on is in its checkpoint.

    loss = IBP(net, Classification(), eps=0.0)
    ramp = Ramp(loss, "eps", 0.0, 0.1, data.in_batches(1), data.in_batches(5))
    Trainer(loss, torch.optim.Adam(net.parameters(), 1e-3), data, epochs=10, schedules=[ramp], out="run").run()

The folder `out` gets `log.jsonl`, one record per epoch, and `checkpoint.pt`, the state after the last good epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from math import inf
from pathlib import Path

import torch

from absdom.allocator import keep_freed_memory
from absdom.errors import AbsdomError, UsageError
from absdom.files import plain
from absdom.progress import progress_bar
from absdom.train import checkpoint
from absdom.train.batch_norm import set_population_statistics
from absdom.train.data import TrainingData
from absdom.train.hooks import Hook
from absdom.train.live import NORMS
from absdom.train.log import Meter, append_log, nested, write_log
from absdom.train.loss import Loss, Output
from absdom.train.parallel import Backward, Processes, joined
from absdom.train.sanity import check_items, check_optimiser, check_precision, warn_of_ramps, warn_of_units
from absdom.train.schedules import Schedule
from absdom.train.shares import NEURONS, Evaluation, shares_of

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
READ_EVERY = 50  # batches on a GPU, where reading a figure waits for all work before it; on a CPU every one is read


class Trainer:
    """Trains `loss.module`.

    optimiser: one of torch.optim, of the module's parameters. epochs: how many in all. schedules: stepped per batch.
    clip_norm: the norm that the gradient is cut down to (None: never). accumulate: the batch is worked on in so many
    pieces, for less memory; the gradient is that of the whole batch where its loss is a mean over items (batch norms
    see the pieces). validation: held-out items, evaluated after each epoch as `evaluation` says. out: the folder for
    log and checkpoint, None for neither. seed: of shuffles, augmentations and all other random numbers of the run.
    config: plain values that a resumed run has to have too. checkpoint_every: epochs.

    With several processes (torchrun) each works on its share of every batch, and gradients are averaged; batch norms
    use the statistics of the share. Each has to make module and data on its own device (`cuda:LOCAL_RANK`).

    Attributes that hooks may use: loss, module, optimiser, data, schedules, epochs, `epoch` and `step` (numbers of
    epochs and batches done), out.
    """

    def __init__(
        self,
        loss: Loss,
        optimiser: torch.optim.Optimizer,
        data: TrainingData,
        *,
        epochs: int,
        schedules: Sequence[Schedule] = (),
        hooks: Sequence[Hook] = (),
        clip_norm: float | None = 10.0,
        accumulate: int = 1,
        validation: TrainingData | None = None,
        evaluation: Evaluation | None = None,
        out: str | Path | None = None,
        seed: int = 0,
        config: Mapping | None = None,
        checkpoint_every: int = 1,
    ):
        for name, value in (("epochs", epochs), ("accumulate", accumulate), ("checkpoint_every", checkpoint_every)):
            if value < 1:
                raise UsageError(f"{name} {value}: at least one")
        if clip_norm is not None and not clip_norm > 0:
            raise UsageError(f"clip_norm {clip_norm} is not above 0 (None: gradients as they are)")
        self.loss, self.module, self.optimiser, self.data = loss, loss.module, optimiser, data
        self.epochs, self.schedules, self.hooks = epochs, tuple(schedules), tuple(hooks)
        self.clip_norm, self.accumulate, self.seed = clip_norm, accumulate, seed
        self.validation, self.evaluation = validation, Evaluation() if evaluation is None else evaluation
        self.out = None if out is None else Path(out)
        self.config, self.checkpoint_every = plain(dict(config or {})), checkpoint_every
        self.epoch, self.step, self.stopped = 0, 0, None
        self.records: list[dict] = []
        self.processes = Processes()
        self._random: dict | None = None  # where the generators are, between two calls of `run`

    @property
    def finished(self) -> bool:
        """Was the last epoch reached, or an earlier end?"""
        return self.epoch >= self.epochs or self.stopped is not None

    def stop(self, reason: str) -> None:
        """End the training after this epoch; the reason is logged."""
        self.stopped = reason

    def run(
        self, resume: bool = False, seconds: float = inf, progress: Callable[[str], None] | None = None
    ) -> list[dict]:
        """Train to the last epoch; the log's records, those of earlier pieces too.

        resume: go on from the checkpoint in `out` (from the start if there is none). seconds: stop, to be resumed,
        where another epoch would take longer than that. progress: called per batch with a text; None: a bar on stderr
        where that is a terminal.

        Raises UsageError for what does not fit together (half precision; a checkpoint of another network, config or
        data), PropertyError for labels out of range, ModelError and UnsupportedOp for a module that cannot be captured
        (all before anything is written), AbsdomError where a loss or a gradient is not finite: the checkpoint in `out`
        is then the state after the last good epoch.
        """
        started = time.perf_counter()
        keep_freed_memory()
        device = check_precision(self.module, self.data)
        check_optimiser(self.optimiser, self.module)
        live = self.loss.live(next(self.data.epoch(0, self.seed)).x)  # augmented, so that this was tried too
        check_items(self.loss, live, self.data, "training")
        if self.validation is not None:
            check_items(self.loss, live, self.validation, "held-out")
        for hook in self.hooks:
            hook.check(self)
        self.processes = joined(device)
        if self.processes.first:
            warn_of_units(self.loss, self.schedules, self.data)
            warn_of_ramps(self.schedules, self.epochs * self.data.batches)
        if self.validation is not None and len(self.validation) < self.processes.count:
            raise UsageError(
                f"{len(self.validation)} held-out items for {self.processes.count} processes: one for each"
            )
        states, longest = self._start(resume) or self._random, 0.0
        left = (self.epochs - self.epoch) * self.data.batches
        shown = self.processes.first
        bar = progress_bar(left) if shown and progress is None else nullcontext(progress if shown else None)
        # What was not imported before (by the bar, too) may draw random numbers: it comes first.
        with bar as advance, checkpoint.own_randomness(self.seed, self.processes.rank, states):
            backward = Backward(self.loss, self.processes)
            while not self.finished and self._fits(time.perf_counter() - started + longest, seconds):
                begun = time.perf_counter()
                self._epoch(backward, advance or (lambda text: None))
                longest = max(longest, time.perf_counter() - begun)
            self._save()
            if self.finished:
                for hook in self.hooks:
                    hook.run_end(self)
            self._random = checkpoint.random_states()
        return self.records

    def population_statistics(self) -> None:
        """Give the batch norms the statistics of the whole training set, with the augmentations of the last epoch."""
        rank, processes = self.processes.rank, self.processes.count
        batches = self.data.epoch(max(self.epoch - 1, 0), self.seed, rank, processes)
        set_population_statistics(self.module, (x for x, _ in batches))
        self._average_norms()

    def _average_norms(self) -> None:
        norms = [m for m in self.module.modules() if isinstance(m, NORMS) and m.running_mean is not None]
        self.processes.average_([t for m in norms for t in (m.running_mean, m.running_var)])

    def _fits(self, needed: float, seconds: float) -> bool:
        """The first process decides: clocks differ."""
        return bool(self.processes.gather(needed <= seconds)[0])

    # One epoch.

    def _epoch(self, backward: Backward, advance: Callable[[str], None]) -> None:
        begun, ends = time.perf_counter(), self._values()
        meter = Meter(1 if self.data.x.device.type == "cpu" else READ_EVERY)
        batches = self.data.epoch(self.epoch, self.seed, self.processes.rank, self.processes.count)
        for k, (x, y) in enumerate(batches):
            ends = self._values()
            share = len(x) / self.data.size(k)
            self._batch(backward, meter, x, y, share * self.processes.count)  # gradients are averaged, not summed
            loss = "" if meter.loss is None else f" loss {meter.loss:.4f}"
            advance(f"epoch {self.epoch + 1}/{self.epochs} eps {self.loss.eps:.4g}{loss}")
        self._check(meter.read())
        self.epoch += 1
        spent = time.perf_counter() - begun
        if self.loss.batch_norm.population:
            self.population_statistics()
        else:
            self._average_norms()
        record = {"epoch": self.epoch, "step": self.step, **ends, **self._means(meter), **self._measured()}
        record |= {"seconds": spent, "steps_per_second": self.data.batches / spent}
        for hook in self.hooks:
            hook.epoch_end(self, record)
        self.stopped = next((reason for reason in self.processes.gather(self.stopped) if reason is not None), None)
        if self.stopped is not None:
            record["stopped"] = self.stopped
        self.records.append(plain(record))
        if self.out is not None and self.processes.first:
            append_log(self.out / LOG, self.records[-1])
        if self.epoch % self.checkpoint_every == 0:
            self._save()

    def _batch(self, backward: Backward, meter: Meter, x: torch.Tensor, y: torch.Tensor, weight: float) -> None:
        self.module.zero_grad(set_to_none=True)
        pieces = min(self.accumulate, len(x))
        parts = list(zip(x.tensor_split(pieces), y.tensor_split(pieces)))
        outs = [
            backward(a, b, weight * len(a) / len(x), last=k == pieces - 1) for k, (a, b) in enumerate(parts)
        ]  # fmt: skip
        out = outs[0] if pieces == 1 else self._joined(x, y, outs)
        for hook in self.hooks:
            hook.before_step(self, x, y, out)
        moved = [p for group in self.optimiser.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(moved, inf if self.clip_norm is None else self.clip_norm)
        self._check(meter.add(self.step, out, norm, len(x)))
        self.optimiser.step()
        for schedule in self.schedules:
            schedule.step()
        self.step += 1

    def _joined(self, x: torch.Tensor, y: torch.Tensor, outs: Sequence[Output]) -> Output:
        """The output of a batch from those of its pieces."""
        shares = [len(out.task) / len(x) for out in outs]
        names = {name for out in outs for name in out.terms}
        terms = {n: sum(s * out.terms[n] for s, out in zip(shares, outs) if n in out.terms) for n in sorted(names)}

        def all_of(name: str) -> torch.Tensor | None:
            found = [getattr(out, name) for out in outs]
            return None if any(f is None for f in found) else torch.cat(found)

        task = self.loss.spec.task(x, y, self.loss.eps, self.loss.live(x).outputs)
        total = sum(s * out.total.detach() for s, out in zip(shares, outs))
        return Output(total, terms, task, all_of("outputs"), all_of("margins"))

    def _check(self, bad: Sequence[str]) -> None:
        if not bad:
            return
        where = f"{bad[0]} (epoch {self.epoch + 1})"
        kept = "no checkpoint was written yet"
        if self.out is not None and self._saved:
            kept = f"{self.out / CHECKPOINT} holds the last good state, of epoch {self._saved}"
        raise AbsdomError(
            f"{where}: {', '.join(bad[1:])}; training stops. {kept}. Try a lower learning rate, a longer ramp of eps, "
            "or a smaller clip_norm"
        )

    # What is logged.

    def _values(self) -> dict:
        """What schedules move, as this batch has it."""
        return {**self.loss.state_dict(), "lr": self.optimiser.param_groups[0]["lr"]}

    def _means(self, meter: Meter) -> dict:
        pairs = meter.sums()
        sums = self.processes.sums({name: total for name, (total, _) in pairs.items()})
        items = self.processes.sums({name: count for name, (_, count) in pairs.items()})
        return nested({name: sums[name] / items[name] for name in sums})

    def _measured(self) -> dict:
        """Accuracies on the held-out items, and states of neurons there (else on a batch of the training items)."""
        rank, processes = self.processes.rank, self.processes.count
        if self.validation is not None:
            found = self.evaluation.sums(self.loss, self.validation.parts(rank, processes))
        else:
            only = Evaluation(self.evaluation.eps, attack=None, recipe=self.evaluation.recipe)
            found = only.sums(self.loss, [next(self.data.parts(rank, processes))])
        shares = shares_of(self.processes.sums({name: float(value) for name, value in found.items()}))
        neurons = {name: shares.pop(name) for name in NEURONS if name in shares}
        return {"neurons": neurons} | ({} if self.validation is None else {"held_out": shares})

    # Checkpoints.

    def _description(self) -> dict:
        """What a checkpoint has to have in common with this run: plain values."""
        return {
            "network": {name: f"{list(t.shape)} {t.dtype}" for name, t in self.module.state_dict().items()},
            "layer": {name: repr(m) for name, m in self.module.named_modules() if not list(m.children())},
            "loss": {"kind": type(self.loss).__name__, **checkpoint.settings_of(self.loss, without=self.loss.state)},
            "regularisers": [r.name for r in self.loss.regularisers],
            "optimiser": {"kind": type(self.optimiser).__name__, **checkpoint.plain_of(self.optimiser.defaults)},
            "data": self.data.fingerprint(),
            "held-out data": None if self.validation is None else self.validation.fingerprint(),
            "trainer": {
                "seed": self.seed, "accumulate": self.accumulate, "clip_norm": self.clip_norm,
                "processes": self.processes.count, "schedules": len(self.schedules),
                "hooks": [type(hook).__name__ for hook in self.hooks],
            },
            "config": self.config,
        }  # fmt: skip

    def _start(self, resume: bool) -> dict | None:
        """Read the checkpoint, or make the folder ready for a new run; the states of random numbers, if saved."""
        self._saved = 0
        if self.out is None:
            if resume:
                raise UsageError("resume: the trainer has no folder (out) that a checkpoint could lie in")
            return None
        self._run, path = self._description(), self.out / CHECKPOINT
        if path.exists() and not resume:
            raise UsageError(f"{path} is there already: resume that run, or train into another folder")
        states = self._load(path) if path.exists() else None
        if self.processes.first:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                for left in self.out.glob(f".{CHECKPOINT}.*"):  # by a process that was killed while it wrote
                    left.unlink()
                write_log(self.out / LOG, self.records)
                if not self.records:
                    (self.out / LOG).unlink()  # it was to try the folder: until an epoch is done, no run is in it
            except OSError as error:
                raise UsageError(f"{self.out}: cannot be written to ({error.strerror or error})") from None
        return states

    def _load(self, path: Path) -> dict:
        state = checkpoint.load(path)
        checkpoint.check_same(path, state["run"], self._run)
        self.module.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.loss.load_state_dict(state["loss"])
        for part, saved in zip((*self.schedules, *self.hooks), (*state["schedules"], *state["hooks"]), strict=True):
            part.load_state_dict(saved)
        self.epoch, self.step, self.records = state["epoch"], state["step"], state["records"]
        self.stopped, self._saved = state["stopped"], self.epoch
        return state["random"][self.processes.rank]

    def _save(self) -> None:
        if self.out is None or self._saved == self.epoch:
            return
        states = self.processes.gather(checkpoint.random_states())
        self._saved = self.epoch
        if self.processes.first:
            checkpoint.save(
                self.out / CHECKPOINT,
                {
                    "run": self._run, "model": self.module.state_dict(), "optimiser": self.optimiser.state_dict(),
                    "loss": self.loss.state_dict(), "schedules": [s.state_dict() for s in self.schedules],
                    "hooks": [h.state_dict() for h in self.hooks], "random": states, "epoch": self.epoch,
                    "step": self.step, "records": self.records, "stopped": self.stopped,
                },
            )  # fmt: skip
