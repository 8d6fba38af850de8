"""Features in the layout of the DejaVid reference implementation: three pickled dicts and `.pt` files.

`id2fname.pkl`, `id2labels.pkl` and `id2splits.pkl` map sample ids to a file, an integer label and a split.
The files lie in `feats/` beside the pickles, or right beside them, and hold one (T, F) tensor or a dict from
ids to X"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import StoreCorruptError, StoreError
from .exchange import Item
from .labels import LabelRow
from .unpickle import read_pickle

if TYPE_CHECKING:
    import torch

NAMES = ("id2fname", "id2labels", "id2splits")


def read_official(folder: Path) -> tuple[dict[str, Any], Iterator[Item]]:
    """Opens a folder with the three pickles and the files they name.

    Returns:
        facts for the store's fingerprint; and the samples in the reference's order: by file name, samples
        of one file in the order of `id2fname`. Ids without a file are left out, as the reference does.

    Raises:
        StoreError: a pickle holds anything but a dict of ids, a sample has no label or split, or two ids have
            the same text.
    """
    tables = [_read_dict(folder / f"{name}.pkl") for name in NAMES]
    fnames, labels, splits = tables
    unknown = [i for i in fnames if i not in labels or i not in splits]
    if unknown:
        raise _broken(f"{len(unknown)} samples have no label or split, such as {unknown[0]!r}", folder)
    if len({str(i) for i in fnames}) != len(fnames):
        raise _broken("two samples have ids with the same text", folder)
    root = folder / "feats" if (folder / "feats").is_dir() else folder
    digests = {name: hashlib.sha256((folder / f"{name}.pkl").read_bytes()).hexdigest() for name in NAMES}
    return {"layout": "official", "sha256": digests}, _samples(root, fnames, labels, splits)


def _samples(
    root: Path, fnames: Mapping[Any, Any], labels: Mapping[Any, Any], splits: Mapping[Any, Any]
) -> Iterator[Item]:
    opened, content = "", None
    for key, name in sorted(fnames.items(), key=lambda item: str(item[1])):
        if content is None or str(name) != opened:  # samples of one file follow each other
            opened, content = str(name), read_tensors(root / str(name))
        tensor = content.get(key) if isinstance(content, Mapping) else content
        if tensor is None:
            raise _broken(f"the file has no sample {key!r}", root / opened)
        row = LabelRow(str(labels[key]), str(splits[key]))
        yield Item(str(key), tensor.float().numpy(), row=row)


def write_official(folder: Path, items: Iterator[Item]) -> None:
    """Writes the pickles and one `.pt` per video; labels that are no numbers become their sorted rank."""
    import torch

    tables: tuple[dict[str, Any], ...] = ({}, {}, {})
    (folder / "feats").mkdir()
    for number, item in enumerate(items):
        if item.row is None:
            raise StoreError(
                "the official layout needs a label and a split for every video",
                where=f"video {item.video_id[:200]}",
                fix="give a manifest that lists every video of the store",
            )
        name = f"{number:08d}.pt"
        torch.save(torch.from_numpy(np.array(item.values, np.float32)), folder / "feats" / name)
        for table, value in zip(tables, (name, item.row.label, item.row.split), strict=True):
            table[item.video_id] = value
    fnames, labels, splits = tables
    classes = sorted(set(labels.values()))
    numeric = all(label.isascii() and label.isdecimal() for label in classes)
    numbers = {label: int(label) if numeric else rank for rank, label in enumerate(classes)}
    integers = {video_id: numbers[label] for video_id, label in labels.items()}
    for name, table in zip(NAMES, (fnames, integers, splits), strict=True):
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(table, protocol=2))


def read_tensors(path: Path | str) -> torch.Tensor | Mapping[Any, torch.Tensor]:
    """Reads a `.pt` or `.pkl` file of the reference: a tensor, or a dict of tensors, on the CPU.

    Raises:
        StoreError: the file is missing, or holds anything else.
    """
    import torch

    path = Path(path)
    if path.suffix == ".pkl":
        content = read_pickle(path)
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise StoreError("the file is missing", where=str(path), fix="copy the whole folder") from None
        except Exception as error:  # torch.load raises nearly everything on foreign bytes
            raise _broken(
                f"no tensors ({type(error).__name__}: {str(error).splitlines()[0]})", path
            ) from None
    tensors: Sequence[Any] = list(content.values()) if isinstance(content, dict) else [content]
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        raise _broken("something else than tensors", path)
    loaded: torch.Tensor | Mapping[Any, torch.Tensor] = content
    return loaded


def _read_dict(path: Path) -> dict[Any, str | int]:
    content = read_pickle(path)
    plain = isinstance(content, dict) and all(
        isinstance(part, str | int) for pair in content.items() for part in pair
    )
    if not plain:
        raise _broken("no dict from text or numbers to text or numbers", path)
    known: dict[Any, str | int] = content
    return known


def _broken(what: str, path: Path) -> StoreCorruptError:
    return StoreCorruptError(what, where=str(path), fix="check that this is what the reference wrote")
