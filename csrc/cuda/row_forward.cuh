// Forward of the row norms: one launch, x read once, y written once (with a residual: both read, sum and y written).
//
//   row_forward_warp    rows of up to 128 vectors of 16 bytes. `lanes` threads share a row, 32 / lanes rows share a
//                       warp, and each thread loads R rows before it reduces, for 64 bytes in flight a thread:
//
//                         warp 0   | row 0 lanes 0..7 | row 1 | row 2 | row 3 |     (8 lanes; R = 4 such lines, the
//                         warp 1   | row 4            | row 5 | row 6 | row 7 |      next rows of the block)
//
//   row_forward_block   longer rows: a block, or a cluster of blocks, shares a row. Thread t of a slice owns vectors
//                       t, t + threads, t + 2 * threads ... of it, for all passes. They stay in its registers
//                       (Residency::Registers), or in shared memory that only this thread touches (Shared), and what
//                       does not fit there is read again, most likely from L2.
//
// Statistics: row_statistics.cuh. y = (h - mean) * rstd * weight + bias in single precision (double for double),
// rounded once. Accumulation order depends on cols, H and the device's limits alone.
#pragma once
#include "../interface/row_plan.h"
#include "row_statistics.cuh"

namespace torchfastnorm::cuda {

template <class A>
struct RowForwardArguments {
  Rows x, residual, sum, y;
  Parameter weight, bias;
  A* mean;
  A* rstd;
  int64_t rows, cols;
  int64_t kept_vectors;  // of a block's slice, in its shared memory
  A eps, inverse_cols;
};

// The vectors of h of one row: x, or x + residual rounded to H, which is also written to `sum`.
// ADD: yes, no, or (with AnyType) decided by the arguments.
template <class X, class H, bool ADD>
struct Source {
  static constexpr int N = Packed<H>::size;
  using A = Accumulator<H>;
  static constexpr bool any = std::is_same_v<X, AnyType>;
  static constexpr bool plain = !ADD && !any;

  Row<X, N, A> x;
  Row<H, N, A> residual, sum;
  bool add = ADD;

  struct Raw {
    typename Row<X, N, A>::Raw x;
    Packed<H> residual;
  };

  Source() = default;
  __device__ __forceinline__ Source(const RowForwardArguments<A>& a, int64_t row) : x(a.x, row) {
    if constexpr (!plain) {
      add = ADD || a.residual.data != nullptr;
      if (add) residual = {a.residual, row}, sum = {a.sum, row};
    }
  }
  // Loads only, so that a thread's loads can all be on their way together.
  template <Access ACCESS, class Index>
  __device__ __forceinline__ Raw load(Index index, Index cols) const {
    Raw raw;
    raw.x = x.template load<ACCESS>(index, cols);
    if constexpr (!plain) {
      if (add) raw.residual = residual.template load<ACCESS>(index, cols);
    }
    return raw;
  }
  // All lanes of a warp must call together (Row::store).
  template <class Index>
  __device__ __forceinline__ Packed<H> finish(const Raw& raw, Index index, Index cols, unsigned lanes) const {
    if constexpr (plain) {
      return raw.x;
    } else {
      A values[N];
      x.values_of(raw.x, values);
      if (add) {
        A other[N];
        unpack(raw.residual, other);
#pragma unroll
        for (int j = 0; j < N; ++j) values[j] += other[j];
        sum.store(index, cols, values, lanes);
      }
      return pack<H>(values);  // normalised is what was stored: the rounded sum
    }
  }
  // The same vector once more.
  template <class Index>
  __device__ __forceinline__ Packed<H> reload(Index index, Index cols) const {
    if constexpr (plain) {
      return x.template load<Access::Cached>(index, cols);
    } else {
      if (add) return sum.template load<Access::Written>(index, cols);
      A values[N];
      x.values_of(x.template load<Access::Cached>(index, cols), values);
      return pack<H>(values);
    }
  }
};

template <bool CENTERED, class H, class Y, class Index>
__device__ __forceinline__ void normalize_vector(const Packed<H>& h, const Row<Y, Packed<H>::size, Accumulator<H>>& y,
                                                 Index index, Index cols, Accumulator<H> mean, Accumulator<H> rstd,
                                                 const Accumulator<H> (&weight)[Packed<H>::size],
                                                 const Accumulator<H> (&bias)[Packed<H>::size], unsigned lanes) {
  constexpr int N = Packed<H>::size;
  Accumulator<H> values[N];
  unpack(h, values);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const Accumulator<H> x_hat = CENTERED ? normalize(values[j], mean, rstd) : values[j] * rstd;
    values[j] = CENTERED ? affine(x_hat, weight[j], bias[j]) : x_hat * weight[j];
  }
  y.store(index, cols, values, lanes);
}

