"""Is this encoder what it is meant to be, and how fast is it? For `dejavid encoder check`."""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import Config, ManifestSection
from ..errors import ConfigError
from ..store import open_store
from .encoders import ClipEncoder, load_encoder
from .manifest import read_manifest, write_manifest
from .run import extract_videos

_TIMED_S = 3.0  # how long the throughput is measured


@dataclass(frozen=True)
class EncoderCheck:
    """What `check_encoder` found.

    Args:
        id: as in the fingerprint of stores.
        digest: SHA-256 of the weights, empty for plug-ins that tell none.
        n_parameters: 0 for plug-ins that tell none.
        input: the `ClipSpec`.
        clips_per_s: of `batch_size` random clips (images for an image encoder), without decoding.
        peak_bytes: of device memory on a GPU, else of the process.
        top1, n_scored, n_split: of the official protocol; None, 0, 0 without classes.
    """

    id: str
    digest: str
    n_parameters: int
    input: dict[str, Any]
    feature_dim: int
    num_classes: int
    device: str
    batch_size: int
    clips_per_s: float
    peak_bytes: int
    top1: float | None = None
    n_scored: int = 0
    n_split: int = 0


def check_encoder(config: Config, *, classes: Path | None = None, progress: bool = True) -> EncoderCheck:
    """Loads the encoder of the configuration, times it, and scores it where labels are given.

    Args:
        config: `extract` says which encoder, where and in what precision; with `classes` also the manifest,
            the split to score (`evaluate.split`) and `extract.official_views`.
        classes: a text file with the name of one class per line, in the order of the encoder's outputs.
        progress: show a progress bar while scoring.

    Raises:
        ConfigError: the encoder cannot be loaded, or the classes do not fit it.
        DejaVidError: as `extract_videos`.
    """
    section = config.extract
    encoder = load_encoder(
        section.encoder, device=section.device, precision=section.precision, compile=section.compile
    )
    rate = _clips_per_s(encoder, section.batch_size)
    found = EncoderCheck(
        id=encoder.id,
        digest=getattr(encoder, "digest", ""),
        n_parameters=getattr(encoder, "n_parameters", 0),
        input=asdict(encoder.spec),
        feature_dim=encoder.feature_dim,
        num_classes=encoder.num_classes,
        device=str(encoder.device),
        batch_size=section.batch_size,
        clips_per_s=rate,
        peak_bytes=_peak_bytes(encoder.device),
    )
    if classes is None:
        return found
    names = [line.strip() for line in classes.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(names) != encoder.num_classes:
        raise ConfigError(
            f"{len(names)} class names for an encoder with {encoder.num_classes} outputs",
            where=str(classes),
            fix="one name per line, in the order of the outputs",
        )
    top1, n_scored, n_split = _score(config, names, progress)
    return EncoderCheck(**{**asdict(found), "top1": top1, "n_scored": n_scored, "n_split": n_split})


def _clips_per_s(encoder: ClipEncoder, batch_size: int) -> float:
    spec = encoder.spec
    shape = (batch_size, spec.frames, spec.height, spec.width, 3)
    batch = torch.randint(0, 256, shape, dtype=torch.uint8, device=encoder.device)
    encoder.encode(batch).features.cpu()  # compiles, allocates, chooses kernels
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < _TIMED_S or not count:
        encoder.encode(batch).features.cpu()
        count += batch_size
    return count / (time.perf_counter() - begin)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _score(config: Config, names: list[str], progress: bool) -> tuple[float, int, int]:
    """Top-1 of the mean of the views' probabilities, over all videos of the split; a missing one is wrong."""
    if config.extract.official_views == "none":
        raise ConfigError(
            "no protocol chosen", where="extract.official_views", fix="--set extract.official_views=dense"
        )
    manifest = read_manifest(config.manifest.path, config.manifest.root)
    rows = [row for row in manifest.rows if row.split == config.evaluate.split]
    unknown = sorted({row.label for row in rows} - set(names))
    if unknown or not rows:
        raise ConfigError(
            f"labels that are no class of the encoder: {', '.join(unknown[:10])}" if unknown else "no videos",
            where=f"split {config.evaluate.split} of {manifest.path}",
            fix="labels must be spelled as in the file of classes",
        )
    with tempfile.TemporaryDirectory(prefix="dejavid-check-") as folder:
        write_manifest(Path(folder) / "split.csv", rows)
        values = {
            "manifest": ManifestSection(path=Path(folder) / "split.csv", root=manifest.root),
            "store": config.store.model_copy(update={"path": Path(folder) / "store"}),
            # The views are what is asked for; one step has to be there as well.
            "extract": config.extract.model_copy(update={"max_steps": 1}),
        }
        extract_videos(config.model_copy(update=values), progress=progress)
        store = open_store(Path(folder) / "store")
        right = scored = 0
        for row in rows:
            if row.video_id not in store:
                continue
            views = np.asarray(store.get(row.video_id).extras["official_probabilities"])
            right += names[int(views.mean(axis=0).argmax())] == row.label
            scored += 1
    return right / len(rows), scored, len(rows)
