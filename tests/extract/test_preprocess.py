"""Resizing and crops: the official rules, against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dejavid.extract.encoders import ClipSpec
from dejavid.extract.plan import Geometry, Recipe
from dejavid.extract.preprocess import crop_offsets, resize, resized_size
from dejavid.extract.presets import Windowing


def _bilinear(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float64]:
    """Half-pixel centres, no antialiasing, edges repeated: what OpenCV calls INTER_LINEAR."""

    def axis(size: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        place = np.clip((np.arange(new) + 0.5) * size / new - 0.5, 0, size - 1)
        low = np.floor(place).astype(int)
        return low, np.minimum(low + 1, size - 1), place - low

    y0, y1, wy = axis(image.shape[0], height)
    x0, x1, wx = axis(image.shape[1], width)
    wy, wx = wy[:, None, None], wx[None, :, None]
    rows = image[y0] * (1 - wy) + image[y1] * wy
    return rows[:, x0] * (1 - wx) + rows[:, x1] * wx


@pytest.mark.parametrize(
    ("size", "new"), [((240, 320), (224, 298)), ((97, 61), (40, 33)), ((20, 30), (50, 64))]
)
def test_resize_is_bilinear_without_antialiasing(size: tuple[int, int], new: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    small = resize(image, *new, ClipSpec(16, 224, 224))
    assert small.dtype == np.uint8
    assert np.abs(small - _bilinear(image, *new)).max() <= 1.01  # uint8 arithmetic rounds twice


def test_antialiasing_is_the_encoders_choice() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    plain, smooth = (resize(stripes, 16, 16, ClipSpec(1, 16, 16, antialias=on)) for on in (False, True))
    assert np.ptp(smooth[:, 2:-2].astype(int)) < 30  # grey
    assert not np.array_equal(plain, smooth)


@pytest.mark.parametrize(
    ("size", "crops", "expected"),
    [
        ((240, 320), "center", (224, 298)),
        ((360, 202), "center", (399, 224)),
        ((224, 398), "three", (224, 398)),
        ((240, 320), "squash", (224, 224)),
    ],
)
def test_the_short_side_rules(size: tuple[int, int], crops: str, expected: tuple[int, int]) -> None:
    assert resized_size(*size, ClipSpec(16, 224, 224), crops) == expected


def test_a_short_side_larger_than_the_crop() -> None:
    spec = ClipSpec(1, 224, 224, short_side=256)
    assert resized_size(480, 640, spec, "center") == (256, 341)
    assert crop_offsets(256, 341, spec, "center") == [(16, 58)]


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (50, 50)])
@pytest.mark.parametrize("crops", ["center", "three"])
@pytest.mark.parametrize("official", ["none", "dense"])
def test_crops_of_a_prepared_frame_are_those_of_the_whole(
    size: tuple[int, int], crops: str, official: str
) -> None:
    """Only the region that crops show travels; inside it they show what they showed before."""
    spec = ClipSpec(16, 32, 32)
    recipe = Recipe(spec, Windowing(16, 1, 1, crops=crops), official)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    geometry = Geometry(recipe, *size)
    prepared = geometry.prepare(image)
    whole = resize(image, *resized_size(*size, spec, crops), spec)
    corners = crop_offsets(*whole.shape[:2], spec, crops)
    corners += crop_offsets(*whole.shape[:2], spec, "three") if official != "none" else []
    assert len(corners) == geometry.n_step_crops + geometry.n_official_crops
    for (y, x), (top, left) in zip(corners, geometry.offsets, strict=True):
        expected = whole[y : y + 32, x : x + 32]
        assert expected.shape == (32, 32, 3)
        np.testing.assert_array_equal(prepared[top : top + 32, left : left + 32], expected)
