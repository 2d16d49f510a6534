// Backward of the row norms: one launch, h and grad_y read once, grad_h written once.
//
// The grid is persistent: a block (or cluster) walks down the rows blockIdx, blockIdx + blocks, ... and its threads own
// the same columns in every row, so that grad_weight and grad_bias add up in single precision in registers. Each
// block leaves its sums as one row of `partial`; column_finish.cuh adds those up in order, after a grid barrier in the
// same launch or in a launch of its own. Nothing depends on timing: results are the same bits run to run.
//
//   row_backward_warp    rows of up to 128 vectors: lanes and groups as in row_forward.cuh
//   row_backward_block   a block or cluster a row; column sums in registers (Registers: h and grad_y too), or in shared
//                        memory (Shared: h and grad_y are read a second time, most likely from L2)
//
// Longer rows still: row_backward_streamed.cuh.
#pragma once
#include "../interface/row_plan.h"
#include "column_finish.cuh"
#include "row_norm.cuh"

namespace torchfastnorm::cuda {

template <class A>
struct RowBackwardArguments {
  Rows grad_y, grad_sum, h;   // grad_sum.data may be null
  OutputRows grad_h, grad_x;  // either's data may be null
  Parameter weight;
  const A* mean;  // null where the op has none
  const A* rstd;
  A* row_sums;  // Streamed: (rows, 2), mean(g) and mean(g * x_hat)
  ColumnSums<A> columns;
  int64_t rows, cols;
  int64_t slice_vectors;  // of a row, for each block that shares it
  A inverse_cols;
  bool finish;  // add the partial sums up in this launch (cooperative)
};

// What one thread does with one vector of a row.
template <class X, class H, class Y, bool CENTERED>
struct BackwardVector {
  static constexpr int N = Packed<H>::size;
  using A = Accumulator<H>;
  using S = StoredType<X, H>;
  using RawStored = typename Row<S, N, A>::Raw;
  using RawGradY = typename Row<Y, N, A>::Raw;

  A x_hat[N], grad_y[N];

  __device__ __forceinline__ BackwardVector(const RawStored& h, const RawGradY& raw_grad_y, A mean, A rstd) {
    Row<S, N, A>().values_of(h, x_hat);
    Row<Y, N, A>().values_of(raw_grad_y, grad_y);
#pragma unroll
    for (int j = 0; j < N; ++j) x_hat[j] = CENTERED ? normalize(x_hat[j], mean, rstd) : x_hat[j] * rstd;
  }
  // Padding has grad_y = 0 and adds nothing.
  __device__ __forceinline__ void add_to_row_sums(const A (&weight)[N], A& sum_g_x_hat, A& sum_g) const {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const A g = grad_y[j] * weight[j];
      sum_g_x_hat += g * x_hat[j];
      if constexpr (CENTERED) sum_g += g;
    }
  }
  __device__ __forceinline__ void add_to_columns(A (&grad_weight)[N], A (&grad_bias)[N]) const {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      grad_weight[j] += grad_y[j] * x_hat[j];
      if constexpr (CENTERED) grad_bias[j] += grad_y[j];
    }
  }
  template <class Index>
  __device__ __forceinline__ void store(const RowBackwardArguments<A>& a, int64_t row, Index index, Index cols,
                                        const A (&weight)[N], A rstd, A mean_g, A mean_g_x_hat,
                                        const RawStored& grad_sum, unsigned lanes) const {
    A values[N];
#pragma unroll
    for (int j = 0; j < N; ++j)
      values[j] = input_gradient(grad_y[j] * weight[j], x_hat[j], rstd, CENTERED ? mean_g : A(0), mean_g_x_hat);
    if (a.grad_sum.data != nullptr) {
      A more[N];
      Row<S, N, A>().values_of(grad_sum, more);
#pragma unroll
      for (int j = 0; j < N; ++j) values[j] += more[j];
    }
    if (a.grad_h.data != nullptr) Row<S, N, A>(a.grad_h, row).store(index, cols, values, lanes);
    if constexpr (!std::is_same_v<X, S> || std::is_same_v<X, AnyType>) {
      if (a.grad_x.data != nullptr) Row<X, N, A>(a.grad_x, row).store(index, cols, values, lanes);
    }
  }
};

