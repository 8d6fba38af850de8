"""Intervals cover as often as they promise, and tests reject as often as they may: by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from dejavid.evaluate.intervals import (
    binomial_interval,
    bootstrap_interval,
    class_mean_interval,
    compare,
)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (7, 10), (10, 10), (93, 96), (881, 1530)])
def test_wilson_interval_equals_scipys(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert binomial_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("share", [0.5, 0.88, 0.97])
@pytest.mark.parametrize("trials", [100, 1000])
def test_share_is_covered(share: float, trials: int) -> None:
    """Exact coverage, summed over all outcomes; Wilson's oscillates around 95 %."""
    from scipy.stats import binom

    counts = np.arange(trials + 1)
    intervals = [binomial_interval(int(k), trials) for k in counts]
    covered = np.array([low <= share <= high for low, high in intervals])
    assert 0.93 <= float(binom.pmf(counts, trials, share)[covered].sum()) <= 0.98


def test_mean_is_covered() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(500):
        low, high = bootstrap_interval(rng.exponential(size=100), seed=trial, n_resamples=500)
        hits += low <= 1.0 <= high
    assert 0.90 <= hits / 500 <= 0.98  # skewed data cost the percentile bootstrap a little


@pytest.mark.parametrize("per_class", [5, 20])
def test_class_mean_is_covered(per_class: int) -> None:
    """Classes of very different difficulty; small ones would cover too rarely without the n - 1."""
    rng = np.random.default_rng(0)
    shares = np.linspace(0.4, 0.95, 30)
    sizes = np.full(30, per_class)
    hits = 0
    for trial in range(500):
        low, high = class_mean_interval(rng.binomial(sizes, shares), sizes, seed=trial)
        hits += low <= shares.mean() <= high
    assert 0.92 <= hits / 500 <= 0.98


def test_class_mean_leaves_out_empty_classes() -> None:
    full = class_mean_interval(np.array([3, 8]), np.array([10, 10]))
    assert class_mean_interval(np.array([3, 0, 8]), np.array([10, 0, 10])) == full
    assert class_mean_interval(np.array([0]), np.array([0])) == (0.0, 1.0)
    assert class_mean_interval(np.array([1]), np.array([1])) == (1.0, 1.0)


def _pairs(
    rng: np.random.Generator, n: int, p_first: float, p_second: float
) -> tuple[np.ndarray, np.ndarray]:
    """Two methods that agree more than chance would have it."""
    shared = rng.random(n)
    own = rng.random((2, n))
    mix = rng.random(n) < 0.7
    first, second = (np.where(mix, shared, o) for o in own)
    return first < p_first, second < p_second


@pytest.mark.parametrize(("p_first", "p_second"), [(0.8, 0.8), (0.9, 0.8)])
def test_difference_is_covered_and_equal_methods_are_rarely_told_apart(
    p_first: float, p_second: float
) -> None:
    rng = np.random.default_rng(1)
    covered = rejected = rejected_by_bootstrap = 0
    for trial in range(400):
        result = compare("a", "b", *_pairs(rng, 300, p_first, p_second), seed=trial)
        covered += result.interval[0] <= p_first - p_second <= result.interval[1]
        rejected += result.p_mcnemar < 0.05
        rejected_by_bootstrap += result.p_bootstrap < 0.05
    assert 0.92 <= covered / 400 <= 0.98
    if p_first == p_second:
        assert rejected / 400 <= 0.06  # the exact test is conservative
        assert rejected_by_bootstrap / 400 <= 0.09
    else:
        assert rejected / 400 > 0.9


def test_comparison_counts() -> None:
    a = np.array([1, 1, 1, 0, 0], bool)
    b = np.array([1, 0, 0, 1, 0], bool)
    result = compare("a", "b", a, b)
    assert (result.only_first, result.only_second, result.n_videos) == (2, 1, 5)
    assert result.difference == pytest.approx(0.2)
    assert result.p_mcnemar == pytest.approx(binomtest(2, 3).pvalue)


def test_comparison_with_itself() -> None:
    same = np.array([True, False, True])
    result = compare("a", "a", same, same)
    assert (result.difference, result.interval, result.p_mcnemar, result.p_bootstrap) == (0, (0, 0), 1, 1)
