"""What `cpu_vector.py` writes its loops with: vectors, addresses and loops in LLVM IR, on top of llvmlite."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .cpu_isa import LANES

I32, I64, F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
VECTOR, VECTOR_I32 = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
MASK = ir.IntType(LANES)  # one bit per lane
BYTES = 4 * LANES  # of one vector
inlined: Any = intrinsic
_EXP_RANGE = -110.0, 89.0  # beyond, float32 has 0 and infinity
_LOG_2 = 0.693359375, math.log(2) - 0.693359375


def constant(value: float) -> ir.Constant:
    """A vector of one number, rounded to float32."""
    return ir.Constant(VECTOR, [ir.Constant(F32, float(np.float32(value)))] * LANES)


def integers(value: int) -> ir.Constant:
    return ir.Constant(VECTOR_I32, [ir.Constant(I32, value)] * LANES)


ZERO = constant(0.0)


def intp(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def signature(n_arguments: int) -> Any:
    """Of an intrinsic without a result, every argument an address or a count."""
    return types.void(*[types.intp] * n_arguments)


class Emitter:
    """The instructions that the loops use, on top of an llvmlite builder. Addresses are integers."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.b = builder
        unary = ir.FunctionType(VECTOR, [VECTOR])
        ternary = ir.FunctionType(VECTOR, [VECTOR] * 3)
        self._fabs = self._declare(f"llvm.fabs.v{LANES}f32", unary)
        self._fma = self._declare(f"llvm.fma.v{LANES}f32", ternary)
        self._round = self._declare(f"llvm.nearbyint.v{LANES}f32", unary)

    def _declare(self, name: str, kind: ir.FunctionType) -> ir.Function:
        module = self.b.module
        return module.globals[name] if name in module.globals else ir.Function(module, kind, name=name)

    def at(self, base: Any, offset: int) -> Any:
        return self.b.add(base, intp(offset)) if offset else base

    def item(self, base: Any, i: Any, size: int = 4) -> Any:
        """The address of entry `i` of a list of entries of `size` bytes."""
        return self.b.add(base, self.b.mul(i, intp(size)))

    def load(self, address: Any, kind: Any = VECTOR, align: int = 4) -> Any:
        return self.b.load(self.b.inttoptr(address, kind.as_pointer()), align=align)

    def store(self, value: Any, address: Any, align: int = 4) -> None:
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()), align=align)

    def load_index(self, base: Any, i: Any) -> Any:
        return self.b.zext(self.load(self.item(base, i), I32), I64)

    def load_broadcast(self, address: Any) -> Any:
        return self.broadcast(self.load(address, F32), VECTOR)

    def broadcast(self, scalar: Any, kind: Any) -> Any:
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
        return self.shuffle(one, one, [0] * LANES)

    def prefetch(self, address: Any) -> None:
        pointer = ir.IntType(8).as_pointer()
        name, kind = "llvm.prefetch.p0", ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
        read, keep, data = (ir.Constant(I32, x) for x in (0, 3, 1))
        self.b.call(self._declare(name, kind), [self.b.inttoptr(address, pointer), read, keep, data])

    def abs(self, x: Any) -> Any:
        return self.b.call(self._fabs, [x])

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        return self.b.call(self._fma, [x, y, z])

    def exp(self, x: Any) -> Any:
        """e ** x to about one unit in the last place; NaN stays, beyond float32 comes infinity or 0."""
        for bound, outside in ((_EXP_RANGE[0], "<"), (_EXP_RANGE[1], ">")):
            x = self.b.select(self.b.fcmp_ordered(outside, x, constant(bound)), constant(bound), x)
        n = self.b.call(self._round, [self.b.fmul(x, constant(1 / math.log(2)))])
        rest = x
        for part in _LOG_2:  # n * log 2 in two parts: the first product is exact
            rest = self.fma(n, constant(-part), rest)
        power = constant(1 / math.factorial(7))
        for i in range(6, -1, -1):
            power = self.fma(power, rest, constant(1 / math.factorial(i)))
        # 2 ** n in two factors: alone it may lie outside float32.
        exponent = self.b.fptosi(n, VECTOR_I32)
        half = self.b.ashr(exponent, integers(1))
        for part in (half, self.b.sub(exponent, half)):
            bits = self.b.shl(self.b.add(part, integers(127)), integers(23))
            power = self.b.fmul(power, self.b.bitcast(bits, VECTOR))
        return power

    def bits(self, x: Any) -> Any:
        return self.b.bitcast(x, VECTOR_I32)

    def store_mask(self, mask: Any, address: Any) -> None:
        """One bit per lane, as a 32-bit integer."""
        integer = self.b.bitcast(mask, MASK)
        self.store(integer if MASK.width == 32 else self.b.zext(integer, I32), address)

    def shuffle(self, x: Any, y: Any, lanes: list[int]) -> Any:
        mask = ir.Constant(ir.VectorType(I32, len(lanes)), [ir.Constant(I32, i) for i in lanes])
        return self.b.shuffle_vector(x, y, mask)

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

    def transposed(self, vectors: list[Any]) -> list[Any]:
        """Vector i of the result holds lane i of every vector given (as many vectors as lanes)."""
        half = LANES // 2
        halves = [[j for i in range(half) for j in (start + i, LANES + start + i)] for start in (0, half)]
        for _ in range(LANES.bit_length() - 1):  # shuffled so as cards are: log2(LANES) times transposes
            pairs = zip(vectors[:half], vectors[half:], strict=True)
            vectors = [self.shuffle(x, y, lanes) for x, y in pairs for lanes in halves]
        return vectors

    def loop(self, count: Any, state: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """Emits `for i in range(count): state = body(i, state)`, count >= 1; returns the final state."""
        before, head = self.b.block, self.b.append_basic_block("loop")
        done = self.b.append_basic_block("done")
        self.b.branch(head)
        self.b.position_at_end(head)
        i, phis = self.b.phi(I64), [self.b.phi(x.type) for x in state]
        after = body(i, list(phis))
        following = self.b.add(i, intp(1))
        for phi, start, end in zip([i, *phis], [intp(0), *state], [following, *after], strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(end, self.b.block)
        self.b.cbranch(self.b.icmp_signed("<", following, count), head, done)
        self.b.position_at_end(done)
        return after