template <class X, class H, class Y, bool CENTERED, int VECTORS>
__global__ void __launch_bounds__(backward_warp_threads(VECTORS), backward_warp_blocks)
    row_backward_warp(const RowBackwardArguments<Accumulator<H>> a, const unsigned lanes) {
  using A = Accumulator<H>;
  using Vector = BackwardVector<X, H, Y, CENTERED>;
  constexpr int N = Packed<H>::size;
  constexpr int R = backward_rows_in_flight(VECTORS);
  constexpr int K = CENTERED ? 2 : 1;
  const unsigned lane = threadIdx.x % lanes;
  const unsigned group = threadIdx.x / lanes, groups = blockDim.x / lanes;
  const int cols = int(a.cols);
  const auto index_of = [&](int k) { return int(lane + k * lanes); };

  A weight[N];
  if constexpr (VECTORS == 1) a.weight.template load<X>(index_of(0), cols, A(1), weight);
  A grad_weight[VECTORS][N] = {}, grad_bias[VECTORS][N] = {};

  for (int64_t first = int64_t(blockIdx.x) * groups * R; first < a.rows; first += int64_t(gridDim.x) * groups * R) {
    typename Vector::RawStored h[R][VECTORS], grad_sum[R][VECTORS] = {};
    typename Vector::RawGradY grad_y[R][VECTORS];
    // A group beyond the last row goes along with row 0, but touches nothing: its limit is 0 columns.
    const auto row_of = [&](int r) { return first + r * groups + group < a.rows ? first + r * groups + group : 0; };
    const auto limit_of = [&](int r) { return first + r * groups + group < a.rows ? cols : 0; };
    A mean[R], rstd[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const Row<typename Vector::S, N, A> h_row(a.h, row_of(r));
      const Row<Y, N, A> grad_y_row(a.grad_y, row_of(r));
#pragma unroll
      for (int k = 0; k < VECTORS; ++k) {
        h[r][k] = h_row.template load<Access::Once>(index_of(k), limit_of(r));
        grad_y[r][k] = grad_y_row.template load<Access::Once>(index_of(k), limit_of(r));
      }
      if (a.grad_sum.data != nullptr) {
        const Row<typename Vector::S, N, A> grad_sum_row(a.grad_sum, row_of(r));
#pragma unroll
        for (int k = 0; k < VECTORS; ++k)
          grad_sum[r][k] = grad_sum_row.template load<Access::Once>(index_of(k), limit_of(r));
      }
      mean[r] = CENTERED ? load_cached(a.mean + row_of(r)) : A(0);
      rstd[r] = load_cached(a.rstd + row_of(r));
    }
    A sums[K * R] = {};  // of g * x_hat, then of g
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      if constexpr (VECTORS > 1) a.weight.template load<X>(index_of(k), cols, A(1), weight);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const Vector vector(h[r][k], grad_y[r][k], mean[r], rstd[r]);
        vector.add_to_row_sums(weight, sums[r], sums[(K - 1) * R + r]);
        if (limit_of(r) != 0) vector.add_to_columns(grad_weight[k], grad_bias[k]);
      }
    }
    group_sum(sums, lanes);
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      if constexpr (VECTORS > 1) a.weight.template load<X>(index_of(k), cols, A(1), weight);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const Vector vector(h[r][k], grad_y[r][k], mean[r], rstd[r]);
        vector.store(a, row_of(r), index_of(k), limit_of(r), weight, rstd[r], sums[(K - 1) * R + r] * a.inverse_cols,
                     sums[r] * a.inverse_cols, grad_sum[r][k], lanes);
      }
    }
  }

  if (a.columns.partial == nullptr) return;  // neither grad_weight nor grad_bias is wanted
  // Groups of a warp that own the same columns, then the warps of the block, one after the other.
  SHARED(A, totals, [2][32 * VECTORS * N]);
