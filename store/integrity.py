"""What is in a store, whether it is whole, and how it becomes whole again.

Everything here may run while others write and read the store, and may be killed at any moment.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import StoreCorruptError, StoreError, StoreVersionError
from .folder import Folder, find_folder, unreadable
from .index import PartTable, read_commit, remembered_ids
from .labels import read_labels
from .layout import COMMIT_FILE, FAILED, PARTS, Commit, Header, object_crc
from .opening import read_header
from .part import MappedPart, PartGoneError

STALE_S = 3600.0  # a temporary folder that nobody has changed for so long is a killed writer's


@dataclass(frozen=True)
class StoreInfo:
    """What STORE.json and the commit records say."""

    path: str
    header: Header
    n_parts: int
    n_videos: int
    n_duplicates: int  # copies of videos that are not read, because an earlier part has them
    n_rows: int
    n_bytes: int


@dataclass(frozen=True)
class Duplicate:
    """A video that was committed more than once; `parts[0]` is the one that counts."""

    video_id: str
    parts: tuple[str, ...]
    identical: bool


@dataclass(frozen=True)
class SplitStatus:
    """How far one split of the manifest has come."""

    n_videos: int
    n_done: int
    n_failed: int

    @property
    def n_missing(self) -> int:
        return self.n_videos - self.n_done - self.n_failed


@dataclass(frozen=True)
class StoreStatus:
    """The store against the manifest.

    Attributes:
        splits: by name of the split.
        missing: ids of the manifest that are neither in the store nor failed.
        failed: id -> last cause in the failures ledger, for videos that are not in the store.
        unlisted: how many videos of the store the manifest does not know.
        duplicates: videos that were committed more than once.
        quarantined: damaged parts that were set aside.
        leftovers: temporary folders of writers, living or dead.
    """

    info: StoreInfo
    splits: Mapping[str, SplitStatus]
    missing: list[str]
    failed: Mapping[str, str]
    unlisted: int
    duplicates: list[Duplicate]
    quarantined: list[str]
    leftovers: list[str]


@dataclass(frozen=True)
class DamagedPart:
    """One part that is not what was committed.

    Attributes:
        problems: what differs, one line per object.
        videos: the videos that are damaged; all that the part holds where that cannot be told.
        holds: every video of the part, as far as that is still known.
    """

    part: str
    problems: tuple[str, ...]
    videos: tuple[str, ...]
    holds: tuple[str, ...]


@dataclass(frozen=True)
class VerifyReport:
    """Result of `verify`; the store is whole if `damaged` is empty."""

    n_parts: int
    n_videos: int
    n_bytes: int
    damaged: list[DamagedPart] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)  # files in parts that no commit record lists


@dataclass(frozen=True)
class RepairReport:
    """Result of `repair`.

    Attributes:
        quarantined: where each damaged part was moved to.
        lost: videos that are no longer in the store: `extract` makes exactly these again.
        removed: finished removals of an interrupted compaction, and leftovers of killed writers.
    """

    verified: VerifyReport
    quarantined: Mapping[str, str]
    lost: list[str]
    removed: list[str]


def info(path: Path | str) -> StoreInfo:
    """Summarises a store from its commit records, without reading features."""
    folder = find_folder(path)
    header = read_header(folder)
    return _info(folder, header, PartTable(folder, header))


def _info(folder: Folder, header: Header, table: PartTable) -> StoreInfo:
    commits = table.commits.values()
    n_copies = sum(len(commit.ids) for commit in commits)
    return StoreInfo(
        path=str(folder),
        header=header,
        n_parts=len(commits),
        n_videos=len(table.where),
        n_duplicates=n_copies - len(table.where),
        n_rows=sum(commit.rows for commit in commits),
        n_bytes=sum(commit.size for commit in commits),
    )


def status(path: Path | str, labels: Path | str) -> StoreStatus:
    """Compares a store with the manifest and the failures ledgers.

    Args:
        path: the store.
        labels: the manifest, CSV or Parquet with video_id, label and split.
    """
    folder = find_folder(path)
    header = read_header(folder)
    table = PartTable(folder, header)
    rows = read_labels(labels)
    failed = {i: cause for i, cause in _failures(folder).items() if i not in table.where}
    splits = {}
    for split in dict.fromkeys(row.split for row in rows.values()):
        ids = [video_id for video_id, row in rows.items() if row.split == split]
        done = sum(video_id in table.where for video_id in ids)
        splits[split] = SplitStatus(len(ids), done, sum(video_id in failed for video_id in ids))
    return StoreStatus(
        info=_info(folder, header, table),
        splits=splits,
        missing=[i for i in rows if i not in table.where and i not in failed],
        failed=failed,
        unlisted=sum(video_id not in rows for video_id in table.where),
        duplicates=find_duplicates(folder, table),
        quarantined=folder.quarantined(),
        leftovers=folder.leftovers(0),
    )


def _failures(folder: Folder) -> dict[str, str]:
    causes: dict[str, str] = {}
    for name in folder.listing(FAILED):
        for line in folder.read(f"{FAILED}/{name}").splitlines():
            with suppress(ValueError, KeyError, TypeError):  # the last line of a killed process may be torn
                entry: dict[str, Any] = json.loads(line)
                causes[str(entry["video_id"])] = str(entry["cause"])
    return causes


def find_duplicates(folder: Folder, table: PartTable) -> list[Duplicate]:
    """Videos with more than one copy, and whether the copies are equal bit for bit."""
    holders: dict[str, list[tuple[str, int]]] = {}
    for commit in table.commits.values():
        for video, video_id in enumerate(commit.ids):
            if table.part_of[table.where[video_id]] != commit.part:
                first = table.where[video_id]
                start = (table.part_of[first], int(table.video_of[first]))
                holders.setdefault(video_id, [start]).append((commit.part, video))
    checksums: dict[str, list[int]] = {}
    for name in {name for copies in holders.values() for name, _ in copies}:
        with suppress(PartGoneError):  # compacted meanwhile, and its second copies with it
            part = MappedPart(folder.local_part(table.commits[name]), table.commits[name])
            checksums[name] = part.array("checksums").tolist()
    found = []
    for video_id, copies in holders.items():
        there = [(name, video) for name, video in copies if name in checksums]
        prints = {(table.commits[name].lengths[video], checksums[name][video]) for name, video in there}
        if len(there) > 1:
            found.append(Duplicate(video_id, tuple(name for name, _ in there), len(prints) == 1))
    return found


def verify(path: Path | str, *, workers: int = 4) -> VerifyReport:
    """Reads every byte of every part and compares it with the commit record.

    Args:
        path: the store.
        workers: threads; each reads one part at a time.

    Raises:
        StoreError: STORE.json is damaged, or a file cannot be read for a reason that is no damage.
    """
    folder = find_folder(path)
    header = read_header(folder)
    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(lambda part: check_part(folder, part, header), folder.part_names()))
    checks = [check for check in results if check is not None]
    return VerifyReport(
        n_parts=len(checks),
        n_videos=sum(check.n_videos for check in checks),
        n_bytes=sum(check.n_bytes for check in checks),
        damaged=[damage for check in checks for damage in check.damaged],
        strange=[name for check in checks for name in check.strange],
    )


def check_part(folder: Folder, part: str, header: Header) -> VerifyReport | None:
    """Verifies one part; None if it was compacted away meanwhile."""
    try:
        commit = read_commit(folder, part, header)
    except (StoreCorruptError, StoreVersionError) as error:
        if not folder.has(f"{PARTS}/{part}"):
            return None
        ids = remembered_ids(folder, part)
        return VerifyReport(1, len(ids), 0, [DamagedPart(part, (f"{COMMIT_FILE}: {error.what}",), ids, ids)])
    if commit is None:
        return None
    problems = [line for name in commit.objects if (line := _problem(folder, commit, name))]
    found = folder.objects(part) - {COMMIT_FILE}
    if not folder.has(f"{PARTS}/{part}"):
        return None
    strange = [f"{PARTS}/{part}/{name}" for name in sorted(found.difference(commit.objects))]
    damaged = []
    if problems:
        damaged = [DamagedPart(part, tuple(problems), _damaged_videos(folder, commit), commit.ids)]
    return VerifyReport(1, len(commit.ids), commit.size, damaged, strange)


def _problem(folder: Folder, commit: Commit, name: str) -> str | None:
    size, expected = commit.objects[name]
    found = crc = 0
    try:
        for piece in folder.chunks(commit.part, name):
            crc = object_crc(piece, crc)
            found += len(piece)
    except FileNotFoundError:
        return f"{name}: missing"
    except OSError as error:
        problem = unreadable(error, f"{folder}/{PARTS}/{commit.part}/{name}")
        if not isinstance(problem, StoreCorruptError):
            raise problem from error
        return f"{name}: {problem.what}"
    if found != size:
        return f"{name}: {found} bytes instead of {size}"
    return None if crc == expected else f"{name}: the checksum does not match"


def _damaged_videos(folder: Folder, commit: Commit) -> tuple[str, ...]:
    """The videos whose features differ; all of the part's if the damage lies elsewhere."""
    bad: list[str] = []
    with suppress(StoreError):
        part = MappedPart(folder.local_part(commit), commit)
        bad = [video_id for video, video_id in enumerate(commit.ids) if not part.intact(video)]
    return tuple(bad) or commit.ids


