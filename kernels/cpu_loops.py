"""The rest of the CPU backend's compiled loops: packing, the DP with its traceback, and lists of path cells."""

from __future__ import annotations

from .cpu_isa import BLOCK, LANES, ROWS, Floats, Ints, Longs, compiled


@compiled
def pack_params(centroids: Floats, weights: Floats, n_row_tiles: int, n_vectors: int, out: Floats) -> None:
    """Packs one block of classes, (classes, Tc, F) each, for `local_costs`; rows and features beyond are 0.

    Row t * classes + k is step t of class k, so that the DP meets neighbouring classes in neighbouring numbers.
    """
    n_classes, length, n_features = centroids.shape
    out[:] = 0
    for row in range(length * n_classes):
        t, k = row // n_classes, row % n_classes
        c, w = centroids[k, t], weights[k, t]
        base = 0
        for start in range(0, n_vectors, BLOCK):
            width = min(BLOCK, n_vectors - start)
            for i in range(width):
                at = base + (((row // ROWS) * width + i) * ROWS + row % ROWS) * 2 * LANES
                first = (start + i) * LANES
                to_c, to_w = out[at : at + LANES], out[at + LANES : at + 2 * LANES]
                if first + LANES <= n_features:
                    from_c, from_w = c[first : first + LANES], w[first : first + LANES]
                    for j in range(LANES):
                        to_c[j] = from_c[j]
                        to_w[j] = from_w[j]
                else:
                    for j in range(n_features - first):
                        to_c[j] = c[first + j]
                        to_w[j] = w[first + j]
            base += n_row_tiles * ROWS * width * 2 * LANES


@compiled
def pack_values(values: Floats, tile_columns: int, block: int, n_vectors: int, out: Floats) -> None:
    """Packs rows (columns of the DP), (T, F), as [feature block][column tile][vector][column of tile][LANES].

    Args:
        values: (columns, F).
        tile_columns: columns of a tile; those beyond the last are 0.
        block: vectors of a feature block.
        n_vectors: feature vectors in all; features beyond F are 0.
        out: 1-D, column tiles * tile_columns * n_vectors * LANES numbers.
    """
    n_columns, n_features = values.shape
    n_tiles = (n_columns + tile_columns - 1) // tile_columns
    for column in range(n_tiles * tile_columns):
        tile, m = column // tile_columns, column % tile_columns
        base = 0
        for start in range(0, n_vectors, block):
            width = min(block, n_vectors - start)
            for i in range(width):
                at = base + ((tile * width + i) * tile_columns + m) * LANES
                first = (start + i) * LANES
                to = out[at : at + LANES]
                if column < n_columns and first + LANES <= n_features:
                    x = values[column, first : first + LANES]
                    for j in range(LANES):
                        to[j] = x[j]
                else:
                    for j in range(LANES):
                        inside = column < n_columns and first + j < n_features
                        to[j] = values[column, first + j] if inside else 0
            base += n_tiles * width * tile_columns * LANES


@compiled
def align(
    cost: Floats, offsets: Longs, length: int, diagonal: bool, distances: Floats, lo: Ints, hi: Ints
) -> None:
    """Turns local costs into accumulated costs, in place, and reads off distances and paths.

    Args:
        cost: (columns, rows) of a chunk of samples and a block of classes; row t * classes + k.
        offsets: (samples + 1,) first column of every sample.
        length: Tc.
        diagonal: whether (t-1, s-1) is a move.
        distances: (classes, samples) out.
        lo: (classes, samples, Tc) out.
        hi: likewise.
    """
    n_classes, n_samples = distances.shape
    for n in range(n_samples):
        table = cost[offsets[n] : offsets[n + 1]]
        # The first cell is on every path: left out of the sums, it costs them no precision.
        for k in range(n_classes):
            distances[k, n] = table[0, k]
            table[0, k] = 0
        _accumulate(table, n_classes, length, diagonal)
        for k in range(n_classes):
            distances[k, n] += table[-1, (length - 1) * n_classes + k]
            _trace_back(table, n_classes, k, diagonal, lo[k, n], hi[k, n])


@compiled
def _accumulate(table: Floats, n_classes: int, length: int, diagonal: bool) -> None:
    width = n_classes
    first = table[0]
    for i in range(width, length * width):
        first[i] += first[i - width]
    for s in range(1, table.shape[0]):
        now, before = table[s], table[s - 1]
        for k in range(width):
            now[k] += before[k]
        for t in range(1, length):
            a, b = t * width, (t - 1) * width
            here, below, left, corner = (
                now[a : a + width],
                now[b : b + width],
                before[a : a + width],
                before[b : b + width],
            )
            if diagonal:
                for k in range(width):
                    here[k] += min(min(below[k], left[k]), corner[k])
            else:
                for k in range(width):
                    here[k] += min(below[k], left[k])


@compiled
def _trace_back(table: Floats, n_classes: int, k: int, diagonal: bool, lo: Ints, hi: Ints) -> None:
    """Tie rule: see `reference.py`."""
    t, s = lo.shape[0] - 1, table.shape[0] - 1
    lo[t] = hi[t] = s
    while t > 0 or s > 0:
        row = t * n_classes + k
        back_t, back_s = t > 0, s > 0
        if back_t and back_s:
            up, left = table[s, row - n_classes], table[s - 1, row]
            back_t = up < left
            back_s = not back_t
            if diagonal and table[s - 1, row - n_classes] <= min(up, left):
                back_t = back_s = True
        if back_s:
            s -= 1
        if back_t:
            t -= 1
            hi[t] = s
        lo[t] = s


@compiled
def list_cells(lo: Ints, hi: Ints, offsets: Longs, cells: Ints, owners: Ints, starts: Ints) -> None:
    """Lists the cells of the paths of a chunk of samples and a block of classes, by centroid step.

    Within a step come the first cells of all samples, then their second ones, ...: neighbours in the list then
    add to different sums and need not wait for each other.

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
            longest = 0
            for n in range(n_samples):
                longest = max(longest, hi[k, n, t] - lo[k, n, t] + 1)
            for j in range(longest):
                for n in range(n_samples):
                    s = lo[k, n, t] + j
                    # Always written, kept only where it is a cell: cheaper than a branch that cannot be foreseen.
                    cells[k, i] = offsets[n] + s
                    owners[k, i] = n
                    i += s <= hi[k, n, t]
        starts[k, length] = i
