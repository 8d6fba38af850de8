"""Labels for videos that nobody has labelled: encoded as the head's training videos were, then scored."""

from __future__ import annotations

import glob
import io
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import Config
from ..errors import ConfigError, ManifestError, MissingDependencyError, VideoDecodeError
from ..files import write_atomically
from ..fingerprints import differing_keys
from ..store import create_store, open_store
from ..train import DejaVidHead
from .predictions import Prediction, is_store, predict_stored
from .recipe import read_recipe

if TYPE_CHECKING:
    from ..extract.encoders.tcclip.encoder import TcClipEncoder
    from ..extract.worker import DecodeSettings
    from ..store import Store

VIDEO_SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".mpg",
    ".mpeg",
    ".ts",
    ".wmv",
    ".flv",
    ".ogv",
)
MAX_EXPLAINED = 50  # videos on one page
PICTURE_HEIGHT = 96  # pixels
SHEET_HEIGHT = 224  # pixels, of two rows of frames

Sources = Mapping[str, tuple[Path, float | None, float | None]]


@dataclass(frozen=True)
class Encoded:
    """Videos that have been encoded for a head.

    Attributes:
        store: with their TSEs, by path; it is deleted with the context it came from.
        paths: all videos, in the order given.
        failures: path -> why it has no TSE.
        config: what they were encoded with.
        seconds: that took.
    """

    store: Store
    paths: tuple[str, ...]
    failures: Mapping[str, str]
    config: Config
    seconds: float


@dataclass(frozen=True)
class PredictionRun:
    """What `predict` did.

    Attributes:
        predictions: one per video, in the order given.
        n_steps: of all TSEs.
        encode_s, score_s: seconds spent; encode_s is 0 for a store.
        page: the page of explanations, if one was asked for.
    """

    predictions: list[Prediction]
    n_steps: int
    encode_s: float
    score_s: float
    page: Path | None

    @property
    def n_failed(self) -> int:
        return sum(prediction.failure is not None for prediction in self.predictions)

    @property
    def summary(self) -> str:
        """Videos, failures and throughput, in one line."""
        n = len(self.predictions) - self.n_failed
        parts = [f"{n} videos"]
        if self.n_failed:
            parts.append(f"{self.n_failed} failed")
        if self.encode_s:
            rate = self.n_steps / self.encode_s
            parts.append(f"encoded in {self.encode_s:.1f} s ({rate:.1f} windows/s)")
        parts.append(f"scored in {self.score_s:.2f} s ({n / max(self.score_s, 1e-9):.0f} videos/s)")
        return ", ".join(parts) + (f"; {self.page}" if self.page else "")


def predict(
    head_dir: Path,
    arguments: Sequence[str],
    *,
    top: int = 5,
    overrides: Sequence[str] = (),
    page: Path | None = None,
    early_abandon: bool = False,
    progress: bool = False,
) -> PredictionRun:
    """Labels videos, or the TSEs of one store.

    Args:
        head_dir: folder of a head.
        arguments: video files, folders and glob patterns; or one folder of a store.
        top: classes per video.
        overrides: see `encode_videos`.
        page: write an HTML page there that explains the predictions.
        early_abandon: see `predict_stored`.
        progress: show bars.

    Raises:
        ConfigError, ManifestError, StoreError: what `encode_videos` and `predict_stored` raise.
    """
    head = DejaVidHead.load(head_dir)
    if len(arguments) == 1 and is_store(arguments[0]):
        store = open_store(arguments[0])
        began = time.perf_counter()
        found = predict_stored(head, store, store.ids(), top=top, early_abandon=early_abandon)
        seconds = time.perf_counter() - began
        _write_page(page, head, store, [p.video_id for p in found], None, progress)
        return PredictionRun(found, sum(p.n_steps for p in found), 0.0, seconds, page)
    with encode_videos(head_dir, find_videos(arguments), overrides=overrides, progress=progress) as encoded:
        known = [path for path in encoded.paths if path in encoded.store]
        began = time.perf_counter()
        stored = predict_stored(head, encoded.store, known, top=top, early_abandon=early_abandon)
        seconds = time.perf_counter() - began
        scored = {prediction.video_id: prediction for prediction in stored}
        found = [
            scored.get(path) or Prediction(path, (), 0, encoded.failures.get(path, "no TSE"))
            for path in encoded.paths
        ]
        _write_page(page, head, encoded.store, known, encoded.config, progress)
    return PredictionRun(found, sum(p.n_steps for p in found), encoded.seconds, seconds, page)


