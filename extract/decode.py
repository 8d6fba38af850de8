"""Videos as streams of frames: `open_video` -> metadata and `stream(wanted)`, one pass.

The index of a frame is its place in the order of presentation, counted by decoding from the start: no
seeking, so frame k is frame k in every container. Frames that nobody wants are decoded but not converted.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingDependencyError, VideoDecodeError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# ffmpeg draws text files as pictures (tty) and follows references of playlists to other files.
_REFUSED_FORMATS = {"tty", "concat", "hls", "dash", "imf", "sdp"}
_MOST_REORDERED = 17  # frames; the most that H.264 and HEVC may hold back, and one


class Frame(NamedTuple):
    """One frame: place in the video, seconds since its first frame, uint8 RGB (H, W, 3)."""

    number: int
    time_s: float
    image: NDArray[np.uint8]


@dataclass(frozen=True)
class VideoMeta:
    """What can be known of a video without decoding it.

    Args:
        n_frames: frames to expect; only decoding tells the truth.
        fps: average frames per second.
    """

    n_frames: int
    fps: float


class Video(Protocol):
    """An open video. After `stream` is exhausted, `n_frames` and `status` tell what was there."""

    meta: VideoMeta
    n_frames: int
    status: str  # "ok"; "short" when the file ended before its header said

    def stream(self, wanted: NDArray[np.int64]) -> Iterator[Frame]:
        """Decodes all frames once and yields the wanted ones (ascending indices)."""
        ...


class Decoder(Protocol):
    """Opens videos; closes them when the context ends."""

    def __call__(
        self, path: Path, start_s: float | None, end_s: float | None
    ) -> AbstractContextManager[Video]: ...


@contextmanager
def open_pyav(path: Path, start_s: float | None = None, end_s: float | None = None) -> Iterator[Video]:
    """PyAV, that is FFmpeg's libraries. Any container and codec; rotation applied, edit lists respected.

    Raises:
        VideoDecodeError: no video can be read from the file.
    """
    av = import_av()
    try:
        # Only plain files: a playlist must not make a decoder fetch anything.
        with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
            _refuse_format(container.format.name, path)
            yield PyavVideo(container, path, start_s, end_s)
    except av.FFmpegError as error:
        raise undecodable(f"cannot decode: {error.strerror}", path) from None
    except MemoryError:
        raise undecodable("a frame does not fit into memory", path) from None


class PyavVideo:
    """A file that PyAV has open."""

    def __init__(self, container: Any, path: Path, start_s: float | None, end_s: float | None) -> None:
        self.path = path
        self.start_s = start_s or 0.0
        self.end_s = end_s if end_s is not None else float("inf")
        self.container_format: str = container.format.name
        self._container = container
        self._stream = _video_stream(container, path)
        self.header_frames: int = self._stream.frames  # 0 where the container does not tell
        self.codec: str = self._stream.codec_context.codec.canonical_name
        # Videos are decoded side by side, so one thread each.
        self._stream.thread_count = 1
        rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self._duration_s = _duration_s(container, self._stream)
        self.meta = VideoMeta(self._expected_frames(float(rate)), float(rate))
        self._to_rgb = _ToRgb()
        self._cut = False
        self.n_frames = 0
        self.status = "ok"

    def _expected_frames(self, fps: float) -> int:
        by_time = self._duration_s * fps
        whole = self.start_s == 0.0 and self.end_s == float("inf")
        if whole and self.header_frames and abs(self.header_frames - by_time) <= 1:
            return self.header_frames
        return self.count_packets(whole=whole)

    def count_packets(self, *, whole: bool) -> int:
        """Reads the file without decoding: one packet is one shown frame in nearly every stream.

        Args:
            whole: count the whole video, not only the part that was asked for.
        """
        with import_av().open(str(self.path), options={"protocol_whitelist": "file"}) as container:
            stream = container.streams[self._stream.index]
            times = [
                float(packet.pts * packet.time_base) if packet.pts is not None else None
                for packet in container.demux(stream)
                if packet.size and not packet.is_discard
            ]
        first = min((time for time in times if time is not None), default=0.0)
        return sum(whole or time is None or self.start_s <= time - first < self.end_s for time in times)

    def stream(self, wanted: NDArray[np.int64]) -> Iterator[Frame]:
        targets = iter(wanted.tolist())
        target = next(targets, -1)
        count, zero = 0, None
        recent: deque[float] = deque([0.0], maxlen=_MOST_REORDERED)
        for place, frame in enumerate(self._decode()):
            time = place / self.meta.fps if frame.time is None else float(frame.time)
            zero = time if zero is None else zero
            time -= zero
            if time < self.start_s:
                continue
            if time >= self.end_s:
                break
            if count == target:
                yield Frame(count, time, self._to_rgb(frame))
                target = next(targets, -1)
            count += 1
            recent.append(time)
        self.judge(count, recent)

    def judge(self, count: int, recent: deque[float]) -> None:
        """Sets `n_frames` and `status` from the number of frames and the times of the last ones in order."""
        end_s = min(self.end_s, self._duration_s)
        expected = (end_s - self.start_s) * self.meta.fps
        slack = 2 + 0.01 * expected
        # Fewer frames than duration x rate is normal at a variable rate, unless time is missing at the end.
        ends_early = expected - count > slack and (end_s - recent[-1]) * self.meta.fps > slack
        self.n_frames = count
        if ends_early or self._cut:
            self.status = "short"
            # Frames are stored out of order: of the last ones, those behind a gap are not where they count.
            times = list(recent)
            for place in range(1, len(times)):
                if (times[place] - times[place - 1]) * self.meta.fps > 1.5:
                    self.n_frames -= len(times) - place
                    break

    def _decode(self) -> Iterator[Any]:
        """All frames; a broken packet ends the stream if it is the last, else the video is damaged."""
        av = import_av()
        broken: Any = None
        for packet in self._container.demux(self._stream):
            if broken is not None and packet.size:
                raise undecodable(f"damaged at byte {broken.pos}", self.path)
            if packet.is_corrupt:
                broken = packet
                continue
            try:
                frames = packet.decode()
            except av.FFmpegError:
                broken = packet
                continue
            yield from frames
        self._cut = broken is not None


class _Folder:
    """A folder of images, one per frame, in the order of the numbers in their names."""

    def __init__(self, path: Path, fps: float, start_s: float | None, end_s: float | None) -> None:
        files = [file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
        files.sort(key=lambda file: ([int(n) for n in re.findall(r"\d+", file.stem)], file.name))
        first = round((start_s or 0.0) * fps)
        self._files = files[first : None if end_s is None else max(first, round(end_s * fps))]
        self._first = first
        self._to_rgb = _ToRgb()
        self.meta = VideoMeta(len(self._files), fps)
        self.n_frames = len(self._files)
        self.status = "ok"

    def stream(self, wanted: NDArray[np.int64]) -> Iterator[Frame]:
        av = import_av()
        for index in wanted.tolist():
            if index >= len(self._files):
                return
            file = self._files[index]
            try:
                with av.open(str(file), options={"protocol_whitelist": "file"}) as container:
                    image = self._to_rgb(next(container.decode(video=0)))
            except (av.FFmpegError, StopIteration):
                raise undecodable("not a picture", file) from None
            yield Frame(index, (self._first + index) / self.meta.fps, image)


@contextmanager
def open_video(
    path: Path,
    decoder: str = "pyav",
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    folder_fps: float = 12.0,
) -> Iterator[Video]:
    """Opens a video file with a decoder, or a folder of images.

    Args:
        path: file or folder.
        decoder: a key of `DECODERS`; folders need none.
        start_s, end_s: the part to read, in seconds since the first frame; `start_s` inclusive.
        folder_fps: frames per second of a folder of images.

    Raises:
        VideoDecodeError: it holds no decodable frame.
    """
    if path.is_dir():
        folder = _Folder(path, folder_fps, start_s, end_s)
        if not folder.n_frames:
            raise undecodable("the folder holds no images of that time span", path)
        yield folder
        return
    if not path.is_file():
        raise VideoDecodeError("there is no such file", where=str(path), fix="check the manifest's root")
    if not path.stat().st_size:
        raise undecodable("the file is empty", path)
    with DECODERS[decoder](path, start_s, end_s) as video:
        yield video


def _indexed(name: str) -> Decoder:
    """The decoders of `decode_indexed`, which is loaded when it is needed."""

    def open_indexed(path: Path, start_s: float | None, end_s: float | None) -> AbstractContextManager[Video]:
        from .decode_indexed import OPENERS

        return OPENERS[name](path, start_s, end_s)

    return open_indexed


DECODERS: dict[str, Decoder] = {
    "pyav": open_pyav,
    "decord": _indexed("decord"),
    "torchcodec": _indexed("torchcodec"),
}
# distributions whose version decides what these decoders give
_DISTRIBUTIONS = {"pyav": (), "decord": ("decord2",), "torchcodec": ("torchcodec",)}


def decoder_facts(decoder: str) -> dict[str, Any]:
    """Name and versions of what decodes: part of a store's fingerprint.

    Raises:
        MissingDependencyError: the decoder is not installed.
    """
    av = import_av()
    facts = {"name": decoder, "pyav": av.__version__}
    for library in ("libavcodec", "libavformat", "libswscale"):
        facts[library] = ".".join(map(str, av.library_versions[library]))
    for distribution in _DISTRIBUTIONS[decoder]:
        try:
            facts[distribution] = version(distribution)
        except PackageNotFoundError:
            raise missing_decoder(decoder) from None
    return facts


def missing_decoder(name: str) -> MissingDependencyError:
    """The error for a decoder that is not installed."""
    extra = {"pyav": "extract", "decord": "decord"}.get(name)
    return MissingDependencyError(
        f"the decoder {name} is not installed",
        where="extract.decoder",
        fix=f"pip install 'dejavid[{extra}]'" if extra else f"pip install {name}",
    )


def import_av() -> Any:
    """The module `av`, or the error that says how to install it."""
    try:
        import av
    except ImportError:
        raise missing_decoder("pyav") from None
    return av


def _video_stream(container: Any, path: Path) -> Any:
    av = import_av()
    streams = [
        stream
        for stream in container.streams.video
        # The cover of a sound file is a video stream of one picture.
        if not stream.disposition & av.stream.Disposition.attached_pic
    ]
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise undecodable(f"no video stream in it; what it has: {kinds}", path)
    if streams[0].codec_context is None:
        raise undecodable("its codec is unknown", path)
    return streams[0]


def _refuse_format(name: str, path: Path) -> None:
    if _REFUSED_FORMATS & set(name.split(",")):
        raise undecodable(f"a {name} file is no video", path)


def _duration_s(container: Any, stream: Any) -> float:
    """Of the video stream if anything tells it; the container's counts the sound as well."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    text = stream.metadata.get("DURATION", "")  # what ffmpeg writes into Matroska and WebM
    if match := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", text):
        hours, minutes, seconds = match.groups()
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return (container.duration or 0) / 1_000_000


class _ToRgb:
    """Frame -> uint8 (H, W, 3), turned as its header says.

    One per video: a converter of their own for every frame, with its threads, costs more than decoding does.
    """

    def __init__(self) -> None:
        self._reformatter = import_av().video.reformatter.VideoReformatter()

    def __call__(self, frame: Any) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def undecodable(what: str, path: Path) -> VideoDecodeError:
    """The error for a file that is the problem itself."""
    return VideoDecodeError(what, where=str(path), fix="replace the file, or drop its row from the manifest")
