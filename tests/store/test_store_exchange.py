"""Features in and out: the reference's files, .npy, HDF5, Parquet; other formats and dtypes."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dejavid.errors import ConfigError, StoreError
from dejavid.store import convert, create_store, export_features, import_features, info, open_store
from dejavid.store.official import read_tensors

GOLDEN = Path(__file__).parents[1] / "golden" / "dejavid" / "official_format"
LAYOUTS = ["official", "npy", "hdf5", "parquet", "zarr"]


@pytest.mark.parametrize("kind", ["tensor_per_file", "dict_per_file"])
def test_official_features_are_imported(kind, tmp_path):
    """Ids, order, labels, splits and every value, against what the reference's own loaders gave."""
    report = import_features(GOLDEN / kind, tmp_path, layout="official")
    expected = json.loads((GOLDEN / kind / "expected.json").read_text())["splits"]
    assert report.n_videos == sum(len(rows) for rows in expected.values())
    store = open_store(tmp_path, labels=report.manifest)
    assert "ghost" not in store
    labels = sorted({row["raw_label"] for rows in expected.values() for row in rows})
    for split, rows in expected.items():
        assert store.ids(split=split) == [str(row["id"]) for row in rows]
        for row in rows:
            tse = store.get(str(row["id"]))
            assert len(tse.values) == row["length"]
            assert labels.index(int(tse.label)) == row["label"]
            assert tse.values.astype(np.float64).sum() == pytest.approx(row["sum"], abs=1e-9)
            assert np.abs(tse.values).astype(np.float64).sum() == pytest.approx(row["abs_sum"], abs=1e-9)
            assert np.isnan(tse.start_s).all()
    assert import_features(GOLDEN / kind, tmp_path, layout="official").n_present == report.n_videos
    assert info(tmp_path).n_duplicates == 0


@pytest.mark.parametrize("kind", ["tensor_per_file", "dict_per_file"])
def test_official_heads_are_read_wherever_they_were_saved(kind):
    run = GOLDEN / kind / "run"
    expected = np.load(run / "expected.npz")
    arrays = [expected[name] for name in expected.files]
    files = [file for file in run.iterdir() if file.suffix in (".pkl", ".pt")]
    assert len(files) == 5
    for file in files:
        tensor = read_tensors(file)
        assert tensor.device.type == "cpu"
        assert any(a.shape == tensor.shape and np.array_equal(a, tensor.detach().numpy()) for a in arrays), (
            file
        )


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/dejavid-was-here",)


@pytest.mark.parametrize("content", [Evil(), {"a": Evil()}, ["a"], {("a",): 1}, 3, {"a": torch.ones(1)}])
def test_pickles_with_anything_else_are_refused(content, tmp_path):
    shutil.copytree(GOLDEN / "tensor_per_file", tmp_path / "x")
    (tmp_path / "x/id2splits.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(StoreError):
        import_features(tmp_path / "x", tmp_path / "store", layout="official")
    torch.save(Evil(), tmp_path / "evil.pt")
    for name, data in [
        ("evil.pkl", pickle.dumps(Evil())),
        ("no.pt", b"text"),
        ("no.pkl", b"\x80\x02."),
        ("e.pkl", b""),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(StoreError, match=r"no tensors|else than tensors|not plain data|not a pickle"):
            read_tensors(tmp_path / name)
    with pytest.raises(StoreError, match="no tensors"):
        read_tensors(tmp_path / "evil.pt")
    assert not Path("/tmp/dejavid-was-here").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x / "id2labels.pkl").unlink(), "cannot read the pickle"),
        (lambda x: (x / "feats/a/vid_1.pt").unlink(), "the file is missing"),
        (lambda x: (x / "feats/a/vid_1.pt").write_bytes(b"PK"), "no tensors"),
        (lambda x: torch.save([1], x / "feats/a/vid_1.pt"), "something else than tensors"),
        (lambda x: torch.save({"other": torch.ones(1, 10)}, x / "feats/a/vid_1.pt"), "no sample 'vid_1'"),
        (lambda x: torch.save(torch.ones(2, 11), x / "feats/b/vid_9.pt"), "not \\(2, 11\\)"),
        (lambda x: (x / "id2splits.pkl").write_bytes(pickle.dumps({})), "32 samples have no label or split"),
        (lambda x: (x / "id2fname.pkl").write_bytes(pickle.dumps({1: "a", "1": "b"})), "no label or split"),
    ],
)
def test_broken_official_folders_are_clear_errors(change, message, tmp_path):
    shutil.copytree(GOLDEN / "tensor_per_file", tmp_path / "x")
    change(tmp_path / "x")
    with pytest.raises(StoreError, match=message):
        import_features(tmp_path / "x", tmp_path / "store", layout="official")


