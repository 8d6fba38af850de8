"""The rest of the CPU backend's compiled loops: packing, the DP with its traceback, lists of path cells.

Indices are unsigned where the compiler must see plain vector loops: for signed ones numba adds a check for
negative values, which turns vector loads into gathers.
"""

from __future__ import annotations

from numba import uint64

from .cpu_isa import BLOCK, CLASSES, LANES, ROWS, Bytes, Floats, Ints, Longs, compiled


@compiled
def pack_params(centroids: Floats, weights: Floats, n_vectors: int, out: Floats) -> None:
    """Packs one block of classes, (classes, Tc, F) each, for `local_costs`; rows and features beyond are 0.

    Row t * classes + k is step t of class k: the DP meets neighbouring classes in neighbouring numbers.
    """
    n_classes, length, n_features = centroids.shape
    n_rows = (n_classes * length + ROWS - 1) // ROWS * ROWS
    at = uint64(0)
    for start in range(0, n_vectors, BLOCK):
        stop = min(start + BLOCK, n_vectors)
        for first_row in range(0, n_rows, ROWS):
            for feature in range(start * LANES, stop * LANES, LANES):
                n_kept = min(LANES, n_features - feature)
                for row in range(first_row, first_row + ROWS):
                    t, k = row // n_classes, row % n_classes
                    if t < length and n_kept == LANES:
                        for j in range(LANES):
                            out[at + uint64(j)] = centroids[k, t, uint64(feature) + uint64(j)]
                        for j in range(LANES):
                            out[at + uint64(LANES + j)] = weights[k, t, uint64(feature) + uint64(j)]
                    else:
                        for j in range(2 * LANES):
                            out[at + uint64(j)] = 0
                        if t < length:
                            for j in range(n_kept):
                                out[at + uint64(j)] = centroids[k, t, feature + j]
                                out[at + uint64(LANES + j)] = weights[k, t, feature + j]
                    at += uint64(2 * LANES)


