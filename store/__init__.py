"""TSEs at rest: a folder of immutable, checksummed parts, written by many and read at memory speed."""

from .reader import Batch, Store, Tse, create_store, open_store
from .writer import StoreWriter

__all__ = ["Batch", "Store", "StoreWriter", "Tse", "create_store", "open_store"]
