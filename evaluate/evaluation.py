"""One evaluation: methods x videos -> outcomes, summaries and comparisons; and its files."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, MissingDependencyError
from ..files import write_atomically
from .baselines import HEAD, METHODS
from .intervals import Comparison, Interval, compare
from .metrics import (
    Missing,
    Outcomes,
    Split,
    Summary,
    by_length,
    outcomes_of,
    per_class,
    summarise,
)
from .task import NotApplicable, Task

RESULTS_FILE, TABLE_FILE, CSV_FILE = "results.json", "results.md", "results.csv"
PREDICTIONS_FILE = "predictions.parquet"


@dataclass(frozen=True)
class Evaluation:
    """What the methods said of the videos of a split, and the numbers that follow.

    Attributes:
        split: the videos.
        missing: how videos without scores count.
        outcomes: per method, in table order.
        summaries: per method.
        comparisons: of every pair of methods.
        seconds: per method, to learn and score; empty when read back from files.
        skipped: why methods that were asked for by `all` could not be applied.
    """

    split: Split
    missing: Missing
    outcomes: Mapping[str, Outcomes]
    summaries: Mapping[str, Summary]
    comparisons: Sequence[Comparison]
    seconds: Mapping[str, float]
    skipped: Mapping[str, str]


def evaluate(
    task: Task, methods: Sequence[str], *, missing: Missing = "wrong", optional: bool = False
) -> Evaluation:
    """Runs methods on the videos of a task.

    Args:
        task: the videos, the store and the head.
        methods: names of `METHODS`, in table order.
        missing: whether videos that a method did not score count as wrong, or are left out (and shown).
        optional: leave out methods that cannot be applied here, instead of failing.

    Raises:
        NotApplicable, MissingDependencyError: a method cannot be applied here, unless `optional`.
    """
    outcomes: dict[str, Outcomes] = {}
    seconds: dict[str, float] = {}
    skipped: dict[str, str] = {}
    for name in methods:
        began = time.perf_counter()
        try:
            scores = METHODS[name].score(task)
        except (NotApplicable, MissingDependencyError) as error:
            if not optional:
                raise
            skipped[name] = error.what
            continue
        outcomes[name] = outcomes_of(task.split, task.rows, scores, probabilities=METHODS[name].probabilities)
        seconds[name] = time.perf_counter() - began
    return assess(task.split, outcomes, missing, seconds=seconds, skipped=skipped)


def assess(
    split: Split,
    outcomes: Mapping[str, Outcomes],
    missing: Missing,
    *,
    seconds: Mapping[str, float] | None = None,
    skipped: Mapping[str, str] | None = None,
) -> Evaluation:
    """The numbers that follow from outcomes."""
    names = list(outcomes)
    pairs = [(a, b) for place, a in enumerate(names) for b in names[:place]]
    return Evaluation(
        split,
        missing,
        outcomes,
        {name: summarise(split, outcomes[name], missing) for name in names},
        [_compare(a, b, outcomes, missing) for a, b in pairs],
        seconds or {},
        skipped or {},
    )


def _compare(first: str, second: str, outcomes: Mapping[str, Outcomes], missing: Missing) -> Comparison:
    """On the videos that both scored if missing ones are skipped, else on the whole split."""
    a, b = outcomes[first], outcomes[second]
    kept = a.scored & b.scored if missing == "skip" else np.ones_like(a.scored)
    return compare(first, second, a.correct()[kept], b.correct()[kept])


def title(method: str) -> str:
    """A method's name in tables; its key if it is not one of ours."""
    return METHODS[method].title if method in METHODS else method


