"""The store's format, in one file: names, documents, dtypes, checksums.

A store is a folder (or a prefix of an object store)::

    STORE.json            created once: format, dtype, feature_dim, facts and their fingerprint
    parts/<time_ns>-<uuid8>/
        ...               the part's objects: a Zarr v3 group, or one HDF5 file
        COMMIT.json       written last: the ids, and place, size and checksum of everything
    quarantine/           damaged parts that `repair` moved out of the way
    failed/               failures ledgers of `extract`
    index/                caches; can be deleted at any time

Both JSON documents begin with the CRC-32C of their own bytes. `docs/store-format.md` describes the format for
people who write another reader; this module and that page change together.
"""

from __future__ import annotations

import json
import re
import time
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from ..errors import StoreCorruptError, StoreError, StoreVersionError
from ..fingerprints import fingerprint

SCHEMA_VERSION = 1
MAGIC = "dejavid-tse-store"
STORE_FILE = "STORE.json"
COMMIT_FILE = "COMMIT.json"
PARTS, QUARANTINE, FAILED, INDEX = "parts", "quarantine", "failed", "index"
TEMPORARY = ".tmp-"  # prefix of part folders that are not committed yet

# What a feature is on disk. NumPy has no bfloat16: its bits are kept as uint16.
DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float32": np.dtype("<f4"),
}
STATUSES = ("ok", "short")  # a part holds their positions
EXTRA_NAME = re.compile(r"[a-z0-9_]{1,64}")

_SEAL_START = b'{"crc32c": "'

Array = NDArray[Any]
Bytes = bytes | memoryview


@dataclass(frozen=True)
class Header:
    """STORE.json: what every video of the store has in common."""

    format: str
    dtype: str
    feature_dim: int
    feature_names: tuple[str, ...] | None
    facts: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.facts)

    def comparable(self) -> dict[str, Any]:
        """Everything two stores must agree on before one can take the other's videos."""
        names = None if self.feature_names is None else list(self.feature_names)
        same = {"dtype": self.dtype, "feature_dim": self.feature_dim, "feature_names": names}
        return {"facts": dict(self.facts), "store": {"format": self.format, **same}}

    def to_bytes(self) -> bytes:
        shape = self.comparable()
        return seal({"magic": MAGIC, "version": SCHEMA_VERSION, "fingerprint": self.fingerprint, **shape})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Header:
        document = unseal(data, where)
        try:
            store = document["store"]
            names = store["feature_names"]
            names = None if names is None else tuple(names)
            header = cls(store["format"], store["dtype"], store["feature_dim"], names, document["facts"])
        except (KeyError, TypeError) as error:
            raise _damaged(f"no valid store header ({error!r})", where) from None
        if header.dtype not in DTYPES or document["fingerprint"] != header.fingerprint:
            raise _damaged("the header contradicts itself", where)
        return header


@dataclass(frozen=True)
class ArrayPlace:
    """Where the bytes of one array lie.

    Chunk i holds the rows from `i * chunk_rows` on, row-major, and begins at byte `starts[i]` of the object.
    """

    object: str
    dtype: str
    shape: tuple[int, ...]
    chunk_rows: int
    starts: tuple[int, ...]
    crc32c: int  # of the array's rows in order, without what lies between the chunks


