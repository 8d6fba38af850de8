"""Every error a user can meet: three parts (what happened, where, what to do) and an exit code.

The children also inherit the builtin exception they are a case of, so that library users can catch
`ValueError` or `OSError` without knowing this module.
"""

from __future__ import annotations

from typing import Any


class DejaVidError(Exception):
    """A failure explained in three parts.

    Args:
        what: what happened, with the values that show it.
        where: the video id, file, shard or key it happened at.
        fix: what to do about it; a command where there is one.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what}\n  where: {self.where}\n  fix:   {self.fix}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions cross process borders (decode workers); the default would lose the keywords.
        return _rebuild, (type(self), self.what, self.where, self.fix)


def _rebuild(kind: type[DejaVidError], what: str, where: str, fix: str) -> DejaVidError:
    return kind(what, where=where, fix=fix)


class ConfigError(DejaVidError, ValueError):
    """A key or value of the configuration, or an argument of a function, is wrong."""

    exit_code = 3


class ManifestError(DejaVidError, ValueError):
    """The list of videos is wrong: duplicate ids, missing files, unknown labels."""

    exit_code = 3


class MissingDependencyError(DejaVidError, ImportError):
    """An optional package is not installed; `fix` names the extra that brings it."""

    exit_code = 3


class VideoDecodeError(DejaVidError, OSError):
    """One video cannot be decoded. A row of the failures ledger, never the end of a run."""

    exit_code = 4


class PartialResultError(DejaVidError):
    """The stage finished, but more videos failed than `max_failed` allows."""

    exit_code = 4


class StoreError(DejaVidError, OSError):
    """A store cannot be read or written."""

    exit_code = 5


class StoreCorruptError(StoreError):
    """Bytes of a store differ from what was committed."""


class StoreVersionError(StoreError):
    """The store has a schema version, format or fingerprint that does not fit."""


class StoreLockedError(StoreError):
    """Another process holds what this operation needs alone."""


class OutOfMemory(DejaVidError, MemoryError):
    """An allocation failed; names the tensor and its bytes."""

    exit_code = 6


class Preempted(DejaVidError):
    """A signal asked the run to stop; everything finished is committed and it can be resumed."""

    exit_code = 75
