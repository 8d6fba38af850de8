"""What a part is on disk: an encoder per `store.format`, from named arrays to objects and places.

Arrays are never compressed (float16 features shrink by 8 % only), so that every format can be read the same
way: COMMIT.json says at which byte of which object each array's rows lie. A new format is one function here
and one line in `ENCODERS`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import MissingDependencyError
from .layout import Array, ArrayPlace, Bytes, crc32c

CHUNK_BYTES = 512 * 1024  # of one inner chunk of `tse`: what a plain Zarr reader reads at least
_CHECKED: list[Any] = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]

_CRC_BYTES = 4

Encoded = tuple[dict[str, Bytes], dict[str, ArrayPlace]]


def encode_zarr(arrays: Mapping[str, Array], attributes: Mapping[str, Any]) -> Encoded:
    """A Zarr v3 group: `tse` in one shard of crc32c-checked chunks, the others in one checked chunk each.

    The bytes are laid out here, by the Zarr v3 specification, instead of through a Zarr library: parts are
    then the same under every library version, no threads are in the way of a fork, and a part costs
    milliseconds instead of a tenth of a second.
    """
    group = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    objects: dict[str, Bytes] = {"zarr.json": _json(group)}
    places: dict[str, ArrayPlace] = {}
    for name, array in arrays.items():
        key = "/".join([name, "c", *["0"] * array.ndim])
        if name == "tse":
            chunk_rows = min(len(array), max(1, CHUNK_BYTES // array[0].nbytes))
            objects[key], starts = _shard(array, chunk_rows)
            rows = chunk_rows * len(starts)
            chunk_shape = [chunk_rows, *array.shape[1:]]
            sharding = {"chunk_shape": chunk_shape, "codecs": _CHECKED, "index_codecs": _CHECKED}
            codecs = [{"name": "sharding_indexed", "configuration": {**sharding, "index_location": "end"}}]
        else:
            chunk_rows, rows, starts, codecs = len(array), len(array), (0,), _CHECKED
            objects[key] = _checked(array.tobytes())
        objects[f"{name}/zarr.json"] = _json(_array_metadata(name, array, rows, codecs))
        places[name] = _place(key, array, chunk_rows, starts)
    return objects, places


def _shard(array: Array, chunk_rows: int) -> tuple[memoryview, tuple[int, ...]]:
    """Chunks of `chunk_rows` rows, each followed by its CRC, then their index; and where the chunks start."""
    size = chunk_rows * array[0].nbytes
    starts = range(0, -(-len(array) // chunk_rows) * (size + _CRC_BYTES), size + _CRC_BYTES)
    index = _checked(np.array([[start, size + _CRC_BYTES] for start in starts], "<u8").tobytes())
    shard = np.empty(starts.stop + len(index), np.uint8)  # filled in place: copies cost more than checksums
    for number, start in enumerate(starts):
        rows = array[number * chunk_rows : (number + 1) * chunk_rows]
        chunk = shard[start : start + size].view(array.dtype).reshape(chunk_rows, *array.shape[1:])
        chunk[: len(rows)] = rows
        chunk[len(rows) :] = _fill(array.dtype, "tse")
        shard[start + size : start + size + _CRC_BYTES] = list(_crc_bytes(chunk))
    shard[starts.stop :] = np.frombuffer(index, np.uint8)
    return shard.data, tuple(starts)


def _array_metadata(name: str, array: Array, chunk_rows: int, codecs: list[Any]) -> dict[str, Any]:
    fill = _fill(array.dtype, name)
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array.shape),
        "data_type": array.dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [chunk_rows, *array.shape[1:]]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if fill != fill else fill,
        "codecs": codecs,
        "attributes": {},
        "storage_transformers": [],
    }


def _fill(dtype: np.dtype[Any], name: str) -> float | int | bool:
    # What a Zarr reader returns for a shard that is gone. bfloat16 is stored as uint16, whose NaN is 0x7FC0.
    if name == "tse" and dtype.kind == "u":
        return 0x7FC0
    return {"f": float("nan"), "b": False}.get(dtype.kind, 0)


def _checked(data: bytes) -> bytes:
    return data + _crc_bytes(data)


def _crc_bytes(data: bytes | Array) -> bytes:
    return crc32c(data).to_bytes(_CRC_BYTES, "little")


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1).encode()


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
    return {"part.h5": image.getbuffer()}, places


def _place(key: str, array: Array, chunk_rows: int, starts: tuple[int, ...]) -> ArrayPlace:
    return ArrayPlace(key, array.dtype.str, array.shape, chunk_rows, starts, crc32c(array))


ENCODERS: dict[str, Callable[[Mapping[str, Array], Mapping[str, Any]], Encoded]] = {
    "zarr": encode_zarr,
    "hdf5": encode_hdf5,
}