#pragma unroll
  for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      for (unsigned offset = lanes; offset < 32; offset *= 2) {
        grad_weight[k][j] += __shfl_xor_sync(0xffffffffu, grad_weight[k][j], offset);
        if constexpr (CENTERED) grad_bias[k][j] += __shfl_xor_sync(0xffffffffu, grad_bias[k][j], offset);
      }
    }
  }
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) {
    if (threadIdx.x / 32 == warp && threadIdx.x % 32 < lanes) {
#pragma unroll
      for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const unsigned column = (lane + k * lanes) * N + j;
          totals[0][column] = (warp == 0 ? A(0) : totals[0][column]) + grad_weight[k][j];
          if constexpr (CENTERED) totals[1][column] = (warp == 0 ? A(0) : totals[1][column]) + grad_bias[k][j];
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int s = 0; s < K; ++s) {
    for (int column = int(threadIdx.x); column < cols; column += int(blockDim.x))
      store(a.columns.row(blockIdx.x, s) + column, totals[s][column]);
  }
  if (a.finish) finish_in_same_launch(a.columns);
}

template <class X, class H, class Y, bool CENTERED, Residency RESIDENCY>
__global__ void __launch_bounds__(backward_block_threads, 1)
    row_backward_block(const RowBackwardArguments<Accumulator<H>> a) {
  using A = Accumulator<H>;
  using Vector = BackwardVector<X, H, Y, CENTERED>;
  constexpr int N = Packed<H>::size;
  constexpr int K = CENTERED ? 2 : 1;
  constexpr bool registers = RESIDENCY == Residency::Registers;
  constexpr int vectors_kept = registers ? backward_vectors(type_of<H>) : 1;
  SHARED(A, scratch, [2][max_warps][max_sums]);
  SHARED(A, inbox, [2][max_cluster_blocks][max_sums]);
  BlockReduce<A> reduce{{scratch, inbox}};
  const Slice<int> slice(a.cols, a.slice_vectors, N);
  const unsigned sharer = blockIdx.x / Cluster::blocks(), sharers = gridDim.x / Cluster::blocks();
  const bool want_columns = a.columns.partial != nullptr;

  // Registers
  A grad_weight[vectors_kept][N] = {}, grad_bias[vectors_kept][N] = {};
  const auto index_of = [&](int k) { return int(slice.first + threadIdx.x + k * blockDim.x); };
  // Shared: column sums of vector `local` as 16-byte pieces, [sum][piece][local]; only their owner touches them.
  constexpr int pieces = N * int(sizeof(A)) / 16;
  constexpr int piece_size = 16 / int(sizeof(A));
  Packed<A>* column_sums = nullptr;
  const auto piece = [&](int s, int p, int local) -> Packed<A>& {
    return column_sums[(s * pieces + p) * slice.vectors + local];
  };
  if constexpr (!registers) {
    DYNAMIC_SHARED(Packed<A>, dynamic);
    column_sums = dynamic;
    if (want_columns)
      for (int local = int(threadIdx.x); local < slice.vectors; local += int(blockDim.x)) {
#pragma unroll
        for (int p = 0; p < K * pieces; ++p) piece(0, p, local) = Packed<A>{};
      }
  }

  // 32 bits are enough: 2^32 rows of this length would be terabytes.
  for (unsigned row = sharer; row < a.rows; row += sharers) {
    const Row<typename Vector::S, N, A> h_row(a.h, row);
    const Row<Y, N, A> grad_y_row(a.grad_y, row);
    const A mean = CENTERED ? load_cached(a.mean + row) : A(0);
    const A rstd = load_cached(a.rstd + row);
    typename Vector::RawStored h[vectors_kept], grad_sum[vectors_kept] = {};
    typename Vector::RawGradY grad_y[vectors_kept];
    A sums[K] = {};  // of g * x_hat, then of g
    A weight[N];
    if constexpr (registers) {
#pragma unroll
      for (int k = 0; k < vectors_kept; ++k) {
        h[k] = h_row.template load<Access::Once>(index_of(k), slice.limit);
        grad_y[k] = grad_y_row.template load<Access::Once>(index_of(k), slice.limit);
      }
#pragma unroll
      for (int k = 0; k < vectors_kept; ++k) {
        a.weight.template load<X>(index_of(k), slice.limit, A(1), weight);
        const Vector vector(h[k], grad_y[k], mean, rstd);
        vector.add_to_row_sums(weight, sums[0], sums[K - 1]);
        vector.add_to_columns(grad_weight[k], grad_bias[k]);
      }
      if (a.grad_sum.data != nullptr) {  // on its way while the row is reduced
#pragma unroll
        for (int k = 0; k < vectors_kept; ++k)
          grad_sum[k] =
              Row<typename Vector::S, N, A>(a.grad_sum, row).template load<Access::Once>(index_of(k), slice.limit);
      }
    } else {
      for (int local = int(threadIdx.x); local < slice.vectors; local += int(blockDim.x)) {
        const int index = slice.first + local;
        a.weight.template load<X>(index, slice.limit, A(1), weight);
        const Vector vector(h_row.template load<Access::Cached>(index, slice.limit),
                            grad_y_row.template load<Access::Cached>(index, slice.limit), mean, rstd);
        vector.add_to_row_sums(weight, sums[0], sums[K - 1]);
        if (!want_columns) continue;
        A sum_weight[N], sum_bias[N];
#pragma unroll
        for (int p = 0; p < pieces; ++p) {
          unpack(piece(0, p, local), reinterpret_cast<A(&)[piece_size]>(sum_weight[p * piece_size]));
          if constexpr (CENTERED)
            unpack(piece(1, p, local), reinterpret_cast<A(&)[piece_size]>(sum_bias[p * piece_size]));
        }
        vector.add_to_columns(sum_weight, sum_bias);
#pragma unroll
        for (int p = 0; p < pieces; ++p) {
          piece(0, p, local) = pack<A>(reinterpret_cast<A(&)[piece_size]>(sum_weight[p * piece_size]));
          if constexpr (CENTERED)
            piece(1, p, local) = pack<A>(reinterpret_cast<A(&)[piece_size]>(sum_bias[p * piece_size]));
        }
      }
    }
    reduce(sums);
    const A mean_g_x_hat = sums[0] * a.inverse_cols, mean_g = sums[K - 1] * a.inverse_cols;
    if constexpr (registers) {
#pragma unroll
      for (int k = 0; k < vectors_kept; ++k) {
        a.weight.template load<X>(index_of(k), slice.limit, A(1), weight);
        const Vector vector(h[k], grad_y[k], mean, rstd);
        vector.store(a, row, index_of(k), slice.limit, weight, rstd, mean_g, mean_g_x_hat, grad_sum[k], 32);
      }
    } else {
      for (int local = int(threadIdx.x); local - int(threadIdx.x) < slice.vectors; local += int(blockDim.x)) {
        const int index = slice.first + local;
        a.weight.template load<X>(index, slice.limit, A(1), weight);
        if (a.grad_sum.data != nullptr)
          grad_sum[0] = Row<typename Vector::S, N, A>(a.grad_sum, row).template load<Access::Once>(index, slice.limit);
        const Vector vector(h_row.template load<Access::Cached>(index, slice.limit),
                            grad_y_row.template load<Access::Cached>(index, slice.limit), mean, rstd);
        vector.store(a, row, index, slice.limit, weight, rstd, mean_g, mean_g_x_hat, grad_sum[0], 32);
      }
    }
  }

  if (!want_columns) return;
  if constexpr (registers) {
#pragma unroll
    for (int k = 0; k < vectors_kept; ++k) {
      store_elements(a.columns.row(sharer, 0), index_of(k), slice.limit, pack<A>(grad_weight[k]));
      if constexpr (CENTERED) store_elements(a.columns.row(sharer, 1), index_of(k), slice.limit, pack<A>(grad_bias[k]));
    }
  } else {
    for (int local = int(threadIdx.x); local < slice.vectors; local += int(blockDim.x)) {
#pragma unroll
      for (int p = 0; p < pieces; ++p) {
        const int index = (slice.first + local) * pieces + p;
        store_elements(a.columns.row(sharer, 0), index, slice.limit, piece(0, p, local));
        if constexpr (CENTERED) store_elements(a.columns.row(sharer, 1), index, slice.limit, piece(1, p, local));
      }
    }
  }
  if (a.finish) finish_in_same_launch(a.columns);
}

}  // namespace torchfastnorm::cuda
