"""Stores to other formats and dtypes, plain files to stores, and stores to plain files."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import ConfigError, StoreError
from .exchange import (
    Item,
    read_hdf5,
    read_npy,
    read_parquet,
    write_hdf5,
    write_npy,
    write_parquet,
)
from .exchange_zarr import read_zarr, write_zarr
from .folder import Folder, find_folder, writing
from .index import PartTable
from .labels import LabelRow, format_labels, read_labels
from .layout import Header, from_stored, to_stored
from .official import read_official, write_official
from .opening import read_header
from .part import MappedPart
from .reader import create_store, open_store
from .writer import Record, StoreWriter

READERS: dict[str, Callable[[Path], tuple[dict[str, Any], Iterator[Item]]]] = {
    "official": read_official,
    "npy": read_npy,
    "hdf5": read_hdf5,
    "parquet": read_parquet,
    "zarr": read_zarr,
}
WRITERS: dict[str, Callable[[Path, Iterator[Item]], None]] = {
    "official": write_official,
    "npy": write_npy,
    "hdf5": write_hdf5,
    "parquet": write_parquet,
    "zarr": write_zarr,
}
_FOLDERS = ("official", "npy", "zarr")  # layouts that are a folder, not a file


@dataclass(frozen=True)
class ConvertReport:
    """`n_present` videos were in the destination already, from an earlier, interrupted run."""

    n_videos: int
    n_present: int


@dataclass(frozen=True)
class ImportReport:
    """What came in; `manifest` has the labels and splits in the source's order, None if it had none."""

    n_videos: int
    n_present: int
    manifest: str | None


@dataclass(frozen=True)
class ExportReport:
    """What went out; plain files have no place for the `extras` named here."""

    n_videos: int
    dropped_extras: tuple[str, ...]


def convert(
    path: Path | str, into: Path | str, *, format: str | None = None, dtype: str | None = None
) -> ConvertReport:
    """Copies a store into a new one of another format or dtype. Run again after a kill, it goes on.

    A changed dtype is added to the facts, so that nothing extracted later is mixed with rounded features.

    Args:
        path: the store; it stays as it is.
        into: the new store.
        format: "zarr" or "hdf5"; None keeps it.
        dtype: float16, bfloat16 or float32; None keeps it.
    """
    source = find_folder(path)
    old = read_header(source)
    new = replace(old, format=format or old.format, dtype=dtype or old.dtype)
    if new.dtype != old.dtype:
        new = replace(new, facts={**old.facts, "converted": {"from": old.dtype, "to": new.dtype}})
    store = create_store(
        into,
        feature_dim=new.feature_dim,
        fingerprint_facts=new.facts,
        dtype=new.dtype,
        format=new.format,
        feature_names=new.feature_names,
    )
    n_present = len(store)
    with store.writer() as writer:
        for record in _records(source, old):
            if record.video_id not in store:
                where = f"video {record.video_id[:200]}"
                values = to_stored(from_stored(record.values, old.dtype), new.dtype, where)
                writer.append_record(replace(record, values=values))
    store.refresh()
    return ConvertReport(len(store), n_present)


def _records(folder: Folder, header: Header) -> Iterator[Record]:
    """Every video of a store once, checked, part by part."""
    table = PartTable(folder, header)
    for commit in table.commits.values():
        for record in MappedPart(folder.local_part(commit), commit).records():
            if table.part_of[table.where[record.video_id]] == commit.part:
                yield record


def import_features(
    source: Path | str,
    into: Path | str,
    *,
    layout: str,
    dtype: str = "float32",
    format: str = "zarr",
) -> ImportReport:
    """Makes a store from plain files; ids, labels and splits are kept. Run again after a kill, it goes on.

    Args:
        source: a folder or file in that layout.
        into: the new store; labels and splits go to `manifest.csv` in it.
        layout: "official" (the reference's pickles and .pt files), "npy", "hdf5", "parquet" or "zarr".
        dtype: float32 keeps every value of the usual sources.
        format: "zarr" or "hdf5".

    Raises:
        StoreError: the source is missing or damaged, or holds NaN; ConfigError: unknown layout.
    """
    facts, items = _look_up(READERS, layout)(Path(source))
    first = next(items, None)
    if first is None:
        raise StoreError("the source holds no videos", where=str(source), fix="check the path")
    names: dict[str, LabelRow] = {}
    store = create_store(
        into,
        feature_dim=first.values.shape[-1] if first.values.ndim else 1,
        fingerprint_facts={"imported": facts},
        dtype=dtype,
        format=format,
    )
    n_present = len(store)
    with store.writer() as writer:
        for item in chain([first], items):
            if item.row is not None:
                names[_nameable(item.video_id)] = item.row
            if item.video_id not in store:
                _append(writer, item)
    store.refresh()
    if names:
        find_folder(into).replace("manifest.csv", format_labels(names))
    return ImportReport(len(store), n_present, f"{into}/manifest.csv" if names else None)


def _nameable(video_id: str) -> str:
    if video_id != video_id.strip():
        raise StoreError(
            f"the id {video_id[:200]!r} begins or ends with a space, which a manifest cannot keep",
            where="the source's labels",
            fix="rename the video in the source",
        )
    return video_id


def _append(writer: StoreWriter, item: Item) -> None:
    start, end = item.times()
    writer.append(
        item.video_id, item.values, start_s=start, end_s=end, n_frames=item.n_frames, status=item.status
    )


def export_features(
    path: Path | str, into: Path | str, *, layout: str, labels: Path | str | None = None
) -> ExportReport:
    """Writes a store as plain files; the destination appears whole or not at all.

    Args:
        path: the store.
        into: a new folder (official, npy, zarr) or file (hdf5, parquet).
        layout: "official", "npy", "hdf5", "parquet" or "zarr".
        labels: the manifest, for labels and splits; its order is the order of the videos. Without one they
            are sorted by id.

    Raises:
        StoreError: the destination exists, or the store is damaged.
    """
    write = _look_up(WRITERS, layout)
    store = open_store(path, labels=labels)
    ids = store.ids()
    if labels is not None:
        order = {video_id: number for number, video_id in enumerate(read_labels(labels))}
        ids.sort(key=lambda video_id: order.get(video_id, len(order)))
    dropped: set[str] = set()

    def items() -> Iterator[Item]:
        for video_id in ids:
            tse = store.get(video_id)
            dropped.update(tse.extras)
            row = None if tse.label is None else LabelRow(tse.label, tse.split or "")
            yield Item(video_id, tse.values, tse.start_s, tse.end_s, tse.n_frames, tse.status, row)

    with _fresh(Path(into), is_folder=layout in _FOLDERS) as temporary:
        write(temporary, items())
    return ExportReport(len(ids), tuple(sorted(dropped)))


@contextmanager
def _fresh(path: Path, *, is_folder: bool) -> Iterator[Path]:
    """A temporary place that becomes `path` when all went well."""
    if path.exists():
        raise StoreError("the destination exists", where=str(path), fix="name a new one, or delete it first")
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    with writing(str(path)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if is_folder:
                temporary.mkdir()
            yield temporary
            temporary.rename(path)
        finally:
            if is_folder:
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)


def _look_up(registry: dict[str, Any], layout: str) -> Any:
    if layout not in registry:
        raise ConfigError(f"unknown layout {layout!r}", where="layout", fix=f"one of {', '.join(registry)}")
    return registry[layout]
