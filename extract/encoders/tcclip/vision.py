"""Temporal contextualisation: frames attend to themselves and to a few tokens that sum up the whole video.

Every layer picks the patches that the class token of their frame looks at most, merges those of all frames
into context tokens, and hands these on as extra keys and values for the next layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .attention import attend, feed_forward, split_heads
from .merging import group, group_means, merge_schedule, per_round
from .options import ModelOptions


class Layer(NamedTuple):
    """What one layer did; P patches and S seeds per frame, K context tokens per video.

    Attributes:
        frames: (B, T * (1 + P), D) frame tokens after attention, each frame's class token first.
        scores: (B, T, P) attention of the class token to its frame's patches, mean over heads.
        seeds: (B, T, S) indices of the best patches, best first.
        groups: (B, T * S) context token that each seed was merged into.
        context: (B, K, D) context tokens before the layer's feed-forward half.
        output: (B, T * (1 + P) + K, D).
    """

    frames: Tensor
    scores: Tensor
    seeds: Tensor
    groups: Tensor
    context: Tensor
    output: Tensor

    @property
    def sources(self) -> Tensor:
        """(B, K, T * P) bool: the patches that each context token is the mean of."""
        n_videos, n_frames, n_patches = self.scores.shape
        first = torch.arange(n_frames, device=self.seeds.device)[:, None] * n_patches
        places = (self.seeds + first).flatten(1)
        members = torch.zeros(
            n_videos, self.context.shape[1], n_frames * n_patches, dtype=torch.bool, device=places.device
        )
        video = torch.arange(n_videos, device=places.device)[:, None]
        members[video, self.groups, places] = True
        return members


def embed_patches(tower: Any, pixels: Tensor) -> Tensor:
    """(B, T, 3, H, W) -> (B, T * (1 + P), D), class tokens and positions included, normalised."""
    embeddings = tower.embeddings
    n_videos, n_frames = pixels.shape[:2]
    patches = embeddings.patch_embedding(pixels.flatten(0, 1)).flatten(2).transpose(1, 2)
    cls = embeddings.class_embedding.expand(len(patches), 1, -1)
    tokens = torch.unflatten(torch.cat([cls, patches], 1), 0, (n_videos, n_frames))
    # One table for all frames, or one for each.
    positions = torch.unflatten(embeddings.position_embedding.weight, 0, (-1, tokens.shape[2]))
    normalised: Tensor = tower.pre_layrnorm((tokens + positions).flatten(1, 2))
    return normalised


def contextualise(
    tower: Any, biases: Sequence[Tensor], pixels: Tensor, options: ModelOptions
) -> Iterator[Layer]:
    """Runs the layers of a vision tower one by one.

    Args:
        tower: transformers' CLIPVisionModel.
        biases: one (heads, 1, 2) for every layer but the first: what is added to the scores of a frame's own
            tokens and of the context tokens; empty without them.
        pixels: (B, T, 3, H, W), normalised.
        options: of the model.
    """
    n_frames = pixels.shape[1]
    tokens = embed_patches(tower, pixels)
    n_own = tokens.shape[1]  # tokens that are not context
    n_seeds = options.seeds_per_frame(n_own // n_frames - 1)
    blocks = tower.encoder.layers
    for number, block in enumerate(blocks):
        normed = block.layer_norm1(tokens)
        bias = biases[number - 1] if biases and number else None
        attended, scores = _attend(block.self_attn, normed, n_own, n_frames, bias)
        frames = tokens[:, :n_own] + attended
        seeds = scores.topk(n_seeds, dim=-1).indices
        chosen = _gather(frames, seeds)
        n_merged = per_round(number, len(blocks), options.merged_per_round, options.merge_slope)
        rounds = merge_schedule(chosen.shape[1], options.n_context, n_merged)
        groups = group(chosen, rounds)
        context, _ = group_means(chosen, groups, chosen.shape[1] - sum(rounds))
        tokens = feed_forward(block, torch.cat([frames, context], 1))
        yield Layer(frames, scores, seeds, groups, context, tokens)


def _attend(
    attention: Any, tokens: Tensor, n_own: int, n_frames: int, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Each frame to itself and to the context tokens behind `n_own`: (B, n_own, D) and scores (B, T, P)."""
    n_videos = len(tokens)

    def per_frame(projected: Tensor) -> Tensor:
        own = torch.unflatten(projected[:, :n_own], 1, (n_frames, -1))
        context = projected[:, None, n_own:].expand(-1, n_frames, -1, -1)
        return torch.cat([own, context], 2).flatten(0, 1)

    n_tokens = n_own // n_frames
    queries = torch.unflatten(attention.q_proj(tokens[:, :n_own]), 1, (n_frames, -1)).flatten(0, 1)
    keys, values = per_frame(attention.k_proj(tokens)), per_frame(attention.v_proj(tokens))
    mask = None
    if bias is not None:
        n_context = tokens.shape[1] - n_own
        columns = [bias[..., :1].expand(-1, 1, n_tokens), bias[..., 1:].expand(-1, 1, n_context)]
        mask = torch.cat(columns, -1)[None].to(queries.dtype)
    out = attend(attention, queries, keys, values, mask)
    scores = _class_attention(attention, queries[:, :1], keys, mask)[:, 1:n_tokens]
    shape = (n_videos, n_frames)
    return torch.unflatten(out, 0, shape).flatten(1, 2), torch.unflatten(scores, 0, shape)


@torch.no_grad()
def _class_attention(attention: Any, query: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    """A row that the fused kernel does not give out, the mean over heads: (B * T, keys)."""
    row = split_heads(query * attention.scale, attention) @ split_heads(keys, attention).transpose(2, 3)
    if mask is not None:
        row = row + mask
    return row.to(torch.promote_types(row.dtype, torch.float32)).softmax(-1).mean(1).squeeze(1)


def _gather(frames: Tensor, seeds: Tensor) -> Tensor:
    """The seeds' tokens (B, T * S, D), frame by frame, in the order of `seeds`."""
    per_frame = torch.unflatten(frames, 1, (seeds.shape[1], -1))
    index = (seeds + 1)[..., None].expand(-1, -1, -1, frames.shape[2])  # the class token is no patch
    return per_frame.gather(2, index).flatten(1, 2)
