"""The training loop along the published schedule, resumable, in one process or many."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .....checkpoint import TrainState, load_checkpoint, refuse_checkpoint, save_checkpoint
from .....config import Config
from .....devices import device_of
from .....distributed import World
from .....errors import ConfigError, OutOfMemory, Preempted
from .....logs import RunLog
from .....signals import sigterm_event
from ....ledger import FailureLedger
from ....pool import warm_up
from ....run import check_failures
from ..convert import load, save
from ..encoder import clip_spec
from ..prompts import prompts_of, tokenise
from .augment import import_pillow
from .learner import Learner
from .protocols import resolve_protocol
from .schedule import last_index
from .validation import validate
from .videos import MicroBatch, TrainingSet, draw_seed, micro_batches

MODEL_FOLDER = "model"


@dataclass(frozen=True)
class TcclipReport:
    """What training did.

    Attributes:
        history: per epoch: epoch, seconds, lr, train_loss, failed (training videos that could not be decoded
            so far); where it was validated also val_top1, val_top5 (of more than five classes), val_correct,
            val_scored, val_total.
        losses: of every optimiser step.
        best_epoch: of the most videos right, the earliest of equals; None without validation.
        kept_epoch: whose weights are in `model`: the best one's, else the last one's.
        model: folder for `tcclip:FOLDER`.
        failures: folder of the ledger.
    """

    history: list[dict[str, Any]]
    losses: list[float]
    best_epoch: int | None
    kept_epoch: int
    model: Path
    failures: Path


def train_tcclip(
    config: Config,
    videos: TrainingSet,
    world: World,
    facts: dict[str, Any],
    *,
    resume: bool = False,
    progress: bool = False,
) -> TcclipReport:
    """Trains the model of `tcclip.start`; writes into `<run.dir>/tcclip`.

    Under torchrun every process calls this; the first one writes the files.

    Args:
        config: its sections tcclip, run, and of extract what concerns decoding and the device.
        videos: of the configuration, see `read_training_set`.
        world: the processes that train together.
        facts: what decides the result; a checkpoint of others is refused.
        resume: go on from the checkpoint; on a CPU to the same bits as without the interruption.
        progress: report to standard error.

    Raises:
        ConfigError, MissingDependencyError: before any work.
        OutOfMemory: a micro-batch does not fit.
        PartialResultError: more training videos failed than `extract.max_failed` allows; after an epoch,
            with its checkpoint written.
        Preempted: SIGTERM came; the checkpoint holds every step done.
    """
    import_pillow()
    if config.extract.workers:
        warm_up()
    run = _Run(config, videos, world, facts)
    run.start(resume)
    shows = progress and world.is_first
    log = RunLog(
        run.folder if world.is_first else None,
        run.state.history,
        epochs=run.protocol.epochs,
        progress=shows,
        tensorboard=config.train.tensorboard,
    )
    try:
        log.say(run.summary())
        with sigterm_event() as stop:
            while run.state.epoch < run.protocol.epochs:
                log.epoch(run.epoch(stop, progress=shows))
                run.check_failures()
        return run.finish()
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"{config.tcclip.micro_batch} videos do not fit: {error}",
            where=f"training of TC-CLIP on {run.device}",
            fix=f"--set tcclip.micro_batch={max(1, config.tcclip.micro_batch // 2)}",
        ) from None
    finally:
        log.close()


def start_of(config: Config) -> Path:
    """The folder of the model to start from.

    Raises:
        ConfigError: none is named.
    """
    if config.tcclip.start is None:
        raise ConfigError(
            "there is no model to start from",
            where="tcclip.start",
            fix="make one: dejavid encoder convert models/start --option method=tcclip;"
            " then --set tcclip.start=models/start",
        )
    return config.tcclip.start


class _Run:
    """One training run, and where it stands."""

    def __init__(self, config: Config, videos: TrainingSet, world: World, facts: dict[str, Any]) -> None:
        self.config, self.videos, self.world = config, videos, world
        self.protocol = resolve_protocol(config.tcclip)
        self.folder = config.tcclip_path
        self.device = device_of(config.extract.device, "extract.device")
        self.state = TrainState()
        self._facts = facts
        self._n_iterations, self._n_accumulated = self._batching()
        self._n_steps = self._n_iterations // self._n_accumulated
        self._ledger = FailureLedger(self.folder)
        self._saved_s = time.monotonic()
        model, self._tokenizer = load(start_of(config))
        self.spec = clip_spec(model)
        prompts = prompts_of(videos.classes.names, model.options)
        tokens = tokenise(self._tokenizer, prompts, model.options.context_length)
        self._learner = Learner(model, tokens, config, self.protocol, world, self.device)

    def _batching(self) -> tuple[int, int]:
        """Micro-batches of an epoch and of an optimiser step, for one process.

        What is left over at the end of an epoch, for want of a full step, is not used.
        """
        size = self.config.tcclip.micro_batch
        together = self.world.size * size
        total, n_train = self.protocol.batch_size, len(self.videos.train.jobs)
        if total % together:
            raise ConfigError(
                f"a batch of {total} videos is no whole number of micro-batches of {size}"
                f" in {self.world.size} processes",
                where="tcclip.batch_size",
                fix=f"--set tcclip.batch_size={max(total // together, 1) * together}",
            )
        if n_train < total:
            fitting = n_train // together * together
            raise ConfigError(
                f"{n_train} training videos are fewer than one batch of {total}",
                where="tcclip.batch_size",
                fix=f"--set tcclip.batch_size={fitting}" if fitting else "--set tcclip.micro_batch=1",
            )
        return n_train // together, total // together

    def summary(self) -> str:
        """One line for a person."""
        return (
            f"{len(self.videos.train.jobs)} training videos of {len(self.videos.classes.names)} classes;"
            f" {self._n_steps} steps of {self.protocol.batch_size} an epoch;"
            f" {self._learner.n_trained:,} parameters on {self.device}"
            f" in {str(self._learner.dtype).removeprefix('torch.')}"
        )

    def start(self, resume: bool) -> None:
        """Takes up the checkpoint, or makes sure that there is none to overwrite."""
        if resume:
            tensors, self.state = load_checkpoint(self.folder, self._facts)
            self._learner.restore(tensors)
            if self.state.best_epoch is not None and not (self.folder / MODEL_FOLDER).exists():
                raise ConfigError(
                    f"the model of the best epoch so far, {self.state.best_epoch + 1}, is gone",
                    where=str(self.folder / MODEL_FOLDER),
                    fix="train from the start: delete the folder above it",
                )
        else:
            refuse_checkpoint(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.world.wait()

    def epoch(self, stop: threading.Event, *, progress: bool) -> dict[str, Any]:
        """Trains one epoch, or the rest of it, and validates; returns its record."""
        began, state = time.perf_counter(), self.state
        self._leave_or_save(stop)  # a signal may have come during validation
        self._learner.model.train()
        batches = micro_batches(
            self.videos.train,
            self.config,
            self.spec,
            self.world,
            epoch=state.epoch,
            first=state.step * self._n_accumulated,
            count=self._n_steps * self._n_accumulated,
        )
        bar = tqdm(
            total=self._n_steps,
            initial=state.step,
            unit="step",
            leave=False,
            disable=not (progress and sys.stderr.isatty()),
        )
        # Closed in any case, so that the decode processes end.
        with closing(batches), bar:
            while state.step < self._n_steps:
                self._step(batches)
                bar.update()
                self._leave_or_save(stop)
        self._set_rates(self._n_steps - 1)  # of the last step, also if it was taken before an interruption
        record: dict[str, Any] = {
            "epoch": state.epoch,
            "lr": self._learner.optimizer.param_groups[0]["lr"],
            "train_loss": float(np.mean(state.losses[-self._n_steps :])),
            "failed": self._n_failed(),
        }
        if self.videos.val is not None and self._is_validated(state.epoch):
            self._save()  # thousands of videos take a while: a kill meanwhile costs no step
            record |= self._validate()
            self._keep_if_best(record)
        record["seconds"] = time.perf_counter() - began
        state.history.append(record)
        state.epoch, state.step = state.epoch + 1, 0
        self._save()
        return record

    def check_failures(self) -> None:
        """Ends the run if too many training videos could not be decoded."""
        check_failures(
            self.state.history[-1]["failed"],
            len(self.videos.train.jobs),
            self.config.extract.max_failed,
            self._ledger.folder,
            fix="mend the files or drop their rows and train again, or raise extract.max_failed and --resume",
        )

    def finish(self) -> TcclipReport:
        """Makes sure that the kept model is there."""
        self.check_failures()  # of a run, too, that ended there before and is only resumed
        state = self.state
        kept = state.best_epoch
        if kept is None:
            kept = state.epoch - 1
            self._save_model(state.history[-1])
        self.world.wait()
        model = self.folder / MODEL_FOLDER
        return TcclipReport(state.history, state.losses, state.best_epoch, kept, model, self._ledger.folder)

    def _set_rates(self, step: int) -> None:
        n, n_iterations = self._n_accumulated, self._n_iterations
        index = last_index(self.state.epoch, step, n_accumulated=n, n_iterations=n_iterations)
        self._learner.set_rates(index, n_iterations)

    def _step(self, batches: Iterator[MicroBatch]) -> None:
        state, n = self.state, self._n_accumulated
        self._set_rates(state.step)

        def seeded() -> Iterator[tuple[MicroBatch, int]]:
            for number in range(state.step * n, (state.step + 1) * n):
                batch = next(batches)
                for job, cause in batch.failures:
                    self._ledger.add(job.video_id, str(job.path), "decode", cause)
                yield batch, draw_seed(self.config.run.seed, state.epoch, number, self.world.rank)

        loss = self._learner.step(seeded(), n)
        if not np.isfinite(loss):
            raise ConfigError(
                f"the loss is {loss} in epoch {state.epoch + 1}, step {state.step + 1}",
                where="training of TC-CLIP",
                fix="lower tcclip.lr, or set extract.precision to bfloat16 or float32",
            )
        state.losses.append(loss)
        state.step += 1

    def _leave_or_save(self, stop: threading.Event) -> None:
        """Leaves if any process was asked to; saves if the last time is long ago."""
        state = self.state
        if self.world.any(stop.is_set(), self.device):
            self._save()
            raise Preempted(
                f"SIGTERM in epoch {state.epoch + 1}, after step {state.step} of {self._n_steps}",
                where=str(self.folder),
                fix="go on with: dejavid train --method tcclip --resume",
            )
        if time.monotonic() - self._saved_s > self.config.tcclip.checkpoint_s:
            self._save()

    def _is_validated(self, epoch: int) -> bool:
        is_due = (epoch + 1) % self.protocol.validate_every == 0
        return is_due or epoch in (0, self.protocol.epochs - 1)

    def _validate(self) -> dict[str, Any]:
        assert self.videos.val is not None
        self._learner.model.eval()
        prompts = self._learner.prompts()
        return validate(
            self.videos.val,
            lambda clips: self._learner.logits(clips, prompts),
            self.config,
            self.spec,
            self._ledger,
            self.world,
            self.device,
            n_classes=len(self.videos.classes.names),
            n_clips=self.protocol.val_clips,
        )

    def _keep_if_best(self, record: dict[str, Any]) -> None:
        best = self.state.best_epoch
        if best is not None and self.state.history[best]["val_correct"] >= record["val_correct"]:
            return
        self.state.best_epoch = record["epoch"]
        self._save_model(record)

    def _save_model(self, record: dict[str, Any]) -> None:
        """Replaces the kept model; a crash leaves the old one, the new one, or both under other names."""
        if not self.world.is_first:
            return
        folder = self.folder / MODEL_FOLDER
        new, old = folder.with_name(f"{MODEL_FOLDER}.new"), folder.with_name(f"{MODEL_FOLDER}.old")
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        numbers = {key: value for key, value in record.items() if key != "seconds"}
        source = {"start": str(start_of(self.config)), "classes": list(self.videos.classes.names), **numbers}
        save(self._learner.model, self._tokenizer, new, source)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    def _n_failed(self) -> int:
        """Training videos in the ledger, to which every process writes."""
        self.world.wait()
        ids = {job.video_id for job in self.videos.train.jobs}
        return len(self._ledger.read().keys() & ids)

    def _save(self) -> None:
        self._saved_s = time.monotonic()
        if self.world.is_first:
            save_checkpoint(self.folder, self._learner.tensors(), self.state, self._facts)
