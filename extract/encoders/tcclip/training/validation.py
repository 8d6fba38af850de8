"""Accuracy of a model in training on the videos that its best epoch is chosen by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .....config import Config
from .....distributed import World
from ....ledger import FailureLedger
from ....scoring import score_views
from ...base import ClipSpec
from ..sampling import view_recipe
from .videos import Videos, decode_settings

_BATCH = 4  # micro-batches at once: there are no gradients to keep


def validate(
    videos: Videos,
    logits: Callable[[Tensor], Tensor],
    config: Config,
    spec: ClipSpec,
    ledger: FailureLedger,
    world: World,
    device: torch.device,
    *,
    n_classes: int,
    n_clips: int,
) -> dict[str, Any]:
    """Scores a share of the videos in every process; all get the sums.

    A video that cannot be decoded is written into the ledger and counts as wrong.

    Args:
        videos: to score.
        logits: uint8 (B, T, H, W, 3) -> (B, C).
        config: its sections extract and tcclip.
        spec: of the model.
        ledger: for failures.
        world: the processes.
        device: of the model.
        n_classes: C.
        n_clips: per video.
    """
    mine = slice(world.rank, None, world.size)
    jobs, total = videos.jobs[mine], len(videos.jobs)
    scores = score_views(
        jobs,
        decode_settings(config, view_recipe(spec, n_clips)),
        logits,
        n_classes=n_classes,
        device=device,
        batch_size=_BATCH * config.tcclip.micro_batch,
        workers=config.extract.workers,
    )
    for job in jobs:
        if cause := scores.failures.get(job.video_id):
            ledger.add(job.video_id, str(job.path), "decode", cause)
    counts = torch.tensor(_count(scores.log_probabilities, videos.targets[mine]), device=device)
    correct, among_five, scored = (int(count) for count in world.sum(counts))
    top5 = {"val_top5": among_five / total} if n_classes > 5 else {}  # of five classes, all are among five
    return {
        "val_top1": correct / total,
        **top5,
        "val_correct": correct,
        "val_scored": scored,
        "val_total": total,
    }


def _count(scores: NDArray[np.float64], targets: NDArray[np.int64]) -> tuple[int, int, int]:
    """Videos whose class is the best one, is among the best five, and videos with scores."""
    scored = ~np.isnan(scores).any(1)
    own = np.take_along_axis(scores, targets[:, None], 1)
    better = (scores > own).sum(1)
    return int((scored & (better == 0)).sum()), int((scored & (better < 5)).sum()), int(scored.sum())
