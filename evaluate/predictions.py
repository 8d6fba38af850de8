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
_FIRST_PASS = 0.25  # share of the features in the first pass of the search for the nearest class
_STILL_PAYS = 0.4  # share of the classes that may be left after it
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
        early_abandon: only the best class and no probability, by `NearestClass`.

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
    nearest = NearestClass(head)
    found = []
    for batch in store.batches(ids, BATCH):
        values, offsets = torch.from_numpy(batch.values), torch.from_numpy(batch.offsets)
        best: list[list[tuple[str, float | None]]]
        if early_abandon:
            best = [[(head.class_names[c], None)] for c in nearest(values, offsets).tolist()]
        else:
            ranked = head.predict_proba(values, offsets).topk(min(top, len(head.class_names)), dim=1)
            pairs = zip(ranked.indices.tolist(), ranked.values.tolist(), strict=True)
            best = [[(head.class_names[c], p) for c, p in zip(*row, strict=True)] for row in pairs]
        for video_id, classes, n_steps in zip(batch.ids, best, offsets.diff().tolist(), strict=True):
            found.append(Prediction(video_id, tuple(classes), n_steps))
    return found


class NearestClass:
    """Finds the nearest class of TSEs without the distances to all classes, exactly.

    All terms of a distance are positive, so a distance over some of the features is a lower bound of the
    whole. A first pass computes that bound for all classes, over the features that tell the classes apart
    most; then only the classes whose bound is not above the distance to the most promising one are completed.

    That pays where the nearest class is several times nearer than the others. Where it is not, the first pass
    rules nothing out; the search notices that in its first batch and from then on computes all distances.

    Args:
        head: in evaluation mode.
    """

    def __init__(self, head: DejaVidHead) -> None:
        self._head = head
        self._weights = head.log_weights.detach()
        self._centroids = head.centroids.detach()
        differences = (self._centroids - self._centroids.mean((0, 1))).abs()
        telling = (self._weights.exp() * differences).sum((0, 1))
        count = max(1, int(_FIRST_PASS * len(telling)))
        self._columns = telling.topk(count).indices.sort().values
        self._first = tuple(p[..., self._columns].contiguous() for p in (self._centroids, self._weights))
        self.pays = True

    @torch.no_grad()
    def __call__(self, values: Tensor, offsets: Tensor) -> Tensor:
        """(N,) int64 classes of N packed TSEs; of equal distances, the lower index."""
        steps = self._head.inputs(values, offsets)
        if not self.pays:
            return self._distances(steps, offsets, self._centroids, self._weights).argmin(1)
        bounds = self._distances(steps[:, self._columns].contiguous(), offsets, *self._first)
        bounds *= 1 - _ROUNDING
        nearest = torch.empty(len(bounds), dtype=torch.int64)
        n_completed = 0
        for n, bound in enumerate(bounds):
            tse = steps[offsets[n] : offsets[n + 1]]
            promising = bound.argmin()[None]
            distance = self._complete(tse, promising)[0]
            left = (bound <= distance).nonzero()[:, 0]  # ascending, and the promising one is among them
            n_completed += len(left)
            nearest[n] = left[self._complete(tse, left).argmin()] if len(left) > 1 else promising[0]
        self.pays = n_completed < _STILL_PAYS * bounds.numel()
        return nearest

    def _complete(self, tse: Tensor, classes: Tensor) -> Tensor:
        offsets = torch.tensor([0, len(tse)])
        return self._distances(tse, offsets, self._centroids[classes], self._weights[classes])[0]

    def _distances(self, steps: Tensor, offsets: Tensor, centroids: Tensor, log_weights: Tensor) -> Tensor:
        options = {"step_pattern": self._head.step_pattern, "backend": self._head.backend}
        return weighted_dtw(steps, offsets, centroids, log_weights, **options).cpu()


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
