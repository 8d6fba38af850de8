"""Is a stored TSE still that of the file and the time span that the manifest names?

A TSE carries the size of its file: two encodings of anything differ in it, while copying changes no size,
as it may change times. Contents are never read again.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ManifestError
from ..store import Store
from .manifest import Manifest, Row

SOURCE = "source"  # name of the extra array

_LOG = logging.getLogger(__name__)
_SHOWN = 5


def source_of(path: Path, row: Row) -> NDArray[np.float64]:
    """(3,) what is compared: size of the file in bytes, start_s and end_s; NaN for what is not given.

    A folder of images has no size; nor has a file that has gone meanwhile.
    """
    size = np.nan
    try:
        found = path.stat()
        if not stat.S_ISDIR(found.st_mode):
            size = found.st_size
    except OSError:
        pass
    return np.array([size, row.start_s, row.end_s], np.float64)


def warn_of_changes(store: Store, manifest: Manifest, rows: Iterable[Row]) -> None:
    """Logs a warning that names the stored videos whose file or time span is another now.

    Videos that an earlier version stored, or an import, carry no source and are passed over.
    """
    stored: dict[str, NDArray[Any]] = store.extra(SOURCE)
    changed = [
        row.video_id
        for row in rows
        if row.video_id in stored
        # Bytes, because NaN is to equal NaN.
        and stored[row.video_id].tobytes() != source_of(manifest.file_of(row), row).tobytes()
    ]
    if changed:
        more = "" if len(changed) <= _SHOWN else f" and {len(changed) - _SHOWN} more"
        _LOG.warning(
            "%s",
            ManifestError(
                f"{len(changed)} stored videos were made from another file or time span than the manifest's:"
                f" {', '.join(changed[:_SHOWN])}{more}",
                where=f"{manifest.path} with {store.path}",
                fix="the old TSEs stay; give these rows new ids, or extract again with --set store.path=NEW",
            ),
        )
