"""The CPU backend: numba loops over packed operands, shared out to threads of our own.

Work is cut into tasks, one block of classes each, which threads take from a queue: a thread that loses its
core for a while takes fewer. No two tasks write to one place. The threads are plain Python threads
(compiled loops run without the GIL), as many as `torch.get_num_threads()`, and they sleep when idle.
numba's OpenMP layer would leave a second set of threads spinning against those of torch, and its workqueue
layer aborts the process when two threads of the user call it at once.
"""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import OutOfMemory
from . import cpu_loops
from .cpu_isa import BLOCK, CLASSES, HAS_VECTOR_CODE, LANES, ROWS, TILE_COLUMNS, VECTORS, Floats, Ints, Longs
from .inputs import Samples

loops: Any = importlib.import_module(".cpu_vector" if HAS_VECTOR_CODE else ".cpu_plain", __package__)

_SEARCH_COLUMNS = 256  # of a chunk: its packed features of one block stay in the second-level cache
_PATH_COLUMNS = 1024  # likewise for one feature tile
_SEARCH_ROWS = 128  # centroid steps of a block of classes, unless one class has more
_PATH_CLASSES = 16
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
        self._for_paths: list[tuple[Floats, slice, Longs]] | None = None

    def search(
        self, centroids: Tensor, log_weights: Tensor, step_pattern: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        n_classes, length, n_features = centroids.shape
        n_vectors, n_samples = -(-n_features // LANES), len(self._offsets) - 1
        chunks, blocks = (
            _chunks(self._offsets, _SEARCH_COLUMNS),
            _blocks(n_classes, min(CLASSES, _SEARCH_ROWS // length)),
        )
        c, w = centroids.numpy(), log_weights.numpy()
        values = self._pack(chunks, TILE_COLUMNS, BLOCK, n_vectors)
        distances = np.empty((n_classes, n_samples), np.float32)
        lo, hi = (np.empty((n_classes, n_samples, length), np.int32) for _ in range(2))

        def align_blocks(queue: Iterator[int]) -> None:
            n_rows = _round_up(max(b - a for a, b in blocks) * length, ROWS)
            n_columns = _round_up(max(x.stop - x.start for x in chunks), TILE_COLUMNS)
            params = _buffer("packed centroids", n_rows * n_vectors * 2 * LANES)
            cost = _buffer("local costs", n_columns * n_rows + CLASSES)
            table = _buffer("accumulated costs", 2, length, CLASSES)
            moves = np.empty((n_columns, length, CLASSES), np.uint8)
            for i in queue:
                block = slice(*blocks[i])
                cpu_loops.pack_params(c[block], _exp(w[block]), n_vectors, params)
                n_rows = _round_up(len(c[block]) * length, ROWS)
                for x, chunk in zip(values, chunks, strict=True):
                    n_columns = _round_up(chunk.stop - chunk.start, TILE_COLUMNS)
                    local = cost[: n_columns * n_rows].reshape(n_columns, n_rows)
                    loops.local_costs(params, x, n_vectors, local)
                    part = len(c[block]), chunk.last - chunk.first
                    found: Any = np.empty(part, np.float32), *np.empty((2, *part, length), np.int32)
                    offsets = self._offsets[chunk.first : chunk.last + 1] - chunk.start
                    cpu_loops.align(local, offsets, length, step_pattern == "classic", table, moves, *found)
                    for target, source in zip((distances, lo, hi), found, strict=True):
                        target[block, chunk.first : chunk.last] = source

        _share_out(align_blocks, len(blocks), self._values.size * n_classes * length)
        paths = (torch.from_numpy(x).transpose(0, 1) for x in (lo, hi))
        return torch.from_numpy(distances).T.contiguous(), next(paths), next(paths)

    def path_cost(self, centroids: Tensor, log_weights: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        n_samples, n_classes = lo.shape[:2]
        batch, blocks = self._path_batch(), _blocks(n_classes, _PATH_CLASSES)
        c, w, low, high = centroids.numpy(), log_weights.numpy(), _by_class(lo), _by_class(hi)
        distances = np.empty((n_classes, n_samples), np.float32)

        def add_up(queue: Iterator[int]) -> None:
            for i in queue:
                block = slice(*blocks[i])
                params = _path_params(c[block], w[block])
                for x, chunk, offsets in batch:
                    cells = _cells(low[block, chunk], high[block, chunk], offsets)
                    n_padded = _round_up(len(offsets) - 1, LANES)
                    out, sums = (
                        np.zeros((len(c[block]), n_padded), np.float32),
                        _buffer("sums", n_padded, LANES),
                    )
                    loops.path_costs(x, *cells, *params, sums, out)
                    distances[block, chunk] = out[:, : len(offsets) - 1]

        _share_out(add_up, len(blocks), n_classes * self._values.size)
        return torch.from_numpy(distances).T.contiguous()

    def path_gradients(
        self, centroids: Tensor, log_weights: Tensor, lo: Tensor, hi: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch, blocks = self._path_batch(), _blocks(lo.shape[1], _PATH_CLASSES)
        c, w, low, high = centroids.numpy(), log_weights.numpy(), _by_class(lo), _by_class(hi)
        grads, (grad_c, grad_l) = grad.T.numpy(), (np.empty_like(c) for _ in "cl")

        def add_up(queue: Iterator[int]) -> None:
            scratch = _buffer("sums", 2 * VECTORS * LANES)
            for i in queue:
                block = slice(*blocks[i])
                params = _path_params(c[block], w[block])
                out = grad_c[block], grad_l[block]
                for array in out:
                    array.fill(0)
                for x, chunk, offsets in batch:
                    cells = _cells(low[block, chunk], high[block, chunk], offsets)
                    loops.path_gradients(x, *cells, *params, grads[block, chunk].copy(), scratch, *out)

        _share_out(add_up, len(blocks), len(c) * self._values.size)
        return torch.from_numpy(grad_c), torch.from_numpy(grad_l)

    def _path_batch(self) -> list[tuple[Floats, slice, Longs]]:
        """Per chunk: values in feature tiles, which samples, and their first columns within the chunk."""
        if self._for_paths is None:
            chunks = _chunks(self._offsets, _PATH_COLUMNS)
            tiles = _n_tiles(self._values)
            values = self._pack(chunks, 1, VECTORS, tiles * VECTORS)
            self._for_paths = [
                (
                    v.reshape(tiles, -1, VECTORS * LANES),
                    slice(x.first, x.last),
                    self._offsets[x.first : x.last + 1] - x.start,
                )
                for v, x in zip(values, chunks, strict=True)
            ]
        return self._for_paths

    def _pack(self, chunks: list[_Chunk], tile_columns: int, block: int, n_vectors: int) -> list[Floats]:
        sizes = [_round_up(x.stop - x.start, tile_columns) * n_vectors * LANES for x in chunks]
        # Buffers of a few MB come back from the allocator without page faults; one for the batch would not.
        packed = [_buffer("packed values", size) for size in sizes]

        def pack_chunks(queue: Iterator[int]) -> None:
            for i in queue:
                x = self._values[chunks[i].start : chunks[i].stop]
                cpu_loops.pack_values(x, tile_columns, block, n_vectors, packed[i])

        _share_out(pack_chunks, len(chunks), self._values.size)
        return packed


def _path_params(centroids: Floats, log_weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Operands of the path loops for a block of classes: centroids, their last tile, weights.

    Whole feature tiles are read in place. A last tile that is not whole is copied: reading it in place
    could go beyond the end of the tensor. Beyond F the weights are zero.
    """
    *rows, n_features = centroids.shape
    width = VECTORS * LANES
    whole = n_features // width * width
    last = np.zeros((*rows, width), np.float32)
    last[..., : n_features - whole] = centroids[..., whole:]
    weights = _buffer("weights", *rows, _n_tiles(centroids) * width)
    weights[..., n_features:] = 0
    with np.errstate(over="ignore"):
        np.exp(log_weights, out=weights[..., :n_features])
    return centroids, last, weights


def _exp(log_weights: Floats) -> Floats:
    with np.errstate(over="ignore"):  # the distance becomes infinite, and `check_distances` says so
        return np.exp(log_weights)


def _cells(lo: Ints, hi: Ints, offsets: Longs) -> tuple[Ints, Ints, Ints]:
    """Lists the cells of paths (classes, samples, Tc) of one chunk: see `cpu_loops.list_cells`."""
    lo, hi = lo.copy(), hi.copy()
    room = int((hi - lo + 1).sum((1, 2)).max()) + _PREFETCHED
    cells, owners = (np.empty((len(lo), room), np.int32) for _ in "co")
    starts = np.empty((len(lo), lo.shape[2] + 1), np.int32)
    cpu_loops.list_cells(lo, hi, offsets, cells, owners, starts)
    return cells, owners, starts


def _n_tiles(values: Floats) -> int:
    return -(-int(values.shape[-1]) // (VECTORS * LANES))


def _by_class(path: Tensor) -> Ints:
    """(N, C, Tc) -> (C, N, Tc) as int32; a view of what `search` returned."""
    array: Ints = path.transpose(0, 1).int().numpy()
    return array


def _chunks(offsets: Longs, n_columns: int) -> list[_Chunk]:
    """Cuts the batch into runs of whole samples of at most `n_columns` columns, or of one longer sample."""
    chunks, first = [], 0
    while first < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[first] + n_columns, side="right")) - 1
        last = max(last, first + 1)
        chunks.append(_Chunk(first, last, int(offsets[first]), int(offsets[last])))
        first = last
    return chunks


def _blocks(n_classes: int, most: int) -> list[tuple[int, int]]:
    """Cuts the classes into nearly equal blocks of at most `most`, and at least two for every thread."""
    size = max(1, min(most, -(-n_classes // (2 * torch.get_num_threads()))))
    n_blocks = -(-n_classes // size)
    return list(pairwise(n_classes * i // n_blocks for i in range(n_blocks + 1)))


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


def _share_out(worker: Callable[[Iterator[int]], None], n_tasks: int, work: int) -> None:
    """Runs `worker` on this thread and on helpers, each with an iterator over one queue of task numbers."""
    queue = deque(range(n_tasks))
    n_threads = 1 if work < _SERIAL else min(torch.get_num_threads(), n_tasks)
    helpers = [_pool(os.getpid(), n_threads).submit(worker, _take(queue)) for _ in range(n_threads - 1)]
    worker(_take(queue))
    for helper in helpers:
        helper.result()


def _take(queue: deque[int]) -> Iterator[int]:
    while True:
        try:
            yield queue.popleft()
        except IndexError:
            return


@cache
def _pool(_process: int, n_threads: int) -> ThreadPoolExecutor:
    """Kept between calls; one per process, because threads do not survive a fork."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="dejavid-kernels")
