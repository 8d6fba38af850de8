"""A store's folder on a local or shared POSIX file system: how bytes become durable and visible.

A part is written under a temporary name, every file and folder is fsynced, and one rename makes it visible.
Readers therefore see whole parts or nothing, and writers need no locks.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..errors import StoreError
from .layout import COMMIT_FILE, PARTS, TEMPORARY


def failpoint(name: str) -> None:
    """Marks a moment at which a crash must lose nothing; the tests kill the process here."""


class Folder:
    """The files of one store."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def part_names(self) -> list[str]:
        """Committed parts, lowest id first."""
        try:
            return sorted(part.name for part in (self.path / PARTS).iterdir() if part.name[0] != ".")
        except FileNotFoundError:
            return []

    def part_folder(self, part: str) -> Path:
        return self.path / PARTS / part

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file that must not exist yet, whole or not at all; False if another process was first."""
        target = self.path / name
        temporary = target.with_name(f"{TEMPORARY}{name}-{uuid.uuid4().hex[:8]}")
        with writing(str(self.path)):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                _write_synced(temporary, data)
                os.link(temporary, target)  # unlike rename, fails where the name is taken
                _sync_folder(target.parent)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
        return True

    def commit(self, part: str, objects: Mapping[str, bytes], commit: bytes) -> None:
        """Makes a part durable, then visible.

        Raises:
            StoreError: the disk is full, or permission is missing; nothing is visible then.
        """
        final = self.part_folder(part)
        temporary = final.with_name(TEMPORARY + part)
        try:
            with writing(str(final)):
                temporary.mkdir(parents=True)
                failpoint("commit.begun")
                for name, data in objects.items():
                    target = temporary / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _write_synced(target, data)
                    failpoint("commit.object")
                for folder, _, _ in os.walk(temporary):
                    _sync_folder(Path(folder))
                _write_synced(temporary / COMMIT_FILE, commit)
                _sync_folder(temporary)
                failpoint("commit.written")
                temporary.rename(final)
                failpoint("commit.renamed")
                _sync_folder(final.parent)
                failpoint("commit.synced")
        except StoreError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def writing(where: str) -> Iterator[None]:
    """Turns what the file system refuses into a `StoreError` that says what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise StoreError(
            f"cannot write: {error.strerror or error}",
            where=where,
            fix="free some space and run the same command again; everything committed is kept"
            if full
            else "check the folder and its permissions, then run the same command again",
        ) from error


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
