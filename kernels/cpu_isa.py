"""What the CPU backend compiles for: vector width, register tile and numba's compiler options.

| instruction set | lanes | registers | tile of the local cost (rows x columns) |
|---|---|---|---|
| AVX-512 | 16 | 32 | 4 x 4: 16 sums, 4 sample vectors, centroid, weight, mask; 4 x 6 spills |
| AVX2 + FMA | 8 | 16 | 4 x 2: 8 sums, 2 sample vectors, centroid and weight, temporaries |
| NEON (64-bit Arm) | 4 | 32 | 4 x 4 |
| anything else | - | - | `cpu_plain.py` |
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
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
        return 16, 4, True
    if {"+avx2", "+fma"} <= enabled:
        return 8, 2, True
    return 4, 4, triple.startswith(("aarch64", "arm64"))


LANES, TILE_COLUMNS, HAS_VECTOR_CODE = _vector_unit()
BLOCK = 512 // LANES  # feature vectors of a block: a tile's operands then fit the first-level cache


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
