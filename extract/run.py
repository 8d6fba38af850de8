"""One shard of stage one: decode -> window -> batch -> encode -> write."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from ..config import Config
from ..errors import ConfigError, OutOfMemory, PartialResultError, Preempted
from ..signals import sigterm_event
from ..store import StoreWriter, create_store
from .assemble import Assembly, Clip
from .decode import decoder_facts
from .encoders import ClipEncoder, load_encoder
from .ledger import FailureLedger
from .manifest import Manifest, Row, read_manifest, require_files
from .plan import Recipe
from .pool import DecodePool, warm_up
from .presets import resolve_windowing
from .shards import parse_shard
from .sources import SOURCE, source_of, warn_of_changes
from .worker import Chunk, DecodeSettings, End, Failed, Job, Start

# Raise it when the code changes what a TSE holds; part of every store's fingerprint.
EXTRACT_VERSION = 1


@dataclass
class ExtractReport:
    """What one call of `extract_videos` did.

    Args:
        n_videos: in this shard; of them n_done were encoded now, n_skipped before, and n_failed have no TSE.
        n_windows: steps written now; n_batches were the calls of the encoder.
        stage_s: seconds until the first frame came (start); from then on waiting for frames, encoding,
            writing, and the rest (gather); and decoding, beside all that, in all processes together.
    """

    store_path: Path
    failures_path: Path
    n_videos: int = 0
    n_done: int = 0
    n_skipped: int = 0
    n_failed: int = 0
    n_windows: int = 0
    n_batches: int = 0
    stage_s: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("start", "wait", "gather", "encode", "write", "decode"), 0.0)
    )


def extract_facts(config: Config, encoder: ClipEncoder) -> dict[str, Any]:
    """Everything that decides a feature: what the store's fingerprint covers."""
    section = config.extract
    return {
        "extract_version": EXTRACT_VERSION,
        "encoder": encoder.id,
        "input": asdict(encoder.spec),
        "decoder": decoder_facts(section.decoder),
        "windowing": resolve_windowing(section).facts(),
        "official_views": section.official_views,
        "folder_fps": section.folder_fps,
    }


def extract_videos(
    config: Config, *, shard: str | None = None, retry_failed: bool = False, progress: bool = True
) -> ExtractReport:
    """Encodes the videos of the manifest that the store does not hold yet.

    Args:
        config: of the run.
        shard: "i/n" takes every n-th video from the i-th on (from 0); None: what the scheduler's environment
            variables say, else all.
        retry_failed: try videos in the failures ledger again.
        progress: show a progress bar.

    Raises:
        ConfigError, ManifestError, MissingDependencyError: before any work.
        StoreError: the store is another run's, or cannot be written; what was committed stays.
        PartialResultError: done, but more videos failed than `extract.max_failed` allows.
        Preempted: SIGTERM came; finished videos are committed.
        OutOfMemory: a batch does not fit onto the device.
    """
    section = config.extract
    index, count = parse_shard(shard)
    manifest = read_manifest(config.manifest.path, config.manifest.root, check_files=False)
    rows = manifest.rows[index::count]
    require_files(manifest, rows)
    if section.workers:
        warm_up()
    encoder = load_encoder(
        section.encoder, device=section.device, precision=section.precision, compile=section.compile
    )
    recipe = make_recipe(config, encoder)
    store = create_store(
        config.store_path,
        feature_dim=row_dim(recipe, encoder),
        fingerprint_facts=extract_facts(config, encoder),
        dtype=config.store.dtype,
        format=config.store.format,
    )
    ledger = FailureLedger(config.store_path)
    failed = {row.video_id for row in rows if row.video_id not in store} & ledger.read().keys()
    todo = [row for row in rows if row.video_id not in store and (retry_failed or row.video_id not in failed)]
    report = ExtractReport(config.store_path, ledger.folder, n_videos=len(rows))
    report.n_skipped = sum(row.video_id in store for row in rows)
    report.n_failed = 0 if retry_failed else len(failed)
    warn_of_changes(store, manifest, [row for row in rows if row.video_id in store])
    limits = {name: getattr(config.store, name) for name in ("flush_rows", "flush_bytes", "flush_s")}
    settings = DecodeSettings(recipe, section.decoder, section.folder_fps, section.timeout_s)
    with sigterm_event() as stop, store.writer(**limits) as writer:
        run = _Run(config, encoder, recipe, writer, ledger, report)
        run.process(manifest, todo, settings, stop, progress)
    if stop.is_set():
        raise Preempted(
            f"stopped by SIGTERM after {report.n_done} of {len(todo)} videos, all of them committed",
            where=f"shard {index}/{count} of {config.store_path}",
            fix="run the same command again; it goes on where this one stopped",
        )
    check_failures(report.n_failed, report.n_videos, section.max_failed, report.failures_path)
    return report


