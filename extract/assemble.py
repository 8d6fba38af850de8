"""One video between decoder and store: frames in, clips out; encoded clips in, TSE out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .plan import FramePlan, Recipe, plan_clips

Floats = NDArray[np.float32]


class Clip(NamedTuple):
    """One input of the encoder: uint8 (T, H, W, 3), and where its result belongs."""

    owner: Assembly
    slot: int
    pixels: Tensor


@dataclass(frozen=True)
class TseRow:
    """What the store gets of one video."""

    values: Floats
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    extras: dict[str, Floats]


class Assembly:
    """Holds the frames that clips still need, and the vectors that steps still need.

    Args:
        recipe: of the run.
        n_frames, fps, height, width: of the video.
    """

    def __init__(self, recipe: Recipe, n_frames: int, fps: float, height: int, width: int) -> None:
        self._plan = FramePlan(recipe, n_frames, fps)
        self._geometry = recipe.geometry(height, width)
        self._spec = recipe.spec
        per_frame = recipe.spec.frames == 1
        self._clips = plan_clips(self._plan, self._geometry, per_frame=per_frame)
        # A frame below this is not needed by clip u or any later one.
        first = self._clips.frames.min(axis=1)
        self._oldest_needed = np.minimum.accumulate(first[::-1])[::-1]
        self._next_clip = 0
        self._frames: dict[int, Tensor] = {}
        self._times: list[NDArray[np.float64]] = []
        self._n_seen = 0
        concat = recipe.windowing.merge_views == "concat"
        pool = _FramePool if per_frame else _ClipPool
        self._pool = pool(self._plan, self._geometry.n_step_crops, concat)
        n_official = len(self._plan.official) * self._geometry.n_official_crops
        self._official: list[Floats | None] = [None] * n_official
        self._n_results = 0

    def add_frames(self, times_s: NDArray[np.float64], pixels: Tensor) -> list[Clip]:
        """Takes the next wanted frames, uint8 (n, H, W, 3); returns the clips they complete."""
        indices = self._plan.wanted[self._n_seen : self._n_seen + len(pixels)].tolist()
        self._frames.update(zip(indices, pixels, strict=True))
        self._times.append(times_s)
        self._n_seen += len(indices)
        ready: list[Clip] = []
        clips, last = self._clips, indices[-1]
        while self._next_clip < len(clips.slots) and clips.frames[self._next_clip].max() <= last:
            ready.append(self._cut(self._next_clip))
            self._next_clip += 1
        done = self._next_clip == len(clips.slots)
        oldest = last + 1 if done else int(self._oldest_needed[self._next_clip])
        for index in [index for index in self._frames if index < oldest]:
            del self._frames[index]
        return ready

    def _cut(self, number: int) -> Clip:
        y, x = self._geometry.offsets[self._clips.crops[number]]
        window = torch.stack([self._frames[index] for index in self._clips.frames[number].tolist()])
        pixels = window[:, y : y + self._spec.height, x : x + self._spec.width]
        return Clip(self, int(self._clips.slots[number]), pixels)

    def put(self, slot: int, vector: Floats, probabilities: Floats | None) -> None:
        """Takes the result of one clip; results come in the order of the clips."""
        first_official = len(self._clips.slots) - len(self._official)
        if slot >= first_official:
            self._official[slot - first_official] = probabilities
        else:
            self._pool.put(slot, vector)
        self._n_results += 1

    @property
    def complete(self) -> bool:
        """Whether every clip has its result."""
        return self._n_results == len(self._clips.slots)

    def finish(self) -> TseRow:
        """The TSE, once `complete`."""
        start_s, end_s = self._plan.step_times(np.concatenate(self._times))
        official = [view for view in self._official if view is not None]
        extras = {"official_probabilities": np.stack(official)} if official else {}
        return TseRow(self._pool.values(), start_s, end_s, extras)


class _ClipPool:
    """Vectors of whole clips: a step is the mean or the concatenation of its views."""

    def __init__(self, plan: FramePlan, n_crops: int, concat: bool) -> None:
        self._views = plan.steps.shape[1] * n_crops
        self._concat = concat
        self._waiting: dict[int, dict[int, Floats]] = {}
        self._steps: list[Floats | None] = [None] * len(plan.steps)

    def put(self, slot: int, vector: Floats) -> None:
        step, view = divmod(slot, self._views)
        views = self._waiting.setdefault(step, {})
        views[view] = vector
        if len(views) == self._views:
            self._steps[step] = merge_views(np.stack([views[v] for v in range(self._views)]), self._concat)
            del self._waiting[step]

    def values(self) -> Floats:
        return np.stack([step for step in self._steps if step is not None])


class _FramePool:
    """Vectors of single frames, each encoded once: a span is the mean over its frames, then as above."""

    def __init__(self, plan: FramePlan, n_crops: int, concat: bool) -> None:
        self._plan = plan
        self._n_crops = n_crops
        self._concat = concat
        self._vectors: dict[int, list[Floats]] = {}
        self._last = plan.steps.reshape(len(plan.steps), -1).max(axis=1)
        first = plan.steps.reshape(len(plan.steps), -1).min(axis=1)
        self._oldest_needed = np.minimum.accumulate(first[::-1])[::-1]
        self._steps: list[Floats] = []

    def put(self, slot: int, vector: Floats) -> None:
        place, crop = divmod(slot, self._n_crops)
        frame = int(self._plan.wanted[place])
        self._vectors.setdefault(frame, []).append(vector)
        if crop < self._n_crops - 1:
            return
        while len(self._steps) < len(self._last) and self._last[len(self._steps)] <= frame:
            self._steps.append(self._pool_step(self._plan.steps[len(self._steps)]))
        done = len(self._steps) == len(self._last)
        oldest = frame + 1 if done else int(self._oldest_needed[len(self._steps)])
        for old in [index for index in self._vectors if index < oldest]:
            del self._vectors[old]

    def _pool_step(self, spans: NDArray[np.int64]) -> Floats:
        views = [
            np.mean([self._vectors[int(frame)][crop] for frame in span], axis=0)
            for span in spans
            for crop in range(self._n_crops)
        ]
        return merge_views(np.stack(views), self._concat)

    def values(self) -> Floats:
        return np.stack(self._steps)


def merge_views(views: Floats, concat: bool) -> Floats:
    """(views, F) -> (F,) by the mean, or (views * F,)."""
    merged: Floats = views.reshape(-1) if concat else views.mean(axis=0)
    return merged