@compiled
def pack_values(values: Floats, tile_columns: int, block: int, n_vectors: int, out: Floats) -> None:
    """Packs rows (columns of the DP), (T, F), as [feature block][column tile][vector][column of tile][LANES].

    Args:
        values: (columns, F).
        tile_columns: columns of a tile; those beyond the last are 0.
        block: vectors of a feature block.
        n_vectors: feature vectors in all; features beyond F are 0.
        out: column tiles * tile_columns * n_vectors * LANES numbers.
    """
    n_columns, n_features = values.shape
    n_padded = (n_columns + tile_columns - 1) // tile_columns * tile_columns
    base = uint64(0)
    for start in range(0, n_vectors, block):
        width = min(block, n_vectors - start)
        n_full = max(0, min(width, n_features // LANES - start))
        for column in range(n_padded):
            at = base + uint64(
                (column // tile_columns * width * tile_columns + column % tile_columns) * LANES
            )
            kept = n_full if column < n_columns else 0
            for i in range(kept):
                for j in range(LANES):
                    out[at + uint64(j)] = values[column, uint64((start + i) * LANES) + uint64(j)]
                at += uint64(tile_columns * LANES)
            for i in range(kept, width):
                for j in range(LANES):
                    feature = (start + i) * LANES + j
                    out[at + uint64(j)] = (
                        values[column, feature] if column < n_columns and feature < n_features else 0
                    )
                at += uint64(tile_columns * LANES)
        base += uint64(n_padded * width * LANES)


@compiled
def align(
    cost: Floats,
    offsets: Longs,
    length: int,
    diagonal: bool,
    table: Floats,
    moves: Bytes,
    distances: Floats,
    lo: Ints,
    hi: Ints,
) -> None:
    """Finds distances and paths from the local costs of a chunk of samples and a block of classes.

    Args:
        cost: (columns, rows), row t * classes + k; CLASSES readable numbers beyond its end.
        offsets: (samples + 1,) first column of every sample.
        length: Tc.
        diagonal: whether (t-1, s-1) is a move.
        table: (2, Tc, CLASSES) scratch: accumulated costs of one column and the one before.
        moves: (longest T, Tc, CLASSES) scratch: how the best path enters each cell.
        distances: (classes, samples) out.
        lo: (classes, samples, Tc) out.
        hi: likewise.
    """
    n_classes, n_samples = distances.shape
    for n in range(n_samples):
        first, stop = offsets[n], offsets[n + 1]
        _accumulate(cost, first, stop, n_classes, length, diagonal, table, moves)
        for k in range(n_classes):
            # The first cell is on every path: left out of the sums, it costs them no precision.
            distances[k, n] = table[(stop - first - 1) % 2, length - 1, k] + cost[first, k]
            _trace_back(moves, k, stop - first, lo[k, n], hi[k, n])


@compiled
def _accumulate(
    cost: Floats,
    first: int,
    stop: int,
    n_classes: int,
    length: int,
    diagonal: bool,
    table: Floats,
    moves: Bytes,
) -> None:
    """One sample; lanes beyond the classes of the block compute on what lies there, and nobody reads them.

    A move is 1 back to (t-1, s), 2 back to (t, s-1), 3 back to (t-1, s-1).
    """
    for k in range(CLASSES):
        table[0, 0, k] = 0
        moves[0, 0, k] = 0
    for t in range(1, length):
        for k in range(CLASSES):
            table[0, t, k] = table[0, t - 1, k] + cost[first, uint64(t * n_classes) + uint64(k)]
            moves[0, t, k] = 1
    for s in range(1, stop - first):
        now, before = s % 2, (s - 1) % 2
        for k in range(CLASSES):
            table[now, 0, k] = table[before, 0, k] + cost[first + s, uint64(k)]
            moves[s, 0, k] = 2
        for t in range(1, length):
            for k in range(CLASSES):
                up, left = table[now, t - 1, k], table[before, t, k]
                best, move = (up, 1) if up < left else (left, 2)
                if diagonal:
                    corner = table[before, t - 1, k]
                    best, move = (best, move) if best < corner else (corner, 3)
                table[now, t, k] = best + cost[first + s, uint64(t * n_classes) + uint64(k)]
                moves[s, t, k] = move


@compiled
def _trace_back(moves: Bytes, k: int, n_columns: int, lo: Ints, hi: Ints) -> None:
    """Without branches on the moves, which no CPU can foresee: a row is first at the column met last."""
    length = lo.shape[0]
    t, s = uint64(length - 1), uint64(n_columns - 1)
    while t | s:
        lo[t] = s
        move = moves[s, t, k]
        s -= uint64(move >> 1)
        t -= uint64(move & 1)
    lo[0] = 0
    for t in range(length - 1):
        # The step after is left at its first column, to the column before where the move is diagonal.
        hi[t] = lo[t + 1] - (moves[lo[t + 1], t + 1, k] >> 1)
    hi[length - 1] = n_columns - 1


@compiled
def list_cells(lo: Ints, hi: Ints, offsets: Longs, cells: Ints, owners: Ints, starts: Ints) -> None:
    """Lists the cells of the paths of a chunk of samples and a block of classes, by centroid step.

    Within a step come the first cells of all samples, then their second ones, ...: neighbours in the list
    then add to different sums and need not wait for each other.

    Args:
        lo: (classes, samples, Tc) first row of the sample.
        hi: last row.
        offsets: (samples + 1,) first column of every sample.
        cells: (classes, room) out: column; room for one more than there are.
        owners: (classes, room) out: sample.
        starts: (classes, Tc + 1) out: where each step's cells start.
    """
    n_classes, n_samples, length = lo.shape
    for k in range(n_classes):
        i = 0
        for t in range(length):
            starts[k, t] = i
            for n in range(n_samples):
                cells[k, i] = offsets[n] + lo[k, n, t]
                owners[k, i] = n
                i += 1
            # Each further round takes one step for those of the round before that have one left.
            first, stop = starts[k, t], i
            while first < stop:
                for q in range(first, stop):
                    column, n = cells[k, q] + 1, owners[k, q]
                    # Always written, kept only where it is a cell: cheaper than an unforeseeable branch.
                    cells[k, i] = column
                    owners[k, i] = n
                    i += column <= offsets[n] + hi[k, n, t]
                first, stop = stop, i
        starts[k, length] = i
