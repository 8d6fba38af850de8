"""A video of one hour in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from numbered_videos import repeat_video, write_video

from dejavid.extract import Row, write_manifest
from dejavid.store import open_store

N_FRAMES = 36_000  # one hour at 10 frames per second
LIMIT_MB = 250  # all its frames, resized, would take 440 MB more

SCRIPT = """
import resource, sys
from dejavid.config import load_config
from dejavid.extract import extract_videos

def extract(name):
    config = load_config(None, [f"manifest.path={name}.csv", f"run.dir={name}", *sys.argv[1:]])
    extract_videos(config, progress=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

if __name__ == "__main__":
    print(extract("minute"), extract("hour"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "workers"), [("toy:0?size=64", 1), ("toy:0?size=64&frames=1", 0)])
def test_an_hour_needs_no_more_memory_than_a_minute(tmp_path: Path, encoder: str, workers: int) -> None:
    minute = write_video(tmp_path / "minute.mp4", 600, size=(64, 64), codec="mpeg4", rate=10)
    repeat_video(minute, tmp_path / "hour.mp4", 60)
    for name in ("minute", "hour"):
        write_manifest(tmp_path / f"{name}.csv", [Row("v", f"{name}.mp4", "x", "train")])
    (tmp_path / "script.py").write_text(SCRIPT)
    overrides = ["extract.clip_len=4", "extract.frame_interval=1", "extract.hop=4", "extract.device=cpu"]
    overrides += [f"extract.encoder='{encoder}'", f"extract.workers={workers}"]
    output = subprocess.run(
        [sys.executable, "script.py", *overrides], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    before_mb, after_mb = map(float, output.split())
    tse = open_store(tmp_path / "hour" / "store").get("v")
    assert (tse.n_frames, len(tse.values)) == (N_FRAMES, N_FRAMES // 4)
    assert after_mb - before_mb < LIMIT_MB
