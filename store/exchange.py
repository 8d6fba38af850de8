"""Plain files in and out, for other programs: a folder of .npy files, one HDF5 file, one Parquet file."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingDependencyError, StoreCorruptError
from .labels import LabelRow, read_table
from .layout import Array

TEXT_COLUMNS = ("video_id", "status", "label", "split")


@dataclass(frozen=True)
class Item:
    """One video between a store and a plain file; times and frame count may be unknown."""

    video_id: str
    values: Array  # (T, F)
    start_s: Array | None = None
    end_s: Array | None = None
    n_frames: int = 0
    status: str = "ok"
    row: LabelRow | None = None
    extras: dict[str, Array] = field(default_factory=dict)

    def texts(self) -> tuple[str, str, str, str]:
        """video_id, status, label, split."""
        row = self.row or LabelRow("", "")
        return self.video_id, self.status, row.label, row.split

    def times(self) -> tuple[Array, Array]:
        """start_s and end_s, NaN where unknown."""
        unknown = np.full(len(self.values), np.nan)
        start = unknown if self.start_s is None else self.start_s
        return start, unknown if self.end_s is None else self.end_s


def write_npy(folder: Path, items: Iterator[Item]) -> None:
    """One (T, F) array per video, `<video_id>.npy` as OpenTAD and ActionFormer read them, and `index.csv`.

    A video whose id is no plain file name gets a number instead; the index says which is which.
    """
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as file:
        index = csv.writer(file)
        index.writerow(["file", *TEXT_COLUMNS, "n_frames"])
        for number, item in enumerate(items):
            plain = re.fullmatch(r"\w[\w.-]{0,199}", item.video_id, re.ASCII) is not None
            name = f"{item.video_id}.npy" if plain else f"~{number:08d}.npy"
            np.save(folder / name, item.values)
            index.writerow([name, *item.texts(), item.n_frames])


def read_npy(folder: Path) -> tuple[dict[str, Any], Iterator[Item]]:
    """Reads what `write_npy` wrote, or any tree of `.npy` files: their relative names become the ids."""
    if (folder / "index.csv").exists():
        table = read_table(folder / "index.csv")
    else:
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.npy"))
        table = {"file": files, "video_id": [name.removesuffix(".npy") for name in files]}
    if not table.get("file"):
        raise no_features("no .npy files", folder)
    return {"layout": "npy"}, _npy_items(folder, table)


def _npy_items(folder: Path, table: dict[str, list[Any]]) -> Iterator[Item]:
    for number, name in enumerate(table["file"]):
        try:
            values = np.load(folder / name, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise no_features(f"not an array: {error}", folder / name) from None
        yield make_item({key: column[number] for key, column in table.items()}, values)


def write_hdf5(path: Path, items: Iterator[Item]) -> None:
    """One file: `tse`, `start_s`, `end_s` packed with `offsets`; one entry per video in the others."""
    h5py = _h5py()
    lengths: list[int] = []
    frames: list[int] = []
    texts: list[tuple[str, ...]] = []
    with h5py.File(path, "w", libver="earliest") as file:
        for item in items:
            rows = {"tse": item.values, "start_s": item.times()[0], "end_s": item.times()[1]}
            for name, array in rows.items():
                if name not in file:
                    shape, limit = (0, *array.shape[1:]), (None, *array.shape[1:])
                    file.create_dataset(
                        name, shape, array.dtype, maxshape=limit, chunks=True, fletcher32=True
                    )
                end = len(file[name])
                file[name].resize(end + len(array), axis=0)
                file[name][end:] = array
            lengths.append(len(item.values))
            frames.append(item.n_frames)
            texts.append(item.texts())
        file["offsets"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        file["n_frames"] = np.array(frames, np.int64)
        for name, column in zip(TEXT_COLUMNS, zip(*texts, strict=True), strict=True):
            file.create_dataset(name, data=[text.encode() for text in column], dtype=h5py.string_dtype())


def read_hdf5(path: Path) -> tuple[dict[str, Any], Iterator[Item]]:
    """Reads what `write_hdf5` wrote; of the datasets, `tse`, `offsets` and `video_id` are needed."""
    h5py = _h5py()
    try:
        with h5py.File(path) as file:
            missing = [name for name in ("tse", "offsets", "video_id") if name not in file]
    except OSError as error:
        raise no_features(f"no HDF5 file ({error})", path) from None
    if missing:
        raise no_features(f"no dataset {', '.join(missing)}", path)
    return {"layout": "hdf5"}, _hdf5_items(path, h5py)


def _hdf5_items(path: Path, h5py: Any) -> Iterator[Item]:
    with h5py.File(path) as file:
        columns = {name: file[name].asstr()[:] for name in TEXT_COLUMNS if name in file}
        if "n_frames" in file:
            columns["n_frames"] = file["n_frames"][:]
        offsets = file["offsets"][:]
        for number in range(len(columns["video_id"])):
            rows = slice(int(offsets[number]), int(offsets[number + 1]))
            facts = {name: column[number] for name, column in columns.items()}
            times = {name: file[name][rows] for name in ("start_s", "end_s") if name in file}
            try:
                yield make_item({**facts, **times}, file["tse"][rows])
            except OSError as error:  # a checksum of HDF5
                raise no_features(f"video {facts['video_id']!r} cannot be read ({error})", path) from None


def write_parquet(path: Path, items: Iterator[Item]) -> None:
    """One row per video: texts, n_frames, start_s, end_s, and `tse` as a list of float32 rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    for item in items:
        row = pa.FixedSizeListArray.from_arrays(
            pa.array(item.values.reshape(-1).astype(np.float32)), item.values.shape[1]
        )
        start, end = item.times()
        columns = {
            name: pa.array([text], pa.string()) for name, text in zip(TEXT_COLUMNS, item.texts(), strict=True)
        }
        columns["n_frames"] = pa.array([item.n_frames], pa.int64())
        columns["start_s"], columns["end_s"] = pa.array([start]), pa.array([end])
        columns["tse"] = pa.ListArray.from_arrays(pa.array([0, len(row)], pa.int32()), row)
        batch = pa.record_batch(columns)
        writer = writer or pq.ParquetWriter(path, batch.schema)
        writer.write_batch(batch)
    if writer is not None:
        writer.close()


