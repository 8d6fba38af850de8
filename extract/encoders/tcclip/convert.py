"""Checkpoints into folders that have all that `tcclip:FOLDER` needs: weights, options and the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ....errors import ConfigError
from ....files import replacing
from ..transformers_models import import_transformers
from .checkpoints import read_checkpoint, to_transformers
from .model import TcClip, build_clip
from .options import ModelOptions, from_mapping, from_official
from .prompts import template_tokens

MODEL_FILE, OPTIONS_FILE = "model.safetensors", "tcclip.json"
_SCHEMA = 1
_TOKENS = "clip.text_model.embeddings.token_embedding.weight"


@dataclass(frozen=True)
class Converted:
    """A folder that was written.

    Attributes:
        path: of the folder.
        options: of the model in it.
        n_parameters: that can be trained; the table of token embeddings is not counted.
    """

    path: Path
    options: ModelOptions
    n_parameters: int


def convert(
    checkpoint: Path | None,
    base: str,
    out: Path,
    *,
    changes: Mapping[str, Any] | None = None,
    ensemble: float = 1.0,
) -> Converted:
    """Writes the folder of a model.

    Args:
        checkpoint: .pth or .safetensors file as the official code saves it, or a folder that this function or
            training wrote; None takes CLIP's own weights, and starts what TC-CLIP adds as its training does.
        base: CLIP in transformers' layout: a folder, or the id of a hub repository. It gives the tokenizer,
            the token embeddings, the sizes, and the other end of the ensemble.
        out: folder to write; must not exist.
        changes: fields of `ModelOptions` by name, over those that the checkpoint tells.
        ensemble: share of the checkpoint in the mean of its weights and CLIP's (WiSE-FT); 0.7 in the paper.
            What CLIP does not have stays the checkpoint's.

    Raises:
        ConfigError: a file cannot be read, its tensors are not exactly those of the model, `out` exists,
            or an option is out of range.
    """
    if out.exists():
        raise ConfigError("this exists already", where=str(out), fix="name a new folder")
    if not 0 < ensemble <= 1:
        raise ConfigError(f"ensemble = {ensemble} is no share", where="ensemble", fix="above 0, at most 1")
    clip, tokenizer = read_base(base)
    where = base if checkpoint is None else str(checkpoint)
    if checkpoint is None:
        options = from_mapping({"method": "clip", **(changes or {})}, where)
        model = TcClip(clip, options)
        model.initialise(template_tokens(tokenizer, options))
    else:
        state, options = _read_tuned(checkpoint, changes or {})
        model = TcClip(clip, options)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        load_exactly(model, interpolate(before, {_TOKENS: before[_TOKENS], **state}, ensemble), where)
    save(model, tokenizer, out, {"checkpoint": where, "base": base, "ensemble": ensemble})
    return Converted(out, options, sum(p.numel() for p in model.parameters() if p.requires_grad))


def _read_tuned(checkpoint: Path, changes: Mapping[str, Any]) -> tuple[dict[str, Tensor], ModelOptions]:
    """Tensors by the names of `TcClip`, and options with the changes."""
    if checkpoint.is_dir():
        model, _ = load(checkpoint)
        options = from_mapping({**asdict(model.options), **changes}, str(checkpoint))
        return dict(model.state_dict()), options
    official, config = read_checkpoint(checkpoint)
    state = to_transformers(official, str(checkpoint))
    return state, _options(state, config, changes, str(checkpoint))


def interpolate(clip: Mapping[str, Tensor], tuned: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) * clip + share * tuned for all that CLIP has; the rest as tuned. Names of `TcClip`."""
    return {
        name: torch.lerp(clip[name], value, share)
        if name.startswith("clip.") and name in clip and clip[name].shape == value.shape
        else value
        for name, value in tuned.items()
    }


def read_base(base: str) -> tuple[Any, Any]:
    """CLIPModel and CLIPTokenizer of a folder or a hub repository, float32.

    Raises:
        ConfigError: they are not there, or of another kind.
    """
    transformers = import_transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(base)
        if config.model_type != "clip":
            raise ValueError(f"a model of the kind {config.model_type}")
        clip = transformers.CLIPModel.from_pretrained(base, dtype=torch.float32)
        return clip, _read_tokenizer(transformers, base)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"no CLIP in transformers' layout: {str(error).splitlines()[0]}",
            where=base,
            fix="give a folder with config.json, model.safetensors and the tokenizer's files,"
            " or openai/clip-vit-base-patch16",
        ) from None


