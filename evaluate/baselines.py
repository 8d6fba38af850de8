"""The methods an evaluation compares, on the same store and the same videos: one line each in `METHODS`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..errors import ConfigError
from .ablation import centroids_only, full, full_classic, weights_only
from .encoder import encoder_views, mean_logits, oversampling
from .neighbours import knn_dtw, knn_dtw_tslearn
from .probes import attentive_probe, soft_dtw_head
from .task import Floats, Method, Task

ALL = "all"
HEAD = "dejavid"


def mean_pool(task: Task) -> Floats:
    """Logistic regression on the mean over a video's steps: what an average of clips can tell."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(_means(task, task.train_ids), task.train_targets)
    scores = np.full((len(task.ids), task.n_classes), -np.inf)
    scores[:, model.classes_] = model.predict_log_proba(_means(task, task.ids))
    return scores


def nearest_centroid(task: Task) -> Floats:
    """The untrained method: minus the distances to the DBA centroids with all weights 1."""
    import torch

    head = task.centroids.head(step_pattern=task.head.step_pattern).eval()
    with torch.inference_mode():
        return np.concatenate(
            [
                -head.distances(torch.from_numpy(b.values), torch.from_numpy(b.offsets)).numpy(force=True)
                for b in task.batches(task.ids)
            ]
        )


def dejavid(task: Task) -> Floats:
    """The trained head."""
    return full(task, head=task.head)


METHODS: dict[str, Method] = {
    "encoder_views": Method(encoder_views, "encoder, its own protocol"),
    "mean_logits": Method(mean_logits, "encoder, mean of logits over steps"),
    "oversampling": Method(oversampling, "encoder, mean of probabilities over steps"),
    "mean_pool": Method(mean_pool, "mean of steps + logistic regression"),
    "attentive_probe": Method(attentive_probe, "attentive pooling probe"),
    "knn_dtw": Method(knn_dtw, "k-NN DTW", probabilities=False),
    "knn_dtw_tslearn": Method(knn_dtw_tslearn, "k-NN DTW (tslearn, squared L2)", probabilities=False),
    "soft_dtw_head": Method(soft_dtw_head, "head trained with soft-DTW"),
    "nearest_centroid": Method(nearest_centroid, "nearest DBA centroid", probabilities=False, ablation=True),
    "centroids_only": Method(centroids_only, "centroids only, weights 1", ablation=True),
    "weights_only": Method(weights_only, "weights only, DBA centroids", ablation=True),
    "full": Method(full, "centroids and weights", ablation=True),
    "full_classic": Method(full_classic, "centroids and weights, with diagonal", ablation=True),
    HEAD: Method(dejavid, "DejaVid head"),
}


def chosen_methods(names: Iterable[str], *, ablation: bool = False) -> list[str]:
    """The methods to run, in table order, the head last.

    Args:
        names: of methods; "all" stands for every method that is no ablation.
        ablation: add the paper's ablation: nothing, centroids, weights or both learned, and the diagonal.

    Raises:
        ConfigError: a name that is no method.
    """
    wanted = {HEAD}
    for name in names:
        if name == ALL:
            wanted |= {key for key, method in METHODS.items() if not method.ablation} | {"nearest_centroid"}
        elif name in METHODS:
            wanted.add(name)
        else:
            raise ConfigError(
                f"no method is called {name!r}",
                where="evaluate.baselines",
                fix=f"choose among {ALL}, {', '.join(METHODS)}",
            )
    if ablation:
        wanted |= {key for key, method in METHODS.items() if method.ablation}
    return [name for name in METHODS if name in wanted]


def _means(task: Task, ids: list[str]) -> Floats:
    rows = []
    for batch in task.batches(ids):
        lengths = np.diff(batch.offsets)
        rows.append(np.add.reduceat(batch.values, batch.offsets[:-1], axis=0) / lengths[:, None])
    return np.concatenate(rows)
