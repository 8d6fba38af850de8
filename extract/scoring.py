"""Videos as the mean probabilities of their views, by a model that knows classes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from .assemble import Assembly, Clip, Floats
from .plan import Recipe
from .pool import DecodePool
from .worker import Chunk, DecodeSettings, End, Failed, Job, Start


@dataclass(frozen=True)
class Scores:
    """Of N videos.

    Attributes:
        log_probabilities: (N, C); NaN for a video that could not be decoded.
        failures: id of each of these -> why.
    """

    log_probabilities: NDArray[np.float64]
    failures: dict[str, str]


def score_views(
    jobs: Sequence[Job],
    settings: DecodeSettings,
    logits: Callable[[Tensor], Tensor],
    *,
    n_classes: int,
    device: torch.device,
    batch_size: int,
    workers: int,
    title: str = "",
) -> Scores:
    """Scores videos by the mean of their views' probabilities. A view is a clip and a crop of it.

    Args:
        jobs: N videos.
        settings: how they are decoded; the steps of the recipe are the clips.
        logits: uint8 (B, T, H, W, 3) on `device` -> (B, C).
        n_classes: C.
        device: of the model.
        batch_size: views per call.
        workers: decode processes.
        title: of a progress bar; empty: none.
    """
    scorer = _Scorer(logits, settings.recipe, device, batch_size)
    failures: dict[str, str] = {}
    with (
        tqdm(total=len(jobs), unit="video", desc=title, disable=not title) as bar,
        DecodePool(jobs, settings, workers, threading.Event()) as pool,
    ):
        for number, job in enumerate(jobs):
            cause = scorer.take(number, pool)
            if cause is not None:
                failures[job.video_id] = cause
            bar.update()
        scorer.finish()
    scores = np.full((len(jobs), n_classes), np.nan)
    for number, probabilities in scorer.results.items():
        scores[number] = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    return Scores(scores, failures)


class _Scorer:
    """Turns decoded frames into the probabilities of a video's views, in batches over videos.

    Attributes:
        results: number of a video -> (C,) mean probabilities of its views.
    """

    def __init__(
        self, logits: Callable[[Tensor], Tensor], recipe: Recipe, device: torch.device, batch_size: int
    ) -> None:
        self._logits, self._recipe, self._device, self._batch_size = logits, recipe, device, batch_size
        self.results: dict[int, Floats] = {}
        self._clips: deque[Clip] = deque()
        self._open: deque[tuple[int, Assembly]] = deque()

    def take(self, number: int, pool: DecodePool) -> str | None:
        """Takes the events of one video; the cause if it cannot be decoded."""
        assembly: Assembly | None = None
        for event in pool.events(number):
            match event:
                case Start():
                    self._forget(assembly)
                    assembly = Assembly(self._recipe, event.n_frames, event.fps, event.height, event.width)
                case Chunk():
                    assert assembly is not None
                    pixels = torch.from_numpy(event.pixels).to(self._device)
                    self._clips += assembly.add_frames(event.times_s, pixels)
                    while len(self._clips) >= self._batch_size:
                        self._encode()
                case End():
                    assert assembly is not None
                    self._open.append((number, assembly))
                    self._collect()
                case Failed():
                    self._forget(assembly)
                    return event.cause
        return None

    def finish(self) -> None:
        """Encodes what is waiting for a full batch."""
        while self._clips:
            self._encode()

    def _encode(self) -> None:
        batch = [self._clips.popleft() for _ in range(min(self._batch_size, len(self._clips)))]
        logits = self._logits(torch.stack([clip.pixels for clip in batch]))
        for clip, probabilities in zip(batch, logits.softmax(-1).cpu().numpy(), strict=True):
            clip.owner.put(clip.slot, probabilities, None)
        self._collect()

    def _collect(self) -> None:
        while self._open and self._open[0][1].complete:
            number, assembly = self._open.popleft()
            self.results[number] = assembly.finish().values.mean(0)

    def _forget(self, assembly: Assembly | None) -> None:
        """Drops clips of a pass that is void."""
        self._clips = deque(clip for clip in self._clips if clip.owner is not assembly)
