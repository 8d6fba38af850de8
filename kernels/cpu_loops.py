"""The rest of the CPU backend's compiled loops: packing of values, and lists of path cells.

Indices are unsigned where the compiler must see plain loops: for signed ones numba adds a check for negative
values, which turns vector loads into gathers.
"""

from __future__ import annotations

from .cpu_isa import LANES, VECTORS, Floats, Ints, Longs, compiled, unsigned


@compiled
def pack_values(values: Floats, out: Floats) -> None:
    """Packs values (columns, F) into feature tiles, (tiles, columns, VECTORS * LANES); 0 beyond F."""
    n_columns, n_features = values.shape
    width = VECTORS * LANES
    for tile in range(out.shape[0]):
        start = tile * width
        n_kept = min(width, n_features - start)
        for column in range(n_columns):
            source, target = values[column, start : start + n_kept], out[tile, column]
            if n_kept == width:
                for j in range(unsigned(width)):
                    target[j] = source[j]
            else:
                for j in range(n_kept):
                    target[j] = source[j]
                target[n_kept:] = 0


@compiled
def list_cells(
    lo: Ints, hi: Ints, first_sample: int, offsets: Longs, cells: Ints, owners: Ints, starts: Ints
) -> None:
    """Lists the cells of the paths of a chunk of samples and a block of classes, by centroid step.

    Within a step come the first cells of all samples, then their second ones, ...: neighbours in the list
    then add to different sums and need not wait for each other.

    Args:
        lo: (classes, samples, Tc) first row of the sample.
        hi: last row.
        first_sample: number of the chunk's first sample.
        offsets: (samples of the chunk + 1,) first column of every sample.
        cells: (classes, room) out: column; room for one more than there are.
        owners: (classes, room) out: sample, counted within the chunk.
        starts: (classes, Tc + 1) out: where each step's cells start.
    """
    n_classes, _, length = lo.shape
    n_samples = unsigned(len(offsets) - 1)
    for k in range(n_classes):
        columns, samples = cells[k], owners[k]
        i = unsigned(0)
        for t in range(unsigned(length)):
            first = i
            starts[k, t] = i
            for n in range(n_samples):
                columns[i] = offsets[n] + lo[k, unsigned(first_sample) + n, t]
                samples[i] = n
                i += unsigned(1)
            # Each further round takes one step for those of the round before that have one left.
            stop = i
            while first < stop:
                for q in range(first, stop):
                    column, n = columns[q] + 1, unsigned(samples[q])
                    # Always written, kept only where it is a cell: cheaper than an unforeseeable branch.
                    columns[i] = column
                    samples[i] = n
                    i += unsigned(column <= offsets[n] + hi[k, unsigned(first_sample) + n, t])
                first, stop = stop, i
        starts[k, length] = i