@pytest.fixture
def labelled(tmp_path, stores):
    """A store and a manifest whose order is not that of the ids."""
    stores.fill(tmp_path / "store", range(12), 5)
    manifest = tmp_path / "manifest.csv"
    with manifest.open("w", newline="") as file:
        rows = [
            [f"v{n}", f"class {n % 3}", ["train", "val"][n % 2]]
            for n in (7, 3, 11, 0, 1, 2, 4, 5, 6, 8, 9, 10)
        ]
        csv.writer(file).writerows([["video_id", "label", "split"], *rows])
    return tmp_path / "store", manifest


@pytest.mark.parametrize("layout", LAYOUTS)
def test_export_and_import_again(layout, labelled, tmp_path, stores):
    path, manifest = labelled
    report = export_features(path, tmp_path / "out", layout=layout, labels=manifest)
    assert (report.n_videos, report.dropped_extras) == (12, ("logits",))
    with pytest.raises(StoreError, match="the destination exists"):
        export_features(path, tmp_path / "out", layout=layout, labels=manifest)
    back = import_features(tmp_path / "out", tmp_path / "back", layout=layout, format="hdf5")
    ours, theirs = open_store(path, labels=manifest), open_store(tmp_path / "back", labels=back.manifest)
    for split in ("train", "val"):
        assert theirs.ids(split=split) == ours.ids(split=split)
    for video_id in ours.ids():
        one, two = ours.get(video_id), theirs.get(video_id)
        np.testing.assert_array_equal(two.values, one.values)
        if layout == "official":  # integer labels only, and no times
            assert two.label == one.label.removeprefix("class ")
        else:
            assert (two.label, two.n_frames, two.status) == (one.label, one.n_frames, one.status)
        if layout in ("hdf5", "parquet", "zarr"):
            np.testing.assert_array_equal(two.end_s, one.end_s)


def test_npy_files_carry_the_ids_where_those_are_file_names(labelled, tmp_path):
    export_features(labelled[0], tmp_path / "out", layout="npy")
    store = open_store(labelled[0])
    assert {path.stem for path in (tmp_path / "out").glob("*.npy")} == set(store.ids())
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "v3.npy"), store.get("v3").values)


def test_a_part_is_a_zarr_group_that_can_be_imported(labelled, tmp_path):
    part = next(path for path in sorted((labelled[0] / "parts").iterdir()) if (path / "zarr.json").exists())
    import_features(part, tmp_path / "back", layout="zarr")
    ours, theirs = open_store(labelled[0]), open_store(tmp_path / "back")
    assert theirs.ids()
    for video_id in theirs.ids():
        np.testing.assert_array_equal(theirs.get(video_id).values, ours.get(video_id).values)


def test_a_flipped_byte_of_an_exported_zarr_group_is_found(labelled, tmp_path):
    export_features(labelled[0], tmp_path / "out", layout="zarr")
    chunk = tmp_path / "out" / "tse" / "c" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(StoreError, match="cannot be read"):
        import_features(tmp_path / "out", tmp_path / "back", layout="zarr")


@pytest.mark.parametrize("layout", ["npy", "hdf5", "parquet", "zarr"])
def test_hostile_ids_and_no_labels_survive(layout, tmp_path):
    ids = ["../up", "new\nline", "Zoë", "x" * 4000, 'a,b"c']
    store = create_store(tmp_path / "s", feature_dim=2, fingerprint_facts={})
    with store.writer() as writer:
        for number, video_id in enumerate(ids, 1):
            writer.append(
                video_id,
                np.full((number, 2), number),
                start_s=np.zeros(number),
                end_s=np.ones(number),
                n_frames=1,
            )
    export_features(tmp_path / "s", tmp_path / "out", layout=layout)
    report = import_features(tmp_path / "out", tmp_path / "back", layout=layout)
    assert report.manifest is None
    back = open_store(tmp_path / "back")
    assert back.ids() == sorted(ids)
    for number, video_id in enumerate(ids, 1):
        assert back.get(video_id).values.tolist() == [[number, number]] * number


