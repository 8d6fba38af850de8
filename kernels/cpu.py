"""The CPU backend: numba loops over packed operands, shared out to threads of our own.

Work is cut into tasks, one chunk of samples times one block of classes each, which threads take from a queue: a
thread that loses its core for a while simply takes fewer. No two tasks write to one place. The threads are plain
Python threads (compiled loops run without the GIL), as many as `torch.get_num_threads()`. They sleep when idle;
numba's OpenMP layer would leave a second set of threads spinning against those of torch, and its
workqueue layer aborts the process when two threads of the user call it at once.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from ..errors import OutOfMemory
from . import cpu_loops
from .cpu_isa import BLOCK, HAS_VECTOR_CODE, LANES, ROWS, TILE_COLUMNS, VECTORS, Floats, Longs
from .inputs import Samples

if HAS_VECTOR_CODE:
    from . import cpu_vector as loops
else:
    from . import cpu_plain as loops

_SEARCH_COLUMNS = 256  # of a chunk: its packed features of one block stay in the second-level cache
_PATH_COLUMNS = 1024  # likewise for one feature tile
_CLASS_ROWS = 128  # centroid steps of a block of classes, unless one class has more
_CLASSES = 16
_PREFETCHED = 16  # entries that a path loop may read beyond its list of cells
_SERIAL = 1 << 20  # elements of work below which waking threads costs more than it brings


class _Chunk(NamedTuple):
    """Neighbouring samples `first:last`, which own the columns `start:stop`."""

    first: int
    last: int
    start: int
    stop: int


class CpuKernels:
    """One batch on the CPU backend; the methods are those of `dispatch.Kernels`. Computes in float32."""

    def __init__(self, samples: Samples) -> None:
        self._values: Floats = samples.values.float().numpy()
        self._offsets: Longs = samples.offsets.numpy()
        self._packed_for_paths: list[Floats] | None = None

    def search(
        self, centroids: Tensor, log_weights: Tensor, step_pattern: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        n_classes, length, n_features = centroids.shape
        n_vectors = -(-n_features // LANES)
        chunks, blocks = _chunks(self._offsets, _SEARCH_COLUMNS), _blocks(n_classes, length)
        c, w = centroids.numpy(), log_weights.exp().numpy()
        params: list[Floats] = [
            _buffer("packed centroids", _round_up((b - a) * length, ROWS) * n_vectors * 2 * LANES)
            for a, b in blocks
        ]
        values: list[Floats] = [
            _buffer("packed values", _round_up(x.stop - x.start, TILE_COLUMNS) * n_vectors * LANES)
            for x in chunks
        ]
        n_samples = len(self._offsets) - 1
        distances = np.empty((n_classes, n_samples), np.float32)
        lo, hi = (np.empty((n_classes, n_samples, length), np.int32) for _ in range(2))

        def pack(i: int) -> None:
            if i < len(chunks):
                x = self._values[chunks[i].start : chunks[i].stop]
                cpu_loops.pack_values(x, TILE_COLUMNS, BLOCK, n_vectors, values[i])
            else:
                block = slice(*blocks[i - len(chunks)])
                n_tiles = -(-c[block].shape[0] * length // ROWS)
                cpu_loops.pack_params(c[block], w[block], n_tiles, n_vectors, params[i - len(chunks)])

        def align(i: int) -> None:
            chunk, (first, last) = chunks[i // len(blocks)], blocks[i % len(blocks)]
            n_tiles = -(-(chunk.stop - chunk.start) // TILE_COLUMNS)
            shape = n_tiles * TILE_COLUMNS, _round_up((last - first) * length, ROWS)
            cost = _buffer("local costs", *shape)
            loops.local_costs(params[i % len(blocks)], values[i // len(blocks)], n_vectors, n_tiles, cost)
            part = last - first, chunk.last - chunk.first
            found = (
                np.empty(part, np.float32),
                np.empty((*part, length), np.int32),
                np.empty((*part, length), np.int32),
            )
            offsets = self._offsets[chunk.first : chunk.last + 1] - chunk.start
            cpu_loops.align(cost, offsets, length, step_pattern == "classic", *found)
            for target, source in zip((distances, lo, hi), found, strict=True):
                target[first:last, chunk.first : chunk.last] = source

        work = len(self._values) * n_classes * length * n_features
        _share_out(pack, len(chunks) + len(blocks), work)
        _share_out(align, len(chunks) * len(blocks), work)
        return (
            torch.from_numpy(distances).T.contiguous(),
            torch.from_numpy(lo).transpose(0, 1),
            torch.from_numpy(hi).transpose(0, 1),
        )

    def path_cost(self, centroids: Tensor, log_weights: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        n_samples, n_classes, length = lo.shape
        chunks, blocks = _chunks(self._offsets, _PATH_COLUMNS), _blocks(n_classes, length)
        values, c, w = self._path_operands(centroids, log_weights)
        distances = np.empty((n_classes, n_samples), np.float32)

        def add_up(i: int) -> None:
            chunk, (first, last) = chunks[i // len(blocks)], blocks[i % len(blocks)]
            part = last - first, _round_up(chunk.last - chunk.first, LANES)
            out, sums = np.zeros(part, np.float32), _buffer("sums", part[1], LANES)
            cells = self._cells(lo, hi, chunk, first, last)
            loops.path_costs(values[i // len(blocks)], *cells, c[first:last], w[first:last], sums, out)
            distances[first:last, chunk.first : chunk.last] = out[:, : chunk.last - chunk.first]

        _share_out(add_up, len(chunks) * len(blocks), n_classes * self._values.size)
        return torch.from_numpy(distances).T.contiguous()

    def path_gradients(
        self, centroids: Tensor, log_weights: Tensor, lo: Tensor, hi: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        chunks, blocks = _chunks(self._offsets, _PATH_COLUMNS), _blocks(*lo.shape[1:])
        values, c, w = self._path_operands(centroids, log_weights)
        grads = grad.T.numpy()
        grad_c, grad_l = torch.empty_like(centroids), torch.empty_like(log_weights)

        def add_up(i: int) -> None:
            first, last = blocks[i]
            scratch = _buffer("tile", 2 * VECTORS * LANES)
            out = grad_c[first:last].zero_().numpy(), grad_l[first:last].zero_().numpy()
            for x, chunk in zip(values, chunks, strict=True):
                cells = self._cells(lo, hi, chunk, first, last)
                g = grads[first:last, chunk.first : chunk.last].copy()
                loops.path_gradients(x, *cells, c[first:last], w[first:last], g, scratch, *out)

        _share_out(add_up, len(blocks), len(centroids) * self._values.size)
        return grad_c, grad_l

    def _path_operands(self, centroids: Tensor, log_weights: Tensor) -> tuple[list[Floats], Floats, Floats]:
        """Packed values of every chunk; centroids and weights with whole feature tiles in each row."""
        n_vectors = _round_up(self._values.shape[1], VECTORS * LANES) // LANES
        if self._packed_for_paths is None:
            chunks = _chunks(self._offsets, _PATH_COLUMNS)
            shape = n_vectors // VECTORS, -1, VECTORS * LANES
            packed = [_buffer("packed values", (x.stop - x.start) * n_vectors * LANES) for x in chunks]

            def pack(i: int) -> None:
                x = self._values[chunks[i].start : chunks[i].stop]
                cpu_loops.pack_values(x, 1, VECTORS, n_vectors, packed[i])

            _share_out(pack, len(chunks), self._values.size)
            self._packed_for_paths = [x.reshape(shape) for x in packed]
        missing = n_vectors * LANES - self._values.shape[1]
        c, w = centroids, log_weights.exp()
        if missing:
            c, w = pad(c, (0, missing)), pad(w, (0, missing))
        return self._packed_for_paths, c.numpy(), w.numpy()

    def _cells(
        self, lo: Tensor, hi: Tensor, chunk: _Chunk, first: int, last: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        low, high = (
            x[chunk.first : chunk.last, first:last].transpose(0, 1).int().contiguous() for x in (lo, hi)
        )
        room = int((high - low + 1).sum((1, 2)).max()) + _PREFETCHED
        cells, owners = (np.empty((last - first, room), np.int32) for _ in range(2))
        starts = np.empty((last - first, lo.shape[2] + 1), np.int32)
        offsets = self._offsets[chunk.first : chunk.last + 1] - chunk.start
        cpu_loops.list_cells(low.numpy(), high.numpy(), offsets, cells, owners, starts)
        return cells, owners, starts


def _chunks(offsets: Longs, n_columns: int) -> list[_Chunk]:
    """Cuts the batch into runs of whole samples of at most `n_columns` columns, or of one longer sample."""
    chunks, first = [], 0
    while first < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[first] + n_columns, side="right")) - 1
        last = max(last, first + 1)
        chunks.append(_Chunk(first, last, int(offsets[first]), int(offsets[last])))
        first = last
    return chunks


def _blocks(n_classes: int, length: int) -> list[tuple[int, int]]:
    """Cuts the classes into blocks of nearly equal size."""
    n_blocks = -(-n_classes // max(1, min(_CLASSES, _CLASS_ROWS // length)))
    bounds = [n_classes * i // n_blocks for i in range(n_blocks + 1)]
    return list(zip(bounds[:-1], bounds[1:], strict=True))


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _buffer(name: str, *shape: int) -> Floats:
    """Uninitialised float32; torch aligns it to cache lines, which the vector loads need."""
    try:
        buffer: Floats = torch.empty(shape).numpy()
    except RuntimeError:
        raise OutOfMemory(
            f"cannot allocate {4 * np.prod(shape, dtype=np.int64)} bytes for the {name}",
            where=f"weighted DTW on the CPU, shape {shape}",
            fix="lower the batch size (train.batch_size)",
        ) from None
    return buffer


def _share_out(task: Callable[[int], None], n_tasks: int, work: int) -> None:
    """Runs `task(0) ... task(n_tasks - 1)` on this thread and its helpers, each taking the next when free."""
    queue = deque(range(n_tasks))

    def take() -> None:
        while queue:
            try:
                i = queue.popleft()
            except IndexError:  # another thread was faster
                return
            task(i)

    n_threads = 1 if work < _SERIAL else min(torch.get_num_threads(), n_tasks)
    helpers = [_pool(os.getpid(), n_threads).submit(take) for _ in range(n_threads - 1)]
    take()
    for helper in helpers:
        helper.result()


@cache
def _pool(_process: int, n_threads: int) -> ThreadPoolExecutor:
    """Kept between calls; one per process, because threads do not survive a fork."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="dejavid-kernels")
