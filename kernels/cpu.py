"""The CPU backend: numba loops over packed operands, shared out to threads of our own.

Work is cut into tasks, one block of classes each, which threads take from a queue: a thread that loses its
core for a while takes fewer. No two tasks write to one place. The threads are plain Python threads
(compiled loops run without the GIL), as many as `torch.get_num_threads()`, and they sleep when idle.
numba's OpenMP layer would leave a second set of threads spinning against those of torch, and its workqueue
layer aborts the process when two threads of the user call it at once.
"""

from __future__ import annotations

import importlib
import math
import os
import threading
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
from .cpu_isa import AHEAD, HAS_VECTOR_CODE, LANES, TILE_COLUMNS, VECTORS, Floats, Ints, Longs
from .inputs import Samples

loops: Any = importlib.import_module(".cpu_vector" if HAS_VECTOR_CODE else ".cpu_plain", __package__)

_SEARCH_COLUMNS = 512  # of a chunk: a feature block of it and its local costs share the second-level cache
_SEARCH_ROWS = 128  # centroid steps of a block of classes, unless one class has more
_PATH_COLUMNS = 768  # of a chunk: one feature tile of it, and of a block of classes, stay in that cache
_PATH_CLASSES = 32
_SERIAL = 1 << 20  # elements of work below which waking threads costs more than it brings


class _Chunk(NamedTuple):
    """Neighbouring samples `first:last`; their columns are `start:stop`, those of each lie at `offsets`."""

    first: int
    last: int
    start: int
    stop: int
    offsets: Longs


