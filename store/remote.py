"""A store on an object store (s3://, gs://, az://), through obstore.

The same promises as on a file system, by other means: a part's objects are put first and its COMMIT.json
last, on the condition that there is none; a part without it does not exist. Parts are read from a local cache
of whole, checked parts, bounded in size. Credentials come from each service's usual environment variables.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ..errors import MissingDependencyError, StoreCorruptError, StoreError
from .folder import Folder, failpoint, writing
from .layout import COMMIT_FILE, PARTS, QUARANTINE, TEMPORARY, Bytes, Commit, object_crc
from .part import PartGoneError

CACHE_VARIABLE = "DEJAVID_CACHE"  # folder of the local copies
CACHE_BYTES_VARIABLE = "DEJAVID_CACHE_BYTES"  # what they may take together, per store
_CACHE_BYTES = 64 * 2**30


class ObjectFolder(Folder):
    """The objects of one store under a URL."""

    def __init__(self, url: str) -> None:
        try:
            import obstore
        except ImportError:
            raise MissingDependencyError(
                "stores on object stores need the package obstore, which is not installed",
                where=url,
                fix="pip install 'dejavid[s3]'",
            ) from None
        super().__init__(url)
        self._url = url
        self._obstore = obstore
        self._owner = os.getpid()
        self._client = self._connect()
        root = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "dejavid"
        self._cache = Path(root) / hashlib.sha256(url.encode()).hexdigest()[:16]
        self._cache_bytes = int(os.environ.get(CACHE_BYTES_VARIABLE, _CACHE_BYTES))

    def __str__(self) -> str:
        return self._url

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectFolder, (self._url,)

    def _connect(self) -> Any:
        from obstore.store import from_url

        try:
            return from_url(self._url)
        except (self._obstore.exceptions.BaseError, ValueError) as error:
            raise StoreError(
                f"no usable address: {error}", where=self._url, fix="for example s3://bucket/folder"
            ) from None

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        """The client; its errors become StoreErrors that no caller takes for damage."""
        if os.getpid() != self._owner:
            raise StoreError(
                "an object store that was opened before a fork cannot be used after it",
                where=self._url,
                fix="start worker processes by spawn or forkserver",
            )
        try:
            yield self._client
        except self._obstore.exceptions.BaseError as error:
            raise StoreError(
                f"no answer from the object store: {str(error).splitlines()[0]}",
                where=self._url,
                fix="check the address, the credentials and the network; nothing was changed",
            ) from error

    def _names(self, prefix: str) -> dict[str, datetime]:
        """Everything under a prefix, without it, and when it was written."""
        with self._asking() as client:
            found = [entry for page in self._obstore.list(client, prefix + "/") for entry in page]
        return {entry["path"].removeprefix(prefix + "/"): entry["last_modified"] for entry in found}

    def read(self, name: str) -> bytes:
        with self._asking() as client:
            return bytes(self._obstore.get(client, name).bytes())

    def has(self, name: str) -> bool:
        """Whether there is such an object, or such a committed part."""
        for key in (name, f"{name}/{COMMIT_FILE}"):
            try:
                with self._asking() as client:
                    self._obstore.head(client, key)
                return True
            except FileNotFoundError:
                continue
        return False

    def part_names(self) -> list[str]:
        ending = f"/{COMMIT_FILE}"
        return sorted(n.removesuffix(ending) for n in self._names(PARTS) if n.endswith(ending))

    def objects(self, part: str) -> set[str]:
        return set(self._names(f"{PARTS}/{part}"))

    def chunks(self, part: str, name: str) -> Iterator[bytes]:
        yield self.read(f"{PARTS}/{part}/{name}")

    def create(self, name: str, data: bytes) -> bool:
        exceptions = self._obstore.exceptions
        with writing(f"{self._url}/{name}"), self._asking() as client:
            try:
                self._obstore.put(client, name, data, mode="create")
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                return False
        return True

    def replace(self, name: str, data: Bytes) -> None:
        with writing(f"{self._url}/{name}"), self._asking() as client:
            self._obstore.put(client, name, data)

    def commit(self, part: str, objects: Mapping[str, Bytes], commit: bytes) -> None:
        failpoint("commit.begun")
        for name, data in objects.items():
            self.replace(f"{PARTS}/{part}/{name}", data)
            failpoint("commit.object")
        if not self.create(f"{PARTS}/{part}/{COMMIT_FILE}", commit):
            raise StoreError(
                "the part was committed by another process",
                where=f"{self._url}, {part}",
                fix="run the command again",
            )
        failpoint("commit.synced")

    def remove(self, part: str) -> None:
        shutil.rmtree(self._cache / part, ignore_errors=True)
        prefix = f"{PARTS}/{part}"
        with writing(f"{self._url}/{prefix}"), self._asking() as client:
            self._obstore.delete(client, f"{prefix}/{COMMIT_FILE}")  # invisible from here on
            failpoint("remove.renamed")
            self._obstore.delete(client, [f"{prefix}/{name}" for name in self._names(prefix)])

    def set_aside(self, part: str) -> str:
        target = f"{QUARANTINE}/{part}"
        with writing(f"{self._url}/{target}"), self._asking() as client:
            for name in self._names(f"{PARTS}/{part}"):
                self._obstore.copy(client, f"{PARTS}/{part}/{name}", f"{target}/{name}")
        self.remove(part)
        failpoint("set_aside.renamed")
        return f"{self._url}/{target}"

    def listing(self, name: str) -> list[str]:
        return sorted({entry.partition("/")[0] for entry in self._names(name)})

    def leftovers(self, older_than_s: float) -> list[str]:
        """Parts whose COMMIT.json never came."""
        limit = datetime.now(UTC) - timedelta(seconds=older_than_s)
        newest: dict[str, datetime] = {}
        for name, modified in self._names(PARTS).items():
            part = name.partition("/")[0]
            newest[part] = max(modified, newest.get(part, modified))
        committed = set(self.part_names())
        return [f"{PARTS}/{p}" for p, modified in newest.items() if p not in committed and modified <= limit]

    def remove_leftover(self, name: str) -> None:
        with writing(f"{self._url}/{name}"), self._asking() as client:
            self._obstore.delete(client, [f"{name}/{entry}" for entry in self._names(name)])

    @contextmanager
    def maintenance(self) -> Iterator[None]:
        """Object stores have no locks. Two compactions at once are safe; they only do the work twice."""
        yield

    def local_part(self, commit: Commit) -> Path:
        """Downloads a part into the cache, unless it is there, and checks every byte of it."""
        final = self._cache / commit.part
        if final.exists():
            os.utime(final)  # recently used
            return final
        temporary = self._cache / f"{TEMPORARY}{commit.part}-{uuid.uuid4().hex[:8]}"
        with writing(str(self._cache)):
            self._make_room(commit.size)
            try:
                for name, (size, crc) in commit.objects.items():
                    data = self._checked_object(commit.part, name, size, crc)
                    (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                    (temporary / name).write_bytes(data)
                if not final.exists():
                    temporary.rename(final)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return final

    def _checked_object(self, part: str, name: str, size: int, crc: int) -> bytes:
        where = f"{self._url}/{PARTS}/{part}/{name}"
        fix = "dejavid store repair sets the part aside; then extract again"
        try:
            data = self.read(f"{PARTS}/{part}/{name}")
        except FileNotFoundError:
            if not self.has(f"{PARTS}/{part}"):
                raise PartGoneError(
                    "a part was compacted or set aside meanwhile", where=where, fix="open the store again"
                ) from None
            raise StoreCorruptError("an object is missing", where=where, fix=fix) from None
        if len(data) != size or object_crc(data) != crc:
            raise StoreCorruptError("an object differs from what was committed", where=where, fix=fix)
        return data

    def _make_room(self, size: int) -> None:
        """Deletes the least recently used copies; who has one mapped keeps it."""
        self._cache.mkdir(parents=True, exist_ok=True)
        copies = sorted(self._cache.iterdir(), key=lambda copy: copy.stat().st_mtime)
        sizes = {c: sum(f.stat().st_size for f in c.rglob("*") if f.is_file()) for c in copies}
        while copies and sum(sizes[copy] for copy in copies) + size > self._cache_bytes:
            shutil.rmtree(copies.pop(0), ignore_errors=True)
