"""Metrics against scikit-learn's, and their denominators."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, top_k_accuracy_score

from dejavid.evaluate.metrics import Scores, summarise, topk_correct


def _random(n: int, c: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, c)), rng.integers(0, c, n)


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_scikit_learn(seed: int) -> None:
    values, targets = _random(200, 12, seed)
    scores = Scores(tuple(map(str, range(200))), targets, values, 200)
    summary = summarise(scores)
    assert summary.top1 == pytest.approx(accuracy_score(targets, values.argmax(1)))
    assert summary.top5 == pytest.approx(top_k_accuracy_score(targets, values, k=5, labels=range(12)))


def test_missing_videos_count_as_wrong_unless_told() -> None:
    values, targets = _random(30, 4, 0)
    scores = Scores(tuple(map(str, range(30))), targets, values, 40)
    wrong, skip = summarise(scores, "wrong"), summarise(scores, "skip")
    assert wrong.n_correct == skip.n_correct
    assert wrong.top1 == wrong.n_correct / 40
    assert skip.top1 == skip.n_correct / 30
    assert (wrong.n_scored, wrong.n_split) == (30, 40)


def test_a_method_that_cannot_tell_gains_nothing_by_ties() -> None:
    targets = np.arange(10)
    hits = topk_correct(np.zeros((10, 10)), targets, 1)
    assert hits.tolist() == [True] + [False] * 9


def test_top_k_beyond_the_classes_is_everything() -> None:
    values, targets = _random(20, 3, 1)
    assert topk_correct(values, targets, 5).all()