template <class X, class H, class Y, bool ADD, bool CENTERED, int VECTORS>
__global__ void __launch_bounds__(forward_warp_threads, forward_warp_blocks)
    row_forward_warp(const RowForwardArguments<Accumulator<H>> a, const unsigned lanes) {
  using A = Accumulator<H>;
  constexpr int N = Packed<H>::size;
  constexpr int R = forward_rows_in_flight(VECTORS);
  const unsigned lane = threadIdx.x % lanes;
  const unsigned group = threadIdx.x / lanes, groups = blockDim.x / lanes;
  const int cols = int(a.cols);
  GroupReduce reduce{lanes};

  A weight[N], bias[N];
  const auto load_parameters = [&](int k) {
    a.weight.load(int(lane + k * lanes), cols, A(1), weight);
    if constexpr (CENTERED) a.bias.load(int(lane + k * lanes), cols, A(0), bias);
  };
  if constexpr (VECTORS == 1) load_parameters(0);  // a thread keeps its columns for life

  for (int64_t first = int64_t(blockIdx.x) * groups * R; first < a.rows; first += int64_t(gridDim.x) * groups * R) {
    Source<X, H, ADD> source[R];
    typename Source<X, H, ADD>::Raw raw[R][VECTORS];
    Packed<H> h[R][VECTORS];
    int64_t row[R];
    int limit[R];  // 0 for a row beyond the last: its lanes go along, but touch nothing
#pragma unroll
    for (int r = 0; r < R; ++r) {
      row[r] = first + r * groups + group;
      limit[r] = row[r] < a.rows ? cols : 0;
      if (limit[r] == 0) row[r] = 0;
      source[r] = {a, row[r]};
#pragma unroll
      for (int k = 0; k < VECTORS; ++k) raw[r][k] = source[r].template load<Access::Once>(int(lane + k * lanes), limit[r]);
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int k = 0; k < VECTORS; ++k) h[r][k] = source[r].finish(raw[r][k], int(lane + k * lanes), limit[r], lanes);
    }
    A mean[R], rstd[R];
    const auto visit = [&](auto f) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int k = 0; k < VECTORS; ++k) {
          A values[N];
          unpack(h[r][k], values);
          f(r, values, cols - int(lane + k * lanes) * N);
        }
      }
    };
    row_statistics<CENTERED, N>(visit, reduce, a.inverse_cols, a.eps, mean, rstd);
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      if constexpr (VECTORS > 1) load_parameters(k);
#pragma unroll
      for (int r = 0; r < R; ++r)
        normalize_vector<CENTERED>(h[r][k], Row<Y, N, A>(a.y, row[r]), int(lane + k * lanes), limit[r], mean[r], rstd[r],
                                   weight, bias, lanes);
    }
    if (lane == 0) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (limit[r] == 0) continue;
        if (CENTERED && a.mean != nullptr) store(a.mean + row[r], mean[r]);
        if (a.rstd != nullptr) store(a.rstd + row[r], rstd[r]);
      }
    }
  }
}

