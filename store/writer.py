"""Rows in, immutable parts out."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import __version__
from ..config import StoreSection
from ..errors import StoreError
from .folder import Folder
from .formats import ENCODERS
from .layout import EXTRA_NAME, STATUSES, Array, Commit, Header, crc32c, new_part_name, object_crc, to_stored

_DEFAULTS = StoreSection()


@dataclass(frozen=True)
class Record:
    """One video as it is stored: features already in the store's dtype."""

    video_id: str
    values: Array
    start_s: Array
    end_s: Array
    n_frames: int
    status: str
    extras: Mapping[str, Array] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.values.nbytes + sum(extra.nbytes for extra in self.extras.values())

    @property
    def signature(self) -> tuple[tuple[str, Any, tuple[int, ...]], ...]:
        """What the extras of the videos of one part must agree on."""
        return tuple((name, x.dtype, x.shape[1:]) for name, x in sorted(self.extras.items()))


class StoreWriter:
    """Collects videos and commits them as parts. Any number of writers may work on one store at once.

    Use it as a context manager: leaving commits what was appended, also when an exception ends the block.
    """

    def __init__(
        self,
        folder: Folder,
        header: Header,
        *,
        flush_rows: int = _DEFAULTS.flush_rows,
        flush_bytes: int = _DEFAULTS.flush_bytes,
        flush_s: float = _DEFAULTS.flush_s,
    ) -> None:
        self._folder = folder
        self._header = header
        self._limits = (flush_rows, flush_bytes, flush_s)
        self._owner = os.getpid()
        self._pending: dict[str, Record] = {}
        self._rows = self._size = 0
        self._since = 0.0

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
        except StoreError as failure:
            if error is None:
                raise
            error.add_note(f"and the last {len(self._pending)} videos could not be committed: {failure}")

    def append(
        self,
        video_id: str,
        values: ArrayLike,
        *,
        start_s: ArrayLike,
        end_s: ArrayLike,
        n_frames: int,
        status: str = "ok",
        extras: Mapping[str, ArrayLike] | None = None,
    ) -> None:
        """Adds one video; commits a part when enough rows, bytes or seconds have gathered.

        Args:
            video_id: any non-empty text; once per part.
            values: (T, F) finite features, T >= 1.
            start_s: (T,) seconds at which each step begins; NaN where unknown.
            end_s: (T,) seconds at which each step ends; NaN where unknown.
            n_frames: frames that were decoded; 0 where unknown.
            status: "ok", or "short" when the file ended before its header said.
            extras: further non-empty numeric arrays by name, such as logits.

        Raises:
            StoreError: an argument does not fit, or committing failed (the videos stay pending).
        """
        record = make_record(self._header, video_id, values, start_s, end_s, n_frames, status, extras or {})
        self.append_record(record)

    def append_record(self, record: Record) -> None:
        """Adds a video that is already in the store's dtype."""
        if record.video_id in self._pending:
            raise _refused("the video is appended twice", record.video_id)
        if self._pending and next(iter(self._pending.values())).signature != record.signature:
            self.flush()
        if not self._pending:
            self._since = time.monotonic()
        self._pending[record.video_id] = record
        self._rows += len(record.values)
        self._size += record.size
        rows, size, seconds = self._limits
        if self._rows >= rows or self._size >= size or time.monotonic() - self._since >= seconds:
            self.flush()

    def flush(self) -> None:
        """Commits the pending videos as one part; on failure they stay pending and can be flushed again."""
        if not self._pending:
            return
        if os.getpid() != self._owner:
            raise StoreError(
                "a store writer was used in a forked process",
                where=str(self._folder),
                fix="open the store and make a writer in the process that writes",
            )
        commit_part(self._folder, self._header, list(self._pending.values()))
        self._pending.clear()
        self._rows = self._size = 0


