"""The definition of weighted DTW, in NumPy float64 and plain loops: slow and obvious.

For a sample `x` of T rows and a class with centroid `c`, log-weights `l` of Tc rows:

    local_cost[t, s]       = sum_f exp(l[t, f]) * |c[t, f] - x[s, f]|
    accumulated_cost[t, s] = local_cost[t, s] + min(accumulated_cost[t, s-1], accumulated_cost[t-1, s])

`step_pattern="classic"` adds `accumulated_cost[t-1, s-1]` to the minimum. The path runs from (0, 0) to
(Tc-1, T-1); the distance is the sum of local costs on it, both ends included, not divided by its length.
Where moves tie, the path goes back to (t-1, s) only if that is strictly smaller than the rest, else to
(t, s-1); with the diagonal, any tie with it takes the diagonal.

Along a fixed path the distance is piecewise linear in `c` and smooth in `l`; with g the gradient of the
distance and the sub-gradient of |c - x| at c == x being -1:

    d/dc[t, f] = g * sum_s exp(l) * (+1 if c > x else -1)          d/dl[t, f] = g * sum_s exp(l) * |c - x|

Source: Ho and Madden, DejaVid, CVPR 2025 (arXiv 2506.12585), sections 3 and 4.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .inputs import Samples

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


class ReferenceKernels:
    """One batch on the reference backend; the methods are those of `dispatch.Kernels`."""

    def __init__(self, samples: Samples) -> None:
        values, offsets = samples.values.double().cpu().numpy(), samples.offsets.tolist()
        self._samples = [values[a:b] for a, b in pairwise(offsets)]

    def search(
        self, centroids: Tensor, log_weights: Tensor, step_pattern: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        c, w = _parameters(centroids, log_weights)
        distances = np.zeros((len(self._samples), len(c)))
        lo = np.zeros((*distances.shape, c.shape[1]), np.int64)
        hi = np.zeros_like(lo)
        for n, x in enumerate(self._samples):
            for k in range(len(c)):
                accumulated = accumulated_cost(local_cost(x, c[k], w[k]), step_pattern)
                distances[n, k] = accumulated[-1, -1]
                lo[n, k], hi[n, k] = trace_back(accumulated, step_pattern)
        return _like(distances, centroids), torch.from_numpy(lo), torch.from_numpy(hi)

    def path_cost(self, centroids: Tensor, log_weights: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        c, w = _parameters(centroids, log_weights)
        distances = np.zeros((len(self._samples), len(c)))
        for n, k, t in np.ndindex(*lo.shape):
            x = self._samples[n][lo[n, k, t] : hi[n, k, t] + 1]
            distances[n, k] += (w[k, t] * np.abs(c[k, t] - x)).sum()
        return _like(distances, centroids)

    def path_gradients(
        self, centroids: Tensor, log_weights: Tensor, lo: Tensor, hi: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        c, w = _parameters(centroids, log_weights)
        grad_c, grad_l = np.zeros_like(c), np.zeros_like(c)
        for n, k, t in np.ndindex(*lo.shape):
            x = self._samples[n][lo[n, k, t] : hi[n, k, t] + 1]
            g = grad[n, k].item() * w[k, t]
            grad_c[k, t] += g * np.where(c[k, t] > x, 1.0, -1.0).sum(0)
            grad_l[k, t] += g * np.abs(c[k, t] - x).sum(0)
        return _like(grad_c, centroids), _like(grad_l, centroids)


def local_cost(x: Array, centroid: Array, weights: Array) -> Array:
    """Cost of every cell, (Tc, T), of one sample (T, F) and one class (Tc, F)."""
    cost = np.zeros((len(centroid), len(x)))
    for t in range(len(centroid)):
        for s in range(len(x)):
            cost[t, s] = (weights[t] * np.abs(centroid[t] - x[s])).sum()
    return cost


def accumulated_cost(cost: Array, step_pattern: str) -> Array:
    """The DP table, (Tc, T), of a table of local costs."""
    table = np.zeros_like(cost)
    for t in range(cost.shape[0]):
        for s in range(cost.shape[1]):
            before = [table[i, j] for i, j in _moves(t, s, step_pattern)]
            table[t, s] = cost[t, s] + min(before, default=0.0)
    return table


def trace_back(table: Array, step_pattern: str) -> tuple[Ints, Ints]:
    """The path of a DP table as the first and last sample row, (Tc,) each, that every centroid row meets."""
    t, s = table.shape[0] - 1, table.shape[1] - 1
    lo, hi = np.zeros(t + 1, np.int64), np.zeros(t + 1, np.int64)
    lo[t] = hi[t] = s
    while (t, s) != (0, 0):
        moves = _moves(t, s, step_pattern)
        # min() keeps the first of equals, and _moves lists them in the order in which they win a tie.
        best = min(moves, key=lambda move: table[move])
        if best[0] < t:
            hi[best[0]] = best[1]
        t, s = best
        lo[t] = s
    return lo, hi


def _moves(t: int, s: int, step_pattern: str) -> list[tuple[int, int]]:
    """Cells that (t, s) may be reached from; of equally cheap ones the first is taken."""
    moves = [(t - 1, s - 1)] if step_pattern == "classic" else []
    moves += [(t, s - 1), (t - 1, s)]
    return [(i, j) for i, j in moves if i >= 0 and j >= 0]


def _parameters(centroids: Tensor, log_weights: Tensor) -> tuple[Array, Array]:
    return centroids.detach().double().cpu().numpy(), np.exp(log_weights.detach().double().cpu().numpy())


def _like(array: Array, tensor: Tensor) -> Tensor:
    return torch.from_numpy(array).to(tensor.device, tensor.dtype)
