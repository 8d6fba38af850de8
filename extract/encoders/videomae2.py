"""`videomae2:CHECKPOINT`: VideoMAE V2 (CVPR 2023, arXiv 2303.16727) from its released checkpoints.

The checkpoints are converted, exactly, into the VideoMAE class of transformers. A step's embedding is
fc_norm(mean of the tokens), its logits are the released head's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from . import Options
from .base import IMAGENET_MEAN, IMAGENET_STD, ClipEncoder, ClipSpec, TorchEncoder, read_tensors
from .transformers_models import import_transformers

_PREFIX = re.compile(r"^(?:_orig_mod\.|module\.|backbone\.|encoder\.|model\.)+")
# width -> attention heads of the released models; a checkpoint does not tell them
_HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
_RENAMED = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def load(name: str, options: Options) -> ClipEncoder:
    """Builds the model from a .pth or .safetensors file.

    Options: size (224) and frames (16) of the input; heads, where the width does not tell; rows=FILE.json,
    a list of the head's rows to keep (Kinetics-710 to 400 classes).

    Raises:
        ConfigError: the file is missing, no checkpoint, or of a model this cannot represent.
    """
    path = Path(name)
    state = read_checkpoint(path)
    _refuse_others(state, path)
    if rows := options.uri.get("rows"):
        _select_rows(state, Path(rows))
    spec = ClipSpec(options.integer("frames", 16), options.integer("size", 224), options.integer("size", 224))
    width = state["patch_embed.proj.weight"].shape[0]
    model = build_model(state, spec, options.integer("heads", _HEADS.get(width, 0) or width // 64), path)
    embeddings = model.videomae.embeddings
    # A plain attribute that stays behind when the model moves; every forward would copy it to the device.
    embeddings.position_embeddings = embeddings.position_embeddings.to(options.device, options.dtype)
    head, model.classifier = model.classifier, nn.Identity()
    return TorchEncoder(
        family="videomae2",
        model=model,
        head=head if "head.weight" in state else None,
        spec=spec,
        feature_dim=width,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        layout="BTCHW",
        embed=embed,
        device=options.device,
        dtype=options.dtype,
        compile=options.compile,
    )


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The flat state dict of a checkpoint under its official names, without prefixes."""
    state = {_PREFIX.sub("", key): value for key, value in read_tensors(path).items()}
    return {key: value for key, value in state.items() if key != "pos_embed"}


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official names -> those of transformers' class; values are split, not changed."""
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(\w+)", key)
        if block is None:
            converted[_outer_name(key)] = value
            continue
        number, part, kind = block.groups()
        prefix = f"videomae.encoder.layer.{number}."
        attention = prefix + "attention.attention."
        if part == "attn.qkv":
            for name, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                converted[f"{attention}{name}.weight"] = third
        elif part == "attn":  # q_bias, v_bias; the keys have none
            converted[f"{attention}{'query' if kind == 'q_bias' else 'value'}.bias"] = value
        else:
            converted[f"{prefix}{_RENAMED.get(part, part)}.{kind}"] = value
    return converted


def _outer_name(key: str) -> str:
    if key.startswith("patch_embed.proj."):
        return key.replace("patch_embed.proj.", "videomae.embeddings.patch_embeddings.projection.")
    return key.replace("head.", "classifier.") if key.startswith("head.") else key


def _refuse_others(state: Mapping[str, Tensor], path: Path) -> None:
    reason = ""
    if any(key.startswith("videomae.") for key in state):
        reason = "it has transformers' own layout; load its folder with hf:FOLDER"
    elif "patch_embed.proj.weight" not in state or state["patch_embed.proj.weight"].ndim != 5:
        reason = "there is no 3-D patch embedding in it"
    elif any(re.search(r"attn\.(scale|logit_scale)$", key) for key in state):
        reason = "its attention is the cosine variant"
    elif any(re.search(r"\.gamma_[12]$", key) for key in state):
        reason = "it has LayerScale"
    elif "fc_norm.weight" not in state:
        reason = "it has no fc_norm: a pre-trained model that was not fine-tuned, or one with a class token"
    if reason:
        raise ConfigError(
            f"not a fine-tuned VideoMAE V2: {reason}",
            where=str(path),
            fix="take one of the *_ft.pth or distilled checkpoints",
        )


def _select_rows(state: dict[str, Tensor], path: Path) -> None:
    try:
        rows = torch.tensor(json.loads(path.read_text(encoding="utf-8")), dtype=torch.long)
        state["head.weight"], state["head.bias"] = state["head.weight"][rows], state["head.bias"][rows]
    except (OSError, ValueError, TypeError, RuntimeError, IndexError, KeyError) as error:
        raise ConfigError(
            f"no list of rows of this checkpoint's head: {error}",
            where=str(path),
            fix="a JSON list of indices",
        ) from None


def build_model(state: Mapping[str, Tensor], spec: ClipSpec, heads: int, path: Path) -> Any:
    """The model of transformers around the very tensors of `state`; `path` is for errors."""
    transformers = import_transformers()
    width, _, tubelet, patch, _ = state["patch_embed.proj.weight"].shape
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    config = transformers.VideoMAEConfig(
        image_size=spec.height,
        patch_size=patch,
        num_frames=spec.frames,
        tubelet_size=tubelet,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0],
        layer_norm_eps=1e-6,
        qkv_bias="blocks.0.attn.q_bias" in state,
        use_mean_pooling=True,
        num_labels=len(state["head.bias"]) if "head.bias" in state else 1,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        model = transformers.VideoMAEForVideoClassification(config)
    if "head.weight" not in state:
        model.classifier = nn.Identity()
    try:
        model.load_state_dict(to_transformers(state), strict=True, assign=True)
    except RuntimeError as error:
        raise ConfigError(
            f"the tensors do not fit VideoMAE V2: {error}",
            where=str(path),
            fix="is it another model's checkpoint?",
        ) from None
    model.fc_norm.eps = 1e-6  # the class hard-codes torch's 1e-5
    return model


def embed(model: nn.Module, pixels: Tensor) -> Tensor:
    """Normalised pixels (B, T, C, H, W) -> fc_norm(mean of the tokens), (B, width)."""
    features: Tensor = model(pixel_values=pixels).logits  # the classifier has been taken off
    return features