def _write_page(
    path: Path | None,
    head: DejaVidHead,
    store: Store,
    ids: Sequence[str],
    config: Config | None,
    progress: bool,
) -> None:
    """Explains the first videos; with `config`, that encoded them, ids are paths and there are pictures."""
    if path is None:
        return
    from .report import illustrate, render_predictions

    shown = ids[:MAX_EXPLAINED]
    about = [f"{len(shown)} of {len(ids)} videos explained."]
    frames, masks = None, None
    if config is not None:
        sources: Sources = {video: (Path(video), None, None) for video in shown}
        frames = VideoFrames(sources, config.extract.decoder, config.extract.folder_fps)
        masks, why_not = context_masks(config, store, sources)
        about += [why_not] if why_not else []
    items = illustrate(head, store, shown, training={}, frames=frames, masks=masks, progress=progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, render_predictions(items, about=about).encode())


@contextmanager
def encode_videos(
    head_dir: Path, paths: Sequence[Path], *, overrides: Sequence[str] = (), progress: bool = False
) -> Iterator[Encoded]:
    """Encodes videos as the head's training videos were, into a store that lives as long as the context.

    Args:
        head_dir: folder of a head, with its extract.json.
        paths: video files, or folders of frames.
        overrides: `extract.key=value` for keys that change no feature (device, batch_size, workers ...), or
            for a checkpoint that has moved (encoder).
        progress: show a bar.

    Raises:
        ConfigError: the head cannot tell how its features were made, or no path is given.
        StoreVersionError: this machine would make other features; names the differing keys.
    """
    from ..extract import extract_videos, write_manifest
    from ..extract.ledger import FailureLedger
    from ..extract.manifest import Row

    recipe = read_recipe(head_dir)
    absolute = [Path(path).absolute() for path in dict.fromkeys(paths)]
    lost = [str(path) for path in absolute if not path.exists()]
    if lost or not absolute:
        raise ManifestError(
            f"{len(lost)} videos do not exist" if lost else "no videos",
            where=", ".join(lost[:5]) or "the arguments",
            fix="give paths of video files or folders of them",
        )
    with tempfile.TemporaryDirectory(prefix="dejavid-predict-") as folder:
        manifest = Path(folder, "videos.parquet")
        write_manifest(manifest, [Row(str(path), str(path.relative_to("/"))) for path in absolute])
        config = recipe.config(overrides, Path(folder), manifest)
        began = time.perf_counter()
        # The store is made from the head's facts: where this machine's differ, extraction refuses it.
        create_store(
            config.store_path,
            feature_dim=recipe.feature_dim,
            fingerprint_facts=recipe.facts,
            dtype=recipe.dtype,
        )
        report = extract_videos(config, shard="0/1", progress=progress)
        failures = {i: f"{f.stage}: {f.cause}" for i, f in FailureLedger(report.store_path).read().items()}
        store = open_store(report.store_path)
        seconds = time.perf_counter() - began
        yield Encoded(store, tuple(map(str, absolute)), failures, config, seconds)


