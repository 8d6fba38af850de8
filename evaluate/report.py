"""The report of an evaluation: one HTML file that works offline."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ..errors import ConfigError, MissingDependencyError
from ..logs import METRICS_FILE
from .baselines import HEAD, METHODS
from .evaluation import COLUMNS, Evaluation, notes, percent, table, title
from .explain import Explanation, Moment, explain, nearest_moments
from .metrics import most_confused, per_class
from .page import Page

if TYPE_CHECKING:
    from ..store import Store
    from ..train import DejaVidHead

# (video id, seconds) -> JPEG pictures of the video at these times; raises DejaVidError where it cannot.
FrameSource = Callable[[str, Sequence[float]], list[bytes]]
# (video id, numbers of steps from 0) -> JPEG pictures of their windows with TC-CLIP's context tokens painted;
# raises DejaVidError where it cannot.
MaskSource = Callable[[str, Sequence[int]], list[bytes]]

MAX_FRAMES = 10
MAX_MASKS = 3
DEFAULT_VIDEOS = 8


@dataclass(frozen=True)
class Illustrated:
    """An explanation with pictures.

    Attributes:
        explanation: of one video.
        frames: (seconds, JPEG) of its steps, at most 10 evenly spaced.
        moments: per centroid step of the predicted class, the nearest training step and its picture.
        no_frames: why pictures are missing.
        masks: (step, JPEG) of the steps that decide most, in their order, with context tokens painted.
        no_masks: why these are missing.
    """

    explanation: Explanation
    frames: list[tuple[float, bytes]]
    moments: list[tuple[Moment, bytes | None]]
    no_frames: str | None = None
    masks: list[tuple[int, bytes]] = field(default_factory=list)
    no_masks: str | None = None


def load_history(head_dir: Path) -> list[dict[str, Any]]:
    """The records of the training epochs, as the training loop wrote them; none if there are none."""
    try:
        lines = (head_dir / METRICS_FILE).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise ConfigError(
            f"not JSON lines: {error}", where=str(head_dir / METRICS_FILE), fix="delete the damaged file"
        ) from None


def choose_videos(evaluation: Evaluation, count: int = DEFAULT_VIDEOS) -> list[str]:
    """Videos worth explaining: half of them wrong (the surest first), half right (the least sure first)."""
    outcomes = evaluation.outcomes[HEAD]
    sureness = np.nan_to_num(outcomes.confidence)
    correct = outcomes.correct()
    wrong = np.flatnonzero(outcomes.scored & ~correct)
    right = np.flatnonzero(correct)
    wrong = wrong[np.argsort(-sureness[wrong], kind="stable")]
    right = right[np.argsort(sureness[right], kind="stable")]
    n_wrong = min(len(wrong), max(count // 2, count - len(right)))
    chosen = [*wrong[:n_wrong], *right[: count - n_wrong]]
    return [evaluation.split.ids[place] for place in chosen]


def illustrate(
    head: DejaVidHead,
    store: Store,
    ids: Sequence[str],
    *,
    training: Mapping[str, Sequence[str]],
    frames: FrameSource | None,
    masks: MaskSource | None = None,
    progress: bool = False,
) -> list[Illustrated]:
    """Explains videos of a store and fetches their pictures.

    Args:
        ids: videos.
        training: class name -> training videos of the class.
        frames: where pictures come from; None: nowhere.
        masks: where pictures of context tokens come from; None: nowhere.
        progress: show a bar.

    Raises:
        ConfigError: an id is not in the store.
    """
    unknown = [video_id for video_id in ids if video_id not in store]
    if unknown:
        raise ConfigError(
            f"{len(unknown)} videos have no TSE, such as {unknown[0]!r}",
            where=str(store.path),
            fix="name videos of the store: dejavid store status",
        )
    nearest: dict[str, list[tuple[Moment, bytes | None]]] = {}
    found = []
    for video_id in tqdm(ids, "explain", unit="video", disable=not progress):
        explanation = explain(head, store.get(video_id), feature_names=store.header.feature_names)
        name = explanation.predicted.name
        if name not in nearest:
            moments = nearest_moments(head, name, store, training.get(name, ()))
            nearest[name] = [(moment, _picture_of(moment, frames)) for moment in moments]
        pictures, why = _frames_of(explanation, frames)
        painted, why_not = _masks_of(explanation, masks)
        found.append(Illustrated(explanation, pictures, nearest[name], why, painted, why_not))
    return found


def render_report(
    evaluation: Evaluation,
    *,
    history: Sequence[Mapping[str, Any]] = (),
    explained: Sequence[Illustrated] = (),
    about: Sequence[str] = (),
) -> str:
    """The report as HTML.

    Args:
        evaluation: what it is about.
        history: the records of the training epochs.
        explained: videos to explain.
        about: lines that say what was evaluated.

    Raises:
        MissingDependencyError: plotly is not installed.
    """
    _check_plotly()
    page = Page(f"DejaVid on {evaluation.split.name}", [*about, *notes(evaluation)])
    _numbers(page, evaluation)
    if history:
        _training(page, history)
    _classes(page, evaluation)
    if explained:
        _explanations(page, explained)
    return page.render()


def render_predictions(items: Sequence[Illustrated], *, about: Sequence[str]) -> str:
    """A page that explains predictions for videos without labels.

    Args:
        items: the videos explained.
        about: lines that say what they are.

    Raises:
        MissingDependencyError: plotly is not installed.
    """
    _check_plotly()
    page = Page("DejaVid predictions", about)
    _explanations(page, items)
    return page.render()


def _check_plotly() -> None:
    if importlib.util.find_spec("plotly") is None:
        raise MissingDependencyError(
            "plotly is not installed", where="the report", fix="pip install 'dejavid[report]'"
        )


def _numbers(page: Page, evaluation: Evaluation) -> None:
    from . import figures

    page.section("Accuracy", "The head and its baselines on the same videos. Bars are 95 % intervals.")
    rows = table(evaluation)
    place = list(evaluation.summaries).index(HEAD)
    page.table(COLUMNS, rows, strong=place)
    page.figure(figures.accuracies(evaluation), description="top-1 accuracy of every method", wide=True)
    compared = [name for name in (HEAD, reference_method(evaluation)) if name is not None]
    if evaluation.outcomes[HEAD].scored.any():
        page.section("By length and by confidence", "How accuracy depends on the length of a video.")
        page.figure(figures.lengths(evaluation, compared), description="accuracy by number of steps")
        page.text("How often the head is right, by how sure it is; on the dotted line the two agree.")
        page.figure(figures.calibration(evaluation.outcomes[HEAD]), description="confidence and accuracy")


def reference_method(evaluation: Evaluation) -> str | None:
    """What the head is compared with: the encoder's own protocol, else the next in the order of `METHODS`.

    The untrained head only where nothing else was scored; None where it was not either.
    """
    others = [name for name in evaluation.summaries if name != HEAD]
    return min(others, key=lambda name: name in METHODS and METHODS[name].ablation, default=None)


def _training(page: Page, history: Sequence[Mapping[str, Any]]) -> None:
    from . import figures

    page.section("Training")
    page.figure(figures.training_curves(history), description="loss and accuracy by epoch")


def _classes(page: Page, evaluation: Evaluation) -> None:
    from . import figures

    split, missing = evaluation.split, evaluation.missing
    outcomes = evaluation.outcomes[HEAD]
    head = per_class(split, outcomes, missing)
    baseline = reference_method(evaluation)
    page.section("Classes")
    other = None
    if baseline is not None:
        other = per_class(split, evaluation.outcomes[baseline], missing)
        page.text(f"Accuracy of each class minus that of {title(baseline)!r}.")
        page.figure(figures.class_gains(head, other), description="gain of every class")
    page.text("Which class is taken for which. Zoom by dragging; double-click to zoom out.")
    page.figure(figures.confusions(split, outcomes), description="confusion matrix", wide=True)
    confused = most_confused(split, outcomes)
    if confused:
        page.heading("Most confused")
        rows = [
            (p.true, p.predicted, f"{p.count} / {p.n_videos}", percent(p.count / p.n_videos))
            for p in confused
        ]
        page.table(("class", "taken for", "videos", "share"), rows)
    page.heading("Every class")
    columns = ["class", "right / videos", "accuracy", "predicted"]
    columns += [] if other is None else ["gain, points"]
    rows_of_classes = []
    for place, result in enumerate(head):
        share = result.n_correct / result.n_videos if result.n_videos else 0.0
        row = [
            result.name,
            f"{result.n_correct} / {result.n_videos}",
            percent(share),
            str(result.n_predicted),
        ]
        if other is not None:
            right = other[place].n_correct / other[place].n_videos if other[place].n_videos else 0.0
            row.append(f"{100 * (share - right):+.1f}")
        rows_of_classes.append(row)
    page.table(columns, rows_of_classes, searchable=True)


def _explanations(page: Page, explained: Sequence[Illustrated]) -> None:
    from . import explain_figures

    page.section(
        "Videos explained",
        "The yellow line is the warping path through the local costs, dark cells are cheap. Green bars are"
        " moments (or features) that cost more in the other class, red ones those that cost more in the"
        " predicted class; together they are the difference of the two distances.",
    )
    for item in explained:
        why = item.explanation
        verdict = {True: ("right", "good"), False: ("wrong", "bad"), None: ("", "")}[why.right]
        page.heading(f"{why.video_id}: {why.predicted.name}", tag=verdict[0], kind=verdict[1])
        truth = f"True class: {why.label}. " if why.label is not None else ""
        best = ", ".join(f"{name} {percent(p)}" for name, p in why.top)
        page.text(f"{truth}Head: {best}.")
        if item.no_frames:
            page.text(f"No pictures: {item.no_frames}.")
        page.figure(
            explain_figures.alignment(why, item.frames),
            description=f"alignment of {why.video_id} with {why.predicted.name} and {why.rival.name}",
            wide=True,
        )
        _masks(page, item)
        page.figure(
            explain_figures.weights(why),
            description=f"weights of {why.predicted.name}",
            wide=True,
        )
        if item.moments:
            page.text(f"Training moments nearest to the centroid steps of {why.predicted.name!r}:")
            page.pictures(
                (
                    None if jpeg is None else explain_figures.picture(jpeg),
                    f"{number}. {moment.video_id}, {moment.start_s:.1f}-{moment.end_s:.1f} s",
                )
                for number, (moment, jpeg) in enumerate(item.moments, start=1)
            )


def _masks(page: Page, item: Illustrated) -> None:
    from . import explain_figures

    if item.no_masks:
        page.text(f"No pictures of context tokens: {item.no_masks}.")
    if item.masks:
        page.text(
            "What the encoder's context tokens are made of, in the windows that decide most: patches of one"
            " colour became one token, dark ones none."
        )
    why = item.explanation
    for step, jpeg in item.masks:
        times = f"{why.start_s[step]:.2f}-{why.end_s[step]:.2f} s"
        caption = f"step {step + 1}, {times}: difference of the costs {why.step_gain[step]:+.4g}"
        page.strip(explain_figures.picture(jpeg), caption)


def _masks_of(
    explanation: Explanation, masks: MaskSource | None
) -> tuple[list[tuple[int, bytes]], str | None]:
    if masks is None:
        return [], None
    deciding = np.argsort(-np.abs(explanation.step_gain), kind="stable")[:MAX_MASKS]
    steps = np.sort(deciding).tolist()
    try:
        pictures = masks(explanation.video_id, steps)
    except (ConfigError, MissingDependencyError, OSError) as error:
        return [], str(getattr(error, "what", error))
    return list(zip(steps, pictures, strict=True)), None


def _frames_of(
    explanation: Explanation, frames: FrameSource | None
) -> tuple[list[tuple[float, bytes]], str | None]:
    if frames is None:
        return [], "the videos themselves are not at hand"
    from .explain_figures import step_times

    n_steps = len(explanation.start_s)
    every = -(-n_steps // MAX_FRAMES)
    steps = np.arange((n_steps - 1) % every // 2, n_steps, every)  # evenly spaced, and in the middle
    seconds = ((explanation.start_s + explanation.end_s) / 2)[steps]
    try:
        pictures = frames(explanation.video_id, seconds.tolist())
    except (ConfigError, MissingDependencyError, OSError) as error:
        return [], str(getattr(error, "what", error))
    return list(zip(step_times(explanation)[0][steps].tolist(), pictures, strict=True)), None


def _picture_of(moment: Moment, frames: FrameSource | None) -> bytes | None:
    if frames is None:
        return None
    try:
        return frames(moment.video_id, [(moment.start_s + moment.end_s) / 2])[0]
    except (ConfigError, MissingDependencyError, OSError):
        return None
