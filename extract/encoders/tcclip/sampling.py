"""Which frames of a video TC-CLIP sees: one from each of `clip_len` equal segments.

A video of fewer frames repeats some of them, in order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ...plan import Recipe
from ...presets import Windowing
from ...windows import Indices
from ..base import ClipSpec


def spread_frames(n_frames: int, clip_len: int, n_clips: int = 1) -> Indices:
    """(n_clips, clip_len) indices at equal distances; one clip takes the middle of every segment.

    Clip j of n lies (j + 1/2) / n into each segment, so together the clips are spread evenly as well.
    """
    into = (np.arange(n_clips)[:, None] + 0.5) / n_clips
    return np.asarray((np.arange(clip_len) + into) * n_frames / clip_len, np.int64)


def random_frames(n_frames: int, clip_len: int, random: np.random.RandomState) -> Indices:
    """(clip_len,) indices, a random one of each segment, as the published models were trained and tested.

    Segments have a whole number of frames; what is left over at the end is never seen.
    """
    width = n_frames // clip_len
    if not width:
        return np.round(np.arange(clip_len) * n_frames / clip_len).astype(np.int64) % n_frames
    return np.asarray(np.arange(clip_len) * width + random.randint(width, size=clip_len), np.int64)


@dataclass(frozen=True)
class ViewSampling(Windowing):
    """Clips over the whole video in the place of windows.

    Args:
        n_clips: of one video.
        seed: of random frames; None: at equal distances.
    """

    n_clips: int = 1
    seed: int | None = None

    def plan(self, n_frames: int, fps: float) -> Indices:
        """(n_clips, 1, clip_len); a function of the length alone, as it is made more than once per video."""
        if self.seed is None:
            return spread_frames(n_frames, self.clip_len, self.n_clips)[:, None]
        random = np.random.RandomState((self.seed, n_frames))
        return np.stack([random_frames(n_frames, self.clip_len, random) for _ in range(self.n_clips)])[
            :, None
        ]


def view_recipe(
    spec: ClipSpec, n_clips: int = 1, crops: Literal["center", "three"] = "center", seed: int | None = None
) -> Recipe:
    """What is seen of a video: clips as in `ViewSampling`, and one or three crops of each."""
    if crops == "three":  # the published crops cover the whole short side
        spec = replace(spec, short_side=min(spec.height, spec.width))
    return Recipe(spec, ViewSampling(spec.frames, 1, 1, crops=crops, n_clips=n_clips, seed=seed))
