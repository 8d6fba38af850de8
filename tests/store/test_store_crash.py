"""Real SIGKILLs at every named moment of writing, compacting and repairing, and at random ones."""

from __future__ import annotations

import importlib
import os
import random
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from dejavid.errors import StoreError
from dejavid.store import (
    compact,
    convert,
    export_features,
    import_features,
    info,
    merge,
    open_store,
    repair,
    verify,
)

MODULES = [importlib.import_module(f"dejavid.store.{name}") for name in ("folder", "compact")]
KILLED = -signal.SIGKILL
COMMIT = ["begun", "object", "objects-synced", "written", "renamed", "synced"]
VISIBLE = ("renamed", "synced")


def named_points():
    source = "".join(Path(module.__file__).read_text() for module in MODULES)
    return set(re.findall(r'failpoint\("(.+?)"\)', source))


@pytest.fixture
def kill_at(monkeypatch, stores):
    """Arms a failpoint; it is reached in forked children only."""

    def arm(point, after=0):
        failpoint = stores.killing(point, after)
        for module in MODULES:
            monkeypatch.setattr(module, "failpoint", failpoint)

    return arm


def test_every_named_point_is_killed_at():
    tested = {f"commit.{name}" for name in COMMIT} | {"create.written", "create.linked"}
    assert named_points() == tested | {
        "compact.written",
        "compact.removed",
        "remove.renamed",
        "set_aside.renamed",
    }


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
@pytest.mark.parametrize("point", COMMIT)
def test_killed_while_committing(tmp_path, stores, kill_at, point, format):
    stores.fill(tmp_path, range(6), 3, format)

    def write():
        with open_store(tmp_path).writer() as writer:
            for number in range(6, 9):
                stores.append(writer, number)

    kill_at(f"commit.{point}")
    assert stores.in_child(write) == KILLED
    kill_at("nowhere")
    stores.check(tmp_path, range(9 if point in VISIBLE else 6))
    assert verify(tmp_path).damaged == []
    write()
    stores.check(tmp_path, range(9))
    report = repair(tmp_path, stale_s=0)
    assert len(report.removed) == (point not in VISIBLE)
    assert not list(tmp_path.glob("parts/.*"))
    stores.check(tmp_path, range(9))


@pytest.mark.parametrize("point", ["create.written", "create.linked"])
def test_killed_while_creating(tmp_path, stores, kill_at, point):
    kill_at(point)
    assert stores.in_child(lambda: stores.create(tmp_path / "store")) == KILLED
    kill_at("nowhere")
    stores.fill(tmp_path / "store", range(3), 3)
    stores.check(tmp_path / "store", range(3))
    assert len(repair(tmp_path / "store", stale_s=0).removed) == 1


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
@pytest.mark.parametrize(
    ("point", "after"),
    [(f"commit.{name}", 0) for name in COMMIT]
    + [("compact.written", 0), ("remove.renamed", 0), ("remove.renamed", 2)]
    + [("compact.removed", number) for number in range(4)],
)
def test_killed_while_compacting(tmp_path, stores, kill_at, point, after, format):
    stores.fill(tmp_path, range(12), 3, format)
    kill_at(point, after)
    assert stores.in_child(lambda: compact(tmp_path)) == KILLED
    kill_at("nowhere")
    stores.check(tmp_path, range(12))
    assert verify(tmp_path).damaged == []
    compact(tmp_path)
    stores.check(tmp_path, range(12))
    assert verify(tmp_path).n_parts == 1


