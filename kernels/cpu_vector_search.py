"""The path search as explicit vectors: packing of centroids, local costs, DP and traceback.

See `cpu_vector.py`, and `cpu_plain.py` for what each compiled function computes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import int32

from .cpu_emit import BYTES, I32, I64, MASK, VECTOR_I32, ZERO, Emitter, inlined, intp, signature
from .cpu_isa import BLOCK, LANES, ROW_VECTORS, TILE_COLUMNS, Floats, Ints, Longs, compiled, unsigned


@inlined
def _transpose(_context, source, rows, n_groups, out, out_stride):  # type: ignore[no-untyped-def]
    """Takes LANES features of LANES rows at a time and writes a vector of rows per feature.

    rows: (LANES,) int64 distances of the rows from `source`; out_stride: between vectors of `out`; in bytes.
    """

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        source, rows, n_groups, out, out_stride = arguments
        e = Emitter(builder)
        starts = [e.b.add(source, e.load(e.at(rows, 8 * i), I64)) for i in range(LANES)]

        def body(i: Any, _: list[Any]) -> list[Any]:
            vectors = e.transposed([e.load(e.item(start, i, BYTES)) for start in starts])
            for j, vector in enumerate(vectors):
                feature = e.b.add(e.b.mul(i, intp(LANES)), intp(j))
                e.store(vector, e.b.add(out, e.b.mul(feature, out_stride)), align=BYTES)
            return []

        with e.b.if_then(e.b.icmp_signed(">", n_groups, intp(0))):
            e.loop(n_groups, [], body)
        return context.get_dummy_value()

    return signature(5), generate


@inlined
def _exp_in_place(_context, vectors, stride, count):  # type: ignore[no-untyped-def]
    """Replaces `count` vectors, `stride` bytes apart, by their e ** x."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        vectors, stride, count = arguments
        e = Emitter(builder)

        def body(i: Any, _: list[Any]) -> list[Any]:
            address = e.b.add(vectors, e.b.mul(i, stride))
            e.store(e.exp(e.load(address, align=BYTES)), address, align=BYTES)
            return []

        e.loop(count, [], body)
        return context.get_dummy_value()

    return signature(3), generate


def _make_tile(n_vectors: int) -> Any:
    """Local costs of `n_vectors` vectors of rows with TILE_COLUMNS columns, over a block of features.

    A lane is a row, and a value goes to all lanes: the sums need no folding, the values no packing.
    """

    @inlined
    def tile(_context, params, values, value_stride, n_columns, n_features, out, out_stride, add):  # type: ignore[no-untyped-def]
        """params: packed [feature][vector](centroid, weight); values: (columns, F); out: (columns, rows).

        Columns beyond `n_columns` repeat the last one. Strides in bytes; add: 0 overwrites `out`, else adds.
        """

        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            params, values, value_stride, n_columns, n_features, out, out_stride, add = arguments
            e = Emitter(builder)
            last = e.b.sub(n_columns, intp(1))
            columns = []
            for m in range(TILE_COLUMNS):
                column = e.b.select(e.b.icmp_signed("<", intp(m), last), intp(m), last)
                columns.append(e.b.add(values, e.b.mul(column, value_stride)))

            def body(f: Any, state: list[Any]) -> list[Any]:
                p, *sums = state
                pairs = [e.load(e.at(p, i * BYTES), align=BYTES) for i in range(2 * n_vectors)]
                for m, column in enumerate(columns):
                    x = e.load_broadcast(e.item(column, f))
                    for v in range(n_vectors):
                        c, w, i = pairs[2 * v], pairs[2 * v + 1], m * n_vectors + v
                        sums[i] = e.fma(w, e.abs(e.b.fsub(c, x)), sums[i])
                return [e.at(p, 2 * n_vectors * BYTES), *sums]

            sums = e.loop(n_features, [params] + [ZERO] * (TILE_COLUMNS * n_vectors), body)[1:]
            adding = e.b.icmp_signed("!=", add, intp(0))
            for i, total in enumerate(sums):
                m, v = divmod(i, n_vectors)
                address = e.at(e.b.add(out, e.b.mul(out_stride, intp(m))), v * BYTES)
                e.store(e.b.select(adding, e.b.fadd(e.load(address), total), total), address)
            return context.get_dummy_value()

        return signature(8), generate

    return tile


