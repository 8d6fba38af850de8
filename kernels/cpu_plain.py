"""The hot loops of the CPU backend in plain numba: what `cpu_vector.py` computes, and its stand-in.

A row is one step of one centroid, a column one step of one sample. Of a block of classes, row
`t * classes + k` is step t of class k, so that neighbouring classes lie side by side. Packed layouts, in
float32 (L = LANES):

    params for the search     [row tile][feature][vector of tile](centroid, weight)[row of vector]
    values for a path         [feature tile][column][feature of tile]

A row tile is ROW_VECTORS vectors of L rows (the last one fewer), a feature tile VECTORS * L features, zeros
beyond the last. The search reads values in place, as they come: (columns, F).
"""

from __future__ import annotations

import numpy as np

from .cpu_isa import LANES, ROW_VECTORS, VECTORS, Floats, Ints, Longs, compiled


@compiled
def pack_params(centroids: Floats, log_weights: Floats, out: Floats) -> None:
    """Packs one block of classes, (classes, Tc, F) each, for the search.

    Rows beyond the last repeat it; nobody reads their costs.
    """
    n_classes, length, n_features = centroids.shape
    n_rows = n_classes * length
    n_vectors = (n_rows + LANES - 1) // LANES
    start = 0
    for first in range(0, n_vectors, ROW_VECTORS):
        tile_vectors = min(ROW_VECTORS, n_vectors - first)
        size = n_features * tile_vectors * 2 * LANES
        tile = out[start : start + size].reshape(n_features, tile_vectors, 2, LANES)
        for vector in range(tile_vectors):
            for lane in range(LANES):
                row = min((first + vector) * LANES + lane, n_rows - 1)
                t, k = row // n_classes, row % n_classes
                for f in range(n_features):
                    tile[f, vector, 0, lane] = centroids[k, t, f]
                    tile[f, vector, 1, lane] = np.exp(log_weights[k, t, f])
        start += size


@compiled
def local_costs(params: Floats, values: Floats, cost: Floats) -> None:
    """Cost of every cell of one chunk of samples and one block of classes.

    Args:
        params: packed params of the block.
        values: (columns, F).
        cost: (columns in whole tiles, rows in whole vectors) out.
    """
    n_columns, n_features = values.shape
    n_vectors = cost.shape[1] // LANES
    for first in range(0, n_vectors, ROW_VECTORS):
        tile_vectors = min(ROW_VECTORS, n_vectors - first)
        size = n_features * tile_vectors * 2 * LANES
        start = first * n_features * 2 * LANES
        tile = params[start : start + size].reshape(n_features, tile_vectors, 2, LANES)
        for vector in range(tile_vectors):
            for row in range(LANES):
                for column in range(n_columns):
                    total = cost.dtype.type(0)
                    for f in range(n_features):
                        c, w = tile[f, vector, 0, row], tile[f, vector, 1, row]
                        total += w * abs(c - values[column, f])
                    cost[column, (first + vector) * LANES + row] = total


@compiled
def align(
    cost: Floats,
    offsets: Longs,
    diagonal: bool,
    first_sample: int,
    distances: Floats,
    lo: Ints,
    hi: Ints,
) -> None:
    """Finds distances and paths from the local costs of a chunk of samples and a block of classes.

    Args:
        cost: (columns, rows in whole vectors); LANES more readable numbers beyond its end.
        offsets: (samples of the chunk + 1,) first column of every sample.
        diagonal: whether (t-1, s-1) is a move.
        first_sample: number of the chunk's first sample.
        distances: (classes, samples) out.
        lo: (classes, samples, Tc) out: first row of the sample that every step meets.
        hi: likewise the last.
    """
    n_classes, _, length = lo.shape
    for n in range(len(offsets) - 1):
        local = cost[offsets[n] : offsets[n + 1]]
        n_columns = len(local)
        table = np.empty((n_columns, length), np.float32)
        moves = np.empty((n_columns, length, 2), np.int64)  # steps back in s and in t
        for k in range(n_classes):
            for s in range(n_columns):
                for t in range(length):
                    up = table[s, t - 1] if t else np.inf
                    left = table[s - 1, t] if s else np.inf
                    corner = table[s - 1, t - 1] if diagonal and s and t else np.inf
                    if up < left or s == 0:
                        best, back_s, back_t = up, 0, 1
                    else:
                        best, back_s, back_t = left, 1, 0
                    if diagonal and s and t and not best < corner:
                        best, back_s, back_t = corner, 1, 1
                    # The first cell is on every path: left out of the sums, it costs them no precision.
                    table[s, t] = best + local[s, t * n_classes + k] if s + t else 0
                    moves[s, t, 0], moves[s, t, 1] = back_s, back_t
            distances[k, first_sample + n] = table[n_columns - 1, length - 1] + local[0, k]
            s, t = n_columns - 1, length - 1
            hi[k, first_sample + n, t] = s
            while s + t:
                back_s, back_t = moves[s, t]
                if back_t:
                    lo[k, first_sample + n, t] = s
                    hi[k, first_sample + n, t - 1] = s - back_s
                s, t = s - back_s, t - back_t
            lo[k, first_sample + n, 0] = 0


