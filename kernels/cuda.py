"""The CUDA backend: lays out the operands with torch and launches `weighted_dtw.cu`.

The source is compiled by NVRTC on first use (CuPy keeps the binary on disk), for the device at hand; no
compiler is needed. Kernels run on torch's current stream and on torch's memory. What would not fit at once is
done in chunks of samples and blocks of classes: no T, Tc, F or C is too large while one sample and class fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import MissingDependencyError, OutOfMemory
from .inputs import Samples

SOURCE = Path(__file__).with_name("weighted_dtw.cu")

# As in the source.
_TILE = 128
_DEPTH = {torch.float32: 16, torch.float16: 32}
_STAGES = 3
_THREADS = 256
_STEPS = 8

_BYTES_AT_ONCE = 1 << 29  # of local costs, and of partial sums along paths
_TILES_PER_PROCESSOR = 4  # below this many, the features are shared out as well
_FEATURES_PER_SHARE = 128  # at least

Grid = tuple[int, int, int]


class Launcher(Protocol):
    """Runs kernels of the source by name."""

    n_processors: int

    def __call__(self, kernel: str, grid: Grid, n_shared_bytes: int, *arguments: Tensor | int) -> None: ...


class CudaKernels:
    """One batch on the CUDA backend; the methods are those of `dispatch.Kernels`. Computes in float32.

    Args:
        samples: the batch, on the device.
        launch: runs the kernels; the device of the samples by default.
        half: whether local costs of the path search are computed in half precision.
        bytes_at_once: bound on the largest temporaries.
    """

    def __init__(
        self,
        samples: Samples,
        launch: Launcher | None = None,
        *,
        half: bool = False,
        bytes_at_once: int = _BYTES_AT_ONCE,
    ) -> None:
        self._values = samples.values.float()
        self._offsets = samples.offsets
        self._launch = launch or _device_launcher(samples.values.device.index or 0)
        self._half = half
        self._bytes_at_once = bytes_at_once

    def search(
        self, centroids: Tensor, log_weights: Tensor, step_pattern: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights = log_weights.exp()
        if self._half:
            distances, lo, hi = self._search(centroids, weights, step_pattern, torch.float16)
            # Sums beyond the range of half precision end as infinities: then the path means nothing.
            if torch.isfinite(distances).all():
                return self.path_cost(centroids, log_weights, lo, hi), lo, hi
        return self._search(centroids, weights, step_pattern, torch.float32)

    def path_cost(self, centroids: Tensor, log_weights: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        n_classes, length, _ = centroids.shape
        values, c, w = (_feature_pairs(x) for x in (self._values, centroids, log_weights.exp()))
        grid = _path_grid(values.shape[1] // 2, n_classes, length)
        distances = self._new("distances", len(self._offsets) - 1, n_classes)
        at_once = max(1, self._bytes_at_once // (4 * grid[0] * grid[2] * n_classes))
        for first in range(0, len(distances), at_once):
            part = slice(first, min(first + at_once, len(distances)))
            n_samples = part.stop - part.start
            partial = self._new("partial sums", grid[0] * grid[2], n_samples, n_classes)
            offsets = self._offsets[part].to(values.device)
            path = _ints(lo[part]), _ints(hi[part])
            sizes = n_samples, n_classes, length, values.shape[1] // 2
            self._launch("path_costs", grid, 0, values, offsets, c, w, *path, partial, *sizes)
            torch.sum(partial, 0, out=distances[part])
        return distances

    def path_gradients(
        self, centroids: Tensor, log_weights: Tensor, lo: Tensor, hi: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        n_classes, length, n_features = centroids.shape
        values, c, w = (_feature_pairs(x) for x in (self._values, centroids, log_weights.exp()))
        grid = _path_grid(values.shape[1] // 2, n_classes, length)
        grad_c, grad_l = self._new("gradients", 2, *centroids.shape).zero_()
        offsets = self._offsets.to(values.device)
        sizes = len(lo), n_classes, length, values.shape[1] // 2, n_features
        arguments = values, offsets, c, w, _ints(lo), _ints(hi), grad, grad_c, grad_l
        self._launch("path_gradients", grid, 0, *arguments, *sizes)
        return grad_c, grad_l

    def _search(
        self, centroids: Tensor, weights: Tensor, step_pattern: str, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        n_samples, (n_classes, length, n_features) = len(self._offsets) - 1, centroids.shape
        distances = self._new("distances", n_samples, n_classes)
        lo, hi = self._new("paths", 2, n_samples, n_classes, length, dtype=torch.int32)
        n_padded = _round_up(n_features, _DEPTH[dtype])
        # Both bounds are square-ish: a chunk of samples takes the square root of what may be had at once.
        side = _round_up(int((self._bytes_at_once / 4) ** 0.5) // 2, _TILE)
        for k, k_end in _runs([length * i for i in range(n_classes + 1)], side):
            params = torch.stack(
                [_transposed(x[k:k_end].flatten(0, 1), n_padded, dtype) for x in (centroids, weights)]
            )
            for n, n_end in _runs(self._offsets.tolist(), side):
                start, stop = int(self._offsets[n]), int(self._offsets[n_end])
                values = _transposed(self._values[start:stop], n_padded, dtype)
                cost = self._local_costs(params, values)
                offsets = self._offsets[n : n_end + 1] - start
                found = self._align(cost, offsets, k_end - k, length, step_pattern)
                for target, source in zip((distances, lo, hi), found, strict=True):
                    target[n:n_end, k:k_end] = source
        return distances, lo, hi

    def _local_costs(self, params: Tensor, values: Tensor) -> Tensor:
        """(shares, rows, columns), to be summed over the shares."""
        (_, n_features, n_rows), n_columns = params.shape, values.shape[1]
        n_tiles, depth = (n_rows // _TILE) * (n_columns // _TILE), _DEPTH[values.dtype]
        wanted = min(
            self._launch.n_processors * _TILES_PER_PROCESSOR // n_tiles, n_features // _FEATURES_PER_SHARE
        )
        affordable = self._bytes_at_once // (4 * n_rows * n_columns)
        per_share = _round_up(-(-n_features // max(1, min(wanted, affordable))), depth)
        cost = self._new("local costs", -(-n_features // per_share), n_rows, n_columns)
        grid = n_columns // _TILE, n_rows // _TILE, len(cost)
        kernel = "local_costs_half" if values.dtype == torch.float16 else "local_costs"
        n_shared_bytes = _STAGES * 3 * depth * _TILE * values.element_size()
        self._launch(
            kernel, grid, n_shared_bytes, params, values, cost, n_features, per_share, n_rows, n_columns
        )
        return cost

    def _align(
        self, cost: Tensor, offsets: Tensor, n_classes: int, length: int, step_pattern: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        n_samples = len(offsets) - 1
        width = min(32, 1 << (length - 1).bit_length())
        n_words = -(-int(offsets.diff().max()) // 32)
        moves = self._new("moves", n_samples * n_classes, length, n_words, 2, dtype=torch.int32)
        distances = self._new("distances", n_samples, n_classes)
        lo, hi = self._new("paths", 2, n_samples, n_classes, length, dtype=torch.int32)
        sizes = n_samples, n_classes, length, int(step_pattern == "classic"), width
        grid = -(-n_samples * n_classes * width // _THREADS), 1, 1
        arguments = *cost.shape, offsets.to(cost.device), *sizes, moves, n_words, distances, lo, hi
        self._launch("align", grid, 0, cost, *arguments)
        return distances, lo, hi

    def _new(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        try:
            return torch.empty(shape, dtype=dtype, device=self._values.device)
        except torch.OutOfMemoryError:
            n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            raise OutOfMemory(
                f"cannot allocate {n_bytes} bytes for the {name}, shape {shape}",
                where=f"weighted DTW on {self._values.device}",
                fix="lower the batch size (train.batch_size), or free memory on the device",
            ) from None


def half_search_kernels(samples: Samples) -> CudaKernels:
    """The backend "cuda_half"."""
    return CudaKernels(samples, half=True)


def _runs(bounds: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Cuts ascending bounds into runs that span at most `most`, or a single longer step."""
    first = 0
    while first < len(bounds) - 1:
        last = first + 1
        while last + 1 < len(bounds) and bounds[last + 1] - bounds[first] <= most:
            last += 1
        yield first, last
        first = last