def _make_advance(diagonal: bool) -> Any:
    """One more column of the DP, for LANES classes."""

    @inlined
    def advance(_context, cost, stride, length, table, up_moves, corner_moves):  # type: ignore[no-untyped-def]
        """cost: local costs, steps `stride` bytes apart; table: (Tc, LANES) costs so far, updated in place.

        up_moves, corner_moves: (Tc,) int32 out, one bit per class whose best path enters so.
        """

        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            cost, stride, length, table, up_moves, corner_moves = arguments
            e = Emitter(builder)
            corner = e.load(table)
            up = e.b.fadd(corner, e.load(cost))
            e.store(up, table)
            for moves in (up_moves, corner_moves):
                e.store(ir.Constant(I32, 0), moves)

            def body(i: Any, state: list[Any]) -> list[Any]:
                up, corner = state
                t = e.b.add(i, intp(1))
                address = e.item(table, t, BYTES)
                left = e.load(address)
                is_up = e.b.fcmp_ordered("<", up, left)
                best = e.b.select(is_up, up, left)
                if diagonal:
                    is_corner = e.b.fcmp_unordered(">=", best, corner)
                    best = e.b.select(is_corner, corner, best)
                    e.store_mask(is_corner, e.item(corner_moves, t))
                    is_up = e.b.and_(is_up, e.b.not_(is_corner))
                e.store_mask(is_up, e.item(up_moves, t))
                total = e.b.fadd(best, e.load(e.b.add(cost, e.b.mul(t, stride))))
                e.store(total, address)
                return [total, left]

            with e.b.if_then(e.b.icmp_signed(">", length, intp(1))):
                e.loop(e.b.sub(length, intp(1)), [up, corner], body)
            return context.get_dummy_value()

        return signature(6), generate

    return advance


_tile, _narrow_tile = _make_tile(ROW_VECTORS), _make_tile(1)
_advance, _advance_diagonal = _make_advance(False), _make_advance(True)


