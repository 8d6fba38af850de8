"""Damage of every kind: found, named, set aside, or harmless; never a wrong row."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from dejavid.errors import StoreError, StoreLockedError, StoreVersionError
from dejavid.store import compact, create_store, info, merge, open_store, repair, status, verify

FORMATS = pytest.mark.parametrize("format", ["zarr", "hdf5"])


def first_part(path):
    return min((path / "parts").iterdir())


def feature_file(part):
    return next(file for file in (part / "tse/c/0/0", part / "part.h5") if file.exists())


@contextmanager
def changed(file, data):
    original = file.read_bytes()
    file.write_bytes(data)
    yield
    file.write_bytes(original)


def readable(stores, path, numbers):
    """The videos that can be read; fails if one of them reads back wrong."""
    try:
        store = open_store(path, check="always")
    except StoreError:
        return set()
    good = set()
    for number in numbers:
        try:
            stores.check_video(store, number)
            np.testing.assert_array_equal(store.read([f"v{number}"]).values, stores.values(number))
            good.add(number)
        except StoreError:
            pass
    return good


@pytest.mark.parametrize(
    "flips", [pytest.param(100), pytest.param(1000, marks=pytest.mark.slow, id="1000-flips")]
)
@FORMATS
def test_every_flipped_byte_is_found(tmp_path, stores, format, flips):
    """Not one is harmless: COMMIT.json covers each object, and it and STORE.json cover themselves."""
    stores.fill(tmp_path, range(8), 4, format)
    rng = random.Random(flips)
    files = [file for file in tmp_path.rglob("*") if file.is_file() and file.stat().st_size]
    weights = [max(file.stat().st_size, 300) for file in files]
    for _ in range(flips):
        (file,) = rng.choices(files, weights)
        data = bytearray(file.read_bytes())
        data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        with changed(file, bytes(data)):
            if file.name == "STORE.json":
                with pytest.raises(StoreError):
                    verify(tmp_path)
            else:
                (damage,) = verify(tmp_path, workers=1).damaged
                assert damage.part in str(file)
                assert damage.videos or file.name == "COMMIT.json"  # a flip may fall on the ids themselves
            readable(stores, tmp_path, rng.sample(range(8), 2))
    assert verify(tmp_path).damaged == []


@FORMATS
def test_verify_names_the_damaged_video(tmp_path, stores, format):
    stores.fill(tmp_path, range(6), 6, format)
    file = feature_file(first_part(tmp_path))
    data, row = file.read_bytes(), stores.values(4).astype(np.float16).tobytes()
    assert data.count(row) == 1
    with changed(file, data.replace(row, row[:-1] + b"\x7f")):
        (damage,) = verify(tmp_path).damaged
        assert damage.videos == ("v4",)
        assert damage.holds == tuple(f"v{n}" for n in range(6))
        assert damage.problems == (f"{file.relative_to(first_part(tmp_path))}: the checksum does not match",)
        assert readable(stores, tmp_path, range(6)) == {0, 1, 2, 3, 5}
        with pytest.raises(StoreError, match="features of video 'v4' have changed"):
            open_store(tmp_path).read(["v4"])
        assert open_store(tmp_path, check="never").read(["v4"]).values.shape == (5, 5)


@FORMATS
def test_repair_sets_a_part_aside_and_a_new_run_restores_it(tmp_path, stores, format):
    stores.fill(tmp_path, range(9), 3, format)
    part = first_part(tmp_path)
    feature_file(part).write_bytes(b"short")
    report = repair(tmp_path)
    assert report.lost == ["v0", "v1", "v2"]
    assert report.quarantined == {part.name: str(tmp_path / "quarantine" / part.name)}
    assert (tmp_path / "quarantine" / part.name / "COMMIT.json").exists()
    stores.check(tmp_path, range(3, 9))
    store = open_store(tmp_path)
    with store.writer() as writer:
        for number in range(9):
            if f"v{number}" not in store:
                stores.append(writer, number)
    stores.check(tmp_path, range(9))
    assert repair(tmp_path).quarantined == {}


@FORMATS
def test_a_valid_object_in_the_place_of_another_is_found(tmp_path, stores, format):
    """Each is intact in itself, so a checksum that Zarr keeps inside the object would not tell."""
    stores.fill(tmp_path, range(0), 1, format)
    for shift in (10, 19):  # equal lengths, other features
        with open_store(tmp_path).writer() as writer:
            for number in range(shift, shift + 3):
                stores.append(writer, number)
    one, two = sorted((tmp_path / "parts").iterdir())
    name = feature_file(one).relative_to(one)
    data = (two / name).read_bytes()
    assert len(data) == (one / name).stat().st_size
    (one / name).write_bytes(data)
    (damage,) = verify(tmp_path).damaged
    assert damage.videos == ("v10", "v11", "v12")
    assert readable(stores, tmp_path, [10, 11, 12]) == set()


def delete(file):
    file.unlink()


def empty(file):
    file.write_bytes(b"")


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def lengthen(file):
    file.write_bytes(file.read_bytes() + b"\0")


def foreign(file):
    file.write_bytes(b"something else entirely, of any length")


def folder(file):
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("harm", [delete, empty, truncate, lengthen, foreign, folder])
@FORMATS
def test_harmed_files_give_a_clear_error_and_no_wrong_row(tmp_path, stores, format, harm):
    stores.fill(tmp_path / "good", range(6), 3, format)
    victims = [file for file in first_part(tmp_path / "good").rglob("*") if file.is_file()]
    for number, victim in enumerate(victims):
        path = tmp_path / f"bad{number}"
        shutil.copytree(tmp_path / "good", path)
        harm(path / victim.relative_to(tmp_path / "good"))
        assert readable(stores, path, range(6)) <= set(range(6))
        (damage,) = verify(path).damaged
        assert damage.part == first_part(path).name
        assert len(repair(path).quarantined) == 1
        stores.check(path, range(3, 6))


@pytest.mark.parametrize("harm", [empty, truncate, foreign, folder])
def test_a_harmed_store_file_is_a_clear_error(tmp_path, stores, harm):
    stores.fill(tmp_path, range(3), 3)
    harm(tmp_path / "STORE.json")
    for use in (open_store, verify, repair, compact, info, stores.create):
        with pytest.raises(StoreError):
            use(tmp_path)
    assert not (tmp_path / "quarantine").exists()


def test_a_lost_store_file_comes_back_from_the_same_configuration(tmp_path, stores):
    stores.fill(tmp_path, range(3), 3)
    (tmp_path / "STORE.json").unlink()
    with pytest.raises(StoreError, match="there is no store"):
        open_store(tmp_path)
    with pytest.raises(StoreVersionError, match="a part made from other facts"):
        create_store(tmp_path, feature_dim=5, fingerprint_facts={"encoder": "another"})
    (tmp_path / "STORE.json").unlink()
    stores.create(tmp_path)
    stores.check(tmp_path, range(3))


def test_parts_of_other_stores_and_versions(tmp_path, stores):
    stores.fill(tmp_path / "a", range(3), 3)
    other = create_store(tmp_path / "b", feature_dim=5, fingerprint_facts={"encoder": "other"})
    with other.writer() as writer:
        stores.append(writer, 7)
    shutil.copytree(first_part(tmp_path / "b"), tmp_path / "a/parts" / first_part(tmp_path / "b").name)
    with pytest.raises(StoreVersionError, match="made from other facts"):
        open_store(tmp_path / "a")
    with pytest.raises(StoreVersionError, match=r"facts\.encoder: .other. != .e."):
        merge([tmp_path / "b"], tmp_path / "a")
    assert len(repair(tmp_path / "a").quarantined) == 1
    stores.check(tmp_path / "a", range(3))
    renamed = first_part(tmp_path / "a").rename(tmp_path / "a/parts/00000000000000000001-00000000")
    with pytest.raises(StoreError, match="the record is that of part"):
        open_store(tmp_path / "a")
    renamed.rename(tmp_path / "a/parts" / json.loads((renamed / "COMMIT.json").read_text())["part"])
    commit = first_part(tmp_path / "a") / "COMMIT.json"
    commit.write_text(commit.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(StoreVersionError, match="format version 2"):
        open_store(tmp_path / "a")


def test_strange_files_are_told_and_left_alone(tmp_path, stores):
    stores.fill(tmp_path, range(3), 3)
    part = first_part(tmp_path)
    (part / "tse/note.txt").write_text("mine")
    assert verify(tmp_path).strange == [f"parts/{part.name}/tse/note.txt"]
    assert repair(tmp_path).quarantined == {}
    stores.check(tmp_path, range(3))


def test_leftovers_are_removed_only_when_they_are_old(tmp_path, stores):
    stores.fill(tmp_path, range(3), 3)
    leftover = tmp_path / "parts/.tmp-0-killed"
    (leftover / "tse").mkdir(parents=True)
    (tmp_path / ".tmp-STORE.json-0").write_text("x")
    assert repair(tmp_path).removed == []
    for path in (leftover, tmp_path / ".tmp-STORE.json-0"):
        os.utime(path, (0, 0))
    assert repair(tmp_path).removed == ["parts/.tmp-0-killed", ".tmp-STORE.json-0"]
    assert not leftover.exists()


def test_duplicates_are_told_with_whether_they_are_equal(tmp_path, stores):
    stores.fill(tmp_path, range(3), 3)
    stores.fill(tmp_path, range(1, 2), 1)
    store = open_store(tmp_path)
    with store.writer() as writer:
        writer.append("v2", np.ones((1, 5)), start_s=[0], end_s=[1], n_frames=1)
    manifest = tmp_path / "m.csv"
    manifest.write_text("video_id,label,split\n")
    found = {d.video_id: (len(d.parts), d.identical) for d in status(tmp_path, manifest).duplicates}
    assert found == {"v1": (2, True), "v2": (2, False)}
    assert info(tmp_path).n_duplicates == 2
    stores.check(tmp_path, range(3))
    report = compact(tmp_path)
    assert (report.n_dropped, report.n_parts_after) == (2, 1)
    stores.check(tmp_path, range(3))


@FORMATS
def test_compact_reaches_the_target_and_keeps_kinds_of_extras_apart(tmp_path, stores, format):
    store = stores.create(tmp_path, format)
    for number in range(40):
        with store.writer() as writer:
            stores.append(writer, number)
    with store.writer() as writer:
        writer.append("plain", np.ones((1, 5)), start_s=[0], end_s=[1], n_frames=1)
    assert compact(tmp_path, target_bytes=10**9).n_parts_after == 2
    assert compact(tmp_path, target_bytes=10**9).n_parts_after == 2
    assert open_store(tmp_path).get("plain").extras == {}
    for number in range(40):
        stores.check_video(open_store(tmp_path), number)


def test_only_one_maintenance_at_a_time(tmp_path, stores):
    from dejavid.store.folder import Folder

    stores.fill(tmp_path, range(3), 3)
    with Folder(tmp_path).maintenance():
        for work in (repair, compact):
            with pytest.raises(StoreLockedError):
                work(tmp_path)
    repair(tmp_path)


def test_merge_joins_stores_and_can_be_repeated(tmp_path, stores):
    stores.fill(tmp_path / "a", range(6), 3)
    stores.fill(tmp_path / "b", range(3, 9), 3)
    report = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert (report.n_parts_copied, report.n_parts_present, report.n_videos) == (4, 0, 9)
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c").n_parts_present == 4
    stores.check(tmp_path / "c", range(9))
    stores.check(tmp_path / "a", range(6))
    feature_file(first_part(tmp_path / "a")).write_bytes(b"")
    with pytest.raises(StoreError, match="differs from what was committed"):
        merge([tmp_path / "a"], tmp_path / "d")


def test_status_compares_with_the_manifest(tmp_path, stores):
    stores.fill(tmp_path / "s", range(4), 2)
    rows = ["v0,x,train", "v1,x,train", "v5,x,train", "v6,x,train", "v2,y,val"]
    manifest = tmp_path / "m.csv"
    manifest.write_text("\n".join(["video_id,label,split", *rows]))
    (tmp_path / "s/failed").mkdir()
    failures = [
        {"video_id": "v5", "cause": "first"},
        {"video_id": "v5", "cause": "no frames"},
        {"video_id": "v0", "cause": "x"},
    ]
    lines = [json.dumps(line) for line in failures]
    (tmp_path / "s/failed/0.jsonl").write_text("\n".join(lines) + '\n{"video_id": "v6", "cau')
    report = status(tmp_path / "s", manifest)
    train = report.splits["train"]
    assert (train.n_videos, train.n_done, train.n_failed, train.n_missing) == (4, 2, 1, 1)
    assert report.splits["val"].n_done == 1
    assert (report.missing, report.failed, report.unlisted) == (["v6"], {"v5": "no frames"}, 1)


def test_the_index_cache_changes_nothing_but_speed(tmp_path, stores):
    stores.fill(tmp_path, range(70), 1)
    cache = tmp_path / "index/commits.jsonl"
    assert cache.exists()
    stores.check(tmp_path, range(70))
    lines = cache.read_bytes().splitlines(keepends=True)
    for damaged in (
        b"",
        b"{}\n" * 3,
        lines[0][:-50],
        b"".join(lines[::2]),
        cache.read_bytes().replace(b"v1", b"v2"),
    ):
        cache.write_bytes(damaged)
        stores.check(tmp_path, range(70))
    cache.write_bytes(b"".join(lines))
    gone = first_part(tmp_path)
    (gone / "COMMIT.json").write_bytes(b"")
    assert verify(tmp_path).damaged[0].videos == ("v0",)  # the cache still knows
    shutil.rmtree(gone)
    stores.check(tmp_path, range(1, 70))


@pytest.fixture
def small_disk():
    """A file system of one megabyte."""
    with tempfile.TemporaryDirectory() as path:
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True)
        if made.returncode:
            pytest.skip(f"mounting a tmpfs needs rights this user lacks: {made.stderr.decode().strip()}")
        try:
            yield Path(path)
        finally:
            subprocess.run(["umount", "-l", path], check=True)


@FORMATS
def test_a_full_disk_is_a_clean_error_and_the_run_goes_on_after(small_disk, stores, format):
    path, ballast = small_disk / "store", small_disk / "ballast"
    stores.fill(path, range(3), 3, format)
    steps = np.arange(10_000)
    writer = open_store(path).writer()
    writer.append("big", np.ones((10_000, 5)), start_s=steps, end_s=steps, n_frames=1)
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    full = ballast.stat().st_size
    for free in (0, 4096, 20_000, 60_000, 150_000):
        os.truncate(ballast, full - free)
        with pytest.raises(StoreError, match="No space left on device") as caught:
            writer.flush()
        assert "free some space" in caught.value.fix
        stores.check(path, range(3))
        assert not list(path.glob("parts/.*"))
    ballast.unlink()
    writer.flush()
    assert open_store(path).get("big").values.sum() == 50_000
    assert verify(path).damaged == []


@FORMATS
def test_lost_permission_is_a_clean_error_and_the_run_goes_on_after(stores, format):
    with tempfile.TemporaryDirectory() as base:
        path = Path(base) / "store"
        Path(base).chmod(0o777)

        def work():
            if os.getuid() == 0:
                os.setgid(65534)  # root may write everywhere
                os.setuid(65534)
            store = stores.fill(path, range(3), 1, format)
            writer = store.writer()
            stores.append(writer, 3)
            (path / "parts").chmod(0o555)
            with pytest.raises(StoreError, match="Permission denied"):
                writer.flush()
            with pytest.raises(StoreError, match="Permission denied"):
                compact(path)
            stores.check(path, range(3))
            (path / "parts").chmod(0o755)
            writer.flush()
            stores.check(path, range(4))
            part = first_part(path)
            for victim in (feature_file(part), part / "COMMIT.json", part, part.parent, path / "STORE.json"):
                mode = victim.stat().st_mode
                victim.chmod(0)
                with pytest.raises(StoreError, match="Permission denied"):
                    open_store(path).read(["v0"])
                with pytest.raises(StoreError, match="Permission denied"):
                    repair(path)  # a wrong mode is no damage: nothing may be set aside for it
                victim.chmod(mode)
                stores.check(path, range(4))

        assert stores.in_child(work) == 0


@FORMATS
def test_a_read_only_store_can_be_read(stores, format, tmp_path_factory):
    with tempfile.TemporaryDirectory() as base:
        path = Path(base) / "store"
        Path(base).chmod(0o755)
        stores.fill(path, range(70), 1, format)
        shutil.rmtree(path / "index")
        for folder in [path, *path.rglob("*")]:
            folder.chmod(0o555 if folder.is_dir() else 0o444)

        def work():
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            stores.check(path, range(70))
            stores.create(path, format)
            assert verify(path).damaged == []
            with pytest.raises(StoreError):
                repair(path)

        assert stores.in_child(work) == 0
        assert not (path / "index").exists()
