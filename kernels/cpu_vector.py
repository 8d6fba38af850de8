"""The hot loops of the CPU backend, as explicit vectors: LLVM IR emitted through numba intrinsics.

A compiler makes these loops fast only when it also keeps a tile of sums in registers, which it does not do
by itself. Here every register is spelled out; LLVM only assigns them. What each loop computes is written
plainly in `cpu_plain.py`, function by function.

Weighted |c - x| costs three instructions (subtract, clear the sign, multiply-add); they, not memory, are
the limit.
"""

from .cpu_vector_path import path_costs, path_gradients, tile_params
from .cpu_vector_search import align, local_costs, pack_params

__all__ = ["align", "local_costs", "pack_params", "path_costs", "path_gradients", "tile_params"]
