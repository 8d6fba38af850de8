"""`pipeline.yaml` as frozen, typed sections, one per stage.

Every key has one definition here: its type, default, bounds and description. `pipeline.yaml`, `--set` and
`dejavid config show` are views of it. An unknown key is an error that names the nearest known one.
Relative paths are relative to the current directory.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import ConfigError


class Section(BaseModel):
    """Base of every section: frozen, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RunSection(Section):
    """the run as a whole"""

    dir: Path = Field(Path("runs/demo"), description="folder for everything the run writes")
    seed: int = Field(1337, ge=0, description="seed of every random choice")


class ManifestSection(Section):
    """the videos: ids, files, labels, splits"""

    path: Path = Field(
        Path("data/demo/manifest.csv"), description="CSV or Parquet: video_id, path, label, split"
    )
    root: Path | None = Field(
        None, description="folder the manifest's paths start at; default: the manifest's own"
    )


class StoreSection(Section):
    """where TSEs rest"""

    path: Path | None = Field(None, description="folder of the TSE store; default: <run.dir>/store")
    format: Literal["zarr", "hdf5"] = Field(
        "zarr", description="what a part is: a Zarr v3 group or an HDF5 file"
    )
    dtype: Literal["float16", "bfloat16", "float32"] = Field(
        "float16", description="type of the stored features"
    )
    flush_rows: int = Field(16_384, ge=1, description="a part is committed when it holds this many TSE steps")
    flush_bytes: int = Field(256 * 2**20, ge=1, description="... or this many bytes")
    flush_s: float = Field(60.0, gt=0, description="... or this many seconds of work")


class ExtractSection(Section):
    """stage one: videos -> TSEs"""

    encoder: str = Field(
        "demo:efficientnet-lite0?size=128", description="frozen encoder by URI, FAMILY:NAME_OR_PATH"
    )
    decoder: Literal["pyav", "decord", "torchcodec"] = Field("pyav", description="what reads the videos")
    preset: Literal["demo", "k400", "hmdb51", "ssv2", "thumos"] = Field(
        "demo", description="gives the keys down to `rows` their values; any that is not null overrides it"
    )
    clip_len: int | None = Field(None, ge=1, description="frames in one window")
    frame_interval: float | None = Field(
        None, gt=0, description="distance from one frame of a window to the next"
    )
    hop: float | None = Field(None, gt=0, description="distance from one window's start to the next")
    unit: Literal["frames", "seconds"] | None = Field(
        None, description="of these two distances: source frames, or seconds"
    )
    spans: tuple[int, ...] | None = Field(
        None,
        description="lengths in frames of the windows around a centre, clip_len frames each; []: one window",
    )
    tail: Literal["drop", "pad", "shift"] | None = Field(
        None, description="the frames after the last full window: drop, pad (repeat the last frame), shift"
    )
    max_steps: int | None = Field(None, ge=0, description="at most this many windows, evenly spaced; 0: all")
    crops: Literal["center", "three", "squash"] | None = Field(
        None, description="center crop, three crops along the longer side, or squash the whole frame"
    )
    merge_views: Literal["mean", "concat"] | None = Field(
        None, description="how the spans and crops of a window become one step"
    )
    rows: Literal["embedding", "embedding+logits", "embedding+probabilities"] | None = Field(
        None, description="what one TSE step holds: embedding, embedding+logits, embedding+probabilities"
    )
    official_views: Literal["none", "dense", "sparse"] = Field(
        "none",
        description="also store the probabilities of the encoder's own test protocol (5x3 or 2x3 views)",
    )
    folder_fps: float = Field(12.0, gt=0, description="frame rate of videos that are folders of images")
    batch_size: int = Field(
        16, ge=1, description="windows (or images, for an image encoder) per encoder call"
    )
    workers: int = Field(1, ge=0, description="decode processes; 0 decodes in the main process")
    device: str = Field("auto", description="where the encoder runs: auto, cpu, cuda, cuda:1")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the encoder's arithmetic; auto: bfloat16 on a GPU, float32 on a CPU"
    )
    compile: bool = Field(False, description="torch.compile the encoder")
    timeout_s: float = Field(600.0, gt=0, description="a video that takes longer to decode is a failure")
    max_failed: float = Field(
        0.05, ge=0, description="failed videos allowed: below 1 a share of the manifest, else a count"
    )