def find_videos(arguments: Sequence[str]) -> list[Path]:
    """Video files for paths, folders (searched to the bottom) and glob patterns, in order, each once.

    A folder that holds images and no videos is one video: its frames.

    Raises:
        ManifestError: an argument matches nothing.
    """
    from ..extract.decode import IMAGE_SUFFIXES

    found: list[Path] = []
    for argument in arguments:
        matches = [argument] if Path(argument).exists() else sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 - Path.glob refuses absolute patterns
        before = len(found)
        for match in map(Path, matches):
            if not match.is_dir():
                found.append(match)
                continue
            inside = sorted(path for path in match.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
            frames = any(path.suffix.lower() in IMAGE_SUFFIXES for path in match.iterdir())
            found += inside or ([match] if frames else [])
        if len(found) == before:
            raise ManifestError(
                "there is no video",
                where=argument,
                fix="give video files, folders of them, or a glob pattern",
            )
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class VideoFrames:
    """Pictures out of videos: the report's source of frames.

    Attributes:
        sources: video id -> (path, start_s or None, end_s or None).
        decoder, folder_fps: as in the `extract` section.
    """

    sources: Sources
    decoder: str = "pyav"
    folder_fps: float = 12.0

    def __call__(self, video_id: str, times_s: Sequence[float]) -> list[bytes]:
        """JPEG pictures of a video at some seconds.

        Raises:
            VideoDecodeError: it cannot be read; ConfigError: its file is not known.
        """
        from ..extract.decode import open_video

        path, start_s, end_s = _source_of(video_id, self.sources)
        with open_video(
            path, self.decoder, start_s=start_s, end_s=end_s, folder_fps=self.folder_fps
        ) as video:
            # At a variable rate this is a frame nearby, which is enough to look at.
            places = [int((t - (start_s or 0.0)) * video.meta.fps) for t in times_s]
            places = [min(max(place, 0), max(video.meta.n_frames - 1, 0)) for place in places]
            wanted = np.unique(np.array(places, np.int64))
            frames = zip(wanted.tolist(), video.stream(wanted), strict=False)
            bounds = 2 * PICTURE_HEIGHT, PICTURE_HEIGHT
            pictures = {place: _jpeg(frame.image, bounds) for place, frame in frames}
        if not pictures:
            raise VideoDecodeError("no frame could be read", where=str(path), fix="look at the file")
        last = max(pictures)
        return [pictures.get(place, pictures[last]) for place in places]


def frames_of_manifest(config: Config) -> VideoFrames:
    """Pictures of the videos of a run's manifest."""
    from ..extract import read_manifest

    manifest = read_manifest(config.manifest.path, config.manifest.root, check_files=False)
    sources = {row.video_id: (manifest.file_of(row), row.start_s, row.end_s) for row in manifest.rows}
    return VideoFrames(sources, config.extract.decoder, config.extract.folder_fps)


@dataclass(frozen=True)
class ContextMasks:
    """Pictures of what TC-CLIP's context tokens are made of: the report's source of masks.

    Attributes:
        encoder: that made the store.
        settings: with which it did.
        sources: as in `VideoFrames`.
    """

    encoder: TcClipEncoder
    settings: DecodeSettings
    sources: Sources

    def __call__(self, video_id: str, steps: Sequence[int]) -> list[bytes]:
        """JPEG pictures of some windows: their frames, and below them these with the tokens painted.

        Raises:
            VideoDecodeError: the video cannot be read; ConfigError: its file is not known.
        """
        from ..extract.encoders.tcclip.pictures import context_sheets
        from ..extract.worker import Job

        job = Job(video_id, *_source_of(video_id, self.sources))
        sheets = context_sheets(self.encoder, job, self.settings, steps)
        return [_jpeg(sheet, (sheet.shape[1], SHEET_HEIGHT)) for sheet in sheets]


def context_masks(config: Config, store: Store, sources: Sources) -> tuple[ContextMasks | None, str | None]:
    """The source of masks of a store, if TC-CLIP made it; else None and, for a `tcclip:` encoder, why.

    Args:
        config: of the run that made the store.
        store: whose windows will be shown.
        sources: as in `VideoFrames`.
    """
    section = config.extract
    if not section.encoder.startswith("tcclip:"):
        return None, None
    from ..extract.encoders.tcclip.pictures import load_contextual
    from ..extract.plan import Recipe
    from ..extract.presets import resolve_windowing
    from ..extract.run import extract_facts
    from ..extract.worker import DecodeSettings

    try:
        encoder = load_contextual(section.encoder, device=section.device, precision=section.precision)
        facts = extract_facts(config, encoder)
    except (ConfigError, MissingDependencyError, OSError) as error:
        return None, f"Context tokens are not shown: {getattr(error, 'what', error)}."
    # Another decoder shows the same frames; another model or window would show what the head never saw.
    decisive = "encoder", "input", "windowing"
    lines = differing_keys({k: store.facts.get(k) for k in decisive}, {k: facts[k] for k in decisive})
    if lines:
        return None, f"Context tokens are not shown: the store was made by another ({'; '.join(lines)})."
    if encoder.spec.frames == 1:
        return None, "Context tokens are not shown: the encoder sees single frames."
    recipe = Recipe(encoder.spec, resolve_windowing(section))
    settings = DecodeSettings(recipe, section.decoder, section.folder_fps, section.timeout_s)
    return ContextMasks(encoder, settings, sources), None


def _source_of(video_id: str, sources: Sources) -> tuple[Path, float | None, float | None]:
    if video_id not in sources:
        raise ConfigError("its file is not known", where=video_id, fix="add the video to the manifest")
    return sources[video_id]


def _jpeg(image: Any, bounds: tuple[int, int]) -> bytes:
    """A picture of at most (width, height) pixels."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingDependencyError(
            "Pillow is not installed", where="pictures of videos", fix="pip install 'dejavid[report]'"
        ) from None
    picture = Image.fromarray(image)
    picture.thumbnail(bounds)
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=72)
    return sink.getvalue()
