"""Random batches for the tests of the kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch


@dataclass(frozen=True)
class Case:
    """One ragged batch with live and frozen parameters."""

    values: torch.Tensor
    offsets: torch.Tensor
    centroids: torch.Tensor
    log_weights: torch.Tensor
    path_centroids: torch.Tensor
    path_log_weights: torch.Tensor


@pytest.fixture
def make_case():
    """Builds a `Case` from a seed, sample lengths and C, Tc, F."""

    def make(seed, lengths, n_classes, length, n_features, dtype=torch.float32):
        rng = np.random.default_rng(seed)

        def normal(*shape, scale=1.0):
            return torch.tensor(rng.normal(size=shape) * scale, dtype=dtype)

        shape = n_classes, length, n_features
        centroids, log_weights = normal(*shape), normal(*shape, scale=0.5)
        return Case(
            values=normal(sum(lengths), n_features),
            offsets=torch.tensor(np.concatenate([[0], np.cumsum(lengths)])),
            centroids=centroids,
            log_weights=log_weights,
            path_centroids=centroids + normal(*shape, scale=0.3),
            path_log_weights=log_weights + normal(*shape, scale=0.3),
        )

    return make
