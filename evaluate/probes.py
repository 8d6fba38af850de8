"""Baselines trained with PyTorch: attention instead of time, and soft alignments instead of the best."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from ..devices import device_of
from ..kernels.torch_ops import soft_weighted_dtw
from ..train.data import PackedSamples, epoch_order, read_stored
from .task import Floats, Task

Logits = Callable[[Tensor, Tensor], Tensor]  # packed values (S, F), offsets (N + 1,) -> (N, C)

_PROBE_LR, _PROBE_WIDTH, _PROBE_DECAY = 1e-3, 256, 0.05
_PROBE_STEPS = 3000  # optimiser steps to aim at, within the limits on epochs
_PROBE_EPOCHS = (10, 200)
_SOFT_LR = 0.03
_BATCH = 64  # videos per optimiser step
# Softness as a share of the mean distance of one cell: a cell that much dearer still counts by 1 / e.
_SOFTNESS = 0.05


class AttentivePooling(nn.Module):
    """One learned query attends over the steps of a video; a linear layer classifies what it gathers.

    It can prefer some moments over others but knows nothing of their order.

    Args:
        mean, std: (F,) of the training steps, for standardising.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, n_classes: int, width: int = _PROBE_WIDTH) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.keys = nn.Linear(len(mean), width)
        self.values = nn.Linear(len(mean), width)
        self.query = nn.Parameter(torch.randn(width) / width**0.5)
        self.classify = nn.Linear(width, n_classes)

    def forward(self, values: Tensor, offsets: Tensor) -> Tensor:
        steps = (values.float() - self.mean) / self.std
        owner = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff()).to(steps.device)
        score = self.keys(steps) @ self.query
        # A softmax per video: shifted by its largest score, which needs no gradient.
        largest = (
            score.new_full((len(offsets) - 1,), -torch.inf).scatter_reduce(0, owner, score, "amax").detach()
        )
        weight = (score - largest[owner]).exp()
        total = weight.new_zeros(len(largest)).index_add(0, owner, weight)
        gathered = steps.new_zeros(len(largest), self.query.shape[0]).index_add(
            0, owner, weight[:, None] * self.values(steps)
        )
        logits: Tensor = self.classify(gathered / total[:, None])
        return logits


def attentive_probe(task: Task) -> Floats:
    """Attention over the steps, trained with AdamW: the usual probe of video encoders."""
    train = _training_samples(task)
    steps = train.values.float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.config.run.seed)
        model = AttentivePooling(steps.mean(0), steps.std(0).clamp(min=1e-6), task.n_classes)
    model.to(train.values.device)
    fewest, most = _PROBE_EPOCHS
    epochs = min(max(fewest, _PROBE_STEPS * _BATCH // len(train.labels)), most)
    _fit(model, model.parameters(), train, task, epochs=epochs, lr=_PROBE_LR, decay=_PROBE_DECAY)
    return _score(model, task, train.values.device)


def soft_dtw_head(task: Task) -> Floats:
    """The head with soft alignments in training and test: every alignment counts, the cheap ones more.

    Logits are minus the distances per step; the softness is fixed as a share of the distance of a cell.
    """
    raw = _training_samples(task)
    device, inputs = raw.values.device, task.head.inputs
    train = PackedSamples(inputs(raw.values.float(), raw.offsets), raw.offsets, raw.labels)
    centroids = nn.Parameter(task.centroids.values.to(device).clone())
    log_weights = nn.Parameter(torch.zeros_like(centroids))
    gamma = _SOFTNESS * _cell_cost(train.values, centroids.detach())

    def logits(steps: Tensor, offsets: Tensor) -> Tensor:
        pattern = task.head.step_pattern
        distances = soft_weighted_dtw(
            steps, offsets, centroids, log_weights, gamma=gamma, step_pattern=pattern
        )
        cells = (offsets.diff() + centroids.shape[1] - 1).to(distances)
        return -distances / (cells[:, None] * gamma)

    epochs = task.config.train.epochs
    _fit(logits, [centroids, log_weights], train, task, epochs=epochs, lr=_SOFT_LR, decay=0.0)
    return _score(lambda values, offsets: logits(inputs(values, offsets), offsets), task, device)


def _cell_cost(steps: Tensor, centroids: Tensor) -> float:
    """Mean local cost between training steps and centroid steps, from about 64 steps."""
    some = steps[:: max(1, len(steps) // 64)]
    return float(torch.cdist(some, centroids.flatten(0, 1), p=1).mean())


def _training_samples(task: Task) -> PackedSamples:
    values, offsets = read_stored(task.store, task.train_ids)
    device = device_of(task.config.train.device)
    return PackedSamples(values, offsets, task.train_targets).to(device)


def _fit(
    logits: Logits,
    parameters: Iterable[nn.Parameter],
    train: PackedSamples,
    task: Task,
    *,
    epochs: int,
    lr: float,
    decay: float,
) -> None:
    """AdamW with a cosine schedule on the cross-entropy, the samples in the order of the head's training."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs))
    for epoch in tqdm(range(epochs), "probe", unit="epoch", disable=not task.progress):
        for positions in torch.split(epoch_order(len(train.labels), task.config.run.seed, epoch), _BATCH):
            targets = train.labels[positions].to(train.values.device)
            loss = cross_entropy(logits(*train.take(positions)), targets)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        schedule.step()


@torch.no_grad()
def _score(logits: Logits, task: Task, device: torch.device) -> Floats:
    parts = [
        logits(torch.from_numpy(b.values).to(device), torch.from_numpy(b.offsets)).numpy(force=True)
        for b in task.batches(task.ids)
    ]
    return np.concatenate(parts)
