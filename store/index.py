"""The table of a store's videos: which part holds each, at which position, how long."""

from __future__ import annotations

import numpy as np

from ..errors import StoreCorruptError, StoreVersionError
from .folder import Folder
from .layout import COMMIT_FILE, PARTS, Array, Commit, Header


class PartTable:
    """Where every video is.

    Attributes:
        parts: names of the committed parts, lowest id first.
        where: video id -> place; a video that was committed twice counts where its part id is lowest.
        part_of, video_of, lengths: by place: number of its part, position in it, TSE steps.
    """

    def __init__(self, folder: Folder, header: Header, *, known: PartTable | None = None) -> None:
        self._folder = folder
        self._header = header
        old = {} if known is None else known._commits
        self._commits: dict[str, Commit] = {}
        for name in folder.part_names():
            commit = old.get(name) or read_commit(folder, name, header)
            if commit is not None:
                self._commits[name] = commit
        self.parts = list(self._commits)
        counts = [len(commit.ids) for commit in self._commits.values()]
        self.part_of: Array = np.repeat(np.arange(len(counts)), counts)
        starts = np.cumsum([0, *counts])[:-1]
        self.video_of: Array = np.arange(sum(counts)) - np.repeat(starts, counts)
        self.lengths: Array = np.fromiter((n for c in self._commits.values() for n in c.lengths), np.int64)
        self.where: dict[str, int] = {}
        place = 0
        for commit in self._commits.values():
            for video_id in commit.ids:
                self.where.setdefault(video_id, place)
                place += 1

    def commit(self, name: str) -> Commit:
        return self._commits[name]


def read_commit(folder: Folder, part: str, header: Header) -> Commit | None:
    """Reads a part's COMMIT.json; None if the part has gone since it was listed.

    Raises:
        StoreCorruptError: it is missing or damaged, or belongs to another part.
        StoreVersionError: the part belongs to a store made from other facts.
    """
    where = f"{folder.part_folder(part)}/{COMMIT_FILE}"
    try:
        data = folder.read(f"{PARTS}/{part}/{COMMIT_FILE}")
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not folder.part_folder(part).exists():
            return None
        raise _not_a_part(f"cannot read the commit record ({error.strerror})", where) from None
    commit = Commit.from_bytes(data, where)
    if commit.part != part:
        raise _not_a_part(f"the record is that of part {commit.part}", where)
    if commit.fingerprint != header.fingerprint:
        raise StoreVersionError(
            f"a part made from other facts ({commit.fingerprint[:12]}, the store {header.fingerprint[:12]})",
            where=where,
            fix="dejavid store repair sets it aside; dejavid store merge takes parts of equal stores only",
        )
    return commit


def _not_a_part(what: str, where: str) -> StoreCorruptError:
    return StoreCorruptError(
        what, where=where, fix="dejavid store repair sets the part aside; then extract again"
    )
