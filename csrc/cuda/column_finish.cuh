// grad_weight and grad_bias from the partial sums that the blocks of a backward kernel left: `partial_rows` rows of
// single (or double) precision sums per output, added up in an order fixed by their number and rounded once.
//
//   partial   [partial_row][sum][column]       sum 0 is grad_weight's, sum 1 grad_bias's
//
// A warp covers 32 columns (128 bytes of a partial row); the warps of a block take every warps-th partial row, and
// the first warp adds up what they have.
#pragma once
#include "row_norm.cuh"

namespace torchfastnorm::cuda {

template <class A>
struct ColumnSums {
  A* partial;  // null: nothing wanted
  int64_t partial_rows, cols;
  int sums;  // 1 or 2 per column
  void* grad_weight;
  void* grad_bias;
  DType type;

  __device__ __forceinline__ A* row(int64_t partial_row, int sum) const {
    return partial + (partial_row * sums + sum) * cols;
  }
};

template <class A>
__device__ __forceinline__ void finish_columns(const ColumnSums<A>& columns) {
  SHARED(A, part, [max_warps][32]);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const unsigned partial_rows = unsigned(columns.partial_rows);  // 64 bits would cost a division to unroll by
  const unsigned tiles = unsigned((columns.cols + 31) / 32);
  for (unsigned item = blockIdx.x; item < tiles * columns.sums; item += gridDim.x) {
    const int sum = item < tiles ? 0 : 1;
    void* const out = sum == 0 ? columns.grad_weight : columns.grad_bias;
    if (out == nullptr) continue;  // the same for the whole block
    const int64_t column = int64_t(item - sum * tiles) * 32 + lane;
    A total = A(0);
    if (column < columns.cols) {
#pragma unroll 4
      for (unsigned row = warp; row < partial_rows; row += warps) total += load_written(columns.row(row, sum) + column);
    }
    part[warp][lane] = total;
    __syncthreads();
    if (warp == 0) {
      for (unsigned other = 1; other < warps; ++other) total += part[other][lane];
      if (column < columns.cols) {
        with_type(columns.type, [&](auto* t) {
          using T = std::remove_pointer_t<decltype(t)>;
          store(static_cast<T*>(out) + column, narrow<T>(total));
        });
      }
    }
    __syncthreads();  // before the next item overwrites `part`
  }
}

// For kernels whose whole grid is resident (cooperative launch).
template <class A>
__device__ __forceinline__ void finish_in_same_launch(const ColumnSums<A>& columns) {
  cooperative_groups::this_grid().sync();
  finish_columns(columns);
}

template <class A>
__global__ void __launch_bounds__(512) column_finish(const ColumnSums<A> columns) {
  finish_columns(columns);
}

}  // namespace torchfastnorm::cuda
