"""Context tokens to look at: every patch that became part of one is painted in that token's colour."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....errors import ConfigError, MissingDependencyError, VideoDecodeError
from ...assemble import Assembly
from ...plan import Recipe
from ...worker import Chunk, DecodeSettings, Failed, Job, Start, decode_events
from .. import load_encoder
from ..base import ClipSpec
from .encoder import TcClipEncoder
from .sampling import ViewSampling

_FORGOTTEN = 0.3  # brightness of patches that no context token is made of
_GOLDEN = 0.618034  # turns of the colour circle from one token to the next: neighbours differ


def write_sheet(uri: str, video: Path, out: Path) -> None:
    """Writes the `context_sheet` of a video as a PNG.

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
    encoder = load_encoder(uri)
    if not isinstance(encoder, TcClipEncoder):
        raise ConfigError("this encoder has no context tokens", where=uri, fix="give tcclip:FOLDER")
    Image.fromarray(context_sheet(encoder, video)).save(out, "PNG")


def context_sheet(
    encoder: TcClipEncoder, video: Path, *, decoder: str = "pyav", layer: int = -1
) -> NDArray[np.uint8]:
    """The frames that the encoder sees of a video, and below them what the context tokens are made of.

    Args:
        encoder: a model of the method tcclip.
        video: a file, or a folder of images.
        decoder: what reads it.
        layer: of the vision tower; the last one's tokens are those the prompts look at by default.

    Returns:
        uint8 (2 H, T W, 3).

    Raises:
        VideoDecodeError: it cannot be read.
        ConfigError: the encoder has no context tokens.
    """
    clip = read_clip(video, encoder.spec, decoder=decoder)
    sources = encoder.context_sources(clip[None].to(encoder.device))[0, layer]
    painted = paint_sources(clip.numpy(), sources.cpu().numpy())
    return np.concatenate([np.concatenate(list(row), 1) for row in (clip.numpy(), painted)])


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


def read_clip(video: Path, spec: ClipSpec, *, decoder: str) -> Tensor:
    """One clip of a video, centre crop: uint8 (T, H, W, 3).

    Raises:
        VideoDecodeError: it cannot be read.
    """
    recipe = Recipe(spec, ViewSampling(spec.frames, 1, 1))
    settings = DecodeSettings(recipe, decoder, folder_fps=12.0, timeout_s=0.0)
    assembly: Assembly | None = None
    clips: list[Tensor] = []
    for event in decode_events(Job(video.name, video), settings):
        match event:
            case Start():  # a second one follows if the first expected another length
                assembly = Assembly(recipe, event.n_frames, event.fps, event.height, event.width)
                clips = []
            case Chunk():
                assert assembly is not None
                ready = assembly.add_frames(event.times_s, torch.from_numpy(event.pixels))
                clips += [clip.pixels for clip in ready]
            case Failed():
                raise VideoDecodeError(event.cause, where=str(video), fix="give another video")
    return clips[0]
