"""What of a model is trained, in which groups, and how fast at each step."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

from ..model import TcClip

Freeze = Literal["nothing", "backbone", "image", "text"]

# First parts of the parameters' names. What TC-CLIP adds to the text tower is always trained, and so is the
# scale of the logits; the bias between local and context keys belongs to the image tower.
_IMAGE = ("clip.vision_model.", "clip.visual_projection.", "local_global_bias.")
_TEXT = ("clip.text_model.", "clip.text_projection.")
_FROZEN: dict[Freeze, tuple[str, ...]] = {
    "nothing": (),
    "backbone": (*_IMAGE, *_TEXT),
    "image": _IMAGE,
    "text": _TEXT,
}
_PROMPT_VECTORS, _PROMPT_LAYERS = "prompt_vectors", "prompt_layers."


def learning_rate(
    index: int, n_iterations: int, *, epochs: int, warmup_epochs: int, peak: float, lowest: float
) -> float:
    """The rate set after a micro-batch, for the optimiser step that follows.

    It rises in a straight line from 0; then comes a cosine from `peak` to `lowest` that has been running
    since the first micro-batch, so the rate drops where the warm-up ends. All of it as published.

    Args:
        index: micro-batches before this one, since the start of the run.
        n_iterations: micro-batches of an epoch.
        epochs, warmup_epochs: of the run.
        peak, lowest: rates.
    """
    warmup = warmup_epochs * n_iterations
    if index < warmup:
        return peak * index / warmup
    share = index / (epochs * n_iterations)
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * share)) / 2


def last_index(epoch: int, step: int, *, n_accumulated: int, n_iterations: int) -> int | None:
    """The micro-batch after which the rates of a step were set: the last one of the step before it.

    Args:
        epoch, step: of the step, from 0.
        n_accumulated, n_iterations: micro-batches of a step and of an epoch.

    Returns:
        The index for `learning_rate`; None for the first step of a run, which is taken at a rate of 0.
    """
    if step == 0:
        if epoch == 0:
            return None
        epoch, step = epoch - 1, n_iterations // n_accumulated
    return epoch * n_iterations + step * n_accumulated - 1


def freeze(model: TcClip, what: Freeze) -> None:
    """Marks what is not trained; the table of token embeddings never is."""
    for name, parameter in model.named_parameters():
        if name.startswith(_FROZEN[what]):
            parameter.requires_grad_(False)


def make_optimizer(model: TcClip, *, lr: float, lr_10x: bool, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over what is trained, decaying all of it.

    Three groups: what CLIP has, the prompt vectors, the prompt layers. The last two have 10 times the rate if
    `lr_10x`; each group keeps its peak as `peak`. A group may be empty.
    """
    parts: tuple[list[torch.nn.Parameter], ...] = ([], [], [])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts[1 if name == _PROMPT_VECTORS else 2 if name.startswith(_PROMPT_LAYERS) else 0].append(
                parameter
            )
    new = 10 * lr if lr_10x else lr
    groups: list[dict[str, Any]] = [
        # The first step is taken at a rate of 0.
        {"params": part, "lr": 0.0, "peak": peak}
        for part, peak in zip(parts, (lr, new, new), strict=True)
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8, weight_decay=weight_decay, fused=True)
