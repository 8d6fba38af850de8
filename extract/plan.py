"""What one video needs: which frames, cut where, and which of them make up each clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .encoders.base import ClipSpec
from .preprocess import Frames, crop_offsets, resize, resized_size
from .presets import Windowing
from .windows import Indices


@dataclass(frozen=True)
class Recipe:
    """How every video of a run is treated; travels to the decode workers."""

    spec: ClipSpec
    windowing: Windowing
    official: Literal["none", "dense", "sparse"] = "none"

    def geometry(self, height: int, width: int) -> Geometry:
        """Where the crops lie in a video's frames of this size, and how they are prepared."""
        return Geometry(self, height, width)


class FramePlan:
    """Which frames of a video of known length are needed, and where.

    Attributes:
        steps: (T, S, clip_len) frame indices of the windows.
        official: (windows, 1, 16) frame indices of the encoder's own test protocol; empty unless asked for.
        wanted: the frames in any of them, ascending.
    """

    def __init__(self, recipe: Recipe, n_frames: int, fps: float) -> None:
        self.fps = fps
        self.steps = recipe.windowing.plan(n_frames, fps)
        self.official: Indices = np.empty((0, 1, 16), np.int64)
        if recipe.official != "none":
            self.official = recipe.windowing.plan_official(n_frames, fps, recipe.official)
        self.wanted: Indices = np.unique(np.concatenate([self.steps.reshape(-1), self.official.reshape(-1)]))

    def same_as(self, other: FramePlan) -> bool:
        return np.array_equal(self.steps, other.steps) and np.array_equal(self.official, other.official)

    def step_times(self, times_s: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Start and end of each step in seconds, from the times of the wanted frames."""
        flat = self.steps.reshape(len(self.steps), -1)
        first, last = (np.searchsorted(self.wanted, edge) for edge in (flat.min(axis=1), flat.max(axis=1)))
        return times_s[first], times_s[last] + 1 / self.fps


class Geometry:
    """Where the crops lie in frames of one size.

    Attributes:
        offsets: (y, x) of every crop in a prepared frame: those of the steps, then the official ones.
    """

    def __init__(self, recipe: Recipe, height: int, width: int) -> None:
        spec, crops = recipe.spec, recipe.windowing.crops
        self._spec = spec
        self._size = resized_size(height, width, spec, crops)
        steps = crop_offsets(*self._size, spec, crops)
        official = crop_offsets(*self._size, spec, "three") if recipe.official != "none" else []
        corners = [*steps, *official]
        # Only the part of the frames that some crop shows travels to the encoder.
        top, left = (min(corner[axis] for corner in corners) for axis in (0, 1))
        bottom, right = (max(corner[axis] for corner in corners) for axis in (0, 1))
        self._region = (slice(top, bottom + spec.height), slice(left, right + spec.width))
        self.offsets = [(y - top, x - left) for y, x in corners]
        self.n_step_crops = len(steps)
        self.n_official_crops = len(official)

    def prepare(self, image: Frames) -> Frames:
        """A decoded frame resized, and cut to the region that the crops show."""
        return np.ascontiguousarray(resize(image, *self._size, self._spec)[self._region])


@dataclass(frozen=True)
class Clips:
    """The encoder's inputs for one video, in the order in which their last frame arrives.

    Args:
        frames: (U, frames per clip) frame indices.
        crops: (U,) places in `Geometry.offsets`.
        slots: (U,) where the result belongs, see `plan_clips`.
    """

    frames: Indices
    crops: Indices
    slots: Indices


def plan_clips(plan: FramePlan, geometry: Geometry, *, per_frame: bool) -> Clips:
    """Lists the clips of a video.

    Slots count the steps' clips first, (step * spans + span) * crops + crop, then the official views,
    segment outer and crop inner. With `per_frame` (an image encoder) every wanted frame is a clip of its
    own and slots are (place in `wanted`) * crops + crop.
    """
    n_crops = geometry.n_step_crops
    windows = plan.wanted[:, None] if per_frame else plan.steps.reshape(-1, plan.steps.shape[2])
    frames = np.repeat(windows, n_crops, axis=0)
    crops = np.tile(np.arange(n_crops), len(windows))
    if len(plan.official):
        frames = np.concatenate([frames, np.repeat(plan.official[:, 0], geometry.n_official_crops, axis=0)])
        places = n_crops + np.arange(geometry.n_official_crops)
        crops = np.concatenate([crops, np.tile(places, len(plan.official))])
    order = np.argsort(frames.max(axis=1), kind="stable")
    return Clips(frames[order], crops[order], order)
