"""Opening a store and reading TSEs from it at memory speed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from ..config import StoreSection
from ..errors import ConfigError, StoreError
from .folder import Folder, find_folder
from .formats import ENCODERS
from .index import PartTable
from .labels import LabelRow, read_labels
from .layout import DTYPES, STORE_FILE, Array, Commit, Header, from_stored
from .opening import read_header, require_same
from .part import MappedPart, PartGoneError
from .tse import Batch, Tse
from .writer import Record, StoreWriter

if TYPE_CHECKING:
    import torch

_DEFAULTS = StoreSection()
_MAPPED_PARTS = 400  # at most this many parts stay mapped; each holds a file descriptor

_PAGE_CACHE_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
_RETRIES = 10  # compactions that may overtake one read

Result = TypeVar("Result")
Check = Literal["once", "always", "never"]


class Store:
    """A set of TSEs by video id. Made by `open_store` and `create_store`.

    Reading takes no locks and is safe in threads, after a fork and in spawned processes. A store that is open
    sees the parts that were committed before it was opened; `refresh` sees the later ones.
    """

    def __init__(
        self, folder: Folder, header: Header, *, labels: Path | str | None = None, check: Check = "once"
    ) -> None:
        self._folder = folder
        self.header = header
        self._labels_path = labels
        self._labels: dict[str, LabelRow] = {} if labels is None else read_labels(labels)
        self._check = check
        self._mapped: dict[str, MappedPart] = {}
        self._table = PartTable(folder, header)

    def __getstate__(self) -> dict[str, Any]:
        # What spawned data loaders receive; they map the files themselves.
        return {**vars(self), "_mapped": {}}

    @property
    def path(self) -> Path:
        return self._folder.path

    @property
    def feature_dim(self) -> int:
        return self.header.feature_dim

    @property
    def dtype(self) -> str:
        """What is stored: float16, bfloat16 or float32."""
        return self.header.dtype

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the features depend on: encoder, windows, views, preprocessing, decoder."""
        return self.header.facts

    @property
    def fingerprint(self) -> str:
        return self.header.fingerprint

    def __len__(self) -> int:
        return len(self._table.where)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._table.where

    def refresh(self) -> None:
        """Looks for parts that were committed or compacted since."""
        self._table = PartTable(self._folder, self.header, known=self._table)
        self._mapped.clear()

    def ids(self, split: str | None = None, label: str | None = None) -> list[str]:
        """The videos of the store: sorted; with `split` or `label` in the manifest's order.

        Raises:
            StoreError: a split or label is asked for and the store was opened without labels.
        """
        if split is None and label is None:
            return sorted(self._table.where)
        self._need_labels(f"split={split!r}, label={label!r}")
        return [
            video_id
            for video_id, row in self._labels.items()
            if split in (None, row.split) and label in (None, row.label) and video_id in self._table.where
        ]

    def label(self, video_id: str) -> str:
        """The manifest's label of a video."""
        return self.labels([video_id])[0]

    def labels(self, ids: Sequence[str]) -> list[str]:
        """The manifest's labels of `ids`."""
        self._need_labels("labels")
        missing = [video_id for video_id in ids if video_id not in self._labels]
        if missing:
            raise StoreError(
                f"{len(missing)} videos have no row in the manifest, such as {missing[0]!r}",
                where=str(self._labels_path),
                fix="add them to the manifest, or ask for the videos of a split only",
            )
        return [self._labels[video_id].label for video_id in ids]

    def lengths(self, ids: Sequence[str]) -> Array:
        """(N,) int64: the number of steps of each video, without reading it."""
        table = self._table
        lengths: Array = table.lengths[self._places(table, ids)]
        return lengths

    def get(self, video_id: str) -> Tse:
        """One TSE with everything known about it; the arrays are the caller's own.

        Raises:
            StoreError: no such video; StoreCorruptError: its bytes have changed.
        """
        record = self._retrying(lambda table: self._record(table, video_id))
        row = self._labels.get(video_id)
        return Tse(
            video_id=video_id,
            values=np.array(from_stored(record.values, self.dtype), dtype=np.float32),
            label=None if row is None else row.label,
            split=None if row is None else row.split,
            start_s=record.start_s.copy(),
            end_s=record.end_s.copy(),
            n_frames=record.n_frames,
            status=record.status,
            extras={name: extra.copy() for name, extra in record.extras.items()},
        )

    def extra(self, name: str) -> dict[str, Array]:
        """One extra array of every video that has it, without reading features."""
        return self._retrying(partial(self._extra, name=name))

    def read(self, ids: Sequence[str], dtype: str = "float32", *, pin: bool = False) -> Batch:
        """Reads many TSEs into one packed batch.

        Args:
            ids: videos, in the order wanted.
            dtype: "float32", or "stored": as they are on disk (bfloat16 as its bits in uint16).
            pin: page-locked memory, for faster copies to a GPU; plain memory where there is none.
        """
        return self._retrying(lambda table: self._read(table, list(ids), dtype, pin))

    def batches(
        self,
        ids: Sequence[str],
        batch_size: int,
        *,
        order: ArrayLike | None = None,
        dtype: str = "float32",
        pin: bool = False,
    ) -> Iterator[Batch]:
        """Yields packed batches of `batch_size` videos (the last may be smaller).

        Args:
            ids: videos.
            batch_size: videos per batch.
            order: positions in `ids`, such as a permutation; None: as given.
            dtype, pin: see `read`.
        """
        if batch_size < 1:
            raise ConfigError(
                f"batch_size {batch_size} < 1", where="Store.batches", fix="give a positive number"
            )
        chosen = list(ids) if order is None else [ids[int(i)] for i in np.asarray(order)]
        groups = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
        for number, group in enumerate(groups):
            batch = self.read(group, dtype, pin=pin)
            if number + 1 < len(groups):
                # The kernel fetches the next batch from disk while the caller works on this one.
                self._retrying(partial(self._prefetch, ids=groups[number + 1]))
            yield batch

    def writer(
        self,
        *,
        flush_rows: int = _DEFAULTS.flush_rows,
        flush_bytes: int = _DEFAULTS.flush_bytes,
        flush_s: float = _DEFAULTS.flush_s,
    ) -> StoreWriter:
        """A writer into this store; call `refresh` to see what it has committed."""
        return StoreWriter(
            self._folder, self.header, flush_rows=flush_rows, flush_bytes=flush_bytes, flush_s=flush_s
        )

    def to_device(
        self, ids: Sequence[str], device: str, *, dtype: str = "float32"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loads TSEs once into the memory of a device, for training without further reading.

        Returns:
            values (S, F) on `device`, as float32 or, with dtype="stored", in the store's own dtype;
            offsets (N + 1,) int64 on the CPU.
        """
        import torch

        offsets = np.concatenate([[0], np.cumsum(self.lengths(ids))]).astype(np.int64)
        kind = getattr(torch, self.dtype if dtype == "stored" else "float32")
        values = torch.empty((int(offsets[-1]), self.feature_dim), dtype=kind, device=device)
        done = 0
        for batch in self.batches(ids, 256, dtype=dtype, pin=values.is_cuda):
            piece = torch.from_numpy(batch.values).view(kind)
            values[done : done + len(piece)].copy_(piece)
            done += len(piece)
        return values, torch.from_numpy(offsets)

    def _retrying(self, read: Callable[[PartTable], Result]) -> Result:
        """Reads again, after a refresh, when a compaction took a part away meanwhile.

        One read sees one table from beginning to end, also when another thread refreshes.
        """
        for _ in range(_RETRIES):
            try:
                return read(self._table)
            except PartGoneError:
                self.refresh()
        return read(self._table)

    def _read(self, table: PartTable, ids: list[str], dtype: str, pin: bool) -> Batch:
        places = self._places(table, ids)
        offsets = np.zeros(len(places) + 1, np.int64)
        np.cumsum(table.lengths[places], out=offsets[1:])
        values = self._allocate(int(offsets[-1]), dtype, pin)
        self._advise(table, places)
        pieces: list[Array] = []
        for part, video in self._spots(table, places):
            self._check_video(part, video)
            pieces += part.rows(video)
        if pieces and self.dtype == "bfloat16" and dtype == "float32":
            values[:] = from_stored(np.concatenate(pieces), self.dtype)
        elif pieces:
            np.concatenate(pieces, out=values)
        return Batch(ids, values, offsets)

    def _extra(self, table: PartTable, name: str) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for commit in table.commits.values():
            if f"extra_{name}" in commit.arrays:
                part = self._mapped.get(commit.part) or self._map(commit)
                # A view would keep the part's mapping, and with it a file descriptor.
                values, offsets = part.array(f"extra_{name}").copy(), part.array(f"extra_{name}_offsets")
                for video_id, low, high in zip(commit.ids, offsets, offsets[1:], strict=False):
                    found.setdefault(video_id, values[low:high])  # the first of several parts counts
        return found

    def _prefetch(self, table: PartTable, ids: list[str]) -> None:
        self._advise(table, self._places(table, ids))

    def _record(self, table: PartTable, video_id: str) -> Record:
        ((part, video),) = self._spots(table, self._places(table, [video_id]))
        self._check_video(part, video)
        return part.record(video)

    def _check_video(self, part: MappedPart, video: int) -> None:
        if self._check != "never":
            part.check(video, again=self._check == "always")

    def _places(self, table: PartTable, ids: Sequence[str]) -> Array:
        try:
            return np.fromiter((table.where[video_id] for video_id in ids), np.int64, len(ids))
        except KeyError as error:
            raise StoreError(
                f"no video {error.args[0]!r} in the store",
                where=str(self._folder),
                fix="dejavid store status lists what is missing; Store.refresh() sees new parts",
            ) from None

    def _spots(self, table: PartTable, places: Array) -> Iterator[tuple[MappedPart, int]]:
        """The part and the position in it of every place."""
        names, videos = table.part_of[places].tolist(), table.video_of[places].tolist()
        for name, video in zip(names, videos, strict=True):
            yield self._mapped.get(name) or self._map(table.commits[name]), video

    def _map(self, commit: Commit) -> MappedPart:
        part = MappedPart(self._folder.local_part(commit), commit)
        # Forgetting the oldest needs no lock: views keep their mapping alive.
        for oldest in list(self._mapped)[: max(0, len(self._mapped) - _MAPPED_PARTS + 1)]:
            self._mapped.pop(oldest, None)
        self._mapped[commit.part] = part
        return part

    def _advise(self, table: PartTable, places: Array) -> None:
        """Lets the kernel fetch videos from disk, in the order in which they lie there."""
        # A video that was read once stays in the page cache, unless the store is larger than that.
        again = table.n_bytes > _PAGE_CACHE_BYTES
        for part, video in self._spots(table, np.sort(places)):
            part.advise(video, again=again)

    def _allocate(self, rows: int, dtype: str, pin: bool) -> Array:
        if dtype not in ("float32", "stored"):
            raise ConfigError(f"dtype {dtype!r}", where="Store.read", fix='use "float32" or "stored"')
        kind = np.dtype(np.float32) if dtype == "float32" else DTYPES[self.dtype]
        shape = (rows, self.feature_dim)
        if pin:
            import torch

            if torch.cuda.is_available():
                n_bytes = rows * self.feature_dim * kind.itemsize
                memory = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
                return np.asarray(memory.numpy().view(kind).reshape(shape))
        return np.empty(shape, kind)

    def _need_labels(self, what: str) -> None:
        if self._labels_path is None:
            raise StoreError(
                f"{what} needs the manifest: a store holds no labels and splits",
                where=str(self._folder),
                fix="open_store(path, labels='manifest.csv')",
            )


def open_store(path: Path | str, *, labels: Path | str | None = None, check: Check = "once") -> Store:
    """Opens an existing store.

    Args:
        path: its folder.
        labels: the manifest, CSV or Parquet with video_id, label and split.
        check: when a video's checksum is compared: at its first read by this process, always, or never.

    Raises:
        StoreError: there is no store, or it is damaged or of another version; ManifestError: the labels are.
    """
    folder = find_folder(path)
    return Store(folder, read_header(folder), labels=labels, check=check)


def create_store(
    path: Path | str,
    *,
    feature_dim: int,
    fingerprint_facts: Mapping[str, Any],
    dtype: str = "float16",
    format: str = "zarr",
    feature_names: Sequence[str] | None = None,
) -> Store:
    """Creates a store, or opens the one that is there if it was made from the same facts.

    Args:
        path: folder; parents are made.
        feature_dim: F of every TSE.
        fingerprint_facts: JSON values that decide the features (encoder, windows, views, decoder ...).
        dtype: float16, bfloat16 or float32.
        format: what a part is, "zarr" or "hdf5".
        feature_names: F names, if the features have any.

    Raises:
        StoreVersionError: the existing store was made from other facts; lists the differing keys.
        ConfigError: an argument is wrong.
    """
    names = None if feature_names is None else tuple(feature_names)
    if dtype not in DTYPES or format not in ENCODERS or feature_dim < 1:
        raise ConfigError(
            f"dtype {dtype!r}, format {format!r}, feature_dim {feature_dim}",
            where="create_store",
            fix=f"dtype is one of {', '.join(DTYPES)}; format one of {', '.join(ENCODERS)}; feature_dim >= 1",
        )
    if names is not None and len(names) != feature_dim:
        raise ConfigError(
            f"{len(names)} feature names", where="create_store", fix=f"give {feature_dim} names"
        )
    try:
        facts = json.loads(json.dumps(dict(fingerprint_facts), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"a fact is no JSON value ({error})",
            where="create_store",
            fix="use text, numbers, lists and dicts",
        ) from None
    wanted = Header(format, dtype, feature_dim, names, facts)
    folder = find_folder(path)
    if not folder.has(STORE_FILE):
        folder.create(
            STORE_FILE, wanted.to_bytes()
        )  # another process may be first, with the same or other facts
    found = read_header(folder)
    require_same(found, wanted, str(path))
    return Store(folder, found)
