// The kernels of weighted_dtw.cu behind plain C functions, to be called through ctypes.
#include "cuda_on_cpu.h"

#include "weighted_dtw.cu"

namespace {

// Unpacks an array of 8-byte arguments into the parameters of a kernel.
template <class T>
T unpack(const void* argument) {
  T value;
  std::memcpy(&value, argument, sizeof value);
  return value;
}

template <class... Parameters, size_t... I>
void run(void (*kernel)(Parameters...), const int* grid, int n_shared_bytes, int seed, const int64_t* arguments,
         std::index_sequence<I...>) {
  stand_in::launch({grid[0], grid[1], grid[2]}, 256, n_shared_bytes, seed,
                   [=] { kernel(unpack<Parameters>(arguments + I)...); });
}

}  // namespace

#define EXPORT(name)                                                                                      \
  extern "C" void run_##name(const int* grid, int n_shared_bytes, int seed, const int64_t* arguments) {   \
    [&]<class... P>(void (*kernel)(P...)) {                                                               \
      run(kernel, grid, n_shared_bytes, seed, arguments, std::index_sequence_for<P...>());                \
    }(name);                                                                                              \
  }

EXPORT(local_costs)
EXPORT(local_costs_half)
EXPORT(align)
EXPORT(path_costs)
EXPORT(path_gradients)
