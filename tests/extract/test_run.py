"""One shard from manifest to store: the same bits whatever the workers, resumed or in shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_extraction import N_VIDEOS, Content, content_of, extracted, run_config

from dejavid.errors import ConfigError, ManifestError, StoreVersionError
from dejavid.extract import Row, extract_videos, load_encoder, write_manifest
from dejavid.extract.decode import open_video
from dejavid.extract.windows import plan_windows
from dejavid.store import open_store


def test_a_tse_is_what_plain_loops_give(manifest: Path, tmp_path: Path) -> None:
    config = run_config(manifest, tmp_path)
    extract_videos(config, progress=False)
    store = open_store(config.store_path)
    encoder = load_encoder("toy:0")
    for k in (0, 3, 11):
        with open_video(manifest.parent / f"{k}.mp4") as video:
            frames = list(video.stream(np.arange(1000)))
        windows = plan_windows(len(frames), clip_len=4, frame_interval=2, hop=8)[:, 0]
        tse = store.get(f"v{k}")
        assert tse.n_frames == len(frames) == 5 + 4 * k
        assert len(tse.values) == len(windows)
        for step, window in enumerate(windows):
            clip = torch.stack([torch.from_numpy(frames[i].image) for i in window]).permute(0, 3, 1, 2)
            # 48 x 64 -> 32 x 42, of which the middle 32 columns
            small = F.interpolate(clip, size=(32, 42), mode="bilinear")[..., 5:37].permute(0, 2, 3, 1)
            features = encoder.encode(small[None].contiguous()).features[0]
            np.testing.assert_allclose(tse.values[step], features.numpy(), atol=1e-6)
            assert tse.start_s[step] == pytest.approx(window[0] / 25)
            assert tse.end_s[step] == pytest.approx((window[-1] + 1) / 25)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_no_bit(
    manifest: Path, tmp_path: Path, expected: Content, workers: int
) -> None:
    assert extracted(run_config(manifest, tmp_path, f"extract.workers={workers}")) == expected


def test_nor_does_it_with_a_real_encoder(manifest: Path, tmp_path: Path) -> None:
    """Batches of frames of several videos: their composition must not depend on who decoded them when."""
    overrides = ["extract.encoder='demo:efficientnet-lite0?size=96'", "extract.batch_size=8"]
    alone, three = (
        extracted(run_config(manifest, tmp_path / f"{workers}", *overrides, f"extract.workers={workers}"))
        for workers in (0, 3)
    )
    assert alone == three


@pytest.mark.parametrize("crops", ["center", "three"])
@pytest.mark.parametrize("merge", ["mean", "concat"])
def test_an_image_encoder_pools_frames_that_windows_share(
    manifest: Path, tmp_path: Path, crops: str, merge: str
) -> None:
    """Overlapping windows of an image encoder: the mean over each window's frames, one encoding per frame."""
    config = run_config(
        manifest,
        tmp_path,
        "extract.encoder='toy:0?frames=1'",
        "extract.hop=3",
        "extract.max_steps=4",
        f"extract.crops={crops}",
        f"extract.merge_views={merge}",
        "extract.rows=embedding+logits",
    )
    extract_videos(config, progress=False)
    single = run_config(
        manifest,
        tmp_path / "single",
        "extract.encoder='toy:0?frames=1'",
        "extract.clip_len=1",
        "extract.frame_interval=1",
        "extract.hop=1",
        f"extract.crops={crops}",
        f"extract.merge_views={merge}",
        "extract.rows=embedding+logits",
    )
    extract_videos(single, progress=False)
    pooled, frames = open_store(config.store_path), open_store(single.store_path)
    assert pooled.feature_dim == (16 + 5) * (3 if (crops, merge) == ("three", "concat") else 1)
    for video_id in pooled.ids():
        each = frames.get(video_id).values
        plan = plan_windows(len(each), clip_len=4, frame_interval=2, hop=3, max_steps=4)[:, 0]
        expected = np.stack([each[window].mean(axis=0) for window in plan])
        np.testing.assert_allclose(pooled.get(video_id).values, expected, atol=1e-5)


