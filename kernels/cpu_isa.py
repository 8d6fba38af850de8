"""What the CPU backend compiles for: vector width, register tile and numba's compiler options.

| instruction set | lanes | registers | tile of the local cost (vectors of rows x columns) |
|---|---|---|---|
| AVX-512 | 16 | 32 | 2 x 10: 20 sums, 2 centroid and 2 weight vectors, a value, mask, temporaries |
| AVX2 + FMA | 8 | 16 | 2 x 4: 8 sums, 2 centroid and 2 weight vectors, a value, mask, temporaries |
| NEON (64-bit Arm) | 4 | 32 | 2 x 10 |
| anything else | - | - | `cpu_plain.py` |
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit, uint64
from numba.core.registry import cpu_target
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]

ROW_VECTORS = 2  # vectors of centroid rows of a tile
BLOCK = 256  # features of a block: what a row of tiles reads then fits the second-level cache
VECTORS = 4  # feature vectors of a feature tile, which the path loops hold in registers

AHEAD = 4  # path cells by which the values of two tiles are prefetched

unsigned: Any = uint64  # numba checks signed indices for negative values, which can cost it the vectors

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _vector_unit() -> tuple[int, int, bool]:
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    enabled = set(features.split(","))
    if "+avx512f" in enabled:
        return 16, 10, True
    if {"+avx2", "+fma"} <= enabled:
        return 8, 4, True
    return 4, 10, triple.startswith(("aarch64", "arm64"))


LANES, TILE_COLUMNS, HAS_VECTOR_CODE = _vector_unit()


def _sources_digest() -> str:
    sources = sorted(Path(__file__).parent.glob("cpu_*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


_DIGEST = _sources_digest()


def compiled(function: _Function) -> _Function:
    """Compiles at the first call, without the GIL; machine code is kept on disk where that is writable."""
    # numba's cache notices changes of the function's own file only. The name is part of its key.
    function.__qualname__ += f"_{_DIGEST}"
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return cast(_Function, njit(cache=True, **options)(function))
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return cast(_Function, njit(**options)(function))