class CpuKernels:
    """One batch on the CPU backend; the methods are those of `dispatch.Kernels`. Computes in float32."""

    def __init__(self, samples: Samples) -> None:
        self._values: Floats = samples.values.float().numpy()
        self._offsets: Longs = samples.offsets.numpy()
        self._for_paths: list[tuple[_Chunk, Floats]] | None = None

    def search(
        self, centroids: Tensor, log_weights: Tensor, step_pattern: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        n_classes, length, n_features = centroids.shape
        chunks = _chunks(self._offsets, _SEARCH_COLUMNS)
        # Rows come in whole vectors: sizes of which a multiple fills them leave fewer lanes idle.
        blocks = _blocks(n_classes, _SEARCH_ROWS // length, LANES // math.gcd(LANES, length))
        n_rows = _round_up(max(b - a for a, b in blocks) * length, LANES)
        n_columns = _round_up(max(x.stop - x.start for x in chunks), TILE_COLUMNS)
        c, w = centroids.numpy(), log_weights.numpy()
        distances = np.empty((n_classes, len(self._offsets) - 1), np.float32)
        lo, hi = (np.empty((*distances.shape, length), np.int32) for _ in range(2))

        def align_blocks(queue: Iterator[int]) -> None:
            params = _scratch("packed centroids", n_rows * n_features * 2)
            cost = _scratch("local costs", n_columns * n_rows + LANES)
            for i in queue:
                block = slice(*blocks[i])
                loops.pack_params(c[block], w[block], params)
                n_block_rows = _round_up(len(c[block]) * length, LANES)
                for x in chunks:
                    local = cost[: _round_up(x.stop - x.start, TILE_COLUMNS) * n_block_rows]
                    local = local.reshape(-1, n_block_rows)
                    loops.local_costs(params, self._values[x.start : x.stop], local)
                    found = distances[block], lo[block], hi[block]
                    loops.align(local, x.offsets, step_pattern == "classic", x.first, *found)

        _share_out(align_blocks, len(blocks), self._values.size * n_classes * length)
        paths = (torch.from_numpy(x).transpose(0, 1) for x in (lo, hi))
        return torch.from_numpy(np.ascontiguousarray(distances.T)), next(paths), next(paths)

    def path_cost(self, centroids: Tensor, log_weights: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        n_samples, n_classes = lo.shape[:2]
        batch, blocks = self._path_batch(), _blocks(n_classes, _PATH_CLASSES)
        c, w, low, high = centroids.numpy(), log_weights.numpy(), _by_class(lo), _by_class(hi)
        distances = np.empty((n_classes, n_samples), np.float32)

        def add_up(queue: Iterator[int]) -> None:
            for i in queue:
                block = slice(*blocks[i])
                params = _path_params(c[block], w[block])
                for x, values in batch:
                    n_padded = _round_up(x.last - x.first, LANES)
                    sums = _scratch("sums", len(c[block]), n_padded, LANES)
                    out = _scratch("distances", len(c[block]), n_padded)
                    loops.path_costs(values, *_cells(low[block], high[block], x), *params, sums, out)
                    distances[block, x.first : x.last] = out[:, : x.last - x.first]

        _share_out(add_up, len(blocks), n_classes * self._values.size)
        return torch.from_numpy(np.ascontiguousarray(distances.T))

    def path_gradients(
        self, centroids: Tensor, log_weights: Tensor, lo: Tensor, hi: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch, blocks = self._path_batch(), _blocks(lo.shape[1], _PATH_CLASSES)
        c, w, low, high = centroids.numpy(), log_weights.numpy(), _by_class(lo), _by_class(hi)
        grads, results = grad.T.numpy(), _recycled("gradients", 2, *c.shape)

        def add_up(queue: Iterator[int]) -> None:
            scratch = _scratch("sums", 2, VECTORS * LANES)
            for i in queue:
                block = slice(*blocks[i])
                params = _path_params(c[block], w[block])
                for x, values in batch:
                    cells = _cells(low[block], high[block], x)
                    g = grads[block, x.first : x.last].copy()
                    loops.path_gradients(values, *cells, *params, g, scratch, x.first > 0, *results[:, block])

        _share_out(add_up, len(blocks), len(c) * self._values.size)
        grad_c, grad_l = torch.from_numpy(results)
        return grad_c, grad_l

    def _path_batch(self) -> list[tuple[_Chunk, Floats]]:
        """The chunks of the batch and their values in feature tiles, packed once for all path loops."""
        if self._for_paths is None:
            chunks, width = _chunks(self._offsets, _PATH_COLUMNS), VECTORS * LANES
            n_tiles = _n_tiles(self._values)
            flat = _buffer("packed values", n_tiles * len(self._values) * width)
            packed = [
                flat[n_tiles * width * x.start : n_tiles * width * x.stop].reshape(n_tiles, -1, width)
                for x in chunks
            ]

            def pack_chunks(queue: Iterator[int]) -> None:
                for i in queue:
                    cpu_loops.pack_values(self._values[chunks[i].start : chunks[i].stop], packed[i])

            _share_out(pack_chunks, len(chunks), self._values.size)
            self._for_paths = list(zip(chunks, packed, strict=True))
        return self._for_paths


def _path_params(centroids: Floats, log_weights: Floats) -> tuple[Floats, Floats]:
    """Centroids and weights of a block of classes in whole feature tiles, zeros beyond F."""
    shape = *centroids.shape[:2], _n_tiles(centroids) * VECTORS * LANES
    tiled, weights = _scratch("centroids", *shape), _scratch("weights", *shape)
    loops.tile_params(centroids, log_weights, tiled, weights)
    return tiled, weights


def _cells(lo: Ints, hi: Ints, chunk: _Chunk) -> tuple[Ints, Ints, Ints]:
    """Lists the cells of the paths (classes, samples, Tc) through one chunk: see `cpu_loops.list_cells`."""
    n_classes, _, length = lo.shape
    # A path has no more cells than steps on both sides. Beyond the last, one entry is written and AHEAD read.
    room = chunk.stop - chunk.start + (chunk.last - chunk.first) * length + AHEAD
    cells, owners = (np.zeros((n_classes, room), np.int32) for _ in "co")
    starts = np.empty((n_classes, length + 1), np.int32)
    cpu_loops.list_cells(lo, hi, chunk.first, chunk.offsets, cells, owners, starts)
    return cells, owners, starts


def _n_tiles(values: Floats) -> int:
    return -(-int(values.shape[-1]) // (VECTORS * LANES))


def _by_class(path: Tensor) -> Ints:
    """(N, C, Tc) -> (C, N, Tc) as int32; a view of what `search` returned."""
    array: Ints = path.transpose(0, 1).int().contiguous().numpy()
    return array


def _chunks(offsets: Longs, n_columns: int) -> list[_Chunk]:
    """Cuts the batch into runs of whole samples of at most `n_columns` columns, or of one longer sample."""
    chunks, first = [], 0
    while first < len(offsets) - 1:
        start = int(offsets[first])
        last = int(np.searchsorted(offsets, start + n_columns, side="right")) - 1
        last = max(last, first + 1)
        chunks.append(_Chunk(first, last, start, int(offsets[last]), offsets[first : last + 1] - start))
        first = last
    return chunks


def _blocks(n_classes: int, most: int, unit: int = 1) -> list[tuple[int, int]]:
    """Cuts the classes into nearly equal blocks of at most `most`, and at least two for every thread.

    Blocks are multiples of `unit` where that leaves at least as many blocks.
    """
    size = max(1, min(most, -(-n_classes // (2 * torch.get_num_threads()))))
    unit = unit if unit <= size else 1
    n_units = -(-n_classes // unit)
    n_blocks = -(-n_units // (size // unit))
    return list(pairwise(min(n_classes, n_units * i // n_blocks * unit) for i in range(n_blocks + 1)))


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _buffer(name: str, *shape: int) -> Floats:
    """Uninitialised float32, aligned to cache lines, which the vector loads need."""
    size = math.prod(shape)
    try:
        # Large ones of NumPy come in huge pages: far fewer page faults than those of torch.
        room: Floats = np.empty(size + 16, np.float32)
    except MemoryError:
        raise OutOfMemory(
            f"cannot allocate {4 * size} bytes for the {name}",
            where=f"weighted DTW on the CPU, shape {shape}",
            fix="lower the batch size (train.batch_size)",
        ) from None
    start = -room.ctypes.data % 64 // 4
    return room[start : start + size].reshape(shape)


_LARGEST_KEPT = 1 << 22  # floats of one buffer
_local = threading.local()


def _scratch(name: str, *shape: int) -> Floats:
    """A buffer that this thread keeps for its next call: fresh memory costs a page fault every 4 KB.

    Very large ones are not kept; they come in huge pages.
    """
    size, kept = math.prod(shape), vars(_local)
    if size > _LARGEST_KEPT:
        return _buffer(name, *shape)
    if name not in kept or kept[name].size < size:
        kept[name] = _buffer(name, size)
    scratch: Floats = kept[name][:size].reshape(shape)
    return scratch


_spare: deque[Floats] = deque(maxlen=1)  # memory of results that nothing refers to any more


class _Lease:
    """Owner, to NumPy, of a result's memory, which goes back to `_spare` with the last reference to it."""

    def __init__(self, memory: Floats) -> None:
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        _spare.append(self._memory)


def _recycled(name: str, *shape: int) -> Floats:
    """A buffer for results, if possible in the memory of the step before: the system zeroes fresh memory."""
    try:
        memory = _spare.popleft()
    except IndexError:
        memory = _buffer(name, *shape)
    if memory.shape != shape:
        memory = _buffer(name, *shape)
    leased: Floats = np.asarray(_Lease(memory))
    return leased


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
