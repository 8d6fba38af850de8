"""`hf:FOLDER_OR_ID` and `hf-image:FOLDER_OR_ID`: models of the transformers library.

Only classes that come with the library: code inside model folders is never run. Offline, give a folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ...errors import ConfigError
from . import Options
from .base import IMAGENET_MEAN, IMAGENET_STD, ClipEncoder, ClipSpec, TorchEncoder
from .transformers_models import import_transformers

_HALF = (0.5, 0.5, 0.5)
_BICUBIC = 3  # PIL's number for it, which processors' files use


@dataclass(frozen=True)
class _Video:
    """A family of video classifiers: where its configuration keeps the input size, and its usual scaling."""

    frames: str = "num_frames"
    size: str = "image_size"
    argument: str = "pixel_values"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


_VIDEO = {
    "videomae": _Video(mean=_HALF, std=_HALF),
    "timesformer": _Video(),
    "vivit": _Video(mean=(0.75,) * 3, std=(0.25,) * 3),  # scales to [-1, 1] and then takes off 0.5 again
    "vjepa2": _Video("frames_per_clip", "crop_size", "pixel_values_videos"),
    "videoprism_vision_model": _Video(argument="pixel_values_videos", mean=(0.0,) * 3, std=(1.0,) * 3),
}
# vision towers that are trained with a text tower: class and output
_TOWERS = {
    "clip": ("CLIPVisionModelWithProjection", "image_embeds"),
    "metaclip_2": ("MetaClip2VisionModelWithProjection", "image_embeds"),
    "siglip": ("SiglipVisionModel", "pooler_output"),
    "siglip2": ("Siglip2VisionModel", "pooler_output"),
}


def load_video(name: str, options: Options) -> ClipEncoder:
    """Builds a video classifier, its final layer taken off, or V-JEPA 2's encoder alone (mean of its tokens).

    Option: revision of a hub repository.

    Raises:
        ConfigError: the model cannot be read, or is of no known family.
    """
    transformers = import_transformers()
    config = _read_config(transformers, name, options)
    kind = _VIDEO.get(config.model_type)
    classifies = _is_classifier(config, "ForVideoClassification")
    if kind is None or not (classifies or config.model_type == "vjepa2"):
        raise ConfigError(
            f"{config.model_type} ({', '.join(config.architectures or ['?'])}) is no video classifier",
            where=f"hf:{name}",
            fix=f"one of {', '.join(_VIDEO)} for video classification; image models: hf-image:",
        )
    frames, size = getattr(config, kind.frames), _side(getattr(config, kind.size))
    usual = ClipSpec(frames, size, size, antialias=True)
    spec, mean, std = _read_processor(transformers, name, usual, kind.mean, kind.std)
    head: nn.Module | None = None
    if classifies:
        model = _read_model(transformers.AutoModelForVideoClassification, name, options)
        feature_dim = model.classifier.in_features
        head, model.classifier = model.classifier, nn.Identity()
    else:
        model = _read_model(transformers.VJEPA2Model, name, options)
        feature_dim = config.hidden_size
    if config.model_type == "videomae" and config.layer_norm_eps == 1e-6:
        model.fc_norm.eps = 1e-6  # VideoMAE V2 in this layout; the class hard-codes torch's 1e-5

    def embed(model: nn.Module, pixels: Tensor) -> Tensor:
        if classifies:
            features: Tensor = model(**{kind.argument: pixels}).logits
            return features.reshape(len(pixels), -1)  # VideoPrism has a token axis
        tokens: Tensor = model(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state
        return tokens.mean(dim=1)

    return TorchEncoder(
        family=f"hf-{config.model_type}",
        model=model,
        head=head,
        spec=spec,
        feature_dim=feature_dim,
        mean=mean,
        std=std,
        layout="BTCHW",
        embed=embed,
        device=options.device,
        dtype=options.dtype,
        compile=options.compile,
    )


def load_image(name: str, options: Options) -> ClipEncoder:
    """Builds an image model: a classifier without its final layer, CLIP's tower, DINO's pooled token ...

    Raises:
        ConfigError: the model cannot be read, or has no pooled output.
    """
    transformers = import_transformers()
    config = _read_config(transformers, name, options)
    head: nn.Module | None = None
    output = "pooler_output"
    vision = getattr(config, "vision_config", config)
    tower = _TOWERS.get(config.model_type.removesuffix("_vision_model"))
    if _is_classifier(config, "ForImageClassification"):
        model = _read_model(transformers.AutoModelForImageClassification, name, options)
        head, model.classifier = model.classifier, nn.Identity()
        output = "logits"
    elif tower is not None:
        model = _read_model(getattr(transformers, tower[0]), name, options)
        output = tower[1]
    else:
        model = _read_model(transformers.AutoModel, name, options)
    size = _side(vision.image_size)
    spec, mean, std = _read_processor(
        transformers, name, ClipSpec(1, size, size, antialias=True), IMAGENET_MEAN, IMAGENET_STD
    )

    def embed(model: nn.Module, pixels: Tensor) -> Tensor:
        features: Tensor | None = getattr(model(pixel_values=pixels), output, None)
        if features is None or features.ndim != 2:
            raise ConfigError(
                f"{type(model).__name__} has no pooled output",
                where=f"hf-image:{name}",
                fix="take another model",
            )
        return features

    # Widths have many names; the model itself knows best.
    blank = torch.zeros(1, 3, spec.height, spec.width)
    with torch.inference_mode():
        feature_dim = embed(model.eval(), blank).shape[1]
    return TorchEncoder(
        family=f"hf-{config.model_type}",
        model=model,
        head=head,
        spec=spec,
        feature_dim=feature_dim,
        mean=mean,
        std=std,
        layout="BCHW",
        embed=embed,
        device=options.device,
        dtype=options.dtype,
        compile=options.compile,
    )


def _read_config(transformers: Any, name: str, options: Options) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(name, **_source(options))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"no configuration of a known model: {str(error).splitlines()[0]}",
            where=f"hf:{name}",
            fix="give a folder with config.json and model.safetensors, or the id of a hub repository",
        ) from None


def _read_model(kind: Any, name: str, options: Options) -> Any:
    try:
        return kind.from_pretrained(name, dtype=torch.float32, **_source(options))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"the weights cannot be read: {str(error).splitlines()[0]}",
            where=f"hf:{name}",
            fix="give a folder with config.json and model.safetensors, or the id of a hub repository",
        ) from None


def _source(options: Options) -> dict[str, Any]:
    return {"trust_remote_code": False, "revision": options.uri.get("revision", "main")}


def _is_classifier(config: Any, ending: str) -> bool:
    return any(name.endswith(ending) for name in config.architectures or ())


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, list | tuple) else size)


def _read_processor(
    transformers: Any,
    name: str,
    spec: ClipSpec,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tuple[ClipSpec, tuple[float, ...], tuple[float, ...]]:
    """The preprocessing that comes with a checkpoint; the given values where it tells nothing."""
    data: dict[str, Any] = {}
    for file in ("preprocessor_config.json", "video_preprocessor_config.json"):
        path = transformers.utils.cached_file(
            name,
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if path is not None:
            data |= json.loads(Path(path).read_text(encoding="utf-8"))
    if not data:
        return spec, mean, std
    # pixels * rescale - offset, then (.. - mean) / std: the same as one mean and std for pixels in [0, 1].
    scale = 255 * float(data.get("rescale_factor", 1 / 255))
    offset = 1.0 if data.get("offset") else 0.0
    if data.get("do_normalize", True):
        mean, std = tuple(data.get("image_mean", mean)), tuple(data.get("image_std", std))
    else:
        mean, std = (0.0,) * 3, (1.0,) * 3
    mean, std = tuple((m + offset) / scale for m in mean), tuple(s / scale for s in std)
    size = data.get("size") or {}
    squash = "height" in size and not data.get("do_center_crop", False)
    return (
        ClipSpec(
            spec.frames,
            spec.height,
            spec.width,
            short_side=int(size.get("shortest_edge", 0)),
            resize="squash" if squash else "short_side",
            interpolation="bicubic" if data.get("resample") == _BICUBIC else "bilinear",
            antialias=True,
        ),
        mean,
        std,
    )
