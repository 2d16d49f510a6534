// Backward for rows of any length, where a row does not fit on the chip: h and grad_y are read twice.
//
//   row_backward_sums      a block a row: mean(g) and mean(g * x_hat) to `row_sums`
//   row_backward_columns   a block owns 256 vectors of columns and walks down every partial_rows-th row: grad_h, and
//                          the column sums in registers, as partial row blockIdx / tiles
#pragma once
#include "row_backward.cuh"

namespace torchfastnorm::cuda {

template <class X, class H, class Y, bool CENTERED>
__global__ void __launch_bounds__(stream_threads) row_backward_sums(const RowBackwardArguments<Accumulator<H>> a) {
  using A = Accumulator<H>;
  using Vector = BackwardVector<X, H, Y, CENTERED>;
  constexpr int N = Packed<H>::size;
  constexpr int K = CENTERED ? 2 : 1;
  SHARED(A, scratch, [2][max_warps][max_sums]);
  SHARED(A, inbox, [2][max_cluster_blocks][max_sums]);
  BlockReduce<A> reduce{{scratch, inbox}};
  const int64_t vectors = (a.cols + N - 1) / N;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const Row<typename Vector::S, N, A> h_row(a.h, row);
    const Row<Y, N, A> grad_y_row(a.grad_y, row);
    const A mean = CENTERED ? load_cached(a.mean + row) : A(0);
    const A rstd = load_cached(a.rstd + row);
    A sums[K] = {};
    for (int64_t index = threadIdx.x; index < vectors; index += blockDim.x) {
      A weight[N];
      a.weight.template load<X>(index, a.cols, A(1), weight);
      const Vector vector(h_row.template load<Access::Cached>(index, a.cols),
                          grad_y_row.template load<Access::Cached>(index, a.cols), mean, rstd);
      vector.add_to_row_sums(weight, sums[0], sums[K - 1]);
    }
    reduce(sums);
    if (threadIdx.x == 0) {
      store(a.row_sums + 2 * row, sums[0] * a.inverse_cols);
      store(a.row_sums + 2 * row + 1, CENTERED ? sums[K - 1] * a.inverse_cols : A(0));
    }
  }
}

template <class X, class H, class Y, bool CENTERED>
__global__ void __launch_bounds__(column_threads, column_blocks)
    row_backward_columns(const RowBackwardArguments<Accumulator<H>> a) {
  using A = Accumulator<H>;
  using Vector = BackwardVector<X, H, Y, CENTERED>;
  constexpr int N = Packed<H>::size;
  const unsigned tiles = unsigned(((a.cols + N - 1) / N + column_threads - 1) / column_threads);
  const int64_t index = int64_t(blockIdx.x % tiles) * column_threads + threadIdx.x;
  const unsigned partial_row = blockIdx.x / tiles, partial_rows = gridDim.x / tiles;
  A weight[N], grad_weight[N] = {}, grad_bias[N] = {};
  a.weight.template load<X>(index, a.cols, A(1), weight);
  for (int64_t row = partial_row; row < a.rows; row += partial_rows) {
    typename Vector::RawStored grad_sum{};
    if (a.grad_sum.data != nullptr)
      grad_sum = Row<typename Vector::S, N, A>(a.grad_sum, row).template load<Access::Once>(index, a.cols);
    const A rstd = load_cached(a.rstd + row);
    const Vector vector(Row<typename Vector::S, N, A>(a.h, row).template load<Access::Once>(index, a.cols),
                        Row<Y, N, A>(a.grad_y, row).template load<Access::Once>(index, a.cols),
                        CENTERED ? load_cached(a.mean + row) : A(0), rstd);
    vector.add_to_columns(grad_weight, grad_bias);
    vector.store(a, row, index, a.cols, weight, rstd, load_cached(a.row_sums + 2 * row + 1),
                 load_cached(a.row_sums + 2 * row), grad_sum, 32);
  }
  if (a.columns.partial == nullptr) return;
  store_elements(a.columns.row(partial_row, 0), index, a.cols, pack<A>(grad_weight));
  if constexpr (CENTERED) store_elements(a.columns.row(partial_row, 1), index, a.cols, pack<A>(grad_bias));
}

}  // namespace torchfastnorm::cuda
