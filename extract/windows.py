"""Which frames a window holds: pure index arithmetic, no video in sight.

A plan is an int64 array (T, S, clip_len) of frame indices: T steps of a TSE, S spans per step (1 unless
multi-span). Steps are ordered by time; every index lies in [0, n_frames). One picture says most of it,
clip_len 4, frame_interval 2, hop 4, 13 frames::

    frame   0 1 2 3 4 5 6 7 8 9 . . C
    step 0  x   x   x   x
    step 1          x   x   x   x
    step 2                  x   x   x   x      would need frame 14: dropped, padded or shifted
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError

Indices = NDArray[np.int64]
Tail = Literal["drop", "pad", "shift"]


def plan_windows(
    n_frames: int,
    *,
    clip_len: int,
    frame_interval: int,
    hop: int,
    tail: Tail = "drop",
    max_steps: int | None = None,
) -> Indices:
    """Windows of `clip_len` frames, `frame_interval` apart, starting every `hop` frames.

    A video shorter than one window gives one window that repeats its last frame on the grid 0,
    frame_interval, 2 frame_interval ... (the rule of VideoMAE's test sampler), so T >= 1 always.

    Args:
        n_frames: frames of the video, >= 1.
        clip_len: frames per window.
        frame_interval: source frames from one frame of a window to the next.
        hop: source frames from one window's start to the next.
        tail: the frames after the last full window: "drop" leaves them out, "pad" adds the window that
            starts one hop later and repeats its last frame, "shift" adds a window that ends at the end.
        max_steps: more windows than this become that many, their starts evenly spaced from the first to
            the last (rounded down to the grid, except a shifted last one); None: no limit.

    Returns:
        (T, 1, clip_len) frame indices.

    Raises:
        ConfigError: an argument is below 1, or `tail` is unknown.
    """
    _check_positive(n_frames=n_frames, clip_len=clip_len, frame_interval=frame_interval, hop=hop)
    if tail not in _LAST_START:
        raise ConfigError(f"tail {tail!r}", where="plan_windows", fix=f"one of {', '.join(_LAST_START)}")
    span = (clip_len - 1) * frame_interval + 1
    starts = np.arange(0, max(n_frames - span, 0) + 1, hop, dtype=np.int64)
    extra = _LAST_START[tail](n_frames, span, hop, int(starts[-1]))
    if extra is not None:
        starts = np.append(starts, extra)
    if max_steps is not None:
        _check_positive(max_steps=max_steps)
        if len(starts) > max_steps:
            # Dropping allows any start up to the last full window; the hop then no longer matters.
            last = max(n_frames - span, 0) if tail == "drop" else int(starts[-1])
            starts = _evenly_spaced(last, max_steps, frame_interval)
            if tail == "shift" and extra is not None and max_steps > 1:
                starts[-1] = extra
    return _clamp_to_grid(starts, n_frames, clip_len, frame_interval)[:, None, :]


def plan_spans(
    n_frames: int, *, clip_len: int, spans: tuple[int, ...], hop: int, max_steps: int | None = None
) -> Indices:
    """Several windows of different length around one centre, each sampled by `clip_len` uniform frames.

    Centres are 0, hop, 2 hop ... A window is moved inwards at the ends of the video and is the whole
    video when that is shorter. For encoders trained on frames spread over a whole clip.

    Returns:
        (T, len(spans), clip_len) frame indices.
    """
    _check_positive(
        n_frames=n_frames, clip_len=clip_len, hop=hop, **{f"spans[{i}]": s for i, s in enumerate(spans)}
    )
    centers = np.arange(0, n_frames, hop, dtype=np.int64)
    if max_steps is not None and len(centers) > max_steps:
        _check_positive(max_steps=max_steps)
        centers = _evenly_spaced(n_frames - 1, max_steps, 1)
    plans = []
    for span in spans:
        length = min(span, n_frames)
        starts = np.clip(centers - length // 2, 0, n_frames - length)
        plans.append(starts[:, None] + np.arange(clip_len) * length // clip_len)
    return np.stack(plans, axis=1)


def plan_official_views(n_frames: int, *, kind: Literal["dense", "sparse"], frame_interval: int) -> Indices:
    """The windows of VideoMAE V2's own test protocol, 16 frames each.

    "dense" (Kinetics, HMDB51): 5 windows evenly spaced on the grid of every `frame_interval`-th frame.
    "sparse" (Something-Something): 2 interleaved windows spread over the whole video.

    Returns:
        (5 or 2, 1, 16) frame indices.
    """
    _check_positive(n_frames=n_frames, frame_interval=frame_interval)
    clip_len = 16
    if kind == "dense":
        grid_len = math.ceil(n_frames / frame_interval)
        step = max((grid_len - clip_len) / 4, 0.0)
        starts = np.array([int(k * step) for k in range(5)], dtype=np.int64) * frame_interval
        return _clamp_to_grid(starts, n_frames, clip_len, frame_interval)[:, None, :]
    tick = n_frames / clip_len
    merged = sorted(int(view * tick / 2 + tick * j) for view in range(2) for j in range(clip_len))
    return np.array([merged[0::2], merged[1::2]], dtype=np.int64)[:, None, :]


def to_frames(value: float, unit: Literal["frames", "seconds"], fps: float) -> int:
    """A distance in whole frames, at least 1; seconds are rounded at the video's average rate."""
    return max(1, round(value * fps if unit == "seconds" else value))


def _no_tail(n_frames: int, span: int, hop: int, last: int) -> int | None:
    return None


def _padded_start(n_frames: int, span: int, hop: int, last: int) -> int | None:
    return last + hop if last + span < n_frames and last + hop < n_frames else None


def _shifted_start(n_frames: int, span: int, hop: int, last: int) -> int | None:
    return n_frames - span if last + span < n_frames else None


# tail -> start of the additional window, if there is one
_LAST_START: dict[str, Callable[[int, int, int, int], int | None]] = {
    "drop": _no_tail,
    "pad": _padded_start,
    "shift": _shifted_start,
}


def _evenly_spaced(last: int, count: int, grid: int) -> Indices:
    """`count` starts in [0, last], rounded down to multiples of `grid`; integers only, so exact."""
    steps = np.arange(count, dtype=np.int64)
    return steps * (last // grid) // max(count - 1, 1) * grid


def _clamp_to_grid(starts: Indices, n_frames: int, clip_len: int, frame_interval: int) -> Indices:
    """Frames of each window; those past the end repeat the window's last frame that exists."""
    last = (n_frames - 1 - starts) // frame_interval
    steps = np.minimum(np.arange(clip_len, dtype=np.int64), last[:, None])
    frames: Indices = starts[:, None] + steps * frame_interval
    return frames


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ConfigError(
                f"{name} = {value}", where="window plan", fix="give a whole number of at least 1"
            )
