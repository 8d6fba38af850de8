"""What a stage of the pipeline reports, and the record that lets a later run skip it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import write_atomically
from .fingerprints import differing_keys, fingerprint


@dataclass(frozen=True)
class StageReport:
    """What a stage did.

    Attributes:
        name: of the stage.
        skipped: whether its result was there already.
        summary: one line for a person.
        paths: files and folders that hold the result.
        data: the result itself, as JSON types.
    """

    name: str
    skipped: bool
    summary: str
    paths: tuple[Path, ...]
    data: Mapping[str, Any]


class StageRecord:
    """The record that lets a later run skip a finished stage."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self.path = run_dir / "stages" / f"{name}.json"

    def stale(self, facts: Mapping[str, Any]) -> str | None:
        """Why the stage has to run; None when its facts and its files agree with the record."""
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
            recorded, outputs = record["facts"], record["outputs"]
        except FileNotFoundError:
            return "not run yet"
        except (ValueError, KeyError, TypeError):
            return f"{self.path} is damaged"
        if fingerprint(recorded) != fingerprint(facts):
            return "; ".join(differing_keys(recorded, json.loads(json.dumps(facts)))[:3])
        for name, digest in outputs.items():
            if not Path(name).is_file() or file_digest(Path(name)) != digest:
                return f"{name} is missing or was changed"
        return None

    def data(self) -> dict[str, Any]:
        """The result as it was recorded."""
        return dict(json.loads(self.path.read_text(encoding="utf-8"))["data"])

    def paths(self) -> tuple[Path, ...]:
        """The files that were recorded."""
        return tuple(map(Path, json.loads(self.path.read_text(encoding="utf-8"))["outputs"]))

    def write(self, facts: Mapping[str, Any], outputs: list[Path], data: Mapping[str, Any]) -> None:
        record = {
            "facts": facts,
            "outputs": {str(path): file_digest(path) for path in outputs},
            "data": data,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        write_json(self.path, record)


def write_json(path: Path, data: Any) -> None:
    """Writes JSON; a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(data, indent=2).encode())


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_room(folder: Path, fingerprint: str) -> str | None:
    """Makes the folder of a result, or keeps what a run of the same fingerprint has begun in it.

    What is there of another one is moved out of the way, so that nothing is overwritten; says where to.
    """
    marker, moved = folder / "fingerprint", None
    if folder.exists() and not (marker.exists() and marker.read_text() == fingerprint):
        number = 1
        while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
            number += 1
        folder.rename(aside)
        moved = f"what was in {folder} is now in {aside}"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(marker, fingerprint.encode())
    return moved
