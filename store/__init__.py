"""TSEs at rest: a folder of immutable, checksummed parts, written by many and read at memory speed."""

from .compact import CompactReport, MergeReport, compact, merge
from .convert import ConvertReport, ExportReport, ImportReport, convert, export_features, import_features
from .integrity import RepairReport, StoreInfo, StoreStatus, VerifyReport, info, repair, status, verify
from .reader import Store, create_store, open_store
from .tse import Batch, Tse
from .writer import StoreWriter

__all__ = [
    "Batch",
    "CompactReport",
    "ConvertReport",
    "ExportReport",
    "ImportReport",
    "MergeReport",
    "RepairReport",
    "Store",
    "StoreInfo",
    "StoreStatus",
    "StoreWriter",
    "Tse",
    "VerifyReport",
    "compact",
    "convert",
    "create_store",
    "export_features",
    "import_features",
    "info",
    "merge",
    "open_store",
    "repair",
    "status",
    "verify",
]
