"""Metrics against scikit-learn's, and their denominators."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    log_loss,
    recall_score,
    top_k_accuracy_score,
)

from dejavid.evaluate.metrics import (
    Outcomes,
    Split,
    by_length,
    confusion,
    most_confused,
    outcomes_of,
    per_class,
    reliability,
    summarise,
)


def make_split(targets: np.ndarray, n_classes: int, n_missing: int = 0) -> Split:
    """A split of scored videos followed by `n_missing` videos of class 0 without a TSE."""
    n = len(targets) + n_missing
    lengths = np.where(np.arange(n) < len(targets), 1 + np.arange(n) % 17, 0)
    every = np.concatenate([targets, np.zeros(n_missing, np.int64)])
    return Split(
        "val", tuple(f"class {i}" for i in range(n_classes)), tuple(map(str, range(n))), every, lengths
    )


def random_case(
    n: int, c: int, seed: int, n_missing: int = 0
) -> tuple[Split, Outcomes, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    values, targets = 2 * rng.normal(size=(n, c)), rng.integers(0, c, n)
    split = make_split(targets, c, n_missing)
    return split, outcomes_of(split, np.arange(n), values, probabilities=True), values, targets


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_scikit_learn(seed: int) -> None:
    split, outcomes, values, targets = random_case(300, 12, seed)
    summary, probabilities = summarise(split, outcomes), softmax(values)
    assert summary.top1 == pytest.approx(accuracy_score(targets, values.argmax(1)))
    assert summary.top5 == pytest.approx(top_k_accuracy_score(targets, values, k=5, labels=range(12)))
    assert summary.mean_class == pytest.approx(balanced_accuracy_score(targets, values.argmax(1)))
    assert summary.nll == pytest.approx(log_loss(targets, probabilities, labels=range(12)))
    np.testing.assert_array_equal(
        confusion(split, outcomes), confusion_matrix(targets, values.argmax(1), labels=range(12))
    )
    recalls = recall_score(targets, values.argmax(1), labels=range(12), average=None)
    found = [row.n_correct / row.n_videos for row in per_class(split, outcomes)]
    np.testing.assert_allclose(found, recalls)


def test_calibration_error_by_hand() -> None:
    """Two bins: 0.6 sure and half right, 0.9 sure and always right."""
    targets = np.array([0, 1, 0, 0])
    values = np.log([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.9, 0.1]])
    split = make_split(targets, 2)
    outcomes = outcomes_of(split, np.arange(4), values, probabilities=True)
    assert summarise(split, outcomes).ece == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)
    assert [(b.n_videos, b.accuracy) for b in reliability(outcomes)] == [(2, 0.5), (2, 1.0)]


def test_missing_videos_count_as_wrong_unless_told() -> None:
    split, outcomes, _, _ = random_case(30, 4, 0, n_missing=10)
    wrong, skip = summarise(split, outcomes, "wrong"), summarise(split, outcomes, "skip")
    assert wrong.n_correct == skip.n_correct
    assert (wrong.top1, skip.top1) == (wrong.n_correct / 40, skip.n_correct / 30)
    assert (wrong.n_scored, wrong.n_split, wrong.n_denominator, skip.n_denominator) == (30, 40, 40, 30)
    assert wrong.mean_class < skip.mean_class
    assert wrong.nll == skip.nll  # of scored videos in both
    assert (
        per_class(split, outcomes, "wrong")[0].n_videos == per_class(split, outcomes, "skip")[0].n_videos + 10
    )


def test_rows_of_nan_are_not_scored() -> None:
    split, _, values, targets = random_case(20, 3, 0)
    values[[2, 5], 1] = np.nan
    outcomes = outcomes_of(split, np.arange(20), values, probabilities=True)
    summary = summarise(split, outcomes)
    assert (summary.n_scored, summary.n_split) == (18, 20)
    kept = np.delete(np.arange(20), [2, 5])
    assert summary.n_correct == int((values[kept].argmax(1) == targets[kept]).sum())


def test_nothing_scored_gives_zeros_and_open_intervals() -> None:
    split = make_split(np.array([], np.int64), 3, n_missing=4)
    outcomes = outcomes_of(split, np.array([], np.int64), np.empty((0, 3)), probabilities=True)
    summary = summarise(split, outcomes, "skip")
    assert (summary.top1, summary.n_denominator, summary.nll) == (0.0, 0, None)
    assert summary.top1_interval == (0.0, 1.0)
    assert by_length(split, outcomes) == []


def test_a_method_that_cannot_tell_gains_nothing_by_ties() -> None:
    split = make_split(np.arange(10), 10)
    outcomes = outcomes_of(split, np.arange(10), np.zeros((10, 10)), probabilities=True)
    assert outcomes.correct().tolist() == [True] + [False] * 9
    assert outcomes.correct(3).tolist() == [True] * 3 + [False] * 7


def test_top_k_beyond_the_classes_is_every_scored_video() -> None:
    _, outcomes, _, _ = random_case(20, 3, 1, n_missing=2)
    assert outcomes.correct(5).tolist() == [True] * 20 + [False] * 2


def test_distances_are_no_probabilities() -> None:
    split, _, values, _ = random_case(20, 3, 1)
    summary = summarise(split, outcomes_of(split, np.arange(20), values, probabilities=False))
    assert summary.nll is None
    assert summary.ece is None


def test_an_impossible_class_costs_a_finite_loss() -> None:
    split = make_split(np.array([0, 1]), 2)
    values = np.array([[0.0, -np.inf], [0.0, -np.inf]])
    summary = summarise(split, outcomes_of(split, np.arange(2), values, probabilities=True))
    assert summary.nll == pytest.approx(-np.log(np.finfo(float).eps) / 2)


@settings(max_examples=50)
@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 100))
def test_lengths_are_a_partition(n: int, n_bins: int, seed: int) -> None:
    split, outcomes, _, _ = random_case(n, 3, seed)
    bins = by_length(split, outcomes, n_bins)
    assert sum(b.n_videos for b in bins) == n
    assert sum(b.n_correct for b in bins) == outcomes.correct().sum()
    assert len(bins) <= n_bins
    bounds = [edge for b in bins for edge in (b.shortest, b.longest)]
    assert bounds == sorted(bounds)
    assert all(a.longest < b.shortest for a, b in itertools.pairwise(bins))


def test_most_confused_pairs_in_order() -> None:
    targets = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([1, 1, 0, 2, 1, 2])
    split = make_split(targets, 3)
    outcomes = outcomes_of(split, np.arange(6), np.eye(3)[predicted], probabilities=False)
    pairs = [(p.true, p.predicted, p.count, p.n_videos) for p in most_confused(split, outcomes)]
    assert pairs == [("class 0", "class 1", 2, 3), ("class 1", "class 2", 1, 2)]
