"""What a part is on disk: an encoder per `store.format`, from named arrays to objects and places.

Arrays are never compressed (float16 features shrink by 8 % only), so that every format can be read the same
way: COMMIT.json says at which byte of which object each array's rows lie. A new format is one function here
and one line in `ENCODERS`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import MissingDependencyError
from .layout import Array, ArrayPlace, crc32c

CHUNK_BYTES = 256 * 1024  # of one inner chunk of `tse`: what plain zarr reads at least
_SHARD_INDEX_ENTRY = 16  # bytes per inner chunk: offset and length, both uint64

Encoded = tuple[dict[str, bytes], dict[str, ArrayPlace]]


def encode_zarr(arrays: Mapping[str, Array], attributes: Mapping[str, Any]) -> Encoded:
    """A Zarr v3 group: `tse` in one shard of crc32c-checked chunks, the others in one checked chunk each."""
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec
    from zarr.storage import MemoryStore

    contents: dict[str, Any] = {}
    group = zarr.create_group(store=MemoryStore(contents), attributes=dict(attributes))
    places: dict[str, ArrayPlace] = {}
    for name, array in arrays.items():
        chunk_rows, shards = len(array), None
        if name == "tse":
            chunk_rows = min(len(array), max(1, CHUNK_BYTES // array[0].nbytes))
            shards = (-(-len(array) // chunk_rows) * chunk_rows, *array.shape[1:])
        target = group.create_array(
            name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=(chunk_rows, *array.shape[1:]),
            shards=shards,
            filters=None,
            serializer=BytesCodec(),
            compressors=[Crc32cCodec()],
            fill_value=_fill(array.dtype, name),
            config={"write_empty_chunks": True},
        )
        target[...] = array
        key = "/".join([name, "c", *["0"] * array.ndim])
        starts = _chunk_starts(contents[key].to_bytes(), len(array), chunk_rows) if shards else (0,)
        places[name] = _place(key, array, chunk_rows, starts)
    return {key: buffer.to_bytes() for key, buffer in contents.items()}, places


def _fill(dtype: np.dtype[Any], name: str) -> float | int:
    # What zarr returns for a shard that is gone; bfloat16 is stored as uint16, whose NaN is 0x7FC0.
    if name == "tse" and dtype.kind == "u":
        return 0x7FC0
    return float("nan") if dtype.kind == "f" else 0


def _chunk_starts(shard: bytes, rows: int, chunk_rows: int) -> tuple[int, ...]:
    # Zarr does not promise an order of the chunks in a shard; its index, before the last four bytes, tells.
    count = -(-rows // chunk_rows)
    index = np.frombuffer(shard, "<u8", 2 * count, len(shard) - 4 - _SHARD_INDEX_ENTRY * count)
    return tuple(index[::2].tolist())


def encode_hdf5(arrays: Mapping[str, Array], attributes: Mapping[str, Any]) -> Encoded:
    """One HDF5 file, `part.h5`, of contiguous datasets; their checksums are in COMMIT.json."""
    try:
        import h5py
    except ImportError:
        raise MissingDependencyError(
            "HDF5 parts need the package h5py, which is not installed",
            where="store.format: hdf5",
            fix="pip install 'dejavid[hdf5]'",
        ) from None
    image = io.BytesIO()
    places: dict[str, ArrayPlace] = {}
    with h5py.File(image, "w", libver="earliest", track_order=True) as file:
        file.attrs.update(attributes)
        sets = {
            name: file.create_dataset(name, data=array, track_times=False) for name, array in arrays.items()
        }
        file.flush()
        for name, array in arrays.items():
            places[name] = _place("part.h5", array, len(array), (sets[name].id.get_offset(),))
    return {"part.h5": image.getvalue()}, places


def _place(key: str, array: Array, chunk_rows: int, starts: tuple[int, ...]) -> ArrayPlace:
    return ArrayPlace(
        key, array.dtype.str, array.shape, chunk_rows, starts, crc32c(np.ascontiguousarray(array))
    )


ENCODERS: dict[str, Callable[[Mapping[str, Array], Mapping[str, Any]], Encoded]] = {
    "zarr": encode_zarr,
    "hdf5": encode_hdf5,
}
