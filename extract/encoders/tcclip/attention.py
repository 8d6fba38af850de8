"""Attention with the weights of a CLIP layer; queries, keys and values may be different tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def split_heads(tokens: Tensor, attention: Any) -> Tensor:
    """(B, n, D) -> (B, heads, n, D / heads)."""
    return torch.unflatten(tokens, -1, (attention.num_heads, -1)).transpose(1, 2)


def attend(
    attention: Any,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
) -> Tensor:
    """Scaled dot-product attention and its output projection.

    Args:
        attention: transformers' CLIPAttention.
        queries, keys, values: (B, n, D), (B, m, D), (B, m, D), already projected.
        mask: broadcasts to (B, heads, n, m); added to the scores, or False where one may not look.
        causal: whether a token sees no later one.
    """
    q, k, v = (split_heads(tokens, attention) for tokens in (queries, keys, values))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    projected: Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return projected


def feed_forward(block: Any, tokens: Tensor) -> Tensor:
    """The second half of a CLIP layer with its residual."""
    out: Tensor = tokens + block.mlp(block.layer_norm2(tokens))
    return out