@inlined
def _mark(_context, mask, number, out):  # type: ignore[no-untyped-def]
    """Writes `number` into the lanes of the int32 vector at `out` whose bit of `mask` is set."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        mask, number, out = arguments
        e = Emitter(builder)
        chosen = e.b.bitcast(e.b.trunc(mask, MASK), ir.VectorType(ir.IntType(1), LANES))
        numbers = e.broadcast(e.b.trunc(number, I32), VECTOR_I32)
        e.store(e.b.select(chosen, numbers, e.load(out, VECTOR_I32)), out)
        return context.get_dummy_value()

    return signature(3), generate


@compiled
def pack_params(centroids: Floats, log_weights: Floats, out: Floats) -> None:
    """See `cpu_plain.pack_params`."""
    n_classes, length, n_features = centroids.shape
    n_rows, n_groups = n_classes * length, n_features // LANES
    n_vectors = (n_rows + LANES - 1) // LANES
    rows = np.empty(LANES, np.int64)
    start = 0
    for first in range(0, n_vectors, ROW_VECTORS):
        tile_vectors = min(ROW_VECTORS, n_vectors - first)
        size = n_features * tile_vectors * 2 * LANES
        tile = out[start : start + size].reshape(n_features, tile_vectors, 2, LANES)
        for vector in range(tile_vectors):
            for lane in range(LANES):
                row = min((first + vector) * LANES + lane, n_rows - 1)
                t, k = row // n_classes, row % n_classes
                rows[lane] = 4 * n_features * (k * length + t)
                for f in range(n_groups * LANES, n_features):
                    tile[f, vector, 0, lane] = centroids[k, t, f]
                    tile[f, vector, 1, lane] = log_weights[k, t, f]
            c = out.ctypes.data + 4 * start + vector * 2 * BYTES
            stride = tile_vectors * 2 * BYTES
            _transpose(centroids.ctypes.data, rows.ctypes.data, n_groups, c, stride)
            _transpose(log_weights.ctypes.data, rows.ctypes.data, n_groups, c + BYTES, stride)
            _exp_in_place(c + BYTES, stride, n_features)
        start += size


@compiled
def local_costs(params: Floats, values: Floats, cost: Floats) -> None:
    """See `cpu_plain.local_costs`."""
    n_columns, n_features = values.shape
    n_vectors = cost.shape[1] // LANES
    value_stride, cost_stride = 4 * n_features, 4 * cost.shape[1]
    for start in range(0, n_features, BLOCK):
        width = min(BLOCK, n_features - start)
        for first in range(0, n_vectors, ROW_VECTORS):
            tile_vectors = min(ROW_VECTORS, n_vectors - first)
            p = params.ctypes.data + (first * n_features + start * tile_vectors) * 2 * BYTES
            for column in range(0, n_columns, TILE_COLUMNS):
                v = values.ctypes.data + column * value_stride + 4 * start
                out = cost.ctypes.data + column * cost_stride + first * BYTES
                left = n_columns - column
                if tile_vectors == ROW_VECTORS:
                    _tile(p, v, value_stride, left, width, out, cost_stride, start)
                else:
                    _narrow_tile(p, v, value_stride, left, width, out, cost_stride, start)


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
    """See `cpu_plain.align`. A lane is a class: LANES of them are summed up and traced back together."""
    n_classes, _, length = lo.shape
    n_columns = 0
    for n in range(len(offsets) - 1):
        n_columns = max(n_columns, offsets[n + 1] - offsets[n])
    table = np.empty((length, LANES), np.float32)
    entered, left = np.zeros((length, LANES), np.int32), np.zeros((length, LANES), np.int32)
    ups, corners = np.zeros((n_columns, length), np.int32), np.zeros((n_columns, length), np.int32)
    ups[0, 1:] = -1  # in the first column there is no other way
    row_bytes, column_bytes = 4 * n_classes, 4 * cost.shape[1]
    for n in range(len(offsets) - 1):
        n_columns = offsets[n + 1] - offsets[n]
        for k in range(0, n_classes, LANES):
            _first_column(cost[offsets[n]], k, n_classes, table)
            local = cost.ctypes.data + offsets[n] * column_bytes + 4 * k
            for s in range(1, n_columns):
                column = local + s * column_bytes
                up, corner = ups.ctypes.data + 4 * s * length, corners.ctypes.data + 4 * s * length
                if diagonal:
                    _advance_diagonal(column, row_bytes, length, table.ctypes.data, up, corner)
                else:
                    _advance(column, row_bytes, length, table.ctypes.data, up, corner)
            _trace_back(ups, corners, n_columns, entered, left)
            for lane in range(min(LANES, n_classes - k)):
                # The first cell is on every path: left out of the sums, it costs them no precision.
                distances[k + lane, first_sample + n] = table[length - 1, lane] + cost[offsets[n], k + lane]
                for t in range(length):
                    lo[k + lane, first_sample + n, t] = entered[t, lane]
                    hi[k + lane, first_sample + n, t] = left[t, lane]


@compiled
def _first_column(cost: Floats, first_class: int, n_classes: int, table: Floats) -> None:
    table[0] = 0
    for t in range(1, len(table)):
        at = unsigned(t * n_classes + first_class)
        for lane in range(unsigned(LANES)):
            table[t, lane] = table[t - 1, lane] + cost[at + lane]


@compiled
def _trace_back(ups: Ints, corners: Ints, n_columns: int, entered: Ints, left: Ints) -> None:
    """Walks all cells backwards with one bit per class: is its path here, and how did it come?

    Args:
        ups: (columns, Tc) bits of the classes whose best path enters the cell from (t-1, s).
        corners: likewise from (t-1, s-1).
        n_columns: of the sample.
        entered: (Tc, LANES) out: the column where every row is entered; 0 in the first row.
        left: likewise the last one before the next row is entered.
    """
    length = unsigned(entered.shape[0])
    here = np.zeros(length + unsigned(1), np.int32)  # paths that pass the cells of one column; one to spare
    here[length] = -1
    left[length - unsigned(1)] = n_columns - 1
    for i in range(unsigned(n_columns)):
        s = unsigned(n_columns) - unsigned(1) - i
        climbing = here[length]  # all paths come from beyond the last cell
        here[length] = 0
        slanting = int32(0)
        for j in range(length):
            t = length - unsigned(1) - j
            paths = here[t] | climbing
            climbing, corner = paths & ups[s, t], paths & corners[s, t]
            here[t] = (paths & ~(climbing | corner)) | slanting
            slanting = corner
            if t > unsigned(0):
                _mark(climbing | corner, s, entered.ctypes.data + 4 * LANES * t)
                _mark(climbing, s, left.ctypes.data + 4 * LANES * (t - unsigned(1)))
                _mark(corner, s - unsigned(1), left.ctypes.data + 4 * LANES * (t - unsigned(1)))
