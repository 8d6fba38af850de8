"""Explanations add up: to the head's distances, and to their difference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dejavid.config import Config
from dejavid.errors import ConfigError
from dejavid.evaluate.explain import Explanation, explain, nearest_moments
from dejavid.evaluate.task import Task
from dejavid.pipeline import evaluation_task
from dejavid.store import Tse
from dejavid.train import DejaVidHead


@pytest.fixture(scope="module")
def task(trained: Config) -> Task:
    return evaluation_task(trained)


def _explained(task: Task, step_pattern: str, label: str | None = None) -> tuple[Explanation, np.ndarray]:
    head = DejaVidHead(
        task.head.centroids.detach(),
        task.head.log_weights.detach(),
        step_pattern=step_pattern,
        class_names=task.head.class_names,
        inputs=task.head.inputs,
    ).eval()
    tse = task.store.get(task.ids[0])
    if label is not None:
        tse = Tse(**{**vars(tse), "label": label})
    distances = head.distances(torch.from_numpy(tse.values), torch.tensor([0, len(tse.values)]))[0]
    return explain(head, tse), distances.numpy(force=True)


@pytest.mark.parametrize("step_pattern", ["no_diagonal", "classic"])
def test_parts_add_up_to_the_distances(task: Task, step_pattern: str) -> None:
    found, distances = _explained(task, step_pattern)
    for side in (found.predicted, found.rival):
        expected = distances[task.head.class_names.index(side.name)]
        for total in (side.distance, side.step_cost.sum(), side.feature_cost.sum()):
            assert total == pytest.approx(expected, rel=1e-4)
    margin = found.rival.distance - found.predicted.distance
    assert margin >= 0
    assert found.step_gain.sum() == pytest.approx(margin, rel=1e-3, abs=1e-3)
    assert found.feature_gain.sum() == pytest.approx(margin, rel=1e-3, abs=1e-3)


def test_the_path_is_whole(task: Task) -> None:
    side = _explained(task, "no_diagonal")[0].predicted
    n_steps = side.local_cost.shape[1]
    assert (side.lo[0], side.hi[-1]) == (0, n_steps - 1)
    np.testing.assert_array_equal(side.lo[1:], side.hi[:-1])


def test_the_rival_is_the_true_class_where_the_head_is_wrong(task: Task) -> None:
    right = _explained(task, "no_diagonal")[0]
    assert right.right
    assert right.rival.name == right.top[1][0]
    last = right.top[-1][0]
    wrong = _explained(task, "no_diagonal", label=last)[0]
    assert wrong.right is False
    assert (wrong.predicted.name, wrong.rival.name) == (right.predicted.name, last)
    unlabelled = _explained(task, "no_diagonal", label="no class of the head")[0]
    assert unlabelled.rival.name == right.rival.name


def test_one_class_has_nothing_to_compare(task: Task) -> None:
    head = DejaVidHead(torch.zeros(1, 4, 9), class_names=["only"])
    with pytest.raises(ConfigError, match="one class, 'only'"):
        explain(head, task.store.get(task.ids[0]))


def test_nearest_moments_by_brute_force(task: Task) -> None:
    name = task.head.class_names[1]
    ids = [i for i, target in zip(task.train_ids, task.train_targets, strict=True) if target == 1]
    moments = nearest_moments(task.head, name, task.store, ids)
    centroids = task.head.centroids[1].numpy(force=True)
    weights = task.head.log_weights[1].exp().numpy(force=True)
    assert len(moments) == len(centroids)
    for t, moment in enumerate(moments):
        costs = {}
        for video_id in ids:
            tse = torch.from_numpy(task.store.get(video_id).values)
            steps = task.head.inputs(tse, torch.tensor([0, len(tse)])).numpy()
            for s, step in enumerate(steps):
                costs[video_id, s] = float((weights[t] * np.abs(centroids[t] - step)).sum())
        assert moment.cost == pytest.approx(min(costs.values()), rel=1e-4)
        assert costs[moment.video_id, moment.step] == pytest.approx(moment.cost, rel=1e-4)
        assert moment.start_s == 0.5 * moment.step
    assert nearest_moments(task.head, name, task.store, []) == []
