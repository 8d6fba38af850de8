"""Scoring of stored TSEs without labels, and predictions as text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ConfigError, StoreVersionError
from ..kernels import weighted_dtw

if TYPE_CHECKING:
    from ..store import Store
    from ..train import DejaVidHead

BATCH = 256  # videos
# Of the features, in the first pass of the search for the best class only.
_FIRST_PASS = 0.25
# Relative error that float32 sums of positive terms stay far below.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Prediction:
    """What the head says of one video.

    Attributes:
        video_id: its id in the store, or its path.
        top: best classes and their probabilities, best first; the probability is None where it was not
            computed; empty where there is no TSE.
        n_steps: of its TSE.
        failure: why there is no TSE.
    """

    video_id: str
    top: tuple[tuple[str, float | None], ...]
    n_steps: int
    failure: str | None = None


def is_store(path: str) -> bool:
    """Whether a path is the folder of a store."""
    return Path(path, "STORE.json").is_file()


@torch.no_grad()
def predict_stored(
    head: DejaVidHead, store: Store, ids: Sequence[str], *, top: int = 5, early_abandon: bool = False
) -> list[Prediction]:
    """Scores TSEs of a store, in the order of `ids`.

    Args:
        top: classes per video.
        early_abandon: only the best class and no probability, by `best_class`.

    Raises:
        StoreVersionError: the store was not made as the head's training store was.
        StoreError: an id is not in it.
    """
    made_for = head.fingerprints.get("extract_fp")
    if made_for != store.fingerprint:
        raise StoreVersionError(
            f"the head was trained on features {made_for}, the store holds {store.fingerprint}",
            where=str(store.path),
            fix="use the store of the head's run, or extract the videos with the head's settings",
        )
    head.eval()
    found = []
    for batch in store.batches(ids, BATCH):
        values, offsets = torch.from_numpy(batch.values), torch.from_numpy(batch.offsets)
        best: list[list[tuple[str, float | None]]]
        if early_abandon:
            best = [[(head.class_names[c], None)] for c in best_class(head, values, offsets).tolist()]
        else:
            ranked = head.predict_proba(values, offsets).topk(min(top, len(head.class_names)), dim=1)
            pairs = zip(ranked.indices.tolist(), ranked.values.tolist(), strict=True)
            best = [[(head.class_names[c], p) for c, p in zip(*row, strict=True)] for row in pairs]
        for video_id, classes, n_steps in zip(batch.ids, best, offsets.diff().tolist(), strict=True):
            found.append(Prediction(video_id, tuple(classes), n_steps))
    return found


@torch.no_grad()
def best_class(head: DejaVidHead, values: Tensor, offsets: Tensor) -> Tensor:
    """The nearest class of each TSE without the distances to all, exactly.

    All terms of a distance are positive, so a distance over some of the features is a lower bound of the
    whole. A first pass computes it over the quarter of the features that weighs most; a second one completes
    the class of the smallest bound, and then only the classes whose bound is below that distance.

    Args:
        values: (S, F) TSE steps, end to end.
        offsets: (N + 1,) where each TSE begins.

    Returns:
        (N,) int64 classes; of equal distances, the lower index.
    """
    steps, classes = head.inputs(values, offsets), range(len(head.class_names))
    bounds = _distances(head, steps, offsets, list(classes), _heaviest_features(head)) * (1 - _ROUNDING)
    best = bounds.argmin(1)
    nearest = torch.full((len(bounds),), torch.inf)
    for c in sorted(set(best.tolist())):
        rows = (best == c).nonzero()[:, 0]
        nearest[rows] = _distances(head, *_subset(steps, offsets, rows), [c])[:, 0]
    first = best.clone()
    for c in classes:
        rows = ((bounds[:, c] <= nearest) & (first != c)).nonzero()[:, 0]
        if len(rows) > 0:
            distance = _distances(head, *_subset(steps, offsets, rows), [c])[:, 0]
            better = (distance < nearest[rows]) | ((distance == nearest[rows]) & (best[rows] > c))
            best[rows[better]], nearest[rows[better]] = c, distance[better]
    return best


def check_format(kind: str) -> None:
    """Raises ConfigError unless `to_text` knows the format."""
    if kind not in _WRITERS:
        raise ConfigError(f"format {kind!r}", where="--format", fix=f"choose among {', '.join(_WRITERS)}")


def to_text(predictions: Sequence[Prediction], kind: str) -> str:
    """Predictions as "table" for people, "jsonl" (a line per video) or "csv" (a row per video and class)."""
    check_format(kind)
    return _WRITERS[kind](predictions)


def _as_table(predictions: Sequence[Prediction]) -> str:
    width = max((len(p.video_id) for p in predictions), default=0)
    return "".join(f"{p.video_id:<{width}}  {_described(p)}\n" for p in predictions)


def _described(prediction: Prediction) -> str:
    if prediction.failure is not None:
        return f"failed: {prediction.failure}"
    return "  ".join(name if p is None else f"{name} {100 * p:.1f} %" for name, p in prediction.top)


def _as_jsonl(predictions: Sequence[Prediction]) -> str:
    def record(p: Prediction) -> dict[str, object]:
        return {**asdict(p), "top": [{"class": name, "probability": share} for name, share in p.top]}

    return "".join(json.dumps(record(p), ensure_ascii=False) + "\n" for p in predictions)


def _as_csv(predictions: Sequence[Prediction]) -> str:
    """One row per video and class; a failed video has one row without a class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("video_id", "rank", "class", "probability", "n_steps", "failure"))
    for p in predictions:
        for rank, (name, share) in enumerate(p.top, start=1):
            writer.writerow((p.video_id, rank, name, share, p.n_steps, ""))
        if p.failure is not None:
            writer.writerow((p.video_id, "", "", "", p.n_steps, p.failure))
    return text.getvalue()


_WRITERS: dict[str, Callable[[Sequence[Prediction]], str]] = {
    "table": _as_table,
    "jsonl": _as_jsonl,
    "csv": _as_csv,
}


def _heaviest_features(head: DejaVidHead) -> Tensor:
    weights = head.log_weights.exp().sum((0, 1))
    return weights.topk(max(1, int(_FIRST_PASS * len(weights)))).indices.sort().values


def _distances(
    head: DejaVidHead, steps: Tensor, offsets: Tensor, classes: Sequence[int], columns: Tensor | None = None
) -> Tensor:
    """(N, len(classes)) distances, over some features only if `columns` are given."""
    parts = [steps, head.centroids[classes], head.log_weights[classes]]
    if columns is not None:
        parts = [part[..., columns].contiguous() for part in parts]
    values, centroids, log_weights = parts
    return weighted_dtw(
        values, offsets, centroids, log_weights, step_pattern=head.step_pattern, backend=head.backend
    ).cpu()


def _subset(steps: Tensor, offsets: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The packed TSEs at `rows`."""
    lengths = offsets.diff()[rows]
    packed = torch.cat([offsets.new_zeros(1), lengths.cumsum(0)])
    place = torch.arange(int(packed[-1])) + torch.repeat_interleave(offsets[rows] - packed[:-1], lengths)
    return steps[place], packed
