"""Weighted DTW as the paper's network, in PyTorch: any torch device and dtype, differentiable by autograd.

The DP table is walked along its anti-diagonals. Diagonal d holds the cells with t + s = d, indexed by t:

    s:   0   1   2   3              diagonal d:   0    1    2    3 ...
    t=0  a0  a1  a2  a3                     t=0   a0   a1   a2   a3
    t=1  b0  b1  b2  b3        ->           t=1        b0   b1   b2
    t=2  c0  c1  c2  c3                     t=2             c0   c1

Cell (t, s) is reached from (t, s-1) and (t-1, s): entries t and t-1 of the diagonal before. So a diagonal is
the one before, min-pooled with kernel 2 and stride 1, plus its local costs, which skip the pooling. `classic`
adds entry t-1 of the diagonal two before. The gradient of the network's output in the local costs is 1 on the
path and 0 elsewhere: that is how the path itself is read off.

Source: Ho and Madden, DejaVid, CVPR 2025 (arXiv 2506.12585), section 4; Cuturi and Blondel, Soft-DTW, 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import ConfigError
from .inputs import Samples, check_parameters, check_samples, check_step_pattern

# Takes (diagonal or None, same row, row before) and returns their minimum: hard or soft.
Pool = Callable[[Tensor | None, Tensor, Tensor], Tensor]

_CELLS_AT_ONCE = 1 << 24  # DP cells of one block of classes: bounds the temporaries of a search


def soft_weighted_dtw(
    values: Any,
    offsets: Any,
    centroids: Any,
    log_weights: Any,
    *,
    gamma: float,
    step_pattern: str = "no_diagonal",
) -> Tensor:
    """Weighted DTW with the minimum replaced by `-gamma * log(sum(exp(-x / gamma)))`.

    Every alignment contributes to the gradient, not only the best one, so that soft alignments (Soft-DTW,
    D3TW) can be compared with the head's. It approaches `weighted_dtw` from below as `gamma` goes to 0.

    Args:
        values: (S, F) rows of all samples.
        offsets: (N + 1,) first row of every sample, and S.
        centroids: (C, Tc, F).
        log_weights: (C, Tc, F).
        gamma: softness, in units of the distance, above 0.
        step_pattern: "no_diagonal" or "classic".

    Returns:
        (N, C) distances (may be negative), differentiable in centroids and log_weights.

    Raises:
        ConfigError: see `weighted_dtw`; or gamma is not above 0.
    """
    if not gamma > 0:
        raise ConfigError(f"gamma is {gamma}", where="argument gamma", fix="pass a number above 0")
    samples = check_samples(values, offsets)
    check_step_pattern(step_pattern)
    c, w = check_parameters(samples, centroids, log_weights)

    def soft_min(diagonal: Tensor | None, same_row: Tensor, row_before: Tensor) -> Tensor:
        moves = [same_row, row_before] if diagonal is None else [diagonal, same_row, row_before]
        return -gamma * torch.logsumexp(torch.stack(moves) / -gamma, 0)

    # Large instead of infinite: a soft minimum of two infinities has no gradient.
    outside = torch.finfo(c.dtype).max ** 0.5
    return network(
        _pad_samples(samples, local_cost(samples, c, w)), samples.lengths, step_pattern, soft_min, outside
    )


class TorchKernels:
    """One batch on the torch backend; the methods are those of `dispatch.Kernels`."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def search(
        self, centroids: Tensor, log_weights: Tensor, step_pattern: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        samples = self._samples
        classes_at_once = max(
            1, _CELLS_AT_ONCE // (samples.n_samples * centroids.shape[1] * int(samples.lengths.max()))
        )
        blocks = [torch.split(x, classes_at_once) for x in (centroids, log_weights)]
        found = []
        for c, w in zip(*blocks, strict=True):
            cost = _pad_samples(samples, local_cost(samples, c.detach(), w.detach()))
            # The path is a gradient, also where the caller has switched gradients off.
            with torch.inference_mode(False), torch.enable_grad():
                cost = (cost.clone() if cost.is_inference() else cost).requires_grad_()
                distances = network(cost, samples.lengths, step_pattern)
                (on_path,) = torch.autograd.grad(distances.sum(), cost)
            lo = on_path.argmax(-1)
            found.append((distances.detach(), lo, lo + on_path.sum(-1).long() - 1))
        distances, lo, hi = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        return distances, lo, hi

    def path_cost(self, centroids: Tensor, log_weights: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        samples, device = self._samples, lo.device
        row = torch.arange(len(samples.values), device=device)
        owner = torch.repeat_interleave(torch.arange(samples.n_samples), samples.lengths).to(device)
        start = samples.offsets[:-1].to(device)[:, None, None]
        first, last = (start + lo).flatten(1), (start + hi).flatten(1)
        met = [
            ((row >= first[owner, i]) & (row <= last[owner, i])).nonzero()[:, 0]
            for i in range(first.shape[1])
        ]
        cost = local_cost(samples, centroids, log_weights, met).sum(1)
        return cost.new_zeros(samples.n_samples, len(centroids)).index_add(0, owner, cost.T)

    def path_gradients(
        self, centroids: Tensor, log_weights: Tensor, lo: Tensor, hi: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            parameters = centroids.detach().requires_grad_(), log_weights.detach().requires_grad_()
            distances = self.path_cost(*parameters, lo, hi)
        grad_c, grad_l = torch.autograd.grad(distances, parameters, grad)
        return grad_c, grad_l


def local_cost(
    samples: Samples, centroids: Tensor, log_weights: Tensor, met: Sequence[Tensor] | None = None
) -> Tensor:
    """Cost of every cell, (C, Tc, S): `sum_f exp(log_weights) * |centroids - values|`.

    Args:
        samples: the batch; its values are converted to the dtype of the centroids.
        centroids: (C, Tc, F), differentiable.
        log_weights: (C, Tc, F), differentiable.
        met: for every centroid row the columns to compute, the others being 0; None computes all.
    """
    rows = centroids.flatten(0, 1), log_weights.exp().flatten(0, 1)
    cost: Tensor = _LocalCost.apply(samples.values.to(centroids.dtype), *rows, met)  # type: ignore[no-untyped-call]
    return cost.view(*centroids.shape[:2], -1)


def hard_min(diagonal: Tensor | None, same_row: Tensor, row_before: Tensor) -> Tensor:
    """The minimum whose gradient follows the tie rule of `reference`."""
    best = torch.where(row_before < same_row, row_before, same_row)
    return best if diagonal is None else torch.where(best < diagonal, best, diagonal)


def network(
    cost: Tensor, lengths: Tensor, step_pattern: str, pool: Pool = hard_min, outside: float = torch.inf
) -> Tensor:
    """(N, C) accumulated costs of the last cells.

    Args:
        cost: (N, C, Tc, longest T) local costs, anything beyond a sample's end.
        lengths: (N,) T of every sample.
        step_pattern: "no_diagonal" or "classic".
        pool: minimum over the moves.
        outside: accumulated cost of cells outside the table.
    """
    n_samples, n_classes, length, longest = cost.shape
    # Skewing without a copy per row: rows made longer by Tc and then read Tc - 1 longer slip by one each.
    n_diagonals = longest + length - 1
    flat = pad(cost, (0, length), value=outside).flatten(2)
    skewed = flat[..., : length * n_diagonals].reshape(n_samples, n_classes, length, n_diagonals)
    before: Tensor | None = None
    last = pad(skewed[..., 0], (1, 0), value=outside)
    ends = [last[..., -1]]
    for d in range(1, n_diagonals):
        skip = None if step_pattern == "no_diagonal" or before is None else before[..., :-1]
        # Entry 0 is the wall above the table, entry t + 1 is row t.
        reached = skewed[..., d] + pool(skip, last[..., 1:], last[..., :-1])
        before, last = last, pad(reached, (1, 0), value=outside)
        ends.append(last[..., -1])
    final = (lengths + length - 2).to(cost.device)
    return torch.stack(ends).gather(0, final[None, :, None].expand(1, n_samples, n_classes))[0]


def _pad_samples(samples: Samples, cost: Tensor) -> Tensor:
    """(C, Tc, S) -> (N, C, Tc, longest T); cells beyond a sample's end repeat its last one."""
    step = torch.arange(int(samples.lengths.max()))
    column = samples.offsets[:-1, None] + torch.minimum(step, samples.lengths[:, None] - 1)
    return cost[..., column.to(cost.device)].permute(2, 0, 1, 3)


class _LocalCost(torch.autograd.Function):
    """Row by row, so that no (C, Tc, S, F) temporary exists, forward or backward."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, centroids: Tensor, weights: Tensor, met: Sequence[Tensor] | None
    ) -> Tensor:
        ctx.save_for_backward(values, centroids, weights)
        ctx.met = met
        cost = values.new_zeros(len(centroids), len(values))
        for r, (c, w) in enumerate(zip(centroids, weights, strict=True)):
            if met is None:
                torch.mv((values - c).abs_(), w, out=cost[r])
            else:
                cost[r, met[r]] = torch.mv((values[met[r]] - c).abs_(), w)
        return cost

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, None]:
        values, centroids, weights = ctx.saved_tensors
        grad_c, grad_w = torch.empty_like(centroids), torch.empty_like(weights)
        for r, (c, w) in enumerate(zip(centroids, weights, strict=True)):
            column = grad[r].nonzero()[:, 0] if ctx.met is None else ctx.met[r]
            g, difference = grad[r, column], c - values[column]
            # The sub-gradient at c == x is -1: g @ (2 * [c > x] - 1).
            grad_c[r] = w * (2 * torch.mv((difference > 0).to(g.dtype).T, g) - g.sum())
            grad_w[r] = torch.mv(difference.abs_().T, g)
        return None, grad_c, grad_w, None