def _transposed(rows: Tensor, n_features: int, dtype: torch.dtype) -> Tensor:
    """(rows, F) -> (n_features, rows padded to whole tiles), zeros beyond."""
    beyond = 0, _round_up(len(rows), _TILE) - len(rows), 0, n_features - rows.shape[1]
    return pad(rows.T.to(dtype), beyond).contiguous()


def _feature_pairs(x: Tensor) -> Tensor:
    return pad(x, (0, x.shape[-1] % 2)).contiguous()


def _path_grid(n_pairs: int, n_classes: int, length: int) -> Grid:
    return -(-n_pairs // 32), -(-n_classes // 8), -(-length // _STEPS)


def _ints(path: Tensor) -> Tensor:
    return path.to(torch.int32).contiguous()


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


@cache
def _device_launcher(device: int) -> Launcher:
    return _DeviceLauncher(device)


class _DeviceLauncher:
    """The kernels compiled for one device; CuPy checks the result of every launch."""

    def __init__(self, device: int) -> None:
        try:
            import cupy
        except ImportError:
            raise MissingDependencyError(
                "cupy is not installed", where="backend 'cuda'", fix="pip install 'dejavid[gpu]'"
            ) from None
        self._cupy = cupy
        self._device = device
        self.n_processors = torch.cuda.get_device_properties(device).multi_processor_count
        self._functions: dict[str, Any] = {}

    def __call__(self, kernel: str, grid: Grid, n_shared_bytes: int, *arguments: Tensor | int) -> None:
        plain = tuple(np.intp(x.data_ptr()) if isinstance(x, Tensor) else np.int32(x) for x in arguments)
        stream = torch.cuda.current_stream(self._device)
        with self._cupy.cuda.Device(self._device), self._cupy.cuda.Stream.from_external(stream):
            function = self._function(kernel, n_shared_bytes)
            function(grid, (_THREADS,), plain, shared_mem=n_shared_bytes)

    def _function(self, kernel: str, n_shared_bytes: int) -> Any:
        if kernel not in self._functions:
            # Half precision needs a header of the CUDA toolkit, the rest does not.
            half = ("-DHALF_SEARCH",) if kernel == "local_costs_half" else ()
            module = self._cupy.RawModule(code=SOURCE.read_text(), options=("-std=c++17", *half))
            self._functions[kernel] = module.get_function(kernel)
            if n_shared_bytes:
                self._functions[kernel].max_dynamic_shared_size_bytes = n_shared_bytes
        return self._functions[kernel]