def repair(path: Path | str, *, stale_s: float = STALE_S, workers: int = 4) -> RepairReport:
    """Verifies a store and moves every damaged part to `quarantine/`; deletes nothing that may be needed.

    Args:
        path: the store.
        stale_s: temporary folders unchanged for so many seconds are those of killed writers, and are deleted.
        workers: threads of `verify`.

    Raises:
        StoreLockedError: another repair or compaction is at work.
        StoreError: STORE.json is damaged, or the store cannot be written.
    """
    folder = find_folder(path)
    header = read_header(folder)
    with folder.maintenance():
        report = verify(path, workers=workers)
        quarantined = {damage.part: folder.set_aside(damage.part) for damage in report.damaged}
        table = PartTable(folder, header)
        affected = [video_id for damage in report.damaged for video_id in damage.holds]
        return RepairReport(
            verified=report,
            quarantined=quarantined,
            lost=[video_id for video_id in dict.fromkeys(affected) if video_id not in table.where],
            removed=[*remove_replaced(folder, header, table), *_remove_leftovers(folder, stale_s)],
        )


def remove_replaced(folder: Folder, header: Header, table: PartTable) -> list[str]:
    """Removes the parts that an interrupted compaction has copied into another part, if that is whole."""
    removed: list[str] = []
    for commit in table.commits.values():
        sources = [part for part in commit.replaces if part in table.commits]
        check = check_part(folder, commit.part, header) if sources else None
        if check is not None and not check.damaged:
            for part in sources:
                folder.remove(part)
            removed += sources
    return removed


def _remove_leftovers(folder: Folder, stale_s: float) -> Iterator[str]:
    for name in folder.leftovers(stale_s):
        folder.remove_leftover(name)
        yield name