def read_parquet(path: Path) -> tuple[dict[str, Any], Iterator[Item]]:
    """Reads what `write_parquet` wrote; of the columns, `video_id` and `tse` are needed."""
    import pyarrow.parquet as pq

    try:
        names = pq.ParquetFile(path).schema_arrow.names
    except (OSError, ValueError) as error:
        raise no_features(f"no Parquet file ({error})", path) from None
    if not {"video_id", "tse"} <= set(names):
        raise no_features(f"no columns video_id and tse; there are {', '.join(names)}", path)
    return {"layout": "parquet"}, _parquet_items(path)


def _parquet_items(path: Path) -> Iterator[Item]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches(batch_size=64):
        for number in range(batch.num_rows):
            facts = {name: batch[name][number].as_py() for name in batch.schema.names if name != "tse"}
            rows = batch["tse"][number].values
            width = rows.type.list_size if hasattr(rows.type, "list_size") else 0
            if width < 1:
                raise no_features("column tse is no list of fixed-size lists", path)
            yield make_item(facts, rows.flatten().to_numpy(zero_copy_only=False).reshape(-1, width))


def make_item(facts: dict[str, Any], values: Array) -> Item:
    """An item from what a file knows of a video, by column name."""
    labelled = "label" in facts and "split" in facts and (facts["label"] or facts["split"])
    return Item(
        video_id=str(facts["video_id"]),
        values=values,
        start_s=facts.get("start_s"),
        end_s=facts.get("end_s"),
        n_frames=int(facts.get("n_frames") or 0),
        status=str(facts.get("status") or "ok"),
        row=LabelRow(str(facts["label"]), str(facts["split"])) if labelled else None,
    )


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise MissingDependencyError(
            "h5py is not installed", where="HDF5 files", fix="pip install 'dejavid[hdf5]'"
        ) from None
    return h5py


def no_features(what: str, path: Path) -> StoreCorruptError:
    """The error of a source that is not what it was said to be."""
    return StoreCorruptError(what, where=str(path), fix="check the path and the format that was named")
