"""What a model of this family is: its method and the sizes of its parts, under the names of this project."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from ....errors import ConfigError

Method = Literal["tcclip", "vifi_clip", "clip"]
# TC-CLIP's own name -> field of ModelOptions
_OFFICIAL = {
    "num_frames": "n_frames",
    "positional_embedding_type": "positions",
    "local_global_bias": "local_global_bias",
    "context_token_k": "n_context",
    "seed_token_a": "seed_share",
    "tome_r": "merged_per_round",
    "tome_d": "merge_slope",
    "n_ctx": "n_prompt_vectors",
    "ctx_init": "template",
    "im_stop_grad": "stop_gradient",
    "prompt_generation_layer_init": "prompt_layer_init",
    "prompt_generation_layer_level": "prompt_levels",
    "context_length": "context_length",
    "parse_ucf101": "split_capitals",
}
_CONTEXTUAL = "TCVisionTransformer"
_NAMES = {"TCCLIP": "tcclip", "ViFiCLIP": "vifi_clip"}


@dataclass(frozen=True)
class ModelOptions:
    """The options of one model.

    Args:
        method: `tcclip`; `vifi_clip`, every frame for itself and prompts of fixed words; `clip`, likewise
            with bare class names.
        n_frames: frames per video (T).
        positions: one position table for all frames, or one per frame.
        local_global_bias: learn per head how much a frame's own tokens and the context tokens count.
        n_context: context tokens of the whole video (K).
        seed_share: share of a frame's patches that seed context tokens.
        merged_per_round: tokens that one round of merging takes away.
        merge_slope: -1 to 1, how `merged_per_round` changes from the first layer to the last.
        n_prompt_vectors: learned vectors that stand for the first words of every prompt.
        template: those words.
        stop_gradient: let the prompts' loss not reach the context tokens.
        prompt_layer_init: what a new model's prompt layers start as: a copy of the text layer, or noise.
        prompt_levels: text layers, counted from 1, before which the prompt vectors look at the video.
        context_length: tokens of a prompt at most.
        split_capitals: read "ApplyEyeMakeup" as "Apply Eye Makeup".

    Raises:
        ConfigError: a value is out of its range.
    """

    method: Method = "tcclip"
    n_frames: int = 16
    positions: Literal["space", "joint"] = "space"
    local_global_bias: bool = True
    n_context: int = 96
    seed_share: float = 0.3
    merged_per_round: int = 100
    merge_slope: float = 0.0
    n_prompt_vectors: int = 4
    template: str = "a photo of a"
    stop_gradient: bool = True
    prompt_layer_init: Literal["clip", "random"] = "clip"
    prompt_levels: tuple[int, ...] = (12,)
    context_length: int = 30
    split_capitals: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_levels", tuple(self.prompt_levels))
        levels = self.prompt_levels
        bounds = {
            "method": self.method in get_args(Method),
            "n_frames": self.n_frames >= 1,
            "positions": self.positions in ("space", "joint"),
            "n_context": self.n_context >= 1,
            "seed_share": 0 < self.seed_share <= 1,
            "merged_per_round": self.merged_per_round >= 1,
            "merge_slope": -1 <= self.merge_slope <= 1,
            "n_prompt_vectors": self.n_prompt_vectors >= 1,
            "prompt_layer_init": self.prompt_layer_init in ("clip", "random"),
            "prompt_levels": bool(levels) and levels == tuple(sorted(set(levels))) and levels[0] >= 1,
            "context_length": self.context_length >= self.n_prompt_vectors + 3,
        }
        wrong = [f"{name} = {getattr(self, name)!r}" for name, fine in bounds.items() if not fine]
        if wrong:
            raise ConfigError(
                f"no such model: {', '.join(wrong)}",
                where="options of a TC-CLIP model",
                fix="docs/tcclip.md gives the range of each",
            )

    def seeds_per_frame(self, n_patches: int) -> int:
        """Patches of a frame that seed context tokens; at least one."""
        return max(int(n_patches * self.seed_share), 1)


def from_mapping(values: Mapping[str, Any], where: str) -> ModelOptions:
    """Options from JSON.

    Raises:
        ConfigError: a name is unknown, or a value is of another type or out of its range.
    """
    unknown = sorted(set(values) - {field.name for field in fields(ModelOptions)})
    if unknown:
        raise ConfigError(
            f"no such option: {', '.join(unknown)}",
            where=where,
            fix=f"one of {', '.join(field.name for field in fields(ModelOptions))}",
        )
    for name, value in values.items():
        kind = type(getattr(ModelOptions, name))
        accepted = {tuple: (tuple, list), float: (float, int)}.get(kind, (kind,))
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(
                f"{name} = {value!r} is no {kind.__name__}",
                where=where,
                fix=f"for example {getattr(ModelOptions, name)!r}",
            )
    return ModelOptions(**values)


def from_official(config: Mapping[str, Any], where: str) -> ModelOptions:
    """Options from the configuration inside a released checkpoint; what it leaves out has its default.

    Raises:
        ConfigError: it is of another method, or of a part of TC-CLIP.
    """
    trainer = config.get("trainer_name", "TCCLIP")
    if trainer not in _NAMES:
        raise ConfigError(
            f"a model of the method {trainer!r}", where=where, fix=f"take one of {', '.join(_NAMES)}"
        )
    if trainer == "TCCLIP" and config.get("vision_model", _CONTEXTUAL) != _CONTEXTUAL:
        raise ConfigError(
            f"an ablation of TC-CLIP, with vision_model = {config['vision_model']}",
            where=where,
            fix="take a checkpoint of the full model",
        )
    values = {ours: config[theirs] for theirs, ours in _OFFICIAL.items() if theirs in config}
    if "prompt_levels" in values:
        values["prompt_levels"] = _levels(values["prompt_levels"])
    return from_mapping({"method": _NAMES[trainer], **values}, where)


def _levels(value: Any) -> tuple[int, ...]:
    """A level, a list of them, or text such as "9+10+12"; ascending."""
    if isinstance(value, str):
        value = value.split("+")
    return tuple(sorted({int(level) for level in (value if isinstance(value, list | tuple) else [value])}))