def test_an_id_that_a_manifest_cannot_keep_is_refused(tmp_path):
    shutil.copytree(GOLDEN / "tensor_per_file", tmp_path / "x")
    for name in ("id2fname", "id2labels", "id2splits"):
        table = pickle.loads((tmp_path / "x" / f"{name}.pkl").read_bytes())
        table[" vid_1"] = table.pop("vid_1")
        (tmp_path / "x" / f"{name}.pkl").write_bytes(pickle.dumps(table))
    with pytest.raises(StoreError, match="begins or ends with a space"):
        import_features(tmp_path / "x", tmp_path / "store", layout="official")


def test_any_tree_of_npy_files_is_imported(tmp_path):
    (tmp_path / "tree/jump").mkdir(parents=True)
    np.save(tmp_path / "tree/jump/a.npy", np.ones((3, 2), np.float64))
    np.save(tmp_path / "tree/b.npy", np.zeros((1, 2), np.float16))
    import_features(tmp_path / "tree", tmp_path / "s", layout="npy")
    assert open_store(tmp_path / "s").ids() == ["b", "jump/a"]
    np.save(tmp_path / "tree/object.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(StoreError, match="not an array"):
        import_features(tmp_path / "tree", tmp_path / "s2", layout="npy")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_no_source_is_a_clear_error(layout, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello")
    for source in ("absent", "empty", "text"):
        with pytest.raises(StoreError):
            import_features(tmp_path / source, tmp_path / "s", layout=layout)
    with pytest.raises(ConfigError, match="unknown layout 'zip'"):
        import_features(tmp_path, tmp_path / "s", layout="zip")


def test_an_export_that_fails_leaves_nothing(labelled, tmp_path):
    path, _ = labelled
    with pytest.raises(StoreError, match="needs a label and a split"):
        export_features(path, tmp_path / "out", layout="official")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_convert_changes_format_and_dtype(format, tmp_path, stores):
    stores.fill(tmp_path / "a", range(20), 6, format)
    other = {"zarr": "hdf5", "hdf5": "zarr"}[format]
    report = convert(tmp_path / "a", tmp_path / "b", format=other, dtype="float32")
    assert (report.n_videos, report.n_present) == (20, 0)
    stores.check(tmp_path / "b", range(20))
    store = open_store(tmp_path / "b")
    assert (store.header.format, store.dtype) == (other, "float32")
    assert store.facts == {"encoder": "e", "converted": {"from": "float16", "to": "float32"}}
    assert convert(tmp_path / "a", tmp_path / "b", format=other, dtype="float32").n_present == 20
    assert info(tmp_path / "b").n_duplicates == 0
    convert(tmp_path / "a", tmp_path / "c", format=other)
    assert open_store(tmp_path / "c").fingerprint == open_store(tmp_path / "a").fingerprint


def test_convert_refuses_what_does_not_fit(tmp_path):
    store = create_store(tmp_path / "a", feature_dim=1, fingerprint_facts={}, dtype="float32")
    with store.writer() as writer:
        writer.append("v", [[1e6]], start_s=[0], end_s=[1], n_frames=1)
    with pytest.raises(StoreError, match="does not fit float16"):
        convert(tmp_path / "a", tmp_path / "b", dtype="float16")


def test_a_tse_goes_to_torch_and_arrow(labelled):
    path, manifest = labelled
    tse = open_store(path, labels=manifest).get("v7")
    assert torch.equal(tse.to_torch(), torch.from_numpy(tse.values))
    table = tse.to_arrow()
    assert table.column_names == ["start_s", "end_s", "embedding"]
    assert table["embedding"].to_pylist() == tse.values.tolist()
    assert table.schema.metadata == {b"video_id": b"v7", b"label": b"class 1", b"split": b"val"}
