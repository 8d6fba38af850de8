"""The demo: its material is honest, and it runs through the same command line as everybody's videos."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import av
import numpy as np
import pytest

from dejavid.demo import _frame_indices, demo_classes, make_demo_videos
from dejavid.errors import ConfigError
from dejavid.extract import read_manifest


def _material(split: str) -> dict[str, set[tuple[str, int]]]:
    """Per class, every film frame that 200 clips of the split show."""
    seen = defaultdict(set)
    for demo_class in demo_classes():
        for seed in range(200):
            seen[demo_class.label].update(_frame_indices(demo_class, split, np.random.default_rng(seed)))
    return seen


def test_no_frame_is_in_training_and_validation() -> None:
    train, val = (set().union(*_material(split).values()) for split in ("train", "val"))
    assert train
    assert val
    assert not train & val


def test_every_class_has_a_twin_of_the_same_material() -> None:
    groups = defaultdict(list)
    for demo_class in demo_classes():
        groups[frozenset(demo_class.shots)].append(demo_class)
    assert sorted(len(twins) for twins in groups.values()) == [2, 2, 2, 6]
    material = _material("train")
    for twins in groups.values():
        assert len({frozenset(material[twin.label]) for twin in twins}) == 1


def test_order_is_what_differs() -> None:
    forwards, backwards = (c for c in demo_classes() if c.label.startswith("bunny"))
    a = _frame_indices(forwards, "train", np.random.default_rng(3))
    b = _frame_indices(backwards, "train", np.random.default_rng(3))
    assert a == b[::-1]


def test_clips_are_real_videos_and_are_made_once(tmp_path: Path) -> None:
    manifest = tmp_path / "demo" / "manifest.csv"
    assert make_demo_videos(manifest, clips=1, progress=False)
    clips = sorted((tmp_path / "demo" / "clips").glob("*.mp4"))
    assert len(clips) == 24
    with av.open(str(clips[0])) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.decode(stream))
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 176, 144)
        assert 28 <= frames <= 111
    assert not make_demo_videos(manifest, clips=1, progress=False)
    before = {row.video_id for row in read_manifest(manifest).rows}
    assert make_demo_videos(manifest, clips=1, seed=1, progress=False)
    assert not before & {row.video_id for row in read_manifest(manifest).rows}  # other clips, other ids


def test_a_manifest_of_the_users_is_never_replaced(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("video_id,path,label,split\n")
    with pytest.raises(ConfigError, match="in the way"):
        make_demo_videos(manifest, clips=1, progress=False)
    assert manifest.read_text() == "video_id,path,label,split\n"


@pytest.mark.slow
def test_demo_shows_that_order_matters(tmp_path: Path) -> None:
    """The whole command on a quarter of the clips, twice."""
    command = [sys.executable, "-m", "dejavid", "demo", "--clips", "5", "--quiet"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    methods = json.loads((tmp_path / "runs/demo/results.json").read_text())["methods"]
    assert {(m["n_scored"], m["n_split"]) for m in methods.values()} == {(24, 24)}
    # A quarter of the material is enough for the point: the mean is blind to order, the head is not.
    assert methods["dejavid"]["top1"] >= methods["mean_pool"]["top1"] + 0.3
    assert (tmp_path / "runs/demo/report.html").stat().st_size > 100_000
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    for stage in ("videos", "extract", "centroids", "train", "evaluate", "report"):
        assert f"{stage}: skipped" in second.stdout
