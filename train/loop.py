"""The training loop of a head: AdamW along frozen paths, resumable to the bit, in one process or many."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint import (
    TrainState,
    load_checkpoint,
    optimizer_tensors,
    refuse_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from ..config import TrainSection
from ..devices import device_of
from ..distributed import World, current_world
from ..errors import ConfigError, Preempted
from ..logs import RunLog
from ..signals import sigterm_event
from .calibration import calibrate_temperature
from .checks import check_fit
from .data import Samples, batches, bucketed, epoch_order
from .head import DejaVidHead
from .parameters import learning_rate, over_steps, parameter_groups, prepare_parameters

BEST_FOLDER = "best"
# Keys that change where and how fast a run computes, not what: a run may be resumed with others.
ELSEWHERE = {"device", "backend", "data", "tensorboard"}
_EVALUATION_BATCH = 256


@dataclass(frozen=True)
class TrainReport:
    """What training did.

    Attributes:
        history: per epoch: epoch, seconds, lr, train_loss, train_accuracy, train_correct, and with a
            validation set val_loss, val_accuracy, val_correct.
        losses: loss of every optimiser step.
        best_epoch: of the best validation accuracy, the lower loss deciding ties; None without a validation
            set.
        kept_epoch: whose parameters the head has: the best one's with `patience`, else the last one's.
    """

    history: list[dict[str, Any]]
    losses: list[float]
    best_epoch: int | None
    kept_epoch: int | None


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy, and samples classified right, over a set of samples."""

    loss: float
    correct: int
    n_samples: int


def train_head(
    head: DejaVidHead,
    train: Samples,
    val: Samples | None = None,
    *,
    options: TrainSection | None = None,
    seed: int = 1337,
    out_dir: Path | str | None = None,
    resume: bool = False,
    progress: bool = False,
    order: Callable[[int], Tensor] | None = None,
    on_epoch: Callable[[int, DejaVidHead], None] | None = None,
) -> TrainReport:
    """Trains a head in place.

    Under `torchrun` (an initialised process group) the processes share every step and end with equal heads;
    the first one writes the files.

    Args:
        head: its step pattern and logits rule are kept as they are.
        train: labelled TSEs, such as `PackedSamples`.
        val: what each epoch is measured on; never trained on.
        options: the `train` section of the configuration; None: its defaults.
        seed: of the initial log-weights, and of the order of the samples unless `shuffle_seed` is set.
        out_dir: folder for the checkpoint, metrics.jsonl, the final head and best/; None: nothing is written.
        resume: go on from the checkpoint in `out_dir`, to the same bits as without the interruption.
        progress: report to standard error.
        order: epoch -> positions of the samples; None: shuffled.
        on_epoch: called after each epoch with its number and the head, before its path is refreshed.

    Raises:
        ConfigError: samples that do not fit the head, one class, standardised logits with two, a checkpoint
            of another run, or a run already in `out_dir`.
        Preempted: SIGTERM came; the checkpoint holds everything done.
    """
    run = _Run(
        head, train, val, options or TrainSection(), seed, None if out_dir is None else Path(out_dir), order
    )
    run.start(resume)
    log = RunLog(
        run.folder if run.world.is_first else None,
        run.state.history,
        epochs=run.options.epochs,
        progress=progress and run.world.is_first,
        tensorboard=run.options.tensorboard,
    )
    try:
        shape = tuple(head.centroids.shape)
        log.say(f"{len(train.labels)} training TSEs, {train.mode}; head {shape} on {run.device}")
        with sigterm_event() as stop:
            while run.goes_on():
                record = run.epoch(stop)
                if on_epoch is not None:
                    on_epoch(record["epoch"], head)
                log.epoch(record)
        return run.finish()
    finally:
        log.close()


@torch.no_grad()
def evaluate_head(
    head: DejaVidHead, samples: Samples, device: torch.device, world: World | None = None
) -> Evaluation:
    """Loss and correct count on the head's path mode as it is (fresh paths in evaluation mode)."""
    world = world or World(0, 1)
    mine = torch.arange(len(samples.labels))[world.rank :: world.size]
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for batch in batches(samples, mine, _EVALUATION_BATCH, inputs=head.inputs, device=device):
        logits = head(batch.values, batch.offsets, prepared=True)
        sums[0] += cross_entropy(logits, batch.labels, reduction="sum").double()
        sums[1] += (logits.argmax(1) == batch.labels).sum()
    loss, correct = world.sum(sums).tolist()
    return Evaluation(loss / len(samples.labels), int(correct), len(samples.labels))


