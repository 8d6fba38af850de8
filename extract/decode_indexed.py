"""decord and torchcodec: decoders that are asked for frames by index.

They seek, and in some containers the frame they return is not the one that was asked for (MPEG-4 with
B-frames most of all), so they serve only the containers and codecs in which they were found to be right; PyAV
is the judge of what a file is. Frames are read in order, in small contiguous batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decode import Frame, PyavVideo, Video, missing_decoder, open_pyav, undecodable

_FORMATS = {"mov", "mp4", "matroska", "webm"}
# torchcodec 0.13 crashed on AV1
_CODECS = {"decord": {"h264", "hevc", "vp9", "av1"}, "torchcodec": {"h264", "hevc", "vp9"}}
_BATCH = 8  # frames; all of them are in memory at once

# first index, number of frames -> images (n, H, W, 3) and seconds (n,)
Reader = Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.float64]]]


class _IndexedVideo:
    def __init__(self, probe: PyavVideo, count: int, read: Reader, name: str) -> None:
        self._probe = probe
        self._count = count
        self._read = read
        self._name = name
        self.meta = probe.meta
        self.n_frames = 0
        self.status = "ok"

    def stream(self, wanted: NDArray[np.int64]) -> Iterator[Frame]:
        targets = set(wanted.tolist())
        number, zero = 0, None
        recent: deque[float] = deque([0.0])
        for first in range(0, self._count, _BATCH):
            try:
                images, times = self._read(first, min(_BATCH, self._count - first))
            except Exception as error:  # their own error types, which say little
                reason = str(error).strip().splitlines()[-1:] or [""]
                raise undecodable(
                    f"{self._name} fails at frame {first}: {reason[0]}", self._probe.path
                ) from None
            zero = float(times[0]) if zero is None else zero
            for image, time in zip(images, (times - zero).tolist(), strict=True):
                if time < self._probe.start_s or time >= self._probe.end_s:
                    continue
                if number in targets:
                    yield Frame(number, time, image)
                number, recent = number + 1, deque([time])
        self._probe.judge(number, recent)
        self.n_frames, self.status = self._probe.n_frames, self._probe.status


@contextmanager
def open_decord(path: Path, start_s: float | None = None, end_s: float | None = None) -> Iterator[Video]:
    """decord, through its maintained fork decord2.

    Raises:
        VideoDecodeError: it cannot read the file, or is known to return wrong frames from such files.
    """
    try:
        import decord
    except ImportError:
        raise missing_decoder("decord") from None
    with _probe(path, start_s, end_s, "decord") as probe:
        try:
            reader = decord.VideoReader(str(path), num_threads=1)
        except decord.DECORDError as error:
            raise undecodable(f"decord cannot open it: {str(error).splitlines()[-1]}", path) from None

        def read(first: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
            indices = list(range(first, first + count))
            return reader.get_batch(indices).asnumpy(), reader.get_frame_timestamp(indices)[:, 0]

        yield _IndexedVideo(probe, len(reader), read, "decord")


@contextmanager
def open_torchcodec(path: Path, start_s: float | None = None, end_s: float | None = None) -> Iterator[Video]:
    """torchcodec on the CPU, with its exact index; it needs the FFmpeg libraries of the system.

    Raises:
        VideoDecodeError: it cannot read the file, or is known to return wrong frames from such files.
    """
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError):
        raise missing_decoder("torchcodec") from None
    with _probe(path, start_s, end_s, "torchcodec") as probe:
        try:
            reader: Any = VideoDecoder(
                str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact"
            )
        except (RuntimeError, ValueError) as error:
            raise undecodable(f"torchcodec cannot open it: {str(error).splitlines()[0]}", path) from None

        def read(first: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
            batch = reader.get_frames_in_range(first, first + count)
            return batch.data.numpy(), batch.pts_seconds.numpy()

        yield _IndexedVideo(probe, len(reader), read, "torchcodec")


OPENERS: dict[str, Callable[..., AbstractContextManager[Video]]] = {
    "decord": open_decord,
    "torchcodec": open_torchcodec,
}


@contextmanager
def _probe(path: Path, start_s: float | None, end_s: float | None, name: str) -> Iterator[PyavVideo]:
    """The file as PyAV sees it, if the decoder can be trusted with such files."""
    with open_pyav(path, start_s, end_s) as video:
        assert isinstance(video, PyavVideo)
        if not _FORMATS & set(video.container_format.split(",")) or video.codec not in _CODECS[name]:
            raise _refused(name, f"{video.codec} in {video.container_format}", path)
        if video.header_frames and video.header_frames != video.count_packets(whole=True):
            raise _refused(name, "an edit list hides some of its frames", path)
        yield video


def _refused(name: str, what: str, path: Path) -> Exception:
    error = undecodable(f"{name} does not return the right frames from such files: {what}", path)
    error.fix = "--set extract.decoder=pyav"
    return error
