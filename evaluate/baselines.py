"""The methods an evaluation compares, all on the same store and the same videos.

A method is a function `(Task) -> (N, C)` array of scores, higher is better, and one line in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..store import Batch, Store
    from ..train import DejaVidHead

Array = NDArray[np.floating[Any]]
BATCH = 256  # videos read and scored at a time


@dataclass(frozen=True)
class Task:
    """What every method is given.

    Attributes:
        store: where the TSEs are.
        class_names: the C classes, in the order of the score columns.
        train_ids, train_targets: training videos with a TSE and the index of their class.
        ids: the N videos to score.
        head: the trained head.
        centroids: (C, Tc, F) the DBA centroids that training began with.
    """

    store: Store
    class_names: tuple[str, ...]
    train_ids: list[str]
    train_targets: NDArray[np.int64]
    ids: list[str]
    head: DejaVidHead
    centroids: Any

    def batches(self, ids: list[str]) -> Iterator[Batch]:
        return self.store.batches(ids, BATCH)


def mean_pool(task: Task) -> Array:
    """Logistic regression on the mean over a video's steps: what an average of clips can tell."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(_means(task, task.train_ids), task.train_targets)
    scores = np.full((len(task.ids), len(task.class_names)), -np.inf)
    scores[:, model.classes_] = model.predict_log_proba(_means(task, task.ids))
    return scores


def nearest_centroid(task: Task) -> Array:
    """The untrained method: distance to the DBA centroids with all weights 1."""
    import torch

    from ..kernels import weighted_dtw

    centroids = task.centroids
    zeros = torch.zeros_like(centroids)
    pattern = task.head.step_pattern
    return np.concatenate(
        [
            -weighted_dtw(b.values, b.offsets, centroids, zeros, step_pattern=pattern).numpy(force=True)
            for b in task.batches(task.ids)
        ]
    )


def dejavid(task: Task) -> Array:
    """The trained head."""
    import torch

    task.head.eval()
    with torch.inference_mode():
        return np.concatenate(
            [task.head(b.values, b.offsets).numpy(force=True) for b in task.batches(task.ids)]
        )


METHODS: dict[str, Callable[[Task], Array]] = {
    "mean_pool": mean_pool,
    "nearest_centroid": nearest_centroid,
    "dejavid": dejavid,
}


def check_methods(names: tuple[str, ...]) -> None:
    """Raises ConfigError for a name that is no method."""
    for name in names:
        if name not in METHODS:
            raise ConfigError(
                f"no method is called {name!r}",
                where="evaluate.baselines",
                fix=f"choose among {', '.join(METHODS)}",
            )


def _means(task: Task, ids: list[str]) -> Array:
    rows = []
    for batch in task.batches(ids):
        lengths = np.diff(batch.offsets)
        rows.append(np.add.reduceat(batch.values, batch.offsets[:-1], axis=0) / lengths[:, None])
    return np.concatenate(rows)