def make_recipe(config: Config, encoder: ClipEncoder) -> Recipe:
    """The settings of the run, checked against what the encoder can take.

    Raises:
        ConfigError: they do not fit together.
    """
    section = config.extract
    windowing = resolve_windowing(section)
    problem: tuple[str, str] | None = None
    if encoder.spec.frames not in (1, windowing.clip_len):
        problem = f"clip_len {windowing.clip_len}", f"--set extract.clip_len={encoder.spec.frames}"
    elif windowing.rows != "embedding" and not encoder.num_classes:
        problem = f"rows {windowing.rows} and no classifier", "--set extract.rows=embedding"
    elif section.official_views != "none" and (
        encoder.spec.frames != 16 or not encoder.num_classes or windowing.crops == "squash"
    ):
        problem = (
            "official views, which need 16 frames, a classifier and crops that are not squashed",
            "--set extract.official_views=none",
        )
    if problem:
        raise ConfigError(
            f"encoder {encoder.id} takes {encoder.spec.frames} frames and has {encoder.num_classes} classes,"
            f" but the run asks for {problem[0]}",
            where="section extract",
            fix=problem[1],
        )
    return Recipe(encoder.spec, windowing, section.official_views)


def row_dim(recipe: Recipe, encoder: ClipEncoder) -> int:
    """F: the width of one TSE step."""
    windowing = recipe.windowing
    width = encoder.feature_dim + (0 if windowing.rows == "embedding" else encoder.num_classes)
    return width * (windowing.n_views if windowing.merge_views == "concat" else 1)


@dataclass
class _Open:
    """A video whose clips are not all encoded yet."""

    row: Row
    assembly: Assembly
    end: End


class _Batch(NamedTuple):
    """Clips that the encoder has been given, and where its results (will) lie."""

    clips: Sequence[Clip]
    vectors: torch.Tensor
    probabilities: torch.Tensor | None


