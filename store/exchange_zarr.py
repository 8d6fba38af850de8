"""All TSEs as one plain Zarr v3 group, for other programs; and such groups, or single parts, in."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .exchange import TEXT_COLUMNS, Item, make_item, no_features
from .layout import Array

_CHUNK_BYTES = 4 * 2**20
# What the columns are called in the group: those of a part where a part has them.
_NAMES = dict(zip(TEXT_COLUMNS, ("id", "status_text", "label", "split"), strict=True))


def write_zarr(folder: Path, items: Iterator[Item]) -> None:
    """`tse` (rows, F), `start_s`, `end_s` packed with `offsets`; texts as UTF-8 bytes with their own offsets.

    Chunks are checked (crc32c) and not compressed: float16 features shrink by 8 % only.
    """
    import zarr

    group = zarr.open_group(folder, mode="w", zarr_format=3)
    lengths: list[int] = []
    frames: list[int] = []
    texts: list[tuple[str, ...]] = []
    packed: dict[str, _Rows] = {}
    for item in items:
        start, end = item.times()
        for name, rows in {"tse": item.values, "start_s": start, "end_s": end}.items():
            if name not in packed:
                packed[name] = _Rows(group, name, rows)
            packed[name].append(rows)
        lengths.append(len(item.values))
        frames.append(item.n_frames)
        texts.append(item.texts())
    for column in packed.values():
        column.close()
    _put(group, "offsets", _offsets(lengths))
    _put(group, "n_frames", np.array(frames, np.int64))
    for name, column_texts in zip(TEXT_COLUMNS, zip(*texts, strict=True), strict=True):
        encoded = [text.encode() for text in column_texts]
        _put(group, f"{_NAMES[name]}_bytes", np.frombuffer(b"".join(encoded), np.uint8))
        _put(group, f"{_NAMES[name]}_offsets", _offsets([len(text) for text in encoded]))


def read_zarr(folder: Path) -> tuple[dict[str, Any], Iterator[Item]]:
    """Reads what `write_zarr` wrote, or a part; `tse`, `offsets`, `id_bytes` and `id_offsets` are needed."""
    import zarr

    try:
        group = zarr.open_group(folder, mode="r")
        names = set(group.array_keys())
    except (OSError, ValueError) as error:
        raise no_features(f"no Zarr group ({error})", folder) from None
    missing = [name for name in ("tse", "offsets", "id_bytes", "id_offsets") if name not in names]
    if missing:
        raise no_features(f"no array {', '.join(missing)}", folder)
    return {"layout": "zarr"}, _items(group, names, folder)


def _items(group: Any, names: set[str], folder: Path) -> Iterator[Item]:
    columns: dict[str, Any] = {
        name: _texts(group, key) for name, key in _NAMES.items() if f"{key}_bytes" in names
    }
    if "n_frames" in names:
        columns["n_frames"] = group["n_frames"][:]
    offsets = group["offsets"][:].tolist()
    times = [name for name in ("start_s", "end_s") if name in names]
    for number, video_id in enumerate(columns["video_id"]):
        rows = slice(offsets[number], offsets[number + 1])
        facts = {name: column[number] for name, column in columns.items()}
        try:
            facts |= {name: group[name][rows] for name in times}
            values = group["tse"][rows]
        except ValueError as error:  # a checksum of Zarr
            raise no_features(f"video {video_id!r} cannot be read ({error})", folder) from None
        yield make_item(facts, values)


class _Rows:
    """A packed array that grows by whole chunks, so that no chunk is written twice."""

    def __init__(self, group: Any, name: str, like: Array) -> None:
        self._chunk = max(1, _CHUNK_BYTES // like[0].nbytes)
        self._array = _create(group, name, (0, *like.shape[1:]), (self._chunk, *like.shape[1:]), like.dtype)
        self._waiting: list[Array] = []
        self._n_waiting = 0

    def append(self, rows: Array) -> None:
        self._waiting.append(rows)
        self._n_waiting += len(rows)
        if self._n_waiting >= self._chunk:
            self._write(self._n_waiting // self._chunk * self._chunk)

    def close(self) -> None:
        self._write(self._n_waiting)

    def _write(self, count: int) -> None:
        rows = np.concatenate(self._waiting)
        self._array.append(rows[:count])
        self._waiting, self._n_waiting = [rows[count:]], len(rows) - count


def _create(group: Any, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: Any) -> Any:
    from zarr.codecs import Crc32cCodec

    return group.create_array(name, shape=shape, chunks=chunks, dtype=dtype, compressors=Crc32cCodec())


def _put(group: Any, name: str, values: Array) -> None:
    _create(group, name, values.shape, (max(1, len(values)),), values.dtype)[:] = values


def _offsets(lengths: list[int]) -> Array:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _texts(group: Any, key: str) -> list[str]:
    data, offsets = group[f"{key}_bytes"][:].tobytes(), group[f"{key}_offsets"][:].tolist()
    return [data[a:b].decode() for a, b in pairwise(offsets)]
