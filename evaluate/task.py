"""What every method of an evaluation is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..errors import ConfigError
from .metrics import Split

if TYPE_CHECKING:
    from ..store import Batch, Store
    from ..train import Centroids, DejaVidHead

Floats = NDArray[np.floating[Any]]
BATCH = 256  # videos read and scored at a time


@dataclass(frozen=True)
class Task:
    """The videos to score, and everything that methods may learn from.

    Attributes:
        config: of the run; ablations and probes train with its options and seed.
        store: where the TSEs are.
        split: the videos to answer for.
        train_ids, train_targets: training videos with a TSE and the index of their class.
        head: the trained head.
        centroids: of DBA, which training began with.
        progress: show bars on standard error.
    """

    config: Config
    store: Store
    split: Split
    train_ids: list[str]
    train_targets: NDArray[np.int64]
    head: DejaVidHead
    centroids: Centroids
    progress: bool = False

    @property
    def rows(self) -> NDArray[np.int64]:
        """(n,) positions in the split of the videos that have a TSE: those that methods score."""
        return np.flatnonzero(self.split.lengths > 0)

    @property
    def ids(self) -> list[str]:
        """The n ids at `rows`."""
        return [self.split.ids[row] for row in self.rows]

    @property
    def n_classes(self) -> int:
        return len(self.split.class_names)

    def batches(self, ids: list[str]) -> Iterator[Batch]:
        """Packed TSEs in float32."""
        return self.store.batches(ids, BATCH)


def make_split(
    name: str, class_names: Sequence[str], labels: Mapping[str, str], lengths: Mapping[str, int]
) -> Split:
    """A split from the labels of all its videos, and the numbers of steps of those that have a TSE."""
    place = {label: index for index, label in enumerate(class_names)}
    return Split(
        name,
        tuple(class_names),
        tuple(labels),
        np.array([place.get(label, -1) for label in labels.values()], np.int64),
        np.array([lengths.get(video_id, 0) for video_id in labels], np.int64),
    )


class NotApplicable(ConfigError):
    """A method cannot be applied to this store or these classes; the others can."""


@dataclass(frozen=True)
class Method:
    """A method of `METHODS`.

    Attributes:
        score: gives the (n, C) scores of `task.ids`, higher is better; a row of NaN is a video not scored.
        title: its name in tables.
        probabilities: whether the softmax of a row is meant as probabilities.
        ablation: whether it is the head with something taken away or put in.
    """

    score: Callable[[Task], Floats]
    title: str
    probabilities: bool = True
    ablation: bool = False
