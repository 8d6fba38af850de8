"""Window arithmetic against plain loops, and the official views against what the official datasets read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dejavid.errors import ConfigError
from dejavid.extract.encoders import ClipSpec
from dejavid.extract.preprocess import crop_offsets
from dejavid.extract.windows import (
    plan_official_views,
    plan_spans,
    plan_windows,
    to_frames,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "videomae" / "official_views.json"


def _brute_force(
    n: int, clip_len: int, interval: int, hop: int, tail: str, max_steps: int | None
) -> list[list[int]]:
    """The definition, one frame at a time."""
    span = (clip_len - 1) * interval + 1
    starts = [0]
    while starts[-1] + hop + span <= n:
        starts.append(starts[-1] + hop)
    full = len(starts)
    covered = starts[-1] + span
    if tail == "pad" and covered < n and starts[-1] + hop < n:
        starts.append(starts[-1] + hop)
    if tail == "shift" and covered < n:
        starts.append(n - span)
    shifted = tail == "shift" and len(starts) > full
    if max_steps is not None and len(starts) > max_steps:
        last = n - span if tail == "drop" else starts[-1]
        grid = [g for g in range(n) if g % interval == 0 and g <= last]
        picks = [grid[k * (len(grid) - 1) // max(max_steps - 1, 1)] for k in range(max_steps)]
        if shifted and max_steps > 1:
            picks[-1] = n - span
        starts = picks
    windows = []
    for start in starts:
        frames = []
        for k in range(clip_len):
            frame = start + k * interval
            while frame >= n:
                frame -= interval
            frames.append(frame)
        windows.append(frames)
    return windows


@pytest.mark.parametrize("tail", ["drop", "pad", "shift"])
@pytest.mark.parametrize("max_steps", [None, 1, 2, 3, 7])
@pytest.mark.parametrize(("clip_len", "interval"), [(1, 1), (1, 3), (2, 1), (4, 1), (4, 2), (3, 3)])
def test_every_length_hop_and_tail(tail: str, max_steps: int | None, clip_len: int, interval: int) -> None:
    span = (clip_len - 1) * interval + 1
    for n in range(1, 3 * span + 2):
        for hop in range(1, span + 3):
            plan = plan_windows(
                n, clip_len=clip_len, frame_interval=interval, hop=hop, tail=tail, max_steps=max_steps
            )
            expected = _brute_force(n, clip_len, interval, hop, tail, max_steps)
            assert plan[:, 0].tolist() == expected, (n, hop)


_plans = st.fixed_dictionaries(
    {
        "n_frames": st.integers(1, 400),
        "clip_len": st.integers(1, 20),
        "frame_interval": st.integers(1, 6),
        "hop": st.integers(1, 70),
        "tail": st.sampled_from(["drop", "pad", "shift"]),
        "max_steps": st.none() | st.integers(1, 40),
    }
)


@given(_plans)
def test_plans_are_never_empty_never_outside_and_in_order(arguments: dict[str, object]) -> None:
    plan = plan_windows(**arguments)
    n, limit = arguments["n_frames"], arguments["max_steps"]
    assert plan.ndim == 3
    assert len(plan) >= 1
    assert limit is None or len(plan) <= limit
    assert plan.min() >= 0
    assert plan.max() < n
    assert (plan[1:, 0, 0] >= plan[:-1, 0, 0]).all()
    assert (plan[..., 1:] >= plan[..., :-1]).all()
    if arguments["tail"] == "shift" and limit is None and n >= plan.shape[2]:
        span = (arguments["clip_len"] - 1) * arguments["frame_interval"] + 1
        assert n < span or plan.max() == n - 1


@given(st.integers(1, 300), st.integers(1, 20), st.integers(1, 9), st.none() | st.integers(1, 30))
def test_spans_lie_around_their_centres(n: int, clip_len: int, hop: int, limit: int | None) -> None:
    spans = (16, 32, 64)
    plan = plan_spans(n, clip_len=clip_len, spans=spans, hop=hop, max_steps=limit)
    assert plan.shape[1:] == (3, clip_len)
    assert plan.min() >= 0
    assert plan.max() < n
    if limit is None:
        assert len(plan) == len(range(0, n, hop))
        for step, centre in enumerate(range(0, n, hop)):
            for place, span in enumerate(spans):
                length = min(span, n)
                start = min(max(centre - length // 2, 0), n - length)
                frames = [start + k * length // clip_len for k in range(clip_len)]
                assert plan[step, place].tolist() == frames


@pytest.mark.parametrize(
    ("n_frames", "steps"), [(300, 30), (250, 24)]
)  # the counts the Kinetics preset is meant to give
def test_steps_of_the_kinetics_preset(n_frames: int, steps: int) -> None:
    plan = plan_windows(n_frames, clip_len=16, frame_interval=4, hop=8, max_steps=33)
    assert len(plan) == steps


@pytest.mark.parametrize(
    "case", json.loads(GOLDEN.read_text()), ids=lambda c: f"{c['dataset']}-{c['num_frames']}"
)
def test_official_views_and_crops(case: dict[str, object]) -> None:
    kind, interval = {
        "k400_dense_r4_5x3": ("dense", 4),
        "hmdb51_dense_r2_5x3": ("dense", 2),
        "ssv2_rawframes_2x3": ("sparse", 1),
    }[case["dataset"]]
    plan = plan_official_views(case["num_frames"], kind=kind, frame_interval=interval)[:, 0]
    crops = crop_offsets(case["height"], case["width"], ClipSpec(16, 224, 224), "three")
    views = [
        {"segment": s, "crop": c, "frames": frames, "x0": x, "y0": y}
        for s, frames in enumerate(plan.tolist())
        for c, (y, x) in enumerate(crops)
    ]
    assert views == case["views"]


def test_seconds_become_frames_at_the_videos_rate() -> None:
    assert to_frames(0.25, "seconds", 30.0) == 8
    assert to_frames(0.25, "seconds", 2.0) == 1  # never 0
    assert to_frames(7, "frames", 30.0) == 7


@pytest.mark.parametrize(
    "wrong", [{"n_frames": 0}, {"clip_len": 0}, {"hop": -1}, {"tail": "wrap"}, {"max_steps": 0}]
)
def test_arguments_that_make_no_plan(wrong: dict[str, object]) -> None:
    arguments = {"n_frames": 9, "clip_len": 2, "frame_interval": 1, "hop": 1, **wrong}
    with pytest.raises(ConfigError):
        plan_windows(**arguments)
