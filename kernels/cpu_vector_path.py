"""Costs and gradients along given paths as explicit vectors.

See `cpu_vector.py`, and `cpu_plain.py` for what each compiled function computes. What bounds these loops is
the second-level cache: a cell reads one vector of values per three or four instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from .cpu_emit import BYTES, I32, VECTOR, VECTOR_I32, ZERO, Emitter, inlined, intp, signature
from .cpu_isa import AHEAD, LANES, VECTORS, Floats, Ints, compiled

_TILE_BYTES = VECTORS * BYTES  # of one column of a feature tile


@inlined
def _copy_and_exp(_context, centroid, log_weight, n_vectors, to_centroid, to_weight):  # type: ignore[no-untyped-def]
    """Copies `n_vectors` >= 1 vectors of one row, and e ** x of another."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        centroid, log_weight, n_vectors, to_centroid, to_weight = arguments
        e = Emitter(builder)

        def body(i: Any, _: list[Any]) -> list[Any]:
            e.store(e.load(e.item(centroid, i, BYTES)), e.item(to_centroid, i, BYTES), align=BYTES)
            e.store(e.exp(e.load(e.item(log_weight, i, BYTES))), e.item(to_weight, i, BYTES), align=BYTES)
            return []

        e.loop(n_vectors, [], body)
        return context.get_dummy_value()

    return signature(5), generate


def _make_row_costs(n_tiles: int) -> Any:
    @inlined
    def row_costs(_context, values, tile_stride, cells, owners, n_cells, centroid, weight, sums):  # type: ignore[no-untyped-def]
        """Adds the cost of every cell of one centroid row, over `n_tiles` feature tiles, to its owner's sum.

        values: [column][VECTORS] of a tile, the next tile `tile_stride` bytes further; cells, owners: int32
        column and sample of every cell; centroid, weight: vectors of the tiles; sums: one vector per sample.
        """

        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            values, tile_stride, cells, owners, n_cells, centroid, weight, sums = arguments
            e = Emitter(builder)
            tiles = [e.b.add(values, e.b.mul(tile_stride, intp(i))) for i in range(n_tiles)]
            c, w = (
                [e.load(e.at(x, i * BYTES), align=BYTES) for i in range(VECTORS * n_tiles)]
                for x in (centroid, weight)
            )

            def body(i: Any, _: list[Any]) -> list[Any]:
                if n_tiles > 1:  # one alone reads slowly enough for the CPU's own prefetching
                    ahead = e.load_index(cells, e.b.add(i, intp(AHEAD)))
                    for tile in tiles:
                        for offset in range(0, _TILE_BYTES, 64):
                            e.prefetch(e.at(e.item(tile, ahead, _TILE_BYTES), offset))
                x = [vector for tile in tiles for vector in _cell(e, tile, cells, i)]
                address = e.item(sums, e.load_index(owners, i), BYTES)
                # Two chains, half as long as one.
                even, odd = e.load(address, align=BYTES), ZERO
                for v in range(0, len(x), 2):
                    even = e.fma(w[v], e.abs(e.b.fsub(c[v], x[v])), even)
                    odd = e.fma(w[v + 1], e.abs(e.b.fsub(c[v + 1], x[v + 1])), odd)
                e.store(e.b.fadd(even, odd), address, align=BYTES)
                return []

            e.loop(n_cells, [], body)
            return context.get_dummy_value()

        return signature(8), generate

    return row_costs


_two_tile_costs, _one_tile_costs = _make_row_costs(2), _make_row_costs(1)


@inlined
def _row_gradients(_context, values, cells, owners, n_cells, centroid, weight, grads, to_c, to_l, add):  # type: ignore[no-untyped-def]
    """Gradients of one centroid row, over one feature tile, into `to_c` and `to_l`.

    weight, to_c, to_l: VECTORS vectors; grads: float32 g of every sample; add: 0 overwrites, else adds; the
    rest as for `row_costs`.
    """

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        values, cells, owners, n_cells, centroid, weight, grads, to_c, to_l, add = arguments
        e = Emitter(builder)
        c = [e.load(e.at(centroid, i * BYTES), align=BYTES) for i in range(VECTORS)]
        sign_bit = ir.Constant(VECTOR_I32, [ir.Constant(I32, -(2**31))] * LANES)

        def body(i: Any, state: list[Any]) -> list[Any]:
            slope, area = state[:VECTORS], state[VECTORS:]
            g = e.bits(e.load_broadcast(e.item(grads, e.load_index(owners, i))))
            for v, x in enumerate(_cell(e, values, cells, i)):
                d = e.b.fsub(x, c[v])
                # g with its sign flipped where d is negative; 0 - 0 is +0, so a tie counts as positive.
                signed = e.b.bitcast(e.b.xor(g, e.b.and_(e.bits(d), sign_bit)), VECTOR)
                slope[v] = e.b.fadd(slope[v], signed)
                area[v] = e.fma(signed, d, area[v])
            return slope + area

        totals = e.loop(n_cells, [ZERO] * (2 * VECTORS), body)
        adding = e.b.icmp_signed("!=", add, intp(0))
        for v in range(VECTORS):
            w = e.load(e.at(weight, v * BYTES), align=BYTES)
            for target, total in ((to_c, e.b.fneg(totals[v])), (to_l, totals[VECTORS + v])):
                address = e.at(target, v * BYTES)
                e.store(e.fma(w, total, e.b.select(adding, e.load(address), ZERO)), address)
        return context.get_dummy_value()

    return signature(10), generate


