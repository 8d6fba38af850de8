"""Numbers of one method on one split, each with its exact denominator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Missing = Literal["wrong", "skip"]


@dataclass(frozen=True)
class Scores:
    """What a method says of the videos it scored.

    Attributes:
        ids: the N scored videos.
        targets: (N,) int64 index of each video's class.
        values: (N, C) float; the higher, the likelier the class.
        n_split: videos the split has, scored or not.
    """

    ids: tuple[str, ...]
    targets: NDArray[np.int64]
    values: NDArray[np.floating[Any]]
    n_split: int

    def __post_init__(self) -> None:
        assert self.values.shape[0] == len(self.ids) == len(self.targets) <= self.n_split


@dataclass(frozen=True)
class Summary:
    """Top-1 and top-5 of a method, in 0..1, and the counts behind them."""

    top1: float
    top5: float
    n_scored: int
    n_split: int
    n_correct: int


def topk_correct(values: NDArray[np.floating[Any]], targets: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Whether the target is among the k best classes of each row: (N, C), (N,) -> (N,).

    Among equal scores the class of lower index is better, so a method that scores all classes alike is
    right only about class 0: ties never add up to an accuracy.
    """
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return np.asarray((order == targets[:, None]).any(axis=1))


def summarise(scores: Scores, missing: Missing = "wrong") -> Summary:
    """Top-1 and top-5 over the whole split (`wrong`) or over the scored videos (`skip`)."""
    denominator = scores.n_split if missing == "wrong" else len(scores.ids)
    hits1, hits5 = (int(topk_correct(scores.values, scores.targets, k).sum()) for k in (1, 5))
    if not denominator:
        return Summary(float("nan"), float("nan"), 0, scores.n_split, 0)
    return Summary(hits1 / denominator, hits5 / denominator, len(scores.ids), scores.n_split, hits1)
