"""Small videos that the tests make themselves; every frame carries its number, readable after any codec."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

BITS = 16
WIDTH, HEIGHT = 320, 240


def draw_number(number: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """A frame whose 4 x 4 blocks are the bits of `number`, black or white; colours differ left and right."""
    bits = np.array([number >> bit & 1 for bit in range(BITS)], np.uint8).reshape(4, 4) * 255
    rows = np.arange(height) * 4 // height
    columns = np.arange(width) * 4 // width
    return np.repeat(bits[rows][:, columns][:, :, None], 3, axis=2)


def read_number(image: NDArray[np.uint8]) -> int:
    """The number in a frame of any size."""
    height, width = image.shape[:2]
    rows = ((np.arange(4) + 0.5) * height / 4).astype(int)
    columns = ((np.arange(4) + 0.5) * width / 4).astype(int)
    bits = image[rows][:, columns].mean(axis=2) > 127
    return int(sum(1 << place for place, bit in enumerate(bits.reshape(-1)) if bit))


def write_video(
    path: Path,
    n_frames: int = 75,
    *,
    codec: str = "libx264",
    rate: int = 25,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: Iterable[int] | None = None,
    frame: Callable[[int], NDArray[np.uint8]] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Writes `n_frames` numbered frames; `times` are presentation times in 1/1000 s for a variable rate."""
    width, height = size
    make = frame or (lambda number: draw_number(number, width, height))
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stamps = None if times is None else list(times)
        for number in range(n_frames):
            picture = av.VideoFrame.from_ndarray(make(number), format="rgb24")
            if stamps is not None:
                picture.pts, picture.time_base = stamps[number], Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def write_audio(path: Path) -> Path:
    """A second of silence."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        for start in range(0, 16384, 1024):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 16000, start
            container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return path


def cut_front(source: Path, path: Path, start: int) -> Path:
    """Hides the first `start` frames by an edit list, as `ffmpeg -ss -c copy` does."""
    with av.open(str(source)) as reader, av.open(str(path), "w") as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        first = None
        for packet in reader.demux(stream):
            if packet.pts is None:
                continue
            step = round(1 / (stream.average_rate * stream.time_base))
            first = packet.dts if first is None else first
            packet.pts -= start * step
            packet.dts -= start * step
            packet.stream = copy
            writer.mux(packet)
    return path


def rotate_header(source: Path, path: Path) -> Path:
    """Rewrites the matrix of an mp4 track header: the picture is shown turned by 90 degrees clockwise."""
    data = bytearray(source.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # version and flags, times, ids, layer, volume come before
    one = 1 << 16
    data[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def cut_file(source: Path, path: Path, share: float) -> Path:
    """The first `share` of the bytes."""
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def repeat_video(source: Path, path: Path, times: int) -> Path:
    """The packets of `source`, `times` times one after another: a long video in no time."""
    with av.open(str(path), "w") as writer:
        copy: Any = None
        for turn in range(times):
            with av.open(str(source)) as reader:
                stream = reader.streams.video[0]
                copy = copy or writer.add_stream_from_template(stream)
                for packet in reader.demux(stream):
                    if packet.pts is not None:
                        packet.pts += turn * stream.duration
                        packet.dts += turn * stream.duration
                        packet.stream = copy
                        writer.mux(packet)
    return path
