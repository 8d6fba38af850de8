"""k nearest neighbours under classic DTW: the standard baseline for time series."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import MissingDependencyError
from .task import Floats, Task

_TRAIN_STEPS_AT_ONCE = 4096


def knn_dtw(task: Task) -> Floats:
    """L1 cost, diagonal moves allowed, on the head's kernels: a training TSE is a centroid of weight 1."""
    distances = np.empty((len(task.ids), len(task.train_ids)))
    blocks = list(_equally_long(task))
    for columns in tqdm(blocks, "k-NN DTW", unit="block", disable=not task.progress):
        distances[:, columns] = _distances_to(task, columns)
    return _votes(distances, task.train_targets, task.n_classes, task.config.evaluate.neighbours)


def knn_dtw_tslearn(task: Task) -> Floats:
    """tslearn's DTW: squared L2 cost, diagonal moves allowed."""
    try:
        from tslearn.metrics import cdist_dtw
    except ImportError as error:
        raise MissingDependencyError(
            f"tslearn cannot be imported ({error})",
            where="method knn_dtw_tslearn",
            fix="pip install 'dejavid[baselines]'",
        ) from None
    queries, training = _tses(task, task.ids), _tses(task, task.train_ids)
    distances = np.asarray(cdist_dtw(queries, training, n_jobs=-1))
    return _votes(distances, task.train_targets, task.n_classes, task.config.evaluate.neighbours)


def _equally_long(task: Task) -> Iterator[NDArray[np.int64]]:
    """Positions of training videos of one length, in blocks of bounded memory: kernels take rectangles."""
    lengths = np.asarray(task.store.lengths(task.train_ids))
    for length in np.unique(lengths):
        members = np.flatnonzero(lengths == length)
        per_block = max(1, _TRAIN_STEPS_AT_ONCE // int(length))
        for start in range(0, len(members), per_block):
            yield members[start : start + per_block]


def _distances_to(task: Task, columns: NDArray[np.int64]) -> Floats:
    import torch

    from ..kernels import weighted_dtw

    block = task.store.read([task.train_ids[i] for i in columns])
    series = torch.from_numpy(block.values).view(len(columns), -1, block.values.shape[1])
    zeros = torch.zeros_like(series)
    options = {"step_pattern": "classic", "backend": task.head.backend}
    parts = [
        weighted_dtw(b.values, b.offsets, series, zeros, **options).numpy(force=True)
        for b in task.batches(task.ids)
    ]
    return np.concatenate(parts)


def _tses(task: Task, ids: list[str]) -> list[Floats]:
    batch = task.store.read(ids)
    return np.split(batch.values, batch.offsets[1:-1])


def _votes(
    distances: NDArray[np.floating[Any]], targets: NDArray[np.int64], n_classes: int, k: int
) -> Floats:
    """Votes of the k nearest; among classes of equal votes, the one whose nearest member is nearer.

    Args:
        distances: (n, M) to the training videos; targets: (M,) their classes.

    Returns:
        (n, C): votes, plus a number in [0, 0.5] that falls with the distance to the class.
    """
    n_queries = len(distances)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :k]
    votes = np.zeros((n_queries, n_classes))
    np.add.at(votes, (np.arange(n_queries)[:, None], targets[nearest]), 1.0)
    to_class = np.full((n_queries, n_classes), np.inf)
    for c in np.unique(targets):
        to_class[:, c] = distances[:, targets == c].min(1)
    best = to_class.min(1, keepdims=True)
    # The smallest normal number keeps 0 / 0 away where the nearest video is the query itself.
    closeness: Floats = (best + 1e-300) / (best + to_class + 2e-300)
    return votes + closeness
