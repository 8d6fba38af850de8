"""What reading a store gives: one TSE with all that is known of it, or a packed batch of many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .layout import Array

if TYPE_CHECKING:
    import pyarrow
    import torch


@dataclass(frozen=True)
class Tse:
    """The temporal sequence of embeddings of one video.

    Attributes:
        values: (T, F) float32.
        label, split: from the manifest; None without one.
        start_s, end_s: (T,) float64 seconds of each step.
        n_frames: frames that were decoded.
        status: "ok", or "short" when the file ended early.
        extras: further arrays, such as logits.
    """

    video_id: str
    values: Array
    label: str | None
    split: str | None
    start_s: Array
    end_s: Array
    n_frames: int
    status: str
    extras: Mapping[str, Array]

    def to_torch(self) -> torch.Tensor:
        """The values as a float32 tensor that shares their memory."""
        import torch

        return torch.from_numpy(self.values)

    def to_arrow(self) -> pyarrow.Table:
        """One row per step: start_s, end_s and the embedding as a fixed-size list of float32."""
        import pyarrow as pa

        flat = pa.array(self.values.reshape(-1))
        embedding = pa.FixedSizeListArray.from_arrays(flat, self.values.shape[1])
        facts = {"video_id": self.video_id, "label": self.label or "", "split": self.split or ""}
        table = pa.table({"start_s": self.start_s, "end_s": self.end_s, "embedding": embedding})
        return table.replace_schema_metadata(facts)


@dataclass(frozen=True)
class Batch:
    """Packed TSEs: video i is `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        ids: N video ids.
        values: (S, F), S the sum of the lengths.
        offsets: (N + 1,) int64.
    """

    ids: list[str]
    values: Array
    offsets: Array
