"""What a training run says while it runs: a progress bar or lines, metrics.jsonl, TensorBoard events."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .errors import MissingDependencyError
from .files import write_atomically

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """Reports epochs to a person (standard error) and to files.

    Args:
        folder: where metrics.jsonl and the events go; None: nowhere.
        history: records of epochs that are already done; the files start with them, so that a resumed run
            leaves the files of an undisturbed one.
        epochs: how many there will be.
        progress: whether to report to a person: a bar on a terminal, one line per epoch elsewhere.
        tensorboard: whether to write events.
    """

    def __init__(
        self,
        folder: Path | None,
        history: Sequence[Mapping[str, Any]],
        *,
        epochs: int,
        progress: bool,
        tensorboard: bool,
    ) -> None:
        self._progress, self._epochs = progress, epochs
        self._metrics = None if folder is None else folder / METRICS_FILE
        if self._metrics is not None:
            write_atomically(self._metrics, "".join(_line(record) for record in history).encode())
        on_terminal = progress and sys.stderr.isatty()
        self._bar = (
            tqdm(total=epochs, initial=len(history), unit="epoch", desc="train") if on_terminal else None
        )
        self._events = _event_writer(folder, len(history)) if tensorboard and folder is not None else None

    def say(self, text: str) -> None:
        """One line to the person."""
        if self._progress:
            tqdm.write(text, file=sys.stderr)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Reports one finished epoch."""
        numbers = "  ".join(f"{key} {value:.4g}" for key, value in record.items() if isinstance(value, float))
        if self._bar is not None:
            self._bar.set_postfix_str(numbers)
            self._bar.update()
        else:
            self.say(f"epoch {record['epoch'] + 1}/{self._epochs}  {numbers}")
        if self._metrics is not None:
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(_line(record))
                file.flush()
                os.fsync(file.fileno())
        if self._events is not None:
            for key, value in record.items():
                if isinstance(value, float):
                    self._events.add_scalar(key, value, record["epoch"])

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._events is not None:
            self._events.close()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _event_writer(folder: Path, first_epoch: int) -> Any:
    try:
        module = importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        raise MissingDependencyError(
            f"TensorBoard cannot be imported ({error})",
            where="train.tensorboard",
            fix="pip install 'dejavid[tensorboard]', or set train.tensorboard=false",
        ) from None
    # Events after `purge_step` of an interrupted run are superseded by those of the resumed one.
    return module.SummaryWriter(str(folder / "tensorboard"), purge_step=first_epoch)
