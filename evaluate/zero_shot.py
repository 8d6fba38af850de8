"""Open-vocabulary recognition: videos against classes that are only names, as TC-CLIP is evaluated.

A view is a clip of frames and a crop of them; the probabilities of a video's views are averaged. Several test
sets (the splits of a benchmark) and several models (trained from several seeds) give a mean and a deviation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import numpy as np
from torch import Tensor

from ..config import ExtractSection
from ..errors import ConfigError
from ..extract import load_encoder, read_manifest
from ..extract.encoders.tcclip.prompts import class_indices, read_class_names
from ..extract.encoders.tcclip.sampling import view_recipe
from ..extract.manifest import rows_of_split
from ..extract.pool import warm_up
from ..extract.scoring import score_views
from ..extract.worker import DecodeSettings, Job
from ..files import write_atomically
from .evaluation import percent
from .metrics import Missing, Split, Summary, outcomes_of, summarise

if TYPE_CHECKING:
    from ..extract.manifest import Manifest


@dataclass(frozen=True)
class Views:
    """What a video is scored by.

    Args:
        n_clips: clips of frames.
        crops: `center`, or `three` along the longer side.
        seed: draws the frames at random, as the published protocol does with more than one clip; None takes
            them at equal distances.
    """

    n_clips: int = 2
    crops: Literal["center", "three"] = "center"
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.n_clips < 1 or self.crops not in ("center", "three"):
            raise ConfigError(
                f"{self.n_clips} clips with crops {self.crops!r} are no views",
                where="zero-shot evaluation",
                fix="at least one clip, and crops center or three",
            )


@dataclass(frozen=True)
class TestSet:
    """Videos and the classes to choose from.

    Args:
        manifest: CSV or Parquet; a label is the name or the id of a class in `labels`.
        split: rows of the manifest to score.
        labels: CSV (id, name) or JSON ({id: name}); its order is that of the classes.
        root: folder the manifest's paths start at; default: the manifest's own.
    """

    __test__ = False  # no test, whatever its name tells pytest

    manifest: Path
    split: str
    labels: Path
    root: Path | None = None


@dataclass(frozen=True)
class SetResult:
    """One model on one test set.

    Attributes:
        model, test_set: which.
        n_classes: to choose from.
        summary: the accuracies with their denominators.
        failures: video id -> why it has no scores.
    """

    model: str
    test_set: TestSet
    n_classes: int
    summary: Summary
    failures: Mapping[str, str]


@dataclass(frozen=True)
class Average:
    """Over models and test sets: means and deviations (of a population), shares in 0..1."""

    top1: float
    top1_std: float
    top5: float
    top5_std: float


@dataclass(frozen=True)
class ZeroShotResult:
    """Results on `base` and, in a base-to-novel evaluation, on `novel`.

    Attributes:
        views: what videos were scored by.
        missing: whether videos without scores count as wrong.
        base, novel: one result per model and test set; novel is empty without novel classes.
    """

    views: Views
    missing: Missing
    base: tuple[SetResult, ...]
    novel: tuple[SetResult, ...]

    @property
    def base_average(self) -> Average:
        return average(self.base)

    @property
    def novel_average(self) -> Average | None:
        return average(self.novel) if self.novel else None

    @property
    def harmonic_mean(self) -> float | None:
        """Of the two averages of top-1; None without novel classes."""
        if self.novel_average is None:
            return None
        base, novel = self.base_average.top1, self.novel_average.top1
        return 2 * base * novel / (base + novel) if base + novel else 0.0


def zero_shot(
    models: Sequence[str],
    base: Sequence[TestSet],
    novel: Sequence[TestSet] = (),
    *,
    views: Views = Views(),
    section: ExtractSection,
    missing: Missing = "wrong",
    progress: bool = False,
) -> ZeroShotResult:
    """Scores every model on every test set.

    Args:
        models: encoder URIs, `tcclip:FOLDER`.
        base, novel: test sets; `novel` only for a base-to-novel evaluation.
        views: what a video is scored by.
        section: where the encoder runs and how videos are decoded; its windows are not used.
        missing: whether videos that cannot be decoded count as wrong or are left out.
        progress: show bars on standard error.

    Raises:
        ConfigError: a model or a label file cannot be read, or an encoder knows no classes by name.
        ManifestError: a manifest is wrong, has no such split, or labels that are no class.
    """
    if not models or not base:
        raise ConfigError(
            "nothing to evaluate",
            where="zero-shot evaluation",
            fix="give a model tcclip:FOLDER and a file of classes",
        )
    for model in models:
        if not model.startswith("tcclip:"):
            raise ConfigError(
                "this encoder takes no names of classes",
                where=model,
                fix="give tcclip:FOLDER, made by dejavid encoder convert",
            )
    # Everything that can be wrong in a file is found before the first video is decoded.
    checked = {test: _Videos(test) for test in (*base, *novel)}
    if section.workers:
        warm_up()
    results = {
        (model, test): _score_set(model, videos, views, section, missing, progress)
        for model in models
        for test, videos in checked.items()
    }
    return ZeroShotResult(
        views,
        missing,
        tuple(results[model, test] for test in base for model in models),
        tuple(results[model, test] for test in novel for model in models),
    )


def average(results: Sequence[SetResult]) -> Average:
    """Mean and standard deviation (of a population) over results; there must be at least one."""
    top1 = [result.summary.top1 for result in results]
    top5 = [result.summary.top5 for result in results]
    return Average(float(np.mean(top1)), float(np.std(top1)), float(np.mean(top5)), float(np.std(top5)))


def table(result: ZeroShotResult) -> list[tuple[str, ...]]:
    """Rows of text: a header, one row per result, averages, and the harmonic mean."""
    rows: list[tuple[str, ...]] = [
        ("test set", "model", "classes", "top-1", "top-5", "correct / counted", "failed")
    ]
    for name, part in (("base", result.base), ("novel", result.novel)):
        for item in part:
            s = item.summary
            rows.append(
                (
                    f"{item.test_set.manifest.stem}:{item.test_set.split}",
                    item.model,
                    str(item.n_classes),
                    percent(s.top1),
                    percent(s.top5) if item.n_classes > 5 else "-",
                    f"{s.n_correct} / {s.n_denominator}",
                    str(len(item.failures)),
                )
            )
        if len(part) > 1 or result.novel:
            mean = average(part)
            label = f"mean of {name}" if result.novel else "mean"
            top5 = f"{percent(mean.top5)} +- {100 * mean.top5_std:.1f}"
            top5 = top5 if all(item.n_classes > 5 for item in part) else "-"
            rows.append((label, "", "", f"{percent(mean.top1)} +- {100 * mean.top1_std:.1f}", top5, "", ""))
        if not result.novel:
            return rows
    assert result.harmonic_mean is not None
    return [*rows, ("harmonic mean", "", "", percent(result.harmonic_mean), "", "", "")]


def write_zero_shot(result: ZeroShotResult, path: Path) -> None:
    """Writes a result as JSON, with everything that `table` shows and the failures' causes."""
    facts: dict[str, Any] = asdict(result)
    facts["base_average"] = asdict(result.base_average)
    if result.novel_average is not None:
        facts |= {"novel_average": asdict(result.novel_average), "harmonic_mean": result.harmonic_mean}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(facts, indent=1, default=str) + "\n").encode())


