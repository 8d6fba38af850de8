"""Tables beside the store, one row per video: labels and splits live there, not in the parts."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ManifestError


@dataclass(frozen=True)
class LabelRow:
    """What the manifest says of one video."""

    label: str
    split: str


def read_table(path: Path | str) -> dict[str, list[Any]]:
    """Reads a CSV (UTF-8, header line) or Parquet file into columns.

    Returns:
        column name -> values; CSV values are text, Parquet values have the type of their column.

    Raises:
        ManifestError: the file is missing, or no table.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet

            table: dict[str, list[Any]] = pyarrow.parquet.read_table(path).to_pydict()
            return table
        return _read_csv(path)
    except OSError as error:
        raise _unreadable(f"cannot read the table ({error.strerror or error})", path) from None
    except (UnicodeDecodeError, csv.Error, ValueError) as error:  # ArrowInvalid is a ValueError
        raise _unreadable(f"not a CSV or Parquet table: {error}", path) from None


def read_labels(path: Path | str) -> dict[str, LabelRow]:
    """Reads `video_id`, `label` and `split` of every row, in the table's order, without spaces around them.

    Raises:
        ManifestError: a column is missing, or an id occurs twice; lists all such ids.
    """
    table = read_table(path)
    missing = [name for name in ("video_id", "label", "split") if name not in table]
    if missing:
        raise _unreadable(f"no column {', '.join(missing)}; there are {', '.join(table)}", Path(path))
    rows: dict[str, LabelRow] = {}
    twice: list[str] = []
    for cells in zip(table["video_id"], table["label"], table["split"], strict=True):
        video_id, label, split = map(_text, cells)
        if video_id in rows:
            twice.append(video_id)
        rows[video_id] = LabelRow(label, split)
    if twice:
        raise _unreadable(f"{len(twice)} ids occur more than once: {', '.join(twice[:20])}", Path(path))
    return rows


def format_labels(rows: Mapping[str, LabelRow]) -> bytes:
    """The CSV that `read_labels` reads back."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["video_id", "label", "split"])
    writer.writerows([video_id, row.label, row.split] for video_id, row in rows.items())
    return text.getvalue().encode()


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _read_csv(path: Path) -> dict[str, list[Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        if not header or len(set(header)) != len(header):
            raise ValueError("the first line must name the columns, each once")
        columns: dict[str, list[Any]] = {name: [] for name in header}
        for row in reader:
            if row and len(row) != len(header):
                raise ValueError(f"line {reader.line_num} has {len(row)} fields instead of {len(header)}")
            for name, value in zip(header, row, strict=False):
                columns[name].append(value)
    return columns


def _unreadable(what: str, path: Path) -> ManifestError:
    return ManifestError(
        what, where=str(path), fix="give a CSV or Parquet file with video_id, label and split"
    )