def test_official_views_lie_beside_the_tse(manifest: Path, tmp_path: Path) -> None:
    config = run_config(
        manifest,
        tmp_path,
        "extract.encoder='toy:0?frames=16&classes=7'",
        "extract.clip_len=16",
        "extract.frame_interval=1",
        "extract.official_views=dense",
    )
    extract_videos(config, progress=False)
    store = open_store(config.store_path)
    for video_id in store.ids():
        views = np.asarray(store.get(video_id).extras["official_probabilities"])
        assert views.shape == (15, 7)
        np.testing.assert_allclose(views.sum(axis=1), 1, atol=1e-5)
    # Where the five windows coincide (too short a video), so do their probabilities.
    short = np.asarray(store.get("v0").extras["official_probabilities"]).reshape(5, 3, 7)
    assert (short == short[:1]).all()
    long = np.asarray(store.get("v11").extras["official_probabilities"]).reshape(5, 3, 7)
    assert not np.allclose(long[0], long[4])


def test_spans_and_seconds(manifest: Path, tmp_path: Path) -> None:
    config = run_config(
        manifest,
        tmp_path,
        "extract.spans=[4, 8]",
        "extract.hop=0.2",
        "extract.unit=seconds",
        "extract.merge_views=concat",
        "extract.rows=embedding+probabilities",
    )
    extract_videos(config, progress=False)
    tse = open_store(config.store_path).get("v11")
    assert tse.values.shape == (-(-49 // 5), 2 * (16 + 5))
    np.testing.assert_allclose(tse.values[:, 16:21].sum(axis=1), 1, atol=1e-5)


def test_a_second_run_does_nothing(manifest: Path, tmp_path: Path, expected: Content) -> None:
    config = run_config(manifest, tmp_path)
    first = extract_videos(config, progress=False)
    again = extract_videos(config, progress=False)
    assert (first.n_done, first.n_skipped) == (N_VIDEOS, 0)
    assert (again.n_done, again.n_skipped, again.n_windows) == (0, N_VIDEOS, 0)
    assert content_of(open_store(config.store_path)) == expected


def test_shards_together_are_the_whole(manifest: Path, tmp_path: Path, expected: Content) -> None:
    config = run_config(manifest, tmp_path, "extract.batch_size=3")
    counts = [extract_videos(config, shard=f"{i}/3", progress=False).n_done for i in range(3)]
    assert counts == [4, 4, 4]
    content = content_of(open_store(config.store_path))
    assert content.keys() == expected.keys()
    for video_id, row in content.items():
        assert row[1:] == expected[video_id][1:]
        close = [np.frombuffer(r[0], np.float32) for r in (row, expected[video_id])]
        np.testing.assert_allclose(*close, atol=1e-6)


def test_another_configuration_is_refused_and_nothing_is_lost(
    manifest: Path, tmp_path: Path, expected: Content
) -> None:
    config = run_config(manifest, tmp_path)
    extract_videos(config, progress=False)
    with pytest.raises(StoreVersionError) as caught:
        extract_videos(run_config(manifest, tmp_path, "extract.hop=4"), progress=False)
    assert "windowing.hop" in str(caught.value)
    assert content_of(open_store(config.store_path)) == expected


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("extract.clip_len=5", "clip_len=4"),
        ("extract.official_views=dense", "official_views=none"),
        ("extract.hop=2.5", "hop=2"),
        ("extract.encoder=toy:x", "toy:0"),
        ("extract.encoder=nothing", "FAMILY:NAME"),
        ("extract.device=cuda:99", "doctor"),
    ],
)
def test_settings_that_do_not_fit(manifest: Path, tmp_path: Path, override: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        extract_videos(run_config(manifest, tmp_path, override), progress=False)
    assert fix in caught.value.fix


def test_missing_files_stop_the_run_before_it_starts(manifest: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.csv", [Row("a", "a.mp4", "x", "train")])
    with pytest.raises(ManifestError, match="no file"):
        extract_videos(run_config(tmp_path / "m.csv", tmp_path), progress=False)
    assert not (tmp_path / "store").exists()