def results(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as JSON types: what results.json holds."""
    split, missing = evaluation.split, evaluation.missing
    methods = {}
    for name, summary in evaluation.summaries.items():
        outcome = evaluation.outcomes[name]
        methods[name] = {
            **asdict(summary),
            "title": title(name),
            "seconds": evaluation.seconds.get(name),
            "per_class": [asdict(row) for row in per_class(split, outcome, missing)],
            "by_length": [asdict(row) for row in by_length(split, outcome)],
        }
    return {
        "split": split.name,
        "missing": missing,
        "n_classes": len(split.class_names),
        "n_without_tse": int((split.lengths == 0).sum()),
        "confidence_level": 0.95,
        "methods": methods,
        "comparisons": [asdict(comparison) for comparison in evaluation.comparisons],
        "skipped": dict(evaluation.skipped),
    }


COLUMNS = (
    "method",
    "top-1",
    "95 % interval",
    "top-5",
    "mean class",
    "NLL",
    "ECE",
    "right",
    "scored / split",
    "vs head",
)


def table(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """The rows of the headline table, as text, in the order of `COLUMNS`."""
    against_head = {
        comparison.second: comparison for comparison in evaluation.comparisons if comparison.first == HEAD
    }
    rows: list[tuple[str, ...]] = []
    for name, s in evaluation.summaries.items():
        comparison = against_head.get(name)
        rows.append(
            (
                title(name),
                percent(s.top1),
                _range(s.top1_interval),
                percent(s.top5),
                percent(s.mean_class),
                "-" if s.nll is None else f"{s.nll:.3f}",
                "-" if s.ece is None else percent(s.ece),
                f"{s.n_correct} / {s.n_denominator}",
                f"{s.n_scored} / {s.n_split}",
                "" if comparison is None else _against(comparison),
            )
        )
    return rows


def _against(comparison: Comparison) -> str:
    """The second method's points over the first, and how surely they differ."""
    points = round(-100 * comparison.difference, 1) + 0.0  # no -0.0
    p = "< 0.001" if comparison.p_mcnemar < 0.001 else f"{comparison.p_mcnemar:.3f}"
    return f"{points:+.1f} (p {p})"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _range(interval: Interval) -> str:
    return f"{100 * interval[0]:.1f} - {100 * interval[1]:.1f}"


def markdown(evaluation: Evaluation) -> str:
    """The headline table in Markdown, with what it counts."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table(evaluation)]
    return "\n".join([*lines, "", *notes(evaluation)]) + "\n"


def notes(evaluation: Evaluation) -> list[str]:
    """What the table counts, and what is not in it, in sentences."""
    split = evaluation.split
    n_without = int((split.lengths == 0).sum())
    treatment = "count as wrong" if evaluation.missing == "wrong" else "are left out"
    said = [
        f"Split {split.name!r}: {len(split.ids)} videos, {n_without} of them without a TSE."
        f" Videos that a method did not score {treatment}.",
        "Top-1 intervals are Wilson score intervals at 95 %; p is McNemar's exact test against the head.",
    ]
    return said + [f"Not applicable: {title(name)} ({why})." for name, why in evaluation.skipped.items()]


def write_evaluation(evaluation: Evaluation, folder: Path, facts: Mapping[str, Any]) -> list[Path]:
    """Writes results.json (with `facts` beside the results), results.md, results.csv, predictions.parquet."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows([COLUMNS, *table(evaluation)])
    data = {**results(evaluation), **facts}
    files = {
        RESULTS_FILE: json.dumps(data, indent=2, allow_nan=False).encode(),
        TABLE_FILE: markdown(evaluation).encode(),
        CSV_FILE: text.getvalue().encode(),
        PREDICTIONS_FILE: _predictions(evaluation),
    }
    for name, content in files.items():
        write_atomically(folder / name, content)
    return [folder / name for name in files]


def _predictions(evaluation: Evaluation) -> bytes:
    """One row per method and video, as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    split = evaluation.split
    names = np.array([*split.class_names, None], dtype=object)  # index -1: none
    tables = []
    for name, outcome in evaluation.outcomes.items():
        columns = {
            "method": pa.array([name] * len(split.ids)).dictionary_encode(),
            "video_id": pa.array(split.ids, pa.string()),
            "label": pa.array(names[split.targets], pa.string()).dictionary_encode(),
            "n_steps": pa.array(split.lengths, pa.int64()),
            "scored": pa.array(outcome.scored),
            "predicted": pa.array(names[outcome.predicted], pa.string()).dictionary_encode(),
            "rank": pa.array(outcome.rank + 1, pa.int64(), mask=~outcome.scored),
            "confidence": pa.array(outcome.confidence, pa.float64(), mask=np.isnan(outcome.confidence)),
            "p_true": pa.array(outcome.p_true, pa.float64(), mask=np.isnan(outcome.p_true)),
        }
        tables.append(pa.table(columns))
    metadata = {"split": split.name, "missing": evaluation.missing, "class_names": list(split.class_names)}
    whole = pa.concat_tables(tables, promote_options="permissive").unify_dictionaries()
    whole = whole.replace_schema_metadata({"dejavid": json.dumps(metadata)})
    sink = io.BytesIO()
    pq.write_table(whole, sink)
    return sink.getvalue()


def read_evaluation(folder: Path) -> Evaluation:
    """Reads an evaluation back from its predictions.parquet.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / PREDICTIONS_FILE
    try:
        whole = pq.read_table(path)
        metadata = json.loads(whole.schema.metadata[b"dejavid"])
        class_names = tuple(metadata["class_names"])
        columns = {
            name: whole.column(name).to_pylist() for name in ("method", "video_id", "label", "predicted")
        }
        numbers = {name: _floats(whole, name) for name in ("n_steps", "rank", "confidence", "p_true")}
    except (OSError, pa.ArrowInvalid, KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"no readable evaluation ({error})", where=str(path), fix="dejavid evaluate makes it"
        ) from None
    place = {name: index for index, name in enumerate(class_names)}
    targets = np.array([place.get(label, -1) for label in columns["label"]], np.int64)
    predicted = np.array([place.get(label, -1) for label in columns["predicted"]], np.int64)
    methods = list(dict.fromkeys(columns["method"]))
    n_videos = len(columns["method"]) // len(methods)
    split = Split(
        metadata["split"],
        class_names,
        tuple(columns["video_id"][:n_videos]),
        targets[:n_videos],
        numbers["n_steps"][:n_videos].astype(np.int64),
    )
    outcomes = {}
    for number, name in enumerate(methods):
        rows = slice(number * n_videos, (number + 1) * n_videos)
        scored = predicted[rows] >= 0
        rank = np.where(scored, np.nan_to_num(numbers["rank"][rows]) - 1, len(class_names)).astype(np.int64)
        outcomes[name] = Outcomes(
            scored, predicted[rows], rank, numbers["confidence"][rows], numbers["p_true"][rows]
        )
    return assess(split, outcomes, metadata["missing"])


def _floats(table: Any, name: str) -> NDArray[np.float64]:
    return np.asarray(table.column(name).to_numpy(zero_copy_only=False), np.float64)
