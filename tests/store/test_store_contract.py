"""What every store format promises; a format passes by subclassing `StoreContract`."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from dejavid.errors import ConfigError, ManifestError, StoreError, StoreVersionError
from dejavid.store import create_store, open_store

HOSTILE_IDS = [
    "a/b/../c",
    "..",
    ".",
    "/",
    "new\nline",
    "",
    "Zoë 動画",
    "nul\0",
    "x" * 4096,
    " ",
    '"',
    "COMMIT.json",
]


def features(rng, steps, dim, dtype="float32"):
    """Random values that every stored dtype can hold exactly."""
    return rng.integers(-128, 128, (steps, dim)).astype(dtype)


def append(writer, video_id, values, **more):
    steps = np.arange(len(values))
    writer.append(video_id, values, start_s=steps * 0.5, end_s=steps * 0.5 + 2, n_frames=7, **more)


def fill(path, videos, *, format="zarr", dtype="float16", **limits):
    """A new store with `videos`, id -> values."""
    dim = next(iter(videos.values())).shape[1]
    store = create_store(
        path, feature_dim=dim, fingerprint_facts={"encoder": "e"}, format=format, dtype=dtype
    )
    with store.writer(**limits) as writer:
        for video_id, values in videos.items():
            append(writer, video_id, values)
    store.refresh()
    return store


class StoreContract:
    format: str

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
    def test_returns_what_was_written(self, tmp_path, dtype):
        rng = np.random.default_rng(0)
        videos = {f"v{i}": features(rng, int(rng.integers(1, 90)), 1000) for i in range(40)}
        fill(tmp_path, videos, format=self.format, dtype=dtype, flush_rows=700)
        store = open_store(tmp_path)
        assert len(store) == 40
        assert store.ids() == sorted(videos)
        assert store.dtype == dtype
        assert store.feature_dim == 1000
        batch = store.read(list(videos))
        assert batch.values.dtype == np.float32
        assert batch.offsets.dtype == np.int64
        np.testing.assert_array_equal(batch.values, np.concatenate(list(videos.values())))
        np.testing.assert_array_equal(np.diff(batch.offsets), [len(v) for v in videos.values()])
        np.testing.assert_array_equal(store.lengths(list(videos)), [len(v) for v in videos.values()])
        for video_id, values in videos.items():
            tse = store.get(video_id)
            np.testing.assert_array_equal(tse.values, values)
            np.testing.assert_array_equal(tse.start_s, np.arange(len(values)) * 0.5)
            np.testing.assert_array_equal(tse.end_s, np.arange(len(values)) * 0.5 + 2)
            assert (tse.n_frames, tse.status, tse.label, tse.extras) == (7, "ok", None, {})

    def test_batches_follow_ids_order_and_dtype(self, tmp_path):
        rng = np.random.default_rng(1)
        videos = {f"v{i}": features(rng, i % 5 + 1, 3) for i in range(10)}
        store = fill(tmp_path, videos, format=self.format)
        order = rng.permutation(10)
        ids = list(videos)
        batches = list(store.batches(ids, 4, order=order, dtype="stored"))
        assert [len(b.ids) for b in batches] == [4, 4, 2]
        assert [i for b in batches for i in b.ids] == [ids[k] for k in order]
        for batch in batches:
            assert batch.values.dtype == np.float16
            for i, video_id in enumerate(batch.ids):
                np.testing.assert_array_equal(
                    batch.values[slice(*batch.offsets[i : i + 2])], videos[video_id]
                )
        assert list(store.batches([], 4)) == []
        assert store.read([]).values.shape == (0, 3)

    def test_bfloat16_is_rounded_to_the_nearest(self, tmp_path):
        values = np.random.default_rng(2).standard_normal((500, 8)).astype(np.float32) * 1e30
        store = fill(tmp_path, {"v": values}, format=self.format, dtype="bfloat16")
        expected = torch.from_numpy(values).to(torch.bfloat16)
        np.testing.assert_array_equal(store.get("v").values, expected.float().numpy())
        stored = torch.from_numpy(store.read(["v"], "stored").values).view(torch.bfloat16)
        assert torch.equal(stored, expected)

    def test_to_device(self, tmp_path):
        rng = np.random.default_rng(3)
        videos = {f"v{i}": features(rng, i + 1, 4) for i in range(5)}
        for dtype in ("float16", "bfloat16"):
            store = fill(tmp_path / dtype, videos, format=self.format, dtype=dtype)
            values, offsets = store.to_device(list(videos), "cpu", dtype="stored")
            assert values.dtype == getattr(torch, dtype)
            assert offsets.tolist() == [0, 1, 3, 6, 10, 15]
            assert torch.equal(values.float(), torch.from_numpy(np.concatenate(list(videos.values()))))

    @pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
    def test_pinned_batches(self, tmp_path, device):
        if device == "cuda" and not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        store = fill(tmp_path, {"v": features(np.random.default_rng(0), 9, 4)}, format=self.format)
        batch = store.read(["v"], pin=True)
        np.testing.assert_array_equal(batch.values, store.get("v").values)
        assert torch.from_numpy(batch.values).is_pinned() == torch.cuda.is_available()
        assert torch.equal(store.to_device(["v"], device)[0].cpu(), torch.from_numpy(batch.values))

    def test_extras_and_status(self, tmp_path):
        store = create_store(tmp_path, feature_dim=2, fingerprint_facts={}, format=self.format)
        logits, views = np.arange(6, dtype=np.float32).reshape(3, 2), np.array([[[1, 2]]], np.int64)
        with store.writer() as writer:
            append(writer, "a", np.ones((3, 2)), extras={"logits": logits}, status="short")
            append(writer, "b", np.ones((1, 2)), extras={"logits": logits[:1], "views": views})
            append(writer, "c", np.ones((1, 2)))
        store = open_store(tmp_path)
        assert store.get("a").status == "short"
        np.testing.assert_array_equal(store.get("a").extras["logits"], logits)
        np.testing.assert_array_equal(store.get("b").extras["logits"], logits[:1])
        np.testing.assert_array_equal(store.get("b").extras["views"], views)
        assert store.get("b").extras["views"].dtype == np.int64
        assert store.get("c").extras == {}

    def test_hostile_ids(self, tmp_path):
        ids = [i for i in HOSTILE_IDS if i]
        fill(tmp_path, {i: np.full((1, 1), n) for n, i in enumerate(ids)}, format=self.format)
        store = open_store(tmp_path)
        assert store.ids() == sorted(ids)
        for n, video_id in enumerate(ids):
            assert store.get(video_id).values == [[n]]

    @pytest.mark.parametrize(("steps", "dim"), [(1, 1), (1, 6328), (150, 6328), (2000, 1)])
    def test_extreme_shapes(self, tmp_path, steps, dim):
        values = features(np.random.default_rng(4), steps, dim)
        fill(tmp_path, {"v": values, "w": values[:1]}, format=self.format)
        np.testing.assert_array_equal(open_store(tmp_path).get("v").values, values)
        np.testing.assert_array_equal(open_store(tmp_path).get("w").values, values[:1])

    def test_an_empty_store(self, tmp_path):
        store = create_store(tmp_path, feature_dim=3, fingerprint_facts={}, format=self.format)
        store.writer().flush()
        assert (len(store), store.ids(), "v" in store) == (0, [], False)
        assert len(open_store(tmp_path)) == 0
        with pytest.raises(StoreError, match="no video 'v'"):
            store.get("v")

    def test_flushes_by_rows_bytes_and_seconds(self, tmp_path):
        store = create_store(tmp_path, feature_dim=4, fingerprint_facts={}, format=self.format)

        def parts_after(**limits):
            before = len(list((tmp_path / "parts").glob("*")))
            writer = store.writer(**limits)
            for i in range(6):
                append(writer, f"v{i}", np.ones((10, 4)))
            writer.flush()
            return len(list((tmp_path / "parts").iterdir())) - before

        assert parts_after() == 1
        assert parts_after(flush_rows=20) == 3
        assert parts_after(flush_bytes=240) == 2
        assert parts_after(flush_s=1e-9) == 6

    def test_a_video_committed_twice_counts_once(self, tmp_path):
        for value in (1, 2):
            fill(tmp_path, {"v": np.full((2, 2), value)}, format=self.format)
        store = open_store(tmp_path)
        assert len(store) == 1
        assert store.get("v").values[0, 0] == 1

    def test_an_exception_commits_what_was_appended(self, tmp_path):
        store = create_store(tmp_path, feature_dim=2, fingerprint_facts={}, format=self.format)
        with pytest.raises(KeyboardInterrupt), store.writer() as writer:  # noqa: PT012
            append(writer, "v", np.ones((1, 2)))
            raise KeyboardInterrupt
        assert open_store(tmp_path).ids() == ["v"]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"video_id": ""}, "non-empty"),
            ({"video_id": "\ud800"}, "Unicode"),
            ({"video_id": "v"}, "appended twice"),
            ({"values": np.ones((0, 2))}, "T >= 1, 2"),
            ({"values": np.ones((1, 3))}, "T >= 1, 2"),
            ({"values": np.ones(2)}, "T >= 1, 2"),
            ({"values": [["a", "b"]]}, "T >= 1, 2"),
            ({"values": [[np.nan, 1]]}, "1 of 2 features are NaN"),
            ({"values": [[1e6, 1]]}, "1e\\+06, does not fit float16"),
            ({"start_s": [0, 1]}, "one per step"),
            ({"end_s": [np.inf]}, "one per step"),
            ({"status": "broken"}, "'broken' is not one of"),
            ({"n_frames": -1}, "n_frames -1"),
            ({"extras": {"Bad Name": np.ones(1)}}, "Bad Name"),
            ({"extras": {"x": np.array(["text"])}}, "extra 'x'"),
            ({"extras": {"x": np.ones(0)}}, "extra 'x'"),
        ],
    )
    def test_refuses_what_does_not_fit(self, tmp_path, change, message):
        store = create_store(tmp_path, feature_dim=2, fingerprint_facts={}, format=self.format)
        good = {"video_id": "w", "values": np.ones((1, 2)), "start_s": [0], "end_s": [1], "n_frames": 1}
        with store.writer() as writer:
            append(writer, "v", np.ones((1, 2)))
            arguments = {**good, **change}
            with pytest.raises(StoreError, match=message):
                writer.append(arguments.pop("video_id"), arguments.pop("values"), **arguments)
        assert open_store(tmp_path).ids() == ["v"]

    def test_the_caller_may_reuse_its_buffers(self, tmp_path):
        store = create_store(tmp_path, feature_dim=2, fingerprint_facts={}, format=self.format)
        values, logits = np.ones((1, 2), np.float16), np.ones(3)
        with store.writer() as writer:
            append(writer, "v", values, extras={"logits": logits})
            values[:] = logits[:] = 9
        store.refresh()
        assert store.get("v").values.tolist() == [[1, 1]]
        assert store.get("v").extras["logits"].tolist() == [1, 1, 1]

    def test_another_configuration_is_refused_with_the_differing_keys(self, tmp_path):
        def create(dim=2, facts=(("hop", 8),), **more):
            return create_store(tmp_path, feature_dim=dim, fingerprint_facts=dict(facts), **more)

        first = create(format=self.format)
        assert create(format=self.format).fingerprint == first.fingerprint
        with pytest.raises(StoreVersionError, match=r"facts\.hop: 8 != 4"):
            create(facts=(("hop", 4),), format=self.format)
        with pytest.raises(StoreVersionError, match=r"store\.feature_dim: 2 != 3"):
            create(dim=3, format=self.format)
        with pytest.raises(StoreVersionError, match=r"store\.dtype: .float16. != .float32."):
            create(dtype="float32", format=self.format)
        with pytest.raises(ConfigError, match="1 feature names"):
            create(feature_names=["x"])

    def test_splits_and_labels_come_from_the_manifest(self, tmp_path):
        videos = {i: np.ones((1, 1)) for i in ("a", "b", "c", "unlisted")}
        fill(tmp_path / "store", videos, format=self.format)
        manifest = tmp_path / "m.csv"
        manifest.write_text(
            "video_id,label,split\nc,jump,train\nb ,run, val\na,run,train\nabsent,run,train\n"
        )
        store = open_store(tmp_path / "store", labels=manifest)
        assert store.ids(split="train") == ["c", "a"]
        assert store.ids(label="run") == ["b", "a"]
        assert store.ids(split="train", label="run") == ["a"]
        assert store.ids() == ["a", "b", "c", "unlisted"]
        assert store.label("c") == "jump"
        assert store.labels(["a", "c"]) == ["run", "jump"]
        assert (store.get("b").label, store.get("b").split) == ("run", "val")
        assert store.get("unlisted").label is None
        with pytest.raises(StoreError, match="such as 'unlisted'"):
            store.labels(["a", "unlisted"])
        for call in (lambda s: s.ids(split="train"), lambda s: s.label("a")):
            with pytest.raises(StoreError, match=r"labels='manifest\.csv'"):
                call(open_store(tmp_path / "store"))


class TestZarr(StoreContract):
    format = "zarr"

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
    def test_plain_zarr_and_tensorstore_read_a_part(self, tmp_path, dtype):
        zarr = pytest.importorskip("zarr")
        tensorstore = pytest.importorskip(
            "tensorstore", reason="an independent reader; not needed at run time"
        )
        rng = np.random.default_rng(5)
        videos = {f"v{i}": features(rng, int(rng.integers(1, 60)), 900) for i in range(30)}
        store = fill(tmp_path, videos, dtype=dtype)
        (part,) = (tmp_path / "parts").iterdir()
        group = zarr.open_group(part, mode="r")
        stored = store.read(list(videos), "stored").values
        np.testing.assert_array_equal(group["tse"][:], stored)
        assert group["tse"].shards is not None
        assert group["tse"].chunks[0] < len(stored)
        offsets, names = group["id_offsets"][:], group["id_bytes"][:].tobytes()
        assert [names[a:b].decode() for a, b in itertools.pairwise(offsets)] == list(videos)
        np.testing.assert_array_equal(np.diff(group["offsets"][:]), [len(v) for v in videos.values()])
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(part / "tse")}}
        np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), stored)

    def test_a_missing_shard_reads_as_nan_in_plain_zarr_and_as_an_error_here(self, tmp_path):
        zarr = pytest.importorskip("zarr")
        fill(tmp_path, {"v": np.zeros((3, 2))})
        (part,) = (tmp_path / "parts").iterdir()
        (part / "tse/c/0/0").unlink()
        assert np.isnan(zarr.open_group(part, mode="r")["tse"][:]).all()
        with pytest.raises(StoreError, match="an object is missing"):
            open_store(tmp_path).get("v")


class TestHdf5(StoreContract):
    format = "hdf5"

    def test_plain_h5py_reads_a_part(self, tmp_path):
        h5py = pytest.importorskip("h5py")
        videos = {"a": np.ones((3, 2)), "b": np.zeros((1, 2))}
        fill(tmp_path, videos, format="hdf5")
        (part,) = (tmp_path / "parts").iterdir()
        with h5py.File(part / "part.h5") as file:
            np.testing.assert_array_equal(file["tse"][:], np.concatenate(list(videos.values())))
            assert file["offsets"][:].tolist() == [0, 3, 4]


def test_opening_what_is_no_store(tmp_path):
    with pytest.raises(StoreError, match="there is no store"):
        open_store(tmp_path / "absent")
    (tmp_path / "STORE.json").write_text("{}")
    with pytest.raises(StoreError, match="not a JSON document of a DejaVid store"):
        open_store(tmp_path)
    (tmp_path / "STORE.json").write_text(
        json.dumps({"magic": "dejavid-tse-store", "version": 2, "crc32c": 0})
    )
    with pytest.raises(StoreVersionError, match="format version 2; this program reads version 1"):
        open_store(tmp_path)


def test_a_manifest_with_problems_is_refused(tmp_path):
    fill(tmp_path / "store", {"a": np.ones((1, 1))})
    path = tmp_path / "m.csv"
    for text, message in [
        ("video_id,label,split\na,x,train\na,x,val\n", "occur more than once: a"),
        ("video_id,label\na,x\n", "no column split"),
        ("video_id,label,split\na,x\n", "line 2 has 2 fields instead of 3"),
        ("", "name the columns"),
    ]:
        path.write_text(text)
        with pytest.raises(ManifestError, match=message):
            open_store(tmp_path / "store", labels=path)
    with pytest.raises(ManifestError, match="cannot read the table"):
        open_store(tmp_path / "store", labels=tmp_path / "absent.csv")
