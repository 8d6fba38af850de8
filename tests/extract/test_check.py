"""`encoder check`: what it reports, and the official protocol's top-1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numbered_videos import write_video

from dejavid.config import Config, load_config
from dejavid.errors import ConfigError
from dejavid.extract import Row, load_encoder, write_manifest
from dejavid.extract import check as check_module
from dejavid.extract.check import check_encoder

ENCODER = "'toy:0?frames=16&classes=3'"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(check_module, "_TIMED_S", 0.05)
    colours = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250]], np.uint8)
    rows = []
    encoder = load_encoder("toy:0?frames=16&classes=3", device="cpu")
    for k, colour in enumerate(colours):
        picture = np.broadcast_to(colour, (48, 64, 3)).copy()
        write_video(tmp_path / f"{k}.mp4", 20, size=(64, 48), frame=lambda _, p=picture: p)
        clip = torch.from_numpy(picture[:32, :32]).expand(1, 16, 32, 32, 3)
        answer = int(encoder.encode(clip).logits.argmax())
        rows.append(Row(f"v{k}", f"{k}.mp4", f"class {answer}", "val"))
    rows.append(Row("train", "0.mp4", "class 0", "train"))
    write_manifest(tmp_path / "m.csv", rows)
    overrides = [
        f"manifest.path={tmp_path / 'm.csv'}",
        f"extract.encoder={ENCODER}",
        "extract.device=cpu",
        "extract.clip_len=16",
        "extract.frame_interval=1",
        "extract.workers=0",
        "extract.official_views=dense",
    ]
    return load_config(None, overrides)


def test_what_is_reported(config: Config) -> None:
    found = check_encoder(config)
    assert (found.feature_dim, found.num_classes, found.input["frames"]) == (16, 3, 16)
    assert found.n_parameters == (96 * 16 + 16) + (16 * 3 + 3)
    assert len(found.digest) == 64
    assert found.id.startswith(f"toy-{found.digest[:16]}")
    assert found.clips_per_s > 0
    assert found.peak_bytes > 0
    assert found.top1 is None


def test_top1_of_the_official_protocol(config: Config, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("class 0\nclass 1\nclass 2\n")
    found = check_encoder(config, classes=tmp_path / "classes.txt", progress=False)
    assert (found.top1, found.n_scored, found.n_split) == (1.0, 3, 3)
    (tmp_path / "classes.txt").write_text("class 1\nclass 2\nclass 0\n")  # another order: all wrong
    assert check_encoder(config, classes=tmp_path / "classes.txt", progress=False).top1 == 0.0


@pytest.mark.parametrize(
    ("text", "cause"), [("a\n", "1 class names"), ("a\nb\nc\n", "no class of the encoder")]
)
def test_classes_that_do_not_fit(config: Config, tmp_path: Path, text: str, cause: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ConfigError, match=cause):
        check_encoder(config, classes=tmp_path / "classes.txt", progress=False)
