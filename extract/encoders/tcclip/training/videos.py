"""The videos of a training run: which, in what order, and as batches of clips."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .....config import Config
from .....distributed import World
from .....errors import ConfigError
from .....fingerprints import fingerprint
from .....splits import TRAIN_SPLIT
from ....assemble import Assembly
from ....manifest import Manifest, Row, read_manifest, rows_of_split
from ....plan import Recipe
from ....pool import DecodePool
from ....worker import Chunk, DecodeSettings, End, Failed, Job, Start
from ...base import ClipSpec
from ..prompts import ClassNames, class_indices, read_class_names
from ..sampling import view_recipe
from .augment import training_recipe


@dataclass(frozen=True)
class Videos:
    """Labelled videos.

    Attributes:
        jobs: N videos to decode.
        targets: (N,) positions of their classes.
    """

    jobs: tuple[Job, ...]
    targets: NDArray[np.int64]

    def digest(self) -> str:
        """Of ids, files, times and classes, in their order."""
        rows = [[job.video_id, str(job.path), job.start_s, job.end_s] for job in self.jobs]
        return fingerprint({"videos": rows, "targets": self.targets.tolist()})


@dataclass(frozen=True)
class TrainingSet:
    """What a run trains on and chooses its epoch by.

    Attributes:
        classes: in the order of the targets.
        train: of the training split.
        val: of the split to choose on; None without one.
    """

    classes: ClassNames
    train: Videos
    val: Videos | None


def read_training_set(config: Config, *, shots: int) -> TrainingSet:
    """The videos that the configuration names.

    Args:
        config: its sections manifest, tcclip and run.
        shots: training videos per class, drawn by run.seed; 0, or more than there are, takes all.

    Raises:
        ManifestError: the manifest is wrong, a split is empty, or a label is no class.
        ConfigError: the file of classes cannot be read, or there is one class only.
    """
    manifest = read_manifest(config.manifest.path, config.manifest.root)
    section = config.tcclip
    rows = rows_of_split(manifest, TRAIN_SPLIT)
    if section.classes is None:
        names = tuple(sorted({row.label for row in rows}))
        classes = ClassNames(names, tuple(map(str, range(len(names)))))
    else:
        classes = read_class_names(section.classes)
    if len(classes.names) < 2:
        raise ConfigError("there is one class only", where="tcclip.classes", fix="give at least two")
    train = _videos(manifest, rows, classes, config)
    if shots:
        kept = draw_shots(train.targets, shots, config.run.seed)
        train = Videos(tuple(train.jobs[i] for i in kept), train.targets[kept])
    val = None
    if section.split is not None:
        val = _videos(manifest, rows_of_split(manifest, section.split), classes, config)
    return TrainingSet(classes, train, val)


def draw_shots(targets: NDArray[np.int64], shots: int, seed: int) -> NDArray[np.int64]:
    """Positions of at most `shots` samples of every class, in ascending order."""
    order = np.random.RandomState(seed).permutation(len(targets))
    kept = [order[targets[order] == target][:shots] for target in np.unique(targets)]
    return np.sort(np.concatenate(kept))


class MicroBatch(NamedTuple):
    """What one process trains on in one forward pass.

    Attributes:
        clips: uint8 (B, T, H, W, 3).
        labels: (B,) int64.
        weight: 0 if no video of it could be decoded, and the clip is black; else 1.
        failures: (job, cause) of videos that could not be decoded; they are not in the batch.
    """

    clips: Tensor
    labels: Tensor
    weight: float
    failures: tuple[tuple[Job, str], ...]


def draw_seed(*facts: int) -> int:
    """A seed that is a function of some numbers, and differs wherever they do."""
    return int(np.random.SeedSequence((len(facts), *facts)).generate_state(1)[0])


def micro_batches(
    videos: Videos,
    config: Config,
    spec: ClipSpec,
    world: World,
    *,
    epoch: int,
    first: int,
    count: int,
) -> Generator[MicroBatch, None, None]:
    """This process's micro-batches of an epoch, from number `first` on to number `count`.

    What they hold depends on the run's seed, the epoch, their size and the number of processes alone.
    """
    size, seed = config.tcclip.micro_batch, config.run.seed
    order = np.random.RandomState(draw_seed(seed, epoch)).permutation(len(videos.jobs))
    # Micro-batch i of all processes together is one stretch of the order.
    stretches = order[: count * world.size * size].reshape(count, world.size, size)
    mine = stretches[first:, world.rank].reshape(-1)
    jobs = [_with_recipe(videos.jobs[i], spec, draw_seed(seed, epoch, int(i)), config) for i in mine]
    targets = torch.from_numpy(videos.targets[mine])
    # Every video has a recipe of its own; this one is never used.
    settings = decode_settings(config, view_recipe(spec))
    with DecodePool(jobs, settings, config.extract.workers, threading.Event()) as pool:
        for begin in range(0, len(jobs), size):
            yield _gather(pool, jobs, targets, range(begin, begin + size), spec)


def decode_settings(config: Config, recipe: Recipe) -> DecodeSettings:
    """How the configuration has videos decoded."""
    section = config.extract
    return DecodeSettings(recipe, section.decoder, section.folder_fps, section.timeout_s)


def _gather(
    pool: DecodePool, jobs: Sequence[Job], targets: Tensor, numbers: range, spec: ClipSpec
) -> MicroBatch:
    clips: dict[int, Tensor] = {}
    failures: list[tuple[Job, str]] = []
    for number in numbers:
        clip = _clip(pool, jobs[number], number)
        if isinstance(clip, str):
            failures.append((jobs[number], clip))
        else:
            clips[number] = clip
    if not clips:
        # The processes have to take their steps together, also one that has nothing to say.
        black = torch.zeros(1, spec.frames, spec.height, spec.width, 3, dtype=torch.uint8)
        return MicroBatch(black, targets[numbers[0]][None], 0.0, tuple(failures))
    return MicroBatch(torch.stack(list(clips.values())), targets[list(clips)], 1.0, tuple(failures))


def _clip(pool: DecodePool, job: Job, number: int) -> Tensor | str:
    """The clip of a job, or why there is none."""
    assembly: Assembly | None = None
    clips: list[Tensor] = []
    for event in pool.events(number):
        match event:
            case Start():  # a second one follows if the first expected another length
                assert job.recipe is not None
                assembly = Assembly(job.recipe, event.n_frames, event.fps, event.height, event.width)
                clips = []
            case Chunk():
                assert assembly is not None
                ready = assembly.add_frames(event.times_s, torch.from_numpy(event.pixels))
                clips += [clip.pixels for clip in ready]
            case End():
                return clips[0]
            case Failed():
                return event.cause
    raise AssertionError("the events of a job end with End or Failed")


def _with_recipe(job: Job, spec: ClipSpec, seed: int, config: Config) -> Job:
    recipe = training_recipe(spec, seed, flips=config.tcclip.flip)
    return Job(job.video_id, job.path, job.start_s, job.end_s, recipe)


def _videos(manifest: Manifest, rows: Sequence[Row], classes: ClassNames, config: Config) -> Videos:
    where = (
        f"split {rows[0].split!r} of {manifest.path} with {config.tcclip.classes or 'the training labels'}"
    )
    targets = class_indices([row.label for row in rows], classes, where)
    jobs = (Job(row.video_id, manifest.file_of(row), row.start_s, row.end_s) for row in rows)
    return Videos(tuple(jobs), targets)
