"""Stores on an object store: an S3 server on the loopback device."""

from __future__ import annotations

import logging
import multiprocessing
from operator import methodcaller
from pathlib import Path

import numpy as np
import pytest

from dejavid.errors import StoreError
from dejavid.store import (
    compact,
    convert,
    create_store,
    export_features,
    import_features,
    info,
    merge,
    open_store,
    remote,
    repair,
    verify,
)
from dejavid.store.folder import find_folder

obstore = pytest.importorskip("obstore", reason="the extra s3 is not installed")
server = pytest.importorskip("moto.server", reason="the S3 server of the tests is not installed")


@pytest.fixture(scope="module")
def endpoint():
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def url(endpoint, monkeypatch, tmp_path):
    """The URL of a fresh folder in a bucket."""
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "DEJAVID_CACHE": str(tmp_path / "cache"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    boto3 = pytest.importorskip("boto3")
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="features")
    return f"s3://features/{tmp_path.name}"


def client(url):
    return obstore.store.from_url(url)


def keys(url, prefix):
    return sorted(entry["path"] for page in obstore.list(client(url), prefix) for entry in page)


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_writes_and_reads(url, stores, format, monkeypatch, tmp_path):
    stores.fill(url, range(10), 4, format)
    stores.check(url, range(10))
    monkeypatch.setenv("DEJAVID_CACHE", str(tmp_path / "another"))
    store = open_store(url)
    batch = store.read([f"v{n}" for n in (7, 2)])
    np.testing.assert_array_equal(batch.values, np.concatenate([stores.values(7), stores.values(2)]))
    assert info(url).n_parts == 3
    assert verify(url).damaged == []


def test_paths_and_urls_are_told_apart(url):
    assert str(find_folder(Path(url))) == url  # pathlib turns // into /
    assert str(find_folder("relative/path")) == "relative/path"
    with pytest.raises(StoreError, match="no usable address"):
        find_folder("nonsense://x")


def test_facts_and_first_writers_win(url, stores):
    stores.create(url)
    with pytest.raises(StoreError, match="made differently"):
        create_store(url, feature_dim=5, fingerprint_facts={"encoder": "other"})
    folder = find_folder(url)
    folder.commit("part", {"x": b"1"}, b"first")
    with pytest.raises(StoreError, match="committed by another process"):
        folder.commit("part", {"x": b"1"}, b"second")
    assert folder.read("parts/part/COMMIT.json") == b"first"


def test_an_upload_without_a_commit_record_does_not_exist(url, stores):
    stores.fill(url, range(3), 3)
    writer = open_store(url).writer()
    stores.append(writer, 3)
    for point in ("commit.begun", "commit.object"):

        def failpoint(name, point=point):
            if name == point:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(remote, "failpoint", failpoint)
            with pytest.raises(KeyboardInterrupt):
                writer.flush()
        stores.check(url, range(3))
    assert len(keys(url, "parts")) > info(url).n_parts


def test_flipped_missing_and_repaired(url, stores):
    stores.fill(url, range(9), 3)
    names = keys(url, "parts")
    shard, other = [name for name in names if name.endswith("tse/c/0/0")][:2]
    data = bytearray(obstore.get(client(url), shard).bytes())
    data[1] ^= 1
    obstore.put(client(url), shard, bytes(data))
    obstore.delete(client(url), other)
    with pytest.raises(StoreError, match="differs from what was committed"):
        open_store(url).get("v0")
    with pytest.raises(StoreError, match="an object is missing"):
        open_store(url).get("v4")
    problems = [damage.problems[0].split(": ")[1] for damage in verify(url).damaged]
    assert problems == ["the checksum does not match", "missing"]
    report = repair(url)
    assert report.lost == [f"v{n}" for n in range(6)]
    assert len(keys(url, "quarantine")) == len(names) * 2 // 3 - 1
    stores.check(url, range(6, 9))


def test_maintenance(url, stores, tmp_path):
    stores.fill(url, range(12), 3)
    reader = open_store(url)
    reader.get("v0")
    assert compact(url).n_parts_after == 1
    for number in range(12):
        stores.check_video(reader, number)  # follows the compaction
    stores.fill(tmp_path / "local", range(12, 15), 3)
    assert merge([tmp_path / "local"], url).n_parts_copied == 1
    stores.check(url, range(15))
    convert(url, tmp_path / "copy", format="hdf5")
    stores.check(tmp_path / "copy", range(15))
    export_features(url, tmp_path / "plain", layout="npy")
    assert import_features(tmp_path / "plain", f"{url}-imported", layout="npy").n_videos == 15
    leftover = find_folder(url)
    leftover.replace("parts/0-killed/zarr.json", b"{}")
    assert repair(url, stale_s=0).removed == ["parts/0-killed"]
    stores.check(url, range(15))


def test_the_cache_is_bounded_and_checked(url, stores, monkeypatch, tmp_path):
    stores.fill(url, range(12), 3)
    size = info(url).n_bytes // 4
    monkeypatch.setenv("DEJAVID_CACHE_BYTES", str(size * 5 // 2))
    store = open_store(url)
    for number in range(12):
        stores.check_video(store, number)
    (cache,) = (tmp_path / "cache").iterdir()
    assert len(list(cache.iterdir())) == 2
    for shard in cache.glob("*/tse/c/0/0"):
        shard.write_bytes(shard.read_bytes()[::-1])
    with pytest.raises(StoreError, match="have changed"):
        open_store(url).get("v11")


def test_spawned_processes_read_and_forked_ones_are_told_why_not(url, stores):
    store = stores.fill(url, range(6), 3)
    expected = store.read(store.ids()).values
    # No function of this file: a spawned process could not import it, and the pool would wait for ever.
    read = methodcaller("read", store.ids())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(read, (store,)).values, expected)

    def use():
        with pytest.raises(StoreError, match="opened before a fork"):
            store.refresh()

    assert stores.in_child(use) == 0


def test_what_cannot_be_reached_is_no_damage(url, stores):
    for use in (open_store, verify, repair, compact):
        with pytest.raises(StoreError):
            use("s3://no-such-bucket/x")
    stores.fill(url, range(3), 3)
    folder = find_folder(url)

    class Unreachable:
        def __getattr__(self, name):
            raise obstore.exceptions.GenericError("connection refused")

    folder._obstore = Unreachable()
    folder._obstore.__dict__["exceptions"] = obstore.exceptions
    with pytest.raises(OSError, match="connection refused") as caught:
        folder.read("STORE.json")
    assert not isinstance(caught.value, FileNotFoundError)
