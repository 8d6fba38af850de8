"""What the CPU backend compiles for: vector width, register tile and numba's compiler options.

| instruction set | lanes | registers | tile of the local cost (rows x columns) |
|---|---|---|---|
| AVX-512 | 16 | 32 | 4 x 6: 24 sums, 6 sample vectors, centroid and weight |
| AVX2 + FMA | 8 | 16 | 4 x 2: 8 sums, 2 sample vectors, centroid and weight, temporaries |
| NEON (64-bit Arm) | 4 | 32 | 4 x 6 |
| anything else | - | - | `cpu_plain.py` |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numba.core.registry import cpu_target
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Bytes = NDArray[np.uint8]
Longs = NDArray[np.int64]

ROWS = 4  # centroid rows of a tile
CLASSES = 16  # the most classes of a block: the DP runs over this many at once
VECTORS = 4  # feature vectors that the path loops hold in registers

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _vector_unit() -> tuple[int, int, bool]:
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    enabled = set(features.split(","))
    if "+avx512f" in enabled:
        return 16, 6, True
    if {"+avx2", "+fma"} <= enabled:
        return 8, 2, True
    return 4, 6, triple.startswith(("aarch64", "arm64"))


LANES, TILE_COLUMNS, HAS_VECTOR_CODE = _vector_unit()
BLOCK = 512 // LANES  # feature vectors of a block: a tile's operands then fit the first-level cache


def compiled(function: _Function) -> _Function:
    """Compiles at the first call, without the GIL; machine code is kept on disk where that is writable."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return cast(_Function, njit(cache=True, **options)(function))
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return cast(_Function, njit(**options)(function))
