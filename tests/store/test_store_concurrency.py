"""Many processes at one store: writers, readers, verification and compaction at the same time."""

from __future__ import annotations

import multiprocessing
import threading
from operator import methodcaller
from pathlib import Path

import numpy as np
import pytest

from dejavid.errors import StoreError
from dejavid.store import compact, open_store, repair, status, verify

N_WRITERS, N_VIDEOS = 8, 40


def test_writers_reader_verify_and_compact_at_once(tmp_path, stores):
    """Each writer commits its own videos in many small parts; every result is exact, and nobody fails."""
    stores.create(tmp_path)
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("video_id,label,split\n")
    context = multiprocessing.get_context("fork")
    done = context.Event()

    def write(first):
        with open_store(tmp_path).writer(flush_rows=20) as writer:
            for number in range(first, first + N_VIDEOS):
                stores.append(writer, number)

    def read():
        store = open_store(tmp_path)
        while not done.is_set():
            store.refresh()
            ids = store.ids()
            for batch in store.batches(ids, 16):
                for number, video_id in enumerate(batch.ids):
                    low, high = batch.offsets[number : number + 2]
                    np.testing.assert_array_equal(batch.values[low:high], stores.values(int(video_id[1:])))
            for video_id in ids[::7]:
                stores.check_video(store, int(video_id[1:]))

    def maintain():
        while not done.is_set():
            compact(tmp_path, target_bytes=30_000)
            assert verify(tmp_path).damaged == []
            assert repair(tmp_path).quarantined == {}
            assert status(tmp_path, manifest).duplicates == []

    writers = [context.Process(target=write, args=(i * N_VIDEOS,)) for i in range(N_WRITERS)]
    others = [context.Process(target=read), context.Process(target=maintain)]
    for process in writers + others:
        process.start()
    for process in writers:
        process.join()
    done.set()
    for process in others:
        process.join()
    assert [process.exitcode for process in writers + others] == [0] * (N_WRITERS + 2)
    stores.check(tmp_path, range(N_WRITERS * N_VIDEOS))
    compact(tmp_path)
    stores.check(tmp_path, range(N_WRITERS * N_VIDEOS))


def test_processes_that_create_the_same_store_agree(tmp_path, stores):
    context = multiprocessing.get_context("fork")
    start = context.Event()

    def create(number):
        start.wait()
        with stores.create(tmp_path / "store").writer() as writer:
            stores.append(writer, number)

    processes = [context.Process(target=create, args=(number,)) for number in range(6)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    stores.check(tmp_path / "store", range(6))
    assert not list((tmp_path / "store").glob(".tmp*"))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_open_store_goes_to_other_processes(tmp_path, stores, method):
    store = stores.fill(tmp_path, range(20), 5)
    expected = store.read(store.ids())  # the parent has its parts mapped
    # No function of this file: a spawned process could not import it, and the pool would wait for ever.
    read = methodcaller("read", store.ids())
    with multiprocessing.get_context(method).Pool(2) as pool:
        for batch in pool.map(read, [store] * 4):
            np.testing.assert_array_equal(batch.values, expected.values)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_torch_data_loaders_read_a_store(tmp_path, stores, method):
    from torch.utils.data import DataLoader

    store = stores.fill(tmp_path, range(12), 5)
    expected = store.read(store.ids())
    groups = [store.ids()[i : i + 4] for i in range(0, 12, 4)]
    loader = DataLoader(
        groups, batch_size=None, num_workers=2, collate_fn=store.read, multiprocessing_context=method
    )
    batches = list(loader)
    assert [batch.ids for batch in batches] == groups
    np.testing.assert_array_equal(np.concatenate([b.values for b in batches]), expected.values)


def test_threads_share_an_open_store(tmp_path, stores):
    """While one thread refreshes and another compacts, each read sees one table from beginning to end."""
    stores.fill(tmp_path, range(60), 2)
    store = open_store(tmp_path)
    failures = []

    def read(seed):
        rng = np.random.default_rng(seed)
        try:
            for _ in range(150):
                stores.check_video(store, int(rng.integers(60)))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        store.refresh()
        compact(tmp_path, target_bytes=4000)
    assert failures == []


def test_a_writer_does_not_survive_a_fork(tmp_path, stores):
    store = stores.create(tmp_path)
    writer = store.writer()
    stores.append(writer, 0)

    def flush():
        with pytest.raises(StoreError, match="forked process"):
            writer.flush()

    assert stores.in_child(flush) == 0
    writer.flush()
    stores.check(tmp_path, range(1))


def test_more_parts_than_stay_mapped(tmp_path, stores, monkeypatch):
    from dejavid.store import reader

    monkeypatch.setattr(reader, "_MAPPED_PARTS", 3)
    stores.fill(tmp_path, range(20), 1)
    stores.check(tmp_path, range(20))
    before = len(list(Path("/proc/self/fd").iterdir()))
    store = open_store(tmp_path)
    store.read(store.ids())
    for number in range(20):
        stores.check_video(store, number)
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 3
