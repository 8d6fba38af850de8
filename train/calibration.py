"""A head's temperature, so that how sure it is agrees with how often it is right."""

from __future__ import annotations

import math

import torch

from ..distributed import World
from .data import Samples, batches
from .head import DejaVidHead

_BATCH = 256
_RANGE = 7.0  # of the log-temperature around that of spread 1: sure or unsure to 3 digits
_HALVINGS = 60


@torch.no_grad()
def calibrate_temperature(
    head: DejaVidHead, samples: Samples, device: torch.device, world: World | None = None
) -> None:
    """Sets the temperature under which the samples' labels are likeliest; changes no prediction.

    The labels are smoothed as if one sample in n + 1 had none (after Platt, 1999): with hard labels a head
    that is right on all n samples would become infinitely sure.

    Args:
        head: in evaluation mode.
        samples: n held-out ones.
        device: of the head.
        world: processes that share the work and agree on the result.
    """
    world = world or World(0, 1)
    head.log_temperature.zero_()
    mine = torch.arange(len(samples.labels))[world.rank :: world.size]
    found = [
        (head(batch.values, batch.offsets, prepared=True).double(), batch.labels)
        for batch in batches(samples, mine, _BATCH, inputs=head.inputs, device=device)
    ]
    n, n_classes = len(samples.labels), len(head.centroids)
    spread = torch.zeros(1, dtype=torch.float64, device=device)
    for scores, _ in found:
        spread += scores.std(1).sum() / n
    middle = math.log(max(world.sum(spread).item(), torch.finfo(torch.float32).tiny))
    low, high = middle - _RANGE, middle + _RANGE
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        # The derivative of the loss by the inverse temperature, which only grows with it: bisection is exact.
        slope = torch.zeros(1, dtype=torch.float64, device=device)
        for scores, labels in found:
            targets = torch.full_like(scores, 1 / ((n + 1) * n_classes))
            targets[torch.arange(len(labels)), labels] += n / (n + 1)
            slope += (((scores / math.exp(middle)).softmax(1) - targets) * scores).sum()
        if world.sum(slope).item() < 0:
            high = middle
        else:
            low = middle
    head.log_temperature.fill_(high)
