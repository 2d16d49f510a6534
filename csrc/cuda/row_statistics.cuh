// Mean and 1 / deviation of rows whose elements stay at hand (registers, shared memory, or read again):
// mean first, then the centred squares; never E[x^2] - E[x]^2, which loses everything at mean >> deviation.
//
// The pass over the squares also sums the deviations d = h - mean. Their mean corrects the rounding of the first
// mean, and sum(d)^2 / n what it added to the squares. Where that correction is not small (constant rows, whose
// rounding error is all there is), or the squares overflow (|d| beyond 1e19 in single precision), the row is measured
// once more, about the corrected mean and scaled by a power of two. NaN and infinity in the input stay visible.
#pragma once
#include "row_norm.cuh"

namespace torchfastnorm::cuda {

// R rows at once, so that their reductions overlap. visit(f) calls f(r, values, valid) for each vector of row r that
// this thread holds; elements from `valid` on are padding, and zero.
template <bool CENTERED, int N, int R, class A, class Visit, class Reduce>
__device__ __forceinline__ void row_statistics(Visit visit, Reduce& reduce, A inverse_cols, A eps, A (&mean)[R],
                                               A (&rstd)[R]) {
  constexpr int K = CENTERED ? 2 : 1;
  constexpr A downscale = sizeof(A) == 4 ? A(0x1p-64) : A(0x1p-512);
  const A infinity = A(INFINITY);

#pragma unroll
  for (int r = 0; r < R; ++r) mean[r] = A(0);
  if constexpr (CENTERED) {
    visit([&](int r, const A(&values)[N], int) {
#pragma unroll
      for (int j = 0; j < N; ++j) mean[r] += values[j];
    });
    reduce(mean);
#pragma unroll
    for (int r = 0; r < R; ++r) mean[r] *= inverse_cols;
  }

  A scale[R], squares[R];
#pragma unroll
  for (int r = 0; r < R; ++r) scale[r] = A(1);

  // sums[r] = sum of (d * scale)^2, sums[R + r] = sum of d * scale
  const auto measure = [&](auto scaled, auto& sums) {
#pragma unroll
    for (int k = 0; k < K * R; ++k) sums[k] = A(0);
    visit([&](int r, const A(&values)[N], int valid) {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        A d = values[j];
        if constexpr (CENTERED) d = j < valid ? d - mean[r] : A(0);
        if constexpr (decltype(scaled)::value) d *= scale[r];
        sums[r] += d * d;
        if constexpr (CENTERED) sums[R + r] += d;
      }
    });
    reduce(sums);
  };

  A sums[K * R];
  bool again[R];
  bool some_again = false;
  measure(std::false_type(), sums);
#pragma unroll
  for (int r = 0; r < R; ++r) {
    squares[r] = sums[r];
    again[r] = sums[r] == infinity;
    if (again[r]) scale[r] = downscale;
    if constexpr (CENTERED) {
      const A shift = sums[R + r] * inverse_cols;
      const A correction = sums[R + r] * shift;
      again[r] |= correction > sums[r] * A(0.25);
      squares[r] -= correction;
      mean[r] += shift;
    }
    some_again |= again[r];
  }
  if (reduce.any(some_again)) {
    measure(std::true_type(), sums);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (!again[r]) continue;  // a row's result must not depend on its neighbours in the warp
      squares[r] = sums[r];
      if constexpr (CENTERED) squares[r] -= sums[R + r] * (sums[R + r] * inverse_cols);
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) rstd[r] = scale[r] * inverse_sqrt(squares[r] * inverse_cols + eps * scale[r] * scale[r]);
}

}  // namespace torchfastnorm::cuda
