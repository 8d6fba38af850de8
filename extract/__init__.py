"""Stage one: videos -> temporal sequences of embeddings (TSEs) in a store."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .annotations import import_annotations as import_annotations
    from .check import check_encoder as check_encoder
    from .encoders import load_encoder as load_encoder
    from .manifest import Manifest as Manifest
    from .manifest import Row as Row
    from .manifest import check_manifest as check_manifest
    from .manifest import read_manifest as read_manifest
    from .manifest import write_manifest as write_manifest
    from .run import ExtractReport as ExtractReport
    from .run import extract_facts as extract_facts
    from .run import extract_videos as extract_videos
    from .windows import plan_windows as plan_windows

# Resolved on first use: decode workers and `manifest check` import this package and need no torch.
_HOMES = {
    "import_annotations": ".annotations",
    "check_encoder": ".check",
    "load_encoder": ".encoders",
    "Manifest": ".manifest",
    "Row": ".manifest",
    "check_manifest": ".manifest",
    "read_manifest": ".manifest",
    "write_manifest": ".manifest",
    "ExtractReport": ".run",
    "extract_facts": ".run",
    "extract_videos": ".run",
    "plan_windows": ".windows",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
