"""Numbers of one method on one split, each with its exact denominator.

A video of the split that a method did not score is kept in every array, marked by `Outcomes.scored`: whether
it counts as wrong or is left out is decided when an accuracy is computed, never by losing the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .intervals import Interval, binomial_interval, bootstrap_interval, class_mean_interval

Missing = Literal["wrong", "skip"]
Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

RELIABILITY_BINS = 15
LENGTH_BINS = 5
_LEAST_PROBABILITY = float(np.finfo(np.float64).eps)  # as in scikit-learn's log_loss: keeps the loss finite


@dataclass(frozen=True)
class Split:
    """The videos that an evaluation answers for, with and without a TSE.

    Attributes:
        name: of the split.
        class_names: the C classes.
        ids: all N videos of the split.
        targets: (N,) index of each video's class; -1 for a label that is no class (possible without a TSE).
        lengths: (N,) steps of its TSE; 0 without one.
    """

    name: str
    class_names: tuple[str, ...]
    ids: tuple[str, ...]
    targets: Ints
    lengths: Ints


@dataclass(frozen=True)
class Outcomes:
    """What a method said of each video of a split, reduced to what the numbers need.

    Attributes:
        scored: (N,) whether the method gave scores.
        predicted: (N,) index of the best class; -1 where not scored.
        rank: (N,) place of the true class, 0 for the best; C where not scored.
        confidence: (N,) probability of the predicted class; NaN where the scores are no log-probabilities.
        p_true: (N,) probability of the true class; likewise.
    """

    scored: NDArray[np.bool_]
    predicted: Ints
    rank: Ints
    confidence: Floats
    p_true: Floats

    def correct(self, k: int = 1) -> NDArray[np.bool_]:
        """(N,) whether the true class is among the best k; False where not scored."""
        return np.asarray(self.scored & (self.rank < k))

    @property
    def has_probabilities(self) -> bool:
        return bool(np.isfinite(self.confidence[self.scored]).all())


@dataclass(frozen=True)
class Summary:
    """The headline numbers of a method. Shares are in 0..1; intervals have 95 % confidence.

    Attributes:
        top1, top5, mean_class: accuracies; `mean_class` is the mean over classes that have videos.
        n_correct: videos right at top-1, of the `n_denominator` that count.
        n_scored, n_split: videos with scores, and videos of the split.
        nll: mean negative log-likelihood (nats) over scored videos; None without probabilities.
        ece: expected calibration error over scored videos (15 bins of equal width); likewise.
    """

    top1: float
    top5: float
    mean_class: float
    n_correct: int
    n_denominator: int
    n_scored: int
    n_split: int
    top1_interval: Interval
    top5_interval: Interval
    mean_class_interval: Interval
    nll: float | None
    nll_interval: Interval | None
    ece: float | None


def outcomes_of(split: Split, rows: Ints, scores: Floats, *, probabilities: bool) -> Outcomes:
    """Reduces scores to outcomes.

    Among equal scores the class of lower index is better, so a method that scores all classes alike is right
    only about class 0: ties never add up to an accuracy.

    Args:
        split: the videos.
        rows: (n,) positions in the split that the scores are of.
        scores: (n, C), higher is better; a row with NaN counts as not scored.
        probabilities: whether the softmax of a row is meant as probabilities.
    """
    n_videos, n_classes = len(split.ids), len(split.class_names)
    assert scores.shape == (len(rows), n_classes)
    usable = ~np.isnan(scores).any(1)
    rows, scores = rows[usable], scores[usable].astype(np.float64)
    targets = split.targets[rows]
    at_target = scores[np.arange(len(rows)), targets]
    better = (scores > at_target[:, None]).sum(1)
    earlier = np.arange(n_classes) < targets[:, None]
    ties = ((scores == at_target[:, None]) & earlier).sum(1)

    scored = np.zeros(n_videos, np.bool_)
    predicted = np.full(n_videos, -1, np.int64)
    rank = np.full(n_videos, n_classes, np.int64)
    confidence = np.full(n_videos, np.nan)
    p_true = np.full(n_videos, np.nan)
    scored[rows], rank[rows] = True, better + ties
    predicted[rows] = scores.argmax(1)
    if probabilities:
        best = scores.max(1)
        total = np.exp(scores - best[:, None]).sum(1)
        confidence[rows] = 1 / total
        p_true[rows] = np.exp(at_target - best) / total
    return Outcomes(scored, predicted, rank, confidence, p_true)


def summarise(split: Split, outcomes: Outcomes, missing: Missing = "wrong") -> Summary:
    """The headline numbers, over the whole split (`wrong`) or over the scored videos (`skip`)."""
    counted = _counted(outcomes, missing)
    denominator = int(counted.sum())
    hits1, hits5 = (int(outcomes.correct(k).sum()) for k in (1, 5))
    right, n_class = _class_counts(split, outcomes, missing)
    nll = -np.log(np.maximum(outcomes.p_true[outcomes.scored], _LEAST_PROBABILITY))
    probable = outcomes.has_probabilities and len(nll) > 0
    return Summary(
        top1=hits1 / denominator if denominator else 0.0,
        top5=hits5 / denominator if denominator else 0.0,
        mean_class=float(np.mean(right[n_class > 0] / n_class[n_class > 0])) if n_class.any() else 0.0,
        n_correct=hits1,
        n_denominator=denominator,
        n_scored=int(outcomes.scored.sum()),
        n_split=len(split.ids),
        top1_interval=binomial_interval(hits1, denominator),
        top5_interval=binomial_interval(hits5, denominator),
        mean_class_interval=class_mean_interval(right, n_class),
        nll=float(nll.mean()) if probable else None,
        nll_interval=bootstrap_interval(nll) if probable else None,
        ece=calibration_error(outcomes) if probable else None,
    )


@dataclass(frozen=True)
class ClassResult:
    """One class: videos that count, of these right, and how often the class was predicted at all."""

    name: str
    n_videos: int
    n_correct: int
    n_predicted: int


def per_class(split: Split, outcomes: Outcomes, missing: Missing = "wrong") -> list[ClassResult]:
    """Accuracy of every class, in class order."""
    right, n_class = _class_counts(split, outcomes, missing)
    predicted = np.bincount(outcomes.predicted[outcomes.scored], minlength=len(split.class_names))
    rows = zip(split.class_names, n_class.tolist(), right.tolist(), predicted.tolist(), strict=True)
    return [ClassResult(*row) for row in rows]


def confusion(split: Split, outcomes: Outcomes) -> Ints:
    """(C, C) counts of scored videos: row is the true class, column the predicted one."""
    size = len(split.class_names)
    at = split.targets[outcomes.scored] * size + outcomes.predicted[outcomes.scored]
    return np.bincount(at, minlength=size * size).reshape(size, size).astype(np.int64)


@dataclass(frozen=True)
class ReliabilityBin:
    """Videos whose confidence lies in [low, high): how sure the method was, and how often right."""

    low: float
    high: float
    n_videos: int
    confidence: float
    accuracy: float


def reliability(outcomes: Outcomes, n_bins: int = RELIABILITY_BINS) -> list[ReliabilityBin]:
    """Confidence against accuracy in bins of equal width, empty ones left out."""
    confidence = outcomes.confidence[outcomes.scored]
    correct = outcomes.correct()[outcomes.scored]
    bins = np.minimum((confidence * n_bins).astype(np.int64), n_bins - 1)
    found = []
    for b in np.unique(bins):
        inside = bins == b
        found.append(
            ReliabilityBin(
                float(b / n_bins),
                float((b + 1) / n_bins),
                int(inside.sum()),
                float(confidence[inside].mean()),
                float(correct[inside].mean()),
            )
        )
    return found


def calibration_error(outcomes: Outcomes, n_bins: int = RELIABILITY_BINS) -> float:
    """Expected calibration error: |accuracy - confidence| over the bins, weighted by their videos."""
    bins = reliability(outcomes, n_bins)
    total = sum(b.n_videos for b in bins)
    return sum(b.n_videos * abs(b.accuracy - b.confidence) for b in bins) / total


@dataclass(frozen=True)
class LengthResult:
    """Scored videos of `shortest` to `longest` steps (inclusive), and of these right."""

    shortest: int
    longest: int
    n_videos: int
    n_correct: int
    interval: Interval


def by_length(split: Split, outcomes: Outcomes, n_bins: int = LENGTH_BINS) -> list[LengthResult]:
    """Accuracy by number of steps, in at most `n_bins` bins of about equally many videos.

    Videos of one length are never torn apart, so there may be fewer bins.
    """
    lengths, correct = split.lengths[outcomes.scored], outcomes.correct()[outcomes.scored]
    if len(lengths) == 0:
        return []
    upper = np.unique(np.quantile(lengths, np.arange(1, n_bins + 1) / n_bins, method="inverted_cdf"))
    found = []
    for b in range(len(upper)):
        inside = lengths <= upper[b] if b == 0 else (lengths > upper[b - 1]) & (lengths <= upper[b])
        n, hits = int(inside.sum()), int(correct[inside].sum())
        bounds = int(lengths[inside].min()), int(lengths[inside].max())
        found.append(LengthResult(*bounds, n, hits, binomial_interval(hits, n)))
    return found


@dataclass(frozen=True)
class Confused:
    """`count` of the `n_videos` scored videos of class `true` were called `predicted`."""

    true: str
    predicted: str
    count: int
    n_videos: int


def most_confused(split: Split, outcomes: Outcomes, limit: int = 20) -> list[Confused]:
    """The most frequent confusions, largest first."""
    counts = confusion(split, outcomes)
    sizes = counts.sum(1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:limit]
    pairs = [divmod(int(at), len(counts)) for at in order]
    names = split.class_names
    return [
        Confused(names[t], names[p], int(counts[t, p]), int(sizes[t])) for t, p in pairs if counts[t, p] > 0
    ]


def _counted(outcomes: Outcomes, missing: Missing) -> NDArray[np.bool_]:
    return np.ones_like(outcomes.scored) if missing == "wrong" else outcomes.scored


def _class_counts(split: Split, outcomes: Outcomes, missing: Missing) -> tuple[Ints, Ints]:
    """Per class: videos right, and videos that count."""
    size = len(split.class_names)
    counted = _counted(outcomes, missing) & (split.targets >= 0)
    right = np.bincount(split.targets[outcomes.correct()], minlength=size)
    return right.astype(np.int64), np.bincount(split.targets[counted], minlength=size).astype(np.int64)