def save(model: TcClip, tokenizer: Any, out: Path, source: Mapping[str, Any]) -> None:
    """Writes the folder; `source` says where the weights are from."""
    out.mkdir(parents=True)
    tokenizer.save_pretrained(out)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with replacing(out / MODEL_FILE) as temporary:
        save_file(state, temporary)
    facts = {
        "schema": _SCHEMA,
        "options": asdict(model.options),
        "clip": model.clip.config.to_dict(),
        "source": dict(source),
    }
    # Last, so that a folder with this file is whole.
    (out / OPTIONS_FILE).write_text(json.dumps(facts, indent=1, default=str) + "\n", encoding="utf-8")


def load(folder: Path, *, n_frames: int | None = None) -> tuple[TcClip, Any]:
    """The model of a folder that `convert` wrote, in eval mode, and its tokenizer.

    Args:
        folder: to read.
        n_frames: frames per video, if not what the model was trained with.

    Raises:
        ConfigError: it is no such folder, is damaged, or its positions fix the number of frames.
    """
    transformers = import_transformers()
    try:
        facts = json.loads((folder / OPTIONS_FILE).read_text(encoding="utf-8"))
        if facts["schema"] != _SCHEMA:
            raise ValueError(f"schema {facts['schema']}, not {_SCHEMA}")
        options = from_mapping(facts["options"], str(folder / OPTIONS_FILE))
        state = load_file(folder / MODEL_FILE)
        tokenizer = _read_tokenizer(transformers, str(folder))
        clip = build_clip(facts["clip"])
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ConfigError(
            f"no model of this family: {str(error).splitlines()[0]}",
            where=str(folder),
            fix="make the folder with: dejavid encoder convert",
        ) from None
    if n_frames is not None and n_frames != options.n_frames:
        if options.positions == "joint":
            raise ConfigError(
                f"{n_frames} frames, and the model has positions for {options.n_frames}",
                where=str(folder),
                fix=f"take {options.n_frames} frames",
            )
        options = replace(options, n_frames=n_frames)
    model = TcClip(clip, options)
    load_exactly(model, state, str(folder / MODEL_FILE))
    return model.eval(), tokenizer


def load_exactly(model: TcClip, state: Mapping[str, Tensor], where: str) -> None:
    """Loads a state dict that must have every tensor of the model, in its shape, and no other.

    Raises:
        ConfigError: it differs; names the tensors.
    """
    own = model.state_dict()
    shapes = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    ]
    problems = [f"{name} is missing" for name in sorted(own.keys() - state.keys())]
    problems += [f"{name} is unknown" for name in sorted(state.keys() - own.keys())] + sorted(shapes)
    if problems:
        raise ConfigError(
            f"{len(problems)} tensors do not fit the model: {'; '.join(problems[:4])}",
            where=where,
            fix="is it of another method, another CLIP, or of other options?",
        )
    model.load_state_dict(state)


def _options(
    state: Mapping[str, Tensor], config: Mapping[str, Any], changes: Mapping[str, Any], where: str
) -> ModelOptions:
    """The changes over the checkpoint's own configuration, or, without one, what its tensors show."""
    if config:
        told = asdict(from_official(config, where))
    else:
        method = "tcclip" if "prompt_vectors" in state else "vifi_clip"
        biased = any(name.startswith("local_global_bias.") for name in state)
        told = asdict(ModelOptions(method=method, local_global_bias=biased))  # type: ignore[arg-type]
        if "prompt_vectors" in state:
            told["n_prompt_vectors"] = len(state["prompt_vectors"])
    return from_mapping({**told, **changes}, where)


def _read_tokenizer(transformers: Any, place: str) -> Any:
    tokenizer = transformers.CLIPTokenizer.from_pretrained(place)
    if len(tokenizer("a photo")["input_ids"]) < 4:
        raise ValueError("the tokenizer's vocabulary is missing")
    return tokenizer
