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
  Rows x, residual;  // residual.data may be null
  OutputRows sum, y;
  Parameter weight, bias;
  A* mean;
  A* rstd;
  int64_t rows, cols;
  int64_t slice_vectors;  // of a row, for each block that shares it
  int64_t kept_vectors;   // of a slice, in shared memory (Shared)
  A eps, inverse_cols;
};

// The vectors of h of one row: x, or x + residual rounded to S, which is also written to `sum`.
template <class X, class H>
struct Source {
  static constexpr int N = Packed<H>::size;
  using A = Accumulator<H>;
  using S = StoredType<X, H>;

  Row<X, N, A> x;
  Row<S, N, A> residual, sum;
  bool add;

  using Raw = typename Row<X, N, A>::Raw;
  using RawResidual = typename Row<S, N, A>::Raw;

  Source() = default;
  __device__ __forceinline__ Source(const RowForwardArguments<A>& a, int64_t row)
      : x(a.x, row), add(a.residual.data != nullptr) {
    if (add) residual = {a.residual, row}, sum = {a.sum, row};
  }
  static __device__ __forceinline__ Packed<H> kept(const Row<X, N, A>& x, const Raw& raw) {
    if constexpr (std::is_same_v<X, H>) {
      return raw;
    } else {
      A values[N];
      x.values_of(raw, values);
      return pack<H>(values);
    }
  }
  // All lanes of a warp must call together (Row::store).
  template <class Index>
  __device__ __forceinline__ Packed<H> added(const Raw& raw, const RawResidual& raw_residual, Index index, Index cols,
                                             unsigned lanes) const {
    A values[N], other[N];
    x.values_of(raw, values);
    residual.values_of(raw_residual, other);
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] += other[j];
    // Normalised is what is stored: the rounded sum.
    if constexpr (std::is_same_v<S, H>) {
      const Packed<H> rounded = pack<H>(values);
      sum.store(index, cols, rounded, lanes);
      return rounded;
    } else {
      sum.store(index, cols, values, lanes);
      sum.round(values);
      return pack<H>(values);
    }
  }
  // A vector that has been loaded before.
  template <class Index>
  __device__ __forceinline__ Packed<H> reload(Index index, Index cols) const {
    if (!add) return kept(x, x.template load<Access::Cached>(index, cols));
    if constexpr (std::is_same_v<S, H>) {
      return sum.template load<Access::Written>(index, cols);
    } else {
      A values[N];
      sum.values_of(sum.template load<Access::Written>(index, cols), values);
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

template <class X, class H, class Y, bool CENTERED, int VECTORS>
__global__ void __launch_bounds__(forward_warp_threads, forward_warp_blocks)
    row_forward_warp(const RowForwardArguments<Accumulator<H>> a, const unsigned lanes) {
  using A = Accumulator<H>;
  constexpr int N = Packed<H>::size;
  constexpr int R = forward_rows_in_flight(VECTORS);
  const unsigned lane = threadIdx.x % lanes;
  const unsigned group = threadIdx.x / lanes, groups = blockDim.x / lanes;
  const int cols = int(a.cols);
  GroupReduce reduce{lanes};
  const auto index_of = [&](int k) { return int(lane + k * lanes); };

  for (int64_t first = int64_t(blockIdx.x) * groups * R; first < a.rows; first += int64_t(gridDim.x) * groups * R) {
    // A group beyond the last row goes along with row 0, but touches nothing: its limit is 0 columns.
    const auto row_of = [&](int r) { return first + r * groups + group < a.rows ? first + r * groups + group : 0; };
    const auto limit_of = [&](int r) { return first + r * groups + group < a.rows ? cols : 0; };
    typename Source<X, H>::Raw raw[R][VECTORS];
    Packed<H> h[R][VECTORS];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const Row<X, N, A> x(a.x, row_of(r));
#pragma unroll
      for (int k = 0; k < VECTORS; ++k) raw[r][k] = x.template load<Access::Once>(index_of(k), limit_of(r));
    }
    if (a.residual.data != nullptr) {
      // Two at a time: more on their way would cost registers, and so resident blocks.
      constexpr int count = R * VECTORS;
#pragma unroll
      for (int i = 0; i < count; i += 2) {
        typename Source<X, H>::RawResidual residual[2];
#pragma unroll
        for (int n = i; n < i + 2; ++n)
          residual[n - i] = Row<StoredType<X, H>, N, A>(a.residual, row_of(n / VECTORS))
                                .template load<Access::Once>(index_of(n % VECTORS), limit_of(n / VECTORS));
#pragma unroll
        for (int n = i; n < i + 2; ++n) {
          const int r = n / VECTORS, k = n % VECTORS;
          h[r][k] = Source<X, H>(a, row_of(r)).added(raw[r][k], residual[n - i], index_of(k), limit_of(r), lanes);
        }
      }
    } else {
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int k = 0; k < VECTORS; ++k) h[r][k] = Source<X, H>::kept(Row<X, N, A>(), raw[r][k]);
      }
    }
    A mean[R], rstd[R];
    const auto visit = [&](auto f) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int k = 0; k < VECTORS; ++k) {
          A values[N];
          unpack(h[r][k], values);
          f(r, values, cols - index_of(k) * N);
        }
      }
    };
    row_statistics<CENTERED, N>(visit, reduce, a.inverse_cols, a.eps, mean, rstd);
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      A weight[N], bias[N];  // from L1: to keep them from row to row would cost registers, and so resident blocks
      a.weight.template load<X>(index_of(k), cols, A(1), weight);
      if constexpr (CENTERED) a.bias.template load<X>(index_of(k), cols, A(0), bias);
