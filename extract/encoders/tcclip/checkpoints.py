"""Released checkpoints: read without running anything of theirs, and renamed for `TcClip`."""

from __future__ import annotations

import re
import typing
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....errors import ConfigError
from ..base import read_tensors

_BLOCK = re.compile(
    r"(?P<tower>image_encoder\.transformer\.resblocks|text_encoder\.transformer\.resblocks"
    r"|text_encoder\.prompt_generation_layer)\.(?P<number>\d+)\.(?P<part>.+)"
)
_TOWERS = {
    "image_encoder.transformer.resblocks": "clip.vision_model.encoder.layers.{}.",
    "text_encoder.transformer.resblocks": "clip.text_model.encoder.layers.{}.",
    "text_encoder.prompt_generation_layer": "prompt_layers.{}.block.",
}
_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    **{f"attn.{name}": f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")},
}
_OUTER = {
    "logit_scale": "clip.logit_scale",
    "image_encoder.class_embedding": "clip.vision_model.embeddings.class_embedding",
    "image_encoder.conv1.weight": "clip.vision_model.embeddings.patch_embedding.weight",
    "image_encoder.positional_embedding": "clip.vision_model.embeddings.position_embedding.weight",
    "image_encoder.ln_pre.weight": "clip.vision_model.pre_layrnorm.weight",
    "image_encoder.ln_pre.bias": "clip.vision_model.pre_layrnorm.bias",
    "image_encoder.ln_post.weight": "clip.vision_model.post_layernorm.weight",
    "image_encoder.ln_post.bias": "clip.vision_model.post_layernorm.bias",
    "image_encoder.proj": "clip.visual_projection.weight",
    "text_encoder.positional_embedding": "clip.text_model.embeddings.position_embedding.weight",
    "text_encoder.ln_final.weight": "clip.text_model.final_layer_norm.weight",
    "text_encoder.ln_final.bias": "clip.text_model.final_layer_norm.bias",
    "text_encoder.text_projection": "clip.text_projection.weight",
    "prompt_learner.ctx": "prompt_vectors",
}
_TRANSPOSED = {"image_encoder.proj", "text_encoder.text_projection"}
# Embeddings of the class names that the model was trained with: made anew for any class.
_DROPPED = {"prompt_learner.token_prefix", "prompt_learner.token_suffix"}


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under their official names, and the configuration they were saved with, {} without one.

    The configuration is an OmegaConf object. Its classes are replaced by empty ones of our own, so neither
    that package nor anything else is imported.

    Raises:
        ConfigError: there is no file, or nothing that can be read safely.
    """
    config: dict[str, Any] = {}
    with torch.serialization.safe_globals(_stand_ins()):
        state = read_tensors(path)
        if path.suffix != ".safetensors":
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            plain = _plain(data.get("config")) if isinstance(data, Mapping) else None
            config = plain if isinstance(plain, dict) else {}
    return {key.removeprefix("module."): value.float() for key, value in state.items()}, config


def to_transformers(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Official names -> those of `TcClip`; tensors are split and transposed, never changed.

    Raises:
        ConfigError: a name is unknown; lists them.
    """
    converted: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, value in state.items():
        block = _BLOCK.fullmatch(key)
        if key in _OUTER:
            value = value.T if key in _TRANSPOSED else value
            is_positions = key == "image_encoder.positional_embedding"
            converted[_OUTER[key]] = value.flatten(0, -2) if is_positions else value
        elif block is not None:
            renamed = _block(block["tower"], int(block["number"]), block["part"], value)
            converted |= renamed
            unknown += [] if renamed else [key]
        elif key not in _DROPPED:
            unknown.append(key)
    if unknown:
        raise ConfigError(
            f"{len(unknown)} tensors that no TC-CLIP has, such as {', '.join(sorted(unknown)[:3])}",
            where=where,
            fix="give a checkpoint of TC-CLIP or ViFi-CLIP as the official code saves it",
        )
    return {key: value.contiguous() for key, value in converted.items()}


def _block(tower: str, number: int, part: str, value: Tensor) -> dict[str, Tensor]:
    """The tensors of one part of one layer; none for an unknown part."""
    prefix = _TOWERS[tower].format(number)
    if part == "attn.local_global_bias_table" and tower.startswith("image") and number:
        return {f"local_global_bias.{number - 1}": value}
    module, _, kind = part.rpartition(".")
    if part in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = part.removeprefix("attn.in_proj_")
        thirds = zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True)
        return {f"{prefix}self_attn.{name}.{kind}": third for name, third in thirds}
    if module == "ln_1_kv" and tower.endswith("prompt_generation_layer"):
        return {f"prompt_layers.{number}.layer_norm_context.{kind}": value}
    return {f"{prefix}{_PARTS[module]}.{kind}": value} if module in _PARTS else {}


def _stand_ins() -> list[Any]:
    """Empty classes under the names that a saved OmegaConf object asks for."""
    names = [
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.listconfig.ListConfig",
        "omegaconf.base.ContainerMetadata",
        "omegaconf.base.Metadata",
        *(f"omegaconf.nodes.{kind}Node" for kind in _NODES),
    ]
    ours: list[Any] = [(type(name.rpartition(".")[2], (), {}), name) for name in names]
    return [*ours, typing.Any, dict, list, int, defaultdict]


_NODES = ("Any", "Integer", "Float", "Boolean", "String", "Interpolation", "Enum", "Bytes", "Path")


def _plain(node: Any) -> Any:
    """The values inside stand-ins, as JSON has them."""
    content = getattr(node, "__dict__", {})
    inner = content.get("_content", content.get("_val", node))
    if isinstance(inner, Mapping):
        return {str(key): _plain(value) for key, value in inner.items()}
    if isinstance(inner, list | tuple):
        return [_plain(value) for value in inner]
    return inner
