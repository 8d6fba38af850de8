"""Context tokens to look at: every patch that became part of one is painted in that token's colour."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....errors import ConfigError, MissingDependencyError, VideoDecodeError
from ...assemble import Assembly
from ...plan import Recipe
from ...worker import Chunk, DecodeSettings, Failed, Job, Start, decode_events
from .. import Precision, load_encoder
from .encoder import TcClipEncoder
from .sampling import ViewSampling

_FORGOTTEN = 0.3  # brightness of patches that no context token is made of
_GOLDEN = 0.618034  # turns of the colour circle from one token to the next: neighbours differ


def write_sheet(uri: str, video: Path, out: Path) -> None:
    """Writes the context sheet of one clip that is spread over a whole video, as a PNG.

    Args:
        uri: `tcclip:FOLDER`.
        video: a file, or a folder of images.
        out: to write.

    Raises:
        ConfigError: the URI names no model with context tokens.
        MissingDependencyError: Pillow is not installed.
        VideoDecodeError: the video cannot be read.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingDependencyError(
            "Pillow is not installed", where="pictures of context tokens", fix="pip install 'dejavid[report]'"
        ) from None
    encoder = load_contextual(uri)
    recipe = Recipe(encoder.spec, ViewSampling(encoder.spec.frames, 1, 1))
    settings = DecodeSettings(recipe, decoder="pyav", folder_fps=12.0, timeout_s=0.0)
    (sheet,) = context_sheets(encoder, Job(video.name, video), settings, steps=[0])
    Image.fromarray(sheet).save(out, "PNG")


def load_contextual(uri: str, *, device: str = "auto", precision: Precision = "auto") -> TcClipEncoder:
    """`load_encoder`, for models that have context tokens.

    Raises:
        ConfigError: the URI names another encoder, or one of the baselines.
        MissingDependencyError: transformers is not installed.
    """
    encoder = load_encoder(uri, device=device, precision=precision)
    if not isinstance(encoder, TcClipEncoder) or encoder.model.options.method != "tcclip":
        raise ConfigError(
            "this encoder has no context tokens",
            where=uri,
            fix="give tcclip:FOLDER of a model of the method tcclip",
        )
    return encoder


def context_sheets(
    encoder: TcClipEncoder, job: Job, settings: DecodeSettings, steps: Sequence[int]
) -> list[NDArray[np.uint8]]:
    """For some windows the frames that the encoder sees, and below them what the context tokens are made of.

    Of several crops the middle one is shown, of several time spans the first. The tokens are those of the
    last layer, which the prompts look at by default.

    Args:
        encoder: a model with context tokens, of more than one frame.
        job: the video.
        settings: how it is read and cut into windows.
        steps: numbers of windows, from 0.

    Returns:
        For each step uint8 (2 H, T W, 3).

    Raises:
        VideoDecodeError: the video cannot be read, or has no such window.
    """
    sheets = []
    for clip in _read_windows(job, settings, steps):
        # One after another: extraction may have filled the device with a batch, a picture must not.
        sources = encoder.context_sources(clip[None].to(encoder.device))[0, -1]
        painted = paint_sources(clip.numpy(), sources.cpu().numpy())
        sheets.append(np.concatenate([np.concatenate(list(row), 1) for row in (clip.numpy(), painted)]))
    return sheets


def paint_sources(clip: NDArray[np.uint8], sources: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Frames whose patches are tinted by context token, all others darkened.

    Args:
        clip: uint8 (T, H, W, 3).
        sources: bool (K, T, rows, columns), at most one token per patch.

    Returns:
        uint8 (T, H, W, 3).
    """
    n_tokens, _, rows, columns = sources.shape
    palette = np.array([colorsys.hsv_to_rgb(k * _GOLDEN % 1, 1.0, 1.0) for k in range(n_tokens)]) * 255
    token = np.where(sources.any(0), sources.argmax(0), -1)
    # Patches to pixels.
    token = token.repeat(clip.shape[1] // rows, 1).repeat(clip.shape[2] // columns, 2)[..., None]
    tinted = (clip + palette[token[..., 0]]) / 2
    painted: NDArray[np.uint8] = np.where(token >= 0, tinted, clip * _FORGOTTEN).astype(np.uint8)
    return painted


def _read_windows(job: Job, settings: DecodeSettings, steps: Sequence[int]) -> list[Tensor]:
    """One clip for each step: uint8 (T, H, W, 3)."""
    windowing = settings.recipe.windowing
    middle = 1 if windowing.crops == "three" else 0
    slots = [step * windowing.n_views + middle for step in steps]
    assembly: Assembly | None = None
    clips: dict[int, Tensor] = {}
    for event in decode_events(job, settings):
        match event:
            case Start():  # a second one follows if the first expected another length
                assembly = Assembly(settings.recipe, event.n_frames, event.fps, event.height, event.width)
                clips = {}
            case Chunk():
                assert assembly is not None
                ready = assembly.add_frames(event.times_s, torch.from_numpy(event.pixels))
                clips |= {clip.slot: clip.pixels for clip in ready if clip.slot in slots}
            case Failed():
                raise VideoDecodeError(event.cause, where=str(job.path), fix="give another video")
    if missing := [step for step, slot in zip(steps, slots, strict=True) if slot not in clips]:
        raise VideoDecodeError(
            f"there is no window {missing[0] + 1} in it",
            where=str(job.path),
            fix="is it still the video that was encoded?",
        )
    return [clips[slot] for slot in slots]