def make_record(
    header: Header,
    video_id: str,
    values: ArrayLike,
    start_s: ArrayLike,
    end_s: ArrayLike,
    n_frames: int,
    status: str,
    extras: Mapping[str, ArrayLike],
) -> Record:
    """Checks one video's arguments and casts them to what `header` stores; see `StoreWriter.append`."""
    if not isinstance(video_id, str) or not video_id or not _is_unicode(video_id):
        raise _refused("a video id must be non-empty Unicode text", repr(video_id))
    tse = np.asarray(values)
    if tse.ndim != 2 or len(tse) == 0 or tse.shape[1] != header.feature_dim or tse.dtype.kind not in "fiu":
        expected = f"(T >= 1, {header.feature_dim}) numbers"
        raise _refused(f"features must be {expected}, not {tse.shape} of {tse.dtype}", video_id)
    times = [np.ascontiguousarray(t, dtype="<f8") for t in (start_s, end_s)]
    if any(t.shape != (len(tse),) or np.isinf(t).any() for t in times):
        raise _refused(f"start_s and end_s must be {len(tse)} seconds, one per step", video_id)
    if status not in STATUSES or n_frames < 0:
        raise _refused(
            f"status {status!r} is not one of {STATUSES}, or n_frames {n_frames} is negative", video_id
        )
    kept: dict[str, Array] = {}
    for name, extra in sorted(extras.items()):
        array = np.ascontiguousarray(extra)
        if not EXTRA_NAME.fullmatch(name) or array.size == 0 or array.dtype.kind not in "fiub":
            raise _refused(
                f"extra {name!r}: {array.shape} of {array.dtype} is no non-empty numeric array", video_id
            )
        kept[name] = np.array(np.atleast_1d(array), dtype=array.dtype.newbyteorder("<"))
    stored = to_stored(tse, header.dtype, f"video {video_id!r}")
    # All are copies: the caller may reuse its buffers before the part is written.
    return Record(video_id, stored, times[0].copy(), times[1].copy(), int(n_frames), status, kept)


def commit_part(
    folder: Folder,
    header: Header,
    records: Sequence[Record],
    *,
    part: str | None = None,
    replaces: Sequence[str] = (),
) -> Commit:
    """Encodes `records` as one part and commits it."""
    name = part or new_part_name()
    attributes = {"dtype": header.dtype, "extract_fp": header.fingerprint}
    objects, places = ENCODERS[header.format](_pack(records), attributes)
    commit = Commit(
        part=name,
        fingerprint=header.fingerprint,
        ids=tuple(record.video_id for record in records),
        lengths=tuple(len(record.values) for record in records),
        arrays=places,
        objects={key: (len(data), object_crc(data)) for key, data in objects.items()},
        replaces=tuple(replaces),
        written={
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "host": socket.gethostname(),
            "program": f"dejavid {__version__}",
        },
    )
    folder.commit(name, objects, commit.to_bytes())
    return commit


def _pack(records: Sequence[Record]) -> dict[str, Array]:
    """The arrays of a part, packed: per step, per video, and per extra with its own offsets."""
    ids = [record.video_id.encode() for record in records]
    arrays: dict[str, Array] = {
        "tse": np.concatenate([r.values for r in records]),
        "offsets": _offsets([len(r.values) for r in records]),
        "id_bytes": np.frombuffer(b"".join(ids), np.uint8),
        "id_offsets": _offsets([len(i) for i in ids]),
        "start_s": np.concatenate([r.start_s for r in records]),
        "end_s": np.concatenate([r.end_s for r in records]),
        "n_frames": np.array([r.n_frames for r in records], "<i8"),
        "status": np.array([STATUSES.index(r.status) for r in records], np.uint8),
        "checksums": np.array([crc32c(r.values) for r in records], "<u4"),
    }
    for name in records[0].extras:
        arrays[f"extra_{name}"] = np.concatenate([r.extras[name] for r in records])
        arrays[f"extra_{name}_offsets"] = _offsets([len(r.extras[name]) for r in records])
    return arrays


def _offsets(lengths: Sequence[int]) -> Array:
    return np.concatenate([[0], np.cumsum(lengths)]).astype("<i8")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as undecodable file names have
        return False
    return True


def _refused(what: str, video_id: str) -> StoreError:
    return StoreError(
        what, where=f"video {video_id[:200]}", fix="mend the call; nothing of this video was stored"
    )
