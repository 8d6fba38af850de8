"""The paper's ablation: the same training with something held fixed, or with the diagonal move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import TrainSection
from .task import Floats, Task

if TYPE_CHECKING:
    from ..train import Centroids, DejaVidHead


def centroids_only(task: Task) -> Floats:
    """Learned centroids, all weights 1."""
    return full(task, learn="centroids", init_log_weights="zeros")


def weights_only(task: Task) -> Floats:
    """Learned weights, centroids as DBA made them."""
    return full(task, learn="weights")


def full_classic(task: Task) -> Floats:
    """Both learned, with the diagonal move of classic DTW in the centroids, training and test."""
    return full(task, step_pattern="classic")


def full(task: Task, *, head: DejaVidHead | None = None, **changes: Any) -> Floats:
    """Logits of a head trained as the run's, but for `changes` to the `train` section.

    Args:
        head: an already trained head to score instead.
        changes: keys of the section; without `learn` and `step_pattern`: both learned, no diagonal.
    """
    import torch

    if head is None:
        options = task.config.train.model_copy(
            update={"learn": "full", "step_pattern": "no_diagonal", **changes}
        )
        head = task.head if options == task.config.train else _train(task, options)
    head.eval()
    with torch.inference_mode():
        return np.concatenate([head(b.values, b.offsets).numpy(force=True) for b in task.batches(task.ids)])


def _train(task: Task, options: TrainSection) -> DejaVidHead:
    from ..devices import device_of
    from ..train import train_head
    from ..train.data import load_samples

    centroids = _centroids(task, options.step_pattern)
    head = centroids.head(step_pattern=options.step_pattern, logits=options.logits)
    device = device_of(options.device)
    samples = load_samples(task.store, task.train_ids, task.train_targets, device=device, data=options.data)
    train_head(head, samples, options=options, seed=task.config.run.seed, progress=task.progress)
    return head


def _centroids(task: Task, step_pattern: str) -> Centroids:
    """The run's centroids, or new ones where the averaging itself depends on the moves."""
    if step_pattern == task.config.train.step_pattern:
        return task.centroids
    from ..train import fit_centroids
    from ..train.data import read_stored

    values, offsets = read_stored(task.store, task.train_ids)
    return fit_centroids(
        values,
        offsets,
        task.train_targets,
        class_names=task.split.class_names,
        seed=task.config.run.seed,
        step_pattern=step_pattern,
        backend=task.config.train.backend,
        progress=task.progress,
        **task.config.centroids.model_dump(),
    )
