"""TC-CLIP (Kim et al., ECCV 2024) and the two baselines it is measured against, around one CLIPModel."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....errors import ConfigError
from ..transformers_models import import_transformers
from .options import ModelOptions
from .text import PromptLayer, TextState, begin, finish, finish_for_videos
from .vision import contextualise


class EncodedVideo(NamedTuple):
    """What the vision tower says of B videos.

    Attributes:
        frames: (B, T, E) projected class token of every frame.
        context: (B, levels, K, E) projected context tokens of the layers that the prompts look at; None for
            the baselines.
        embedding: (B, E), mean over the frames, of unit length.
    """

    frames: Tensor
    context: Tensor | None
    embedding: Tensor


class TcClip(nn.Module):
    """A video-text model around transformers' CLIPModel, whose submodules hold all that CLIP has.

    Args:
        clip: the CLIPModel; its table of token embeddings is not trained.
        options: the method and its sizes.

    Raises:
        ConfigError: the options ask for what this CLIP does not have.
    """

    def __init__(self, clip: Any, options: ModelOptions) -> None:
        super().__init__()
        _check(clip.config, options)
        self.options = options
        self.clip = clip
        clip.text_model.embeddings.token_embedding.requires_grad_(False)
        if options.positions == "joint":
            table = clip.vision_model.embeddings.position_embedding
            rows = table.weight.detach().repeat(options.n_frames, 1)
            clip.vision_model.embeddings.position_embedding = nn.Embedding(
                len(rows), rows.shape[1], _weight=rows
            )
        vision, text = clip.config.vision_config, clip.config.text_config
        learns = options.method == "tcclip"
        n_biases = vision.num_hidden_layers - 1 if learns and options.local_global_bias else 0
        self.local_global_bias = nn.ParameterList(
            nn.Parameter(torch.zeros(vision.num_attention_heads, 1, 2)) for _ in range(n_biases)
        )
        self.prompt_vectors = (
            nn.Parameter(torch.zeros(options.n_prompt_vectors, text.hidden_size)) if learns else None
        )
        block = type(clip.text_model.encoder.layers[0])
        self.prompt_layers = nn.ModuleList(
            PromptLayer(block(text)) for _ in (options.prompt_levels if learns else ())
        )

    @torch.no_grad()
    def initialise(self, template_tokens: Tensor) -> None:
        """Starts what CLIP does not have, as TC-CLIP starts its training.

        Args:
            template_tokens: (n,) ids of the words that the prompt vectors stand for at first.
        """
        if self.prompt_vectors is None:
            return
        self.prompt_vectors.copy_(self.clip.text_model.embeddings.token_embedding(template_tokens))
        for bias in self.local_global_bias:
            nn.init.trunc_normal_(bias, std=0.02)
        layer: Any
        for level, layer in zip(self.options.prompt_levels, self.prompt_layers, strict=True):
            block = self.clip.text_model.encoder.layers[level - 1]
            if self.options.prompt_layer_init == "clip":
                layer.block.load_state_dict(block.state_dict())
                layer.layer_norm_context.load_state_dict(block.layer_norm1.state_dict())
                continue
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    nn.init.zeros_(module.bias)

    def encode_video(self, pixels: Tensor) -> EncodedVideo:
        """(B, T, 3, H, W) normalised pixels -> what the vision tower says.

        Raises:
            ConfigError: the model has a position table per frame, and another number of frames.
        """
        n_videos, n_frames = pixels.shape[:2]
        if self.options.positions == "joint" and n_frames != self.options.n_frames:
            raise ConfigError(
                f"{n_frames} frames, and the model has positions for {self.options.n_frames}",
                where="tcclip, positions = joint",
                fix=f"give it {self.options.n_frames} frames",
            )
        tower = self.clip.vision_model
        context = None
        if self.options.method == "tcclip":
            n_own, captured = 0, {}
            for number, layer in enumerate(
                contextualise(tower, tuple(self.local_global_bias), pixels, self.options), start=1
            ):
                n_own, last = layer.frames.shape[1], layer.output
                if number in self.options.prompt_levels:
                    captured[number] = layer.output[:, n_own:]
            cls = last[:, : n_own : n_own // n_frames]
            context = self._project(torch.stack([captured[level] for level in self.options.prompt_levels], 1))
            frames = self._project(cls)
        else:
            pooled = tower(pixel_values=pixels.flatten(0, 1)).pooler_output
            frames = self.clip.visual_projection(pooled).unflatten(0, (n_videos, n_frames))
        return EncodedVideo(frames, context, F.normalize(frames.mean(1), dim=-1))

    def _project(self, tokens: Tensor) -> Tensor:
        projected: Tensor = self.clip.visual_projection(self.clip.vision_model.post_layernorm(tokens))
        return projected

    @torch.no_grad()
    def context_sources(self, pixels: Tensor) -> Tensor:
        """Which patches became which context token, for pictures: (B, layers, K, T * P) bool.

        Raises:
            ConfigError: the model is a baseline without context tokens.
        """
        if self.options.method != "tcclip":
            raise ConfigError(
                f"{self.options.method} has no context tokens",
                where="sources of context tokens",
                fix="take a model of the method tcclip",
            )
        layers = contextualise(self.clip.vision_model, tuple(self.local_global_bias), pixels, self.options)
        return torch.stack([layer.sources for layer in layers], 1)

    def encode_prompts(self, tokens: Tensor) -> TextState:
        """The prompts as far as no video matters to them: worth keeping while the weights stay.

        Args:
            tokens: (C, L) ids, zeros behind the end.
        """
        tower = self.clip.text_model
        n_layers = self.options.prompt_levels[0] - 1 if self.prompt_layers else len(tower.encoder.layers) - 1
        return begin(tower, tokens, self.prompt_vectors, n_layers)

    def encode_text(self, state: TextState, video: EncodedVideo) -> Tensor:
        """One embedding of unit length per class, (1, C, E), or per video and class, (B, C, E)."""
        tower = self.clip.text_model
        if video.context is None:
            ended = finish(tower, state)[None]
        else:
            context = video.context.detach() if self.options.stop_gradient else video.context
            levels = self.options.prompt_levels
            ended = finish_for_videos(
                tower, state, self.prompt_layers, levels, context, self.options.n_prompt_vectors
            )
        return F.normalize(self.clip.text_projection(ended), dim=-1)

    def logits(self, video: EncodedVideo, state: TextState) -> Tensor:
        """(B, C): scaled cosines of videos and classes."""
        wide = torch.promote_types(video.embedding.dtype, torch.float32)  # 8 bits of a cosine are too few
        text = self.encode_text(state, video).to(wide)
        cosines = (video.embedding[:, None].to(wide) * text).sum(-1)
        scaled: Tensor = self.clip.logit_scale.exp() * cosines
        return scaled

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """(B, T, 3, H, W) normalised pixels and (C, L) prompt ids -> (B, C) logits."""
        return self.logits(self.encode_video(pixels), self.encode_prompts(tokens))


def build_clip(config: Any) -> Any:
    """A CLIPModel of a configuration, not initialised for use: its weights are to be loaded.

    Args:
        config: transformers' CLIPConfig, or one as a mapping.
    """
    transformers = import_transformers()
    if not isinstance(config, transformers.CLIPConfig):
        config = transformers.CLIPConfig.from_dict(dict(config))
    return transformers.CLIPModel(config)


def _check(config: Any, options: ModelOptions) -> None:
    vision, text = config.vision_config, config.text_config
    problem = ""
    if options.method == "tcclip":
        highest = min(text.num_hidden_layers, vision.num_hidden_layers)
        if options.prompt_levels[-1] > highest:
            problem = f"prompt_levels = {options.prompt_levels}, and both towers have only {highest} layers"
        elif config.projection_dim != text.hidden_size:
            problem = (
                f"context tokens of width {config.projection_dim} for a text tower of {text.hidden_size}"
            )
    elif options.positions == "joint":
        problem = f"positions = joint, and {options.method} sees every frame for itself"
    if options.context_length > text.max_position_embeddings:
        problem = f"context_length = {options.context_length}, and CLIP has {text.max_position_embeddings}"
    if problem:
        raise ConfigError(problem, where="options of a TC-CLIP model", fix="docs/tcclip.md explains them")
