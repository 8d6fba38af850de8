"""Confidence intervals, and tests whether two methods differ on the same videos.

Sources: Wilson 1927; Brown, Cai, DasGupta, *Interval Estimation for a Binomial Proportion*, 2001; Efron and
Tibshirani, *An Introduction to the Bootstrap*, 1993; Rao and Wu, *Resampling Inference with Complex Survey
Data*, 1988; McNemar 1947.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]

CONFIDENCE = 0.95
N_RESAMPLES = 10_000
_NORMAL_QUANTILE = 1.959963984540054  # of (1 + CONFIDENCE) / 2
_DRAWS_AT_ONCE = 1 << 22


def binomial_interval(successes: int, trials: int) -> Interval:
    """The Wilson score interval of a share.

    A percentile bootstrap of a share has width 0 at 0 % and 100 % and covers too rarely near them, which is
    where good methods live; the score interval does not.
    """
    if trials == 0:
        return 0.0, 1.0
    share, z = successes / trials, _NORMAL_QUANTILE
    middle = share + z * z / (2 * trials)
    half = z * np.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    scale = 1 + z * z / trials
    return max(0.0, float((middle - half) / scale)), min(1.0, float((middle + half) / scale))


def bootstrap_interval(
    values: NDArray[np.floating[Any]], *, seed: int = 0, n_resamples: int = 2000
) -> Interval:
    """Percentile bootstrap interval of a mean: (n,) values, resampled with replacement."""
    rng = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // len(values))
    means = [
        values[rng.integers(0, len(values), (min(at_once, n_resamples - done), len(values)))].mean(1)
        for done in range(0, n_resamples, at_once)
    ]
    return _percentiles(np.concatenate(means))


def class_mean_interval(right: NDArray[np.int64], n_videos: NDArray[np.int64], *, seed: int = 0) -> Interval:
    """Bootstrap interval of the mean over classes of their accuracies; resampled within each class.

    Of a class with n videos n - 1 are drawn: with n, the variance of small classes would come out too small
    by the factor (n - 1) / n (Rao and Wu). A class with one video contributes no spread.

    Args:
        right, n_videos: (C,) videos right, and videos, of each class; classes without videos are left out.
    """
    present = n_videos > 0
    if not present.any():
        return 0.0, 1.0
    right, n_videos = right[present], n_videos[present]
    share = right / n_videos
    draws = np.maximum(n_videos - 1, 1)
    # Resampling n - 1 of n videos with replacement: the number right is binomial.
    total = np.zeros(N_RESAMPLES)
    rng = np.random.default_rng(seed)
    for p, n, alone in zip(share, draws, n_videos == 1, strict=True):
        total += p if alone else rng.binomial(n, p, N_RESAMPLES) / n
    return _percentiles(total / len(share))


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same videos.

    Attributes:
        first, second: their names.
        difference: top-1 of the first minus top-1 of the second, over `n_videos`.
        interval: paired bootstrap interval of the difference.
        only_first, only_second: videos that only one of them has right.
        p_mcnemar: exact two-sided McNemar test that both err equally often.
        p_bootstrap: two-sided, from the same resamples as the interval.
    """

    first: str
    second: str
    n_videos: int
    difference: float
    interval: Interval
    only_first: int
    only_second: int
    p_mcnemar: float
    p_bootstrap: float


def compare(
    first: str, second: str, correct: NDArray[np.bool_], other: NDArray[np.bool_], *, seed: int = 0
) -> Comparison:
    """Compares two methods by which of the same n videos each has right: two (n,) arrays."""
    from scipy.stats import binomtest

    n_videos = len(correct)
    only_first, only_second = int((correct & ~other).sum()), int((other & ~correct).sum())
    discordant = only_first + only_second
    p_mcnemar = binomtest(only_first, discordant).pvalue if discordant else 1.0
    # Resampling pairs with replacement draws the three kinds of pairs from a multinomial.
    kinds = np.array([only_first, only_second, n_videos - discordant]) / max(n_videos, 1)
    drawn = np.random.default_rng(seed).multinomial(n_videos, kinds, N_RESAMPLES)
    differences = (drawn[:, 0] - drawn[:, 1]) / max(n_videos, 1)
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    return Comparison(
        first,
        second,
        n_videos,
        (only_first - only_second) / max(n_videos, 1),
        _percentiles(differences),
        only_first,
        only_second,
        float(p_mcnemar),
        float(min(1.0, 2 * (tail + 1) / (N_RESAMPLES + 1))),
    )


def _percentiles(statistics: NDArray[np.floating[Any]]) -> Interval:
    low, high = np.quantile(statistics, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
