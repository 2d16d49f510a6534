// Sums over four short rows at once, rows of a matrix, planes or sets of planes: a row is one chain of vectors, and the
// four totals are formed together, as four doubles side by side, as are the divisions and roots that follow them. For a
// row alone these would take longer than its elements. A row's sums do not depend on the rows beside it.
#pragma once
#include "common/convert.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

// Measured: longer rows of float are slower four at a time, being bound by memory.
template <class H>
constexpr int64_t kShortRow = 512 / int64_t(sizeof(H));
constexpr int kShortGroup = 4;
using Four = VectorOf<double, 32>::Type;

TFN_INLINE Four to_four(Doubles v) {
#if TFN_VECTOR_BYTES == 64
  const __m512d wide = (__m512d)v;
  return (Four)_mm256_add_pd(_mm512_castpd512_pd256(wide), _mm512_maskz_extractf64x4_pd(__mmask8(-1), wide, 1));
#elif TFN_VECTOR_BYTES == 32
  return v;
#else
  return Four{v[0], v[1], 0, 0};
#endif
}
TFN_INLINE Four to_four(Floats v) { return to_four(low(v) + high(v)); }

TFN_INLINE Four square_root(Four v) {
#if TFN_VECTOR_BYTES >= 32
  return (Four)_mm256_sqrt_pd((__m256d)v);
#else
  for (int i = 0; i < 4; ++i) v[i] = __builtin_sqrt(v[i]);
  return v;
#endif
}

// The sum over the lanes of each.
template <class V>
TFN_INLINE Four totals_of(const V (&v)[kShortGroup]) {
  using Index = VectorOf<int64_t, 32>::Type;
  const Four a = to_four(v[0]), b = to_four(v[1]), c = to_four(v[2]), d = to_four(v[3]);
  const Four ab = __builtin_shuffle(a, b, Index{0, 4, 2, 6}) + __builtin_shuffle(a, b, Index{1, 5, 3, 7});
  const Four cd = __builtin_shuffle(c, d, Index{0, 4, 2, 6}) + __builtin_shuffle(c, d, Index{1, 5, 3, 7});
  return __builtin_shuffle(ab, cd, Index{0, 1, 4, 5}) + __builtin_shuffle(ab, cd, Index{2, 3, 6, 7});
}

// totals[i] = sum over the columns of what body(column, lanes, row, sums) adds to sums[i], for each of the four rows. A
// lane adds at most 16 terms before it goes over into double, as in sum_columns (row_loops.h).
template <class A, int SUMS, class Body>
TFN_INLINE void sum_short_rows(int64_t cols, Four (&totals)[SUMS], Body body) {
  constexpr int64_t kStrip = 16 * kLanes<A>;
  repeat<SUMS>([&](auto i) __attribute__((always_inline)) { totals[i] = Four{}; });
  for (int64_t begin = 0; begin < cols; begin += kStrip) {
    Vector<A> sums[SUMS][kShortGroup];
    repeat<SUMS * kShortGroup>(
        [&](auto i) __attribute__((always_inline)) { sums[i / kShortGroup][i % kShortGroup] = Vector<A>{}; });
    for_columns<A>(cols - begin < kStrip ? cols - begin : kStrip,
                   [&](int64_t c, auto lanes) __attribute__((always_inline)) {
                     repeat<kShortGroup>([&](auto row) __attribute__((always_inline)) {
                       Vector<A> of_row[SUMS];
                       repeat<SUMS>([&](auto i) __attribute__((always_inline)) { of_row[i] = sums[i][row]; });
                       body(begin + c, lanes, row, of_row);
                       repeat<SUMS>([&](auto i) __attribute__((always_inline)) { sums[i][row] = of_row[i]; });
                     });
                   });
    repeat<SUMS>([&](auto i) __attribute__((always_inline)) { totals[i] += totals_of(sums[i]); });
  }
}

// Of four runs of `count` elements: the means, and the sums of squared distances from them.
struct FourMoments {
  Four mean, squares;
};
template <class A, class H>
TFN_INLINE FourMoments short_moments(const H* const (&h)[kShortGroup], int64_t count) {
  Four sum[1], sums[2], means;
  sum_short_rows<A>(count, sum, [&](int64_t c, auto lanes, auto row, Vector<A>* s) __attribute__((always_inline)) {
    s[0] += load(h[row] + c, lanes);
  });
  A center[kShortGroup];
  for (int i = 0; i < kShortGroup; ++i) means[i] = double(center[i] = A(sum[0][i] / double(count)));
  sum_short_rows<A>(count, sums, [&](int64_t c, auto lanes, auto row, Vector<A>* s) __attribute__((always_inline)) {
    const Vector<A> d = keep(load(h[row] + c, lanes) - center[row], lanes);
    s[0] += d;
    s[1] += d * d;
  });
  const Four correction = sums[0] / double(count);
  return {means + correction, sums[1] - sums[0] * correction};
}

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
