"""Window settings that belong together, by name; any key of the configuration replaces its value here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from ..config import ExtractSection
from ..errors import ConfigError
from .windows import Indices, Tail, plan_official_views, plan_spans, plan_windows, to_frames


@dataclass(frozen=True)
class Windowing:
    """How a video becomes steps, and what one step holds."""

    clip_len: int
    frame_interval: float
    hop: float
    unit: Literal["frames", "seconds"] = "frames"
    spans: tuple[int, ...] = ()
    tail: Tail = "drop"
    max_steps: int = 0
    crops: Literal["center", "three", "squash"] = "center"
    merge_views: Literal["mean", "concat"] = "mean"
    rows: Literal["embedding", "embedding+logits", "embedding+probabilities"] = "embedding"

    def plan(self, n_frames: int, fps: float) -> Indices:
        """Frame indices (T, S, clip_len) of a video; see `windows`."""
        hop = to_frames(self.hop, self.unit, fps)
        limit = self.max_steps or None
        if self.spans:
            return plan_spans(n_frames, clip_len=self.clip_len, spans=self.spans, hop=hop, max_steps=limit)
        interval = to_frames(self.frame_interval, self.unit, fps)
        return plan_windows(
            n_frames,
            clip_len=self.clip_len,
            frame_interval=interval,
            hop=hop,
            tail=self.tail,
            max_steps=limit,
        )

    def plan_official(self, n_frames: int, fps: float, kind: Literal["dense", "sparse"]) -> Indices:
        """Frame indices (views, 1, 16) of the encoder's own test protocol."""
        interval = to_frames(self.frame_interval, self.unit, fps)
        return plan_official_views(n_frames, kind=kind, frame_interval=interval)

    @property
    def n_views(self) -> int:
        """Encodings of one step: spans times crops."""
        return max(len(self.spans), 1) * (3 if self.crops == "three" else 1)

    def facts(self) -> dict[str, Any]:
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


# Where the values come from: the clips VideoMAE V2's fine-tuned models were trained on (16 x 4 for Kinetics,
# 16 x 2 for HMDB51, 16 spread over the clip for Something-Something), and the longest TSEs of the paper.
PRESETS: dict[str, Windowing] = {
    "demo": Windowing(clip_len=2, frame_interval=4, hop=4),
    "k400": Windowing(clip_len=16, frame_interval=4, hop=8, max_steps=33, rows="embedding+logits"),
    "hmdb51": Windowing(clip_len=16, frame_interval=2, hop=4, max_steps=33, rows="embedding+logits"),
    "ssv2": Windowing(
        clip_len=16,
        frame_interval=1,
        hop=2,
        spans=(16, 32, 48, 64),
        max_steps=150,
        merge_views="concat",
        rows="embedding+logits",
    ),
    "thumos": Windowing(clip_len=16, frame_interval=1, hop=4, crops="squash"),
}


def resolve_windowing(section: ExtractSection) -> Windowing:
    """The preset of the section with the keys that the section sets itself.

    Raises:
        ConfigError: distances that must be whole frames are not.
    """
    preset = PRESETS[section.preset]
    names = [field.name for field in fields(Windowing)]
    given = {name: value for name in names if (value := getattr(section, name)) is not None}
    windowing = replace(preset, **given)
    for name in ("frame_interval", "hop"):
        value = getattr(windowing, name)
        if windowing.unit == "frames" and value != int(value):
            raise ConfigError(
                f"extract.{name} = {value} is no whole number of frames",
                where=f"extract.{name}",
                fix=f"--set extract.{name}={max(1, round(value))}, or extract.unit=seconds",
            )
    return windowing
