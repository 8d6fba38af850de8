"""Stores that version 1 of the format wrote; every later version of the program must open them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dejavid.store import compact, info, open_store, verify
from dejavid.store.layout import SCHEMA_VERSION

GOLDEN = Path(__file__).parents[1] / "golden" / "store_v1"


@pytest.mark.parametrize("name", ["zarr_float16", "zarr_float32", "hdf5_bfloat16"])
def test_version_1_is_read(name, stores, tmp_path):
    path = GOLDEN / name
    stores.check(path, range(6))
    assert verify(path).damaged == []
    assert "_".join((info(path).header.format, info(path).header.dtype)) == name
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    with open_store(copy).writer() as writer:
        stores.append(writer, 6)
    compact(copy)
    stores.check(copy, range(7))


@pytest.mark.parametrize("name", ["zarr_float16", "zarr_float32", "hdf5_bfloat16"])
def test_the_golden_stores_are_what_this_version_writes(name, stores, tmp_path):
    """Fails when the format changes: then raise SCHEMA_VERSION, still read version 1, add golden stores."""
    assert SCHEMA_VERSION == 1
    format, dtype = name.split("_")
    store = stores.create(tmp_path, format, dtype)
    per_part = 6 // info(GOLDEN / name).n_parts
    with store.writer() as writer:
        for number in range(6):
            stores.append(writer, number)
            if number % per_part == per_part - 1:
                writer.flush()
    assert (tmp_path / "STORE.json").read_bytes() == (GOLDEN / name / "STORE.json").read_bytes()
    ours, golden = (sorted((path / "parts").iterdir()) for path in (tmp_path, GOLDEN / name))
    for mine, theirs in zip(ours, golden, strict=True):
        commits = [json.loads((part / "COMMIT.json").read_text()) for part in (mine, theirs)]
        for commit in commits:
            for key in ("crc32c", "part", "written"):
                del commit[key]
        if format == "hdf5":  # another libhdf5 may lay the same file out otherwise
            for commit in commits:
                del commit["objects"]
                for place in commit["arrays"].values():
                    del place["starts"]
        assert commits[0] == commits[1]