template <class X, class H, class Y, bool ADD, bool CENTERED, Residency RESIDENCY, bool CLUSTER>
__global__ void __launch_bounds__(forward_block_threads) row_forward_block(const RowForwardArguments<Accumulator<H>> a) {
  using A = Accumulator<H>;
  constexpr int N = Packed<H>::size;
  constexpr bool registers = RESIDENCY == Residency::Registers;
  constexpr int vectors_kept = registers ? forward_block_vectors : 1;
  using Index = std::conditional_t<registers, int, int64_t>;
  SHARED(A, scratch, [2][max_warps][max_sums]);
  SHARED(A, inbox, [2][max_cluster_blocks][max_sums]);
  BlockReduce<A, CLUSTER> reduce(scratch, inbox);
  const unsigned rank = CLUSTER ? Cluster::rank() : 0;
  const unsigned blocks = CLUSTER ? Cluster::blocks() : 1;
  const Slice<Index> slice = slice_of<Index>(a.cols, N, rank, blocks);
  const Index kept = Index(a.kept_vectors);
  Packed<H>* shared = nullptr;
  if constexpr (!registers) {
    DYNAMIC_SHARED(Packed<H>, dynamic);
    shared = dynamic;
  }

  for (int64_t row = blockIdx.x / blocks; row < a.rows; row += gridDim.x / blocks) {
    const Source<X, H, ADD> source(a, row);
    Packed<H> h[vectors_kept];
    if constexpr (registers) {
      typename Source<X, H, ADD>::Raw raw[vectors_kept];
#pragma unroll
      for (int k = 0; k < vectors_kept; ++k)
        raw[k] = source.template load<Access::Once>(Index(slice.first + threadIdx.x + k * blockDim.x), slice.limit);
#pragma unroll
      for (int k = 0; k < vectors_kept; ++k)
        h[k] = source.finish(raw[k], Index(slice.first + threadIdx.x + k * blockDim.x), slice.limit, 32);
    } else {
      for (Index local = threadIdx.x; local - threadIdx.x < slice.vectors; local += blockDim.x) {
        const auto raw = source.template load<Access::Once>(slice.first + local, slice.limit);
        const Packed<H> packed = source.finish(raw, slice.first + local, slice.limit, 32);
        if (local < kept) shared[local] = packed;
      }
    }
    // f(index, packed) for every vector of this thread. All lanes of a warp go round together.
    const auto for_each = [&](auto f) {
      if constexpr (registers) {
#pragma unroll
        for (int k = 0; k < vectors_kept; ++k) f(Index(slice.first + threadIdx.x + k * blockDim.x), h[k]);
      } else {
        for (Index local = threadIdx.x; local - threadIdx.x < slice.vectors; local += blockDim.x)
          f(slice.first + local, local < kept ? shared[local] : source.reload(slice.first + local, slice.limit));
      }
    };
    const auto visit = [&](auto f) {
      for_each([&](Index index, const Packed<H>& packed) {
        A values[N];
        unpack(packed, values);
        const Index valid = slice.limit - index * N;
        f(0, values, valid < N ? int(valid) : N);
      });
    };
    A mean[1], rstd[1];
    row_statistics<CENTERED, N>(visit, reduce, a.inverse_cols, a.eps, mean, rstd);
    const Row<Y, N, A> y(a.y, row);
    for_each([&](Index index, const Packed<H>& packed) {
      A weight[N], bias[N];
      a.weight.load(index, slice.limit, A(1), weight);
      if constexpr (CENTERED) a.bias.load(index, slice.limit, A(0), bias);
      normalize_vector<CENTERED>(packed, y, index, slice.limit, mean[0], rstd[0], weight, bias, 32);
    });
    if (threadIdx.x == 0 && rank == 0) {
      if (CENTERED && a.mean != nullptr) store(a.mean + row, mean[0]);
      if (a.rstd != nullptr) store(a.rstd + row, rstd[0]);
    }
  }
}

}  // namespace torchfastnorm::cuda