@inlined
def _sum_lanes(_context, vectors, out, n_groups):  # type: ignore[no-untyped-def]
    """`out[i]` = sum of the lanes of `vectors[i]`, in `n_groups` groups of LANES."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        vectors, out, n_groups = arguments
        e = Emitter(builder)

        def body(i: Any, _: list[Any]) -> list[Any]:
            start = e.item(vectors, i, LANES * BYTES)
            total = e.sums([e.load(e.at(start, j * BYTES), align=BYTES) for j in range(LANES)])
            e.store(total, e.item(out, i, BYTES))
            return []

        e.loop(n_groups, [], body)
        return context.get_dummy_value()

    return signature(3), generate


def _cell(e: Emitter, values: Any, cells: Any, i: Any) -> list[Any]:
    start = e.item(values, e.load_index(cells, i), _TILE_BYTES)
    return [e.load(e.at(start, v * BYTES), align=BYTES) for v in range(VECTORS)]


@compiled
def tile_params(centroids: Floats, log_weights: Floats, tiled_centroids: Floats, weights: Floats) -> None:
    """See `cpu_plain.tile_params`."""
    n_classes, length, n_features = centroids.shape
    n_vectors = n_features // LANES
    for k in range(n_classes):
        for t in range(length):
            c, w = tiled_centroids[k, t], weights[k, t]
            if n_vectors:
                source = 4 * (k * length + t) * n_features
                c_source, w_source = centroids.ctypes.data + source, log_weights.ctypes.data + source
                _copy_and_exp(c_source, w_source, n_vectors, c.ctypes.data, w.ctypes.data)
            for f in range(n_vectors * LANES, n_features):
                c[f], w[f] = centroids[k, t, f], np.exp(log_weights[k, t, f])
            c[n_features:] = 0
            w[n_features:] = 0


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
    """See `cpu_plain.path_costs`."""
    n_tiles, n_columns = values.shape[:2]
    n_classes, length, n_features = centroids.shape
    sums[:] = 0
    tile_bytes = n_columns * _TILE_BYTES
    for tile in range(0, n_tiles, 2):
        v = values.ctypes.data + tile * tile_bytes
        for k in range(n_classes):
            owned = sums.ctypes.data + k * sums.shape[1] * BYTES
            for t in range(length):
                first = 4 * (k * cells.shape[1] + starts[k, t])
                column, owner = cells.ctypes.data + first, owners.ctypes.data + first
                n_cells = starts[k, t + 1] - starts[k, t]
                row = 4 * (k * length + t) * n_features + tile * _TILE_BYTES
                c, w = centroids.ctypes.data + row, weights.ctypes.data + row
                if tile + 1 < n_tiles:
                    _two_tile_costs(v, tile_bytes, column, owner, n_cells, c, w, owned)
                else:
                    _one_tile_costs(v, tile_bytes, column, owner, n_cells, c, w, owned)
    _sum_lanes(sums.ctypes.data, out.ctypes.data, out.size // LANES)


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
    """See `cpu_plain.path_gradients`."""
    n_tiles, n_columns = values.shape[:2]
    n_classes, length, n_padded = centroids.shape
    n_features = grad_centroids.shape[2]
    for tile in range(n_tiles):
        v = values.ctypes.data + tile * n_columns * _TILE_BYTES
        first = tile * VECTORS * LANES
        n_kept = min(VECTORS * LANES, n_features - first)
        whole = n_kept == VECTORS * LANES
        for k in range(n_classes):
            for t in range(length):
                at = 4 * (k * cells.shape[1] + starts[k, t])
                row = k * length + t
                offset = 4 * (row * n_features + first)
                to_c, to_l = grad_centroids.ctypes.data + offset, grad_log_weights.ctypes.data + offset
                if not whole:  # beyond the last feature lies the next row
                    to_c, to_l = scratch.ctypes.data, scratch.ctypes.data + _TILE_BYTES
                _row_gradients(
                    v,
                    cells.ctypes.data + at,
                    owners.ctypes.data + at,
                    starts[k, t + 1] - starts[k, t],
                    centroids.ctypes.data + 4 * (row * n_padded + first),
                    weights.ctypes.data + 4 * (row * n_padded + first),
                    grads.ctypes.data + 4 * k * grads.shape[1],
                    to_c,
                    to_l,
                    add and whole,
                )
                if not whole:
                    for i, grad in enumerate((grad_centroids, grad_log_weights)):
                        kept = grad[k, t, first:]
                        for f in range(n_kept):
                            kept[f] = scratch[i, f] + (kept[f] if add else 0)
