// Runs CUDA kernels on the CPU, for tests: a stand-in for the few built-ins that weighted_dtw.cu uses.
//
// The threads of a block are fibers that take turns on one system thread. A fiber runs until it meets a barrier or a
// warp operation; which fiber goes next is drawn from a seed, so a missing barrier shows in some order. Blocks run one
// after the other. A barrier that can never fill up ends the process with a message.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(stand_in::shared.data())

using std::min;

struct Dim {
  int x, y, z;
};
struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
template <class To, class From>
To bits_as(From from) {
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline int __float_as_int(float x) { return bits_as<int>(x); }
inline float __int_as_float(int x) { return bits_as<float>(x); }

inline Dim threadIdx, blockIdx, gridDim;

namespace stand_in {

constexpr int kWarp = 32;
constexpr size_t kStack = 64 * 1024;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool done = false;
  long barriers = 0, exchanges = 0;  // met so far
  double slots[2];                   // what it last handed to its warp, by turns
};

inline std::vector<double> shared;
inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline int current;
inline std::function<void()> body;

inline void give_way() { swapcontext(&fibers[current].context, &scheduler); }

inline void run_fiber() {
  body();
  fibers[current].done = true;
  give_way();
}

// Waits until every live fiber of `first ... first + count` has arrived; within a warp only those of `mask`.
template <class Arrived>
void wait_for(Arrived arrived, int first, int count, unsigned mask) {
  for (;;) {
    bool all = true;
    for (int i = 0; all && i < count; i++) {
      const Fiber& other = fibers[first + i];
      all = other.done || arrived(other) || (i < kWarp && !(mask >> i & 1));
    }
    if (all) return;
    give_way();
  }
}

inline double exchange(unsigned mask, double value, int from) {
  const int first = current / kWarp * kWarp, lane = current % kWarp;
  if (!(mask >> lane & 1)) {
    std::fprintf(stderr, "lane %d takes part in a warp operation whose mask %08x leaves it out\n", lane, mask);
    std::abort();
  }
  Fiber& me = fibers[current];
  const long turn = me.exchanges++;
  me.slots[turn % 2] = value;
  const int count = min<int>(kWarp, fibers.size() - first);
  wait_for([turn](const Fiber& f) { return f.exchanges > turn; }, first, count, mask);
  return fibers[first + from].slots[turn % 2];
}

// Calls `kernel` for every thread of every block. Threads start and resume in an order drawn from `seed`.
inline void launch(Dim grid, int n_threads, size_t n_shared_bytes, unsigned seed, std::function<void()> kernel) {
  std::mt19937 random(seed);
  std::vector<int> order(n_threads);
  for (int i = 0; i < n_threads; i++) order[i] = i;
  body = std::move(kernel);
  gridDim = grid;
  for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
      for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) {
        // Shared memory starts as NaN: what is read before it is written shows in the result.
        shared.assign(n_shared_bytes / sizeof(double) + 2, std::nan(""));
        fibers = std::vector<Fiber>(n_threads);
        for (Fiber& fiber : fibers) {
          getcontext(&fiber.context);
          fiber.context.uc_stack = {fiber.stack.get(), 0, kStack};
          makecontext(&fiber.context, run_fiber, 0);
        }
        long idle = 0;
        for (int left = n_threads; left;) {
          std::shuffle(order.begin(), order.end(), random);
          const int before = left;
          long progress = 0;
          for (int i : order) {
            Fiber& fiber = fibers[i];
            if (fiber.done) continue;
            current = i;
            threadIdx = {i, 0, 0};
            const long met = fiber.barriers + fiber.exchanges;
            swapcontext(&scheduler, &fiber.context);
            progress += fiber.barriers + fiber.exchanges - met;
            left -= fiber.done;
          }
          idle = progress || left < before ? 0 : idle + 1;
          if (idle > 2) {
            std::fprintf(stderr, "deadlock: %d threads wait for others that will not come\n", left);
            std::abort();
          }
        }
      }
}

}  // namespace stand_in

inline void __syncthreads() {
  const long turn = stand_in::fibers[stand_in::current].barriers++;
  const auto arrived = [turn](const stand_in::Fiber& f) { return f.barriers > turn; };
  stand_in::wait_for(arrived, 0, stand_in::fibers.size(), ~0u);
}
inline void __syncwarp(unsigned mask) { stand_in::exchange(mask, 0, stand_in::current % stand_in::kWarp); }
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int apart) {
  return (T)stand_in::exchange(mask, value, (stand_in::current % stand_in::kWarp) ^ apart);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int apart, int width) {
  const int lane = stand_in::current % stand_in::kWarp;
  return (T)stand_in::exchange(mask, value, lane % width >= apart ? lane - apart : lane);
}

#ifdef HALF_SEARCH
typedef _Float16 __half;
struct __half2 {
  __half x, y;
};
inline __half2 __low2half2(__half2 a) { return {a.x, a.x}; }
inline __half2 __high2half2(__half2 a) { return {a.y, a.y}; }
inline __half2 __hsub2(__half2 a, __half2 b) { return {__half(a.x - b.x), __half(a.y - b.y)}; }
inline __half2 __hmul2(__half2 a, __half2 b) { return {__half(a.x * b.x), __half(a.y * b.y)}; }
inline __half2 __habs2(__half2 a) { return {a.x < 0 ? __half(-a.x) : a.x, a.y < 0 ? __half(-a.y) : a.y}; }
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  return {__half((float)a.x * (float)b.x + (float)c.x), __half((float)a.y * (float)b.y + (float)c.y)};
}
inline float2 __half22float2(__half2 a) { return {(float)a.x, (float)a.y}; }
#endif
