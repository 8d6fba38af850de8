"""A head's parameters as training sees them: where they start, which are trained, and how fast."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..config import TrainSection
from .data import Samples
from .head import DejaVidHead

_SPREAD_SAMPLES = 256


@torch.no_grad()
def prepare_parameters(
    head: DejaVidHead, train: Samples, options: TrainSection, *, device: torch.device, seed: int
) -> None:
    """Sets the initial log-weights and temperature, and which parameters are trained."""
    if options.init_log_weights == "zeros":
        head.log_weights.zero_()
    elif options.init_log_weights == "normal":
        # Drawn on the CPU: the same numbers on every device.
        generator = torch.Generator().manual_seed(seed)
        head.log_weights.copy_(torch.randn(head.log_weights.shape, generator=generator))
    if options.temperature is not None:
        head.log_temperature.fill_(math.log(options.temperature))
    elif head.logits_rule == "per_step":
        head.log_temperature.fill_(math.log(_spread(head, train, device)))
    else:
        head.log_temperature.zero_()
    head.centroids.requires_grad_(options.learn != "weights")
    head.log_weights.requires_grad_(options.learn != "centroids")
    head.log_temperature.requires_grad_(options.lr_temperature > 0)
    if options.tie_weights and options.learn != "centroids":
        head.log_weights.copy_(over_steps(head.log_weights))


def parameter_groups(head: DejaVidHead, options: TrainSection) -> list[dict[str, Any]]:
    """The optimiser's groups: log-weights, centroids, temperature."""
    weight_decay = options.weight_decay
    log_weight_decay = weight_decay if options.log_weight_decay is None else options.log_weight_decay
    return [
        {"params": [head.log_weights], "lr": options.lr, "weight_decay": log_weight_decay},
        {"params": [head.centroids], "lr": options.lr * options.lr_ratio, "weight_decay": weight_decay},
        {"params": [head.log_temperature], "lr": options.lr_temperature, "weight_decay": 0.0},
    ]


def learning_rate(epoch: int, n_epochs: int, warmup_epochs: int) -> float:
    """Factor of the learning rates in an epoch: a cosine from 1 to 0, times a linear warm-up."""
    return (1 + math.cos(math.pi * epoch / n_epochs)) / 2 * min(1.0, (epoch + 1) / (warmup_epochs + 1))


def over_steps(tensor: Tensor) -> Tensor:
    """The mean over the steps of a centroid, at every step."""
    return tensor.mean(1, keepdim=True).expand_as(tensor)


def _spread(head: DejaVidHead, samples: Samples, device: torch.device) -> float:
    """Typical standard deviation, over the classes of a sample, of the logits at temperature 1."""
    head.log_temperature.zero_()
    count = min(_SPREAD_SAMPLES, len(samples.labels))
    values, offsets = samples.take(torch.linspace(0, len(samples.labels) - 1, count).long())
    was_training = head.training
    logits = head.eval()(values.to(device), offsets)
    head.train(was_training)
    spread = float(logits.std(1).mean())
    # All classes alike (spread 0): any temperature will do.
    return spread if spread > 0 else 1.0
