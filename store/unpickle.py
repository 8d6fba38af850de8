"""Pickles of other programs, read without running anything they name but tensors."""

from __future__ import annotations

import collections
import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import StoreError


def read_pickle(path: Path | str) -> Any:
    """Reads a pickle of plain containers, strings, numbers and torch tensors; tensors end up on the CPU.

    Every other type or function that the pickle names is refused before it is imported.

    Raises:
        StoreError: no such file, no pickle, or one that names anything else.
    """
    try:
        with Path(path).open("rb") as file:
            return _Unpickler(file).load()
    except _RefusedError as error:
        raise StoreError(
            f"the pickle wants {error}, which is not plain data or a tensor",
            where=str(path),
            fix="do not trust this file; ask its author for plain containers of numbers, strings and tensors",
        ) from None
    except OSError as error:
        raise StoreError(
            f"cannot read the pickle ({error.strerror})", where=str(path), fix="check the path"
        ) from None
    # A damaged pickle can fail in any opcode, with whatever exception that opcode happens to raise.
    except Exception as error:
        raise StoreError(
            f"not a pickle that can be read: {type(error).__name__}: {error}",
            where=str(path),
            fix="copy it again",
        ) from None


class _RefusedError(pickle.UnpicklingError):
    pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed = _allowed()
        if (module, name) not in allowed:
            raise _RefusedError(f"{module}.{name}")
        return allowed[module, name]


def _allowed() -> Mapping[tuple[str, str], Callable[..., Any]]:
    """What a pickled tensor consists of; its storage is a torch file of its own inside the pickle."""
    import torch

    def load_storage(data: bytes) -> Any:
        # The pickle asks for a plain torch.load: that would unpickle anything, and onto the GPU it came from.
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)

    return {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch.storage", "_load_from_bytes"): load_storage,
    }
