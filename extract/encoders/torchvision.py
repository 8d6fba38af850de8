"""`torchvision:NAME`: video classifiers of torchvision, such as r3d_18, mvit_v2_s, swin3d_t."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ...errors import ConfigError, MissingDependencyError
from . import Options
from .base import ClipEncoder, ClipSpec, TorchEncoder, read_tensors


def load(name: str, options: Options) -> ClipEncoder:
    """Builds the model; options: weights=FILE of tensors, default: the published weights; frames (16).

    Raises:
        MissingDependencyError: torchvision is not installed.
        ConfigError: there is no such video model, or the weights do not fit.
    """
    try:
        from torchvision.models import get_model, get_model_weights, list_models, video
    except (ImportError, RuntimeError):
        raise MissingDependencyError(
            "torchvision is not installed, or does not fit this torch",
            where="extract.encoder",
            fix="pip install the torchvision that belongs to your torch, from the same index",
        ) from None
    if name not in list_models(module=video):
        raise ConfigError(
            f"no video model {name!r} in torchvision",
            where=f"torchvision:{name}",
            fix=f"one of {', '.join(list_models(module=video))}",
        )
    published = get_model_weights(name).DEFAULT
    weights = options.uri.get("weights")
    try:
        model = get_model(name, weights=published if weights is None else None)
        if weights is not None:
            model.load_state_dict(read_tensors(Path(weights)))
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"the weights do not fit: {str(error).splitlines()[0]}",
            where=f"torchvision:{name}",
            fix="check the file",
        ) from None
    return wrap(model, name, options, published.transforms())


def wrap(model: Any, name: str, options: Options, transform: Any) -> ClipEncoder:
    """The encoder around a video model; `transform` is the preset that belongs to its weights.

    The preset's fixed resize (128 x 171, say) becomes one of the short side, which keeps the aspect ratio.
    """
    head = _take_head(model, name)
    (height, width), short_side = _pair(transform.crop_size), min(transform.resize_size)
    return TorchEncoder(
        family=f"torchvision-{name}",
        model=model,
        head=head,
        spec=ClipSpec(options.integer("frames", 16), height, width, short_side=short_side, antialias=True),
        feature_dim=head.in_features,
        mean=transform.mean,
        std=transform.std,
        layout="BCTHW",
        device=options.device,
        dtype=options.dtype,
        compile=options.compile,
    )


def _take_head(model: Any, name: str) -> nn.Linear:
    """Replaces the last linear layer by the identity and returns it."""
    path = next((path for path in ("fc", "head.1", "head") if _is_linear(model, path)), None)
    if path is None:
        raise ConfigError(
            "its classifier is no linear layer",
            where=f"torchvision:{name}",
            fix="take a ResNet, MViT or Swin",
        )
    parent, _, last = path.rpartition(".")
    owner = model.get_submodule(parent)
    head = getattr(owner, last)
    setattr(owner, last, nn.Identity())
    assert isinstance(head, nn.Linear)
    return head


def _is_linear(model: Any, path: str) -> bool:
    try:
        return isinstance(model.get_submodule(path), nn.Linear)
    except AttributeError:
        return False


def _pair(size: Any) -> tuple[int, int]:
    height, width = list(size) * 2 if len(size) == 1 else list(size)
    return int(height), int(width)
