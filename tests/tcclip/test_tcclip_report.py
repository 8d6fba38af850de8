"""The report of a run whose encoder is TC-CLIP shows what its context tokens are made of."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from command import Command
from numbered_videos import read_number, write_video
from PIL import Image

from dejavid.config import Config, load_config
from dejavid.errors import ConfigError, VideoDecodeError
from dejavid.evaluate.predict import Sources, context_masks
from dejavid.extract import extract_videos
from dejavid.extract.encoders.tcclip.convert import convert
from dejavid.pipeline import report_stage
from dejavid.store import open_store

Folder = Callable[[str], Path]
SIDE, N_FRAMES = 64, 4  # of the tiny model
HOP, INTERVAL = 5, 2


def settings(folder: Path, encoder: str, rows: Sequence[tuple[str, ...]], *more: str) -> list[str]:
    """`--set` values of a run on rows (id, label, split, start_s) whose files are ID.mp4."""
    lines = ["video_id,path,label,split,start_s"]
    lines += [f"{i},{i}.mp4,{label},{split},{start}" for i, label, split, start in rows]
    (folder / "m.csv").write_text("\n".join(lines) + "\n")
    return [
        f"manifest.path={folder / 'm.csv'}",
        f"run.dir={folder / 'run'}",
        f"extract.encoder={encoder}",
        f"extract.clip_len={N_FRAMES}",
        f"extract.frame_interval={INTERVAL}",
        f"extract.hop={HOP}",
        "extract.workers=0",
        "extract.device=cpu",
        "centroids.length=2",
        "train.epochs=2",
        *more,
    ]


def extracted(folder: Path, encoder: str, *more: str, start_s: str = "") -> tuple[Config, Sources]:
    """A store of one video of 40 numbered frames, 25 per second."""
    path = write_video(folder / "v.mp4", 40, size=(96, 80))
    config = load_config(None, settings(folder, encoder, [("v", "zumba", "train", start_s)], *more))
    extract_videos(config, progress=False)
    return config, {"v": (path, float(start_s) if start_s else None, None)}


def frames_of(jpeg: bytes) -> list[np.ndarray]:
    """The upper row of a picture: the frames as the encoder sees them."""
    picture = np.asarray(Image.open(io.BytesIO(jpeg)))
    assert picture.shape == (2 * SIDE, N_FRAMES * SIDE, 3)
    return np.split(picture[:SIDE], N_FRAMES, axis=1)


@pytest.mark.parametrize("crops", ["center", "three"])
@pytest.mark.parametrize("start_s", ["", "0.4"])
def test_a_picture_shows_the_window_of_its_step(
    crops: str, start_s: str, folder: Folder, tmp_path: Path
) -> None:
    config, sources = extracted(tmp_path, f"tcclip:{folder('a')}", f"extract.crops={crops}", start_s=start_s)
    store = open_store(config.store_path)
    masks, why = context_masks(config, store, sources)
    assert why is None
    assert masks is not None
    steps = [0, 2, int(store.lengths(["v"])[0]) - 1]
    first = 10 if start_s else 0
    for step, jpeg in zip(steps, masks("v", steps), strict=True):
        expected = [first + step * HOP + k * INTERVAL for k in range(N_FRAMES)]
        assert [read_number(frame) for frame in frames_of(jpeg)] == expected
    with pytest.raises(VideoDecodeError, match=f"no window {steps[-1] + 2}"):
        masks("v", [steps[-1] + 1])
    with pytest.raises(ConfigError, match="file is not known"):
        masks("w", [0])


def test_why_there_are_none(folder: Folder, base: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder("a"), model)
    config, sources = extracted(tmp_path, f"tcclip:{model}")
    store = open_store(config.store_path)

    def why(*changes: str, encoder: str = f"tcclip:{model}") -> str | None:
        section = load_config(None, [*changes, f"extract.encoder={encoder}"]).extract
        names = {item.partition("=")[0].removeprefix("extract.") for item in changes} | {"encoder"}
        update = {name: getattr(section, name) for name in names}
        changed = config.model_copy(update={"extract": config.extract.model_copy(update=update)})
        masks, reason = context_masks(changed, store, sources)
        assert masks is None
        return reason

    assert why(encoder="toy:0") is None  # nothing is missing
    assert "windowing.hop: 5.0 != 6.0" in str(why("extract.hop=6"))
    assert "encoder: " in str(why("extract.precision=bfloat16"))
    convert(None, base, tmp_path / "clip", changes={"method": "clip", "n_frames": N_FRAMES})
    assert "no context tokens" in str(why(encoder=f"tcclip:{tmp_path / 'clip'}"))
    shutil.rmtree(model)
    assert "no model of this family" in str(why())
    config, sources = extracted(tmp_path, f"tcclip:{folder('a')}?frames=1", f"run.dir={tmp_path / 'single'}")
    store = open_store(config.store_path)
    assert "single frames" in str(why(encoder=config.extract.encoder))


def strips(page: Path) -> list[bytes]:
    found = re.findall(r'class="strip" src="data:image/jpeg;base64,([^"]+)"', page.read_text())
    return [base64.b64decode(text) for text in found]


def test_from_videos_to_a_report_with_masks(command: Command, folder: Folder, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder("a"), model)
    rows = [
        (f"{split}{number}", ("falling", "zumba")[number % 2], split, "")
        for split in ("train", "val")
        for number in range(4)
    ]
    for number, (video_id, *_) in enumerate(rows):
        write_video(tmp_path / f"{video_id}.mp4", 30 + number, size=(96, 80))
    items = settings(tmp_path, f"tcclip:{model}", rows)
    done = command("run", "-q", *(part for item in items for part in ("--set", item)))
    assert done.code == 0, done.err
    page = tmp_path / "run" / "report.html"
    pictures = strips(page)
    assert len(pictures) == 4 * 3
    assert all(len(frames_of(jpeg)) == N_FRAMES for jpeg in pictures)
    assert "context tokens are made of" in page.read_text()

    explained = tmp_path / "why.html"
    done = command("predict", tmp_path / "run" / "head", tmp_path / "val0.mp4", "-q", "--explain", explained)
    assert done.code == 0, done.err
    assert len(strips(explained)) == 3

    # Without the video, then without the model, the report is whole but for the pictures.
    config = load_config(None, items)
    (tmp_path / "val0.mp4").unlink()
    html = report_stage(config, videos=["val0", "val1"], progress=False).paths[0]
    assert len(strips(html)) == 3
    assert "No pictures of context tokens: there is no such file" in html.read_text()
    shutil.rmtree(model)
    html = report_stage(config, videos=["val1"], progress=False).paths[0]
    assert not strips(html)
    assert html.read_text().count("Context tokens are not shown: ") == 1
    assert "No pictures of context tokens" not in html.read_text()
