"""STORE.json: reading it, and whether two stores may hold the same videos."""

from __future__ import annotations

from ..errors import StoreError, StoreVersionError
from ..fingerprints import differing_keys
from .folder import Folder, unreadable
from .layout import STORE_FILE, Header


def read_header(folder: Folder) -> Header:
    """Reads STORE.json.

    Raises:
        StoreError: it is missing, damaged or of another version.
    """
    try:
        data = folder.read(STORE_FILE)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            "there is no store", where=str(folder), fix="check the path; dejavid extract makes a store"
        ) from None
    except OSError as error:
        raise unreadable(error, f"{folder}/{STORE_FILE}") from None
    return Header.from_bytes(data, f"{folder}/{STORE_FILE}")


def require_same(found: Header, wanted: Header, where: str) -> None:
    """Raises `StoreVersionError` with the differing keys unless both headers describe the same features."""
    lines = differing_keys(found.comparable(), wanted.comparable())
    if lines:
        raise StoreVersionError(
            f"the store was made differently (there != here): {'; '.join(lines)}",
            where=where,
            fix="use another store.path for the new features, or restore the old configuration",
        )
