"""The table of a store's videos: which part holds each, at which position, how long.

It is built from every part's COMMIT.json. Thousands of small files are slow to open on shared file systems,
so `index/commits.jsonl` keeps copies of these documents, one a line. Parts never change, so a copy can never
be out of date; each line carries its own checksum, and a bad line is simply read from its part again.
"""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np

from ..errors import StoreCorruptError, StoreError, StoreVersionError
from .folder import Folder, unreadable
from .layout import COMMIT_FILE, INDEX, PARTS, Array, Commit, Header

CACHE_FILE = f"{INDEX}/commits.jsonl"
_IDS = '"ids": '  # what comes before the ids in a commit record
_WORTH_CACHING = 64  # commit records read one by one before the cache is written again


class PartTable:
    """Where every video is.

    Attributes:
        commits: the committed parts by name, lowest id first.
        where: video id -> place; a video that was committed twice counts where its part id is lowest.
        n_bytes: size of all parts.
        part_of, video_of, lengths: by place: name of its part, position in it, TSE steps.
    """

    def __init__(self, folder: Folder, header: Header, *, known: PartTable | None = None) -> None:
        self.commits: dict[str, Commit] = read_commits(
            folder, header, known={} if known is None else known.commits
        )
        self.n_bytes = sum(commit.size for commit in self.commits.values())
        names = list(self.commits)
        counts = [len(commit.ids) for commit in self.commits.values()]
        starts = np.cumsum([0, *counts])[:-1]
        self.part_of: Array = np.repeat(np.array(names, dtype=object), counts)
        self.video_of: Array = np.arange(sum(counts)) - np.repeat(starts, counts)
        lengths = (length for commit in self.commits.values() for length in commit.lengths)
        self.lengths: Array = np.fromiter(lengths, np.int64, sum(counts))
        self.where: dict[str, int] = {}
        place = 0
        for commit in self.commits.values():
            for video_id in commit.ids:
                self.where.setdefault(video_id, place)
                place += 1


def read_commits(folder: Folder, header: Header, *, known: dict[str, Commit]) -> dict[str, Commit]:
    """The commit records of all parts, from those `known`, the cache, and the parts themselves."""
    names = folder.part_names()
    if len(set(names).difference(known)) >= _WORTH_CACHING:
        known = {**_read_cache(folder, header), **known}
    commits: dict[str, Commit] = {}
    fresh = 0
    for name in names:
        commit = known.get(name) or read_commit(folder, name, header)
        if commit is not None:
            commits[name] = commit
            fresh += name not in known
    if fresh >= _WORTH_CACHING:
        with suppress(StoreError):  # a store on a read-only disk just opens a little slower
            folder.replace(CACHE_FILE, b"".join(commit.to_bytes() for commit in commits.values()))
    return commits


def read_commit(folder: Folder, part: str, header: Header) -> Commit | None:
    """Reads a part's COMMIT.json; None if the part has gone since it was listed.

    Raises:
        StoreCorruptError: it is missing or damaged, or belongs to another part.
        StoreVersionError: the part belongs to a store made from other facts.
    """
    where = f"{folder}/{PARTS}/{part}/{COMMIT_FILE}"
    try:
        data = folder.read(f"{PARTS}/{part}/{COMMIT_FILE}")
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not folder.has(f"{PARTS}/{part}"):
            return None
        raise unreadable(error, where) from None
    commit = Commit.from_bytes(data, where)
    if commit.part != part:
        raise StoreCorruptError(
            f"the record is that of part {commit.part}", where=where, fix="dejavid store repair sets it aside"
        )
    if commit.fingerprint != header.fingerprint:
        raise StoreVersionError(
            f"a part made from other facts ({commit.fingerprint[:12]}, the store {header.fingerprint[:12]})",
            where=where,
            fix="dejavid store repair sets it aside; dejavid store merge takes parts of equal stores only",
        )
    return commit


def remembered_ids(folder: Folder, part: str) -> tuple[str, ...]:
    """The videos of a part whose commit record is damaged, as far as they can still be told."""
    with suppress(OSError):
        for line in folder.read(CACHE_FILE).splitlines(keepends=True):
            with suppress(StoreError):
                commit = Commit.from_bytes(line, CACHE_FILE)
                if commit.part == part:
                    return commit.ids
    with suppress(OSError, ValueError, TypeError):
        text = folder.read(f"{PARTS}/{part}/{COMMIT_FILE}").decode("latin-1")
        ids, _ = json.JSONDecoder().raw_decode(text, text.index(_IDS) + len(_IDS))
        return tuple(str(video_id) for video_id in ids)
    return ()


def _read_cache(folder: Folder, header: Header) -> dict[str, Commit]:
    try:
        lines = folder.read(CACHE_FILE).splitlines(keepends=True)
    except OSError:
        return {}
    commits: dict[str, Commit] = {}
    for line in lines:
        with suppress(StoreError):
            commit = Commit.from_bytes(line, CACHE_FILE)
            if commit.fingerprint == header.fingerprint:
                commits[commit.part] = commit
    return commits
