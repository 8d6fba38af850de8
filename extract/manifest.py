"""The list of videos: one CSV or Parquet row per video, checked as a whole before any work starts."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import ManifestError
from ..store.labels import read_table

_SHOWN = 20  # problems printed in full; the rest is counted


@dataclass(frozen=True)
class Row:
    """One video, or the part of it from `start_s` to `end_s`.

    `label` and `split` are both empty for a video that is only to be encoded.
    """

    video_id: str
    path: str
    label: str = ""
    split: str = ""
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class Manifest:
    """The rows of a manifest file and the folder their paths start at."""

    rows: tuple[Row, ...]
    path: Path
    root: Path

    def file_of(self, row: Row) -> Path:
        return self.root / row.path


COLUMNS = tuple(field.name for field in fields(Row))


def read_manifest(path: Path | str, root: Path | str | None = None, *, check_files: bool = True) -> Manifest:
    """Reads a manifest and checks every row.

    Args:
        path: CSV or Parquet with video_id, path, label, split and optionally start_s, end_s; other
            columns are ignored.
        root: folder the paths start at; default: the manifest's own.
        check_files: look for every file (one `stat` per row).

    Raises:
        ManifestError: lists everything that is wrong: missing columns or values, duplicate ids, paths that
            leave the root or do not exist, a label without a split or the reverse, times that make no span.
    """
    path = Path(path)
    table = read_table(path)
    missing = [name for name in COLUMNS[:4] if name not in table]
    if missing:
        raise ManifestError(
            f"no column {', '.join(missing)}; the columns are {', '.join(table)}",
            where=str(path),
            fix="a manifest has the columns video_id, path, label, split and optionally start_s, end_s",
        )
    columns = [table.get(name) or [None] * len(table["video_id"]) for name in COLUMNS]
    problems: list[str] = []
    rows = [
        _row(number, values, problems) for number, values in enumerate(zip(*columns, strict=True), start=1)
    ]
    manifest = Manifest(tuple(rows), path, Path(root) if root is not None else path.parent)
    problems += _duplicates(rows)
    problems += _paths_outside(manifest)
    if check_files:
        problems += missing_files(manifest, rows)
    if not rows:
        problems.append("there are no rows")
    raise_all(problems, path, "mend these rows, or drop them; dejavid manifest check lists them again")
    return manifest


def rows_of_split(manifest: Manifest, split: str) -> list[Row]:
    """The rows of one split.

    Raises:
        ManifestError: there are none; names the splits that have some.
    """
    rows = [row for row in manifest.rows if row.split == split]
    if not rows:
        found = sorted({row.split for row in manifest.rows if row.split})
        raise ManifestError(
            f"no video is in split {split!r}",
            where=str(manifest.path),
            fix=f"one of {', '.join(found) or 'none: the manifest has no splits'}",
        )
    return rows


def check_manifest(manifest: Manifest) -> None:
    """Checks what training needs beyond `read_manifest`: every label of every split occurs in `train`.

    Raises:
        ManifestError: lists the labels that no training video has.
    """
    trained = {row.label for row in manifest.rows if row.split == "train"}
    others = Counter(
        (row.label, row.split) for row in manifest.rows if row.label not in trained and row.label
    )
    problems = [
        f"label {label!r} has {count} videos in split {split!r} and none in 'train'"
        for (label, split), count in others.items()
        if trained
    ]
    raise_all(problems, manifest.path, "give these classes training videos, or leave them out")


def write_manifest(path: Path | str, rows: Iterable[Row]) -> None:
    """Writes CSV, or Parquet when the name ends in .parquet; `read_manifest` reads it back.

    A manifest that was there is replaced as a whole, or not at all.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    values = [astuple(row) for row in rows]
    if path.suffix.lower() == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = (pa.string(),) * 4 + (pa.float64(),) * 2
        columns: Sequence[Any] = list(zip(*values, strict=True)) or [()] * len(COLUMNS)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        pq.write_table(pa.table(dict(zip(COLUMNS, arrays, strict=True))), partial)
    else:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(values)  # None becomes an empty field
    partial.replace(path)


def missing_files(manifest: Manifest, rows: Iterable[Row]) -> list[str]:
    """One line per row whose file or frame folder is not there."""
    return [f"{row.video_id}: no file {row.path}" for row in rows if not manifest.file_of(row).exists()]


def require_files(manifest: Manifest, rows: Iterable[Row]) -> None:
    """Raises `ManifestError` listing the rows whose files are missing."""
    raise_all(
        missing_files(manifest, rows),
        manifest.path,
        f"paths start at {manifest.root}; set manifest.root if that is not the folder",
    )


def _row(number: int, values: tuple[Any, ...], problems: list[str]) -> Row:
    video_id, path, label, split = ("" if value is None else str(value).strip() for value in values[:4])
    name = video_id or f"row {number}"
    if not video_id:
        problems.append(f"row {number}: no video_id")
    if not path:
        problems.append(f"{name}: no path")
    if bool(label) != bool(split):
        problems.append(
            f"{name}: label {label!r} is in no split" if label else f"{name}: split {split!r} but no label"
        )
    times: list[float | None] = []
    for column, value in zip(COLUMNS[4:], values[4:], strict=True):
        try:
            seconds = None if value is None or value == "" else float(value)
        except (TypeError, ValueError):
            seconds = math.nan
        if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
            problems.append(f"{name}: {column} = {value!r} is no time in seconds")
            seconds = None
        times.append(seconds)
    start_s, end_s = times
    if end_s is not None and end_s <= (start_s or 0.0):
        problems.append(f"{name}: from {start_s or 0.0} s to {end_s} s is no span")
    return Row(video_id, path, label, split, start_s, end_s)


def _duplicates(rows: Sequence[Row]) -> list[str]:
    counts = Counter(row.video_id for row in rows if row.video_id)
    return [f"{video_id}: in {count} rows" for video_id, count in counts.items() if count > 1]


def _paths_outside(manifest: Manifest) -> list[str]:
    """Absolute paths and .. are refused as text: links below the root are the user's own affair."""
    problems = []
    for row in manifest.rows:
        path = Path(row.path)
        if path.is_absolute() or ".." in path.parts:
            problems.append(f"{row.video_id}: path {row.path} leaves the root {manifest.root}")
    return problems


def raise_all(problems: Sequence[str], path: Path, fix: str) -> None:
    """Raises one `ManifestError` that lists all problems, if there are any."""
    if not problems:
        return
    lines = list(problems[:_SHOWN])
    if len(problems) > _SHOWN:
        lines.append(f"... and {len(problems) - _SHOWN} more")
    heading = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    raise ManifestError("\n  ".join([heading, *lines]), where=str(path), fix=fix)
