"""One committed part, memory-mapped: arrays by the places that COMMIT.json gives, for every format alike."""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import StoreCorruptError, StoreError
from .folder import unreadable
from .layout import STATUSES, Array, ArrayPlace, Commit, crc32c
from .writer import Record


class MappedPart:
    """Reads the arrays of a part without copying.

    Args:
        folder: where the part's objects lie.
        commit: its COMMIT.json.
    """

    def __init__(self, folder: Path, commit: Commit) -> None:
        self._folder = folder
        self.commit = commit
        self.name = commit.part
        self._offsets = [0, *itertools.accumulate(commit.lengths)]
        self._arrays: dict[str, Array] = {}
        self._place = commit.arrays["tse"]
        with self._open(self._place.object) as file:
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._chunks = _views(self._place, self._mapped)
        self._checked = bytearray(len(commit.ids))
        self._advised = bytearray(len(commit.ids))

    def array(self, name: str) -> Array:
        """One of the smaller arrays, whole; checked when it is first read."""
        if name not in self._arrays:
            place = self.commit.arrays[name]
            (array,) = _views(place, self._contents(place.object))
            if crc32c(array) != place.crc32c:
                raise self._damaged(f"the checksum of array {name!r} does not match", place.object)
            self._arrays[name] = array
        return self._arrays[name]

    def rows(self, video: int) -> list[Array]:
        """The stored features of the part's `video`-th video, as views of one or more chunks."""
        first, last = self._offsets[video], self._offsets[video + 1]
        size = self._place.chunk_rows
        pieces = []
        while first < last:
            chunk, row = divmod(first, size)
            stop = min(size, row + last - first)
            pieces.append(self._chunks[chunk][row:stop])
            first += stop - row
        return pieces

    def check(self, video: int, *, again: bool = False) -> None:
        """Compares a video's features with its checksum, the first time or `again`.

        Raises:
            StoreCorruptError: they differ.
        """
        if self._checked[video] and not again:
            return
        if not self.intact(video):
            raise self._damaged(f"the features of video {self.commit.ids[video]!r} have changed", "tse")
        self._checked[video] = True

    def intact(self, video: int) -> bool:
        """Whether a video's features match their checksum."""
        crc = 0
        for piece in self.rows(video):
            crc = crc32c(piece, crc)
        return crc == int(self.array("checksums")[video])

    def advise(self, video: int, *, again: bool) -> None:
        """Asks the kernel to read a video's pages ahead, so that many load in parallel; once or `again`."""
        if self._advised[video] and not again:
            return
        self._advised[video] = True
        place = self._place
        first, last = self._offsets[video], self._offsets[video + 1] - 1
        row_bytes = self._chunks[0].strides[0]
        spots = [
            place.starts[r // place.chunk_rows] + r % place.chunk_rows * row_bytes for r in (first, last)
        ]
        start = min(spots) // mmap.PAGESIZE * mmap.PAGESIZE
        self._mapped.madvise(mmap.MADV_WILLNEED, start, max(spots) + row_bytes - start)

    def extras(self, video: int) -> dict[str, Array]:
        """The extra arrays of one video."""
        found = {}
        for name in self.commit.arrays:
            if name.startswith("extra_") and f"{name}_offsets" in self.commit.arrays:
                low, high = self.array(f"{name}_offsets")[video : video + 2]
                found[name.removeprefix("extra_")] = self.array(name)[low:high]
        return found

    def record(self, video: int) -> Record:
        """Everything about one video, as stored; views of the mapped file where possible."""
        pieces = self.rows(video)
        rows = slice(self._offsets[video], self._offsets[video + 1])
        return Record(
            video_id=self.commit.ids[video],
            values=pieces[0] if len(pieces) == 1 else np.concatenate(pieces),
            start_s=self.array("start_s")[rows],
            end_s=self.array("end_s")[rows],
            n_frames=int(self.array("n_frames")[video]),
            status=STATUSES[int(self.array("status")[video])],
            extras=self.extras(video),
        )

    def records(self) -> Iterator[Record]:
        """All videos of the part, each checked."""
        for video in range(len(self.commit.ids)):
            self.check(video)
            yield self.record(video)

    def _contents(self, name: str) -> bytes | mmap.mmap:
        # Small objects are read, not mapped: a mapping holds a file descriptor, and there may be many parts.
        if name == self._place.object:
            return self._mapped
        with self._open(name) as file:
            return file.read()

    @contextmanager
    def _open(self, name: str) -> Iterator[BinaryIO]:
        size = self.commit.objects[name][0]
        try:
            with (self._folder / name).open("rb") as file:
                found = os.fstat(file.fileno()).st_size
                if found != size:
                    raise self._damaged(f"an object has {found} bytes instead of {size}", name)
                yield file
        except FileNotFoundError:
            if not self._folder.exists():
                raise PartGoneError(
                    "a part was compacted or set aside meanwhile",
                    where=str(self._folder),
                    fix="open the store again",
                ) from None
            raise self._damaged("an object is missing", name) from None
        except OSError as error:
            raise unreadable(error, f"{self._folder}, {name}") from None

    def _damaged(self, what: str, name: str) -> StoreCorruptError:
        return StoreCorruptError(
            what,
            where=f"{self._folder}, {name}",
            fix="dejavid store repair sets the part aside; then extract again",
        )


def _views(place: ArrayPlace, contents: bytes | mmap.mmap) -> list[Array]:
    """One read-only array per chunk."""
    dtype = np.dtype(place.dtype)
    width = int(np.prod(place.shape[1:], dtype=np.int64))
    views = []
    for number, start in enumerate(place.starts):
        rows = min(place.chunk_rows, place.shape[0] - number * place.chunk_rows)
        flat = np.frombuffer(contents, dtype, rows * width, start)
        views.append(flat.reshape(rows, *place.shape[1:]))
    return views


class PartGoneError(StoreError):
    """The part's folder is not there any more: compacted or set aside since it was listed."""
