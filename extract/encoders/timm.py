"""`timm:NAME`: image models of the timm library, one encoding per frame."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...errors import ConfigError, MissingDependencyError
from . import Options
from .base import ClipEncoder, ClipSpec, TorchEncoder, read_tensors


def load(name: str, options: Options) -> ClipEncoder:
    """Builds a model by its timm name; option: weights=FILE of tensors, default: the published weights.

    Raises:
        MissingDependencyError: timm is not installed.
        ConfigError: there is no such model, or the weights do not fit.
    """
    try:
        import timm
    except ImportError:
        raise MissingDependencyError(
            "timm is not installed", where="extract.encoder", fix="pip install 'dejavid[timm]'"
        ) from None
    weights = options.uri.get("weights")
    try:
        model = timm.create_model(name, pretrained=weights is None)
        if weights is not None:
            model.load_state_dict(read_tensors(Path(weights)))
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"timm cannot build it: {str(error).splitlines()[0]}",
            where=f"timm:{name}",
            fix="timm.list_models()",
        ) from None
    return wrap(model, name, options)


def wrap(model: Any, name: str, options: Options) -> ClipEncoder:
    """The encoder around a timm model."""
    from timm.data import resolve_model_data_config

    data = resolve_model_data_config(model)
    _, height, width = data["input_size"]
    head = model.get_classifier()
    return TorchEncoder(
        family=f"timm-{name}",
        model=model,
        head=head if isinstance(head, nn.Linear) else None,
        spec=ClipSpec(
            1,
            height,
            width,
            short_side=math.floor(min(height, width) / data["crop_pct"]),
            resize="squash" if data.get("crop_mode") == "squash" else "short_side",
            interpolation="bicubic" if data["interpolation"] == "bicubic" else "bilinear",
            antialias=True,
        ),
        feature_dim=model.head_hidden_size,
        mean=data["mean"],
        std=data["std"],
        layout="BCHW",
        embed=_embed,
        device=options.device,
        dtype=options.dtype,
        compile=options.compile,
    )


def _embed(model: Any, pixels: Tensor) -> Tensor:
    features: Tensor = model.forward_head(model.forward_features(pixels), pre_logits=True)
    assert features.ndim == 2, "timm pools before the classifier"
    return features
