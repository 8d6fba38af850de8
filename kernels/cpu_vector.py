"""The three hot loops of the CPU backend, as explicit vectors: LLVM IR emitted through numba intrinsics.

A compiler makes these loops fast only when it also keeps a tile of sums in registers, which it does not do
by itself. Here every register is spelled out; LLVM only assigns them. What each loop computes is written
plainly in `cpu_plain.py`, function by function.

Weighted |c - x| costs three instructions (subtract, clear the sign, multiply-add); they, not memory, are
the limit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .cpu_isa import BLOCK, LANES, ROWS, TILE_COLUMNS, VECTORS, Floats, Ints, compiled

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_VECTOR, _VECTOR_I32 = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_BYTES = 4 * LANES  # of one vector
_ZERO = ir.Constant(_VECTOR, [ir.Constant(_F32, 0.0)] * LANES)
_inlined: Any = intrinsic
_AHEAD = 8  # cells that the path loops prefetch ahead


def _intp(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


class _Emitter:
    """The instructions used below, on top of an llvmlite builder. Addresses are integers."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.b = builder
        unary = ir.FunctionType(_VECTOR, [_VECTOR])
        ternary = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        self._fabs = self._declare(f"llvm.fabs.v{LANES}f32", unary)
        self._fma = self._declare(f"llvm.fma.v{LANES}f32", ternary)

    def _declare(self, name: str, kind: ir.FunctionType) -> ir.Function:
        module = self.b.module
        return module.globals[name] if name in module.globals else ir.Function(module, kind, name=name)

    def at(self, base: Any, offset: int) -> Any:
        return self.b.add(base, _intp(offset)) if offset else base

    def load(self, address: Any, kind: Any = _VECTOR, align: int = 4) -> Any:
        return self.b.load(self.b.inttoptr(address, kind.as_pointer()), align=align)

    def store(self, value: Any, address: Any, align: int = 4) -> None:
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()), align=align)

    def load_index(self, base: Any, i: Any) -> Any:
        return self.b.zext(self.load(self.b.add(base, self.b.shl(i, _intp(2))), _I32), _I64)

    def prefetch(self, address: Any) -> None:
        pointer = ir.IntType(8).as_pointer()
        name, kind = "llvm.prefetch.p0", ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
        read, keep, data = (ir.Constant(_I32, x) for x in (0, 3, 1))
        self.b.call(self._declare(name, kind), [self.b.inttoptr(address, pointer), read, keep, data])

    def abs(self, x: Any) -> Any:
        return self.b.call(self._fabs, [x])

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        return self.b.call(self._fma, [x, y, z])

    def shuffle(self, x: Any, y: Any, lanes: list[int]) -> Any:
        mask = ir.Constant(ir.VectorType(_I32, len(lanes)), [ir.Constant(_I32, i) for i in lanes])
        return self.b.shuffle_vector(x, y, mask)

    def broadcast(self, scalar: Any) -> Any:
        one = self.b.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, ir.Constant(_I32, 0))
        return self.shuffle(one, one, [0] * LANES)

    def sums(self, vectors: list[Any]) -> Any:
        """One vector whose lane i is the sum of the lanes of `vectors[i]` (as many vectors as lanes).

        Each round folds pairs of vectors: halves of width w are added to each other and laid side by side, so
        that LANES vectors need LANES - 1 additions in all instead of LANES - 1 each.
        """
        width, order = LANES, [[i] for i in range(LANES)]
        while len(vectors) > 1:
            half = len(vectors) // 2
            first: list[int] = []
            second: list[int] = []
            for start in range(0, LANES, width):
                for source in (start, LANES + start):
                    first += range(source, source + width // 2)
                    second += range(source + width // 2, source + width)
            folded = []
            for x, y in zip(vectors[:half], vectors[half:], strict=True):
                folded.append(self.b.fadd(self.shuffle(x, y, first), self.shuffle(x, y, second)))
            order = [
                [i for pair in zip(p, q, strict=True) for i in pair]
                for p, q in zip(order[:half], order[half:], strict=True)
            ]
            vectors, width = folded, width // 2
        lanes = [order[0].index(i) for i in range(LANES)]
        return vectors[0] if lanes == sorted(lanes) else self.shuffle(vectors[0], vectors[0], lanes)


def _loop(
    e: _Emitter, count: Any, state: list[Any], body: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """Emits `for i in range(count): state = body(i, state)`, count >= 1; returns the final state."""
    before, head = e.b.block, e.b.append_basic_block("loop")
    done = e.b.append_basic_block("done")
    e.b.branch(head)
    e.b.position_at_end(head)
    i, phis = e.b.phi(_I64), [e.b.phi(x.type) for x in state]
    after = body(i, list(phis))
    following = e.b.add(i, _intp(1))
    for phi, start, end in zip([i, *phis], [_intp(0), *state], [following, *after], strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(end, e.b.block)
    e.b.cbranch(e.b.icmp_signed("<", following, count), head, done)
    e.b.position_at_end(done)
    return after


def _signature(n_arguments: int) -> Any:
    """No result; every argument an address or a count."""
    return types.void(*[types.intp] * n_arguments)


@_inlined
def _tile(_context, params, values, n_vectors, out, stride, add):  # type: ignore[no-untyped-def]
    """ROWS x TILE_COLUMNS local costs over `n_vectors` feature vectors.

    params: packed [vector][row](centroid, weight); values: packed [vector][column]; out: float32 whose rows
    lie side by side and whose columns lie `stride` bytes apart; add: 0 overwrites, else adds.
    """

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        params, values, n_vectors, out, stride, add = arguments
        e = _Emitter(builder)
        n_sums = ROWS * TILE_COLUMNS

        def body(_: Any, state: list[Any]) -> list[Any]:
            p, v, *sums = state
            x = [e.load(e.at(v, m * _BYTES), align=_BYTES) for m in range(TILE_COLUMNS)]
            for r in range(ROWS):
                c = e.load(e.at(p, 2 * r * _BYTES), align=_BYTES)
                w = e.load(e.at(p, (2 * r + 1) * _BYTES), align=_BYTES)
                for m in range(TILE_COLUMNS):
                    i = m * ROWS + r
                    sums[i] = e.fma(w, e.abs(e.b.fsub(c, x[m])), sums[i])
            return [e.at(p, 2 * ROWS * _BYTES), e.at(v, TILE_COLUMNS * _BYTES), *sums]

        sums = _loop(e, n_vectors, [params, values] + [_ZERO] * n_sums, body)[2:]
        adding = e.b.icmp_signed("!=", add, _intp(0))
        sums += [_ZERO] * (-n_sums % LANES)
        for start in range(0, n_sums, LANES):
            total = e.sums(sums[start : start + LANES])
            for lane in range(0, min(LANES, n_sums - start), ROWS):
                column = e.shuffle(total, total, list(range(lane, lane + ROWS)))
                address = e.b.add(out, e.b.mul(stride, _intp((start + lane) // ROWS)))
                old = e.load(address, column.type)
                e.store(e.b.select(adding, e.b.fadd(old, column), column), address)
        return context.get_dummy_value()

    return _signature(6), generate


@_inlined
def _row_costs(_context, values, cells, owners, n_cells, centroid, weight, sums):  # type: ignore[no-untyped-def]
    """Adds the cost of every cell of one centroid row, over one feature tile, to the sums of its owner.

    values: [column][VECTORS]; cells, owners: int32 column and sample of every cell; centroid, weight: VECTORS
    vectors; sums: one vector per sample.
    """

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        values, cells, owners, n_cells, centroid, weight, sums = arguments
        e = _Emitter(builder)
        c = [e.load(e.at(centroid, i * _BYTES)) for i in range(VECTORS)]
        w = [e.load(e.at(weight, i * _BYTES)) for i in range(VECTORS)]

        def body(i: Any, _: list[Any]) -> list[Any]:
            _prefetch_cell(e, values, cells, i)
            x = _cell(e, values, cells, i)
            address = e.b.add(sums, e.b.mul(e.load_index(owners, i), _intp(_BYTES)))
            # Two chains, half as long as one.
            even, odd = e.load(address, align=_BYTES), _ZERO
            for v in range(0, VECTORS, 2):
                even = e.fma(w[v], e.abs(e.b.fsub(c[v], x[v])), even)
                odd = e.fma(w[v + 1], e.abs(e.b.fsub(c[v + 1], x[v + 1])), odd)
            e.store(e.b.fadd(even, odd), address, align=_BYTES)
            return []

        _loop(e, n_cells, [], body)
        return context.get_dummy_value()

    return _signature(7), generate


@_inlined
def _row_gradients(_context, values, cells, owners, n_cells, centroid, grads, slopes, areas):  # type: ignore[no-untyped-def]
    """Over the cells of one centroid row and one feature tile: `sum g * sign` and `sum g * |x - c|`.

    grads: float32 g of every sample; sign is that of x - c, +1 at 0; slopes, areas: VECTORS vectors out.
    """

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        values, cells, owners, n_cells, centroid, grads, slopes, areas = arguments
        e = _Emitter(builder)
        c = [e.load(e.at(centroid, i * _BYTES)) for i in range(VECTORS)]
        sign_bit = ir.Constant(_VECTOR_I32, [ir.Constant(_I32, -(2**31))] * LANES)

        def body(i: Any, state: list[Any]) -> list[Any]:
            slope, area = state[:VECTORS], state[VECTORS:]
            _prefetch_cell(e, values, cells, i)
            g = e.load(e.b.add(grads, e.b.shl(e.load_index(owners, i), _intp(2))), _F32)
            bits = e.b.bitcast(e.broadcast(g), _VECTOR_I32)
            for v, x in enumerate(_cell(e, values, cells, i)):
                d = e.b.fsub(x, c[v])
                # g with its sign flipped where d is negative; 0 - 0 is +0, so a tie counts as positive.
                flip = e.b.and_(e.b.bitcast(d, _VECTOR_I32), sign_bit)
                signed = e.b.bitcast(e.b.xor(bits, flip), _VECTOR)
                slope[v] = e.b.fadd(slope[v], signed)
                area[v] = e.fma(signed, d, area[v])
            return slope + area

        totals = _loop(e, n_cells, [_ZERO] * (2 * VECTORS), body)
        for v in range(VECTORS):
            e.store(totals[v], e.at(slopes, v * _BYTES))
            e.store(totals[VECTORS + v], e.at(areas, v * _BYTES))
        return context.get_dummy_value()

    return _signature(8), generate


@_inlined
def _sum_lanes(_context, vectors, out, n_groups):  # type: ignore[no-untyped-def]
    """`out[i] += sum of the lanes of vectors[i]`, in `n_groups` groups of LANES."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        vectors, out, n_groups = arguments
        e = _Emitter(builder)

        def body(i: Any, _: list[Any]) -> list[Any]:
            start = e.b.add(vectors, e.b.mul(i, _intp(LANES * _BYTES)))
            total = e.sums([e.load(e.at(start, j * _BYTES), align=_BYTES) for j in range(LANES)])
            address = e.b.add(out, e.b.mul(i, _intp(_BYTES)))
            e.store(e.b.fadd(e.load(address), total), address)
            return []

        _loop(e, n_groups, [], body)
        return context.get_dummy_value()

    return _signature(3), generate


def _cell(e: _Emitter, values: Any, cells: Any, i: Any) -> list[Any]:
    start = e.b.add(values, e.b.mul(e.load_index(cells, i), _intp(VECTORS * _BYTES)))
    return [e.load(e.at(start, v * _BYTES), align=_BYTES) for v in range(VECTORS)]


def _prefetch_cell(e: _Emitter, values: Any, cells: Any, i: Any) -> None:
    ahead = e.load_index(cells, e.at(i, _AHEAD))
    start = e.b.add(values, e.b.mul(ahead, _intp(VECTORS * _BYTES)))
    for offset in range(0, VECTORS * _BYTES, 64):
        e.prefetch(e.at(start, offset))


@compiled
def local_costs(params: Floats, values: Floats, n_vectors: int, cost: Floats) -> None:
    """See `cpu_plain.local_costs`."""
    n_column_tiles, n_row_tiles = cost.shape[0] // TILE_COLUMNS, cost.shape[1] // ROWS
    stride = 4 * cost.shape[1]
    p, v, out = params.ctypes.data, values.ctypes.data, cost.ctypes.data
    for start in range(0, n_vectors, BLOCK):
        width = min(BLOCK, n_vectors - start)
        p_step, v_step = 2 * ROWS * width * _BYTES, TILE_COLUMNS * width * _BYTES
        for r in range(n_row_tiles):
            for c in range(n_column_tiles):
                target = out + c * TILE_COLUMNS * stride + r * ROWS * 4
                _tile(p, v + c * v_step, width, target, stride, start)
            p += p_step
        v += n_column_tiles * v_step


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
    """See `cpu_plain.path_costs`."""
    n_tiles, n_columns = values.shape[:2]
    n_classes, length, n_features = centroids.shape
    width = VECTORS * LANES
    for tile in range(n_tiles):
        v = values.ctypes.data + tile * n_columns * VECTORS * _BYTES
        w = weights.ctypes.data + 4 * tile * width
        c, stride = centroids.ctypes.data + 4 * tile * width, 4 * n_features
        if (tile + 1) * width > n_features:
            c, stride = last.ctypes.data, 4 * width
        for k in range(n_classes):
            sums[:] = 0
            for t in range(length):
                at = 4 * (k * cells.shape[1] + starts[k, t])
                row = k * length + t
                _row_costs(
                    v,
                    cells.ctypes.data + at,
                    owners.ctypes.data + at,
                    starts[k, t + 1] - starts[k, t],
                    c + row * stride,
                    w + row * 4 * weights.shape[2],
                    sums.ctypes.data,
                )
            _sum_lanes(sums.ctypes.data, out.ctypes.data + 4 * k * out.shape[1], out.shape[1] // LANES)


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
    """See `cpu_plain.path_gradients`."""
    n_tiles, n_columns = values.shape[:2]
    n_classes, length, n_features = centroids.shape
    width = VECTORS * LANES
    slopes, areas = scratch[:width], scratch[width:]
    for tile in range(n_tiles):
        v = values.ctypes.data + tile * n_columns * VECTORS * _BYTES
        first = tile * width
        n_kept = min(width, n_features - first)
        c, stride = centroids.ctypes.data + 4 * first, 4 * n_features
        if n_kept < width:
            c, stride = last.ctypes.data, 4 * width
        for k in range(n_classes):
            for t in range(length):
                at = 4 * (k * cells.shape[1] + starts[k, t])
                _row_gradients(
                    v,
                    cells.ctypes.data + at,
                    owners.ctypes.data + at,
                    starts[k, t + 1] - starts[k, t],
                    c + (k * length + t) * stride,
                    grads.ctypes.data + 4 * k * grads.shape[1],
                    slopes.ctypes.data,
                    areas.ctypes.data,
                )
                w = weights[k, t, first : first + n_kept]
                to_c = grad_centroids[k, t, first : first + n_kept]
                to_l = grad_log_weights[k, t, first : first + n_kept]
                for f in range(n_kept):
                    to_c[f] -= w[f] * slopes[f]
                    to_l[f] += w[f] * areas[f]