@compiled
def tile_params(centroids: Floats, log_weights: Floats, tiled_centroids: Floats, weights: Floats) -> None:
    """Copies centroids and the weights of a block, (classes, Tc, F), into whole feature tiles; 0 beyond F."""
    n_features = centroids.shape[2]
    tiled_centroids[:, :, :n_features] = centroids
    weights[:, :, :n_features] = np.exp(log_weights)
    for array in (tiled_centroids, weights):
        array[:, :, n_features:] = 0


@compiled
def path_costs(
    values: Floats,
    cells: Ints,
    owners: Ints,
    starts: Ints,
    centroids: Floats,
    weights: Floats,
    sums: Floats,
    out: Floats,
) -> None:
    """Costs of given paths, for one chunk of samples and one block of classes.

    Args:
        values: (feature tiles, columns, VECTORS * LANES) packed values of the chunk.
        cells: (classes, cells) column of every path cell, ordered by centroid step.
        owners: (classes, cells) its sample, counted within the chunk.
        starts: (classes, Tc + 1) where the cells of each step start.
        centroids: (classes, Tc, features in whole tiles), 0 beyond F.
        weights: likewise.
        sums: (classes, samples in whole vectors, LANES) scratch.
        out: (classes, samples in whole vectors) out.
    """
    n_classes, length, _ = centroids.shape
    width = VECTORS * LANES
    out[:] = 0
    for tile in range(values.shape[0]):
        features = slice(tile * width, (tile + 1) * width)
        for k in range(n_classes):
            for t in range(length):
                c, w = centroids[k, t, features], weights[k, t, features]
                for i in range(starts[k, t], starts[k, t + 1]):
                    x = values[tile, cells[k, i]]
                    total = x.dtype.type(0)
                    for f in range(width):
                        total += w[f] * abs(c[f] - x[f])
                    out[k, owners[k, i]] += total


@compiled
def path_gradients(
    values: Floats,
    cells: Ints,
    owners: Ints,
    starts: Ints,
    centroids: Floats,
    weights: Floats,
    grads: Floats,
    scratch: Floats,
    add: bool,
    grad_centroids: Floats,
    grad_log_weights: Floats,
) -> None:
    """Gradients along given paths, for one chunk of samples and one block of classes.

    Args:
        values, cells, owners, starts, centroids, weights: as for `path_costs`.
        grads: (classes, samples) gradient of each distance.
        scratch: (2, VECTORS * LANES).
        add: whether to add to the results; else they are overwritten.
        grad_centroids: (classes, Tc, F) out.
        grad_log_weights: likewise.
    """
    n_classes, length, n_features = grad_centroids.shape
    width = VECTORS * LANES
    slopes, areas = scratch[0], scratch[1]
    if not add:
        grad_centroids[:] = 0
        grad_log_weights[:] = 0
    for tile in range(values.shape[0]):
        first, stop = tile * width, (tile + 1) * width
        for k in range(n_classes):
            for t in range(length):
                c, w = centroids[k, t, first:stop], weights[k, t, first:stop]
                scratch[:] = 0
                for i in range(starts[k, t], starts[k, t + 1]):
                    x, g = values[tile, cells[k, i]], grads[k, owners[k, i]]
                    for f in range(width):
                        slopes[f] += g if c[f] > x[f] else -g
                        areas[f] += g * abs(c[f] - x[f])
                for f in range(min(width, n_features - first)):
                    grad_centroids[k, t, first + f] += w[f] * slopes[f]
                    grad_log_weights[k, t, first + f] += w[f] * areas[f]
