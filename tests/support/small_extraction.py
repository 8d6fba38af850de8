"""A small extraction: twelve numbered videos, a toy encoder, and what the store holds of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numbered_videos import cut_file, write_audio, write_video

from dejavid.config import Config, load_config
from dejavid.extract import Row, extract_videos, write_manifest
from dejavid.store import Store, open_store

N_VIDEOS = 12

Content = dict[str, tuple[bytes, bytes, bytes, int, str]]


def write_numbered(root: Path) -> Path:
    """Twelve videos of 5 to 49 frames, short ones shorter than a window; returns their manifest."""
    rows = []
    for k in range(N_VIDEOS):
        path = write_video(root / f"{k}.mp4", 5 + 4 * k, size=(64, 48))
        rows.append(Row(f"v{k}", path.name, f"c{k % 3}", "train" if k % 2 else "val"))
    write_manifest(root / "m.csv", rows)
    return root / "m.csv"


def run_config(manifest: Path, out: Path, *overrides: str) -> Config:
    """Windows of 4 frames in float32, decoded in this process."""
    return load_config(
        None,
        [
            f"manifest.path={manifest}",
            f"run.dir={out}",
            "extract.encoder=toy:0",
            "extract.workers=0",
            "extract.clip_len=4",
            "extract.frame_interval=2",
            "extract.hop=8",
            "extract.batch_size=5",
            "store.dtype=float32",
            *overrides,
        ],
    )


def content_of(store: Store) -> Content:
    """All that a store holds, in a form that compares bit by bit."""
    rows = {}
    for video_id in store.ids():
        tse = store.get(video_id)
        times = (np.asarray(tse.start_s).tobytes(), np.asarray(tse.end_s).tobytes())
        rows[video_id] = (tse.values.tobytes(), *times, tse.n_frames, tse.status)
    return rows


def extracted(config: Config, **options: object) -> Content:
    """Extracts, and reads what there is then."""
    extract_videos(config, progress=False, **options)
    return content_of(open_store(config.store_path))


def write_broken(manifest: Path, root: Path) -> Path:
    """Four good videos among six that fail, each in its own way, and one that is cut."""
    good = [manifest.parent / f"{k}.mp4" for k in (1, 4, 7, 10)]
    for path in good:
        (root / path.name).write_bytes(path.read_bytes())
    (root / "text.mp4").write_text("hello")
    (root / "empty.mp4").touch()
    write_audio(root / "sound.m4a").rename(root / "sound.mp4")
    cut_file(good[3], root / "headless.mp4", 0.5)
    (root / "frames").mkdir()
    cut_file(write_video(root / "whole.mkv", 60, size=(64, 48)), root / "cut.mkv", 0.6)
    names = ["1.mp4", "text.mp4", "4.mp4", "empty.mp4", "sound.mp4", "7.mp4", "headless.mp4", "frames"]
    rows = [Row(name, name, "x", "train") for name in [*names, "cut.mkv", "10.mp4"]]
    rows.append(Row("behind", "10.mp4", "x", "train", start_s=99.0))
    write_manifest(root / "m.csv", rows)
    return root / "m.csv"
