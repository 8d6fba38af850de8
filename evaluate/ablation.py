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
    """On the run's own training videos: without those that it held out, which choose the epoch here too."""
    import torch

    from ..devices import device_of
    from ..train import train_head
    from ..train.data import Samples, hold_out, load_samples

    targets = torch.from_numpy(task.train_targets)
    kept, held = hold_out(targets, options.holdout, task.config.run.seed)

    def samples(positions: torch.Tensor) -> Samples:
        ids = [task.train_ids[i] for i in positions.tolist()]
        device = device_of(options.device)
        return load_samples(task.store, ids, targets[positions], device=device, data=options.data)

    head = _centroids(task, kept.tolist(), options.step_pattern).head(
        step_pattern=options.step_pattern, logits=options.logits
    )
    train_head(
        head,
        samples(kept),
        samples(held) if len(held) else None,
        options=options,
        seed=task.config.run.seed,
        progress=task.progress,
    )
    return head


def _centroids(task: Task, kept: list[int], step_pattern: str) -> Centroids:
    """The run's centroids, or new ones where the averaging itself depends on the moves."""
    if step_pattern == task.config.train.step_pattern:
        return task.centroids
    from ..train import fit_centroids
    from ..train.data import read_stored

    values, offsets = read_stored(task.store, [task.train_ids[i] for i in kept])
    return fit_centroids(
        values,
        offsets,
        task.train_targets[kept],
        class_names=task.split.class_names,
        seed=task.config.run.seed,
        step_pattern=step_pattern,
        backend=task.config.train.backend,
        progress=task.progress,
        **task.config.centroids.model_dump(),
    )
