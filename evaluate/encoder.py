"""What the frozen encoder's own classifier says: the baselines that DejaVid has to beat.

They need an encoder that was fine-tuned on the classes of the manifest. The order of its classes is that of
the file `evaluate.encoder_classes`; without one it is that of the labels: by number if they are numbers, else
by name, as in the published label lists of Kinetics, HMDB51 and UCF101.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import ConfigError
from .task import Floats, NotApplicable, Task

VIEWS = "official_probabilities"  # the block of the store that extraction writes the views' probabilities to


def encoder_views(task: Task) -> Floats:
    """The encoder's published protocol: the mean of the probabilities of its views (5 x 3 or 2 x 3)."""
    columns, n_encoder = _encoder_columns(task)
    scores = np.full((len(task.ids), task.n_classes), np.nan)
    for row, video_id in enumerate(task.ids):
        views = task.store.get(video_id).extras.get(VIEWS)
        if views is None:
            raise NotApplicable(
                f"the store holds no probabilities of the encoder's views (video {video_id!r})",
                where=str(task.store.path),
                fix="extract with extract.official_views=dense or sparse into a new store",
            )
        if views.shape[1] != n_encoder:
            raise _class_mismatch(task, views.shape[1])
        scores[row] = _log(views.astype(np.float64).mean(0)[columns])
    return scores


def mean_logits(task: Task) -> Floats:
    """The mean over a video's steps of the encoder's logits."""
    return _over_steps(task, lambda logits: logits.mean(0))


def oversampling(task: Task) -> Floats:
    """Temporal oversampling: the encoder's protocol, mean of probabilities, over every step of the TSE."""
    return _over_steps(task, lambda logits: _log(_softmax(logits).mean(0)))


def _over_steps(task: Task, merge: Callable[[Floats], Floats]) -> Floats:
    """`merge` of each video's encoder logits, (steps * views, encoder classes) -> (encoder classes,)."""
    windowing: Mapping[str, Any] = task.store.facts.get("windowing", {})
    rows = windowing.get("rows")
    if rows not in ("embedding+logits", "embedding+probabilities"):
        raise NotApplicable(
            f"a step of the store holds {rows or 'something it does not name'}, not the encoder's logits",
            where=str(task.store.path),
            fix="extract with extract.rows=embedding+logits into a new store",
        )
    columns, n_encoder = _encoder_columns(task)
    n_views = _concatenated_views(windowing)
    if task.store.feature_dim % n_views or task.store.feature_dim // n_views <= n_encoder:
        raise _class_mismatch(task, task.store.feature_dim // n_views)
    found = []
    for batch in task.batches(task.ids):
        for tse in np.split(batch.values.astype(np.float64), batch.offsets[1:-1]):
            logits: Floats = tse.reshape(len(tse) * n_views, -1)[:, -n_encoder:]
            if rows == "embedding+probabilities":
                logits = _log(logits)
            found.append(merge(logits)[columns])
    return np.stack(found)


def _concatenated_views(windowing: Mapping[str, Any]) -> int:
    if windowing.get("merge_views") != "concat":
        return 1
    return max(len(windowing.get("spans", ())), 1) * (3 if windowing.get("crops") == "three" else 1)


def _encoder_columns(task: Task) -> tuple[list[int], int]:
    """The encoder's column of each class, and how many classes the encoder has."""
    names = task.split.class_names
    path = task.config.evaluate.encoder_classes
    if path is None:
        by_number = all(name.isdigit() for name in names)
        order = sorted(names, key=int) if by_number else sorted(names)
    else:
        try:
            order = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"cannot read the encoder's classes ({error})",
                where="evaluate.encoder_classes",
                fix="give a UTF-8 file with one class name per line, in the encoder's order",
            ) from None
    missing = sorted(set(names) - set(order))
    if missing:
        raise ConfigError(
            f"{len(missing)} classes are not among the encoder's, such as {missing[0]!r}",
            where=f"evaluate.encoder_classes = {path}",
            fix="give every class a line, spelt as in the manifest",
        )
    place = {name: index for index, name in enumerate(order)}
    return [place[name] for name in names], len(order)


def _class_mismatch(task: Task, found: int) -> NotApplicable:
    return NotApplicable(
        f"the encoder's classifier does not fit the {task.n_classes} classes (width {found})",
        where=str(task.store.path),
        fix="name the encoder's classes with evaluate.encoder_classes, if it knows those of the manifest",
    )


def _log(probabilities: Floats) -> Floats:
    return np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))