def test_half_a_compaction_keeps_the_copy_that_counted(tmp_path, stores, kill_at):
    """Of two copies the older part's counts, also when only that part was compacted before the kill."""
    stores.create(tmp_path)
    for number in range(6):
        with open_store(tmp_path).writer() as writer:
            name = "v0" if number == 3 else f"v{number}"
            writer.append(name, [[number] * 5], start_s=[0], end_s=[1], n_frames=1)
    size = info(tmp_path).n_bytes // 6
    kill_at("compact.removed", 2)
    assert stores.in_child(lambda: compact(tmp_path, target_bytes=size * 5 // 2)) == KILLED
    kill_at("nowhere")
    assert info(tmp_path).n_parts == 4
    for _ in range(2):
        assert open_store(tmp_path).get("v0").values[0, 0] == 0
        compact(tmp_path)
    assert (info(tmp_path).n_parts, info(tmp_path).n_duplicates) == (1, 0)


@pytest.mark.parametrize("point", ["compact.written", "compact.removed"])
def test_repair_finishes_an_interrupted_compaction(tmp_path, stores, kill_at, point):
    stores.fill(tmp_path, range(12), 3)
    kill_at(point)
    assert stores.in_child(lambda: compact(tmp_path)) == KILLED
    kill_at("nowhere")
    report = repair(tmp_path, stale_s=0)
    assert (report.quarantined, report.lost) == ({}, [])
    assert verify(tmp_path).n_parts == 1
    stores.check(tmp_path, range(12))


def test_a_damaged_copy_does_not_replace_its_sources(tmp_path, stores, kill_at):
    stores.fill(tmp_path, range(12), 3)
    sources = {part.name for part in (tmp_path / "parts").iterdir()}
    kill_at("compact.written")
    assert stores.in_child(lambda: compact(tmp_path)) == KILLED
    kill_at("nowhere")
    (copy,) = (part for part in (tmp_path / "parts").iterdir() if part.name not in sources)
    shard = copy / "tse/c/0/0"
    shard.write_bytes(shard.read_bytes()[::-1])
    with pytest.raises(StoreError, match="have changed"):
        compact(tmp_path)
    assert {part.name for part in (tmp_path / "parts").iterdir()} == sources | {copy.name}
    report = repair(tmp_path)
    assert set(report.quarantined) == {copy.name}
    assert report.lost == []
    assert {part.name for part in (tmp_path / "parts").iterdir()} == sources
    stores.check(tmp_path, range(12))


def test_killed_while_setting_a_part_aside(tmp_path, stores, kill_at):
    stores.fill(tmp_path, range(9), 3)
    for shard in sorted(tmp_path.glob("parts/*/tse/c/0/0"))[:2]:
        shard.write_bytes(b"")
    kill_at("set_aside.renamed")
    assert stores.in_child(lambda: repair(tmp_path)) == KILLED
    kill_at("nowhere")
    assert repair(tmp_path).lost == ["v3", "v4", "v5"]
    stores.check(tmp_path, range(6, 9))
    assert len(list((tmp_path / "quarantine").iterdir())) == 2


def test_killed_while_merging(tmp_path, stores, kill_at):
    stores.fill(tmp_path / "a", range(6), 3)
    stores.fill(tmp_path / "b", range(6, 12), 3)
    for _ in range(3):
        kill_at("commit.renamed")
        assert stores.in_child(lambda: merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")) == KILLED
    kill_at("nowhere")
    report = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert (report.n_parts_copied, report.n_parts_present) == (1, 3)
    stores.check(tmp_path / "c", range(12))


@pytest.mark.parametrize("work", ["convert", "import"])
def test_killed_while_copying(tmp_path, stores, kill_at, work):
    """A second run goes on with what is missing, and the result is that of an undisturbed one."""
    stores.fill(tmp_path / "a", range(12), 3)
    export_features(tmp_path / "a", tmp_path / "plain", layout="hdf5")

    def copy():
        if work == "convert":
            return convert(tmp_path / "a", tmp_path / "b", format="hdf5")
        return import_features(tmp_path / "plain", tmp_path / "b", layout="hdf5")

    for point in ("commit.object", "commit.renamed"):
        kill_at(point)
        assert stores.in_child(copy) == KILLED
    kill_at("nowhere")
    assert copy().n_present == 12
    store, source = open_store(tmp_path / "b"), open_store(tmp_path / "a")
    assert store.ids() == source.ids()
    assert np.array_equal(store.read(store.ids()).values, source.read(store.ids()).values)
    assert verify(tmp_path / "b").damaged == []


def test_sigterm_commits_what_was_appended(tmp_path, stores):
    """The handler of a stage raises; leaving the writer's block then commits the finished videos."""
    stores.create(tmp_path)
    reader, ready = os.pipe()

    def stop(*_):
        raise KeyboardInterrupt

    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, stop)
        try:
            with open_store(tmp_path).writer() as writer:
                for number in range(5):
                    stores.append(writer, number)
                os.write(ready, b"x")
                signal.pause()
        except KeyboardInterrupt:
            os._exit(75)
        os._exit(1)
    os.read(reader, 1)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 75
    stores.check(tmp_path, range(5))


def write_for_ever(stores, path, first, acknowledged):
    """Commits videos from `first` on, two at a time, and tells their numbers through a pipe."""
    writer = open_store(path).writer()
    for number in range(first, 10**6):
        stores.append(writer, number)
        if number % 2:
            writer.flush()
            os.write(acknowledged, b"%d\n" % number)


@pytest.mark.parametrize(
    "kills", [pytest.param(15), pytest.param(100, marks=pytest.mark.slow, id="100-kills")]
)
@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_killed_at_random_moments(tmp_path, stores, kills, format):
    rng = random.Random(kills)
    stores.create(tmp_path, format)
    first = 0
    for _ in range(kills):
        reader, acknowledged = os.pipe()
        child = os.fork()
        if child == 0:
            write_for_ever(stores, tmp_path, first, acknowledged)
        os.close(acknowledged)
        os.read(reader, 1)  # the writer is at work; from here the moment is random
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reader) as pipe:
            told = re.findall(r"(\d+)\n", pipe.read())
        store = open_store(tmp_path)
        present = sorted(int(video_id[1:]) for video_id in store.ids())
        assert present == list(range(len(present)))  # nothing is missing in between, nothing torn shows
        assert len(present) % 2 == 0
        assert len(present) > max([int(number) for number in told[:-1]], default=0)
        for number in present[first:]:
            stores.check_video(store, number)
        first = len(present)
    assert verify(tmp_path).damaged == []
    compact(tmp_path)
    repair(tmp_path, stale_s=0)
    undisturbed = stores.fill(tmp_path / "undisturbed", range(first), first, format)
    finished = open_store(tmp_path)
    assert finished.ids() == undisturbed.ids()
    ours, theirs = (store.read(undisturbed.ids(), "stored") for store in (finished, undisturbed))
    assert ours.values.tobytes() == theirs.values.tobytes()
    assert ours.offsets.tobytes() == theirs.offsets.tobytes()
