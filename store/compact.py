"""Many small parts into few large ones, and several stores into one. Both copy first and remove last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import StoreSection
from ..errors import StoreCorruptError, StoreError
from .folder import Folder, failpoint, find_folder
from .index import PartTable, read_commits
from .integrity import check_part, remove_replaced
from .layout import STORE_FILE, Commit, Header, new_part_name, object_crc
from .opening import read_header, require_same
from .part import MappedPart
from .writer import Record, commit_part

_DEFAULTS = StoreSection()


@dataclass(frozen=True)
class CompactReport:
    """Parts before and after; `n_dropped` copies of videos that an earlier part has were not copied."""

    n_parts_before: int
    n_parts_after: int
    n_videos: int
    n_dropped: int


@dataclass(frozen=True)
class MergeReport:
    """What was copied; parts that the destination had already are only counted."""

    n_sources: int
    n_parts_copied: int
    n_parts_present: int
    n_videos: int


def compact(path: Path | str, *, target_bytes: int = _DEFAULTS.flush_bytes) -> CompactReport:
    """Copies small parts into parts of about `target_bytes`, then removes the small ones.

    At every moment each video is in at least one committed part, so a kill loses nothing: the next `compact`
    or `repair` removes what was copied already. Readers that are open follow by themselves.

    Raises:
        StoreCorruptError: a part is damaged; nothing of it is removed.
        StoreLockedError: another repair or compaction is at work.
    """
    folder = find_folder(path)
    header = read_header(folder)
    with folder.maintenance():
        before = PartTable(folder, header)
        remove_replaced(folder, header, before)
        table = PartTable(folder, header)
        dropped = 0
        for group in _groups(table, target_bytes):
            dropped += _compact_group(folder, header, table, group)
        after = PartTable(folder, header)
        return CompactReport(len(before.commits), len(after.commits), len(after.where), dropped)


def _groups(table: PartTable, target_bytes: int) -> list[list[Commit]]:
    """Sets of parts to merge: small ones with equal extras, in order, until a set reaches the target."""
    open_groups: dict[object, list[Commit]] = {}
    groups = []
    for commit in table.commits.values():
        if commit.size > target_bytes // 2 and not _has_losers(table, commit):
            continue
        kinds = tuple((n, p.dtype, p.shape[1:]) for n, p in commit.arrays.items() if n.startswith("extra_"))
        group = open_groups.setdefault(kinds, [])
        group.append(commit)
        if sum(member.size for member in group) >= target_bytes:
            groups.append(open_groups.pop(kinds))
    groups += open_groups.values()
    return [group for group in groups if len(group) > 1 or _has_losers(table, group[0])]


def _has_losers(table: PartTable, commit: Commit) -> bool:
    """Whether an earlier part has some of this part's videos too."""
    return any(table.part_of[table.where[video_id]] != commit.part for video_id in commit.ids)


def _compact_group(folder: Folder, header: Header, table: PartTable, group: list[Commit]) -> int:
    """Writes one part from several and removes them; returns how many copies were not taken over."""
    records: list[Record] = []
    for commit in group:
        part = MappedPart(folder.local_part(commit), commit)
        mine = (r for r in part.records() if table.part_of[table.where[r.video_id]] == commit.part)
        records.extend(mine)
    if records:
        # The time of the oldest source: where other parts hold copies too, the same one counts as before.
        name = new_part_name(like=group[0].part)
        commit_part(folder, header, records, part=name, replaces=[commit.part for commit in group])
        failpoint("compact.written")
        check = check_part(folder, name, header)
        if check is None or check.damaged:
            raise StoreCorruptError(
                "a part that was just written does not read back as written",
                where=f"{folder}, part {name}",
                fix="check the disk; the parts it was made from are still there",
            )
    for commit in group:
        folder.remove(commit.part)
        failpoint("compact.removed")
    return sum(len(commit.ids) for commit in group) - len(records)


def merge(sources: Sequence[Path | str], into: Path | str) -> MergeReport:
    """Copies the parts of stores that were made from the same facts into one store, checking every byte.

    Parts keep their names, so a merge that was killed, or is run again, copies only what is missing.

    Args:
        sources: stores to read; they stay as they are.
        into: the destination; made if there is none.

    Raises:
        StoreVersionError: the stores differ in their facts; names the keys.
        StoreCorruptError: a source is damaged.
    """
    headers = [read_header(find_folder(source)) for source in sources]
    if not headers:
        raise StoreError("no stores to merge", where=str(into), fix="name at least one source")
    target = find_folder(into)
    target.create(STORE_FILE, headers[0].to_bytes())
    header = read_header(target)
    for source, found in zip(sources, headers, strict=True):
        require_same(found, header, str(source))
    present = set(target.part_names())
    n_copied = n_present = 0
    for source in sources:
        folder = find_folder(source)
        for commit in read_commits(folder, header, known={}).values():
            if commit.part in present:
                n_present += 1
                continue
            _copy_part(folder, target, commit)
            present.add(commit.part)
            n_copied += 1
    return MergeReport(len(sources), n_copied, n_present, len(PartTable(target, header).where))


def _copy_part(source: Folder, target: Folder, commit: Commit) -> None:
    objects = {}
    for name, (size, crc) in commit.objects.items():
        data = b"".join(source.chunks(commit.part, name))
        if len(data) != size or object_crc(data) != crc:
            raise StoreCorruptError(
                "an object differs from what was committed",
                where=f"{source}, part {commit.part}, {name}",
                fix="dejavid store repair on the source, then merge again",
            )
        objects[name] = data
    target.commit(commit.part, objects, commit.to_bytes())
