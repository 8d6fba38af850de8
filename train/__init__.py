"""Stage two: from TSEs to a trained head. Names are imported on first use; until then, no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .centroids import Centroids, fit_centroids
    from .dba import barycenter
    from .estimator import DejaVidClassifier
    from .head import DejaVidHead
    from .loop import TrainReport, train_head

_HOMES = {
    "Centroids": "centroids",
    "DejaVidClassifier": "estimator",
    "DejaVidHead": "head",
    "TrainReport": "loop",
    "barycenter": "dba",
    "fit_centroids": "centroids",
    "train_head": "loop",
}

__all__ = [
    "Centroids",
    "DejaVidClassifier",
    "DejaVidHead",
    "TrainReport",
    "barycenter",
    "fit_centroids",
    "train_head",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
