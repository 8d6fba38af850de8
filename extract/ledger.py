"""The failures of a store: JSON lines in `<store>/failed/`, one file per writer, append-only."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Failure:
    """A video without a TSE: `stage` is decode or encode, `time` UTC."""

    video_id: str
    path: str
    stage: str
    cause: str
    time: str


class FailureLedger:
    """Reads all files of the folder and appends to one of its own."""

    def __init__(self, store_path: Path) -> None:
        self.folder = store_path / "failed"
        self._own = self.folder / f"{time.time_ns()}-{socket.gethostname()}-{os.getpid()}.jsonl"

    def read(self) -> dict[str, Failure]:
        """video_id -> its latest failure. A line that a killed writer left unfinished is skipped."""
        failures: dict[str, Failure] = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    failure = Failure(**json.loads(line))
                except (ValueError, TypeError):
                    continue
                failures[failure.video_id] = failure
        return failures

    def add(self, video_id: str, path: str, stage: str, cause: str) -> None:
        """Appends one failure; it is on disk when this returns."""
        failure = Failure(video_id, path, stage, cause, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._own.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(failure), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
