// Weighted DTW on CUDA: local costs, alignment, and cost and gradients along given paths. Definition: reference.py.
//
// A row is one step of one centroid, a column one step of one sample. No kernel uses atomics: every sum has one
// owner and one order, so results repeat bit for bit.
// The same source runs on the CPU in the tests, through a stand-in header; hence the few macros below.

#if defined(HALF_SEARCH) && defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

#ifdef __CUDA_ARCH__
// 16 bytes from global to shared memory, behind the back of the threads.
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  unsigned address = (unsigned)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(address), "l"(from));
}
#define COPIES_COMMIT() asm volatile("cp.async.commit_group;\n")
#define COPIES_WAIT(n) asm volatile("cp.async.wait_group %0;\n" ::"n"(n))
#else
__device__ inline void copy_async(void* to, const void* from) { *(uint4*)to = *(const uint4*)from; }
#define COPIES_COMMIT()
#define COPIES_WAIT(n)
#endif

#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#endif

typedef long long Index;

constexpr int kTile = 128;      // rows and columns of a tile; 256 threads own 8 x 8 cells each
constexpr int kDepth = 16;      // features of one stage
constexpr int kStages = 3;      // one computed on, two on their way
constexpr int kThreads = 256;
constexpr int kSteps = 8;       // centroid steps that a path kernel holds in registers

// ---- Local costs ----------------------------------------------------------------------------------------------

// cost[z][row][column] = sum over the z-th share of the features of weights * |centroids - values|.
// Operands are transposed and padded with zeros: params [centroids, weights][features][n_rows], values
// [features][n_columns]; n_rows and n_columns are multiples of kTile, n_features and per_share of kDepth.
// Grid: column tiles, row tiles, shares.
extern "C" __global__ void __launch_bounds__(kThreads, 2)
local_costs(const float* __restrict__ params, const float* __restrict__ values, float* __restrict__ cost,
            int n_features, int per_share, int n_rows, int n_columns) {
  DYNAMIC_SHARED(float, stages);  // [kStages][centroids, weights, values][kDepth][kTile]
  const int thread = threadIdx.x;
  const Index row = (Index)blockIdx.y * kTile, column = (Index)blockIdx.x * kTile;
  const int first = blockIdx.z * per_share;
  const int n_stages = (min(n_features, first + per_share) - first) / kDepth;
  const int y = thread / 16 * 4, x = thread % 16 * 4;

  // Every thread copies the same four neighbours of every 8th feature.
  const Index to_weights = (Index)n_features * n_rows;
  const float* next_params = params + (Index)(first + thread / 32) * n_rows + row + thread % 32 * 4;
  const float* next_values = values + (Index)(first + thread / 32) * n_columns + column + thread % 32 * 4;
  auto fetch = [&](int slot) {
    float* to = stages + slot * (3 * kDepth * kTile) + thread * 4;
#pragma unroll
    for (int i = 0; i < kDepth / 8; i++, to += kThreads * 4) {
      copy_async(to, next_params);
      copy_async(to + kDepth * kTile, next_params + to_weights);
      copy_async(to + 2 * kDepth * kTile, next_values);
      next_params += 8 * n_rows;
      next_values += 8 * n_columns;
    }
  };

  float sums[8][8] = {};
  for (int stage = 0; stage < kStages - 1; stage++) {
    if (stage < n_stages) fetch(stage);
    COPIES_COMMIT();
  }
  int slot = 0;
  for (int stage = 0; stage < n_stages; stage++, slot = slot + 1 == kStages ? 0 : slot + 1) {
    COPIES_WAIT(kStages - 2);
    __syncthreads();  // this stage has arrived for all, and all are done with the one that is overwritten next
    if (stage + kStages - 1 < n_stages) fetch(slot == 0 ? kStages - 1 : slot - 1);
    COPIES_COMMIT();
    const float* from = stages + slot * (3 * kDepth * kTile);
#pragma unroll
    for (int depth = 0; depth < kDepth; depth++, from += kTile) {
      float c[8], w[8], v[8];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        *(float4*)(c + 4 * half) = *(const float4*)(from + 64 * half + y);
        *(float4*)(w + 4 * half) = *(const float4*)(from + kDepth * kTile + 64 * half + y);
        *(float4*)(v + 4 * half) = *(const float4*)(from + 2 * kDepth * kTile + 64 * half + x);
      }
#pragma unroll
      for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) sums[i][j] = fmaf(w[i], fabsf(c[i] - v[j]), sums[i][j]);
    }
  }
  cost += (Index)blockIdx.z * n_rows * n_columns;
