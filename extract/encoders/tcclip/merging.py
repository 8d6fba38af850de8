"""Bipartite soft matching: many seed tokens become few context tokens, each the mean of its seeds.

One round splits the tokens by even and odd place, finds for every even one the most similar odd one, and
merges the most similar pairs (ToMe, Bolya et al., ICLR 2023; as used by TC-CLIP, ECCV 2024).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def merge_schedule(n_tokens: int, n_left: int, per_round: int) -> list[int]:
    """How many tokens each round takes away until `n_left` are left; empty when there are no more than that.

    >>> merge_schedule(928, 96, 100)
    [100, 100, 100, 100, 100, 100, 100, 100, 32]
    """
    full = (n_tokens - n_left) // per_round if per_round > 0 else 0
    rounds: list[int] = []
    while n_tokens > n_left:
        wanted = per_round if len(rounds) < full else n_tokens - n_left
        rounds.append(min(wanted, n_tokens // 2))
        n_tokens -= rounds[-1]
    return rounds


def per_round(layer: int, n_layers: int, merged: int, slope: float) -> int:
    """Tokens that a round of this layer (from 0) takes away: linear in the layer, `merged` in the middle."""
    low = int(merged * (1 - slope))
    return int(low + (2 * merged - 2 * low) / max(n_layers - 1, 1) * layer)


def merge_round(tokens: Tensor, sizes: Tensor, n_merged: int) -> tuple[Tensor, Tensor, Tensor]:
    """One round.

    The order of the result matters, for it decides what is even and odd in the next round: the even tokens
    that survive, the most similar ones first, then all odd ones.

    Args:
        tokens: (B, n, D).
        sizes: (B, n), how many seeds each token stands for.
        n_merged: tokens to take away, at most n // 2.

    Returns:
        tokens (B, n - n_merged, D), sizes, and (B, n) the place of every old token among the new ones.
    """
    unit = F.normalize(tokens, dim=-1)
    best, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(-1)
    n_even, n_odd = best.shape[1], tokens.shape[1] - best.shape[1]
    n_kept = n_even - n_merged
    order = best.argsort(dim=-1, descending=True, stable=True)
    kept = order[:, n_merged:]

    place = torch.empty(sizes.shape, dtype=torch.long, device=tokens.device)
    place[:, 1::2] = torch.arange(n_kept, n_kept + n_odd, device=tokens.device)
    even = n_kept + partner
    even.scatter_(1, kept, torch.arange(n_kept, device=tokens.device).expand_as(kept))
    place[:, ::2] = even

    new_sizes = tokens.new_zeros(len(tokens), n_kept + n_odd).scatter_add_(1, place, sizes)
    sums = tokens.new_zeros(*new_sizes.shape, tokens.shape[2])
    sums.scatter_add_(1, place[..., None].expand_as(tokens), tokens * sizes[..., None])
    return sums / new_sizes[..., None], new_sizes, place


@torch.no_grad()
def group(seeds: Tensor, rounds: list[int]) -> Tensor:
    """Which context token every seed belongs to: (B, n, D) -> (B, n), after all rounds.

    Computed in float32 or better, whatever the seeds are: half precision would change the choices.
    """
    tokens = seeds.to(torch.promote_types(seeds.dtype, torch.float32))
    sizes = tokens.new_ones(tokens.shape[:2])
    groups = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])
    with torch.autocast(tokens.device.type, enabled=False):
        for n_merged in rounds:
            tokens, sizes, place = merge_round(tokens, sizes, n_merged)
            groups = place.gather(1, groups)
    return groups


def group_means(seeds: Tensor, groups: Tensor, n_groups: int) -> tuple[Tensor, Tensor]:
    """Mean of the seeds of every group, differentiable, and the groups' sizes.

    A mean of means weighted by size is the mean of all, so the rounds need no gradients of their own.

    Args:
        seeds: (B, n, D).
        groups: (B, n), 0 to n_groups - 1.

    Returns:
        (B, n_groups, D) and (B, n_groups).
    """
    wide = seeds.to(torch.promote_types(seeds.dtype, torch.float32))
    sizes = wide.new_zeros(len(wide), n_groups).scatter_add_(1, groups, wide.new_ones(groups.shape))
    sums = wide.new_zeros(len(wide), n_groups, wide.shape[2])
    sums = sums.scatter_add(1, groups[..., None].expand_as(wide), wide)
    return (sums / sizes[..., None]).to(seeds.dtype), sizes
