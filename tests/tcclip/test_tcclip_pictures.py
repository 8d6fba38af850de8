"""Pictures of context tokens: each patch in the colour of its token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numbered_videos import write_video
from PIL import Image

from dejavid.errors import ConfigError, VideoDecodeError
from dejavid.extract.encoders.tcclip.pictures import load_contextual, paint_sources, write_sheet


def test_patches_have_the_colour_of_their_token() -> None:
    clip = np.full((2, 8, 8, 3), 100, np.uint8)
    sources = np.zeros((3, 2, 2, 2), np.bool_)
    sources[0, 0, 0, 1] = sources[0, 1, 1, 0] = sources[2, 1, 0, 0] = True
    painted = paint_sources(clip, sources)
    assert (painted[0, :4, :4] == 30).all()  # nobody's
    red = painted[0, :4, 4:]
    assert (red == red[0, 0]).all()
    assert red[0, 0].tolist() == [177, 50, 50]
    assert (painted[1, 4:, :4] == red).all()  # the same token in another frame
    assert not (painted[1, :4, :4] == red).all()


def test_a_sheet_of_a_video(folder: Callable[[str], Path], tmp_path: Path) -> None:
    uri = f"tcclip:{folder('a')}"
    write_sheet(uri, write_video(tmp_path / "v.mp4", 9, size=(96, 80)), tmp_path / "v.png")
    sheet = np.asarray(Image.open(tmp_path / "v.png"))
    assert sheet.shape == (128, 4 * 64, 3)
    frames, painted = sheet[:64].reshape(64, 4, 64, 3), sheet[64:].reshape(64, 4, 64, 3)
    dark = (painted == (frames * 0.3).astype(np.uint8)).all(-1)
    patches = dark.reshape(4, 16, 4, 4, 16).all((1, 4))
    assert (patches.sum((0, 2)) == 12).all()  # 4 of 16 patches of every frame are seeds
    (tmp_path / "broken.mp4").write_text("no video")
    with pytest.raises(VideoDecodeError):
        write_sheet(uri, tmp_path / "broken.mp4", tmp_path / "broken.png")


def test_encoders_without_context_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match="no context tokens"):
        load_contextual("toy:0")