#pragma unroll
  for (int i = 0; i < 8; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const Index at = (row + i / 4 * 64 + y + i % 4) * n_columns + column + 64 * half + x;
      *(float4*)(cost + at) = make_float4(sums[i][4 * half], sums[i][4 * half + 1], sums[i][4 * half + 2],
                                          sums[i][4 * half + 3]);
    }
}

#ifdef HALF_SEARCH
constexpr int kHalfDepth = 32;  // features of one stage
constexpr int kFlush = 16;      // features summed in half precision before they go to a float

// local_costs in half2 arithmetic, with half the instructions per cell. For finding paths, not for costs.
extern "C" __global__ void __launch_bounds__(kThreads, 2)
local_costs_half(const __half* __restrict__ params, const __half* __restrict__ values, float* __restrict__ cost,
                 int n_features, int per_share, int n_rows, int n_columns) {
  DYNAMIC_SHARED(__half, half_stages);  // [kStages][centroids, weights, values][kHalfDepth][kTile]
  const int thread = threadIdx.x;
  const Index row = (Index)blockIdx.y * kTile, column = (Index)blockIdx.x * kTile;
  const int first = blockIdx.z * per_share;
  const int n_stages = (min(n_features, first + per_share) - first) / kHalfDepth;
  const int y = thread / 16 * 8, x = thread % 16 * 8;

  // Every thread copies the same eight neighbours of every 16th feature.
  const Index to_weights = (Index)n_features * n_rows;
  const __half* next_params = params + (Index)(first + thread / 16) * n_rows + row + thread % 16 * 8;
  const __half* next_values = values + (Index)(first + thread / 16) * n_columns + column + thread % 16 * 8;
  auto fetch = [&](int slot) {
    __half* to = half_stages + slot * (3 * kHalfDepth * kTile) + thread * 8;
#pragma unroll
    for (int i = 0; i < kHalfDepth / 16; i++, to += kThreads * 8) {
      copy_async(to, next_params);
      copy_async(to + kHalfDepth * kTile, next_params + to_weights);
      copy_async(to + 2 * kHalfDepth * kTile, next_values);
      next_params += 16 * n_rows;
      next_values += 16 * n_columns;
    }
  };

  float sums[8][8] = {};
  for (int stage = 0; stage < kStages - 1; stage++) {
    if (stage < n_stages) fetch(stage);
    COPIES_COMMIT();
  }
  int slot = 0;
  for (int stage = 0; stage < n_stages; stage++, slot = slot + 1 == kStages ? 0 : slot + 1) {
    COPIES_WAIT(kStages - 2);
    __syncthreads();
    if (stage + kStages - 1 < n_stages) fetch(slot == 0 ? kStages - 1 : slot - 1);
    COPIES_COMMIT();
    const __half* from = half_stages + slot * (3 * kHalfDepth * kTile);
#pragma unroll
    for (int flush = 0; flush < kHalfDepth; flush += kFlush) {
      __half2 part[8][4];
#pragma unroll
      for (int depth = flush; depth < flush + kFlush; depth++, from += kTile) {
        __half2 c[4], w[4], v[4];
        *(uint4*)c = *(const uint4*)(from + y);
        *(uint4*)w = *(const uint4*)(from + kHalfDepth * kTile + y);
        *(uint4*)v = *(const uint4*)(from + 2 * kHalfDepth * kTile + x);
#pragma unroll
        for (int i = 0; i < 8; i++) {
          const __half2 ci = i % 2 ? __high2half2(c[i / 2]) : __low2half2(c[i / 2]);
          const __half2 wi = i % 2 ? __high2half2(w[i / 2]) : __low2half2(w[i / 2]);
#pragma unroll
          for (int j = 0; j < 4; j++) {
            const __half2 apart = __habs2(__hsub2(ci, v[j]));
            part[i][j] = depth == flush ? __hmul2(wi, apart) : __hfma2(wi, apart, part[i][j]);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const float2 both = __half22float2(part[i][j]);
          sums[i][2 * j] += both.x;
          sums[i][2 * j + 1] += both.y;
        }
    }
  }
  cost += (Index)blockIdx.z * n_rows * n_columns;
#pragma unroll
  for (int i = 0; i < 8; i++)
#pragma unroll
    for (int j = 0; j < 8; j++) cost[(row + y + i) * n_columns + column + x + j] = sums[i][j];
}
#endif

// ---- Alignment ------------------------------------------------------------------------------------------------

// Distances and paths of all pairs of a chunk of samples and a block of classes. `width` (a power of two up to 32)
// neighbouring threads own a pair and walk the anti-diagonals of `width` centroid steps at a time: thread t is at
// column d - t, takes (t, s-1) from itself and (t-1, s) and (t-1, s-1) from its neighbour. The last step of such a
// band leaves its accumulated costs in place of its local costs (share 0), where the next band finds them.
// moves: two words per pair, step and 32 columns, whose bits tell whether t and whether s was one less before.
extern "C" __global__ void __launch_bounds__(kThreads)
align(float* cost, int n_shares, int n_rows, int n_columns, const Index* __restrict__ offsets, int n_samples,
      int n_classes, int length, int diagonal, int width, unsigned* moves, int n_words, float* __restrict__ distances,
      int* __restrict__ lo, int* __restrict__ hi) {
  const int lane = threadIdx.x % width;
  const Index pair = (Index)blockIdx.x * (kThreads / width) + threadIdx.x / width;
  if (pair >= (Index)n_samples * n_classes) return;
  const unsigned group = (width == 32 ? ~0u : (1u << width) - 1) << (threadIdx.x % 32 / width * width);
  const int n = pair / n_classes, k = pair % n_classes;
  const Index first = offsets[n];
  const int n_steps = (int)(offsets[n + 1] - first);
  moves += pair * length * n_words * 2;

  auto local = [&](int t, int s) {
    const float* at = cost + ((Index)k * length + t) * n_columns + first + s;
    float sum = 0;
    for (int share = 0; share < n_shares; share++) sum += at[(Index)share * n_rows * n_columns];
    return sum;
  };

  const float start = local(0, 0);  // on every path: left out of the sums, it costs them no precision
  float here = 0;
  for (int top = 0; top < length; top += width) {
    const int t = top + lane;
    float* edge = cost + ((Index)k * length + top - 1) * n_columns + first;
    float corner = 0;
    unsigned back_t = 0, back_s = 0;
    __syncwarp(group);  // the band above has been written
    for (int d = 0; d < n_steps + width - 1; d++) {
      const int s = d - lane;
      float above = __shfl_up_sync(group, here, 1, width);
      if (lane == 0) above = top > 0 && s < n_steps ? edge[s] : 0;
      if (t < length && s >= 0 && s < n_steps) {
        // The walls are decided by position, so that the path stays inside the table whatever the costs are.
        const float left = here;
        bool up = t > 0 && (s == 0 || above < left), back = !up;
        float best = up ? above : left;
        if (diagonal && t > 0 && s > 0 && !(best < corner)) {
          best = corner;
          up = back = true;
        }
        here = t + s == 0 ? 0 : best + local(t, s);
        back_t |= (unsigned)up << (s % 32);
        back_s |= (unsigned)back << (s % 32);
        if (s % 32 == 31 || s == n_steps - 1) {
          unsigned* word = moves + ((Index)t * n_words + s / 32) * 2;
          word[0] = back_t;
          word[1] = back_s;
          back_t = back_s = 0;
        }
        if (lane == width - 1) edge[(Index)width * n_columns + s] = here;
      }
      corner = above;
    }
    if (t == length - 1) distances[pair] = here + start;
  }
  __syncwarp(group);
  if (lane > 0) return;
  int t = length - 1, s = n_steps - 1;
  lo += pair * length;
  hi += pair * length;
  hi[t] = s;
  while (t > 0 || s > 0) {
    const unsigned* word = moves + ((Index)t * n_words + s / 32) * 2;
    const bool up = word[0] >> (s % 32) & 1, back = word[1] >> (s % 32) & 1;
    if (up) lo[t] = s;
    s -= back;
    if (up) hi[--t] = s;
  }
  lo[0] = 0;
}

// ---- Along given paths ----------------------------------------------------------------------------------------

// A warp owns one class, kSteps of its steps and 64 features (two a thread), and walks all samples; the 8 warps of a
// block share the values through the first-level cache. Grid: feature slabs, classes / 8, steps / kSteps.
// values [column][n_pairs] and centroids, weights [class * step][n_pairs] as pairs of features.

// partial[step group][slab][sample][class]: to be summed over the first two.
extern "C" __global__ void __launch_bounds__(kThreads, 2)
path_costs(const float2* __restrict__ values, const Index* __restrict__ offsets, const float2* __restrict__ centroids,
           const float2* __restrict__ weights, const int* __restrict__ lo, const int* __restrict__ hi,
           float* __restrict__ partial, int n_samples, int n_classes, int length, int n_pairs) {
  const int lane = threadIdx.x % 32, k = blockIdx.y * 8 + threadIdx.x / 32, pair = blockIdx.x * 32 + lane;
  if (k >= n_classes) return;
  const bool inside = pair < n_pairs;
  const int first = blockIdx.z * kSteps;
  float2 c[kSteps], w[kSteps];
#pragma unroll
  for (int t = 0; t < kSteps; t++) {
    const bool used = inside && first + t < length;
    const Index at = ((Index)k * length + first + t) * n_pairs + pair;
    c[t] = used ? centroids[at] : make_float2(0, 0);
    w[t] = used ? weights[at] : make_float2(0, 0);
  }
  partial += ((Index)blockIdx.z * gridDim.x + blockIdx.x) * n_samples * n_classes;
  for (int n = 0; n < n_samples; n++) {
    const float2* x = values + offsets[n] * n_pairs + pair;
    const Index path = ((Index)n * n_classes + k) * length + first;
    float even = 0, odd = 0;
#pragma unroll
    for (int t = 0; t < kSteps; t++) {
      if (first + t >= length) break;
      const int last = hi[path + t];
      for (int s = lo[path + t]; s <= last; s++) {
        const float2 v = inside ? x[(Index)s * n_pairs] : make_float2(0, 0);
        even = fmaf(w[t].x, fabsf(c[t].x - v.x), even);
        odd = fmaf(w[t].y, fabsf(c[t].y - v.y), odd);
      }
    }
    float sum = even + odd;
    for (int apart = 16; apart; apart /= 2) sum += __shfl_xor_sync(~0u, sum, apart);
    if (lane == 0) partial[(Index)n * n_classes + k] = sum;
  }
}

// x with its sign flipped where y is negative; +0 counts as positive, so a tie of centroid and value has slope +1.
__device__ __forceinline__ float flip(float x, float y) {
  return __int_as_float(__float_as_int(x) ^ (__float_as_int(y) & 0x80000000));
}

// Adds the gradients of sum(grads * distances) to grad_centroids and grad_log_weights, (classes, length, n_features).
extern "C" __global__ void __launch_bounds__(kThreads, 2)
path_gradients(const float2* __restrict__ values, const Index* __restrict__ offsets,
               const float2* __restrict__ centroids, const float2* __restrict__ weights, const int* __restrict__ lo,
               const int* __restrict__ hi, const float* __restrict__ grads, float* __restrict__ grad_centroids,
               float* __restrict__ grad_log_weights, int n_samples, int n_classes, int length, int n_pairs,
               int n_features) {
  const int lane = threadIdx.x % 32, k = blockIdx.y * 8 + threadIdx.x / 32, pair = blockIdx.x * 32 + lane;
  if (k >= n_classes || pair >= n_pairs) return;
  const int first = blockIdx.z * kSteps;
  float2 c[kSteps], slope[kSteps] = {}, area[kSteps] = {};
#pragma unroll
  for (int t = 0; t < kSteps; t++)
    if (first + t < length) c[t] = centroids[((Index)k * length + first + t) * n_pairs + pair];
  for (int n = 0; n < n_samples; n++) {
    const float2* x = values + offsets[n] * n_pairs + pair;
    const Index path = ((Index)n * n_classes + k) * length + first;
    const float g = grads[(Index)n * n_classes + k];
#pragma unroll
    for (int t = 0; t < kSteps; t++) {
      if (first + t >= length) break;
      const int last = hi[path + t];
      for (int s = lo[path + t]; s <= last; s++) {
        const float2 v = x[(Index)s * n_pairs];
        const float dx = v.x - c[t].x, dy = v.y - c[t].y;
        const float gx = flip(g, dx), gy = flip(g, dy);
        slope[t].x += gx;
        slope[t].y += gy;
        area[t].x = fmaf(gx, dx, area[t].x);
        area[t].y = fmaf(gy, dy, area[t].y);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kSteps; t++) {
    if (first + t >= length) break;
    const Index row = (Index)k * length + first + t, at = row * n_features + 2 * pair;
    const float2 w = weights[row * n_pairs + pair];
    grad_centroids[at] -= w.x * slope[t].x;
    grad_log_weights[at] += w.x * area[t].x;
    if (2 * pair + 1 < n_features) {
      grad_centroids[at + 1] -= w.y * slope[t].y;
      grad_log_weights[at + 1] += w.y * area[t].y;
    }
  }
}