@dataclass(frozen=True)
class Commit:
    """COMMIT.json: the contents of one immutable part."""

    part: str
    fingerprint: str
    ids: tuple[str, ...]
    lengths: tuple[int, ...]  # TSE steps of each video
    arrays: Mapping[str, ArrayPlace]
    objects: Mapping[str, tuple[int, int]]  # name -> (bytes, `object_crc`)
    replaces: tuple[str, ...]  # parts whose videos were copied into this one
    written: Mapping[str, Any]  # time, host and version; for people

    @property
    def rows(self) -> int:
        return sum(self.lengths)

    @property
    def size(self) -> int:
        return sum(size for size, _ in self.objects.values())

    def to_bytes(self) -> bytes:
        arrays = {name: vars(place) for name, place in self.arrays.items()}
        return seal({"magic": MAGIC, "version": SCHEMA_VERSION, **vars(self), "arrays": arrays})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Commit:
        document = unseal(data, where)
        try:
            return cls(
                document["part"],
                document["fingerprint"],
                tuple(document["ids"]),
                tuple(document["lengths"]),
                {name: _place(place) for name, place in document["arrays"].items()},
                {name: (size, crc) for name, (size, crc) in document["objects"].items()},
                tuple(document["replaces"]),
                document["written"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(f"no valid commit record ({error!r})", where) from None


def _place(document: Mapping[str, Any]) -> ArrayPlace:
    shape, starts = tuple(document["shape"]), tuple(document["starts"])
    return ArrayPlace(**{**document, "shape": shape, "starts": starts})


def new_part_name(like: str | None = None) -> str:
    """Names sort by time, or take the time of another part; the random end keeps writers apart."""
    moment = f"{time.time_ns():020d}" if like is None else like.partition("-")[0]
    return f"{moment}-{uuid.uuid4().hex[:8]}"


def crc32c(data: Array | bytes, start: int = 0) -> int:
    """CRC-32C of contiguous bytes, continuing from `start`."""
    return int(google_crc32c.extend(start, data))


def object_crc(data: Bytes, start: int = 0) -> int:
    """CRC-32 (of zlib) of a whole object, continuing from `start`.

    Not CRC-32C: a Zarr chunk ends with its own CRC-32C, and over such bytes CRC-32C is the same constant for
    every content, so that a chunk in another's place would pass.
    """
    return zlib.crc32(data, start)


def seal(document: Mapping[str, Any]) -> bytes:
    """One line of ASCII JSON; its first key, `crc32c`, covers every byte (its own digits taken as 0)."""
    text = _SEAL_START + b"0" * 8 + b'", ' + json.dumps(document, sort_keys=True).encode()[1:] + b"\n"
    return _SEAL_START + _own_crc(text) + text[len(_SEAL_START) + 8 :]


def unseal(data: bytes, where: str) -> dict[str, Any]:
    """Parses and checks what `seal` wrote.

    Raises:
        StoreVersionError: written by a newer version.
        StoreCorruptError: not such a document, or its bytes have changed.
    """
    try:
        document = json.loads(data.decode("ascii"))
        magic, version, crc = document["magic"], document["version"], document["crc32c"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _damaged("not a JSON document of a DejaVid store", where) from None
    if magic == MAGIC and version != SCHEMA_VERSION:
        raise StoreVersionError(
            f"store format version {version!r}; this program reads version {SCHEMA_VERSION}",
            where=where,
            fix="upgrade dejavid, or convert the store with the version that wrote it",
        )
    if magic != MAGIC or not data.startswith(_SEAL_START) or crc != _own_crc(data).decode():
        raise _damaged("the document's checksum does not match its contents", where)
    return dict(document)


def _own_crc(data: bytes) -> bytes:
    start = len(_SEAL_START)
    return b"%08x" % crc32c(data[:start] + b"0" * 8 + data[start + 8 :])


def _damaged(what: str, where: str) -> StoreCorruptError:
    fix = (
        "dejavid store repair sets damaged parts aside; a damaged STORE.json comes back from a backup, or by "
    )
    return StoreCorruptError(
        what, where=where, fix=fix + "moving it away and extracting with the same configuration"
    )


def to_stored(values: Array, dtype: str, where: str) -> Array:
    """Casts features to what a store of `dtype` holds; always a new, C-contiguous array.

    Args:
        values: finite numbers of any real dtype.
        dtype: a key of `DTYPES`.
        where: the video, for the error.

    Raises:
        StoreError: a value is NaN or infinite, or too large for `dtype`.
    """
    with np.errstate(over="ignore"):
        single = np.array(values, dtype=np.float32 if dtype == "bfloat16" else DTYPES[dtype], order="C")
    stored = _to_bfloat16(single) if dtype == "bfloat16" else single
    if np.isfinite(from_stored(stored, dtype)).all():
        return stored
    strange = np.size(values) - np.count_nonzero(np.isfinite(values))
    if strange:
        raise StoreError(
            f"{strange} of {np.size(values)} features are NaN or infinite",
            where=where,
            fix="find out why the encoder makes them (half precision overflows first); nothing was stored",
        )
    raise StoreError(
        f"the largest feature, {np.abs(values).max():g}, does not fit {dtype}",
        where=where,
        fix="set store.dtype to bfloat16 or float32 and write a new store",
    )


def from_stored(values: Array, dtype: str) -> Array:
    """The stored features as numbers: float16 and float32 as they are, bfloat16 bits as float32."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values


def _to_bfloat16(values: NDArray[np.float32]) -> Array:
    """Rounds finite float32 to the upper 16 bits, ties to even."""
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(DTYPES["bfloat16"])
