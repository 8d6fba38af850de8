"""The text tower, and prompts that look at the video (video-conditional prompting)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ....errors import ConfigError
from .attention import attend, feed_forward


class PromptLayer(nn.Module):
    """Prompt vectors attend to a video's context tokens.

    Args:
        block: transformers' CLIPEncoderLayer of the text tower's sizes; its first norm is the queries'.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block
        self.layer_norm_context = nn.LayerNorm(block.embed_dim, eps=block.layer_norm1.eps)

    def forward(self, vectors: Tensor, context: Tensor) -> Tensor:
        """vectors (B, n, D), context (B, K, D) -> (B, n, D)."""
        attention = self.block.self_attn
        queries, memory = self.block.layer_norm1(vectors), self.layer_norm_context(context)
        projected = (attention.q_proj(queries), attention.k_proj(memory), attention.v_proj(memory))
        return feed_forward(self.block, vectors + attend(attention, *projected))


class TextState(NamedTuple):
    """The prompts on their way through the tower, as far as they do not depend on a video.

    Attributes:
        hidden: (C, L, D).
        ends: (C,) place of the last token, whose output stands for the prompt.
    """

    hidden: Tensor
    ends: Tensor


def embed_prompts(tower: Any, tokens: Tensor, vectors: Tensor | None) -> Tensor:
    """(C, L) token ids -> (C, L, D) without positions; `vectors` (n, D) take the places after the first."""
    embedded: Tensor = tower.embeddings.token_embedding(tokens)
    if vectors is None:
        return embedded
    learned = vectors.to(embedded.dtype).expand(len(tokens), -1, -1)
    return torch.cat([embedded[:, :1], learned, embedded[:, 1 + len(vectors) :]], 1)


def begin(tower: Any, tokens: Tensor, vectors: Tensor | None, n_layers: int) -> TextState:
    """Runs the first `n_layers` layers, which are the same for all videos.

    Args:
        tower: transformers' CLIPTextModel.
        tokens: (C, L) ids, zeros behind the end.
        vectors: (n, D) learned prompt vectors, or None.

    Raises:
        ConfigError: the prompts are longer than the tower's table of positions.
    """
    # The end has the highest id. Nothing sees what comes later, so what nobody needs is cut off.
    ends = tokens.argmax(-1)
    tokens = tokens[:, : int(ends.max()) + 1]
    positions = tower.embeddings.position_embedding.weight
    if tokens.shape[1] > len(positions):
        raise ConfigError(
            f"a prompt of {tokens.shape[1]} tokens, and the model has {len(positions)} positions",
            where="prompts",
            fix="shorten the class names",
        )
    hidden = embed_prompts(tower, tokens, vectors) + positions[: tokens.shape[1]]
    for block in tower.encoder.layers[:n_layers]:
        hidden = _causal(block, hidden)
    return TextState(hidden, ends)


def finish(tower: Any, state: TextState) -> Tensor:
    """Runs the last layer, the only one left: (C, D), not projected."""
    ended: Tensor = tower.final_layer_norm(_last(tower.encoder.layers[-1], *state))
    return ended


def finish_for_videos(
    tower: Any,
    state: TextState,
    layers: nn.ModuleList,
    levels: Sequence[int],
    context: Tensor,
    n_vectors: int,
) -> Tensor:
    """Runs the layers from the first prompt level on, once for every pair of video and class.

    Args:
        state: the prompts before the layer `levels[0]`.
        layers: one prompt layer per level; `levels` counts from 1.
        context: (B, levels, K, D) projected context tokens of the vision layers of the same numbers.
        n_vectors: prompt vectors, behind each prompt's first token.

    Returns:
        (B, C, D), not projected.
    """
    n_videos, n_classes = len(context), len(state.hidden)
    hidden = state.hidden.expand(n_videos, -1, -1, -1).flatten(0, 1)
    ends = state.ends.repeat(n_videos)
    blocks = tower.encoder.layers
    for number in range(levels[0], len(blocks) + 1):
        if number in levels:
            j = levels.index(number)
            hidden = _condition(layers[j], hidden, context[:, j], n_vectors)
        if number < len(blocks):
            hidden = _causal(blocks[number - 1], hidden)
    last: Tensor = tower.final_layer_norm(_last(blocks[-1], hidden, ends))
    return torch.unflatten(last, 0, (n_videos, n_classes))


def _condition(layer: nn.Module, hidden: Tensor, context: Tensor, n_vectors: int) -> Tensor:
    """Rewrites the places of the prompt vectors: (B * C, L, D), context (B, K, D)."""
    n_videos = len(context)
    vectors = hidden[:, 1 : 1 + n_vectors]
    # All classes of a video ask the same tokens, so they are one long query.
    asked: Tensor = layer(torch.unflatten(vectors, 0, (n_videos, -1)).flatten(1, 2), context)
    return torch.cat([hidden[:, :1], asked.view_as(vectors), hidden[:, 1 + n_vectors :]], 1)


def _causal(block: Any, hidden: Tensor) -> Tensor:
    attention, normed = block.self_attn, block.layer_norm1(hidden)
    projected = (attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed))
    return feed_forward(block, hidden + attend(attention, *projected, causal=True))


def _last(block: Any, hidden: Tensor, ends: Tensor) -> Tensor:
    """The last layer at the prompts' ends only: the other outputs are never read."""
    attention, normed = block.self_attn, block.layer_norm1(hidden)
    row = torch.arange(len(hidden), device=hidden.device)
    query = attention.q_proj(normed[row, ends])[:, None]
    seen = torch.arange(hidden.shape[1], device=hidden.device) <= ends[:, None]
    out = attend(attention, query, attention.k_proj(normed), attention.v_proj(normed), seen[:, None, None])
    return feed_forward(block, hidden[row, ends] + out[:, 0])
