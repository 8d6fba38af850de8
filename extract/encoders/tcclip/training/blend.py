"""CutMix and Mixup: every training clip becomes a mixture of two, and so does its target."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Beta

_CUTMIX_SHARE = 0.5  # of the batches
_MIXUP_ALPHA = 0.8  # of Mixup's beta distribution; CutMix's is uniform


def smoothed(labels: Tensor, n_classes: int, smoothing: float) -> Tensor:
    """(B,) classes -> (B, C) targets with the share `smoothing` spread over all classes."""
    return F.one_hot(labels, n_classes).float() * (1 - smoothing) + smoothing / n_classes


def blend(pixels: Tensor, targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Mixes a batch with a permutation of itself, by CutMix or, as often, by Mixup.

    One share, one permutation and, in CutMix, one box over all frames serve the whole batch.

    Args:
        pixels: (B, T, 3, H, W) floats.
        targets: (B, C).
        seed: of every draw; the draws are those of the published code for the same seed of both its
            generators.

    Returns:
        New tensors of these shapes.
    """
    cuts = np.random.RandomState(seed).rand() < _CUTMIX_SHARE
    # The distributions of torch draw from its global generator only.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if cuts:
            return _cutmix(pixels, targets)
        share = float(Beta(_MIXUP_ALPHA, _MIXUP_ALPHA).sample())
        other = torch.randperm(len(pixels)).to(pixels.device)
    return _mean(pixels, pixels[other], share), _mean(targets, targets[other], share)


def _cutmix(pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    height, width = pixels.shape[-2:]
    other = torch.randperm(len(pixels)).to(pixels.device)
    side = math.sqrt(1 - float(Beta(1.0, 1.0).sample()))
    (left, right), (top, bottom) = _span(width, side), _span(height, side)
    mixed = pixels.clone()
    mixed[..., top:bottom, left:right] = pixels[other][..., top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, _mean(targets, targets[other], share)


def _span(size: int, share: float) -> tuple[int, int]:
    """First and last + 1 of about `share` of `size` places around a random one, cut off at the ends."""
    half = int(size * share) // 2
    centre = int(torch.randint(size, (1,)))
    return max(centre - half, 0), min(centre + half, size)


def _mean(own: Tensor, other: Tensor, share: float) -> Tensor:
    return share * own + (1 - share) * other
