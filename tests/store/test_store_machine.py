"""Any sequence of what can be done to a store, against a dict."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dejavid.store import compact, convert, create_store, folder, merge, open_store, repair, verify

NUMBERS = st.integers(0, 9)
WRITERS = st.integers(0, 1)


class StoreMachine(RuleBasedStateMachine):
    """Two writers, kills, damage, repair, compaction and merging; `committed` is what must be readable."""

    @initialize(format=st.sampled_from(["zarr", "hdf5"]), dtype=st.sampled_from(["float16", "bfloat16"]))
    def create(self, format, dtype):
        self.root = Path(tempfile.mkdtemp())
        self.path, self.format, self.dtype = self.root / "store", format, dtype
        self.committed: dict[str, np.ndarray] = {}
        self.parts: dict[str, set[str]] = {}  # part -> ids
        self.copies: list[tuple[str, str, np.ndarray]] = []  # (part, id, values) of everything committed
        self.count = 0
        store = self.open_or_create()
        self.writers = [store.writer(), store.writer()]
        self.pending: list[dict[str, np.ndarray]] = [{}, {}]

    def open_or_create(self):
        return create_store(
            self.path, feature_dim=3, fingerprint_facts={}, format=self.format, dtype=self.dtype
        )

    def part_names(self):
        return {part.name for part in (self.path / "parts").glob("[!.]*")}

    def recount(self):
        """What each id must read as: the copy in the lowest part."""
        self.committed = {}
        for _, video_id, values in sorted(self.copies, key=lambda copy: copy[0]):
            self.committed.setdefault(video_id, values)

    @rule(writer=WRITERS, number=NUMBERS)
    def append(self, writer, number):
        video_id = f"vidéo/{number}"
        if video_id in self.pending[writer]:
            return
        self.count += 1
        values = np.full((number % 4 + 1, 3), self.count % 128, np.float32)
        steps = np.arange(len(values))
        self.writers[writer].append(video_id, values, start_s=steps, end_s=steps, n_frames=1)
        self.pending[writer][video_id] = values

    @rule(writer=WRITERS)
    def flush(self, writer):
        before = self.part_names()
        self.writers[writer].flush()
        (part,) = self.part_names() - before or {None}
        assert (part is None) == (not self.pending[writer])
        self.copies += [(part, video_id, values) for video_id, values in self.pending[writer].items()]
        self.pending[writer] = {}
        self.recount()

    @rule(writer=WRITERS)
    def kill(self, writer):
        """What was not flushed is gone."""
        self.writers[writer] = open_store(self.path).writer()
        self.pending[writer] = {}

    @precondition(lambda self: self.copies)
    @rule(seed=st.integers(0, 999))
    def damage_and_repair(self, seed):
        rng = random.Random(seed)
        victim = rng.choice(sorted(self.part_names()))
        file = rng.choice([f for f in sorted((self.path / "parts" / victim).rglob("*")) if f.is_file()])
        data = bytearray(file.read_bytes())
        data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        file.write_bytes(bytes(data))
        report = repair(self.path)
        assert set(report.quarantined) == {victim}
        gone = {video_id for part, video_id, _ in self.copies if part == victim}
        self.copies = [copy for copy in self.copies if copy[0] != victim]
        self.recount()
        if file.name != "COMMIT.json":
            assert set(report.lost) == gone - set(self.committed)

    @rule(size=st.sampled_from([1, 2000, 10**9]))
    def compact(self, size):
        compact(self.path, target_bytes=size)
        self.copies = [
            (part.parent.name, video_id, self.committed[video_id])
            for part in self.path.glob("parts/*/COMMIT.json")
            for video_id in json.loads(part.read_text())["ids"]
        ]
        assert {video_id for _, video_id, _ in self.copies} == set(self.committed)

    @rule()
    def merge_into_an_empty_store(self):
        target = self.root / "merged"
        shutil.rmtree(target, ignore_errors=True)
        merge([self.path], target)
        self.compare(target)

    @rule()
    def convert_to_the_other_format(self):
        target = self.root / "converted"
        shutil.rmtree(target, ignore_errors=True)
        convert(self.path, target, format={"zarr": "hdf5", "hdf5": "zarr"}[self.format], dtype="float32")
        self.compare(target)

    @invariant()
    def reads_as_the_model(self):
        if hasattr(self, "path"):
            self.compare(self.path)
            report = verify(self.path, workers=1)
            assert (report.damaged, report.strange) == ([], [])

    def compare(self, path):
        store = open_store(path)
        ids = sorted(self.committed)
        assert store.ids() == ids
        batch = store.read(ids)
        for number, video_id in enumerate(ids):
            low, high = batch.offsets[number : number + 2]
            np.testing.assert_array_equal(batch.values[low:high], self.committed[video_id])

    def teardown(self):
        if hasattr(self, "root"):
            shutil.rmtree(self.root)


@pytest.fixture(autouse=True)
def _without_syncing(monkeypatch):
    monkeypatch.setattr(folder, "_sync", lambda *paths: None)  # durability is not what is tested here


class TestStoreMachine(StoreMachine.TestCase):
    settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


@pytest.mark.slow
class TestStoreMachineLonger(StoreMachine.TestCase):
    settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
