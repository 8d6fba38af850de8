"""What a decode process does: jobs in, events and pixels out."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DejaVidError
from .decode import Video, open_video
from .plan import FramePlan, Geometry, Recipe

_CHUNK_BYTES = 4 * 2**20  # frames travel in chunks of about this size


@dataclass(frozen=True)
class Job:
    """One video to decode.

    `recipe` is its own, if it is not treated as all others are.
    """

    video_id: str
    path: Path
    start_s: float | None = None
    end_s: float | None = None
    recipe: Recipe | None = None


@dataclass(frozen=True)
class DecodeSettings:
    """What the workers need to know besides the job."""

    recipe: Recipe
    decoder: str
    folder_fps: float
    timeout_s: float


@dataclass(frozen=True)
class Start:
    """A pass over a video begins; an earlier one, if any, is void (it expected another length)."""

    n_frames: int
    fps: float
    height: int
    width: int


@dataclass(frozen=True)
class Chunk:
    """The next wanted frames: (n,) seconds, uint8 (n, H, W, 3)."""

    times_s: NDArray[np.float64]
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class End:
    """All wanted frames have been sent."""

    n_frames: int
    status: str
    decode_s: float


@dataclass(frozen=True)
class Failed:
    """The video gives no frames, or no more; `cause` says why."""

    cause: str


Event = Start | Chunk | End | Failed


def decode_events(job: Job, settings: DecodeSettings) -> Iterator[Event]:
    """Decodes one video; never raises: a failure is the last event.

    The plan needs the number of frames, which only decoding tells for certain. The first pass trusts the
    header; if that was wrong in a way that matters, a second pass follows with the number counted.
    """
    begin = time.perf_counter()
    expected: int | None = None
    recipe = job.recipe or settings.recipe
    try:
        for _ in range(2):
            with open_video(
                job.path,
                settings.decoder,
                start_s=job.start_s,
                end_s=job.end_s,
                folder_fps=settings.folder_fps,
            ) as video:
                expected = expected or max(video.meta.n_frames, 1)
                fps = video.meta.fps
                plan = FramePlan(recipe, expected, fps)
                yield from _one_pass(video, plan, recipe, expected)
                if not video.n_frames:
                    yield Failed(f"there is no frame in it ({job.path})")
                    return
                if plan.same_as(FramePlan(recipe, video.n_frames, fps)):
                    yield End(video.n_frames, video.status, time.perf_counter() - begin)
                    return
                expected = video.n_frames
        yield Failed(f"its length differs from one reading to the next ({job.path})")
    except DejaVidError as error:
        yield Failed(f"{error.what} ({error.where})")
    except Exception as error:  # a library's surprise about one video must not end the run
        yield Failed(f"{type(error).__name__}: {error} ({job.path})")


def _one_pass(video: Video, plan: FramePlan, recipe: Recipe, expected: int) -> Generator[Event, None, None]:
    geometry: Geometry | None = None
    times: list[float] = []
    images: list[NDArray[np.uint8]] = []
    for frame in video.stream(plan.wanted):
        if geometry is None:
            height, width = frame.image.shape[:2]
            geometry = recipe.geometry(height, width)
            yield Start(expected, plan.fps, height, width)
        images.append(geometry.prepare(frame.image))
        times.append(frame.time_s)
        if len(images) * images[0].nbytes >= _CHUNK_BYTES:
            yield Chunk(np.array(times), np.stack(images))
            times, images = [], []
    if images:
        yield Chunk(np.array(times), np.stack(images))


def work(connection: Connection, settings: DecodeSettings) -> None:
    """Main function of a decode process: jobs from `connection` until it closes, events back."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the encoding process decides when to stop, and then kills
    torch.set_num_threads(1)
    _die_with_parent()
    try:
        while True:
            for event in decode_events(connection.recv(), settings):
                send_event(connection, event)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the encoding process has closed its end, or is gone


def send_event(connection: Connection, event: Event) -> None:
    """Sends pixels as raw bytes behind their description: no pickling of megabytes."""
    if isinstance(event, Chunk):
        connection.send((event.times_s, event.pixels.shape))
        connection.send_bytes(event.pixels.data.cast("B"))
    else:
        connection.send(event)


def receive_event(connection: Connection) -> Event:
    """The counterpart of `send_event`."""
    message: Any = connection.recv()
    if isinstance(message, tuple):
        times_s, shape = message
        pixels = np.empty(shape, np.uint8)
        connection.recv_bytes_into(pixels.data.cast("B"))
        return Chunk(times_s, pixels)
    event: Event = message
    return event


def _die_with_parent() -> None:
    """A decoder that hangs cannot notice that the run was killed; a thread can."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