class CentroidsSection(Section):
    """stage two begins: one centroid TSE per class, by DBA"""

    length: int = Field(16, ge=1, description="steps of a centroid (Tc)")
    max_per_class: int = Field(50, ge=1, description="training videos per class that DBA reads, by reservoir")
    max_iter: int = Field(100, ge=0, description="DBA updates at most")
    tol: float | None = Field(
        None, ge=0, description="stop when no centroid value moves more; null: at a fixed point"
    )
    init: Literal["medoid", "tslearn"] = Field(
        "medoid", description="where DBA starts: the medoid, tslearn's DBA"
    )
    update: Literal["mean", "median"] = Field(
        "mean", description="a barycenter's step, of the steps aligned to it"
    )
    resampled: bool = Field(
        True, description="resample videos to `length` steps before DBA; false: as they are"
    )
    features: str = Field("all", description="columns of a TSE step to use: all, or FROM:TO")
    standardise: bool = Field(True, description="shift and scale every feature to mean 0 and deviation 1")
    position: float = Field(
        0.3,
        ge=0,
        description="deviation of an added feature, the relative time, over that of all others; 0: none",
    )


class TrainSection(Section):
    """the head: centroids and weights, learned"""

    epochs: int = Field(36, ge=0, description="passes over the training split")
    lr: float = Field(0.05, gt=0, description="learning rate of the log-weights")
    lr_ratio: float = Field(
        1.0, gt=0, description="learning rate of the centroids over that of the log-weights"
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decoupled decay of both groups")
    log_weight_decay: float | None = Field(
        None,
        ge=0,
        description="decay of the log-weights towards 0, that is of the weights to 1; null: weight_decay",
    )
    warmup_epochs: int = Field(0, ge=0, description="epochs over which the learning rates rise from 0")
    clip_norm: float | None = Field(
        None, gt=0, description="largest norm of all gradients together; null: none"
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread over all classes")
    tie_weights: bool = Field(False, description="one weight per feature, shared by all steps of a centroid")
    batch_size: int = Field(32, ge=1, description="videos per optimiser step, over all processes")
    bucket_by_length: bool = Field(
        False, description="batches of similar lengths; changes the order of training"
    )
    shuffle_seed: int | None = Field(None, ge=0, description="seed of the order of videos; null: run.seed")
    learn: Literal["full", "centroids", "weights"] = Field("full", description="which parameters are trained")
    init_log_weights: Literal["zeros", "normal", "given"] = Field(
        "zeros", description="start of the log-weights; given: as the head has them"
    )
    logits: Literal["standardised", "per_step"] = Field(
        "per_step", description="distances to logits: z-scored over classes, or divided by the path's cells"
    )
    temperature: float | None = Field(
        None,
        gt=0,
        description="divisor of the logits; null: 1 if standardised, else such that they begin at spread 1",
    )
    lr_temperature: float = Field(0.0, ge=0, description="learning rate of the log-temperature; 0: fixed")
    step_pattern: Literal["no_diagonal", "classic"] = Field(
        "no_diagonal", description="moves of the warping path"
    )
    refresh_every: int = Field(1, ge=1, description="epochs between refreshes of the path's parameters")
    holdout: float = Field(
        0.0, ge=0, lt=1, description="share of the training split kept back to choose the epoch on"
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="stop after this many epochs without a better one, and keep the best; null: the last",
    )
    calibrate: bool = Field(
        False, description="set the temperature on the held-out part in the end; changes no prediction"
    )
    data: Literal["auto", "device", "memory", "stream"] = Field(
        "auto", description="where the training TSEs are kept; auto: the first of these that has room"
    )
    device: str = Field("auto", description="where the head trains: auto, cpu, cuda")
    backend: str = Field(
        "auto", description="weighted-DTW kernels: auto, reference, torch, cpu, cuda, cuda_half"
    )
    tensorboard: bool = Field(False, description="also write TensorBoard events")


class TcclipSection(Section):
    """TC-CLIP, trained on the videos themselves: dejavid train --method tcclip"""

    start: Path | None = Field(
        None, description="model to start from, a folder made by dejavid encoder convert; needed to train"
    )
    classes: Path | None = Field(
        None, description="CSV (id,name) or JSON ({id: name}); null: the labels of the training split, sorted"
    )
    split: str | None = Field("val", description="split to choose the best epoch on; null: keep the last one")
    protocol: Literal["zero_shot", "few_shot", "base_to_novel", "fully_supervised"] = Field(
        "zero_shot",
        description="gives the keys down to `val_clips` their values; any that is not null overrides it",
    )
    epochs: int | None = Field(None, ge=1, description="passes over the training videos")
    warmup_epochs: int | None = Field(None, ge=0, description="epochs over which the rates rise from 0")
    lr: float | None = Field(None, gt=0, description="peak learning rate of what CLIP has")
    lr_min: float | None = Field(None, ge=0, description="learning rate at the end, of all parameters")
    batch_size: int | None = Field(
        None, ge=1, description="videos per optimiser step, over all processes and micro-batches"
    )
    shots: int | None = Field(None, ge=0, description="training videos per class, drawn by run.seed; 0: all")
    validate_every: int | None = Field(
        None, ge=1, description="epochs between validations; the first and last epoch have one too"
    )
    val_clips: int | None = Field(None, ge=1, description="clips per video in validation")
    micro_batch: int = Field(4, ge=1, description="videos per forward pass and process")
    lr_10x: bool = Field(True, description="10 times the rate for prompt vectors and prompt layers")
    weight_decay: float = Field(0.001, ge=0, description="AdamW's decoupled decay of all parameters")
    freeze: Literal["nothing", "backbone", "image", "text"] = Field(
        "nothing", description="what CLIP has and is not trained: nothing, backbone (both), image, text"
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread over all classes")
    blend: bool = Field(True, description="CutMix or Mixup of every micro-batch")
    flip: bool = Field(
        True, description="mirror half of the videos; false where classes tell left from right (SSv2)"
    )
    checkpoint_s: float = Field(
        1800.0, gt=0, description="also save a checkpoint within an epoch after this many seconds"
    )


class EvaluateSection(Section):
    """the numbers"""

    split: str = Field("val", description="split to score")
    baselines: tuple[str, ...] = Field(
        ("mean_pool", "nearest_centroid"),
        description="methods scored beside the head on the same videos; all: every one that the store allows",
    )
    ablation: bool = Field(
        False,
        description="also train and score the head with centroids or weights fixed, and with the diagonal",
    )
    neighbours: int = Field(1, ge=1, description="k of the k-NN DTW baselines")
    encoder_classes: Path | None = Field(
        None, description="file with the encoder's class names, one a line; null: the labels in order"
    )
    missing: Literal["wrong", "skip"] = Field(
        "wrong", description="videos of the split without a TSE: count as wrong, or leave out (and say so)"
    )


class Config(Section):
    """The whole of `pipeline.yaml`."""

    run: RunSection = RunSection()
    manifest: ManifestSection = ManifestSection()
    store: StoreSection = StoreSection()
    extract: ExtractSection = ExtractSection()
    centroids: CentroidsSection = CentroidsSection()
    train: TrainSection = TrainSection()
    tcclip: TcclipSection = TcclipSection()
    evaluate: EvaluateSection = EvaluateSection()

    @property
    def store_path(self) -> Path:
        return self.store.path or self.run.dir / "store"

    @property
    def head_path(self) -> Path:
        return self.run.dir / "head"

    @property
    def tcclip_path(self) -> Path:
        return self.run.dir / "tcclip"


def load_config(path: Path | str | None, overrides: Iterable[str] = ()) -> Config:
    """Reads a YAML file and applies `section.key=value` overrides.

    Args:
        path: the YAML file; None takes the defaults.
        overrides: strings as given to `--set`; the value is YAML (`8`, `null`, `[a, b]`).

    Raises:
        ConfigError: the file is missing or no YAML, a key is unknown, or a value does not fit.
    """
    source = "the defaults" if path is None else str(path)
    data: dict[str, Any] = {} if path is None else _read_yaml(Path(path))
    for item in overrides:
        _set(data, item)
    return parse_config(data, source)


def parse_config(data: Mapping[str, Any], source: str) -> Config:
    """Builds a `Config` from nested mappings; `source` names them in errors."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        problems = error.errors()
        lines = [_describe(p, data) for p in problems]
        keys = ", ".join(dict.fromkeys(".".join(str(part) for part in p["loc"]) for p in problems))
        raise ConfigError(
            "; ".join(lines), where=f"{source}, key {keys}", fix="dejavid config show prints every key"
        ) from None


def dump_config(config: Config) -> dict[str, Any]:
    """The configuration as JSON types, every key present."""
    return config.model_dump(mode="json")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration ({error.strerror})",
            where=str(path),
            fix="give the path of a pipeline.yaml; `dejavid config show > pipeline.yaml` writes one",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not YAML: {error}", where=str(path), fix="mend the line it names") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(
            f"the top level is a {type(data).__name__}, not a mapping of sections",
            where=str(path),
            fix="start from `dejavid config show`",
        )
    return data


def parse_assignments(items: Iterable[str], option: str) -> dict[str, Any]:
    """NAME=VALUE strings of a command-line option as a mapping; values are YAML.

    Raises:
        ConfigError: no name, no "=", or no YAML.
    """
    found = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not (equals and name.strip()):
            raise ConfigError(f"not NAME=VALUE: {item!r}", where=option, fix=f"for example {option} name=8")
        try:
            found[name.strip()] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(
                f"the value is no YAML: {text!r}", where=f"{option} {name}", fix="quote the value"
            ) from None
    return found


def _set(data: dict[str, Any], item: str) -> None:
    ((key, value),) = parse_assignments([item], "--set").items()
    section, _, name = key.partition(".")
    if not name:
        raise ConfigError(
            f"not SECTION.KEY=VALUE: {item!r}", where="--set", fix="for example --set extract.hop=8"
        )
    inner = data.get(section) or {}
    if not isinstance(inner, dict):
        raise ConfigError(
            f"section {section!r} is not a mapping", where=f"--set {key}", fix="mend the file first"
        )
    data[section] = {**inner, name: value}


def _known_keys() -> list[str]:
    keys = list(Config.model_fields)
    for section, field in Config.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            keys += [f"{section}.{name}" for name in kind.model_fields]
    return keys


def _describe(problem: Any, data: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"{key} = {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
    known = _known_keys()
    # A right name in the wrong section is as common as a misspelt one.
    last = key.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6) or [
        k for k in known if k.endswith("." + last)
    ]
    return f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def describe_yaml(config: Config) -> str:
    """The configuration as YAML, one commented line per key; `load_config` reads it back."""
    blocks = []
    for name, field in Config.model_fields.items():
        section = getattr(config, name)
        kind = field.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, Section)
        values = section.model_dump(mode="json")
        lines = [f"{name}:  # {kind.__doc__}"]
        for key, key_field in kind.model_fields.items():
            setting = f"  {key}: {_yaml_value(values[key])}"
            lines.append(f"{setting:<42}  # {key_field.description}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _yaml_value(value: Any) -> str:
    """One line of YAML: JSON is YAML, and a harmless string needs no quotes."""
    try:
        plain = isinstance(value, str) and yaml.safe_load(f"k: {value} # c") == {"k": value}
    except yaml.YAMLError:
        plain = False
    return value if plain else json.dumps(value)
