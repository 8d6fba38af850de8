"""`openclip:NAME?pretrained=TAG`: image towers of the open_clip library, one encoding per frame."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...errors import ConfigError, MissingDependencyError
from . import Options
from .base import ClipEncoder, ClipSpec, TorchEncoder


def load(name: str, options: Options) -> ClipEncoder:
    """Builds the model `name`; option: pretrained, a tag that open_clip knows or a file (required).

    Raises:
        MissingDependencyError: open_clip is not installed.
        ConfigError: there is no such model or tag.
    """
    try:
        import open_clip
    except ImportError:
        raise MissingDependencyError(
            "open_clip is not installed", where="extract.encoder", fix="pip install 'dejavid[openclip]'"
        ) from None
    if "pretrained" not in options.uri:
        raise ConfigError(
            "no weights named", where=f"openclip:{name}", fix=f"openclip:{name}?pretrained=TAG_OR_FILE"
        )
    try:
        model = open_clip.create_model(name, pretrained=options.uri["pretrained"])
    except (RuntimeError, OSError, AssertionError) as error:
        raise ConfigError(
            f"open_clip cannot build it: {str(error).splitlines()[0]}",
            where=f"openclip:{name}",
            fix="open_clip.list_pretrained() names models and tags",
        ) from None
    return wrap(model, name, options)


def wrap(model: Any, name: str, options: Options) -> ClipEncoder:
    """The encoder around an open_clip model."""
    visual = model.visual
    height, width = visual.image_size
    return TorchEncoder(
        family=f"openclip-{name}",
        model=visual,
        head=None,
        spec=ClipSpec(1, height, width, interpolation="bicubic", antialias=True),
        feature_dim=visual.output_dim,
        mean=visual.image_mean,
        std=visual.image_std,
        layout="BCHW",
        embed=_embed,
        device=options.device,
        dtype=options.dtype,
        compile=options.compile,
    )


def _embed(visual: Any, pixels: Tensor) -> Tensor:
    features: Tensor = visual(pixels)
    return features