class _Run:
    """One training run: its parameters, its optimiser and where it stands."""

    def __init__(
        self,
        head: DejaVidHead,
        train: Samples,
        val: Samples | None,
        options: TrainSection,
        seed: int,
        folder: Path | None,
        order: Callable[[int], Tensor] | None,
    ) -> None:
        check_fit(head, train, val, options)
        self.head, self.train, self.val, self.options, self.seed, self.folder = (
            head,
            train,
            val,
            options,
            seed,
            folder,
        )
        self.world, self.device = current_world(), device_of(options.device)
        shuffle_seed = seed if options.shuffle_seed is None else options.shuffle_seed
        self._order = order or (lambda epoch: epoch_order(len(train.labels), shuffle_seed, epoch))
        self.state = TrainState()
        self._best: dict[str, Tensor] = {}
        head.to(self.device)
        head.backend = options.backend
        prepare_parameters(head, train, options, device=self.device, seed=seed)
        groups = parameter_groups(head, options)
        self._base_lrs = [group["lr"] for group in groups]
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
        # torch.nn's wrapper refuses a module without trainable parameters; such a run has no steps to share
        # either.
        self.model: nn.Module = DistributedDataParallel(head) if self.world.size > 1 and trained else head

    def start(self, resume: bool) -> None:
        """Takes up the checkpoint, or makes sure that there is none to overwrite."""
        if self.folder is None:
            if resume:
                raise ConfigError("nothing to resume from", where="train_head", fix="give out_dir")
            return
        if resume:
            tensors, self.state = load_checkpoint(self.folder, self._facts())
            self._restore(tensors)
        else:
            refuse_checkpoint(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.world.wait()

    def goes_on(self) -> bool:
        state, patience = self.state, self.options.patience
        if (
            patience is not None
            and state.best_epoch is not None
            and state.epoch > state.best_epoch + patience
        ):
            return False
        return state.epoch < self.options.epochs

    def epoch(self, stop: threading.Event) -> dict[str, Any]:
        """Trains one epoch, or the rest of it; returns its record."""
        began, state, options = time.perf_counter(), self.state, self.options
        if state.epoch % options.refresh_every == 0 and state.step == 0:
            self.head.refresh_path()
        rate = learning_rate(state.epoch, options.epochs, options.warmup_epochs)
        for group, base in zip(self.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = base * rate
        order = self._order(state.epoch)
        if options.bucket_by_length:
            order = bucketed(order, self.train.lengths, options.batch_size)
        self._steps(order, stop)

        record = self._record(len(order), time.perf_counter() - began)
        state.history.append(record)
        state.epoch, state.step, state.correct = state.epoch + 1, 0, 0
        self._checkpoint()
        return record

    def finish(self) -> TrainReport:
        state = self.state
        kept = state.history[-1]["epoch"] if state.history else None
        if self.options.patience is not None and state.best_epoch is not None:
            kept = state.best_epoch
            with torch.no_grad():
                for name, parameter in self.head.named_parameters():
                    parameter.copy_(self._best[name])
        self.head.refresh_path()
        self.head.eval()
        if self.options.calibrate:
            assert self.val is not None
            calibrate_temperature(self.head, self.val, self.device, self.world)
        if kept is not None:
            self.head.metrics = {key: value for key, value in state.history[kept].items() if key != "seconds"}
        if self.folder is not None and self.world.is_first:
            self.head.save(self.folder)
        if not state.finished:
            state.finished = True
            self._checkpoint()
        self.world.wait()
        return TrainReport(state.history, state.losses, state.best_epoch, kept)

    def _steps(self, order: Tensor, stop: threading.Event) -> None:
        state, size = self.state, self.options.batch_size
        losses: list[Tensor] = []
        correct = torch.zeros((), dtype=torch.float64, device=self.device)

        def settle() -> None:
            """Brings the numbers of the steps since the last call from the device into the state."""
            if losses:
                sums = self.world.sum(torch.cat([torch.stack(losses).double(), correct.view(1)]))
                state.losses += sums[:-1].tolist()
                state.correct += int(sums[-1])
                losses.clear()
                correct.zero_()

        self.head.train()
        for batch in batches(
            self.train,
            order,
            size,
            inputs=self.head.inputs,
            device=self.device,
            start=state.step,
            rank=self.world.rank,
            world=self.world.size,
        ):
            logits = self.model(batch.values, batch.offsets, prepared=True)
            each = cross_entropy(
                logits, batch.labels, reduction="none", label_smoothing=self.options.label_smoothing
            )
            loss = (each * batch.shares).sum()
            self.optimizer.zero_grad()
            # DistributedDataParallel averages the gradients over the processes; the shares call for their
            # sum.
            torch.autograd.backward(loss * self.world.size)
            if self.options.tie_weights and self.head.log_weights.grad is not None:
                # Equal values and equal gradients: the steps of a centroid keep one weight per feature.
                self.head.log_weights.grad.copy_(over_steps(self.head.log_weights.grad))
            if self.options.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.head.parameters(), self.options.clip_norm)
            self.optimizer.step()
            losses.append(loss.detach())
            correct += ((logits.detach().argmax(1) == batch.labels) & (batch.shares > 0)).sum()
            state.step += 1
            if self.world.any(stop.is_set(), self.device):
                settle()
                self._checkpoint()
                raise Preempted(
                    f"SIGTERM in epoch {state.epoch + 1}, after step {state.step}",
                    where=str(self.folder or "train_head without out_dir: nothing is kept"),
                    fix="go on with: dejavid train --resume",
                )
        settle()

    def _record(self, n_samples: int, seconds: float) -> dict[str, Any]:
        state = self.state
        n_steps = math.ceil(n_samples / self.options.batch_size)
        record: dict[str, Any] = {
            "epoch": state.epoch,
            "seconds": seconds,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": sum(state.losses[-n_steps:]) / n_steps,
            "train_accuracy": state.correct / n_samples,
            "train_correct": state.correct,
        }
        if self.val is not None:
            self.head.eval()
            result = evaluate_head(self.head, self.val, self.device, self.world)
            self.head.train()
            record |= {
                "val_loss": result.loss,
                "val_accuracy": result.correct / result.n_samples,
                "val_correct": result.correct,
            }
            self._keep_if_best(record)
        return record

    def _keep_if_best(self, record: dict[str, Any]) -> None:
        def score(of: dict[str, Any]) -> tuple[int, float]:
            return of["val_correct"], -of["val_loss"]

        best = self.state.best_epoch
        if best is not None and score(self.state.history[best]) >= score(record):
            return
        self.state.best_epoch = record["epoch"]
        self._best = {name: parameter.detach().clone() for name, parameter in self.head.named_parameters()}
        if self.folder is not None and self.world.is_first:
            self.head.metrics = {key: value for key, value in record.items() if key != "seconds"}
            self.head.save(self.folder / BEST_FOLDER)

    def _facts(self) -> dict[str, Any]:
        return {
            "train": self.options.model_dump(mode="json", exclude=ELSEWHERE),
            "seed": self.seed,
            "class_names": list(self.head.class_names),
            "head": [*self.head.centroids.shape, self.head.step_pattern, self.head.logits_rule],
            "videos": [len(self.train.labels), None if self.val is None else len(self.val.labels)],
            "fingerprints": self.head.fingerprints,
        }

    def _checkpoint(self) -> None:
        if self.folder is None or not self.world.is_first:
            return
        tensors: dict[str, Tensor] = dict(self.head.state_dict())
        tensors |= {f"best.{name}": tensor for name, tensor in self._best.items()}
        tensors |= optimizer_tensors(self.optimizer)
        save_checkpoint(self.folder, tensors, self.state, self._facts())

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "best":
                self._best[rest] = tensor.to(self.device)
        restore_optimizer(self.optimizer, tensors)
        self.head.load_state_dict({name: tensors[name] for name in self.head.state_dict()})
