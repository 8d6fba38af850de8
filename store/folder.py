"""A store's folder on a local or shared POSIX file system: how bytes become durable and visible.

A part is written under a temporary name, every file and folder is fsynced, and one rename makes it visible.
Readers therefore see whole parts or nothing, and writers need no locks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ..errors import StoreCorruptError, StoreError, StoreLockedError
from .layout import COMMIT_FILE, PARTS, QUARANTINE, TEMPORARY, Bytes, Commit

_READ_BYTES = 1 << 20
_DAMAGE = (errno.ENOENT, errno.EIO, errno.EISDIR, errno.ENOTDIR)  # what a damaged disk or tree answers
_URL = re.compile(r"([a-z][a-z0-9]+):/+(.+)")  # pathlib makes one slash of two


def failpoint(name: str) -> None:
    """Marks a moment at which a crash must lose nothing; the tests kill the process here."""


class Folder:
    """The files of one store on a POSIX file system."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def read(self, name: str) -> bytes:
        """The bytes of a file; OSError where it cannot be read."""
        return (self.path / name).read_bytes()

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def part_names(self) -> list[str]:
        """Committed parts, lowest id first."""
        return [name for name in self.listing(PARTS) if not name.startswith(".")]

    def local_part(self, commit: Commit) -> Path:
        """The folder with the part's objects; it may have gone since the part was listed."""
        return self.path / PARTS / commit.part

    def objects(self, part: str) -> set[str]:
        """Names of all files of a part."""
        root = self.path / PARTS / part
        return {str(file.relative_to(root)) for file in root.rglob("*") if not file.is_dir()}

    def chunks(self, part: str, name: str) -> Iterator[bytes]:
        """The bytes of one object of a part, piece by piece."""
        with (self.path / PARTS / part / name).open("rb", buffering=0) as file:
            while piece := file.read(_READ_BYTES):
                yield piece

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file that must not exist yet, whole or not at all; False if another process was first."""
        target = self.path / name
        temporary = target.with_name(f"{TEMPORARY}{name}-{uuid.uuid4().hex[:8]}")
        with writing(str(self.path)):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                _write(temporary, data)
                _sync(temporary)
                failpoint("create.written")
                os.link(temporary, target)  # unlike rename, fails where the name is taken
                failpoint("create.linked")
                _sync(target.parent)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
        return True

    def replace(self, name: str, data: Bytes) -> None:
        """Writes or replaces a file that is only a cache: whole or not at all, but not synced."""
        target = self.path / name
        temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}")
        with writing(str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(data)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)

    def commit(self, part: str, objects: Mapping[str, Bytes], commit: bytes) -> None:
        """Makes a part durable, then visible.

        Raises:
            StoreError: the disk is full, or permission is missing; nothing is visible then.
        """
        final = self.path / PARTS / part
        temporary = final.with_name(f"{TEMPORARY}{part}-{uuid.uuid4().hex[:8]}")
        try:
            with writing(str(final)):
                temporary.mkdir(parents=True)
                failpoint("commit.begun")
                for name, data in objects.items():
                    target = temporary / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _write(target, data)
                    failpoint("commit.object")
                _sync(*temporary.rglob("*"))
                failpoint("commit.objects-synced")
                _write(temporary / COMMIT_FILE, commit)
                _sync(temporary / COMMIT_FILE, temporary)
                failpoint("commit.written")
                temporary.rename(final)
                failpoint("commit.renamed")
                _sync(final.parent, self.path)  # `parts` itself may be new
                failpoint("commit.synced")
        except StoreError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def remove(self, part: str) -> None:
        """Makes a part invisible at once, then deletes it; a part that has gone already is fine."""
        doomed = self.path / PARTS / f"{TEMPORARY}{part}-removed"
        with writing(str(doomed)):
            try:
                (self.path / PARTS / part).rename(doomed)
            except FileNotFoundError:
                return
            failpoint("remove.renamed")
            _sync(doomed.parent)
            shutil.rmtree(doomed)

    def set_aside(self, part: str) -> str:
        """Moves a damaged part to the quarantine and says where it is now."""
        target = self.path / QUARANTINE / part
        with writing(str(target)):
            target.parent.mkdir(exist_ok=True)
            if target.exists():  # restored from a backup and damaged again
                target = target.with_name(f"{part}-{uuid.uuid4().hex[:8]}")
            (self.path / PARTS / part).rename(target)
            failpoint("set_aside.renamed")
            _sync(target.parent, self.path / PARTS)
        return str(target)

    def quarantined(self) -> list[str]:
        """Parts that were set aside."""
        return self.listing(QUARANTINE)

    def leftovers(self, older_than_s: float) -> list[str]:
        """Temporary files and folders that killed writers left, unchanged for some time."""
        limit = time.time() - older_than_s
        names = [f"{PARTS}/{name}" for name in self.listing(PARTS)] + self.listing(".")
        stale = []
        for name in names:
            try:
                if Path(name).name.startswith(TEMPORARY) and (self.path / name).stat().st_mtime <= limit:
                    stale.append(name)
            except FileNotFoundError:
                continue  # committed or cleaned up meanwhile
        return stale

    def remove_leftover(self, name: str) -> None:
        path = self.path / name
        with writing(str(path)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    @contextmanager
    def maintenance(self) -> Iterator[None]:
        """Keeps a second compaction or repair out; the lock ends with the process that holds it.

        Raises:
            StoreLockedError: another process holds it.
        """
        path = self.path / "maintenance.lock"
        with writing(str(path)):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreLockedError(
                    "another repair or compaction is at work",
                    where=str(self.path),
                    fix="wait until it has ended",
                ) from None
            yield
        finally:
            os.close(descriptor)

    def listing(self, name: str) -> list[str]:
        """Sorted names of what is in one of the store's folders; empty where there is no such folder."""
        try:
            return sorted(path.name for path in (self.path / name).iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise unreadable(error, f"{self.path}/{name}") from None


def find_folder(path: Path | str) -> Folder:
    """The files of the store at a path, or at a URL such as s3://bucket/folder."""
    url = _URL.fullmatch(str(path))
    if url is None:
        return Folder(path)
    from .remote import ObjectFolder  # needs an optional package

    return ObjectFolder(f"{url[1]}://{url[2]}")


def unreadable(error: OSError, where: str) -> StoreError:
    """What a failed read means: damage that `repair` may set aside, or a matter of rights or the network."""
    if isinstance(error, StoreError):
        return error
    what = f"cannot be read: {error.strerror or error}"
    if error.errno in _DAMAGE:
        fix = "dejavid store repair sets the part aside; then extract again"
        return StoreCorruptError(what, where=where, fix=fix)
    return StoreError(what, where=where, fix="check permissions and the file system; nothing was changed")


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


def _write(path: Path, data: Bytes) -> None:
    with path.open("xb") as file:
        file.write(data)


def _sync(*paths: Path) -> None:
    """Makes files and folders durable; together, so that the file system can do it in one go."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(_sync_one, paths))


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
