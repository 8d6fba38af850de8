"""The stages of `pipeline.yaml`, chained: manifest -> extract -> centroids -> train -> evaluate.

Each stage is a function of the configuration that returns a `StageReport`. A stage is skipped only when what it
was made from (its facts) is unchanged *and* every file it left is still what it wrote; the record of both is
`<run.dir>/stages/<name>.json`. Extraction needs no record: it resumes video by video from the store itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import Config, differing_keys, fingerprint
from .errors import ConfigError, StoreError

if TYPE_CHECKING:
    from .store import Store

Say = Callable[[str], None]


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
            if not Path(name).is_file() or _digest(Path(name)) != digest:
                return f"{name} is missing or was changed"
        return None

    def data(self) -> dict[str, Any]:
        return dict(json.loads(self.path.read_text(encoding="utf-8"))["data"])

    def write(self, facts: Mapping[str, Any], outputs: list[Path], data: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "facts": facts,
            "outputs": {str(path): _digest(path) for path in outputs},
            "data": data,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        write_json(self.path, record)


def write_json(path: Path, data: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_stage(config: Config) -> StageReport:
    """Checks the manifest: every problem is listed before any work starts."""
    from .extract import check_manifest, read_manifest

    manifest = read_manifest(config.manifest.path, config.manifest.root)
    check_manifest(manifest)
    splits: dict[str, int] = {}
    for row in manifest.rows:
        splits[row.split] = splits.get(row.split, 0) + 1
    classes = len({row.label for row in manifest.rows})
    counts = ", ".join(f"{n} {split}" for split, n in sorted(splits.items()))
    return StageReport(
        "manifest",
        False,
        f"{counts} videos of {classes} classes",
        (config.manifest.path,),
        {"splits": splits},
    )


def extract_stage(
    config: Config, *, shard: str | None = None, retry_failed: bool = False, progress: bool = True
) -> StageReport:
    """Videos -> TSEs; only those that the store does not hold yet."""
    from .extract import extract_videos

    report = extract_videos(config, shard=shard, retry_failed=retry_failed, progress=progress)
    skipped = report.n_done == 0 and report.n_failed == 0
    summary = (
        f"skipped, all {report.n_skipped} videos are in the store"
        if skipped
        else f"{report.n_done} videos, {report.n_windows} windows ({report.n_skipped} were there, {report.n_failed} failed)"
    )
    paths = (config.store_path,) + ((report.failures_path,) if report.n_failed else ())
    return StageReport("extract", skipped, summary, paths, asdict(report))


def run_pipeline(config: Config, *, progress: bool = True, say: Say = print) -> list[StageReport]:
    """All stages in order; `say` hears one line per stage as it ends."""
    reports = []
    stages: tuple[Callable[[], StageReport], ...] = (
        lambda: manifest_stage(config),
        lambda: extract_stage(config, progress=progress),
        lambda: centroids_stage(config, progress=progress),
        lambda: train_stage(config, progress=progress),
        lambda: evaluate_stage(config),
    )
    for stage in stages:
        report = stage()
        say(f"{report.name}: {report.summary}")
        reports.append(report)
    return reports