#pragma unroll
      for (int r = 0; r < R; ++r)
        normalize_vector<CENTERED>(h[r][k], Row<Y, N, A>(a.y, row_of(r)), index_of(k), limit_of(r), mean[r], rstd[r],
                                   weight, bias, lanes);
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (lane != 0 || limit_of(r) == 0) continue;
      if (CENTERED && a.mean != nullptr) store(a.mean + row_of(r), mean[r]);
      if (a.rstd != nullptr) store(a.rstd + row_of(r), rstd[r]);
    }
  }
}

template <class X, class H, class Y, bool CENTERED, Residency RESIDENCY>
__global__ void __launch_bounds__(forward_block_threads, 1)
    row_forward_block(const RowForwardArguments<Accumulator<H>> a) {
  using A = Accumulator<H>;
  using RawResidual = typename Source<X, H>::RawResidual;
  constexpr int N = Packed<H>::size;
  constexpr bool registers = RESIDENCY == Residency::Registers;
  constexpr int vectors = registers ? forward_block_vectors : 1;
  using Index = std::conditional_t<registers, int, int64_t>;
  SHARED(A, scratch, [2][max_warps][max_sums]);
  SHARED(A, inbox, [2][max_cluster_blocks][max_sums]);
  BlockReduce<A> reduce{{scratch, inbox}};
  const Slice<Index> slice(a.cols, a.slice_vectors, N);
  const Index kept = Index(a.kept_vectors);
  Packed<H>* shared = nullptr;
  if constexpr (!registers) {
    DYNAMIC_SHARED(Packed<H>, dynamic);
    shared = dynamic;
  }
  const auto index_of = [&](int k) { return Index(slice.first + threadIdx.x + k * blockDim.x); };

  // 32 bits are enough: 2^32 rows of this length would be terabytes.
  for (unsigned row = blockIdx.x / Cluster::blocks(); row < a.rows; row += gridDim.x / Cluster::blocks()) {
    const Source<X, H> source(a, row);
    Packed<H> h[vectors];
    if constexpr (registers) {
      typename Source<X, H>::Raw raw[vectors];
#pragma unroll
      for (int k = 0; k < vectors; ++k) raw[k] = source.x.template load<Access::Once>(index_of(k), slice.limit);
      if (source.add) {
#pragma unroll
        for (int k = 0; k < vectors; k += 2) {  // two at a time: more would cost registers, and so resident blocks
          RawResidual residual[2];
#pragma unroll
          for (int i = 0; i < 2; ++i)
            residual[i] = source.residual.template load<Access::Once>(index_of(k + i), slice.limit);
#pragma unroll
          for (int i = 0; i < 2; ++i)
            h[k + i] = source.added(raw[k + i], residual[i], index_of(k + i), slice.limit, 32);
        }
      } else {
#pragma unroll
        for (int k = 0; k < vectors; ++k) h[k] = source.kept(source.x, raw[k]);
      }
    } else {
      for (Index local = threadIdx.x; local - threadIdx.x < slice.vectors; local += blockDim.x) {
        const Index index = slice.first + local;
        const auto raw = source.x.template load<Access::Once>(index, slice.limit);
        const Packed<H> packed =
            source.add ? source.added(raw, source.residual.template load<Access::Once>(index, slice.limit), index,
                                      slice.limit, 32)
                       : source.kept(source.x, raw);
        if (local < kept) shared[local] = packed;
      }
      // What is read again from `sum` was stored in part by a neighbouring lane, where rows are not aligned, and the
      // 16 bytes around it also hold what the next warp stores.
      if (source.add && kept < slice.vectors) __syncthreads();
    }
    // f(index, packed) for every vector of this thread. All lanes of a warp go round together.
    const auto for_each = [&](auto f) {
      if constexpr (registers) {
#pragma unroll
        for (int k = 0; k < vectors; ++k) f(index_of(k), h[k]);
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
    for_each([&](Index index, const Packed<H>& packed) {
      A weight[N], bias[N];
      a.weight.template load<X>(index, slice.limit, A(1), weight);
      if constexpr (CENTERED) a.bias.template load<X>(index, slice.limit, A(0), bias);
      normalize_vector<CENTERED>(packed, Row<Y, N, A>(a.y, row), index, slice.limit, mean[0], rstd[0], weight, bias,
                                 32);
    });
    if (threadIdx.x == 0 && Cluster::rank() == 0) {
      if (CENTERED && a.mean != nullptr) store(a.mean + row, mean[0]);
      if (a.rstd != nullptr) store(a.rstd + row, rstd[0]);
    }
  }
}

}  // namespace torchfastnorm::cuda
