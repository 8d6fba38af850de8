"""A stored video whose file or time span is another now: the next run says so, and keeps what there is."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numbered_videos import write_video
from small_extraction import Content, content_of, run_config

from dejavid.config import Config
from dejavid.extract import Row, extract_videos, write_manifest
from dejavid.store import compact, create_store, open_store

ROWS = [
    Row("plain", "plain.mp4", "x", "train"),
    Row("part", "plain.mp4", "x", "train", start_s=0.2, end_s=0.8),
    Row("folder", "folder", "x", "train"),
]


@pytest.fixture(params=["zarr", "hdf5"])
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Config:
    """A finished run of three videos."""
    from PIL import Image

    write_video(tmp_path / "plain.mp4", 30, size=(64, 48))
    (tmp_path / "folder").mkdir()
    for number in range(6):
        Image.new("RGB", (64, 48), (40 * number, 0, 0)).save(tmp_path / "folder" / f"{number}.png")
    write_manifest(tmp_path / "m.csv", ROWS)
    config = run_config(tmp_path / "m.csv", tmp_path / "out", f"store.format={request.param}")
    extract_videos(config, progress=False)
    return config


def again(config: Config, caplog: pytest.LogCaptureFixture) -> str:
    """What a run says that finds every video in the store."""
    before = content_of(open_store(config.store_path))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "dejavid"):
        report = extract_videos(config, progress=False)
    assert (report.n_done, report.n_skipped) == (0, 3)
    assert content_of(open_store(config.store_path)) == before
    return caplog.text


def test_what_has_not_changed_is_not_mentioned(run: Config, caplog: pytest.LogCaptureFixture) -> None:
    assert again(run, caplog) == ""
    copy = run.manifest.path.with_name("copy.mp4")
    shutil.copyfile(run.manifest.path.with_name("plain.mp4"), copy)
    copy.replace(run.manifest.path.with_name("plain.mp4"))  # other times, the same bytes
    compact(run.store_path)
    assert again(run, caplog) == ""


def test_another_file_is_named_with_what_to_do(run: Config, caplog: pytest.LogCaptureFixture) -> None:
    write_video(run.manifest.path.with_name("plain.mp4"), 31, size=(64, 48))
    said = again(run, caplog)
    for words in ("2 stored videos", "plain, part\n", str(run.store_path), "new ids", "store.path=NEW"):
        assert words in said
    assert "folder" not in said


def test_another_time_span_is_named(run: Config, caplog: pytest.LogCaptureFixture) -> None:
    write_manifest(run.manifest.path, [ROWS[0], replace(ROWS[1], end_s=0.6), ROWS[2]])
    assert "1 stored videos" in (said := again(run, caplog))
    assert ": part\n" in said


def test_only_a_few_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_video(tmp_path / "v.mp4", 30, size=(64, 48))
    write_manifest(tmp_path / "m.csv", [Row(f"v{k}", "v.mp4", "x", "train") for k in range(8)])
    config = run_config(tmp_path / "m.csv", tmp_path / "out")
    extract_videos(config, progress=False)
    write_video(tmp_path / "v.mp4", 20, size=(64, 48))
    extract_videos(config, progress=False)
    assert "8 stored videos" in caplog.text
    assert "v0, v1, v2, v3, v4 and 3 more" in caplog.text


def test_videos_stored_without_a_source_are_passed_over(
    manifest: Path, tmp_path: Path, expected: Content, caplog: pytest.LogCaptureFixture
) -> None:
    """As by a version that did not record it."""
    config = run_config(manifest, tmp_path / "out")
    extract_videos(config, progress=False)
    store = open_store(config.store_path)
    old = create_store(
        tmp_path / "old", feature_dim=store.feature_dim, fingerprint_facts=store.facts, dtype="float32"
    )
    with old.writer() as writer:
        for video_id in store.ids():
            tse = store.get(video_id)
            assert (
                tse.extras["source"].tolist()[0] == (manifest.parent / f"{video_id[1:]}.mp4").stat().st_size
            )
            assert np.isnan(tse.extras["source"][1:]).all()
            writer.append(video_id, tse.values, start_s=tse.start_s, end_s=tse.end_s, n_frames=tse.n_frames)
    config = run_config(manifest, tmp_path / "out", f"store.path={tmp_path / 'old'}")
    assert extract_videos(config, progress=False).n_skipped == len(expected)
    assert caplog.text == ""
