"""The three hot loops of the CPU backend in plain numba: what `cpu_vector.py` computes, and its stand-in.

Packed layouts, in float32 (L = LANES; a vector is L neighbouring features, zeros beyond the last):

    params of a class block   [feature block][row tile][vector][row of tile](centroid, weight)[L]
    values for the search     [feature block][column tile][vector][column of tile][L]
    values for a path         [feature tile][column][vector of tile][L]

A row is one step of one centroid, a column one step of one sample. A feature block is BLOCK vectors (the last
one shorter), a feature tile VECTORS vectors.
"""

from __future__ import annotations

from .cpu_isa import BLOCK, LANES, ROWS, TILE_COLUMNS, VECTORS, Floats, Ints, compiled


@compiled
def local_costs(params: Floats, values: Floats, n_vectors: int, cost: Floats) -> None:
    """Cost of every cell of one chunk of samples and one block of classes.

    Args:
        params: packed params of the block.
        values: packed values of the chunk.
        n_vectors: feature vectors in all.
        cost: (columns, rows) out, both padded to whole tiles.
    """
    n_column_tiles, n_row_tiles = cost.shape[0] // TILE_COLUMNS, cost.shape[1] // ROWS
    cost[:] = 0
    p = v = 0
    for start in range(0, n_vectors, BLOCK):
        width = min(BLOCK, n_vectors - start) * LANES
        block_p = params[p : p + n_row_tiles * ROWS * 2 * width].reshape(n_row_tiles, -1, ROWS, 2, LANES)
        block_v = values[v : v + n_column_tiles * TILE_COLUMNS * width]
        block_v = block_v.reshape(n_column_tiles, -1, TILE_COLUMNS, LANES)
        for column in range(cost.shape[0]):
            x = block_v[column // TILE_COLUMNS, :, column % TILE_COLUMNS]
            for row in range(cost.shape[1]):
                c = block_p[row // ROWS, :, row % ROWS, 0]
                w = block_p[row // ROWS, :, row % ROWS, 1]
                total = cost.dtype.type(0)
                for i in range(x.shape[0]):
                    for j in range(LANES):
                        total += w[i, j] * abs(c[i, j] - x[i, j])
                cost[column, row] += total
        p += block_p.size
        v += block_v.size


@compiled
def path_costs(
    values: Floats,
    cells: Ints,
    owners: Ints,
    starts: Ints,
    centroids: Floats,
    last: Floats,
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
        centroids: (classes, Tc, F).
        last: (classes, Tc, VECTORS * LANES) their last feature tile if F does not fill it.
        weights: (classes, Tc, features in whole tiles), 0 beyond F.
        sums: (padded samples, LANES) scratch.
        out: (classes, padded samples) out, to be added to.
    """
    n_classes, length, n_features = centroids.shape
    width = VECTORS * LANES
    for tile in range(values.shape[0]):
        features = slice(tile * width, (tile + 1) * width)
        for k in range(n_classes):
            for t in range(length):
                w = weights[k, t, features]
                c = centroids[k, t, features] if features.stop <= n_features else last[k, t]
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
    last: Floats,
    weights: Floats,
    grads: Floats,
    scratch: Floats,
    grad_centroids: Floats,
    grad_log_weights: Floats,
) -> None:
    """Gradients along given paths, for one chunk of samples and one block of classes.

    Args:
        values, cells, owners, starts, centroids, last, weights: as for `path_costs`.
        grads: (classes, samples) gradient of each distance.
        scratch: (2 * VECTORS * LANES,).
        grad_centroids: (classes, Tc, F) out, to be added to.
        grad_log_weights: likewise.
    """
    n_classes, length, n_features = centroids.shape
    width = VECTORS * LANES
    slopes, areas = scratch[:width], scratch[width:]
    for tile in range(values.shape[0]):
        first, stop = tile * width, (tile + 1) * width
        for k in range(n_classes):
            for t in range(length):
                w = weights[k, t, first:stop]
                c = centroids[k, t, first:stop] if stop <= n_features else last[k, t]
                scratch[:] = 0
                for i in range(starts[k, t], starts[k, t + 1]):
                    x, g = values[tile, cells[k, i]], grads[k, owners[k, i]]
                    for f in range(width):
                        slopes[f] += g if c[f] > x[f] else -g
                        areas[f] += g * abs(c[f] - x[f])
                for f in range(min(width, n_features - first)):
                    grad_centroids[k, t, first + f] += w[f] * slopes[f]
                    grad_log_weights[k, t, first + f] += w[f] * areas[f]