class _Run:
    """The loop of one shard. Videos enter in order and leave in order."""

    def __init__(
        self,
        config: Config,
        encoder: ClipEncoder,
        recipe: Recipe,
        writer: StoreWriter,
        ledger: FailureLedger,
        report: ExtractReport,
    ) -> None:
        self._encoder = encoder
        self._recipe = recipe
        self._writer = writer
        self._ledger = ledger
        self._report = report
        self._batch_size = config.extract.batch_size
        self._workers = config.extract.workers
        self._clips: deque[Clip] = deque()
        self._batches: deque[_Batch] = deque()
        self._open: deque[_Open] = deque()
        # The largest value that the store's type holds; what is not below it is no feature.
        self._limit = 65504.0 if config.store.dtype == "float16" else float(np.finfo(np.float32).max)
        self._begin = time.monotonic()
        self._first_frame = 0.0

    def process(
        self,
        manifest: Manifest,
        rows: Sequence[Row],
        settings: DecodeSettings,
        stop: threading.Event,
        progress: bool,
    ) -> None:
        """Encodes `rows`; once `stop` is set, returns without the video at hand."""
        self._file_of = manifest.file_of
        jobs = [Job(row.video_id, self._file_of(row), row.start_s, row.end_s) for row in rows]
        self._begin = time.monotonic()
        with (
            tqdm(total=len(rows), unit="video", disable=not (progress and rows)) as self._bar,
            DecodePool(jobs, settings, self._workers, stop) as pool,
        ):
            for number, row in enumerate(rows):
                if not self._take_video(row, pool, number):
                    break
            self._encode(everything=True)
        stages = self._report.stage_s
        if self._first_frame:
            elapsed_s = time.perf_counter() - self._first_frame
            stages["gather"] = elapsed_s - stages["wait"] - stages["encode"] - stages["write"]

    def _take_video(self, row: Row, pool: DecodePool, number: int) -> bool:
        """False when the run was stopped before the video's end."""
        assembly: Assembly | None = None
        since = time.perf_counter()
        for event in pool.events(number):
            self._spend("wait" if self._first_frame else "start", since)
            self._first_frame = self._first_frame or time.perf_counter()
            match event:
                case Start():
                    self._forget(assembly)
                    assembly = Assembly(self._recipe, event.n_frames, event.fps, event.height, event.width)
                case Chunk():
                    assert assembly is not None
                    self._clips += assembly.add_frames(event.times_s, self._upload(event))
                    self._encode(everything=False)
                case End():
                    assert assembly is not None
                    self._report.stage_s["decode"] += event.decode_s
                    self._open.append(_Open(row, assembly, event))
                    self._write_complete()
                    return True
                case Failed():
                    self._forget(assembly)
                    self._fail(row, "decode", event.cause)
                    return True
            since = time.perf_counter()
        self._forget(assembly)
        return False

    def _forget(self, assembly: Assembly | None) -> None:
        """Drops the clips of a pass that turned out to be void."""
        self._clips = deque(clip for clip in self._clips if clip.owner is not assembly)

    def _upload(self, chunk: Chunk) -> torch.Tensor:
        pixels = torch.from_numpy(chunk.pixels)
        if self._encoder.device.type == "cuda":
            pixels = pixels.pin_memory().to(self._encoder.device, non_blocking=True)
        return pixels

    def _encode(self, *, everything: bool) -> None:
        while len(self._clips) >= self._batch_size or (everything and self._clips):
            clips = [self._clips.popleft() for _ in range(min(self._batch_size, len(self._clips)))]
            self._batches.append(self._launch(clips))
            # One batch stays behind: a GPU works on it while the next one is put together.
            if len(self._batches) > 1:
                self._collect()
        while everything and self._batches:
            self._collect()
        self._write_complete()

    def _collect(self) -> None:
        """Waits for the oldest batch and hands its results to the videos they belong to."""
        clips, vectors, probabilities = self._batches.popleft()
        since = time.perf_counter()
        rows = vectors.cpu().numpy()
        views = None if probabilities is None else probabilities.cpu().numpy()
        self._spend("encode", since)
        for place, clip in enumerate(clips):
            clip.owner.put(clip.slot, rows[place], None if views is None else views[place])
        self._report.n_batches += 1

    def _launch(self, clips: Sequence[Clip]) -> _Batch:
        # Always the same shape: compiled models and kernel choices depend on it.
        padding = [clips[-1].pixels] * (self._batch_size - len(clips))
        batch = torch.stack([*(clip.pixels for clip in clips), *padding])
        since = time.perf_counter()
        try:
            features, logits = self._encoder.encode(batch)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"a batch of {tuple(batch.shape)} does not fit: {error}",
                where=f"encoder {self._encoder.id} on {self._encoder.device}",
                fix=f"--set extract.batch_size={max(1, self._batch_size // 2)}",
            ) from None
        self._spend("encode", since)
        probabilities = None if logits is None else logits.softmax(-1)
        match self._recipe.windowing.rows:
            case "embedding+logits" if logits is not None:
                features = torch.cat([features, logits], dim=-1)
            case "embedding+probabilities" if probabilities is not None:
                features = torch.cat([features, probabilities], dim=-1)
        return _Batch(clips, features, None if self._recipe.official == "none" else probabilities)

    def _write_complete(self) -> None:
        while self._open and self._open[0].assembly.complete:
            video = self._open.popleft()
            tse = video.assembly.finish()
            if not (np.abs(tse.values) <= self._limit).all():
                self._fail(video.row, "encode", f"features that are not finite, or beyond {self._limit:g}")
                continue
            since = time.perf_counter()
            self._writer.append(
                video.row.video_id,
                tse.values,
                start_s=tse.start_s,
                end_s=tse.end_s,
                n_frames=video.end.n_frames,
                status=video.end.status,
                extras={**tse.extras, SOURCE: source_of(self._file_of(video.row), video.row)},
            )
            self._spend("write", since)
            self._report.n_done += 1
            self._report.n_windows += len(tse.values)
            self._show()

    def _fail(self, row: Row, stage: str, cause: str) -> None:
        self._ledger.add(row.video_id, row.path, stage, cause)
        self._report.n_failed += 1
        self._show()

    def _spend(self, stage: str, since: float) -> None:
        self._report.stage_s[stage] += time.perf_counter() - since

    def _show(self) -> None:
        report = self._report
        rate = report.n_windows / max(time.monotonic() - self._begin, 1e-9)
        shares = {name: f"{seconds:.0f}s" for name, seconds in report.stage_s.items() if seconds}
        self._bar.set_postfix(
            {"windows/s": f"{rate:.1f}", "failed": report.n_failed, **shares}, refresh=False
        )
        self._bar.update()


def check_failures(
    n_failed: int,
    n_videos: int,
    max_failed: float,
    ledger: Path,
    *,
    fix: str = "mend the files and run again with --retry-failed, or raise extract.max_failed",
) -> None:
    """Raises `PartialResultError` if more videos failed than `max_failed`, a share below 1, else a count."""
    allowed = max_failed * n_videos if max_failed < 1 else max_failed
    if n_failed > allowed:
        raise PartialResultError(
            f"{n_failed} of {n_videos} videos failed, more than extract.max_failed = {max_failed:g}",
            where=f"{ledger} names them and why",
            fix=fix,
        )
