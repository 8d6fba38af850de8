"""`tcclip:FOLDER`: TC-CLIP, ViFi-CLIP or CLIP as a frozen encoder; a window's video embedding is its step."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import Options
from ..base import IMAGENET_MEAN, IMAGENET_STD, ClipEncoder, ClipSpec, Encoded, TorchEncoder
from .convert import load as load_model
from .model import TcClip
from .prompts import prompts_of, read_class_names, tokenise


def load(name: str, options: Options) -> ClipEncoder:
    """Builds the encoder of a folder that `convert` wrote.

    Options: frames per window; labels=FILE, classes (CSV or JSON) whose logits come with the embedding.

    Raises:
        ConfigError: the folder or the label file cannot be read, or a prompt is too long.
    """
    n_frames = options.integer("frames", 1) if "frames" in options.uri else None
    model, tokenizer = load_model(Path(name), n_frames=n_frames)
    tokens = None
    if labels := options.uri.get("labels"):
        prompts = prompts_of(read_class_names(Path(labels)).names, model.options)
        tokens = tokenise(tokenizer, prompts, model.options.context_length)
    return TcClipEncoder(model, tokens, options)


def clip_spec(model: TcClip) -> ClipSpec:
    """What the model wants to see: its frames, at CLIP's size out of a short side 256 / 224 times as long."""
    size = model.clip.config.vision_config.image_size
    return ClipSpec(model.options.n_frames, size, size, short_side=size * 256 // 224)


class TcClipEncoder(TorchEncoder):
    """The video embedding, of unit length; with prompts also the logits of their classes.

    Args:
        model: in float32.
        tokens: (C, L) prompt ids, or None.
        options: where and how it runs.
    """

    def __init__(self, model: TcClip, tokens: Tensor | None, options: Options) -> None:
        super().__init__(
            family=f"tcclip-{model.options.method}",
            model=model,
            head=None,
            spec=clip_spec(model),
            feature_dim=model.clip.config.projection_dim,
            mean=IMAGENET_MEAN,  # not CLIP's own
            std=IMAGENET_STD,
            layout="BTCHW",
            embed=_embed,
            device=options.device,
            dtype=options.dtype,
        )
        self.model = model
        # The same weights with other sizes of context are another encoder; so are other classes.
        facts = f"{model.options}{None if tokens is None else tokens.tolist()}"
        self.id += f"-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"
        self._encode_video = torch.compile(model.encode_video) if options.compile else model.encode_video
        self._prompts = None
        if tokens is not None:
            self.num_classes = len(tokens)
            with torch.inference_mode():
                self._prompts = model.encode_prompts(tokens.to(options.device))

    @torch.inference_mode()
    def encode(self, clips: Tensor) -> Encoded:
        """See `ClipEncoder.encode`."""
        self.check(clips)
        video = self._encode_video(self.normalise(clips))
        logits = None if self._prompts is None else self.model.logits(video, self._prompts).float()
        return Encoded(video.embedding.float(), logits)

    @torch.inference_mode()
    def context_sources(self, clips: Tensor) -> Tensor:
        """Where the context tokens come from, to be shown over the frames.

        Args:
            clips: uint8 (B, T, H, W, 3).

        Returns:
            (B, layers, K, T, rows, columns) bool: the patches that each context token is the mean of.

        Raises:
            ConfigError: the model is a baseline without context tokens.
        """
        self.check(clips)
        sources = self.model.context_sources(self.normalise(clips))
        vision = self.model.clip.config.vision_config
        side = vision.image_size // vision.patch_size
        return torch.unflatten(sources, -1, (self.spec.frames, side, side))


def _embed(model: nn.Module, pixels: Tensor) -> Tensor:
    tower: Any = model
    embedding: Tensor = tower.encode_video(pixels).embedding
    return embedding
