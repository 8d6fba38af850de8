"""The videos of a split as the stages after extraction see them: those that have a TSE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .config import Config
from .errors import ManifestError

if TYPE_CHECKING:
    from .store import Store

TRAIN_SPLIT = "train"


@dataclass(frozen=True)
class SplitVideos:
    """The videos of a split that have a TSE, and their classes.

    Attributes:
        ids: N videos, in the manifest's order.
        targets: (N,) position of each video's label in `class_names`.
        class_names: the C classes.
        n_split: videos of the split in the manifest, with and without a TSE.
    """

    ids: list[str]
    targets: NDArray[np.int64]
    class_names: tuple[str, ...]
    n_split: int


def open_run_store(config: Config) -> Store:
    """The store of the run with the labels of its manifest."""
    from .store import open_store

    return open_store(config.store_path, labels=config.manifest.path)


def training_videos(config: Config, store: Store) -> SplitVideos:
    """The training split; its labels are the classes."""
    from .store.labels import read_labels

    names = {row.label for row in read_labels(config.manifest.path).values() if row.split == TRAIN_SPLIT}
    return split_videos(config, store, TRAIN_SPLIT, tuple(sorted(names)))


def split_videos(config: Config, store: Store, split: str, class_names: tuple[str, ...]) -> SplitVideos:
    """The videos of a split.

    Raises:
        ManifestError: none of them has a TSE, or the label of one is no class.
    """
    from .store.labels import read_labels

    rows = [row for row in read_labels(config.manifest.path).values() if row.split == split]
    ids = store.ids(split=split)
    if not ids:
        raise ManifestError(
            f"no video of split {split!r} has a TSE ({len(rows)} are in the manifest)",
            where=f"{config.store_path} with {config.manifest.path}",
            fix="name a split of the manifest, or run dejavid extract",
        )
    place = {name: index for index, name in enumerate(class_names)}
    labels = store.labels(ids)
    unknown = sorted(set(labels) - set(place))
    if unknown:
        raise ManifestError(
            f"{len(unknown)} labels of split {split!r} have no class: {', '.join(unknown[:5])}",
            where=str(config.manifest.path),
            fix="give these labels training videos and train again, or take them out of the manifest",
        )
    targets = np.fromiter((place[label] for label in labels), np.int64, len(labels))
    return SplitVideos(ids, targets, class_names, len(rows))