class _Videos:
    """The checked videos of a test set."""

    def __init__(self, test: TestSet) -> None:
        self.test = test
        self.classes = read_class_names(test.labels)
        self.manifest: Manifest = read_manifest(test.manifest, test.root)
        self.rows = rows_of_split(self.manifest, test.split)
        targets = class_indices(
            [row.label for row in self.rows],
            self.classes,
            f"split {test.split!r} of {test.manifest} with {test.labels}",
        )
        names = self.classes.names
        n_views = np.zeros(len(self.rows), np.int64)
        self.split = Split(test.split, names, tuple(row.video_id for row in self.rows), targets, n_views)

    @property
    def jobs(self) -> list[Job]:
        return [Job(row.video_id, self.manifest.file_of(row), row.start_s, row.end_s) for row in self.rows]


def _score_set(
    model: str, videos: _Videos, views: Views, section: ExtractSection, missing: Missing, progress: bool
) -> SetResult:
    mark = "&" if "?" in model else "?"
    encoder = load_encoder(
        f"{model}{mark}labels={quote(str(videos.test.labels))}",
        device=section.device,
        precision=section.precision,
        compile=section.compile,
    )
    recipe = view_recipe(encoder.spec, views.n_clips, views.crops, views.seed)

    def logits(clips: Tensor) -> Tensor:
        found = encoder.encode(clips).logits
        assert found is not None
        return found

    scores = score_views(
        videos.jobs,
        DecodeSettings(recipe, section.decoder, section.folder_fps, section.timeout_s),
        logits,
        n_classes=encoder.num_classes,
        device=encoder.device,
        batch_size=section.batch_size,
        workers=section.workers,
        title=videos.test.split if progress else "",
    )
    numbers = np.arange(len(videos.jobs))
    outcomes = outcomes_of(videos.split, numbers, scores.log_probabilities, probabilities=True)
    summary = summarise(videos.split, outcomes, missing)
    return SetResult(model, videos.test, encoder.num_classes, summary, scores.failures)
