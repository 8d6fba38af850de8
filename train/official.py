"""Heads trained by the DejaVid reference code, read from the files it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import ConfigError
from ..store.official import read_tensors
from ..store.unpickle import read_pickle
from .head import DejaVidHead


def import_official_head(
    centroids: Path | str,
    log_weights: Path | str | None = None,
    *,
    class_names: Sequence[str] | None = None,
    step_pattern: str = "no_diagonal",
) -> DejaVidHead:
    """A head from the artefacts of a reference run, giving the same logits.

    Args:
        centroids: `k_feats_rank_0_<time>.pkl`, or the centroid cache `<prefix>_cached_median_..._mm0.pkl`.
        log_weights: `feat_log_weights_rank_0_<time>.pt`; None: zeros, as before any training.
        class_names: C names in the order of the sorted labels (see `official_class_names`); None: numbers.
        step_pattern: "classic" for a run with `--use_mm 1` (its cache ends in `_mm1.pkl`).

    Raises:
        StoreError: a file is missing, damaged, or holds more than tensors.
        ConfigError: the tensors are not (C, K, F), or do not fit together.
    """
    found = _tensor(read_pickle(centroids), centroids)
    weights = None if log_weights is None else _tensor(read_tensors(log_weights), log_weights)
    return DejaVidHead(found, weights, step_pattern=step_pattern, class_names=class_names).eval()


def official_class_names(folder: Path | str) -> list[str]:
    """The classes of a reference data set, in the order its runs number them.

    The numbering is that of the sorted labels of every id in id2fname.pkl, whatever its split.

    Args:
        folder: holds id2fname.pkl and id2labels.pkl.
    """
    files, labels = (read_pickle(Path(folder) / name) for name in ("id2fname.pkl", "id2labels.pkl"))
    if not (isinstance(files, Mapping) and isinstance(labels, Mapping) and files.keys() <= labels.keys()):
        raise ConfigError(
            "id2fname.pkl and id2labels.pkl are not two dicts with the ids of the first in the second",
            where=str(folder),
            fix="give the folder that the reference's id2feats_pkl_path_root names",
        )
    return [str(label) for label in sorted({labels[video_id] for video_id in files})]


def _tensor(loaded: Any, path: Path | str) -> Tensor:
    if not isinstance(loaded, Tensor) or loaded.ndim != 3 or not loaded.is_floating_point():
        kind = (
            f"a tensor {tuple(loaded.shape)}" if isinstance(loaded, Tensor) else f"a {type(loaded).__name__}"
        )
        raise ConfigError(
            f"the file holds {kind}, not (classes, steps, features)",
            where=str(path),
            fix="give the k_feats .pkl, the centroid cache .pkl or the feat_log_weights .pt of a run",
        )
    return loaded.detach()
