// The two loops every row kernel is made of, over the columns of one block: for_columns (common/convert.h) and
// sum_columns. A loop's body is called as body(column, lanes) with lanes Whole{} or, at most once and last, Part{n}
// (common/vector.h).
#pragma once
#include "../math/normalize.h"
#include "common/convert.h"
#include "row_kernels.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

// Rows are taken several at a time where that pays (measured): 16-bit rows, bound by arithmetic, and rows of which the
// parameters' sums fill the first-level cache. Backward takes as many as the registers hold the numbers of. Other rows
// of float or double, bound by memory, go one at a time: fewer streams. Short rows: row_short.h.
constexpr int kForwardGroup = 4, kBackwardGroup = TFN_VECTOR_BYTES == 64 ? 4 : 2;

template <class H>
TFN_INLINE bool grouped(int64_t cols, int64_t rows) {
  const int64_t bytes = cols * int64_t(sizeof(H));
  return sizeof(H) == 2 || (bytes >= 3 << 12 && bytes * rows <= 1 << 18);
}

// Outputs are fetched while the inputs are first read: a store that misses the cache would hold up all later ones.
// The next rows are fetched while the last pass runs over these. Not if a row is more than this many bytes, which would
// be gone before they are needed: outputs are then fetched as they are written, so many bytes ahead. Of short rows more
// than the next group is fetched ahead (of the second-level cache more, kFetchLevel in common/vector.h).
constexpr int64_t kFetchBytes = 1 << 18, kOutputAhead = 4096, kLeastAhead = TFN_VECTOR_BYTES == 64 ? 4096 : 2048;
template <class T>
TFN_INLINE int64_t output_ahead(int64_t cols) {
  return cols * int64_t(sizeof(T)) > kFetchBytes ? kOutputAhead : 0;
}

// Bytes from a row of a matrix to the one `rows` rows on, or as many as make kLeastAhead, to fetch it; 0 where there is
// none or it is too much.
template <class T>
TFN_INLINE int64_t bytes_ahead(const RowLayout& layout, int64_t row, int64_t rows, int64_t all_rows, int64_t cols) {
  const int64_t bytes = cols * int64_t(sizeof(T));
  if (bytes > 0 && rows * bytes < kLeastAhead) rows = kLeastAhead / bytes;  // long rows are spared the division
  if (row + 2 * rows > all_rows || rows * bytes > kFetchBytes) return 0;
  return (row_offset(layout, row + rows) - row_offset(layout, row)) * int64_t(sizeof(T));
}

// goes_past_caches (row_kernels.h), for rows of T. Of short rows of 16 bits, taken four at a time, half lines lie too
// far apart. Long rows of wider types go past the caches wherever they begin, if they are taken one at a time: the line
// that two rows share is stored as usual, and vectors begin behind it (for_columns_after).
template <class T>
TFN_INLINE bool rows_go_past_caches(const void* rows, int64_t cols, int64_t all_bytes, double part) {
  const int64_t bytes = cols * int64_t(sizeof(T));
  if (!kStoresPast || (sizeof(T) == 2 && bytes <= 512)) return false;
  if (goes_past_caches(rows, bytes, all_bytes, part)) return true;
  return sizeof(T) > 2 && bytes >= 1024 && reinterpret_cast<uintptr_t>(rows) % sizeof(T) == 0 &&
         exceeds_caches(all_bytes, part);
}
template <class T>
TFN_INLINE bool lines_are_whole(const void* rows, int64_t cols) {
  return reinterpret_cast<uintptr_t>(rows) % 64 == 0 && cols * int64_t(sizeof(T)) % 64 == 0;
}

// Columns of a run of `cols` up to its first whole line, where it goes past the caches; else none.
template <class T>
TFN_INLINE int64_t columns_to_line(bool past, const T* run, int64_t cols) {
  if (!kStoresPast || sizeof(T) == 2 || !past) return 0;
  const int64_t into_line = int64_t(reinterpret_cast<uintptr_t>(run) % 64);
  const int64_t head = into_line ? (64 - into_line) / int64_t(sizeof(T)) : 0;
  return head < cols ? head : cols;
}

// totals[i] = sum over the columns of what body(column, lanes, sums) adds to sums[i]. Four chains of vectors at a
// time, each lane of a chain adding at most 16 terms before it goes over into double: the rounding error stays that
// of a short sum, and squares of values up to 1e18 stay finite. fetch(column, count) comes before every four vectors.
template <class A, int SUMS, class Fetch, class Body>
TFN_INLINE void sum_columns(int64_t cols, double (&totals)[SUMS], Fetch fetch, Body body) {
  constexpr int64_t kStep = kLanes<A>, kChains = 4, kStrip = 16 * kChains * kStep;
  Doubles wide[SUMS] = {};
  for (int64_t c = 0; c < cols;) {
    const int64_t strip_end = cols - c < kStrip ? cols : c + kStrip;
    Vector<A> sums[kChains][SUMS];
    repeat<kChains>([&](auto chain) __attribute__((always_inline)) {
      repeat<SUMS>([&](auto i) __attribute__((always_inline)) { sums[chain][i] = Vector<A>{}; });
    });
    for (; c + kChains * kStep <= strip_end; c += kChains * kStep) {
      fetch(c, std::integral_constant<int64_t, kChains * kStep>());
      repeat<kChains>([&](auto chain)
                          __attribute__((always_inline)) { body(c + chain * kStep, Whole{}, sums[chain]); });
    }
    if (c < strip_end) fetch(c, std::integral_constant<int64_t, kChains * kStep>());
    for (; c + kStep <= strip_end; c += kStep) body(c, Whole{}, sums[0]);
    if (c < strip_end) {
      body(c, Part{strip_end - c}, sums[1]);
      c = strip_end;
    }
    repeat<SUMS>([&](auto i) __attribute__((always_inline)) {
      const Vector<A> sum = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
      if constexpr (std::is_same_v<A, float>)
        wide[i] += low(sum) + high(sum);
      else
        wide[i] += sum;
    });
  }
  for (int i = 0; i < SUMS; ++i) totals[i] = total(wide[i]);
}

// A block of weight or bias as accumulators: in place where it has that type, else converted once into the buffer
// and kept until another block is asked for. A null parameter is `fill`.
template <class A>
class ParameterBlock {
 public:
  TFN_INLINE const A* at(const void* parameter, DType type, int64_t begin, int64_t count, A fill) {
    if (parameter && type == dtype_of<A>) return static_cast<const A*>(parameter) + begin;
    if (begin_ != begin) convert(parameter, type, begin, count, fill);
    return values_;
  }

 private:
  void convert(const void* parameter, DType type, int64_t begin, int64_t count, A fill) {
    if (parameter)
      widen_block(values_, parameter, type, begin, count);
    else
      for (int64_t c = 0; c < count; ++c) values_[c] = fill;
    begin_ = begin;
  }

  int64_t begin_ = -1;
  alignas(64) A values_[kBlock];
};

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
