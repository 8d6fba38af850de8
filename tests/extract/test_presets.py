"""Presets: the widths and step counts they are meant to give, and what overrides them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest

from dejavid.config import ExtractSection, load_config
from dejavid.errors import ConfigError
from dejavid.extract.encoders import ClipSpec
from dejavid.extract.plan import Recipe
from dejavid.extract.presets import PRESETS, resolve_windowing
from dejavid.extract.run import row_dim


def test_every_preset_can_be_configured() -> None:
    assert set(get_args(ExtractSection.model_fields["preset"].annotation)) == set(PRESETS)


@pytest.mark.parametrize(
    ("preset", "classes", "width"),
    [("k400", 400, 1808), ("hmdb51", 51, 1459), ("ssv2", 174, 6328), ("thumos", 710, 1408)],
)
def test_width_of_a_step_of_the_giant(preset: str, classes: int, width: int) -> None:
    encoder = SimpleNamespace(feature_dim=1408, num_classes=classes)
    assert row_dim(Recipe(ClipSpec(16, 224, 224), PRESETS[preset]), encoder) == width


@pytest.mark.parametrize(
    ("preset", "n_frames", "steps"),
    [("k400", 300, 30), ("k400", 250, 24), ("k400", 3000, 33), ("hmdb51", 95, 17), ("ssv2", 45, 23)],
)
def test_steps_of_typical_videos(preset: str, n_frames: int, steps: int) -> None:
    assert len(PRESETS[preset].plan(n_frames, fps=25.0)) == steps


def test_keys_override_their_preset() -> None:
    section = load_config(None, ["extract.preset=k400", "extract.hop=4", "extract.max_steps=0"]).extract
    windowing = resolve_windowing(section)
    assert (windowing.clip_len, windowing.frame_interval, windowing.hop) == (16, 4, 4)
    assert len(windowing.plan(3000, fps=25.0)) == (3000 - 61) // 4 + 1
    single = load_config(None, ["extract.preset=ssv2", "extract.spans=[]"]).extract
    assert resolve_windowing(single).plan(64, fps=12.0).shape[1:] == (1, 16)


def test_seconds_follow_the_rate_of_the_video() -> None:
    overrides = [
        "extract.unit=seconds",
        "extract.clip_len=16",
        "extract.frame_interval=0.125",
        "extract.hop=0.25",
    ]
    windowing = resolve_windowing(load_config(None, overrides).extract)
    slow, fast = windowing.plan(80, fps=8.0), windowing.plan(320, fps=32.0)
    np.testing.assert_array_equal(fast, 4 * slow)


@pytest.mark.parametrize("key", ["hop", "frame_interval"])
def test_frames_are_whole(key: str) -> None:
    with pytest.raises(ConfigError, match="no whole number of frames") as caught:
        resolve_windowing(load_config(None, [f"extract.{key}=2.5"]).extract)
    assert caught.value.where == f"extract.{key}"
