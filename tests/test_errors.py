"""Errors: three parts, an exit code, the builtin they are a case of; and they survive a process border."""

from __future__ import annotations

import pickle

import pytest

from dejavid import errors


@pytest.mark.parametrize(
    ("kind", "builtin", "code"),
    [
        (errors.ConfigError, ValueError, 3),
        (errors.ManifestError, ValueError, 3),
        (errors.MissingDependencyError, ImportError, 3),
        (errors.VideoDecodeError, OSError, 4),
        (errors.PartialResultError, errors.DejaVidError, 4),
        (errors.StoreError, OSError, 5),
        (errors.StoreCorruptError, errors.StoreError, 5),
        (errors.StoreVersionError, errors.StoreError, 5),
        (errors.StoreLockedError, errors.StoreError, 5),
        (errors.OutOfMemory, MemoryError, 6),
        (errors.Preempted, errors.DejaVidError, 75),
    ],
)
def test_kinds(kind: type[errors.DejaVidError], builtin: type[Exception], code: int) -> None:
    error = kind("it broke", where="video 7", fix="dejavid store repair")
    assert isinstance(error, builtin)
    assert error.exit_code == code
    assert str(error) == "it broke\n  where: video 7\n  fix:   dejavid store repair"
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (kind, str(error))
